//! Any bytes of a device that takes whole sectors: what an export of an NBD server is, and a part of a volume may begin and end anywhere.
//!
//! What does not fill a sector is read with its neighbours and written back with them. Two such writes to one sector must not run at the same
//! time, here or anywhere else: the one would undo the other. Chunks of a copy share no sector.

use tzero_block::{BlockDevice, ByteRange, Error, Zeroes};
use tzero_io::Buffer;

/// The smallest range that the device reads and writes by itself and that holds `range`.
pub(crate) fn widened(device: &impl BlockDevice, range: ByteRange) -> ByteRange {
    let unit = u64::from(device.geometry().alignment);
    ByteRange::between(range.start() / unit * unit, range.end().next_multiple_of(unit))
}

/// The part of `range` that the device takes by itself, and what is left before and after it.
fn split(device: &impl BlockDevice, range: ByteRange) -> (ByteRange, [ByteRange; 2]) {
    let unit = u64::from(device.geometry().alignment);
    let start = range.start().next_multiple_of(unit).min(range.end());
    let end = (range.end() / unit * unit).max(start);
    let between = ByteRange::between;
    (between(start, end), [between(range.start(), start), between(end, range.end())])
}

/// Reads any bytes.
pub(crate) async fn read(device: &impl BlockDevice, range: ByteRange) -> Result<Buffer, Error> {
    let wide = widened(device, range);
    let (buffer, result) = device.read(wide.start(), Buffer::uncleared(wide.len() as usize)).await;
    result?;
    if wide == range {
        return Ok(buffer);
    }
    let at = (range.start() - wide.start()) as usize;
    Ok(Buffer::copy_of(&buffer[at..at + range.len() as usize]))
}

/// Writes any bytes.
pub(crate) async fn write(device: &impl BlockDevice, offset: u64, bytes: Buffer) -> Result<(), Error> {
    let range = ByteRange::new(offset, bytes.len() as u64);
    let wide = widened(device, range);
    if wide == range {
        return device.write(offset, bytes, false).await.1;
    }
    let mut whole = read(device, wide).await?;
    let at = (offset - wide.start()) as usize;
    whole[at..at + bytes.len()].copy_from_slice(&bytes);
    device.write(wide.start(), whole, false).await.1
}

/// Makes any bytes zero.
pub(crate) async fn zero(device: &impl BlockDevice, range: ByteRange) -> Result<(), Error> {
    let (middle, ends) = split(device, range);
    if !middle.is_empty() {
        device.write_zeroes(middle, Zeroes { may_unmap: true, ..Zeroes::default() }).await?;
    }
    for end in ends.into_iter().filter(|end| !end.is_empty()) {
        write(device, end.start(), Buffer::zeroed(end.len() as usize)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tzero_block::{Action, Extent, Geometry, MemoryDevice};
    use tzero_io::{Backend, Runtime};

    use super::*;

    /// Memory that refuses what is not whole sectors.
    struct Strict(MemoryDevice);

    impl BlockDevice for Strict {
        fn geometry(&self) -> Geometry {
            Geometry { alignment: 512, ..self.0.geometry() }
        }

        async fn read(&self, offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
            match self.geometry().check(Action::Read, offset, buffer.len() as u64) {
                Ok(_) => self.0.read(offset, buffer).await,
                Err(error) => (buffer, Err(error)),
            }
        }

        async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
            match self.geometry().check(Action::Write, offset, buffer.len() as u64) {
                Ok(_) => self.0.write(offset, buffer, fua).await,
                Err(error) => (buffer, Err(error)),
            }
        }

        async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
            self.geometry().check(Action::WriteZeroes, range.start(), range.len())?;
            self.0.write_zeroes(range, zeroes).await
        }

        async fn discard(&self, range: ByteRange) -> Result<(), Error> {
            self.0.discard(range).await
        }

        async fn flush(&self) -> Result<(), Error> {
            self.0.flush().await
        }

        async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
            self.0.extents(range).await
        }
    }

    #[test]
    fn what_is_beside_stays() {
        let edges = [0, 1, 511, 512, 513, 1023, 1024, 1500, 4095, 4096];
        let before: Vec<u8> = (0..4096_u32).map(|at| (at % 250) as u8 + 1).collect();
        for start in edges {
            for end in edges.into_iter().filter(|end| *end > start) {
                let (device, range) =
                    (Strict(MemoryDevice::from_bytes(before.clone())), ByteRange::between(start, end));
                let (from, to) = (start as usize, end as usize);
                Runtime::new(Backend::Auto).expect("a runtime").block_on(async {
                    assert_eq!(&read(&device, range).await.expect("read")[..], &before[from..to]);
                    write(&device, start, Buffer::copy_of(&vec![0xEE; to - from])).await.expect("written");
                    let mut model = before.clone();
                    model[from..to].fill(0xEE);
                    assert!(device.0.to_vec() == model, "{range}");
                    zero(&device, range).await.expect("zeroed");
                    model[from..to].fill(0);
                    assert!(device.0.to_vec() == model, "{range}");
                });
            }
        }
    }
}

use tzero_io::{Backend, Runtime};

use super::*;
use crate::{Faulty, MemoryDevice};
use crate::{FileDevice, Injected};

fn run<T>(test: impl AsyncFnOnce() -> T) -> T {
    Runtime::new(Backend::Auto).expect("a runtime").block_on(test())
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| ((index * 7 + seed * 31) % 251) as u8 + 1).collect()
}

fn row(sizes: &[usize]) -> (Concat<Faulty<MemoryDevice>>, Vec<u8>) {
    let parts: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(seed, len)| pattern(*len, seed)).collect();
    let model = parts.concat();
    let devices = parts.into_iter().map(|bytes| Faulty::new(MemoryDevice::from_bytes(bytes))).collect();
    (Concat::new(devices).expect("a row"), model)
}

fn bytes(row: &Concat<Faulty<MemoryDevice>>) -> Vec<u8> {
    row.components().iter().flat_map(|component| component.inner().to_vec()).collect()
}

#[test]
fn the_last_one_may_become_longer() {
    run(async || {
        let (row, mut model) = row(&[4, 3]);
        let refused = row.read(7, Buffer::uncleared(1)).await.1.expect_err("past the end");
        assert!(matches!(refused.fault, Fault::OutOfRange));
        row.components()[1].inner().grow_to(9);
        model.resize(13, 0);
        assert_eq!(
            (row.geometry().size, row.range_of(1), row.component_at(12)),
            (13, ByteRange::between(4, 13), Some(1))
        );
        for (start, len) in [(2, 11), (6, 5), (12, 1)] {
            let fresh = pattern(len, start);
            row.write(start as u64, Buffer::copy_of(&fresh), false).await.1.expect("written");
            model[start..start + len].copy_from_slice(&fresh);
            assert_eq!(bytes(&row), model);
        }
        let (read, result) = row.read(0, Buffer::uncleared(13)).await;
        result.expect("read");
        assert_eq!(read[..], model);
    });
}

/// Every request of every place and length, against a plain array.
#[test]
fn it_is_like_one_device() {
    run(async || {
        for sizes in [&[10][..], &[3, 4], &[1, 1, 1, 1], &[4, 0, 3], &[0, 5, 0]] {
            let (row, mut model) = row(sizes);
            let size = model.len();
            assert_eq!(row.geometry(), Geometry { size: size as u64, alignment: 1 });
            for start in 0..=size {
                for end in start..=size {
                    let range = ByteRange::between(start as u64, end as u64);
                    let (read, result) = row.read(range.start(), Buffer::uncleared(end - start)).await;
                    result.expect("read");
                    assert_eq!(read[..], model[start..end]);
                    let fresh = pattern(end - start, start * 11 + end);
                    row.write(range.start(), Buffer::copy_of(&fresh), end % 2 == 0).await.1.expect("written");
                    model[start..end].copy_from_slice(&fresh);
                    assert_eq!(bytes(&row), model);
                    if (start + end) % 3 == 0 {
                        row.write_zeroes(range, Zeroes::default()).await.expect("zeroed");
                        model[start..end].fill(0);
                        assert_eq!(bytes(&row), model);
                    }
                    row.discard(range).await.expect("advice");
                    let extents = row.extents(range).await.expect("extents");
                    assert_eq!(extents, [Extent { range, hole: false }]);
                    row.prefetch(range).await;
                }
            }
            row.flush().await.expect("flushed");
            let past = row.read(size as u64, Buffer::uncleared(1)).await.1.expect_err("past the end");
            assert!(matches!(past.fault, Fault::OutOfRange));
        }
    });
}

#[test]
fn a_request_within_one_component_keeps_its_buffer() {
    run(async || {
        let (row, _) = row(&[8192, 8192]);
        let buffer = Buffer::copy_of(&[7; 4096]);
        let place = buffer.as_ptr();
        let (buffer, result) = row.write(8192, buffer, false).await;
        result.expect("written");
        let (buffer, _) = row.read(4096, buffer).await;
        assert_eq!(buffer.as_ptr(), place);
    });
}

#[test]
fn components_are_told_by_offset() {
    let (row, _) = row(&[4, 0, 3]);
    let found: Vec<_> = (0..8).map(|offset| row.component_at(offset)).collect();
    assert_eq!(found, [Some(0), Some(0), Some(0), Some(0), Some(2), Some(2), Some(2), None]);
    assert_eq!(row.component_at(u64::MAX), None);
    assert_eq!(row.range_of(2), ByteRange::new(4, 3));
    assert_eq!(row.range_of(1), ByteRange::new(4, 0));
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = |size, alignment| MemoryDevice::new(size).aligned(alignment);
    let refused = |devices| Concat::new(devices).map(drop);
    assert_eq!(refused(vec![]), Err(ConcatError::Empty));
    let uneven = vec![device(4096, 4096), device(512, 512), device(4096, 512)];
    assert_eq!(refused(uneven), Err(ConcatError::Uneven { component: 1, alignment: 4096 }));
    let row =
        Concat::new(vec![device(4096, 512), device(8192, 4096), device(512, 512)]).expect("the last may be short");
    assert_eq!(row.geometry(), Geometry { size: 12800, alignment: 4096 });
    let files = || FileDevice::from_file(tempfile::tempfile().expect("a file"), false).expect("a device");
    let long = vec![files().growing_to(u64::MAX), files().growing_to(1)];
    assert_eq!(Concat::new(long).map(drop), Err(ConcatError::TooLong));
}

#[test]
fn errors_say_where_in_the_whole() {
    run(async || {
        let (row, model) = row(&[1024, 1024, 1024]);
        row.components()[1].inject(Action::Write, ByteRange::new(0, 512), Injected::Fail(28), 0, 1);
        let (_, result) = row.write(512, Buffer::copy_of(&[9; 2048]), false).await;
        let error = result.expect_err("the middle fails");
        assert!(error.is_no_space());
        assert_eq!((error.offset, error.len), (1024, 1024));
        assert!(bytes(&row)[1024..2048] == model[1024..2048]);
        row.components()[2].inject(Action::Flush, ByteRange::new(0, 0), Injected::Fail(5), 0, 1);
        row.flush().await.expect_err("one of three fails");
        row.flush().await.expect("all succeed");
        row.components()[0].inject(Action::Read, ByteRange::new(0, 1024), Injected::Fail(5), 0, 1);
        assert_eq!(row.read(512, Buffer::uncleared(512)).await.1.expect_err("fails").offset, 512);
    });
}

/// Says that it is a hole everywhere, and never zeroes fast.
struct Hole(u64);

impl BlockDevice for Hole {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.0, alignment: 1 }
    }

    async fn read(&self, _offset: u64, buffer: Buffer) -> (Buffer, Result<(), Error>) {
        (buffer, Ok(()))
    }

    async fn write(&self, _offset: u64, buffer: Buffer, _fua: bool) -> (Buffer, Result<(), Error>) {
        (buffer, Ok(()))
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        let slow = Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported);
        if zeroes.fast { Err(slow) } else { Ok(()) }
    }

    async fn discard(&self, _range: ByteRange) -> Result<(), Error> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        let middle = range.start() + range.len() / 2;
        Ok([ByteRange::between(range.start(), middle), ByteRange::between(middle, range.end())]
            .into_iter()
            .enumerate()
            .map(|(index, range)| Extent { range, hole: index == 0 })
            .collect())
    }
}

#[test]
fn extents_meet_and_slow_zeroes_are_slow_for_all() {
    run(async || {
        let row = Concat::new(vec![Hole(100), Hole(60)]).expect("a row");
        let extents = row.extents(ByteRange::new(20, 100)).await.expect("extents");
        let told: Vec<_> =
            extents.iter().map(|extent| (extent.range.start(), extent.range.end(), extent.hole)).collect();
        assert_eq!(told, [(20, 60, true), (60, 100, false), (100, 110, true), (110, 120, false)]);
        let fast = Zeroes { fast: true, ..Zeroes::default() };
        let slow = row.write_zeroes(ByteRange::new(20, 100), fast).await.expect_err("slow");
        assert!(slow.is_unsupported());
        assert_eq!((slow.offset, slow.len), (20, 100));
    });
}

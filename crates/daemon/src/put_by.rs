//! Originals in memory that are put by on disk at a clean stop, and brought back when the machine has started anew.
//!
//! What was put by is never believed by itself: an original is brought back only if it has the checksum that the map has for it. So a file that is old, cut
//! short or damaged does no harm, and no order of writing is needed. `docs/formats/originals-put-by.md` has the bytes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use tzero_block::ByteRange;
use tzero_originals::Grains;

use crate::held::open_file;

const MAGIC: [u8; 8] = *b"TZEROPUT";
const VERSION: u32 = 1;
const HEADER: usize = 32;
/// Bytes before a payload: where it lies, how long it is, zero.
const RECORD: usize = 16;
/// What is written at once.
const AT_ONCE: usize = 1 << 20;

/// An original in memory: where, and how long.
pub(crate) type Place = (u64, u32);

/// How much was put by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PutBy {
    pub(crate) originals: usize,
    /// For which there was no time.
    pub(crate) left: usize,
}

/// Writes originals to `path`, as many as there is time for. Blocking.
///
/// # Errors
/// When they cannot be read or written; what was written until then counts.
pub(crate) fn write(
    path: &Path,
    volume: [u8; 16],
    memory: &File,
    originals: &[Place],
    until: Instant,
) -> io::Result<PutBy> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut to = BufWriter::with_capacity(AT_ONCE, file);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..].copy_from_slice(&volume);
    to.write_all(&header)?;
    let mut done = PutBy { left: originals.len(), ..PutBy::default() };
    let mut payload = Vec::new();
    for (offset, len) in originals {
        if Instant::now() >= until {
            break;
        }
        payload.resize(*len as usize, 0);
        memory.read_exact_at(&mut payload, *offset)?;
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&offset.to_le_bytes());
        record[8..12].copy_from_slice(&len.to_le_bytes());
        to.write_all(&record)?;
        to.write_all(&payload)?;
        done = PutBy { originals: done.originals + 1, left: done.left - 1 };
    }
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
    Ok(done)
}

/// Brings back into `memory` what `path` holds of the originals that are `wanted`; gives the places of those that are not there. Blocking.
///
/// # Errors
/// When memory cannot be written.
pub(crate) fn bring_back(
    path: &Path,
    volume: [u8; 16],
    memory: &File,
    wanted: impl IntoIterator<Item = (Place, impl Fn(&[u8]) -> bool)>,
) -> io::Result<Vec<Place>> {
    let mut missing: BTreeMap<Place, _> = wanted.into_iter().collect();
    // One that cannot be read holds nothing.
    let mut from = match open_file(path, OpenOptions::new().read(true)) {
        Ok(file) => BufReader::with_capacity(AT_ONCE, file),
        Err(_) => return Ok(missing.into_keys().collect()),
    };
    let mut header = [0; HEADER];
    let is_ours = from.read_exact(&mut header).is_ok()
        && header[..8] == MAGIC
        && header[8..12] == VERSION.to_le_bytes()
        && header[16..] == volume;
    let mut payload = Vec::new();
    while is_ours && !missing.is_empty() {
        let mut record = [0; RECORD];
        if from.read_exact(&mut record).is_err() {
            break;
        }
        let offset = u64::from_le_bytes(record[..8].try_into().expect("eight bytes"));
        let len = u32::from_le_bytes(record[8..12].try_into().expect("four bytes"));
        if len > *Grains::LIMITS.end() {
            break;
        }
        payload.resize(len as usize, 0);
        if from.read_exact(&mut payload).is_err() {
            break;
        }
        if missing.get(&(offset, len)).is_some_and(|is_payload| is_payload(&payload)) {
            memory.write_all_at(&payload, offset)?;
            missing.remove(&(offset, len));
        }
    }
    Ok(missing.into_keys().collect())
}

/// Places as stretches.
pub(crate) fn stretches(places: &[Place]) -> Vec<ByteRange> {
    let mut stretches: Vec<ByteRange> = Vec::new();
    for (offset, len) in places {
        let range = ByteRange::new(*offset, u64::from(*len));
        match stretches.last_mut().filter(|last| last.end() == range.start()) {
            Some(last) => *last = ByteRange::between(last.start(), range.end()),
            None => stretches.push(range),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    const VOLUME: [u8; 16] = [7; 16];
    const PLACES: [Place; 3] = [(0, 512), (512, 512), (2048, 300)];

    fn filled() -> File {
        let memory = tempfile::tempfile().unwrap();
        for (offset, len) in PLACES {
            memory.write_all_at(&vec![(offset / 512 + 1) as u8; len as usize], offset).unwrap();
        }
        memory
    }

    /// What is not brought back into a new memory; what is, is right.
    fn missing(path: &Path, volume: [u8; 16]) -> Vec<Place> {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(4096).unwrap();
        let wanted = PLACES
            .map(|place| (place, move |bytes: &[u8]| bytes.iter().all(|byte| *byte == (place.0 / 512 + 1) as u8)));
        let missing = bring_back(path, volume, &memory, wanted).unwrap();
        for (offset, len) in PLACES {
            let mut bytes = vec![9; len as usize];
            memory.read_exact_at(&mut bytes, offset).unwrap();
            let expected = if missing.contains(&(offset, len)) { 0 } else { (offset / 512 + 1) as u8 };
            assert!(bytes.iter().all(|byte| *byte == expected));
        }
        missing
    }

    #[test]
    fn what_is_put_by_is_brought_back_and_nothing_else_is() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("put-by");
        assert_eq!(missing(&path, VOLUME), PLACES, "there is none");
        let later = Instant::now() + Duration::from_secs(60);
        let done = write(&path, VOLUME, &filled(), &PLACES, later).unwrap();
        assert_eq!(done, PutBy { originals: 3, left: 0 });
        assert_eq!(missing(&path, VOLUME), []);
        assert_eq!(missing(&path, [8; 16]), PLACES, "another volume's");
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), HEADER + 3 * RECORD + 512 + 512 + 300);
        for cut in [0, 31, HEADER, HEADER + 15, HEADER + RECORD + 511] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(missing(&path, VOLUME), PLACES, "{cut} bytes");
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(missing(&path, VOLUME), [PLACES[2]]);
        let mut damaged = bytes.clone();
        damaged[HEADER + RECORD + 3] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(missing(&path, VOLUME), [PLACES[0]]);
        damaged[HEADER + 8..HEADER + 12].fill(0xFF);
        fs::write(&path, &damaged).unwrap();
        assert_eq!(missing(&path, VOLUME), PLACES, "no original is so long");
        let done = write(&path, VOLUME, &filled(), &PLACES, Instant::now()).unwrap();
        assert_eq!((done, missing(&path, VOLUME)), (PutBy { originals: 0, left: 3 }, PLACES.to_vec()));
        assert_eq!(stretches(&PLACES), [ByteRange::new(0, 1024), ByteRange::new(2048, 300)]);
    }
}

//! Whose originals an export holds: said in its last 4096 bytes, since an export has neither a lock nor an identity.
//!
//! A claim keeps two volumes off one export as long as they do not come at the same moment: there is no lock at the other end of a network. Within one daemon
//! nobody comes at the same moment. `docs/formats/state-directory.md` has the bytes.

use std::io;

use crate::remote::{Remote, RemoteError};

/// Why an export cannot hold a volume's originals.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportFault {
    #[error("{0}")]
    Remote(#[from] RemoteError),
    #[error("the export {uri} cannot be read or written: {source}")]
    Io { uri: String, source: io::Error },
    #[error(
        "the export {uri} holds the originals of the volume with the id {volume}: choose another, or, if that volume is gone for ever, zero the last 4096 bytes of the export"
    )]
    Taken { uri: String, volume: String },
    #[error(
        "the export {0} is not blank, and nothing says that originals are what it holds: choose another, or zero it first"
    )]
    InUse(String),
    #[error("the export {0} has no room for originals: choose a larger one")]
    TooSmall(String),
}

/// Bytes at the end of an export that are the claim's.
pub(crate) const CLAIM: u64 = 4096;
/// Bytes of it that say something.
const SAID: usize = 64;
const MAGIC: [u8; 8] = *b"TZEROCLM";
const VERSION: u32 = 1;
/// Places besides the first and the last MiB that are looked at before an export counts as blank,
const SAMPLES: u64 = 63;
/// and how long each is.
const SAMPLE: u64 = 4096;
const ENDS: u64 = 1 << 20;

/// What an export says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// It holds nothing, or what a volume has left that is gone.
    ByNobody,
    /// It holds originals of this volume, and this token says since which adding of it.
    By { volume: [u8; 16], token: [u8; 16] },
    /// It holds something else.
    InUse,
    /// It has no room for a claim and one original.
    TooSmall,
}

/// Bytes of an export of `size` bytes that originals may take.
pub(crate) fn usable(size: u64, grain: u32) -> u64 {
    size.saturating_sub(CLAIM) / u64::from(grain) * u64::from(grain)
}

/// What an export of `size` bytes says of itself, given how to read it. Blocking.
pub(crate) fn read(size: u64, grain: u32, read: impl Fn(u64, usize) -> io::Result<Vec<u8>>) -> io::Result<Claimed> {
    if usable(size, grain) == 0 {
        return Ok(Claimed::TooSmall);
    }
    let block = read(size - CLAIM, CLAIM as usize)?;
    if block[..8] == MAGIC && block[8..12] == VERSION.to_le_bytes() && checksum(&block) == block[60..64] {
        let id = |at: usize| block[at..at + 16].try_into().expect("sixteen bytes");
        let volume: [u8; 16] = id(16);
        return Ok(if volume == [0; 16] { Claimed::ByNobody } else { Claimed::By { volume, token: id(32) } });
    }
    let last = size - SAMPLE;
    let samples = (1..=SAMPLES).map(|index| (u128::from(last) * u128::from(index) / u128::from(SAMPLES + 1)) as u64);
    let ends = [(0, ENDS.min(size)), (size - ENDS.min(size), ENDS.min(size))];
    // A whole number of sectors, as the export may want it.
    let places = ends.into_iter().chain(samples.map(|at| (at / SAMPLE * SAMPLE, SAMPLE)));
    for (offset, len) in places {
        if read(offset, len as usize)?.iter().any(|byte| *byte != 0) {
            return Ok(Claimed::InUse);
        }
    }
    Ok(Claimed::ByNobody)
}

fn checksum(block: &[u8]) -> [u8; 4] {
    blake3::hash(&block[..SAID - 4]).as_bytes()[..4].try_into().expect("four bytes")
}

fn said(volume: [u8; 16], token: [u8; 16]) -> Vec<u8> {
    let mut block = vec![0; CLAIM as usize];
    block[..8].copy_from_slice(&MAGIC);
    block[8..12].copy_from_slice(&VERSION.to_le_bytes());
    block[16..32].copy_from_slice(&volume);
    block[32..48].copy_from_slice(&token);
    let sum = checksum(&block);
    block[60..64].copy_from_slice(&sum);
    block
}

/// What `remote` says of itself. Blocking.
pub(crate) fn of(remote: &Remote, grain: u32) -> io::Result<Claimed> {
    read(remote.size(), grain, |offset, len| Ok(remote.read(offset, len)?.to_vec()))
}

/// Claims it, durably. Blocking.
pub(crate) fn claim(remote: &Remote, volume: [u8; 16], token: [u8; 16]) -> io::Result<()> {
    remote.write(remote.size() - CLAIM, &said(volume, token))
}

/// Says that nobody needs it any more. Blocking.
pub(crate) fn release(remote: &Remote) -> io::Result<()> {
    claim(remote, [0; 16], [0; 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_an_export_is_told_and_what_is_no_ones_is_not_taken() {
        let size = (3 << 20) + 512;
        let looked = |bytes: &[u8]| {
            let piece = |offset: u64, len: usize| Ok(bytes[offset as usize..offset as usize + len].to_vec());
            read(bytes.len() as u64, 4096, piece).unwrap()
        };
        let mut bytes = vec![0; size];
        assert_eq!(looked(&bytes), Claimed::ByNobody);
        for at in [0, (1 << 20) - 1, size - 1] {
            bytes[at] = 1;
            assert_eq!(looked(&bytes), Claimed::InUse, "{at}");
            bytes[at] = 0;
        }
        bytes[..4096].fill(7);
        let (volume, token) = ([3; 16], [4; 16]);
        bytes[size - CLAIM as usize..].copy_from_slice(&said(volume, token));
        assert_eq!(looked(&bytes), Claimed::By { volume, token });
        bytes[size - CLAIM as usize + 20] ^= 1;
        assert_eq!(looked(&bytes), Claimed::InUse, "a damaged claim is somebody's");
        bytes[size - CLAIM as usize..].copy_from_slice(&said([0; 16], [0; 16]));
        assert_eq!(looked(&bytes), Claimed::ByNobody, "it was released");
        assert_eq!(looked(&[0; 8191]), Claimed::TooSmall);
        assert_eq!((usable(8192, 4096), usable(100, 512), usable(9000, 512)), (4096, 0, 4608));
    }
}

//! Whether a block device may be overwritten unasked: what is not blank may be somebody's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tzero_io::{is_zero, system};

/// How much of a device's start and end must be zero for it to be blank.
const ENDS: u64 = 1 << 20;
/// How many places between them are looked at.
const SAMPLES: u64 = 64;

/// Whether a device looks as if it held nothing: its start, its end, and samples in between are zero.
pub(crate) fn is_blank(device: &File) -> io::Result<bool> {
    let size = system::device_size(device)?;
    let mut bytes = vec![0; ENDS.min(size) as usize];
    device.read_exact_at(&mut bytes, 0)?;
    if !is_zero(&bytes) {
        return Ok(false);
    }
    let tail = size - bytes.len() as u64;
    device.read_exact_at(&mut bytes, tail)?;
    if !is_zero(&bytes) {
        return Ok(false);
    }
    let sample = &mut bytes[..4096.min(size as usize)];
    for index in 1..SAMPLES {
        let at = (size / SAMPLES * index).min(size - sample.len() as u64);
        device.read_exact_at(sample, at)?;
        if !is_zero(sample) {
            return Ok(false);
        }
    }
    Ok(true)
}

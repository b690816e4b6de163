//! Bytes of replies to requests. Pure.
//!
//! With structured replies agreed, reads, block status and errors are chunks, as the protocol wants; a success without
//! payload stays a simple reply, which it allows and which is shorter.

use tzero_block::ByteRange;

use crate::contexts::{ALLOCATION_ID, Descriptor};
use crate::request::Refusal;
use crate::wire::{CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk};

fn simple(out: &mut Vec<u8>, cookie: u64, errno: u32) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&errno.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn last_chunk(out: &mut Vec<u8>, kind: u16, cookie: u64, len: usize) {
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&chunk::DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
}

/// Success, with nothing to say.
pub(crate) fn success(out: &mut Vec<u8>, cookie: u64) {
    simple(out, cookie, 0);
}

/// What stands before the bytes of `range`.
pub(crate) fn data(out: &mut Vec<u8>, structured: bool, cookie: u64, range: ByteRange) {
    if structured {
        last_chunk(out, chunk::OFFSET_DATA, cookie, 8 + range.len() as usize);
        out.extend_from_slice(&range.start().to_be_bytes());
    } else {
        simple(out, cookie, 0);
    }
}

/// All of `range` reads as zeroes. Structured only.
pub(crate) fn hole(out: &mut Vec<u8>, cookie: u64, range: ByteRange) {
    last_chunk(out, chunk::OFFSET_HOLE, cookie, 12);
    out.extend_from_slice(&range.start().to_be_bytes());
    out.extend_from_slice(&(range.len() as u32).to_be_bytes());
}

/// Descriptors of `base:allocation`. Structured only.
pub(crate) fn block_status(out: &mut Vec<u8>, cookie: u64, descriptors: &[Descriptor]) {
    last_chunk(out, chunk::BLOCK_STATUS, cookie, 4 + 8 * descriptors.len());
    out.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
    for descriptor in descriptors {
        out.extend_from_slice(&descriptor.len.to_be_bytes());
        out.extend_from_slice(&descriptor.status.to_be_bytes());
    }
}

/// The request was refused or failed.
pub(crate) fn error(out: &mut Vec<u8>, structured: bool, cookie: u64, refusal: Refusal) {
    let errno = refusal.errno as u32;
    if structured {
        last_chunk(out, chunk::ERROR, cookie, 6 + refusal.reason.len());
        out.extend_from_slice(&errno.to_be_bytes());
        out.extend_from_slice(&(refusal.reason.len() as u16).to_be_bytes());
        out.extend_from_slice(refusal.reason.as_bytes());
    } else {
        simple(out, cookie, errno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Errno;

    const COOKIE: u64 = 0x0102_0304_0506_0708;

    fn bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = vec![0xee];
        encode(&mut out);
        assert_eq!(out.remove(0), 0xee);
        out
    }

    #[test]
    fn simple_replies() {
        let success = bytes(|out| success(out, COOKIE));
        assert_eq!(success, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes(|out| data(out, false, COOKIE, ByteRange::new(7, 9))), success);
        let refusal = Refusal { errno: Errno::NoSpc, reason: "full" };
        let error = bytes(|out| error(out, false, COOKIE, refusal));
        assert_eq!(error, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn chunks() {
        let head = |kind: [u8; 2], len: u8| {
            [&[0x66, 0x8e, 0x33, 0xef, 0, 1, kind[0], kind[1]], &COOKIE.to_be_bytes()[..], &[0, 0, 0, len]].concat()
        };
        let data = bytes(|out| data(out, true, COOKIE, ByteRange::new(0x0a0b, 16)));
        assert_eq!(data, [&head([0, 1], 24)[..], &[0, 0, 0, 0, 0, 0, 0x0a, 0x0b]].concat());
        let hole = bytes(|out| hole(out, COOKIE, ByteRange::new(0x0a0b, 0x0102_0304)));
        assert_eq!(hole, [&head([0, 2], 12)[..], &[0, 0, 0, 0, 0, 0, 0x0a, 0x0b, 1, 2, 3, 4]].concat());
        let status = bytes(|out| block_status(out, COOKIE, &[Descriptor { len: 5, status: 3 }]));
        assert_eq!(status, [&head([0, 5], 12)[..], &[0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 3]].concat());
        let refusal = Refusal { errno: Errno::Shutdown, reason: "bye" };
        let error = bytes(|out| error(out, true, COOKIE, refusal));
        assert_eq!(error, [&head([0x80, 1], 9)[..], &[0, 0, 0, 108, 0, 3], b"bye"].concat());
    }
}

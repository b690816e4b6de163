//! What a server says of an export, and what of it is believed. Pure.

use super::error::{Breach, Changed, Unusable};
use crate::wire::{Fields, LARGEST_PAYLOAD, info, option_reply, transmission_flag as flag};

/// Granularity where the server names none: what every server must take, in bytes.
const USUAL_BLOCK: u32 = 512;
/// Largest minimum that the protocol allows, in bytes.
const LARGEST_MINIMUM: u32 = 64 << 10;

/// What a server said during the negotiation. Nothing of it is checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) structured: bool,
    pub(crate) allocation: Option<u32>,
    /// Size and flags.
    export: Option<(u64, u16)>,
    /// Smallest and largest block.
    blocks: Option<(u32, u32)>,
}

impl Claims {
    /// Takes in a reply to `GO`.
    pub(crate) fn learn(&mut self, kind: u32, data: &[u8]) -> Result<(), Breach> {
        if kind != option_reply::INFO {
            return Err(Breach::OptionReply);
        }
        let mut fields = Fields(data);
        match fields.u16().ok_or(Breach::Info)? {
            info::EXPORT => {
                self.export = Some(fields.u64().zip(fields.u16()).ok_or(Breach::Info)?);
            }
            info::BLOCK_SIZE => {
                let (minimum, _preferred) = fields.u32().zip(fields.u32()).ok_or(Breach::Info)?;
                self.blocks = Some((minimum, fields.u32().ok_or(Breach::Info)?));
            }
            // Names and descriptions, sent unasked by some.
            _ => return Ok(()),
        }
        if fields.0.is_empty() { Ok(()) } else { Err(Breach::Info) }
    }
}

/// An export and its connection, as far as they are known to make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// In bytes.
    pub(crate) size: u64,
    /// Granularity of offsets and lengths in bytes: a power of two.
    pub(crate) block: u32,
    /// Largest payload of one request in bytes: a multiple of `block`, at most 32 MiB.
    pub(crate) largest: u32,
    flags: u16,
    /// Replies are structured.
    pub(crate) structured: bool,
    /// What stands for `base:allocation` in replies.
    pub(crate) allocation: Option<u32>,
}

impl Agreed {
    pub(crate) fn new(claims: &Claims) -> Result<Self, super::error::ClientError> {
        let (size, flags) = claims.export.ok_or(Breach::Info)?;
        if flags & flag::HAS_FLAGS == 0 {
            return Err(Breach::Info.into());
        }
        if i64::try_from(size).is_err() {
            return Err(Unusable::Size(size).into());
        }
        // An export that names no blocks and is no multiple of the usual one takes any byte: it could not be used otherwise.
        let usual = if size.is_multiple_of(u64::from(USUAL_BLOCK)) { USUAL_BLOCK } else { 1 };
        let (minimum, maximum) = claims.blocks.unwrap_or((usual, LARGEST_PAYLOAD));
        if !minimum.is_power_of_two() || minimum > LARGEST_MINIMUM || maximum < minimum {
            return Err(Unusable::Blocks { minimum, maximum }.into());
        }
        if !size.is_multiple_of(u64::from(minimum)) {
            return Err(Unusable::Tail { size, block: minimum }.into());
        }
        let largest = maximum.min(LARGEST_PAYLOAD) / minimum * minimum;
        let Claims { structured, allocation, .. } = *claims;
        Ok(Self { size, block: minimum, largest, flags, structured, allocation })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.has(flag::READ_ONLY)
    }

    pub(crate) fn can_flush(&self) -> bool {
        self.has(flag::SEND_FLUSH)
    }

    pub(crate) fn can_fua(&self) -> bool {
        self.has(flag::SEND_FUA)
    }

    pub(crate) fn can_trim(&self) -> bool {
        self.has(flag::SEND_TRIM)
    }

    pub(crate) fn can_zero(&self) -> bool {
        self.has(flag::SEND_WRITE_ZEROES)
    }

    pub(crate) fn can_zero_fast(&self) -> bool {
        self.can_zero() && self.has(flag::SEND_FAST_ZERO)
    }

    pub(crate) fn can_cache(&self) -> bool {
        self.has(flag::SEND_CACHE)
    }

    /// Whether several connections see each other's changes.
    pub(crate) fn can_share(&self) -> bool {
        self.has(flag::CAN_MULTI_CONN)
    }

    /// Holds what a later connection agreed on against this: whether requests made for this may go there.
    pub(crate) fn compare(&self, later: &Self) -> Result<(), Changed> {
        if later.size != self.size {
            return Err(Changed::Size { was: self.size, is: later.size });
        }
        // That it is read-only takes away; everything else that is told gives.
        let able = |agreed: &Self| (agreed.flags ^ flag::READ_ONLY) & !flag::SEND_DF;
        let less = able(self) & !able(later) != 0
            || later.block > self.block
            || later.largest < self.largest
            || self.allocation.is_some() && later.allocation.is_none();
        if less { Err(Changed::Less) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ClientError;
    use super::*;

    fn claims(size: u64, flags: u16, blocks: Option<(u32, u32)>) -> Claims {
        Claims { export: Some((size, flags | flag::HAS_FLAGS)), blocks, ..Claims::default() }
    }

    #[test]
    fn sizes_that_make_sense_are_believed() {
        let agreed = |size, blocks| Agreed::new(&claims(size, 0, blocks)).expect("usable");
        assert_eq!((agreed(1 << 20, None).block, agreed(1 << 20, None).largest), (512, 32 << 20));
        assert_eq!(agreed(1000, None).block, 1);
        assert_eq!(agreed(0, Some((1, u32::MAX))).largest, 32 << 20);
        assert_eq!(agreed(8192, Some((4096, 65535))).largest, 61440);
    }

    #[test]
    fn sizes_that_make_none_are_not() {
        let refused = |size, blocks| match Agreed::new(&claims(size, 0, blocks)) {
            Err(ClientError::Unusable(unusable)) => unusable,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(u64::MAX, None), Unusable::Size(u64::MAX));
        for (minimum, maximum) in [(0, 512), (3, 512), (131072, 1 << 20), (4096, 2048), (1, 0)] {
            assert_eq!(refused(0, Some((minimum, maximum))), Unusable::Blocks { minimum, maximum });
        }
        assert_eq!(refused(4097, Some((512, 4096))), Unusable::Tail { size: 4097, block: 512 });
        let flagless = Claims { export: Some((0, 0)), ..Claims::default() };
        assert!(matches!(Agreed::new(&flagless), Err(ClientError::Breach(Breach::Info))));
        assert!(matches!(Agreed::new(&Claims::default()), Err(ClientError::Breach(Breach::Info))));
    }

    #[test]
    fn information_is_taken_whole() {
        let mut claims = Claims::default();
        assert_eq!(claims.learn(option_reply::SERVER, &[0, 0]), Err(Breach::OptionReply));
        for data in [&[0][..], &[0, 0, 1], &[0, 3, 0, 0, 0, 0], &[0; 13]] {
            assert_eq!(claims.learn(option_reply::INFO, data), Err(Breach::Info), "{data:?}");
        }
        assert_eq!(claims.learn(option_reply::INFO, &[0, 1, b'x']), Ok(()));
        assert_eq!(claims.learn(option_reply::INFO, &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1]), Ok(()));
        assert_eq!(claims.export, Some((512, 1)));
    }

    #[test]
    fn an_export_may_gain_but_not_lose() {
        let all = flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM;
        let agreed = |size, flags, blocks| Agreed::new(&claims(size, flags, Some(blocks))).expect("usable");
        let was = agreed(8192, all, (512, 8192));
        assert_eq!(was.compare(&agreed(8192, all | flag::SEND_CACHE, (1, 1 << 20))), Ok(()));
        assert_eq!(was.compare(&agreed(4096, all, (512, 8192))), Err(Changed::Size { was: 8192, is: 4096 }));
        for later in [
            agreed(8192, all & !flag::SEND_FUA, (512, 8192)),
            agreed(8192, all | flag::READ_ONLY, (512, 8192)),
            agreed(8192, all, (1024, 8192)),
            agreed(8192, all, (512, 4096)),
        ] {
            assert_eq!(was.compare(&later), Err(Changed::Less));
        }
        let reading = agreed(8192, flag::READ_ONLY, (512, 8192));
        assert_eq!(reading.compare(&agreed(8192, all, (512, 8192))), Ok(()));
        let told = Agreed { allocation: Some(1), ..was };
        assert_eq!((told.compare(&was), was.compare(&told)), (Err(Changed::Less), Ok(())));
    }
}

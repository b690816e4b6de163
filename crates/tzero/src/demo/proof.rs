//! The proof that an image is of one instant.
//!
//! A write that the image holds was sent before T0. A write that it does not hold, but an older one of the same block, was acknowledged
//! after T0. So T0 lies after the latest sending of all writes in the image, and before the earliest acknowledgement of all that are the
//! next ones of their block. If there is no such instant, the image is of no one instant, whatever it looks like.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::demo::stamp::{BLOCK, Stamp};
use crate::demo::writer::{Log, owner};

/// What all writers wrote, by block.
pub(crate) struct History<'a> {
    logs: &'a [Log],
    /// Sequences of the owner's writes to a block, in their order.
    by_block: BTreeMap<u64, Vec<u32>>,
}

/// What an image was proved to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instant {
    /// T0 is not before this, nanoseconds since the story began.
    pub(crate) earliest: u64,
    /// Nor after this.
    pub(crate) latest: u64,
    /// Blocks looked at: all.
    pub(crate) blocks: u64,
    /// Blocks whose bytes have been overwritten since.
    pub(crate) moved_on: u64,
}

/// Why an image is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("block {0} is torn or holds what nobody wrote there")]
    Foreign(u64),
    #[error(
        "block {block} holds a write that was sent {by_ns} ns after another block's missing write was acknowledged: they are of different instants"
    )]
    Torn { block: u64, by_ns: u64 },
    #[error("block {0} does not hold the last write that was acknowledged")]
    Stale(u64),
}

impl<'a> History<'a> {
    pub(crate) fn of(logs: &'a [Log]) -> Self {
        let mut by_block: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for log in logs {
            for (sequence, written) in log.iter().enumerate() {
                by_block.entry(written.block).or_default().push(sequence as u32);
            }
        }
        Self { logs, by_block }
    }

    /// The write that a block holds: its place among the block's writes.
    fn held(&self, block: u64, bytes: &[u8]) -> Result<(usize, &[u32]), Flaw> {
        let stamp = Stamp::read(bytes).ok_or(Flaw::Foreign(block))?;
        let writes = self.by_block.get(&block).ok_or(Flaw::Foreign(block))?;
        let place = writes.binary_search(&stamp.sequence).map_err(|_| Flaw::Foreign(block))?;
        if stamp.block != block || stamp.writer != owner(block) {
            return Err(Flaw::Foreign(block));
        }
        Ok((place, writes))
    }

    /// Proves that an image of `blocks` blocks is of one instant.
    pub(crate) fn prove_instant(&self, mut image: impl Read, blocks: u64) -> Result<Instant, Flaw> {
        let mut instant = Instant { earliest: 0, latest: u64::MAX, blocks, moved_on: 0 };
        let mut bytes = vec![0; BLOCK];
        for block in 0..blocks {
            image.read_exact(&mut bytes)?;
            let (place, writes) = self.held(block, &bytes)?;
            let log = &self.logs[owner(block) as usize];
            instant.earliest = instant.earliest.max(log[writes[place] as usize].sent);
            if let Some(next) = writes.get(place + 1) {
                instant.latest = instant.latest.min(log[*next as usize].acknowledged);
                instant.moved_on += 1;
            }
            if instant.earliest > instant.latest {
                return Err(Flaw::Torn { block, by_ns: instant.earliest - instant.latest });
            }
        }
        Ok(instant)
    }

    /// Proves that every block holds its last write.
    pub(crate) fn prove_current(&self, mut image: impl Read, blocks: u64) -> Result<(), Flaw> {
        let mut bytes = vec![0; BLOCK];
        for block in 0..blocks {
            image.read_exact(&mut bytes)?;
            let (place, writes) = self.held(block, &bytes)?;
            if place + 1 != writes.len() {
                return Err(Flaw::Stale(block));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::writer::Written;

    /// Two blocks of two writers; each is written at 0, then block 0 at 10-12 and block 1 at 20-22.
    fn logs() -> Vec<Log> {
        let log = |block, at| {
            vec![Written { block, sent: 0, acknowledged: 1 }, Written { block, sent: at, acknowledged: at + 2 }]
        };
        vec![log(0, 10), log(1, 20)]
    }

    fn image(sequences: [u32; 2]) -> Vec<u8> {
        let mut image = vec![0; 2 * BLOCK];
        for (block, bytes) in image.chunks_mut(BLOCK).enumerate() {
            Stamp { writer: block as u32, sequence: sequences[block], block: block as u64 }.write(bytes);
        }
        image
    }

    #[test]
    fn one_instant_is_told_from_two() {
        let logs = logs();
        let history = History::of(&logs);
        let prove = |sequences| history.prove_instant(image(sequences).as_slice(), 2);
        let before = prove([0, 0]).unwrap();
        assert_eq!((before.earliest, before.latest, before.moved_on), (0, 12, 2));
        let between = prove([1, 0]).unwrap();
        assert_eq!((between.earliest, between.latest, between.moved_on), (10, 22, 1));
        assert_eq!(prove([1, 1]).unwrap().moved_on, 0);
        // The later write without the earlier one, which was acknowledged before it was sent.
        assert!(matches!(prove([0, 1]), Err(Flaw::Torn { block: 1, by_ns: 8 })));
    }

    #[test]
    fn what_nobody_wrote_is_noticed() {
        let logs = logs();
        let history = History::of(&logs);
        assert!(matches!(history.prove_instant(image([0, 2]).as_slice(), 2), Err(Flaw::Foreign(1))));
        let mut swapped = image([0, 0]);
        swapped.rotate_left(BLOCK);
        assert!(matches!(history.prove_instant(swapped.as_slice(), 2), Err(Flaw::Foreign(0))));
        assert!(matches!(history.prove_instant([0; BLOCK].as_slice(), 1), Err(Flaw::Foreign(0))));
        assert!(matches!(history.prove_instant(image([0, 0]).as_slice(), 3), Err(Flaw::Unreadable(_))));
        assert!(matches!(history.prove_current(image([1, 0]).as_slice(), 2), Err(Flaw::Stale(1))));
        history.prove_current(image([1, 1]).as_slice(), 2).unwrap();
    }
}

//! What a writer writes: a block that says, in every one of its bytes, who wrote it, as which write, and where.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
const WORDS: usize = BLOCK / 8;

/// One write of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) writer: u32,
    /// Place in that writer's order of writes.
    pub(crate) sequence: u32,
    /// Where it belongs.
    pub(crate) block: u64,
}

impl Stamp {
    fn word(self, index: usize) -> u64 {
        match index {
            0 => u64::from(self.writer) << 32 | u64::from(self.sequence),
            1 => self.block,
            _ => mixed(mixed(self.block ^ (index as u64) << 40) ^ self.word(0)),
        }
    }

    /// Fills a block.
    pub(crate) fn write(self, block: &mut [u8]) {
        for (index, word) in block.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = self.word(index).to_le_bytes();
        }
    }

    /// The stamp of a block that is whole: every byte of it is of one write.
    pub(crate) fn read(block: &[u8]) -> Option<Self> {
        let words = block.as_chunks::<8>().0;
        let (who, place) = (u64::from_le_bytes(*words.first()?), u64::from_le_bytes(*words.get(1)?));
        let stamp = Self { writer: (who >> 32) as u32, sequence: who as u32, block: place };
        let whole = words.len() == WORDS
            && words.iter().enumerate().all(|(index, word)| u64::from_le_bytes(*word) == stamp.word(index));
        whole.then_some(stamp)
    }
}

/// A well mixed number of a number.
pub(crate) fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_block_has_no_stamp() {
        let stamp = Stamp { writer: 3, sequence: 77, block: 12 };
        let mut block = vec![0; BLOCK];
        stamp.write(&mut block);
        assert_eq!(Stamp::read(&block), Some(stamp));
        for byte in [0, 4, 8, 16, 2048, BLOCK - 1] {
            let mut torn = block.clone();
            torn[byte] ^= 1;
            assert_eq!(Stamp::read(&torn), None, "byte {byte}");
        }
        let mut later = vec![0; BLOCK];
        Stamp { sequence: 78, ..stamp }.write(&mut later);
        block[BLOCK / 2..].copy_from_slice(&later[BLOCK / 2..]);
        assert_eq!(Stamp::read(&block), None);
        assert_eq!(Stamp::read(&[0; BLOCK]), None);
        assert_eq!(Stamp::read(&[]), None);
    }
}

//! What is written: bytes that say who wrote them, and where they belong.

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// What one load, or the making of the volume, writes. Every sector of a block starts with it and with its own place; the rest does not
/// compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content(pub(super) u64);

impl Content {
    /// Fills whole blocks that lie at byte `offset`. Of a buffer that it has filled before only what differs is written.
    pub(super) fn fill(self, buffer: &mut [u8], offset: u64) {
        if buffer[16..24] == [0; 8] {
            for (index, word) in buffer.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *word = crate::demo::mixed(index as u64 % (BLOCK as u64 / 8)).to_le_bytes();
            }
        }
        for (index, sector) in buffer.chunks_exact_mut(SECTOR).enumerate() {
            sector[..8].copy_from_slice(&self.0.to_le_bytes());
            sector[8..16].copy_from_slice(&(offset + (index * SECTOR) as u64).to_le_bytes());
        }
    }

    /// Whether `block` is what was written at byte `offset`.
    pub(super) fn is(self, block: &[u8], offset: u64) -> bool {
        let mut expected = vec![0; BLOCK];
        self.fill(&mut expected, offset);
        block == expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_known_by_who_wrote_it_and_where() {
        let mut buffer = vec![0; 4 * BLOCK];
        Content(3).fill(&mut buffer, 8 * 4096);
        Content(4).fill(&mut buffer, 16 * 4096);
        for (index, block) in buffer.chunks(BLOCK).enumerate() {
            let offset = (16 + index as u64) * 4096;
            assert!(Content(4).is(block, offset));
            assert!(!Content(3).is(block, offset) && !Content(4).is(block, offset + 4096));
        }
        buffer[BLOCK - 1] ^= 1;
        assert!(!Content(4).is(&buffer[..BLOCK], 16 * 4096));
    }
}

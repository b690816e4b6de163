//! Words that have no place in the project: it speaks of storage, not of how or with what it was written.
//!
//! They are kept as FNV-1a hashes of their lower-case form, so that this file keeps its own rule.

use super::{Findings, Repository};

const FORBIDDEN: &[u64] = &[
    0x04dc_2554_6038_2976,
    0x125b_6919_1db9_4ab8,
    0x2391_9480_3edf_98f7,
    0x2524_b426_1996_11b3,
    0x2a47_f8e6_0ef5_337a,
    0x2ffb_778d_fae5_4384,
    0x62a2_fa47_7580_fe28,
    0x7f7a_7547_86a6_64b8,
    0x8a1b_8f4a_0a91_3503,
    0xa113_d274_5d70_6ce3,
    0xd4c8_0b5a_1bd0_7e8e,
    0xea9e_60ad_81da_16f1,
];

pub(super) fn forbidden(repository: &Repository) -> Findings {
    let mut findings = Findings::new();
    for text in &repository.texts {
        for (number, line) in text.lines() {
            for word in line.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
                if FORBIDDEN.contains(&hash(&word.to_ascii_lowercase())) {
                    findings.push(format!("{}:{number}: the word `{word}`", text.path));
                }
            }
        }
    }
    findings
}

fn hash(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
    }
}

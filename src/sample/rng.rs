//! Random numbers by counter: what is drawn for a position depends on (seed, position) and nothing else.
//!
//! A generator with state would tie a token to how many draws came before it, and so to retries, preemption
//! and what shares the batch. Here the key of ChaCha8 is the seed and its nonce is the position, so a draw
//! can be repeated at any time, in any order, on any thread.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The uniform number in [0, 1) of `position` (the index of the token in its sequence): 53 random bits.
///
/// The key is the seed in little-endian order, then zeros; the nonce is the position; the number is made from
/// the first 64 bits of block 0. Written out here rather than left to `seed_from_u64`, whose expansion a new
/// version of the crate may change, and with it everyone's answers.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(position);
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is the published ChaCha8 keystream of the zero key and nonce (3e00ef2f895f40d6...), so these
    /// are the cipher's own numbers and not those of one version of a crate.
    #[test]
    fn draws_are_pinned() {
        let published = u64::from_le_bytes([0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]);
        assert_eq!(uniform(0, 0), (published >> 11) as f64 / (1u64 << 53) as f64);
    }

    #[test]
    fn uniform_over_positions_and_over_seeds() {
        type Draw = fn(u64) -> f64;
        let rows: [(&str, Draw); 3] =
            [("positions", |i| uniform(7, i)), ("seeds", |i| uniform(i, 7)), ("both", |i| uniform(i, i))];
        for (name, draw) in rows {
            let mut bins = [0u32; 64];
            let mut product = 0.0;
            for i in 0..64_000 {
                let (now, next) = (draw(i), draw(i + 1));
                assert!((0.0..1.0).contains(&now));
                bins[(now * 64.0) as usize] += 1;
                product += (now - 0.5) * (next - 0.5);
            }
            let chi: f64 = bins.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 110.0, "{name}: chi-square {chi} with 63 degrees of freedom");
            assert!((product / 64_000.0 * 12.0).abs() < 0.02, "{name}: neighbours are correlated");
        }
    }
}

//! What training begins with: A uniform, B zero, so that the adapter changes nothing yet.
//!
//! Each number is drawn by its own name (the seed, the module, its index) and by nothing else, so a seed
//! means the same adapter on every machine, with any targets beside it.

use sha2::{Digest, Sha256};

use super::options::name;
use super::params::{LoraModule, LoraParams};
use crate::model::ProjectionId;
use crate::sample::rng::uniform;

/// The factors that a run begins with, for (projection, inputs, outputs) each.
pub fn params(modules: &[(ProjectionId, usize, usize)], rank: usize, scale: f32, seed: u64) -> LoraParams {
    let module = |&(id, inputs, outputs): &(ProjectionId, usize, usize)| {
        let key = seed_of(seed, &format!("layers.{}.{}", id.layer, name(id.part)));
        // Kaiming's bound for a = sqrt(5), which peft takes as well.
        let bound = 1.0 / (inputs as f64).sqrt();
        let draw = |at: usize| ((2.0 * uniform(key, at as u64) - 1.0) * bound) as f32;
        let a = (0..rank * inputs).map(draw).collect();
        LoraModule { id, inputs, outputs, rank, scale, a, b: vec![0.0; outputs * rank] }
    };
    LoraParams { modules: modules.iter().map(module).collect() }
}

/// The seed of what is called `name` in a run with this seed.
pub fn seed_of(seed: u64, name: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name);
    hash.finalize().iter().take(8).fold(0, |whole, byte| whole << 8 | u64::from(*byte))
}

/// The numbers `0..count` in an order that the seed and the name decide (Fisher and Yates).
pub fn order(count: usize, seed: u64, name: &str) -> Vec<usize> {
    let key = seed_of(seed, name);
    let mut order: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        let other = (uniform(key, at as u64) * (at + 1) as f64) as usize;
        order.swap(at, other.min(at));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::names::Part;

    fn q(layer: usize) -> ProjectionId {
        ProjectionId { layer, part: Part::Q }
    }

    #[test]
    fn a_is_uniform_and_b_is_zero() {
        let made = params(&[(q(0), 400, 64)], 8, 2.0, 7);
        let module = &made.modules[0];
        assert!(module.b.iter().all(|b| *b == 0.0) && module.b.len() == 64 * 8);
        let bound = 1.0 / 20.0;
        assert!(module.a.iter().all(|a| a.abs() <= bound));
        let count = module.a.len() as f32;
        let mean = module.a.iter().sum::<f32>() / count;
        let variance = module.a.iter().map(|a| a * a).sum::<f32>() / count;
        // Of a uniform distribution over ±bound: variance bound²/3; 3200 draws.
        assert!(mean.abs() < 3.0 * bound / (3.0 * count).sqrt(), "{mean}");
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn a_number_depends_on_its_own_name_alone() {
        let both = params(&[(q(0), 16, 8), (q(1), 16, 8)], 4, 1.0, 7);
        let one = params(&[(q(1), 16, 24)], 4, 1.0, 7);
        assert_eq!(both.modules[1].a, one.modules[0].a);
        assert_ne!(both.modules[0].a, both.modules[1].a);
        assert_ne!(params(&[(q(1), 16, 8)], 4, 1.0, 8).modules[0].a, one.modules[0].a);
        // The same bits on every machine: two numbers, pinned.
        let bits: Vec<u32> = one.modules[0].a.iter().take(2).map(|a| a.to_bits()).collect();
        assert_eq!(bits, PINNED, "{bits:#x?}");
    }

    const PINNED: [u32; 2] = [0xbd49_905b, 0xbd32_17eb];

    #[test]
    fn an_order_has_each_number_once() {
        let found = order(100, 7, "epoch 1");
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(found, order(100, 7, "epoch 1"));
        assert_ne!(found, order(100, 7, "epoch 2"));
        assert_ne!(found, sorted);
        assert_eq!((order(0, 1, ""), order(1, 1, "")), (vec![], vec![0]));
    }
}

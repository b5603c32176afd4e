//! Families some of whose layers keep a state instead of keys and values.

use super::dense::LLAMA;
use super::{Family, FamilyTensors, GGUF, Gguf, Has, PLAIN, ROPE, RopeDefaults, SIZES, ShortConv, Sizes};

pub(super) const FAMILIES: &[Family] = &[Family {
    model_types: &["lfm2"],
    eps: 1e-5,
    eps_key: "norm_eps",
    activation_key: None,
    sizes: Sizes {
        hidden: 2560,
        intermediate: 12_288,
        kv_heads: Some(8),
        vocab: 65_536,
        context: 128_000,
        ..SIZES
    },
    rope: RopeDefaults { theta: 1_000_000.0, ..ROPE },
    tied: true,
    short_conv: Some(ShortConv { kernel: 3, multiple_of: 256 }),
    tensors: FamilyTensors { qk_norm: Has::Always, ..PLAIN },
    gguf: &[Gguf { architecture: "lfm2", ..GGUF }],
    ..LLAMA
}];

//! Families with mixtures of experts.

use super::dense::{LLAMA, MISTRAL, QWEN3};
use super::{
    ATTENTION_BIAS, Experts, Family, FamilyTensors, GGUF, Gguf, Has, PLAIN, ROPE, RopeDefaults, SIZES, Sizes,
    Window,
};
use crate::config::NormScope;

pub(super) const EXPERTS: Experts = Experts {
    count_keys: ["num_local_experts", "num_experts"],
    count: 8,
    top_k: 2,
    width: None,
    normalize: Has::Always,
    sparse_step: false,
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        model_types: &["mixtral"],
        eps: 1e-5,
        rope: RopeDefaults { theta: 1_000_000.0, ..ROPE },
        window_size: None,
        experts: Some(Experts { count_keys: ["num_experts", "num_local_experts"], ..EXPERTS }),
        // As Mistral's.
        gguf: &[Gguf { interleaved_qk: true, experts: Some(true), ..GGUF }],
        ..MISTRAL
    },
    Family {
        model_types: &["qwen3_moe"],
        sizes: Sizes {
            hidden: 2048,
            intermediate: 6144,
            layers: 24,
            kv_heads: Some(4),
            vocab: 151_936,
            context: 32_768,
            ..SIZES
        },
        window: Window::AllSwitched,
        experts: Some(Experts {
            count_keys: ["num_local_experts", "num_experts"],
            count: 128,
            top_k: 8,
            width: Some(("moe_intermediate_size", 768)),
            normalize: Has::Key("norm_topk_prob", false),
            sparse_step: true,
        }),
        gguf: &[Gguf { architecture: "qwen3moe", experts: Some(true), ..GGUF }],
        ..QWEN3
    },
    Family {
        model_types: &["olmoe"],
        eps: 1e-5,
        sizes: Sizes {
            hidden: 2048,
            intermediate: 2048,
            layers: 16,
            heads: 16,
            vocab: 50_304,
            context: 4096,
            ..SIZES
        },
        experts: Some(Experts {
            count_keys: ["num_local_experts", "num_experts"],
            count: 64,
            top_k: 8,
            normalize: Has::Key("norm_topk_prob", false),
            ..EXPERTS
        }),
        refused: &["clip_qkv"],
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            qk_norm: Has::Always,
            qk_norm_scope: NormScope::AllHeads,
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "olmoe", experts: Some(false), ..GGUF }],
        ..LLAMA
    },
];

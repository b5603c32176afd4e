//! Families with mixtures of experts.

use super::dense::{LLAMA, MISTRAL, QWEN3};
use super::{
    ATTENTION_BIAS, DenseLayers, Experts, Family, FamilyTensors, GGUF, Gguf, GgufExperts, Has, PLAIN, ROPE,
    RopeDefaults, SIZES, Sizes, Window,
};
use crate::config::{Activation, Denominator, ExpertStack, NormScope, Score};

pub(super) const EXPERTS: Experts = Experts {
    count_keys: ["num_local_experts", "num_experts"],
    count: 8,
    top_k_key: "num_experts_per_tok",
    top_k: 2,
    width: None,
    score: Score::Softmax,
    cap_key: None,
    correction: Has::Never,
    groups: None,
    normalize: Has::Always,
    denominator: Denominator::SUM,
    at_least_key: None,
    scale_key: None,
    gate: true,
    bias: Has::Never,
    router_bias: Has::Never,
    stack: ExpertStack::Rows,
    shared: None,
    latent_key: None,
    dense_layers: DenseLayers::Never,
};

/// The weights of the chosen have the sum 1, whatever the file says.
pub(super) const NORMALIZED: Option<GgufExperts> = Some(GgufExperts { normalize: true, keys: false });

pub(super) const FAMILIES: &[Family] = &[
    Family {
        model_types: &["mixtral"],
        eps: 1e-5,
        rope: RopeDefaults { theta: 1_000_000.0, ..ROPE },
        window_size: None,
        experts: Some(Experts { count_keys: ["num_experts", "num_local_experts"], ..EXPERTS }),
        // As Mistral's.
        gguf: &[Gguf { interleaved_qk: true, experts: NORMALIZED, ..GGUF }],
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
            dense_layers: DenseLayers::SparseStep,
            ..EXPERTS
        }),
        gguf: &[Gguf { architecture: "qwen3moe", experts: NORMALIZED, ..GGUF }],
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
        gguf: &[Gguf {
            architecture: "olmoe",
            experts: Some(GgufExperts { normalize: false, keys: false }),
            ..GGUF
        }],
        ..LLAMA
    },
    Family {
        model_types: &["gpt_oss"],
        eps: 1e-5,
        activation: Activation::ClampedSwiglu,
        // `hidden_act` is a field that no module reads.
        activation_key: None,
        sizes: Sizes {
            hidden: 2880,
            intermediate: 2880,
            layers: 36,
            heads: 64,
            kv_heads: Some(8),
            head_dim: Some(64),
            vocab: 201_088,
            context: 131_072,
        },
        rope: RopeDefaults {
            theta: 150_000.0,
            absent: Some(
                r#"{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                    "original_max_position_embeddings": 4096}"#,
            ),
            ..ROPE
        },
        window: Window::TypedAlternating,
        window_size: Some(128),
        experts: Some(Experts {
            count_keys: ["num_experts", "num_local_experts"],
            count: 128,
            top_k: 4,
            score: Score::Logit,
            normalize: Has::Never,
            bias: Has::Always,
            router_bias: Has::Always,
            stack: ExpertStack::Interleaved,
            ..EXPERTS
        }),
        fixed: &[("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)],
        tensors: FamilyTensors {
            qkv_bias: Has::Key("attention_bias", true),
            o_bias: Has::Key("attention_bias", true),
            sinks: true,
            ..PLAIN
        },
        gguf: &[Gguf {
            architecture: "gpt-oss",
            window_period: Some(2),
            yarn_truncates: false,
            experts: Some(GgufExperts { normalize: false, keys: false }),
            ..GGUF
        }],
        ..LLAMA
    },
];

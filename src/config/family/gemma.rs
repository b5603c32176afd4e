//! The Gemmas.

use super::dense::LLAMA;
use super::experts::{EXPERTS, NORMALIZED};
use super::{
    ATTENTION_BIAS, Bidirectional, ByLayer, Experts, Family, FamilyTensors, GGUF, Gguf, Has, NormPlaces,
    PLAIN, ROPE, RopeDefaults, Sizes, Window,
};
use crate::config::Activation;
use crate::weights::names::Part;

pub(super) const GEMMA: Family = Family {
    model_types: &["gemma"],
    norm_offset: 1.0,
    activation: Activation::GeluTanh,
    gelu_is_tanh: true,
    scaled_embedding: true,
    sizes: Sizes {
        hidden: 3072,
        intermediate: 24_576,
        layers: 28,
        heads: 16,
        kv_heads: Some(16),
        head_dim: Some(256),
        vocab: 256_000,
        context: 8192,
    },
    tied: true,
    bidirectional: Bidirectional::Read,
    tensors: FamilyTensors { qkv_bias: ATTENTION_BIAS, o_bias: ATTENTION_BIAS, ..PLAIN },
    gguf: &[Gguf { architecture: "gemma", ..GGUF }],
    ..LLAMA
};

pub(super) const GEMMA2: Family = Family {
    model_types: &["gemma2"],
    activation_key: Some("hidden_activation"),
    gelu_is_tanh: false,
    sizes: Sizes { hidden: 2304, intermediate: 9216, layers: 26, heads: 8, kv_heads: Some(4), ..GEMMA.sizes },
    window: Window::TypedAlternating,
    window_size: Some(4096),
    scalar: Some(256.0),
    attention_cap: Some(Some(50.0)),
    logit_cap: Some(Some(30.0)),
    bidirectional: Bidirectional::Refused,
    tensors: FamilyTensors { norms: NormPlaces::Around, ..GEMMA.tensors },
    gguf: &[Gguf {
        architecture: "gemma2",
        window_period: Some(2),
        caps: (Some(50.0), Some(30.0)),
        wide_scale_layers: Some(46),
        ..GGUF
    }],
    ..GEMMA
};

pub(super) const GEMMA3_GGUF: Gguf = Gguf {
    architecture: "gemma3",
    window_period: Some(6),
    local_theta: Some(Some(10_000.0)),
    wide_scale_layers: Some(62),
    ..GGUF
};

const GEMMA4_GGUF: Gguf = Gguf { architecture: "gemma4", local_theta: Some(None), ..GGUF };

const GEMMA4: Family = Family {
    model_types: &["gemma4_text"],
    norm_offset: 0.0,
    sizes: Sizes { layers: 30, vocab: 262_144, context: 131_072, ..GEMMA2.sizes },
    rope: RopeDefaults {
        local_theta: Some((None, 10_000.0)),
        absent: Some(
            r#"{"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}}"#,
        ),
        ..ROPE
    },
    window: Window::TypedLastFull,
    window_size: Some(512),
    scalar: None,
    attention_cap: None,
    logit_cap: Some(None),
    bidirectional: Bidirectional::Pictures,
    experts: Some(Experts {
        beside: Some("enable_moe_block"),
        count: 0,
        top_k_key: "top_k_experts",
        top_k: 0,
        width: Some(("moe_intermediate_size", 0)),
        ..EXPERTS
    }),
    by_layer: Some(ByLayer { global_head_dim: 512, per_layer_width: Some(256) }),
    tensors: FamilyTensors { qk_norm: Has::Always, ..GEMMA2.tensors },
    names: &[
        (Part::Router, &["router.proj"]),
        (Part::GateUpExperts, &["experts.gate_up_proj"]),
        (Part::DownExperts, &["experts.down_proj"]),
    ],
    gguf: &[GEMMA4_GGUF, Gguf { experts: NORMALIZED, ..GEMMA4_GGUF }],
    ..GEMMA2
};

pub(super) const FAMILIES: &[Family] = &[
    GEMMA4,
    Family {
        model_types: &["gemma4_unified_text"],
        sizes: Sizes { context: 262_144, ..GEMMA4.sizes },
        window_size: Some(1024),
        experts: None,
        by_layer: Some(ByLayer { global_head_dim: 512, per_layer_width: None }),
        gguf: &[],
        ..GEMMA4
    },
    GEMMA,
    GEMMA2,
    Family {
        model_types: &["gemma3_text"],
        sizes: Sizes { vocab: 262_208, context: 131_072, ..GEMMA2.sizes },
        rope: RopeDefaults {
            theta: 1_000_000.0,
            local_theta: Some((Some("rope_local_base_freq"), 10_000.0)),
            ..ROPE
        },
        window: Window::TypedPeriod { n: 6, pattern: true, switched: false },
        attention_cap: None,
        logit_cap: Some(None),
        bidirectional: Bidirectional::Read,
        tensors: FamilyTensors { qk_norm: Has::Always, ..GEMMA2.tensors },
        gguf: &[
            GEMMA3_GGUF,
            Gguf { architecture: "gemma-embedding", causal: false, wide_scale_layers: None, ..GEMMA3_GGUF },
        ],
        ..GEMMA2
    },
];

//! The Gemmas.

use super::dense::LLAMA;
use super::{
    ATTENTION_BIAS, Bidirectional, Family, FamilyTensors, GGUF, Gguf, Has, NormPlaces, PLAIN, ROPE,
    RopeDefaults, Sizes, Window,
};
use crate::config::Activation;

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

pub(super) const FAMILIES: &[Family] = &[
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

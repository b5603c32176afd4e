//! Families of dense feed-forwards whose layers are alike.

use super::{ATTENTION_BIAS, Bidirectional, MLP_BIAS};
use super::{Family, FamilyTensors, GGUF, Gguf, Has, PLAIN, ROPE, RopeDefaults, SIZES, Sizes, Window};
use crate::config::{Activation, Block, NormKind};

pub(super) const LLAMA: Family = Family {
    model_types: &["llama"],
    norm: NormKind::Rms,
    norm_bias: true,
    norm_offset: 0.0,
    eps: 1e-6,
    eps_key: "rms_norm_eps",
    block: Block::Sequential,
    activation: Activation::Silu,
    activation_key: Some("hidden_act"),
    gelu_is_tanh: false,
    scaled_embedding: false,
    sizes: SIZES,
    rope: ROPE,
    tied: false,
    window: Window::Never,
    window_size: None,
    scalar: None,
    attention_cap: None,
    logit_cap: None,
    bidirectional: Bidirectional::NotRead,
    no_rope_interval: None,
    short_conv: None,
    experts: None,
    refused: &[],
    tensors: FamilyTensors { qkv_bias: ATTENTION_BIAS, o_bias: ATTENTION_BIAS, mlp_bias: MLP_BIAS, ..PLAIN },
    names: &[],
    gguf: &[Gguf { interleaved_qk: true, ..GGUF }],
};

pub(super) const MISTRAL: Family = Family {
    model_types: &["mistral"],
    sizes: Sizes { intermediate: 14_336, kv_heads: Some(8), context: 131_072, ..SIZES },
    window: Window::All,
    window_size: Some(4096),
    tensors: PLAIN,
    // llama.cpp's converter writes Mistral as "llama".
    gguf: &[],
    ..LLAMA
};

pub(super) const QWEN_SIZES: Sizes =
    Sizes { intermediate: 22_016, kv_heads: Some(32), vocab: 151_936, context: 32_768, ..SIZES };

pub(super) const QWEN2: Family = Family {
    model_types: &["qwen2"],
    sizes: QWEN_SIZES,
    window: Window::TypedFrom(28),
    window_size: Some(4096),
    tensors: FamilyTensors { qkv_bias: Has::Always, ..PLAIN },
    gguf: &[Gguf { architecture: "qwen2", ..GGUF }, Gguf { architecture: "qwen2vl", ..GGUF }],
    ..LLAMA
};

pub(super) const QWEN3: Family = Family {
    model_types: &["qwen3"],
    sizes: Sizes { head_dim: Some(128), ..QWEN_SIZES },
    tensors: FamilyTensors {
        qkv_bias: ATTENTION_BIAS,
        o_bias: ATTENTION_BIAS,
        qk_norm: Has::Always,
        ..PLAIN
    },
    gguf: &[Gguf { architecture: "qwen3", ..GGUF }, Gguf { architecture: "qwen3vl", ..GGUF }],
    ..QWEN2
};

pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        model_types: &["smollm3"],
        sizes: Sizes {
            hidden: 2048,
            layers: 36,
            heads: 16,
            kv_heads: Some(4),
            vocab: 128_256,
            context: 32_768,
            ..SIZES
        },
        rope: RopeDefaults { theta: 2_000_000.0, ..ROPE },
        tied: true,
        window: Window::TypedNoRope,
        no_rope_interval: Some(4),
        gguf: &[Gguf { architecture: "smollm3", interleaved_qk: true, ..GGUF }],
        ..LLAMA
    },
    MISTRAL,
    Family { model_types: &["ministral"], window: Window::TypedAll, ..MISTRAL },
    Family {
        model_types: &["seed_oss"],
        sizes: Sizes {
            intermediate: 27_648,
            layers: 64,
            heads: 80,
            kv_heads: Some(8),
            head_dim: Some(128),
            vocab: 155_136,
            context: 524_288,
            ..SIZES
        },
        tensors: FamilyTensors {
            qkv_bias: Has::Key("attention_bias", true),
            o_bias: Has::Key("attention_out_bias", false),
            mlp_bias: MLP_BIAS,
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "seed_oss", ..GGUF }],
        ..LLAMA
    },
    QWEN2,
    Family {
        model_types: &["qwen2_vl_text", "qwen2_5_vl_text"],
        eps: 1e-5,
        sizes: Sizes {
            hidden: 8192,
            intermediate: 29_568,
            layers: 80,
            heads: 64,
            kv_heads: Some(8),
            vocab: 152_064,
            ..QWEN_SIZES
        },
        rope: RopeDefaults { theta: 1_000_000.0, mrope: true, ..ROPE },
        window: Window::TypedFrom(80),
        gguf: &[],
        ..QWEN2
    },
    QWEN3,
    Family {
        model_types: &["qwen3_vl_text"],
        sizes: Sizes { head_dim: Some(128), context: 128_000, ..QWEN_SIZES },
        rope: RopeDefaults { theta: 500_000.0, ..ROPE },
        window: Window::Never,
        window_size: None,
        gguf: &[],
        ..QWEN3
    },
    Family {
        model_types: &["phi"],
        norm: NormKind::Layer,
        eps: 1e-5,
        eps_key: "layer_norm_eps",
        sizes: Sizes { hidden: 2048, intermediate: 8192, layers: 24, vocab: 51_200, ..SIZES },
        rope: RopeDefaults { partial: Some(0.5), ..ROPE },
        block: Block::Parallel,
        activation: Activation::GeluTanh,
        tensors: FamilyTensors {
            qkv_bias: Has::Always,
            o_bias: Has::Always,
            mlp_bias: Has::Always,
            head_bias: Has::Always,
            qk_norm: Has::Key("qk_layernorm", false),
            gate: false,
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "phi2", own_head: true, ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["phi3"],
        eps: 1e-5,
        sizes: Sizes { hidden: 3072, intermediate: 8192, vocab: 32_064, context: 4096, ..SIZES },
        rope: RopeDefaults { partial: Some(1.0), original: Some(4096), longrope_only: true, ..ROPE },
        window: Window::All,
        tensors: FamilyTensors { fused_qkv: true, fused_gate_up: true, ..PLAIN },
        gguf: &[Gguf { architecture: "phi3", ..GGUF }],
        ..LLAMA
    },
];

//! Families of dense feed-forwards whose layers are alike.

use super::{
    ATTENTION_BIAS, Bidirectional, Gating, MLP_BIAS, Multiplier, Multipliers, NO_MULTIPLIERS, NoRope,
    NormPlaces,
};
use super::{Family, FamilyTensors, GGUF, Gguf, Has, PLAIN, ROPE, RopeDefaults, SIZES, Sizes, Window};
use crate::config::{
    Activation, Block, GateFunction, GateScope, GateSource, NormKind, NormScope, OutputGate, Xielu,
};
use crate::weights::names::Part;

pub(super) const LLAMA: Family = Family {
    model_types: &["llama"],
    norm: NormKind::Rms,
    norm_bias: true,
    norm_offset: 0.0,
    eps: 1e-6,
    eps_key: "rms_norm_eps",
    post_eps: None,
    plain_final_norm: false,
    embed_norm: false,
    block: Block::Sequential,
    parallel_key: None,
    aliases: &[],
    own_head: false,
    activation: Activation::Silu,
    intermediate_key: "intermediate_size",
    activation_key: Some("hidden_act"),
    gelu_is_tanh: false,
    scaled_embedding: false,
    multipliers: NO_MULTIPLIERS,
    sizes: SIZES,
    rope: ROPE,
    tied: false,
    window: Window::Never,
    window_size: None,
    scalar: None,
    attention_cap: None,
    logit_cap: None,
    bidirectional: Bidirectional::NotRead,
    no_rope: NoRope::Never,
    query_scale: false,
    short_conv: None,
    recurrent: None,
    weight_scales: &[],
    experts: None,
    latent: None,
    by_layer: None,
    heads_by_layer: None,
    gating: Gating::Never,
    refused: &[],
    fixed: &[],
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

/// What the activation is while the parameters of a layer are not known.
const XIELU: Activation = Activation::Xielu(Xielu { p: 0.0, n: 0.0, beta: 0.0, eps: 0.0 });

const fn multiplier(key: &'static str, gguf: &'static str, divides: bool) -> Option<Multiplier> {
    Some(Multiplier { divides, ..multiplier_of(key, gguf) })
}

const fn multiplier_of(key: &'static str, gguf: &'static str) -> Multiplier {
    Multiplier { key, gguf, default: 1.0, divides: false }
}

pub(super) const GRANITE: Family = Family {
    model_types: &["granite"],
    multipliers: Multipliers {
        embedding: multiplier("embedding_multiplier", "embedding_scale", false),
        attention: multiplier("attention_multiplier", "attention.scale", false),
        queries: None,
        residual: multiplier("residual_multiplier", "residual_scale", false),
        logits: multiplier("logits_scaling", "logit_scale", true),
    },
    gguf: &[Gguf { architecture: "granite", interleaved_qk: true, rope_switch: Some(true), ..GGUF }],
    ..LLAMA
};

const OLMO2: Family = Family {
    model_types: &["olmo2"],
    eps: 1e-5,
    sizes: Sizes { vocab: 50_304, ..SIZES },
    tensors: FamilyTensors {
        qkv_bias: ATTENTION_BIAS,
        o_bias: ATTENTION_BIAS,
        norms: NormPlaces::After,
        qk_norm: Has::Always,
        qk_norm_scope: NormScope::AllHeads,
        ..PLAIN
    },
    gguf: &[Gguf { architecture: "olmo2", window_period: Some(4), local_theta: Some(None), ..GGUF }],
    ..LLAMA
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
        no_rope: NoRope::Interval(4),
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
        names: &[(Part::O, &["self_attn.dense"]), (Part::Up, &["mlp.fc1"]), (Part::Down, &["mlp.fc2"])],
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
    GRANITE,
    Family {
        model_types: &["granite_swa"],
        eps: 1e-5,
        sizes: Sizes {
            hidden: 2560,
            intermediate: 8192,
            layers: 24,
            heads: 20,
            kv_heads: Some(4),
            head_dim: None,
            vocab: 100_352,
            context: 8192,
        },
        rope: RopeDefaults { layer_bases: true, ..ROPE },
        tied: true,
        window: Window::TypedAllButFirstOfFour,
        window_size: Some(128),
        tensors: FamilyTensors { sinks: true, ..GRANITE.tensors },
        gguf: &[Gguf { architecture: "granite_swa", interleaved_qk: true, ..GGUF }],
        ..GRANITE
    },
    Family {
        model_types: &["ministral3"],
        eps: 1e-5,
        sizes: Sizes {
            intermediate: 14_336,
            layers: 34,
            kv_heads: Some(8),
            head_dim: Some(128),
            vocab: 131_072,
            context: 262_144,
            ..SIZES
        },
        rope: RopeDefaults {
            absent: Some(
                r#"{"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "beta_fast": 32.0,
                    "beta_slow": 1.0, "original_max_position_embeddings": 16384, "mscale": 1.0,
                    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}"#,
            ),
            ..ROPE
        },
        window_size: None,
        query_scale: true,
        gguf: &[Gguf { architecture: "mistral3", interleaved_qk: true, ..GGUF }],
        ..MISTRAL
    },
    OLMO2,
    Family {
        model_types: &["olmo3"],
        rope: RopeDefaults { theta: 500_000.0, local_theta: Some((None, 500_000.0)), ..ROPE },
        window: Window::TypedPeriod { n: 4, pattern: false, switched: false },
        window_size: Some(4096),
        gguf: &[],
        ..OLMO2
    },
    Family {
        model_types: &["exaone4"],
        eps: 1e-5,
        sizes: Sizes { intermediate: 16_384, kv_heads: Some(32), vocab: 102_400, ..SIZES },
        window: Window::TypedPeriod { n: 4, pattern: true, switched: true },
        window_size: Some(4096),
        no_rope: NoRope::FullBesideWindow,
        tensors: FamilyTensors { norms: NormPlaces::After, qk_norm: Has::Always, ..PLAIN },
        gguf: &[Gguf {
            architecture: "exaone4",
            window_period: Some(4),
            window_layers: Some((64, 4096)),
            ..GGUF
        }],
        ..LLAMA
    },
    Family {
        model_types: &["cohere2"],
        norm: NormKind::Layer,
        norm_bias: false,
        eps: 1e-5,
        eps_key: "layer_norm_eps",
        block: Block::Parallel,
        multipliers: Multipliers {
            logits: Some(Multiplier {
                key: "logit_scale",
                gguf: "logit_scale",
                default: 0.0625,
                divides: false,
            }),
            ..NO_MULTIPLIERS
        },
        sizes: Sizes {
            hidden: 8192,
            intermediate: 22_528,
            layers: 40,
            heads: 64,
            vocab: 256_000,
            context: 8192,
            ..SIZES
        },
        rope: RopeDefaults { interleaved: true, ..ROPE },
        tied: true,
        window: Window::TypedPeriod { n: 4, pattern: true, switched: false },
        window_size: Some(4096),
        no_rope: NoRope::Full,
        tensors: FamilyTensors { qkv_bias: ATTENTION_BIAS, o_bias: ATTENTION_BIAS, ..PLAIN },
        gguf: &[Gguf { architecture: "cohere2", interleaved_qk: true, window_period: Some(4), ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["glm4"],
        eps: 1.5625e-7,
        sizes: Sizes {
            intermediate: 13_696,
            layers: 40,
            kv_heads: Some(2),
            head_dim: Some(128),
            vocab: 151_552,
            context: 131_072,
            ..SIZES
        },
        rope: RopeDefaults { partial: Some(0.5), interleaved: true, ..ROPE },
        tensors: FamilyTensors {
            qkv_bias: Has::Key("attention_bias", true),
            norms: NormPlaces::Around,
            fused_gate_up: true,
            ..PLAIN
        },
        names: &[
            (Part::AttnPostNorm, &["post_self_attn_layernorm"]),
            (Part::MlpNorm, &["post_attention_layernorm"]),
            (Part::MlpPostNorm, &["post_mlp_layernorm"]),
        ],
        gguf: &[Gguf { architecture: "glm4", interleaved_qk: true, ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["hunyuan_v1_dense"],
        eps: 1e-5,
        sizes: Sizes { vocab: 290_943, ..SIZES },
        rope: RopeDefaults { alpha: true, ..ROPE },
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            qk_norm: Has::Always,
            qk_norm_after_rope: true,
            ..PLAIN
        },
        names: &[(Part::QNorm, &["self_attn.query_layernorm"]), (Part::KNorm, &["self_attn.key_layernorm"])],
        gguf: &[Gguf { architecture: "hunyuan-dense", ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["ernie4_5"],
        eps: 1e-5,
        sizes: Sizes {
            hidden: 1024,
            intermediate: 3072,
            layers: 18,
            heads: 16,
            kv_heads: Some(2),
            head_dim: Some(128),
            vocab: 103_424,
            context: 131_072,
        },
        rope: RopeDefaults { theta: 500_000.0, interleaved: true, ..ROPE },
        tied: true,
        tensors: FamilyTensors {
            qkv_bias: Has::Key("use_bias", false),
            o_bias: Has::Key("use_bias", false),
            mlp_bias: Has::Key("use_bias", false),
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "ernie4_5", interleaved_qk: true, ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["arcee"],
        eps: 1e-5,
        activation: Activation::Relu2,
        sizes: Sizes { hidden: 2560, intermediate: 18_432, context: 4096, ..SIZES },
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            mlp_bias: MLP_BIAS,
            gate: false,
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "arcee", interleaved_qk: true, ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["apertus"],
        eps: 1e-5,
        activation: XIELU,
        sizes: Sizes { intermediate: 14_336, vocab: 131_072, context: 65_536, ..SIZES },
        rope: RopeDefaults {
            theta: 12_000_000.0,
            absent: Some(
                r#"{"rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#,
            ),
            ..ROPE
        },
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            qk_norm: Has::Always,
            gate: false,
            xielu: true,
            ..PLAIN
        },
        names: &[(Part::AttnNorm, &["attention_layernorm"]), (Part::MlpNorm, &["feedforward_layernorm"])],
        gguf: &[Gguf { architecture: "apertus", ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["stablelm"],
        norm: NormKind::Layer,
        eps: 1e-5,
        eps_key: "layer_norm_eps",
        parallel_key: Some("use_parallel_residual"),
        sizes: Sizes {
            hidden: 2560,
            intermediate: 6912,
            kv_heads: Some(32),
            vocab: 50_304,
            context: 4096,
            ..SIZES
        },
        rope: RopeDefaults { partial: Some(0.25), ..ROPE },
        tensors: FamilyTensors {
            qkv_bias: Has::Key("use_qkv_bias", false),
            // In the 12B.
            qk_norm: Has::Key("qk_layernorm", false),
            qk_norm_scope: NormScope::EachHead,
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "stablelm", ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["starcoder2"],
        norm: NormKind::Layer,
        eps: 1e-5,
        eps_key: "norm_epsilon",
        activation: Activation::GeluTanh,
        sizes: Sizes {
            hidden: 3072,
            intermediate: 12_288,
            layers: 30,
            heads: 24,
            kv_heads: Some(2),
            vocab: 49_152,
            context: 4096,
            ..SIZES
        },
        tied: true,
        window: Window::All,
        tensors: FamilyTensors {
            qkv_bias: Has::Key("use_bias", true),
            o_bias: Has::Key("use_bias", true),
            mlp_bias: Has::Key("use_bias", true),
            gate: false,
            ..PLAIN
        },
        names: &[(Part::Up, &["mlp.c_fc"]), (Part::Down, &["mlp.c_proj"])],
        gguf: &[Gguf { architecture: "starcoder2", ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["muse_glimmer_text"],
        eps: 1e-5,
        norm_offset: 1.0,
        post_eps: Some(("post_norm_eps", 1e-8)),
        plain_final_norm: true,
        embed_norm: true,
        activation_key: Some("hidden_activation"),
        multipliers: Multipliers {
            queries: Some(Multiplier { default: 3.87, ..multiplier_of("qk_scale_factor", "") }),
            logits: Some(Multiplier {
                default: 0.196_116_135_138_184_04,
                ..multiplier_of("output_multiplier", "logit_scale")
            }),
            ..NO_MULTIPLIERS
        },
        sizes: Sizes {
            hidden: 6656,
            intermediate: 19_968,
            layers: 52,
            kv_heads: Some(2),
            head_dim: Some(128),
            vocab: 202_048,
            context: 131_072,
            ..SIZES
        },
        window: Window::TypedFromLast(4),
        window_size: Some(2048),
        logit_cap: Some(Some(20.0)),
        no_rope: NoRope::Zeros("layer_rope_theta", 4),
        gating: Gating::Always(OutputGate {
            function: GateFunction::Sigmoid,
            scope: GateScope::Element,
            source: GateSource::Own,
        }),
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            norms: NormPlaces::Around,
            plain_qk_norm: true,
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "muse-glimmer", interleaved_qk: true, window_period: Some(4), ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["helium"],
        eps: 1e-8,
        sizes: Sizes {
            hidden: 2560,
            intermediate: 7040,
            layers: 24,
            heads: 20,
            kv_heads: Some(20),
            head_dim: Some(128),
            vocab: 48_000,
            context: 4096,
        },
        rope: RopeDefaults { theta: 100_000.0, interleaved: true, ..ROPE },
        tensors: FamilyTensors { qkv_bias: ATTENTION_BIAS, mlp_bias: MLP_BIAS, ..PLAIN },
        // llama.cpp has no architecture for it.
        gguf: &[],
        ..LLAMA
    },
];

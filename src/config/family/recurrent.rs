//! Families some of whose layers keep a state instead of keys and values.

use super::dense::LLAMA;
use super::experts::EXPERTS;
use super::{
    ATTENTION_BIAS, DenseLayers, Experts, Family, FamilyTensors, GGUF, Gating, Gguf, GgufExperts, Has,
    NormPlaces, PLAIN, ROPE, RopeDefaults, SIZES, ShortConv, Sizes, Spellings, Window,
};
use crate::config::{Denominator, GateFunction, GateScope, GateSource, OutputGate, Score};
use crate::weights::names::Part;

pub(super) const FAMILIES: &[Family] = &[
    LFM2,
    Family {
        model_types: &["lfm2_moe"],
        aliases: &[("tie_embedding", "tie_word_embeddings")],
        sizes: Sizes { hidden: 2048, intermediate: 7168, ..LFM2.sizes },
        short_conv: Some(ShortConv { kernel: 3, multiple_of: None }),
        experts: Some(Experts {
            count: 32,
            top_k: 4,
            width: Some(("moe_intermediate_size", 1792)),
            score: Score::Sigmoid,
            correction: Has::Key("use_expert_bias", true),
            normalize: Has::Key("norm_topk_prob", true),
            denominator: Denominator { plus: 1e-6, at_least: 0.0 },
            scale_key: Some(("routed_scaling_factor", 1.0)),
            dense_layers: DenseLayers::First("num_dense_layers", 2),
            ..EXPERTS
        }),
        gguf: &[Gguf {
            architecture: "lfm2moe",
            experts: Some(GgufExperts { normalize: true, keys: true }),
            ..GGUF
        }],
        ..LFM2
    },
    Family {
        model_types: &["lfm3"],
        aliases: &[("rms_norm_eps", "norm_eps")],
        activation_key: None,
        sizes: Sizes {
            hidden: 2048,
            intermediate: 7680,
            layers: 24,
            heads: 16,
            kv_heads: Some(4),
            head_dim: Some(128),
            vocab: 128_000,
            context: 128_000,
        },
        rope: RopeDefaults {
            theta: 1_000_000.0,
            local_theta: Some((None, 10_000.0)),
            absent: Some(
                r#"{"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
                    "sliding_attention": {"rope_type": "default"}}"#,
            ),
            ..ROPE
        },
        window: Window::TypedTwoOfFour,
        window_size: Some(256),
        short_conv: Some(ShortConv { kernel: 7, multiple_of: None }),
        gating: Gating::Switched(
            "use_attention_gate",
            OutputGate { function: GateFunction::Sigmoid, scope: GateScope::Head, source: GateSource::Own },
        ),
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            qk_norm: Has::Always,
            norms: NormPlaces::Around,
            norms_after_key: Some("use_sandwich_norm"),
            ..PLAIN
        },
        names: &[
            (Part::Gate, &["feed_forward.w1"]),
            (Part::Up, &["feed_forward.w3"]),
            (Part::Down, &["feed_forward.w2"]),
            (Part::AttnPostNorm, &["post_operator_norm"]),
            (Part::MlpNorm, &["ffn_norm"]),
            (Part::MlpPostNorm, &["post_ffn_norm"]),
        ],
        // llama.cpp does not know it.
        gguf: &[],
        ..LFM2
    },
];

const LFM2_NAMES: Spellings = &[
    (Part::O, &["self_attn.out_proj"]),
    (Part::Gate, &["feed_forward.w1"]),
    (Part::Up, &["feed_forward.w3"]),
    (Part::Down, &["feed_forward.w2"]),
];

const LFM2: Family = Family {
    model_types: &["lfm2"],
    aliases: &[("tie_embedding", "tie_word_embeddings"), ("block_ff_dim", "intermediate_size")],
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
    short_conv: Some(ShortConv { kernel: 3, multiple_of: Some(256) }),
    tensors: FamilyTensors { qk_norm: Has::Always, ..PLAIN },
    names: LFM2_NAMES,
    gguf: &[Gguf { architecture: "lfm2", ..GGUF }],
    ..LLAMA
};

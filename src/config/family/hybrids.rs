//! Families with recurrent scans: Gated DeltaNet, and Mamba-2.

use super::dense::{GRANITE, LLAMA};
use super::experts::{EXPERTS, GRANITE_EXPERTS, NORMALIZED};
use super::{
    ATTENTION_BIAS, DenseLayers, Experts, Family, FamilyTensors, GGUF, Gating, Gguf, GgufExperts, Has,
    MLP_BIAS, Multiplier, Multipliers, NO_MULTIPLIERS, NoRope, PLAIN, ROPE, RopeDefaults, SIZES, Shared,
    SharedWidth, Sizes,
};
use crate::config::{Activation, Denominator, GateFunction, GateScope, GateSource, OutputGate, Score};
use crate::weights::names::Part;

/// What the recurrent layers of a family are.
#[allow(clippy::large_enum_variant)] // There is one a row of the table.
pub(in crate::config) enum Recurrent {
    DeltaNet(DeltaNet),
    Mamba2(Mamba2),
}

/// Gated DeltaNet where the keys (`linear_num_key_heads`, ...) are absent. `layer_types` says which layers
/// ("linear_attention"), and without it all but each n-th (`full_attention_interval`, 4).
pub(in crate::config) struct DeltaNet {
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub kernel: usize,
}

/// The keys of Mamba-2, with the class's defaults.
pub(in crate::config) struct Mamba2 {
    pub heads: (&'static str, usize),
    /// `None`, and "auto" in a file: as many as make up the inner width.
    pub head_dim: (&'static str, Option<usize>),
    /// The key of the inner width, which else is `mamba_expand` times that of the model.
    pub inner_key: Option<(&'static str, usize)>,
    pub groups: (&'static str, usize),
    pub state: (&'static str, usize),
    pub kernel: (&'static str, usize),
    pub conv_bias: Has,
    pub in_bias: Has,
    pub out_bias: Has,
    pub dt: DtLimits,
    /// The key of what follows the convolution, which must be SiLU.
    pub activation_key: &'static str,
    /// There is a norm only with `mamba_rms_norm`, and before the gate unless `mamba_norm_before_gate` is
    /// false.
    pub optional_norm: bool,
    /// `ssm_in_multiplier`, `ssm_multipliers` and `ssm_out_multiplier` are read.
    pub scaled: bool,
    pub place: Mamba2Place,
}

/// Where the limits of Mamba-2's steps are stated.
pub(in crate::config) enum DtLimits {
    /// A pair; without it there are none.
    Both(&'static str),
    /// The lower one (what transformers computes of a prompt; of a single token it takes none).
    Least(&'static str, f64),
}

/// Which layers are Mamba-2.
pub(in crate::config) enum Mamba2Place {
    /// As `layer_types` says ("linear_attention", "mamba"); without it all.
    Typed,
    /// As `layers_block_type` or `hybrid_override_pattern` says; each layer is a mixer or a feed-forward.
    Alone,
    /// Beside the attention of each layer.
    BesideAttention,
}

/// A number in a key, or in a list; 1 where it is absent.
pub(in crate::config) enum Scale {
    Key(&'static str),
    Item(&'static str, usize),
    /// Of what a projection reads: its bias is not multiplied.
    Input(&'static str),
}

const QWEN3_5: Family = Family {
    model_types: &["qwen3_5_text"],
    norm_offset: 1.0,
    sizes: Sizes {
        intermediate: 12_288,
        heads: 16,
        kv_heads: Some(4),
        head_dim: Some(256),
        vocab: 248_320,
        context: 32_768,
        ..SIZES
    },
    rope: RopeDefaults { partial: Some(0.25), mrope: true, ..ROPE },
    recurrent: Some(Recurrent::DeltaNet(DeltaNet {
        key_heads: 16,
        value_heads: 32,
        key_dim: 128,
        value_dim: 128,
        kernel: 4,
    })),
    gating: Gating::Always(OutputGate {
        function: GateFunction::Sigmoid,
        scope: GateScope::Element,
        source: GateSource::Query,
    }),
    tensors: FamilyTensors {
        qkv_bias: ATTENTION_BIAS,
        o_bias: ATTENTION_BIAS,
        qk_norm: Has::Always,
        ..PLAIN
    },
    gguf: &[Gguf { architecture: "qwen35", tiled_heads: true, ..GGUF }],
    ..LLAMA
};

/// Granite's hybrids (4.0 h): as Granite, some layers Mamba-2, a shared feed-forward.
const GRANITE_HYBRID: Family = Family {
    model_types: &["granitemoehybrid"],
    aliases: &[("layers_block_type", "layer_types")],
    intermediate_key: "shared_intermediate_size",
    sizes: Sizes { intermediate: 1024, ..SIZES },
    no_rope: NoRope::Unless("position_embedding_type", "rope"),
    recurrent: Some(Recurrent::Mamba2(MAMBA2)),
    tensors: FamilyTensors { qkv_bias: ATTENTION_BIAS, o_bias: ATTENTION_BIAS, fused_gate_up: true, ..PLAIN },
    experts: Some(Experts {
        width: Some(("intermediate_size", 11_008)),
        dense_layers: DenseLayers::WithoutExperts,
        shared: Some(Shared {
            width: SharedWidth::Key("shared_intermediate_size", 1024),
            fused: true,
            gate: false,
        }),
        ..GRANITE_EXPERTS
    }),
    names: &[(Part::GateUp, &["shared_mlp.input_linear"]), (Part::Down, &["shared_mlp.output_linear"])],
    // The converter writes those without Mamba layers as "granite" or "granitemoe".
    gguf: &[
        GRANITE_HYBRID_GGUF,
        Gguf { experts: Some(GgufExperts { normalize: false, keys: false }), ..GRANITE_HYBRID_GGUF },
    ],
    ..GRANITE
};

const GRANITE_HYBRID_GGUF: Gguf =
    Gguf { architecture: "granitehybrid", interleaved_qk: true, rope_switch: Some(true), ..GGUF };

const MAMBA2: Mamba2 = Mamba2 {
    heads: ("mamba_n_heads", 128),
    head_dim: ("mamba_d_head", None),
    inner_key: None,
    groups: ("mamba_n_groups", 1),
    state: ("mamba_d_state", 256),
    kernel: ("mamba_d_conv", 4),
    conv_bias: Has::Key("mamba_conv_bias", true),
    in_bias: Has::Key("mamba_proj_bias", false),
    out_bias: Has::Key("mamba_proj_bias", false),
    dt: DtLimits::Both("time_step_limit"),
    activation_key: "hidden_act",
    optional_norm: false,
    scaled: false,
    place: Mamba2Place::Typed,
};

const NEMOTRON_H: Family = Family {
    model_types: &["nemotron_h"],
    aliases: &[
        ("layer_types", "layers_block_type"),
        ("num_local_experts", "n_routed_experts"),
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_dt_min", "time_step_min"),
    ],
    eps: 1e-5,
    eps_key: "layer_norm_epsilon",
    activation: Activation::Relu2,
    activation_key: Some("mlp_hidden_act"),
    sizes: Sizes {
        intermediate: 21_504,
        layers: 4,
        kv_heads: Some(8),
        head_dim: Some(128),
        vocab: 131_072,
        context: 4096,
        ..SIZES
    },
    no_rope: NoRope::Always,
    own_head: true,
    recurrent: Some(Recurrent::Mamba2(Mamba2 {
        heads: ("mamba_num_heads", 128),
        head_dim: ("mamba_head_dim", Some(64)),
        groups: ("n_groups", 8),
        state: ("ssm_state_size", 128),
        kernel: ("conv_kernel", 4),
        conv_bias: Has::Key("use_conv_bias", true),
        in_bias: Has::Key("use_bias", false),
        out_bias: Has::Key("use_bias", false),
        dt: DtLimits::Least("time_step_min", 0.001),
        activation_key: "mamba_hidden_act",
        place: Mamba2Place::Alone,
        ..MAMBA2
    })),
    experts: Some(Experts {
        count_key: "n_routed_experts",
        count: 8,
        top_k: 2,
        width: Some(("moe_intermediate_size", 7688)),
        score: Score::Sigmoid,
        correction: Has::Always,
        groups: Some((1, 1)),
        normalize: Has::Key("norm_topk_prob", true),
        denominator: Denominator { plus: 1e-20, at_least: 0.0 },
        scale_key: Some(("routed_scaling_factor", 1.0)),
        gate: false,
        shared: Some(Shared {
            width: SharedWidth::Key("moe_shared_expert_intermediate_size", 7688),
            fused: false,
            gate: false,
        }),
        latent_key: Some("moe_latent_size"),
        dense_layers: DenseLayers::Blocks,
        ..EXPERTS
    }),
    tensors: FamilyTensors { mlp_bias: MLP_BIAS, gate: false, ..PLAIN },
    names: &[
        (Part::Embed, &["embeddings"]),
        (Part::FinalNorm, &["norm_f"]),
        (Part::AttnNorm, &["norm"]),
        (Part::Q, &["mixer.q_proj"]),
        (Part::K, &["mixer.k_proj"]),
        (Part::V, &["mixer.v_proj"]),
        (Part::O, &["mixer.o_proj"]),
        (Part::Up, &["mixer.up_proj"]),
        (Part::Down, &["mixer.down_proj"]),
    ],
    gguf: &[
        Gguf { architecture: "nemotron_h", ..GGUF },
        Gguf {
            architecture: "nemotron_h_moe",
            experts: Some(GgufExperts { normalize: false, keys: true }),
            ..GGUF
        },
    ],
    ..LLAMA
};

const fn multiplier(key: &'static str) -> Option<Multiplier> {
    // The converter has multiplied the weights.
    Some(Multiplier { key, gguf: "", default: 1.0, divides: false })
}

const FALCON_H1: Family = Family {
    model_types: &["falcon_h1"],
    eps: 1e-5,
    multipliers: Multipliers {
        embedding: multiplier("embedding_multiplier"),
        logits: multiplier("lm_head_multiplier"),
        ..NO_MULTIPLIERS
    },
    sizes: Sizes { intermediate: 14_336, kv_heads: Some(8), vocab: 128_000, context: 8192, ..SIZES },
    recurrent: Some(Recurrent::Mamba2(Mamba2 {
        inner_key: Some(("mamba_d_ssm", 1024)),
        out_bias: Has::Key("projectors_bias", false),
        optional_norm: true,
        scaled: true,
        place: Mamba2Place::BesideAttention,
        ..MAMBA2
    })),
    weight_scales: &[
        (Part::Q, &[Scale::Input("attention_in_multiplier")]),
        (Part::K, &[Scale::Input("attention_in_multiplier"), Scale::Key("key_multiplier")]),
        (Part::V, &[Scale::Input("attention_in_multiplier")]),
        (Part::O, &[Scale::Key("attention_out_multiplier")]),
        (Part::Gate, &[Scale::Item("mlp_multipliers", 0)]),
        (Part::Down, &[Scale::Item("mlp_multipliers", 1)]),
    ],
    tensors: FamilyTensors { qkv_bias: ATTENTION_BIAS, o_bias: ATTENTION_BIAS, mlp_bias: MLP_BIAS, ..PLAIN },
    names: &[
        (Part::MlpNorm, &["pre_ff_layernorm"]),
        (Part::Gate, &["feed_forward.gate_proj"]),
        (Part::Up, &["feed_forward.up_proj"]),
        (Part::Down, &["feed_forward.down_proj"]),
    ],
    gguf: &[Gguf { architecture: "falcon-h1", ..GGUF }],
    ..LLAMA
};

pub(super) const FAMILIES: &[Family] = &[
    QWEN3_5,
    Family {
        model_types: &["qwen3_5_moe_text"],
        sizes: Sizes {
            hidden: 2048,
            layers: 40,
            heads: 16,
            kv_heads: Some(2),
            head_dim: Some(256),
            vocab: 248_320,
            context: 32_768,
            ..SIZES
        },
        experts: Some(Experts {
            count: 256,
            top_k: 8,
            width: Some(("moe_intermediate_size", 512)),
            shared: Some(Shared {
                width: SharedWidth::Key("shared_expert_intermediate_size", 512),
                fused: false,
                gate: true,
            }),
            ..EXPERTS
        }),
        gguf: &[Gguf { architecture: "qwen35moe", tiled_heads: true, experts: NORMALIZED, ..GGUF }],
        ..QWEN3_5
    },
    GRANITE_HYBRID,
    NEMOTRON_H,
    FALCON_H1,
];

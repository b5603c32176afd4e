//! Families with mixtures of experts.

use super::dense::{GRANITE, LLAMA, MISTRAL, QWEN3};
use super::{
    ATTENTION_BIAS, DenseLayers, Experts, Family, FamilyTensors, GGUF, Gating, Gguf, GgufExperts, Has,
    Latent, MLP_BIAS, PLAIN, ROPE, RopeDefaults, SIZES, Shared, SharedWidth, Sizes, Window,
};
use crate::config::{
    Activation, Denominator, ExpertStack, GateFunction, GateScope, GateSource, NormScope, OutputGate, Score,
};

pub(super) const EXPERTS: Experts = Experts {
    beside: None,
    count_key: "num_experts",
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

pub(super) const GRANITE_EXPERTS: Experts =
    Experts { count_key: "num_local_experts", score: Score::Logit, normalize: Has::Never, ..EXPERTS };

/// The weights of the chosen have the sum 1, whatever the file says.
pub(super) const NORMALIZED: Option<GgufExperts> = Some(GgufExperts { normalize: true, keys: false });

/// Its class does not read `mlp_bias`.
const GRANITE_MOE: Family = Family {
    model_types: &["granitemoe"],
    experts: Some(GRANITE_EXPERTS),
    tensors: FamilyTensors { mlp_bias: Has::Never, ..GRANITE.tensors },
    gguf: &[],
    ..GRANITE
};

/// DeepSeek V2. Its class knows `norm_topk_prob` and does not look at it.
const DEEPSEEK: Family = Family {
    model_types: &["deepseek_v2"],
    aliases: &[("num_experts", "n_routed_experts")],
    sizes: Sizes { vocab: 102_400, ..SIZES },
    latent: Some(Latent {
        q_rank: Some(1536),
        rank: 512,
        nope_dim: 128,
        rope_dim: 64,
        value_dim: 128,
        interleave_key: None,
    }),
    experts: Some(Experts {
        count_key: "n_routed_experts",
        count: 64,
        top_k: 0,
        width: Some(("moe_intermediate_size", 1407)),
        normalize: Has::Never,
        scale_key: Some(("routed_scaling_factor", 1.0)),
        shared: Some(Shared {
            width: SharedWidth::Experts("n_shared_experts", 2),
            fused: false,
            gate: false,
        }),
        dense_layers: DenseLayers::First("first_k_dense_replace", 0),
        ..EXPERTS
    }),
    tensors: FamilyTensors { o_bias: ATTENTION_BIAS, mlp_bias: MLP_BIAS, ..PLAIN },
    gguf: &[],
    ..LLAMA
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        model_types: &["mixtral"],
        aliases: &[("num_experts", "num_local_experts")],
        eps: 1e-5,
        rope: RopeDefaults { theta: 1_000_000.0, ..ROPE },
        window_size: None,
        experts: Some(Experts { count_key: "num_local_experts", ..EXPERTS }),
        // As Mistral's.
        gguf: &[Gguf { interleaved_qk: true, experts: NORMALIZED, ..GGUF }],
        ..MISTRAL
    },
    Family {
        model_types: &["qwen3_moe"],
        aliases: &[("num_local_experts", "num_experts")],
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
        aliases: &[("num_local_experts", "num_experts")],
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
        aliases: &[("num_experts", "num_local_experts")],
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
            count_key: "num_local_experts",
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
    GRANITE_MOE,
    Family {
        model_types: &["granitemoeshared"],
        experts: Some(Experts {
            shared: Some(Shared {
                width: SharedWidth::Key("shared_intermediate_size", 0),
                fused: true,
                gate: false,
            }),
            ..GRANITE_EXPERTS
        }),
        // Those of granitemoe, too, and of hybrids without Mamba layers.
        gguf: &[Gguf {
            architecture: "granitemoe",
            interleaved_qk: true,
            rope_switch: Some(true),
            experts: NORMALIZED,
            ..GGUF
        }],
        ..GRANITE_MOE
    },
    Family {
        model_types: &["qwen2_moe"],
        sizes: Sizes {
            hidden: 2048,
            intermediate: 5632,
            layers: 24,
            heads: 16,
            kv_heads: Some(16),
            vocab: 151_936,
            context: 32_768,
            ..SIZES
        },
        experts: Some(Experts {
            count: 60,
            top_k: 4,
            width: Some(("moe_intermediate_size", 1408)),
            normalize: Has::Key("norm_topk_prob", false),
            shared: Some(Shared {
                width: SharedWidth::Key("shared_expert_intermediate_size", 5632),
                fused: false,
                gate: true,
            }),
            dense_layers: DenseLayers::SparseStep,
            ..EXPERTS
        }),
        // Which layers the window would be of is said in a way of its own, and no published file has one: so
        // there is none, and layers that ask for it are refused.
        window: Window::TypedFrom(28),
        refused: &["use_sliding_window"],
        tensors: FamilyTensors { qkv_bias: Has::Key("qkv_bias", true), ..PLAIN },
        gguf: &[Gguf {
            architecture: "qwen2moe",
            experts: Some(GgufExperts { normalize: false, keys: false }),
            ..GGUF
        }],
        ..LLAMA
    },
    Family {
        model_types: &["ernie4_5_moe"],
        aliases: &[("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")],
        eps: 1e-5,
        sizes: Sizes {
            hidden: 2560,
            intermediate: 12_288,
            layers: 28,
            heads: 20,
            kv_heads: Some(4),
            head_dim: None,
            vocab: 103_424,
            context: 131_072,
        },
        rope: RopeDefaults { theta: 500_000.0, interleaved: true, ..ROPE },
        tied: true,
        experts: Some(Experts {
            count_key: "moe_num_experts",
            count: 64,
            top_k_key: "moe_k",
            top_k: 6,
            width: Some(("moe_intermediate_size", 1536)),
            correction: Has::Always,
            at_least_key: Some(("moe_norm_min", 1e-12)),
            shared: Some(Shared {
                width: SharedWidth::Experts("moe_num_shared_experts", 2),
                fused: false,
                gate: false,
            }),
            dense_layers: DenseLayers::Range,
            ..EXPERTS
        }),
        tensors: FamilyTensors {
            qkv_bias: Has::Key("use_bias", false),
            o_bias: Has::Key("use_bias", false),
            mlp_bias: Has::Key("use_bias", false),
            head_bias: Has::Key("use_bias", false),
            ..PLAIN
        },
        gguf: &[Gguf { architecture: "ernie4_5-moe", interleaved_qk: true, experts: NORMALIZED, ..GGUF }],
        ..LLAMA
    },
    Family {
        model_types: &["laguna"],
        sizes: Sizes {
            hidden: 2048,
            intermediate: 8192,
            layers: 40,
            heads: 48,
            kv_heads: Some(8),
            head_dim: Some(128),
            vocab: 100_352,
            context: 131_072,
        },
        rope: RopeDefaults {
            theta: 500_000.0,
            local_theta: Some((None, 10_000.0)),
            partial: Some(1.0),
            absent: Some(r#"{"full_attention": {"partial_rotary_factor": 0.5}, "sliding_attention": {}}"#),
            ..ROPE
        },
        window: Window::Typed,
        window_size: Some(512),
        heads_by_layer: Some("num_attention_heads_per_layer"),
        experts: Some(Experts {
            count: 256,
            top_k: 8,
            width: Some(("moe_intermediate_size", 512)),
            score: Score::Sigmoid,
            cap_key: Some("moe_router_logit_softcapping"),
            correction: Has::Always,
            scale_key: Some(("moe_routed_scaling_factor", 1.0)),
            shared: Some(Shared {
                width: SharedWidth::Key("shared_expert_intermediate_size", 512),
                fused: false,
                gate: false,
            }),
            dense_layers: DenseLayers::Typed(1),
            ..EXPERTS
        }),
        gating: Gating::Scoped(
            "gating",
            OutputGate { function: GateFunction::Softplus, scope: GateScope::Head, source: GateSource::Own },
        ),
        refused: &["moe_apply_router_weight_on_input"],
        tensors: FamilyTensors {
            qkv_bias: ATTENTION_BIAS,
            o_bias: ATTENTION_BIAS,
            qk_norm: Has::Always,
            ..PLAIN
        },
        gguf: &[Gguf {
            architecture: "laguna",
            window_period: Some(4),
            full_first: true,
            local_theta: Some(None),
            experts: Some(GgufExperts { normalize: true, keys: true }),
            ..GGUF
        }],
        ..LLAMA
    },
    DEEPSEEK,
    Family {
        model_types: &["glm4_moe_lite"],
        aliases: &[("num_local_experts", "n_routed_experts"), ("head_dim", "qk_rope_head_dim")],
        eps: 1e-5,
        sizes: Sizes {
            hidden: 2048,
            intermediate: 10_240,
            layers: 47,
            heads: 20,
            kv_heads: Some(20),
            vocab: 154_880,
            context: 202_752,
            ..SIZES
        },
        rope: RopeDefaults { partial: Some(1.0), ..ROPE },
        latent: Some(Latent {
            q_rank: Some(768),
            rank: 512,
            nope_dim: 192,
            rope_dim: 64,
            value_dim: 256,
            interleave_key: Some("rope_interleave"),
        }),
        experts: Some(Experts {
            count_key: "n_routed_experts",
            count: 64,
            top_k: 4,
            width: Some(("moe_intermediate_size", 1536)),
            score: Score::Sigmoid,
            correction: Has::Always,
            groups: Some((1, 1)),
            normalize: Has::Key("norm_topk_prob", true),
            denominator: Denominator { plus: 1e-20, at_least: 0.0 },
            scale_key: Some(("routed_scaling_factor", 1.8)),
            shared: Some(Shared {
                width: SharedWidth::Experts("n_shared_experts", 1),
                fused: false,
                gate: false,
            }),
            dense_layers: DenseLayers::Typed(1),
            ..EXPERTS
        }),
        tensors: FamilyTensors { o_bias: ATTENTION_BIAS, ..PLAIN },
        gguf: &[Gguf {
            architecture: "deepseek2",
            any_score: true,
            experts: Some(GgufExperts { normalize: false, keys: true }),
            ..GGUF
        }],
        ..DEEPSEEK
    },
];

//! The families in one table: what a family's class in transformers 5.24 (`configuration_*.py`,
//! `modeling_*.py`) assumes where `config.json` leaves a key out, which keys it reads at all, which tensors
//! it has, and what llama.cpp assumes of the same family where GGUF metadata say nothing.
//!
//! A key that stands here as not read changes nothing when it is in a file, as in transformers: soft-caps in
//! a Llama, `layer_types` in a Phi-3. A new family is a row.

use super::{Activation, Block, NormKind, NormScope, Presence};
use crate::error::{Error, Result, quoted};

/// One family.
pub(super) struct Family {
    /// Its `model_type`s in `config.json`; the first is its name.
    pub model_types: &'static [&'static str],
    pub norm: NormKind,
    /// Added to the norm weights of safetensors (Gemma stores `w` of `1 + w`).
    pub norm_offset: f32,
    pub eps: f64,
    pub eps_key: &'static str,
    pub block: Block,
    pub activation: Activation,
    /// `None`: not read.
    pub activation_key: Option<&'static str>,
    /// "gelu" in `activation_key` means the tanh form (Gemma 1's first releases).
    pub gelu_is_tanh: bool,
    /// Embeddings are multiplied by `sqrt(hidden)`.
    pub scaled_embedding: bool,
    pub sizes: Sizes,
    pub rope: RopeDefaults,
    /// `tie_word_embeddings` where absent.
    pub tied: bool,
    pub window: Window,
    /// `sliding_window` where absent.
    pub window_size: Option<usize>,
    /// `query_pre_attn_scalar` where absent; `None`: not read, scores are scaled by the head size.
    pub scalar: Option<f64>,
    /// `attn_logit_softcapping` where absent; `None`: not read (Gemma 3's class has the field and does not
    /// use it).
    pub attention_cap: Option<Option<f64>>,
    /// `final_logit_softcapping` where absent; `None`: not read.
    pub logit_cap: Option<Option<f64>>,
    pub bidirectional: Bidirectional,
    /// `no_rope_layers`, `no_rope_layer_interval` are read: each n-th layer has no position encoding; n where
    /// absent.
    pub no_rope_interval: Option<usize>,
    /// Some layers are short convolutions, as `layer_types` ("conv") or `full_attn_idxs` says; and the class
    /// computes the width of its feed-forward from `block_*` keys (LFM2).
    pub short_conv: Option<ShortConv>,
    /// Feed-forwards are mixtures of experts.
    pub experts: Option<Experts>,
    /// Keys whose value, unless it is `null`, makes the class compute what is not run here.
    pub refused: &'static [&'static str],
    pub tensors: FamilyTensors,
    /// The same family in GGUF, by architecture; several names where llama.cpp has several.
    pub gguf: &'static [Gguf],
}

/// Sizes of the class's own defaults. Files that name only what differs from them exist (LLaVA's
/// `text_config`).
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// `num_key_value_heads` where absent; `None` (and `null` in a file): as many as query heads.
    pub kv_heads: Option<usize>,
    /// `head_dim` where absent; `None`: `hidden / heads`.
    pub head_dim: Option<usize>,
    pub vocab: usize,
    /// `max_position_embeddings` where absent.
    pub context: usize,
}

pub(super) struct RopeDefaults {
    pub theta: f64,
    /// Base of the layers with a window, where they have their own (Gemma 3): `rope_parameters` has an object
    /// a layer type.
    pub local_theta: Option<f64>,
    /// Share of a head that turns where `partial_rotary_factor` is absent; `None`: not read, the whole head
    /// turns.
    pub partial: Option<f64>,
    /// `original_max_position_embeddings` where absent (a field of Phi-3's class); `None`: the context
    /// length.
    pub original: Option<usize>,
    /// LongRoPE is the only scaling, and older files call it "su" or "yarn" (Phi-3).
    pub longrope_only: bool,
    /// "mrope" means the plain rotation: for text alone its three streams of positions are equal.
    pub mrope: bool,
}

/// Which layers have the window.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Window {
    /// None: the class reads neither `sliding_window` nor `layer_types`.
    Never,
    /// All layers; `layer_types` is not read.
    All,
    /// The same, if `use_sliding_window`.
    AllSwitched,
    /// As `layer_types` says; without it all layers.
    TypedAll,
    /// As `layer_types` says; without it even layers.
    TypedAlternating,
    /// As `layer_types` says; without it all but each n-th, n given by `sliding_window_pattern` (6).
    TypedPattern,
    /// As `layer_types` says; without it from `max_window_layers` (this many where absent) on. Only with
    /// `use_sliding_window`.
    TypedFrom(usize),
    /// As `layer_types` says; without it the layers without position encoding, if `use_sliding_window`
    /// (SmolLM3).
    TypedNoRope,
}

/// What becomes of `use_bidirectional_attention: true`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bidirectional {
    /// The class does not read it.
    NotRead,
    /// Attention looks both ways, half a window to each side (Gemma 1, which has no windows, and Gemma 3).
    Read,
    /// The class stores it, and its attention does not look at it (Gemma 2): what its windows would be is
    /// unclear.
    Refused,
}

/// Mixtures of experts where the keys are absent.
pub(super) struct Experts {
    /// The keys of their number: a field of the class, and the name that it has besides. If both are there,
    /// the class takes the first.
    pub count_keys: [&'static str; 2],
    pub count: usize,
    /// `num_experts_per_tok`
    pub top_k: usize,
    /// Key and default of the width of an expert; `None`: `intermediate_size`.
    pub width: Option<(&'static str, usize)>,
    /// Weights are renormalized.
    pub normalize: Has,
    /// `decoder_sparse_step` and `mlp_only_layers` are read: which layers have experts, and which are dense.
    pub sparse_step: bool,
}

/// Short convolutions where the keys are absent.
pub(super) struct ShortConv {
    /// `conv_L_cache`
    pub kernel: usize,
    /// `block_multiple_of`
    pub multiple_of: usize,
}

/// Whether a family has a tensor, in `config.json`'s terms.
#[derive(Clone, Copy)]
pub(super) enum Has {
    Never,
    Always,
    /// As a key says, with the class's default.
    Key(&'static str, bool),
}

pub(super) struct FamilyTensors {
    pub qkv_bias: Has,
    pub o_bias: Has,
    pub mlp_bias: Has,
    pub head_bias: Has,
    pub qk_norm: Has,
    pub qk_norm_scope: NormScope,
    /// The MLP is gated.
    pub gate: bool,
    /// Norms after attention and MLP too.
    pub post_norms: bool,
    /// q, k and v are one matrix, gate and up another.
    pub fused: bool,
}

/// What GGUF metadata of an architecture leave out.
pub(super) struct Gguf {
    pub architecture: &'static str,
    /// Rows of q and k pair neighbours; they go back to halves when they are loaded.
    pub interleaved_qk: bool,
    /// Each n-th layer is full where `attention.sliding_window_pattern` is absent; `None`: no layer is.
    pub window_period: Option<usize>,
    /// `attention.causal` where absent.
    pub causal: bool,
    /// Base of the layers with a window, if it is their own, where `rope.freq_base_swa` is absent.
    pub local_theta: Option<f32>,
    /// Soft-caps of scores and logits where absent.
    pub caps: (Option<f32>, Option<f32>),
    /// This many layers: the model whose scores are scaled by `hidden / heads`, not by the head size.
    pub wide_scale_layers: Option<usize>,
    /// `output.weight` must be there.
    pub own_head: bool,
    /// Files with `expert_count`, and whether llama.cpp renormalizes the weights of the chosen.
    pub experts: Option<bool>,
}

const SIZES: Sizes = Sizes {
    hidden: 4096,
    intermediate: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    vocab: 32_000,
    context: 2048,
};

const ROPE: RopeDefaults = RopeDefaults {
    theta: 10_000.0,
    local_theta: None,
    partial: None,
    original: None,
    longrope_only: false,
    mrope: false,
};

const PLAIN: FamilyTensors = FamilyTensors {
    qkv_bias: Has::Never,
    o_bias: Has::Never,
    mlp_bias: Has::Never,
    head_bias: Has::Never,
    qk_norm: Has::Never,
    qk_norm_scope: NormScope::Head,
    gate: true,
    post_norms: false,
    fused: false,
};

const GGUF: Gguf = Gguf {
    architecture: "llama",
    interleaved_qk: false,
    window_period: None,
    causal: true,
    local_theta: None,
    caps: (None, None),
    wide_scale_layers: None,
    own_head: false,
    experts: None,
};

const ATTENTION_BIAS: Has = Has::Key("attention_bias", false);
const MLP_BIAS: Has = Has::Key("mlp_bias", false);

const LLAMA: Family = Family {
    model_types: &["llama"],
    norm: NormKind::Rms,
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
    gguf: &[Gguf { interleaved_qk: true, ..GGUF }],
};

const MISTRAL: Family = Family {
    model_types: &["mistral"],
    sizes: Sizes { intermediate: 14_336, kv_heads: Some(8), context: 131_072, ..SIZES },
    window: Window::All,
    window_size: Some(4096),
    tensors: PLAIN,
    // llama.cpp's converter writes Mistral as "llama".
    gguf: &[],
    ..LLAMA
};

const QWEN_SIZES: Sizes =
    Sizes { intermediate: 22_016, kv_heads: Some(32), vocab: 151_936, context: 32_768, ..SIZES };

const QWEN2: Family = Family {
    model_types: &["qwen2"],
    sizes: QWEN_SIZES,
    window: Window::TypedFrom(28),
    window_size: Some(4096),
    tensors: FamilyTensors { qkv_bias: Has::Always, ..PLAIN },
    gguf: &[Gguf { architecture: "qwen2", ..GGUF }, Gguf { architecture: "qwen2vl", ..GGUF }],
    ..LLAMA
};

const QWEN3: Family = Family {
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

const GEMMA: Family = Family {
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

const GEMMA2: Family = Family {
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
    tensors: FamilyTensors { post_norms: true, ..GEMMA.tensors },
    gguf: &[Gguf {
        architecture: "gemma2",
        window_period: Some(2),
        caps: (Some(50.0), Some(30.0)),
        wide_scale_layers: Some(46),
        ..GGUF
    }],
    ..GEMMA
};

const GEMMA3_GGUF: Gguf = Gguf {
    architecture: "gemma3",
    window_period: Some(6),
    local_theta: Some(10_000.0),
    wide_scale_layers: Some(62),
    ..GGUF
};

const EXPERTS: Experts = Experts {
    count_keys: ["num_local_experts", "num_experts"],
    count: 8,
    top_k: 2,
    width: None,
    normalize: Has::Always,
    sparse_step: false,
};

/// The families, by `model_type`.
const FAMILIES: &[Family] = &[
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
        tensors: FamilyTensors { fused: true, ..PLAIN },
        gguf: &[Gguf { architecture: "phi3", ..GGUF }],
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Family {
        model_types: &["gemma3_text"],
        sizes: Sizes { vocab: 262_208, context: 131_072, ..GEMMA2.sizes },
        rope: RopeDefaults { theta: 1_000_000.0, local_theta: Some(10_000.0), ..ROPE },
        window: Window::TypedPattern,
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
    Family {
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
    },
];

/// A model of pictures or sound around a language model, which alone is loaded.
pub(super) struct Wrapper {
    pub model_type: &'static str,
    /// The family of `text_config`.
    pub text: Text,
    /// `tie_word_embeddings` of the wrapper where absent; the wrapper's own counts, not its `text_config`'s.
    pub tied: bool,
    /// `tie_word_embeddings` of `text_config` counts too, if it is true (files of before transformers 5).
    pub inner_tied: bool,
    /// Published without `text_config`: the keys of the text model stand beside the wrapper's.
    pub flat: bool,
}

pub(super) enum Text {
    /// Always this one, whatever `text_config` calls itself.
    Fixed(&'static str),
    /// As its `model_type` says, else this one.
    Own(&'static str),
}

const WRAPPER: Wrapper =
    Wrapper { model_type: "llava", text: Text::Own("llama"), tied: false, inner_tied: true, flat: false };

const WRAPPERS: &[Wrapper] = &[
    WRAPPER,
    Wrapper { model_type: "llava_next", inner_tied: false, ..WRAPPER },
    Wrapper { model_type: "smolvlm", inner_tied: false, ..WRAPPER },
    Wrapper { model_type: "idefics3", inner_tied: false, ..WRAPPER },
    Wrapper { model_type: "mistral3", text: Text::Own("mistral"), tied: true, inner_tied: false, ..WRAPPER },
    Wrapper {
        model_type: "gemma3",
        text: Text::Fixed("gemma3_text"),
        tied: true,
        inner_tied: false,
        ..WRAPPER
    },
    Wrapper { model_type: "qwen2_vl", text: Text::Fixed("qwen2_vl_text"), flat: true, ..WRAPPER },
    Wrapper { model_type: "qwen2_5_vl", text: Text::Fixed("qwen2_5_vl_text"), flat: true, ..WRAPPER },
    Wrapper { model_type: "qwen3_vl", text: Text::Fixed("qwen3_vl_text"), inner_tied: false, ..WRAPPER },
];

impl Family {
    pub fn name(&self) -> &'static str {
        self.model_types[0]
    }

    /// The family of a `model_type`.
    pub fn of_model_type(name: &str) -> Result<&'static Family> {
        FAMILIES.iter().find(|family| family.model_types.contains(&name)).ok_or_else(|| {
            let known = FAMILIES.iter().flat_map(|family| family.model_types).copied();
            let known: Vec<_> = known.chain(WRAPPERS.iter().map(|wrapper| wrapper.model_type)).collect();
            let (name, known) = (quoted(name), known.join(", "));
            Error::unsupported(format!("model_type {name} is not supported; supported are {known}"))
        })
    }

    /// The family of a GGUF architecture, and what that leaves out. `experts`: the file has some, which makes
    /// a Mixtral of what else is a Llama.
    pub fn of_architecture(name: &str, experts: bool) -> Result<(&'static Family, &'static Gguf)> {
        let all = || FAMILIES.iter().flat_map(|family| family.gguf.iter().map(move |gguf| (family, gguf)));
        let named = || all().filter(|(_, gguf)| gguf.architecture == name);
        let found = named().find(|(_, gguf)| gguf.experts.is_some() == experts);
        found.ok_or_else(|| {
            let mut known: Vec<_> = all().map(|(_, gguf)| gguf.architecture).collect();
            known.sort_unstable();
            known.dedup();
            let (name, known) = (quoted(name), known.join(", "));
            Error::unsupported(match (named().next(), experts) {
                (None, _) => format!("architecture {name} is not supported; supported are {known}"),
                (Some(_), true) => {
                    format!("architecture {name} with experts (expert_count) is not supported")
                }
                (Some(_), false) => {
                    format!("architecture {name} without experts (expert_count) is not supported")
                }
            })
        })
    }
}

impl Wrapper {
    pub fn of_model_type(name: &str) -> Option<&'static Wrapper> {
        WRAPPERS.iter().find(|wrapper| wrapper.model_type == name)
    }
}

impl Has {
    /// As GGUF has it, where no key tells: the tensor does.
    pub fn in_gguf(self) -> Presence {
        match self {
            Has::Always => Presence::Always,
            Has::Never => Presence::Never,
            Has::Key(..) => Presence::IfStored,
        }
    }

    /// As [`Has::in_gguf`], for biases of attention and MLP, which llama.cpp adds in every family that stores
    /// them.
    pub fn bias_in_gguf(self) -> Presence {
        match self.in_gguf() {
            Presence::Never => Presence::IfStored,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_one_row() {
        let mut names: Vec<_> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        names.extend(WRAPPERS.iter().map(|wrapper| wrapper.model_type));
        let gguf = FAMILIES.iter().flat_map(|family| family.gguf);
        let mut architectures: Vec<_> = gguf
            .map(|gguf| {
                format!("{}{}", gguf.architecture, if gguf.experts.is_some() { " with experts" } else { "" })
            })
            .collect();
        let mut names: Vec<_> = names.into_iter().map(str::to_owned).collect();
        for list in [&mut names, &mut architectures] {
            let count = list.len();
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len(), count, "{list:?}");
        }
    }

    #[test]
    fn every_wrapper_has_a_text_model() {
        for wrapper in WRAPPERS {
            let (Text::Fixed(name) | Text::Own(name)) = wrapper.text;
            assert!(Family::of_model_type(name).is_ok(), "{}: {name}", wrapper.model_type);
        }
    }
}

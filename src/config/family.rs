//! The families in one table: what a family's class in transformers 5.24 (`configuration_*.py`,
//! `modeling_*.py`) assumes where `config.json` leaves a key out, which keys it reads at all, which tensors
//! it has, and what llama.cpp assumes of the same family where GGUF metadata say nothing.
//!
//! A key that stands here as not read changes nothing when it is in a file, as in transformers: soft-caps in
//! a Llama, `layer_types` in a Phi-3. A new family is a row.

mod dense;
mod experts;
mod gemma;
mod hybrids;
mod recurrent;
mod wrappers;

pub(super) use self::hybrids::{DeltaNet, DtLimits, Mamba2, Mamba2Place, Recurrent, Scale};
use self::wrappers::WRAPPERS;
pub(super) use self::wrappers::{Text, Wrapper};
use super::{
    Activation, Block, Denominator, ExpertStack, LayerNorms, NormKind, NormScope, OutputGate, Presence,
    Score, Spellings,
};
use crate::error::{Error, Result, quoted};
use crate::weights::names::Part;

/// One family.
pub(super) struct Family {
    /// Its `model_type`s in `config.json`; the first is its name.
    pub model_types: &'static [&'static str],
    /// Other names of keys, with the key: one that is there counts more (`attribute_map`, and what older
    /// files call it).
    pub aliases: &'static [(&'static str, &'static str)],
    pub norm: NormKind,
    /// Layer norms have a bias.
    pub norm_bias: bool,
    /// Added to the norm weights of safetensors (Gemma stores `w` of `1 + w`).
    pub norm_offset: f32,
    pub eps: f64,
    pub eps_key: &'static str,
    /// Of the norms behind mixers and feed-forwards, if it is another: its key, and its value where absent.
    pub post_eps: Option<(&'static str, f64)>,
    /// The final norm's weights have no offset.
    pub plain_final_norm: bool,
    /// Embeddings are RMS-normed, with no weights.
    pub embed_norm: bool,
    pub block: Block,
    /// The key that makes the block parallel, if it is true.
    pub parallel_key: Option<&'static str>,
    pub activation: Activation,
    /// The key of the width of the feed-forward.
    pub intermediate_key: &'static str,
    /// `None`: not read.
    pub activation_key: Option<&'static str>,
    /// "gelu" in `activation_key` means the tanh form (Gemma 1's first releases).
    pub gelu_is_tanh: bool,
    /// Embeddings are multiplied by `sqrt(hidden)`.
    pub scaled_embedding: bool,
    pub multipliers: Multipliers,
    pub sizes: Sizes,
    pub rope: RopeDefaults,
    /// `tie_word_embeddings` where absent.
    pub tied: bool,
    /// That key is not read: the head is never the embedding.
    pub own_head: bool,
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
    pub no_rope: NoRope,
    /// Late positions attend more sharply.
    pub query_scale: bool,
    /// Some layers are short convolutions, as `layer_types` ("conv") or `full_attn_idxs` says; and the class
    /// computes the width of its feed-forward from `block_*` keys (LFM2).
    pub short_conv: Option<ShortConv>,
    /// Some layers are recurrent scans.
    pub recurrent: Option<Recurrent>,
    /// What weights are multiplied by.
    pub weight_scales: &'static [(Part, &'static [Scale])],
    /// The key of the query heads of each layer (Laguna).
    pub heads_by_layer: Option<&'static str>,
    /// Feed-forwards are mixtures of experts.
    pub experts: Option<Experts>,
    /// Keys and values are made of a latent.
    pub latent: Option<Latent>,
    /// Layers differ in more than their windows (Gemma 4).
    pub by_layer: Option<ByLayer>,
    pub gating: Gating,
    /// Keys whose value, unless it is `null`, makes the class compute what is not run here.
    pub refused: &'static [&'static str],
    /// Keys whose numbers change what is computed, and the only ones that are run; they are assumed where the
    /// keys are absent.
    pub fixed: &'static [(&'static str, f64)],
    pub tensors: FamilyTensors,
    /// What it calls its tensors, where that is not usual.
    pub names: Spellings,
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
    /// Base of the layers with a window, where they have their own: `rope_parameters` has an object a layer
    /// type. With the key of older files (Gemma 3), if there is one.
    pub local_theta: Option<(Option<&'static str>, f64)>,
    /// Share of a head that turns where `partial_rotary_factor` is absent; `None`: not read, the whole head
    /// turns.
    pub partial: Option<f64>,
    /// `original_max_position_embeddings` where absent (a field of Phi-3's class); `None`: the context
    /// length.
    pub original: Option<usize>,
    /// LongRoPE is the only scaling, and older files call it "su" or "yarn" (Phi-3).
    pub longrope_only: bool,
    /// Dimensions turn with their neighbours, not with those half a head away.
    pub interleaved: bool,
    /// `alpha` makes the base larger, whatever the length (Hunyuan's "dynamic").
    pub alpha: bool,
    /// The object of the class where the file has none.
    pub absent: Option<&'static str>,
    /// `layer_rope_theta` has a base for each layer, 0 for no rotation (Granite swash).
    pub layer_bases: bool,
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
    /// As `layer_types` says; without it all but each n-th. `pattern`: n is in `sliding_window_pattern`, or
    /// that is a text such as "LLLG" (Exaone 4); `switched`: without a window all layers are full.
    TypedPeriod { n: usize, pattern: bool, switched: bool },
    /// The same with each sixth, and the last layer is full whatever that says (Gemma 4).
    TypedLastFull,
    /// As `layer_types` says; without it from `max_window_layers` (this many where absent) on. Only with
    /// `use_sliding_window`.
    TypedFrom(usize),
    /// As `layer_types` says; without it all but each n-th, counted back from the last (Muse Glimmer).
    TypedFromLast(usize),
    /// As `layer_types` says; without it none.
    Typed,
    /// As `layer_types` says; without it all but each 4th from the first on (Granite swash).
    TypedAllButFirstOfFour,
    /// As `layer_types` says; without it each 4th from layer 4 on has the window, and each 4th from layer 2
    /// on sees everything (LFM3, whose others are convolutions).
    TypedTwoOfFour,
    /// As `layer_types` says; without it the layers without position encoding, if `use_sliding_window`
    /// (SmolLM3).
    TypedNoRope,
}

/// Which layers have no position encoding.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum NoRope {
    Never,
    /// As `no_rope_layers` says; without it each n-th, n given by `no_rope_layer_interval` or this.
    Interval(usize),
    /// Those that see everything (Cohere 2).
    Full,
    /// Those that see everything, where others have a window (Exaone 4).
    FullBesideWindow,
    /// None has (Nemotron-H).
    Always,
    /// Those whose entry in the list of this key is 0; without it each n-th, counted back from the last.
    Zeros(&'static str, usize),
    /// All, unless this key has this value (Granite's hybrids).
    Unless(&'static str, &'static str),
}

/// Numbers that what passes is multiplied by; `None`: the class has no such key.
#[derive(Clone, Copy)]
pub(super) struct Multipliers {
    /// Embeddings.
    pub embedding: Option<Multiplier>,
    /// Scores, instead of the root of the head size.
    pub attention: Option<Multiplier>,
    /// Scores, besides.
    pub queries: Option<Multiplier>,
    /// What mixers and feed-forwards add to the residual stream.
    pub residual: Option<Multiplier>,
    /// Logits.
    pub logits: Option<Multiplier>,
}

/// A number in a key.
#[derive(Clone, Copy)]
pub(super) struct Multiplier {
    /// In `config.json`.
    pub key: &'static str,
    /// In GGUF metadata.
    pub gguf: &'static str,
    /// Where it is absent.
    pub default: f64,
    /// Divides instead.
    pub divides: bool,
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
    /// "vision": pictures are seen whole, and text is as ever (Gemma 4).
    Pictures,
}

/// Latent attention where the keys are absent.
pub(super) struct Latent {
    /// `q_lora_rank`; `null` says that queries have no latent.
    pub q_rank: Option<usize>,
    /// `kv_lora_rank`
    pub rank: usize,
    /// `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`
    pub nope_dim: usize,
    pub rope_dim: usize,
    pub value_dim: usize,
    /// The key that says whether what turns is stored with neighbours beside each other; it is unless that is
    /// false.
    pub interleave_key: Option<&'static str>,
}

/// Layers that differ, in Gemma 4's way: those that see everything have heads of their own, and with
/// `attention_k_eq_v` no projection of values; the last `num_kv_shared_layers` use keys and values of earlier
/// ones, and with `use_double_wide_mlp` are twice as wide. Scores are not scaled, heads of values are normed,
/// and a number that its output is multiplied by is stored with each layer.
pub(super) struct ByLayer {
    /// `global_head_dim` where absent: the head size of the layers that see everything.
    pub global_head_dim: usize,
    /// `hidden_size_per_layer_input` where absent; `None`: not read, there are no per-layer embeddings.
    pub per_layer_width: Option<usize>,
}

/// Mixtures of experts: the keys that the class reads, and what it assumes where they are absent.
pub(super) struct Experts {
    /// The key that gives each layer experts beside its dense feed-forward, if it is true (Gemma 4); `None`:
    /// layers have the one or the other.
    pub beside: Option<&'static str>,
    /// The key of their number.
    pub count_key: &'static str,
    pub count: usize,
    pub top_k_key: &'static str,
    pub top_k: usize,
    /// Key and default of the width of an expert; `None`: `intermediate_size`.
    pub width: Option<(&'static str, usize)>,
    pub score: Score,
    /// The key of the soft-cap of the router's logits; 0 is none.
    pub cap_key: Option<&'static str>,
    /// There is a correction for each expert.
    pub correction: Has,
    /// `n_group` and `topk_group` are read, with these defaults.
    pub groups: Option<(usize, usize)>,
    /// Weights are renormalized.
    pub normalize: Has,
    pub denominator: Denominator,
    /// The key of the least denominator, with its default.
    pub at_least_key: Option<(&'static str, f64)>,
    /// The key of what weights are multiplied by, with its default.
    pub scale_key: Option<(&'static str, f64)>,
    pub gate: bool,
    pub bias: Has,
    pub router_bias: Has,
    pub stack: ExpertStack,
    pub shared: Option<Shared>,
    /// The key of the width of what experts read, if that may be another than the model's.
    pub latent_key: Option<&'static str>,
    pub dense_layers: DenseLayers,
}

/// The expert that every position passes, where there is one.
pub(super) struct Shared {
    pub width: SharedWidth,
    /// gate and up are one matrix.
    pub fused: bool,
    /// What it gives is multiplied by a gate.
    pub gate: bool,
}

/// How a shared expert's width is said; of 0 there is none.
pub(super) enum SharedWidth {
    /// In a key.
    Key(&'static str, usize),
    /// As that many experts, by a key.
    Experts(&'static str, usize),
}

/// Which layers have a dense feed-forward instead of experts.
pub(super) enum DenseLayers {
    Never,
    /// As `decoder_sparse_step` and `mlp_only_layers` say.
    SparseStep,
    /// As the list of what each layer is says (Nemotron-H).
    Blocks,
    /// The first, as many as a key says.
    First(&'static str, usize),
    /// As `mlp_layer_types` says; without it the first of them, this many.
    Typed(usize),
    /// All, if there are no experts at all.
    WithoutExperts,
    /// All but each n-th from a first one to a last (`moe_layer_interval`, `moe_layer_start_index`,
    /// `moe_layer_end_index`: ERNIE 4.5).
    Range,
}

/// A gate between attention and its output projection.
#[derive(Clone, Copy)]
pub(super) enum Gating {
    Never,
    /// In every attention layer.
    Always(OutputGate),
    /// If a key says so, which it does where it is absent.
    Switched(&'static str, OutputGate),
    /// A key says of which scope: `true` or "per-head", or "per-element"; where it is absent, as here.
    Scoped(&'static str, OutputGate),
}

/// Short convolutions where the keys are absent.
pub(super) struct ShortConv {
    /// `conv_L_cache`
    pub kernel: usize,
    /// `block_multiple_of`; `None`: the width is as it is stated (LFM2-MoE, LFM3).
    pub multiple_of: Option<usize>,
}

/// Whether a family has a tensor, in `config.json`'s terms.
#[derive(Clone, Copy)]
pub(super) enum Has {
    Never,
    Always,
    /// As a key says, with the class's default.
    Key(&'static str, bool),
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum NormPlaces {
    /// Before the mixer and before the feed-forward.
    Before,
    /// Before and after each (Gemma 2).
    Around,
    /// After each alone: `x + norm(f(x))` (OLMo 2).
    After,
}

impl NormPlaces {
    /// The norms of a layer of this block.
    pub fn norms(self, block: Block) -> LayerNorms {
        let (before, after) = (self != NormPlaces::After, self != NormPlaces::Before);
        LayerNorms {
            before_mixer: before,
            after_mixer: after,
            before_ffn: before && block == Block::Sequential,
            after_ffn: after,
        }
    }
}

pub(super) struct FamilyTensors {
    pub qkv_bias: Has,
    pub o_bias: Has,
    pub mlp_bias: Has,
    pub head_bias: Has,
    pub qk_norm: Has,
    pub qk_norm_scope: NormScope,
    /// Each head of queries and keys is RMS-normed, with no weights; GGUF stores some, to scale queries.
    pub plain_qk_norm: bool,
    /// Queries and keys are normed after they are rotated.
    pub qk_norm_after_rope: bool,
    /// The MLP is gated.
    pub gate: bool,
    pub norms: NormPlaces,
    /// The key without which (it counts as true where it is absent) there are none after each (LFM3).
    pub norms_after_key: Option<&'static str>,
    /// q, k and v are one matrix.
    pub fused_qkv: bool,
    /// gate and up are one matrix.
    pub fused_gate_up: bool,
    /// The activation has parameters of its own in each layer (xIELU).
    pub xielu: bool,
    /// Attention has sinks.
    pub sinks: bool,
}

/// What GGUF metadata of an architecture leave out.
pub(super) struct Gguf {
    pub architecture: &'static str,
    /// Rows of q and k pair neighbours, since the converter or the family has them so; they go back to halves
    /// when they are loaded.
    pub interleaved_qk: bool,
    /// Layers, if llama.cpp has a window for a model of so many alone (Exaone 4), and the window where
    /// the key is absent.
    pub window_layers: Option<(usize, usize)>,
    /// Each n-th layer is full where `attention.sliding_window_pattern` is absent; `None`: no layer is.
    pub window_period: Option<usize>,
    /// Of such a period the first layer is full, not the last.
    pub full_first: bool,
    /// `attention.causal` where absent.
    pub causal: bool,
    /// Layers with a window turn without the scaling, by the base in `rope.freq_base_swa`, or this where it
    /// is absent (of that `None`: by the base of the others).
    pub local_theta: Option<Option<f32>>,
    /// `rope.scaling.finetuned` says whether there are position encodings, and this where it is absent;
    /// `None`: it is not read.
    pub rope_switch: Option<bool>,
    /// Soft-caps of scores and logits where absent.
    pub caps: (Option<f32>, Option<f32>),
    /// This many layers: the model whose scores are scaled by `hidden / heads`, not by the head size.
    pub wide_scale_layers: Option<usize>,
    /// `output.weight` must be there.
    pub own_head: bool,
    /// The borders of YaRN's blend are whole dimensions, as llama.cpp has them everywhere. (gpt-oss was
    /// trained with others, and transformers computes those.)
    pub yarn_truncates: bool,
    /// Value heads of Gated DeltaNet come in the order of the converter: head h has the key of `h % key
    /// heads`.
    pub tiled_heads: bool,
    /// `expert_gating_func` says what experts are chosen by: DeepSeek V2 and GLM-4.7-Flash share a name.
    pub any_score: bool,
    /// Files with `expert_count`.
    pub experts: Option<GgufExperts>,
}

/// What metadata leave out of experts.
pub(super) struct GgufExperts {
    /// Whether llama.cpp renormalizes the weights of the chosen, where no key says.
    pub normalize: bool,
    /// llama.cpp reads the keys of the routing; elsewhere it routes in one way, whatever they say.
    pub keys: bool,
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
    interleaved: false,
    alpha: false,
    absent: None,
    layer_bases: false,
    mrope: false,
};

const PLAIN: FamilyTensors = FamilyTensors {
    qkv_bias: Has::Never,
    o_bias: Has::Never,
    mlp_bias: Has::Never,
    head_bias: Has::Never,
    qk_norm: Has::Never,
    qk_norm_scope: NormScope::Head,
    plain_qk_norm: false,
    qk_norm_after_rope: false,
    gate: true,
    norms: NormPlaces::Before,
    norms_after_key: None,
    fused_qkv: false,
    fused_gate_up: false,
    xielu: false,
    sinks: false,
};

const GGUF: Gguf = Gguf {
    architecture: "llama",
    interleaved_qk: false,
    window_layers: None,
    window_period: None,
    full_first: false,
    causal: true,
    local_theta: None,
    rope_switch: None,
    caps: (None, None),
    wide_scale_layers: None,
    own_head: false,
    yarn_truncates: true,
    tiled_heads: false,
    any_score: false,
    experts: None,
};

const NO_MULTIPLIERS: Multipliers =
    Multipliers { embedding: None, attention: None, queries: None, residual: None, logits: None };

const ATTENTION_BIAS: Has = Has::Key("attention_bias", false);
const MLP_BIAS: Has = Has::Key("mlp_bias", false);

/// All families.
fn families() -> impl Iterator<Item = &'static Family> {
    [dense::FAMILIES, gemma::FAMILIES, experts::FAMILIES, recurrent::FAMILIES, hybrids::FAMILIES]
        .into_iter()
        .flatten()
}

/// A family that is run, by the names that files have for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supported {
    /// `model_type`s in `config.json`; the first is the family's name.
    pub model_types: Vec<&'static str>,
    /// `general.architecture`s in GGUF.
    pub architectures: Vec<&'static str>,
}

/// All families that are run, and the `model_type`s of models of pictures or sound whose language model is.
pub fn supported() -> (Vec<Supported>, Vec<&'static str>) {
    let of = |family: &Family| Supported {
        model_types: family.model_types.to_vec(),
        architectures: family.gguf.iter().map(|gguf| gguf.architecture).collect(),
    };
    (families().map(of).collect(), WRAPPERS.iter().map(|wrapper| wrapper.model_type).collect())
}

/// The names that families have for parts, beside the usual ones.
pub fn spellings() -> impl Iterator<Item = Spellings> {
    families().map(|family| family.names)
}

/// How checkpoints of transformers have the projections of a family.
#[derive(Clone, Copy)]
pub(crate) struct ModuleNames {
    pub own: Spellings,
    pub fused_qkv: bool,
    pub fused_gate_up: bool,
}

/// Of a `model_type` or `general.architecture`.
pub(crate) fn module_names(family: &str) -> Option<ModuleNames> {
    let of_gguf = |row: &&Family| row.gguf.iter().any(|gguf| gguf.architecture == family);
    let typed = families().find(|row| row.model_types.contains(&family));
    let row = typed.or_else(|| families().find(of_gguf))?;
    let FamilyTensors { fused_qkv, fused_gate_up, .. } = row.tensors;
    Some(ModuleNames { own: row.names, fused_qkv, fused_gate_up })
}

/// How llama.cpp's converter leaves the rows of B in an adapter of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdapterRows {
    Plain,
    /// Those of q and k alternate between the halves of each head.
    Interleaved,
    /// It computes with the weights of some parts, or moves their rows by more than that.
    Changed,
}

/// Of a `general.architecture`.
///
/// # Errors
/// `UnsupportedModel` for one that is not run.
pub(crate) fn adapter_rows(architecture: &str) -> Result<AdapterRows> {
    let all = families().flat_map(|family| family.gguf.iter().map(move |gguf| (family, gguf)));
    let mut found = all.filter(|(_, gguf)| gguf.architecture == architecture).peekable();
    if found.peek().is_none() {
        Family::of_architecture(architecture, false)?;
    }
    Ok(found.fold(AdapterRows::Plain, |rows, (family, gguf)| match rows {
        _ if gguf.tiled_heads || !family.weight_scales.is_empty() => AdapterRows::Changed,
        AdapterRows::Plain if gguf.interleaved_qk => AdapterRows::Interleaved,
        rows => rows,
    }))
}

impl Family {
    pub fn name(&self) -> &'static str {
        self.model_types[0]
    }

    /// Whether its safetensors hold gate and up of experts in one matrix, whose outputs alternate.
    pub fn experts_alternate(&self) -> bool {
        self.has_mxfp4()
    }

    /// Whether its safetensors may hold experts as MXFP4.
    pub fn has_mxfp4(&self) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.stack == ExpertStack::Interleaved)
    }

    /// The family of a `model_type`.
    pub fn of_model_type(name: &str) -> Result<&'static Family> {
        families().find(|family| family.model_types.contains(&name)).ok_or_else(|| {
            let known = families().flat_map(|family| family.model_types).copied();
            let known: Vec<_> = known.chain(WRAPPERS.iter().map(|wrapper| wrapper.model_type)).collect();
            let (name, known) = (quoted(name), known.join(", "));
            Error::unsupported(format!("model_type {name} is not supported; supported are {known}"))
        })
    }

    /// The family of a GGUF architecture, and what that leaves out. `experts`: the file has some, which makes
    /// a Mixtral of what else is a Llama.
    pub fn of_architecture(name: &str, experts: bool) -> Result<(&'static Family, &'static Gguf)> {
        let all = || families().flat_map(|family| family.gguf.iter().map(move |gguf| (family, gguf)));
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
        let mut names: Vec<_> = families().flat_map(|family| family.model_types).copied().collect();
        names.extend(WRAPPERS.iter().map(|wrapper| wrapper.model_type));
        let gguf = families().flat_map(|family| family.gguf);
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

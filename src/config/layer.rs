//! What may differ from layer to layer: the mixer (attention, or another way to look at other positions), the
//! feed-forward, and the norms around both. A new mixer or feed-forward is a variant here and a file in
//! `model`.

use super::recurrent::{DeltaNetConfig, Mamba2Config};
use super::rope::Rope;
use super::{Activation, MAX_WIDTH, Presence};
use crate::error::{Error, Result};

/// One layer of the decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// `None`: the layer is a feed-forward alone (Nemotron-H).
    pub mixer: Option<MixerConfig>,
    /// `None`: the layer is a mixer alone (Nemotron-H).
    pub ffn: Option<FeedForwardConfig>,
    pub norms: LayerNorms,
    /// What the output of each of the two is multiplied by before it joins the residual stream; 1 in most
    /// families.
    pub residual_scale: f32,
    /// What the layer takes of the per-layer embeddings of the tokens (Gemma 4 E2B, E4B).
    pub per_layer: Option<PerLayerConfig>,
    /// A number that the layer's output is multiplied by is stored with it (Gemma 4).
    pub output_scale: Presence,
}

/// A further part of a layer, behind its feed-forward: `x + norm(projection(activation(gate(x)) * p))`, with
/// `p` the layer's share of what the step's tokens have in the table of per-layer embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerLayerConfig {
    /// Width of `p`.
    pub width: usize,
    pub activation: Activation,
}

/// Which norms a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNorms {
    pub before_mixer: bool,
    /// Of the mixer's output, before it joins the residual stream (Gemma 2 and 3).
    pub after_mixer: bool,
    /// Absent in a parallel block, whose feed-forward reads what the mixer reads.
    pub before_ffn: bool,
    pub after_ffn: bool,
}

impl LayerNorms {
    /// Those of a layer that may have one half alone.
    pub(super) fn of(self, mixer: bool, ffn: bool) -> LayerNorms {
        LayerNorms {
            before_mixer: self.before_mixer && mixer,
            after_mixer: self.after_mixer && mixer,
            before_ffn: self.before_ffn && ffn,
            after_ffn: self.after_ffn && ffn,
        }
    }
}

/// What a layer has besides attention, and whether it has both halves: how the readers of configurations fill
/// its seats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Seats {
    /// Attention and a feed-forward.
    Attention,
    /// This mixer and a feed-forward.
    Mixer(MixerConfig),
    /// Attention with Mamba-2 beside it, and a feed-forward.
    Beside(Mamba2Config),
    /// A mixer alone; `None`: attention.
    MixerAlone(Option<MixerConfig>),
    FeedForwardAlone,
}

impl Seats {
    /// A short convolution, or attention where there is none.
    pub fn of_conv(conv: Option<ShortConvConfig>) -> Self {
        conv.map_or(Seats::Attention, |conv| Seats::Mixer(MixerConfig::ShortConv(conv)))
    }

    pub fn fill(
        self,
        attention: AttentionConfig,
        ffn: FeedForwardConfig,
    ) -> (Option<MixerConfig>, Option<FeedForwardConfig>) {
        match self {
            Seats::Attention => (Some(MixerConfig::Attention(attention)), Some(ffn)),
            Seats::Mixer(mixer) => (Some(mixer), Some(ffn)),
            Seats::Beside(mamba) => (Some(MixerConfig::AttentionAndMamba2(attention, mamba)), Some(ffn)),
            Seats::MixerAlone(mixer) => (Some(mixer.unwrap_or(MixerConfig::Attention(attention))), None),
            Seats::FeedForwardAlone => (None, Some(ffn)),
        }
    }
}

/// The part of a layer that looks at other positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MixerConfig {
    Attention(AttentionConfig),
    ShortConv(ShortConvConfig),
    DeltaNet(DeltaNetConfig),
    Mamba2(Mamba2Config),
    /// Both read the same rows, and their outputs are added (Falcon-H1).
    AttentionAndMamba2(AttentionConfig, Mamba2Config),
    Latent(LatentConfig),
}

impl MixerConfig {
    pub fn attention(&self) -> Option<&AttentionConfig> {
        match self {
            MixerConfig::Attention(attention) | MixerConfig::AttentionAndMamba2(attention, _) => {
                Some(attention)
            }
            MixerConfig::Latent(_)
            | MixerConfig::ShortConv(_)
            | MixerConfig::DeltaNet(_)
            | MixerConfig::Mamba2(_) => None,
        }
    }
}

/// Attention over the keys and values of the positions so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// What the scores are multiplied by, usually `head_dim^-0.5`.
    pub scale: f32,
    /// Scores become `cap * tanh(scores / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// A position sees those less than this far away, itself included: before it, and behind it as well where
    /// attention is not causal. `None`: all.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`](super::Config::ropes); `None`: no position encoding (SmolLM3).
    pub rope: Option<usize>,
    /// Norms of queries and keys, before they are rotated.
    pub qk_norm: Presence,
    pub qk_norm_scope: NormScope,
    /// Where no weights of these norms are stored, they have none (Muse Glimmer).
    pub plain_qk_norm: bool,
    /// They are normed after they are rotated (Hunyuan).
    pub qk_norm_after_rope: bool,
    pub query_scale: Option<QueryScale>,
    pub qkv_bias: Presence,
    pub o_bias: Presence,
    /// q, k and v in one matrix.
    pub fused: Presence,
    /// The projection of values; without it they are the keys as projected, before norm and rotation (Gemma
    /// 4's layers that see everything).
    pub value_projection: Presence,
    /// Each head of the values is RMS-normed, with no weights (Gemma 4).
    pub value_norm: bool,
    /// The layer before this one whose keys and values it reads; it has none of its own (Gemma 4 E2B, E4B).
    pub shared_kv: Option<usize>,
    /// A learned logit for each query head joins its softmax, and takes a share of the weights that goes
    /// nowhere (gpt-oss, Granite swash).
    pub sinks: Presence,
    /// What the output is multiplied by before the output projection.
    pub gate: Option<OutputGate>,
}

/// A gate between attention and its output projection: a function of a projection of what attention reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputGate {
    pub function: GateFunction,
    pub scope: GateScope,
    pub source: GateSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    Sigmoid,
    /// `x * sigmoid(x)` (Mamba-2).
    Silu,
    /// `ln(1 + e^x)` (Laguna).
    Softplus,
}

/// How many numbers a gate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateScope {
    /// One for each query head.
    Head,
    /// One for each number of the output.
    Element,
}

/// Where the projection of a gate is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateSource {
    /// In a matrix of its own.
    Own,
    /// In the matrix of the queries: of each head first the rows of the query, then those of the gate
    /// (Qwen3.5).
    Query,
}

/// A factor of the queries that grows with the position, so that late ones attend more sharply (Llama 4,
/// Ministral 3): `1 + beta ln(1 + floor(position / original))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    pub beta: f32,
    pub original: f32,
}

impl QueryScale {
    /// The factor at a position.
    pub fn at(&self, position: u32) -> f32 {
        1.0 + self.beta * (1.0 + (position as f32 / self.original).floor()).ln()
    }
}

/// What a norm of queries or keys is computed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormScope {
    /// Each head; its weights are shared by all heads.
    Head,
    /// Each head, with weights of its own and no bias (StableLM 2 12B).
    EachHead,
    /// All heads of a position together (OLMoE, OLMo 2).
    AllHeads,
}

/// Attention whose keys and values are made of one latent of each position (DeepSeek V2, GLM-4.7-Flash).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentConfig {
    pub heads: usize,
    /// Width of the latent of the queries; `None`: they have none.
    pub q_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub rank: usize,
    /// Dimensions of a head's query and key that do not turn, and those behind them that do; all heads share
    /// these of the keys.
    pub nope_dim: usize,
    pub rope_dim: usize,
    /// Width of a head's values.
    pub value_dim: usize,
    /// What the scores are multiplied by, `(still + turned)^-0.5` or more.
    pub scale: f32,
    /// Index into [`Config::ropes`](super::Config::ropes).
    pub rope: usize,
    /// What turns is stored with neighbours beside each other.
    pub interleaved: bool,
    /// Of the projections to the latents and of the output.
    pub bias: Presence,
    /// Of the norms of the latents.
    pub eps: f64,
}

impl LatentConfig {
    fn validate(&self, ropes: &[Rope]) -> Result<()> {
        let sizes = [
            ("number of attention heads (num_attention_heads, head_count)", self.heads),
            ("width of the latent of queries (q_lora_rank)", self.q_rank.unwrap_or(1)),
            ("width of the latent of keys and values (kv_lora_rank)", self.rank),
            ("part of a head that does not turn (qk_nope_head_dim, key_length_mla)", self.nope_dim),
            ("part of a head that turns (qk_rope_head_dim, rope.dimension_count)", self.rope_dim),
            ("width of a head's values (v_head_dim, value_length_mla)", self.value_dim),
        ];
        sizes.into_iter().try_for_each(|(name, value)| within(name, value, MAX_LATENT))?;
        positive("attention scale", self.scale.into())?;
        ropes.get(self.rope).map_or(Ok(()), |rope| rope.validate(self.rope_dim))
    }
}

/// The widest latent, and the most heads; the largest known times ten.
const MAX_LATENT: usize = 1 << 14;

/// A gated short convolution (LFM2): `in_proj` makes B, C and x, `y = C * conv(B * x)`, and `out_proj`
/// follows. The convolution is causal and depthwise: a filter of its own for each channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortConvConfig {
    /// Taps of the filter: a position sees itself and `kernel - 1` before it.
    pub kernel: usize,
    /// Of the filter and of both projections.
    pub bias: Presence,
}

/// The part of a layer that looks at one position alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForwardConfig {
    Dense(DenseConfig),
    Experts(ExpertsConfig),
    Beside(BesideConfig),
}

impl FeedForwardConfig {
    /// What every position passes.
    pub fn dense(&self) -> Option<&DenseConfig> {
        match self {
            FeedForwardConfig::Dense(dense) | FeedForwardConfig::Beside(BesideConfig { dense, .. }) => {
                Some(dense)
            }
            FeedForwardConfig::Experts(_) => None,
        }
    }

    pub fn experts(&self) -> Option<&ExpertsConfig> {
        match self {
            FeedForwardConfig::Experts(experts) | FeedForwardConfig::Beside(BesideConfig { experts, .. }) => {
                Some(experts)
            }
            FeedForwardConfig::Dense(_) => None,
        }
    }
}

/// A dense feed-forward and a mixture of experts, each between norms of its own, whose outputs are added
/// (Gemma 4 26B). The router reads the residual stream, with a norm of its own too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BesideConfig {
    pub dense: DenseConfig,
    pub experts: ExpertsConfig,
}

/// A feed-forward that every position passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseConfig {
    /// Width inside it.
    pub intermediate: usize,
    pub activation: Activation,
    /// The parameters of xIELU are tensors of the layer.
    pub stored_xielu: bool,
    /// `down(activation(gate(x)) * up(x))`; without: `down(activation(up(x)))`.
    pub gate: bool,
    /// Of gate, up and down.
    pub bias: Presence,
    /// gate and up in one matrix.
    pub fused: Presence,
}

/// A mixture of experts: a router chooses some of many feed-forwards for each position, and their weighted
/// outputs are added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsConfig {
    pub count: usize,
    /// Width inside each expert.
    pub intermediate: usize,
    pub activation: Activation,
    /// As [`DenseConfig::gate`], of each expert.
    pub gate: bool,
    /// Of the gate, up and down of each expert.
    pub bias: Presence,
    pub router_bias: Presence,
    pub routing: Routing,
    /// How all experts of a layer lie in one tensor, where they do.
    pub stack: ExpertStack,
    /// A feed-forward that every position passes beside its experts; it reads what the router reads.
    pub shared: Option<SharedExpert>,
    /// A stored number for each expert that its output is multiplied by (Gemma 4).
    pub scales: Presence,
    /// Experts read and write rows of this width, which a projection before and one behind them make
    /// (Nemotron-H).
    pub latent: Option<usize>,
    /// Of these projections.
    pub latent_bias: Presence,
}

impl ExpertsConfig {
    /// Gated experts without biases, and nothing around them, whose routing is the softmax's `top_k`
    /// greatest.
    pub fn plain(count: usize, intermediate: usize, activation: Activation, top_k: usize) -> Self {
        ExpertsConfig {
            count,
            intermediate,
            activation,
            gate: true,
            bias: Presence::Never,
            router_bias: Presence::Never,
            routing: Routing::plain(top_k),
            stack: ExpertStack::Rows,
            shared: None,
            scales: Presence::Never,
            latent: None,
            latent_bias: Presence::Never,
        }
    }
}

/// How the experts of a layer lie in one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertStack {
    /// `[experts, out, in]` as single matrices have it; where gate and up are one tensor, the rows of the
    /// gate come first.
    Rows,
    /// `[experts, in, out]`, and gate and up are the even and odd columns of one tensor; in MXFP4, whose
    /// blocks run along `in`, `[experts, out, in]` with even and odd rows (gpt-oss).
    Interleaved,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedExpert {
    pub dense: DenseConfig,
    /// Its output is multiplied by the sigmoid of one number that a projection makes of its input.
    pub gate: Presence,
}

/// How a router's logits become experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a position.
    pub top_k: usize,
    /// Logits become `cap * tanh(logits / cap)` first (Laguna).
    pub soft_cap: Option<f32>,
    pub score: Score,
    /// A stored number for each expert is added to its score for the choice, and to nothing else.
    pub correction: Presence,
    /// Only experts of the best groups are chosen.
    pub groups: Option<ExpertGroups>,
    /// What the weights of the chosen are divided by.
    pub normalize: Option<Denominator>,
    /// What the weights are multiplied by in the end.
    pub scale: f32,
}

impl Routing {
    /// The weights are those of the softmax over all experts.
    pub fn plain(top_k: usize) -> Self {
        Routing {
            top_k,
            soft_cap: None,
            score: Score::Softmax,
            correction: Presence::Never,
            groups: None,
            normalize: None,
            scale: 1.0,
        }
    }
}

/// What a router's logits become. The experts with the greatest scores are chosen, and weighted by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Over all experts.
    Softmax,
    /// Of each expert by itself.
    Sigmoid,
    /// The logits themselves; the weights are their softmax over the chosen (gpt-oss, Granite).
    Logit,
}

/// Experts in groups of equally many, one after the other: those of the best groups may be chosen. A group is
/// as good as the sum of its two best scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    pub count: usize,
    pub kept: usize,
}

/// What weights are divided by: `max(sum + plus, at_least)` of those of the chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Denominator {
    pub plus: f32,
    pub at_least: f32,
}

impl Denominator {
    /// Their sum and nothing else.
    pub const SUM: Denominator = Denominator { plus: 0.0, at_least: 0.0 };
}

impl LayerConfig {
    /// Its attention, if it has some.
    pub fn attention(&self) -> Option<&AttentionConfig> {
        self.mixer.as_ref().and_then(MixerConfig::attention)
    }

    /// Refuses numbers that cannot be a layer, naming the field as `config.json` and as GGUF has it.
    pub(super) fn validate(&self, ropes: &[Rope]) -> Result<()> {
        if let Some(per_layer) = &self.per_layer {
            within(
                "width of per-layer embeddings (hidden_size_per_layer_input, embedding_length_per_layer_input)",
                per_layer.width,
                MAX_WIDTH,
            )?;
        }
        match &self.mixer {
            None => {}
            Some(MixerConfig::Attention(attention)) => attention.validate(ropes)?,
            Some(MixerConfig::Latent(latent)) => latent.validate(ropes)?,
            Some(MixerConfig::ShortConv(conv)) => within(
                "short convolution's number of taps (conv_L_cache, shortconv.l_cache)",
                conv.kernel,
                MAX_TAPS,
            )?,
            Some(MixerConfig::DeltaNet(delta_net)) => delta_net.validate()?,
            Some(MixerConfig::Mamba2(mamba)) => mamba.validate()?,
            Some(MixerConfig::AttentionAndMamba2(attention, mamba)) => {
                attention.validate(ropes)?;
                mamba.validate()?;
            }
        }
        let ffn = self.ffn.as_ref();
        if let Some(dense) = ffn.and_then(FeedForwardConfig::dense) {
            within("MLP size (intermediate_size, feed_forward_length)", dense.intermediate, MAX_WIDTH)?;
        }
        ffn.and_then(FeedForwardConfig::experts).map_or(Ok(()), ExpertsConfig::validate)?;
        positive("residual multiplier (residual_multiplier, residual_scale)", self.residual_scale.into())
    }
}

impl AttentionConfig {
    /// Refuses keys and values that are not there: `number` is this layer's among `layers`.
    pub(super) fn validate_shared(&self, number: usize, layers: &[LayerConfig]) -> Result<()> {
        let Some(source) = self.shared_kv else { return Ok(()) };
        let theirs = layers[..number].get(source).and_then(LayerConfig::attention);
        let alike = |theirs: &AttentionConfig| {
            theirs.shared_kv.is_none()
                && (theirs.kv_heads, theirs.head_dim) == (self.kv_heads, self.head_dim)
                && theirs.window == self.window
        };
        match theirs.is_some_and(alike) {
            true => Ok(()),
            false => Err(Error::model_file(format!(
                "layer {number} cannot use the keys and values of layer {source} (num_kv_shared_layers, \
                 attention.shared_kv_layers)"
            ))),
        }
    }

    fn validate(&self, ropes: &[Rope]) -> Result<()> {
        let sizes = [
            ("number of attention heads (num_attention_heads, head_count)", self.heads, MAX_WIDTH),
            ("number of key/value heads (num_key_value_heads, head_count_kv)", self.kv_heads, MAX_WIDTH),
            ("head size (head_dim, key_length)", self.head_dim, 4096),
        ];
        sizes.into_iter().try_for_each(|(name, value, max)| within(name, value, max))?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::model_file(format!(
                "{} attention heads cannot share {} key/value heads (num_key_value_heads, head_count_kv) evenly",
                self.heads, self.kv_heads
            )));
        }
        if self.window == Some(0) {
            return Err(Error::model_file("the sliding window (sliding_window) is 0; it must be at least 1"));
        }
        positive("attention scale (query_pre_attn_scalar, attention.scale)", self.scale.into())?;
        if let Some(scale) = self.query_scale {
            positive(
                "length for the scale of queries (original_max_position_embeddings)",
                scale.original.into(),
            )?;
            if !(scale.beta.is_finite() && scale.beta >= 0.0) {
                return Err(Error::model_file(
                    "the scale of queries (llama_4_scaling_beta, attention.temperature_scale) must be 0 or more",
                ));
            }
        }
        if let Some(cap) = self.soft_cap {
            positive("attention soft-cap (attn_logit_softcapping)", cap.into())?;
        }
        self.rope.and_then(|rope| ropes.get(rope)).map_or(Ok(()), |rope| rope.validate(self.head_dim))
    }
}

impl ExpertsConfig {
    fn validate(&self) -> Result<()> {
        let sizes = [
            ("number of experts (num_experts, num_local_experts, expert_count)", self.count, MAX_EXPERTS),
            (
                "number of experts of a token (num_experts_per_tok, expert_used_count)",
                self.routing.top_k,
                self.count,
            ),
            (
                "width of an expert (moe_intermediate_size, intermediate_size, expert_feed_forward_length)",
                self.intermediate,
                MAX_WIDTH,
            ),
        ];
        sizes.into_iter().try_for_each(|(name, value, max)| within(name, value, max))?;
        if let Some(shared) = &self.shared {
            within(
                "width of the shared expert (shared_expert_intermediate_size, n_shared_experts, \
                 expert_shared_feed_forward_length)",
                shared.dense.intermediate,
                MAX_WIDTH,
            )?;
        }
        if let Some(latent) = self.latent {
            within("width of what experts read (moe_latent_size)", latent, MAX_WIDTH)?;
        }
        self.routing.validate(self.count)
    }
}

impl Routing {
    fn validate(&self, experts: usize) -> Result<()> {
        if let Some(ExpertGroups { count, kept }) = self.groups {
            within("number of groups of experts (n_group, expert_group_count)", count, experts)?;
            within("number of groups kept (topk_group, expert_group_used_count)", kept, count)?;
            let size = experts / count;
            if !experts.is_multiple_of(count) || size < 2 || kept * size < self.top_k {
                return Err(Error::model_file(format!(
                    "{experts} experts in {count} groups (n_group, expert_group_count), of which {kept} are kept \
                     (topk_group, expert_group_used_count), are not groups of two or more with the {} experts of a \
                     token",
                    self.top_k
                )));
            }
        }
        if let Some(cap) = self.soft_cap {
            positive("soft-cap of the router (moe_router_logit_softcapping)", cap.into())?;
        }
        positive(
            "scale of the experts' weights (routed_scaling_factor, expert_weights_scale)",
            self.scale.into(),
        )
    }
}

/// Experts of a layer; the most of a known model times ten.
const MAX_EXPERTS: usize = 1 << 13;

/// The longest filter of a short convolution; those of known models have up to seven taps.
pub(crate) const MAX_TAPS: usize = 64;

/// A size that is neither zero nor beyond any model that there is.
pub(super) fn within(name: &str, value: usize, max: usize) -> Result<()> {
    match (1..=max).contains(&value) {
        true => Ok(()),
        false => Err(Error::model_file(format!("the {name} is {value}; it must be in 1..={max}"))),
    }
}

pub(super) fn positive(name: &str, value: f64) -> Result<()> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(Error::model_file(format!("the {name} is {value}; it must be positive and finite"))),
    }
}

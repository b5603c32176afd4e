//! One forward pass for every family: the [`Config`] says which mixer and which feed-forward a layer has, and
//! what is scaled, capped, windowed and rotated.
//!
//! The pass takes the ragged batch ([`Step`]) and the paged cache, and returns the final hidden state of the
//! rows that were asked for. It names no device: [`Ops`] was chosen once, at construction. It holds no
//! conversation: whoever owns the cache owns the state.
//!
//! ```text
//!            sequential                               parallel (Phi-1.5, Phi-2)
//!   x -> [norm] -> mixer        -> [norm] -> + -> x      x -> norm -> mixer --------> + -> x
//!   x -> [norm] -> feed-forward -> [norm] -> + -> x            `----> feed-forward -'
//! ```

use super::feed_forward::FeedForward;
use super::mixer::{Mixer, MixerInput};
use super::per_layer::{PerLayer, PerLayerInputs};
use super::projection::{Deltas, Named, ProjectionId, Projector};
use crate::cache::storage::KvCache;
use crate::config::{Block, Config};
use crate::error::Result;
use crate::kernels::{CheckedStep, KvLayout, Linear, Matrix, Norm, Ops, Projection, RopeTable, Rows};
use crate::step::Step;
use crate::weights::names::Part;

/// The weights of a decoder-only language model, and its blueprint.
pub struct Decoder {
    pub(super) ops: Ops,
    pub(super) config: Config,
    /// Also the head, where there is no other.
    pub(super) embed: Linear,
    pub(super) per_layer: Option<PerLayerInputs>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: Norm,
    /// Of the embeddings.
    pub(super) embed_norm: Option<Norm>,
    /// `None`: the head is the embedding.
    pub(super) head: Option<Linear>,
    /// A base model saved without its head: it makes vectors, and no logits.
    pub(super) headless: bool,
    /// The frequencies and the cos/sin factor of each of the config's ropes.
    pub(super) frequencies: Vec<(Vec<f32>, f32)>,
    /// What the checkpoint holds beside the language model: "images (12 tensors)".
    pub(super) left_alone: Vec<String>,
    /// Matrices that were quantized at load.
    pub(super) quantized: usize,
}

pub(super) struct LayerWeights {
    pub before_mixer: Option<Norm>,
    pub mixer: Option<Mixer>,
    pub after_mixer: Option<Norm>,
    /// Absent in a parallel block, whose feed-forward reads what the mixer reads.
    pub before_ffn: Option<Norm>,
    pub ffn: Option<FeedForward>,
    pub after_ffn: Option<Norm>,
    pub residual_scale: f32,
    pub per_layer: Option<PerLayer>,
    pub output_scale: Option<f32>,
}

impl LayerWeights {
    fn projections(&self) -> Vec<Named<'_>> {
        let mixer = self.mixer.iter().flat_map(Mixer::projections);
        let ffn = self.ffn.iter().flat_map(FeedForward::projections);
        mixer.chain(ffn).chain(self.per_layer.iter().flat_map(PerLayer::projections)).collect()
    }

    /// Whether it keeps something of every row for later ones.
    fn keeps(&self) -> bool {
        self.mixer.as_ref().is_some_and(|mixer| mixer.paged().is_some() || mixer.state_len().is_some())
    }
}

/// Rows of a step.
pub(super) struct Queries<'a> {
    /// These rows alone, their numbers in the whole step unless they are all, and their rotations.
    pub step: &'a CheckedStep<'a>,
    pub rows: Option<&'a [u32]>,
    pub tables: Vec<RopeTable>,
}

/// The rows of a layer.
struct LayerRows<'a> {
    /// Those that it is given.
    all: &'a Queries<'a>,
    /// Those whose output is wanted.
    queries: &'a Queries<'a>,
    /// What these have of per-layer embeddings.
    inputs: Option<&'a Rows>,
}

/// One forward pass over a step: what its layers share.
pub(crate) struct Pass<'a> {
    ops: &'a Ops,
    cache: &'a KvCache,
    deltas: Option<&'a dyn Deltas>,
    step: CheckedStep<'a>,
    tables: Vec<RopeTable>,
    /// Those whose output is wanted in the end.
    rows: &'a [u32],
    /// The same as a step of their own, with its rotations, if they are not all.
    some: Option<(CheckedStep<'static>, Vec<RopeTable>)>,
    /// The last layer that keeps something: from there on only these rows are computed.
    last: usize,
}

/// What a mixer or a feed-forward adds to the residual stream: `rows`, once they have passed `projection`.
/// The two are apart because a product can add its result where it belongs.
pub(super) struct Branch<'a> {
    pub rows: Rows,
    pub projection: Option<Named<'a>>,
}

impl Decoder {
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Whether hidden states can become logits; a base model saved without its head makes vectors alone.
    pub fn has_head(&self) -> bool {
        !self.headless
    }

    /// What the checkpoint holds beside the language model, and was not loaded.
    pub fn left_alone(&self) -> &[String] {
        &self.left_alone
    }

    /// How many matrices were quantized at load.
    pub fn quantized(&self) -> usize {
        self.quantized
    }

    /// The weights of all projections.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter();
        let layers = layers.flat_map(|layer| layer.projections());
        let layers = layers.chain(self.per_layer.iter().flat_map(PerLayerInputs::projections));
        let layers = layers.map(|(_, linear)| linear);
        std::iter::once(&self.embed).chain(layers).chain(&self.head).map(|linear| &linear.weight)
    }

    /// The projections that adapters can change, the head among them.
    pub fn adaptable(&self) -> impl Iterator<Item = (ProjectionId, &Linear)> {
        let layers = self.layers.iter().enumerate().flat_map(|(layer, weights)| {
            let named = weights.projections().into_iter().filter(|(part, _)| takes_terms(*part));
            named.map(move |(part, linear)| (ProjectionId { layer, part }, linear))
        });
        layers.chain(std::iter::once((ProjectionId::HEAD, self.head_linear())))
    }

    /// What in this model no gradient passes yet, if something is.
    pub(crate) fn untrainable(&self) -> Option<&'static str> {
        if !self.config.causal {
            return Some("attention in both directions");
        }
        if self.per_layer.is_some() {
            return Some("embeddings of each layer");
        }
        if self.headless {
            return Some("a model without a head");
        }
        let of_layer = |layer: &LayerWeights| {
            let mixer = layer.mixer.as_ref().and_then(Mixer::untrainable);
            mixer.or_else(|| layer.ffn.as_ref().and_then(FeedForward::untrainable))
        };
        self.layers.iter().find_map(of_layer)
    }

    /// The embedding as a matrix `[vocab, hidden]`.
    pub fn embedding_matrix(&self) -> &Matrix {
        &self.embed.weight
    }

    pub(crate) fn head_linear(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.head.is_none() && !self.headless
    }

    /// Bytes of the weights that stay in the mapped file.
    pub fn mapped_bytes(&self) -> usize {
        self.per_layer.as_ref().map_or(0, PerLayerInputs::mapped_bytes)
    }

    /// An empty cache of `pages` pages for this model, with `slots` slots if it has recurrent state.
    pub fn new_cache(&self, pages: usize, slots: usize) -> Result<KvCache> {
        self.ops.kv_cache(&self.kv_layout(), pages)?.with_slots(slots, self.ops.device())
    }

    /// How its layers share pages. A bidirectional text is computed in one step, and every row sees it, so
    /// its windows give nothing back.
    pub fn kv_layout(&self) -> KvLayout {
        let paged = self.layers.iter().filter_map(|layer| layer.mixer.as_ref()?.paged());
        let layers = paged.map(|(shape, window)| (shape, window.filter(|_| self.config.causal)));
        let states = self.layers.iter().filter_map(|layer| layer.mixer.as_ref()?.state_len());
        KvLayout::new(&layers.collect::<Vec<_>>()).with_states(states.collect())
    }

    /// Bytes of one page of the cache.
    pub fn page_bytes(&self) -> usize {
        self.kv_layout().bytes(1, self.ops.kv_format()).unwrap_or(usize::MAX)
    }

    /// Computes the step, writing its keys and values into the cache; returns the hidden state after the last
    /// norm of `rows` (ascending), `[rows.len(), hidden]`.
    pub fn forward(&self, step: &Step, cache: &KvCache, rows: &[u32]) -> Result<Rows> {
        self.forward_with(step, cache, rows, None)
    }

    /// The same, with something added to the outputs of projections.
    pub fn forward_with(
        &self,
        step: &Step,
        cache: &KvCache,
        rows: &[u32],
        deltas: Option<&dyn Deltas>,
    ) -> Result<Rows> {
        let ops = &self.ops;
        let pass = self.pass(ops, step, cache, rows, deltas)?;
        let mut x = self.embedded(ops, &step.tokens, deltas)?;
        let mut inputs = match &self.per_layer {
            Some(per_layer) => Some(per_layer.forward(ops, &step.tokens, &x)?),
            None => None,
        };
        for layer in 0..self.layers.len() {
            if let (true, Some(_), Some(of_all)) = (layer == pass.last, &pass.some, &inputs) {
                inputs = Some(ops.select_rows(of_all, rows)?);
            }
            x = self.layer(&pass, layer, x, inputs.as_ref())?;
        }
        self.last_norm(ops, &x)
    }

    /// What the layers of one forward pass share, over any `Ops` that read this decoder's matrices: a pass
    /// goes layer by layer where somebody keeps what is between them.
    pub(crate) fn pass<'a>(
        &self,
        ops: &'a Ops,
        step: &'a Step,
        cache: &'a KvCache,
        rows: &'a [u32],
        deltas: Option<&'a dyn Deltas>,
    ) -> Result<Pass<'a>> {
        let step = ops.checked_step(step, cache)?;
        let tables = self.tables(ops, &step)?;
        // Of the last layer that keeps something, the other rows are wanted for their keys and values alone,
        // and behind it for nothing.
        let some = match rows.len() < step.rows() {
            true => Some(step.only(rows)),
            false => None,
        };
        let some = match some {
            Some(step) => {
                let tables = self.tables(ops, &step)?;
                Some((step, tables))
            }
            None => None,
        };
        let last = self.layers.iter().rposition(LayerWeights::keeps).unwrap_or(0);
        Ok(Pass { ops, cache, deltas, step, tables, rows, some, last })
    }

    /// The rows that layer 0 is given, `[tokens, hidden]`.
    pub(crate) fn embedded(&self, ops: &Ops, tokens: &[u32], deltas: Option<&dyn Deltas>) -> Result<Rows> {
        let mut x = ops.embed(&self.embed.weight, tokens, self.config.embed_scale)?; // [rows, hidden]
        if let Some(deltas) = deltas {
            x = deltas.embedded(ops, tokens, x, self.config.embed_scale.unwrap_or(1.0))?;
        }
        match &self.embed_norm {
            Some(norm) => ops.norm(norm, &x),
            None => Ok(x),
        }
    }

    /// One layer of a pass. `inputs`: what its rows have of per-layer embeddings.
    pub(crate) fn layer(
        &self,
        pass: &Pass<'_>,
        index: usize,
        x: Rows,
        inputs: Option<&Rows>,
    ) -> Result<Rows> {
        let all = Queries { step: &pass.step, rows: None, tables: pass.tables.clone() };
        let some = pass.some.as_ref();
        let some = some.map(|(step, tables)| Queries { step, rows: Some(pass.rows), tables: tables.clone() });
        let (rows, queries) = match &some {
            Some(some) if index == pass.last => (&all, some),
            Some(some) if index > pass.last => (some, some),
            _ => (&all, &all),
        };
        let project = Projector { ops: pass.ops, layer: index, deltas: pass.deltas };
        let rows = LayerRows { all: rows, queries, inputs };
        self.block(&self.layers[index], x, &project, rows, pass.cache)
    }

    /// The norm behind the last layer.
    pub(crate) fn last_norm(&self, ops: &Ops, x: &Rows) -> Result<Rows> {
        ops.norm(&self.final_norm, x)
    }

    /// The rotations of each of the config's ropes.
    fn tables(&self, ops: &Ops, step: &Step) -> Result<Vec<RopeTable>> {
        let table =
            |(frequencies, scale): &(Vec<f32>, f32)| ops.rope_table(frequencies, *scale, &step.positions);
        self.frequencies.iter().map(table).collect()
    }

    /// Hidden states `[rows, hidden]` -> logits `[rows, vocab]`.
    pub fn head(&self, hidden: &Rows) -> Result<Rows> {
        self.head_with(hidden, None)
    }

    /// The same, with what adapters change; also given: which rows of the step these are.
    pub fn head_with(&self, hidden: &Rows, deltas: Option<(&dyn Deltas, &[u32])>) -> Result<Rows> {
        self.head_over(&self.ops, hidden, deltas)
    }

    /// The same, over any `Ops` that read this decoder's matrices.
    pub(crate) fn head_over(
        &self,
        ops: &Ops,
        hidden: &Rows,
        deltas: Option<(&dyn Deltas, &[u32])>,
    ) -> Result<Rows> {
        let scaled = match self.config.logit_scale {
            1.0 => None,
            scale => Some(ops.scale_rows(hidden, &vec![scale; hidden.dims().0])?),
        };
        let (linear, hidden) = (self.head_linear(), scaled.as_ref().unwrap_or(hidden));
        let logits = match deltas {
            None => ops.linear(linear, hidden)?,
            Some((deltas, rows)) => {
                let terms = deltas.terms(ProjectionId::HEAD, Some(rows));
                let logits = ops.linear(Projection { linear, terms: &terms }, hidden)?;
                deltas.predicted(ops, rows, hidden, logits)?
            }
        };
        match self.config.logit_cap {
            Some(cap) => ops.soft_cap(logits, cap),
            None => Ok(logits),
        }
    }

    /// One layer: `x` of all its rows becomes that of the rows with queries.
    fn block(
        &self,
        layer: &LayerWeights,
        x: Rows,
        project: &Projector<'_>,
        LayerRows { all, queries, inputs }: LayerRows<'_>,
        cache: &KvCache,
    ) -> Result<Rows> {
        let ops = project.ops;
        let normed = layer.before_mixer.as_ref().map(|norm| ops.norm(norm, &x)).transpose()?;
        let input = normed.as_ref().unwrap_or(&x);
        let wanted = queries.rows.filter(|_| all.rows.is_none());
        let select = |x: &Rows| wanted.map(|rows| ops.select_rows(x, rows)).transpose();
        let some = select(input)?;
        let mixed = match &layer.mixer {
            Some(mixer) => {
                let causal = self.config.causal;
                let input = MixerInput { x: input, all, some: some.as_ref(), queries, causal, cache };
                Some(mixer.forward(project, &input)?)
            }
            None => None,
        };
        let mut x = select(&x)?.unwrap_or(x);
        let join = Join { project, scale: layer.residual_scale, rows: queries.rows };
        if let Some(mixed) = mixed {
            x = join.add(mixed, layer.after_mixer.as_ref(), x)?;
        }
        if let Some(ffn) = &layer.ffn {
            let normed = match (&layer.before_ffn, self.config.block) {
                (Some(norm), _) => Some(ops.norm(norm, &x)?),
                (None, Block::Parallel) => some.or(normed),
                (None, Block::Sequential) => None,
            };
            let inner = ffn.forward(project, normed.as_ref().unwrap_or(&x), &x, queries.rows)?;
            x = join.add(inner, layer.after_ffn.as_ref(), x)?;
        }
        if let (Some(per_layer), Some(inputs)) = (&layer.per_layer, inputs) {
            x = per_layer.forward(ops, x, inputs)?;
        }
        match layer.output_scale {
            Some(scale) => ops.scale_rows(&x, &vec![scale; x.dims().0]),
            None => Ok(x),
        }
    }
}

/// Whether the rows of a projection pass a [`Projector`], so that adapters can change it.
fn takes_terms(part: Part) -> bool {
    use Part::{LatentKeys, LatentValues, PerLayerGate, PerLayerModel, PerLayerProjection};
    !matches!(part, LatentKeys | LatentValues | PerLayerGate | PerLayerModel | PerLayerProjection)
}

/// How outputs of a layer join the residual stream.
struct Join<'a> {
    project: &'a Projector<'a>,
    scale: f32,
    /// Which rows of the step these are, if not all.
    rows: Option<&'a [u32]>,
}

impl Join<'_> {
    /// `to + scale * norm(projection(rows))`.
    fn add(&self, branch: Branch<'_>, norm: Option<&Norm>, to: Rows) -> Result<Rows> {
        let (ops, scale) = (self.project.ops, self.scale);
        let Branch { rows, projection } = branch;
        if let (Some(projection), None, 1.0) = (projection, norm, scale) {
            return self.project.linear_add(projection, &rows, to, self.rows);
        }
        let rows = match projection {
            Some(projection) => self.project.linear(projection, &rows, self.rows)?,
            None => rows,
        };
        match norm {
            Some(norm) if scale == 1.0 => ops.norm_add(norm, &rows, to),
            Some(norm) => ops.add(&ops.norm(norm, &rows)?, scale, to),
            None => ops.add(&rows, scale, to),
        }
    }
}

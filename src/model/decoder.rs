//! One forward pass for every family: the [`Config`] says what is scaled, capped, windowed and turned, the
//! tensors say which projections, biases and norms there are.
//!
//! The pass takes the ragged batch ([`Step`]) and the paged cache, and returns the final hidden state of the
//! rows that were asked for. It names no device: [`Ops`] was chosen once, at construction. It holds no
//! conversation: whoever owns the cache owns the state.
//!
//! ```text
//!            sequential                          parallel (Phi-1.5, Phi-2)
//!   x -> norm -> attention -> [norm] -> + -> x      x -> norm -> attention -> + -> x
//!   x -> norm -> MLP       -> [norm] -> + -> x            `----> MLP -------'
//! ```

use crate::cache::storage::KvCache;
use crate::config::Config;
use crate::error::Result;
use crate::kernels::{Attention, CheckedStep, KvLayout, KvShape, Linear, Matrix, Norm, Ops, RopeTable, Rows};
use crate::step::Step;

/// The weights of a decoder-only language model, and its blueprint.
pub struct Decoder {
    pub(super) ops: Ops,
    pub(super) config: Config,
    /// Also the head, where there is no other.
    pub(super) embed: Linear,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: Norm,
    /// `None`: the head is the embedding.
    pub(super) head: Option<Linear>,
    /// A base model saved without its head: it makes vectors, and no logits.
    pub(super) headless: bool,
    /// The frequencies and the cos/sin factor of each of the config's ropes.
    pub(super) frequencies: Vec<(Vec<f32>, f32)>,
    /// What the checkpoint holds beside the language model: "images (12 tensors)".
    pub(super) left_alone: Vec<String>,
}

pub(super) struct LayerWeights {
    pub attn_norm: Norm,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub attn_post_norm: Option<Norm>,
    /// Absent in a parallel block, whose MLP reads what the attention reads.
    pub mlp_norm: Option<Norm>,
    /// Absent in a plain (ungated) MLP.
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub mlp_post_norm: Option<Norm>,
}

/// The rows that queries are made for.
struct Queries<'a> {
    /// These rows alone, their number in the whole step unless they are all, and their rotations.
    step: &'a CheckedStep<'a>,
    rows: Option<&'a [u32]>,
    tables: Vec<RopeTable>,
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

    /// The weights of all projections.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(|layer| {
            [Some(&layer.q), Some(&layer.k), Some(&layer.v), Some(&layer.o), layer.gate.as_ref()]
                .into_iter()
                .chain([Some(&layer.up), Some(&layer.down)])
                .flatten()
        });
        std::iter::once(&self.embed).chain(layers).chain(&self.head).map(|linear| &linear.weight)
    }

    /// An empty cache of `pages` pages for this model.
    pub fn new_cache(&self, pages: usize) -> Result<KvCache> {
        self.ops.kv_cache(&self.kv_layout(), pages)
    }

    /// How its layers share pages. A bidirectional text is computed in one step, and every row sees it, so its
    /// windows give nothing back.
    pub fn kv_layout(&self) -> KvLayout {
        let config = &self.config;
        let shape = KvShape { kv_heads: config.kv_heads, head_dim: config.head_dim };
        let layer = |layer: &crate::config::Layer| (shape, layer.window.filter(|_| config.causal));
        KvLayout::new(&config.layers.iter().map(layer).collect::<Vec<_>>())
    }

    /// Bytes of one page of the cache.
    pub fn page_bytes(&self) -> usize {
        self.kv_layout().bytes(1, self.ops.kv_format()).unwrap_or(usize::MAX)
    }

    /// Computes the step, writing its keys and values into the cache; returns the hidden state after the last
    /// norm of `rows` (ascending), `[rows.len(), hidden]`.
    pub fn forward(&self, step: &Step, cache: &KvCache, rows: &[u32]) -> Result<Rows> {
        let ops = &self.ops;
        let mut x = ops.embed(&self.embed.weight, &step.tokens, self.config.embed_scale)?; // [rows, hidden]
        let step = &ops.checked_step(step, cache)?;
        let all = Queries { step, rows: None, tables: self.tables(step)? };
        // Of the last layer, the other rows are wanted for their keys and values alone.
        let some = match rows.len() < step.rows() {
            true => Some(step.only(rows)),
            false => None,
        };
        let some = match &some {
            Some(step) => Some(Queries { step, rows: Some(rows), tables: self.tables(step)? }),
            None => None,
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let queries = some.as_ref().filter(|_| last).unwrap_or(&all);
            x = self.block(index, layer, x, &all, queries, cache)?;
        }
        ops.norm(&self.final_norm, &x)
    }

    /// The rotations of each of the config's ropes.
    fn tables(&self, step: &Step) -> Result<Vec<RopeTable>> {
        let table = |(frequencies, scale): &(Vec<f32>, f32)| {
            self.ops.rope_table(frequencies, *scale, &step.positions)
        };
        self.frequencies.iter().map(table).collect()
    }

    /// Hidden states `[rows, hidden]` -> logits `[rows, vocab]`.
    pub fn head(&self, hidden: &Rows) -> Result<Rows> {
        let logits = self.ops.linear(self.head.as_ref().unwrap_or(&self.embed), hidden)?;
        match self.config.logit_cap {
            Some(cap) => self.ops.soft_cap(logits, cap),
            None => Ok(logits),
        }
    }

    /// One layer: `x` of `all` rows becomes that of the rows with `queries`.
    fn block(
        &self,
        index: usize,
        layer: &LayerWeights,
        x: Rows,
        all: &Queries<'_>,
        queries: &Queries<'_>,
        cache: &KvCache,
    ) -> Result<Rows> {
        let ops = &self.ops;
        let normed = ops.norm(&layer.attn_norm, &x)?;
        let (x, some) = match queries.rows {
            Some(rows) => (ops.select_rows(&x, rows)?, Some(ops.select_rows(&normed, rows)?)),
            None => (x, None),
        };
        let attended = self.attention(index, layer, (&normed, all), (some.as_ref(), queries), cache)?;
        let x = self.join(&layer.o, layer.attn_post_norm.as_ref(), &attended, x)?;
        let normed = match &layer.mlp_norm {
            Some(norm) => ops.norm(norm, &x)?,
            None => some.unwrap_or(normed),
        };
        let inner = self.mlp(layer, &normed)?; // [rows, intermediate]
        self.join(&layer.down, layer.mlp_post_norm.as_ref(), &inner, x)
    }

    /// Back into the residual stream: `to + norm(projection(x))`.
    fn join(&self, projection: &Linear, norm: Option<&Norm>, x: &Rows, to: Rows) -> Result<Rows> {
        match norm {
            Some(norm) => self.ops.norm_add(norm, &self.ops.linear(projection, x)?, to),
            None => self.ops.linear_add(projection, x, to),
        }
    }

    /// What the queries of each row gather, `[rows, heads * head_dim]`. `all` rows have keys and values; `some` have
    /// queries, or all of them.
    fn attention(
        &self,
        index: usize,
        layer: &LayerWeights,
        (x, all): (&Rows, &Queries<'_>),
        (some, queries): (Option<&Rows>, &Queries<'_>),
        cache: &KvCache,
    ) -> Result<Rows> {
        let (ops, config) = (&self.ops, &self.config);
        let [q, k, v] = match some {
            None => ops.linears([&layer.q, &layer.k, &layer.v], x)?,
            Some(some) => {
                let [k, v] = ops.linears([&layer.k, &layer.v], x)?;
                [ops.linear(&layer.q, some)?, k, v]
            }
        };
        let rope = config.layers[index].rope;
        let q_table = rope.map(|rope| &queries.tables[rope]);
        let q = ops.heads(q, config.head_dim, layer.q_norm.as_ref(), q_table)?;
        let k_table = rope.map(|rope| &all.tables[rope]);
        let k = ops.heads(k, config.head_dim, layer.k_norm.as_ref(), k_table)?;
        ops.kv_write(cache, index, &k, &v, all.step)?;
        let shape = Attention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            causal: config.causal,
            window: config.layers[index].window,
            soft_cap: config.attention_cap,
        };
        ops.attention(&q, cache, index, queries.step, &shape)
    }

    fn mlp(&self, layer: &LayerWeights, x: &Rows) -> Result<Rows> {
        match &layer.gate {
            Some(gate) => self.ops.gated(gate, &layer.up, x, self.config.activation),
            None => self.ops.activated(&layer.up, x, self.config.activation),
        }
    }
}

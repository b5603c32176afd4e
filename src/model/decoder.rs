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

use candle_core::Tensor;

use super::linear::Linear;
use super::norm::Norm;
use crate::cache::storage::KvCache;
use crate::config::{Block, Config};
use crate::error::Result;
use crate::kernels::{Attention, KvShape, Matrix, Ops, RopeTable};
use crate::step::Step;

/// The weights of a decoder-only language model, and its blueprint.
pub struct Decoder {
    pub(super) ops: Ops,
    pub(super) config: Config,
    pub(super) embed: Matrix,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: Norm,
    /// `None`: the head is the embedding.
    pub(super) head: Option<Linear>,
    /// The frequencies and the cos/sin factor of each of the config's ropes.
    pub(super) frequencies: Vec<(Vec<f32>, f32)>,
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
    /// Absent in a parallel block.
    pub mlp_norm: Option<Norm>,
    /// Absent in a plain (ungated) MLP.
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub mlp_post_norm: Option<Norm>,
}

impl Decoder {
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// The weights of all projections.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(|layer| {
            [Some(&layer.q), Some(&layer.k), Some(&layer.v), Some(&layer.o), layer.gate.as_ref()]
                .into_iter()
                .chain([Some(&layer.up), Some(&layer.down)])
                .flatten()
        });
        let linears = layers.chain(&self.head).map(|linear| &linear.weight);
        std::iter::once(&self.embed).chain(linears)
    }

    /// An empty cache of `pages` pages for this model.
    pub fn new_cache(&self, pages: usize) -> Result<KvCache> {
        let shape = KvShape { kv_heads: self.config.kv_heads, head_dim: self.config.head_dim };
        self.ops.kv_cache(&vec![shape; self.config.layers.len()], pages)
    }

    /// Bytes of keys and values that one position takes in the cache.
    pub fn kv_bytes_per_position(&self) -> usize {
        2 * 4 * self.config.layers.len() * self.config.kv_heads * self.config.head_dim
    }

    /// Computes the step, writing its keys and values into the cache; returns the hidden state after the last
    /// norm of `rows` (ascending), `[rows.len(), hidden]`.
    pub fn forward(&self, step: &Step, cache: &KvCache, rows: &[u32]) -> Result<Tensor> {
        let ops = &self.ops;
        let mut x = ops.embed(&self.embed, &step.tokens)?; // [rows, hidden]
        if let Some(scale) = self.config.embed_scale {
            x = ops.scale(&x, scale)?;
        }
        let tables: Vec<RopeTable> = self
            .frequencies
            .iter()
            .map(|(frequencies, scale)| ops.rope_table(frequencies, *scale, &step.positions))
            .collect::<Result<_>>()?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.block(index, layer, &x, step, cache, &tables)?;
        }
        let x = if rows.len() == step.rows() { x } else { ops.select_rows(&x, rows)? };
        self.final_norm.forward(ops, &x)
    }

    /// Hidden states `[rows, hidden]` -> logits `[rows, vocab]`.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = match &self.head {
            Some(head) => head.forward(&self.ops, hidden)?,
            None => self.ops.linear(&self.embed, hidden, None)?,
        };
        match self.config.logit_cap {
            Some(cap) => self.ops.soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }

    fn block(
        &self,
        index: usize,
        layer: &LayerWeights,
        x: &Tensor,
        step: &Step,
        cache: &KvCache,
        tables: &[RopeTable],
    ) -> Result<Tensor> {
        let ops = &self.ops;
        let normed = layer.attn_norm.forward(ops, x)?;
        let attended = self.attention(index, layer, &normed, step, cache, tables)?;
        if self.config.block == Block::Parallel {
            let mlp = self.mlp(layer, &normed)?;
            return ops.add(&ops.add(x, &attended)?, &mlp);
        }
        let x = ops.add(x, &post_norm(ops, layer.attn_post_norm.as_ref(), attended)?)?;
        let mlp = match &layer.mlp_norm {
            Some(norm) => self.mlp(layer, &norm.forward(ops, &x)?)?,
            None => self.mlp(layer, &x)?,
        };
        ops.add(&x, &post_norm(ops, layer.mlp_post_norm.as_ref(), mlp)?)
    }

    fn attention(
        &self,
        index: usize,
        layer: &LayerWeights,
        x: &Tensor,
        step: &Step,
        cache: &KvCache,
        tables: &[RopeTable],
    ) -> Result<Tensor> {
        let (ops, config) = (&self.ops, &self.config);
        let mut q = layer.q.forward(ops, x)?; // [rows, heads * head_dim]
        let mut k = layer.k.forward(ops, x)?; // [rows, kv_heads * head_dim]
        let v = layer.v.forward(ops, x)?; // [rows, kv_heads * head_dim]
        if let Some(norm) = &layer.q_norm {
            q = norm.forward(ops, &q)?;
        }
        if let Some(norm) = &layer.k_norm {
            k = norm.forward(ops, &k)?;
        }
        if let Some(table) = config.layers[index].rope.map(|rope| &tables[rope]) {
            q = ops.rope(&q, config.head_dim, table)?;
            k = ops.rope(&k, config.head_dim, table)?;
        }
        ops.kv_write(cache, index, &k, &v, step)?;
        let shape = Attention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: config.layers[index].window,
            soft_cap: config.attention_cap,
        };
        let attended = ops.attention(&q, cache, index, step, &shape)?; // [rows, heads * head_dim]
        layer.o.forward(ops, &attended)
    }

    fn mlp(&self, layer: &LayerWeights, x: &Tensor) -> Result<Tensor> {
        let ops = &self.ops;
        let up = layer.up.forward(ops, x)?; // [rows, intermediate]
        let inner = match &layer.gate {
            Some(gate) => ops.gated(&gate.forward(ops, x)?, &up, self.config.activation)?,
            None => ops.activate(&up, self.config.activation)?,
        };
        layer.down.forward(ops, &inner)
    }
}

fn post_norm(ops: &Ops, norm: Option<&Norm>, x: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(ops, &x),
        None => Ok(x),
    }
}

//! Attention over the paged cache, with its projections.

use super::build::TensorLoader;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::Projector;
use crate::config::{AttentionConfig, NormScope};
use crate::error::Result;
use crate::kernels::{self, KvShape, Linear, Norm, Ops, RopeTable, Rows};
use crate::weights::names::Part;

pub(super) struct Attention {
    config: AttentionConfig,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    /// Its place among the layers of the cache.
    cache_layer: usize,
}

impl Attention {
    pub fn load(
        loader: &TensorLoader,
        layer: usize,
        c: &AttentionConfig,
        cache_layer: usize,
    ) -> Result<Attention> {
        let hidden = loader.config.hidden;
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let [q, k, v] = match loader.is_stored(c.fused, Part::Qkv, Some(layer), "weight") {
            true => {
                let pieces = [(wide, Some(c.heads)), (narrow, Some(c.kv_heads)), (narrow, None)];
                loader.split(Part::Qkv, layer, pieces, c.qkv_bias)?
            }
            false => [
                loader.heads(Part::Q, layer, [wide, hidden], c.qkv_bias, Some(c.heads))?,
                loader.heads(Part::K, layer, [narrow, hidden], c.qkv_bias, Some(c.kv_heads))?,
                loader.linear(Part::V, layer, [narrow, hidden], c.qkv_bias)?,
            ],
        };
        let norm = |part, width| {
            let stored = loader.is_stored(c.qk_norm, part, Some(layer), "weight");
            let width = match c.qk_norm_scope {
                NormScope::Head => c.head_dim,
                NormScope::AllHeads => width,
            };
            stored.then(|| loader.norm(part, Some(layer), width)).transpose()
        };
        Ok(Attention {
            config: *c,
            o: loader.linear(Part::O, layer, [hidden, wide], c.o_bias)?,
            q_norm: norm(Part::QNorm, wide)?,
            k_norm: norm(Part::KNorm, narrow)?,
            q,
            k,
            v,
            cache_layer,
        })
    }

    /// What the queries gather, `[rows, heads * head_dim]`, before the output projection. All rows leave keys
    /// and values in the cache.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        let (c, ops) = (&self.config, project.ops);
        let (q, k, v) = ((Part::Q, &self.q), (Part::K, &self.k), (Part::V, &self.v));
        let [q, k, v] = match input.some {
            None => project.linears([q, k, v], input.x, None)?,
            Some(some) => {
                let [k, v] = project.linears([k, v], input.x, None)?;
                [project.linear(q, some, input.queries.rows)?, k, v]
            }
        };
        let q = self.rotated(ops, q, self.q_norm.as_ref(), &input.queries.tables)?;
        let q = self.scaled(ops, q, &input.queries.step.positions)?;
        let k = self.rotated(ops, k, self.k_norm.as_ref(), &input.all.tables)?;
        ops.kv_write(input.cache, self.cache_layer, &k, &v, input.all.step)?;
        let shape = kernels::Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: c.scale,
            causal: input.causal,
            window: c.window,
            soft_cap: c.soft_cap,
        };
        let rows = ops.attention(&q, input.cache, self.cache_layer, input.queries.step, &shape)?;
        Ok(Branch { rows, projection: Some((Part::O, &self.o)) })
    }

    /// Queries or keys, normed and rotated.
    fn rotated(&self, ops: &Ops, x: Rows, norm: Option<&Norm>, tables: &[RopeTable]) -> Result<Rows> {
        let table = self.config.rope.map(|rope| &tables[rope]);
        if self.config.qk_norm_after_rope {
            let turned = ops.heads(x, self.config.head_dim, None, table)?;
            return match norm {
                Some(norm) => ops.norm(norm, &turned),
                None => Ok(turned),
            };
        }
        match (norm, self.config.qk_norm_scope) {
            (Some(norm), NormScope::AllHeads) => {
                ops.heads(ops.norm(norm, &x)?, self.config.head_dim, None, table)
            }
            (norm, _) => ops.heads(x, self.config.head_dim, norm, table),
        }
    }

    /// Queries times what their positions say.
    fn scaled(&self, ops: &Ops, q: Rows, positions: &[u32]) -> Result<Rows> {
        match self.config.query_scale {
            None => Ok(q),
            Some(scale) => {
                let factors: Vec<_> = positions.iter().map(|position| scale.at(*position)).collect();
                ops.scale_rows(&q, &factors)
            }
        }
    }

    pub fn kv_shape(&self) -> KvShape {
        KvShape { kv_heads: self.config.kv_heads, head_dim: self.config.head_dim }
    }

    pub fn window(&self) -> Option<usize> {
        self.config.window
    }

    pub fn projections(&self) -> Vec<&Linear> {
        vec![&self.q, &self.k, &self.v, &self.o]
    }
}

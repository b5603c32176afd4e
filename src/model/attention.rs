//! Attention over the paged cache, with its projections.

use super::build::TensorLoader;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::Projector;
use crate::config::{AttentionConfig, GateFunction, GateScope, GateSource, NormScope, OutputGate, Presence};
use crate::error::Result;
use crate::kernels::{self, KvShape, Linear, Norm, Ops, RopeTable, Rows, Vector};
use crate::weights::names::Part;

pub(super) struct Attention {
    config: AttentionConfig,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    /// A logit for each query head.
    sinks: Option<Vector>,
    gate: Option<(GateFunction, Linear)>,
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
        let mut gate = None;
        let [q, k, v] = match loader.is_stored(c.fused, Part::Qkv, Some(layer), "weight") {
            true => {
                let pieces = [(wide, Some(c.heads)), (narrow, Some(c.kv_heads)), (narrow, None)];
                loader.split(Part::Qkv, layer, pieces, c.qkv_bias)?
            }
            false => [
                match c.gate {
                    Some(OutputGate { function, source: GateSource::Query, .. }) => {
                        let [q, own] = query_and_gate(loader, layer, c)?;
                        gate = Some((function, own));
                        q
                    }
                    _ => loader.heads(Part::Q, layer, [wide, hidden], c.qkv_bias, Some(c.heads))?,
                },
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
        if let Some(OutputGate { function, scope, source: GateSource::Own }) = c.gate {
            let width = match scope {
                GateScope::Head => c.heads,
                GateScope::Element => wide,
            };
            gate = Some((function, loader.linear(Part::AttnGate, layer, [width, hidden], Presence::Never)?));
        }
        let sinks = loader.is_stored(c.sinks, Part::Sinks, Some(layer), "weight");
        let sinks = sinks.then(|| {
            let sinks = loader.tensor(Part::Sinks, Some(layer), &[c.heads])?;
            loader.ops.vector(&sinks, 0.0)
        });
        Ok(Attention {
            config: *c,
            sinks: sinks.transpose()?,
            gate,
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
            sinks: self.sinks.as_ref().map(Vector::values),
        };
        let mut rows = ops.attention(&q, input.cache, self.cache_layer, input.queries.step, &shape)?;
        if let Some((function, gate)) = &self.gate {
            let x = input.some.unwrap_or(input.x);
            rows = ops.output_gate(
                rows,
                project.linear((Part::AttnGate, gate), x, input.queries.rows)?,
                *function,
            )?;
        }
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
        let gate = self.gate.iter().map(|(_, gate)| gate);
        [&self.q, &self.k, &self.v, &self.o].into_iter().chain(gate).collect()
    }
}

/// The query's rows, and those of a gate between them: of each head first the query's.
fn query_and_gate(loader: &TensorLoader, layer: usize, c: &AttentionConfig) -> Result<[Linear; 2]> {
    let (at, rows) = (Some(layer), 2 * c.heads * c.head_dim);
    let weight = loader.tensor(Part::Q, at, &[rows, loader.config.hidden])?;
    let bias = loader.bias(c.qkv_bias, Part::Q, at, rows)?;
    let half = |second: usize| {
        let heads = (0..c.heads).map(|head| (2 * head + second) * c.head_dim);
        let rows: Vec<_> = heads.flat_map(|first| first..first + c.head_dim).collect();
        let bias = bias.as_ref().map(|bias| loader.select_rows(bias, &rows)).transpose()?;
        let heads = (second == 0).then_some(c.heads);
        loader.projection(Part::Q, loader.select_rows(&weight, &rows)?, bias, heads)
    };
    Ok([half(0)?, half(1)?])
}

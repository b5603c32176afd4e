//! Attention over the paged cache, with its projections.

use super::build::TensorLoader;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::{Named, Projector};
use crate::config::{AttentionConfig, GateFunction, GateScope, GateSource, NormScope, OutputGate, Presence};
use crate::error::{Error, Result};
use crate::kernels::{self, KvShape, Linear, Norm, Ops, RopeTable, Rows, Vector};
use crate::weights::names::Part;

pub(super) struct Attention {
    config: AttentionConfig,
    q: Linear,
    q_norm: Option<Norm>,
    /// `None`: it reads the keys and values of another layer.
    keys: Option<Keys>,
    o: Linear,
    /// A logit for each query head.
    sinks: Option<Vector>,
    gate: Option<(GateFunction, Linear)>,
    /// Its place among the layers of the cache, or that of the layer whose keys and values it reads.
    cache_layer: usize,
}

/// What makes keys and values.
struct Keys {
    k: Linear,
    k_norm: Option<Norm>,
    /// `None`: values are the keys as projected, with a norm of their own.
    v: Option<Linear>,
    v_norm: Option<Norm>,
}

impl Attention {
    pub fn load(
        loader: &TensorLoader,
        layer: usize,
        c: &AttentionConfig,
        cache_layer: usize,
    ) -> Result<Attention> {
        let (hidden, at) = (loader.config.hidden, Some(layer));
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut gate = None;
        let mut queries = || match c.gate {
            Some(OutputGate { function, source: GateSource::Query, .. }) => {
                let [q, own] = query_and_gate(loader, layer, c)?;
                gate = Some((function, own));
                Ok(q)
            }
            _ => loader.heads(Part::Q, layer, [wide, hidden], c.qkv_bias, Some(c.heads)),
        };
        let (q, keys) = match c.shared_kv {
            Some(_) => {
                pass_over_unused(loader, layer);
                (queries()?, None)
            }
            None if loader.is_stored(c.fused, Part::Qkv, at, "weight") => {
                let pieces = [(wide, Some(c.heads)), (narrow, Some(c.kv_heads)), (narrow, None)];
                let [q, k, v] = loader.split(Part::Qkv, layer, pieces, c.qkv_bias)?;
                (q, Some((k, Some(v))))
            }
            None => {
                let q = queries()?;
                let k = loader.heads(Part::K, layer, [narrow, hidden], c.qkv_bias, Some(c.kv_heads))?;
                let v = loader.is_stored(c.value_projection, Part::V, at, "weight");
                let v = v.then(|| loader.linear(Part::V, layer, [narrow, hidden], c.qkv_bias)).transpose()?;
                (q, Some((k, v)))
            }
        };
        let norm = |part, width| match (loader.is_stored(c.qk_norm, part, at, "weight"), c.qk_norm_scope) {
            (true, NormScope::Head) => loader.norm(part, at, c.head_dim).map(Some),
            (true, NormScope::AllHeads) => loader.norm(part, at, width).map(Some),
            (true, NormScope::EachHead) => {
                loader.norm_of_heads(part, layer, width / c.head_dim, c.head_dim).map(Some)
            }
            (false, _) if c.plain_qk_norm => loader.plain_norm(c.head_dim).map(Some),
            (false, _) => Ok(None),
        };
        let make = |(k, v)| -> Result<Keys> {
            let v_norm = c.value_norm.then(|| loader.plain_norm(c.head_dim)).transpose()?;
            Ok(Keys { k, k_norm: norm(Part::KNorm, narrow)?, v, v_norm })
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
            keys: keys.map(make).transpose()?,
            sinks: sinks.transpose()?,
            gate,
            o: loader.linear(Part::O, layer, [hidden, wide], c.o_bias)?,
            q_norm: norm(Part::QNorm, wide)?,
            q,
            cache_layer,
        })
    }

    /// What the queries gather, `[rows, heads * head_dim]`, before the output projection. All rows leave keys
    /// and values in the cache.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        let (c, ops) = (&self.config, project.ops);
        let q = match &self.keys {
            Some(keys) => self.keep(keys, project, input)?,
            None => project.linear((Part::Q, &self.q), input.some.unwrap_or(input.x), input.queries.rows)?,
        };
        let q = self.rotated(ops, q, self.q_norm.as_ref(), &input.queries.tables)?;
        let q = self.scaled(ops, q, &input.queries.step.positions)?;
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

    /// Leaves keys and values of all rows in the cache; returns the queries of those that are wanted.
    fn keep(&self, keys: &Keys, project: &Projector<'_>, input: &MixerInput) -> Result<Rows> {
        let ops = project.ops;
        let (q, k, rows) = ((Part::Q, &self.q), (Part::K, &keys.k), input.all.rows);
        let v = keys.v.as_ref().map(|v| (Part::V, v));
        let (q, k, v) = match (input.some, v) {
            (None, Some(v)) => {
                let [q, k, v] = project.linears([q, k, v], input.x, rows)?;
                (q, k, Some(v))
            }
            (None, None) => {
                let [q, k] = project.linears([q, k], input.x, rows)?;
                (q, k, None)
            }
            (Some(some), Some(v)) => {
                let [k, v] = project.linears([k, v], input.x, rows)?;
                (project.linear(q, some, input.queries.rows)?, k, Some(v))
            }
            (Some(some), None) => {
                let k = project.linear(k, input.x, rows)?;
                (project.linear(q, some, input.queries.rows)?, k, None)
            }
        };
        let v = match (v, &keys.v_norm) {
            (Some(v), norm) => ops.heads(v, self.config.head_dim, norm.as_ref(), None)?,
            (None, Some(norm)) => ops.norm(norm, &k)?,
            (None, None) => return Err(Error::internal("values are neither projected nor normed")),
        };
        let k = self.rotated(ops, k, keys.k_norm.as_ref(), &input.all.tables)?;
        ops.kv_write(input.cache, self.cache_layer, &k, &v, input.all.step)?;
        Ok(q)
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

    /// What it keeps of a position; nothing if it reads the keys and values of another layer.
    pub fn kv_shape(&self) -> Option<KvShape> {
        let (kv_heads, head_dim) = (self.config.kv_heads, self.config.head_dim);
        self.keys.as_ref().map(|_| KvShape { kv_heads, head_dim })
    }

    pub fn window(&self) -> Option<usize> {
        self.config.window
    }

    /// What no gradient passes yet, if something is.
    pub fn untrainable(&self) -> Option<&'static str> {
        let Attention { keys, sinks, gate, .. } = self;
        match (keys, sinks, gate) {
            (None, ..) => Some("keys and values of another layer"),
            (_, Some(_), _) => Some("attention sinks"),
            (_, _, Some(_)) => Some("a gate of attention"),
            _ => None,
        }
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        let keys = self.keys.iter().map(|keys| (Part::K, &keys.k));
        let values = self.keys.iter().filter_map(|keys| Some((Part::V, keys.v.as_ref()?)));
        let gate = self.gate.iter().map(|(_, gate)| (Part::AttnGate, gate));
        [(Part::Q, &self.q), (Part::O, &self.o)].into_iter().chain(keys).chain(values).chain(gate).collect()
    }
}

/// Older files hold keys and values of layers that use those of others.
fn pass_over_unused(loader: &TensorLoader, layer: usize) {
    for part in [Part::K, Part::V, Part::KNorm] {
        loader.weights.pass_over(&loader.name(part, Some(layer), "weight"));
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

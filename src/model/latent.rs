//! Latent attention (DeepSeek V2 and V3, GLM-4.7-Flash): keys and values of all heads are made of one narrow
//! latent of each position, and that is what the cache holds, beside a rotated part of the keys that all
//! heads share.
//!
//! A head's key is `W_k c`, so its score with a query is that of `W_k^T q` with the latent `c` itself; its
//! output is `W_v` times the latents mixed. So the heads attend to one key head, `[c | rotated part]`, whose
//! first part is the values, too; keys and values of the heads are never made. (arXiv 2405.04434, section
//! 2.1.2)

use super::build::TensorLoader;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::{Named, Projector};
use crate::config::LatentConfig;
use crate::config::Presence;
use crate::error::Result;
use crate::kernels::{self, KvShape, Linear, Norm, Ops, Rows};
use crate::weights::names::Part;
use crate::weights::{WeightTensor, WeightType};

pub(super) struct Latent {
    config: LatentConfig,
    q: Queries,
    /// `[rank + turned, hidden]`: the latent, and the part of the keys that turns.
    kv: Linear,
    norm: Norm,
    /// Of each head `[rank, still]` and `[value_dim, rank]`.
    keys: Vec<Linear>,
    values: Vec<Linear>,
    o: Linear,
    /// Its place among the layers of the cache.
    cache_layer: usize,
}

/// What makes queries.
enum Queries {
    Plain(Linear),
    /// Through a latent of their own.
    Narrow {
        a: Linear,
        norm: Norm,
        b: Linear,
    },
}

impl Latent {
    pub fn load(loader: &TensorLoader, layer: usize, c: &LatentConfig, cache_layer: usize) -> Result<Latent> {
        let (hidden, wide) = (loader.config.hidden, c.heads * (c.nope_dim + c.rope_dim));
        let norm = |part, width| -> Result<Norm> {
            Ok(Norm { eps: c.eps, ..loader.norm(part, Some(layer), width)? })
        };
        let q = match c.q_rank {
            None => {
                Queries::Plain(deinterleaved(loader, Part::Q, layer, [wide, hidden], c, Presence::Never)?)
            }
            Some(rank) => Queries::Narrow {
                a: loader.linear(Part::QueryA, layer, [rank, hidden], c.bias)?,
                norm: norm(Part::QueryANorm, rank)?,
                b: deinterleaved(loader, Part::QueryB, layer, [wide, rank], c, Presence::Never)?,
            },
        };
        let (keys, values) = heads(loader, layer, c)?;
        Ok(Latent {
            config: *c,
            q,
            kv: deinterleaved(loader, Part::LatentA, layer, [c.rank + c.rope_dim, hidden], c, c.bias)?,
            norm: norm(Part::LatentANorm, c.rank)?,
            keys,
            values,
            o: loader.linear(Part::O, layer, [hidden, c.heads * c.value_dim], c.bias)?,
            cache_layer,
        })
    }

    /// The values that the queries gather, `[rows, heads * value_dim]`, before the output projection. All
    /// rows leave their latents in the cache.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        let (c, ops) = (&self.config, project.ops);
        let width = c.rank + c.rope_dim;
        let kv = project.linear((Part::LatentA, &self.kv), input.x, input.all.rows)?;
        let latent = ops.norm(&self.norm, &ops.columns(&kv, width, 0..c.rank)?)?;
        let rope = ops.columns(&kv, width, c.rank..width)?;
        let rope = ops.heads(rope, c.rope_dim, None, Some(&input.all.tables[c.rope]))?;
        let key = ops.joined(&[&latent, &rope], 1)?;
        ops.kv_write(input.cache, self.cache_layer, &key, &key, input.all.step)?;
        let q = self.queries(project, input)?;
        let shape = kernels::Attention {
            heads: c.heads,
            kv_heads: 1,
            head_dim: width,
            scale: c.scale,
            causal: input.causal,
            window: None,
            soft_cap: None,
            sinks: None,
        };
        let mixed = ops.attention(&q, input.cache, self.cache_layer, input.queries.step, &shape)?;
        let mixed = ops.columns(&mixed, width, 0..c.rank)?;
        Ok(Branch { rows: by_head(ops, &self.values, &mixed)?, projection: Some((Part::O, &self.o)) })
    }

    /// Of each head the query of the latent, and the part that turns: `[rows, heads * (rank + turned)]`.
    fn queries(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Rows> {
        let (c, ops) = (&self.config, project.ops);
        let (x, rows) = (input.some.unwrap_or(input.x), input.queries.rows);
        let q = match &self.q {
            Queries::Plain(q) => project.linear((Part::Q, q), x, rows)?,
            Queries::Narrow { a, norm, b } => {
                let narrow = ops.norm(norm, &project.linear((Part::QueryA, a), x, rows)?)?;
                project.linear((Part::QueryB, b), &narrow, rows)?
            }
        };
        let width = c.nope_dim + c.rope_dim;
        let nope = by_head(ops, &self.keys, &ops.columns(&q, width, 0..c.nope_dim)?)?;
        let rope = ops.columns(&q, width, c.nope_dim..width)?;
        let rope = ops.heads(rope, c.rope_dim, None, Some(&input.queries.tables[c.rope]))?;
        ops.joined(&[&nope, &rope], c.heads)
    }

    pub fn kv_shape(&self) -> KvShape {
        KvShape { kv_heads: 1, head_dim: self.config.rank + self.config.rope_dim }
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        let q = match &self.q {
            Queries::Plain(q) => vec![(Part::Q, q)],
            Queries::Narrow { a, b, .. } => vec![(Part::QueryA, a), (Part::QueryB, b)],
        };
        let keys = self.keys.iter().map(|head| (Part::LatentKeys, head));
        let values = self.values.iter().map(|head| (Part::LatentValues, head));
        q.into_iter()
            .chain([(Part::LatentA, &self.kv), (Part::O, &self.o)])
            .chain(keys)
            .chain(values)
            .collect()
    }
}

/// Each head of `x` through its own matrix.
fn by_head(ops: &Ops, heads: &[Linear], x: &Rows) -> Result<Rows> {
    let (all, width) = (x.dims().1, x.dims().1 / heads.len().max(1));
    let one = |(head, linear): (usize, &Linear)| {
        ops.linear(linear, &ops.columns(x, all, head * width..(head + 1) * width)?)
    };
    let outputs = heads.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
    ops.joined(&outputs.iter().collect::<Vec<_>>(), 1)
}

/// A projection whose heads end in a part that turns: its rows go from pairs to halves, if they are in pairs.
fn deinterleaved(
    loader: &TensorLoader,
    part: Part,
    layer: usize,
    [rows, columns]: [usize; 2],
    c: &LatentConfig,
    bias: Presence,
) -> Result<Linear> {
    let at = Some(layer);
    let (weight, bias) = (loader.tensor(part, at, &[rows, columns])?, loader.bias(bias, part, at, rows)?);
    if !c.interleaved {
        return loader.projection(part, weight, bias, None);
    }
    let nope = if part == Part::LatentA { c.rank } else { c.nope_dim };
    let (width, half) = (nope + c.rope_dim, c.rope_dim / 2);
    let from = |row: usize| match (row % width).checked_sub(nope) {
        Some(i) => row - i + 2 * (i % half) + i / half,
        None => row,
    };
    let order: Vec<usize> = (0..rows).map(from).collect();
    let bias = bias.map(|bias| loader.select_rows(&bias, &order)).transpose()?;
    loader.projection(part, loader.select_rows(&weight, &order)?, bias, None)
}

/// Of each head what makes keys and values of the latent: one matrix for both, or (GGUF) one each, that of
/// the keys on its side.
fn heads(loader: &TensorLoader, layer: usize, c: &LatentConfig) -> Result<(Vec<Linear>, Vec<Linear>)> {
    let at = Some(layer);
    let flat = |part, rows: usize, columns: usize| -> Result<WeightTensor> {
        let stack = loader.tensor(part, at, &[c.heads, rows, columns])?;
        Ok(WeightTensor { shape: vec![c.heads * rows, columns], ..stack })
    };
    let cut = |all: &WeightTensor, start: usize, rows: usize| loader.slice_rows(all, start..start + rows);
    let pair: Box<dyn Fn(usize) -> Result<[WeightTensor; 2]>> = match loader.has(Part::LatentKeys, at) {
        true => {
            let of_keys = flat(Part::LatentKeys, c.rank, c.nope_dim)?;
            let of_values = flat(Part::LatentValues, c.value_dim, c.rank)?;
            Box::new(move |head| {
                let key = cut(&of_keys, head * c.rank, c.rank)?;
                Ok([key, cut(&of_values, head * c.value_dim, c.value_dim)?])
            })
        }
        false => {
            let width = c.nope_dim + c.value_dim;
            let both = loader.tensor(Part::LatentB, at, &[c.heads * width, c.rank])?;
            both.data.ready()?;
            Box::new(move |head| {
                let key = transposed(&cut(&both, head * width, c.nope_dim)?);
                Ok([key, cut(&both, head * width + c.nope_dim, c.value_dim)?])
            })
        }
    };
    let (mut keys, mut values) = (Vec::with_capacity(c.heads), Vec::with_capacity(c.heads));
    for head in 0..c.heads {
        let [key, value] = pair(head)?;
        keys.push(loader.projection(Part::LatentKeys, key, None, None)?);
        values.push(loader.projection(Part::LatentValues, value, None, None)?);
    }
    Ok((keys, values))
}

/// A matrix with rows and columns exchanged. Blocks run along rows, so that it is one of floats.
fn transposed(w: &WeightTensor) -> WeightTensor {
    let (rows, columns, floats) = (w.shape[0], w.shape[1], w.to_f32());
    let order = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    let values: Vec<f32> = order.map(|at| floats[at]).collect();
    let tensor = WeightTensor::floats(&w.name, vec![columns, rows], values);
    match w.dtype {
        // The upper half of a float that was one of bfloat16 is that.
        WeightType::BF16 => {
            let halves = tensor.data.chunks_exact(4).flat_map(|word| [word[2], word[3]]).collect();
            WeightTensor { dtype: WeightType::BF16, data: crate::weights::Bytes::from_vec(halves), ..tensor }
        }
        _ => tensor,
    }
}

//! Where a checkpoint stores the rows of a projection: what the loader does to tensors on their way in, the
//! other way round.

use std::collections::HashMap;

use crate::config::{Config, ExpertStack, ExpertsConfig, FeedForwardConfig, GateSource, MixerConfig};
use crate::error::{Error, Result};
use crate::kernels::Ops;
use crate::model::Decoder;
use crate::model::build::head_rows;
use crate::model::projection::ProjectionId;
use crate::weights::blocks::dequantize_row;
use crate::weights::names::{Names, Part};
use crate::weights::{WeightTensor, Weights};

/// Where the outputs of a projection are stored.
pub(super) struct Place {
    pub tensor: String,
    /// Of each output its row, all dimensions but the last taken as one; of a tensor on its side, its column.
    pub rows: Vec<usize>,
    /// The matrix of a stack that is on its side, `[in, out]`.
    pub turned: Option<usize>,
    pub bias: String,
}

pub(super) struct Places<'a> {
    pub names: Names,
    weights: &'a Weights,
    config: &'a Config,
    ops: &'a Ops,
    projections: HashMap<ProjectionId, &'a crate::kernels::Linear>,
}

impl<'a> Places<'a> {
    pub fn new(decoder: &'a Decoder, weights: &'a Weights) -> Self {
        let config = decoder.config();
        let names = Names::of(weights, config.post_norms(), config.names);
        Places { names, weights, config, ops: decoder.ops(), projections: decoder.adaptable().collect() }
    }

    /// The stored name of a part's tensor.
    pub fn stored(&self, part: Part, layer: Option<usize>) -> Option<String> {
        Some(self.names.name(self.weights, part, layer, "weight")).filter(|name| self.weights.contains(name))
    }

    /// Where a projection of a layer is, held against the matrix that the model computes with.
    ///
    /// # Errors
    /// `UnsupportedModel` if it is stored in a way that is not known here.
    pub fn of(&self, id: ProjectionId) -> Result<Place> {
        let linear = self.projections.get(&id).ok_or_else(|| Error::internal("no such projection"))?;
        let [n, k] = [linear.weight.n(), linear.weight.k()];
        let place = self.find(id, n).ok_or_else(|| elsewhere(id))?;
        let tensor = self.weights.get(&place.tensor)?;
        // Some rows show whether the place is right, whatever the loader may do one day.
        // An output of a matrix on its side is a column, and costs the whole of it.
        let count = if place.turned.is_some() { 2 } else { 16 };
        let some: Vec<usize> = (0..n).step_by(n.div_ceil(count).max(1)).collect();
        let ids: Vec<u32> = some.iter().map(|row| *row as u32).collect();
        let own = self.ops.into_vec(self.ops.embed(&linear.weight, &ids, None)?)?;
        for (output, own) in some.into_iter().zip(own.chunks_exact(k)) {
            let stored = row_of(&tensor, &place, output, k).ok_or_else(|| elsewhere(id))?;
            if !alike(&stored, own) {
                return Err(elsewhere(id));
            }
        }
        Ok(place)
    }

    fn find(&self, id: ProjectionId, n: usize) -> Option<Place> {
        let (layer, part) = (Some(id.layer), id.part);
        let height = |part| self.projections.get(&ProjectionId { part, ..id }).map(|it| it.weight.n());
        let at = |part, rows| {
            let bias = self.names.name(self.weights, part, layer, "bias");
            Some(Place { tensor: self.stored(part, layer)?, rows, turned: None, bias })
        };
        let order = self.order(id, n);
        // Rows of one matrix, behind those of other parts.
        let behind = |whole, before: &[Part]| {
            let start = before.iter().map(|part| height(*part)).sum::<Option<usize>>()?;
            at(whole, order.iter().map(|row| start + row).collect())
        };
        let own = self.stored(part, layer).is_some();
        match part {
            Part::Q | Part::AttnGate if self.queries_hold_gate(id.layer) => {
                let width = self.config.layers[id.layer].attention()?.head_dim;
                let second = usize::from(part == Part::AttnGate);
                let rows = order.iter().map(|row| (2 * (row / width) + second) * width + row % width);
                at(Part::Q, rows.collect())
            }
            Part::Q if !own => behind(Part::Qkv, &[]),
            Part::K if !own => behind(Part::Qkv, &[Part::Q]),
            Part::V if !own => behind(Part::Qkv, &[Part::Q, Part::K]),
            Part::Gate | Part::Up
                if self.stored(Part::Gate, layer).is_none() && height(Part::Gate).is_some() =>
            {
                let fused = self.stored(Part::GateUp, layer).map_or(Part::Up, |_| Part::GateUp);
                behind(fused, if part == Part::Up { &[Part::Gate] } else { &[] })
            }
            Part::SharedGate if !own => behind(Part::SharedGateUp, &[]),
            Part::SharedUp if !own => behind(Part::SharedGateUp, &[Part::SharedGate]),
            Part::SsmZ => behind(Part::SsmIn, &[]),
            Part::SsmXbc => behind(Part::SsmIn, &[Part::SsmZ]),
            Part::SsmDt => behind(Part::SsmIn, &[Part::SsmZ, Part::SsmXbc]),
            Part::ExpertGate(expert) | Part::ExpertUp(expert) | Part::ExpertDown(expert) if !own => {
                self.expert(id, expert, n)
            }
            _ => at(part, order),
        }
    }

    /// The stored row of each row of a projection, in a matrix of its own.
    fn order(&self, id: ProjectionId, n: usize) -> Vec<usize> {
        let attention = self.config.layers[id.layer].attention().filter(|_| self.config.interleaved_qk);
        let heads = attention.and_then(|attention| match id.part {
            Part::Q => Some(attention.heads),
            Part::K => Some(attention.kv_heads),
            _ => None,
        });
        heads.map_or_else(|| (0..n).collect(), |heads| head_rows(self.config, n, heads))
    }

    fn queries_hold_gate(&self, layer: usize) -> bool {
        let mixer = self.config.layers[layer].mixer.as_ref();
        let gate = mixer.and_then(MixerConfig::attention).and_then(|attention| attention.gate);
        gate.is_some_and(|gate| gate.source == GateSource::Query)
    }

    /// In a tensor that holds all experts of the layer.
    fn expert(&self, id: ProjectionId, expert: usize, n: usize) -> Option<Place> {
        let experts = experts(self.config.layers[id.layer].ffn.as_ref()?)?;
        let both = self.stored(Part::GateUpExperts, Some(id.layer)).filter(|_| experts.gate);
        let (stack, first, height) = match (id.part, &both) {
            (Part::ExpertGate(_), Some(_)) => (Part::GateUpExperts, 0, 2 * n),
            (Part::ExpertUp(_), Some(_)) => (Part::GateUpExperts, n, 2 * n),
            (Part::ExpertGate(_), None) => (Part::GateExperts, 0, n),
            (Part::ExpertUp(_), None) => (Part::UpExperts, 0, n),
            _ => (Part::DownExperts, 0, n),
        };
        let (tensor, bias) = (self.stored(stack, Some(id.layer))?, String::new());
        if experts.stack == ExpertStack::Interleaved && both.is_some() {
            let columns = match stack {
                Part::GateUpExperts => (0..n).map(|output| 2 * output + usize::from(first > 0)).collect(),
                _ => (0..n).collect(),
            };
            return Some(Place { tensor, rows: columns, turned: Some(expert), bias });
        }
        let start = expert * height + first;
        Some(Place { tensor, rows: (start..start + n).collect(), turned: None, bias })
    }
}

fn experts(ffn: &FeedForwardConfig) -> Option<&ExpertsConfig> {
    match ffn {
        FeedForwardConfig::Experts(experts) => Some(experts),
        FeedForwardConfig::Beside(beside) => Some(&beside.experts),
        FeedForwardConfig::Dense(_) => None,
    }
}

/// The weights of one output as they are stored.
fn row_of(tensor: &WeightTensor, place: &Place, output: usize, k: usize) -> Option<Vec<f32>> {
    let (row, width) = (*place.rows.get(output)?, *tensor.shape.last()?);
    let bytes = tensor.dtype.row_bytes(width)?;
    let read = |row: usize| {
        let mut values = vec![0.0; width];
        dequantize_row(tensor.dtype, tensor.data.get(row * bytes..(row + 1) * bytes)?, &mut values);
        Some(values)
    };
    match place.turned {
        None => read(row).filter(|values| values.len() == k),
        Some(expert) => (0..k).map(|input| read(expert * k + input)?.get(row).copied()).collect(),
    }
}

/// The same numbers, but for what another number format takes.
fn alike(stored: &[f32], own: &[f32]) -> bool {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let off = square(&mut stored.iter().zip(own).map(|(stored, own)| stored - own));
    off <= 1e-4 * square(&mut stored.iter().copied())
}

fn elsewhere(id: ProjectionId) -> Error {
    Error::unsupported(format!(
        "layer {}: merging into {:?} as this checkpoint stores it is not supported; the adapter can be used as it \
         is (adapter=)",
        id.layer, id.part
    ))
}

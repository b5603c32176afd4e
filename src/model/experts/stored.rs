//! Where the matrices of experts are: one tensor an expert, or all experts of a layer in one, with even and
//! odd columns for gate and up (gpt-oss), or packed as MXFP4 beside its scales.

use std::sync::Arc;

use crate::config::{ExpertStack, ExpertsConfig};
use crate::error::{Error, Result};
use crate::model::build::{Pending, TensorLoader};
use crate::weights::names::Part;
use crate::weights::{Bytes, WeightTensor, WeightType};

/// A weight and its bias.
type Projection = (Pending, Option<WeightTensor>);

/// The tensors of one expert.
pub(super) struct Tensors {
    pub gate: Option<Projection>,
    pub up: Projection,
    pub down: Projection,
}

/// All experts of a layer, of each of which the tensors are cut out when it comes.
type All<'a> = Box<dyn Iterator<Item = Result<Tensors>> + 'a>;

/// The tensors of each expert. All are there and have the right shape before the first one is given out.
pub(super) fn find<'a>(loader: &'a TensorLoader<'_>, layer: usize, c: &'a ExpertsConfig) -> Result<All<'a>> {
    let stored = |part| loader.has(part, Some(layer));
    let stacks = [Part::GateUpExperts, Part::UpExperts, Part::DownExperts, Part::DownExpertsBlocks];
    if !stacks.into_iter().any(stored) {
        let tensors = (0..c.count).map(|expert| single(loader, layer, c, expert)).collect::<Result<Vec<_>>>();
        refuse_more(loader, layer, c.count)?;
        return Ok(Box::new(tensors?.into_iter().map(Ok)));
    }
    if c.stack == ExpertStack::Rows || !stored(Part::GateUpExperts) && !stored(Part::GateUpExpertsBlocks) {
        return stacked(loader, layer, c);
    }
    interleaved(loader, layer, c)
}

/// Columns that experts read, and their inner width.
fn widths(loader: &TensorLoader<'_>, c: &ExpertsConfig) -> [usize; 2] {
    [c.latent.unwrap_or(loader.config.hidden), c.intermediate]
}

fn single(loader: &TensorLoader<'_>, layer: usize, c: &ExpertsConfig, expert: usize) -> Result<Tensors> {
    let ([hidden, inner], at) = (widths(loader, c), Some(layer));
    let one = |part, rows, columns| {
        let weight = loader.tensor(part, at, &[rows, columns])?;
        Ok::<_, Error>((weight.into(), loader.bias(c.bias, part, at, rows)?))
    };
    Ok(Tensors {
        gate: c.gate.then(|| one(Part::ExpertGate(expert), inner, hidden)).transpose()?,
        up: one(Part::ExpertUp(expert), inner, hidden)?,
        down: one(Part::ExpertDown(expert), hidden, inner)?,
    })
}

/// A file with more experts than its configuration says would be another model.
fn refuse_more(loader: &TensorLoader<'_>, layer: usize, count: usize) -> Result<()> {
    match loader.has(Part::ExpertUp(count), Some(layer)) {
        false => Ok(()),
        true => Err(Error::model_file(format!(
            "{}: layer {layer} has the tensor {}, and the configuration says that there are {count} experts \
             (num_experts, num_local_experts, expert_count)",
            loader.weights.source().display(),
            loader.name(Part::ExpertUp(count), Some(layer), "weight")
        ))),
    }
}

/// Some rows of each matrix of a stack.
struct Cut {
    stack: WeightTensor,
    bias: Option<WeightTensor>,
    first: usize,
    rows: usize,
}

impl Cut {
    fn of(&self, loader: &TensorLoader<'_>, expert: usize) -> Result<Projection> {
        let [count, height] = [self.stack.shape[0], self.stack.shape[1]];
        let start = expert * height + self.first;
        let rows = start..start + self.rows;
        let flat = |tensor: &WeightTensor, columns: &[usize]| {
            let shape = [&[count * height], columns].concat();
            loader.slice_rows(&WeightTensor { shape, ..tensor.clone() }, rows.clone())
        };
        let weight = flat(&self.stack, &self.stack.shape[2..])?;
        Ok((weight.into(), self.bias.as_ref().map(|bias| flat(bias, &[])).transpose()?))
    }
}

/// `[experts, out, in]`; gate and up in one tensor, the gate first, or in two.
fn stacked<'a>(loader: &'a TensorLoader<'_>, layer: usize, c: &ExpertsConfig) -> Result<All<'a>> {
    let ([hidden, inner], at, count) = (widths(loader, c), Some(layer), c.count);
    let stack = |part, rows, columns| {
        let weight = loader.tensor(part, at, &[count, rows, columns])?;
        Ok::<_, Error>((weight, loader.bias_of(c.bias, part, at, &[count, rows])?))
    };
    let cut =
        |(stack, bias): (WeightTensor, Option<WeightTensor>), first, rows| Cut { stack, bias, first, rows };
    let (gate, up) = match loader.has(Part::GateUpExperts, at) && c.gate {
        true => {
            let both = stack(Part::GateUpExperts, 2 * inner, hidden)?;
            (Some(cut(both.clone(), 0, inner)), cut(both, inner, inner))
        }
        false => {
            let gate = c.gate.then(|| stack(Part::GateExperts, inner, hidden)).transpose()?;
            (gate.map(|gate| cut(gate, 0, inner)), cut(stack(Part::UpExperts, inner, hidden)?, 0, inner))
        }
    };
    let down = cut(stack(Part::DownExperts, hidden, inner)?, 0, hidden);
    Ok(Box::new((0..count).map(move |expert| {
        Ok(Tensors {
            gate: gate.as_ref().map(|gate| gate.of(loader, expert)).transpose()?,
            up: up.of(loader, expert)?,
            down: down.of(loader, expert)?,
        })
    })))
}

/// All matrices of one kind, `[experts, out, in]` once they are cut out.
enum Interleaved {
    /// `[experts, in, out]`
    Columns(WeightTensor),
    /// MXFP4: sixteen bytes for each 32 weights along `in`, and a scale.
    Blocks { name: String, blocks: Bytes, scales: Bytes, out: usize, per_row: usize },
}

impl Interleaved {
    fn find(
        loader: &TensorLoader<'_>,
        layer: usize,
        count: usize,
        [plain, packed]: [Part; 2],
        [out, k]: [usize; 2],
    ) -> Result<Interleaved> {
        if !loader.has(packed, Some(layer)) {
            return Ok(Interleaved::Columns(loader.tensor(plain, Some(layer), &[count, k, out])?));
        }
        let block = WeightType::Mxfp4.block_len();
        let name = loader.name(packed, Some(layer), "weight");
        if !k.is_multiple_of(block) {
            return Err(Error::model_file(format!(
                "{}: rows of {k} weights in {name} are not whole blocks of {block}",
                loader.weights.file_of(&name).display()
            )));
        }
        let per_row = k / block;
        let blocks = loader.bytes(&name, &[count, out, per_row, block / 2])?;
        let scales = loader.bytes(&loader.name(packed, Some(layer), "scales"), &[count, out, per_row])?;
        Ok(Interleaved::Blocks { name, blocks, scales, out, per_row })
    }

    /// Each `step`th row of an expert's matrix, from `first` on, once it is needed.
    fn pending(self: &Arc<Self>, expert: usize, first: usize, step: usize) -> Pending {
        let (name, dtype, out, k) = match &**self {
            Interleaved::Columns(stack) => (&stack.name, stack.dtype, stack.shape[2], stack.shape[1]),
            Interleaved::Blocks { name, out, per_row, .. } => {
                (name, WeightType::Mxfp4, *out, per_row * WeightType::Mxfp4.block_len())
            }
        };
        let stack = self.clone();
        let shape = [(out - first).div_ceil(step), k];
        Pending::new(name, dtype, shape, move || stack.rows(expert, first, step))
    }

    fn rows(&self, expert: usize, first: usize, step: usize) -> WeightTensor {
        match self {
            Interleaved::Columns(stack) => {
                let [k, out] = [stack.shape[1], stack.shape[2]];
                let size = stack.dtype.block_bytes();
                let matrix = &stack.data[expert * k * out * size..][..k * out * size];
                let mut data = Vec::with_capacity(matrix.len() / step);
                for row in (first..out).step_by(step) {
                    for column in matrix.chunks_exact(out * size) {
                        data.extend_from_slice(&column[row * size..(row + 1) * size]);
                    }
                }
                WeightTensor {
                    name: stack.name.clone(),
                    dtype: stack.dtype,
                    shape: vec![data.len() / size / k, k],
                    data: Bytes::from_vec(data),
                }
            }
            Interleaved::Blocks { name, blocks, scales, out, per_row } => {
                let mut data = Vec::new();
                for row in (first..*out).step_by(step) {
                    let at = (expert * out + row) * per_row..(expert * out + row + 1) * per_row;
                    let blocks = blocks[16 * at.start..16 * at.end].as_chunks::<16>().0;
                    for (block, scale) in blocks.iter().zip(&scales[at]) {
                        data.push(*scale);
                        data.extend_from_slice(&in_halves(block));
                    }
                }
                let dtype = WeightType::Mxfp4;
                let k = per_row * dtype.block_len();
                let rows = data.len() / dtype.block_bytes() / per_row;
                WeightTensor { name: name.clone(), dtype, shape: vec![rows, k], data: Bytes::from_vec(data) }
            }
        }
    }
}

/// Nibbles of neighbours (weight `2i` low, `2i + 1` high in byte `i`) as ggml has them: weight `i` low,
/// `i + 16` high.
fn in_halves(pairs: &[u8; 16]) -> [u8; 16] {
    let nibble = |at: usize| pairs[at / 2] >> (4 * (at % 2)) & 0x0f;
    std::array::from_fn(|i| nibble(i) | nibble(i + 16) << 4)
}

/// Each `step`th number of an expert's bias.
fn strided(bias: &WeightTensor, expert: usize, first: usize, step: usize) -> WeightTensor {
    let (width, size) = (bias.shape[1], bias.dtype.block_bytes());
    let own = bias.data[expert * width * size..][..width * size].chunks_exact(size);
    let data: Vec<u8> = own.skip(first).step_by(step).flatten().copied().collect();
    WeightTensor {
        name: bias.name.clone(),
        dtype: bias.dtype,
        shape: vec![data.len() / size],
        data: Bytes::from_vec(data),
    }
}

/// Gate and up are the even and odd columns of one tensor `[experts, in, out]`, or rows of one in MXFP4.
fn interleaved<'a>(loader: &'a TensorLoader<'_>, layer: usize, c: &ExpertsConfig) -> Result<All<'a>> {
    let ([hidden, inner], at, count) = (widths(loader, c), Some(layer), c.count);
    let both = [Part::GateUpExperts, Part::GateUpExpertsBlocks];
    let gate_up = Arc::new(Interleaved::find(loader, layer, count, both, [2 * inner, hidden])?);
    let down = [Part::DownExperts, Part::DownExpertsBlocks];
    let down = Arc::new(Interleaved::find(loader, layer, count, down, [hidden, inner])?);
    let bias = |part, width| loader.bias_of(c.bias, part, at, &[count, width]);
    let gate_up_bias = bias(Part::GateUpExperts, 2 * inner)?;
    let down_bias = bias(Part::DownExperts, hidden)?;
    for tensor in [&gate_up_bias, &down_bias].into_iter().flatten().chain(gate_up.plain()).chain(down.plain())
    {
        if tensor.dtype.block_len() > 1 {
            return Err(Error::unsupported(format!(
                "the tensor {} has columns of {}, which cannot be told apart",
                tensor.name, tensor.dtype
            )));
        }
    }
    Ok(Box::new((0..count).map(move |expert| {
        let of = |stack: &Arc<Interleaved>, bias: &Option<WeightTensor>, first, step| {
            let bias = bias.as_ref().map(|bias| strided(bias, expert, first, step));
            (stack.pending(expert, first, step), bias)
        };
        Ok(Tensors {
            gate: Some(of(&gate_up, &gate_up_bias, 0, 2)),
            up: of(&gate_up, &gate_up_bias, 1, 2),
            down: of(&down, &down_bias, 0, 1),
        })
    })))
}

impl Interleaved {
    fn plain(&self) -> Option<&WeightTensor> {
        match self {
            Interleaved::Columns(stack) => Some(stack),
            Interleaved::Blocks { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_to_halves() {
        let pairs: [u8; 16] = std::array::from_fn(|i| (2 * i % 16) as u8 | (((2 * i + 1) % 16) as u8 * 16));
        // Weight w has the nibble w modulo 16.
        assert_eq!(in_halves(&pairs), std::array::from_fn(|i| i as u8 * 17));
    }
}

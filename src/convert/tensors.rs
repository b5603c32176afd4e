//! Tensors on their way into a file: copied, or brought to another type a slice at a time, with the rows and
//! the numbers that GGUF wants.

use half::{bf16, f16};

use super::ConvertOptions;
use super::types::Rule;
use crate::config::Config;
use crate::config::gguf::write::architecture;
use crate::error::{Error, Result};
use crate::model::build::head_rows;
use crate::weights::blocks::dequantize_row;
use crate::weights::names::{Names, Part, left_alone};
use crate::weights::quantize::quantize;
use crate::weights::write::{Planned, StoredType};
use crate::weights::{WeightTensor, WeightType, Weights};

/// Weights that are f32 at one time.
const SLAB: usize = 1 << 22;
/// Bytes that are copied between two looks at whether it is still wanted.
const BLOCK: usize = 1 << 24;

/// A tensor of the file.
pub(super) struct Target {
    pub planned: Planned,
    make: Make,
}

enum Make {
    /// The bytes of this tensor.
    Copy(String),
    /// Its numbers.
    Convert(Change),
    Given(WeightTensor),
}

struct Change {
    source: String,
    to: WeightType,
    /// Which row goes where, if not each to its own place.
    rows: Option<Vec<usize>>,
    /// What is added to each number.
    offset: f32,
}

impl Target {
    /// A tensor of a GGUF file, as another type if `to` says so.
    pub fn of_stored(
        name: &str,
        dtype: StoredType,
        shape: &[usize],
        bytes: usize,
        to: Option<WeightType>,
    ) -> Result<Target> {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        Ok(match to {
            None => Target {
                planned: Planned { name: name.clone(), dtype, shape, bytes: bytes as u64 },
                make: Make::Copy(name),
            },
            Some(to) => Target {
                planned: Planned::of_weights(name.clone(), to, shape)?,
                make: Make::Convert(Change { source: name, to, rows: None, offset: 0.0 }),
            },
        })
    }

    /// Gives its bytes away, in order.
    pub fn write(
        &self,
        weights: &Weights,
        threads: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match &self.make {
            Make::Copy(source) => weights.as_stored(source)?.2.chunks(BLOCK).try_for_each(put),
            Make::Given(tensor) => put(&tensor.data),
            Make::Convert(change) => change.write(&weights.get(&change.source)?, threads, put),
        }
    }
}

impl Change {
    fn write(
        &self,
        tensor: &WeightTensor,
        threads: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        // Numbers that change places one by one are rows of one.
        let k = match (&self.rows, tensor.shape.as_slice()) {
            (Some(_), [_]) | (_, []) => 1,
            (_, [.., k]) => (*k).max(1),
        };
        let row_bytes = tensor.dtype.row_bytes(k).ok_or_else(|| {
            Error::model_file(format!("rows of the tensor {} are no whole blocks", tensor.name))
        })?;
        let rows = tensor.elements() / k;
        let slab = (SLAB / k).max(1);
        let mut values = Vec::new();
        for first in (0..rows).step_by(slab) {
            let some = first..rows.min(first + slab);
            if tensor.dtype == self.to && self.offset == 0.0 {
                let source = |row| self.rows.as_ref().map_or(row, |rows: &Vec<usize>| rows[row]) * row_bytes;
                some.map(source).try_for_each(|at| put(&tensor.data[at..at + row_bytes]))?;
                continue;
            }
            values.resize(some.len() * k, 0.0);
            for (row, out) in some.clone().zip(values.chunks_exact_mut(k)) {
                let from = self.rows.as_ref().map_or(row, |rows| rows[row]);
                dequantize_row(tensor.dtype, &tensor.data[from * row_bytes..(from + 1) * row_bytes], out);
            }
            if self.offset != 0.0 {
                values.iter_mut().for_each(|value| *value += self.offset);
            }
            put(&encoded(&tensor.name, &values, k, self.to, threads)?)?;
        }
        Ok(())
    }
}

/// Rows of `k` numbers in a type.
fn encoded(name: &str, values: &[f32], k: usize, to: WeightType, threads: usize) -> Result<Vec<u8>> {
    let f16_of = |value: &f32| {
        let half = f16::from_f32(*value);
        match half.is_infinite() && value.is_finite() {
            true => Err(Error::invalid(format!(
                "the tensor {name} holds {value:e}, which is beyond f16; choose bf16 or f32"
            ))),
            false => Ok(half.to_le_bytes()),
        }
    };
    Ok(match to {
        WeightType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        WeightType::F16 => {
            let halves: Result<Vec<_>> = values.iter().map(f16_of).collect();
            halves?.concat()
        }
        _ => {
            let tensor = WeightTensor::floats(name, vec![values.len() / k, k], values.to_vec());
            quantize(&tensor, to, threads)?.data.to_vec()
        }
    })
}

/// The parts of a layer, and those outside.
const OUTER: [Part; 3] = [Part::Embed, Part::FinalNorm, Part::Head];
const PARTS: [Part; 12] = [
    Part::Q,
    Part::K,
    Part::V,
    Part::Qkv,
    Part::O,
    Part::QNorm,
    Part::KNorm,
    Part::Gate,
    Part::Up,
    Part::GateUp,
    Part::Down,
    Part::MlpNorm,
];

/// The tensors of a folder of transformers as GGUF has them, and `given` ones.
///
/// # Errors
/// `UnsupportedModel` naming a tensor that has no place; `ModelFile` for one that is missing.
pub(super) fn of_folder(
    config: &Config,
    weights: &Weights,
    given: Vec<WeightTensor>,
    options: &ConvertOptions,
) -> Result<Vec<Target>> {
    let folder = Folder {
        config,
        weights,
        names: Names::of(weights, config.post_norms(), config.names),
        gguf: Names::Gguf { post_norms: config.post_norms() },
        interleaved: architecture(config)?.1,
    };
    let found = folder.find()?;
    let names = found.iter().map(|(name, ..)| name.as_str());
    // Who asks for a type of what has no place in GGUF as it is has asked for a second rounding.
    let options = &ConvertOptions { requantize: true, ..options.clone() };
    let rule = Rule::new(options, names.clone(), names.clone().any(|name| name == "output.weight"));
    let mut targets = Vec::new();
    for (name, part, source) in &found {
        targets.push(folder.target(name, *part, source, &rule)?);
    }
    for tensor in given {
        let planned = Planned::of_weights(tensor.name.clone(), tensor.dtype, tensor.shape.clone())?;
        targets.push(Target { planned, make: Make::Given(tensor) });
    }
    left_alone(weights, false, 0..0)?;
    Ok(targets)
}

struct Folder<'a> {
    config: &'a Config,
    weights: &'a Weights,
    names: Names,
    gguf: Names,
    interleaved: bool,
}

impl Folder<'_> {
    /// Each tensor: its name in GGUF, the part, its name in the folder.
    fn find(&self) -> Result<Vec<(String, Part, String)>> {
        let mut found = Vec::new();
        for part in OUTER {
            self.add(part, None, &mut found);
        }
        self.tie(&mut found)?;
        for (at, layer) in self.config.layers.iter().enumerate() {
            let norms = [
                (layer.norms.before_mixer, Part::AttnNorm),
                (layer.norms.after_mixer, Part::AttnPostNorm),
                (layer.norms.before_ffn, Part::MlpNorm),
                (layer.norms.after_ffn, Part::MlpPostNorm),
            ];
            let norms = norms.into_iter().filter(|(there, _)| *there).map(|(_, part)| part);
            for part in norms.chain(PARTS.into_iter().filter(|part| *part != Part::MlpNorm)) {
                self.add(part, Some(at), &mut found);
            }
        }
        Ok(found)
    }

    fn add(&self, part: Part, layer: Option<usize>, found: &mut Vec<(String, Part, String)>) {
        for kind in ["weight", "bias"] {
            let source = self.names.name(self.weights, part, layer, kind);
            if self.weights.contains(&source) {
                let name = self.gguf.all(part, layer).into_iter().next().unwrap_or_default();
                let name = format!("{}{kind}", name.trim_end_matches("weight"));
                found.push((name, part, source));
            }
        }
    }

    /// A tied head is the embedding, which a file may call by either name or have twice.
    fn tie(&self, found: &mut Vec<(String, Part, String)>) -> Result<()> {
        let of = |found: &[(String, Part, String)], wanted: Part| {
            found.iter().position(|(name, part, _)| *part == wanted && name.ends_with("weight"))
        };
        let (embed, head) = (of(found, Part::Embed), of(found, Part::Head));
        match (embed, head) {
            (Some(embed), Some(head)) if self.config.tied => {
                let [a, b] = [embed, head].map(|at| self.weights.get(&found[at].2));
                let (a, b) = (a?, b?);
                if a.dtype == b.dtype && a.data[..] == b.data[..] {
                    found.remove(head);
                }
            }
            (None, Some(head)) if self.config.tied => {
                (found[head].0, found[head].1) = ("token_embd.weight".into(), Part::Embed);
            }
            (Some(_), None) if !self.config.tied => {
                return Err(Error::model_file(
                    "there is no head (lm_head.weight), and tie_word_embeddings is false",
                ));
            }
            (None, _) => return Err(Error::model_file("there is no embedding (embed_tokens.weight)")),
            _ => {}
        }
        Ok(())
    }

    fn target(&self, name: &str, part: Part, source: &str, rule: &Rule) -> Result<Target> {
        let tensor = self.weights.get(source)?;
        let to = rule.of(name, tensor.dtype, &tensor.shape).unwrap_or(WeightType::F32);
        let heads = match part {
            Part::Q => self.config.attention().map(|attention| attention.heads),
            Part::K => self.config.attention().map(|attention| attention.kv_heads),
            _ => None,
        };
        let heads = heads.filter(|_| self.interleaved);
        let change = Change {
            source: source.to_owned(),
            to,
            rows: heads.map(|heads| interleaved(self.config, tensor.shape[0], heads)).transpose()?,
            offset: if name.ends_with(".weight") { self.offset(part) } else { 0.0 },
        };
        Ok(Target {
            planned: Planned::of_weights(name.to_owned(), to, tensor.shape.clone())?,
            make: Make::Convert(change),
        })
    }

    /// What GGUF's weights of a norm are more than those of the folder.
    fn offset(&self, part: Part) -> f32 {
        match part {
            Part::FinalNorm => self.config.final_norm.offset,
            Part::AttnPostNorm | Part::MlpPostNorm => self.config.post_norm.offset,
            Part::AttnNorm | Part::MlpNorm | Part::QNorm | Part::KNorm => self.config.norm.offset,
            _ => 0.0,
        }
    }
}

/// Which row of halves each row of interleaved pairs is: the inverse of [`head_rows`].
fn interleaved(config: &Config, rows: usize, heads: usize) -> Result<Vec<usize>> {
    if heads == 0 || !rows.is_multiple_of(heads) {
        return Err(Error::model_file(format!("{rows} rows are no whole number for {heads} heads")));
    }
    let mut order = vec![0; rows];
    for (row, from) in head_rows(config, rows, heads).into_iter().enumerate() {
        order[from] = row;
    }
    Ok(order)
}

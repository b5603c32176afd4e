//! Quantized modules of safetensors checkpoints: several tensors that are one matrix.
//!
//! A quantizer stores the weight of a module `q_proj` as codes, scales and more beside each other. Once a
//! configuration has said how ([`Quantization`]), [`Weights::join`] takes those tensors together: the matrix
//! is there as `q_proj.weight`, `[out, in]`, like any other, and its parts are not. Its bytes are made when
//! they are first read, one matrix at a time, in the smallest form that holds the same weights exactly
//! ([`convert`]).
//!
//! | scheme | tensors of a module | W |
//! |---|---|---|
//! | compressed-tensors, packed | `weight_packed`, `weight_scale`, `weight_shape`, … | scale (q - z) |
//! | the same, int8 | `weight`, `weight_scale`, `weight_zero_point` | scale (q - z) |
//! | GPTQ | `qweight`, `qzeros`, `scales`, `g_idx` | scale (q - z) |
//! | AWQ | `qweight`, `qzeros`, `scales` | scale (q - z) |
//! | MLX | `weight`, `scales`, `biases` | scale q + bias |
//! | bitsandbytes, 4 bits | `weight`, `weight.absmax`, `weight.quant_map`, … | scale level(q) |
//! | bitsandbytes, 8 bits | `weight`, `SCB`, `weight_format` | SCB q / 127 |
//! | FP8, MXFP8 | `weight`, `weight_scale` or `weight_scale_inv` | scale e4m3(q) |
//! | MXFP4, NVFP4 | `weight_packed` or `weight`, `weight_scale`, … | scale e2m1(q) |
//! | torchao | `_weight_qdata`, `_weight_scale`, `_weight_zero_point` | as the header says |
//!
//! [`parts`] reads each into one form, [`Matrix`]; the layouts are described there.

mod codes;
mod convert;
mod grid;
mod parts;
mod stacks;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use regex::Regex;

use self::codes::Codes;
use self::grid::{Grid, Groups, Zeros};
use super::{Bytes, Entry, Stored, WeightTensor, WeightType, Weights};
use crate::error::{Context, Error, Result, quoted};

/// What a configuration says of the quantized modules of a checkpoint.
#[derive(Clone, Debug)]
pub struct Quantization {
    /// The method with its numbers: "GPTQ, 4 bits, group 128".
    pub title: String,
    /// The first that names a module counts; a module that none names is plain.
    pub rules: Vec<Rule>,
    /// Whether all modules that a rule names (layers' projections) must be quantized.
    pub complete: bool,
}

/// How some modules are stored.
#[derive(Clone, Debug)]
pub struct Rule {
    pub modules: Modules,
    /// `None`: as plain weights.
    pub scheme: Option<Scheme>,
}

/// Which modules a rule is about, by their full names.
#[derive(Clone, Debug)]
pub enum Modules {
    All,
    /// All but embeddings.
    Linear,
    Embeddings,
    Named(String),
    /// Names that begin with a match, as Python's `re.match` has it.
    Matching(Regex),
}

/// How one module is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheme {
    /// compressed-tensors: integers of 2 to 8 bits in words.
    Packed {
        bits: u32,
        group: Group,
        symmetric: bool,
    },
    /// compressed-tensors: integers as bytes.
    Int8 {
        group: Group,
        symmetric: bool,
    },
    /// `minus_one`: the stored zero points are less by one (the first format). `any_order`: each column says
    /// its group. `bits_by_shape`: they may be others than `bits`, and the shapes tell.
    Gptq {
        bits: u32,
        group: Group,
        minus_one: bool,
        any_order: bool,
        bits_by_shape: bool,
    },
    Awq {
        group: Group,
    },
    /// MLX's default mode.
    Affine {
        bits: u32,
        group: usize,
    },
    /// bitsandbytes, NF4 and FP4.
    Table4,
    /// bitsandbytes, int8.
    Rows8,
    /// E4M3 bytes; the names that the tensor of scales may have, and the groups, of which the first that fits
    /// counts.
    Fp8 {
        scales: &'static [&'static str],
        groups: Vec<Group>,
    },
    /// E2M1 pairs; where they are, what their scales are, and the tensor of one more scale.
    Fp4 {
        weight: &'static str,
        scale: &'static str,
        group: usize,
        outer: Option<Outer>,
        powers: bool,
    },
    /// torchao: the file's header says what each is.
    Torchao,
}

/// One more scale for a whole matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    pub name: &'static str,
    /// The weights are divided by it.
    pub divides: bool,
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Tensor,
    Row,
    /// So many of a row.
    Of(usize),
    /// Rows and columns of a block; the last one may be smaller.
    Block(usize, usize),
}

impl Modules {
    fn names(&self, module: &str) -> bool {
        match self {
            Modules::All => true,
            Modules::Linear => !is_embedding(module),
            Modules::Embeddings => is_embedding(module),
            Modules::Named(name) => name == module,
            Modules::Matching(pattern) => pattern.find(module).is_some_and(|found| found.start() == 0),
        }
    }
}

fn is_embedding(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|last| last.starts_with("embed"))
}

impl Quantization {
    fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        self.rules.iter().find(|rule| rule.modules.names(module))?.scheme.as_ref()
    }
}

/// A quantized matrix: codes, and what they mean.
#[derive(Debug)]
pub(super) struct Matrix {
    name: String,
    shape: [usize; 2],
    codes: Codes,
    levels: Levels,
    scales: Grid,
    groups: Groups,
    /// Bytes of all parts.
    bytes: usize,
    /// Chosen when it is first asked for: that needs the scales.
    dtype: OnceLock<WeightType>,
    /// Why it could not be made.
    failed: OnceLock<Error>,
}

/// What a code is multiplied by its scale as.
#[derive(Debug)]
enum Levels {
    /// Less the zero point of its group.
    Integers(Zeros),
    /// The scaled code, plus this of its group.
    Affine(Grid),
    /// What a table says.
    Table(Box<[f32]>),
}

/// A tensor that is a part of a module, taken out of the map of tensors.
#[derive(Debug)]
struct Part {
    name: String,
    stored: Stored,
    shape: Vec<usize>,
    data: Bytes,
}

/// Endings of tensors that only quantized modules have.
const MARKS: [&str; 8] = [
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".qweight",
    ".scales",
    ".weight.absmax",
    ".SCB",
    "._weight_qdata",
];

/// All that may belong to a quantized module, behind its name; those of bitsandbytes' state have endings of
/// their own.
const PARTS: [&str; 19] = [
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_global_scale",
    "weight_shape",
    "weight_zero_point",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "biases",
    "SCB",
    "weight_format",
    "weight_g_idx",
    "_weight_qdata",
    "_weight_scale",
    "_weight_zero_point",
];
const STATE: &str = "weight.";

impl Weights {
    /// Takes the tensors of each quantized module together, as `how` says.
    ///
    /// # Errors
    /// `ModelFile` naming a module whose tensors do not fit what the configuration says; `UnsupportedModel`
    /// where they are of a kind that is not read. All is checked before anything is allocated; scales and
    /// codes that are no numbers show when a matrix is asked for, by its name.
    pub fn join(&mut self, how: &Quantization) -> Result<()> {
        let marked = |name: &str| MARKS.iter().find_map(|mark| name.strip_suffix(mark)).map(str::to_string);
        let modules: BTreeSet<String> = self.tensors.keys().filter_map(|name| marked(name)).collect();
        let source = self.source.display().to_string();
        if modules.is_empty() {
            return Err(Error::model_file(format!(
                "{source}: the configuration says that the checkpoint is quantized with {}, and no tensor of it is",
                how.title
            )));
        }
        for module in &modules {
            self.join_module(how, module)
                .context(format!("the module {}", quoted(module)))
                .context(&source)?;
        }
        if how.complete {
            self.refuse_plain(how).context(&source)?;
        }
        self.quantization = Some(how.clone());
        Ok(())
    }

    fn join_module(&mut self, how: &Quantization, module: &str) -> Result<()> {
        let scheme = how.scheme_of(module).ok_or_else(|| {
            Error::model_file(format!(
                "the configuration ({}) leaves it as plain weights, and its tensors are those of a quantized one",
                how.title
            ))
        })?;
        let name = format!("{module}.weight");
        let state = format!("{module}.{STATE}");
        let of_state = self.tensors.range(state.clone()..).map(|(name, _)| name.clone());
        let mut names: Vec<String> = of_state.take_while(|name| name.starts_with(&state)).collect();
        names.extend(PARTS.iter().map(|part| format!("{module}.{part}")));
        names.retain(|name| self.tensors.contains_key(name));
        let file = names.first().and_then(|name| self.tensors.get(name)).map_or(0, |entry| entry.file);
        let mut parts = names.into_iter().map(|name| self.part(module, name)).collect::<Result<Vec<_>>>()?;
        let stack = stacks::flatten(module, scheme, &mut parts)?;
        let name = stack.and_then(|_| stacks::module_name(module)).unwrap_or(name);
        let stated = self.said.get(&name).map(String::as_str);
        let matrix = parts::read(&name, scheme, parts, stated).map_err(|error| {
            let said = format!("the configuration says {}", how.title);
            error.context(said)
        })?;
        for part in matrix.1 {
            if let Some(entry) = self.tensors.remove(&format!("{module}.{part}")) {
                self.joined_borders.push((entry.file, [entry.range.start, entry.range.end]));
            }
        }
        let shape = match (stack, matrix.2) {
            (Some(count), [rows, columns]) => vec![count, rows / count, columns],
            (None, shape) => shape.to_vec(),
        };
        let entry = Entry::new(Stored::Joined(Arc::new(matrix.0)), shape, file, 0..0);
        self.insert(name, entry)
    }

    /// Gives stacks of experts that MLX has names for the names of transformers; of those that are quantized
    /// [`Weights::join`] did so.
    ///
    /// # Errors
    /// `ModelFile` when a name is there then twice.
    pub fn name_stacks(&mut self) -> Result<()> {
        let source = self.source.display().to_string();
        stacks::rename(self).context(source)
    }

    fn part(&self, module: &str, name: String) -> Result<Part> {
        let entry = self.tensors.get(&name).ok_or_else(|| self.missing(&name))?;
        let (path, bytes) = self.files.get(entry.file).ok_or_else(|| self.missing(&name))?;
        let data = bytes.slice(entry.range.clone()).context(path.display())?;
        let stored = match &entry.stored {
            Stored::Read(dtype) => Stored::Read(*dtype),
            Stored::F64 => Stored::F64,
            Stored::Other(name) => Stored::Other(name.clone()),
            Stored::Joined(_) => return Err(Error::internal("a part that was joined already")),
        };
        let own = name.get(module.len() + 1..).unwrap_or_default().to_string();
        Ok(Part { name: own, stored, shape: entry.shape.clone(), data })
    }

    /// What is plain though the configuration names it: it was not written by who wrote the configuration.
    fn refuse_plain(&self, how: &Quantization) -> Result<()> {
        let plain = self.tensors.iter().find(|(name, entry)| {
            let matrix = entry.shape.len() == 2 && !matches!(entry.stored, Stored::Joined(_));
            let module = name.strip_suffix(".weight").filter(|module| matrix && module.contains(".layers."));
            module.is_some_and(|module| how.scheme_of(module).is_some())
        });
        plain.map_or(Ok(()), |(name, _)| {
            Err(Error::model_file(format!(
                "the configuration says that {} is quantized ({}), and it is stored as plain weights",
                quoted(name),
                how.title
            )))
        })
    }

    /// What the quantized modules are and what became of those that were asked for, for people: "GPTQ, 4
    /// bits, group 128, kept as Q4_0 and F32". `None` if nothing is quantized.
    pub fn kept_as(&self) -> Option<String> {
        let how = self.quantization.as_ref()?;
        let chosen: BTreeSet<_> = self.joined().filter_map(|m| m.dtype.get()).map(|ty| ty.name()).collect();
        let chosen: Vec<_> = chosen.into_iter().collect();
        Some(format!("{}, kept as {}", how.title, chosen.join(" and ")))
    }

    /// How many matrices had no smaller exact form than floats, their bytes in the file and in memory.
    pub fn widened(&self) -> Option<(usize, u64, u64)> {
        let wide = self.joined().filter_map(|matrix| {
            let dtype = matrix.dtype.get().filter(|dtype| dtype.block_len() == 1)?;
            let elements = matrix.shape[0] as u64 * matrix.shape[1] as u64;
            Some((matrix.bytes as u64, elements * dtype.block_bytes() as u64))
        });
        let sum = wide.fold((0, 0, 0), |(n, from, to), (a, b)| (n + 1, from + a, to + b));
        (sum.0 > 0).then_some(sum)
    }

    /// What decides about the meaning of the tensors beside the files and the blueprint.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// That all matrices which were read could be made: whoever read one of others read nothing.
    ///
    /// # Errors
    /// Why the first one could not.
    pub fn check_made(&self) -> Result<()> {
        let failed = self.joined().find_map(|matrix| matrix.failed.get());
        failed.map_or(Ok(()), |error| Err(error.clone().context(self.source.display())))
    }

    /// Whether this is the bias of a quantized module, and all zeros: AutoGPTQ gives one to every module,
    /// whatever the model has.
    pub fn adds_nothing(&self, name: &str) -> bool {
        let weight = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
        let weight = weight.and_then(|weight| self.tensors.get(&weight));
        let joined = weight.is_some_and(|entry| matches!(entry.stored, Stored::Joined(_)));
        let zeros = || self.as_stored(name).is_ok_and(|(_, _, bytes)| bytes.iter().all(|byte| *byte == 0));
        joined && zeros()
    }

    fn joined(&self) -> impl Iterator<Item = &Matrix> {
        self.tensors.values().filter_map(|entry| match &entry.stored {
            Stored::Joined(matrix) => Some(&**matrix),
            _ => None,
        })
    }
}

impl Matrix {
    /// Bytes of all its parts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The matrix as a tensor whose bytes are made when they are read.
    ///
    /// # Errors
    /// `ModelFile` when a scale is not a finite number, or a zero point has two meanings.
    pub(super) fn tensor(self: &Arc<Self>) -> Result<WeightTensor> {
        let dtype = match self.dtype.get() {
            Some(dtype) => *dtype,
            None => {
                let dtype = convert::choose(self).context(format!("the tensor {:?}", self.name))?;
                *self.dtype.get_or_init(|| dtype)
            }
        };
        let [n, k] = self.shape;
        let len = dtype.row_bytes(k).and_then(|row| row.checked_mul(n));
        let len = len.ok_or_else(|| Error::model_file(format!("the tensor {:?} is too large", self.name)))?;
        let matrix = self.clone();
        let data = Bytes::made(len, move || {
            let made = convert::make(&matrix, dtype).context(format!("the tensor {:?}", matrix.name));
            made.inspect_err(|error| drop(matrix.failed.set(error.clone())))
        });
        Ok(WeightTensor { name: self.name.clone(), dtype, shape: self.shape.to_vec(), data })
    }
}

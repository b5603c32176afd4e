//! What is checked of every adapter, whatever file it comes from: numbers, shapes, ranks, and that no two
//! modules are the same; and the hash over all that changes numbers.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{AdapterFile, AdapterFormat, Module, Pair, Table};
use crate::error::{Error, Result, quoted};
use crate::weights::Weights;

/// The largest rank that is taken. Files of whole deltas have some hundreds.
pub const MAX_RANK: usize = 2048;
/// What the hash begins with: another way to write adapters down must give other hashes.
const HASH_VERSION: &[u8] = b"lora 1";

/// The numbers of a tensor with their shape.
pub(super) struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A tensor's numbers.
///
/// # Errors
/// `ModelFile` naming the tensor if one is not finite or there are none; what reading it says.
pub(super) fn numbers(weights: &Weights, name: &str) -> Result<Numbers> {
    let tensor = weights.get(name)?;
    let values = tensor.to_f32();
    if values.is_empty() {
        return Err(Error::model_file(format!(
            "the tensor {} is empty, as training that is divided over machines leaves it when it is saved in \
             parts; save it again from the gathered weights",
            quoted(name)
        )));
    }
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(Error::model_file(format!(
            "the tensor {} holds {value}; its training has failed",
            quoted(name)
        )));
    }
    Ok(Numbers { shape: tensor.shape, values })
}

/// A tensor with two dimensions.
pub(super) fn table(weights: &Weights, name: &str) -> Result<Table> {
    let Numbers { shape, values } = numbers(weights, name)?;
    match shape[..] {
        [rows, columns] => Ok(Table { rows, columns, values }),
        _ => Err(wrong_shape(name, &shape, "two dimensions")),
    }
}

/// A tensor with one dimension.
pub(super) fn vector(weights: &Weights, name: &str) -> Result<Vec<f32>> {
    let Numbers { shape, values } = numbers(weights, name)?;
    match shape[..] {
        [_] => Ok(values),
        _ => Err(wrong_shape(name, &shape, "one dimension")),
    }
}

pub(super) fn wrong_shape(name: &str, shape: &[usize], wanted: &str) -> Error {
    Error::model_file(format!("the tensor {} has the shape {shape:?}; it should have {wanted}", quoted(name)))
}

impl Table {
    pub(super) fn transposed(&self) -> Table {
        let column = |column| (0..self.rows).map(move |row| (row, column));
        let values = (0..self.columns).flat_map(column);
        Table {
            rows: self.columns,
            columns: self.rows,
            values: values.map(|(row, column)| self.values[row * self.columns + column]).collect(),
        }
    }
}

/// A `[rank, in]` and B `[out, rank]` of a module.
///
/// # Errors
/// `ModelFile` if they do not belong together, or rank or scale are not possible.
pub(super) fn pair(name: &str, a: Table, b: Table, scale: f32) -> Result<Pair> {
    let refused = |why: String| Err(Error::model_file(format!("the module {}: {why}", quoted(name))));
    let rank = a.rows;
    if b.columns != rank {
        let (a, b) = ([a.rows, a.columns], [b.rows, b.columns]);
        return refused(format!("A {a:?} and B {b:?} are of different ranks"));
    }
    if rank > MAX_RANK {
        return refused(format!("its rank is {rank}; at most {MAX_RANK} is taken"));
    }
    if !scale.is_finite() {
        return refused("its scale is not finite".into());
    }
    Ok(Pair { rank, inputs: a.columns, outputs: b.rows, scale, a: a.values, b: b.values })
}

/// A vector of a module that must have one number for each output.
pub(super) fn of_outputs(name: &str, what: &str, vector: Vec<f32>, outputs: usize) -> Result<Vec<f32>> {
    if vector.len() != outputs {
        return Err(Error::model_file(format!(
            "the module {}: {what} has {} numbers for {outputs} outputs",
            quoted(name),
            vector.len()
        )));
    }
    Ok(vector)
}

/// The adapter of what was read; its modules in one order.
///
/// # Errors
/// `ModelFile` if there is none, or two are of the same projection.
pub(super) fn finished(
    source: &Path,
    format: AdapterFormat,
    base: Option<String>,
    mut modules: Vec<Module>,
    notes: Vec<String>,
) -> Result<AdapterFile> {
    if modules.is_empty() {
        return Err(Error::model_file("the adapter changes nothing of a language model"));
    }
    modules.sort_by_cached_key(order);
    let mut seen = HashMap::new();
    for module in &modules {
        if let Some(other) = seen.insert(order(module), &module.name) {
            return Err(Error::model_file(format!(
                "{} and {} are the same projection",
                quoted(other),
                quoted(&module.name)
            )));
        }
    }
    let hash = hash(&modules);
    Ok(AdapterFile { source: source.to_path_buf(), format, hash, base, modules, notes })
}

fn order(module: &Module) -> (Option<usize>, String) {
    (module.layer, format!("{:?}", module.part))
}

/// SHA-256 over all that changes numbers, in one order: not over names as files spell them, types that
/// numbers are stored in, or paths, so that the same adapter elsewhere has the same hash. A GGUF file whose
/// rows are permuted has another: its heads are unknown without the model.
pub fn hash(modules: &[Module]) -> [u8; 32] {
    let mut order: Vec<_> = modules.iter().collect();
    order.sort_by_cached_key(|module| self::order(module));
    let mut hash = Hash(Sha256::new());
    hash.bytes(HASH_VERSION);
    for module in order {
        hash.number(module.layer.map_or(0, |layer| layer + 1));
        hash.bytes(format!("{:?}", module.part).as_bytes());
        hash.number(usize::from(module.interleaved));
        hash.number(module.pairs.len());
        for pair in &module.pairs {
            [pair.rank, pair.inputs, pair.outputs].into_iter().for_each(|number| hash.number(number));
            hash.floats(&[pair.scale]);
            hash.floats(&pair.a);
            hash.floats(&pair.b);
        }
        for vector in [&module.magnitude, &module.lora_bias, &module.bias] {
            hash.floats(vector.as_deref().unwrap_or_default());
        }
        let (rows, replaced) =
            module.rows.as_ref().map_or((&[][..], None), |(rows, table)| (rows, Some(table)));
        hash.number(rows.len());
        rows.iter().for_each(|row| hash.number(*row as usize));
        for table in [module.weight.as_ref(), replaced] {
            hash.number(table.map_or(0, |table| table.columns));
            hash.floats(table.map_or(&[], |table| &table.values));
        }
    }
    hash.0.finalize().into()
}

/// Everything goes in with its length, so that no two adapters are the same bytes.
struct Hash(Sha256);

impl Hash {
    fn number(&mut self, number: usize) {
        self.0.update((number as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    fn floats(&mut self, values: &[f32]) {
        self.number(values.len());
        for chunk in values.chunks(1024) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.0.update(bytes);
        }
    }
}

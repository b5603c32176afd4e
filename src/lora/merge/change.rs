//! What becomes of the rows of a stored tensor, and what rounding takes of that.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::{LowRank, Ops};
use crate::lora::bind::{EmbeddingChange, HeadChange};
use crate::weights::blocks::dequantize_row;
use crate::weights::quantize::quantize;
use crate::weights::{WeightTensor, WeightType};

/// Weights of a slab that is in memory as f32.
const SLAB: usize = 1 << 20;

/// What an adapter does to some rows of a tensor.
pub(super) enum Change<'a> {
    Rows(Outputs<'a>),
    /// Columns of a matrix `[in, out]` of a stack: the matrix, its rows, and of each output its column.
    Columns {
        matrix: usize,
        inputs: usize,
        columns: Vec<usize>,
        factors: Factors<'a>,
    },
    Embedding(&'a EmbeddingChange),
    Head {
        ops: &'a Ops,
        change: Option<&'a HeadChange>,
        rows: HashMap<usize, &'a [f32]>,
        factors: Option<Factors<'a>>,
    },
    /// What is added to the numbers of a bias.
    Bias(HashMap<usize, f32>),
}

/// `gain * (W + B A)`
pub(super) struct Factors<'a> {
    low_rank: &'a LowRank,
    a: Cow<'a, [f32]>,
    b: Vec<f32>,
}

impl<'a> Factors<'a> {
    pub fn of(low_rank: &'a LowRank) -> Self {
        Factors { low_rank, a: low_rank.a(), b: low_rank.b() }
    }

    fn weights(&self, output: usize) -> impl Iterator<Item = (f32, &[f32])> {
        let (rank, k) = (self.low_rank.rank(), self.low_rank.dims().1);
        let b = &self.b[output * rank..(output + 1) * rank];
        b.iter().copied().zip(self.a.chunks_exact(k))
    }

    fn gain(&self, output: usize) -> f32 {
        self.low_rank.gain().map_or(1.0, |gain| gain[output])
    }

    fn apply(&self, output: usize, row: &mut [f32]) {
        for (b, a) in self.weights(output) {
            row.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        let gain = self.gain(output);
        if gain != 1.0 {
            row.iter_mut().for_each(|sum| *sum *= gain);
        }
    }
}

/// Which rows of a tensor are outputs of a projection.
pub(super) struct Outputs<'a> {
    /// The first that is one.
    start: usize,
    /// From there on.
    outputs: Vec<Option<u32>>,
    factors: Factors<'a>,
}

impl<'a> Outputs<'a> {
    /// `rows`: of each output its row.
    pub fn new(rows: &[usize], factors: Factors<'a>) -> Self {
        let (start, last) = rows.iter().fold((usize::MAX, 0), |(a, b), row| (a.min(*row), b.max(*row)));
        let mut outputs = vec![None; (last + 1).saturating_sub(start)];
        for (output, row) in rows.iter().enumerate() {
            outputs[row - start] = Some(output as u32);
        }
        Outputs { start, outputs, factors }
    }
}

impl Change<'_> {
    /// Changes one row of the tensor.
    fn apply(&self, row: usize, values: &mut [f32]) -> Result<()> {
        match self {
            Change::Rows(Outputs { start, outputs, factors }) => {
                let output = row.checked_sub(*start).and_then(|at| *outputs.get(at)?);
                output.into_iter().for_each(|output| factors.apply(output as usize, values));
            }
            Change::Columns { matrix, inputs, columns, factors } => {
                if row / inputs == *matrix {
                    for (output, column) in columns.iter().enumerate() {
                        let delta: f32 = factors.weights(output).map(|(b, a)| b * a[row % inputs]).sum();
                        values[*column] = factors.gain(output) * (values[*column] + delta);
                    }
                }
            }
            Change::Embedding(change) => change.apply(row as u32, values, 1.0),
            Change::Head { ops, change, rows, factors } => {
                if let Some(own) = rows.get(&row) {
                    values.copy_from_slice(own);
                } else if let Some(table) = change.and_then(|change| change.table.as_ref()) {
                    values.copy_from_slice(&ops.into_vec(ops.embed(
                        &table.weight,
                        &[row as u32],
                        None,
                    )?)?);
                } else if let Some(factors) = factors {
                    factors.apply(row, values);
                }
            }
            Change::Bias(shifts) => {
                if let (Some(shift), [value]) = (shifts.get(&row), values) {
                    *value += shift;
                }
            }
        }
        Ok(())
    }
}

/// Sums of squares.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub base: f64,
    pub delta: f64,
    pub lost: f64,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.base += other.base;
        self.delta += other.delta;
        self.lost += other.lost;
    }
}

/// A stored tensor on its way into another type, with changes or none.
pub(super) struct Work<'a> {
    pub tensor: &'a WeightTensor,
    /// Numbers that are looked at as one row.
    pub width: usize,
    pub changes: &'a [Change<'a>],
    pub to: WeightType,
}

impl Work<'_> {
    pub fn rows(&self) -> usize {
        self.tensor.elements() / self.width.max(1)
    }

    /// The rows as f32, changed; `sums` of what that does to them.
    pub fn values(&self, rows: Range<usize>, sums: &mut Sums) -> Result<Vec<f32>> {
        let short = || Error::internal(format!("{}: rows that it has not", self.tensor.name));
        let bytes = self.tensor.dtype.row_bytes(self.width).ok_or_else(short)?;
        let stored = self.tensor.data.get(rows.start * bytes..rows.end * bytes).ok_or_else(short)?;
        let mut values = vec![0.0; rows.len() * self.width];
        dequantize_row(self.tensor.dtype, stored, &mut values);
        if self.changes.is_empty() {
            return Ok(values);
        }
        let mut before = vec![0.0; self.width];
        for (row, values) in rows.zip(values.chunks_exact_mut(self.width)) {
            before.copy_from_slice(values);
            self.changes.iter().try_for_each(|change| change.apply(row, values))?;
            for (now, before) in values.iter().zip(&before) {
                sums.base += f64::from(*before).powi(2);
                sums.delta += f64::from(now - before).powi(2);
            }
        }
        Ok(values)
    }

    fn part(&self, rows: Range<usize>) -> Result<(Vec<u8>, Sums)> {
        let mut sums = Sums::default();
        let values = self.values(rows, &mut sums)?;
        let bytes = encoded(&self.tensor.name, &values, self.width, self.to)?;
        if !self.changes.is_empty() {
            let mut rounded = vec![0.0; values.len()];
            dequantize_row(self.to, &bytes, &mut rounded);
            let lost = values.iter().zip(&rounded).map(|(value, rounded)| f64::from(value - rounded).powi(2));
            sums.lost = lost.sum();
        }
        Ok((bytes, sums))
    }

    /// All rows, a slab at a time.
    pub fn run(&self, threads: usize, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Sums> {
        let (rows, mut all) = (self.rows(), Sums::default());
        let share = (SLAB / self.width.max(1)).max(1);
        let mut start = 0;
        while start < rows {
            let shares: Vec<_> = (0..threads.max(1))
                .map(|thread| (start + thread * share).min(rows)..(start + (thread + 1) * share).min(rows))
                .filter(|share| !share.is_empty())
                .collect();
            start = shares.last().map_or(rows, |share| share.end);
            let parts = std::thread::scope(|scope| {
                let work: Vec<_> = shares.into_iter().map(|rows| scope.spawn(|| self.part(rows))).collect();
                let joined = work.into_iter().map(|work| work.join());
                joined.collect::<std::thread::Result<Vec<_>>>()
            });
            for part in parts.map_err(|_| Error::internal("merging panicked"))? {
                let (bytes, sums) = part?;
                all.add(sums);
                out(&bytes)?;
            }
        }
        Ok(all)
    }
}

fn encoded(name: &str, values: &[f32], width: usize, to: WeightType) -> Result<Vec<u8>> {
    let too_large = |value: f32| {
        let what = if value.is_finite() { "too large for float16" } else { "no finite number" };
        Err(Error::model_file(format!("{name}: a merged weight is {value:e}, {what}")))
    };
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return too_large(*value);
    }
    Ok(match to {
        WeightType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightType::BF16 => {
            values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
        }
        WeightType::F16 => {
            if let Some(value) = values.iter().find(|value| half::f16::from_f32(**value).is_infinite()) {
                return too_large(*value);
            }
            values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
        }
        _ => {
            let rows = values.len() / width.max(1);
            let slab = WeightTensor::floats(name, vec![rows, width], values.to_vec());
            quantize(&slab, to, 1)?.data.to_vec()
        }
    })
}

/// Whether two tensors of the same shape will hold the same numbers, but for the order of sums.
pub(super) fn same(a: &Work<'_>, b: &Work<'_>) -> Result<bool> {
    if [a.rows(), a.width] != [b.rows(), b.width] {
        return Ok(false);
    }
    let share = (SLAB / a.width.max(1)).max(1);
    for start in (0..a.rows()).step_by(share) {
        let rows = start..(start + share).min(a.rows());
        let mut sums = Sums::default();
        let (a, b) = (a.values(rows.clone(), &mut sums)?, b.values(rows, &mut sums)?);
        let largest = a.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        if a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-5 * largest) {
            return Ok(false);
        }
    }
    Ok(true)
}

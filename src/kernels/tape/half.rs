//! What is kept of a layer until its backward pass, in half the memory: values as bfloat16.
//!
//! It is done to what is kept and to what is computed again alike, so that the bits of a gradient do not
//! depend on which it was.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::disjoint::DisjointSlices;
use super::super::isa::tiered;
use super::super::rows::Rows;
use super::super::simd::{LANES, Simd};
use super::{Tape, TapeBackend, Value};
use crate::error::Result;

/// Rows as bfloat16.
struct Half(Vec<u16>);

/// Numbers of a task.
const TASK: usize = 16384;

impl Value {
    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let (rows, dim) = self.dims();
        rows * dim * if self.0.get::<Half>().is_ok() { size_of::<u16>() } else { size_of::<f32>() }
    }
}

impl TapeBackend {
    /// Every value of a tape becomes bfloat16, to nearest even.
    pub(super) fn halve(&self, tape: &mut Tape) -> Result<()> {
        each_value(tape, |value| {
            let (rows, dim) = value.dims();
            let mut bits = vec![0; rows * dim];
            let (x, out) = (value.floats()?, DisjointSlices::new(&mut bits));
            self.cpu.pool.run("halve", x.len().div_ceil(TASK), &|task| {
                let part = task * TASK..x.len().min((task + 1) * TASK);
                // SAFETY: no two tasks have a part in common.
                to_half(self.cpu.isa, &x[part.clone()], unsafe { out.slice_mut(part) });
            })?;
            Ok(Value(Arc::new(Rows::device(rows, dim, Half(bits)))))
        })
    }

    /// Every value of a tape becomes f32 again.
    pub(super) fn restore(&self, tape: &mut Tape) -> Result<()> {
        each_value(tape, |value| {
            let (rows, dim) = value.dims();
            let Half(bits) = value.0.get()?;
            let mut block = self.cpu.recycler.block(rows, dim);
            let out = DisjointSlices::new(block.floats_mut());
            self.cpu.pool.run("restore", bits.len().div_ceil(TASK), &|task| {
                let part = task * TASK..bits.len().min((task + 1) * TASK);
                // SAFETY: no two tasks have a part in common.
                from_half(self.cpu.isa, &bits[part.clone()], unsafe { out.slice_mut(part) });
            })?;
            Ok(Value(Arc::new(block.into())))
        })
    }
}

/// Replaces the values of a tape that are not empty; one that stands in several places stays one.
fn each_value(tape: &mut Tape, f: impl Fn(&Value) -> Result<Value>) -> Result<()> {
    // With the old ones, so that none gets the address of another meanwhile.
    let mut made: HashMap<usize, (Value, Value)> = HashMap::new();
    for value in tape.values_mut().filter(|value| value.dims().0 > 0) {
        let address = Arc::as_ptr(&value.0).addr();
        let new = match made.get(&address) {
            Some((_, new)) => new.clone(),
            None => f(value)?,
        };
        let old = std::mem::replace(value, new.clone());
        made.entry(address).or_insert((old, new));
    }
    Ok(())
}

tiered! {
    fn to_half(x: &[f32], out: &mut [u16]) = to_half_body;
}
tiered! {
    fn from_half(x: &[u16], out: &mut [f32]) = from_half_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn to_half_body<S: Simd>(x: &[f32], out: &mut [u16]) {
    for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let mut some = [0; LANES];
        // SAFETY: the caller's promise; the array has sixteen places.
        unsafe { S::store_bf16(some.as_mut_ptr(), S::load_some(x)) };
        out.copy_from_slice(&some[..out.len()]);
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn from_half_body<S: Simd>(x: &[u16], out: &mut [f32]) {
    for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let mut some = [0; LANES];
        some[..x.len()].copy_from_slice(x);
        // SAFETY: the caller's promise; the array has sixteen numbers (little-endian as the machine's).
        unsafe { S::store_some(out, S::load_bf16(some.as_ptr().cast())) };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::isa::Isa;

    #[test]
    fn halves_are_those_of_bfloat16() {
        let x: Vec<f32> = (0..37).map(|at| (at as f32 - 17.0) * 1.013e-3).chain([0.0, -0.0, 3e38]).collect();
        for isa in Isa::available() {
            let (mut bits, mut back) = (vec![0; x.len()], vec![0.0; x.len()]);
            to_half(isa, &x, &mut bits);
            from_half(isa, &bits, &mut back);
            for ((x, bits), back) in x.iter().zip(&bits).zip(&back) {
                assert_eq!((*bits, *back), (bf16::from_f32(*x).to_bits(), bf16::from_f32(*x).to_f32()));
            }
        }
    }
}

//! What must hold before a kernel runs. One function an operation, shared by both sides.

use std::ops::Range;

use candle_core::Tensor;

use super::{Attention, KvCache, KvShape, Matrix, RopeTable, misuse};
use crate::error::{Error, Result};
use crate::step::{PAGE, Step};
use crate::weights::{WeightTensor, blocks};

/// A two-dimensional weight whose bytes are all there: `(n, k, bytes of a row)`.
pub(super) fn matrix(w: &WeightTensor) -> Result<(usize, usize, usize)> {
    let bad = |what: String| Error::model_file(format!("the tensor {:?} {what}", w.name));
    let &[n, k] = w.shape.as_slice() else {
        return Err(bad(format!("has the shape {:?}, and a matrix was expected", w.shape)));
    };
    let row_bytes = w.dtype.row_bytes(k).filter(|_| k > 0);
    let row_bytes = row_bytes.ok_or_else(|| {
        bad(format!("has rows of {k} weights, which is not whole blocks of {}", w.dtype.name()))
    })?;
    if row_bytes.checked_mul(n) != Some(w.data.len()) {
        let have = w.data.len();
        return Err(bad(format!("[{n}, {k}] of type {} does not fit its {have} bytes", w.dtype.name())));
    }
    Ok((n, k, row_bytes))
}

/// A one-dimensional weight (or `[1, n]`) as f32.
pub(super) fn vector(w: &WeightTensor) -> Result<Vec<f32>> {
    let bad = |what: String| Error::model_file(format!("the tensor {:?} {what}", w.name));
    let (&[len] | &[1, len]) = w.shape.as_slice() else {
        return Err(bad(format!("has the shape {:?}, and a vector was expected", w.shape)));
    };
    if w.dtype.row_bytes(len) != Some(w.data.len()) {
        let have = w.data.len();
        return Err(bad(format!("[{len}] of type {} does not fit its {have} bytes", w.dtype.name())));
    }
    let mut values = vec![0.0; len];
    blocks::dequantize_row(w.dtype, &w.data, &mut values);
    Ok(values)
}

pub(super) fn ids(m: &Matrix, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= m.n) {
        Some(id) => Err(Error::invalid(format!("token id {id} is not below the {} of {:?}", m.n, m.name()))),
        None => Ok(()),
    }
}

/// `(rows, dim)` of an activation.
pub(super) fn dims(x: &Tensor) -> Result<(usize, usize)> {
    match *x.dims() {
        [rows, dim] => Ok((rows, dim)),
        _ => Err(misuse(format!("an activation has the shape {:?} instead of [rows, dim]", x.dims()))),
    }
}

pub(super) fn shape(what: &str, x: &Tensor, rows: usize, dim: usize) -> Result<()> {
    match dims(x)? == (rows, dim) {
        true => Ok(()),
        false => Err(misuse(format!("{what}: the shape is {:?} instead of [{rows}, {dim}]", x.dims()))),
    }
}

pub(super) fn same_shape(a: &Tensor, b: &Tensor) -> Result<()> {
    match a.dims() == b.dims() {
        true => Ok(()),
        false => Err(misuse(format!("the shapes {:?} and {:?} should be the same", a.dims(), b.dims()))),
    }
}

pub(super) fn linear(m: &Matrix, x: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (rows, _) = dims(x)?;
    shape(m.name(), x, rows, m.k)?;
    match bias {
        Some(bias) if bias.dims() != [m.n] => {
            Err(misuse(format!("{}: the bias is {:?} instead of [{}]", m.name(), bias.dims(), m.n)))
        }
        _ => Ok(()),
    }
}

pub(super) fn norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<()> {
    let (_, dim) = dims(x)?;
    let group = w.elem_count();
    let fits = w.dims().len() == 1 && group > 0 && dim.is_multiple_of(group);
    if !fits || b.is_some_and(|b| b.dims() != w.dims()) {
        let b = b.map(|b| b.dims().to_vec());
        return Err(misuse(format!("a norm of {:?} over rows of {dim} (bias {b:?})", w.dims())));
    }
    Ok(())
}

pub(super) fn rope(x: &Tensor, head_dim: usize, table: &RopeTable) -> Result<()> {
    let (rows, dim) = dims(x)?;
    let fits = head_dim > 0 && dim.is_multiple_of(head_dim) && table.rotated() <= head_dim;
    match fits && rows == table.rows() {
        true => Ok(()),
        false => Err(misuse(format!(
            "rope: {} rotated dimensions and {} rows for {:?} in heads of {head_dim}",
            table.rotated(),
            table.rows(),
            x.dims()
        ))),
    }
}

pub(super) fn rows(x: &Tensor, rows: &[u32]) -> Result<()> {
    let (have, _) = dims(x)?;
    match rows.iter().find(|&&row| row as usize >= have) {
        Some(row) => Err(misuse(format!("row {row} of {have} was selected"))),
        None => Ok(()),
    }
}

pub(super) fn page(page: u32, cache: &KvCache) -> Result<()> {
    match (page as usize) < cache.pages() {
        true => Ok(()),
        false => Err(misuse(format!("page {page} of a cache of {} pages", cache.pages()))),
    }
}

/// Spans cover the rows in order, positions are consecutive, and every page exists.
pub(super) fn step(step: &Step, cache: &KvCache) -> Result<()> {
    let mut next = 0;
    for (index, span) in step.spans.iter().enumerate() {
        let bad = |what: &str| Err(misuse(format!("span {index} of a step: {what}")));
        let Range { start, end } = span.rows;
        let Some(positions) = step.positions.get(start..end).filter(|_| start == next && start < end) else {
            return bad("its rows do not follow the span before it");
        };
        if positions.windows(2).any(|pair| pair[0].checked_add(1) != Some(pair[1])) {
            return bad("its positions are not consecutive");
        }
        let last = positions.last().map_or(0, |&p| p as usize);
        if last / PAGE >= span.pages.len() {
            return bad(&format!("{} pages do not cover position {last}", span.pages.len()));
        }
        for &id in &span.pages {
            page(id, cache)?;
        }
        next = end;
    }
    match next == step.rows() && step.positions.len() == step.rows() {
        true => Ok(()),
        false => Err(misuse(format!("the spans of a step cover {next} of {} rows", step.rows()))),
    }
}

/// The cache row of every row of a checked step.
pub(super) fn slots(step: &Step) -> Vec<u32> {
    let slots = step.spans.iter().flat_map(|span| {
        span.rows.clone().map(|row| span.slot(step.positions.get(row).map_or(0, |&p| p as usize)) as u32)
    });
    slots.collect()
}

pub(super) fn attention(q: &Tensor, kv: KvShape, step: &Step, a: &Attention) -> Result<()> {
    shape("queries", q, step.rows(), a.heads.saturating_mul(a.head_dim))?;
    let shared = KvShape { kv_heads: a.kv_heads, head_dim: a.head_dim };
    let grouped = a.kv_heads > 0 && a.head_dim > 0 && a.heads > 0 && a.heads.is_multiple_of(a.kv_heads);
    match kv == shared && grouped && a.window != Some(0) {
        true => Ok(()),
        false => Err(misuse(format!("attention {a:?} over a cache of {kv:?}"))),
    }
}

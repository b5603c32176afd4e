//! What must hold before a kernel runs. One function an operation, shared by both sides.

use std::ops::Range;

use super::experts::{Assignments, Expert, ExpertTerms};
use super::low_rank::Term;
use super::rows::Rows;
use super::types::{
    Attention, CausalConv, GatedNorm, Linear, Norm, Projection, RopeTable, Scan, ScanRows, ScanRule,
};
use super::{KvCache, KvShape, misuse};
use crate::cache::storage::LayerState;
use crate::config::NormKind;
use crate::error::{Error, Result};
use crate::step::Step;
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

pub(super) fn ids(name: &str, n: usize, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= n) {
        Some(id) => Err(Error::invalid(format!("token id {id} is not below the {n} of {name:?}"))),
        None => Ok(()),
    }
}

pub(super) fn whole_rows(len: usize, dim: usize) -> Result<()> {
    match dim > 0 && len.is_multiple_of(dim) {
        true => Ok(()),
        false => Err(misuse(format!("{len} numbers are not rows of {dim}"))),
    }
}

pub(super) fn shape(what: &str, x: &Rows, rows: usize, dim: usize) -> Result<()> {
    match x.dims() == (rows, dim) {
        true => Ok(()),
        false => Err(misuse(format!("{what}: the shape is {:?} instead of [{rows}, {dim}]", x.dims()))),
    }
}

/// Rows are whole groups of `width`, and the range lies in one.
pub(super) fn columns_of_groups(x: &Rows, width: usize, range: &Range<usize>) -> Result<()> {
    let dim = x.dims().1;
    match width > 0 && dim.is_multiple_of(width) && range.start < range.end && range.end <= width {
        true => Ok(()),
        false => Err(misuse(format!("columns {range:?} of groups of {width} in rows of {dim}"))),
    }
}

/// As many rows everywhere, of whole groups.
pub(super) fn joined(parts: &[&Rows], groups: usize) -> Result<()> {
    let rows = parts.first().map(|part| part.dims().0);
    let fits =
        |part: &&Rows| Some(part.dims().0) == rows && groups > 0 && part.dims().1.is_multiple_of(groups);
    match rows.is_some() && parts.iter().all(fits) {
        true => Ok(()),
        false => Err(misuse(format!("{} parts in {groups} groups", parts.len()))),
    }
}

/// `by` has as many rows as `x`, and from `start` on as many columns.
pub(super) fn columns(x: &Rows, by: &Rows, start: usize) -> Result<()> {
    let ((rows, dim), (other, width)) = (x.dims(), by.dims());
    match rows == other && start.checked_add(dim).is_some_and(|end| end <= width) {
        true => Ok(()),
        false => {
            Err(misuse(format!("columns from {start} on of rows [{other}, {width}] for [{rows}, {dim}]")))
        }
    }
}

pub(super) fn projection(projection: &Projection<'_>, x: &Rows) -> Result<()> {
    let Projection { linear, terms } = projection;
    let m = &linear.weight;
    shape(m.name(), x, x.dims().0, m.k)?;
    match &linear.bias {
        Some(bias) if bias.len() != m.n => {
            Err(misuse(format!("{}: the bias has {} elements instead of {}", m.name(), bias.len(), m.n)))
        }
        _ => low_rank_terms(m.name(), terms, [m.n, m.k], x.dims().0),
    }
}

/// Terms of a matrix `[n, k]`, whose rows ascend.
fn low_rank_terms(name: &str, terms: &[Term<'_>], [n, k]: [usize; 2], rows: usize) -> Result<()> {
    let mut next = 0;
    for Term { rows: own, low_rank } in terms {
        if own.start < next || own.end > rows || own.start > own.end || low_rank.dims() != (n, k) {
            let dims = low_rank.dims();
            return Err(misuse(format!("{name}: a term {dims:?} for rows {own:?} of {rows}")));
        }
        next = own.end;
    }
    Ok(())
}

/// Every expert takes rows as wide as `x` and gives rows as wide; the assignments are of these rows and
/// experts.
pub(super) fn experts(experts: &[Expert], x: &Rows, a: &Assignments, terms: &ExpertTerms<'_>) -> Result<()> {
    let (rows, dim) = x.dims();
    if a.row_count() != rows || a.experts().last().is_some_and(|(at, _)| *at >= experts.len()) {
        return Err(misuse(format!("{} experts for {rows} rows", experts.len())));
    }
    let inner = experts.first().map_or(0, |expert| expert.down.weight.k);
    let fits = |linear: &Linear, n: usize, k: usize| {
        let bias = linear.bias.as_ref().map_or(n, |bias| bias.len());
        (linear.weight.n, linear.weight.k, bias) == (n, k, n)
    };
    let gated = experts.first().is_some_and(|expert| expert.gate.is_some());
    let bad = experts.iter().find(|Expert { gate, up, down }| {
        let gate = gate.as_ref().map_or(!gated, |gate| gated && fits(gate, inner, dim));
        !(gate && fits(up, inner, dim) && fits(down, dim, inner))
    });
    match bad {
        Some(expert) => Err(misuse(format!("{}: an expert of another shape", expert.up.weight.name()))),
        None => expert_terms(terms, a.rows().len(), [inner, dim]),
    }
}

fn expert_terms(terms: &ExpertTerms<'_>, pairs: usize, [inner, dim]: [usize; 2]) -> Result<()> {
    low_rank_terms("gates", &terms.gate, [inner, dim], pairs)?;
    low_rank_terms("ups", &terms.up, [inner, dim], pairs)?;
    low_rank_terms("downs", &terms.down, [dim, inner], pairs)
}

/// Rows whose width the gate's divides, and as many of its rows.
pub(super) fn gate(gate: &Rows, x: &Rows) -> Result<()> {
    let ((rows, dim), (gates, width)) = (x.dims(), gate.dims());
    match rows == gates && width > 0 && dim.is_multiple_of(width) {
        true => Ok(()),
        false => Err(misuse(format!("a gate {:?} for rows {:?}", gate.dims(), x.dims()))),
    }
}

pub(super) fn norm(norm: &Norm, x: &Rows) -> Result<()> {
    let (dim, group) = (x.dims().1, norm.weight.len());
    let bias = norm.bias.as_ref().map(|bias| bias.len());
    match group > 0 && dim.is_multiple_of(group) && bias.is_none_or(|bias| bias == group) {
        true => Ok(()),
        false => Err(misuse(format!("a norm of {group} over rows of {dim} (bias {bias:?})"))),
    }
}

pub(super) fn heads(x: &Rows, head_dim: usize, norm: Option<&Norm>, table: Option<&RopeTable>) -> Result<()> {
    let (rows, dim) = x.dims();
    let of_all = |norm: &Norm| norm.weight.len() == dim && norm.bias.is_none();
    let normed = norm.is_none_or(|norm| norm.weight.len() == head_dim || of_all(norm));
    let turned = table.is_none_or(|table| table.rotated() <= head_dim && table.rows == rows);
    if head_dim > 0 && dim.is_multiple_of(head_dim) && normed && turned {
        return norm.map_or(Ok(()), |norm| self::norm(norm, x));
    }
    Err(misuse(format!(
        "heads of {head_dim} in rows {:?}, {:?}",
        x.dims(),
        table.map(|t| (t.rows, t.rotated()))
    )))
}

pub(super) fn rows(x: &Rows, rows: &[u32]) -> Result<()> {
    let (have, _) = x.dims();
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

pub(super) fn attention(q: &Rows, kv: KvShape, step: &Step, a: &Attention<'_>) -> Result<()> {
    shape("queries", q, step.rows(), a.heads.saturating_mul(a.head_dim))?;
    let shared = KvShape { kv_heads: a.kv_heads, head_dim: a.head_dim };
    let grouped = a.kv_heads > 0 && a.head_dim > 0 && a.heads > 0 && a.heads.is_multiple_of(a.kv_heads);
    let sinks = a.sinks.is_none_or(|sinks| sinks.len() == a.heads);
    match kv == shared && grouped && a.window != Some(0) && sinks {
        true => Ok(()),
        false => Err(misuse(format!("attention {a:?} over a cache of {kv:?}"))),
    }
}

/// Pages behind a group's window are gone: no row may look there.
pub(super) fn window(group: Option<usize>, a: &Attention<'_>) -> Result<()> {
    match (group, a.window) {
        (None, _) => Ok(()),
        (Some(kept), Some(window)) if window <= kept => Ok(()),
        _ => Err(misuse(format!("attention {a:?} over pages with a window of {group:?}"))),
    }
}

/// The rows of the step, and taps of one width; the state has room.
pub(super) fn causal_conv(x: &Rows, conv: &CausalConv, state: &LayerState, step: &Step) -> Result<()> {
    let (width, kernel) = (conv.width(), conv.kernel);
    shape("a convolution", x, step.rows(), conv.row_dim())?;
    let bias = conv.bias.as_ref().is_none_or(|bias| bias.len() == width);
    match width > 0 && conv.taps.len() == width * kernel && bias && state.state_len() >= conv.state_len() {
        true => Ok(()),
        false => Err(misuse(format!(
            "a convolution of {kernel} x {width} with {} taps over states of {}",
            conv.taps.len(),
            state.state_len()
        ))),
    }
}

/// Vectors of so many heads, the rows of the step, and a state with room.
pub(super) fn scan(rows: &ScanRows<'_>, scan: &Scan, state: &LayerState, step: &Step) -> Result<()> {
    let Scan { groups, heads, key_dim, value_dim, .. } = *scan;
    let sizes = [groups, heads, key_dim, value_dim].iter().all(|&size| size > 0);
    let (skip, delta) = match &scan.rule {
        ScanRule::Delta => (heads, true),
        ScanRule::Mamba2 { skip, .. } => (skip.len(), false),
    };
    let vectors = [scan.a.len(), scan.dt_bias.len(), skip].iter().all(|&len| len == heads);
    let room = state.state_len() >= scan.state_len() && rows.beta.is_some() == delta;
    if !(sizes && heads.is_multiple_of(groups) && vectors && room) {
        return Err(misuse(format!(
            "a scan of {heads} heads {key_dim} x {value_dim} in {groups} groups over states of {}",
            state.state_len()
        )));
    }
    shape("rows of a scan", &rows.x, step.rows(), scan.row_dim())?;
    [Some(rows.dt), rows.beta]
        .into_iter()
        .flatten()
        .try_for_each(|gate| shape("gates of a scan", gate, step.rows(), heads))
}

/// An RMS norm with weights for one group or for all.
pub(super) fn gated_norm(x: &Rows, gate: &Rows, gated: &GatedNorm) -> Result<()> {
    let GatedNorm { norm, groups, .. } = gated;
    let dim = x.dims().1;
    shape("a gate", gate, x.dims().0, dim)?;
    let whole = *groups > 0 && dim > 0 && dim.is_multiple_of(*groups);
    let plain = norm.kind == NormKind::Rms && norm.bias.is_none();
    match whole && plain && [dim, dim / groups].contains(&norm.weight.len()) {
        true => Ok(()),
        false => Err(misuse(format!("a gated norm of {groups} groups over rows of {dim}"))),
    }
}

//! Projections by name, and what adapters add to their outputs. They may change embeddings and logits, too.
//!
//! Nothing in a mixer or a feed-forward knows of adapters. Each projection passes through a [`Projector`],
//! which asks for the terms of its rows and hands them to the product: they enter before the epilogue (an
//! activation, a gate, the residual sum), where the product of a changed weight would.

use crate::config::Activation;
use crate::error::Result;
use crate::kernels::{Linear, Ops, Projection, Rows, Term};
use crate::weights::names::Part;

/// Which projection of which layer: [`Part::Q`], [`Part::K`], [`Part::V`], [`Part::O`], [`Part::Gate`],
/// [`Part::Up`], [`Part::Down`], [`Part::ConvIn`] or [`Part::ConvOut`], also where the checkpoint stores
/// several in one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectionId {
    pub layer: usize,
    pub part: Part,
}

impl ProjectionId {
    /// The head, which belongs to no layer.
    pub const HEAD: ProjectionId = ProjectionId { layer: usize::MAX, part: Part::Head };
}

/// What adapters change of a step.
pub trait Deltas: Sync {
    /// The terms of a projection for rows of the step, in ascending order: all of them, or, where `rows` are
    /// given, those alone, counted anew from 0.
    fn terms(&self, id: ProjectionId, rows: Option<&[u32]>) -> Vec<Term<'_>>;

    /// The embeddings of all rows of the step, `[rows, hidden]`: `x` are those of the base, times `scale`.
    ///
    /// # Errors
    /// What the operations say.
    fn embedded(&self, _ops: &Ops, _tokens: &[u32], x: Rows, _scale: f32) -> Result<Rows> {
        Ok(x)
    }

    /// The logits of some rows of the step before they are capped, `[rows, vocab]`; given those of the base
    /// with their terms, and the hidden states that the head reads.
    ///
    /// # Errors
    /// What the operations say.
    fn predicted(&self, _ops: &Ops, _rows: &[u32], _hidden: &Rows, logits: Rows) -> Result<Rows> {
        Ok(logits)
    }
}

/// The projections of one layer at work.
#[derive(Clone, Copy)]
pub(super) struct Projector<'a> {
    pub ops: &'a Ops,
    pub layer: usize,
    pub deltas: Option<&'a dyn Deltas>,
}

/// A projection and its name.
pub(super) type Named<'a> = (Part, &'a Linear);

impl<'a> Projector<'a> {
    /// See [`Deltas::terms`].
    pub fn terms(&self, part: Part, rows: Option<&[u32]>) -> Vec<Term<'a>> {
        let id = ProjectionId { layer: self.layer, part };
        self.deltas.map(|deltas| deltas.terms(id, rows)).unwrap_or_default()
    }

    /// See [`Ops::linears`]; `rows` as in [`Deltas::terms`].
    pub fn linears<const N: usize>(
        &self,
        named: [Named<'_>; N],
        x: &Rows,
        rows: Option<&[u32]>,
    ) -> Result<[Rows; N]> {
        let terms = named.map(|(part, _)| self.terms(part, rows));
        let mut at = terms.iter();
        let with_terms = |(_, linear)| Projection { linear, terms: at.next().map_or(&[], Vec::as_slice) };
        self.ops.linears(named.map(with_terms), x)
    }

    /// See [`Ops::linear`].
    pub fn linear(&self, named: Named<'_>, x: &Rows, rows: Option<&[u32]>) -> Result<Rows> {
        let [y] = self.linears([named], x, rows)?;
        Ok(y)
    }

    /// See [`Ops::linear_add`].
    pub fn linear_add(
        &self,
        (part, linear): Named<'_>,
        x: &Rows,
        to: Rows,
        rows: Option<&[u32]>,
    ) -> Result<Rows> {
        self.ops.linear_add(Projection { linear, terms: &self.terms(part, rows) }, x, to)
    }

    /// See [`Ops::gated`]; of a gate and what it lets through.
    pub fn gated(
        &self,
        (gate_part, gate): Named<'_>,
        (up_part, up): Named<'_>,
        x: &Rows,
        act: Activation,
        rows: Option<&[u32]>,
    ) -> Result<Rows> {
        let (g, u) = (self.terms(gate_part, rows), self.terms(up_part, rows));
        let gate = Projection { linear: gate, terms: &g };
        self.ops.gated(gate, Projection { linear: up, terms: &u }, x, act)
    }

    /// See [`Ops::activated`].
    pub fn activated(
        &self,
        (part, up): Named<'_>,
        x: &Rows,
        act: Activation,
        rows: Option<&[u32]>,
    ) -> Result<Rows> {
        self.ops.activated(Projection { linear: up, terms: &self.terms(part, rows) }, x, act)
    }
}

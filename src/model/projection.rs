//! Projections by name, and what may be added to their outputs: the seam for adapters.
//!
//! Nothing in a mixer or a feed-forward knows of adapters. Each projection passes through a [`Projector`],
//! which asks whether something is to be added to its rows, and hands it to the product: it enters before the
//! epilogue (an activation, a gate, the residual sum), where the product of a changed weight would.

use crate::config::Activation;
use crate::error::Result;
use crate::kernels::{Linear, Ops, Projection, Rows};
use crate::weights::names::Part;

/// Which projection of which layer: [`Part::Q`], [`Part::K`], [`Part::V`], [`Part::O`], [`Part::Gate`],
/// [`Part::Up`], [`Part::Down`], [`Part::ConvIn`] or [`Part::ConvOut`], also where the checkpoint stores
/// several in one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectionId {
    pub layer: usize,
    pub part: Part,
}

/// What is added to the outputs of projections.
pub trait Deltas: Sync {
    /// For the inputs `x` `[rows, in]` of a projection what is added to its outputs, `[rows, out]`; `None`:
    /// nothing. `rows` are the numbers of these rows in the step, or `None` if they are all of it.
    ///
    /// # Errors
    /// What the operations say.
    fn delta(&self, ops: &Ops, id: ProjectionId, x: &Rows, rows: Option<&[u32]>) -> Result<Option<Rows>>;
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

impl Projector<'_> {
    fn delta(&self, part: Part, x: &Rows, rows: Option<&[u32]>) -> Result<Option<Rows>> {
        let Some(deltas) = self.deltas else { return Ok(None) };
        deltas.delta(self.ops, ProjectionId { layer: self.layer, part }, x, rows)
    }

    /// See [`Ops::linears`]; `rows` as in [`Deltas::delta`].
    pub fn linears<const N: usize>(
        &self,
        named: [Named<'_>; N],
        x: &Rows,
        rows: Option<&[u32]>,
    ) -> Result<[Rows; N]> {
        let mut deltas = [const { None }; N];
        for (delta, (part, _)) in deltas.iter_mut().zip(&named) {
            *delta = self.delta(*part, x, rows)?;
        }
        let mut at = deltas.iter();
        let with_delta = |(_, linear)| Projection { linear, row_bias: at.next().and_then(Option::as_ref) };
        self.ops.linears(named.map(with_delta), x)
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
        let delta = self.delta(part, x, rows)?;
        self.ops.linear_add(Projection { linear, row_bias: delta.as_ref() }, x, to)
    }

    /// See [`Ops::gated`]; of a gate and what it lets through.
    pub fn gated(
        &self,
        gate: &Linear,
        up: &Linear,
        x: &Rows,
        act: Activation,
        rows: Option<&[u32]>,
    ) -> Result<Rows> {
        let (g, u) = (self.delta(Part::Gate, x, rows)?, self.delta(Part::Up, x, rows)?);
        let gate = Projection { linear: gate, row_bias: g.as_ref() };
        self.ops.gated(gate, Projection { linear: up, row_bias: u.as_ref() }, x, act)
    }

    /// See [`Ops::activated`].
    pub fn activated(&self, up: &Linear, x: &Rows, act: Activation, rows: Option<&[u32]>) -> Result<Rows> {
        let delta = self.delta(Part::Up, x, rows)?;
        self.ops.activated(Projection { linear: up, row_bias: delta.as_ref() }, x, act)
    }
}

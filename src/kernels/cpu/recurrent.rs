//! Layers with recurrent state on the CPU: whose columns are computed on which thread.

use super::CpuBackend;
use crate::cache::storage::LayerState;
use crate::config::GateFunction;
use crate::error::Result;
use crate::kernels::disjoint::DisjointSlices;
use crate::kernels::rows::Block;
use crate::kernels::scan::{self, FACTORS, Inputs, Panel};
use crate::kernels::types::{CausalConv, GatedNorm, Scan, ScanRows};
use crate::kernels::{CheckedStep, causal_conv, elementwise};

impl CpuBackend {
    pub(super) fn convolved(
        &self,
        x: &Block,
        conv: &CausalConv,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Block> {
        let (width, len) = (conv.width(), state.state_len());
        let mut out = self.recycler.block(x.rows, width);
        let rows = causal_conv::Rows::new(x.floats(), conv, step, &state.read_native()?, len);
        self.each_rows("conv", width, out.floats_mut(), |range, out| rows.compute(self.isa, range, out))?;
        rows.leave(&mut state.write_native()?, len);
        Ok(out)
    }

    pub(super) fn scanned(
        &self,
        rows: ScanRows<'_>,
        scan: &Scan,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Block> {
        let mut x = rows.x.into_block()?;
        let dt = rows.dt.block()?.floats();
        let beta = rows.beta.map(|beta| beta.block()).transpose()?.map(Block::floats);
        let factors = self.prepared(&mut x, dt, beta, scan)?;
        let mut out = self.recycler.block(x.rows, scan.width());
        let mut states = state.write_native()?;
        let before = scan::before(scan, step, &states, state.state_len());
        let (states, columns) = (DisjointSlices::new(&mut states), DisjointSlices::new(out.floats_mut()));
        // The first task of each span, and how many there are.
        let columns_of = |span: usize| scan::panel_columns(step.spans[span].rows.len());
        let panels_of = |span: usize| scan.value_dim.div_ceil(columns_of(span));
        let (mut firsts, mut tasks) = (Vec::with_capacity(step.spans.len()), 0);
        for span in 0..step.spans.len() {
            firsts.push(tasks);
            tasks += scan.heads * panels_of(span);
        }
        self.pool.run("scan", tasks, &|task| {
            let span = firsts.partition_point(|&first| first <= task) - 1;
            let (place, panels, most) = (task - firsts[span], panels_of(span), columns_of(span));
            let first = place % panels * most;
            let panel = Panel {
                scan,
                x: x.floats(),
                factors: factors.floats(),
                rows: step.spans[span].rows.clone(),
                head: place / panels,
                columns: first..scan.value_dim.min(first + most),
                before: &before[span],
                writes: &step.spans[span].state.writes,
                states: &states,
                state_len: state.state_len(),
                out: &columns,
            };
            // SAFETY: each task runs once, and has its own columns of its own span. Of the slots, no two
            // spans write to one (a checked step), and what a span reads of one that another writes was
            // copied.
            unsafe { scan::walk(self.isa, panel) };
        })?;
        Ok(out)
    }

    /// Decays, strengths and products of the rows, and their keys and queries normed.
    fn prepared(&self, x: &mut Block, dt: &[f32], beta: Option<&[f32]>, scan: &Scan) -> Result<Block> {
        let (dim, heads) = (x.dim, scan.heads);
        let mut factors = self.recycler.block(x.rows, FACTORS * heads);
        let of_row = DisjointSlices::new(factors.floats_mut());
        self.each_rows("scan inputs", dim, x.floats_mut(), |rows, x| {
            let own = rows.start * heads..rows.end * heads;
            // SAFETY: the same rows as those of `x`, which no two tasks have in common.
            let factors = unsafe { of_row.slice_mut(FACTORS * own.start..FACTORS * own.end) };
            let (dt, beta) = (&dt[own.clone()], beta.map(|beta| &beta[own]));
            scan::prepare(self.isa, scan, Inputs { x, dt, beta, factors });
        })?;
        Ok(factors)
    }

    pub(super) fn gated_rows(&self, x: &mut Block, gate: &Block, f: GateFunction) -> Result<()> {
        let (dim, gates) = (x.dim, gate.dim);
        self.each_rows("gate", dim, x.floats_mut(), |rows, x| {
            let gate = &gate.floats()[rows.start * gates..rows.end * gates];
            elementwise::gate(self.isa, f, gate, dim / gates, x);
        })
    }

    pub(super) fn norm_and_gate(&self, x: &mut Block, gate: &Block, gated: &GatedNorm) -> Result<()> {
        let (dim, len) = (x.dim, x.dim / gated.groups);
        let whole = super::of(&gated.norm);
        self.each_rows("gated norm", dim, x.floats_mut(), |rows, x| {
            let gate = &gate.floats()[rows.start * dim..rows.end * dim];
            if gated.gate_first {
                elementwise::gate(self.isa, GateFunction::Silu, gate, 1, x);
            }
            super::norm_groups(self.isa, whole, len, x);
            if !gated.gate_first {
                elementwise::gate(self.isa, GateFunction::Silu, gate, 1, x);
            }
        })
    }
}

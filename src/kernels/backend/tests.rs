//! A backend of nobody else's making: it counts calls and lets another compute. Everything that it needed is
//! here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::config::{NormKind, Routing};
use crate::kernels::{ExpertTerms, KvShape, KvType, Linear, Ops};
use crate::step::Step;
use crate::weights::{Bytes, WeightType};

struct Counting {
    calls: Arc<AtomicUsize>,
    inner: Ops,
}

/// Methods that count and delegate.
macro_rules! counted {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $result:ty;)*) => {$(
        fn $name(&self, $($arg: $ty),*) -> $result {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.inner.0.$name($($arg),*)
        }
    )*};
}

impl Backend for Counting {
    fn device(&self) -> &Device {
        self.inner.device()
    }
    fn describe(&self) -> String {
        format!("counted {}", self.inner.describe())
    }

    counted! {
        fn dtype() -> DType;
        fn matrix(w: &WeightTensor, n: usize, k: usize, row_bytes: usize) -> Result<Stored>;
        fn vector(values: &[f32]) -> Result<Option<Opaque>>;
        fn rows(values: Vec<f32>, dim: usize) -> Result<Rows>;
        fn floats(x: Rows) -> Result<Vec<f32>>;
        fn embed(m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows>;
        fn linears(linears: &[Projection<'_>], x: &Rows) -> Result<Vec<Rows>>;
        fn linear_add(linear: Projection<'_>, x: &Rows, to: Rows) -> Result<Rows>;
        fn gated(gate: Projection<'_>, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows>;
        fn activated(up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows>;
        fn experts(
            experts: &[Expert],
            act: Activation,
            x: &Rows,
            a: &Assignments,
            terms: &ExpertTerms<'_>,
        ) -> Result<Rows>;
        fn norm(norm: &Norm, x: &Rows, to: Option<Rows>) -> Result<Rows>;
        fn scale_rows(x: &Rows, factors: &[f32]) -> Result<Rows>;
        fn rope_table(inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<Opaque>;
        fn heads(x: Rows, head_dim: usize, norm: Option<&Norm>, table: Option<&RopeTable>) -> Result<Rows>;
        fn soft_cap(x: Rows, cap: f32) -> Result<Rows>;
        fn select_rows(x: &Rows, rows: &[u32]) -> Result<Rows>;
        fn kv_format() -> KvFormat;
        fn is_exact() -> bool;
        fn kv_cache(layout: &KvLayout, pages: usize) -> Result<KvCache>;
        fn kv_write(kv: &LayerKv, k: &Rows, v: &Rows, slots: &[u32]) -> Result<()>;
        fn attention(
            q: &Rows,
            kv: &LayerKv,
            group: usize,
            step: &CheckedStep<'_>,
            a: &Attention<'_>
        ) -> Result<Rows>;
        fn causal_conv(
            x: &Rows,
            conv: &CausalConv,
            state: &LayerState,
            step: &CheckedStep<'_>
        ) -> Result<Rows>;
        fn scan(
            rows: ScanRows<'_>,
            scan: &Scan,
            state: &LayerState,
            step: &CheckedStep<'_>
        ) -> Result<Rows>;
        fn gated_norm(x: Rows, gate: &Rows, norm: &GatedNorm) -> Result<Rows>;
        fn add(x: &Rows, scale: f32, to: Rows) -> Result<Rows>;
        fn mul(x: Rows, by: &Rows, start: usize) -> Result<Rows>;
        fn columns(x: &Rows, width: usize, range: Range<usize>) -> Result<Rows>;
        fn joined(parts: &[&Rows], groups: usize) -> Result<Rows>;
        fn output_gate(x: Rows, gate: Rows, function: GateFunction) -> Result<Rows>;
    }
}

/// A layer of everything, after which little is zero.
fn layer(ops: &Ops) -> Result<Vec<f32>> {
    const DIM: usize = 64;
    let float = |at: usize| ((at * 7919) % 1009) as f32 / 1009.0 - 0.4;
    let tensor = |shape: Vec<usize>| {
        let bytes = (0..shape.iter().product()).flat_map(|at| float(at).to_le_bytes()).collect();
        let (name, data) = ("w".into(), Bytes::from_vec(bytes));
        WeightTensor { name, dtype: WeightType::F32, shape, data }
    };
    let w = Linear { weight: ops.matrix(&tensor(vec![DIM, DIM]))?, scale: 1.0, bias: None, outlier: 8.0 };
    let weight = ops.vector(&tensor(vec![DIM]), 1.0)?;
    let norm = Norm { kind: NormKind::Rms, eps: 1e-6, weight, bias: None };
    let a = Attention {
        heads: 1,
        kv_heads: 1,
        head_dim: DIM,
        scale: 0.1,
        causal: true,
        window: None,
        soft_cap: None,
        sinks: None,
    };
    let mut step = Step::default();
    step.push(&[3, 1, 2], 0, vec![0]);
    let cache = ops.kv_cache(&KvLayout::single(&[KvShape { kv_heads: 1, head_dim: DIM }]), 1)?;
    let step = ops.checked_step(&step, &cache)?;
    let table = ops.rope_table(&[1.0, 0.1], 1.0, &[0, 1, 2])?;
    let x = ops.norm(&norm, &ops.embed(&w.weight, &[3, 1, 2], Some(2.0))?)?;
    let [q, k] = ops.linears([&w, &w], &x)?;
    let q = ops.heads(q, DIM, Some(&norm), Some(&table))?;
    ops.kv_write(&cache, 0, &k, &x, &step)?;
    let x = ops.linear_add(&w, &ops.attention(&q, &cache, 0, &step, &a)?, x)?;
    let x = ops.norm_add(&norm, &ops.gated(&w, &w, &x, Activation::Silu)?, x)?;
    let x = ops.activated(&w, &ops.select_rows(&x, &[2, 0])?, Activation::Gelu)?;
    let routing = Routing { scale: 64.0, ..Routing::plain(2) };
    let assignments = ops.route(ops.select_rows(&x, &[1, 0])?, &routing, None)?;
    let experts = vec![Expert { gate: Some(w.clone()), up: w.clone(), down: w.clone() }; DIM];
    let x = ops.experts(&experts, Activation::Silu, &x, &assignments, &ExpertTerms::default())?;
    let x = ops.add(&x, 0.5, ops.select_rows(&x, &[1, 0])?)?;
    let by = ops.select_rows(&x, &[0, 0])?;
    let x = ops.mul(x, &by, 0)?;
    let halves = [ops.columns(&x, 8, 0..3)?, ops.columns(&x, 8, 3..8)?];
    let x = ops.joined(&[&halves[1], &halves[0]], DIM / 8)?;
    let gate = ops.select_rows(&x, &[1, 0])?;
    let x = ops.output_gate(x, gate, GateFunction::Sigmoid)?;
    let gated = GatedNorm { norm, groups: 1, gate_first: true };
    let x = ops.gated_norm(x, &ops.select_rows(&k, &[2, 1])?, &gated)?;
    ops.into_vec(ops.soft_cap(x, 3.0)?)
}

#[test]
fn a_further_backend_needs_nothing_of_the_facade_nor_of_the_data() {
    let inners = [Ops::cpu(2, KvType::F32).unwrap(), Ops::candle(Device::Cpu, DType::F32)];
    for inner in inners {
        let calls = Arc::<AtomicUsize>::default();
        let counted = Ops::of(Counting { calls: calls.clone(), inner: inner.clone() });
        assert_eq!(layer(&counted).unwrap(), layer(&inner).unwrap(), "{counted:?}");
        assert_eq!(calls.load(Ordering::Relaxed), 31, "{counted:?}");
    }
}

//! What is wrong is an error, what is empty stays empty, and a forked child goes on alone.

use tallow::config::{NormKind, Routing};
use tallow::error::{ErrorKind, Result};
use tallow::kernels::{
    Activation, Attention, Expert, ExpertTerms, KvCache, KvLayout, KvShape, KvType, Linear, Norm, Ops, Rows,
};
use tallow::step::Step;
use tallow::weights::{WeightTensor, WeightType};

use crate::support::*;

/// What is wrong, what came of it, and what should.
type Wrong = (&'static str, Result<()>, ErrorKind);

const SHAPE: KvShape = KvShape { kv_heads: 1, head_dim: 64 };

/// Two sides of which one is in use, and things to be used wrongly.
struct Bench<'a> {
    ops: &'a Ops,
    other: &'a Ops,
    w: WeightTensor,
    m: Linear,
    x: Rows,
    odd: Rows,
    cache: KvCache,
}

impl<'a> Bench<'a> {
    fn new(ops: &'a Ops, other: &'a Ops) -> Self {
        let mut random = Random(1);
        let w = weights(WeightType::Q8_0, 8, 64, &mut random);
        let (x, odd) = (random.table(3, 64).on(ops), random.table(3, 65).on(ops));
        let cache = ops.kv_cache(&KvLayout::single(&[SHAPE]), 2).unwrap();
        Bench { ops, other, m: linear(ops, &w, None), w, x, odd, cache }
    }

    fn rows(&self, rows: usize, dim: usize) -> Rows {
        Random(2).table(rows, dim).on(self.ops)
    }

    fn norm(&self, len: usize, bias: Option<usize>) -> Norm {
        let ones = |len| vector(self.ops, &vec![1.0; len]);
        Norm { kind: NormKind::Rms, eps: 1e-6, weight: ones(len), bias: bias.map(ones) }
    }

    fn shaped(&self, shape: &[usize]) -> WeightTensor {
        WeightTensor { shape: shape.to_vec(), ..self.w.clone() }
    }

    fn step(&self, pages: &[u32], rows: usize) -> Step {
        let mut step = Step::default();
        step.push(&vec![0; rows], 0, pages.to_vec());
        step
    }

    fn attend(&self, layer: usize, step: &Step, change: fn(&mut Attention<'_>)) -> Result<()> {
        let mut a = Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            scale: 1.0,
            causal: true,
            window: None,
            soft_cap: None,
            sinks: None,
        };
        change(&mut a);
        let step = self.ops.checked_step(step, &self.cache)?;
        self.ops.attention(&self.x, &self.cache, layer, &step, &a).map(drop)
    }

    fn products(&self) -> Vec<Wrong> {
        let Bench { ops, other, w, m, x, odd, .. } = self;
        let (foreign, narrow) =
            (linear(other, w, None), linear(ops, &weights(w.dtype, 7, 64, &mut Random(3)), None));
        let biased = Linear { bias: Some(vector(ops, &[0.0; 9])), ..m.clone() };
        let foreign_rows = Random(1).table(3, 64).on(other);
        vec![
            ("an id", ops.embed(&m.weight, &[1, 8], None).map(drop), ErrorKind::InvalidRequest),
            ("k", ops.linear(m, odd).map(drop), ErrorKind::Internal),
            ("k of the second", ops.linears([m, m], odd).map(drop), ErrorKind::Internal),
            ("bias", ops.linear(&biased, x).map(drop), ErrorKind::Internal),
            ("foreign matrix", ops.linear(&foreign, x).map(drop), ErrorKind::Internal),
            ("foreign embedding", ops.embed(&foreign.weight, &[1], None).map(drop), ErrorKind::Internal),
            ("foreign rows", ops.linear(m, &foreign_rows).map(drop), ErrorKind::Internal),
            ("a sum of other rows", ops.linear_add(m, x, self.rows(2, 8)).map(drop), ErrorKind::Internal),
            ("a sum of other columns", ops.linear_add(m, x, self.rows(3, 9)).map(drop), ErrorKind::Internal),
            (
                "a foreign sum",
                ops.linear_add(m, x, Random(1).table(3, 8).on(other)).map(drop),
                ErrorKind::Internal,
            ),
            ("widths", ops.gated(m, &narrow, x, Activation::Silu).map(drop), ErrorKind::Internal),
            ("gate", ops.gated(&biased, m, x, Activation::Silu).map(drop), ErrorKind::Internal),
            ("up", ops.gated(m, &biased, x, Activation::Silu).map(drop), ErrorKind::Internal),
            ("activated", ops.activated(m, odd, Activation::Relu).map(drop), ErrorKind::Internal),
            ("blocks", ops.matrix(&self.shaped(&[8, 65])).map(drop), ErrorKind::ModelFile),
            ("no columns", ops.matrix(&self.shaped(&[8, 0])).map(drop), ErrorKind::ModelFile),
            ("bytes", ops.matrix(&self.shaped(&[9, 64])).map(drop), ErrorKind::ModelFile),
            ("overflow", ops.matrix(&self.shaped(&[1 << 60, 64])).map(drop), ErrorKind::ModelFile),
            ("flat matrix", ops.matrix(&self.shaped(&[512])).map(drop), ErrorKind::ModelFile),
            ("square vector", ops.vector(w, 0.0).map(drop), ErrorKind::ModelFile),
            ("short vector", ops.vector(&self.shaped(&[480]), 0.0).map(drop), ErrorKind::ModelFile),
        ]
    }

    fn others(&self) -> Vec<Wrong> {
        let Bench { ops, x, .. } = self;
        let (wide, few) = (&[0.0; 33][..], &[0u32, 1][..]);
        let heads = |head_dim, norm: Option<usize>, frequencies: &[f32], positions: &[u32]| {
            let table = ops.rope_table(frequencies, 1.0, positions)?;
            let norm = norm.map(|len| self.norm(len, None));
            ops.heads(self.rows(3, 64), head_dim, norm.as_ref(), Some(&table)).map(drop)
        };
        let experts = |down: &Linear, rows: usize, count: usize| {
            let assignments = ops.route(self.rows(rows, count), &Routing::plain(2), None)?;
            let expert = Expert { gate: Some(self.m.clone()), up: self.m.clone(), down: down.clone() };
            ops.experts(&vec![expert; 2], Activation::Silu, x, &assignments, &ExpertTerms::default())
                .map(drop)
        };
        let down = linear(ops, &weights(WeightType::F32, 64, 8, &mut Random(4)), None);
        vec![
            ("an expert of another shape", experts(&self.m, 3, 2), ErrorKind::Internal),
            ("an expert that is not there", experts(&down, 3, 5), ErrorKind::Internal),
            ("experts of other rows", experts(&down, 2, 2), ErrorKind::Internal),
            ("two of one expert", experts(&down, 3, 1), ErrorKind::Internal),
            ("broken rows", ops.rows(vec![0.0; 7], 3).map(drop), ErrorKind::Internal),
            ("rows of nothing", ops.rows(vec![], 0).map(drop), ErrorKind::Internal),
            ("norm", ops.norm(&self.norm(60, None), x).map(drop), ErrorKind::Internal),
            ("norm of nothing", ops.norm(&self.norm(0, None), x).map(drop), ErrorKind::Internal),
            ("bias of a norm", ops.norm(&self.norm(64, Some(32)), x).map(drop), ErrorKind::Internal),
            (
                "norm_add",
                ops.norm_add(&self.norm(64, None), x, self.rows(3, 65)).map(drop),
                ErrorKind::Internal,
            ),
            ("mul of other rows", ops.mul(self.rows(2, 8), x, 0).map(drop), ErrorKind::Internal),
            ("mul beyond the columns", ops.mul(self.rows(3, 8), x, 57).map(drop), ErrorKind::Internal),
            ("head_dim", heads(60, None, &[0.0], &[0; 3]), ErrorKind::Internal),
            ("no head_dim", heads(0, None, &[], &[0; 3]), ErrorKind::Internal),
            ("norm of heads", heads(32, Some(48), &[0.0], &[0; 3]), ErrorKind::Internal),
            ("too much is rotated", heads(64, None, wide, &[0; 3]), ErrorKind::Internal),
            ("rows of a table", heads(64, None, &[0.0], few), ErrorKind::Internal),
            ("rows", ops.select_rows(x, &[3]).map(drop), ErrorKind::Internal),
        ]
    }

    fn caches(&self) -> Vec<Wrong> {
        let Bench { ops, other, x, odd, cache, .. } = self;
        let layout = KvLayout::single(&[SHAPE]);
        let (good, foreign) = (self.step(&[0], 3), other.kv_cache(&layout, 2).unwrap());
        let longer = ops.kv_cache(&layout, 3).unwrap();
        let gap = Step { positions: vec![0, 2, 3], ..good.clone() };
        let mut hole = good.clone();
        let mut short = good.clone();
        short.spans[0].len = 2;
        let mut long = good.clone();
        long.spans[0].len = 17;
        hole.spans[0].rows = 1..3;
        let mut groups = good.clone();
        groups.spans[0].pages.push(vec![1]);
        let keep: fn(&mut Attention) = |_| ();
        let write =
            |layer, v: &Rows, step: &Step| ops.kv_write(cache, layer, x, v, &ops.checked_step(step, cache)?);
        let checked = |cache| ops.checked_step(&good, cache).unwrap();
        vec![
            ("page", write(0, x, &self.step(&[2], 3)), ErrorKind::Internal),
            ("layer", write(1, x, &good), ErrorKind::Internal),
            ("width", write(0, odd, &good), ErrorKind::Internal),
            ("foreign cache", ops.kv_write(&foreign, 0, x, x, &checked(&foreign)), ErrorKind::Internal),
            (
                "another cache than it was checked with",
                ops.kv_write(cache, 0, x, x, &checked(&longer)),
                ErrorKind::Internal,
            ),
            ("page tables", write(0, x, &groups), ErrorKind::Internal),
            ("layer of attention", self.attend(1, &good, keep), ErrorKind::Internal),
            ("a length within the rows", self.attend(0, &short, keep), ErrorKind::Internal),
            ("a length beyond the pages", self.attend(0, &long, keep), ErrorKind::Internal),
            ("too few pages", self.attend(0, &self.step(&[], 3), keep), ErrorKind::Internal),
            ("rows of a step", self.attend(0, &self.step(&[0], 2), keep), ErrorKind::Internal),
            ("positions", self.attend(0, &gap, keep), ErrorKind::Internal),
            ("a row of no span", self.attend(0, &hole, keep), ErrorKind::Internal),
            ("heads", self.attend(0, &good, |a| a.heads = 2), ErrorKind::Internal),
            ("no heads", self.attend(0, &good, |a| a.heads = 0), ErrorKind::Internal),
            ("no key heads", self.attend(0, &good, |a| a.kv_heads = 0), ErrorKind::Internal),
            ("head_dim", self.attend(0, &good, |a| (a.heads, a.head_dim) = (2, 32)), ErrorKind::Internal),
            ("nothing is seen", self.attend(0, &good, |a| a.window = Some(0)), ErrorKind::Internal),
            ("memory", ops.kv_cache(&layout, 1 << 55).map(drop), ErrorKind::OutOfMemory),
            ("too many pages", ops.kv_cache(&layout, usize::MAX).map(drop), ErrorKind::OutOfMemory),
        ]
    }
}

#[test]
fn what_is_wrong_is_an_error_on_both_sides() {
    for (ops, other) in [(cpu(2), candle()), (candle(), cpu(1))] {
        let bench = Bench::new(&ops, &other);
        let all = [bench.products(), bench.others(), bench.caches()].into_iter().flatten();
        let kinds = |(what, result, kind): Wrong| (what, result.map_err(|error| error.kind()), kind);
        each(all.map(kinds), |&(what, found, wanted)| match found {
            Err(kind) if kind == wanted => Ok(()),
            _ => Err(format!("{what} on {ops:?}: {found:?}")),
        });
    }
    for kind in [KvType::F32, KvType::BF16] {
        let error = Ops::cpu(0, kind).map(drop).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::InvalidRequest));
    }
}

#[test]
fn nothing_to_compute_is_nothing_computed() {
    let w = weights(WeightType::Q4_1, 8, 64, &mut Random(1));
    for ops in [cpu(2), candle()] {
        let m = linear(&ops, &w, None);
        let none = || ops.embed(&m.weight, &[], Some(2.0)).unwrap();
        let narrow = || ops.linear(&m, &none()).unwrap();
        let norm = Norm { kind: NormKind::Rms, eps: 1e-6, weight: vector(&ops, &[1.0; 64]), bias: None };
        let table = ops.rope_table(&[1.0], 1.0, &[]).unwrap();
        let cache = ops.kv_cache(&KvLayout::single(&[SHAPE]), 1).unwrap();
        let a = Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            scale: 1.0,
            causal: true,
            window: None,
            soft_cap: None,
            sinks: None,
        };
        let step = &Step::default();
        let step = ops.checked_step(step, &cache).unwrap();
        ops.kv_write(&cache, 0, &none(), &none(), &step).unwrap();
        let empty = [
            ("embed", none(), 64),
            ("linear", narrow(), 8),
            ("linear_add", ops.linear_add(&m, &none(), narrow()).unwrap(), 8),
            ("gated", ops.gated(&m, &m, &none(), Activation::Gelu).unwrap(), 8),
            ("activated", ops.activated(&m, &none(), Activation::Gelu).unwrap(), 8),
            ("norm", ops.norm(&norm, &none()).unwrap(), 64),
            ("norm_add", ops.norm_add(&norm, &none(), none()).unwrap(), 64),
            ("mul", ops.mul(none(), &none(), 0).unwrap(), 64),
            ("heads", ops.heads(none(), 64, Some(&norm), Some(&table)).unwrap(), 64),
            ("soft_cap", ops.soft_cap(none(), 2.0).unwrap(), 64),
            ("select_rows", ops.select_rows(&Random(1).table(2, 64).on(&ops), &[]).unwrap(), 64),
            ("attention", ops.attention(&none(), &cache, 0, &step, &a).unwrap(), 64),
        ];
        for (what, rows, dim) in empty {
            assert_eq!(rows.dims(), (0, dim), "{what} on {ops:?}");
            assert_eq!(ops.into_vec(rows).unwrap(), Vec::<f32>::new(), "{what} on {ops:?}");
        }
    }
}

/// After `fork` the child has no workers: it must compute alone, and wait for none of them, not even at its
/// end.
#[cfg(unix)]
#[test]
fn a_forked_child_computes_alone_and_does_not_hang() {
    let mut random = Random(1);
    let (w, x) = (weights(WeightType::Q8_0, 640, 256, &mut random), random.table(4, 256));
    let ops = cpu(4);
    let m = linear(&ops, &w, None);
    let product = || table(&ops, ops.linear(&m, &x.on(&ops)).unwrap());
    let wanted = product();
    // SAFETY: the child computes, and leaves without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let right = same("child", &product(), &wanted).is_ok();
        drop(ops);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if right { 0 } else { 1 }) };
    }
    assert!(child > 0);
    let start = std::time::Instant::now();
    let mut status = 0;
    // SAFETY: `status` is ours, `child` is our child.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if start.elapsed().as_secs() > 20 {
            // SAFETY: as above.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the child hangs");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(status, 0, "the child's exit status");
    same("the parent goes on", &product(), &wanted).unwrap();
}

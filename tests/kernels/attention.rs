//! Attention over pages, in scenes: several sequences in one cache, some with a history.

use tallow::error::ErrorKind;
use tallow::kernels::{Attention, KvCache, KvLayout, KvShape, KvType, Ops};
use tallow::step::{PAGE, Step};

use crate::support::*;

/// Sequences in one cache: `(positions before this step, rows of this step)` each.
#[derive(Clone, Debug)]
pub struct Scene {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub causal: bool,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    pub sinks: Option<&'static [f32]>,
    pub sequences: Vec<(usize, usize)>,
}

/// A step of a scene: positions `from..to` of each sequence, and whether they are wanted.
struct Cut {
    from: Vec<usize>,
    to: Vec<usize>,
    wanted: bool,
}

impl Scene {
    pub fn attention(&self) -> Attention<'_> {
        Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            causal: self.causal,
            window: self.window,
            soft_cap: self.soft_cap,
            sinks: self.sinks,
        }
    }

    pub fn shape(&self) -> KvShape {
        KvShape { kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// Keys, values and queries of sequence `index` at all its positions.
    pub fn rows(&self, index: usize) -> [Table; 3] {
        let mut random = Random(index as u64 + 100);
        let len = self.sequences[index].0 + self.sequences[index].1;
        let width = self.shape().width();
        let mut scaled = |width, factor: f32| random.table(len, width).map(|x| x * factor);
        [scaled(width, 3.0), scaled(width, 1.0), scaled(self.heads * self.head_dim, 3.0)]
    }

    fn all(&self) -> Vec<usize> {
        (0..self.sequences.len()).collect()
    }

    /// Runs the sequences `which` in steps of `chunk` rows a sequence (all before the last step are history)
    /// and returns the outputs of the last `rows` of each. Pages are dealt in an order that `deal` decides.
    fn run(&self, ops: &Ops, which: &[usize], chunk: usize, deal: u64) -> Vec<Table> {
        let pages: Vec<usize> =
            self.sequences.iter().map(|(before, rows)| (before + rows).div_ceil(PAGE)).collect();
        let total = pages.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..total as u32).collect();
        Random(deal).shuffle(&mut free);
        let cache = ops.kv_cache(&KvLayout::single(&[self.shape(), self.shape()]), total).unwrap();
        poison(ops, &cache, total, self.shape().width());
        let pages: Vec<Vec<u32>> = pages.iter().map(|&count| free.drain(..count).collect()).collect();
        let sources: Vec<_> = which.iter().map(|&index| self.rows(index)).collect();
        let mut outputs: Vec<Vec<Table>> = vec![Vec::new(); which.len()];
        let whole: Vec<usize> = which.iter().map(|&i| self.sequences[i].0 + self.sequences[i].1).collect();
        // What bidirectional rows see is there before any of them is computed.
        let first = Cut { from: vec![0; which.len()], to: whole.clone(), wanted: false };
        let first = Some(first).filter(|_| !self.causal);
        for Cut { from, to, wanted } in first.into_iter().chain(self.cuts(which, chunk)) {
            let here: Vec<usize> = (0..which.len()).filter(|&slot| from[slot] < to[slot]).collect();
            let mut step = Step::default();
            for &slot in &here {
                step.push(&vec![0; to[slot] - from[slot]], from[slot], pages[which[slot]].clone());
            }
            let gather = |part: usize| {
                let rows: Vec<_> =
                    here.iter().map(|&s| sources[s][part].part(from[s], to[s] - from[s])).collect();
                Table::cat(&rows).on(ops)
            };
            let checked = ops.checked_step(&step, &cache).unwrap();
            ops.kv_write(&cache, 1, &gather(0), &gather(1), &checked).unwrap();
            if !self.causal {
                step.spans.iter_mut().zip(&here).for_each(|(span, &slot)| span.len = whole[slot]);
            }
            let checked = ops.checked_step(&step, &cache).unwrap();
            let out = ops.attention(&gather(2), &cache, 1, &checked, &self.attention()).unwrap();
            let out = table(ops, out);
            for (&slot, span) in here.iter().zip(&step.spans).filter(|_| wanted) {
                outputs[slot].push(out.part(span.rows.start, span.rows.len()));
            }
        }
        outputs.iter().map(|parts| Table::cat(parts)).collect()
    }

    /// History in one step, the rest in chunks.
    fn cuts(&self, which: &[usize], chunk: usize) -> Vec<Cut> {
        let before: Vec<usize> = which.iter().map(|&i| self.sequences[i].0).collect();
        let end: Vec<usize> = which.iter().map(|&i| self.sequences[i].0 + self.sequences[i].1).collect();
        let mut cuts = Vec::new();
        if before.iter().any(|&b| b > 0) {
            cuts.push(Cut { from: vec![0; which.len()], to: before.clone(), wanted: false });
        }
        let mut from = before;
        while from != end {
            let to: Vec<usize> = from.iter().zip(&end).map(|(f, e)| *e.min(&(f + chunk))).collect();
            cuts.push(Cut { from, to: to.clone(), wanted: true });
            from = to;
        }
        cuts
    }
}

/// Fills every page with NaN: what was not written in this test must not be read.
fn poison(ops: &Ops, cache: &KvCache, pages: usize, width: usize) {
    let mut step = Step::default();
    step.push(&vec![0; pages * PAGE], 0, (0..pages as u32).collect());
    let nan = Table { dim: width, values: vec![f32::NAN; pages * PAGE * width] }.on(ops);
    ops.kv_write(cache, 1, &nan, &nan, &ops.checked_step(&step, cache).unwrap()).unwrap();
}

fn scenes() -> Vec<Scene> {
    let scene = |(heads, kv_heads, head_dim), window, soft_cap, sequences: &[(usize, usize)]| Scene {
        heads,
        kv_heads,
        head_dim,
        causal: true,
        window,
        soft_cap,
        sinks: None,
        sequences: sequences.to_vec(),
    };
    let both = |heads, window, sequences: &[(usize, usize)]| Scene {
        causal: false,
        ..scene(heads, window, None, sequences)
    };
    vec![
        Scene {
            sinks: Some(&[1.5, -2.0, 0.0, 8.0, -90.0, 90.0, 3.0, 2.0, 1.0]),
            ..scene((9, 3, 64), Some(100), None, &[(0, 40), (17, 1), (600, 3)])
        },
        scene((1, 1, 16), None, None, &[(0, 1)]),
        scene((2, 2, 20), None, None, &[(0, 5), (3, 1)]),
        scene((9, 3, 64), None, None, &[(0, 40), (17, 1), (100, 3), (15, 1)]),
        scene((4, 1, 256), Some(24), None, &[(0, 37), (64, 1), (30, 20)]),
        scene((8, 4, 80), Some(1), Some(5.0), &[(0, 18), (33, 2)]),
        scene((14, 2, 64), Some(16), Some(50.0), &[(47, 33), (0, 1)]),
        scene((3, 3, 36), Some(1000), Some(2.0), &[(5, 30), (0, 17), (16, 1)]),
        // Over the chunks of 256 positions in which a query's sums are taken, and a window over such an edge.
        scene((4, 2, 32), None, None, &[(255, 1), (256, 1), (700, 3), (0, 270)]),
        scene((2, 1, 48), Some(300), None, &[(500, 40), (290, 1)]),
        // Bidirectional, in windows and without; also the few rows that the last layer computes.
        both((9, 3, 64), None, &[(0, 40), (0, 1), (99, 1), (0, 270), (20, 5)]),
        both((4, 2, 32), Some(9), &[(0, 40), (0, 17), (30, 1), (240, 33)]),
    ]
}

#[test]
fn attention_agrees_with_candle() {
    for (kind, bound) in [(KvType::F32, 3e-6), (KvType::BF16, 1.5e-2), (KvType::I8, 7e-2)] {
        let ours = Ops::cpu(2, kind).unwrap();
        each(scenes(), |scene| {
            let outputs =
                [(&ours, 1), (&candle(), 2)].map(|(ops, deal)| scene.run(ops, &scene.all(), 1000, deal));
            let mut pairs = outputs[0].iter().zip(&outputs[1]);
            pairs.try_for_each(|(a, b)| close(kind.name(), a, b, bound))
        });
    }
}

#[test]
fn attention_is_the_same_alone_batched_chunked_and_on_any_pages() {
    for kind in [KvType::F32, KvType::BF16, KvType::I8] {
        let machines = machines(kind);
        each(scenes(), |scene| {
            let all = scene.all();
            let whole = scene.run(&machines[0], &all, 1000, 1);
            let same_as_whole = |what: String, outputs: &[Table], which: &[usize]| {
                outputs.iter().zip(which).try_for_each(|(out, &index)| same(&what, out, &whole[index]))
            };
            for ops in &machines {
                same_as_whole(format!("{kind:?} {ops:?}"), &scene.run(ops, &all, 1000, 2), &all)?;
            }
            let [.., two, three, five] = machines.as_slice() else { return Err("too few machines".into()) };
            for (chunk, ops) in [(1, two), (3, five), (16, two), (100, three)] {
                same_as_whole(format!("{kind:?} chunks of {chunk}"), &scene.run(ops, &all, chunk, 3), &all)?;
            }
            for &index in &all {
                let alone = scene.run(three, &[index], 1000, 4);
                same_as_whole(format!("{kind:?} {index} alone"), &alone, &[index])?;
            }
            Ok(())
        });
    }
}

#[test]
fn a_copied_page_is_the_same_page() {
    let ours = [KvType::F32, KvType::BF16, KvType::I8].map(|kind| Ops::cpu(2, kind).unwrap());
    for ops in ours.into_iter().chain([candle()]) {
        let scene = Scene { sequences: vec![(16, 1)], ..scenes()[2].clone() };
        let cache = ops.kv_cache(&KvLayout::single(&[scene.shape(), scene.shape()]), 4).unwrap();
        let [k, v, q] = scene.rows(0).map(|table| table.on(&ops));
        let mut step = Step::default();
        step.push(&[0; 17], 0, vec![2, 0]);
        ops.kv_write(&cache, 1, &k, &v, &ops.checked_step(&step, &cache).unwrap()).unwrap();
        let out = |step: &Step| {
            let step = ops.checked_step(step, &cache).unwrap();
            table(&ops, ops.attention(&q, &cache, 1, &step, &scene.attention()).unwrap())
        };
        let before = out(&step);
        ops.copy_page(&cache, 2, 3).unwrap();
        ops.copy_page(&cache, 0, 0).unwrap();
        step.spans[0].pages = vec![vec![3, 0]];
        same("copy", &out(&step), &before).unwrap();
        assert_eq!(ops.copy_page(&cache, 0, 4).unwrap_err().kind(), ErrorKind::Internal);
    }
}

//! Against central differences in f64 of plain attention.

#![allow(clippy::single_range_in_vec_init)]

use super::*;

/// Of the length of a gradient.
const TOLERANCE: f64 = 3e-6;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let bits = |at: usize| ((at as u64 + 1) * (2 * seed + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (0..len).map(|at| bits(at) as f32 / (1 << 22) as f32 - 2.0).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The output of one query and head, in f64.
fn one(spans: &SpanRows, a: &Attention<'static>, at: usize, head: usize, [q, k, v]: [&[f64]; 3]) -> Vec<f64> {
    let (dim, group) = (a.head_dim, a.heads / a.kv_heads);
    let (position, row) = (spans.positions[at], spans.queries.start + at);
    let key = |x: &'_ [f64], row: usize| x[(row * a.kv_heads + head / group) * dim..][..dim].to_vec();
    let q = &q[(row * a.heads + head) * dim..][..dim];
    let (mut sum, mut out) = (0.0, vec![0.0; dim]);
    for (place, row) in spans.keys.iter().cloned().flatten().enumerate() {
        if place > position || a.window.is_some_and(|window| position - place >= window) {
            continue;
        }
        let score: f64 = q.iter().zip(key(k, row)).map(|(q, k)| q * k).sum::<f64>() * f64::from(a.scale);
        let cap = a.soft_cap.map(f64::from);
        let weight = cap.map_or(score, |cap| cap * (score / cap).tanh()).exp();
        sum += weight;
        out.iter_mut().zip(key(v, row)).for_each(|(out, v)| *out += weight * v);
    }
    out.iter().map(|out| out / sum).collect()
}

fn all(spans: &[SpanRows], a: &Attention<'static>, x: [&[f64]; 3]) -> Vec<f64> {
    let mut out = vec![0.0; x[0].len()];
    for span in spans {
        for (at, head) in (0..span.positions.len()).flat_map(|at| (0..a.heads).map(move |head| (at, head))) {
            let start = ((span.queries.start + at) * a.heads + head) * a.head_dim;
            out[start..start + a.head_dim].copy_from_slice(&one(span, a, at, head, x));
        }
    }
    out
}

#[test]
fn gradients_are_those_of_plain_attention() {
    let span = |queries: Range<usize>, positions: Vec<usize>, keys: &[Range<usize>]| SpanRows {
        queries,
        positions,
        keys: keys.to_vec(),
    };
    // A beginning that two texts share, one of which goes on in two ways, and a text by itself.
    let spans = vec![
        span(0..9, (0..9).collect(), &[0..9]),
        span(9..12, (9..12).collect(), &[0..9, 9..12]),
        span(12..14, (12..14).collect(), &[0..9, 9..12, 12..14]),
        span(14..17, (12..15).collect(), &[0..9, 9..12, 14..17]),
        span(17..37, (0..20).collect(), &[17..37]),
    ];
    // Some rows alone, as in the last layer.
    let some = vec![
        span(0..2, vec![4, 8], &[0..9]),
        span(2..3, vec![11], &[0..9, 9..12]),
        span(3..5, vec![17, 19], &[17..37]),
    ];
    let base = Attention {
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        scale: 0.4,
        causal: true,
        window: None,
        soft_cap: None,
        sinks: None,
    };
    let shapes = [
        base,
        Attention { window: Some(5), ..base },
        Attention { soft_cap: Some(2.0), window: Some(7), ..base },
        Attention { heads: 2, kv_heads: 2, head_dim: 16, soft_cap: Some(1.0), ..base },
    ];
    for (a, spans) in shapes.into_iter().flat_map(|a| [(a, &spans), (a, &some)]) {
        let queries = spans.last().unwrap().queries.end;
        let (q, k) = (noise(queries * a.heads * a.head_dim, 1), noise(37 * a.kv_heads * a.head_dim, 2));
        let (v, gradient) = (noise(k.len(), 3), noise(q.len(), 4));
        let (wq, wk, wv) = (wide(&q), wide(&k), wide(&v));
        let plain = all(spans, &a, [&wq, &wk, &wv]);
        let value = |which: usize, at: usize, by: f64| {
            let mut x = [wq.clone(), wk.clone(), wv.clone()];
            x[which][at] += by;
            let out = all(spans, &a, [&x[0], &x[1], &x[2]]);
            out.iter().zip(&gradient).map(|(out, gradient)| out * f64::from(*gradient)).sum::<f64>()
        };
        // A third of the numbers: each is two passes.
        let slope = |which: usize, at: usize| (value(which, at, 1e-5) - value(which, at, -1e-5)) / 2e-5;
        let wanted: Vec<Vec<(usize, f64)>> = [q.len(), k.len(), v.len()]
            .into_iter()
            .enumerate()
            .map(|(which, len)| (which..len).step_by(3).map(|at| (at, slope(which, at))).collect())
            .collect();
        let mut bits = None;
        for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let pool = Pool::new(threads).unwrap();
            let x = Inputs { spans, a: &a, q: &q, k: &k, v: &v };
            let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; queries * a.heads]);
            forward(&pool, isa, x, &mut out, &mut lse).unwrap();
            let worst = out.iter().zip(&plain).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < 3e-6, "{a:?} on {}: {worst:.1e}", isa.name());
            let mut all = [vec![7.0; q.len()], vec![7.0; k.len()], vec![7.0; v.len()]];
            let [dq, dk, dv] = &mut all;
            let y = Outputs { out: &out, lse: &lse, gradient: &gradient };
            backward(&pool, isa, x, y, InputGradients { q: dq, k: dk, v: dv }).unwrap();
            for (found, wanted) in all.iter().zip(&wanted) {
                let off: f64 = wanted.iter().map(|(at, it)| (f64::from(found[*at]) - it).powi(2)).sum();
                let length: f64 = wanted.iter().map(|(_, it)| it * it).sum();
                let distance = (off / length).sqrt();
                assert!(distance < TOLERANCE, "{a:?} on {}: {distance:.1e}", isa.name());
            }
            assert!(*bits.get_or_insert_with(|| all.clone()) == all, "threads or tiers change bits");
        }
    }
}

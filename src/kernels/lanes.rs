//! Sixteen floats at a time, and the one order in which things are summed.
//!
//! A sum over `k` runs in sixteen accumulators: lane `l` takes the elements `l, l + 16, l + 32 …` one after
//! the other with fused multiply-add, a last incomplete vector is filled with zeros, and at the end the
//! lanes are folded in halves (16, 8, 4, 2, 1). That order depends on `k` alone, which is what makes a row
//! come out the same in any batch, tile, thread and tier.
//!
//! Plain arrays and loops of sixteen: the compiler turns them into one AVX-512 register, two of AVX2 or four
//! of NEON.

pub(super) const LANES: usize = 16;
pub(super) type Lanes = [f32; LANES];

pub(super) const ZERO: Lanes = [0.0; LANES];

/// `acc += a * b`, fused.
#[inline(always)]
pub(super) fn fma(acc: &mut Lanes, a: &Lanes, b: &Lanes) {
    for l in 0..LANES {
        acc[l] = a[l].mul_add(b[l], acc[l]);
    }
}

/// `acc += a * b` with one `a` for all lanes, fused.
#[inline(always)]
pub(super) fn fma_one(acc: &mut Lanes, a: f32, b: &Lanes) {
    for l in 0..LANES {
        acc[l] = a.mul_add(b[l], acc[l]);
    }
}

/// Folds the lanes in halves.
#[inline(always)]
pub(super) fn sum(lanes: &Lanes) -> f32 {
    fold(lanes, |a, b| a + b)
}

/// The greatest lane.
#[inline(always)]
pub(super) fn max(lanes: &Lanes) -> f32 {
    fold(lanes, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn fold(lanes: &Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut eight = [0.0; 8];
    for l in 0..8 {
        eight[l] = f(lanes[l], lanes[l + 8]);
    }
    let mut four = [0.0; 4];
    for l in 0..4 {
        four[l] = f(eight[l], eight[l + 4]);
    }
    f(f(four[0], four[2]), f(four[1], four[3]))
}

/// Up to sixteen floats, the rest zero.
#[inline(always)]
pub(super) fn partial(values: &[f32]) -> Lanes {
    let mut lanes = ZERO;
    for (lane, value) in lanes.iter_mut().zip(values) {
        *lane = *value;
    }
    lanes
}

/// Folds `f` into the sixteen accumulators over all of `values`, the last vector filled with zeros.
#[inline(always)]
pub(super) fn accumulate(values: &[f32], mut f: impl FnMut(&mut Lanes, &Lanes)) -> Lanes {
    let mut acc = ZERO;
    let (full, tail) = values.as_chunks::<LANES>();
    for lanes in full {
        f(&mut acc, lanes);
    }
    if !tail.is_empty() {
        f(&mut acc, &partial(tail));
    }
    acc
}

/// The dot products of `M` rows with `N` rows, all of `k` floats: one register tile.
///
/// # Safety
/// Every pointer is good for `k` reads.
#[inline(always)]
pub(super) unsafe fn dots<const M: usize, const N: usize>(
    a: [*const f32; M],
    b: [*const f32; N],
    k: usize,
) -> [[f32; N]; M] {
    let mut acc = [[ZERO; N]; M];
    let full = k - k % LANES;
    let mut at = 0;
    while at < full {
        // SAFETY: `at + 16 <= k`; an array of f32 needs the alignment of f32 only.
        let a: [&Lanes; M] = std::array::from_fn(|i| unsafe { &*a[i].add(at).cast::<Lanes>() });
        for j in 0..N {
            // SAFETY: as above.
            let b = unsafe { &*b[j].add(at).cast::<Lanes>() };
            for i in 0..M {
                fma(&mut acc[i][j], a[i], b);
            }
        }
        at += LANES;
    }
    if full < k {
        for j in 0..N {
            // SAFETY: the caller's promise; these are the last `k - full` elements.
            let b = partial(unsafe { std::slice::from_raw_parts(b[j].add(full), k - full) });
            for i in 0..M {
                // SAFETY: as above.
                let a = partial(unsafe { std::slice::from_raw_parts(a[i].add(full), k - full) });
                fma(&mut acc[i][j], &a, &b);
            }
        }
    }
    let mut sums = [[0.0; N]; M];
    for i in 0..M {
        for j in 0..N {
            sums[i][j] = sum(&acc[i][j]);
        }
    }
    sums
}

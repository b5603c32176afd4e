//! Rotary position embedding: the table of a step, and the rotation.

use super::isa::tiered;
use super::simd::{LANES, Simd};

/// Cosines and sines of the rows `positions`, each `[rows, frequencies]`. Products in f32 and then the
/// library's own sine: the angle of a far position has few good bits, and this is the rounding that the
/// reference implementation has too.
pub(super) fn fill(frequencies: &[f32], scale: f32, positions: &[u32], cos: &mut [f32], sin: &mut [f32]) {
    let rows = cos.chunks_exact_mut(frequencies.len()).zip(sin.chunks_exact_mut(frequencies.len()));
    for (&position, (cos, sin)) in positions.iter().zip(rows) {
        for ((frequency, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = (position as f32 * frequency).sin_cos();
            (*cos, *sin) = (c * scale, s * scale);
        }
    }
}

tiered! {
    /// Rotates every head of `x`, whole rows of `width` in heads of `head_dim`, by the row's `half` cosines
    /// and sines.
    pub(super) fn rotate(
        x: &mut [f32],
        width: usize,
        head_dim: usize,
        half: usize,
        cos: &[f32],
        sin: &[f32],
    ) = rotate_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn rotate_body<S: Simd>(
    x: &mut [f32],
    width: usize,
    head_dim: usize,
    half: usize,
    cos: &[f32],
    sin: &[f32],
) {
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
        for x in x.chunks_exact_mut(head_dim) {
            let (low, rest) = x.split_at_mut(half);
            let high = &mut rest[..half];
            let mut at = 0;
            while at < half {
                let end = half.min(at + LANES);
                // SAFETY: the caller's promise.
                unsafe {
                    let (c, s) = (S::load_some(&cos[at..end]), S::load_some(&sin[at..end]));
                    let (a, b) = (S::load_some(&low[at..end]), S::load_some(&high[at..end]));
                    S::store_some(&mut low[at..end], S::sub(S::mul(a, c), S::mul(b, s)));
                    S::store_some(&mut high[at..end], S::add(S::mul(b, c), S::mul(a, s)));
                }
                at = end;
            }
        }
    }
}

//! The factors of a projection, as products want them.

/// Ranks are padded to whole vectors.
const RANKS: usize = 16;

/// The low-rank factors of one projection: `y += scale * (x A^T) B^T`.
pub struct Factors {
    /// In whole vectors; those beyond the factors' own are zeros.
    pub(super) width: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
    /// `[rank, in]` and its transpose `[in, width]`.
    pub(super) a: Vec<f32>,
    pub(super) a_transposed: Vec<f32>,
    /// `[out, width]` and its transpose `[rank, out]`.
    pub(super) b: Vec<f32>,
    pub(super) b_transposed: Vec<f32>,
}

impl Factors {
    /// `a` `[rank, inputs]`, `b` `[outputs, rank]`.
    pub fn new(rank: usize, scale: f32, a: &[f32], b: &[f32]) -> Factors {
        let width = rank.next_multiple_of(RANKS);
        let mut b_padded = vec![0.0; b.len() / rank.max(1) * width];
        for (row, padded) in b.chunks_exact(rank).zip(b_padded.chunks_exact_mut(width)) {
            padded[..rank].copy_from_slice(row);
        }
        let (a_transposed, b_transposed) =
            (turned(a, rank, width), turned(b, b.len() / rank, b.len() / rank));
        Factors { width, rank, scale, a: a.to_vec(), a_transposed, b: b_padded, b_transposed }
    }
}

/// The transpose of a matrix of `rows` rows, in rows of `width`.
fn turned(x: &[f32], rows: usize, width: usize) -> Vec<f32> {
    let columns = x.len() / rows.max(1);
    let mut out = vec![0.0; columns * width];
    for (row, x) in x.chunks_exact(columns).enumerate() {
        x.iter().enumerate().for_each(|(column, value)| out[column * width + row] = *value);
    }
    out
}

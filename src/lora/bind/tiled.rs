//! Heads of linear attention in another order than the adapter's.

use super::select;
use crate::weights::names::Part;

/// Heads of linear attention as llama.cpp's converter orders them: place p has a head of key group
/// `p % groups`, where transformers has those of a group side by side.
pub(super) struct TiledHeads {
    pub groups: usize,
    pub heads: usize,
    /// Rows of all keys.
    pub keys: usize,
    pub value_dim: usize,
}

impl TiledHeads {
    /// Where transformers has the numbers that stand here, `width` a head.
    fn places(&self, width: usize) -> Vec<usize> {
        let of_group = self.heads / self.groups.max(1);
        let head = |place: usize| place % self.groups * of_group + place / self.groups;
        (0..self.heads).flat_map(|place| head(place) * width..(head(place) + 1) * width).collect()
    }

    /// The file's row of each row of a projection; `None`: all are where they were.
    pub fn rows(&self, part: Part, rows: usize) -> Option<Vec<usize>> {
        let behind = |first: usize, places: Vec<usize>| {
            (0..first).chain(places.into_iter().map(move |row| first + row))
        };
        match part {
            Part::DeltaQkv => Some(behind(2 * self.keys, self.places(self.value_dim)).collect()),
            Part::DeltaZ => Some(self.places(self.value_dim)),
            Part::DeltaBeta | Part::DeltaAlpha => Some(self.places(1)),
            _ => None,
        }
        .filter(|order: &Vec<usize>| order.len() == rows)
    }

    /// A with the columns of the output projection, which are those of the values.
    pub fn columns(&self, a: &[f32]) -> Vec<f32> {
        let places = self.places(self.value_dim);
        a.chunks_exact(places.len().max(1)).flat_map(|row| select(row, &places)).collect()
    }
}

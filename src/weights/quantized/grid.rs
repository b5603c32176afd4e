//! Which weights share a scale and a zero point, and where those are.

use super::codes::{awq_nibble, of_stream};
use super::{Bytes, Group};
use crate::error::{Error, Result};
use crate::weights::blocks::{f16_to_f32, small};

/// How the weights of a matrix are divided into groups.
#[derive(Debug)]
pub(super) enum Groups {
    /// Blocks of so many rows and columns.
    Blocks { rows: usize, columns: usize },
    /// The group of each column (GPTQ with `desc_act`).
    Listed(Vec<u32>),
    /// So many weights of the flattened matrix (bitsandbytes).
    Flat { weights: usize, columns: usize },
}

impl Groups {
    /// Those of `group` in rows of `columns`, and how many there are: `[lines, groups a line]`.
    pub fn of(group: Group, [rows, columns]: [usize; 2]) -> (Groups, [usize; 2]) {
        let (block, width) = match group {
            Group::Tensor => (rows, columns),
            Group::Row => (1, columns),
            Group::Of(width) => (1, width),
            Group::Block(rows, columns) => (rows, columns),
        };
        let (block, width) = (block.max(1), width.max(1));
        (Groups::Blocks { rows: block, columns: width }, [rows.div_ceil(block), columns.div_ceil(width)])
    }

    /// The line and group of a weight, and the first column behind it that is of another group.
    pub fn at(&self, row: usize, column: usize) -> ([usize; 2], usize) {
        match self {
            Groups::Blocks { rows, columns } => {
                let group = column / columns;
                ([row / rows, group], (group + 1).saturating_mul(*columns))
            }
            Groups::Listed(of) => ([row, of[column] as usize], column + 1),
            Groups::Flat { weights, columns } => {
                let at = row * columns + column;
                let group = at / weights;
                ([0, group], column.saturating_add((group + 1).saturating_mul(*weights) - at))
            }
        }
    }

    /// Whether rows of `columns` are blocks of 32, and all weights of each `size` neighbours share a group.
    pub fn fill_blocks(&self, columns: usize, size: usize) -> bool {
        let whole = |group: usize| group.is_multiple_of(size);
        columns.is_multiple_of(32)
            && match self {
                Groups::Blocks { columns: group, .. } => whole(*group) || *group >= columns,
                Groups::Listed(_) => false,
                Groups::Flat { weights, .. } => whole(*weights),
            }
    }
}

/// A number for each group.
#[derive(Debug)]
pub(super) struct Grid {
    pub numbers: Numbers,
    /// Groups a line, or lines a group where those of a group lie beside each other (GPTQ, AWQ).
    pub stride: usize,
    pub by_group: bool,
    pub count: usize,
    /// What each is multiplied or divided by.
    pub outer: f32,
    pub divides: bool,
}

/// How the numbers of a grid are stored.
#[derive(Debug)]
pub(super) enum Numbers {
    F32(Bytes),
    F16(Bytes),
    BF16(Bytes),
    /// Powers of two, as the exponent of an f32.
    E8M0(Bytes),
    E4M3(Bytes),
    /// Codes of a table, which have scales of their own (bitsandbytes' double quantization).
    Nested {
        codes: Bytes,
        table: Box<[f32]>,
        scales: Box<[f32]>,
        block: usize,
        offset: f32,
    },
}

impl Numbers {
    fn at(&self, at: usize) -> f32 {
        let pair = |bytes: &Bytes| bytes.get(2 * at..2 * at + 2).map_or([0; 2], |pair| [pair[0], pair[1]]);
        let byte = |bytes: &Bytes| bytes.get(at).copied().unwrap_or(0);
        match self {
            Numbers::F32(bytes) => {
                let word = bytes.get(4 * at..4 * at + 4).and_then(|word| word.try_into().ok());
                word.map_or(0.0, f32::from_le_bytes)
            }
            Numbers::F16(bytes) => f16_to_f32(pair(bytes)),
            Numbers::BF16(bytes) => f32::from_bits(u32::from(u16::from_le_bytes(pair(bytes))) << 16),
            Numbers::E8M0(bytes) => e8m0(byte(bytes)),
            Numbers::E4M3(bytes) => e4m3(byte(bytes)),
            Numbers::Nested { codes, table, scales, block, offset } => {
                let level = table.get(usize::from(byte(codes))).copied().unwrap_or(f32::NAN);
                level * scales.get(at / block).copied().unwrap_or(f32::NAN) + offset
            }
        }
    }
}

impl Grid {
    fn index(&self, [line, group]: [usize; 2]) -> usize {
        if self.by_group { group * self.stride + line } else { line * self.stride + group }
    }

    pub fn at(&self, cell: [usize; 2]) -> f32 {
        self.number(self.index(cell))
    }

    /// The byte of a power of two.
    pub fn power(&self, cell: [usize; 2]) -> Option<u8> {
        match &self.numbers {
            Numbers::E8M0(bytes) => bytes.get(self.index(cell)).copied(),
            _ => None,
        }
    }

    fn number(&self, at: usize) -> f32 {
        let number = self.numbers.at(at);
        match self.divides {
            true => number / self.outer,
            false => number * self.outer,
        }
    }

    /// What all the numbers have in common.
    ///
    /// # Errors
    /// `ModelFile` when one is not finite.
    pub fn span(&self) -> Result<Span> {
        let mut span = Span::default();
        for at in 0..self.count {
            let number = self.number(at);
            if !number.is_finite() {
                return Err(Error::model_file(format!("scale {at} is {number}; the file is damaged")));
            }
            span.add(number);
        }
        Ok(span)
    }
}

/// What is to be known of some numbers to tell in which type a product of them is exact.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// The greatest magnitude.
    pub top: f32,
    /// The exponent of the lowest bit that is set in any.
    pub lowest: i32,
    /// From the highest bit of a number to its lowest that is set, at most.
    pub bits: i32,
    /// Whether each is an f16.
    pub half: bool,
}

impl Default for Span {
    fn default() -> Self {
        Span { top: 0.0, lowest: i32::MAX / 4, bits: 0, half: true }
    }
}

impl Span {
    pub fn add(&mut self, number: f32) {
        self.half &= half::f16::from_f32_const(number).to_f32_const() == number;
        self.top = self.top.max(number.abs());
        if number == 0.0 {
            return;
        }
        let bits = number.to_bits();
        let (exponent, fraction) = ((bits >> 23 & 0xff) as i32, bits & 0x007f_ffff);
        // Subnormal numbers have no bit beyond those that are stored.
        let (significand, scale) = match exponent {
            0 => (fraction, -149),
            e => (fraction | 0x0080_0000, e - 150),
        };
        let zeros = significand.trailing_zeros() as i32;
        self.lowest = self.lowest.min(scale + zeros);
        self.bits = self.bits.max(32 - significand.leading_zeros() as i32 - zeros);
    }

    /// What a product of one of these and one of `other` is, at most.
    pub fn times(self, other: Span) -> Span {
        Span {
            top: self.top * other.top,
            lowest: self.lowest.saturating_add(other.lowest),
            bits: self.bits + other.bits,
            half: false,
        }
    }
}

/// A number for each group that codes are less by: what stands for weight 0.
#[derive(Debug)]
pub(super) enum Zeros {
    All(i32),
    Stored(StoredZeros),
}

#[derive(Debug)]
pub(super) struct StoredZeros {
    pub data: Bytes,
    pub packing: ZeroPacking,
    /// Lines and groups that there are.
    pub size: [usize; 2],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ZeroPacking {
    /// Words `[.., groups]`: the lines of a group are a stream of bits, or whole words (compressed-tensors).
    Down { bits: u32, words: bool },
    /// Words `[groups, ..]`: a stream of bits a group, each less by `plus` than it means (GPTQ).
    Across { bits: u32, row_bytes: usize, plus: i32 },
    /// As AWQ has its codes.
    Awq { lines: usize },
    /// Bytes with a sign, of codes that are greater by so many.
    Bytes { middle: i32 },
}

impl Zeros {
    pub fn at(&self, [line, group]: [usize; 2]) -> i32 {
        let stored = match self {
            Zeros::All(zero) => return *zero,
            Zeros::Stored(stored) => stored,
        };
        let groups = stored.size[1];
        let data = &stored.data;
        let byte = |at: usize| data.get(at).copied().unwrap_or(0);
        match stored.packing {
            ZeroPacking::Down { bits, words } => {
                let per_word = (32 / bits) as usize;
                // A byte of the column of words that belongs to the group.
                let of_column = |at: usize| byte(4 * (at / 4 * groups + group) + at % 4);
                i32::from(match words {
                    true => {
                        let shift = bits * (line % per_word) as u32;
                        let word = std::array::from_fn(|i| of_column(4 * (line / per_word) + i));
                        (u32::from_le_bytes(word) >> shift & ((1 << bits) - 1)) as u8
                    }
                    false => of_stream(of_column, bits, line),
                })
            }
            ZeroPacking::Across { bits, row_bytes, plus } => {
                i32::from(of_stream(|at| byte(group * row_bytes + at), bits, line)) + plus
            }
            ZeroPacking::Awq { lines } => {
                let row = data.get(group * lines / 2..(group + 1) * lines / 2);
                row.map_or(0, |row| i32::from(awq_nibble(row, line)))
            }
            ZeroPacking::Bytes { middle } => middle + i32::from(byte(line * groups + group) as i8),
        }
    }

    /// The least and the greatest.
    ///
    /// # Errors
    /// `ModelFile` at one of GPTQ's first format that may mean 0 or 2^bits.
    pub fn range(&self) -> Result<[i32; 2]> {
        let stored = match self {
            Zeros::All(zero) => return Ok([*zero; 2]),
            Zeros::Stored(stored) => stored,
        };
        let [lines, groups] = stored.size;
        let mut range = [i32::MAX, i32::MIN];
        for group in 0..groups {
            for line in 0..lines {
                let zero = self.at([line, group]);
                range = [range[0].min(zero), range[1].max(zero)];
            }
        }
        match stored.packing {
            ZeroPacking::Across { bits, plus: 1, .. } if range[1] == 1 << bits => {
                let stored = (1 << bits) - 1;
                Err(Error::model_file(format!(
                    "a zero point is stored as {stored}, which in this format of GPTQ (checkpoint_format \"gptq\") \
                     means 0 to some readers and {} to others; use a file in the format \"gptq_v2\"",
                    1 << bits
                )))
            }
            _ => Ok(range),
        }
    }
}

/// A power of two: the exponent of an f32 and nothing else. 255 is NaN (OCP Microscaling Formats 1.0).
fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        e => f32::from_bits(u32::from(e) << 23),
    }
}

/// A sign, four bits of exponent (bias 7), three of fraction; no infinity, and one NaN of each sign (OCP
/// 8-bit Floating Point 1.0).
pub(super) fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f { f32::NAN } else { small::e4m3(byte) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_are_what_their_papers_say() {
        for (byte, number) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x39, 1.125),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(e4m3(byte), number, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        for (byte, number) in [(0, 2f32.powi(-127)), (1, 2f32.powi(-126)), (127, 1.0), (254, 2f32.powi(127))]
        {
            assert_eq!(e8m0(byte), number, "{byte}");
        }
        assert!(e8m0(255).is_nan());
    }

    #[test]
    fn a_span_knows_its_bits() {
        for (number, lowest, bits, half) in [
            (1.0, 0, 1, true),
            (-6.0, 1, 2, true),
            (0.75, -2, 2, true),
            (2f32.powi(-149), -149, 1, false),
            (2f32.powi(-24), -24, 1, true),
            (2f32.powi(-25), -25, 1, false),
            (1.0 + 2f32.powi(-10), -10, 11, true),
            (1.0 + 2f32.powi(-11), -11, 12, false),
            (65504.0, 5, 11, true),
            (65536.0, 16, 1, false),
        ] {
            let mut span = Span::default();
            span.add(0.0);
            span.add(number);
            assert_eq!((span.lowest, span.bits, span.half), (lowest, bits, half), "{number}");
            assert_eq!(span.top, number.abs());
        }
    }

    #[test]
    fn groups_end_where_another_begins() {
        let (blocks, size) = Groups::of(Group::Block(128, 128), [200, 300]);
        assert_eq!(size, [2, 3]);
        assert_eq!(blocks.at(130, 260), ([1, 2], 384));
        let (whole, size) = Groups::of(Group::Tensor, [5, 7]);
        assert_eq!((size, whole.at(4, 6)), ([1, 1], ([0, 0], 7)));
        let flat = Groups::Flat { weights: 64, columns: 96 };
        // Weight 96 is in the second 64, of which it is the 33rd.
        assert_eq!(flat.at(1, 0), ([0, 1], 32));
        assert_eq!(flat.at(1, 32), ([0, 2], 96));
        assert!(flat.fill_blocks(96, 32) && !flat.fill_blocks(40, 32));
        let narrow = Groups::Blocks { rows: 1, columns: 16 };
        assert!(!narrow.fill_blocks(64, 32) && narrow.fill_blocks(64, 16));
        assert!(Groups::Blocks { rows: 1, columns: 100 }.fill_blocks(96, 32));
    }
}

//! Where the code of each weight of a matrix is.

use std::ops::Range;

use super::Bytes;

/// The order in which AWQ's words hold eight outputs, from the lowest nibble up: it is that of the kernel
/// that reads them (AutoAWQ's `gemm`).
pub(super) const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The codes of a matrix `[rows, columns]`.
#[derive(Debug)]
pub(super) struct Codes {
    pub data: Bytes,
    pub packing: Packing,
    pub columns: usize,
}

/// How codes lie in bytes; words are little-endian, and of a byte or word the lowest bits come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Each row a stream of bits, of so many bytes.
    Rows { bits: u32, row_bytes: usize },
    /// Each row in words of 32 bits, none of whose codes goes on in the next one.
    Words { bits: u32, row_bytes: usize },
    /// Words `[in * bits / 32, out]`: a stream of bits down each column of words (GPTQ).
    Down { bits: u32, rows: usize },
    /// Words `[in, out / 8]` of nibbles in [`AWQ_ORDER`].
    Awq { rows: usize },
    /// Pairs along the whole matrix, the high nibble first (bitsandbytes).
    HighFirst,
    /// A byte each; the highest bit is turned over if they have a sign, so that -128 is 0.
    Bytes { signed: bool },
    /// Numbers with a sign, a byte each though they have fewer bits: the code is greater by half of their
    /// range. One beyond it is a code that there is not.
    Small { bits: u32 },
}

impl Codes {
    /// The codes of some rows, one after another.
    pub fn fill(&self, rows: Range<usize>, out: &mut [u8]) {
        let columns = self.columns;
        match self.packing {
            Packing::Rows { bits, row_bytes } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    stream(&self.data[row * row_bytes..(row + 1) * row_bytes], bits, out);
                }
            }
            Packing::Words { bits, row_bytes } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    let words = &self.data[row * row_bytes..(row + 1) * row_bytes];
                    for (word, out) in words.as_chunks().0.iter().zip(out.chunks_mut((32 / bits) as usize)) {
                        of_word(u32::from_le_bytes(*word), bits, out);
                    }
                }
            }
            Packing::Down { bits, rows: all } => self.down(bits, all, rows, out),
            Packing::Awq { rows: all } => self.awq(all, rows, out),
            Packing::HighFirst => {
                for (at, out) in (rows.start * columns..).zip(out) {
                    *out = self.data[at / 2] >> (4 * (1 - at % 2)) & 15;
                }
            }
            Packing::Bytes { signed } => {
                let turned = if signed { 0x80 } else { 0 };
                let bytes = &self.data[rows.start * columns..rows.end * columns];
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte ^ turned);
            }
            Packing::Small { bits } => {
                let bytes = &self.data[rows.start * columns..rows.end * columns];
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte.wrapping_add(1 << (bits - 1)));
            }
        }
    }

    /// Word by word along the outputs, which lie beside each other: a strip of rows reads whole lines of the
    /// cache.
    fn down(&self, bits: u32, all: usize, rows: Range<usize>, out: &mut [u8]) {
        let columns = self.columns;
        let per_word = (32 / bits) as usize;
        if 32 % bits == 0 {
            let lines = self.data.chunks_exact(4 * all.max(1));
            for (line, first) in lines.zip((0..columns).step_by(per_word)) {
                let words = line[4 * rows.start..4 * rows.end].as_chunks().0;
                for (word, out) in words.iter().zip(out.chunks_exact_mut(columns)) {
                    of_word(u32::from_le_bytes(*word), bits, &mut out[first..columns.min(first + per_word)]);
                }
            }
            return;
        }
        let byte = |row: usize, at: usize| {
            let at = 4 * (at / 4 * all + row) + at % 4;
            self.data.get(at).copied().unwrap_or(0)
        };
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            (0..).zip(out).for_each(|(column, out)| *out = of_stream(|at| byte(row, at), bits, column));
        }
    }

    /// Whole words: a strip begins at a multiple of eight rows, or it is read nibble by nibble.
    fn awq(&self, all: usize, rows: Range<usize>, out: &mut [u8]) {
        let columns = self.columns;
        for (column, line) in self.data.chunks_exact((all / 2).max(1)).take(columns).enumerate() {
            if !rows.start.is_multiple_of(8) || !rows.len().is_multiple_of(8) {
                for (i, row) in rows.clone().enumerate() {
                    out[i * columns + column] = awq_nibble(line, row);
                }
                continue;
            }
            let words = line[rows.start / 2..rows.end / 2].as_chunks().0;
            for (eight, word) in words.iter().enumerate() {
                let word = u32::from_le_bytes(*word);
                for (place, output) in AWQ_ORDER.iter().enumerate() {
                    out[(8 * eight + output) * columns + column] = (word >> (4 * place) & 15) as u8;
                }
            }
        }
    }
}

/// Output `row` in a line of AWQ's words.
pub(super) fn awq_nibble(line: &[u8], row: usize) -> u8 {
    let place = AWQ_ORDER.iter().position(|output| *output == row % 8).unwrap_or(0);
    line[row / 8 * 4 + place / 2] >> (4 * (place % 2)) & 15
}

/// Code `at` of a stream of bits; what lies behind its end is 0.
pub(super) fn of_stream(bytes: impl Fn(usize) -> u8, bits: u32, at: usize) -> u8 {
    let bit = at * bits as usize;
    let both = u16::from(bytes(bit / 8)) | u16::from(bytes(bit / 8 + 1)) << 8;
    (both >> (bit % 8) & ((1 << bits) - 1)) as u8
}

fn stream(bytes: &[u8], bits: u32, out: &mut [u8]) {
    match bits {
        8 => out.copy_from_slice(&bytes[..out.len()]),
        2 | 4 => {
            let per_byte = (8 / bits) as usize;
            let mask = (1u8 << bits) - 1;
            for (byte, out) in bytes.iter().zip(out.chunks_mut(per_byte)) {
                (0..).zip(out).for_each(|(i, out)| *out = byte >> (bits * i) & mask);
            }
        }
        _ => {
            let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
            (0..).zip(out).for_each(|(at, out)| *out = of_stream(byte, bits, at));
        }
    }
}

fn of_word(word: u32, bits: u32, out: &mut [u8]) {
    let mask = (1u32 << bits) - 1;
    (0..).zip(out).for_each(|(i, out)| *out = (word >> (bits * i) & mask) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each packing of the same codes gives them back, whole and by rows.
    #[test]
    fn every_packing_gives_the_codes_back() {
        let (rows, columns) = (8, 64);
        for bits in [2u32, 3, 4, 5, 6, 7, 8] {
            let code =
                |row: usize, column: usize| ((row * 31 + column * 7 + row * column) % (1 << bits)) as u8;
            let streamed = |codes: &mut dyn Iterator<Item = u8>| {
                let mut bytes = Vec::new();
                let (mut word, mut used) = (0u64, 0);
                for code in codes {
                    word |= u64::from(code) << used;
                    used += bits;
                    while used >= 8 {
                        bytes.push(word as u8);
                        (word, used) = (word >> 8, used - 8);
                    }
                }
                bytes
            };
            let whole: Vec<u8> = (0..rows)
                .flat_map(|row| streamed(&mut (0..columns).map(|column| code(row, column))))
                .collect();
            let row_bytes = columns * bits as usize / 8;
            let lines: Vec<Vec<u8>> =
                (0..rows).map(|row| streamed(&mut (0..columns).map(|column| code(row, column)))).collect();
            let down: Vec<u8> = (0..row_bytes / 4)
                .flat_map(|word| lines.iter().flat_map(move |line| line[4 * word..4 * word + 4].to_vec()))
                .collect();
            let per_word = (32 / bits) as usize;
            let words: Vec<u8> = (0..rows)
                .flat_map(|row| (0..columns.div_ceil(per_word)).map(move |word| (row, word)))
                .flat_map(|(row, word)| {
                    let codes = (word * per_word..columns.min((word + 1) * per_word)).enumerate();
                    let packed = codes
                        .fold(0, |all, (i, column)| all | u32::from(code(row, column)) << (bits * i as u32));
                    packed.to_le_bytes()
                })
                .collect();
            let in_words = Packing::Words { bits, row_bytes: 4 * columns.div_ceil(per_word) };
            for (data, packing) in [
                (whole, Packing::Rows { bits, row_bytes }),
                (down, Packing::Down { bits, rows }),
                (words, in_words),
            ] {
                let codes = Codes { data: Bytes::from_vec(data), packing, columns };
                let mut out = vec![0; 5 * columns];
                codes.fill(2..7, &mut out);
                let want = (2..7).flat_map(|row| (0..columns).map(move |column| code(row, column)));
                assert!(out.iter().copied().eq(want), "{bits} bits, {packing:?}");
            }
        }
    }

    #[test]
    fn nibbles_in_their_own_orders() {
        // Nibble i of a word is 1 for output 2, whose place is the second.
        let awq = Codes {
            data: Bytes::from_vec([0x7531_6420u32, 0x7531_6420 ^ 0x10].map(u32::to_le_bytes).concat()),
            packing: Packing::Awq { rows: 8 },
            columns: 2,
        };
        let mut out = [0; 16];
        awq.fill(3..5, &mut out[..4]);
        assert_eq!(out[..4], [3, 3, 4, 4]);
        awq.fill(0..8, &mut out);
        assert_eq!(out.chunks(2).map(|row| row[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(out.chunks(2).map(|row| row[1]).collect::<Vec<_>>(), [0, 1, 3, 3, 4, 5, 6, 7]);
        let pairs =
            Codes { data: Bytes::from_vec(vec![0x12, 0x34, 0x56]), packing: Packing::HighFirst, columns: 3 };
        pairs.fill(1..2, &mut out[..3]);
        assert_eq!(out[..3], [4, 5, 6]);
        let signed = Packing::Bytes { signed: true };
        let bytes = Codes { data: Bytes::from_vec(vec![0x80, 0, 0x7f]), packing: signed, columns: 3 };
        bytes.fill(0..1, &mut out[..3]);
        assert_eq!(out[..3], [0, 128, 255]);
        let small =
            Codes { packing: Packing::Small { bits: 4 }, data: Bytes::from_vec(vec![0xf8, 7, 8]), ..bytes };
        small.fill(0..1, &mut out[..3]);
        assert_eq!(out[..3], [0, 15, 16]);
    }
}

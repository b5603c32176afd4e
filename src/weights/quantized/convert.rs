//! A quantized matrix in a form that is computed with: the smallest one whose weights are the same.
//!
//! | weights | kept as |
//! |---|---|
//! | whole numbers q - z from -8 to 7, by groups of a multiple of 32 with a scale that is an f16 | Q4_0 |
//! | others, with q of up to 4 bits | Q4_ZERO |
//! | others from -16 to 15, or from -128 to 127 | Q5_0, Q8_0 |
//! | the same with a scale of more bits than an f16's | Q8_F32 |
//! | scale q + bias, both f16, q of up to 4 bits, of 5, or of more | Q4_1, Q5_1, Q8_MIN |
//! | E2M1 by 32 with a power of two | MXFP4 |
//! | E2M1 by 16 or more with any scale | FP4_F32 |
//! | E4M3, NF4 or bitsandbytes' FP4 by 32 or more with any scale | FP8, NF4, BNB_FP4 |
//! | what BF16 or F16 holds, by the bits of scales and codes | BF16, F16 |
//! | all else | F32, by the formula in f32 |

use super::codes::Packing;
use super::grid::{Span, Zeros};
use super::{Grid, Levels, Matrix, WeightType};
use crate::error::{Error, Result};
use crate::weights::blocks::small::{BNB_FP4_LEVELS, NF4_LEVELS};

/// The values of a 4-bit float (E2M1), by its code.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Rows that are unpacked together.
const STRIP: usize = 32;

/// The type that a matrix is kept as.
///
/// # Errors
/// `ModelFile` when a scale is not a finite number, weights would be beyond f32, or a zero point has two
/// meanings.
pub(super) fn choose(matrix: &Matrix) -> Result<WeightType> {
    let scales = matrix.scales.span()?;
    let blocks = |size| matrix.groups.fill_blocks(matrix.shape[1], size);
    let (products, packed) = match &matrix.levels {
        Levels::Integers(zeros) => {
            let [least, greatest] = zeros.range()?;
            let codes = matrix.codes.packing.values();
            let range = [-greatest, (codes - 1) as i32 - least];
            let small = codes <= 16 && least >= 0 && greatest <= 255;
            let packed = whole(range, small, scales.half).filter(|_| blocks(32));
            (scales.times(whole_numbers(range)), packed)
        }
        Levels::Affine(biases) => {
            let biases = biases.span()?;
            let packed = match matrix.codes.packing.values() {
                _ if !scales.half || !biases.half => None,
                0..=16 => Some(WeightType::Q4_1),
                32 => Some(WeightType::Q5_1),
                _ => Some(WeightType::Q8Min),
            };
            let packed = packed.filter(|_| blocks(32));
            // A sum may take more bits than either of its terms.
            (Span { top: scales.top * 255.0 + biases.top, lowest: 0, bits: 24, half: false }, packed)
        }
        Levels::Table(table) => {
            let mut levels = Span::default();
            table.iter().filter(|level| level.is_finite()).for_each(|level| levels.add(*level));
            (scales.times(levels), of_table(matrix, table, blocks))
        }
    };
    if !products.top.is_finite() {
        return Err(Error::model_file("its scales make weights that are beyond f32; the file is damaged"));
    }
    Ok(packed.unwrap_or_else(|| float(products)))
}

/// The smallest format of blocks that holds these whole numbers; `small`: as codes of 4 bits less a byte.
/// `half`: scales are f16.
fn whole([least, greatest]: [i32; 2], small: bool, half: bool) -> Option<WeightType> {
    let within = |most: i32| least >= -most && greatest < most;
    let fitting = [
        (half && within(8), WeightType::Q4_0),
        (half && small, WeightType::Q4Zero),
        (half && within(16), WeightType::Q5_0),
        (half && within(128), WeightType::Q8_0),
        (within(128), WeightType::Q8Wide),
    ];
    fitting.into_iter().find(|(fits, _)| *fits).map(|(_, dtype)| dtype)
}

fn whole_numbers([least, greatest]: [i32; 2]) -> Span {
    let top = least.unsigned_abs().max(greatest.unsigned_abs());
    Span { top: top as f32, lowest: 0, bits: 32 - top.leading_zeros() as i32, half: false }
}

/// The smallest float that holds numbers of this kind.
fn float(products: Span) -> WeightType {
    match products {
        Span { bits: ..=8, lowest: -133.., .. } => WeightType::BF16,
        Span { bits: ..=11, lowest: -24.., top: ..=65_504.0, .. } => WeightType::F16,
        _ => WeightType::F32,
    }
}

/// The format of blocks that has these levels; `blocks`: whether groups fill blocks of so many weights.
fn of_table(matrix: &Matrix, table: &[f32], blocks: impl Fn(usize) -> bool) -> Option<WeightType> {
    let powers = matrix.scales.outer == 1.0 && matrix.scales.power([0, 0]).is_some();
    match matrix.codes.packing.values() {
        256 => Some(WeightType::Fp8).filter(|_| blocks(32)),
        _ if table == E2M1 && powers && blocks(32) => Some(WeightType::Mxfp4),
        _ if table == E2M1 => Some(WeightType::Fp4Wide).filter(|_| blocks(16)),
        _ if table == NF4_LEVELS => Some(WeightType::Nf4).filter(|_| blocks(32)),
        _ if table == BNB_FP4_LEVELS => Some(WeightType::BnbFp4).filter(|_| blocks(32)),
        _ => None,
    }
}

/// The bytes of a matrix in the type that was chosen for it.
///
/// # Errors
/// `ModelFile` when a code is no number (NaN of E4M3); `OutOfMemory` when there is no room.
pub(super) fn make(matrix: &Matrix, dtype: WeightType) -> Result<Vec<u8>> {
    let [n, k] = matrix.shape;
    let size = dtype.row_bytes(k).and_then(|row| row.checked_mul(n)).unwrap_or(0);
    let mut out = Vec::new();
    out.try_reserve_exact(size)
        .map_err(|_| Error::out_of_memory(format!("{} MiB for a matrix cannot be had", size >> 20)))?;
    let mut codes = vec![0; STRIP.min(n) * k];
    for first in (0..n).step_by(STRIP) {
        let rows = first..n.min(first + STRIP);
        let codes = &mut codes[..rows.len() * k];
        matrix.codes.fill(rows.clone(), codes);
        if let Packing::Small { bits } = matrix.codes.packing {
            check_range(bits, rows.start, codes)?;
        }
        for (row, codes) in rows.zip(codes.chunks_exact(k.max(1))) {
            match dtype.block_len() {
                1 => floats(matrix, dtype, row, codes, &mut out)?,
                _ => blocks(matrix, dtype, row, codes, &mut out)?,
            }
        }
    }
    matrix.codes.data.release();
    Ok(out)
}

fn floats(matrix: &Matrix, dtype: WeightType, row: usize, codes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let mut column = 0;
    while column < codes.len() {
        let (cell, end) = matrix.groups.at(row, column);
        let (end, scale) = (end.min(codes.len()), matrix.scales.at(cell));
        let group = &codes[column..end];
        match &matrix.levels {
            Levels::Integers(zeros) => {
                let zero = zeros.at(cell);
                group.iter().for_each(|code| put(dtype, scale * (i32::from(*code) - zero) as f32, out));
            }
            Levels::Affine(biases) => {
                let bias = biases.at(cell);
                group.iter().for_each(|code| put(dtype, scale * f32::from(*code) + bias, out));
            }
            Levels::Table(table) => {
                for code in group {
                    let level = table.get(usize::from(*code)).copied().unwrap_or(f32::NAN);
                    if !level.is_finite() {
                        return Err(no_number(row, *code));
                    }
                    put(dtype, scale * level, out);
                }
            }
        }
        column = end;
    }
    Ok(())
}

fn put(dtype: WeightType, value: f32, out: &mut Vec<u8>) {
    match dtype {
        // Exact, or it would not have been chosen.
        WeightType::BF16 => out.extend_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes()),
        WeightType::F16 => out.extend_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        _ => out.extend_from_slice(&value.to_le_bytes()),
    }
}

fn blocks(matrix: &Matrix, dtype: WeightType, row: usize, codes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    for (at, block) in codes.as_chunks::<32>().0.iter().enumerate() {
        let (cell, _) = matrix.groups.at(row, 32 * at);
        match dtype {
            WeightType::Mxfp4 => out.push(matrix.scales.power(cell).unwrap_or(0)),
            // Its levels are doubled.
            WeightType::Fp4Wide => {
                let (second, _) = matrix.groups.at(row, 32 * at + 16);
                for cell in [cell, second] {
                    out.extend_from_slice(&(matrix.scales.at(cell) / 2.0).to_le_bytes());
                }
            }
            WeightType::Q8Wide | WeightType::Fp8 | WeightType::Nf4 | WeightType::BnbFp4 => {
                out.extend_from_slice(&matrix.scales.at(cell).to_le_bytes());
            }
            _ => out.extend_from_slice(&half(&matrix.scales, cell)),
        }
        match &matrix.levels {
            Levels::Integers(zeros) => centered(dtype, block, zeros, cell, out),
            Levels::Affine(biases) => {
                out.extend_from_slice(&half(biases, cell));
                match dtype {
                    WeightType::Q8Min => out.extend_from_slice(block),
                    WeightType::Q5_1 => {
                        out.extend_from_slice(&fifths(block));
                        out.extend_from_slice(&nibbles(block));
                    }
                    _ => out.extend_from_slice(&nibbles(block)),
                }
            }
            Levels::Table(table) if dtype == WeightType::Fp8 => {
                if let Some(code) = block.iter().find(|code| !table[usize::from(**code)].is_finite()) {
                    return Err(no_number(row, *code));
                }
                out.extend_from_slice(block);
            }
            Levels::Table(_) => out.extend_from_slice(&nibbles(block)),
        }
    }
    Ok(())
}

/// That numbers of a byte each are of the bits that they are said to be; `codes` of the rows from `first` on.
fn check_range(bits: u32, first: usize, codes: &[u8]) -> Result<()> {
    let most = (1u32 << bits) as usize;
    match codes.iter().find(|code| usize::from(**code) >= most) {
        None => Ok(()),
        Some(code) => Err(Error::model_file(format!(
            "from row {first} on there is the number {}, which has more than {bits} bits; the file is damaged",
            code.wrapping_sub(1 << (bits - 1)) as i8
        ))),
    }
}

fn no_number(row: usize, code: u8) -> Error {
    Error::model_file(format!(
        "row {row} holds the byte {code:#04x}, which is no number; the file is damaged"
    ))
}

/// Exact, or it would not have been chosen.
fn half(grid: &Grid, cell: [usize; 2]) -> [u8; 2] {
    half::f16::from_f32(grid.at(cell)).to_le_bytes()
}

fn centered(dtype: WeightType, block: &[u8; 32], zeros: &Zeros, cell: [usize; 2], out: &mut Vec<u8>) {
    let zero = zeros.at(cell);
    if dtype == WeightType::Q4Zero {
        out.push(zero as u8);
        out.extend_from_slice(&nibbles(block));
        return;
    }
    let middle = match dtype {
        WeightType::Q4_0 => 8,
        WeightType::Q5_0 => 16,
        _ => 0,
    };
    let quants = block.map(|code| (i32::from(code) - zero + middle) as u8);
    match dtype {
        WeightType::Q8_0 | WeightType::Q8Wide => out.extend_from_slice(&quants),
        WeightType::Q5_0 => {
            out.extend_from_slice(&fifths(&quants));
            out.extend_from_slice(&nibbles(&quants));
        }
        _ => out.extend_from_slice(&nibbles(&quants)),
    }
}

/// The low nibbles of two halves, side by side.
fn nibbles(quants: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| quants[i] & 15 | quants[i + 16] << 4)
}

/// Bit 4 of each.
fn fifths(quants: &[u8; 32]) -> [u8; 4] {
    (0..).zip(quants).fold(0, |all: u32, (i, quant)| all | u32::from(quant >> 4 & 1) << i).to_le_bytes()
}

impl Packing {
    /// How many codes there can be.
    fn values(self) -> usize {
        match self {
            Packing::Rows { bits, .. }
            | Packing::Words { bits, .. }
            | Packing::Down { bits, .. }
            | Packing::Small { bits } => 1 << bits,
            Packing::Awq { .. } | Packing::HighFirst => 16,
            Packing::Bytes { .. } => 256,
        }
    }
}

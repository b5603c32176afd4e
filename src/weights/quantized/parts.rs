//! The tensors of a module, checked against each other and against what the configuration says, as a
//! [`Matrix`]. The layouts are those of the packages that write them: compressed-tensors 0.20, gptqmodel 7.7,
//! bitsandbytes 0.50, mlx-lm 0.32, ModelOpt 0.47 and torchao 0.18.

mod torchao;

use std::cell::RefCell;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::codes::{Codes, Packing};
use super::convert::E2M1;
use super::grid::{Grid, Groups, Numbers, StoredZeros, ZeroPacking, Zeros, e4m3};
use super::{Group, Levels, Matrix, Outer, Part, Scheme};
use crate::error::{Context, Error, Result, quoted, shortened};
use crate::weights::blocks::dequantize_row;
use crate::weights::{Bytes, Stored, WeightType};

/// What a scheme makes of the parts of a module: the matrix, the parts that it took, and its shape.
type Made = (Matrix, Vec<String>, [usize; 2]);

/// Takes the parts that a scheme has. `stated`: what the file's header says of the matrix.
///
/// # Errors
/// `ModelFile` where one is missing, or of another type or shape than the scheme and the others say.
pub(super) fn read(name: &str, scheme: &Scheme, parts: Vec<Part>, stated: Option<&str>) -> Result<Made> {
    let parts = Parts { parts, taken: RefCell::default() };
    let found = match scheme {
        Scheme::Packed { bits, group, symmetric } => parts.packed(*bits, *group, *symmetric),
        Scheme::Int8 { group, symmetric } => parts.int8(*group, *symmetric),
        Scheme::Gptq { bits, group, minus_one, any_order, bits_by_shape } => {
            let bits = if *bits_by_shape { parts.gptq_bits()? } else { *bits };
            parts.gptq(bits, *group, i32::from(*minus_one), *any_order)
        }
        Scheme::Awq { group } => parts.awq(*group),
        Scheme::Affine { bits, group } => parts.affine(*bits, *group),
        Scheme::Table4 => parts.table4(),
        Scheme::Rows8 => parts.rows8(),
        Scheme::Fp8 { scales, groups } => parts.fp8(scales, groups),
        Scheme::Fp4 { weight, scale, group, outer, powers } => {
            parts.fp4(weight, scale, *group, *outer, *powers)
        }
        Scheme::Torchao => parts.torchao(stated),
    }?;
    let Found { shape, codes, levels, scales, groups } = found;
    if shape.contains(&0) {
        return Err(Error::model_file(format!("its matrix would be {shape:?}")));
    }
    let taken = parts.taken.into_inner();
    let bytes =
        parts.parts.iter().filter(|part| taken.contains(&part.name)).map(|part| part.data.len()).sum();
    let (dtype, failed) = (OnceLock::new(), OnceLock::new());
    let matrix = Matrix { name: name.to_owned(), shape, codes, levels, scales, groups, bytes, dtype, failed };
    Ok((matrix, taken, shape))
}

struct Found {
    shape: [usize; 2],
    codes: Codes,
    levels: Levels,
    scales: Grid,
    groups: Groups,
}

/// The tensors that are there, and those that were asked for.
struct Parts {
    parts: Vec<Part>,
    taken: RefCell<Vec<String>>,
}

impl Parts {
    fn find(&self, name: &str) -> Option<&Part> {
        let part = self.parts.iter().find(|part| part.name == name)?;
        self.taken.borrow_mut().push(name.to_owned());
        Some(part)
    }

    fn part(&self, name: &str) -> Result<&Part> {
        self.find(name).ok_or_else(|| Error::model_file(format!("there is no {name} beside its tensors")))
    }

    /// A part that must be of one of these types.
    fn typed(&self, name: &str, types: &[&str]) -> Result<&Part> {
        let part = self.part(name)?;
        match types.contains(&part.dtype()) {
            true => Ok(part),
            false => Err(Error::model_file(format!(
                "{name} is stored as {}, where it must be {}",
                part.dtype(),
                types.join(" or ")
            ))),
        }
    }

    /// The scales `[rows, columns]` are in by `group`, and its groups.
    fn grid(&self, name: &str, group: Group, shape: [usize; 2]) -> Result<(Grid, Groups)> {
        let part = self.part(name)?;
        let (groups, size) = Groups::of(group, shape);
        let fits = match group {
            Group::Tensor => part.shape.iter().product::<usize>() == 1,
            Group::Row => part.shape == size || part.shape == [size[0]],
            Group::Of(_) | Group::Block(..) => part.shape == size,
        };
        match fits {
            true => Ok((part.grid(size[1], false)?, groups)),
            false => Err(part.misfit(&size, shape)),
        }
    }

    fn packed(&self, bits: u32, group: Group, symmetric: bool) -> Result<Found> {
        let codes = self.typed("weight_packed", &["I32"])?;
        let shape = self.typed("weight_shape", &["I64", "I32"])?.pair()?;
        let [n, k] = shape;
        let per_word = (32 / bits) as usize;
        let streamed = k.checked_mul(bits as usize).map(|bits| bits.div_ceil(32));
        let (words, whole) = match codes.shape[..] {
            [rows, width] if rows == n && Some(width) == streamed => (width, false),
            // Words without a code that goes on in the next: what 0.17 and before wrote.
            [rows, width] if rows == n && width == k.div_ceil(per_word) => (width, true),
            _ => {
                let wanted = [n, streamed.unwrap_or(usize::MAX)];
                return Err(codes.misfit_of(&wanted, &format!("{bits} bits of a matrix {shape:?}")));
            }
        };
        let row_bytes = 4 * words;
        let packing = match whole {
            true => Packing::Words { bits, row_bytes },
            false => Packing::Rows { bits, row_bytes },
        };
        let (scales, groups) = self.grid("weight_scale", group, shape)?;
        let size = Groups::of(group, shape).1;
        let zeros = match symmetric {
            true => Zeros::All(1 << (bits - 1)),
            false => {
                let part = self.typed("weight_zero_point", &["I32", "I8"])?;
                let height =
                    if whole { size[0].div_ceil(per_word) } else { (size[0] * bits as usize).div_ceil(32) };
                let (wanted, packing) = match part.dtype() {
                    "I8" => (size, ZeroPacking::Bytes { middle: 128 }),
                    _ => ([height, size[1]], ZeroPacking::Down { bits, words: whole }),
                };
                part.shaped(&wanted, shape)?;
                Zeros::Stored(StoredZeros { data: part.data.clone(), packing, size })
            }
        };
        let codes = Codes { data: codes.data.clone(), packing, columns: k };
        Ok(Found { shape, codes, levels: Levels::Integers(zeros), scales, groups })
    }

    fn int8(&self, group: Group, symmetric: bool) -> Result<Found> {
        let weight = self.typed("weight", &["I8"])?;
        let shape = weight.matrix()?;
        let (scales, groups) = self.grid("weight_scale", group, shape)?;
        let size = Groups::of(group, shape).1;
        let zeros = match symmetric {
            true => Zeros::All(128),
            false => {
                let part = self.typed("weight_zero_point", &["I8"])?;
                if part.shape.iter().product::<usize>() != size[0] * size[1] {
                    return Err(part.misfit(&size, shape));
                }
                let data = part.data.clone();
                Zeros::Stored(StoredZeros { data, packing: ZeroPacking::Bytes { middle: 128 }, size })
            }
        };
        Ok(Found { shape, codes: weight.bytes(true, shape), levels: Levels::Integers(zeros), scales, groups })
    }

    /// Bits of a code, from the words a row and its columns.
    fn gptq_bits(&self) -> Result<u32> {
        let [words, _] = self.part("qweight")?.matrix()?;
        let columns = self.part("g_idx")?.shape.first().copied().unwrap_or(0);
        let bits = words.checked_mul(32).filter(|all| columns > 0 && all.is_multiple_of(columns));
        let bits = bits.map(|all| all / columns).filter(|bits| [2, 3, 4, 8].contains(bits));
        bits.map(|bits| bits as u32).ok_or_else(|| {
            Error::model_file(format!(
                "qweight has {words} rows of words for {columns} columns, which is no format"
            ))
        })
    }

    fn gptq(&self, bits: u32, group: Group, plus: i32, any_order: bool) -> Result<Found> {
        let codes = self.typed("qweight", &["I32"])?;
        let [words, n] = codes.matrix()?;
        let stream = words.checked_mul(32).filter(|all| all.is_multiple_of(bits as usize));
        let k = stream.map(|all| all / bits as usize).ok_or_else(|| {
            Error::model_file(format!("qweight has {words} rows of words, which are no codes of {bits} bits"))
        })?;
        let shape = [n, k];
        let (groups, size) = Groups::of(group, shape);
        let scales = self.part("scales")?;
        scales.shaped(&[size[1], n], shape)?;
        let zeros = self.typed("qzeros", &["I32"])?;
        let width = n.saturating_mul(bits as usize).div_ceil(32);
        zeros.shaped(&[size[1], width], shape)?;
        let groups = match self.find("g_idx") {
            Some(part) => listed(part, k, size[1], groups)?,
            None if any_order => {
                return Err(Error::model_file(
                    "there is no g_idx, and desc_act says that columns have groups in any order",
                ));
            }
            None => groups,
        };
        let packing = ZeroPacking::Across { bits, row_bytes: 4 * width, plus };
        let zeros = StoredZeros { data: zeros.data.clone(), packing, size: [n, size[1]] };
        let packing = Packing::Down { bits, rows: n };
        Ok(Found {
            shape,
            codes: Codes { data: codes.data.clone(), packing, columns: k },
            levels: Levels::Integers(Zeros::Stored(zeros)),
            scales: scales.grid(n, true)?,
            groups,
        })
    }

    fn awq(&self, group: Group) -> Result<Found> {
        let codes = self.typed("qweight", &["I32"])?;
        let [k, words] = codes.matrix()?;
        let n = words.checked_mul(8).unwrap_or(0);
        let shape = [n, k];
        let (groups, size) = Groups::of(group, shape);
        let scales = self.part("scales")?;
        scales.shaped(&[size[1], n], shape)?;
        let zeros = self.typed("qzeros", &["I32"])?;
        zeros.shaped(&[size[1], words], shape)?;
        let packing = ZeroPacking::Awq { lines: n };
        let zeros = StoredZeros { data: zeros.data.clone(), packing, size: [n, size[1]] };
        Ok(Found {
            shape,
            codes: Codes { data: codes.data.clone(), packing: Packing::Awq { rows: n }, columns: k },
            levels: Levels::Integers(Zeros::Stored(zeros)),
            scales: scales.grid(n, true)?,
            groups,
        })
    }

    fn affine(&self, bits: u32, group: usize) -> Result<Found> {
        let codes = self.typed("weight", &["U32"])?;
        let [n, words] = codes.matrix()?;
        let shape = [n, words.checked_mul(32).unwrap_or(0) / bits as usize];
        let (scales, groups) = self.grid("scales", Group::Of(group), shape)?;
        let (biases, _) = self.grid("biases", Group::Of(group), shape)?;
        let packing = Packing::Rows { bits, row_bytes: 4 * words };
        let codes = Codes { data: codes.data.clone(), packing, columns: shape[1] };
        Ok(Found { shape, codes, levels: Levels::Affine(biases), scales, groups })
    }

    fn table4(&self) -> Result<Found> {
        let state = self.parts.iter().find(|part| part.name.starts_with("weight.quant_state.bitsandbytes__"));
        let state =
            state.ok_or_else(|| Error::model_file("there is no weight.quant_state beside its tensors"))?;
        let state = State::read(&self.typed(&state.name, &["U8"])?.data).context("weight.quant_state")?;
        let weight = self.part("weight")?;
        let [n, k] = state.shape;
        let count =
            n.checked_mul(k).ok_or_else(|| Error::model_file("the shape of its quant_state is too large"))?;
        if weight.data.len() != count.div_ceil(2) {
            return Err(Error::model_file(format!(
                "weight holds {} bytes, and a matrix {:?} of 4 bits takes {}",
                weight.data.len(),
                state.shape,
                count.div_ceil(2)
            )));
        }
        let blocks = count.div_ceil(state.block);
        let table = self.table("weight.quant_map", 16)?;
        let absmax = self.part("weight.absmax")?;
        absmax.shaped(&[blocks], state.shape)?;
        let numbers = match state.nested {
            None => absmax.numbers()?,
            Some((block, offset)) => {
                let codes = self.typed("weight.absmax", &["U8"])?.data.clone();
                let scales = self.table("weight.nested_absmax", blocks.div_ceil(block))?;
                let table = self.table("weight.nested_quant_map", 256)?;
                Numbers::Nested { codes, table, scales, block, offset }
            }
        };
        let scales =
            Grid { numbers, stride: blocks, by_group: false, count: blocks, outer: 1.0, divides: false };
        Ok(Found {
            shape: state.shape,
            codes: Codes { data: weight.data.clone(), packing: Packing::HighFirst, columns: k },
            levels: Levels::Table(table),
            scales,
            groups: Groups::Flat { weights: state.block, columns: k },
        })
    }

    /// A table of floats.
    fn table(&self, name: &str, len: usize) -> Result<Box<[f32]>> {
        let part = self.typed(name, &["F32"])?;
        part.shaped(&[len], [1, len])?;
        let mut table = vec![0.0; len];
        dequantize_row(WeightType::F32, &part.data, &mut table);
        match table.iter().all(|number| number.is_finite()) {
            true => Ok(table.into()),
            false => Err(Error::model_file(format!("{name} holds what is no finite number"))),
        }
    }

    fn rows8(&self) -> Result<Found> {
        let weight = self.typed("weight", &["I8"])?;
        let shape = weight.matrix()?;
        let (mut scales, groups) = self.grid("SCB", Group::Row, shape)?;
        scales.outer = 127.0;
        scales.divides = true;
        if let Some(format) = self.find("weight_format")
            && format.data.iter().any(|byte| *byte != 0)
        {
            return Err(Error::unsupported(
                "weight_format is not 0 (rows): the weights are in the order of some GPU's tiles, which is not \
                 read; save them again with a newer bitsandbytes",
            ));
        }
        let levels = Levels::Integers(Zeros::All(128));
        Ok(Found { shape, codes: weight.bytes(true, shape), levels, scales, groups })
    }

    fn fp8(&self, names: &[&str], groups: &[Group]) -> Result<Found> {
        // MLX has four bytes in a word.
        let weight = self.typed("weight", &[if names == ["scales"] { "U32" } else { "F8_E4M3" }])?;
        let [n, width] = weight.matrix()?;
        let shape = [n, if weight.dtype() == "U32" { width.checked_mul(4).unwrap_or(0) } else { width }];
        let there = names.iter().find(|name| self.parts.iter().any(|part| part.name == **name));
        let name = there.or(names.first()).copied().unwrap_or_default();
        let mut grids = groups.iter().map(|group| self.grid(name, *group, shape));
        let first = grids.next().unwrap_or_else(|| Err(Error::internal("no groups of FP8")));
        let (scales, groups) = first.or_else(|error| grids.find_map(Result::ok).ok_or(error))?;
        let levels = (0..=255).map(e4m3).collect();
        Ok(Found { shape, codes: weight.bytes(false, shape), levels: Levels::Table(levels), scales, groups })
    }

    fn fp4(
        &self,
        weight: &str,
        scale: &str,
        group: usize,
        outer: Option<Outer>,
        powers: bool,
    ) -> Result<Found> {
        let weight = self.typed(weight, &["U8", "U32"])?;
        let [n, width] = weight.matrix()?;
        let size = if weight.dtype() == "U32" { 4 } else { 1 };
        let row_bytes = width.checked_mul(size).unwrap_or(0);
        let shape = [n, row_bytes.checked_mul(2).unwrap_or(0)];
        let types: &[&str] = if powers { &["U8", "F8_E8M0"] } else { &["F8_E4M3", "U8"] };
        let data = self.typed(scale, types)?.data.clone();
        let (mut scales, groups) = self.grid(scale, Group::Of(group), shape)?;
        scales.numbers = if powers { Numbers::E8M0(data) } else { Numbers::E4M3(data) };
        if let Some(Outer { name, divides }) = outer {
            let number = self.typed(name, &["F32"])?;
            (scales.outer, scales.divides) = (number.number()?, divides);
        }
        let packing = Packing::Rows { bits: 4, row_bytes };
        let codes = Codes { data: weight.data.clone(), packing, columns: shape[1] };
        Ok(Found { shape, codes, levels: Levels::Table(E2M1.into()), scales, groups })
    }
}

/// The group of each column; as blocks, where they are no others.
fn listed(part: &Part, columns: usize, count: usize, blocks: Groups) -> Result<Groups> {
    if part.dtype() != "I32" || part.shape != [columns] {
        return Err(part.misfit_of(&[columns], "a group for each column (I32)"));
    }
    let group = |bytes: &[u8; 4]| i32::from_le_bytes(*bytes);
    let of: Vec<i32> = part.data.as_chunks().0.iter().map(group).collect();
    if let Some((column, group)) =
        of.iter().enumerate().find(|(_, group)| !(0..count as i64).contains(&i64::from(**group)))
    {
        return Err(Error::model_file(format!(
            "g_idx says that column {column} is of group {group}, and there are {count} groups"
        )));
    }
    let usual = of.iter().enumerate().all(|(column, group)| blocks.at(0, column).0[1] == *group as usize);
    Ok(if usual { blocks } else { Groups::Listed(of.into_iter().map(|group| group as u32).collect()) })
}

impl Part {
    fn dtype(&self) -> &str {
        match &self.stored {
            Stored::Read(dtype) => dtype.name(),
            Stored::F64 => "F64",
            Stored::Other(name) => name,
            Stored::Joined(_) => "a matrix",
        }
    }

    fn matrix(&self) -> Result<[usize; 2]> {
        match self.shape[..] {
            [n, k] => Ok([n, k]),
            _ => Err(Error::unsupported(format!(
                "{} has the shape {:?}; only matrices are read",
                self.name, self.shape
            ))),
        }
    }

    fn shaped(&self, wanted: &[usize], matrix: [usize; 2]) -> Result<()> {
        match self.shape == wanted {
            true => Ok(()),
            false => Err(self.misfit(wanted, matrix)),
        }
    }

    fn misfit(&self, wanted: &[usize], matrix: [usize; 2]) -> Error {
        self.misfit_of(wanted, &format!("a matrix {matrix:?} in these groups"))
    }

    pub(super) fn misfit_of(&self, wanted: &[usize], what: &str) -> Error {
        Error::model_file(format!(
            "{} has the shape {:?}, and {what} has {wanted:?}; the configuration and the tensors do not belong \
             together",
            self.name, self.shape
        ))
    }

    /// Its bytes as codes of the matrix that it is.
    fn bytes(&self, signed: bool, shape: [usize; 2]) -> Codes {
        Codes { data: self.data.clone(), packing: Packing::Bytes { signed }, columns: shape[1] }
    }

    fn numbers(&self) -> Result<Numbers> {
        let data = self.data.clone();
        Ok(match self.dtype() {
            "F32" => Numbers::F32(data),
            "F16" => Numbers::F16(data),
            "BF16" => Numbers::BF16(data),
            "U8" | "F8_E8M0" => Numbers::E8M0(data),
            "F8_E4M3" => Numbers::E4M3(data),
            other => {
                return Err(Error::model_file(format!(
                    "{} is stored as {other}, where scales must be floats",
                    self.name
                )));
            }
        })
    }

    fn grid(&self, stride: usize, by_group: bool) -> Result<Grid> {
        let count = self.shape.iter().product();
        Ok(Grid { numbers: self.numbers()?, stride, by_group, count, outer: 1.0, divides: false })
    }

    /// One finite number that is not 0.
    fn number(&self) -> Result<f32> {
        let [number] =
            self.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()[..]
        else {
            return Err(self.misfit_of(&[1], "a matrix"));
        };
        match number.is_finite() && number != 0.0 {
            true => Ok(number),
            false => Err(Error::model_file(format!("{} is {number}; the file is damaged", self.name))),
        }
    }

    /// The two numbers of a shape.
    fn pair(&self) -> Result<[usize; 2]> {
        let wide = self.dtype() == "I64";
        let number = |bytes: &[u8]| match wide {
            true => bytes.try_into().map_or(-1, i64::from_le_bytes),
            false => bytes.try_into().map_or(-1, |bytes| i64::from(i32::from_le_bytes(bytes))),
        };
        let numbers: Vec<_> = self.data.chunks(if wide { 8 } else { 4 }).take(3).map(number).collect();
        match numbers[..] {
            [n, k] if n > 0 && k > 0 => Ok([n as usize, k as usize]),
            _ => Err(Error::model_file(format!("{} holds {numbers:?}, where two sizes must be", self.name))),
        }
    }
}

/// What bitsandbytes says of a matrix.
struct State {
    block: usize,
    shape: [usize; 2],
    /// The block of the scales' own scales, and what is added to each scale.
    nested: Option<(usize, f32)>,
}

impl State {
    /// The longest that is read.
    const LIMIT: usize = 1 << 16;
    const KEYS: [&str; 7] =
        ["quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"];

    fn read(bytes: &Bytes) -> Result<State> {
        let malformed = |why: String| Error::model_file(format!("is malformed: {why}"));
        if bytes.len() > State::LIMIT {
            return Err(malformed(format!("it has {} bytes", bytes.len())));
        }
        let object: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| malformed(shortened(error, 100)))?;
        if let Some(key) = object.keys().find(|key| !State::KEYS.contains(&key.as_str())) {
            return Err(Error::unsupported(format!("has the key {}, which is not understood", quoted(key))));
        }
        let size = |value: Option<&Value>| {
            value.and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
        };
        let positive = |key: &str| {
            size(object.get(key)).ok_or_else(|| malformed(format!("{key} must be a positive number")))
        };
        let shape = object.get("shape").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let [Some(n), Some(k)] = [size(shape.first()), size(shape.get(1))] else {
            return Err(malformed("shape must be two positive numbers".into()));
        };
        if shape.len() != 2 {
            return Err(Error::unsupported("is not of a matrix, and only those are read"));
        }
        let nested = match object.get("nested_blocksize") {
            None | Some(Value::Null) => None,
            Some(_) => {
                let offset = object.get("nested_offset").and_then(Value::as_f64).map(|offset| offset as f32);
                let offset = offset.filter(|offset| offset.is_finite());
                let offset = offset.ok_or_else(|| malformed("nested_offset must be a number".into()))?;
                Some((positive("nested_blocksize")?, offset))
            }
        };
        Ok(State { block: positive("blocksize")?, shape: [n, k], nested })
    }
}

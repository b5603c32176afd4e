//! torchao: the file's header says of each weight which class of tensor it was, as JSON (torchao 0.18).
//! Classes and keys of them that are not known are refused by name: layouts change with versions.

use serde_json::{Map, Value};

use super::{Found, Part, Parts, e4m3};
use crate::error::{Error, PARAGRAPH, Result, quoted, shortened};
use crate::weights::quantized::codes::{Codes, Packing};
use crate::weights::quantized::grid::{Groups, StoredZeros, ZeroPacking, Zeros};
use crate::weights::quantized::{Group, Levels};

const CODES: &str = "_weight_qdata";
const SCALES: &str = "_weight_scale";
const ZEROS: &str = "_weight_zero_point";

/// What a header says of one weight.
struct Stated {
    class: String,
    block: [usize; 2],
    /// Of a number in a byte.
    bits: u32,
    has_zeros: bool,
}

impl Parts {
    /// # Errors
    /// `UnsupportedModel` where the header says nothing, or names a class that is not read.
    pub(super) fn torchao(&self, stated: Option<&str>) -> Result<Found> {
        let text = stated.ok_or_else(|| {
            Error::unsupported(
                "the file's header does not say which class of torchao's tensors it is, as files of 0.18 do; \
                 save the model again, or use the original model or a GGUF file of it",
            )
        })?;
        let stated = Stated::read(text)?;
        match stated.class.as_str() {
            "Float8Tensor" => self.torchao_floats(&stated),
            _ => self.torchao_integers(&stated),
        }
    }

    /// `Int8Tensor`, `IntxUnpackedToInt8Tensor`: `(q - z) * scale`.
    fn torchao_integers(&self, stated: &Stated) -> Result<Found> {
        let part = self.typed(CODES, &["I8"])?;
        let shape = part.matrix()?;
        let middle = 1 << (stated.bits - 1);
        let (scales, groups) = self.grid(SCALES, stated.group(shape), shape)?;
        let size = Groups::of(stated.group(shape), shape).1;
        let zeros = match self.find(ZEROS) {
            None if stated.has_zeros => {
                return Err(Error::model_file("its header names a zero point, and the file has none"));
            }
            None => Zeros::All(middle),
            Some(part)
                if part.dtype() == "I8" && part.shape.iter().product::<usize>() == size[0] * size[1] =>
            {
                let packing = ZeroPacking::Bytes { middle };
                Zeros::Stored(StoredZeros { data: part.data.clone(), packing, size })
            }
            Some(part) => return Err(part.misfit_of(&size, "a zero point for each group (I8)")),
        };
        let packing = Packing::Small { bits: stated.bits };
        let codes = Codes { data: part.data.clone(), packing, columns: shape[1] };
        Ok(Found { shape, codes, levels: Levels::Integers(zeros), scales, groups })
    }

    /// `Float8Tensor`: `scale * e4m3(q)`.
    fn torchao_floats(&self, stated: &Stated) -> Result<Found> {
        let part = self.typed(CODES, &["F8_E4M3"])?;
        let shape = part.matrix()?;
        let (scales, groups) = self.grid(SCALES, stated.group(shape), shape)?;
        let levels = Levels::Table((0..=255).map(e4m3).collect());
        Ok(Found { shape, codes: Part::bytes(part, false, shape), levels, scales, groups })
    }
}

impl Stated {
    fn read(text: &str) -> Result<Stated> {
        let malformed =
            |why: String| Error::model_file(format!("what the header says of it is malformed: {why}"));
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| malformed(shortened(error, PARAGRAPH)))?;
        let class = object.get("_type").and_then(Value::as_str).unwrap_or_default();
        // Of their keys those that say how activations are quantized, and what computes, change no weight.
        let keys: &[&str] = match class {
            "Int8Tensor" => &["block_size", "act_quant_kwargs", "reduce_range", "dtype"],
            "IntxUnpackedToInt8Tensor" => &["block_size", "target_dtype", "activation_quantization", "dtype"],
            "Float8Tensor" => &["block_size", "mm_config", "act_quant_kwargs", "kernel_preference", "dtype"],
            other => {
                return Err(Error::unsupported(format!(
                    "it is torchao's {}, which is not run yet (Int8Tensor, IntxUnpackedToInt8Tensor and \
                     Float8Tensor are): use the original model or a GGUF file of it",
                    quoted(other)
                )));
            }
        };
        let inner = object.get("_data").and_then(Value::as_object);
        let inner = inner.ok_or_else(|| malformed("_data must be an object".into()))?;
        if let Some((key, value)) =
            inner.iter().find(|(key, value)| !keys.contains(&key.as_str()) && !value.is_null())
        {
            return Err(Error::unsupported(format!(
                "torchao says {}: {} of it, which is not understood",
                quoted(key),
                shortened(value, PARAGRAPH)
            )));
        }
        let names = object.get("_tensor_data_names").and_then(Value::as_array);
        let has_zeros = names.into_iter().flatten().any(|name| name == "zero_point");
        let named =
            |name: &Value| name.as_str().is_some_and(|name| ["qdata", "scale", "zero_point"].contains(&name));
        if let Some(name) = names.into_iter().flatten().find(|name| !named(name)) {
            return Err(Error::unsupported(format!(
                "torchao keeps {} of it, which is not read",
                shortened(name, PARAGRAPH)
            )));
        }
        let side =
            |side: &Value| side.as_u64().and_then(|side| usize::try_from(side).ok()).filter(|side| *side > 0);
        let sides: Vec<_> =
            inner.get("block_size").and_then(Value::as_array).into_iter().flatten().map(side).collect();
        let [Some(rows), Some(columns)] = sides[..] else {
            return Err(malformed("block_size must be two positive numbers".into()));
        };
        let bits = bits(inner.get("target_dtype"))?;
        Ok(Stated { class: class.to_owned(), block: [rows, columns], bits, has_zeros })
    }

    fn group(&self, [rows, columns]: [usize; 2]) -> Group {
        match self.block {
            [n, k] if n >= rows && k >= columns => Group::Tensor,
            [1, k] if k >= columns => Group::Row,
            [1, k] => Group::Of(k),
            [n, k] => Group::Block(n, k),
        }
    }
}

/// Bits of `{"_type": "torch.dtype", "_data": "int4"}`; 8 where nothing is said.
fn bits(target: Option<&Value>) -> Result<u32> {
    let Some(target) = target else { return Ok(8) };
    let name = target.get("_data").and_then(Value::as_str).unwrap_or_default();
    let bits = name.strip_prefix("int").and_then(|bits| bits.parse().ok());
    bits.filter(|bits| (1..=8).contains(bits)).ok_or_else(|| {
        Error::unsupported(format!(
            "torchao says target_dtype: {}; int1 to int8 are read",
            shortened(target, PARAGRAPH)
        ))
    })
}

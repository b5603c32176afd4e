//! The number formats that weights are stored in.
//!
//! [`WeightType`] is one table: a row a format, with its name, its id in GGUF, how many weights a block holds
//! and how many bytes it takes. Floats are blocks of one. The layouts themselves are in
//! [`blocks`](super::blocks). Ids and sizes: `ggml/include/ggml.h` and `ggml-common.h` of llama.cpp.

use crate::error::{Error, Result};

/// How the weights of one tensor are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Q8K,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq1S,
    Iq1M,
    Tq1_0,
    Tq2_0,
    Nvfp4,
    Q1_0,
    /// Scale and minimum, 8 bits. This and the following are of no file: quantized checkpoints of safetensors
    /// are kept in them.
    Q8Min,
    /// Scale and zero point, 4 bits.
    Q4Zero,
    /// A scale of 32 bits, 8 bits with a sign.
    Q8Wide,
    /// Two scales of 32 bits, for 16 weights each, and E2M1.
    Fp4Wide,
    /// A scale of 32 bits and E4M3. This and the following are multiplied as floats.
    Fp8,
    /// A scale of 32 bits and the sixteen levels of NF4, or of bitsandbytes' FP4.
    Nf4,
    BnbFp4,
}

/// What is to be known of a format.
struct Row {
    name: &'static str,
    /// What it is in GGUF; none of a format that is only kept in memory.
    ggml_id: Option<u32>,
    block_len: usize,
    block_bytes: usize,
}

const fn row(name: &'static str, ggml_id: u32, block_len: usize, block_bytes: usize) -> Row {
    Row { name, ggml_id: Some(ggml_id), block_len, block_bytes }
}

/// A format of no file.
const fn kept(name: &'static str, block_len: usize, block_bytes: usize) -> Row {
    Row { name, ggml_id: None, block_len, block_bytes }
}

impl WeightType {
    /// Every format, floats first.
    pub const ALL: [WeightType; 35] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q2K,
        WeightType::Q3K,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
        WeightType::Iq4Nl,
        WeightType::Iq4Xs,
        WeightType::Mxfp4,
        WeightType::Q8K,
        WeightType::Iq2Xxs,
        WeightType::Iq2Xs,
        WeightType::Iq2S,
        WeightType::Iq3Xxs,
        WeightType::Iq3S,
        WeightType::Iq1S,
        WeightType::Iq1M,
        WeightType::Tq1_0,
        WeightType::Tq2_0,
        WeightType::Nvfp4,
        WeightType::Q1_0,
        WeightType::Q8Min,
        WeightType::Q4Zero,
        WeightType::Q8Wide,
        WeightType::Fp4Wide,
        WeightType::Fp8,
        WeightType::Nf4,
        WeightType::BnbFp4,
    ];

    /// Those that floats can be quantized to.
    pub const MADE: [WeightType; 10] = [
        WeightType::Q8_0,
        WeightType::Q6K,
        WeightType::Q5K,
        WeightType::Q4K,
        WeightType::Q3K,
        WeightType::Q2K,
        WeightType::Q5_1,
        WeightType::Q5_0,
        WeightType::Q4_1,
        WeightType::Q4_0,
    ];

    /// Their names, for messages.
    pub fn made_names() -> String {
        let names: Vec<_> = Self::MADE.iter().map(|ty| ty.name().to_ascii_lowercase()).collect();
        names.join(", ")
    }

    const fn row(self) -> Row {
        match self {
            WeightType::F32 => row("F32", 0, 1, 4),
            WeightType::F16 => row("F16", 1, 1, 2),
            WeightType::BF16 => row("BF16", 30, 1, 2),
            WeightType::Q4_0 => row("Q4_0", 2, 32, 18),
            WeightType::Q4_1 => row("Q4_1", 3, 32, 20),
            WeightType::Q5_0 => row("Q5_0", 6, 32, 22),
            WeightType::Q5_1 => row("Q5_1", 7, 32, 24),
            WeightType::Q8_0 => row("Q8_0", 8, 32, 34),
            WeightType::Q2K => row("Q2_K", 10, 256, 84),
            WeightType::Q3K => row("Q3_K", 11, 256, 110),
            WeightType::Q4K => row("Q4_K", 12, 256, 144),
            WeightType::Q5K => row("Q5_K", 13, 256, 176),
            WeightType::Q6K => row("Q6_K", 14, 256, 210),
            WeightType::Iq4Nl => row("IQ4_NL", 20, 32, 18),
            WeightType::Iq4Xs => row("IQ4_XS", 23, 256, 136),
            WeightType::Mxfp4 => row("MXFP4", 39, 32, 17),
            WeightType::Q8K => row("Q8_K", 15, 256, 292),
            WeightType::Iq2Xxs => row("IQ2_XXS", 16, 256, 66),
            WeightType::Iq2Xs => row("IQ2_XS", 17, 256, 74),
            WeightType::Iq2S => row("IQ2_S", 22, 256, 82),
            WeightType::Iq3Xxs => row("IQ3_XXS", 18, 256, 98),
            WeightType::Iq3S => row("IQ3_S", 21, 256, 110),
            WeightType::Iq1S => row("IQ1_S", 19, 256, 50),
            WeightType::Iq1M => row("IQ1_M", 29, 256, 56),
            WeightType::Tq1_0 => row("TQ1_0", 34, 256, 54),
            WeightType::Tq2_0 => row("TQ2_0", 35, 256, 66),
            WeightType::Nvfp4 => row("NVFP4", 40, 64, 36),
            WeightType::Q1_0 => row("Q1_0", 41, 128, 18),
            WeightType::Q8Min => kept("Q8_MIN", 32, 36),
            WeightType::Q4Zero => kept("Q4_ZERO", 32, 19),
            WeightType::Q8Wide => kept("Q8_F32", 32, 36),
            WeightType::Fp4Wide => kept("FP4_F32", 32, 24),
            WeightType::Fp8 => kept("FP8", 32, 36),
            WeightType::Nf4 => kept("NF4", 32, 20),
            WeightType::BnbFp4 => kept("BNB_FP4", 32, 20),
        }
    }

    /// The name that llama.cpp prints, as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Weights in a block: 1 (floats), 32, 64, 128 or 256.
    pub const fn block_len(self) -> usize {
        self.row().block_len
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Whether its weights are whole numbers times a scale, which products multiply with bytes.
    pub const fn has_integer_codes(self) -> bool {
        self.block_len() > 1 && !self.is_block_float()
    }

    /// Whether its weights are sixteen levels of a table, which whole numbers come close to.
    pub const fn has_levels(self) -> bool {
        matches!(self, WeightType::Nf4 | WeightType::BnbFp4)
    }

    /// Whether products take activations as bytes, where those are exact enough.
    pub const fn takes_bytes(self) -> bool {
        self.has_integer_codes() || self.has_levels()
    }

    /// Whether a block holds floats of few bits and their scale.
    pub const fn is_block_float(self) -> bool {
        matches!(self, WeightType::Fp8 | WeightType::Nf4 | WeightType::BnbFp4)
    }

    /// Bytes of a row of `k` weights. `None` when `k` is not whole blocks, or the product overflows.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        let blocks = k.is_multiple_of(self.block_len()).then(|| k / self.block_len())?;
        blocks.checked_mul(self.block_bytes())
    }

    /// The format with this id in a GGUF file, if it is one that is read.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.row().ggml_id == Some(id))
    }

    /// The id in a GGUF file; `None` of a format that is only kept in memory.
    pub const fn ggml_id(self) -> Option<u32> {
        self.row().ggml_id
    }

    /// Reads a name as a user writes it: `q4_k`, `Q4_K`, `q4k`, `q4-k`.
    ///
    /// # Errors
    /// `InvalidRequest` that lists the names of those that can be made.
    pub fn parse(name: &str) -> Result<Self> {
        let plain = |s: &str| s.to_ascii_lowercase().replace(['_', '-'], "");
        let wanted = plain(name.trim());
        let mut of_files = Self::ALL.into_iter().filter(|ty| ty.ggml_id().is_some());
        of_files.find(|ty| plain(ty.name()) == wanted).ok_or_else(|| {
            Error::invalid(format!(
                "unknown weight type {name:?}; weights can be made {}",
                Self::made_names()
            ))
        })
    }
}

impl std::fmt::Display for WeightType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Names of GGUF tensor types that exist but are not read, so that a refusal can say which one it met.
pub(super) fn ggml_type_name(id: u32) -> Option<&'static str> {
    const OTHERS: [(u32, &str); 8] = [
        (9, "Q8_1"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
    ];
    OTHERS.iter().find(|(other, _)| *other == id).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_lead_back() {
        for ty in WeightType::ALL {
            let Some(id) = ty.ggml_id() else {
                assert!(WeightType::parse(ty.name()).is_err(), "{ty} is of no file");
                continue;
            };
            assert_eq!(WeightType::from_ggml(id), Some(ty));
            assert_eq!(WeightType::parse(ty.name()).unwrap(), ty);
            assert_eq!(WeightType::parse(&ty.name().to_lowercase().replace('_', "")).unwrap(), ty);
            assert_eq!(ggml_type_name(id), None, "{ty} is read, so it is not among the others");
        }
        let error = WeightType::parse("q4_k_m").unwrap_err();
        assert!(error.message().contains("q4_k,") && !error.message().contains("iq4_xs"), "{error}");
    }

    #[test]
    fn row_bytes_are_whole_blocks_or_nothing() {
        for (ty, k, bytes) in [
            (WeightType::F32, 3, Some(12)),
            (WeightType::Q4_0, 64, Some(36)),
            (WeightType::Q4_0, 33, None),
            (WeightType::Q6K, 512, Some(420)),
            (WeightType::Q6K, 32, None),
            (WeightType::F32, usize::MAX, None),
            (WeightType::Q8_0, usize::MAX - 31, None),
        ] {
            assert_eq!(ty.row_bytes(k), bytes, "{ty} {k}");
        }
    }
}

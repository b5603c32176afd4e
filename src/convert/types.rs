//! What is stored as what: a type, or a mixture of two or three after llama.cpp's rules (`llama-quant.cpp`),
//! made simple.
//!
//! Of a mixture some tensors of some layers are stored more exactly than the rest: what makes values, and the
//! last matrix of the feed-forward, which suffer most. In any type of less than 6 bits the head (the
//! embedding, where that is the head) is Q6_K. Vectors, routers and convolutions stay float32.

use super::ConvertOptions;
use crate::error::{Error, Result, quoted};
use crate::weights::quantize::made;
use crate::weights::write::StoredType;
use crate::weights::{WeightType, Weights};

/// Which layers a rule is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layers {
    All,
    /// The first.
    First(usize),
    /// The first and the last eighth, and each third between.
    Half,
    /// The first of so many.
    FirstOf(usize),
}

impl Layers {
    fn has(self, layer: usize, count: usize) -> bool {
        let eighth = count / 8;
        match self {
            Layers::All => true,
            Layers::First(n) => layer < n,
            Layers::FirstOf(n) => layer < count / n,
            Layers::Half => layer < eighth || layer >= 7 * count / 8 || (layer - eighth) % 3 == 2,
        }
    }
}

/// Tensors by the beginning of their names in a layer; the first rule that holds counts.
type Rules = &'static [(&'static str, Layers, WeightType)];

/// What `--type` names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kind {
    pub name: &'static str,
    base: WeightType,
    rules: Rules,
}

const fn kind(name: &'static str, base: WeightType, rules: Rules) -> Kind {
    Kind { name, base, rules }
}

const VALUES: &str = "attn_v.";
const DOWN: &str = "ffn_down";
const OUT: &str = "attn_output.";

/// All of them; the second names of llama.cpp's mixtures stand behind the first.
const KINDS: [Kind; 19] = [
    kind("f32", WeightType::F32, &[]),
    kind("f16", WeightType::F16, &[]),
    kind("bf16", WeightType::BF16, &[]),
    kind("q8_0", WeightType::Q8_0, &[]),
    kind("q6_k", WeightType::Q6K, &[]),
    kind(
        "q5_k_m",
        WeightType::Q5K,
        &[(VALUES, Layers::Half, WeightType::Q6K), (DOWN, Layers::Half, WeightType::Q6K)],
    ),
    kind("q5_k_s", WeightType::Q5K, &[]),
    kind(
        "q4_k_m",
        WeightType::Q4K,
        &[(VALUES, Layers::Half, WeightType::Q6K), (DOWN, Layers::Half, WeightType::Q6K)],
    ),
    kind(
        "q4_k_s",
        WeightType::Q4K,
        &[(VALUES, Layers::First(4), WeightType::Q5K), (DOWN, Layers::FirstOf(8), WeightType::Q5K)],
    ),
    kind(
        "q3_k_l",
        WeightType::Q3K,
        &[
            (VALUES, Layers::All, WeightType::Q5K),
            (DOWN, Layers::All, WeightType::Q5K),
            (OUT, Layers::All, WeightType::Q5K),
        ],
    ),
    kind(
        "q3_k_m",
        WeightType::Q3K,
        &[
            (VALUES, Layers::First(2), WeightType::Q5K),
            (VALUES, Layers::All, WeightType::Q4K),
            (DOWN, Layers::FirstOf(16), WeightType::Q5K),
            (DOWN, Layers::All, WeightType::Q4K),
            (OUT, Layers::All, WeightType::Q4K),
        ],
    ),
    kind("q3_k_s", WeightType::Q3K, &[]),
    kind(
        "q2_k",
        WeightType::Q2K,
        &[
            (VALUES, Layers::All, WeightType::Q3K),
            (DOWN, Layers::All, WeightType::Q3K),
            (OUT, Layers::All, WeightType::Q3K),
        ],
    ),
    kind("q5_1", WeightType::Q5_1, &[]),
    kind("q5_0", WeightType::Q5_0, &[]),
    kind("q4_1", WeightType::Q4_1, &[]),
    kind("q4_0", WeightType::Q4_0, &[]),
    kind(
        "q4_k",
        WeightType::Q4K,
        &[(VALUES, Layers::Half, WeightType::Q6K), (DOWN, Layers::Half, WeightType::Q6K)],
    ),
    kind(
        "q5_k",
        WeightType::Q5K,
        &[(VALUES, Layers::Half, WeightType::Q6K), (DOWN, Layers::Half, WeightType::Q6K)],
    ),
];

impl Kind {
    /// The names, as `--type` takes them.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|kind| kind.name)
    }

    /// # Errors
    /// `InvalidRequest` that lists the names.
    pub fn parse(name: &str) -> Result<Kind> {
        let wanted = name.trim().to_ascii_lowercase().replace('-', "_");
        KINDS.into_iter().find(|kind| kind.name == wanted).ok_or_else(|| {
            let names: Vec<_> = Kind::names().collect();
            Error::invalid(format!("unknown type {}; the types are {}", quoted(name), names.join(", ")))
        })
    }
}

/// Tensors that llama.cpp wants as f32, beside vectors.
const EXACT: [&str; 6] = ["ffn_gate_inp", "ssm_conv1d", "shortconv.conv", "norm", "rope_f", "ssm_a"];

/// A type for each tensor of a file.
pub(super) struct Rule {
    kind: Kind,
    requantize: bool,
    layers: usize,
    head: &'static str,
}

impl Rule {
    /// `names`: those of the file, as GGUF has them; `has_head`: there is a head beside the embedding.
    pub fn new<'a>(options: &ConvertOptions, names: impl Iterator<Item = &'a str>, has_head: bool) -> Rule {
        let layers = names.filter_map(layer_of).map(|(layer, _)| layer + 1).max().unwrap_or(0);
        let head = if has_head { "output.weight" } else { "token_embd.weight" };
        Rule { kind: options.kind, requantize: options.requantize, layers, head }
    }

    /// What a tensor is to be stored as; `None`: it stays as it is.
    pub fn of(&self, name: &str, own: WeightType, shape: &[usize]) -> Option<WeightType> {
        let base = self.kind.base;
        if !is_matrix(name, shape) || own.has_integer_codes() && !self.requantize && base != WeightType::F32 {
            return None;
        }
        if !base.has_integer_codes() {
            return Some(base);
        }
        let to = match layer_of(name) {
            _ if name == self.head && 8 * base.block_bytes() < 6 * base.block_len() => WeightType::Q6K,
            Some((layer, part)) => {
                let holds = |(start, layers, _): &&(&str, Layers, WeightType)| {
                    part.starts_with(start) && layers.has(layer, self.layers)
                };
                self.kind.rules.iter().find(holds).map_or(base, |(_, _, to)| *to)
            }
            None => base,
        };
        Some(shape.last().and_then(|k| made(to, *k)).unwrap_or(WeightType::F16))
    }

    /// Whether a tensor is of another type than was asked for, since it is quantized already.
    pub fn is_kept(&self, name: &str, own: &StoredType, shape: &[usize]) -> bool {
        let StoredType::Weights(own) = own else { return false };
        let again = Rule { requantize: true, ..*self };
        own.has_integer_codes()
            && self.of(name, *own, shape).is_none()
            && again.of(name, *own, shape) != Some(*own)
            && is_matrix(name, shape)
    }

    /// Whether something is rounded that was quantized before.
    pub fn rounds_again(&self, weights: &Weights) -> bool {
        weights.names().any(|name| match weights.as_stored(name) {
            Ok((StoredType::Weights(own), shape, _)) => {
                own.has_integer_codes()
                    && self.of(name, own, shape).is_some_and(|to| to != own && to != WeightType::F32)
            }
            _ => false,
        })
    }
}

/// Whether a tensor is one of those whose type is chosen.
fn is_matrix(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && name.ends_with(".weight") && !EXACT.iter().any(|exact| name.contains(exact))
}

/// The layer of a tensor, and its name there.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The types that llama.cpp's own program chose for 24 layers of 256, by the same names.
    #[test]
    fn mixtures_are_those_that_they_are_named_after() {
        let rule = |name: &str| {
            let options = ConvertOptions {
                kind: Kind::parse(name).unwrap(),
                requantize: false,
                overwrite: false,
                threads: 1,
            };
            Rule::new(&options, ["blk.23.attn_v.weight"].into_iter(), true)
        };
        let of = |kind: &str, name: &str| rule(kind).of(name, WeightType::F16, &[256, 256]);
        for (kind, name, wanted) in [
            ("q4_k_m", "output.weight", Some(WeightType::Q6K)),
            ("Q4-K-M", "token_embd.weight", Some(WeightType::Q4K)),
            ("q4_k_m", "blk.0.attn_v.weight", Some(WeightType::Q6K)),
            ("q4_k_m", "blk.3.attn_v.weight", Some(WeightType::Q4K)),
            ("q4_k_m", "blk.5.ffn_down.weight", Some(WeightType::Q6K)),
            ("q4_k_m", "blk.23.ffn_down.weight", Some(WeightType::Q6K)),
            ("q4_k_m", "blk.0.attn_q.weight", Some(WeightType::Q4K)),
            ("q3_k_m", "blk.1.attn_v.weight", Some(WeightType::Q5K)),
            ("q3_k_m", "blk.2.attn_v.weight", Some(WeightType::Q4K)),
            ("q8_0", "output.weight", Some(WeightType::Q8_0)),
            ("f16", "blk.0.ffn_gate_inp.weight", None),
            ("f16", "blk.0.attn_q.bias", None),
        ] {
            assert_eq!(of(kind, name), wanted, "{kind} {name}");
        }
        // Rows that are no whole blocks.
        assert_eq!(
            rule("q4_k_m").of("blk.3.attn_q.weight", WeightType::F16, &[8, 96]),
            Some(WeightType::Q5_0)
        );
        assert_eq!(
            rule("q4_k_m").of("blk.3.attn_q.weight", WeightType::F16, &[8, 20]),
            Some(WeightType::F16)
        );
        assert_eq!(rule("q4_0").of("blk.3.attn_q.weight", WeightType::Q8_0, &[8, 256]), None);
        let error = Kind::parse("q9").unwrap_err();
        assert!(error.message().contains("q4_k_m, q4_k_s"), "{error}");
    }
}

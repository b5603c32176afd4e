//! Tensors that stand in the place of a plain weight: what a quantized checkpoint is known by where its
//! configuration says nothing.
//!
//! A linear layer `q_proj` is the tensor `q_proj.weight`; quantizers put others beside or instead of it, and
//! each has its own names for them.

use super::{Stored, Weights};

/// Names below a module, and the format that they belong to; the first that is there tells.
const MARKS: [(&str, &str); 15] = [
    ("g_idx", "GPTQ"),
    ("qweight", "GPTQ or AWQ"),
    ("weight_global_scale", "NVFP4 of compressed-tensors"),
    ("weight_packed", "compressed-tensors"),
    ("_weight_qdata", "torchao"),
    ("weight.absmax", "bitsandbytes, 4 bits"),
    ("SCB", "bitsandbytes, 8 bits"),
    ("weight_scale_inv", "FP8 by blocks"),
    ("weight_scale_2", "NVFP4 of ModelOpt"),
    ("weight_scale", "FP8, int8 or BitNet with scales"),
    ("scales", "MLX"),
    ("W_q", "HQQ"),
    ("codebooks", "AQLM"),
    ("centroids.weight", "VPTQ"),
    ("dense_weights", "SpQR"),
];

/// A tensor that stands beside or instead of another one.
pub(super) struct Beside<'a> {
    pub name: &'a str,
    /// What it is a part of, if that is known.
    pub format: Option<&'static str>,
}

impl Weights {
    /// What there is of the module that `weight` would be the weight of, besides that and its bias.
    pub(super) fn beside(&self, weight: &str) -> Option<Beside<'_>> {
        let module = format!("{}.", weight.strip_suffix(".weight")?);
        let below = || {
            let from = self.tensors.range(module.clone()..).map(|(name, _)| name.as_str());
            from.map_while(|name| Some((name, name.strip_prefix(&module)?)))
        };
        let known = MARKS.iter().find_map(|(mark, format)| {
            below().find(|(_, part)| part == mark).map(|(name, _)| Beside { name, format: Some(*format) })
        });
        known.or_else(|| {
            let other = below().find(|(_, part)| !["weight", "bias"].contains(part));
            other.map(|(name, _)| Beside { name, format: None })
        })
    }

    /// A tensor that only a quantized checkpoint has: one of a quantizer's own, or a weight of no type that
    /// is read.
    pub fn packed(&self) -> Option<&str> {
        let own = |name: &str| MARKS.iter().any(|(mark, _)| is_part(name, mark));
        let unread =
            |name: &str, stored: &Stored| name.ends_with(".weight") && matches!(stored, Stored::Other(_));
        let found = self.tensors.iter().find(|(name, entry)| own(name) || unread(name, &entry.stored));
        found.map(|(name, _)| name.as_str())
    }
}

fn is_part(name: &str, part: &str) -> bool {
    name.strip_suffix(part).is_some_and(|module| module.ends_with('.'))
}

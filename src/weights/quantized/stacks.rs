//! All experts of a layer in one tensor of each kind, as MLX has them: `[experts, out, in]`, quantized like
//! the matrix of all their rows.
//!
//! mlx-lm calls them `mlp.switch_mlp.gate_proj` (gpt-oss's `mlp.experts.gate_proj`), with `.weight` and
//! `.bias`; the names of transformers for the same have no `.weight`, and `_bias`.

use super::{Part, Scheme};
use crate::error::{Error, Result};
use crate::weights::Weights;

/// Modules that are stacks, by the end of their names, and what transformers calls them.
const PLACES: [(&str, &str); 3] = [
    ("mlp.switch_mlp.", "mlp.experts."),
    ("block_sparse_moe.switch_mlp.", "mlp.experts."),
    ("mlp.experts.", "mlp.experts."),
];
const MATRICES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What transformers calls a module that is a stack.
pub(super) fn module_name(module: &str) -> Option<String> {
    let (before, matrix) = module.rsplit_once('.')?;
    let before = format!("{before}.");
    let (theirs, ours) =
        PLACES.iter().find(|(theirs, _)| before.ends_with(theirs) && MATRICES.contains(&matrix))?;
    Some(format!("{}{ours}{matrix}", before.strip_suffix(theirs)?))
}

/// The parts of a stack as those of one matrix, and how many there are; `None` if it is no stack.
///
/// # Errors
/// `ModelFile` where they are not of as many; `UnsupportedModel` where only matrices are known.
pub(super) fn flatten(module: &str, scheme: &Scheme, parts: &mut [Part]) -> Result<Option<usize>> {
    let Some(count) = parts.iter().find(|part| part.name == "weight").map(|part| part.shape.as_slice())
    else {
        return Ok(None);
    };
    let &[count, _, _] = count else { return Ok(None) };
    if !matches!(scheme, Scheme::Affine { .. } | Scheme::Fp4 { .. } | Scheme::Fp8 { .. })
        || module_name(module).is_none()
    {
        return Err(Error::unsupported(
            "its weight has three dimensions; of those only experts of MLX are read (mlp.switch_mlp.gate_proj)",
        ));
    }
    for part in parts.iter_mut() {
        match part.shape[..] {
            [stacked, rows, columns] if stacked == count => {
                let rows = rows.saturating_mul(count);
                part.shape = vec![rows, columns];
            }
            _ => return Err(part.misfit_of(&[count], "a stack of as many experts as its weight")),
        }
    }
    Ok(Some(count))
}

/// Gives stacks that are no quantized matrices, and all biases of stacks, the names of transformers; by the
/// names alone, for no other module is called so.
///
/// # Errors
/// `ModelFile` when a name is there then twice.
pub(super) fn rename(weights: &mut Weights) -> Result<()> {
    let ends = [(".weight", ""), (".bias", "_bias")];
    let renamed = |name: &String| {
        let (module, end) = ends.iter().find_map(|(end, ours)| Some((name.strip_suffix(end)?, ours)))?;
        Some((name.clone(), format!("{}{end}", module_name(module)?)))
    };
    let names: Vec<_> = weights.tensors.keys().filter_map(renamed).collect();
    for (old, new) in names {
        if let Some(entry) = weights.tensors.remove(&old) {
            weights.insert(new, entry)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_have_the_names_of_transformers() {
        for (module, name) in [
            ("model.layers.3.mlp.switch_mlp.gate_proj", Some("model.layers.3.mlp.experts.gate_proj")),
            ("layers.0.block_sparse_moe.switch_mlp.down_proj", Some("layers.0.mlp.experts.down_proj")),
            ("model.layers.0.mlp.experts.up_proj", Some("model.layers.0.mlp.experts.up_proj")),
            ("model.layers.0.mlp.experts.7.up_proj", None),
            ("model.layers.0.mlp.switch_mlp.other", None),
            ("model.layers.0.mlp.gate_proj", None),
            ("gate_proj", None),
        ] {
            assert_eq!(module_name(module).as_deref(), name, "{module}");
        }
    }
}

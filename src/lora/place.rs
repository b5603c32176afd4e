//! Where a module of an adapter stands: its name in the file -> layer and part.

use crate::config::spellings;
use crate::error::{Error, Result, quoted};
use crate::weights::names::{Part, beside, number, part_of, prefixes};

/// What peft puts before the names of the model that it wraps.
const WRAPPED: &str = "base_model.model.";

/// Where a module stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Layer(usize, Part),
    /// Embedding, head, or what else there is once.
    Outside(Part),
    /// Not in the language model: what it is for.
    Beside(&'static str),
}

/// A name without what peft puts before it.
pub(super) fn unwrapped(name: &str) -> &str {
    name.strip_prefix(WRAPPED).unwrap_or(name)
}

/// The place of a module with a name of transformers, without what peft puts before it.
///
/// # Errors
/// `UnsupportedModel` when no decoder that is run has such a module, or it is none that can be adapted.
pub(super) fn of_transformers(name: &str) -> Result<Place> {
    if let Some(what) = beside(name) {
        return Ok(Place::Beside(what));
    }
    let Some((prefix, layer, inner)) = cut_at_layer(name, "layers.") else {
        return outside(name).map(Place::Outside).ok_or_else(|| homeless(name));
    };
    // Whatever wraps the decoder; of an encoder's layers none must be taken for one of the decoder.
    if prefix.split('.').any(|word| word == "encoder") {
        return Err(homeless(name));
    }
    let part = part_of(inner, false, spellings(), is_adaptable);
    part.map(|part| Place::Layer(layer, part)).ok_or_else(|| homeless(name))
}

/// The place of a tensor of GGUF, by its name without `.weight`.
///
/// # Errors
/// As [`of_transformers`].
pub(super) fn of_gguf(name: &str) -> Result<Place> {
    let place = match cut_at_layer(name, "blk.") {
        Some(("", layer, inner)) => {
            part_of(inner, true, spellings(), is_adaptable).map(|part| Place::Layer(layer, part))
        }
        _ => part_of(name, true, spellings(), is_once).map(Place::Outside),
    };
    place.ok_or_else(|| homeless(name))
}

fn outside(name: &str) -> Option<Part> {
    let known = || prefixes().filter_map(|prefix| name.strip_prefix(prefix));
    let last = name.rsplit('.').next().filter(|last| ["embed_tokens", "lm_head"].contains(last));
    known().chain(last).find_map(|inner| part_of(inner, false, spellings(), is_once))
}

/// What stands before `layers.N.`, the N, and what stands behind it.
fn cut_at_layer<'a>(name: &'a str, word: &str) -> Option<(&'a str, usize, &'a str)> {
    name.match_indices(word).find_map(|(at, _)| {
        let prefix = name.get(..at)?;
        let (layer, inner) = name.get(at + word.len()..)?.split_once('.')?;
        (prefix.is_empty() || prefix.ends_with('.')).then_some(())?;
        Some((prefix, number(layer)?, inner))
    })
}

fn homeless(name: &str) -> Error {
    let kind = match name.rsplit('.').next() {
        Some(last) if last.contains("norm") => ": it is a norm, and those are not adapted",
        Some("score" | "classifier" | "v_head" | "cls") => {
            ": it is the head of a classifier, reranker or reward model, which is not supported"
        }
        _ => "; it was made for another model, or by a program that writes other names than peft",
    };
    Error::unsupported(format!("nothing that can be adapted is called {}{kind}", quoted(name)))
}

fn is_once(part: Part) -> bool {
    matches!(part, Part::Embed | Part::Head | Part::PerLayerEmbed | Part::PerLayerModel)
}

/// Whether this is a matrix that rows are multiplied by, in a layer.
fn is_adaptable(part: Part) -> bool {
    use Part::*;
    matches!(
        part,
        Q | K
            | V
            | Qkv
            | O
            | AttnGate
            | Gate
            | Up
            | GateUp
            | Down
            | Router
            | GateExperts
            | UpExperts
            | GateUpExperts
            | DownExperts
            | SharedGate
            | SharedUp
            | SharedGateUp
            | SharedDown
            | SharedExpertGate
            | LatentIn
            | LatentOut
            | ExpertGate(_)
            | ExpertUp(_)
            | ExpertDown(_)
            | ConvIn
            | ConvOut
            | DeltaQkv
            | DeltaZ
            | DeltaBeta
            | DeltaAlpha
            | SsmIn
            | SsmOut
            | QueryA
            | QueryB
            | LatentA
            | LatentB
            | LatentKeys
            | LatentValues
            | PerLayerGate
            | PerLayerProjection
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_their_places() {
        for (name, wanted) in [
            ("model.layers.0.self_attn.q_proj", Place::Layer(0, Part::Q)),
            ("layers.11.mlp.fc1", Place::Layer(11, Part::Up)),
            ("model.language_model.layers.3.mlp.down_proj", Place::Layer(3, Part::Down)),
            ("somebody.wraps.layers.3.self_attn.dense", Place::Layer(3, Part::O)),
            ("model.layers.2.mlp.experts.17.up_proj", Place::Layer(2, Part::ExpertUp(17))),
            ("model.layers.2.block_sparse_moe.experts.0.w2", Place::Layer(2, Part::ExpertDown(0))),
            ("model.layers.2.mlp.experts.gate_up_proj", Place::Layer(2, Part::GateUpExperts)),
            ("model.layers.2.block_sparse_moe.input_linear", Place::Layer(2, Part::GateUpExperts)),
            ("model.layers.2.feed_forward.gate_proj", Place::Layer(2, Part::Gate)),
            ("model.layers.2.linear_attn.out_proj", Place::Layer(2, Part::SsmOut)),
            ("backbone.layers.4.mixer.up_proj", Place::Layer(4, Part::Up)),
            ("model.embed_tokens", Place::Outside(Part::Embed)),
            ("backbone.embeddings", Place::Outside(Part::Embed)),
            ("a.wrapper.embed_tokens", Place::Outside(Part::Embed)),
            ("lm_head", Place::Outside(Part::Head)),
            ("language_model.lm_head", Place::Outside(Part::Head)),
            ("model.visual.blocks.0.attn.qkv", Place::Beside("images")),
            ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", Place::Beside("images")),
            ("mtp.layers.0.self_attn.q_proj", Place::Beside("a draft head")),
        ] {
            assert_eq!(of_transformers(name).unwrap(), wanted, "{name}");
        }
        for (name, wanted) in [
            ("blk.0.attn_q", Place::Layer(0, Part::Q)),
            ("blk.7.ffn_down_exps", Place::Layer(7, Part::DownExperts)),
            ("token_embd", Place::Outside(Part::Embed)),
            ("output", Place::Outside(Part::Head)),
        ] {
            assert_eq!(of_gguf(name).unwrap(), wanted, "{name}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "layers.0.",
            "model.layers.00.self_attn.q_proj",
            "model.layers.+1.self_attn.q_proj",
            "model.layers.0.self_attn.x_proj",
            "model.layers.0.input_layernorm",
            "model.layers.2.mlp.experts.017.up_proj",
            "model.encoder.layers.0.self_attn.q_proj",
            "xlayers.0.self_attn.q_proj",
            "model.norm",
            "score",
        ] {
            assert!(of_transformers(name).is_err(), "{name}");
        }
        for name in ["blk.0.attn_norm", "a.blk.0.attn_q", "model.layers.0.self_attn.q_proj", "blk.0"] {
            assert!(of_gguf(name).is_err(), "{name}");
        }
    }
}

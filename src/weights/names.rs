//! One name for each part of a decoder, whatever the checkpoint calls it.
//!
//! Two naming worlds are known: the modules of transformers (`model.layers.0.self_attn.q_proj.weight`) and GGUF
//! (`blk.0.attn_q.weight`). A new family is a spelling in [`TABLE`], never code elsewhere.

use super::Weights;

/// A part of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Embed,
    Head,
    FinalNorm,
    AttnNorm,
    Q,
    K,
    V,
    /// q, k and v in one matrix, in that order.
    Qkv,
    O,
    QNorm,
    KNorm,
    /// Norm of attention's output before it joins the residual stream.
    AttnPostNorm,
    MlpNorm,
    Gate,
    Up,
    /// gate and up in one matrix, in that order.
    GateUp,
    Down,
    MlpPostNorm,
}

/// Part, its spellings in transformers (the first that exists counts), its spelling in GGUF.
/// Phi-3's GGUF calls the fused gate and up `ffn_up`: the loader tells them apart by the shape.
const TABLE: &[(Part, &[&str], &str)] = &[
    (Part::Embed, &["embed_tokens"], "token_embd"),
    (Part::Head, &["lm_head"], "output"),
    (Part::FinalNorm, &["norm", "final_layernorm"], "output_norm"),
    (Part::AttnNorm, &["input_layernorm"], "attn_norm"),
    (Part::Q, &["self_attn.q_proj"], "attn_q"),
    (Part::K, &["self_attn.k_proj"], "attn_k"),
    (Part::V, &["self_attn.v_proj"], "attn_v"),
    (Part::Qkv, &["self_attn.qkv_proj"], "attn_qkv"),
    (Part::O, &["self_attn.o_proj", "self_attn.dense"], "attn_output"),
    (Part::QNorm, &["self_attn.q_norm", "self_attn.q_layernorm"], "attn_q_norm"),
    (Part::KNorm, &["self_attn.k_norm", "self_attn.k_layernorm"], "attn_k_norm"),
    (Part::MlpNorm, &["pre_feedforward_layernorm", "post_attention_layernorm"], "ffn_norm"),
    (Part::AttnPostNorm, &["post_attention_layernorm"], "post_attention_norm"),
    (Part::Gate, &["mlp.gate_proj"], "ffn_gate"),
    (Part::Up, &["mlp.up_proj", "mlp.fc1"], "ffn_up"),
    (Part::GateUp, &["mlp.gate_up_proj"], "ffn_gate_up"),
    (Part::Down, &["mlp.down_proj", "mlp.fc2"], "ffn_down"),
    (Part::MlpPostNorm, &["post_feedforward_layernorm"], "post_ffw_norm"),
];

/// Where the decoder stands in a checkpoint of transformers: alone, headless (as sentence-transformers saves
/// it), or inside a multimodal model, with a head or without.
const PREFIXES: &[&str] =
    &["model.", "", "model.language_model.", "language_model.model.", "language_model."];

/// How one checkpoint spells the parts.
pub enum Names {
    Gguf,
    Transformers {
        prefix: &'static str,
        /// Four norms a block: `post_attention_layernorm` is then the norm after attention, else that before the MLP.
        four_norms: bool,
    },
}

impl Names {
    pub fn of(weights: &Weights) -> Self {
        if weights.contains("token_embd.weight") {
            return Names::Gguf;
        }
        let has = |prefix: &&&str| weights.contains(&format!("{prefix}embed_tokens.weight"));
        let prefix = PREFIXES.iter().find(has).copied().unwrap_or("model.");
        let four_norms = weights.contains(&format!("{prefix}layers.0.pre_feedforward_layernorm.weight"));
        Names::Transformers { prefix, four_norms }
    }

    /// The checkpoint's name of a part's tensor: the spelling that exists, else the usual one (for the error).
    pub fn name(&self, weights: &Weights, part: Part, layer: Option<usize>, kind: &str) -> String {
        let spellings = self.spellings(part, layer, kind);
        spellings.iter().find(|name| weights.contains(name)).unwrap_or(&spellings[0]).clone()
    }

    fn spellings(&self, part: Part, layer: Option<usize>, kind: &str) -> Vec<String> {
        let (_, transformers, gguf) =
            TABLE.iter().find(|(p, ..)| *p == part).expect("every part stands in the table (tested)");
        match (self, layer) {
            (Names::Gguf, Some(i)) => vec![format!("blk.{i}.{gguf}.{kind}")],
            (Names::Gguf, None) => vec![format!("{gguf}.{kind}")],
            (Names::Transformers { prefix, .. }, None) if part == Part::Head => {
                let outer = prefix.strip_suffix("model.").filter(|outer| outer.ends_with('.')).unwrap_or("");
                vec![format!("{outer}lm_head.{kind}"), format!("lm_head.{kind}")]
            }
            (Names::Transformers { prefix, .. }, None) => {
                transformers.iter().map(|name| format!("{prefix}{name}.{kind}")).collect()
            }
            (Names::Transformers { prefix, four_norms }, Some(i)) => {
                // With two norms a block there is no norm after attention: a name that cannot exist.
                let absent = part == Part::AttnPostNorm && !four_norms;
                let names = if absent { &["post_attention_norm"][..] } else { transformers };
                names.iter().map(|name| format!("{prefix}layers.{i}.{name}.{kind}")).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_spelling_in_both_worlds() {
        use Part::*;
        let parts = [
            Embed,
            Head,
            FinalNorm,
            AttnNorm,
            Q,
            K,
            V,
            Qkv,
            O,
            QNorm,
            KNorm,
            AttnPostNorm,
            MlpNorm,
            Gate,
            Up,
            GateUp,
            Down,
            MlpPostNorm,
        ];
        for part in parts {
            for names in [Names::Gguf, Names::Transformers { prefix: "model.", four_norms: false }] {
                assert!(!names.spellings(part, Some(3), "weight").is_empty(), "{part:?}");
            }
        }
        let gemma = Names::Transformers { prefix: "language_model.model.", four_norms: true };
        assert_eq!(gemma.spellings(Head, None, "weight")[0], "language_model.lm_head.weight");
        let headless = Names::Transformers { prefix: "language_model.", four_norms: true };
        assert_eq!(headless.spellings(Head, None, "weight")[0], "lm_head.weight");
        assert_eq!(
            gemma.spellings(AttnPostNorm, Some(0), "weight"),
            ["language_model.model.layers.0.post_attention_layernorm.weight"]
        );
    }
}

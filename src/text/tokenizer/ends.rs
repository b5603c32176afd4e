//! Which tokens end an answer.
//!
//! Files name one (`eos_token_id`), sometimes more, and chat models end their turns with others: a Llama 3
//! file may name `<|end_of_text|>` while the model says `<|eot_id|>`, and would then talk to itself for ever.
//! So tokens are also known by their text, as llama.cpp knows them. Unlike there, a text that is an everyday
//! word in some vocabularies counts only for control tokens: Gemma has `</s>` as an HTML tag.

use super::vocab::{Kind, Vocab};

/// Texts that mean nothing else. A token with one of them is a control token even if its file forgot to say
/// so (several converters did).
const MARKERS: &[&str] = &[
    "<|eot_id|>",            // Llama 3
    "<|eom_id|>",            // Llama 3, before a tool's answer
    "<|im_end|>",            // ChatML: Qwen, SmolLM, Yi, OLMo
    "<|end|>",               // Phi-3 and 4
    "<end_of_turn>",         // Gemma 1 to 3
    "<turn|>",               // Gemma 4
    "<|tool_response>",      // Gemma 4, before a tool's answer
    "<|endoftext|>",         // GPT-2 and all that began with its vocabulary
    "<|end_of_text|>",       // Llama 3, Granite
    "<|return|>",            // harmony: the end of an answer
    "<|call|>",              // harmony: the end of a call
    "<end_of_utterance>",    // SmolVLM
    "<｜end▁of▁sentence｜>", // DeepSeek
];

/// Texts that count for control tokens. The second row begins another file or repository in models trained on
/// code: what follows is another document.
#[rustfmt::skip]
const CONTROLS: &[&str] = &[
    "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>",
    "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
];

/// The tokens that end an answer, ascending: the `named` ones and those known by their text. Markers that are
/// not control tokens become control tokens if `may_change` accepts their kind and bytes.
pub(super) fn find(
    vocab: &mut Vocab,
    named: &[Option<u32>],
    may_change: impl Fn(Kind, &[u8]) -> bool,
) -> Vec<u32> {
    let mut ends: Vec<u32> = named.iter().flatten().copied().collect();
    let is = |id: u32, texts: &[&str]| texts.iter().any(|text| text.as_bytes() == vocab.bytes(id));
    let counts = |id: &u32| {
        let kind = vocab.kind(*id).unwrap_or(Kind::Unused);
        is(*id, MARKERS) && (kind.is_special() || may_change(kind, vocab.bytes(*id)))
    };
    let markers: Vec<u32> = vocab.ids(|_| true).filter(counts).collect();
    ends.extend(vocab.ids(Kind::is_special).filter(|id| is(*id, CONTROLS)));
    ends.extend(&markers);
    // in harmony <|end|> ends a message, and more messages of the same answer follow
    let has = |text: &str| ends.iter().any(|id| is(*id, &[text]));
    if has("<|return|>") && has("<|call|>") {
        ends.retain(|id| !is(*id, &["<|end|>"]));
    }
    ends.sort_unstable();
    ends.dedup();
    markers.iter().for_each(|id| vocab.set_kind(*id, Kind::Control));
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_by_name_and_by_text() {
        use Kind::{Control, Normal, UserDefined};
        type Case<'a> = (&'a str, &'a [(&'a str, Kind)], &'a [u32]);
        let cases: &[Case] = &[
            ("the named one", &[("x", Normal), ("the end", Control)], &[1]),
            (
                "markers of any kind",
                &[("<|im_end|>", Normal), ("x", Normal), ("<|eot_id|>", UserDefined)],
                &[0, 1, 2],
            ),
            ("words only as control", &[("</s>", UserDefined), ("x", Normal), ("<eos>", Control)], &[1, 2]),
            ("phi", &[("<|end|>", Control), ("<|endoftext|>", Control)], &[0, 1]),
            ("harmony", &[("<|end|>", Control), ("<|return|>", Control), ("<|call|>", Control)], &[1, 2]),
        ];
        for (name, tokens, wanted) in cases {
            let mut vocab = Vocab::default();
            tokens.iter().for_each(|(text, kind)| vocab.push(text.as_bytes(), *kind).unwrap());
            assert_eq!(find(&mut vocab, &[Some(1), None], |_, _| true), *wanted, "{name}");
        }
    }
}

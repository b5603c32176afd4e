//! A small byte-level tokenizer: 256 bytes, a few words, two control tokens. And seeded random numbers.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tallow::constrain::{Constraint, Grammar, GrammarCompiler, Limits, Vocabulary};
use tallow::text::tokenizer::Tokenizer;

/// Words that are tokens, and with them all their beginnings. `·` is a space.
const WORDS: &[&str] = &[
    "true", "null", "abc", "cab", "\"}", "\":·", ",·\"", "{\"", "}]", "ab\"", "name", "·the", "12", "00",
    "é", "]}",
];
pub const END: &str = "<|end|>";
pub const TOOL: &str = "<|tool|>";

/// GPT-2's way to write a byte as a letter.
fn letter(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !plain(other)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

pub fn tokenizer() -> Arc<Tokenizer> {
    let mut vocab: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    let mut merges = BTreeSet::new();
    let mut ordered = Vec::new();
    for word in WORDS {
        let letters: Vec<String> =
            word.replace('·', " ").bytes().map(|byte| letter(byte).to_string()).collect();
        let mut left = letters[0].clone();
        for right in &letters[1..] {
            let joined = format!("{left}{right}");
            if merges.insert(joined.clone()) {
                ordered.push(json!([left, right]));
                vocab.push(joined.clone());
            }
            left = joined;
        }
    }
    let size = vocab.len();
    let map: Map<String, Value> = vocab.into_iter().zip(0..).map(|(word, id)| (word, json!(id))).collect();
    let added = |id: usize, text: &str| {
        json!({"id": id, "content": text, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let file = json!({
        "version": "1.0",
        "added_tokens": [added(size, END), added(size + 1, TOOL)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": map, "merges": ordered},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Arc::new(Tokenizer::from_hf(dir.path()).unwrap())
}

/// A compiler whose logits are wider than the tokenizer, as those of real models are.
pub fn compiler() -> GrammarCompiler {
    let tokenizer = tokenizer();
    let end = tokenizer.id(END).unwrap();
    let size = tokenizer.vocab_size() + 30;
    GrammarCompiler::new(Vocabulary::new(tokenizer, &[end], size).unwrap(), Limits::default()).unwrap()
}

pub fn compile(compiler: &GrammarCompiler, constraint: &Constraint) -> Grammar {
    compiler.compile(constraint).unwrap_or_else(|error| panic!("{}: {error}", constraint.name()))
}

pub fn text(vocabulary: &Vocabulary, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| vocabulary.bytes(id)).copied().collect()
}

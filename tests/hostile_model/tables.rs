//! The sound files that [`super`] damages, and the values that it damages them with.

use serde_json::{Map, Value, json};

use super::writer;

pub const SPECIALS: [&str; 5] = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"];

/// Byte-level, a token a character, 64 tokens.
pub fn tokenizer() -> Value {
    let characters = "ĊĠabcdefghijklmnopqrstuvwxyz0123456789.,?!:'<>|_-=+*/()&%".chars().map(String::from);
    let tokens = SPECIALS.map(String::from).into_iter().chain(characters).chain(["ab".into(), "Ġc".into()]);
    let vocab: Map<String, Value> = tokens.take(64).zip(0..).map(|(t, i)| (t, json!(i))).collect();
    let added = SPECIALS.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "special": true, "single_word": false, "lstrip": false,
               "rstrip": id == 4, "normalized": id == 3})
    });
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": "z+"}, "content": "z"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": false}, byte_level]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["a", "b"], ["Ġ", "c"]]},
    })
}

/// SentencePiece's other model, which has scores instead of merges.
pub fn unigram() -> Value {
    let pieces = SPECIALS.iter().map(|s| s.to_string()).chain("▁abcdefghijklmn".chars().map(String::from));
    let vocab: Vec<Value> = pieces.zip(0..).map(|(piece, i)| json!([piece, -f64::from(i)])).collect();
    let mut root = tokenizer();
    root["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false});
    root["normalizer"] = Value::Null;
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    root["pre_tokenizer"] = metaspace.clone();
    root["decoder"] = metaspace;
    root
}

pub fn tokenizer_config() -> Value {
    json!({"eos_token": "</s>", "bos_token": {"content": "<s>"}, "unk_token": "<unk>", "add_bos_token": false,
           "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"})
}

pub fn generation_config() -> Value {
    json!({"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9,
           "repetition_penalty": 1.1, "eos_token_id": [2, 4]})
}

/// What a member of a JSON file may be instead of what it should.
pub fn bad_values() -> Vec<Value> {
    let mut values =
        vec![Value::Null, json!([]), json!({}), json!(""), json!("NaN"), json!("../../etc/passwd")];
    values.extend([json!(true), json!(false), json!([[]]), json!(vec![1; 3000]), json!("x".repeat(3000))]);
    values.extend([-1i64, 0, 1, 2, 7, 1 << 24, 1 << 31].map(Value::from));
    values.extend([u32::MAX as u64, 1 << 63, u64::MAX].map(Value::from));
    values.extend([0.5, -0.0, 1e-45, 1e-310, 1e30, 1e308, -1e308].map(Value::from));
    values
}

/// Reads the header of a sound GGUF file, so that it can be written again with lies.
pub fn read_gguf(bytes: &[u8]) -> writer::GgufFile {
    let mut at = 8;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let text = |at: &mut usize| {
        let len = u64_at(*at) as usize;
        *at += 8 + len;
        bytes[*at - len..*at].to_vec()
    };
    let mut file = writer::GgufFile::new();
    let (tensors, pairs) = (u64_at(at), u64_at(at + 8));
    at += 16;
    for _ in 0..pairs {
        let key = text(&mut at);
        let (start, ty) = (at, u32_at(at));
        at += 4;
        at = end_of_value(bytes, ty, at);
        file.pairs.push((key, bytes[start..at].to_vec()));
    }
    for _ in 0..tensors {
        let name = text(&mut at);
        let count = u32_at(at) as usize;
        let dims = (0..count).map(|i| u64_at(at + 4 + 8 * i)).collect();
        at += 4 + 8 * count;
        let (ty, offset) = (u32_at(at), u64_at(at + 4));
        at += 12;
        file.tensors.push(writer::TensorEntry { name, dims, dim_count: None, ty, offset });
    }
    file.data = bytes[at.next_multiple_of(32)..].to_vec();
    file
}

/// Where a value of this type that begins at `at` ends.
fn end_of_value(bytes: &[u8], ty: u32, at: usize) -> usize {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    match ty {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        8 => at + 8 + number(at),
        9 => {
            let inner = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            (0..number(at + 4)).fold(at + 12, |at, _| end_of_value(bytes, inner, at))
        }
        _ => at + 8,
    }
}

/// Values of every type that a key may have instead of its own.
pub fn bad_gguf_values() -> Vec<(String, Vec<u8>)> {
    use writer::{array_value, str_value, text, u32_value, value};
    let mut rows = Vec::new();
    for n in [0u32, 1, 2, 3, 5, 7, 64, 1 << 24, 1 << 31, u32::MAX] {
        rows.push((format!("u32 {n}"), u32_value(n)));
    }
    for n in [0u64, 1, 1 << 32, 1 << 63, u64::MAX] {
        rows.push((format!("u64 {n}"), value(10, &n.to_le_bytes())));
    }
    rows.push(("i32 -1".into(), value(5, &(-1i32).to_le_bytes())));
    for x in [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-45, 1e38, 0.5] {
        rows.push((format!("f32 {x}"), value(6, &x.to_le_bytes())));
    }
    for s in ["", "llama", "gpt2", "gemma3", "yarn", "{{ 1 // 0 }}", &"y".repeat(3000)] {
        rows.push((format!("{:.9?}", s), str_value(s)));
    }
    rows.push(("true".into(), value(7, &[1])));
    for count in [0u64, 1, 63, 65, 3000] {
        let n = count as usize;
        rows.push((format!("{count} u32"), array_value(4, count, &5u32.to_le_bytes().repeat(n))));
        rows.push((format!("{count} i32 -1"), array_value(5, count, &(-1i32).to_le_bytes().repeat(n))));
        rows.push((format!("{count} NaN"), array_value(6, count, &f32::NAN.to_le_bytes().repeat(n))));
        rows.push((format!("{count} texts"), array_value(8, count, &text(b"a b").repeat(n))));
        rows.push((format!("{count} empty texts"), array_value(8, count, &text(b"").repeat(n))));
        rows.push((format!("{count} bools"), array_value(7, count, &vec![1; n])));
    }
    rows
}

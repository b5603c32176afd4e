//! What a model's makers advise for sampling (`generation_config.json`), and which tokens end its answers.

use serde_json::Value;

use crate::error::{Error, Result};

/// The model's own defaults; `None` where the file says nothing. An absent file means greedy decoding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub eos_ids: Vec<u32>,
}

impl Generation {
    /// Reads the text of a `generation_config.json`. Without `do_sample` the fields of sampling do not count.
    pub fn parse(text: &str) -> Result<Self> {
        let root: Value =
            serde_json::from_str(text).map_err(|e| Error::model_file(format!("not valid JSON: {e}")))?;
        let number = |key: &str| root.get(key).and_then(Value::as_f64).map(|x| x as f32);
        let mut generation = Generation { eos_ids: eos_ids(&root), ..Generation::default() };
        generation.repetition_penalty = number("repetition_penalty").filter(|p| *p != 1.0);
        if root.get("do_sample").and_then(Value::as_bool) == Some(true) {
            generation.temperature = Some(number("temperature").unwrap_or(1.0));
            // 50 is transformers' own default for a config that samples and says nothing; 0 switches it off.
            let top_k = root.get("top_k").and_then(Value::as_u64).unwrap_or(50) as usize;
            generation.top_k = Some(top_k).filter(|k| *k > 0);
            generation.top_p = number("top_p").filter(|p| *p < 1.0);
            generation.min_p = number("min_p");
            generation.typical_p = number("typical_p").filter(|p| *p < 1.0);
        }
        Ok(generation)
    }
}

/// `eos_token_id` is a number or a list of numbers, in `generation_config.json` and in `config.json`.
pub fn eos_ids(root: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match root.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_counts_only_with_do_sample() {
        let cases = [
            (r#"{"temperature": 0.6}"#, Generation::default()),
            (
                r#"{"do_sample": true, "temperature": 0.6, "top_k": 0, "top_p": 1.0, "eos_token_id": [1, 2]}"#,
                Generation { temperature: Some(0.6), eos_ids: vec![1, 2], ..Generation::default() },
            ),
            (
                r#"{"do_sample": true, "eos_token_id": 7}"#,
                Generation {
                    temperature: Some(1.0),
                    top_k: Some(50),
                    eos_ids: vec![7],
                    ..Generation::default()
                },
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Generation::parse(text).unwrap(), expected, "{text}");
        }
    }
}

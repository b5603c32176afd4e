//! What a model's makers advise for sampling (`generation_config.json`), and which tokens end its answers.

use serde_json::{Map, Value};

use super::fields::{Fields, object};
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
    ///
    /// # Errors
    /// `ModelFile` naming the field that is out of its range: found here, and not by the first request, whose
    /// user never gave it.
    pub fn parse(text: &str) -> Result<Self> {
        let root = object(text)?;
        let fields = Fields(&root);
        let number = |key: &str, range: Range| number(&fields, key, range);
        let mut generation = Generation { eos_ids: eos_ids(&root), ..Generation::default() };
        generation.repetition_penalty = number("repetition_penalty", Range::OverZero)?.filter(|p| *p != 1.0);
        if fields.bool("do_sample")? == Some(true) {
            generation.temperature = Some(number("temperature", Range::AtLeastZero)?.unwrap_or(1.0));
            // 50 is transformers' own default for a config that samples and says nothing; 0 switches it off.
            generation.top_k = Some(fields.usize("top_k")?.unwrap_or(50)).filter(|k| *k > 0);
            generation.top_p = number("top_p", Range::Share)?.filter(|p| *p < 1.0);
            generation.min_p = number("min_p", Range::ZeroToOne)?;
            generation.typical_p = number("typical_p", Range::Share)?.filter(|p| *p < 1.0);
        }
        Ok(generation)
    }
}

/// Where a number must lie. The sampler asks the same of a user's numbers.
#[derive(Clone, Copy)]
enum Range {
    AtLeastZero,
    OverZero,
    ZeroToOne,
    Share,
}

/// A number as the sampler applies it, in f32; ranges are of that.
fn number(fields: &Fields, key: &str, range: Range) -> Result<Option<f32>> {
    let Some(value) = fields.f64(key)? else { return Ok(None) };
    let x = value as f32;
    let (holds, words) = match range {
        Range::AtLeastZero => (x >= 0.0, "at least 0"),
        Range::OverZero => (x >= f32::MIN_POSITIVE, "over 0"),
        Range::ZeroToOne => ((0.0..=1.0).contains(&x), "from 0 to 1"),
        Range::Share => (x > 0.0 && x <= 1.0, "over 0 and at most 1"),
    };
    match holds && x.is_finite() {
        true => Ok(Some(x)),
        false => Err(Error::model_file(format!("the field {key:?} is {value:?}; it must be {words}"))),
    }
}

/// `eos_token_id` is a number or a list of numbers, in `generation_config.json` and in `config.json`.
pub fn eos_ids(root: &Map<String, Value>) -> Vec<u32> {
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

    #[test]
    fn a_number_out_of_its_range_is_refused_by_name() {
        let cases = [
            ("temperature", "-1"),
            ("temperature", "1e39"),
            ("temperature", "\"hot\""),
            ("top_k", "-1"),
            ("top_p", "0"),
            ("top_p", "1.5"),
            ("min_p", "2"),
            ("typical_p", "1e-310"),
            ("repetition_penalty", "0"),
        ];
        for (key, value) in cases {
            let text = format!(r#"{{"do_sample": true, {key:?}: {value}}}"#);
            let error = Generation::parse(&text).expect_err(&text);
            assert!(error.message().contains(key), "{text}: {error:?}");
            let unused = Generation::parse(&text.replace("true", "false"));
            assert_eq!(unused.is_ok(), key != "repetition_penalty", "{text}");
        }
    }
}

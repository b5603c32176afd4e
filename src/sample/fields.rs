//! The numbers of a sampler as its user gives them: which there are, their ranges, how they print.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::chain::Filter;
use crate::error::{Error, Result};

/// What a user may set. `None` is "not given": off, and for the temperature 1.
///
/// Penalties of no effect (repetition 1, the others 0), `top_p` 1, `typical_p` 1 and `min_p` 0 are off too.
#[derive(Clone, Default)]
pub struct SamplerFields {
    /// Finite, at least 0. 0 is greedy: the likeliest token, always. Default 1.
    pub temperature: Option<f64>,
    /// At least 1.
    pub top_k: Option<usize>,
    /// Over 0, at most 1.
    pub top_p: Option<f64>,
    /// 0 to 1.
    pub min_p: Option<f64>,
    /// Over 0, at most 1.
    pub typical_p: Option<f64>,
    /// Finite, over 0. Over 1 discourages what prompt and answer hold already.
    pub repetition_penalty: Option<f64>,
    /// -2 to 2, for each time the token is in the answer.
    pub frequency_penalty: Option<f64>,
    /// -2 to 2, once if the token is in the answer.
    pub presence_penalty: Option<f64>,
    /// Token id to what is added to its logit: finite, or `-inf` to forbid it.
    pub logit_bias: Option<BTreeMap<u32, f64>>,
    /// The user's own filters, in order.
    pub filters: Option<Vec<Arc<dyn Filter>>>,
}

impl SamplerFields {
    /// These fields, and where one is not given, that of `base`.
    pub fn or(mut self, base: &SamplerFields) -> Self {
        macro_rules! or {
            ($($field:ident)*) => { $( self.$field = self.$field.or_else(|| base.$field.clone()); )* };
        }
        or!(temperature top_k top_p min_p typical_p repetition_penalty frequency_penalty presence_penalty);
        or!(logit_bias filters);
        self
    }

    /// Refuses the first field out of its range.
    ///
    /// # Errors
    /// InvalidRequest that names the field, its value and its range.
    pub fn validate(&self) -> Result<()> {
        for Number { name, value, range, .. } in self.numbers() {
            if let Some(value) = value
                && !range.holds(value)
            {
                return Err(Error::invalid(format!("{name} is {value:?}, but must be {range}")));
            }
        }
        if self.top_k == Some(0) {
            return Err(Error::invalid(
                "top_k is 0, but must be at least 1; leave it out to keep every token",
            ));
        }
        for (id, &bias) in self.logit_bias.iter().flatten() {
            if !((bias as f32).is_finite() || bias == f64::NEG_INFINITY) {
                return Err(Error::invalid(format!(
                    "logit_bias of token {id} is {bias:?}, but must be a finite number, or -inf to forbid the token"
                )));
            }
        }
        Ok(())
    }

    /// The numbers with a range, in the order in which they print.
    fn numbers(&self) -> [Number; 7] {
        use Range::*;
        [
            Number { name: "temperature", value: self.temperature, off: 1.0, range: AtLeastZero },
            Number { name: "top_p", value: self.top_p, off: 1.0, range: Share },
            Number { name: "min_p", value: self.min_p, off: 0.0, range: ZeroToOne },
            Number { name: "typical_p", value: self.typical_p, off: 1.0, range: Share },
            Number { name: "repetition_penalty", value: self.repetition_penalty, off: 1.0, range: OverZero },
            Number {
                name: "frequency_penalty",
                value: self.frequency_penalty,
                off: 0.0,
                range: PlusMinusTwo,
            },
            Number { name: "presence_penalty", value: self.presence_penalty, off: 0.0, range: PlusMinusTwo },
        ]
    }

    /// `(name, value)` of the fields that have an effect, values as Python writes them.
    fn given(&self) -> Vec<(&'static str, String)> {
        let number = |number: Number| Some((number.name, format!("{:?}", number.effective()?)));
        let mut given: Vec<_> = self.numbers().into_iter().filter_map(number).collect();
        if let Some(k) = self.top_k {
            let at = given.iter().position(|(name, _)| *name != "temperature").unwrap_or(given.len());
            given.insert(at, ("top_k", k.to_string()));
        }
        if let Some(bias) = self.logit_bias.as_ref().filter(|bias| !bias.is_empty()) {
            let shown: Vec<_> = bias.iter().take(8).map(|(id, bias)| format!("{id}: {bias:?}")).collect();
            let more = if bias.len() > 8 { format!(", ... {} in all", bias.len()) } else { String::new() };
            given.push(("logit_bias", format!("{{{}{more}}}", shown.join(", "))));
        }
        if let Some(filters) = self.filters.as_ref().filter(|filters| !filters.is_empty()) {
            let names: Vec<_> = filters.iter().map(|filter| filter.name()).collect();
            given.push(("filters", format!("[{}]", names.join(", "))));
        }
        given
    }
}

/// One field that is a number.
struct Number {
    name: &'static str,
    value: Option<f64>,
    /// The value of no effect.
    off: f64,
    range: Range,
}

impl Number {
    fn effective(&self) -> Option<f64> {
        self.value.filter(|&value| value != self.off)
    }
}

/// Ranges of the numbers; none holds NaN.
#[derive(Clone, Copy)]
enum Range {
    AtLeastZero,
    OverZero,
    ZeroToOne,
    Share,
    PlusMinusTwo,
}

impl Range {
    fn holds(self, value: f64) -> bool {
        match self {
            Range::AtLeastZero => value >= 0.0 && value.is_finite(),
            // As f32, which is what it is applied in.
            Range::OverZero => value as f32 >= f32::MIN_POSITIVE && (value as f32).is_finite(),
            Range::ZeroToOne => (0.0..=1.0).contains(&value),
            Range::Share => value > 0.0 && value <= 1.0,
            Range::PlusMinusTwo => (-2.0..=2.0).contains(&value),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Range::AtLeastZero => "a finite number, at least 0 (0 always takes the likeliest token)",
            Range::OverZero => "a finite number over 0 (1 is no penalty)",
            Range::ZeroToOne => "from 0 to 1 (0 is off)",
            Range::Share => "over 0 and at most 1 (1 is off)",
            Range::PlusMinusTwo => "from -2 to 2 (0 is off)",
        })
    }
}

/// Filters are equal when they are the same object; the other fields by value, where one that is not given
/// equals its value of no effect.
impl PartialEq for SamplerFields {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<dyn Filter>, &Arc<dyn Filter>)| Arc::ptr_eq(a, b);
        let filters = |fields: &Self| fields.filters.clone().unwrap_or_default();
        let (ours, theirs) = (filters(self), filters(other));
        self.numbers().map(|number| number.effective()) == other.numbers().map(|number| number.effective())
            && self.top_k == other.top_k
            && self.logit_bias.iter().flatten().eq(other.logit_bias.iter().flatten())
            && ours.len() == theirs.len()
            && ours.iter().zip(&theirs).all(same)
    }
}

/// `name=value` of the fields that have an effect.
impl fmt::Display for SamplerFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given: Vec<_> = self.given().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&given.join(", "))
    }
}

impl fmt::Debug for SamplerFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SamplerFields({self})")
    }
}

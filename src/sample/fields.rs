//! The fields of a sampler as its user gives them: which there are, their ranges, how they print.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::chain::Filter;
use crate::config::generation::Generation;
use crate::error::{Error, Result};

/// The table of the fields, in the order in which they print: each row is a field's documentation, its name
/// and its kind, and for a number the value of no effect and the range. Whatever goes over all fields is made
/// of this table, in Rust and (as [`FIELDS`]) in Python; what a field does stands in
/// [`sampler`](super::sampler).
macro_rules! for_each_field {
    ($then:ident) => {
        $then! {
            /// Finite, at least 0. 0 is greedy: the likeliest token, always. Default 1.
            temperature: number(1.0, AtLeastZero);
            /// At least 1.
            top_k: count;
            /// Over 0, at most 1.
            top_p: number(1.0, Share);
            /// 0 to 1.
            min_p: number(0.0, ZeroToOne);
            /// Over 0, at most 1.
            typical_p: number(1.0, Share);
            /// Finite, over 0. Over 1 discourages what prompt and answer hold already.
            repetition_penalty: number(1.0, OverZero);
            /// -2 to 2, for each time the token is in the answer.
            frequency_penalty: number(0.0, PlusMinusTwo);
            /// -2 to 2, once if the token is in the answer.
            presence_penalty: number(0.0, PlusMinusTwo);
            /// Token id to what is added to its logit: finite, or `-inf` to forbid it.
            logit_bias: bias;
            /// The user's own filters, in order.
            filters: filters;
        }
    };
}
#[cfg(feature = "python")]
pub(crate) use for_each_field;

/// The type of a kind of field.
macro_rules! type_of {
    (number) => { f64 };
    (count) => { usize };
    (bias) => { BTreeMap<u32, f64> };
    (filters) => { Vec<Arc<dyn Filter>> };
}

/// A field of some kind as a [`Value`].
macro_rules! value_of {
    (number, $field:expr, $off:literal, $range:ident) => {
        Value::Number { value: $field, off: $off, range: Range::$range }
    };
    (count, $field:expr) => {
        Value::Count($field)
    };
    (bias, $field:expr) => {
        Value::Bias($field.as_ref())
    };
    (filters, $field:expr) => {
        Value::Filters($field.as_deref().unwrap_or(&[]))
    };
}

macro_rules! define_fields {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $(($off:literal, $range:ident))?;)*) => {
        /// What a user may set. `None` is "not given": off, and for the temperature 1.
        ///
        /// Penalties of no effect (repetition 1, the others 0), `top_p` 1, `typical_p` 1 and `min_p` 0 are
        /// off too.
        #[derive(Clone, Default)]
        pub struct SamplerFields {
            $($(#[$doc])* pub $name: Option<type_of!($kind)>,)*
        }

        /// `(name, kind)` of the fields.
        pub const FIELDS: &[(&str, &str)] = &[$((stringify!($name), stringify!($kind))),*];

        impl SamplerFields {
            /// These fields, and where one is not given, that of `base`.
            pub fn or(mut self, base: &SamplerFields) -> Self {
                $(self.$name = self.$name.or_else(|| base.$name.clone());)*
                self
            }

            fn values(&self) -> [(&'static str, Value<'_>); FIELDS.len()] {
                [$((stringify!($name), value_of!($kind, self.$name $(, $off, $range)?))),*]
            }
        }
    };
}

for_each_field!(define_fields);

impl SamplerFields {
    /// Refuses the first field out of its range.
    ///
    /// # Errors
    /// InvalidRequest that names the field, its value and its range.
    pub fn validate(&self) -> Result<()> {
        self.values().iter().try_for_each(|(name, value)| value.validate(name))
    }
}

/// What a model's makers advise.
impl From<&Generation> for SamplerFields {
    fn from(advised: &Generation) -> Self {
        let wide = |x: Option<f32>| x.map(f64::from);
        SamplerFields {
            temperature: wide(advised.temperature),
            top_k: advised.top_k,
            top_p: wide(advised.top_p),
            min_p: wide(advised.min_p),
            typical_p: wide(advised.typical_p),
            repetition_penalty: wide(advised.repetition_penalty),
            ..SamplerFields::default()
        }
    }
}

/// One field's value, whichever field it is.
enum Value<'a> {
    /// `off`: the value of no effect.
    Number {
        value: Option<f64>,
        off: f64,
        range: Range,
    },
    Count(Option<usize>),
    Bias(Option<&'a BTreeMap<u32, f64>>),
    Filters(&'a [Arc<dyn Filter>]),
}

impl Value<'_> {
    fn validate(&self, name: &str) -> Result<()> {
        match self {
            Value::Number { value: Some(value), range, .. } if !range.holds(*value) => {
                Err(Error::invalid(format!("{name} is {value:?}, but must be {range}")))
            }
            Value::Count(Some(0)) => Err(Error::invalid(format!(
                "{name} is 0, but must be at least 1; leave it out to keep every token"
            ))),
            Value::Bias(Some(bias)) => {
                let sound = |bias: f64| (bias as f32).is_finite() || bias == f64::NEG_INFINITY;
                match bias.iter().find(|(_, bias)| !sound(**bias)) {
                    None => Ok(()),
                    Some((id, bias)) => Err(Error::invalid(format!(
                        "{name} of token {id} is {bias:?}, but must be a finite number, or -inf to forbid the token"
                    ))),
                }
            }
            _ => Ok(()),
        }
    }

    /// As Python writes it; `None` if it has no effect.
    fn shown(&self) -> Option<String> {
        match self {
            Value::Number { value, off, .. } => value.filter(|x| x != off).map(|x| format!("{x:?}")),
            Value::Count(count) => count.map(|count| count.to_string()),
            Value::Bias(bias) => bias.filter(|bias| !bias.is_empty()).map(|bias| {
                let shown: Vec<_> = bias.iter().take(8).map(|(id, bias)| format!("{id}: {bias:?}")).collect();
                let more =
                    if bias.len() > 8 { format!(", ... {} in all", bias.len()) } else { String::new() };
                format!("{{{}{more}}}", shown.join(", "))
            }),
            Value::Filters(filters) => (!filters.is_empty()).then(|| {
                let names: Vec<_> = filters.iter().map(|filter| filter.name()).collect();
                format!("[{}]", names.join(", "))
            }),
        }
    }

    /// Whether two values of one field have the same effect. Filters have if they are the same object.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Number { value: a, off, .. }, Value::Number { value: b, .. }) => {
                a.filter(|a| a != off) == b.filter(|b| b != off)
            }
            (Value::Count(a), Value::Count(b)) => a == b,
            (Value::Bias(a), Value::Bias(b)) => {
                a.iter().flat_map(|a| a.iter()).eq(b.iter().flat_map(|b| b.iter()))
            }
            (Value::Filters(a), Value::Filters(b)) => {
                a.len() == b.len() && a.iter().zip(*b).all(|(a, b)| Arc::ptr_eq(a, b))
            }
            _ => false,
        }
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
        self.values().iter().zip(&other.values()).all(|((_, a), (_, b))| a.same(b))
    }
}

/// `name=value` of the fields that have an effect.
impl fmt::Display for SamplerFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.values().map(|(name, value)| Some(format!("{name}={}", value.shown()?)));
        f.write_str(&given.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for SamplerFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SamplerFields({self})")
    }
}

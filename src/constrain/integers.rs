//! Integers as expressions over their digits, of any size.
//!
//! The library computes with f64, which is exact up to 2^53 only. What lies beyond is written here, digit by
//! digit.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

/// Up to here f64 tells all integers apart.
const EXACT: u64 = 1 << 53;

/// A whole number of any size: its sign and its digits, without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Integer {
    negative: bool,
    digits: String,
}

impl Integer {
    fn new(negative: bool, digits: &str) -> Self {
        let digits = digits.trim_start_matches('0');
        let digits = if digits.is_empty() { "0" } else { digits };
        Integer { negative: negative && digits != "0", digits: digits.into() }
    }

    fn parse(text: &str) -> Self {
        text.strip_prefix('-').map_or_else(|| Self::new(false, text), |digits| Self::new(true, digits))
    }

    /// The next integer from `number` on (itself, if it is one), upwards or downwards.
    fn from(number: &Number, upwards: bool) -> Self {
        match number.as_f64() {
            Some(float) if number.is_f64() => {
                Self::parse(&format!("{:.0}", if upwards { float.ceil() } else { float.floor() }))
            }
            _ => Self::parse(&number.to_string()),
        }
    }

    /// `self + 1`, or `self - 1`.
    fn next(&self, upwards: bool) -> Self {
        if self.digits == "0" {
            return Self::new(!upwards, "1");
        }
        let grows = upwards != self.negative;
        let mut digits = self.digits.clone().into_bytes();
        let (turns, to) = if grows { (b'9', b'0') } else { (b'0', b'9') };
        for digit in digits.iter_mut().rev() {
            if *digit != turns {
                *digit = if grows { *digit + 1 } else { *digit - 1 };
                return Self::new(self.negative, &String::from_utf8_lossy(&digits));
            }
            *digit = to;
        }
        Self::new(self.negative, &format!("1{}", String::from_utf8_lossy(&digits)))
    }

    /// Whether f64 may take another for it.
    fn is_wide(&self) -> bool {
        longer_first(&self.digits, &EXACT.to_string()) == Ordering::Greater
    }
}

impl PartialOrd for Integer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Integer {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, false) => longer_first(&self.digits, &other.digits),
            (true, true) => longer_first(&other.digits, &self.digits),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

fn longer_first(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Whether a number of a schema is an integer that f64 does not hold exactly.
pub(super) fn is_wide(value: &Value) -> bool {
    matches!(value, Value::Number(number) if !number.is_f64() && Integer::from(number, true).is_wide())
}

/// The bounds of a numeric schema, tightened to integers; `None` where there is none. Draft 4 writes an
/// exclusive bound as a flag beside the bound.
pub(super) fn bounds(schema: &Map<String, Value>) -> (Option<Integer>, Option<Integer>) {
    let side = |plain: &str, exclusive: &str, upwards: bool| {
        let read = |name: &str| schema.get(name).and_then(Value::as_number);
        let flag = schema.get(exclusive) == Some(&Value::Bool(true));
        let inclusive = read(plain).map(|number| inside(number, upwards, flag));
        let strict = read(exclusive).map(|number| inside(number, upwards, true));
        match (inclusive, strict) {
            (Some(a), Some(b)) => Some(if (a > b) == upwards { a } else { b }),
            (a, b) => a.or(b),
        }
    };
    (side("minimum", "exclusiveMinimum", true), side("maximum", "exclusiveMaximum", false))
}

/// The first integer on the allowed side of a bound.
fn inside(bound: &Number, upwards: bool, strict: bool) -> Integer {
    let integer = Integer::from(bound, upwards);
    let is_whole = !bound.is_f64() || bound.as_f64().is_some_and(|float| float.fract() == 0.0);
    if strict && is_whole { integer.next(upwards) } else { integer }
}

/// Whether a bound is beyond what f64 holds exactly.
pub(super) fn is_wide_range(bounds: &(Option<Integer>, Option<Integer>)) -> bool {
    [&bounds.0, &bounds.1].into_iter().flatten().any(Integer::is_wide)
}

/// The one integer that a number is, as an expression.
pub(super) fn constant(number: &Number) -> String {
    number.to_string()
}

/// All integers within bounds that belong to the range; `None` if there are none.
pub(super) fn between(low: Option<&Integer>, high: Option<&Integer>) -> Option<String> {
    let zero = Integer::new(false, "0");
    let mut parts = Vec::new();
    // The digits of what is below zero, from the smallest to the largest.
    let below = Integer::new(true, "1");
    if low.is_none_or(|low| *low < zero) {
        let nearest = high.filter(|high| **high < zero).unwrap_or(&below);
        let farthest = low.map(|low| low.digits.as_str());
        parts.extend(magnitudes(&nearest.digits, farthest).map(|digits| format!("-{digits}")));
    }
    if high.is_none_or(|high| *high >= zero) {
        let nearest = low.filter(|low| **low >= zero).unwrap_or(&zero);
        parts.extend(magnitudes(&nearest.digits, high.map(|high| high.digits.as_str())));
    }
    (!parts.is_empty()).then(|| alternatives(parts))
}

fn alternatives(parts: Vec<String>) -> String {
    format!("(?:{})", parts.join("|"))
}

/// Digits from `low` to `high`, or without an end.
fn magnitudes(low: &str, high: Option<&str>) -> Option<String> {
    let Some(high) = high else {
        let longer = format!("[1-9][0-9]{{{},}}", low.len());
        return Some(alternatives(vec![of_one_length(low, &"9".repeat(low.len())), longer]));
    };
    match longer_first(low, high) {
        Ordering::Greater => None,
        _ if low.len() == high.len() => Some(of_one_length(low, high)),
        _ => {
            let mut parts = vec![of_one_length(low, &"9".repeat(low.len()))];
            if high.len() > low.len() + 1 {
                parts.push(format!("[1-9][0-9]{{{},{}}}", low.len(), high.len() - 2));
            }
            parts.push(of_one_length(&format!("1{}", "0".repeat(high.len() - 1)), high));
            Some(alternatives(parts))
        }
    }
}

/// Digits from `low` to `high`, which have as many.
fn of_one_length(low: &str, high: &str) -> String {
    let same = low.bytes().zip(high.bytes()).take_while(|(a, b)| a == b).count();
    let (Some(&a), Some(&b)) = (low.as_bytes().get(same), high.as_bytes().get(same)) else {
        return low.into();
    };
    let rest = low.len() - same - 1;
    let any = |from: u8, to: u8| format!("[{}-{}][0-9]{{{rest}}}", char::from(from), char::from(to));
    let mut parts = Vec::new();
    let (mut from, mut to) = (a, b);
    if low[same + 1..].bytes().any(|digit| digit != b'0') {
        parts.push(format!("{}{}", char::from(a), of_one_length(&low[same + 1..], &"9".repeat(rest))));
        from += 1;
    }
    if high[same + 1..].bytes().any(|digit| digit != b'9') {
        parts.push(format!("{}{}", char::from(b), of_one_length(&"0".repeat(rest), &high[same + 1..])));
        to -= 1;
    }
    if from <= to {
        parts.push(any(from, to));
    }
    format!("{}{}", &low[..same], alternatives(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(low: Option<&str>, high: Option<&str>) -> regex::Regex {
        let (low, high) = (low.map(Integer::parse), high.map(Integer::parse));
        let expression = between(low.as_ref(), high.as_ref()).unwrap_or_else(|| "[^\\s\\S]".into());
        regex::Regex::new(&format!("^(?:{expression})$")).unwrap()
    }

    #[test]
    fn a_range_holds_its_integers_and_no_other() {
        let ends = [
            -1012, -1000, -999, -110, -100, -99, -12, -10, -9, -1, 0, 1, 7, 9, 10, 11, 90, 99, 100, 909,
            1000, 1090,
        ];
        for low in ends.map(Some).into_iter().chain([None]) {
            for high in ends.map(Some).into_iter().chain([None]) {
                let of = |end: Option<i32>| end.map(|end| end.to_string());
                let range = texts(of(low).as_deref(), of(high).as_deref());
                for number in -1200..1200 {
                    let inside =
                        low.is_none_or(|low| low <= number) && high.is_none_or(|high| number <= high);
                    assert_eq!(range.is_match(&number.to_string()), inside, "{number} in {low:?}..{high:?}");
                }
                assert!(!range.is_match("-0") && !range.is_match("007"));
            }
        }
    }

    #[test]
    fn wide_integers_are_told_apart() {
        let range = texts(Some("1234567890123456789"), Some("1234567890123456791"));
        for (number, inside) in
            [("1234567890123456788", false), ("1234567890123456790", true), ("1234567890123456792", false)]
        {
            assert_eq!(range.is_match(number), inside, "{number}");
        }
        let number = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        for (text, wide) in
            [("9007199254740992", false), ("9007199254740993", true), ("-18", false), ("1e300", false)]
        {
            assert_eq!(is_wide(&number(text)), wide, "{text}");
        }
    }

    #[test]
    fn bounds_of_every_kind_become_integers() {
        for (schema, low, high) in [
            (r#"{"minimum": 0.5, "maximum": 9.5}"#, Some("1"), Some("9")),
            (r#"{"exclusiveMinimum": 3, "minimum": 2}"#, Some("4"), None),
            (r#"{"exclusiveMinimum": 1, "minimum": 2}"#, Some("2"), None),
            (r#"{"exclusiveMaximum": -0.5}"#, None, Some("-1")),
            (r#"{"minimum": 5, "exclusiveMinimum": true}"#, Some("6"), None),
            (
                r#"{"minimum": 1e20, "maximum": 18446744073709551615}"#,
                Some("100000000000000000000"),
                Some("18446744073709551615"),
            ),
            (r#"{"exclusiveMinimum": -10, "exclusiveMaximum": 100}"#, Some("-9"), Some("99")),
            (r#"{"exclusiveMaximum": 0}"#, None, Some("-1")),
        ] {
            let schema: Map<String, Value> = serde_json::from_str(schema).unwrap();
            assert_eq!(bounds(&schema), (low.map(Integer::parse), high.map(Integer::parse)), "{schema:?}");
        }
    }
}

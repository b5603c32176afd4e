//! Damage that knows what an input is made of, so that it comes further than the first check.

use std::sync::LazyLock;

use serde_json::Value;

use super::damage::damage;
use super::parts::{Part, join, split};
use super::random::Random;
use super::{Target, tables};

/// One to three changes of `input`; `other`: a sound input to take pieces from.
pub fn mutated(target: &Target, input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let count = target.parts.len();
    let mut parts: Vec<Vec<u8>> = split(input, count).into_iter().map(<[u8]>::to_vec).collect();
    let others = split(other, count);
    for _ in 0..=random.below(3) {
        let at = random.below(count);
        change(target.parts[at], &mut parts[at], others[at], random);
    }
    join(&parts)
}

/// As [`mutated`], of a seed; also by taking its structure apart, which only a sound file has.
pub fn mutated_seed(target: &Target, seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let (seed, other) = (&seeds[random.below(seeds.len())], &seeds[random.below(seeds.len())]);
    match target.parts {
        [Part::Gguf] if random.below(2) == 0 => other_gguf(seed, random),
        _ => mutated(target, seed, other, random),
    }
}

fn change(part: Part, bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    match part {
        Part::Bytes | Part::Gguf => damage(bytes, random),
        Part::Json => json(bytes, random),
        Part::Safetensors => safetensors(bytes, random),
        Part::Text(words) => text(words, bytes, other, random),
    }
}

/// A tensor file whose header is another, or whose data; the header's length mostly fits.
fn safetensors(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length)) as usize;
    let end = length.checked_add(8).filter(|end| *end <= bytes.len());
    let Some(end) = end.filter(|_| random.below(8) > 0) else { return damage(bytes, random) };
    let (mut head, mut data) = (bytes[8..end].to_vec(), bytes[end..].to_vec());
    match random.below(3) {
        0 => damage(&mut data, random),
        _ => json(&mut head, random),
    }
    *bytes = [&(head.len() as u64).to_le_bytes(), head.as_slice(), &data].concat();
}

/// JSON with another byte, another digit, or another value somewhere.
fn json(bytes: &mut Vec<u8>, random: &mut Random) {
    let root = || serde_json::from_slice::<Value>(bytes).ok();
    match random.below(6) {
        0 => damage(bytes, random),
        1 | 2 => digit(bytes, random),
        _ => match root() {
            Some(mut root) => {
                other_value(&mut root, random);
                *bytes = root.to_string().into_bytes();
            }
            None => damage(bytes, random),
        },
    }
}

/// Another digit in some number: sizes and ranges that are others.
fn digit(bytes: &mut [u8], random: &mut Random) {
    let digits: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
    if let Some(at) = digits.get(random.below(digits.len())) {
        bytes[*at] = b'0' + random.below(10) as u8;
    }
}

/// Somewhere in `root`: what no such place expects, what another place holds, or nothing.
fn other_value(root: &mut Value, random: &mut Random) {
    static BAD: LazyLock<Vec<Value>> = LazyLock::new(tables::bad_values);
    let value = match random.below(3) {
        0 => somewhere(root, random).clone(),
        _ => BAD[random.below(BAD.len())].clone(),
    };
    let place = somewhere(root, random);
    match (random.below(4), &mut *place) {
        (0, Value::Object(members)) if !members.is_empty() => {
            let key = members.keys().nth(random.below(members.len())).cloned().unwrap_or_default();
            members.remove(&key);
        }
        (0, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
        (1, Value::Array(items)) => items.push(value),
        (1, Value::Number(number)) => {
            let near = number.as_i64().and_then(|n| n.checked_add([-1, 1, n, -n][random.below(4)]));
            *place = near.map_or(value, Value::from);
        }
        _ => *place = value,
    }
}

/// A place in a value, near its top or deep in it.
fn somewhere<'a>(value: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let count = match value {
        Value::Array(items) => items.len(),
        Value::Object(members) => members.len(),
        _ => 0,
    };
    if count == 0 || random.below(5) == 0 {
        return value;
    }
    let at = random.below(count);
    let child = match value {
        Value::Array(items) => items.get_mut(at),
        Value::Object(members) => members.values_mut().nth(at),
        _ => None,
    };
    somewhere(child.unwrap(), random)
}

/// A text with a word more, a piece repeated (up to thousands of times, for nesting), or a piece of another.
fn text(words: &[&str], bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let mut put = |piece: &[u8]| drop(bytes.splice(at..at, piece.iter().copied()));
    match random.below(8) {
        0 => damage(bytes, random),
        1 => digit(bytes, random),
        2 | 3 => put(words[random.below(words.len())].as_bytes()),
        4 => put(words[random.below(words.len())].repeat(1 << random.below(12)).as_bytes()),
        5 => {
            let from = random.below(other.len());
            put(&other[from..from + random.below(other.len() - from + 1)]);
        }
        6 => {
            let to = at + random.below(40).min(bytes.len() - at);
            let piece = bytes[at..to].repeat(1 << random.below(8));
            bytes.splice(at..at, piece);
        }
        _ => drop(bytes.drain(at..at + random.below(40).min(bytes.len() - at))),
    }
}

/// A GGUF file with another value of a key, a key less, or another entry of a tensor.
fn other_gguf(seed: &[u8], random: &mut Random) -> Vec<u8> {
    static BAD: LazyLock<Vec<Vec<u8>>> =
        LazyLock::new(|| tables::bad_gguf_values().into_iter().map(|(_, value)| value).collect());
    let mut file = tables::read_gguf(seed);
    for _ in 0..=random.below(2) {
        let (pair, tensor) = (random.below(file.pairs.len()), random.below(file.tensors.len()));
        let far = [0, 1, 31, 32, 1 << 20, 1 << 40, u64::MAX][random.below(7)];
        match random.below(8) {
            0 if !file.pairs.is_empty() => drop(file.pairs.remove(pair)),
            0..=4 if !file.pairs.is_empty() => file.pairs[pair].1 = BAD[random.below(BAD.len())].clone(),
            5 if !file.tensors.is_empty() => file.tensors[tensor].ty = random.below(45) as u32,
            6 if !file.tensors.is_empty() => file.tensors[tensor].offset = far,
            7 if !file.tensors.is_empty() => {
                let dims = &mut file.tensors[tensor].dims;
                if let Some(dim) = dims.first_mut() {
                    *dim = far;
                }
            }
            _ => damage(&mut file.data, random),
        }
    }
    file.bytes()
}

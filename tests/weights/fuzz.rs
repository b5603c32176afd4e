//! Small sound files with random damage: an error or a file that keeps its promises, never a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tallow::error::{ErrorKind, Result};
use tallow::weights::{Bytes, Gguf, Weights, safetensors};

use crate::damage::damage;
use crate::random::Random;
use crate::{allocations, writer};

const ROUNDS: u64 = 50_000;

/// What a file that was taken promises: every tensor is there in its size, or is of a type that is not read.
fn keeps_its_promises(weights: &Weights) -> Result<(), String> {
    for name in weights.names() {
        match weights.get(name) {
            Ok(tensor) => {
                let k = tensor.shape.last().copied().unwrap_or(1);
                let rows = tensor.shape.iter().rev().skip(1).product::<usize>();
                let size = tensor.dtype.row_bytes(k).map(|row| row * rows);
                if size != Some(tensor.data.len()) || tensor.to_f32().len() != tensor.elements() {
                    return Err(format!("{name:?}: {tensor:?}"));
                }
            }
            Err(error) if error.kind() == ErrorKind::UnsupportedModel => {}
            Err(error) => return Err(format!("{error:?}")),
        }
    }
    Ok(())
}

fn fuzz(seeds: &[Vec<u8>], open: impl Fn(Bytes) -> Result<Weights>) {
    let (mut failed, mut sound) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let mut random = Random::new(round);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        damage(&mut bytes, &mut random);
        let most = 8 * bytes.len() + 8192;
        let bytes = Bytes::from_vec(bytes);
        let attempt = || match open(bytes) {
            Ok(weights) => keeps_its_promises(&weights).map(|()| true),
            Err(error) if matches!(error.kind(), ErrorKind::ModelFile | ErrorKind::UnsupportedModel) => {
                Ok(false)
            }
            Err(error) => Err(format!("{error:?}")),
        };
        let (result, largest) = allocations::largest(|| catch_unwind(AssertUnwindSafe(attempt)));
        match result.unwrap_or_else(|_| Err("a panic".into())) {
            Ok(_) if largest > most => failed.push(format!("round {round}: {largest} bytes at once")),
            Ok(taken) => sound += u64::from(taken),
            Err(problem) => failed.push(format!("round {round}: {problem}")),
        }
    }
    assert!(failed.is_empty(), "{} rounds failed:\n{}", failed.len(), failed.join("\n"));
    // Otherwise the damage is so crude that nothing behind the first check is ever tried.
    assert!((ROUNDS / 100..ROUNDS * 9 / 10).contains(&sound), "{sound} of {ROUNDS} files were sound");
}

#[test]
fn damaged_gguf() {
    let split = writer::sound().pair("split.count", writer::u16_value(3)).bytes();
    fuzz(&[writer::sound().bytes(), writer::every_type().bytes(), split], |bytes| {
        Ok(Gguf::from_bytes(bytes, Path::new("model-00001-of-00003.gguf"))?.weights)
    });
}

#[test]
fn damaged_safetensors() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},
        "c":{"dtype":"I64","shape":[],"data_offsets":[32,40]},
        "d":{"dtype":"F16","shape":[0,5],"data_offsets":[40,40]}}"#;
    let index = br#"{"metadata":{"total_size":40},"weight_map":{"a":"absent-1.safetensors","b":"absent-2"}}"#;
    let seeds =
        [writer::safetensors(header, &[1; 40]), writer::safetensors(header, &[1; 40]), index.to_vec()];
    fuzz(&seeds, |bytes| safetensors::from_bytes(bytes, Path::new("model.safetensors")));
}

//! Files of adapters: what readers give, what they refuse and in which words, what is written, and damage.

#[path = "weights/allocations.rs"]
mod allocations;
#[path = "common/damage.rs"]
mod damage;
#[path = "common/random.rs"]
mod random;
#[path = "lora_files/refusals.rs"]
mod refusals;
#[path = "lora_files/written.rs"]
mod written;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tallow::error::{Error, ErrorKind};
use tallow::lora;

use damage::damage;
use random::Random;

const ROUNDS: u64 = 1000;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters")
}

fn manifest() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(golden().join("manifest.json")).unwrap()).unwrap()
}

/// Whether an error is of the kind and says the words that a row of the manifest has.
fn fits(error: &Error, refused: &Value) -> bool {
    let kind = match refused["kind"].as_str().unwrap() {
        "unsupported" => ErrorKind::UnsupportedModel,
        _ => ErrorKind::ModelFile,
    };
    let words = refused["words"].as_array().unwrap();
    error.kind() == kind && words.iter().all(|words| error.message().contains(words.as_str().unwrap()))
}

#[test]
fn every_golden_is_read_or_refused_by_name() {
    let (mut failures, mut hashes) = (Vec::new(), HashMap::new());
    for row in manifest() {
        let name = row["name"].as_str().unwrap().to_owned();
        let opened = lora::open(&golden().join(row["adapter"].as_str().unwrap()));
        match (opened, &row["refused"]) {
            (Ok(adapter), Value::Null) => drop(hashes.insert(name, adapter.hash)),
            // Some are refused where they meet the model.
            (Ok(_), refused) if refused["at"] == "bind" => {}
            (Err(error), refused) if !refused.is_null() && fits(&error, refused) => {}
            (Ok(_), _) => failures.push(format!("{name} was read")),
            (Err(error), _) => failures.push(format!("{name}: {error:?}")),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    // The same in another format is the same adapter; everything else is another.
    let mut same = 0;
    for row in manifest().iter().filter(|row| row["same_as"].is_string()) {
        let hash = |key: &str| hashes[row[key].as_str().unwrap()];
        assert_eq!(hash("name"), hash("same_as"), "{}", row["name"]);
        same += 1;
    }
    let distinct: std::collections::HashSet<_> = hashes.values().collect();
    assert!(same >= 3 && distinct.len() == hashes.len() - same, "{same} of {}", hashes.len());
}

/// A folder as it is, a file of it damaged: an error of the right kind, or an adapter; no panic, and no more
/// memory at once than the file could fill.
fn fuzz(name: &str, file: &str) {
    let sound = golden().join(name);
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&sound).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let bytes = std::fs::read(sound.join(file)).unwrap();
    let place = if file.ends_with(".gguf") { folder.path().join(file) } else { folder.path().to_path_buf() };
    let (mut failed, mut read) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let mut damaged = bytes.clone();
        damage(&mut damaged, &mut Random::new(round));
        std::fs::write(folder.path().join(file), &damaged).unwrap();
        let attempt = || catch_unwind(AssertUnwindSafe(|| lora::open(&place).map(drop)));
        let (result, largest) = allocations::largest(attempt);
        match result {
            _ if largest > 16 * bytes.len() + (4 << 20) => {
                failed.push(format!("{round}: {largest} bytes at once"))
            }
            Ok(Ok(())) => read += 1,
            Ok(Err(error))
                if matches!(error.kind(), ErrorKind::ModelFile | ErrorKind::UnsupportedModel)
                    && error.message().chars().count() < 2000 => {}
            Ok(Err(error)) => failed.push(format!("{round}: {error:?}")),
            Err(_) => failed.push(format!("{round}: a panic")),
        }
    }
    assert!(failed.is_empty(), "{name}/{file}:\n{}", failed.join("\n"));
    assert!(read > ROUNDS / 200 && read < ROUNDS * 99 / 100, "{name}/{file}: {read} of {ROUNDS} were read");
}

#[test]
fn damaged_files_are_errors_or_adapters() {
    for (name, file) in [
        ("dora", "adapter_model.safetensors"),
        ("experts", "adapter_model.safetensors"),
        ("patterns", "adapter_config.json"),
        ("tokens-both", "adapter_config.json"),
        ("gguf-experts", "adapter.gguf"),
        ("mlx-dora", "adapters.safetensors"),
        ("mlx-dora", "adapter_config.json"),
    ] {
        fuzz(name, file);
    }
}

//! Files of adapters: what readers give, what they refuse and in which words, what is written.

#[path = "lora_files/refusals.rs"]
mod refusals;
#[path = "lora_files/written.rs"]
mod written;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tallow::error::{Error, ErrorKind};
use tallow::lora;

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

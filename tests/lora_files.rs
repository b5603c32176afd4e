//! Files of adapters: what readers give, what they refuse, and in which words.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tallow::error::ErrorKind;
use tallow::lora;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters")
}

fn manifest() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(golden().join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn every_golden_is_read_or_refused_by_name() {
    let mut failures = Vec::new();
    for row in manifest() {
        let name = row["name"].as_str().unwrap();
        let opened = lora::open(&golden().join(row["adapter"].as_str().unwrap()));
        match (opened, row["refused"].as_object()) {
            (Ok(_), None) => {}
            (Err(error), None) => failures.push(format!("{name}: {error:?}")),
            // Some are refused where they meet the model.
            (Ok(_), Some(refused)) if refused["at"] == "bind" => {}
            (Ok(adapter), Some(_)) => failures.push(format!("{name} was read: {:?}", adapter.modules.len())),
            (Err(error), Some(refused)) => {
                let kind = match refused["kind"].as_str().unwrap() {
                    "unsupported" => ErrorKind::UnsupportedModel,
                    _ => ErrorKind::ModelFile,
                };
                let words = refused["words"].as_array().unwrap();
                let says = words.iter().all(|words| error.message().contains(words.as_str().unwrap()));
                if error.kind() != kind || !says {
                    failures.push(format!("{name}: {error:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

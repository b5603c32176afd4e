//! Real models, from the folder that `TALLOW_TEST_MODELS` names.

use std::path::PathBuf;
use std::time::Instant;

use tallow::weights::{Gguf, WeightType};

use crate::allocations;

/// Every GGUF file of the folder; none (and a word about it) when there is no folder, which CI does not
/// allow.
fn models() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("TALLOW_TEST_MODELS") else {
        assert!(std::env::var_os("CI").is_none(), "TALLOW_TEST_MODELS must be set where CI is");
        eprintln!("skipped: TALLOW_TEST_MODELS names no folder with real models");
        return Vec::new();
    };
    let entries = std::fs::read_dir(folder).expect("TALLOW_TEST_MODELS is a folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "gguf"));
    paths.sort();
    assert!(!paths.is_empty(), "TALLOW_TEST_MODELS holds no .gguf file");
    paths
}

/// Megabytes of resident memory that are not pages of a file; 0 where that cannot be told.
fn own_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

#[test]
fn real_models_open_at_once_and_every_tensor_reads() {
    for path in models() {
        let (memory, start) = (own_memory(), Instant::now());
        let (gguf, largest) = allocations::largest(|| Gguf::open(&path).unwrap());
        let (elapsed, memory) = (start.elapsed(), own_memory() - memory);
        let tokens = gguf.metadata.strs("tokenizer.ggml.tokens").unwrap().unwrap();
        println!(
            "{}: {} tensors, {} tokens: opened in {elapsed:?}, {memory:.1} MB, the largest piece {:.1} MB",
            path.display(),
            gguf.weights.len(),
            tokens.len(),
            largest as f64 / 1e6,
        );
        assert!(largest < 16 << 20, "no weights are copied");
        let mut types = std::collections::BTreeMap::<&str, usize>::new();
        for name in gguf.weights.names() {
            let tensor = gguf.weights.get(name).unwrap();
            *types.entry(tensor.dtype.name()).or_default() += 1;
            let values = tensor.to_f32();
            assert!(
                values.iter().all(|value| value.abs() < 1e4),
                "{name} ({}) holds absurd weights",
                tensor.dtype
            );
            assert!(
                values.iter().any(|value| *value != 0.0) || tensor.dtype == WeightType::F32,
                "{name} is zero"
            );
        }
        println!("  {types:?}");
    }
}

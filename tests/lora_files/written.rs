//! What is written is read again as it was; peft's reading of it is a golden.

use serde_json::Value;
use tallow::error::ErrorKind;
use tallow::lora::{self, Module, Pair, WriteAdapter, write_peft};
use tallow::weights::names::Part;

use crate::golden;
use crate::refusals::Files;

fn pair(rank: usize, inputs: usize, outputs: usize, scale: f32, seed: usize) -> Pair {
    let values =
        |n: usize| (0..n).map(|i| ((i * 7 + seed * 13) % 23) as f32 / 8.0 - 1.25).collect::<Vec<f32>>();
    Pair { rank, inputs, outputs, scale, a: values(rank * inputs), b: values(outputs * rank) }
}

fn module(layer: Option<usize>, part: Part, pair: Pair) -> Module {
    let mut module = Module::new(format!("{part:?}"), layer, part);
    module.pairs = vec![pair];
    module
}

fn write(family: &str, modules: &[Module]) -> tallow::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    write_peft(folder.path(), &WriteAdapter { family, base: Some("tiny/base"), modules })?;
    Ok(folder)
}

fn config(folder: &tempfile::TempDir) -> Value {
    serde_json::from_slice(&std::fs::read(folder.path().join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    // Of peft: whatever is a plain pair for each module.
    for (name, family) in [
        ("lora", "llama"),
        ("rslora", "llama"),
        ("qwen3", "qwen3"),
        ("phi", "phi"),
        ("lfm2", "lfm2"),
        ("phi3", "phi3"),
    ] {
        let adapter = lora::open(&golden().join(name)).unwrap();
        let modules: Vec<_> = adapter.modules.into_iter().filter(|module| module.weight.is_none()).collect();
        let folder = write(family, &modules).unwrap();
        let again = lora::open(folder.path()).unwrap();
        assert_eq!(again.hash, lora::hash(&modules), "{name}");
        assert_eq!(again.base.as_deref(), Some("tiny/base"));
        let names = |modules: &[Module]| modules.iter().map(|module| module.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&again.modules), names(&modules), "{name}");
    }
}

/// What peft wrote is written again as peft wrote it: the same tensors under the same keys, and in the
/// configuration no key of other meaning.
#[test]
fn the_files_are_those_of_peft() {
    for (name, family) in [("lora", "llama"), ("qwen3", "qwen3"), ("lfm2", "lfm2"), ("phi3", "phi3")] {
        let adapter = lora::open(&golden().join(name)).unwrap();
        let folder = write(family, &adapter.modules).unwrap();
        let written = Files::open(folder.path(), "adapter_model.safetensors");
        let peft = Files::golden(name, "adapter_model.safetensors");
        assert_eq!(written.tensors, peft.tensors, "{name}");
        for (key, value) in &written.config {
            if key != "base_model_name_or_path" && key != "target_modules" {
                assert_eq!(Some(value), peft.config.get(key), "{name}: {key}");
            }
        }
    }
}

#[test]
fn ranks_and_scales_that_differ_are_the_same_change() {
    let modules = [
        module(Some(0), Part::Q, pair(4, 8, 8, 2.0, 1)),
        module(Some(0), Part::V, pair(4, 8, 6, 2.0, 2)),
        module(Some(1), Part::Q, pair(2, 8, 8, 2.0, 3)),
        module(Some(1), Part::Up, pair(4, 8, 12, 0.5, 4)),
    ];
    let folder = write("llama", &modules).unwrap();
    let config = config(&folder);
    assert_eq!((&config["r"], &config["lora_alpha"]), (&Value::from(4), &Value::from(8)));
    let again = lora::open(folder.path()).unwrap();
    for (module, read) in modules.iter().zip(&again.modules) {
        let (wanted, found) = (&module.pairs[0], &read.pairs[0]);
        assert_eq!((module.layer, module.part), (read.layer, read.part));
        assert_eq!(delta(wanted), delta(found), "{}", read.name);
    }
}

/// `scale B A`.
fn delta(pair: &Pair) -> Vec<f32> {
    let row = |b: &[f32]| {
        let at =
            |i: usize| (0..pair.rank).map(|r| b[r] * pair.a[r * pair.inputs + i]).sum::<f32>() * pair.scale;
        (0..pair.inputs).map(at).collect::<Vec<f32>>()
    };
    pair.b.chunks_exact(pair.rank).flat_map(row).collect()
}

#[test]
fn parts_of_one_matrix_are_one_module() {
    let shared = pair(2, 8, 8, 2.0, 1);
    let with_b = |seed| Pair { b: pair(2, 8, 8, 2.0, seed).b, ..shared.clone() };
    for (q, k, v, rank) in [
        (shared.clone(), with_b(2), with_b(3), 2),
        (pair(2, 8, 8, 2.0, 4), pair(2, 8, 8, 2.0, 5), pair(2, 8, 8, 2.0, 6), 6),
    ] {
        let wanted: Vec<f32> = [&q, &k, &v].into_iter().flat_map(delta).collect();
        let modules = [
            (Part::Q, q),
            (Part::K, k),
            (Part::V, v),
            (Part::O, shared.clone()),
            (Part::Down, shared.clone()),
        ]
        .map(|(part, pair)| module(Some(0), part, pair));
        let again = lora::open(write("phi3", &modules).unwrap().path()).unwrap();
        let read = again.modules.iter().find(|module| module.part == Part::Qkv).unwrap();
        assert_eq!((again.modules.len(), read.pairs[0].rank), (3, rank));
        assert_eq!(delta(&read.pairs[0]), wanted);
    }
    let error = write("phi3", &[module(Some(0), Part::Gate, shared)]).unwrap_err();
    assert!(
        error.kind() == ErrorKind::UnsupportedModel && error.message().contains("gate_up_proj"),
        "{error}"
    );
}

#[test]
fn what_is_more_than_a_pair_is_not_written() {
    for name in ["dora", "lora-bias", "bias-all", "saved-head", "experts", "gguf"] {
        let adapter =
            lora::open(&golden().join(name).join(if name == "gguf" { "adapter.gguf" } else { "" })).unwrap();
        let error = write("llama", &adapter.modules).unwrap_err();
        assert!(error.message().contains("more than a pair"), "{name}: {error}");
    }
    assert_eq!(write("llama", &[]).unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let modules = [module(Some(0), Part::Q, pair(2, 8, 8, 2.0, 1))];
    let adapter = WriteAdapter { family: "llama", base: None, modules: &modules };
    let error = write_peft(&file.join("below"), &adapter).unwrap_err();
    assert!(error.kind() == ErrorKind::ModelFile && error.message().contains("cannot be written"), "{error}");
}

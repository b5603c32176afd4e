//! What untrusted inputs come in by, each as a function of bytes, and what holds of every input: no panic, no
//! second of work, little memory. Two programs drive it: `tests/fuzz.rs` with damaged seeds, the same ones
//! for ever, and `fuzz/` with libFuzzer, which looks for ways that no seed has taken (`make fuzz`).

#[path = "../weights/allocations.rs"]
mod allocations;
mod damage;
mod folder;
mod grammars;
mod models;
pub mod mutate;
pub mod parts;
#[path = "../common/random.rs"]
pub mod random;
pub mod rules;
mod saved;
#[allow(dead_code)]
#[path = "../constrain/schemas.rs"]
mod schemas;
#[allow(dead_code)]
#[path = "../constrain/small.rs"]
mod small;
#[allow(dead_code)]
#[path = "../hostile_model/tables.rs"]
mod tables;
mod texts;
mod weights;
#[allow(dead_code)]
#[path = "../weights/writer.rs"]
mod writer;

use std::path::PathBuf;

use parts::Part;

/// What became of an input: `Ok(true)` if it was taken, `Ok(false)` if it was refused as it should be.
pub type Outcome = Result<bool, String>;

/// A way in.
pub struct Target {
    pub name: &'static str,
    /// What an input is made of.
    pub parts: &'static [Part],
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub run: fn(&[u8]) -> Outcome,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    weights::GGUF,
    weights::SAFETENSORS,
    weights::INDEX,
    weights::QUANTIZED,
    models::CONFIG,
    models::TOKENIZER,
    models::ADAPTER,
    saved::PREFIX,
    saved::PACKED,
    texts::TEMPLATE,
    grammars::SCHEMA,
    grammars::REGEX,
    grammars::LARK,
];

/// The target of a name.
pub fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("there is no target {name:?}; there are {}", names.join(", "))
    })
}

/// A file or folder under `tests`, whichever of the two packages this is compiled in.
fn tests(name: &str) -> PathBuf {
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let inner = package.join("tests");
    if inner.is_dir() { inner.join(name) } else { package.join("../tests").join(name) }
}

fn golden(name: &str) -> Vec<u8> {
    let path = tests("golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Inputs that once broke a rule.
pub fn found(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(tests("fuzz/found").join(target.name)).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

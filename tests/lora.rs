//! Adapters against peft: each row of `tests/golden/adapters/manifest.json` gives peft's logits, or is
//! refused with words; alone, in chunks, and beside rows of the base and of another adapter, bit by bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tallow::cache::storage::KvCache;
use tallow::config::{self, Config};
use tallow::error::{Error, Result};
use tallow::kernels::{Isa, KvType, Ops};
use tallow::lora::{self, AdapterLease, AdapterSlots, BoundAdapter};
use tallow::model::Decoder;
use tallow::model::projection::Deltas;
use tallow::step::{StateTable, StateWrite, Step, pages_for};
use tallow::weights::{Gguf, Weights, safetensors};

/// Largest difference of a logit, as a share of the largest that the adapter makes.
const TOLERANCE: f32 = 2e-5;

/// A row of the manifest.
#[derive(Deserialize)]
struct Golden {
    name: String,
    /// A folder of `tests/golden/families`, or of the adapters' own checkpoints.
    base: String,
    adapter: String,
    reference: Option<String>,
    refused: Option<Refusal>,
    /// The largest difference that the adapter makes to a logit.
    bite: Option<f32>,
}

/// The kind of an error, and words of it.
#[derive(Deserialize)]
struct Refusal {
    kind: String,
    words: Vec<String>,
}

impl Refusal {
    fn fits(&self, error: &Error) -> bool {
        let kind = format!("{:?}", error.kind()).to_lowercase();
        kind.contains(&self.kind.replace('_', ""))
            && self.words.iter().all(|word| error.to_string().contains(word))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters")
}

fn goldens() -> Vec<Golden> {
    serde_json::from_str(&std::fs::read_to_string(root().join("manifest.json")).unwrap()).unwrap()
}

fn base_folder(name: &str) -> PathBuf {
    let own = root().join(name);
    if own.join("config.json").exists() { own } else { root().join("../families").join(name) }
}

/// Every tier of this machine's instructions, and candle's operations.
fn ops() -> Vec<Ops> {
    let tiers = Isa::available().into_iter().map(|isa| Ops::cpu_with(2, KvType::F32, isa).unwrap());
    tiers.chain([Ops::candle(candle_core::Device::Cpu, candle_core::DType::F32)]).collect()
}

fn open(folder: &Path, gguf: bool) -> (Config, Weights) {
    if gguf {
        let gguf = Gguf::open(&folder.join("model.gguf")).unwrap();
        return (config::gguf::parse(&gguf.metadata, &gguf.weights).unwrap(), gguf.weights);
    }
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    (config::hf::parse(&text).unwrap(), safetensors::open(folder).unwrap())
}

fn build(folder: &Path, gguf: bool, ops: Ops) -> Decoder {
    let (config, weights) = open(folder, gguf);
    let context = config.context;
    Decoder::build(config, &weights, ops, context, None, &mut || Ok(())).unwrap()
}

/// The logits of several sequences at once, each with an adapter or none, in chunks of `cut`.
fn run(
    decoder: &Decoder,
    slots: &AdapterSlots,
    sequences: &[(&[u32], Option<&AdapterLease>)],
    cut: usize,
) -> Result<Vec<Vec<f32>>> {
    let longest = sequences.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
    let (pages, groups) = (pages_for(longest), decoder.kv_layout().windows().len());
    let each = groups * pages;
    let cache: KvCache = decoder.new_cache(each * sequences.len(), 2 * sequences.len())?;
    let mut logits = vec![Vec::new(); sequences.len()];
    for start in (0..longest).step_by(cut) {
        let (mut step, mut owners) = (Step::default(), Vec::new());
        for (number, (tokens, adapter)) in sequences.iter().enumerate() {
            let end = tokens.len().min(start + cut);
            if start >= end {
                continue;
            }
            let own: Vec<u32> = (0..each).map(|page| (number * each + page) as u32).collect();
            let tables = own.chunks(pages.max(1)).map(<[u32]>::to_vec).take(groups).collect();
            let slot = |odd: bool| (2 * number + usize::from(odd)) as u32;
            let odd = start / cut % 2 == 1;
            let state = match decoder.kv_layout().slot_bytes() {
                0 => StateTable::default(),
                _ => StateTable {
                    read: (start > 0).then(|| slot(odd)),
                    writes: vec![StateWrite { rows: end - start, slot: slot(!odd) }],
                },
            };
            let rows = step.push_span(&tokens[start..end], start, tables, state);
            step.spans.last_mut().unwrap().adapter = adapter.map(AdapterLease::slot);
            owners.extend(rows.map(|_| number));
        }
        let rows: Vec<u32> = (0..step.rows() as u32).collect();
        let adapters = slots.of_step(&step)?;
        let deltas = adapters.as_ref().map(|adapters| adapters as &dyn Deltas);
        let hidden = decoder.forward_with(&step, &cache, &rows, deltas)?;
        let head = decoder.head_with(&hidden, deltas.map(|deltas| (deltas, &rows[..])))?;
        let values = decoder.ops().into_vec(head)?;
        for (owner, row) in owners.into_iter().zip(values.chunks_exact(decoder.config().vocab)) {
            logits[owner].extend_from_slice(row);
        }
    }
    Ok(logits)
}

/// peft's logits of some tokens.
fn reference(golden: &Golden) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(root().join(golden.reference.as_ref().unwrap())).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let tokens = tokens.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
    let logits = file.tensor("logits").unwrap();
    let logits = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (tokens.collect(), logits.collect())
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, it| if it.is_nan() { f32::INFINITY } else { f32::max(worst, it) })
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// What is wrong with a golden on some operations; empty: nothing.
fn problems(golden: &Golden, gguf: bool, ops: &Ops) -> Vec<String> {
    let folder = base_folder(&golden.base);
    let mut problems = Vec::new();
    let file = lora::open(&root().join(&golden.adapter));
    let decoder = build(&folder, gguf, ops.clone());
    let bound = file.and_then(|file| BoundAdapter::bind(&file, &decoder, 1.0));
    let bound = match (bound, &golden.refused) {
        (Err(error), Some(refusal)) if refusal.fits(&error) => return problems,
        (Err(error), _) => return vec![format!("refused: {error}")],
        (Ok(_), Some(refusal)) => return vec![format!("taken, and {:?} was to be said", refusal.words)],
        (Ok(bound), None) => bound,
    };
    let (tokens, want) = reference(golden);
    let bite = golden.bite.unwrap_or(0.0);
    let slots = AdapterSlots::default();
    let lease = slots.lease(&Arc::new(bound), 1);
    let with = (&tokens[..], Some(&lease));
    let without = (&tokens[..], None);
    let alone = run(&decoder, &slots, &[with], usize::MAX).unwrap().remove(0);
    let difference = worst(&alone, &want);
    if difference > TOLERANCE * bite.max(1.0) {
        problems.push(format!("differs from peft by {difference:.2e}, of {bite:.2e}"));
    }
    let base = run(&decoder, &slots, &[without], usize::MAX).unwrap().remove(0);
    if worst(&base, &want) < 0.1 * bite {
        problems.push("the base gives the same".into());
    }
    if ops.threads() > 1 {
        let short = (&tokens[..tokens.len() / 2], Some(&lease));
        for cut in [usize::MAX, 5, 1] {
            let all = run(&decoder, &slots, &[without, with, short, without, with], cut).unwrap();
            for (number, (got, want)) in all.iter().zip([&base, &alone, &alone, &base, &alone]).enumerate() {
                if bits(got) != bits(&want[..got.len()]) {
                    problems.push(format!("sequence {number} has other bits in chunks of {cut}"));
                }
            }
        }
    }
    problems
}

#[test]
fn adapters_give_pefts_logits_or_say_why_not() {
    let (mut failures, mut checked) = (Vec::new(), 0);
    for golden in goldens() {
        let gguf = base_folder(&golden.base).join("model.gguf").exists();
        for (ops, gguf) in
            ops().iter().flat_map(|ops| [false, true].map(|of| (ops, of))).filter(|(_, of)| gguf || !of)
        {
            checked += 1;
            let form = if gguf { "GGUF" } else { "safetensors" };
            let found = problems(&golden, gguf, ops).into_iter();
            failures.extend(found.map(|problem| format!("{} on {form}, {ops:?}: {problem}", golden.name)));
        }
    }
    assert!(failures.is_empty(), "{} of {checked}:\n{}", failures.len(), failures.join("\n"));
}

/// Bases with a term of zeros have the bits of no term at all.
#[test]
fn b_of_zeros_changes_no_bit() {
    for golden in goldens().into_iter().filter(|golden| golden.refused.is_none()).take(1) {
        let decoder = build(&base_folder(&golden.base), false, ops()[0].clone());
        let mut file = lora::open(&root().join(&golden.adapter)).unwrap();
        for pair in file.modules.iter_mut().flat_map(|module| &mut module.pairs) {
            pair.b.fill(0.0);
        }
        let slots = AdapterSlots::default();
        let lease = slots.lease(&Arc::new(BoundAdapter::bind(&file, &decoder, 1.0).unwrap()), 1);
        let (tokens, _) = reference(&golden);
        let of = |lease| run(&decoder, &slots, &[(&tokens[..], lease)], usize::MAX).unwrap().remove(0);
        assert_eq!(of(Some(&lease)), of(None));
    }
}

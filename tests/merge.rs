//! A merged checkpoint gives the logits that peft gives with the adapter: each golden of
//! `tests/golden/adapters`, merged into its base as float32, safetensors and GGUF, and loaded again.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tallow::config::{self, Config};
use tallow::error::{ErrorKind, Result};
use tallow::hub::{NoProgress, Progress};
use tallow::kernels::{Isa, KvType, Ops};
use tallow::lora::{self, BoundAdapter, MergeOptions, MergeReport, save_merged};
use tallow::model::Decoder;
use tallow::step::{StateTable, StateWrite, Step, pages_for};
use tallow::weights::{Format, Gguf, WeightType, Weights, safetensors};

/// Largest difference of a logit, as a share of the largest that the adapter makes: sums of other order.
const TOLERANCE: f32 = 1e-4;
/// Adapters that can be served and not merged, and why.
const NOT_MERGED: [(&str, &str); 1] = [("lora-bias", "the adapter has a bias for")];

const FLOAT32: MergeOptions = MergeOptions { dtype: Some(WeightType::F32), format: None, force: false };

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters")
}

/// Those that are served.
fn goldens() -> Vec<Value> {
    let text = fs::read_to_string(root().join("manifest.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    rows.into_iter().filter(|row| row["refused"].is_null()).collect()
}

fn golden(name: &str) -> Value {
    goldens().into_iter().find(|golden| golden["name"] == name).unwrap()
}

fn base_folder(golden: &Value) -> PathBuf {
    let name = golden["base"].as_str().unwrap();
    let own = root().join(name);
    if own.join("config.json").exists() { own } else { root().join("../families").join(name) }
}

fn base(golden: &Value, gguf: bool) -> PathBuf {
    if gguf { base_folder(golden).join("model.gguf") } else { base_folder(golden) }
}

fn open(path: &Path) -> (Config, Weights) {
    if path.extension().is_some_and(|extension| extension == "gguf") {
        let gguf = Gguf::open(path).unwrap();
        return (config::gguf::parse(&gguf.metadata, &gguf.weights).unwrap(), gguf.weights);
    }
    let text = fs::read_to_string(path.join("config.json")).unwrap();
    (config::hf::parse(&text).unwrap(), safetensors::open(path).unwrap())
}

fn build(path: &Path) -> Decoder {
    let (config, weights) = open(path);
    let ops = Ops::cpu_with(2, KvType::F32, *Isa::available().last().unwrap()).unwrap();
    let context = config.context;
    Decoder::build(config, &weights, ops, context, None, &mut || Ok(())).unwrap()
}

fn logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let (pages, groups) = (pages_for(tokens.len()), decoder.kv_layout().windows().len());
    let cache = decoder.new_cache(groups * pages, 2).unwrap();
    let own: Vec<u32> = (0..(groups * pages) as u32).collect();
    let tables = own.chunks(pages.max(1)).map(<[u32]>::to_vec).take(groups).collect();
    let state = match decoder.kv_layout().slot_bytes() {
        0 => StateTable::default(),
        _ => StateTable { read: None, writes: vec![StateWrite { rows: tokens.len(), slot: 0 }] },
    };
    let mut step = Step::default();
    step.push_span(tokens, 0, tables, state);
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let hidden = decoder.forward(&step, &cache, &rows).unwrap();
    decoder.ops().into_vec(decoder.head(&hidden).unwrap()).unwrap()
}

/// peft's logits of some tokens.
fn reference(golden: &Value) -> (Vec<u32>, Vec<f32>) {
    let bytes = fs::read(root().join(golden["reference"].as_str().unwrap())).unwrap();
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

fn merge(golden: &Value, base: &Path, to: &Path, options: &MergeOptions) -> Result<MergeReport> {
    merge_watched(golden, base, to, (options, 1.0), &NoProgress)
}

fn merge_watched(
    golden: &Value,
    base: &Path,
    to: &Path,
    (options, scale): (&MergeOptions, f32),
    progress: &dyn Progress,
) -> Result<MergeReport> {
    let decoder = build(base);
    let file = lora::open(&root().join(golden["adapter"].as_str().unwrap()))?;
    let bound = BoundAdapter::bind(&file, &decoder, scale)?;
    save_merged(&decoder, base, &bound, to, options, progress)
}

/// A place for what is merged into `base`.
fn target(folder: &tempfile::TempDir, gguf: bool) -> PathBuf {
    folder.path().join(if gguf { "merged.gguf" } else { "merged" })
}

fn problem(golden: &Value, gguf: bool) -> Option<String> {
    let (base, folder) = (base(golden, gguf), tempfile::tempdir().unwrap());
    let to = target(&folder, gguf);
    let name = golden["name"].as_str().unwrap();
    let refused = NOT_MERGED.iter().find(|(other, _)| *other == name);
    let report = match (merge(golden, &base, &to, &FLOAT32), refused) {
        (Ok(report), None) => report,
        (Ok(_), Some(_)) => return Some("it was merged".into()),
        (Err(error), Some((_, words))) if error.message().contains(words) => {
            let left = fs::read_dir(folder.path()).unwrap().count();
            return (left > 0).then(|| format!("{left} things are left behind"));
        }
        (Err(error), _) => return Some(error.to_string()),
    };
    let (tokens, want) = reference(golden);
    let difference = worst(&logits(&build(&to), &tokens), &want);
    let bite = golden["bite"].as_f64().unwrap() as f32;
    if difference > TOLERANCE * bite.max(1.0) {
        return Some(format!("differs from peft by {difference:.2e}, of {bite:.2e}"));
    }
    let lost = report.tensors.iter().find(|tensor| tensor.lost > 1e-3);
    lost.map(|tensor| format!("{} lost {} as float32", tensor.name, tensor.lost))
}

#[test]
fn merged_checkpoints_give_pefts_logits() {
    let (mut failures, mut checked) = (Vec::new(), 0);
    for golden in goldens() {
        for gguf in [false, true].into_iter().filter(|gguf| base(&golden, *gguf).exists()) {
            checked += 1;
            let problem = problem(&golden, gguf);
            let form = if gguf { "GGUF" } else { "safetensors" };
            failures.extend(problem.map(|problem| format!("{} into {form}: {problem}", golden["name"])));
        }
    }
    assert!(failures.is_empty(), "{} of {checked}:\n{}", failures.len(), failures.join("\n"));
}

/// A head that is no longer the embedding is stored, and said to be.
#[test]
fn what_was_tied_is_untied_only_where_it_must_be() {
    for (name, untied) in [
        ("head-tied", true),
        ("embedding-tied", true),
        ("saved-head-tied", true),
        ("both-tied", false),
        ("saved-both-tied", false),
        ("tokens-tied", false),
        ("qwen2", false),
    ] {
        let (golden, folder) = (golden(name), tempfile::tempdir().unwrap());
        let to = target(&folder, false);
        let report = merge(&golden, &base(&golden, false), &to, &FLOAT32).unwrap();
        let config: Value =
            serde_json::from_str(&fs::read_to_string(to.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], !untied, "{name}");
        let dtype = config.get("dtype").or(config.get("torch_dtype"));
        assert_eq!(dtype.unwrap(), "float32", "{name}");
        assert_eq!(report.notes.iter().any(|note| note.contains("no longer one matrix")), untied, "{name}");
        assert_eq!(Weights::open(&to).unwrap().contains("lm_head.weight"), untied, "{name}");
    }
}

/// By default all that does not change has the bytes of the base, and what does its type.
#[test]
fn other_tensors_are_copied() {
    for gguf in [false, true] {
        let (golden, folder) = (golden("one-layer"), tempfile::tempdir().unwrap());
        let (base, to) = (base(&golden, gguf), target(&folder, gguf));
        let report = merge(&golden, &base, &to, &MergeOptions::default()).unwrap();
        let (before, after) = (open(&base).1, open(&to).1);
        let changed: Vec<_> = report.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        for name in before.names() {
            let (old, new) = (before.as_stored(name).unwrap(), after.as_stored(name).unwrap());
            assert_eq!((&old.0, old.1), (&new.0, new.1), "{name}");
            assert_eq!(old.2[..] != new.2[..], changed.contains(&name), "{name}");
        }
        if gguf {
            let keys = |path: &Path| {
                let metadata = Gguf::open(path).unwrap().metadata;
                let others = metadata.iter().filter(|(key, _)| *key != "general.file_type");
                others.map(|(key, value)| (key.to_string(), value.clone())).collect::<Vec<_>>()
            };
            assert_eq!(keys(&base), keys(&to));
        }
    }
}

/// What rounding takes is measured: coarser types take more.
#[test]
fn coarser_types_lose_more() {
    let golden = golden("lora");
    let lost = |dtype: WeightType| {
        let folder = tempfile::tempdir().unwrap();
        let options = MergeOptions { dtype: Some(dtype), format: None, force: true };
        let to = target(&folder, true);
        let base = base(&golden, true);
        let report = merge_watched(&golden, &base, &to, (&options, 0.1), &NoProgress).unwrap();
        assert!(build(&to).config().vocab > 0);
        let noted = report.notes.iter().any(|note| note.contains("rounding takes"));
        let (delta, lost) = (report.tensors[0].delta, report.tensors[0].lost);
        assert!(delta > 0.0 && lost.is_finite());
        (lost, noted)
    };
    let types = [WeightType::F32, WeightType::F16, WeightType::BF16, WeightType::Q8_0, WeightType::Q4_0];
    let all = types.map(lost);
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "{all:?}");
    assert!(!all[0].1 && all[4].1, "{all:?}");
}

struct Impatient;

impl Progress for Impatient {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn cancelled(&self) -> bool {
        true
    }
}

#[test]
fn nothing_is_overwritten_or_left_behind() {
    let golden = golden("lora");
    let q4 = MergeOptions { dtype: Some(WeightType::Q4_1), ..MergeOptions::default() };
    let other = MergeOptions { format: Some(Format::Gguf), ..MergeOptions::default() };
    for (gguf, name, options, words) in [
        (false, "taken", MergeOptions::default(), "is there already"),
        (true, "taken.gguf", MergeOptions::default(), "is there already"),
        (true, "folder", MergeOptions::default(), "ends in .gguf"),
        (false, "file.gguf", MergeOptions::default(), "a folder is written"),
        (false, "new", q4, "which safetensors do not hold"),
        (true, "new.gguf", q4, "force=True"),
        (false, "new", other, "convert_hf_to_gguf.py"),
        (false, "taken/new", MergeOptions::default(), "cancelled"),
        (true, "taken/new.gguf", MergeOptions::default(), "cancelled"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("taken")).unwrap();
        for file in ["taken/x", "taken.gguf"] {
            fs::write(folder.path().join(file), "mine").unwrap();
        }
        let watcher: &dyn Progress = if words == "cancelled" { &Impatient } else { &NoProgress };
        let to = folder.path().join(name);
        let error = merge_watched(&golden, &base(&golden, gguf), &to, (&options, 1.0), watcher).unwrap_err();
        assert!(error.message().contains(words), "{name}: {error}");
        assert_eq!(error.kind() == ErrorKind::Cancelled, words == "cancelled");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "{name}");
        assert_eq!(fs::read_dir(folder.path().join("taken")).unwrap().count(), 1, "{name}");
        assert_eq!(fs::read_to_string(folder.path().join("taken.gguf")).unwrap(), "mine");
    }
}

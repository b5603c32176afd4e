//! Every family's decoder against transformers in float32, on tiny random checkpoints
//! (tests/golden/families): from safetensors and from GGUF, the whole prompt at once, in chunks, and token by
//! token.

#[path = "common/random.rs"]
mod random;

use std::path::{Path, PathBuf};

use random::Random;
use tallow::cache::storage::KvCache;
use tallow::config::{self, Config};
use tallow::error::Result;
use tallow::kernels::{KvType, LowRank, Ops, Term};
use tallow::model::decoder::Decoder;
use tallow::model::projection::{Deltas, ProjectionId};
use tallow::step::{StateTable, StateWrite, Step, pages_for};
use tallow::weights::gguf::{Array, Metadata, Value};
use tallow::weights::names::Part;
use tallow::weights::{Gguf, WeightType, Weights, safetensors};

/// Largest difference of a logit that is allowed; candle's fused norms and softmax add up in another order
/// (LongRoPE's factor makes large scores, and it 1.9e-4).
const TOLERANCE: f32 = 1e-4;
const CANDLE_TOLERANCE: f32 = 2e-4;
const QUANTIZED_TOLERANCE: f32 = 3e-3;

/// llama.cpp's files of the llama architecture have no key for a window, so that only the positions within
/// one can agree.
const WINDOW_NOT_IN_GGUF: (&str, usize) = ("mistral-window", 8);

/// How a prompt is cut into steps.
const CUTS: &[(&str, usize)] = &[("whole", usize::MAX), ("chunks of 7", 7), ("token by token", 1)];

struct Reference {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

#[test]
fn every_family_agrees_with_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut names: Vec<PathBuf> =
        root.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    names.sort();
    assert!(names.len() >= 30, "only {} variants found", names.len());
    let mut failures = Vec::new();
    let mut checked = 0;
    for folder in &names {
        let forms = [("safetensors", true), ("gguf", folder.join("model.gguf").exists())];
        for (form, _) in forms.iter().filter(|(_, exists)| *exists) {
            for (ops_name, ops) in [("cpu", Ops::cpu(2, KvType::F32).unwrap()), ("candle", candle())] {
                checked += 1;
                let name = format!("{} {form} {ops_name}", folder.file_name().unwrap().to_string_lossy());
                match check(folder, form, ops) {
                    Ok(worst) if worst <= tolerance(ops_name) => {}
                    Ok(worst) => failures.push(format!("{name}: differs by {worst:.2e}")),
                    Err(error) => failures.push(format!("{name}: {error:?}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {checked} failed:\n{}", failures.len(), failures.join("\n"));
}

/// The same graph over candle's own operations: the path that other devices take.
fn candle() -> Ops {
    Ops::candle(candle_core::Device::Cpu, candle_core::DType::F32)
}

fn tolerance(ops: &str) -> f32 {
    if ops == "candle" { CANDLE_TOLERANCE } else { TOLERANCE }
}

/// The largest difference over all prompts and cuts.
fn check(folder: &Path, form: &str, ops: Ops) -> Result<f32> {
    let (config, weights) = open(folder, form)?;
    let meta: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("meta.json")).unwrap()).unwrap();
    let context = meta["context_length"].as_u64().map_or(config.context, |n| n as usize);
    let vocab = config.vocab;
    let decoder = Decoder::build(config, &weights, ops, context, None, &mut || Ok(()))?;
    let windowless = form == "gguf" && folder.ends_with(WINDOW_NOT_IN_GGUF.0);
    let compared = if windowless { WINDOW_NOT_IN_GGUF.1 * vocab } else { usize::MAX };
    // Our products take activations of 15 bits where weights are quantized.
    let rough = decoder.matrices().any(|matrix| matrix.stored().0 == WeightType::Mxfp4.name());
    let mut worst = 0f32;
    for reference in references(folder) {
        for (_, cut) in CUTS {
            let logits = run(&decoder, &reference.tokens, *cut)?;
            assert_eq!(logits.len(), reference.tokens.len() * vocab);
            for (got, want) in logits.iter().zip(&reference.logits).take(compared) {
                let difference = (got - want).abs();
                worst = if difference.is_nan() { f32::INFINITY } else { worst.max(difference) };
            }
        }
    }
    Ok(if rough { worst * TOLERANCE / QUANTIZED_TOLERANCE } else { worst })
}

fn open(folder: &Path, form: &str) -> Result<(Config, Weights)> {
    if form == "gguf" {
        let gguf = Gguf::open(&folder.join("model.gguf"))?;
        return Ok((config::gguf::parse(&gguf.metadata, &gguf.weights)?, gguf.weights));
    }
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    Ok((config::hf::parse(&text)?, safetensors::open(folder)?))
}

/// GGUF files with a metadata key missing, of the wrong type or out of all bounds: what must be there is
/// named before anything is built, and the rest is as llama.cpp assumes it. Nothing panics.
#[test]
fn a_gguf_key_that_is_missing_or_wrong_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let files = root.read_dir().unwrap().map(|entry| entry.unwrap().path().join("model.gguf"));
    let (mut failures, mut missing) = (Vec::new(), 0);
    for path in files.filter(|path| path.exists()) {
        let Gguf { metadata, weights } = Gguf::open(&path).unwrap();
        let architecture = metadata.str("general.architecture").unwrap().unwrap().to_string();
        let own = |key: &&str| key.starts_with(&format!("{architecture}.")) || key.starts_with("xielu.");
        let keys: Vec<String> = metadata.iter().map(|(key, _)| key).filter(own).map(str::to_string).collect();
        let with = |key: &str, value: Option<Value>| -> Metadata {
            let rest = metadata.iter().filter(|(name, _)| *name != key);
            let rest = rest.map(|(name, value)| (name.to_string(), value.clone()));
            rest.chain(value.map(|value| (key.to_string(), value))).collect()
        };
        for key in &keys {
            let edits = [
                ("missing", None),
                ("a word", Some(Value::Str("banana".into()))),
                ("huge", Some(Value::Uint(u64::MAX))),
                ("negative", Some(Value::Int(-1))),
                ("not a number", Some(Value::Float(f64::NAN))),
                ("an empty list", Some(Value::Array(Array::U32(vec![])))),
            ];
            for (what, value) in edits {
                let Err(error) = config::gguf::parse(&with(key, value), &weights) else { continue };
                missing += usize::from(what == "missing");
                // Rotations and shared experts are named as a whole.
                let whole = [".rope.", "shared"].into_iter().find(|part| key.contains(part));
                let last = key.rsplit('.').next().unwrap_or(key);
                let last = last.trim_start_matches("expert_").trim_end_matches("_swa");
                let word = whole.map_or(last, |part| part.trim_matches('.'));
                if !error.message().contains(word) {
                    failures.push(format!("{} {what}: {}", path.display(), error.message()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
    assert!(missing >= 300, "only {missing} keys are missed");
}

fn run(decoder: &Decoder, tokens: &[u32], cut: usize) -> Result<Vec<f32>> {
    let pages = pages_for(tokens.len());
    let groups = decoder.kv_layout().windows().len();
    let cache: KvCache = decoder.new_cache(groups * pages + 3, 2)?;
    // Pages backwards and not from zero: nothing may rely on their order.
    let all: Vec<u32> = (0..(groups * pages) as u32).rev().map(|page| page + 3).collect();
    let tables: Vec<Vec<u32>> = all.chunks(pages).map(<[u32]>::to_vec).collect();
    let mut logits = Vec::new();
    let mut position = 0;
    for chunk in tokens.chunks(cut.min(tokens.len())) {
        let mut step = Step::default();
        let rows = step.push_span(chunk, position, tables.clone(), state(decoder, position, chunk.len()));
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        let hidden = decoder.forward(&step, &cache, &rows)?;
        logits.extend(decoder.ops().into_vec(decoder.head(&hidden)?)?);
        position += chunk.len();
    }
    Ok(logits)
}

/// Where recurrent state is, if the decoder has some: from one slot into another, and back.
fn state(decoder: &Decoder, position: usize, rows: usize) -> StateTable {
    if !decoder.kv_layout().has_state() {
        return StateTable::default();
    }
    let read = (position > 0).then_some(0);
    let write = |slot| StateWrite { rows, slot };
    StateTable { read, writes: vec![write(1), write(0)] }
}

fn references(folder: &Path) -> Vec<Reference> {
    let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let suffixes = ["", "_1"].into_iter().filter(|suffix| file.tensor(&format!("tokens{suffix}")).is_ok());
    suffixes
        .map(|suffix| {
            let tokens = file.tensor(&format!("tokens{suffix}")).unwrap();
            let logits = file.tensor(&format!("logits{suffix}")).unwrap();
            let wide =
                tokens.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
            let floats = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            Reference { tokens: wide.collect(), logits: floats.collect() }
        })
        .collect()
}

/// What a mixture of experts is for: this many times as fast as the dense model with all its parameters.
const TIMES_AS_FAST: f64 = 2.5;

/// A Mixtral with eight experts of which a token passes two, and the Llama whose feed-forwards are as wide as
/// the eight together. They decode in turns, so that another program on the machine harms both.
#[test]
#[ignore = "takes time: cargo test --release --test families faster -- --ignored --nocapture"]
fn a_mixture_of_experts_decodes_faster_than_its_dense_twin() {
    let folder = tempfile::tempdir().unwrap();
    let twins = [false, true].map(|experts| twin(&folder.path().join(experts.to_string()), experts));
    let mut best = [f64::INFINITY; 2];
    for _ in 0..5 {
        for (decoder, best) in twins.iter().zip(&mut best) {
            *best = best.min(seconds_per_token(decoder));
        }
    }
    let [dense, experts] = best.map(|seconds| 1e3 * seconds);
    println!("dense {dense:.2} ms a token, experts {experts:.2} ms, ratio {:.2}", dense / experts);
    assert!(dense / experts >= TIMES_AS_FAST, "{:.2}", dense / experts);
}

fn twin(folder: &Path, experts: bool) -> Decoder {
    const HIDDEN: usize = 1024;
    const WIDTH: usize = 1536;
    const EXPERTS: usize = 8;
    const LAYERS: usize = 4;
    let (kind, width) = if experts { ("mixtral", WIDTH) } else { ("llama", WIDTH * EXPERTS) };
    let config = serde_json::json!({
        "model_type": kind, "vocab_size": 512, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 256,
        "tie_word_embeddings": true, "intermediate_size": width, "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
    });
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![512, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        for (name, rows) in [("q", HIDDEN), ("k", HIDDEN / 4), ("v", HIDDEN / 4), ("o", HIDDEN)] {
            add(&format!("self_attn.{name}_proj"), &[rows, HIDDEN]);
        }
        let mut mlp = |names: [String; 3]| {
            for (name, shape) in names.iter().zip([[width, HIDDEN], [width, HIDDEN], [HIDDEN, width]]) {
                add(name, &shape);
            }
        };
        match experts {
            true => {
                let expert = |e| ["w1", "w3", "w2"].map(|w| format!("block_sparse_moe.experts.{e}.{w}"));
                (0..EXPERTS).for_each(|e| mlp(expert(e)));
                add("block_sparse_moe.gate", &[EXPERTS, HIDDEN]);
            }
            false => mlp(["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.{name}"))),
        }
    }
    std::fs::create_dir_all(folder).unwrap();
    // bfloat16 between 1/64 and 1/32, of any sign.
    let mut bits = 1u64;
    let mut number = || {
        bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((bits >> 40) as u16 & 0x807f | 0x3c80).to_le_bytes()
    };
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| (0..shape.iter().product()).flat_map(|_| number()).collect())
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (
            name,
            ::safetensors::tensor::TensorView::new(::safetensors::Dtype::BF16, shape.clone(), data).unwrap(),
        )
    });
    ::safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let config = config::hf::parse(&config.to_string()).unwrap();
    let ops = Ops::cpu(2, KvType::BF16).unwrap();
    let weights = safetensors::open(folder).unwrap();
    Decoder::build(config, &weights, ops, 256, Some(WeightType::Q8_0), &mut || Ok(())).unwrap()
}

fn seconds_per_token(decoder: &Decoder) -> f64 {
    const TOKENS: usize = 24;
    let pages = pages_for(TOKENS + 1);
    let cache = decoder.new_cache(pages, 0).unwrap();
    let tables = vec![(0..pages as u32).collect::<Vec<_>>()];
    let decode = |position: usize| {
        let mut step = Step::default();
        step.push_span(&[(position * 37 % 512) as u32], position, tables.clone(), StateTable::default());
        let hidden = decoder.forward(&step, &cache, &[0]).unwrap();
        decoder.ops().into_vec(decoder.head(&hidden).unwrap()).unwrap()
    };
    decode(0);
    let start = std::time::Instant::now();
    (1..=TOKENS).for_each(|position| drop(decode(position)));
    start.elapsed().as_secs_f64() / TOKENS as f64
}

// --- Weights that stay in the file, and such that nobody needs --------------------------------------------

#[test]
fn per_layer_embeddings_stay_in_the_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/gemma4-ple");
    for form in ["safetensors", "gguf"] {
        let (config, weights) = open(&folder, form).unwrap();
        let ops = Ops::cpu(2, KvType::F32).unwrap();
        let to = Some(WeightType::Q8_0);
        let decoder = Decoder::build(config, &weights, ops, 64, to, &mut || Ok(())).unwrap();
        // 64 tokens, 6 layers of 8 bfloat16 each: neither packed nor quantized.
        assert_eq!(decoder.mapped_bytes(), 64 * 6 * 8 * 2, "{form}");
        let packed = decoder.matrices().filter(|matrix| matrix.name().contains("per_layer"));
        assert!(packed.map(|matrix| matrix.n() * matrix.k()).all(|size| size < 64 * 6 * 8), "{form}");
        // They keep the map alive by themselves.
        drop(weights);
        assert!(run(&decoder, &[3, 60, 7], 2).unwrap().iter().all(|logit| logit.is_finite()), "{form}");
    }
}

#[test]
fn unused_keys_and_values_of_older_files_change_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/gemma4-nested");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let tensors =
        file.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec(), floats(view.data())));
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = tensors.collect();
    // The last of three layers uses keys and values of another.
    let logits = |more: &[(&str, usize)]| {
        let mut tensors = tensors.clone();
        tensors.extend(more.iter().map(|(name, rows)| {
            let name = format!("model.language_model.layers.2.self_attn.{name}.weight");
            (name, vec![*rows, 32], vec![0.5; rows * 32])
        }));
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("model.safetensors"), &tensors);
        let weights = safetensors::open(folder.path()).unwrap();
        let (config, ops) = (config::hf::parse(&text).unwrap(), Ops::cpu(2, KvType::F32).unwrap());
        let decoder = Decoder::build(config, &weights, ops, 64, None, &mut || Ok(()))?;
        run(&decoder, &[3, 40, 7, 11], 2)
    };
    let plain = logits(&[]).unwrap();
    assert_eq!(logits(&[("k_proj", 16), ("v_proj", 16), ("k_norm", 1)]).unwrap(), plain);
    assert!(logits(&[("v_bias", 16)]).unwrap_err().message().contains("v_bias"));
}

// --- Deltas on projections -------------------------------------------------------------------------------

/// A made-up adapter of all rows of a step, so many.
struct Made(usize, Vec<(ProjectionId, LowRank)>);

impl Deltas for Made {
    fn terms(&self, id: ProjectionId, rows: Option<&[u32]>) -> Vec<Term<'_>> {
        let rows = rows.map_or(self.0, <[u32]>::len);
        let own = self.1.iter().filter(|(its, _)| *its == id);
        own.map(|(_, low_rank)| Term { rows: 0..rows, low_rank }).collect()
    }
}

/// The projections of a Llama: part, name.
const PARTS: &[(Part, &str)] = &[
    (Part::Q, "self_attn.q_proj"),
    (Part::K, "self_attn.k_proj"),
    (Part::V, "self_attn.v_proj"),
    (Part::O, "self_attn.o_proj"),
    (Part::Gate, "mlp.gate_proj"),
    (Part::Up, "mlp.up_proj"),
    (Part::Down, "mlp.down_proj"),
];

#[test]
fn a_low_rank_delta_is_the_merged_weight() {
    const RANK: usize = 3;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/llama-gqa-tied");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for ops in [Ops::cpu(2, KvType::F32).unwrap(), candle()] {
        let mut random = Random::new(5);
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file
            .iter()
            .map(|(name, view)| {
                let floats = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                (name.to_string(), view.shape().to_vec(), floats.collect())
            })
            .collect();
        let mut deltas = Vec::new();
        for (name, shape, weight) in &mut tensors {
            let Some((part, _)) = PARTS.iter().find(|(_, its)| name.contains(its)) else { continue };
            let layer = name.split('.').find_map(|word| word.parse().ok()).unwrap();
            let [n, k] = shape[..] else { panic!("{name}") };
            let mut numbers = |count: usize| -> Vec<f32> {
                (0..count).map(|_| random.below(4001) as f32 / 10_000.0 - 0.2).collect()
            };
            let (a, b) = (numbers(RANK * k), numbers(n * RANK));
            for (row, weight) in weight.chunks_exact_mut(k).enumerate() {
                for (column, weight) in weight.iter_mut().enumerate() {
                    *weight += (0..RANK).map(|at| b[row * RANK + at] * a[at * k + column]).sum::<f32>();
                }
            }
            let id = ProjectionId { layer, part: *part };
            deltas.push((id, LowRank::new([n, k], a, &b, None, None, true).unwrap()));
        }
        assert!(deltas.len() >= 2 * PARTS.len(), "{} projections", deltas.len());
        let merged = tempfile::tempdir().unwrap();
        write(&merged.path().join("model.safetensors"), &tensors);
        std::fs::write(merged.path().join("config.json"), &text).unwrap();
        let load = |folder: &Path| {
            let weights = safetensors::open(folder).unwrap();
            let config = config::hf::parse(&text).unwrap();
            let context = config.context;
            Decoder::build(config, &weights, ops.clone(), context, None, &mut || Ok(())).unwrap()
        };
        let (plain, merged) = (load(&folder), load(merged.path()));
        let tokens: Vec<u32> = (0..21).map(|at| at * 7 % 60).collect();
        let all: Vec<u32> = (0..tokens.len() as u32).collect();
        let of = |decoder: &Decoder, rows: &[u32], deltas: Option<&dyn Deltas>| {
            let cache = decoder.new_cache(2, 0).unwrap();
            let mut step = Step::default();
            step.push(&tokens, 0, vec![1, 0]);
            let hidden = decoder.forward_with(&step, &cache, rows, deltas).unwrap();
            decoder.ops().into_vec(decoder.head(&hidden).unwrap()).unwrap()
        };
        let deltas = Made(tokens.len(), deltas);
        let nothing = Made(tokens.len(), Vec::new());
        for rows in [&all[..], &all[20..], &all[3..9]] {
            let (want, got) = (of(&merged, rows, None), of(&plain, rows, Some(&deltas)));
            let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < TOLERANCE, "{ops:?}: differs by {worst:.2e}");
            // Without one the numbers are those of no adapters at all, bit for bit, and it does change them.
            assert_eq!(of(&plain, rows, Some(&nothing)), of(&plain, rows, None), "{ops:?}");
            assert!(of(&plain, rows, None).iter().zip(&got).any(|(a, b)| (a - b).abs() > 0.1), "{ops:?}");
        }
    }
}

fn write(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(.., floats)| floats.iter().flat_map(|it| it.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    ::safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

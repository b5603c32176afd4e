//! Losses and gradients of low-rank factors against torch and peft, on the tiny checkpoints of
//! tests/golden/families; and against themselves in every other way to compute the same.

#[path = "common/mod.rs"]
mod common;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tallow::config;
use tallow::error::ErrorKind;
use tallow::kernels::{KvType, Ops};
use tallow::model::{Decoder, ProjectionId};
use tallow::train::{Example, Gradients, LoraModule, LoraParams, Precision, StepLoss, StepOptions, Trainer};
use tallow::weights::names::Part;
use tallow::weights::safetensors;

/// Of the length of all gradients, and of a loss.
const TOLERANCE: f64 = 1e-5;

/// Of the length of the gradient of one factor. (torch's own float32 is up to 2.5e-5 away from float64.)
const TOLERANCE_OF_ONE: f64 = 3e-5;

struct Golden {
    examples: Vec<Example>,
    losses: Vec<Vec<f32>>,
    params: LoraParams,
    grads: Gradients,
}

fn decoder(name: &str) -> Arc<Decoder> {
    let folder = common::golden("families").join(name);
    let config = config::hf::parse(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let (weights, context) = (safetensors::open(&folder).unwrap(), config.context);
    let ops = Ops::cpu(1, KvType::F32).unwrap();
    Arc::new(Decoder::build(config, &weights, ops, context, None, &mut || Ok(())).unwrap())
}

fn part(name: &str) -> Part {
    match name {
        "q" => Part::Q,
        "k" => Part::K,
        "v" => Part::V,
        "o" => Part::O,
        "gate" => Part::Gate,
        "up" => Part::Up,
        "down" => Part::Down,
        other => panic!("a projection {other:?}"),
    }
}

/// Where a file keeps pairs of a rotation side by side, they are apart in memory: the rows of a factor B of
/// the files in our order.
fn apart(b: &[f32], head_dim: usize, rank: usize) -> Vec<f32> {
    let heads = b.chunks_exact(head_dim * rank).flat_map(|head| {
        let rows = (0..head_dim).step_by(2).chain((1..head_dim).step_by(2));
        rows.flat_map(|row| head[row * rank..][..rank].iter().copied())
    });
    heads.collect()
}

/// Checkpoints that keep them so, and the size of their heads.
const INTERLEAVED: (&str, usize) = ("cohere2-parallel", 16);

fn golden(path: &Path) -> Golden {
    let interleaved = path.file_stem().is_some_and(|name| name == INTERLEAVED.0);
    let bytes = std::fs::read(path).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect()
    };
    let whole = |name: &str| -> Vec<usize> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().chunks_exact(8).map(|it| i64::from_le_bytes(it.try_into().unwrap()) as usize).collect()
    };
    let mut golden = Golden {
        examples: Vec::new(),
        losses: Vec::new(),
        params: LoraParams::default(),
        grads: Gradients::default(),
    };
    for index in (0..).take_while(|index| file.tensor(&format!("ids.{index}")).is_ok()) {
        let ids: Arc<[u32]> = whole(&format!("ids.{index}")).into_iter().map(|id| id as u32).collect();
        let targets = whole(&format!("targets.{index}")).into_iter().map(|at| at..at + 1).collect();
        golden.examples.push(Example { ids, targets });
        golden.losses.push(floats(&format!("losses.{index}")));
    }
    let mut names: Vec<&str> = file.names().into_iter().filter_map(|name| name.strip_suffix(".da")).collect();
    names.sort_unstable();
    for name in names {
        let (layer, of) = name.split_once('.').unwrap();
        let shape = |what: &str| file.tensor(&format!("{name}.{what}")).unwrap().shape().to_vec();
        let (a, b) = (shape("a"), shape("b"));
        let b_rows = |what: &str| match part(of) {
            Part::Q | Part::K if interleaved => apart(&floats(what), INTERLEAVED.1, b[1]),
            _ => floats(what),
        };
        golden.params.modules.push(LoraModule {
            id: ProjectionId { layer: layer.parse().unwrap(), part: part(of) },
            inputs: a[1],
            outputs: b[0],
            rank: a[0],
            scale: 1.5,
            a: floats(&format!("{name}.a")),
            b: b_rows(&format!("{name}.b")),
        });
        golden.grads.modules.push((floats(&format!("{name}.da")), b_rows(&format!("{name}.db"))));
    }
    golden
}

fn goldens() -> Vec<(String, Golden)> {
    let files = common::golden("training").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> =
        files.map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), golden(&path))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn options(precision: Precision) -> StepOptions {
    StepOptions { threads: 2, precision, train_memory: None }
}

fn step(trainer: &mut Trainer, params: &LoraParams, examples: &[Example]) -> (StepLoss, Gradients) {
    let mut grads = Gradients::zeros(params);
    let loss = trainer.forward_backward(params, examples, 1.0, &mut grads, &|| false).unwrap();
    (loss, grads)
}

/// The distance of two vectors, by the length of the second.
fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |x: f64| x * x;
    let off: f64 = found.iter().zip(wanted).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = wanted.iter().map(|b| square(f64::from(*b))).sum();
    (off / all.max(1e-30)).sqrt()
}

fn flat(grads: &Gradients) -> Vec<f32> {
    grads.modules.iter().flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}

/// The worst of the losses, and of the gradients with its name.
fn compared(golden: &Golden, loss: &StepLoss, grads: &Gradients) -> (f64, f64, String) {
    let losses = loss.losses.iter().flatten().zip(golden.losses.iter().flatten());
    let worst = losses.map(|(a, b)| f64::from((a - b).abs() / b.max(1.0))).fold(0.0, f64::max);
    let mut off = (0.0, String::new());
    for ((module, found), wanted) in
        golden.params.modules.iter().zip(&grads.modules).zip(&golden.grads.modules)
    {
        for (of, found, wanted) in [("a", &found.0, &wanted.0), ("b", &found.1, &wanted.1)] {
            let distance = distance(found, wanted);
            if distance > off.0 || distance.is_nan() {
                off = (distance, format!("{:?} {of}", module.id));
            }
        }
    }
    (worst, off.0, off.1)
}

#[test]
fn every_family_has_the_gradients_of_torch() {
    let (mut failures, mut count) = (Vec::new(), 0);
    for (name, golden) in goldens() {
        let mut trainer = Trainer::new(decoder(&name), &options(Precision::Float32)).unwrap();
        let (loss, grads) = step(&mut trainer, &golden.params, &golden.examples);
        let (off, worst, place) = compared(&golden, &loss, &grads);
        let all = distance(&flat(&grads), &flat(&golden.grads));
        println!("{name}: losses {off:.1e}, gradients {all:.1e}, worst {worst:.1e} ({place})");
        let counts: Vec<_> = loss.losses.iter().map(Vec::len).collect();
        assert_eq!(counts, golden.losses.iter().map(Vec::len).collect::<Vec<_>>());
        if !(off < TOLERANCE && all < TOLERANCE && worst < TOLERANCE_OF_ONE) {
            failures.push(format!("{name}: losses {off:.1e}, gradients {all:.1e}, {worst:.1e} ({place})"));
        }
        let alone = trainer.evaluate(&golden.params, &golden.examples, &|| false).unwrap();
        assert_eq!(alone, loss, "{name}: the loss alone is another");
        count += 1;
    }
    assert!(failures.is_empty() && count >= 18, "{} of {count}:\n{}", failures.len(), failures.join("\n"));
}

/// The fast way is near: 8-bit activations of tiny random models are its worst case.
#[test]
fn the_fast_way_is_near() {
    for (name, golden) in goldens() {
        let mut trainer = Trainer::new(decoder(&name), &options(Precision::BFloat16)).unwrap();
        let (loss, grads) = step(&mut trainer, &golden.params, &golden.examples);
        let wanted = flat(&golden.grads);
        let worst = distance(&flat(&grads), &wanted);
        println!("{name}: gradients {worst:.1e}");
        assert!(worst < 0.05, "{name}: {worst}");
        let sum: f32 = golden.losses.iter().flatten().sum();
        assert!((loss.sum - f64::from(sum)).abs() < 1e-3 * f64::from(sum), "{name}: {}", loss.sum);
    }
}

#[test]
fn what_texts_share_is_the_sum_of_each_alone() {
    for (name, golden) in goldens() {
        let mut trainer = Trainer::new(decoder(&name), &options(Precision::Float32)).unwrap();
        let (together, shared) = step(&mut trainer, &golden.params, &golden.examples);
        let mut sum = Gradients::zeros(&golden.params);
        let mut computed = 0;
        for (example, losses) in golden.examples.iter().zip(&together.losses) {
            let one = std::slice::from_ref(example);
            let alone = trainer.forward_backward(&golden.params, one, 1.0, &mut sum, &|| false).unwrap();
            computed += alone.tokens_computed;
            assert!(distance(&alone.losses[0], losses) < 1e-6, "{name}");
        }
        assert!(together.tokens_computed * 4 < computed * 3, "{name}: nothing was shared");
        let worst = distance(&flat(&shared), &flat(&sum));
        assert!(worst < 1e-6, "{name}: {worst:.1e}");
    }
}

/// Kept or computed again, on one thread or three, the first time or the second: the same bits.
#[test]
fn memory_and_threads_change_no_bit() {
    for (name, golden) in goldens() {
        let decoder = decoder(&name);
        let mut all = Vec::new();
        for (threads, train_memory) in [(1, None), (3, None), (2, Some(0)), (3, Some(40_000))] {
            let options = StepOptions { threads, precision: Precision::BFloat16, train_memory };
            let mut trainer = Trainer::new(decoder.clone(), &options).unwrap();
            all.push(step(&mut trainer, &golden.params, &golden.examples));
            all.push(step(&mut trainer, &golden.params, &golden.examples));
        }
        assert!(all.iter().all(|it| *it == all[0]), "{name}");
    }
}

#[test]
fn only_what_is_trained_counts() {
    let (name, golden) = goldens().swap_remove(0);
    let mut trainer = Trainer::new(decoder(&name), &options(Precision::Float32)).unwrap();
    let wanted = step(&mut trainer, &golden.params, &golden.examples);
    // Tokens behind the last trained one, and another order of the texts.
    let mut examples = golden.examples.clone();
    for example in &mut examples {
        example.ids = example.ids.iter().copied().chain([5, 6]).collect();
    }
    let (loss, grads) = step(&mut trainer, &golden.params, &examples);
    assert_eq!((loss.losses, grads), (wanted.0.losses.clone(), wanted.1.clone()));
    examples.reverse();
    let (loss, _) = step(&mut trainer, &golden.params, &examples);
    assert_eq!(loss.losses.into_iter().rev().collect::<Vec<_>>(), wanted.0.losses);
    // The weight is a factor, and gradients are added.
    let mut grads = wanted.1.clone();
    trainer.forward_backward(&golden.params, &golden.examples, -1.0, &mut grads, &|| false).unwrap();
    assert!(flat(&grads).iter().all(|it| it.abs() < 1e-4));
    // Nothing is trained: nothing is computed.
    let none = Example { ids: golden.examples[0].ids.clone(), targets: Vec::<Range<usize>>::new() };
    let (loss, grads) = step(&mut trainer, &golden.params, &[none]);
    assert_eq!((loss.tokens_computed, loss.sum), (0, 0.0));
    assert!(flat(&grads).iter().all(|it| *it == 0.0));
}

#[test]
fn a_part_of_the_layers_can_be_trained() {
    let (name, golden) = goldens().swap_remove(0);
    let mut trainer = Trainer::new(decoder(&name), &options(Precision::Float32)).unwrap();
    let (_, all) = step(&mut trainer, &golden.params, &golden.examples);
    // Factors elsewhere have a B of zeros: they change nothing.
    let mut still = golden.params.clone();
    let is_trained = |id: ProjectionId| id.layer == 1 && matches!(id.part, Part::V | Part::Down);
    for module in still.modules.iter_mut().filter(|module| !is_trained(module.id)) {
        module.b.fill(0.0);
    }
    let (loss, wanted) = step(&mut trainer, &still, &golden.examples);
    assert_ne!(wanted, all);
    let modules = still.modules.iter().filter(|module| is_trained(module.id)).cloned().collect();
    let (some, grads) = step(&mut trainer, &LoraParams { modules }, &golden.examples);
    let kept = still.modules.iter().zip(wanted.modules).filter(|(module, _)| is_trained(module.id));
    assert!(distance(&flat(&grads), &flat(&Gradients { modules: kept.map(|(_, it)| it).collect() })) < 1e-6);
    assert!((some.sum - loss.sum).abs() < 1e-6);
}

#[test]
fn what_has_no_gradient_is_refused_by_name() {
    let refusals = [
        ("mixtral-top2", "experts"),
        ("lfm2-classic", "short convolutions"),
        ("glm4lite-latent", "latent attention"),
        ("nemotronh-dense", "recurrent"),
        ("gptoss-bf16", "sinks"),
        ("gemma4-ple", "layer"),
        ("laguna-heads", "gate"),
    ];
    for (name, word) in refusals {
        let error = Trainer::new(decoder(name), &options(Precision::BFloat16)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedModel, "{name}");
        assert!(error.message().contains(word), "{name}: {error}");
    }
    let (name, golden) = goldens().swap_remove(0);
    let mut trainer = Trainer::new(decoder(&name), &options(Precision::BFloat16)).unwrap();
    let mut params = golden.params.clone();
    params.modules[0].id.layer = 7;
    let mut grads = Gradients::zeros(&params);
    let found = trainer.forward_backward(&params, &golden.examples, 1.0, &mut grads, &|| false);
    assert_eq!(found.unwrap_err().kind(), ErrorKind::InvalidRequest);
    let found = trainer.forward_backward(&golden.params, &golden.examples, 1.0, &mut grads, &|| true);
    assert_eq!(found.unwrap_err().kind(), ErrorKind::Cancelled);
}

//! Runs of training over a step whose gradients are known, the optimizer against torch, and twenty steps against
//! peft.

#![allow(clippy::single_range_in_vec_init)] // an example may have one range of targets

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tallow::model::ProjectionId;
use tallow::train::optimizer::{AdamW, clip};
use tallow::train::{
    Compute, Decay, Event, Example, Gradients, Job, LoraModule, LoraParams, Progress, StepLoss, TrainOptions,
    Trained, Training,
};
use tallow::weights::names::Part;
use tallow::{Error, ErrorKind, Result};

const PATIENCE: Duration = Duration::from_secs(60);

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Half of the numbers are A's and half are B's.
fn module(values: &[f32]) -> LoraModule {
    let (a, b) = values.split_at(values.len() / 2);
    let id = ProjectionId { layer: 0, part: Part::Q };
    LoraModule { id, inputs: a.len(), outputs: b.len(), rank: 1, scale: 1.0, a: a.to_vec(), b: b.to_vec() }
}

#[test]
fn the_optimizer_is_torchs() {
    let text = std::fs::read_to_string("tests/golden/train/adamw.json").unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    for (number, case) in golden["cases"].as_array().unwrap().iter().enumerate() {
        let mut params = LoraParams { modules: vec![module(&floats(&case["params"]))] };
        let mut adam = AdamW::new(&params, case["weight_decay"].as_f64().unwrap());
        for (at, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let of = module(&floats(&step["gradient"]));
            let mut gradients = Gradients { modules: vec![(of.a, of.b)] };
            let norm = clip(&mut gradients, case["max_norm"].as_f64().unwrap());
            let wanted = step["norm"].as_f64().unwrap();
            assert!((norm / wanted - 1.0).abs() < 1e-6, "case {number}, step {at}: {norm}, torch {wanted}");
            adam.step(&mut params, &gradients, step["rate"].as_f64().unwrap());
            let found = [params.modules[0].a.clone(), params.modules[0].b.clone()].concat();
            for (found, wanted) in found.iter().zip(floats(&step["params"])) {
                let off = (found - wanted).abs() / wanted.abs().max(0.1);
                assert!(off < 2e-6, "case {number}, step {at}: {found}, torch {wanted}");
            }
        }
    }
}

/// A step whose loss is known: each trained token `id` pulls the number `id` of A and B towards 1, and the
/// loss is the square of what is missing.
#[derive(Clone, Default)]
struct Pull {
    /// Every step takes this long.
    delay: Duration,
    /// The loss is NaN from this step on.
    nan_from: Option<usize>,
    /// Held-out rows seem worse with each look.
    worse: bool,
    steps: Arc<AtomicUsize>,
    looks: Arc<AtomicUsize>,
}

const SIZE: usize = 8;

impl Pull {
    fn losses(&self, params: &LoraParams, example: &Example) -> Vec<(usize, f32)> {
        let module = &params.modules[0];
        let ids = example.targets.iter().cloned().flat_map(|range| &example.ids[range]);
        let miss = |id: &u32| {
            let at = *id as usize % SIZE;
            (at, 2.0 - module.a[at] - module.b[at])
        };
        ids.map(miss).collect()
    }

    fn summed(&self, params: &LoraParams, examples: &[Example]) -> StepLoss {
        let mut loss = StepLoss::default();
        for example in examples {
            let losses: Vec<f32> = self.losses(params, example).iter().map(|(_, miss)| miss * miss).collect();
            loss.sum += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            loss.tokens += losses.len();
            loss.tokens_seen += example.ids.len();
            loss.losses.push(losses);
        }
        loss
    }
}

impl Compute for Pull {
    fn forward_backward(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        weight: f32,
        gradients: &mut Gradients,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        std::thread::sleep(self.delay);
        if cancelled() {
            return Err(Error::cancelled("the training was cancelled"));
        }
        let (a, b) = &mut gradients.modules[0];
        for example in examples {
            for (at, miss) in self.losses(params, example) {
                a[at] -= 2.0 * miss * weight;
                b[at] -= 2.0 * miss * weight;
            }
        }
        let mut loss = self.summed(params, examples);
        if self.nan_from.is_some_and(|from| self.steps.load(Ordering::Relaxed) >= from) {
            loss.sum = f64::NAN;
        }
        self.steps.fetch_add(1, Ordering::Relaxed);
        Ok(loss)
    }

    fn evaluate(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        _: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        let mut loss = self.summed(params, examples);
        if self.worse {
            loss.sum = self.looks.fetch_add(1, Ordering::Relaxed) as f64;
        }
        Ok(loss)
    }
}

/// Rows of 4 tokens, of which the last two are trained.
fn rows(count: usize) -> Vec<Example> {
    let row = |at: usize| {
        let ids = [9, at as u32 % 3, at as u32 % 5, at as u32 % 7];
        Example { ids: ids.into(), targets: vec![2..4] }
    };
    (0..count).map(row).collect()
}

/// An adapter that is one file, for the runs here.
fn write_adapter(folder: &Path, params: &LoraParams) -> Result<()> {
    let text = format!("{:?}", params.modules[0].a);
    std::fs::write(folder.join("adapter.txt"), text).map_err(|error| Error::model_file(error.to_string()))
}

fn job(examples: Vec<Example>, options: TrainOptions) -> Job {
    // Of no other test.
    static KEY: AtomicUsize = AtomicUsize::new(1);
    let key = KEY.fetch_add(1, Ordering::Relaxed);
    let trainable = vec![(ProjectionId { layer: 0, part: Part::Q }, SIZE, SIZE)];
    let model = "pull".to_string();
    let write_adapter = Box::new(write_adapter);
    Job { examples, options, model, trainable, parameters: 1, vocabulary: 10, key, write_adapter }
}

fn start(pull: &Pull, job: Job) -> Result<Training> {
    let pull = pull.clone();
    Training::start(job, Box::new(move || Ok(Box::new(pull) as Box<dyn Compute>)), Box::new(|| false))
}

fn options() -> TrainOptions {
    TrainOptions { rank: 1, alpha: 1.0, learning_rate: Some(0.05), ..TrainOptions::default() }
}

/// All events, and the end.
fn whole(training: &Training) -> (Vec<Progress>, Result<Arc<Trained>>) {
    let mut steps = Vec::new();
    loop {
        match training.poll(PATIENCE).unwrap().expect("the run has stopped") {
            Event::Step(step) => steps.push(step),
            Event::Finished(result) => return (steps, result),
        }
    }
}

fn run(pull: &Pull, count: usize, options: TrainOptions) -> (Vec<Progress>, Result<Arc<Trained>>) {
    whole(&start(pull, job(rows(count), options)).unwrap())
}

#[test]
fn a_run_tells_of_each_step_and_learns() {
    let (steps, result) =
        run(&Pull::default(), 60, TrainOptions { epochs: 5, learning_rate: Some(0.03), ..options() });
    let trained = result.unwrap();
    // 54 rows are trained on, 7 steps an epoch.
    assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), (1..=35).collect::<Vec<_>>());
    assert!(steps.iter().all(|step| step.steps == 35 && step.grad_norm > 0.0 && step.rows_per_second > 0.0));
    let looks: Vec<usize> =
        steps.iter().filter(|step| step.eval_loss.is_some()).map(|step| step.step).collect();
    assert_eq!(looks[..4], [3, 5, 7, 10], "three looks an epoch");
    assert!(steps[0].loss > 1.0 && steps[34].loss < 0.5 * steps[0].loss, "{:?}", steps[34]);
    assert_eq!(trained.steps, 35);
    assert!(trained.eval_loss.unwrap() < 0.6 * steps[0].loss);
    let rates: Vec<f64> = steps.iter().map(|step| step.learning_rate).collect();
    assert!((rates[0] - 0.0075).abs() < 1e-9 && (rates[3] - 0.03).abs() < 1e-9);
    assert!((rates[34] - 0.03 / 31.0).abs() < 1e-9);
    assert!((steps[6].epoch - 1.0).abs() < 1e-9 && steps[34].eta == 0.0);
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let of =
        |seed: u64| run(&Pull::default(), 20, TrainOptions { seed, ..options() }).1.unwrap().params.clone();
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_not_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = options();
    let wanted = TrainOptions { epochs: 4, batch: 3, ..wanted };
    let (all, whole_run) = run(&Pull::default(), 55, wanted.clone());
    let output = folder.path().join("out");
    let interrupted = TrainOptions { output: Some(output.clone()), ..wanted.clone() };
    for nan_from in [1, 8, 15, 40] {
        let _ = std::fs::remove_dir_all(&output);
        let pull = Pull { nan_from: Some(nan_from), ..Pull::default() };
        let (first, failed) = run(&pull, 55, interrupted.clone());
        assert_eq!(first.len(), nan_from, "a step of NaN is not told");
        let error = failed.unwrap_err();
        assert!(error.message().contains("the loss of step") && error.message().contains("NaN"), "{error}");
        let resumed = TrainOptions { resume: Some(output.clone()), ..wanted.clone() };
        let (rest, result) = run(&Pull::default(), 55, resumed.clone());
        if nan_from == 1 {
            let error = result.unwrap_err();
            assert!(error.message().contains("no checkpoint"), "{error}");
            continue;
        }
        assert!(error.message().contains("the last good checkpoint is"), "{error}");
        let (trained, wanted) = (result.unwrap(), whole_run.as_ref().unwrap());
        assert_eq!(trained.params, wanted.params, "after {nan_from}");
        assert_eq!((trained.eval_loss, trained.best_step), (wanted.eval_loss, wanted.best_step));
        let losses = |steps: &[Progress]| {
            steps.iter().map(|step| (step.step, step.loss.to_bits())).collect::<Vec<_>>()
        };
        assert_eq!(losses(&rest), losses(&all)[all.len() - rest.len()..]);
        // What has ended stays as it is.
        let (none, again) = run(&Pull::default(), 55, resumed);
        assert!(none.is_empty());
        assert_eq!(again.unwrap().params, wanted.params);
        let names: Vec<String> = std::fs::read_dir(&output)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 2, "one checkpoint and the adapter: {names:?}");
    }
}

#[test]
fn what_is_not_as_it_was_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let first = TrainOptions { output: Some(output.clone()), ..options() };
    run(&Pull::default(), 20, first.clone()).1.unwrap();
    let resumed = TrainOptions { resume: Some(output.clone()), output: None, ..first };
    type Change = fn(&mut TrainOptions);
    let table: [(&str, Change); 6] = [
        ("seed was 0", |o| o.seed = 1),
        ("batch was 8", |o| o.batch = 4),
        ("learning_rate was 0.05", |o| o.learning_rate = Some(0.1)),
        ("alpha was 1.0", |o| o.alpha = 2.0),
        ("epochs was 3", |o| o.epochs = 5),
        ("warmup was (0.1, Linear)", |o| o.schedule = Decay::Constant),
    ];
    for (words, change) in table {
        let mut options = resumed.clone();
        change(&mut options);
        let error = run(&Pull::default(), 20, options).1.unwrap_err();
        assert!(error.message().contains(words), "{words}: {error}");
    }
    let error = run(&Pull::default(), 19, resumed.clone()).1.unwrap_err();
    assert!(error.message().contains("rows was"), "{error}");
    // Damage of each file is named.
    let checkpoint = output.join("checkpoint-9");
    for file in ["training.safetensors", "state.json"] {
        let path = checkpoint.join(file);
        let good = std::fs::read(&path).unwrap();
        for bad in [&good[..good.len() / 2], b"", b"hello"] {
            std::fs::write(&path, bad).unwrap();
            let error = run(&Pull::default(), 20, resumed.clone()).1.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ModelFile, "{file}: {error}");
            assert!(error.message().contains("checkpoint-9"), "{error}");
        }
        std::fs::write(&path, good).unwrap();
    }
    run(&Pull::default(), 20, resumed).1.unwrap();
}

#[test]
fn a_run_without_a_gain_ends_early_with_its_best() {
    let pull = Pull { worse: true, ..Pull::default() };
    // The schedule of a run depends on all its steps, so only a constant one is the same in a shorter run.
    let options = TrainOptions { epochs: 20, schedule: Decay::Constant, warmup: 0.0, ..options() };
    let (steps, result) = run(&pull, 60, options.clone());
    let trained = result.unwrap();
    assert_eq!((steps.len(), trained.steps, trained.best_step), (10, 10, 3));
    assert_eq!(trained.eval_loss, Some(0.0));
    let notes = trained.notes.join("; ");
    assert!(notes.contains("ended after 10 of 140 steps") && notes.contains("of step 3"), "{notes}");
    let short = run(&Pull::default(), 60, TrainOptions { max_steps: Some(3), ..options });
    assert_eq!(short.1.unwrap().params, trained.params, "these are the factors of step 3");
}

#[test]
fn a_run_is_cancelled_within_a_second() {
    let pull = Pull { delay: Duration::from_millis(10), ..Pull::default() };
    let training = start(&pull, job(rows(60), TrainOptions { epochs: 1000, ..options() })).unwrap();
    assert!(matches!(training.poll(PATIENCE).unwrap(), Some(Event::Step(_))));
    let began = Instant::now();
    training.cancel();
    let (_, result) = whole(&training);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(training.is_finished());
}

#[test]
fn runs_of_one_model_take_turns_and_go_on_unread() {
    let pull = Pull { delay: Duration::from_millis(2), ..Pull::default() };
    let first = start(&pull, Job { key: 1 << 40, ..job(rows(20), options()) }).unwrap();
    let second = start(&pull, Job { key: 1 << 40, ..job(rows(20), options()) }).unwrap();
    drop(first);
    assert!(matches!(second.poll(PATIENCE).unwrap(), Some(Event::Step(_))));
    assert!(pull.steps.load(Ordering::Relaxed) > 9, "the second began before the first had ended");
    whole(&second).1.unwrap();
    assert_eq!(pull.steps.load(Ordering::Relaxed), 18);
}

#[test]
fn a_panic_is_an_error_and_the_next_run_goes_on() {
    let broken = || -> Result<Box<dyn Compute>> { panic!("on purpose") };
    let training = Training::start(
        Job { key: 1 << 41, ..job(rows(3), options()) },
        Box::new(broken),
        Box::new(|| false),
    )
    .unwrap();
    let error = whole(&training).1.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Internal, "on purpose"));
    let next = start(&Pull::default(), Job { key: 1 << 41, ..job(rows(3), options()) }).unwrap();
    whole(&next).1.unwrap();
}

#[test]
fn requests_go_first() {
    // Somebody else is busy all the time: the run gets a quarter of it.
    let pull = Pull { delay: Duration::from_millis(5), ..Pull::default() };
    let its_own = pull.clone();
    let make = Box::new(move || Ok(Box::new(its_own) as Box<dyn Compute>));
    let began = Instant::now();
    let training = Training::start(job(rows(20), options()), make, Box::new(|| true)).unwrap();
    whole(&training).1.unwrap();
    let busy = Duration::from_millis(5) * 9;
    assert!(began.elapsed() > 3 * busy, "{:?}", began.elapsed());
}

#[test]
fn rows_that_cannot_be_trained_are_refused() {
    let of =
        |ids: &[u32], targets: &[Range<usize>]| vec![Example { ids: ids.into(), targets: targets.to_vec() }];
    for (examples, words) in [
        (vec![], "there are no rows"),
        (of(&[1, 2], &[]), "row 0 has no tokens to train on"),
        (of(&[1, 10], &[1..2]), "the vocabulary has no token 10"),
        (of(&[1, 2], &[0..1]), "0..1 is no range"),
        (of(&[1, 2], &[1..3]), "1..3 is no range"),
        (of(&[1, 2, 3], &[2..3, 1..2]), "1..2 is no range"),
    ] {
        let error = start(&Pull::default(), job(examples, options())).err().unwrap();
        assert!(error.message().contains(words), "{words}: {error}");
    }
}

/// The model, rows and factors of `tests/golden/train/steps.safetensors`.
mod steps {
    use std::sync::Arc;

    use tallow::config;
    use tallow::kernels::{KvType, Ops};
    use tallow::model::{Decoder, ProjectionId};
    use tallow::train::optimizer::{AdamW, clip};
    use tallow::train::schedule::Schedule;
    use tallow::train::{Decay, Example, Gradients, LoraModule, LoraParams, Precision, StepOptions, Trainer};
    use tallow::weights::{Weights, names::Part, safetensors};

    const PARTS: [(&str, Part); 7] = [
        ("q", Part::Q),
        ("k", Part::K),
        ("v", Part::V),
        ("o", Part::O),
        ("gate", Part::Gate),
        ("up", Part::Up),
        ("down", Part::Down),
    ];
    const SCALE: f32 = 2.0;

    fn decoder() -> Arc<Decoder> {
        let folder = std::path::Path::new("tests/golden/families/llama-gqa-tied");
        let config =
            config::hf::parse(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let (weights, context) = (safetensors::open(folder).unwrap(), config.context);
        let ops = Ops::cpu(1, KvType::F32).unwrap();
        Arc::new(Decoder::build(config, &weights, ops, context, None, &mut || Ok(())).unwrap())
    }

    fn floats(golden: &Weights, name: &str) -> Vec<f32> {
        golden.get(name).unwrap().to_f32()
    }

    /// Integers and their shape.
    fn integers(golden: &Weights, name: &str) -> (Vec<usize>, Vec<usize>) {
        let (shape, bytes) = golden.bytes(name).unwrap();
        let number = |word: &[u8]| i64::from_le_bytes(word.try_into().unwrap()) as usize;
        (bytes.chunks_exact(8).map(number).collect(), shape.to_vec())
    }

    fn params(golden: &Weights) -> LoraParams {
        let of_layer =
            |layer| PARTS.map(|(name, part)| (ProjectionId { layer, part }, format!("{layer}.{name}")));
        let module = |(id, name): (ProjectionId, String)| {
            let shape = |what: &str| golden.shape(&format!("{name}.{what}")).unwrap().to_vec();
            let (a, b) = (shape("a0"), shape("b"));
            LoraModule {
                id,
                inputs: a[1],
                outputs: b[0],
                rank: a[0],
                scale: SCALE,
                a: floats(golden, &format!("{name}.a0")),
                b: vec![0.0; b[0] * b[1]],
            }
        };
        LoraParams { modules: (0..2).flat_map(of_layer).map(module).collect() }
    }

    /// Of each step its rows.
    fn batches(golden: &Weights) -> Vec<Vec<Example>> {
        let ((ids, shape), (begins, _)) = (integers(golden, "ids"), integers(golden, "targets"));
        let tokens = shape[2];
        let row = |(ids, begin): (&[usize], &usize)| Example {
            ids: ids.iter().map(|id| *id as u32).collect(),
            targets: vec![*begin..tokens],
        };
        let rows: Vec<Example> = ids.chunks(tokens).zip(&begins).map(row).collect();
        rows.chunks(shape[1]).map(<[Example]>::to_vec).collect()
    }

    /// How far `found` is from `wanted`, as a share of its length.
    fn distance(found: &[f32], wanted: &[f32]) -> f64 {
        let length = |values: &mut dyn Iterator<Item = f64>| values.map(|it| it * it).sum::<f64>().sqrt();
        let off = length(&mut found.iter().zip(wanted).map(|(a, b)| f64::from(a - b)));
        off / length(&mut wanted.iter().map(|it| f64::from(*it)))
    }

    #[test]
    fn twenty_steps_are_pefts() {
        let golden = safetensors::open(std::path::Path::new("tests/golden/train/steps.safetensors")).unwrap();
        let options = StepOptions { threads: 1, precision: Precision::Float32, train_memory: None };
        let mut trainer = Trainer::new(decoder(), &options).unwrap();
        let mut params = params(&golden);
        let (mut adam, mut gradients) = (AdamW::new(&params, 0.0), Gradients::zeros(&params));
        let batches = batches(&golden);
        let schedule = Schedule::new(Decay::Linear, 0.0, batches.len());
        for (step, (rows, wanted)) in batches.iter().zip(floats(&golden, "losses")).enumerate() {
            let tokens: usize = rows.iter().flat_map(|row| &row.targets).map(ExactSizeIterator::len).sum();
            gradients.clear();
            let weight = 1.0 / tokens as f32;
            let loss = trainer.forward_backward(&params, rows, weight, &mut gradients, &|| false).unwrap();
            let (found, wanted) = (loss.sum / tokens as f64, f64::from(wanted));
            let most = if step < 5 { 1e-4 } else { 1e-3 };
            assert!((found - wanted).abs() < most, "step {step}: loss {found}, peft {wanted}");
            clip(&mut gradients, 1.0);
            adam.step(&mut params, &gradients, 1e-2 * schedule.factor(step));
        }
        for module in &params.modules {
            let name = PARTS.iter().find(|(_, part)| *part == module.id.part).unwrap().0;
            let name = format!("{}.{name}", module.id.layer);
            for (what, found) in [("a", &module.a), ("b", &module.b)] {
                let off = distance(found, &floats(&golden, &format!("{name}.{what}")));
                assert!(off < 1e-3, "{name}.{what} is {off} off peft's");
            }
        }
    }
}

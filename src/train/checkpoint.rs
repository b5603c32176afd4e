//! What a run needs to go on after its process has ended: a folder that appears whole, or not at all.
//!
//! `checkpoint-12` holds an adapter that can be loaded like any other, and beside it `training.safetensors`
//! (the factors as they are, the optimizer's means, and the best factors so far) and `state.json`. The newest
//! one is kept; it replaces the one before it only when it stands.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::optimizer::AdamW;
use super::options::TrainOptions;
use super::params::LoraParams;
use super::step::Example;
use crate::error::{Error, Result};
use crate::small_file::{self, staged};
use crate::weights::{WeightTensor, safetensors as files};

const FORMAT: &str = "tallow-training-1";
const STATE: &str = "state.json";
const TENSORS: &str = "training.safetensors";
const PREFIX: &str = "checkpoint-";
const STATE_LIMIT: u64 = 1 << 20;

/// What a run is made of beside its numbers; a run goes on only where all of it is the same.
pub type Identity = Map<String, Value>;

/// Where a run stands.
#[derive(Clone, Debug)]
pub struct State {
    /// Steps that are done.
    pub done: usize,
    pub params: LoraParams,
    pub adam: AdamW,
    pub best: Option<Best>,
    /// Looks at the held-out rows since the best.
    pub stale: usize,
    /// Why it ended, if it has.
    pub ended: Option<String>,
}

/// The factors that were best on the rows that are held out.
#[derive(Clone, Debug)]
pub struct Best {
    pub loss: f64,
    pub done: usize,
    pub params: LoraParams,
}

impl State {
    pub fn new(params: LoraParams, weight_decay: f64) -> State {
        let adam = AdamW::new(&params, weight_decay);
        State { done: 0, params, adam, best: None, stale: 0, ended: None }
    }

    /// The factors that the run would end with now.
    pub fn result(&self) -> &LoraParams {
        self.best.as_ref().map_or(&self.params, |best| &best.params)
    }
}

/// `state.json`. Numbers that must come back bit by bit are texts.
#[derive(Serialize, Deserialize)]
struct Written {
    format: String,
    done: usize,
    best_done: Option<usize>,
    best_loss: Option<String>,
    stale: usize,
    ended: Option<String>,
    identity: Identity,
}

/// All that decides the numbers of a run: the options, the model, the rows.
pub fn identity(options: &TrainOptions, rate: f64, model: &str, examples: &[Example]) -> Identity {
    let text = |value: &dyn std::fmt::Debug| Value::String(format!("{value:?}"));
    let TrainOptions { rank, alpha, targets, epochs, batch, eval, seed, .. } = options;
    let TrainOptions { precision, max_steps, warmup, schedule, weight_decay, max_grad_norm, .. } = options;
    let entries: [(&str, Value); 15] = [
        ("model", Value::String(model.to_string())),
        ("rows", Value::String(hash(examples))),
        ("rank", text(rank)),
        ("alpha", text(alpha)),
        ("targets", text(targets)),
        ("epochs", text(epochs)),
        ("learning_rate", text(&rate)),
        ("batch", text(batch)),
        ("eval", text(eval)),
        ("seed", text(seed)),
        ("precision", text(precision)),
        ("max_steps", text(max_steps)),
        ("warmup", text(&(warmup, schedule))),
        ("weight_decay", text(weight_decay)),
        ("max_grad_norm", text(max_grad_norm)),
    ];
    entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn hash(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    for Example { ids, targets } in examples {
        hash.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        for range in targets {
            hash.update((range.start as u64).to_le_bytes());
            hash.update((range.end as u64).to_le_bytes());
        }
        hash.update(u64::MAX.to_le_bytes());
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes an adapter into a folder.
pub type WriteAdapter = dyn Fn(&Path, &LoraParams) -> Result<()> + Send;

/// The folder of a run.
pub struct Store<'a> {
    folder: PathBuf,
    identity: Identity,
    write_adapter: &'a WriteAdapter,
}

impl<'a> Store<'a> {
    /// # Errors
    /// `ModelFile` if the folder cannot be made.
    pub fn new(folder: &Path, identity: Identity, write_adapter: &'a WriteAdapter) -> Result<Store<'a>> {
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        Ok(Store { folder: folder.to_path_buf(), identity, write_adapter })
    }

    /// The name of the checkpoint of `done` steps.
    pub fn path(&self, done: usize) -> PathBuf {
        self.folder.join(format!("{PREFIX}{done}"))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest checkpoint there is.
    pub fn newest(&self) -> Option<PathBuf> {
        checkpoints(&self.folder).into_iter().next().map(|(_, path)| path)
    }

    /// Writes a checkpoint, and removes those before it.
    ///
    /// # Errors
    /// `ModelFile` if it cannot be written (no room, say); the one before it then stays.
    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.path(state.done);
        let staged = staged(&path);
        let written = self.write(&staged, state).and_then(|()| {
            // One of the same name is there where a run has gone on from an earlier one.
            let _ = std::fs::remove_dir_all(&path);
            std::fs::rename(&staged, &path).map_err(|error| failed(&path, &error))
        });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&staged);
            return written;
        }
        for (_, other) in checkpoints(&self.folder).into_iter().filter(|(done, _)| *done != state.done) {
            let _ = std::fs::remove_dir_all(other);
        }
        Ok(())
    }

    /// Writes the adapter that the run ends with.
    ///
    /// # Errors
    /// `ModelFile` if it cannot be written.
    pub fn finish(&self, state: &State) -> Result<()> {
        (self.write_adapter)(&self.folder, state.result())
    }

    fn write(&self, folder: &Path, state: &State) -> Result<()> {
        std::fs::create_dir(folder).map_err(|error| failed(folder, &error))?;
        (self.write_adapter)(folder, state.result())?;
        let path = folder.join(TENSORS);
        let floats = |(name, values)| (name, Floats { values, shape: [values.len()] });
        let tensors = safetensors::serialize(state.tensors().into_iter().map(floats), None)
            .map_err(|error| Error::internal("a checkpoint cannot be made").with_source(error))?;
        small_file::write_whole(&path, &tensors).map_err(|error| failed(&path, &error))?;
        let written = Written {
            format: FORMAT.into(),
            done: state.done,
            best_done: state.best.as_ref().map(|best| best.done),
            best_loss: state.best.as_ref().map(|best| format!("{:?}", best.loss)),
            stale: state.stale,
            ended: state.ended.clone(),
            identity: self.identity.clone(),
        };
        let text = serde_json::to_vec_pretty(&written)
            .map_err(|error| Error::internal("a checkpoint cannot be made").with_source(error))?;
        let path = folder.join(STATE);
        small_file::write_whole(&path, &text).map_err(|error| failed(&path, &error))
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    let room = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "; make room, and resume",
        _ => "",
    };
    Error::model_file(format!("{} cannot be written: {error}{room}", path.display()))
}

type Named<'a> = (String, &'a [f32]);

impl State {
    /// All numbers by name.
    fn tensors(&self) -> Vec<Named<'_>> {
        let mut all: Vec<Named> = Vec::new();
        let means = self.adam.means.modules.iter().zip(&self.adam.squares.modules);
        for (at, (module, (mean, square))) in self.params.modules.iter().zip(means).enumerate() {
            let of_module = [
                ("a", &module.a),
                ("b", &module.b),
                ("mean_a", &mean.0),
                ("mean_b", &mean.1),
                ("square_a", &square.0),
                ("square_b", &square.1),
            ];
            all.extend(of_module.map(|(name, values)| (format!("{at}.{name}"), values.as_slice())));
        }
        let best = self.best.iter().flat_map(|best| best.params.modules.iter().enumerate());
        for (at, module) in best {
            all.push((format!("{at}.best_a"), &module.a));
            all.push((format!("{at}.best_b"), &module.b));
        }
        all
    }

    /// Takes the numbers of a checkpoint; `self` is a state of the same shape.
    fn read(&mut self, tensor: &dyn Fn(&str) -> Result<WeightTensor>) -> Result<()> {
        let read = |at: usize, name: &str, to: &mut Vec<f32>| {
            let name = format!("{at}.{name}");
            let found = tensor(&name)?;
            if found.elements() != to.len() {
                return Err(Error::model_file(format!("its tensor {name:?} has another size")));
            }
            *to = found.to_f32();
            Ok(())
        };
        let means = self.adam.means.modules.iter_mut().zip(&mut self.adam.squares.modules);
        for (at, (module, (mean, square))) in self.params.modules.iter_mut().zip(means).enumerate() {
            read(at, "a", &mut module.a)?;
            read(at, "b", &mut module.b)?;
            read(at, "mean_a", &mut mean.0)?;
            read(at, "mean_b", &mut mean.1)?;
            read(at, "square_a", &mut square.0)?;
            read(at, "square_b", &mut square.1)?;
        }
        if let Some(best) = &mut self.best {
            for (at, module) in best.params.modules.iter_mut().enumerate() {
                read(at, "best_a", &mut module.a)?;
                read(at, "best_b", &mut module.b)?;
            }
        }
        Ok(())
    }
}

/// Numbers as safetensors writes them.
struct Floats<'a> {
    values: &'a [f32],
    shape: [usize; 1],
}

impl safetensors::View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// The checkpoints of a folder, newest first.
fn checkpoints(folder: &Path) -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |entry: std::fs::DirEntry| {
        let done = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((done, entry.path()))
    };
    let mut found: Vec<(usize, PathBuf)> = entries.filter_map(number).collect();
    found.sort_by_key(|(done, _)| std::cmp::Reverse(*done));
    found
}

/// The checkpoint that `resume` names: the folder itself, or the newest one in it; and the folder of its run.
fn find(resume: &Path) -> Result<(PathBuf, PathBuf)> {
    if resume.join(STATE).is_file() {
        return Ok((resume.to_path_buf(), resume.parent().unwrap_or(resume).to_path_buf()));
    }
    match checkpoints(resume).into_iter().next() {
        Some((_, path)) => Ok((path, resume.to_path_buf())),
        None => Err(Error::model_file(format!(
            "{}: there is no checkpoint of a training (checkpoint-12, with a {STATE}) to resume from",
            resume.display()
        ))),
    }
}

/// The folder of the run that `resume` names.
///
/// # Errors
/// `ModelFile` if there is none.
pub fn run_folder(resume: &Path) -> Result<PathBuf> {
    find(resume).map(|(_, folder)| folder)
}

/// Goes on where a checkpoint of `resume` stands. `fresh` is the state that a run begins with.
///
/// # Errors
/// `ModelFile` if there is no checkpoint, or it is damaged; `InvalidRequest` naming what is not as it was.
pub fn resume(resume: &Path, identity: &Identity, fresh: State) -> Result<State> {
    let (path, _) = find(resume)?;
    let refuse = |why: &str| Error::model_file(format!("{}: {why}", path.display()));
    let text =
        small_file::read_text(&path.join(STATE), STATE_LIMIT)?.ok_or_else(|| refuse("it has no state"))?;
    let written: Written = serde_json::from_str(&text)
        .map_err(|error| refuse("state.json is damaged, or another program's").with_source(error))?;
    if written.format != FORMAT {
        return Err(refuse("this is not a checkpoint that this version wrote"));
    }
    for (name, value) in identity {
        let was = written.identity.get(name);
        if was != Some(value) {
            let shown =
                |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("nothing").to_string();
            return Err(Error::invalid(format!(
                "resume: {name} was {} in {} and is {} now; resume with the same model, rows and options, or begin anew",
                shown(was),
                path.display(),
                shown(Some(value))
            )));
        }
    }
    let mut state = fresh;
    state.done = written.done;
    state.adam.steps = written.done;
    state.stale = written.stale;
    state.ended = written.ended;
    state.best = match (written.best_loss, written.best_done) {
        (Some(loss), Some(done)) => {
            let loss = loss.parse().map_err(|_| refuse("state.json is damaged"))?;
            Some(Best { loss, done, params: state.params.clone() })
        }
        _ => None,
    };
    let tensors = files::open(&path.join(TENSORS))?;
    state.read(&|name| tensors.get(name)).map_err(|error| error.context(path.display()))?;
    Ok(state)
}

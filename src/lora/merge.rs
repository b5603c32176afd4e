//! A checkpoint of its own out of a base and an adapter: `W + scale B A`, computed in f32, for whoever cannot
//! use an adapter as it is.
//!
//! Every tensor of the base is written, those that change nothing byte by byte. What rounding to the written
//! type takes of each change is measured, for a change that is smaller than the steps of its type is lost:
//! the steps of four bits are many times those of an adapter.

mod change;
mod place;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::change::{Change, Factors, Outputs, Sums, Work, same};
use self::place::{Place, Places};
use super::BoundAdapter;
use crate::config::{Config, json};
use crate::error::{Context, Error, Result};
use crate::hub::{Bar, Progress};
use crate::kernels::LowRank;
use crate::model::Decoder;
use crate::model::projection::ProjectionId;
use crate::small_file::Staged;
use crate::weights::gguf::encoded_pairs;
use crate::weights::names::Part;
use crate::weights::quantize::made;
use crate::weights::write::{self, Planned, StoredType, unwritten};
use crate::weights::{Bytes, Format, WeightTensor, WeightType, Weights, detect};

/// Bytes of one file of safetensors.
const PART: u64 = 4_000_000_000;
/// Bytes that are copied between two looks at whether it is still wanted.
const BLOCK: usize = 1 << 24;
/// The share of a change that rounding may take before a note says so.
const LOST: f64 = 0.1;
/// Tensors that llama.cpp wants as f32.
const EXACT: [&str; 4] = ["ffn_gate_inp", "ssm_conv1d", "shortconv.conv", "norm"];

/// How it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeOptions {
    /// Of matrices. `None`: what changes is float16 where the base is quantized, else as the base has it; and
    /// what does not change stays as it is.
    pub dtype: Option<WeightType>,
    /// `None`: that of the base, which is the only one yet.
    pub format: Option<Format>,
    /// Write less than 8 bits a weight.
    pub force: bool,
}

/// What was written.
#[derive(Debug)]
pub struct MergeReport {
    /// The folder, or the GGUF file.
    pub path: PathBuf,
    pub bytes: u64,
    /// Those that the adapter changes, by name.
    pub tensors: Vec<MergedTensor>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct MergedTensor {
    pub name: String,
    /// How it is stored now.
    pub dtype: String,
    /// The size of the change relative to the base (Frobenius norms).
    pub delta: f64,
    /// The share of the change that rounding took; 1 and more: nothing of it is left.
    pub lost: f64,
}

/// Writes the model of `source`, which `decoder` was loaded from, with the adapter merged into it to `path`:
/// a folder, or, where the base is GGUF, a file. Nothing is overwritten, and what is there appears whole.
///
/// # Errors
/// `InvalidRequest` for a path that is taken and for types that are not written so; `UnsupportedModel` for a
/// base that is not merged into, or changes that it has no place for; `ModelFile` if the base's files have
/// changed, or these cannot be written; `Cancelled` when the progress says so.
pub fn save_merged(
    decoder: &Decoder,
    source: &Path,
    adapter: &BoundAdapter,
    path: &Path,
    options: &MergeOptions,
    progress: &dyn Progress,
) -> Result<MergeReport> {
    let format = detect(source)?;
    check(decoder, path, format, options)?;
    let weights = Weights::open(source)?;
    if let Some(packed) = weights.packed() {
        return Err(Error::unsupported(format!(
            "{}: the checkpoint is quantized in a form that is not merged into ({packed}); merge into the original \
             model, or use the adapter as it is (adapter=)",
            source.display()
        )));
    }
    let plan = Plan::new(decoder, &weights, adapter, format, options)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| unwritten(parent, error))?;
    }
    let staged = Staged::of(path);
    let bar = Bar::start(progress, "merging", Some(plan.bytes()));
    let sums = RefCell::new(HashMap::new());
    let threads = decoder.ops().threads();
    let mut fill = |planned: &Planned, out: &mut dyn Write| {
        let target = &plan.targets[&planned.name];
        let mut put = |bytes: &[u8]| {
            if progress.cancelled() {
                return Err(Error::cancelled("merging was cancelled"));
            }
            bar.advance(bytes.len() as u64);
            out.write_all(bytes)
                .map_err(|error| Error::model_file(format!("cannot be written: {error}")).with_source(error))
        };
        let measured = target.write(&weights, planned, threads, &mut put)?;
        sums.borrow_mut().insert(planned.name.clone(), measured);
        Ok(())
    };
    let planned: Vec<_> = plan.targets.values().map(|target| target.planned.clone()).collect();
    match format {
        Format::Gguf => {
            let pairs = plan.pairs(&Bytes::map_file(source)?).context(source.display())?;
            write::gguf(staged.path(), &pairs, &planned, &mut fill)?;
        }
        Format::Safetensors => {
            fs::create_dir(staged.path()).map_err(|error| unwritten(staged.path(), error))?;
            write::safetensors(staged.path(), &planned, PART, &mut fill)?;
            companions(source, staged.path())?;
            plan.config(&staged.path().join("config.json"))?;
        }
    }
    staged.place(path).map_err(|error| unwritten(path, error))?;
    Ok(plan.report(path, &sums.into_inner()))
}

/// What can be said before anything is read.
fn check(decoder: &Decoder, path: &Path, format: Format, options: &MergeOptions) -> Result<()> {
    if options.format.is_some_and(|wanted| wanted != format) {
        return Err(Error::unsupported(match format {
            Format::Gguf => {
                "the base is a GGUF file, and GGUF is what its merged model is written as; for safetensors, load the \
                 adapter with the base's original folder"
            }
            Format::Safetensors => {
                "the base is safetensors, and so is its merged model; llama.cpp's convert_hf_to_gguf.py makes GGUF \
                 of the folder that is written"
            }
        }));
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match (format, extension) {
        (Format::Gguf, "gguf") => {}
        (Format::Gguf, _) => {
            return Err(Error::invalid(format!(
                "{}: the base is GGUF, so that a file is written; give it a name that ends in .gguf",
                path.display()
            )));
        }
        (Format::Safetensors, "gguf" | "safetensors") => {
            return Err(Error::invalid(format!(
                "{}: the base is safetensors, so that a folder is written; give the name of a folder",
                path.display()
            )));
        }
        (Format::Safetensors, _) => {}
    }
    let free = !path.exists() || path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if !free {
        return Err(Error::invalid(format!(
            "{} is there already, and nothing is overwritten; give another name",
            path.display()
        )));
    }
    if let Some(dtype) = options.dtype.filter(|dtype| dtype.has_integer_codes()) {
        check_quantized(dtype, format, options.force)?;
    }
    match decoder.quantized() {
        0 => Ok(()),
        _ => Err(Error::invalid(
            "the model was loaded with quantize=, and its files hold other weights; load it without to merge",
        )),
    }
}

fn check_quantized(dtype: WeightType, format: Format, force: bool) -> Result<()> {
    if format == Format::Safetensors {
        return Err(Error::invalid(format!(
            "dtype is {dtype}, which safetensors do not hold; use float16, bfloat16 or float32"
        )));
    }
    if !force && 8 * dtype.block_bytes() < 8 * dtype.block_len() {
        return Err(Error::invalid(format!(
            "dtype is {dtype}: rounding to less than 8 bits takes most or all of what an adapter changes (its steps are \
             larger than the changes); use float16 or q8_0, or say force=True and read what was lost"
        )));
    }
    made(dtype, dtype.block_len()).map(|_| ()).ok_or_else(|| Error::internal("a block of its own length"))
}

/// What a tensor of the merged checkpoint is made from.
struct Target<'a> {
    planned: Planned,
    source: String,
    changes: Vec<Change<'a>>,
    /// The type that its numbers are brought to; `None`: its bytes are copied.
    to: Option<WeightType>,
}

impl Target<'_> {
    fn write(
        &self,
        weights: &Weights,
        planned: &Planned,
        threads: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Sums> {
        match self.to {
            None => {
                let (_, _, bytes) = weights.as_stored(&self.source)?;
                bytes.chunks(BLOCK).try_for_each(put)?;
                Ok(Sums::default())
            }
            Some(to) => {
                let tensor = weights.get(&self.source)?;
                let work = Work { tensor: &tensor, width: width(&planned.shape), changes: &self.changes, to };
                work.run(threads, put)
            }
        }
    }
}

/// Numbers of a row; those of a vector stand for themselves.
fn width(shape: &[usize]) -> usize {
    match shape {
        [] | [_] => 1,
        [.., width] => *width,
    }
}

struct Plan<'a> {
    targets: BTreeMap<String, Target<'a>>,
    format: Format,
    options: &'a MergeOptions,
    /// The head is no longer the embedding.
    untied: bool,
}

impl<'a> Plan<'a> {
    fn new(
        decoder: &'a Decoder,
        weights: &'a Weights,
        adapter: &'a BoundAdapter,
        format: Format,
        options: &'a MergeOptions,
    ) -> Result<Plan<'a>> {
        let places = Places::new(decoder, weights);
        let mut changes = layers(decoder.config(), &places, weights, adapter)?;
        let outer = Outer::new(decoder, &places, weights, adapter)?;
        let untied = outer.plan(&mut changes, weights)?;
        let mut plan = Plan { targets: BTreeMap::new(), format, options, untied };
        let all: Vec<_> = weights.names().map(|name| (name.to_string(), name.to_string())).collect();
        let added = outer.added(weights).filter(|_| untied);
        let exact = outer.is_f32(weights)?;
        for (name, source) in all.into_iter().chain(added) {
            let changes = changes.remove(&name).unwrap_or_default();
            let kept = outer.is_outer(&source);
            plan.add(weights, name, source, changes, (exact, kept))?;
        }
        match changes.into_keys().next() {
            None => Ok(plan),
            Some(name) => Err(Error::internal(format!("there is no tensor {name} to change"))),
        }
    }

    fn add(
        &mut self,
        weights: &Weights,
        name: String,
        source: String,
        changes: Vec<Change<'a>>,
        (all_f32, outer): (bool, bool),
    ) -> Result<()> {
        let (dtype, shape, bytes) = weights.as_stored(&source)?;
        let (shape, own) = (shape.to_vec(), dtype.clone());
        let to = match &dtype {
            StoredType::Weights(dtype) => {
                let wanted = self.wanted(&name, *dtype, &shape, !changes.is_empty(), (all_f32, outer));
                (wanted != *dtype || !changes.is_empty()).then_some(wanted)
            }
            StoredType::Other(_) => (!changes.is_empty()).then_some(WeightType::F32),
        };
        let planned = match to {
            Some(to) => Planned::of_weights(name.clone(), to, shape)?,
            None => Planned { name: name.clone(), dtype: own, shape, bytes: bytes.len() as u64 },
        };
        self.targets.insert(name, Target { planned, source, changes, to });
        Ok(())
    }

    /// How a tensor is to be stored. `all_f32`: so is the base; `outer`: it is the embedding or the head.
    fn wanted(
        &self,
        name: &str,
        own: WeightType,
        shape: &[usize],
        changed: bool,
        (all_f32, outer): (bool, bool),
    ) -> WeightType {
        let matrix = shape.len() > 1;
        let kept = match (self.format, own) {
            // Vectors are small, and what a file keeps more exactly than the rest is so on purpose.
            (Format::Gguf, WeightType::F32) => {
                !matrix || !all_f32 || EXACT.iter().any(|exact| name.contains(exact))
            }
            (Format::Gguf, _) => !matrix,
            (Format::Safetensors, _) => !matrix && self.options.dtype != Some(WeightType::F32),
        };
        let k = shape.last().copied().unwrap_or(1);
        match self.options.dtype {
            _ if kept => own,
            None if changed && own.has_integer_codes() => WeightType::F16,
            None => own,
            Some(to) if !to.has_integer_codes() => to,
            Some(_) if !changed => own,
            Some(to) => {
                let bits = 8 * to.block_bytes() / to.block_len();
                let to = if outer && bits < 6 { WeightType::Q6K } else { to };
                made(to, k).unwrap_or(WeightType::F16)
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.targets.values().map(|target| target.planned.bytes).sum()
    }

    /// The metadata of the base with another type of file, and of one part.
    fn pairs(&self, base: &[u8]) -> Result<Vec<Vec<u8>>> {
        let dropped = |key: &str| {
            ["general.file_type", "general.alignment"].contains(&key) || key.starts_with("split.")
        };
        let pairs = encoded_pairs(base)?.into_iter().filter(|(key, _)| !dropped(key));
        let pairs = pairs.map(|(_, bytes)| bytes.to_vec());
        let planned = self.targets.values().map(|target| &target.planned);
        let file_type = write::gguf_file_type(planned).map(|id| write::gguf_u32("general.file_type", id));
        Ok(pairs.chain(file_type).collect())
    }

    /// What the configuration says otherwise than that of the base.
    fn config(&self, path: &Path) -> Result<()> {
        if !self.untied && self.options.dtype.is_none() {
            return Ok(());
        }
        let mut config = json::read_object(path)?.ok_or_else(|| Error::internal("no config.json"))?;
        self.adjust(&mut config);
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            self.adjust(text);
        }
        if self.untied {
            config.insert("tie_word_embeddings".into(), false.into());
        }
        let text = format!("{:#}\n", Value::Object(config));
        fs::write(path, text).map_err(|error| unwritten(path, error))
    }

    fn adjust(&self, config: &mut Map<String, Value>) {
        let name = self.options.dtype.map(|dtype| match dtype {
            WeightType::F16 => "float16",
            WeightType::BF16 => "bfloat16",
            _ => "float32",
        });
        // The older name, and that of transformers 5; who reads the one alone finds it in the other's place.
        let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        if let Some(name) = name {
            config.insert(key.into(), name.into());
        }
        if let Some(tied) = config.get_mut("tie_word_embeddings").filter(|_| self.untied) {
            *tied = false.into();
        }
    }

    fn report(&self, path: &Path, sums: &HashMap<String, Sums>) -> MergeReport {
        let changed = self.targets.values().filter(|target| !target.changes.is_empty());
        let share = |part: f64, whole: f64| if part == 0.0 { 0.0 } else { (part / whole).sqrt() };
        let tensors: Vec<_> = changed
            .map(|Target { planned, .. }| {
                let Sums { base, delta, lost } = sums.get(&planned.name).copied().unwrap_or_default();
                let dtype = planned.dtype.name().to_ascii_lowercase();
                let lost = if delta == 0.0 { 0.0 } else { share(lost, delta) };
                MergedTensor { name: planned.name.clone(), dtype, delta: share(delta, base), lost }
            })
            .collect();
        let mut notes = Vec::new();
        if self.untied {
            notes.push("the head and the embedding are no longer one matrix: the head is stored, too".into());
        }
        let worst = tensors.iter().max_by(|a, b| a.lost.total_cmp(&b.lost)).filter(|it| it.lost > LOST);
        if let Some(worst) = worst {
            notes.push(format!(
                "rounding takes more than {:.0} % of the change of {} of {} tensors (of {} {:.0} %); a wider dtype \
                 keeps it, and so does using the adapter as it is",
                100.0 * LOST,
                tensors.iter().filter(|tensor| tensor.lost > LOST).count(),
                tensors.len(),
                worst.name,
                100.0 * worst.lost
            ));
        }
        MergeReport { path: path.to_path_buf(), bytes: self.bytes(), tensors, notes }
    }
}

/// Changes by the names of the tensors that they are of.
type Changes<'a> = BTreeMap<String, Vec<Change<'a>>>;

/// Those of the projections of all layers.
fn layers<'a>(
    config: &Config,
    places: &Places,
    weights: &Weights,
    adapter: &'a BoundAdapter,
) -> Result<Changes<'a>> {
    let mut changes = Changes::new();
    for (layer, parts) in adapter.layers.iter().enumerate() {
        for (part, low_rank) in parts {
            let Place { tensor, rows, turned, bias } = places.of(ProjectionId { layer, part: *part })?;
            if let Some(shift) = low_rank.shift() {
                let scales = config.weight_scales.iter().find(|(scaled, _)| scaled == part);
                let scale = scales.map_or(1.0, |(_, [_, of_bias])| *of_bias);
                let shifts = rows.iter().zip(shift).map(|(row, shift)| (*row, shift / scale)).collect();
                add_bias(&mut changes, weights, &tensor, bias, shifts)?;
            }
            if low_rank.rank() == 0 && low_rank.gain().is_none() {
                continue;
            }
            let factors = Factors::of(low_rank);
            let change = match turned {
                None => Change::Rows(Outputs::new(&rows, factors)),
                Some(matrix) => Change::Columns { matrix, inputs: low_rank.dims().1, columns: rows, factors },
            };
            changes.entry(tensor).or_default().push(change);
        }
    }
    Ok(changes)
}

fn add_bias<'a>(
    changes: &mut Changes<'a>,
    weights: &Weights,
    tensor: &str,
    bias: String,
    shifts: HashMap<usize, f32>,
) -> Result<()> {
    if !weights.contains(&bias) {
        return Err(Error::unsupported(format!(
            "the adapter has a bias for {tensor}, and the base has none there that could hold it; use the adapter as it \
             is (adapter=)"
        )));
    }
    changes.entry(bias).or_default().push(Change::Bias(shifts));
    Ok(())
}

/// Embedding and head, which may be one tensor.
struct Outer<'a> {
    decoder: &'a Decoder,
    adapter: &'a BoundAdapter,
    /// What each is made from.
    embedding: String,
    head: String,
    /// What each will be called.
    names: [String; 2],
    bias: String,
}

impl<'a> Outer<'a> {
    fn new(
        decoder: &'a Decoder,
        places: &Places,
        weights: &Weights,
        adapter: &'a BoundAdapter,
    ) -> Result<Self> {
        let [embedding, head] = [Part::Embed, Part::Head].map(|part| places.stored(part, None));
        let name = |part, kind| places.names.name(weights, part, None, kind);
        let names = [name(Part::Embed, "weight"), name(Part::Head, "weight")];
        let missing = || Error::model_file("there is no embedding");
        Ok(Outer {
            decoder,
            adapter,
            embedding: embedding.clone().or(head.clone()).ok_or_else(missing)?,
            head: head.or(embedding).ok_or_else(missing)?,
            names,
            bias: name(Part::Head, "bias"),
        })
    }

    fn is_outer(&self, source: &str) -> bool {
        [&self.embedding, &self.head].into_iter().any(|name| name == source)
    }

    /// Whether the base has its embedding as f32, and so all its matrices.
    fn is_f32(&self, weights: &Weights) -> Result<bool> {
        Ok(weights.as_stored(&self.embedding)?.0 == StoredType::Weights(WeightType::F32))
    }

    fn embedding(&self) -> Vec<Change<'a>> {
        self.adapter.embedding.iter().map(Change::Embedding).collect()
    }

    fn head(&self) -> Vec<Change<'a>> {
        let change = self.adapter.head_change.as_ref();
        let multiplies = |low_rank: &&LowRank| low_rank.rank() > 0 || low_rank.gain().is_some();
        let low_rank = self.adapter.head.as_ref().filter(multiplies);
        if change.is_none() && low_rank.is_none() {
            return Vec::new();
        }
        let rows = change.into_iter().flat_map(|change| &change.rows);
        let rows = rows.map(|(token, row)| (*token as usize, row.as_slice())).collect();
        vec![Change::Head { ops: self.decoder.ops(), change, rows, factors: low_rank.map(Factors::of) }]
    }

    /// Adds their changes; whether what was one matrix, or was said to be, is two from now on.
    fn plan(&self, changes: &mut Changes<'a>, weights: &Weights) -> Result<bool> {
        if let Some(shift) = self.adapter.head.as_ref().and_then(LowRank::shift) {
            let shifts = shift.iter().copied().enumerate().collect();
            add_bias(changes, weights, &self.head, self.bias.clone(), shifts)?;
        }
        let (embedding, head) = (self.embedding(), self.head());
        if embedding.is_empty() && head.is_empty() {
            return Ok(false);
        }
        let one = self.embedding == self.head;
        let tied = (one || self.decoder.config().tied) && self.decoder.has_head();
        let parts = !tied || !self.same(weights, &embedding, &head)?;
        let [embedding_name, head_name] = &self.names;
        if parts {
            changes.insert(embedding_name.clone(), embedding);
            if self.decoder.has_head() {
                changes.insert(head_name.clone(), head);
            }
        } else {
            if !one {
                changes.insert(self.head.clone(), head);
            }
            changes.insert(self.embedding.clone(), embedding);
        }
        changes.retain(|_, changes| !changes.is_empty());
        Ok(tied && parts)
    }

    fn same(&self, weights: &Weights, embedding: &[Change<'_>], head: &[Change<'_>]) -> Result<bool> {
        let tensors = [weights.get(&self.embedding)?, weights.get(&self.head)?];
        let work = |tensor: &'_ WeightTensor| width(&tensor.shape);
        let widths = [work(&tensors[0]), work(&tensors[1])];
        let to = WeightType::F32;
        same(
            &Work { tensor: &tensors[0], width: widths[0], changes: embedding, to },
            &Work { tensor: &tensors[1], width: widths[1], changes: head, to },
        )
    }

    /// The tensor that there was not when both were one: its name, and what it is made from.
    fn added(&self, weights: &Weights) -> Option<(String, String)> {
        let sources = [&self.embedding, &self.head];
        let mut both = self.names.iter().zip(sources).filter(|(name, _)| !weights.contains(name));
        both.next().map(|(name, source)| (name.clone(), source.clone()))
    }
}

/// Copies what stands beside the weights of a checkpoint: configuration, tokenizer, templates, modules.
fn companions(source: &Path, to: &Path) -> Result<()> {
    let from = if source.is_dir() { source } else { source.parent().unwrap_or(Path::new(".")) };
    copy(from, to, false)?;
    for folder in entries(from)?.into_iter().filter(|path| path.is_dir()) {
        let Some(name) = folder.file_name().filter(|name| !name.to_string_lossy().starts_with('.')) else {
            continue;
        };
        let inner = entries(&folder)?;
        let belongs = name == "additional_chat_templates"
            || inner.iter().any(|path| path.file_name().is_some_and(|name| name == "config.json"));
        if belongs {
            let to = to.join(name);
            fs::create_dir(&to).map_err(|error| unwritten(&to, error))?;
            copy(&folder, &to, true)?;
        }
    }
    Ok(())
}

/// `weights`: those too, of a folder that is a module of its own.
fn copy(from: &Path, to: &Path, weights: bool) -> Result<()> {
    for file in entries(from)?.into_iter().filter(|path| path.is_file()) {
        let Some(name) = file.file_name() else { continue };
        let text = name.to_string_lossy();
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let kept = ["json", "jinja", "txt", "model", "tiktoken"].contains(&ending)
            && !text.ends_with("index.json")
            && !text.starts_with("adapter_")
            || text.starts_with("LICENSE")
            || weights && ending == "safetensors";
        if kept {
            let to = to.join(name);
            fs::copy(&file, &to).map_err(|error| unwritten(&to, error))?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::model_file(format!("{} cannot be listed: {error}", folder.display()));
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

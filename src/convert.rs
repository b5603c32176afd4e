//! A model of any source as one GGUF file, for llama.cpp and what reads its files.
//!
//! A GGUF source keeps its metadata byte for byte, and a split one becomes one file. Of a folder of
//! transformers the metadata and the tokenizer are written anew (`config::gguf::write`, `text::tokenizer`),
//! each read back and held against the original before anything is written: what GGUF cannot say of a model
//! is refused by name. Tensors are converted a slice at a time. [`types`] has what is stored as what.

mod tensors;
mod types;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use self::tensors::Target;
pub use self::types::Kind;
use crate::config::{Config, generation, gguf as blueprint, hf, json, quantization};
use crate::error::{Context, Error, Result};
use crate::hub::{Bar, Progress};
use crate::small_file::{Staged, TEXT_LIMIT, read_text};
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer;
use crate::weights::gguf::{Gguf, encoded_pairs};
use crate::weights::write::{self, Planned, gguf_str, gguf_u32, unwritten};
use crate::weights::{Bytes, Format, WeightTensor, Weights, detect};

/// How a file is written.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    pub kind: Kind,
    /// Round weights again that are quantized already; else they are copied as they are.
    pub requantize: bool,
    /// Replace a file that is there.
    pub overwrite: bool,
    pub threads: usize,
}

/// What was written.
#[derive(Debug)]
pub struct ConvertReport {
    pub path: PathBuf,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// How many tensors there are of each type, the most first.
    pub types: Vec<(String, usize)>,
    pub notes: Vec<String>,
}

/// Writes the model of `source` (a folder, a `.safetensors` or `.gguf` file) as the GGUF file `path`, which
/// appears whole or not at all.
///
/// # Errors
/// `InvalidRequest` for a path that is taken or no name of a GGUF file; `UnsupportedModel` for what GGUF
/// cannot say or is not written here, by name; `ModelFile` for broken sources, and if `path` cannot be
/// written; `Cancelled` when the progress says so.
pub fn convert(
    source: &Path,
    path: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport> {
    check_path(path, options)?;
    let plan = match detect(source)? {
        Format::Gguf => Plan::of_gguf(source, options)?,
        Format::Safetensors => Plan::of_folder(source, options)?,
    };
    let planned: Vec<Planned> = plan.targets.iter().map(|target| target.planned.clone()).collect();
    let bytes = planned.iter().map(|planned| planned.bytes).sum();
    let bar = Bar::start(progress, "converting", Some(bytes));
    let staged = Staged::of(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| unwritten(parent, error))?;
    }
    let mut targets = plan.targets.iter();
    let mut fill = |_: &Planned, out: &mut dyn Write| {
        let target = targets.next().ok_or_else(|| Error::internal("more tensors than were planned"))?;
        target.write(&plan.weights, options.threads, &mut |bytes| {
            if progress.cancelled() {
                return Err(Error::cancelled("converting was cancelled"));
            }
            bar.advance(bytes.len() as u64);
            out.write_all(bytes)
                .map_err(|error| Error::model_file(format!("cannot be written: {error}")).with_source(error))
        })
    };
    write::gguf(staged.path(), &plan.pairs, &planned, &mut fill)?;
    staged.place(path).map_err(|error| unwritten(path, error))?;
    Ok(ConvertReport { path: path.to_path_buf(), bytes, types: types_of(&planned), notes: plan.notes })
}

fn check_path(path: &Path, options: &ConvertOptions) -> Result<()> {
    if path.extension().is_none_or(|extension| extension != "gguf") {
        return Err(Error::invalid(format!("{}: give a name that ends in .gguf", path.display())));
    }
    if path.is_dir() || path.exists() && !options.overwrite {
        return Err(Error::invalid(format!(
            "{} is there already; give another name, or say that it may be overwritten",
            path.display()
        )));
    }
    Ok(())
}

fn types_of(planned: &[Planned]) -> Vec<(String, usize)> {
    let mut types: Vec<(String, usize)> = Vec::new();
    for name in planned.iter().map(|planned| planned.dtype.name()) {
        match types.iter_mut().find(|(other, _)| other == name) {
            Some((_, count)) => *count += 1,
            None => types.push((name.to_owned(), 1)),
        }
    }
    types.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    types
}

/// What a file will hold.
struct Plan {
    weights: Weights,
    pairs: Vec<Vec<u8>>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

impl Plan {
    fn of_gguf(source: &Path, options: &ConvertOptions) -> Result<Plan> {
        let weights = Gguf::open(source)?.weights;
        let rule = types::Rule::new(options, weights.names(), weights.contains("output.weight"));
        let (mut targets, mut kept) = (Vec::new(), 0);
        for name in weights.names() {
            let (dtype, shape, bytes) = weights.as_stored(name)?;
            let to = match &dtype {
                write::StoredType::Weights(own) => rule.of(name, *own, shape).filter(|to| to != own),
                write::StoredType::Other(_) => None,
            };
            kept += usize::from(rule.is_kept(name, &dtype, shape));
            targets.push(Target::of_stored(name, dtype, shape, bytes.len(), to)?);
        }
        let dropped = |key: &str| {
            ["general.file_type", "general.alignment"].contains(&key) || key.starts_with("split.")
        };
        let (_, first) = weights.maps().next().ok_or_else(|| Error::internal("a GGUF file without bytes"))?;
        let pairs = encoded_pairs(first)?.into_iter().filter(|(key, _)| !dropped(key));
        let mut pairs: Vec<_> = pairs.map(|(_, bytes)| bytes.to_vec()).collect();
        pairs.extend(file_type(&targets));
        let mut notes = Vec::new();
        if kept > 0 {
            notes.push(format!(
                "{kept} tensors are quantized already and were copied as they are; --requantize rounds them again, on \
                 top of what the first rounding took"
            ));
        }
        if options.requantize && rule.rounds_again(&weights) {
            notes.push(
                "weights were rounded twice: what the first quantization took is gone, and the original model would give \
                 a better file of this size"
                    .into(),
            );
        }
        Ok(Plan { weights, pairs, targets, notes })
    }

    fn of_folder(source: &Path, options: &ConvertOptions) -> Result<Plan> {
        let folder = if source.is_dir() { source } else { source.parent().unwrap_or(Path::new(".")) };
        let path = folder.join("config.json");
        let root = json::read_object(&path)?.ok_or_else(|| {
            Error::model_file(format!("{}: there is no config.json beside the weights", folder.display()))
        })?;
        let quantization = quantization::read(&root).context(path.display())?;
        let config = hf::parse_object(&root).context(path.display())?;
        let weights = quantization::open_weights(source, quantization)?;
        if folder.join("modules.json").is_file() {
            return Err(Error::unsupported(format!(
                "{}: the modules of an embedding model (modules.json) are not written as GGUF",
                folder.display()
            )));
        }
        let (mut pairs, given) = blueprint::write::pairs(&config).context(path.display())?;
        check_blueprint(&config, &pairs, &given).context(path.display())?;
        let mut notes = Vec::new();
        if config.family == "mistral"
            && config.attention().is_some_and(|attention| attention.window.is_some())
        {
            notes.push(
                "llama.cpp does not read the sliding window of this family: beyond it, its answers are other ones".into(),
            );
        }
        let name = folder
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        pairs.extend(name.map(|name| gguf_str("general.name", &name)));
        let mut ends = generation::eos_ids(&root);
        if let Some(text) = read_text(&folder.join("generation_config.json"), TEXT_LIMIT)? {
            ends.extend(generation::Generation::parse(&text)?.eos_ids);
            notes.push(
                "the defaults of generation_config.json (temperature and the like) are not in the file"
                    .into(),
            );
        }
        let tokens = tokenizer::to_gguf(folder, config.vocab, &ends)?;
        pairs.extend(tokens.pairs);
        notes.extend(tokens.notes);
        pairs.extend(templates(folder)?);
        let targets = tensors::of_folder(&config, &weights, given, options)?;
        notes.extend(weights.quantization().map(|how| {
            format!(
                "the checkpoint is quantized already ({}); what is written in blocks of another type was rounded twice",
                how.title
            )
        }));
        pairs.extend(file_type(&targets));
        Ok(Plan { weights, pairs, targets, notes })
    }
}

fn templates(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let Some(template) = ChatTemplate::from_hf(folder, None)? else { return Ok(vec![]) };
    let key = |name: &str| match name {
        "default" => "tokenizer.chat_template".to_string(),
        other => format!("tokenizer.chat_template.{other}"),
    };
    Ok(template.sources().map(|(name, source)| gguf_str(&key(name), source)).collect())
}

fn file_type(targets: &[Target]) -> Vec<Vec<u8>> {
    let file_type = write::gguf_file_type(targets.iter().map(|target| &target.planned));
    file_type.map(|id| gguf_u32("general.file_type", id)).into_iter().collect()
}

/// Reads back what the metadata say, with the tensors that decide about it: the embedding's rows, and whether
/// there is a norm before the feed-forward.
fn check_blueprint(config: &Config, pairs: &[Vec<u8>], given: &[WeightTensor]) -> Result<()> {
    let shape = |name: &str, shape: &[usize]| {
        let count = shape.iter().product();
        WeightTensor::floats(name, shape.to_vec(), vec![0.0; count])
    };
    let mut tensors =
        vec![shape("token_embd.weight", &[config.vocab, 1]), shape("blk.0.ffn_norm.weight", &[1])];
    tensors.extend(given.iter().cloned());
    let planned: Result<Vec<Planned>> =
        tensors.iter().map(|it| Planned::of_weights(it.name.clone(), it.dtype, it.shape.clone())).collect();
    let probe = write::gguf_bytes(pairs, &planned?, &tensors)?;
    let Gguf { metadata, weights } = Gguf::from_bytes(Bytes::from_vec(probe), Path::new("the blueprint"))?;
    blueprint::write::check(config, &blueprint::parse(&metadata, &weights)?)
}

#[cfg(test)]
mod tests;

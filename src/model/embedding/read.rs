//! The files that sentence-transformers writes, and the folders that `modules.json` leads to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dense, Embedding, Matrix, Residual, Stage};
use crate::config::Pooling;
use crate::config::modules::{self, DenseConfig, Kind, Module};
use crate::error::{Context, Error, Result, quoted};
use crate::hub::is_safe_name;
use crate::small_file::{TEXT_LIMIT, read_text};
use crate::weights::{Weights, safetensors};

/// Reads the files of a folder, and remembers which.
pub(super) struct Reader<'a> {
    folder: &'a Path,
    hidden: usize,
    files: Vec<PathBuf>,
}

impl<'a> Reader<'a> {
    pub fn new(folder: &'a Path, hidden: usize) -> Self {
        Reader { folder, hidden, files: Vec::new() }
    }

    pub fn read(mut self) -> Result<Embedding> {
        let mut embedding = Embedding::plain();
        match self.text("modules.json")? {
            Some((path, text)) => {
                let modules = modules::modules(&text).context(path.display())?;
                self.chain(&mut embedding, &modules).context(path.display())?;
            }
            None => {
                if let Some((path, text)) = self.text("1_Pooling/config.json")? {
                    embedding.pooling = self.pooling(&text).context(path.display())?.0;
                }
            }
        }
        embedding.width_of(&embedding.pooling, self.hidden).context(self.folder.display())?;
        embedding.is_described = !self.files.is_empty();
        embedding.files = self.files;
        Ok(embedding)
    }

    fn chain(&mut self, embedding: &mut Embedding, modules: &[Module]) -> Result<()> {
        let [Module { kind: Kind::Transformer, folder }, rest @ ..] = modules else {
            return Err(Error::unsupported("the first module is not a Transformer, which is not supported"));
        };
        if !folder.is_empty() {
            return Err(Error::unsupported(format!(
                "the Transformer lies in {}, which is not supported; move its files into the folder itself",
                quoted(folder)
            )));
        }
        let rest: Vec<_> = rest.iter().filter(|module| module.kind != Kind::Dropout).collect();
        let Some((Module { kind: Kind::Pooling, folder }, rest)) = rest.split_first().map(|(a, b)| (*a, b))
        else {
            return Err(Error::unsupported("no Pooling follows the Transformer, which is not supported"));
        };
        let (path, text) = self.needed(folder, "config.json")?;
        let (pooling, include_prompt) = self.pooling(&text).context(path.display())?;
        embedding.pooling = pooling;
        for module in rest {
            embedding.stages.push(self.stage(module)?);
        }
        self.settings(embedding, include_prompt)
    }

    fn pooling(&self, text: &str) -> Result<(Arc<[Pooling]>, bool)> {
        let config = modules::pooling(text)?;
        if let Some(width) = config.width
            && width != self.hidden
        {
            return Err(Error::model_file(format!(
                "rows of {width} dimensions are pooled, and the model's have {}",
                self.hidden
            )));
        }
        Ok((config.modes.into(), config.include_prompt))
    }

    /// What the files beside `modules.json` say.
    fn settings(&mut self, embedding: &mut Embedding, include_prompt: bool) -> Result<()> {
        let mut keeps_length = false;
        if let Some((path, text)) = self.text("config_sentence_transformers.json")? {
            let config = modules::sentence(&text).context(path.display())?;
            (embedding.prompt, embedding.truncate) = (config.prompt, config.truncate);
            keeps_length = config.keeps_length;
        }
        if !include_prompt && !embedding.prompt.is_empty() {
            return Err(Error::unsupported(
                "include_prompt is false and there is a default prompt, whose rows cannot be left out",
            ));
        }
        embedding.normalize = !keeps_length || matches!(embedding.stages.last(), Some(Stage::Normalize));
        if let Some((path, text)) = self.text("sentence_bert_config.json")? {
            let config = modules::text(&text).context(path.display())?;
            (embedding.longest, embedding.chat) = (config.longest, config.chat);
        }
        // Release 6 leaves the length to the tokenizer.
        if embedding.longest.is_none()
            && let Some((path, text)) = self.text("tokenizer_config.json")?
        {
            embedding.longest = modules::tokenizer_longest(&text).context(path.display())?;
        }
        Ok(())
    }

    fn stage(&mut self, module: &Module) -> Result<Stage> {
        let folder = &module.folder;
        match module.kind {
            Kind::Dense => {
                let (path, text) = self.needed(folder, "config.json")?;
                let config = modules::dense(&text).context(path.display())?;
                self.dense(folder, &config).map(Stage::Dense)
            }
            Kind::LayerNorm => {
                let (path, text) = self.needed(folder, "config.json")?;
                let width = modules::layer_norm(&text).context(path.display())?;
                let weights = self.weights(folder, &["norm.weight", "norm.bias"])?;
                let vector = |name| tensor(&weights, name, &[width]);
                Ok(Stage::LayerNorm { weight: vector("norm.weight")?, bias: vector("norm.bias")? })
            }
            Kind::Normalize => {
                if let Some((path, text)) = self.text(&format!("{folder}/config.json"))? {
                    modules::normalize(&text).context(path.display())?;
                }
                Ok(Stage::Normalize)
            }
            Kind::Transformer | Kind::Pooling | Kind::Dropout => {
                Err(Error::unsupported(format!("a second {:?} is not supported", module.kind)))
            }
        }
    }

    fn dense(&mut self, folder: &str, config: &DenseConfig) -> Result<Dense> {
        let projected = config.residual && config.inputs != config.outputs;
        let names = [("linear.weight", true), ("linear.bias", config.bias), ("residual.weight", projected)];
        let names: Vec<_> = names.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        let weights = self.weights(folder, &names)?;
        let matrix = |name| -> Result<Matrix> {
            let weights = tensor(&weights, name, &[config.outputs, config.inputs])?;
            Ok(Matrix { inputs: config.inputs, weights })
        };
        Ok(Dense {
            linear: matrix("linear.weight")?,
            bias: config.bias.then(|| tensor(&weights, "linear.bias", &[config.outputs])).transpose()?,
            activation: config.activation,
            residual: match (config.residual, projected) {
                (false, _) => Residual::None,
                (true, false) => Residual::Itself,
                (true, true) => Residual::Projected(matrix("residual.weight")?),
            },
        })
    }

    /// The weights of a module, which has these tensors and no others.
    fn weights(&mut self, folder: &str, known: &[&str]) -> Result<Weights> {
        let path = self.path(&format!("{folder}/model.safetensors"))?;
        if !path.is_file() && self.path(&format!("{folder}/pytorch_model.bin"))?.is_file() {
            return Err(Error::unsupported(format!(
                "{folder}/pytorch_model.bin is a pickle, which can run any code when it is read; save the model \
                 with safe_serialization=True, which writes model.safetensors"
            )));
        }
        let weights = safetensors::open(&path)?;
        if let Some(name) = weights.names().find(|name| !known.contains(name)) {
            return Err(Error::unsupported(format!(
                "{}: the tensor {} is not known",
                path.display(),
                quoted(name)
            )));
        }
        self.files.push(path);
        Ok(weights)
    }

    fn needed(&mut self, folder: &str, file: &str) -> Result<(PathBuf, String)> {
        let name = if folder.is_empty() { file.to_string() } else { format!("{folder}/{file}") };
        self.text(&name)?.ok_or_else(|| Error::model_file(format!("the file {name} of a module is missing")))
    }

    fn text(&mut self, name: &str) -> Result<Option<(PathBuf, String)>> {
        let path = self.path(name)?;
        let Some(text) = read_text(&path, TEXT_LIMIT)? else { return Ok(None) };
        self.files.push(path.clone());
        Ok(Some((path, text)))
    }

    /// A file of this folder: a name from a file may not lead out of it.
    fn path(&self, name: &str) -> Result<PathBuf> {
        match is_safe_name(name) {
            true => Ok(self.folder.join(name)),
            false => Err(Error::model_file(format!("{} is no name of a file in this folder", quoted(name)))),
        }
    }
}

fn tensor(weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = weights.get(name)?;
    match tensor.shape == shape {
        true => Ok(tensor.to_f32()),
        false => Err(Error::model_file(format!(
            "{}: the tensor {name} has shape {:?} where its config.json asks for {shape:?}",
            weights.source().display(),
            tensor.shape
        ))),
    }
}

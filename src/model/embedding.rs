//! How a model makes a vector of a text: what is put before it, how its rows are pooled, and what follows.
//!
//! ```text
//! text -> prompt + text -> decoder -> [rows, hidden] -> pooling -> Dense, LayerNorm, … -> cut -> unit length
//! ```
//! All of that stands in files: those that sentence-transformers writes ([`crate::config::modules`]), or keys
//! and tensors of a GGUF file. What follows the pooling is a few million products a text, computed in f32 on
//! the caller's thread, every sum in one order.

mod read;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::cpu::erf::erf_f64;
use serde_json::{Value, json};

use self::read::Reader;
use crate::config::modules::{DenseActivation, MessageFormat};
use crate::config::{Config, Pooling};
use crate::error::{Context, Error, Result};
use crate::weights::gguf::Metadata;
use crate::weights::{WeightTensor, Weights};

/// What LayerNorm of torch adds to the variance.
const EPS: f32 = 1e-5;

/// What a model does to make a vector of a text.
#[derive(Debug)]
pub struct Embedding {
    pooling: Arc<[Pooling]>,
    /// Put before each text, unless the caller says otherwise.
    prompt: String,
    /// A text is the message of a user, and the prompt that of the system; the chat template puts them
    /// together.
    chat: Option<MessageFormat>,
    /// The most tokens of a text that the makers allow.
    longest: Option<usize>,
    stages: Vec<Stage>,
    truncate: Option<usize>,
    /// In the end the vector is divided by its length.
    normalize: bool,
    /// The files that say so.
    files: Vec<PathBuf>,
    /// Whether the model's files say any of this, or it is what is done where none does.
    is_described: bool,
}

/// What follows the pooling.
#[derive(Debug)]
enum Stage {
    Dense(Dense),
    LayerNorm { weight: Vec<f32>, bias: Vec<f32> },
    Normalize,
}

#[derive(Debug)]
struct Dense {
    linear: Matrix,
    bias: Option<Vec<f32>>,
    activation: DenseActivation,
    residual: Residual,
}

#[derive(Debug)]
enum Residual {
    None,
    Itself,
    Projected(Matrix),
}

/// `[outputs, inputs]`
#[derive(Debug)]
struct Matrix {
    inputs: usize,
    weights: Vec<f32>,
}

impl Embedding {
    /// The mean of a text's rows, of unit length.
    fn plain() -> Self {
        Embedding {
            pooling: [Pooling::Mean].into(),
            prompt: String::new(),
            chat: None,
            longest: None,
            stages: Vec::new(),
            truncate: None,
            normalize: true,
            files: Vec::new(),
            is_described: false,
        }
    }

    /// What the files of a folder say. Without a `modules.json` only those of `1_Pooling` count.
    ///
    /// # Errors
    /// `UnsupportedModel` for a module or a setting that would make another vector, `ModelFile` for a file
    /// that is missing or broken.
    pub fn from_folder(folder: &Path, config: &Config) -> Result<Self> {
        Reader::new(folder, config.hidden).read()
    }

    /// What a GGUF file says: `pooling_type`, and the tensors `dense_2` and `dense_3` of EmbeddingGemma.
    ///
    /// # Errors
    /// `UnsupportedModel` for a reranker, and for an EmbeddingGemma that was converted without these tensors.
    pub fn from_gguf(metadata: &Metadata, weights: &Weights, config: &Config) -> Result<Self> {
        let key = format!("{}.pooling_type", config.family);
        let stated = metadata.u64(&key)?;
        let is_described = stated.is_some_and(|kind| kind > 0);
        let pooling = match stated {
            None | Some(0 | 1) => Pooling::Mean,
            Some(2) => Pooling::First,
            Some(3) => Pooling::Last,
            Some(4) => {
                return Err(Error::unsupported(format!(
                    "{key} is 4 (rank): it is a reranker, it has no vectors"
                )));
            }
            Some(other) => return Err(Error::unsupported(format!("{key} {other} is not known"))),
        };
        let mut embedding = Embedding { pooling: [pooling].into(), is_described, ..Embedding::plain() };
        for name in ["dense_2.weight", "dense_3.weight"] {
            if weights.contains(name) {
                embedding.stages.push(Stage::Dense(Dense::linear(weights.get(name)?)?));
            } else if config.family == "gemma-embedding" {
                return Err(Error::unsupported(format!(
                    "there is no tensor {name}, and without it vectors are others; convert the model with \
                     --sentence-transformers-dense-modules, or take its safetensors"
                )));
            }
        }
        embedding.width_of(&embedding.pooling, config.hidden).context("dense_2, dense_3")?;
        Ok(embedding)
    }

    /// How rows are pooled unless the caller says otherwise.
    pub fn pooling(&self) -> &Arc<[Pooling]> {
        &self.pooling
    }

    /// The conversation that the chat template makes a text of; `None`: the prompt and the text are put
    /// together.
    pub fn messages(&self, prompt: &str, text: &str) -> Option<Vec<Value>> {
        let format = self.chat?;
        let message = |role: &str, text: &str| match format {
            MessageFormat::Flat => json!({"role": role, "content": text}),
            MessageFormat::Structured => json!({"role": role, "content": [{"type": "text", "text": text}]}),
        };
        let system = Some(message("system", prompt)).filter(|_| !prompt.is_empty());
        Some(system.into_iter().chain([message("user", text)]).collect())
    }

    /// What is put before a text unless the caller says otherwise.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// The most tokens of a text, with those that the tokenizer puts around it; `None`: as many as the model
    /// reads.
    pub fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// The files that it was read from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether the model's files say how a text becomes a vector: it was made for that.
    pub fn is_described(&self) -> bool {
        self.is_described
    }

    /// Whether the pooled vector, divided by its length, is the result.
    pub fn is_plain(&self) -> bool {
        self.normalize && self.stages.is_empty() && self.truncate.is_none()
    }

    /// Dimensions of a vector, for rows of `hidden`.
    ///
    /// # Errors
    /// `InvalidRequest` if what was pooled does not fit what follows.
    pub fn width(&self, pooling: Option<Pooling>, hidden: usize) -> Result<usize> {
        match pooling {
            None => self.width_of(&self.pooling, hidden),
            Some(one) => self.width_of(&[one], hidden).map_err(|error| {
                Error::invalid(format!(
                    "pooling {:?} does not suit this model: {}",
                    one.name(),
                    error.message()
                ))
            }),
        }
    }

    fn width_of(&self, pooling: &[Pooling], hidden: usize) -> Result<usize> {
        let mut width = pooling.len() * hidden;
        for stage in &self.stages {
            let (inputs, outputs) = match stage {
                Stage::Dense(Dense { linear, .. }) => (linear.inputs, linear.outputs()),
                Stage::LayerNorm { weight, .. } => (weight.len(), weight.len()),
                Stage::Normalize => (width, width),
            };
            if inputs != width {
                return Err(Error::model_file(format!(
                    "a module takes {inputs} dimensions and is given {width}"
                )));
            }
            width = outputs;
        }
        Ok(self.truncate.map_or(width, |most| most.min(width)))
    }

    /// What follows the pooling.
    ///
    /// # Errors
    /// `ModelFile` if NaN or infinity comes out: damaged weights.
    pub fn finish(&self, pooled: Vec<f32>) -> Result<Vec<f32>> {
        if self.stages.is_empty() && self.truncate.is_none() {
            return Ok(pooled);
        }
        let mut vector = self.stages.iter().fold(pooled, |vector, stage| stage.apply(vector));
        vector.truncate(self.truncate.unwrap_or(usize::MAX));
        if self.normalize {
            normalize(&mut vector);
        }
        match vector.iter().all(|value| value.is_finite()) {
            true => Ok(vector),
            false => Err(Error::model_file(
                "the modules after the pooling give NaN or infinity; their files may be damaged",
            )),
        }
    }
}

impl Stage {
    fn apply(&self, mut vector: Vec<f32>) -> Vec<f32> {
        match self {
            Stage::Dense(dense) => return dense.apply(&vector),
            Stage::LayerNorm { weight, bias } => layer_norm(&mut vector, weight, bias),
            Stage::Normalize => normalize(&mut vector),
        }
        vector
    }
}

impl Dense {
    /// Nothing but a product.
    fn linear(weight: WeightTensor) -> Result<Dense> {
        let [_, inputs] = weight.shape[..] else {
            return Err(Error::model_file(format!("the tensor {} is not a matrix", weight.name)));
        };
        let linear = Matrix { inputs, weights: weight.to_f32() };
        Ok(Dense { linear, bias: None, activation: DenseActivation::Identity, residual: Residual::None })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.linear.product(x);
        if let Some(bias) = &self.bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
        y.iter_mut().for_each(|y| *y = activate(*y, self.activation));
        let add = |y: &mut [f32], more: &[f32]| y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
        match &self.residual {
            Residual::None => {}
            Residual::Itself => add(&mut y, x),
            Residual::Projected(matrix) => add(&mut y, &matrix.product(x)),
        }
        y
    }
}

impl Matrix {
    fn outputs(&self) -> usize {
        self.weights.len() / self.inputs.max(1)
    }

    fn product(&self, x: &[f32]) -> Vec<f32> {
        self.weights.chunks_exact(self.inputs.max(1)).map(|row| dot(row, x)).collect()
    }
}

/// Lane `l` sums the products `l` modulo 16; then the lanes, one after the other.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

fn activate(x: f32, activation: DenseActivation) -> f32 {
    let wide = f64::from(x);
    match activation {
        DenseActivation::Identity => x,
        DenseActivation::Tanh => wide.tanh() as f32,
        DenseActivation::Relu => x.max(0.0),
        DenseActivation::Gelu => {
            (0.5 * wide * (1.0 + erf_f64(wide * std::f64::consts::FRAC_1_SQRT_2))) as f32
        }
        DenseActivation::Silu => (wide / (1.0 + (-wide).exp())) as f32,
        DenseActivation::Sigmoid => (1.0 / (1.0 + (-wide).exp())) as f32,
    }
}

fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32]) {
    let count = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = ((f64::from(*x) - mean) * scale) as f32 * weight + bias;
    }
}

/// Divides by the Euclidean length; zeros stay.
fn normalize(x: &mut [f32]) {
    let length = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    x.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
}

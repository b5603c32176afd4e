//! Adapters: what a LoRA file says of a model, and the same where the decoder can use it.
//!
//! An adapter is never merged into the weights: it enters each product as a term of low rank
//! ([`kernels::LowRank`](crate::kernels::LowRank)), so that rows of any number of adapters, and of none, pass
//! through the same packed matrices in one step.

mod bind;
mod check;
mod gguf;
mod merge;
mod mlx;
mod open;
mod peft;
mod place;
mod registry;
mod step;
mod write;

use std::path::PathBuf;

pub use self::bind::BoundAdapter;
pub use self::check::{MAX_RANK, hash};
pub use self::merge::{MergeOptions, MergeReport, MergedTensor, save_merged};
pub use self::open::open;
pub use self::registry::{Adapter, AdapterRegistry, hex};
pub use self::step::{AdapterLease, AdapterSlots, StepAdapters};
pub use self::write::{WriteAdapter, write_peft};
use crate::weights::names::Part;

/// The layout that an adapter was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterFormat {
    /// A folder of the peft library: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// A GGUF file with `general.type` "adapter", as llama.cpp's converter writes it.
    Gguf,
    /// A folder of mlx-lm: `adapter_config.json` and `adapters.safetensors`.
    Mlx,
    /// Trained in this process.
    Trained,
}

impl AdapterFormat {
    pub fn name(self) -> &'static str {
        match self {
            AdapterFormat::Peft => "PEFT",
            AdapterFormat::Gguf => "GGUF",
            AdapterFormat::Mlx => "MLX",
            AdapterFormat::Trained => "trained",
        }
    }
}

/// An adapter as its files have it: read and checked by itself, not yet held against a model.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    /// The folder or file.
    pub source: PathBuf,
    pub format: AdapterFormat,
    /// SHA-256 of all that changes numbers, and of nothing else: the same adapter in another folder or format
    /// has the same hash.
    pub hash: [u8; 32],
    /// The base model that it names. Shown to people; never fetched.
    pub base: Option<String>,
    pub modules: Vec<Module>,
    /// What is worth knowing of how it was read.
    pub notes: Vec<String>,
}

/// What an adapter does to one projection, to the embedding, or to the head.
#[derive(Clone, Debug)]
pub struct Module {
    /// As the file spells it, for errors.
    pub name: String,
    /// `None`: of the embedding or the head.
    pub layer: Option<usize>,
    /// As the file has it: also a fused projection, which is cut where the model's is.
    pub part: Part,
    /// The rows of B alternate between the halves of each head, as llama.cpp's converter orders those of q
    /// and k in some architectures.
    pub interleaved: bool,
    /// None, one, or one for each expert.
    pub pairs: Vec<Pair>,
    /// DoRA's magnitudes `[out]`: output row i of `W + scale B A` is scaled to this length.
    pub magnitude: Option<Vec<f32>>,
    /// Added to `B A x` before the scale, `[out]`.
    pub lora_bias: Option<Vec<f32>>,
    /// In place of the projection's own bias, `[out]`.
    pub bias: Option<Vec<f32>>,
    /// In place of the whole matrix.
    pub weight: Option<Table>,
    /// In place of some rows of the embedding: which, and what they become.
    pub rows: Option<(Vec<u32>, Table)>,
}

impl Module {
    /// One that does nothing yet.
    pub fn new(name: String, layer: Option<usize>, part: Part) -> Module {
        Module {
            name,
            layer,
            part,
            interleaved: false,
            pairs: vec![],
            magnitude: None,
            lora_bias: None,
            bias: None,
            weight: None,
            rows: None,
        }
    }
}

/// A change of low rank: `W + scale B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// `alpha / r`, or as the file says.
    pub scale: f32,
    /// A, `[rank, inputs]`.
    pub a: Vec<f32>,
    /// B, `[outputs, rank]`.
    pub b: Vec<f32>,
}

/// A whole matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
}

//! The seats of the mixers: what looks at other positions. A new one is a variant of [`MixerConfig`], a file
//! beside this one, and an arm in each match here.

use std::collections::BTreeMap;

use super::attention::Attention;
use super::build::TensorLoader;
use super::decoder::{Branch, Queries};
use super::projection::Projector;
use super::short_conv::ShortConv;
use crate::cache::storage::KvCache;
use crate::config::MixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{KvShape, Linear, Rows};

pub(super) enum Mixer {
    Attention(Box<Attention>),
    ShortConv(Box<ShortConv>),
}

/// Layers by what they keep of a sequence.
#[derive(Default)]
pub(super) struct LayerCounts {
    pub paged: usize,
    pub recurrent: usize,
    /// The place in the cache of each layer with keys and values.
    pub cache_layers: BTreeMap<usize, usize>,
}

/// What a mixer is given.
pub(super) struct MixerInput<'a> {
    /// The rows of the step, normed: `[rows, hidden]`.
    pub x: &'a Rows,
    pub all: &'a Queries<'a>,
    /// Those whose output is wanted, if not all are: of the last layer, the others are wanted for what they
    /// leave in the cache alone.
    pub some: Option<&'a Rows>,
    /// The same rows as a step of their own; `all` where all are wanted.
    pub queries: &'a Queries<'a>,
    pub causal: bool,
    pub cache: &'a KvCache,
}

impl Mixer {
    /// `counts`: layers so far that keep keys and values, and that have recurrent state; counted on.
    pub fn load(
        loader: &TensorLoader,
        layer: usize,
        config: &MixerConfig,
        counts: &mut LayerCounts,
    ) -> Result<Mixer> {
        match config {
            MixerConfig::Attention(config) => {
                let cache_layer = match config.shared_kv {
                    Some(source) => counts.cache_layers.get(&source).copied(),
                    None => {
                        counts.cache_layers.insert(layer, counts.paged);
                        counts.paged += 1;
                        Some(counts.paged - 1)
                    }
                };
                let missing = || Error::internal("keys and values of a layer that has none are shared");
                let attention = Attention::load(loader, layer, config, cache_layer.ok_or_else(missing)?)?;
                Ok(Mixer::Attention(Box::new(attention)))
            }
            MixerConfig::ShortConv(config) => {
                let conv = ShortConv::load(loader, layer, config, counts.recurrent)?;
                counts.recurrent += 1;
                Ok(Mixer::ShortConv(Box::new(conv)))
            }
        }
    }

    /// The output of the rows that are wanted.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        match self {
            Mixer::Attention(attention) => attention.forward(project, input),
            Mixer::ShortConv(conv) => conv.forward(project, input),
        }
    }

    /// Keys and values that it keeps of each position, and how far back rows see.
    pub fn paged(&self) -> Option<(KvShape, Option<usize>)> {
        match self {
            Mixer::Attention(attention) => Some((attention.kv_shape()?, attention.window())),
            Mixer::ShortConv(_) => None,
        }
    }

    /// Numbers of the recurrent state of one sequence.
    pub fn state_len(&self) -> Option<usize> {
        match self {
            Mixer::Attention(_) => None,
            Mixer::ShortConv(conv) => Some(conv.state_len()),
        }
    }

    pub fn projections(&self) -> Vec<&Linear> {
        match self {
            Mixer::Attention(attention) => attention.projections(),
            Mixer::ShortConv(conv) => conv.projections(),
        }
    }
}

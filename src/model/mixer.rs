//! The seats of the mixers: what looks at other positions. A new one is a variant of [`MixerConfig`], a file
//! beside this one, and an arm in each match here.

use std::collections::BTreeMap;

use super::attention::Attention;
use super::build::TensorLoader;
use super::decoder::{Branch, Queries};
use super::delta_net::DeltaNet;
use super::latent::Latent;
use super::mamba2::Mamba2;
use super::projection::{Named, Projector};
use super::short_conv::ShortConv;
use crate::cache::storage::KvCache;
use crate::config::MixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{KvShape, Rows};

pub(super) enum Mixer {
    Attention(Box<Attention>),
    ShortConv(Box<ShortConv>),
    DeltaNet(Box<DeltaNet>),
    Mamba2(Box<Mamba2>),
    AttentionAndMamba2(Box<Attention>, Box<Mamba2>),
    Latent(Box<Latent>),
}

/// Layers by what they keep of a sequence.
#[derive(Default)]
pub(super) struct LayerCounts {
    pub paged: usize,
    pub recurrent: usize,
    /// The place in the cache of each layer with keys and values.
    pub cache_layers: BTreeMap<usize, usize>,
}

impl LayerCounts {
    /// The place of a layer among those with keys and values of their own.
    fn next_paged(&mut self, layer: usize) -> usize {
        self.cache_layers.insert(layer, self.paged);
        self.paged += 1;
        self.paged - 1
    }

    /// The place of a layer among those with recurrent state.
    fn next_recurrent(&mut self) -> usize {
        self.recurrent += 1;
        self.recurrent - 1
    }
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
        Ok(match config {
            MixerConfig::Attention(c) => {
                let cache_layer = match c.shared_kv {
                    Some(source) => counts.cache_layers.get(&source).copied(),
                    None => Some(counts.next_paged(layer)),
                };
                let missing = || Error::internal("keys and values of a layer that has none are shared");
                let cache_layer = cache_layer.ok_or_else(missing)?;
                Mixer::Attention(Box::new(Attention::load(loader, layer, c, cache_layer)?))
            }
            MixerConfig::Latent(c) => {
                Mixer::Latent(Box::new(Latent::load(loader, layer, c, counts.next_paged(layer))?))
            }
            MixerConfig::ShortConv(c) => {
                Mixer::ShortConv(Box::new(ShortConv::load(loader, layer, c, counts.next_recurrent())?))
            }
            MixerConfig::DeltaNet(c) => {
                Mixer::DeltaNet(Box::new(DeltaNet::load(loader, layer, c, counts.next_recurrent())?))
            }
            MixerConfig::Mamba2(c) => {
                Mixer::Mamba2(Box::new(Mamba2::load(loader, layer, c, counts.next_recurrent())?))
            }
            MixerConfig::AttentionAndMamba2(attention, mamba) => Mixer::AttentionAndMamba2(
                Box::new(Attention::load(loader, layer, attention, counts.next_paged(layer))?),
                Box::new(Mamba2::load(loader, layer, mamba, counts.next_recurrent())?),
            ),
        })
    }

    /// The output of the rows that are wanted.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        match self {
            Mixer::Attention(attention) => attention.forward(project, input),
            Mixer::ShortConv(conv) => conv.forward(project, input),
            Mixer::DeltaNet(delta_net) => delta_net.forward(project, input),
            Mixer::Mamba2(mamba) => mamba.forward(project, input),
            Mixer::AttentionAndMamba2(attention, mamba) => {
                both(project, input, attention.forward(project, input)?, mamba.forward(project, input)?)
            }
            Mixer::Latent(latent) => latent.forward(project, input),
        }
    }

    /// Keys and values that it keeps of each position, and how far back rows see.
    pub fn paged(&self) -> Option<(KvShape, Option<usize>)> {
        match self {
            Mixer::Attention(attention) | Mixer::AttentionAndMamba2(attention, _) => {
                Some((attention.kv_shape()?, attention.window()))
            }
            Mixer::ShortConv(_) | Mixer::DeltaNet(_) | Mixer::Mamba2(_) => None,
            Mixer::Latent(latent) => Some((latent.kv_shape(), None)),
        }
    }

    /// Numbers of the recurrent state of one sequence.
    pub fn state_len(&self) -> Option<usize> {
        match self {
            Mixer::Attention(_) | Mixer::Latent(_) => None,
            Mixer::ShortConv(conv) => Some(conv.state_len()),
            Mixer::DeltaNet(delta_net) => Some(delta_net.state_len()),
            Mixer::Mamba2(mamba) | Mixer::AttentionAndMamba2(_, mamba) => Some(mamba.state_len()),
        }
    }

    /// What no gradient passes yet, if something is.
    pub fn untrainable(&self) -> Option<&'static str> {
        match self {
            Mixer::Attention(attention) => attention.untrainable(),
            Mixer::Latent(_) => Some("latent attention"),
            Mixer::ShortConv(_) => Some("short convolutions"),
            Mixer::DeltaNet(_) | Mixer::Mamba2(_) | Mixer::AttentionAndMamba2(..) => Some("recurrent layers"),
        }
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        match self {
            Mixer::Attention(attention) => attention.projections(),
            Mixer::ShortConv(conv) => conv.projections(),
            Mixer::DeltaNet(delta_net) => delta_net.projections(),
            Mixer::Mamba2(mamba) => mamba.projections(),
            Mixer::AttentionAndMamba2(attention, mamba) => {
                [attention.projections(), mamba.projections()].concat()
            }
            Mixer::Latent(latent) => latent.projections(),
        }
    }
}

/// The sum of what two mixers of the same rows give.
fn both<'a>(
    project: &Projector<'_>,
    input: &MixerInput,
    first: Branch<'a>,
    second: Branch<'a>,
) -> Result<Branch<'a>> {
    let wanted = input.queries.rows;
    let projected = |branch: Branch<'_>| match branch.projection {
        Some(projection) => project.linear(projection, &branch.rows, wanted),
        None => Ok(branch.rows),
    };
    let sum = projected(first)?;
    let rows = match second.projection {
        Some(projection) => project.linear_add(projection, &second.rows, sum, wanted)?,
        None => project.ops.add(&second.rows, 1.0, sum)?,
    };
    Ok(Branch { rows, projection: None })
}

//! Recurrent layers, as GGUF has them.

use super::Reader;
use crate::config::family::{Mamba2Place, Recurrent};
use crate::config::layer::Seats;
use crate::config::{DeltaNetConfig, Mamba2Config, Mamba2Norm, MixerConfig, Presence};
use crate::error::{Error, Result};

impl Reader<'_> {
    /// What each layer has.
    pub(super) fn seats(&self, layers: usize) -> Result<Vec<Seats>> {
        match &self.family.recurrent {
            None => Ok(self.short_conv(layers)?.into_iter().map(Seats::of_conv).collect()),
            Some(Recurrent::DeltaNet(_)) => {
                let mixer = Seats::Mixer(MixerConfig::DeltaNet(self.delta_net()?));
                let of = |recurrent: bool| if recurrent { mixer } else { Seats::Attention };
                Ok(self.recurrent_layers(layers)?.into_iter().map(of).collect())
            }
            Some(Recurrent::Mamba2(family)) => {
                let mamba = self.mamba2()?;
                let mixer = MixerConfig::Mamba2(mamba);
                let kv_heads =
                    self.kv_heads(layers)?.ok_or_else(|| self.missing("attention.head_count_kv"))?;
                let has_ffn = self.of_layers("feed_forward_length", layers)?;
                let has_ffn = has_ffn.ok_or_else(|| self.missing("feed_forward_length"))?;
                let of = |i: usize| match family.place {
                    Mamba2Place::BesideAttention => Seats::Beside(mamba),
                    Mamba2Place::Typed if kv_heads[i] == 0 => Seats::Mixer(mixer),
                    Mamba2Place::Typed => Seats::Attention,
                    Mamba2Place::Alone if has_ffn[i] > 0 => Seats::FeedForwardAlone,
                    Mamba2Place::Alone => Seats::MixerAlone((kv_heads[i] == 0).then_some(mixer)),
                };
                Ok((0..layers).map(of).collect())
            }
        }
    }

    /// `attention.recurrent_layers` has a flag a layer; without it all but each n-th are
    /// (`full_attention_interval`, 4).
    fn recurrent_layers(&self, layers: usize) -> Result<Vec<bool>> {
        let key = self.key("attention.recurrent_layers");
        if let Some(flags) = self.metadata.bools(&key)? {
            return match flags.get(..layers) {
                Some(flags) => Ok(flags.to_vec()),
                None => Err(Error::model_file(format!(
                    "{key} has {} entries for {layers} layers (block_count)",
                    flags.len()
                ))),
            };
        }
        let interval = self.usize("full_attention_interval")?.unwrap_or(4);
        if interval == 0 {
            let key = self.key("full_attention_interval");
            return Err(Error::model_file(format!("{key} is 0; it must be at least 1")));
        }
        Ok((0..layers).map(|i| !(i + 1).is_multiple_of(interval)).collect())
    }

    fn delta_net(&self) -> Result<DeltaNetConfig> {
        let value_heads = self.require("ssm.time_step_rank")?;
        Ok(DeltaNetConfig {
            key_heads: self.require("ssm.group_count")?,
            value_heads,
            key_dim: self.require("ssm.state_size")?,
            value_dim: self.head_of_inner(value_heads)?,
            kernel: self.require("ssm.conv_kernel")?,
            tiled: self.architecture.tiled_heads,
        })
    }

    fn mamba2(&self) -> Result<Mamba2Config> {
        let heads = self.require("ssm.time_step_rank")?;
        Ok(Mamba2Config {
            heads,
            head_dim: self.head_of_inner(heads)?,
            groups: self.require("ssm.group_count")?,
            state: self.require("ssm.state_size")?,
            kernel: self.require("ssm.conv_kernel")?,
            conv_bias: Presence::IfStored,
            in_bias: Presence::IfStored,
            out_bias: Presence::IfStored,
            // No key has them.
            dt_limits: [0.0, f32::INFINITY],
            // Which comes first no key says; llama.cpp has the gate first.
            norm: Mamba2Norm::IfStored,
            in_scale: 1.0,
            part_scales: [1.0; 5],
            out_scale: 1.0,
        })
    }

    /// The width of one of the heads that make up `ssm.inner_size`.
    fn head_of_inner(&self, heads: usize) -> Result<usize> {
        let inner = self.require("ssm.inner_size")?;
        match inner.checked_div(heads).filter(|head| head * heads == inner) {
            Some(head) => Ok(head),
            None => Err(Error::model_file(format!(
                "{} {inner} is not a whole number of {heads} heads ({})",
                self.key("ssm.inner_size"),
                self.key("ssm.time_step_rank")
            ))),
        }
    }

    /// The width of dense feed-forwards; a layer without one may say 0.
    pub(super) fn dense_width(&self) -> Result<usize> {
        if self.family.recurrent.is_none() {
            return self.width();
        }
        let blocks = self.require("block_count")?;
        let drafts = self.usize("nextn_predict_layers")?.unwrap_or(0);
        let widths = self.of_layers("feed_forward_length", blocks.saturating_sub(drafts))?;
        let widths = widths.ok_or_else(|| self.missing("feed_forward_length"))?;
        // None at all: nobody asks for it.
        Ok(widths.into_iter().find(|width| *width > 0).unwrap_or(1))
    }
}

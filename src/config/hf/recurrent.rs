//! Recurrent layers: which they are, and their sizes.

use serde_json::Value;

use super::Reader;
use super::layers::layer_types;
use crate::config::family::{DeltaNet, DtLimits, Mamba2, Mamba2Place, Recurrent, Scale};
use crate::config::fields::Fields;
use crate::config::layer::Seats;
use crate::config::{DeltaNetConfig, Mamba2Config, Mamba2Norm, MixerConfig};
use crate::error::{Error, Result, quoted};
use crate::weights::names::Part;

/// What a layer of one half is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum BlockKind {
    Mamba2,
    Attention,
    Dense,
    Experts,
}

impl Reader<'_> {
    /// What each layer has.
    pub(super) fn seats(&self, layers: usize) -> Result<Vec<Seats>> {
        match &self.family.recurrent {
            None => Ok(self.short_conv(layers)?.into_iter().map(Seats::of_conv).collect()),
            Some(Recurrent::DeltaNet(family)) => {
                let mixer = Seats::Mixer(MixerConfig::DeltaNet(self.delta_net(family)?));
                let is_linear = match self.f.array("layer_types")? {
                    Some(kinds) => layer_types(kinds, layers, "linear_attention", &[])?,
                    None => {
                        let key = "full_attention_interval";
                        let interval = self.size(key, 4)?;
                        if interval == 0 {
                            return Err(Error::model_file(format!("{key} is 0; it must be at least 1")));
                        }
                        (0..layers).map(|i| !(i + 1).is_multiple_of(interval)).collect()
                    }
                };
                Ok(is_linear
                    .into_iter()
                    .map(|linear| if linear { mixer } else { Seats::Attention })
                    .collect())
            }
            Some(Recurrent::Mamba2(family)) => self.mamba2_seats(family, layers),
        }
    }

    fn mamba2_seats(&self, family: &Mamba2, layers: usize) -> Result<Vec<Seats>> {
        match family.place {
            Mamba2Place::BesideAttention => Ok(vec![Seats::Beside(self.mamba2(family)?); layers]),
            Mamba2Place::Typed => {
                let is_mamba = match self.f.array("layer_types")? {
                    Some(kinds) => {
                        let names = ["linear_attention", "mamba"];
                        let published = kinds.iter().any(|kind| kind.as_str() == Some(names[1]));
                        layer_types(kinds, layers, names[usize::from(published)], &[])?
                    }
                    None => vec![true; layers],
                };
                let mixer = match is_mamba.contains(&true) {
                    true => Seats::Mixer(MixerConfig::Mamba2(self.mamba2(family)?)),
                    false => Seats::Attention,
                };
                Ok(is_mamba.into_iter().map(|mamba| if mamba { mixer } else { Seats::Attention }).collect())
            }
            Mamba2Place::Alone => {
                let mamba = MixerConfig::Mamba2(self.mamba2(family)?);
                let seats = |kind: BlockKind| match kind {
                    BlockKind::Mamba2 => Seats::MixerAlone(Some(mamba)),
                    BlockKind::Attention => Seats::MixerAlone(None),
                    BlockKind::Dense | BlockKind::Experts => Seats::FeedForwardAlone,
                };
                Ok(self.blocks()?.into_iter().map(seats).collect())
            }
        }
    }

    /// The number of layers; where each is one half, as many as the list of these has.
    pub(super) fn layer_count(&self) -> Result<usize> {
        match &self.family.recurrent {
            Some(Recurrent::Mamba2(Mamba2 { place: Mamba2Place::Alone, .. })) => Ok(self.blocks()?.len()),
            _ => self.size("num_hidden_layers", self.family.sizes.layers),
        }
    }

    /// What each layer of one half is: `layers_block_type` lists it, `hybrid_override_pattern` has a letter
    /// for each (published files).
    pub(super) fn blocks(&self) -> Result<Vec<BlockKind>> {
        let unknown = |key: &str, kind: &str| {
            Error::unsupported(format!("{key} has {}, which is not supported", quoted(kind)))
        };
        let key = "layers_block_type";
        if let Some(list) = self.f.array(key)? {
            let kind = |kind: &Value| match kind.as_str() {
                Some("linear_attention" | "mamba") => Ok(BlockKind::Mamba2),
                Some("full_attention" | "attention") => Ok(BlockKind::Attention),
                Some("mlp") => Ok(BlockKind::Dense),
                Some("moe") => Ok(BlockKind::Experts),
                _ => Err(unknown(key, &kind.to_string())),
            };
            return list.iter().map(kind).collect();
        }
        let key = "hybrid_override_pattern";
        let letters = self.f.str(key)?.unwrap_or("ME*-");
        let kind = |letter: char| match letter {
            'M' => Ok(BlockKind::Mamba2),
            '*' => Ok(BlockKind::Attention),
            '-' => Ok(BlockKind::Dense),
            'E' => Ok(BlockKind::Experts),
            other => Err(unknown(key, &other.to_string())),
        };
        letters.chars().map(kind).collect()
    }

    fn delta_net(&self, family: &DeltaNet) -> Result<DeltaNetConfig> {
        self.require_silu("hidden_act")?;
        Ok(DeltaNetConfig {
            key_heads: self.size("linear_num_key_heads", family.key_heads)?,
            value_heads: self.size("linear_num_value_heads", family.value_heads)?,
            key_dim: self.size("linear_key_head_dim", family.key_dim)?,
            value_dim: self.size("linear_value_head_dim", family.value_dim)?,
            kernel: self.size("linear_conv_kernel_dim", family.kernel)?,
            tiled: false,
        })
    }

    fn mamba2(&self, family: &Mamba2) -> Result<Mamba2Config> {
        self.require_silu(family.activation_key)?;
        let heads = self.size(family.heads.0, family.heads.1)?;
        let (in_scale, part_scales, out_scale) = self.mamba2_scales(family)?;
        Ok(Mamba2Config {
            heads,
            head_dim: self.mamba2_head_dim(family, heads)?,
            groups: self.size(family.groups.0, family.groups.1)?,
            state: self.size(family.state.0, family.state.1)?,
            kernel: self.size(family.kernel.0, family.kernel.1)?,
            conv_bias: self.has(family.conv_bias)?,
            in_bias: self.has(family.in_bias)?,
            out_bias: self.has(family.out_bias)?,
            dt_limits: self.dt_limits(&family.dt)?,
            norm: self.mamba2_norm(family)?,
            in_scale,
            part_scales,
            out_scale,
        })
    }

    fn mamba2_head_dim(&self, family: &Mamba2, heads: usize) -> Result<usize> {
        let (key, default) = family.head_dim;
        let auto = self.f.0.get(key).is_some_and(|value| value.as_str() == Some("auto"));
        let stated = if auto { None } else { self.f.usize(key)? };
        let hidden = self.size("hidden_size", self.family.sizes.hidden)?;
        let expanded = self.size("mamba_expand", 2)?.saturating_mul(hidden);
        if let Some(head_dim) = stated.or(default) {
            // Granite's class computes with the product, and holds the other against it.
            let free = default.is_some() || family.inner_key.is_some();
            return match free || head_dim.saturating_mul(heads) == expanded {
                true => Ok(head_dim),
                false => Err(Error::model_file(format!(
                    "{key} is {head_dim} for {heads} heads ({}), which is not mamba_expand times hidden_size, {expanded}",
                    family.heads.0
                ))),
            };
        }
        let inner = match family.inner_key {
            Some((key, default)) => self.stated_or(key, self.f.usize(key)?, Some(default)),
            None => None,
        };
        let inner = inner.unwrap_or(expanded);
        match inner.checked_div(heads).filter(|head_dim| head_dim * heads == inner) {
            Some(head_dim) => Ok(head_dim),
            None => Err(Error::model_file(format!(
                "{} {heads} does not divide Mamba's inner width {inner} (mamba_d_ssm, mamba_expand)",
                family.heads.0
            ))),
        }
    }

    fn mamba2_norm(&self, family: &Mamba2) -> Result<Mamba2Norm> {
        if !family.optional_norm {
            return Ok(Mamba2Norm::AfterGate);
        }
        let before = self.f.bool("mamba_norm_before_gate")?.unwrap_or(true);
        Ok(match (self.f.bool("mamba_rms_norm")?.unwrap_or(false), before) {
            (false, _) => Mamba2Norm::Never,
            (true, true) => Mamba2Norm::BeforeGate,
            (true, false) => Mamba2Norm::AfterGate,
        })
    }

    fn dt_limits(&self, limits: &DtLimits) -> Result<[f32; 2]> {
        match limits {
            DtLimits::Least(key, default) => Ok([self.f.f64(key)?.unwrap_or(*default) as f32, f32::INFINITY]),
            DtLimits::Both(key) => {
                let Some(list) = self.f.array(key)? else { return Ok([0.0, f32::INFINITY]) };
                let number = |value: &Value| match value.as_f64() {
                    Some(number) => Some(number as f32),
                    None => (crate::config::json::shown(value) == "Infinity").then_some(f32::INFINITY),
                };
                match list.iter().map(number).collect::<Option<Vec<_>>>().as_deref() {
                    Some(&[least, most]) => Ok([least, most]),
                    _ => Err(Error::model_file(format!("{key} must be two numbers"))),
                }
            }
        }
    }

    /// Of the input, of z, x, B, C and dt, and of the output.
    fn mamba2_scales(&self, family: &Mamba2) -> Result<(f32, [f32; 5], f32)> {
        if !family.scaled {
            return Ok((1.0, [1.0; 5], 1.0));
        }
        let mut scales = [1.0; 5];
        for (part, scale) in scales.iter_mut().enumerate() {
            *scale = self.scale(&Scale::Item("ssm_multipliers", part))?;
        }
        let number = |key| self.scale(&Scale::Key(key));
        Ok((number("ssm_in_multiplier")?, scales, number("ssm_out_multiplier")?))
    }

    /// What weights and their biases are multiplied by, where it is not 1.
    pub(super) fn weight_scales(&self) -> Result<Vec<(Part, [f32; 2])>> {
        let mut scales = Vec::new();
        for (part, keys) in self.family.weight_scales {
            let mut factors = [1.0; 2];
            for key in *keys {
                let factor = self.scale(key)?;
                factors[0] *= factor;
                factors[1] *= if matches!(key, Scale::Input(_)) { 1.0 } else { factor };
            }
            if factors != [1.0; 2] {
                scales.push((*part, factors));
            }
        }
        Ok(scales)
    }

    fn scale(&self, scale: &Scale) -> Result<f32> {
        match scale {
            Scale::Key(key) | Scale::Input(key) => Ok(self.f.f64(key)?.unwrap_or(1.0) as f32),
            Scale::Item(key, at) => match self.f.floats(key)? {
                None => Ok(1.0),
                Some(list) => list.get(*at).copied().ok_or_else(|| {
                    Error::model_file(format!("{key} has {} numbers, and number {at} is missing", list.len()))
                }),
            },
        }
    }

    /// What follows the convolution of a recurrent layer.
    fn require_silu(&self, key: &str) -> Result<()> {
        match Fields(self.f.0).str(key)? {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => Err(Error::unsupported(format!(
                "{key} {} in a {} is not supported: its convolutions are followed by silu",
                quoted(other),
                self.family.name()
            ))),
        }
    }
}

//! Rotations, in the two spellings that are in the wild.

use super::{Object, Reader};
use crate::config::QueryScale;
use crate::config::fields::{Fields, missing};
use crate::config::rope::{Rope, Scaling, longrope_attention, yarn_attention};
use crate::error::{Context, Error, Result, quoted};

impl Reader<'_> {
    /// The rotation of full layers and, where it differs, that of windowed ones, for heads of these sizes.
    pub(super) fn ropes(&self, [head_dim, local_dim]: [usize; 2], context: usize) -> Result<Vec<Rope>> {
        let f = &self.f;
        let defaults = &self.family.rope;
        let parameters = f.object("rope_parameters")?;
        let scaling = f.object("rope_scaling")?.filter(|object| !object.is_empty());
        let theta = |key: &str, default: f64| f.f64(key).map(|theta| theta.unwrap_or(default));
        if let Some((local_key, local_theta)) = defaults.local_theta {
            let absent = defaults.absent.map(crate::config::fields::object).transpose()?;
            // Classes that have an object a layer type from the start take the older key for the same;
            // elsewhere it is for the full layers alone.
            let (key, parameters) = match scaling.filter(|_| absent.is_some()) {
                Some(scaling) => ("rope_scaling", Some(scaling)),
                None => ("rope_parameters", parameters.or(absent.as_ref())),
            };
            let nested = |kind: &str| -> Result<Object> {
                let object = parameters.map_or(Ok(None), |p| Fields(p).object(kind)).context(key)?;
                Ok(object.cloned().unwrap_or_default())
            };
            let kinds = ["full_attention", "sliding_attention"];
            if local_key.is_none()
                && parameters.is_some_and(|all| !kinds.iter().any(|kind| all.contains_key(*kind)))
            {
                return Err(Error::model_file(format!(
                    "{key} of a {} has an object for each of {}, and here it has neither",
                    self.family.name(),
                    kinds.join(" and ")
                )));
            }
            let mut full = nested("full_attention")?;
            if absent.is_none() {
                full.extend(scaling.cloned().unwrap_or_default());
            }
            let full = self.rope(&full, theta("rope_theta", defaults.theta)?, head_dim, context, None);
            let local = local_key.map_or(Ok(local_theta), |key| theta(key, local_theta))?;
            let sliding = self.rope(&nested("sliding_attention")?, local, local_dim, context, None);
            return Ok(vec![
                full.context("rope_parameters.full_attention (rope_scaling)")?,
                sliding.context("rope_parameters.sliding_attention")?,
            ]);
        }
        let empty = match defaults.absent {
            Some(text) => crate::config::fields::object(text)?,
            None => Object::new(),
        };
        let (key, object) = match (scaling, parameters) {
            (Some(scaling), _) => ("rope_scaling", scaling),
            (None, Some(parameters)) => ("rope_parameters", parameters),
            (None, None) => ("rope_theta", &empty),
        };
        if let Some(kind) =
            ["full_attention", "sliding_attention"].iter().find(|kind| object.contains_key(**kind))
        {
            return Err(Error::unsupported(format!(
                "{key} has {kind}: a rotation a layer type is not supported in a {}",
                self.family.name()
            )));
        }
        // A field at the top counts more than one inside, and Phi-3's class always has it.
        let original = f.usize("original_max_position_embeddings")?.or(defaults.original);
        let theta = theta("rope_theta", defaults.theta)?;
        let bases = self.bases_by_layer()?.unwrap_or_default();
        if bases.iter().all(|base| *base == 0.0) {
            return Ok(vec![self.rope(object, theta, head_dim, context, original).context(key)?]);
        }
        let of_base = |base: f64| {
            let mut object = object.clone();
            object.insert("rope_theta".into(), base.into());
            self.rope(&object, base, head_dim, context, original).context(key)
        };
        distinct(&bases).into_iter().map(of_base).collect()
    }

    /// The base of each layer, if there is a list of them; 0 is none.
    fn bases_by_layer(&self) -> Result<Option<Vec<f64>>> {
        let key = "layer_rope_theta";
        let Some(list) = self.f.array(key)?.filter(|_| self.family.rope.layer_bases) else { return Ok(None) };
        let bases: Option<Vec<f64>> = list.iter().map(serde_json::Value::as_f64).collect();
        bases.map(Some).ok_or_else(|| Error::model_file(format!("{key} must be a list of numbers")))
    }

    /// Of each layer which of the rotations it has, if each has its own.
    pub(super) fn ropes_by_layer(&self, layers: usize) -> Result<Option<Vec<Option<usize>>>> {
        let Some(bases) = self.bases_by_layer()? else { return Ok(None) };
        if bases.len() != layers {
            return Err(Error::model_file(format!(
                "layer_rope_theta has {} entries for {layers} layers",
                bases.len()
            )));
        }
        let distinct = distinct(&bases);
        let place = |base: &f64| distinct.iter().position(|other| other == base);
        Ok(Some(bases.iter().map(place).collect()))
    }

    /// `original`: the length before the stretch, where something outside of `object` decides.
    pub(super) fn rope(
        &self,
        object: &Object,
        theta: f64,
        head_dim: usize,
        context: usize,
        original: Option<usize>,
    ) -> Result<Rope> {
        let f = Fields(object);
        let kind = self.rope_kind(&f)?;
        let original = match original {
            Some(original) => original,
            None => f.usize("original_max_position_embeddings")?.unwrap_or(context),
        };
        let theta = f.f64("rope_theta")?.unwrap_or(theta);
        if let Some(alpha) = self.alpha(&f, kind)? {
            let dims = head_dim as f64;
            let stretched = theta * alpha.powf(dims / (dims - 2.0));
            return Ok(Rope { theta: stretched, dims: head_dim, scaling: Scaling::None });
        }
        if kind == "proportional" {
            return proportional(&f, theta, head_dim);
        }
        Ok(Rope {
            theta,
            dims: self.turned_dims(&f, kind, head_dim)?,
            scaling: scaling(&f, kind, original, context)?,
        })
    }

    /// Hunyuan's `alpha` of a "dynamic" rotation, which asks for no length.
    fn alpha(&self, f: &Fields, kind: &str) -> Result<Option<f64>> {
        if !self.family.rope.alpha || kind != "dynamic" {
            return Ok(None);
        }
        Ok(f.f64("alpha")?.filter(|alpha| *alpha != 0.0))
    }

    /// How the queries grow with the position, as the object of the rotation says.
    pub(super) fn query_scale(&self) -> Result<Option<QueryScale>> {
        if !self.family.query_scale {
            return Ok(None);
        }
        let absent = self.family.rope.absent.map(crate::config::fields::object).transpose()?;
        let stated = match self.f.object("rope_scaling")?.filter(|object| !object.is_empty()) {
            Some(object) => Some(object),
            None => self.f.object("rope_parameters")?,
        };
        let Some(f) = stated.or(absent.as_ref()).map(Fields) else { return Err(missing("rope_parameters")) };
        let require = |key: &str| f.f64(key)?.ok_or_else(|| missing(key));
        let (beta, original) =
            (require("llama_4_scaling_beta")?, require("original_max_position_embeddings")?);
        Ok(Some(QueryScale { beta: beta as f32, original: original as f32 }))
    }

    pub(super) fn rope_kind<'b>(&self, f: &Fields<'b>) -> Result<&'b str> {
        let kind = match f.str("rope_type")? {
            Some(kind) => kind,
            None => f.str("type")?.unwrap_or("default"),
        };
        let defaults = &self.family.rope;
        Ok(match kind {
            "mrope" if defaults.mrope => "default",
            "su" | "yarn" if defaults.longrope_only => "longrope",
            "default" | "longrope" => kind,
            other if defaults.longrope_only => {
                return Err(Error::unsupported(format!(
                    "rope_type {} is not supported in a {}, which has longrope alone",
                    quoted(other),
                    self.family.name()
                )));
            }
            _ => kind,
        })
    }

    /// How many dimensions of a head turn.
    pub(super) fn turned_dims(&self, f: &Fields, kind: &str, head_dim: usize) -> Result<usize> {
        let key = "partial_rotary_factor";
        let stated = match f.f64(key)? {
            Some(partial) => Some(partial),
            None => self.f.f64(key)?,
        };
        let partial = match (self.family.rope.partial, stated) {
            // `null` is no share, of which there is no default.
            (Some(_), None) if f.states(key) || self.f.states(key) => 1.0,
            (Some(default), stated) => stated.unwrap_or(default),
            // The class's own rotation does not read it; those of a scaling do, and transformers then fails.
            (None, Some(partial)) if kind != "default" && partial != 1.0 => {
                return Err(Error::unsupported(format!(
                    "{key} {partial} beside rope_type {kind} is not supported in a {}",
                    self.family.name()
                )));
            }
            (None, _) => 1.0,
        };
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(Error::model_file(format!("{key} is {partial}; it must be in (0, 1]")));
        }
        Ok((head_dim as f64 * partial) as usize)
    }
}

/// The bases that there are, but 0.
fn distinct(bases: &[f64]) -> Vec<f64> {
    let mut distinct = Vec::new();
    for base in bases.iter().filter(|base| **base != 0.0) {
        if !distinct.contains(base) {
            distinct.push(*base);
        }
    }
    distinct
}

/// The first pairs of a head turn, as fast as if all of them did.
fn proportional(f: &Fields, theta: f64, head_dim: usize) -> Result<Rope> {
    let key = "partial_rotary_factor";
    let partial = f.f64(key)?.unwrap_or(1.0);
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(Error::model_file(format!("{key} is {partial}; it must be in (0, 1]")));
    }
    let turned = (partial * head_dim as f64 / 2.0) as usize;
    let factor = f.f64("factor")?.unwrap_or(1.0);
    Ok(Rope { theta, dims: head_dim, scaling: Scaling::Proportional { turned, factor } })
}

fn scaling(f: &Fields, kind: &str, original: usize, context: usize) -> Result<Scaling> {
    let factor = f.f64("factor")?;
    let require = |key: &str| f.f64(key)?.ok_or_else(|| missing(key));
    let ratio = context as f64 / original as f64;
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: require("factor")? },
        "dynamic" => Scaling::Dynamic { factor: require("factor")?, original: context },
        "llama3" => Scaling::Llama3 {
            factor: require("factor")?,
            low: require("low_freq_factor")?,
            high: require("high_freq_factor")?,
            original: original as f64,
        },
        // `null` means the ratio of the lengths.
        "yarn" if !f.states("factor") => return Err(missing("factor")),
        "yarn" => yarn(f, factor.unwrap_or(ratio), original)?,
        "longrope" => Scaling::LongRope {
            short: f.floats("short_factor")?.ok_or_else(|| missing("short_factor"))?,
            long: f.floats("long_factor")?.ok_or_else(|| missing("long_factor"))?,
            original,
            attention: f
                .f64("attention_factor")?
                .unwrap_or_else(|| longrope_attention(factor.unwrap_or(ratio), original as f64)),
        },
        other => return Err(Error::unsupported(format!("rope_type {} is not supported", quoted(other)))),
    })
}

fn yarn(f: &Fields, factor: f64, original: usize) -> Result<Scaling> {
    let attention = match (f.f64("attention_factor")?, f.f64("mscale")?, f.f64("mscale_all_dim")?) {
        (Some(attention), ..) => attention,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
            yarn_attention(factor, m) / yarn_attention(factor, all)
        }
        _ => yarn_attention(factor, 1.0),
    };
    // Zero counts as absent, as in transformers.
    let beta =
        |key: &str, default: f64| f.f64(key).map(|beta| beta.filter(|beta| *beta != 0.0).unwrap_or(default));
    Ok(Scaling::Yarn {
        factor,
        original: original as f64,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        attention,
        truncate: f.bool("truncate")?.unwrap_or(true),
    })
}

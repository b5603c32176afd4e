//! Mamba-2 (Dao and Gu 2024, "Transformers are SSMs"): `in_proj` makes z, x, B, C and dt; x, B and C pass a
//! causal convolution and SiLU; a scan follows whose state is a matrix for each head; its output is gated by
//! `silu(z)`, normed in groups of heads, and projected.

use super::build::{TensorLoader, times};
use super::causal_conv::causal_conv;
use super::decoder::Branch;
use super::delta_net::decay_factors;
use super::mixer::MixerInput;
use super::projection::{Named, Projector};
use crate::config::{GateFunction, Mamba2Config, Mamba2Norm, NormKind};
use crate::error::Result;
use crate::kernels::{CausalConv, ConvForm, GatedNorm, Linear, Norm, Ops, Rows, Scan, ScanRows, ScanRule};
use crate::weights::WeightTensor;
use crate::weights::names::Part;

pub(super) struct Mamba2 {
    z: Linear,
    /// Rows of x, of B, of C.
    xbc: Linear,
    dt: Linear,
    conv: CausalConv,
    scan: Scan,
    /// `None`: the gate alone.
    norm: Option<GatedNorm>,
    out: Linear,
    /// Its place among the layers with recurrent state.
    state_layer: usize,
}

impl Mamba2 {
    pub fn load(loader: &TensorLoader, layer: usize, c: &Mamba2Config, state_layer: usize) -> Result<Mamba2> {
        let (hidden, inner) = (loader.config.hidden, c.heads * c.head_dim);
        let width = inner + 2 * c.groups * c.state;
        let of_heads =
            |part, kind| loader.vector_of(part, layer, &loader.numbers(part, layer, kind, c.heads)?);
        let scan = Scan {
            rule: ScanRule::Mamba2 { dt_limits: c.dt_limits, skip: of_heads(Part::SsmD, "weight")? },
            groups: c.groups,
            heads: c.heads,
            tiled: false,
            key_dim: c.state,
            value_dim: c.head_dim,
            a: decay_factors(loader, layer, c.heads)?,
            dt_bias: of_heads(Part::SsmDtBias, "bias")?,
        };
        let [z, xbc, dt] = input_projections(loader, layer, c)?;
        let at = Some(layer);
        let out = loader.tensor(Part::SsmOut, at, &[hidden, inner])?;
        let out_bias = loader.bias(c.out_bias, Part::SsmOut, at, hidden)?;
        let out_bias = out_bias.map(|bias| times(bias, c.out_scale));
        Ok(Mamba2 {
            z,
            xbc,
            dt,
            conv: causal_conv(
                loader,
                (Part::SsmConv, layer),
                ConvForm::Silu,
                [width, c.kernel],
                c.conv_bias,
                &channel_scales(c),
            )?,
            scan,
            norm: norm(loader, layer, c)?,
            out: scaled(loader, Part::SsmOut, out, out_bias, c.out_scale)?,
            state_layer,
        })
    }

    /// `[rows, heads * head_dim]`, before the output projection. All rows pass, also those whose output
    /// nobody wants: the state is made of them.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        let (ops, step) = (project.ops, input.all.step);
        let named = [(Part::SsmZ, &self.z), (Part::SsmXbc, &self.xbc), (Part::SsmDt, &self.dt)];
        let [z, xbc, dt] = project.linears(named, input.x, None)?;
        let x = ops.causal_conv(&xbc, &self.conv, input.cache, self.state_layer, step)?;
        let rows = ScanRows { x, dt: &dt, beta: None };
        let y = ops.scan(rows, &self.scan, input.cache, self.state_layer, step)?;
        let rows = match input.queries.rows {
            Some(wanted) => self.gated(ops, ops.select_rows(&y, wanted)?, ops.select_rows(&z, wanted)?)?,
            None => self.gated(ops, y, z)?,
        };
        Ok(Branch { rows, projection: Some((Part::SsmOut, &self.out)) })
    }

    fn gated(&self, ops: &Ops, y: Rows, z: Rows) -> Result<Rows> {
        match &self.norm {
            Some(norm) => ops.gated_norm(y, &z, norm),
            None => ops.output_gate(y, z, GateFunction::Silu),
        }
    }

    /// Numbers of the state of one sequence.
    pub fn state_len(&self) -> usize {
        self.conv.state_len() + self.scan.state_len()
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        vec![
            (Part::SsmZ, &self.z),
            (Part::SsmXbc, &self.xbc),
            (Part::SsmDt, &self.dt),
            (Part::SsmOut, &self.out),
        ]
    }
}

/// z, xBC and dt, which lie in one matrix; z and dt times their own numbers, and those of x, B and C are in
/// the taps of the convolution ([`channel_scales`]). The input's number passes a bias by.
fn input_projections(loader: &TensorLoader, layer: usize, c: &Mamba2Config) -> Result<[Linear; 3]> {
    let inner = c.heads * c.head_dim;
    let sizes = [inner, inner + 2 * c.groups * c.state, c.heads];
    let (at, rows) = (Some(layer), sizes.iter().sum());
    let weight = loader.tensor(Part::SsmIn, at, &[rows, loader.config.hidden])?;
    let bias = loader.bias(c.in_bias, Part::SsmIn, at, rows)?;
    let mut start = 0;
    let mut piece = |part, size: usize, own: f32| {
        let range = start..start + size;
        start = range.end;
        let bias = bias.as_ref().map(|bias| loader.slice_rows(bias, range.clone())).transpose()?;
        let bias = bias.map(|bias| times(bias, own));
        scaled(loader, part, loader.slice_rows(&weight, range)?, bias, c.in_scale * own)
    };
    let [of_z, .., of_dt] = c.part_scales;
    Ok([
        piece(Part::SsmZ, sizes[0], of_z)?,
        piece(Part::SsmXbc, sizes[1], 1.0)?,
        piece(Part::SsmDt, sizes[2], of_dt)?,
    ])
}

/// The numbers of the channels of the convolution: what passes it is linear in its input.
fn channel_scales(c: &Mamba2Config) -> Vec<f32> {
    let [_, of_x, of_b, of_c, _] = c.part_scales;
    let states = c.groups * c.state;
    [vec![of_x; c.heads * c.head_dim], vec![of_b; states], vec![of_c; states]].concat()
}

/// A projection times the configuration's number, which GGUF has in the weights.
fn scaled(
    loader: &TensorLoader,
    part: Part,
    weight: WeightTensor,
    bias: Option<WeightTensor>,
    scale: f32,
) -> Result<Linear> {
    match scale {
        1.0 => loader.projection(part, weight, bias, None),
        scale => loader.scaled(part, weight, bias, None, scale),
    }
}

/// The norm of the output, over each group of heads.
fn norm(loader: &TensorLoader, layer: usize, c: &Mamba2Config) -> Result<Option<GatedNorm>> {
    let stored = loader.has(Part::SsmNorm, Some(layer));
    if c.norm == Mamba2Norm::Never || c.norm == Mamba2Norm::IfStored && !stored {
        return Ok(None);
    }
    let weight = loader.numbers(Part::SsmNorm, layer, "weight", c.heads * c.head_dim)?;
    let weight = loader.vector_of(Part::SsmNorm, layer, &weight)?;
    let norm = Norm { kind: NormKind::Rms, eps: loader.config.norm.eps, weight, bias: None };
    Ok(Some(GatedNorm { norm, groups: c.groups, gate_first: c.norm != Mamba2Norm::BeforeGate }))
}

//! Gated DeltaNet (Qwen3.5; Yang et al. 2024, "Gated Delta Networks"): q, k and v pass a causal convolution
//! and SiLU; a scan follows whose state is a matrix for each value head; its output is normed in each head,
//! gated by `silu(z)`, and projected.

use super::build::TensorLoader;
use super::causal_conv::causal_conv;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::{Named, Projector};
use crate::config::{DeltaNetConfig, NormKind, Presence};
use crate::error::Result;
use crate::kernels::{CausalConv, ConvForm, GatedNorm, Linear, Norm, Scan, ScanRows, ScanRule};
use crate::weights::names::Part;

pub(super) struct DeltaNet {
    /// Rows of q, of k, of v.
    qkv: Linear,
    z: Linear,
    /// One number for each value head: the strength, and the decay.
    beta: Linear,
    alpha: Linear,
    conv: CausalConv,
    scan: Scan,
    norm: GatedNorm,
    out: Linear,
    /// Its place among the layers with recurrent state.
    state_layer: usize,
}

impl DeltaNet {
    pub fn load(
        loader: &TensorLoader,
        layer: usize,
        c: &DeltaNetConfig,
        state_layer: usize,
    ) -> Result<DeltaNet> {
        let hidden = loader.config.hidden;
        let inner = c.value_heads * c.value_dim;
        let width = 2 * c.key_heads * c.key_dim + inner;
        let linear = |part, shape| loader.linear(part, layer, shape, Presence::Never);
        let scan = Scan {
            rule: ScanRule::Delta,
            groups: c.key_heads,
            heads: c.value_heads,
            tiled: c.tiled,
            key_dim: c.key_dim,
            value_dim: c.value_dim,
            a: decay_factors(loader, layer, c.value_heads)?,
            dt_bias: loader.vector_of(
                Part::SsmDtBias,
                layer,
                &loader.numbers(Part::SsmDtBias, layer, "bias", c.value_heads)?,
            )?,
        };
        // Whatever the other norms add to their weights, this one does not.
        let weight = loader.numbers(Part::SsmNorm, layer, "weight", c.value_dim)?;
        let weight = loader.vector_of(Part::SsmNorm, layer, &weight)?;
        let norm = Norm { kind: NormKind::Rms, eps: loader.config.norm.eps, weight, bias: None };
        let at = (Part::SsmConv, layer);
        Ok(DeltaNet {
            qkv: linear(Part::DeltaQkv, [width, hidden])?,
            z: linear(Part::DeltaZ, [inner, hidden])?,
            beta: linear(Part::DeltaBeta, [c.value_heads, hidden])?,
            alpha: linear(Part::DeltaAlpha, [c.value_heads, hidden])?,
            conv: causal_conv(loader, at, ConvForm::Silu, [width, c.kernel], Presence::Never, &[])?,
            scan,
            norm: GatedNorm { norm, groups: c.value_heads, gate_first: false },
            out: linear(Part::SsmOut, [hidden, inner])?,
            state_layer,
        })
    }

    /// `[rows, value_heads * value_dim]`, before the output projection. All rows pass, also those whose
    /// output nobody wants: the state is made of them.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        let (ops, step) = (project.ops, input.all.step);
        let named = [
            (Part::DeltaQkv, &self.qkv),
            (Part::DeltaZ, &self.z),
            (Part::DeltaBeta, &self.beta),
            (Part::DeltaAlpha, &self.alpha),
        ];
        let [qkv, z, beta, dt] = project.linears(named, input.x, None)?;
        let x = ops.causal_conv(&qkv, &self.conv, input.cache, self.state_layer, step)?;
        let rows = ScanRows { x, dt: &dt, beta: Some(&beta) };
        let y = ops.scan(rows, &self.scan, input.cache, self.state_layer, step)?;
        let rows = match input.queries.rows {
            Some(wanted) => {
                ops.gated_norm(ops.select_rows(&y, wanted)?, &ops.select_rows(&z, wanted)?, &self.norm)?
            }
            None => ops.gated_norm(y, &z, &self.norm)?,
        };
        Ok(Branch { rows, projection: Some((Part::SsmOut, &self.out)) })
    }

    /// Numbers of the state of one sequence.
    pub fn state_len(&self) -> usize {
        self.conv.state_len() + self.scan.state_len()
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        vec![
            (Part::DeltaQkv, &self.qkv),
            (Part::DeltaZ, &self.z),
            (Part::DeltaBeta, &self.beta),
            (Part::DeltaAlpha, &self.alpha),
            (Part::SsmOut, &self.out),
        ]
    }
}

/// What the steps are multiplied by, one number a head: `-exp(A_log)`, which GGUF has computed.
pub(super) fn decay_factors(
    loader: &TensorLoader,
    layer: usize,
    heads: usize,
) -> Result<crate::kernels::Vector> {
    let mut factors = loader.numbers(Part::SsmA, layer, "weight", heads)?;
    if !loader.names.is_gguf() {
        factors.iter_mut().for_each(|factor| *factor = -factor.exp());
    }
    loader.vector_of(Part::SsmA, layer, &factors)
}

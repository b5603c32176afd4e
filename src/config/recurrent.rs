//! Layers that keep a state of a fixed size instead of keys and values.

use super::layer::{MAX_TAPS, within};
use super::{MAX_WIDTH, Presence};
use crate::error::{Error, Result};

/// Gated DeltaNet (Qwen3.5; Yang et al. 2024): projections to q, k and v pass a causal convolution of a few
/// positions; a scan follows, whose state is a matrix for each value head, a gated norm and `out_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNetConfig {
    /// Heads of queries and keys; divides `value_heads`.
    pub key_heads: usize,
    pub value_heads: usize,
    /// Widths of one head.
    pub key_dim: usize,
    pub value_dim: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// Value head h has key head `h % key_heads`, as llama.cpp's converter orders them; else those of a key
    /// head follow each other. (Columns of `out_proj` could not be put back where blocks of weights are
    /// longer than a head.)
    pub tiled: bool,
}

/// Mamba-2 (Dao and Gu 2024): `in_proj` makes z, x, B, C and dt; x, B and C pass a causal convolution, a scan
/// follows whose state is a matrix for each head, a gated norm and `out_proj`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mamba2Config {
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Heads of B and C; divides `heads`.
    pub groups: usize,
    /// Length of B and C.
    pub state: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    pub conv_bias: Presence,
    pub in_bias: Presence,
    pub out_bias: Presence,
    /// The step is held within these.
    pub dt_limits: [f32; 2],
    pub norm: Mamba2Norm,
    /// What the input is multiplied by, and then z, x, B, C and dt (Falcon-H1).
    pub in_scale: f32,
    pub part_scales: [f32; 5],
    /// What the output is multiplied by.
    pub out_scale: f32,
}

/// The norm of Mamba-2's output, over each group of its heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mamba2Norm {
    /// `y * silu(z)` alone.
    Never,
    /// `norm(y * silu(z))`
    AfterGate,
    /// `norm(y) * silu(z)`
    BeforeGate,
    /// As the first if no norm is stored, else as the second.
    IfStored,
}

impl DeltaNetConfig {
    pub(super) fn validate(&self) -> Result<()> {
        let sizes = [
            ("number of key heads (linear_num_key_heads, ssm.group_count)", self.key_heads, MAX_WIDTH),
            (
                "number of value heads (linear_num_value_heads, ssm.time_step_rank)",
                self.value_heads,
                MAX_WIDTH,
            ),
            ("size of a key head (linear_key_head_dim, ssm.state_size)", self.key_dim, MAX_HEAD),
            ("size of a value head (linear_value_head_dim, ssm.inner_size)", self.value_dim, MAX_HEAD),
            ("convolution's number of taps (linear_conv_kernel_dim, ssm.conv_kernel)", self.kernel, MAX_TAPS),
        ];
        sizes.into_iter().try_for_each(|(name, value, max)| within(name, value, max))?;
        state_fits(self.value_heads, self.key_dim, self.value_dim)?;
        match self.value_heads.is_multiple_of(self.key_heads) {
            true => Ok(()),
            false => Err(Error::model_file(format!(
                "{} value heads (linear_num_value_heads, ssm.time_step_rank) cannot share {} key heads \
                 (linear_num_key_heads, ssm.group_count) evenly",
                self.value_heads, self.key_heads
            ))),
        }
    }
}

impl Mamba2Config {
    pub(super) fn validate(&self) -> Result<()> {
        let sizes = [
            (
                "number of Mamba heads (mamba_n_heads, mamba_num_heads, ssm.time_step_rank)",
                self.heads,
                MAX_WIDTH,
            ),
            ("size of a Mamba head (mamba_d_head, mamba_head_dim, ssm.inner_size)", self.head_dim, MAX_HEAD),
            ("number of Mamba groups (mamba_n_groups, n_groups, ssm.group_count)", self.groups, MAX_WIDTH),
            ("size of Mamba's state (mamba_d_state, ssm_state_size, ssm.state_size)", self.state, MAX_HEAD),
            (
                "convolution's number of taps (mamba_d_conv, conv_kernel, ssm.conv_kernel)",
                self.kernel,
                MAX_TAPS,
            ),
        ];
        sizes.into_iter().try_for_each(|(name, value, max)| within(name, value, max))?;
        state_fits(self.heads, self.state, self.head_dim)?;
        if !self.heads.is_multiple_of(self.groups) {
            return Err(Error::model_file(format!(
                "{} Mamba heads (mamba_n_heads, mamba_num_heads, ssm.time_step_rank) are not {} groups \
                 (mamba_n_groups, n_groups, ssm.group_count)",
                self.heads, self.groups
            )));
        }
        let scales = self.part_scales.iter().chain([&self.in_scale, &self.out_scale]);
        match scales.into_iter().all(|scale| scale.is_finite()) && self.dt_limits[0] <= self.dt_limits[1] {
            true => Ok(()),
            false => Err(Error::model_file(format!(
                "Mamba's multipliers (ssm_multipliers, ssm_in_multiplier, ssm_out_multiplier) must be finite, and \
                 its steps lie within {:?} (time_step_limit, time_step_min)",
                self.dt_limits
            ))),
        }
    }
}

/// The widest head; those of known models have 256.
const MAX_HEAD: usize = 4096;

/// Numbers of one layer's state, at most; those of known models have two million.
const MAX_STATE: usize = 1 << 26;

fn state_fits(heads: usize, keys: usize, values: usize) -> Result<()> {
    match heads.checked_mul(keys * values).is_some_and(|len| len <= MAX_STATE) {
        true => Ok(()),
        false => Err(Error::model_file(format!(
            "a recurrent state of {heads} heads of {keys} x {values} numbers is larger than that of any model"
        ))),
    }
}

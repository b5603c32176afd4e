//! Rotary position embedding: from a base and a scaling rule to the frequency of each pair.
//!
//! Formulae: RoPE (arXiv 2104.09864), position interpolation (2306.15595), dynamic NTK and YaRN (2309.00071),
//! LongRoPE (2402.13753), Llama 3.1's rule; parameter names and rounding as transformers 5 has them.
//!
//! Dynamic NTK and LongRoPE depend on "the sequence length". transformers takes the length so far, so a key
//! cached early was rotated otherwise than one computed late, and the result depends on how the text was cut
//! into calls. Here the context length that the model is loaded with decides once: the same bits for whole,
//! chunked and cached prompts, as vLLM and llama.cpp decide too.

use crate::error::{Error, Result};

/// One rotation: how fast each pair of a head's dimensions turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// The first `dims` dimensions of each head turn, the rest pass; even.
    pub dims: usize,
    pub scaling: Scaling,
}

/// How a model was stretched beyond the context it was first trained with.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// A larger base for a context beyond `original`.
    Dynamic {
        factor: f64,
        original: usize,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn {
        factor: f64,
        original: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention: f64,
        truncate: bool,
    },
    /// One divisor a pair: `short` within the original context, `long` beyond it.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
        attention: f64,
    },
    /// The first `turned` pairs turn, at the speeds that they have where all of the head turns, and the
    /// others not at all; all frequencies divided by `factor` (transformers' "proportional").
    Proportional {
        turned: usize,
        factor: f64,
    },
    /// Divisors that a file holds ready (GGUF `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// YaRN's softening of attention for a stretch by `scale`.
pub fn yarn_attention(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

/// LongRoPE's softening of attention for a stretch by `scale`.
pub fn longrope_attention(scale: f64, original: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / original.ln()).sqrt() }
}

impl Rope {
    pub fn plain(theta: f64, dims: usize) -> Self {
        Rope { theta, dims, scaling: Scaling::None }
    }

    /// How many positions a model of `context` positions can be loaded for: a scaling with a factor promises
    /// that many times its original length. The context that a file names may be the original one (dynamic
    /// NTK, and YaRN that a user adds as a model card advises) or the stretched one.
    pub fn reach(&self, context: usize) -> usize {
        let times = |factor: f64, original: f64| match factor.is_finite() && factor > 1.0 {
            true => (original * factor) as usize,
            false => context,
        };
        context.max(match &self.scaling {
            Scaling::Dynamic { factor, original } => times(*factor, *original as f64),
            Scaling::Yarn { factor, original, .. } => times(*factor, *original),
            _ => context,
        })
    }

    /// What a scaling that depends on the length decides for a model of `context_length` positions.
    pub fn note(&self, context_length: usize) -> Option<String> {
        match &self.scaling {
            Scaling::LongRope { original, .. } if context_length > *original => Some(format!(
                "LongRoPE's long factors, for {context_length} positions; context_length={original} takes the short ones, \
                 as transformers does for texts of up to {original} tokens"
            )),
            Scaling::Dynamic { original, .. } if context_length > *original => Some(format!(
                "dynamic NTK for {context_length} positions; texts of up to {original} tokens have transformers' numbers \
                 with context_length={original}"
            )),
            _ => None,
        }
    }

    /// The frequency of each pair `[dims / 2]`, radians a position, and what cos and sin are multiplied by.
    pub fn frequencies(&self, context_length: usize) -> (Vec<f32>, f32) {
        match &self.scaling {
            Scaling::None => (self.series(self.theta), 1.0),
            Scaling::Linear { factor } => {
                (self.series(self.theta).iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            Scaling::Dynamic { factor, original } => {
                (self.series(self.stretched_base(*factor, *original, context_length)), 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let bend = |f: &f32| llama3(*f as f64, *factor, *low, *high, *original) as f32;
                (self.series(self.theta).iter().map(bend).collect(), 1.0)
            }
            Scaling::Yarn { attention, .. } => (self.yarn(), *attention as f32),
            Scaling::LongRope { short, long, original, attention } => {
                let divisors = if context_length > *original { long } else { short };
                (self.divided(divisors), *attention as f32)
            }
            Scaling::Proportional { turned, factor } => {
                let frequencies = self.series(self.theta).into_iter().enumerate();
                let scaled = |(i, f)| if i < *turned { f / *factor as f32 } else { 0.0 };
                (frequencies.map(scaled).collect(), 1.0)
            }
            Scaling::Divisors(divisors) => (self.divided(divisors), 1.0),
        }
    }

    /// `theta^(-2i/dims)` with the exponent and the power in f32, as transformers computes them.
    fn series(&self, theta: f64) -> Vec<f32> {
        self.powers(theta).iter().map(|power| 1.0 / power).collect()
    }

    fn powers(&self, theta: f64) -> Vec<f32> {
        (0..self.dims / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.dims as f32;
                theta.powf(exponent as f64) as f32
            })
            .collect()
    }

    fn divided(&self, divisors: &[f32]) -> Vec<f32> {
        self.powers(self.theta).iter().zip(divisors).map(|(power, divisor)| 1.0 / (divisor * power)).collect()
    }

    fn stretched_base(&self, factor: f64, original: usize, context_length: usize) -> f64 {
        let length = context_length.max(original) as f64;
        let stretch = factor * length / original as f64 - (factor - 1.0);
        self.theta * stretch.powf(self.dims as f64 / (self.dims as f64 - 2.0))
    }

    fn yarn(&self) -> Vec<f32> {
        let Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return self.series(self.theta);
        };
        let dims = self.dims as f64;
        // The pair whose wavelength makes `rotations` turns within the original context.
        let pair = |rotations: f64| {
            dims * (original / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(i, f): (usize, &f32)| {
            let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            f / factor as f32 * interpolated + f * (1.0 - interpolated)
        };
        self.series(self.theta).iter().enumerate().map(blend).collect()
    }

    pub(super) fn validate(&self, head_dim: usize) -> Result<()> {
        if self.dims == 0 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            return Err(Error::model_file(format!(
                "RoPE turns {} of {head_dim} dimensions of a head (partial_rotary_factor, rope.dimension_count); \
                 the number must be even and at most the head size",
                self.dims
            )));
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(Error::model_file(format!(
                "the RoPE base (rope_theta, rope.freq_base) is {}; it must be above 1",
                self.theta
            )));
        }
        let pairs = self.dims / 2;
        let (numbers, lists): (Vec<f64>, Vec<&[f32]>) = match &self.scaling {
            Scaling::None => (vec![], vec![]),
            Scaling::Linear { factor } | Scaling::Proportional { factor, .. } => (vec![*factor], vec![]),
            Scaling::Dynamic { factor, original } => (vec![*factor, *original as f64], vec![]),
            Scaling::Llama3 { factor, low, high, original } => {
                (vec![*factor, *low, *high, *original], vec![])
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, attention, .. } => {
                (vec![*factor, *original, *beta_fast, *beta_slow, *attention], vec![])
            }
            Scaling::LongRope { short, long, original, attention } => {
                (vec![*original as f64, *attention], vec![short, long])
            }
            Scaling::Divisors(divisors) => (vec![], vec![divisors]),
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !numbers.iter().all(|x| positive(*x)) {
            return Err(self.malformed("a number that is not positive"));
        }
        if self.dims == 2 && matches!(self.scaling, Scaling::Dynamic { .. }) {
            return Err(Error::model_file(
                "dynamic RoPE scaling (rope_scaling) needs more than one pair of dimensions",
            ));
        }
        for list in lists {
            if list.len() != pairs || !list.iter().all(|x| positive(*x as f64)) {
                return Err(Error::model_file(format!(
                    "RoPE scaling (rope_scaling, rope_factors, rope_freqs) needs {pairs} positive factors, one a pair \
                     of dimensions; it has {}",
                    list.len()
                )));
            }
        }
        match self.turns_by_numbers() {
            true => Ok(()),
            false => Err(self.malformed("numbers beyond what a rotation can be computed with")),
        }
    }

    /// Whether cos and sin of every angle that may come are numbers: tiny divisors and huge factors make
    /// infinities, and those make NaN of every logit.
    fn turns_by_numbers(&self) -> bool {
        [1, super::MAX_CONTEXT].into_iter().all(|context_length| {
            let (frequencies, attention) = self.frequencies(context_length);
            attention.is_finite()
                && attention > 0.0
                && frequencies.iter().all(|f| (f * super::MAX_CONTEXT as f32).is_finite())
        })
    }

    fn malformed(&self, what: &str) -> Error {
        let shown = format!("{:?}", self.scaling);
        Error::model_file(format!(
            "RoPE scaling (rope_scaling, rope.scaling) has {what}: base {}, {shown:.200}",
            self.theta
        ))
    }
}

/// Long wavelengths are divided by `factor`, short ones kept, those between blended.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength > original / low {
        frequency / factor
    } else if wavelength < original / high {
        frequency
    } else {
        let kept = (original / wavelength - low) / (high - low);
        (1.0 - kept) * frequency / factor + kept * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_decides_long_factors() {
        let scaling =
            Scaling::LongRope { short: vec![1.0, 1.0], long: vec![2.0, 4.0], original: 16, attention: 1.5 };
        let rope = Rope { theta: 100.0, dims: 4, scaling };
        assert_eq!(rope.frequencies(16), (vec![1.0, 0.1], 1.5));
        assert_eq!(rope.frequencies(17), (vec![0.5, 0.025], 1.5));
    }

    #[test]
    fn a_proportional_rotation_turns_the_first_pairs_as_fast_as_a_whole_one() {
        let scaling = Scaling::Proportional { turned: 2, factor: 2.0 };
        let whole = Rope::plain(100.0, 8).frequencies(16).0;
        let (frequencies, _) = Rope { scaling, ..Rope::plain(100.0, 8) }.frequencies(16);
        assert_eq!(frequencies, [whole[0] / 2.0, whole[1] / 2.0, 0.0, 0.0]);
    }

    #[test]
    fn hostile_numbers_are_refused() {
        let cases = [
            Rope::plain(10000.0, 3),
            Rope::plain(10000.0, 0),
            Rope::plain(10000.0, 66),
            Rope::plain(f64::NAN, 64),
            Rope::plain(0.0, 64),
            Rope { scaling: Scaling::Linear { factor: 0.0 }, ..Rope::plain(10000.0, 64) },
            Rope { scaling: Scaling::Linear { factor: 1e-45 }, ..Rope::plain(10000.0, 64) },
            Rope { scaling: Scaling::Divisors(vec![1e-45; 32]), ..Rope::plain(10000.0, 64) },
            Rope { scaling: Scaling::Divisors(vec![1.0; 31]), ..Rope::plain(10000.0, 64) },
            Rope { scaling: Scaling::Divisors(vec![-1.0; 32]), ..Rope::plain(10000.0, 64) },
        ];
        for rope in cases {
            assert!(rope.validate(64).is_err(), "{rope:?}");
        }
    }
}

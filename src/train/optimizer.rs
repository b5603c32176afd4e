//! AdamW, as torch computes it, and the clipping of gradients before it.

use super::params::{Gradients, LoraModule, LoraParams};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f32 = 1e-8;

/// The running means of the gradients and of their squares.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Steps that were taken.
    pub steps: usize,
    pub weight_decay: f64,
    pub means: Gradients,
    pub squares: Gradients,
}

impl AdamW {
    pub fn new(params: &LoraParams, weight_decay: f64) -> AdamW {
        let zeros = || Gradients::zeros(params);
        AdamW { steps: 0, weight_decay, means: zeros(), squares: zeros() }
    }

    /// Moves the parameters against their gradients.
    pub fn step(&mut self, params: &mut LoraParams, gradients: &Gradients, rate: f64) {
        self.steps += 1;
        let done = self.steps.min(i32::MAX as usize) as i32;
        let step = Step {
            keep: (1.0 - rate * self.weight_decay) as f32,
            size: (rate / (1.0 - BETA1.powi(done))) as f32,
            root: (1.0 - BETA2.powi(done)).sqrt() as f32,
        };
        let state = self.means.modules.iter_mut().zip(&mut self.squares.modules);
        for ((module, gradient), (mean, square)) in
            params.modules.iter_mut().zip(&gradients.modules).zip(state)
        {
            let LoraModule { a, b, .. } = module;
            step.apply(a, &gradient.0, &mut mean.0, &mut square.0);
            step.apply(b, &gradient.1, &mut mean.1, &mut square.1);
        }
    }
}

/// What all parameters of a step have in common.
struct Step {
    /// What weight decay leaves of a parameter.
    keep: f32,
    /// The rate over the bias correction of the means.
    size: f32,
    /// The square root of the bias correction of the squares.
    root: f32,
}

impl Step {
    fn apply(&self, params: &mut [f32], gradients: &[f32], means: &mut [f32], squares: &mut [f32]) {
        let (beta1, beta2) = (1.0 - BETA1 as f32, BETA2 as f32);
        let state = means.iter_mut().zip(squares);
        for ((param, &gradient), (mean, square)) in params.iter_mut().zip(gradients).zip(state) {
            *mean += beta1 * (gradient - *mean);
            *square = beta2 * *square + (1.0 - BETA2) as f32 * gradient * gradient;
            let scale = square.sqrt() / self.root + EPSILON;
            *param = *param * self.keep - self.size * *mean / scale;
        }
    }
}

/// Shortens all gradients together to the length `longest`, as torch's `clip_grad_norm_`; returns the length
/// that they had.
pub fn clip(gradients: &mut Gradients, longest: f64) -> f64 {
    let all = |gradients: &Gradients| {
        let of = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        gradients.modules.iter().map(|(a, b)| of(a) + of(b)).sum::<f64>()
    };
    let length = all(gradients).sqrt();
    let factor = longest / (length + 1e-6);
    if factor < 1.0 {
        for value in gradients.modules.iter_mut().flat_map(|(a, b)| a.iter_mut().chain(b)) {
            *value *= factor as f32;
        }
    }
    length
}

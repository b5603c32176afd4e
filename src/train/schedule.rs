//! The learning rate over the steps of a run, as a factor of the highest.

/// How the rate goes on after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Down to nothing at the end.
    Linear,
    Constant,
}

/// A ramp over the first steps, then the decay.
///
/// transformers' `get_linear_schedule_with_warmup` begins its ramp at 0, so that its first step changes
/// nothing; this one begins a step later, and is the same everywhere else.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    decay: Decay,
    warmup: usize,
    steps: usize,
}

impl Schedule {
    /// For a run of `steps`, of which the share `warmup` is the ramp.
    pub fn new(decay: Decay, warmup: f64, steps: usize) -> Schedule {
        Schedule { decay, warmup: ((warmup * steps as f64).ceil() as usize).min(steps), steps }
    }

    /// The factor of step `step`, counted from 0.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => {
                let left = self.steps.saturating_sub(step) as f64;
                left / (self.steps - self.warmup).max(1) as f64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_as_said() {
        use Decay::{Constant, Linear};
        // decay, warm-up, steps, factors. Those without a ramp are transformers'
        // `get_linear_schedule_with_warmup(o, 0, 4)`; those with one are its values from its second step on.
        let rows: &[(Decay, f64, usize, &[f64])] = &[
            (Linear, 0.0, 4, &[1.0, 0.75, 0.5, 0.25]),
            (Linear, 0.2, 10, &[0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
            (Linear, 0.1, 3, &[1.0, 1.0, 0.5]),
            (Linear, 1.0, 2, &[0.5, 1.0]),
            (Linear, 0.1, 1, &[1.0]),
            (Constant, 0.5, 4, &[0.5, 1.0, 1.0, 1.0]),
            (Constant, 0.0, 2, &[1.0, 1.0]),
        ];
        for (decay, warmup, steps, factors) in rows {
            let schedule = Schedule::new(*decay, *warmup, *steps);
            let found: Vec<f64> = (0..*steps).map(|step| schedule.factor(step)).collect();
            assert_eq!(&found, factors, "{decay:?} {warmup} {steps}");
        }
    }
}

//! How a run is asked for, its defaults, and which projections that means in a model.

use std::path::PathBuf;

use super::schedule::Decay;
use crate::error::{Error, Result, nearest};
use crate::kernels::Precision;
use crate::lora::MAX_RANK;
use crate::model::ProjectionId;
use crate::weights::names::Part;

/// What a run is asked to do. Nothing in here but `threads`, `train_memory` and the folders leaves the result
/// as it is.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    pub rank: usize,
    pub alpha: f64,
    /// Names of projections ("q_proj"); empty: all that can be trained.
    pub targets: Vec<String>,
    pub epochs: usize,
    /// `None`: by the size of the model, see [`learning_rate`].
    pub learning_rate: Option<f64>,
    /// Rows a step.
    pub batch: usize,
    /// The share of rows that are held out, from 50 rows on.
    pub eval: f64,
    pub seed: u64,
    /// The folder for checkpoints and for the adapter.
    pub output: Option<PathBuf>,
    pub precision: Precision,
    pub train_memory: Option<usize>,
    /// Ends the run early; the schedule goes to its end in these steps.
    pub max_steps: Option<usize>,
    /// The share of steps over which the rate rises.
    pub warmup: f64,
    pub schedule: Decay,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// A folder that a run with the same options wrote to.
    pub resume: Option<PathBuf>,
    /// `None`: as the model.
    pub threads: Option<usize>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            rank: 8,
            alpha: 16.0,
            targets: Vec::new(),
            epochs: 3,
            learning_rate: None,
            batch: 8,
            eval: 0.1,
            seed: 0,
            output: None,
            precision: Precision::default(),
            train_memory: None,
            max_steps: None,
            warmup: 0.1,
            schedule: Decay::Linear,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            resume: None,
            threads: None,
        }
    }
}

impl TrainOptions {
    /// # Errors
    /// `InvalidRequest` naming an option that is out of its range.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("rank", Some(self.rank)),
            ("epochs", Some(self.epochs)),
            ("batch", Some(self.batch)),
            ("max_steps", self.max_steps),
            ("threads", self.threads),
            ("train_memory", self.train_memory),
        ];
        for (name, count) in counts {
            if count == Some(0) {
                return Err(Error::invalid(format!("{name} is 0; it must be at least 1")));
            }
        }
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let share = |value: f64| (0.0..1.0).contains(&value);
        let numbers = [
            ("alpha", self.alpha, positive(self.alpha), "a number above 0"),
            (
                "learning_rate",
                self.learning_rate.unwrap_or(1.0),
                self.learning_rate.is_none_or(positive),
                "a number above 0",
            ),
            ("max_grad_norm", self.max_grad_norm, positive(self.max_grad_norm), "a number above 0"),
            ("eval", self.eval, share(self.eval), "a share from 0 to below 1"),
            ("warmup", self.warmup, share(self.warmup), "a share from 0 to below 1"),
            (
                "weight_decay",
                self.weight_decay,
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "a number, 0 or more",
            ),
        ];
        for (name, value, fits, wanted) in numbers {
            if !fits {
                return Err(Error::invalid(format!("{name} is {value}; it must be {wanted}")));
            }
        }
        Ok(())
    }

    /// What the product of A and B is multiplied by.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Those of `trainable` that the targets mean.
    ///
    /// # Errors
    /// `InvalidRequest` for a name that no projection has, one that this model has not, and a rank over a
    /// matrix.
    pub fn modules(
        &self,
        trainable: &[(ProjectionId, usize, usize)],
    ) -> Result<Vec<(ProjectionId, usize, usize)>> {
        let mut parts = Vec::new();
        for name in &self.targets {
            let found = targets(name)?;
            if !trainable.iter().any(|(id, ..)| found.contains(&id.part)) {
                return Err(Error::invalid(format!(
                    "targets: this model has no {name} that can be trained; it has {}",
                    names(trainable)
                )));
            }
            parts.extend(found);
        }
        let wanted = |(id, ..): &&(ProjectionId, usize, usize)| parts.is_empty() || parts.contains(&id.part);
        let modules: Vec<_> = trainable.iter().filter(wanted).copied().collect();
        for (id, inputs, outputs) in &modules {
            let most = MAX_RANK.min(*inputs).min(*outputs);
            if self.rank > most {
                return Err(Error::invalid(format!(
                    "rank is {}, and {} of layer {} is a matrix of {outputs} x {inputs}; it must be at most {most}",
                    self.rank,
                    name(id.part),
                    id.layer
                )));
            }
        }
        Ok(modules)
    }
}

/// The highest learning rate for a model of that many parameters.
pub fn learning_rate(parameters: usize) -> f64 {
    match parameters {
        0..500_000_000 => 1e-3,
        500_000_000..2_000_000_000 => 5e-4,
        _ => 2e-4,
    }
}

/// Projections by the names that checkpoints give them. The first name of a part is the one that messages
/// use.
const TARGETS: &[(&str, &[Part])] = &[
    ("q_proj", &[Part::Q]),
    ("k_proj", &[Part::K]),
    ("v_proj", &[Part::V]),
    ("o_proj", &[Part::O]),
    ("gate_proj", &[Part::Gate]),
    ("up_proj", &[Part::Up]),
    ("down_proj", &[Part::Down]),
    ("qkv_proj", &[Part::Q, Part::K, Part::V]),
    ("gate_up_proj", &[Part::Gate, Part::Up]),
    ("dense", &[Part::O]),
    ("out_proj", &[Part::O]),
    ("fc1", &[Part::Up]),
    ("fc2", &[Part::Down]),
];

fn targets(name: &str) -> Result<&'static [Part]> {
    if let Some((_, parts)) = TARGETS.iter().find(|(known, _)| *known == name) {
        return Ok(parts);
    }
    let known = || TARGETS.iter().map(|(known, _)| *known);
    let near = nearest(name, known());
    let hint = near.first().map_or(String::new(), |near| format!(" (did you mean {near:?}?)"));
    Err(Error::invalid(format!(
        "targets: no projection is called {name:?}{hint}; there are {}",
        known().collect::<Vec<_>>().join(", ")
    )))
}

/// The name of a projection.
pub fn name(part: Part) -> String {
    let found = TARGETS.iter().find(|(_, parts)| *parts == [part]);
    found.map_or_else(|| format!("{part:?}"), |(name, _)| (*name).to_string())
}

fn names(trainable: &[(ProjectionId, usize, usize)]) -> String {
    let mut names: Vec<String> = Vec::new();
    for (id, ..) in trainable {
        let name = name(id.part);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trainable() -> Vec<(ProjectionId, usize, usize)> {
        let of = |layer| {
            [(Part::Q, 16, 16), (Part::O, 16, 16), (Part::Up, 16, 40)]
                .map(move |(part, i, o)| (ProjectionId { layer, part }, i, o))
        };
        (0..2).flat_map(of).collect()
    }

    #[test]
    fn targets_are_found_or_refused_by_name() {
        // targets, modules, or words of the error
        let rows: &[(&[&str], Result<usize, &str>)] = &[
            (&[], Ok(6)),
            (&["q_proj"], Ok(2)),
            (&["dense", "fc1"], Ok(4)),
            (&["qkv_proj"], Ok(2)),
            (&["q_prj"], Err("no projection is called \"q_prj\" (did you mean \"q_proj\"?)")),
            (
                &["gate_proj"],
                Err("this model has no gate_proj that can be trained; it has q_proj, o_proj, up_proj"),
            ),
        ];
        for (targets, wanted) in rows {
            let options = TrainOptions {
                targets: targets.iter().map(|name| (*name).to_string()).collect(),
                ..TrainOptions::default()
            };
            match (options.modules(&trainable()), wanted) {
                (Ok(found), Ok(count)) => assert_eq!(found.len(), *count, "{targets:?}"),
                (Err(error), Err(words)) => assert!(error.message().contains(words), "{error}"),
                (found, _) => panic!("{targets:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let changed = |change: &dyn Fn(&mut TrainOptions)| {
            let mut options = TrainOptions::default();
            change(&mut options);
            options.check().and_then(|()| options.modules(&trainable()).map(drop))
        };
        type Row<'a> = (&'a dyn Fn(&mut TrainOptions), &'a str);
        let rows: &[Row] = &[
            (
                &|o| o.rank = 17,
                "rank is 17, and q_proj of layer 0 is a matrix of 16 x 16; it must be at most 16",
            ),
            (&|o| o.rank = 0, "rank is 0"),
            (&|o| o.batch = 0, "batch is 0"),
            (&|o| o.epochs = 0, "epochs is 0"),
            (&|o| o.max_steps = Some(0), "max_steps is 0"),
            (&|o| o.alpha = f64::NAN, "alpha is NaN"),
            (&|o| o.learning_rate = Some(-1.0), "learning_rate is -1"),
            (&|o| o.eval = 1.0, "eval is 1"),
            (&|o| o.warmup = -0.5, "warmup is -0.5"),
            (&|o| o.weight_decay = f64::INFINITY, "weight_decay is inf"),
            (&|o| o.max_grad_norm = 0.0, "max_grad_norm is 0"),
        ];
        for (change, words) in rows {
            let error = changed(change).unwrap_err();
            assert!(error.message().contains(words), "{words}: {error}");
        }
        changed(&|o| o.rank = 16).unwrap();
    }

    #[test]
    fn small_models_learn_faster() {
        let rows = [
            (135_000_000, 1e-3),
            (499_999_999, 1e-3),
            (500_000_000, 5e-4),
            (1_700_000_000, 5e-4),
            (4_000_000_000, 2e-4),
        ];
        for (parameters, rate) in rows {
            assert_eq!(learning_rate(parameters), rate);
        }
    }
}

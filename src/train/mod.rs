//! Training of adapters: gradients through the frozen, packed weights of a model.
//!
//! [`params`] holds what is trained, [`step`] computes the loss of some examples and its gradients.

mod layout;
pub mod params;
pub mod step;

pub use self::params::{Gradients, LoraModule, LoraParams};
pub use self::step::{Example, Precision, StepLoss, StepOptions, Trainer};

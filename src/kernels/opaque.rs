//! What a backend keeps behind a handle of the graph.

use std::any::Any;
use std::sync::Arc;

use super::misuse;
use crate::error::Result;

/// What a backend made, and only a backend of the same kind can read. This is the one place where handles of
/// the graph are downcast.
#[derive(Clone)]
pub(super) struct Opaque(Arc<dyn Any + Send + Sync>);

impl Opaque {
    pub(super) fn new(value: impl Any + Send + Sync) -> Self {
        Opaque(Arc::new(value))
    }

    /// # Errors
    /// `Internal` when another kind of backend made it; `what` says what it is.
    pub(super) fn get<T: Any>(&self, what: &str) -> Result<&T> {
        let foreign = || misuse(format!("{what} was made by other Ops than those that use it"));
        self.0.downcast_ref().ok_or_else(foreign)
    }
}

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

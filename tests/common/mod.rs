//! Where tests find goldens and real weights.

use std::path::{Path, PathBuf};

/// A file under tests/golden. (Each test crate takes of this module what it needs.)
#[allow(dead_code)]
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A real model's file in the folder `TALLOW_TEST_MODELS`, which `make test` fills. Without the folder the
/// test is skipped by hand and fails in CI.
#[allow(dead_code)]
pub fn real_model(file: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("TALLOW_TEST_MODELS") else {
        assert!(std::env::var_os("CI").is_none(), "TALLOW_TEST_MODELS must be set in CI");
        println!("skipped: TALLOW_TEST_MODELS is not set (`make test` sets it)");
        return None;
    };
    let path = Path::new(&folder).join(file);
    assert!(path.exists(), "{} is not there; `make models` fetches it", path.display());
    Some(path)
}

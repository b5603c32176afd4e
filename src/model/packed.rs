//! Packed weights kept on disk: what a load has packed into panels is written beside the cache, and a later
//! load of the same files maps it instead of packing again. All processes that map it share its memory.
//!
//! [`file`] is the format of such a file, [`store`] the folder with its limit, [`writer`] the thread that
//! writes. What is kept goes by the weights' files as the system describes them (size, times, inode, device;
//! see `file_hash`), by the blueprint, by what was quantized at load, by the layout of the panels and by the
//! version of this program. It is the same for all tiers of instructions and any number of threads. A file
//! that is not exactly that is not used: the weights are packed again, and it is replaced.
//!
//! A file is never changed once it has its name: it is written under another one and renamed, and goes by
//! being unlinked. So nothing changes under a map, short of somebody who writes into the cache by hand.

mod file;
mod store;
mod writer;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use self::file::{Origin, PackedFile};
#[doc(hidden)]
pub use self::file::{of_parts, read_as_said, sums_of};
pub use self::store::{KeptFile, kept_files};
use self::store::{Limits, Store};
pub use self::writer::finish;
use super::file_hash::Stamp;
use super::fingerprint::hex;
use crate::config::Config;
use crate::error::Result;
use crate::hub::Env;
use crate::kernels::{Matrix, Ops};
use crate::weights::{WeightType, Weights};

/// What became of a model's packed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    /// They lie in a file that an earlier load has kept, and are shared with all who map it.
    Mapped,
    /// They are in memory, and on their way to disk.
    BeingKept,
    /// They are in memory, and on disk for later loads.
    Kept,
    /// They are in memory alone, and why.
    NotKept(String),
}

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Packed::Mapped => f.write_str("mapped"),
            Packed::BeingKept => f.write_str("being kept"),
            Packed::Kept => f.write_str("kept"),
            Packed::NotKept(why) => write!(f, "not kept: {why}"),
        }
    }
}

/// A [`Packed`] that the writing thread changes.
#[derive(Clone)]
pub(super) struct State(Arc<Mutex<Packed>>);

impl State {
    fn new(packed: Packed) -> State {
        State(Arc::new(Mutex::new(packed)))
    }

    pub fn get(&self) -> Packed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, packed: Packed) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = packed;
    }
}

/// The matrices of a model in the order in which it is built of them: those that a file has, and those that
/// were made.
#[derive(Default)]
pub(super) struct PackedMatrices {
    file: Option<PackedFile>,
    next: Cell<usize>,
    made: RefCell<Vec<Matrix>>,
    collects: bool,
}

impl PackedMatrices {
    /// The next matrix, if it is here and is this one.
    pub fn take(&self, ops: &Ops, name: &str, dtype: WeightType, shape: &[usize]) -> Option<Matrix> {
        let at = self.next.replace(self.next.get() + 1);
        let &[n, k] = shape else { return None };
        let panels = self.file.as_ref()?.panels(at, name, dtype, [n, k])?;
        ops.kept_matrix(name, dtype, [n, k], panels).ok()
    }

    /// A matrix that was not here, and was made.
    pub fn add(&self, matrix: &Matrix) {
        if self.collects {
            self.made.borrow_mut().push(matrix.clone());
        }
    }

    /// Whether all that was asked for was here.
    fn served(&self) -> bool {
        self.file.is_some() && self.made.borrow().is_empty()
    }
}

/// The packed weights of one load: looked for before it, and kept after it.
pub(super) struct Packing {
    place: std::result::Result<Place, String>,
    /// Why a file that was there is not used.
    pub refused: Option<String>,
    pub matrices: PackedMatrices,
}

/// Where the packed weights of a load are kept, and as what.
struct Place {
    store: Store,
    path: PathBuf,
    origin: Origin,
    stamps: Vec<(PathBuf, Stamp)>,
}

impl Packing {
    /// `wanted`: whether the caller wants them kept.
    ///
    /// # Errors
    /// `InvalidRequest` if a variable of the environment says what it cannot.
    pub fn new(
        wanted: bool,
        weights: &Weights,
        config: &Config,
        quantize: Option<WeightType>,
        ops: &Ops,
    ) -> Result<Packing> {
        let limits = Limits::of(&Env::Process)?;
        let place = match (wanted, ops.panel_layout()) {
            (false, _) => Err("packed_cache is off".to_string()),
            (_, None) => Err("this device packs no weights".to_string()),
            (true, Some(layout)) => Place::new(limits, weights, config, quantize, layout),
        };
        let mut packing = Packing { place, refused: None, matrices: PackedMatrices::default() };
        if let Ok(place) = &packing.place {
            match PackedFile::open(&place.path, &place.origin, ops) {
                Ok(file) => packing.matrices.file = file,
                Err(why) => {
                    // It must not be taken for one that another process has just written.
                    let _ = std::fs::remove_file(&place.path);
                    packing.refused = Some(format!("{}: {why}", place.path.display()));
                }
            }
            packing.matrices.collects = true;
        }
        Ok(packing)
    }

    /// What is done once the model is there: the file is marked as used, or begun to be written.
    pub fn end(self, ops: &Ops) -> State {
        let place = match self.place {
            Ok(place) => place,
            Err(why) => return State::new(Packed::NotKept(why)),
        };
        if self.matrices.served() {
            place.store.mark_used(&place.path);
            return State::new(Packed::Mapped);
        }
        let Place { store, path, origin, stamps } = place;
        // Of a file that served in part the rest is not here to be written.
        if self.matrices.file.is_some() {
            let _ = std::fs::remove_file(&path);
            return State::new(Packed::NotKept("the file held other matrices, and was removed".into()));
        }
        let made = self.matrices.made.into_inner();
        let panels: Vec<_> = made
            .into_iter()
            .filter_map(|matrix| {
                Some((matrix.name().to_owned(), [matrix.n(), matrix.k()], ops.panels(&matrix)?))
            })
            .collect();
        writer::start(writer::Job { store, path, origin, stamps, panels })
    }
}

impl Place {
    fn new(
        limits: Limits,
        weights: &Weights,
        config: &Config,
        quantize: Option<WeightType>,
        layout: u32,
    ) -> std::result::Result<Place, String> {
        let store = Store::new(&Env::Process, limits)?;
        store.check_size(weights.total_bytes(), quantize.is_some())?;
        let source = weights.source().canonicalize().map_err(|error| error.to_string())?;
        let mut stamps = Vec::new();
        for (path, map) in weights.maps() {
            let data = map.metadata().ok_or("the weights are not in a file")?;
            stamps.push((path.to_path_buf(), Stamp::from(data)));
        }
        let quantize = quantize.map(|to| to.name().to_owned());
        let version = format!("{} {layout}", env!("CARGO_PKG_VERSION"));
        let name = format!("{:?} {quantize:?} {version}", source.as_os_str().as_encoded_bytes());
        let how = weights.quantization();
        let key =
            format!("{config:?} {how:?} {:?}", stamps.iter().map(|(_, stamp)| stamp).collect::<Vec<_>>());
        Ok(Place {
            path: store.path(&hex(&Sha256::digest(name), 32)),
            store,
            origin: Origin {
                source: source.to_string_lossy().into_owned(),
                quantize,
                version,
                key: hex(&Sha256::digest(key), 64),
            },
            stamps,
        })
    }
}

#[cfg(test)]
mod tests;

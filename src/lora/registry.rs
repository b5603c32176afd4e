//! The adapters of an engine: by name, in memory as long as there is room, leased to requests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sha2::{Digest, Sha256};

use super::{AdapterFile, AdapterFormat, AdapterLease, AdapterSlots, BoundAdapter};
use crate::error::{Error, Result, quoted};
use crate::model::Decoder;

/// Characters of a name.
const MAX_NAME: usize = 128;

/// An adapter that belongs to an engine. Clones are the same one; it stays usable when its name is given to
/// another.
#[derive(Clone)]
pub struct Adapter(Arc<Inner>);

struct Inner {
    name: String,
    scale: f32,
    /// Of the numbers and the scale.
    hash: [u8; 32],
    path: Mutex<Option<PathBuf>>,
    format: AdapterFormat,
    base: Option<String>,
    notes: Vec<String>,
    rank: usize,
    targets: Vec<String>,
    bytes: usize,
    /// The engine that it belongs to.
    owner: Weak<Shared>,
    /// What it was made from, where no file has it.
    file: Option<AdapterFile>,
    /// `None`: its memory was wanted, and it comes back from its file.
    bound: Mutex<Option<Arc<BoundAdapter>>>,
    last_used: AtomicU64,
}

impl Adapter {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// SHA-256 of all that it changes, the scale included.
    pub fn hash(&self) -> &[u8; 32] {
        &self.0.hash
    }

    /// The first 16 hexadecimal digits of the hash.
    pub fn fingerprint(&self) -> String {
        hex(&self.0.hash[..8])
    }

    /// What everything it adds is multiplied by.
    pub fn scale(&self) -> f32 {
        self.0.scale
    }

    /// The folder or file that holds it; none if it was trained here and not saved.
    pub fn path(&self) -> Option<PathBuf> {
        lock(&self.0.path).clone()
    }

    /// It was saved there.
    pub fn saved_at(&self, path: &Path) {
        *lock(&self.0.path) = Some(path.to_path_buf());
    }

    pub fn format(&self) -> AdapterFormat {
        self.0.format
    }

    /// The base model that its file names.
    pub fn base(&self) -> Option<&str> {
        self.0.base.as_deref()
    }

    /// What is worth knowing of how it was read.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// The largest rank.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The modules that it changes, without their layers.
    pub fn targets(&self) -> &[String] {
        &self.0.targets
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Whether it is in memory now.
    pub fn is_loaded(&self) -> bool {
        lock(&self.0.bound).is_some()
    }

    /// The numbers, where no file has them.
    pub fn file(&self) -> Option<&AdapterFile> {
        self.0.file.as_ref()
    }

    /// Its numbers: those in memory, or what its file has.
    ///
    /// # Errors
    /// `ModelFile` if its file is not what it was; what reading it says.
    pub fn read(&self) -> Result<AdapterFile> {
        if let Some(file) = self.file() {
            return Ok(file.clone());
        }
        let path = self.path().ok_or_else(|| Error::internal("an adapter without a file was dropped"))?;
        let file = super::open(&path)?;
        if scaled_hash(&file.hash, self.0.scale) != self.0.hash {
            return Err(Error::model_file(format!(
                "{}: the adapter's file has changed since it was loaded; load it anew",
                path.display()
            )));
        }
        Ok(file)
    }

    fn salt(&self) -> u64 {
        let first = self.0.hash.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        first.max(1) // 0 is the base
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Adapter({}, {})", self.0.name, self.fingerprint())
    }
}

/// The adapters of one engine.
#[derive(Clone)]
pub struct AdapterRegistry(Arc<Shared>);

impl std::fmt::Debug for AdapterRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

struct Shared {
    decoder: Arc<Decoder>,
    slots: Arc<AdapterSlots>,
    /// Bytes that adapters in memory may have together.
    limit: u64,
    clock: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    named: BTreeMap<String, Adapter>,
    /// All that still exist, named or not.
    all: Vec<Weak<Inner>>,
}

impl State {
    /// A name for an adapter that was given none: that of its file, or if another one has it, with its hash.
    fn free_name(&self, file: &AdapterFile, hash: &[u8; 32]) -> String {
        let stem = file.source.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = stem.filter(|stem| check_name(stem).is_ok()).unwrap_or_else(|| "adapter".into());
        match self.named.get(&name).is_some_and(|other| other.0.hash != *hash) {
            true => format!("{name}-{}", hex(&hash[..4])),
            false => name,
        }
    }
}

impl AdapterRegistry {
    /// `limit`: bytes that those in memory may have together.
    pub fn new(decoder: Arc<Decoder>, limit: u64) -> Self {
        let (slots, clock, state) = (Arc::default(), AtomicU64::new(1), Mutex::default());
        AdapterRegistry(Arc::new(Shared { decoder, slots, limit, clock, state }))
    }

    /// Where steps find those that requests hold.
    pub fn slots(&self) -> &Arc<AdapterSlots> {
        &self.0.slots
    }

    /// Takes an adapter in under a name, which is its from now on: requests in work end with what had it
    /// before. Without a name it is called after its file, and takes nobody's name.
    ///
    /// # Errors
    /// `InvalidRequest` for a name or a scale; what [`BoundAdapter::bind`] says; `OutOfMemory` naming
    /// `adapter_memory`.
    pub fn add(&self, file: AdapterFile, name: Option<&str>, scale: f32) -> Result<Adapter> {
        if !scale.is_finite() {
            return Err(Error::invalid(format!("scale is {scale}; it must be a finite number")));
        }
        name.map_or(Ok(()), check_name)?;
        let hash = scaled_hash(&file.hash, scale);
        let mut state = lock(&self.0.state);
        let name = name.map_or_else(|| state.free_name(&file, &hash), str::to_string);
        if let Some(twin) = state.named.get(&name).filter(|twin| twin.0.hash == hash) {
            return Ok(twin.clone());
        }
        drop(state);
        let made = self.make(file, &name, scale, hash)?;
        state = lock(&self.0.state);
        state.all.retain(|it| it.strong_count() > 0);
        state.all.push(Arc::downgrade(&made.0));
        self.make_room(&state, &made)?;
        state.named.insert(name, made.clone());
        Ok(made)
    }

    fn make(&self, file: AdapterFile, name: &str, scale: f32, hash: [u8; 32]) -> Result<Adapter> {
        let bound = BoundAdapter::bind(&file, &self.0.decoder, scale)?;
        let notes = file.notes.iter().chain(bound.notes()).cloned().collect();
        let (rank, targets, bytes) = (bound.rank(), bound.targets().to_vec(), bound.bytes());
        Ok(Adapter(Arc::new(Inner {
            name: name.to_string(),
            scale,
            hash,
            path: Mutex::new((file.format != AdapterFormat::Trained).then(|| file.source.clone())),
            format: file.format,
            base: file.base.clone(),
            notes,
            rank,
            targets,
            bytes,
            owner: Arc::downgrade(&self.0),
            file: (file.format == AdapterFormat::Trained).then_some(file),
            bound: Mutex::new(Some(Arc::new(bound))),
            last_used: AtomicU64::new(self.tick()),
        })))
    }

    fn tick(&self) -> u64 {
        self.0.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// The adapter of a name.
    ///
    /// # Errors
    /// `InvalidRequest` that lists the names there are.
    pub fn get(&self, name: &str) -> Result<Adapter> {
        let state = lock(&self.0.state);
        state.named.get(name).cloned().ok_or_else(|| unknown(name, &state))
    }

    /// All that have names, by name.
    pub fn list(&self) -> Vec<Adapter> {
        lock(&self.0.state).named.values().cloned().collect()
    }

    /// Takes a name away. Who holds the adapter may go on with it.
    ///
    /// # Errors
    /// `InvalidRequest` that lists the names there are.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut state = lock(&self.0.state);
        match state.named.remove(name) {
            Some(_) => Ok(()),
            None => Err(unknown(name, &state)),
        }
    }

    /// Holds an adapter in memory for a request.
    ///
    /// # Errors
    /// `InvalidRequest` for an adapter of another engine; what reading its file says, if it was dropped from
    /// memory and its file is not what it was; `OutOfMemory` naming `adapter_memory`.
    pub fn lease(&self, adapter: &Adapter) -> Result<AdapterLease> {
        let bound = self.bound(adapter)?;
        let lease = self.0.slots.lease(&bound, adapter.salt());
        self.make_room(&lock(&self.0.state), adapter)?;
        Ok(lease)
    }

    /// What an adapter changes, brought back from its file if it was dropped.
    ///
    /// # Errors
    /// As [`AdapterRegistry::lease`].
    pub(crate) fn bound(&self, adapter: &Adapter) -> Result<Arc<BoundAdapter>> {
        if !std::ptr::eq(adapter.0.owner.as_ptr(), Arc::as_ptr(&self.0)) {
            return Err(Error::invalid(format!(
                "the adapter {} belongs to another model; load it with this one",
                quoted(adapter.name())
            )));
        }
        adapter.0.last_used.store(self.tick(), Ordering::Relaxed);
        let mut place = lock(&adapter.0.bound);
        Ok(match &*place {
            Some(bound) => bound.clone(),
            None => place.insert(Arc::new(self.reload(adapter)?)).clone(),
        })
    }

    fn reload(&self, adapter: &Adapter) -> Result<BoundAdapter> {
        let file = adapter.read()?;
        BoundAdapter::bind(&file, &self.0.decoder, adapter.0.scale)
    }

    /// Drops adapters that nobody uses, the least recently used first, until all fit.
    fn make_room(&self, state: &State, wanted: &Adapter) -> Result<()> {
        let mut loaded: Vec<_> =
            state.all.iter().filter_map(Weak::upgrade).filter(|it| lock(&it.bound).is_some()).collect();
        let mut sum: u64 = loaded.iter().map(|it| it.bytes as u64).sum();
        loaded.sort_by_key(|it| it.last_used.load(Ordering::Relaxed));
        for it in loaded {
            if sum <= self.0.limit {
                return Ok(());
            }
            let idle = lock(&it.bound).as_ref().is_some_and(|bound| Arc::strong_count(bound) == 1);
            let comes_back = lock(&it.path).is_some();
            if idle && comes_back && !Arc::ptr_eq(&it, &wanted.0) {
                *lock(&it.bound) = None;
                sum -= it.bytes as u64;
            }
        }
        match sum <= self.0.limit {
            true => Ok(()),
            false => Err(Error::out_of_memory(format!(
                "adapters in use take {sum} bytes, and adapter_memory is {}; raise it, or use fewer at once",
                self.0.limit
            ))),
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scaled_hash(hash: &[u8; 32], scale: f32) -> [u8; 32] {
    Sha256::new().chain_update(hash).chain_update(scale.to_le_bytes()).finalize().into()
}

fn unknown(name: &str, state: &State) -> Error {
    let names: Vec<_> = state.named.keys().map(String::as_str).collect();
    let there =
        if names.is_empty() { "none is loaded".into() } else { format!("loaded are {}", names.join(", ")) };
    Error::invalid(format!("there is no adapter {}; {there} (load_adapter)", quoted(name)))
}

/// Names come into file names and addresses of servers: what is safe in one is safe here.
fn check_name(name: &str) -> Result<()> {
    let fine = crate::hub::is_safe_name(name) && !name.contains('/') && name.chars().count() <= MAX_NAME;
    match fine {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{} cannot be the name of an adapter: up to {MAX_NAME} letters, digits, spaces and -_.+@, not beginning \
             with a dot",
            quoted(name)
        ))),
    }
}

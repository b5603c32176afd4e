use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::file::{self, Named, Origin, PackedFile};
use super::store::{Limits, Store};
use super::*;
use crate::kernels::{Isa, KvType};
use crate::weights::{Bytes, WeightTensor};

/// More than one piece of panels, and each way in which they are stored.
const MATRICES: [(WeightType, usize, usize); 5] = [
    (WeightType::Q4K, 33, 512),
    (WeightType::F32, 5, 3),
    (WeightType::Q8_0, 4096, 1024),
    (WeightType::BF16, 17, 64),
    (WeightType::Q6K, 16, 256),
];

fn ops() -> Ops {
    Ops::cpu_with(2, KvType::BF16, Isa::named("scalar").unwrap()).unwrap()
}

fn origin() -> Origin {
    let text = |text: &str| text.to_owned();
    Origin { source: text("/m.gguf"), quantize: None, version: text("1 1"), key: text("k") }
}

fn named(ops: &Ops) -> Vec<Named> {
    let named = |(at, (dtype, n, k)): (usize, (WeightType, usize, usize))| {
        let byte = |i: usize| ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8;
        let data = Bytes::from_vec((0..n * dtype.row_bytes(k).unwrap()).map(byte).collect());
        let tensor = WeightTensor { name: format!("w{at}"), dtype, shape: vec![n, k], data };
        let matrix = ops.matrix(&tensor).unwrap();
        (tensor.name, [n, k], ops.panels(&matrix).unwrap())
    };
    MATRICES.into_iter().enumerate().map(named).collect()
}

/// A file in a folder of its own, and what was written.
struct Bench {
    folder: tempfile::TempDir,
    ops: Ops,
    bytes: Vec<u8>,
    panels: Vec<Named>,
}

impl Bench {
    fn new() -> Bench {
        let (folder, ops) = (tempfile::tempdir().unwrap(), ops());
        let panels = named(&ops);
        let path = folder.path().join("whole");
        file::write(&path, &origin(), &panels, &mut || Ok(())).unwrap();
        Bench { bytes: std::fs::read(path).unwrap(), folder, ops, panels }
    }

    fn open(&self, bytes: &[u8], origin: &Origin) -> std::result::Result<PackedFile, String> {
        let path = self.folder.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        PackedFile::open(&path, origin, &self.ops).map(|file| file.expect("it is there"))
    }

    fn refused(&self, bytes: &[u8]) -> String {
        self.open(bytes, &origin()).err().unwrap_or_else(|| "used".into())
    }
}

#[test]
fn what_was_written_is_found_and_asked_for_in_order() {
    let bench = Bench::new();
    let file = bench.open(&bench.bytes, &origin()).unwrap();
    for (at, ((name, shape, panels), (dtype, ..))) in bench.panels.iter().zip(MATRICES).enumerate() {
        let found = file.panels(at, name, dtype, *shape).unwrap();
        assert!(found[..] == panels[..] && found.as_ptr().addr().is_multiple_of(64), "{name}");
        // Another one than the file has there.
        assert!(file.panels(at, "v", dtype, *shape).is_none());
        assert!(file.panels(at, name, WeightType::F16, *shape).is_none());
        assert!(file.panels(at, name, dtype, [shape[0] + 1, shape[1]]).is_none());
        assert!(file.panels(at + 1, name, dtype, *shape).is_none());
    }
    let absent = bench.folder.path().join("absent");
    assert!(PackedFile::open(&absent, &origin(), &bench.ops).unwrap().is_none());
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let bench = Bench::new();
    let len = bench.bytes.len();
    for cut in [0, 1, 8, 15, 16, 40, 103, 104, 4095, 4096, 4097, 1 << 20, 4 << 20, len - 4096, len - 1] {
        let why = bench.refused(&bench.bytes[..cut]);
        let empty = cut == 0 && why == "it was cut off";
        assert!(empty || why == "it was cut off", "{cut}: {why}");
    }
    assert_eq!(bench.refused(&[&bench.bytes[..], b"x"].concat()), "it was cut off", "or grew");
}

#[test]
fn an_altered_byte_is_found_wherever_it_is() {
    let bench = Bench::new();
    let mut bytes = bench.bytes.clone();
    let len = bytes.len();
    let head = (0..4096).step_by(29);
    let table = (len - 700..len).step_by(23);
    for at in head.chain((4096..len).step_by(len / 60)).chain(table) {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        assert_ne!(bench.refused(&bytes), "used", "byte {at}");
        bytes[at] ^= bit;
    }
    // Changes that a sum of words would not see: two words changed places, and the same bit of two.
    for apart in [8, 64, 4096] {
        let mut bytes = bench.bytes.clone();
        let (a, b) = bytes[1 << 20..].split_at_mut(apart);
        a[..8].swap_with_slice(&mut b[..8]);
        assert_eq!(bench.refused(&bytes), "its weights were altered", "{apart}");
        let mut bytes = bench.bytes.clone();
        bytes[1 << 20] ^= 128;
        bytes[(1 << 20) + apart] ^= 128;
        assert_eq!(bench.refused(&bytes), "its weights were altered", "{apart}");
    }
}

#[test]
fn packed_weights_of_something_else_are_refused() {
    let bench = Bench::new();
    let other = |change: fn(&mut Origin)| {
        let mut origin = origin();
        change(&mut origin);
        bench.open(&bench.bytes, &origin).err().unwrap()
    };
    assert_eq!(other(|origin| origin.version = "1 2".into()), "it was packed by another version");
    for change in [
        |origin: &mut Origin| origin.key = "l".into(),
        |origin: &mut Origin| origin.quantize = Some("Q8_0".into()),
        |origin: &mut Origin| origin.source = "/n.gguf".into(),
    ] {
        assert_eq!(other(change), "it was packed from other files than are there now");
    }
    let mut bytes = bench.bytes.clone();
    bytes[8] = 2;
    assert_eq!(bench.refused(&bytes), "it is of another version");
    assert_eq!(bench.refused(&[b'{'; 5000]), "it holds no packed weights");
}

/// Hashes are right, and what they are of is not: no place in the file is believed.
#[test]
fn a_table_that_lies_is_refused_or_serves_nothing() {
    let bench = Bench::new();
    let start = u64::from_le_bytes(*bench.bytes[24..].first_chunk().unwrap()) as usize;
    let table = String::from_utf8(bench.bytes[start..].to_vec()).unwrap();
    let forged = |table: &str, start: usize| {
        let mut bytes = bench.bytes[..start].to_vec();
        bytes.extend(table.as_bytes());
        let head = file::head(start, table.as_bytes());
        bytes[..head.len()].copy_from_slice(&head);
        bytes
    };
    assert_eq!(bench.refused(&forged(&table, start)), "used", "the forger's own works");
    let first = format!("\"at\":4096,\"bytes\":{}", bench.panels[0].2.len());
    assert!(table.contains(&first), "{table}");
    let max = usize::MAX;
    for lie in [
        "\"at\":4097,\"bytes\":64".to_owned(),
        format!("\"at\":4096,\"bytes\":{max}"),
        format!("\"at\":{},\"bytes\":64", max - 63),
    ] {
        let file = bench.open(&forged(&table.replace(&first, &lie), start), &origin()).unwrap();
        assert!(file.panels(0, "w0", WeightType::Q4K, [33, 512]).is_none(), "{lie}");
    }
    // Bytes that are there and are not that matrix's.
    let lie = table.replace(&first, "\"at\":4096,\"bytes\":64");
    let matrices = PackedMatrices {
        file: bench.open(&forged(&lie, start), &origin()).ok(),
        ..PackedMatrices::default()
    };
    assert!(matrices.take(&bench.ops, "w0", WeightType::Q4K, &[33, 512]).is_none());
    for lie in [
        "[1]",
        "{}",
        "",
        &table.replace("\"sums\":[", "\"sums\":[1,"),
        &table.replace("\"n\":33", "\"n\":-1"),
    ] {
        assert_ne!(bench.refused(&forged(lie, start)), "used", "{lie}");
    }
}

fn limits(pairs: &[(&str, &str)]) -> Result<Limits> {
    Limits::of(&Env::fixed(pairs.iter().copied()))
}

#[test]
fn the_environment_is_read_or_refused_by_name() {
    assert_eq!(limits(&[]).unwrap(), limits(&[("TALLOW_PACKED_CACHE_GB", "32")]).unwrap());
    for text in ["much", "-1", "inf", "nan"] {
        for name in ["TALLOW_PACKED_CACHE_GB", "TALLOW_PACKED_CACHE_LEAST_MB"] {
            let error = limits(&[(name, text)]).unwrap_err();
            assert!(error.message().contains(name) && error.message().contains(text), "{error}");
        }
    }
    let env = Env::fixed(HashMap::from([("TALLOW_CACHE", "/c")]));
    let off = limits(&[("TALLOW_PACKED_CACHE_GB", "0")]).unwrap();
    assert_eq!(Store::new(&env, off).err().unwrap(), "TALLOW_PACKED_CACHE_GB is 0");
    let store = Store::new(&env, limits(&[]).unwrap()).unwrap();
    assert_eq!(store.path("ab"), Path::new("/c/packed/ab.panels"));
    assert!(store.check_size(255_000_000, false).is_err() && store.check_size(255_000_000, true).is_ok());
    assert!(store.check_size(256_000_000, false).is_ok());
}

/// The store of a folder, with room for so many bytes.
fn store(folder: &Path, bytes: u64) -> Store {
    let gigabytes = format!("{}", bytes as f64 / 1e9);
    let env = Env::fixed([("TALLOW_CACHE", folder.to_str().unwrap())]);
    let store = Store::new(&env, limits(&[("TALLOW_PACKED_CACHE_GB", &gigabytes)]).unwrap()).unwrap();
    store.prepare().unwrap();
    store
}

#[test]
fn the_longest_unused_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 1000);
    let put = |name: &str, bytes: usize, age: u64| {
        let path = folder.path().join("packed").join(name);
        std::fs::write(&path, vec![0; bytes]).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        path
    };
    let [old, new] = [put("old.panels", 400, 500), put("new.panels", 400, 100)];
    let [dead, written, other] = [put("a.tmp", 9, 4000), put("b.tmp", 9, 10), put("c", 9, 9999)];
    let next = folder.path().join("packed/next.panels");
    assert!(store.make_room(&next, 1001).unwrap_err().contains("TALLOW_PACKED_CACHE_GB allows"));
    assert!(old.exists() && new.exists() && !dead.exists() && written.exists() && other.exists());
    // A file that is replaced needs no other's room.
    store.make_room(&old, 600).unwrap();
    assert!(old.exists() && new.exists());
    store.mark_used(&old);
    store.make_room(&next, 500).unwrap();
    assert!(old.exists() && !new.exists());
    // More than a quarter of any disk.
    let roomy = super::tests::store(folder.path(), u64::MAX / 4);
    let why = roomy.make_room(&next, u64::MAX / 8).unwrap_err();
    assert!(why.contains("a quarter") && old.exists(), "{why}");
}

#[test]
fn one_writes_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 1000);
    let held = store.try_lock().unwrap().unwrap();
    assert!(store.try_lock().unwrap().is_none());
    drop(held);
    assert!(store.try_lock().unwrap().is_some());
}

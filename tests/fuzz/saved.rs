//! Files that this program writes itself and believes no more than others: saved prefixes, packed weights.

use std::sync::LazyLock;

use serde_json::json;
use sha2::{Digest, Sha256};
use tallow::cache::prefix_file::Prefix;
use tallow::error::ErrorKind;
use tallow::kernels::{Isa, KvType, Ops};
use tallow::model::{packed_of, packed_sums, read_packed};
use tallow::weights::Bytes;

use super::parts::{Part, join, split};
use super::rules::taken;
use super::{Outcome, Target, folder};

const COMPUTATION: &str = "a/cpu";

pub const PREFIX: Target =
    Target { name: "prefix", parts: &[Part::Safetensors], seeds: prefix_seeds, run: prefix };

/// Parts: the table, and the panels; the head is made, since its hashes let no damage behind them. Without
/// panels the table is the whole file.
pub const PACKED: Target =
    Target { name: "packed", parts: &[Part::Json, Part::Bytes], seeds: packed_seeds, run: packed };

/// As it is, and with the checksum that its damage would need.
fn prefix(input: &[u8]) -> Outcome {
    let read = |bytes: &[u8]| {
        let path = folder::with(&[("a.safetensors", bytes)]).join("a.safetensors");
        taken(&Prefix::read(&path, COMPUTATION), &[ErrorKind::ModelFile])
    };
    Ok(read(input)? | signed(input).map_or(Ok(false), |bytes| read(&bytes))?)
}

fn signed(input: &[u8]) -> Option<Vec<u8>> {
    let file = safetensors::SafeTensors::deserialize(input).ok()?;
    let mut hash = Sha256::new();
    hash.update(file.tensor("tokens").ok()?.data());
    hash.update(file.tensor("state").ok()?.data());
    let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let mark = b"\"sha256\":\"";
    let at = input.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let mut bytes = input.to_vec();
    bytes.get_mut(at..at + sum.len())?.copy_from_slice(sum.as_bytes());
    Some(bytes)
}

fn prefix_seeds() -> Vec<Vec<u8>> {
    let seed = |pages: u32| {
        let bytes = Bytes::from_vec((0..pages * 24).map(|byte| byte as u8).collect());
        let path = folder::path("seed.safetensors");
        Prefix { tokens: (0..16 * pages).collect(), bytes }.write(&path, COMPUTATION).unwrap();
        std::fs::read(path).unwrap()
    };
    vec![seed(1), seed(3)]
}

fn packed(input: &[u8]) -> Outcome {
    let parts = split(input, 2);
    let bytes = if parts[1].is_empty() { parts[0].to_vec() } else { packed_of(parts[0], parts[1]) };
    static OPS: LazyLock<Ops> =
        LazyLock::new(|| Ops::cpu_with(1, KvType::BF16, Isa::named("scalar").unwrap()).unwrap());
    let path = folder::with(&[("a.panels", &bytes)]).join("a.panels");
    match read_packed(&path, &OPS) {
        Ok(_) => Ok(true),
        Err(why) if why.chars().count() < 2000 => Ok(false),
        Err(why) => Err(format!("a long reason: {why:.2000}")),
    }
}

/// Panels of 16 rows, and a table of them with the sums that they have.
fn packed_seeds() -> Vec<Vec<u8>> {
    let panels: Vec<u8> = (0..1024u32).map(|byte| (byte * 7) as u8).collect();
    let row = |name: &str, dtype: &str, n: usize, k: usize, at: usize, bytes: usize| json!({"name": name, "dtype": dtype, "n": n, "k": k, "at": at, "bytes": bytes});
    let table = |matrices: Vec<serde_json::Value>| {
        let origin = json!({"source": "/m.gguf", "quantize": null, "version": "1 1", "key": "k"});
        let sums = packed_sums(&panels);
        json!({"origin": origin, "matrices": matrices, "sums": sums}).to_string().into_bytes()
    };
    let tables = [
        table(vec![row("a", "F32", 16, 4, 4096, 256), row("b", "F32", 5, 3, 4352, 192)]),
        table(vec![row("a", "Q8_0", 16, 32, 4096, 544), row("b", "BF16", 16, 4, 4672, 128)]),
        table(vec![row("a", "Q4_0", 16, 32, 4096, 288)]),
    ];
    let mut seeds: Vec<_> = tables.iter().map(|table| join(&[table, &panels])).collect();
    seeds.push(join(&[packed_of(&tables[0], &panels), vec![]]));
    seeds
}

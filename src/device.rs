//! Where a model runs, chosen once: "auto", "cpu", "cuda:0", "metal", and in which numbers it computes.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device};

use crate::config::{Config, MixerConfig};
use crate::error::{Error, Result};
use crate::kernels::{KvType, Ops};

/// The numbers that activations are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComputeType {
    F32,
    F16,
    BF16,
}

impl ComputeType {
    pub fn name(self) -> &'static str {
        match self {
            ComputeType::F32 => "float32",
            ComputeType::F16 => "float16",
            ComputeType::BF16 => "bfloat16",
        }
    }

    fn parse(name: &str) -> Result<Option<Self>> {
        match name {
            "auto" => Ok(None),
            "float32" | "f32" => Ok(Some(ComputeType::F32)),
            "float16" | "f16" => Ok(Some(ComputeType::F16)),
            "bfloat16" | "bf16" => Ok(Some(ComputeType::BF16)),
            _ => Err(Error::invalid(format!(
                "dtype {name:?} is not known; use \"auto\", \"float32\", \"float16\" or \"bfloat16\""
            ))),
        }
    }

    fn candle(self) -> DType {
        match self {
            ComputeType::F32 => DType::F32,
            ComputeType::F16 => DType::F16,
            ComputeType::BF16 => DType::BF16,
        }
    }
}

/// A device and a compute type that go together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    device: Place,
    pub compute: ComputeType,
    /// Whether the CPU computes exactly: if "float32" was asked for by name.
    exact: bool,
    /// What the CPU keeps keys and values in; `None`: what suits the model ([`Placement::for_model`]).
    kv: Option<KvType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Cpu,
    Cuda(usize),
    Metal(usize),
}

impl Placement {
    /// Reads three arguments of `Model`.
    ///
    /// # Errors
    /// `InvalidRequest` for what is not known or does not go together, `Device` for a device that this build
    /// has not.
    pub fn parse(device: &str, dtype: &str, kv_type: &str) -> Result<Self> {
        let (compute, kv) = (ComputeType::parse(dtype)?, parse_kv(kv_type)?);
        let device = match device {
            "auto" => automatic(),
            "cpu" => Place::Cpu,
            _ => accelerator(device)?,
        };
        if device != Place::Cpu && kv.is_some() {
            return Err(Error::invalid(format!(
                "kv_type {kv_type:?} is the CPU's; other devices keep keys and values in dtype, so leave it out"
            )));
        }
        let exact = compute == Some(ComputeType::F32);
        let compute = match (device, compute) {
            (Place::Cpu, None | Some(ComputeType::F32)) => ComputeType::F32,
            (Place::Cpu, Some(other)) => {
                return Err(Error::invalid(format!(
                    "dtype {:?} is not available on the CPU, which chooses by the weights what it computes in; \
                     use dtype=\"auto\", or \"float32\" for exact keys and values",
                    other.name()
                )));
            }
            (_, compute) => compute.unwrap_or(ComputeType::BF16),
        };
        Ok(Placement { device, compute, exact, kv })
    }

    /// The same with the type of keys and values that suits a model, if none was asked for. `plain_keys`: its
    /// keys have neither biases nor norms. `embeds`: it is made for vectors.
    #[must_use]
    pub fn for_model(self, config: &Config, plain_keys: bool, embeds: bool) -> Self {
        let kv = match (self.kv, self.exact) {
            (Some(kv), _) => kv,
            (None, true) => KvType::F32,
            (None, false) if plain_keys && !embeds => suitable(config),
            (None, false) => KvType::BF16,
        };
        Placement { kv: Some(kv), ..self }
    }

    /// What keys and values are kept in; on other devices than the CPU that is what is computed in.
    pub fn kv_name(&self) -> &'static str {
        match (self.device, self.compute) {
            (Place::Cpu, _) => self.kv.unwrap_or_default().name(),
            (_, ComputeType::F32) => KvType::F32.name(),
            (_, ComputeType::BF16) => KvType::BF16.name(),
            (_, ComputeType::F16) => "f16",
        }
    }

    /// As users write it: "cpu", "cuda:0".
    pub fn name(&self) -> String {
        match self.device {
            Place::Cpu => "cpu".into(),
            Place::Cuda(i) => format!("cuda:{i}"),
            Place::Metal(i) => format!("metal:{i}"),
        }
    }

    /// Opens the device. `threads`: workers on the CPU.
    pub fn open(&self, threads: usize) -> Result<Ops> {
        let refused = |e: candle_core::Error| Error::device(format!("cannot open {}: {e}", self.name()));
        match self.device {
            Place::Cpu => Ops::cpu_as(threads, self.kv.unwrap_or_default(), self.exact),
            Place::Cuda(i) => Ok(Ops::candle(Device::new_cuda(i).map_err(refused)?, self.compute.candle())),
            Place::Metal(i) => Ok(Ops::candle(Device::new_metal(i).map_err(refused)?, self.compute.candle())),
        }
    }
}

fn parse_kv(name: &str) -> Result<Option<KvType>> {
    match name {
        "auto" => Ok(None),
        "int8" => Ok(Some(KvType::I8)),
        "bf16" | "bfloat16" => Ok(Some(KvType::BF16)),
        "f32" | "float32" => Ok(Some(KvType::F32)),
        _ => Err(Error::invalid(format!(
            "kv_type {name:?} is not known; use \"auto\", \"int8\", \"bf16\" or \"f32\""
        ))),
    }
}

/// Dimensions of a head whose keys and values are bytes unless asked for: more are many for one scale.
const WIDEST: usize = 128;

/// Bytes, where they are known to do no harm (docs/kernels.md has the measurements). A bias of the keys is a
/// large constant that turns with the position: it would take most of the steps that a byte has, and the rest
/// of the key the few that are left (Qwen 2). Norms of queries and keys have weights that make scores large,
/// and what is rounded off with them (Gemma 3, Qwen 3). A latent is keys and values at once, and is not one
/// head's. A vector is the last state itself, where rounding shows more than in a choice between tokens.
fn suitable(config: &Config) -> KvType {
    let fine = |mixer: &MixerConfig| match mixer.attention() {
        Some(attention) => attention.head_dim <= WIDEST,
        None => !matches!(mixer, MixerConfig::Latent(_)),
    };
    let all = config.layers.iter().filter_map(|layer| layer.mixer.as_ref()).all(fine);
    if config.causal && all { KvType::I8 } else { KvType::BF16 }
}

fn automatic() -> Place {
    if cfg!(feature = "cuda") && candle_core::utils::cuda_is_available() && Device::new_cuda(0).is_ok() {
        Place::Cuda(0)
    } else if cfg!(feature = "metal") && candle_core::utils::metal_is_available() {
        Place::Metal(0)
    } else {
        Place::Cpu
    }
}

fn accelerator(name: &str) -> Result<Place> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let built = [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))];
    let known = built.iter().find(|(known, _)| *known == kind);
    match (known, index.parse::<usize>()) {
        (Some((_, false)), Ok(_)) => Err(Error::device(format!(
            "this build of tallow has no {kind}; build it with `--features {kind}`, or use device=\"cpu\""
        ))),
        (Some(("cuda", true)), Ok(i)) => Ok(Place::Cuda(i)),
        (Some(_), Ok(i)) => Ok(Place::Metal(i)),
        _ => Err(Error::invalid(format!(
            "device {name:?} is not known; use \"auto\", \"cpu\", \"cuda\", \"cuda:0\" or \"metal\""
        ))),
    }
}

/// Physical cores that the process may use, within the quota of its control group: two threads on one core
/// share its vector units, and with a pool that spins for its work the second costs more than it computes.
pub fn default_threads() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, |n| n.get());
    cores_in(Path::new("/")).unwrap_or(logical).clamp(1, logical.min(64))
}

/// Different cores among the CPUs that Linux lets this process run on (proc(5), `Cpus_allowed_list`; sysfs,
/// `topology/thread_siblings_list`, which is the same text for all threads of a core). None where it does not
/// tell.
fn cores_in(root: &Path) -> Option<usize> {
    let status = std::fs::read_to_string(root.join("proc/self/status")).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let siblings = |cpu: usize| {
        let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(root.join(file)).ok()
    };
    let cores: Option<BTreeSet<String>> = numbers(allowed.trim())?.into_iter().map(siblings).collect();
    cores.map(|cores| cores.len()).filter(|&cores| cores > 0)
}

/// "0-3,8" as numbers.
fn numbers(list: &str) -> Option<Vec<usize>> {
    /// More CPUs than Linux can have (`NR_CPUS`).
    const MOST: usize = 1 << 13;
    let mut all = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?.min(MOST));
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn arguments_are_read_or_named() {
        let good = [("cpu", "auto", "cpu"), ("auto", "float32", "cpu"), ("cpu", "f32", "cpu")];
        if !cfg!(any(feature = "cuda", feature = "metal")) {
            for (device, dtype, name) in good {
                assert_eq!(Placement::parse(device, dtype, "auto").unwrap().name(), name);
            }
        }
        let bad = [
            ("gpu", "auto", ErrorKind::InvalidRequest),
            ("cpu", "int3", ErrorKind::InvalidRequest),
            ("cpu", "bfloat16", ErrorKind::InvalidRequest),
            ("cuda:x", "auto", ErrorKind::InvalidRequest),
        ];
        for (device, dtype, kind) in bad {
            assert_eq!(Placement::parse(device, dtype, "auto").unwrap_err().kind(), kind, "{device} {dtype}");
        }
        if !cfg!(feature = "cuda") {
            assert_eq!(Placement::parse("cuda:0", "auto", "auto").unwrap_err().kind(), ErrorKind::Device);
        }
    }

    #[test]
    fn bytes_are_kept_where_they_are_known_to_do_no_harm() {
        let llama = |head_dim: usize| {
            crate::config::hf::parse(&format!(
                r#"{{"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "vocab_size": 64,
                    "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": {head_dim},
                    "max_position_embeddings": 128, "rms_norm_eps": 1e-5}}"#
            ))
            .unwrap()
        };
        // head_dim, dtype, kv_type, plain keys, for vectors; what is kept
        let rows = [
            (64, "auto", "auto", true, false, "int8"),
            (128, "auto", "auto", true, false, "int8"),
            (144, "auto", "auto", true, false, "bf16"),
            (64, "auto", "auto", false, false, "bf16"),
            (64, "auto", "auto", true, true, "bf16"),
            (64, "float32", "auto", true, false, "f32"),
            (144, "auto", "int8", false, true, "int8"),
            (64, "auto", "bf16", true, false, "bf16"),
        ];
        for (head_dim, dtype, kv_type, plain_keys, embeds, kept) in rows {
            let placement = Placement::parse("cpu", dtype, kv_type).unwrap();
            let placement = placement.for_model(&llama(head_dim), plain_keys, embeds);
            assert_eq!(placement.kv_name(), kept, "{head_dim} {dtype} {kv_type} {plain_keys} {embeds}");
        }
    }

    #[test]
    fn threads_of_one_core_count_once() {
        let pairs = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"];
        let single = ["0", "1", "2", "3"];
        // allowed, siblings of each CPU, cores
        let rows: &[(&str, &[&str], Option<usize>)] = &[
            ("0-7", &pairs, Some(4)),
            ("0-3", &pairs, Some(4)),
            ("0,4", &pairs, Some(1)),
            ("0-1,4-5,6", &pairs, Some(3)),
            ("0-3", &single, Some(4)),
            // CPUs that sysfs does not list, and a text that is none.
            ("0-8", &pairs, None),
            ("0-", &pairs, None),
            ("", &pairs, None),
        ];
        for (allowed, siblings, cores) in rows {
            let root = tempfile::tempdir().unwrap();
            let write = |path: &str, text: &str| {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            write("proc/self/status", &format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n"));
            for (cpu, siblings) in siblings.iter().enumerate() {
                let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
                write(&file, &format!("{siblings}\n"));
            }
            assert_eq!(cores_in(root.path()), *cores, "{allowed:?}");
        }
        let logical = std::thread::available_parallelism().unwrap().get();
        assert!((1..=logical).contains(&default_threads()));
    }
}

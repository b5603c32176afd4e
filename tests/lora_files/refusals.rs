//! A sound adapter with one thing changed, and what the error says of it.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use tallow::error::ErrorKind::{self, ModelFile, UnsupportedModel};
use tallow::lora;

use crate::golden;

const LAYER: &str = "base_model.model.model.layers.0.";

/// An adapter's two files in memory.
pub struct Files {
    pub config: Map<String, Value>,
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Files {
    pub fn golden(name: &str, tensors: &str) -> Files {
        Files::open(&golden().join(name), tensors)
    }

    pub fn open(folder: &Path, tensors: &str) -> Files {
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let bytes = read(tensors);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| {
            let view = file.tensor(name).unwrap();
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Files {
            config: serde_json::from_slice(&read("adapter_config.json")).unwrap(),
            tensors: file.names().into_iter().map(tensor).collect(),
        }
    }

    pub fn write(&self, folder: &Path, tensors: &str) {
        let config = Value::from(self.config.clone()).to_string();
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        let view = |(name, (dtype, shape, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap().to_owned_view())
        };
        let views: Vec<_> = self.tensors.iter().map(view).collect();
        let views = views.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(folder.join(tensors), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config.insert(key.into(), value);
    }

    /// A tensor of zeros.
    fn add(&mut self, name: &str, shape: &[usize]) {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), bytes));
    }

    fn remove(&mut self, name: &str) {
        self.tensors.remove(name).unwrap_or_else(|| panic!("{name}"));
    }

    fn put(&mut self, name: &str, at: usize, value: f32) {
        let bytes = &mut self.tensors.get_mut(name).unwrap().2;
        bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

trait Owned {
    fn to_owned_view(&self) -> (Dtype, Vec<usize>, Vec<u8>);
}

impl Owned for TensorView<'_> {
    fn to_owned_view(&self) -> (Dtype, Vec<usize>, Vec<u8>) {
        (self.dtype(), self.shape().to_vec(), self.data().to_vec())
    }
}

type Row = (&'static str, &'static str, fn(&mut Files), ErrorKind, &'static [&'static str]);

/// What was changed, in which golden, how, and the error's kind and words.
const PEFT: &[Row] = &[
    (
        "another kind",
        "lora",
        |f| f.set("peft_type", json!("IA3")),
        UnsupportedModel,
        &["IA3", "merge_and_unload"],
    ),
    ("no kind", "lora", |f| drop(f.config.remove("peft_type")), ModelFile, &["peft_type"]),
    ("another task", "lora", |f| f.set("task_type", json!("SEQ_CLS")), UnsupportedModel, &["SEQ_CLS"]),
    ("rank as text", "lora", |f| f.set("r", json!("4")), ModelFile, &["\"r\"", "whole number"]),
    ("rank 0", "lora", |f| f.set("r", json!(0)), ModelFile, &["rank", "is 0"]),
    ("another rank", "lora", |f| f.set("r", json!(8)), ModelFile, &["down_proj", "rank 4", "says 8"]),
    ("alpha NaN", "lora", |f| f.set("lora_alpha", json!({"__float__": "NaN"})), ModelFile, &["lora_alpha"]),
    ("alpha too large", "lora", |f| f.set("lora_alpha", json!(1e300)), ModelFile, &["scale", "not finite"]),
    (
        "PiSSA",
        "lora",
        |f| f.set("init_lora_weights", json!("pissa_niter_4")),
        UnsupportedModel,
        &["pissa_niter_4", "path_initial_model_for_weight_conversion"],
    ),
    (
        "OLoRA",
        "lora",
        |f| f.set("init_lora_weights", json!("olora")),
        UnsupportedModel,
        &["olora", "changed the base"],
    ),
    (
        "unknown init",
        "lora",
        |f| f.set("init_lora_weights", json!("new")),
        UnsupportedModel,
        &["new", "not known"],
    ),
    ("QA-LoRA", "lora", |f| f.set("use_qalora", json!(true)), UnsupportedModel, &["use_qalora", "not run"]),
    (
        "aLoRA",
        "lora",
        |f| f.set("alora_invocation_tokens", json!([1, 2])),
        UnsupportedModel,
        &["alora_invocation_tokens", "activated"],
    ),
    (
        "layers twice",
        "lora",
        |f| f.set("layer_replication", json!([[0, 2]])),
        UnsupportedModel,
        &["layer_replication"],
    ),
    (
        "Arrow",
        "lora",
        |f| f.set("arrow_config", json!({"arrow_top_k": 3})),
        UnsupportedModel,
        &["arrow_config"],
    ),
    ("KaSA", "lora", |f| f.set("kasa_config", json!({"beta": 1})), UnsupportedModel, &["kasa_config"]),
    (
        "unknown key",
        "lora",
        |f| f.set("use_xlora", json!(true)),
        UnsupportedModel,
        &["use_xlora", "not known"],
    ),
    (
        "look-around",
        "lora",
        |f| f.set("rank_pattern", json!({"(?=q)q_proj": 2})),
        UnsupportedModel,
        &["rank_pattern", "(?=q)q_proj"],
    ),
    (
        "huge pattern",
        "lora",
        |f| f.set("alpha_pattern", json!({"(a{1000}){1000}": 2})),
        UnsupportedModel,
        &["alpha_pattern", "size limit"],
    ),
    (
        "pattern of text",
        "lora",
        |f| f.set("rank_pattern", json!({"q_proj": "2"})),
        ModelFile,
        &["rank_pattern", "q_proj"],
    ),
    ("rsLoRA only said", "lora", |f| f.set("use_dora", json!(true)), ModelFile, &["use_dora", "magnitude"]),
    ("a bias only said", "lora", |f| f.set("lora_bias", json!(true)), ModelFile, &["lora_bias"]),
    (
        "magnitudes not said",
        "dora",
        |f| f.set("use_dora", json!(false)),
        ModelFile,
        &["use_dora is false", "has one"],
    ),
    (
        "a target less",
        "lora",
        |f| f.set("target_modules", json!(["q_proj"])),
        ModelFile,
        &["target_modules", "ignore"],
    ),
    (
        "targets by another pattern",
        "one-layer",
        |f| f.set("target_modules", json!(".*k_proj")),
        ModelFile,
        &["target_modules", "q_proj"],
    ),
    (
        "A alone",
        "lora",
        |f| f.remove(&format!("{LAYER}self_attn.q_proj.lora_B.weight")),
        ModelFile,
        &["q_proj", "one A and one B"],
    ),
    (
        "B of another rank",
        "lora",
        |f| f.add(&format!("{LAYER}self_attn.q_proj.lora_B.weight"), &[32, 3]),
        ModelFile,
        &["q_proj", "different ranks"],
    ),
    (
        "one dimension",
        "lora",
        |f| f.add(&format!("{LAYER}self_attn.q_proj.lora_A.weight"), &[128]),
        ModelFile,
        &["q_proj.lora_A", "two dimensions"],
    ),
    (
        "nothing in it",
        "lora",
        |f| f.add(&format!("{LAYER}self_attn.q_proj.lora_A.weight"), &[0, 32]),
        ModelFile,
        &["q_proj.lora_A", "empty", "gathered"],
    ),
    (
        "rank above the cap",
        "lora",
        |f| {
            f.set("rank_pattern", json!({"layers.0.self_attn.q_proj": 3000}));
            f.add(&format!("{LAYER}self_attn.q_proj.lora_A.weight"), &[3000, 32]);
            f.add(&format!("{LAYER}self_attn.q_proj.lora_B.weight"), &[32, 3000]);
        },
        ModelFile,
        &["rank is 3000", "2048"],
    ),
    (
        "NaN",
        "lora",
        |f| f.put(&format!("{LAYER}self_attn.q_proj.lora_A.weight"), 3, f32::NAN),
        ModelFile,
        &["q_proj.lora_A.weight", "NaN"],
    ),
    (
        "infinite",
        "lora",
        |f| f.put(&format!("{LAYER}self_attn.q_proj.lora_B.weight"), 3, f32::INFINITY),
        ModelFile,
        &["q_proj.lora_B.weight", "inf"],
    ),
    (
        "another module",
        "lora",
        |f| f.add(&format!("{LAYER}self_attn.x_proj.lora_A.weight"), &[4, 32]),
        UnsupportedModel,
        &["x_proj", "another model"],
    ),
    (
        "a norm",
        "lora",
        |f| f.add(&format!("{LAYER}input_layernorm.weight"), &[32]),
        UnsupportedModel,
        &["norm"],
    ),
    (
        "a classifier",
        "lora",
        |f| f.add("base_model.model.score.weight", &[2, 32]),
        UnsupportedModel,
        &["classifier"],
    ),
    (
        "another tensor",
        "lora",
        |f| f.add(&format!("{LAYER}self_attn.q_proj.lora_E"), &[4]),
        UnsupportedModel,
        &["lora_E"],
    ),
    (
        "the adapter's name in it",
        "lora",
        |f| {
            let key = format!("{LAYER}self_attn.q_proj.lora_A");
            let tensor = f.tensors.remove(&format!("{key}.weight")).unwrap();
            f.tensors.insert(format!("{key}.default.weight"), tensor);
        },
        UnsupportedModel,
        &["lora_A.default.weight", "save_pretrained"],
    ),
    (
        "twice",
        "lora",
        |f| {
            for which in ["A", "B"] {
                let tensor = f.tensors[&format!("{LAYER}self_attn.q_proj.lora_{which}.weight")].clone();
                let key = format!("base_model.model.wrapped.layers.0.self_attn.q_proj.lora_{which}.weight");
                f.tensors.insert(key, tensor);
            }
        },
        ModelFile,
        &["the same projection"],
    ),
    (
        "twice, but for what peft puts before",
        "lora",
        |f| {
            let tensor = f.tensors[&format!("{LAYER}self_attn.q_proj.lora_A.weight")].clone();
            f.tensors.insert("model.layers.0.self_attn.q_proj.lora_A.weight".into(), tensor);
        },
        ModelFile,
        &["the same thing"],
    ),
    (
        "of an encoder",
        "lora",
        |f| f.add("base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight", &[4, 32]),
        UnsupportedModel,
        &["encoder.layers.0"],
    ),
    ("no tensors", "lora", |f| f.tensors.clear(), ModelFile, &["changes nothing"]),
    (
        "images alone",
        "lora",
        |f| {
            f.tensors.clear();
            f.add("base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight", &[4, 32]);
        },
        ModelFile,
        &["changes nothing"],
    ),
    (
        "a magnitude too short",
        "dora",
        |f| f.add(&format!("{LAYER}self_attn.q_proj.lora_magnitude_vector"), &[31]),
        ModelFile,
        &["magnitude", "31 numbers for 32"],
    ),
    (
        "a bias too long",
        "bias-lora-only",
        |f| f.add(&format!("{LAYER}self_attn.q_proj.base_layer.bias"), &[33]),
        ModelFile,
        &["bias", "33 numbers for 32"],
    ),
    (
        "what is saved is not there",
        "saved-head",
        |f| f.remove("base_model.model.lm_head.weight"),
        ModelFile,
        &["lm_head", "modules_to_save"],
    ),
    (
        "rows without tokens",
        "tokens",
        |f| f.set("trainable_token_indices", json!(null)),
        ModelFile,
        &["trainable_tokens_delta", "does not say which"],
    ),
    (
        "rows of fewer tokens",
        "tokens",
        |f| f.set("trainable_token_indices", json!([9])),
        ModelFile,
        &["2 rows", "names 1"],
    ),
    ("a token twice", "tokens", |f| f.set("trainable_token_indices", json!([9, 9])), ModelFile, &["twice"]),
    (
        "tokens of text",
        "tokens",
        |f| f.set("trainable_token_indices", json!(["a", "b"])),
        ModelFile,
        &["trainable_token_indices"],
    ),
    (
        "tokens without rows",
        "tokens",
        |f| f.remove("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"),
        ModelFile,
        &["embed_tokens", "trainable_token_indices"],
    ),
    (
        "which experts",
        "experts",
        |f| f.set("target_parameters", json!(null)),
        UnsupportedModel,
        &["experts", "target_parameters"],
    ),
    (
        "one parameter for two",
        "experts",
        |f| f.set("target_parameters", json!(["mlp.experts.down_proj"])),
        UnsupportedModel,
        &["experts.base_layer"],
    ),
    ("experts of another rank", "experts", |f| f.set("r", json!(3)), ModelFile, &["experts", "rank 3"]),
    (
        "DoRA of an embedding",
        "embedding",
        |f| {
            f.set("use_dora", json!(true));
            f.set("target_modules", json!(["embed_tokens"]));
            f.tensors.retain(|key, _| key.contains("embed"));
            f.add("base_model.model.model.embed_tokens.lora_magnitude_vector", &[32]);
        },
        UnsupportedModel,
        &["DoRA of an embedding"],
    ),
];

const MLX: &[Row] = &[
    (
        "a whole model",
        "mlx",
        |f| f.set("fine_tune_type", json!("full")),
        UnsupportedModel,
        &["full", "mlx_lm.fuse"],
    ),
    ("no scale", "mlx", |f| f.set("lora_parameters", json!({"rank": 4})), ModelFile, &["scale"]),
    ("no parameters", "mlx", |f| drop(f.config.remove("lora_parameters")), ModelFile, &["lora_parameters"]),
    (
        "another parameter",
        "mlx",
        |f| f.set("lora_parameters", json!({"scale": 2.0, "rs": true})),
        UnsupportedModel,
        &["rs"],
    ),
    (
        "another rank",
        "mlx",
        |f| f.set("lora_parameters", json!({"scale": 2.0, "rank": 5})),
        ModelFile,
        &["rank 4", "says 5"],
    ),
    ("magnitudes only said", "mlx", |f| f.set("fine_tune_type", json!("dora")), ModelFile, &["magnitude"]),
    (
        "magnitudes not said",
        "mlx-dora",
        |f| f.set("fine_tune_type", json!("lora")),
        ModelFile,
        &["magnitude"],
    ),
    (
        "A alone",
        "mlx",
        |f| f.remove("model.layers.0.self_attn.q_proj.lora_b"),
        ModelFile,
        &["one A and one B"],
    ),
    (
        "another tensor",
        "mlx",
        |f| f.add("model.layers.0.self_attn.q_proj.scales", &[4]),
        UnsupportedModel,
        &["scales"],
    ),
];

#[test]
fn what_is_wrong_is_said() {
    let mut failures = Vec::new();
    for (rows, tensors) in [(PEFT, "adapter_model.safetensors"), (MLX, "adapters.safetensors")] {
        for (what, name, change, kind, words) in rows {
            let mut files = Files::golden(name, tensors);
            change(&mut files);
            let folder = tempfile::tempdir().unwrap();
            files.write(folder.path(), tensors);
            match lora::open(folder.path()) {
                Err(error)
                    if error.kind() == *kind && words.iter().all(|word| error.message().contains(word)) => {}
                Err(error) => failures.push(format!("{what}: {error:?}")),
                Ok(_) => failures.push(format!("{what}: it was read")),
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// What is known to change nothing does not.
#[test]
fn what_changes_nothing_is_ignored() {
    let sound = lora::open(&golden().join("lora")).unwrap().hash;
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("lora_dropout", json!(0.1)),
        ("fan_in_fan_out", json!(true)),
        ("eva_config", json!({"rho": 2.0})),
        ("some_new_key", json!(null)),
        ("some_new_key", json!({})),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!("(?=.*)look-around")),
        ("base_model_name_or_path", json!("/elsewhere")),
        ("rank_pattern", json!({"proj": 7, "layers.0": 9})),
        ("task_type", json!(null)),
    ] {
        let mut files = Files::golden("lora", "adapter_model.safetensors");
        files.set(key, value.clone());
        let folder = tempfile::tempdir().unwrap();
        files.write(folder.path(), "adapter_model.safetensors");
        let adapter = lora::open(folder.path()).unwrap_or_else(|error| panic!("{key} = {value}: {error:?}"));
        assert_eq!(adapter.hash, sound, "{key} = {value}");
    }
}

/// The first pattern of the file counts, whatever the order of the alphabet.
#[test]
fn patterns_count_in_the_order_of_the_file() {
    let scale = |patterns: &str| {
        let mut files = Files::golden("lora", "adapter_model.safetensors");
        files.config.insert("alpha_pattern".into(), serde_json::from_str(patterns).unwrap());
        let folder = tempfile::tempdir().unwrap();
        files.write(folder.path(), "adapter_model.safetensors");
        let adapter = lora::open(folder.path()).unwrap();
        let of = |name: &str| adapter.modules.iter().find(|m| m.name.ends_with(name)).unwrap().pairs[0].scale;
        (of("0.self_attn.q_proj"), of("1.self_attn.q_proj"), of("0.mlp.up_proj"))
    };
    assert_eq!(scale(r#"{"q_proj": 4, "model.layers.0.self_attn.q_proj": 40}"#), (1.0, 1.0, 2.0));
    assert_eq!(scale(r#"{"model.layers.0.self_attn.q_proj": 40, "q_proj": 4}"#), (10.0, 1.0, 2.0));
    assert_eq!(scale(r#"{"layers\\.\\d\\..*": 4}"#), (1.0, 1.0, 1.0));
}

/// What lies beside the language model is left alone, and told.
#[test]
fn what_is_of_images_is_left_alone() {
    let mut files = Files::golden("lora", "adapter_model.safetensors");
    files.add("base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight", &[4, 32]);
    files.add("base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_B.weight", &[32, 4]);
    let folder = tempfile::tempdir().unwrap();
    files.write(folder.path(), "adapter_model.safetensors");
    let adapter = lora::open(folder.path()).unwrap();
    assert_eq!(adapter.notes, ["left alone: images (2 tensors)"]);
    assert_eq!(adapter.hash, lora::open(&golden().join("lora")).unwrap().hash);
}

#[test]
fn paths_that_are_no_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let words = |path: &Path| lora::open(path).unwrap_err().message().to_owned();
    assert!(words(place).contains("no adapter_model.safetensors"));
    std::fs::write(place.join("adapter_model.bin"), b"x").unwrap();
    assert!(words(place).contains("pickle"));
    std::fs::copy(golden().join("lora/adapter_model.safetensors"), place.join("a.safetensors")).unwrap();
    assert!(words(&place.join("a.safetensors")).contains("adapter_config.json"));
    assert!(words(&place.join("absent")).contains("absent"));
    let model = golden().join("../families/llama-mha/model.gguf");
    assert!(words(&model).contains("this file is a model"));
    // The file beside its configuration is the folder.
    let (file, whole) = (golden().join("lora/adapter_model.safetensors"), golden().join("lora"));
    assert_eq!(lora::open(&file).unwrap().hash, lora::open(&whole).unwrap().hash);
}

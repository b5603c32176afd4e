use super::*;
use crate::config::{LayerConfig, Scaling};
use crate::error::ErrorKind;

const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
    "num_hidden_layers": 2, "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 50}"#;

/// Replaces or adds fields of the tiny config.
fn with(changes: &str) -> String {
    let mut object: Map<String, Value> = serde_json::from_str(TINY).unwrap();
    object.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
    Value::Object(object).to_string()
}

#[test]
fn errors_name_the_field() {
    let cases = [
        ("{}", ErrorKind::ModelFile, "model_type"),
        ("[1]", ErrorKind::ModelFile, "object"),
        ("{", ErrorKind::ModelFile, "JSON"),
        (&with(r#"{"model_type": "mamba"}"#), ErrorKind::UnsupportedModel, "mamba"),
        (
            &with(&format!("{{\"model_type\": {:?}}}", "x".repeat(5000))),
            ErrorKind::UnsupportedModel,
            "xxx\"…",
        ),
        (&with(r#"{"hidden_size": null}"#), ErrorKind::ModelFile, "hidden_size"),
        (&with(r#"{"hidden_size": -1}"#), ErrorKind::ModelFile, "hidden_size"),
        (&with(r#"{"vocab_size": "many"}"#), ErrorKind::ModelFile, "vocab_size"),
        (&with(r#"{"num_key_value_heads": 3}"#), ErrorKind::ModelFile, "key/value heads"),
        (&with(r#"{"num_attention_heads": 0}"#), ErrorKind::ModelFile, "num_attention_heads"),
        (&with(r#"{"num_hidden_layers": 1000000}"#), ErrorKind::ModelFile, "num_hidden_layers"),
        (&with(r#"{"hidden_act": "mish"}"#), ErrorKind::UnsupportedModel, "mish"),
        (&with(r#"{"rms_norm_eps": 0}"#), ErrorKind::ModelFile, "epsilon"),
        (&with(r#"{"rope_scaling": {"type": "linear"}}"#), ErrorKind::ModelFile, "factor"),
        (&with(r#"{"rope_scaling": {"rope_type": "spiral"}}"#), ErrorKind::UnsupportedModel, "spiral"),
        (&with(r#"{"rope_theta": 0}"#), ErrorKind::ModelFile, "RoPE base"),
        (
            &with(r#"{"model_type": "qwen2", "layer_types": ["full_attention"]}"#),
            ErrorKind::ModelFile,
            "layer_types",
        ),
        (
            &with(r#"{"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0}"#),
            ErrorKind::ModelFile,
            "window",
        ),
        (
            &with(
                r#"{"model_type": "ministral", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": null}"#,
            ),
            ErrorKind::ModelFile,
            "sliding_window",
        ),
        (
            &with(r#"{"per_layer_config": {"1": {"head_dim": 8}}}"#),
            ErrorKind::UnsupportedModel,
            "per_layer_config",
        ),
        (
            &with(r#"{"model_type": "gemma2", "use_bidirectional_attention": true}"#),
            ErrorKind::UnsupportedModel,
            "use_bidirectional_attention",
        ),
        (
            &with(r#"{"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}"#),
            ErrorKind::UnsupportedModel,
            "full_attention",
        ),
        (
            &with(r#"{"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}"#),
            ErrorKind::UnsupportedModel,
            "linear",
        ),
        (
            &with(r#"{"rope_scaling": {"type": "yarn", "factor": 2.0}, "partial_rotary_factor": 0.5}"#),
            ErrorKind::UnsupportedModel,
            "partial_rotary_factor",
        ),
        (
            &with(
                r#"{"model_type": "qwen3_5_text", "linear_num_value_heads": 3, "linear_num_key_heads": 2}"#,
            ),
            ErrorKind::ModelFile,
            "value heads",
        ),
        (
            &with(r#"{"model_type": "qwen3_5_text", "hidden_act": "gelu"}"#),
            ErrorKind::UnsupportedModel,
            "hidden_act",
        ),
        (
            &with(r#"{"model_type": "nemotron_h", "hybrid_override_pattern": "M?"}"#),
            ErrorKind::UnsupportedModel,
            "hybrid_override_pattern",
        ),
        (
            &with(
                r#"{"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"], "time_step_limit": [1]}"#,
            ),
            ErrorKind::ModelFile,
            "time_step_limit",
        ),
        (
            &with(r#"{"model_type": "falcon_h1", "mamba_d_ssm": 64, "mamba_n_heads": 3}"#),
            ErrorKind::ModelFile,
            "mamba_n_heads",
        ),
        (
            &with(r#"{"model_type": "falcon_h1", "ssm_multipliers": [1.0]}"#),
            ErrorKind::ModelFile,
            "ssm_multipliers",
        ),
        (r#"{"model_type": "llava", "vision_config": {}}"#, ErrorKind::ModelFile, "text_config"),
        (
            r#"{"model_type": "llava", "text_config": {"model_type": "mamba"}}"#,
            ErrorKind::UnsupportedModel,
            "text_config: model_type \"mamba\"",
        ),
    ];
    for (text, kind, word) in cases {
        let error = parse(text).expect_err(text);
        assert_eq!(error.kind(), kind, "{text}: {error}");
        assert!(error.message().contains(word) && error.message().len() < 1500, "{text}: {error}");
    }
}

/// A small Gemma 4 with twelve layers, of which every sixth sees everything.
fn gemma4(changes: &str) -> String {
    let mut object: Map<String, Value> = serde_json::from_str(
        r#"{"model_type": "gemma4_text", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 12, "vocab_size": 50, "vocab_size_per_layer_input": 50, "head_dim": 16}"#,
    )
    .unwrap();
    object.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
    Value::Object(object).to_string()
}

#[test]
fn heads_by_layer_in_both_spellings() {
    let published = r#"{"global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": true}"#;
    let own = r#"{"head_dim": 32, "num_key_value_heads": 1}"#;
    let saved = format!(r#"{{"attention_k_eq_v": true, "per_layer_config": {{"05": {own}, "11": {own}}}}}"#);
    let (published, saved) = (parse(&gemma4(published)).unwrap(), parse(&gemma4(&saved)).unwrap());
    assert_eq!(published, saved);
    let heads: Vec<_> = published.layers.iter().filter_map(LayerConfig::attention).collect();
    assert_eq!((heads[4].head_dim, heads[4].kv_heads, heads[4].window), (16, 2, Some(512)));
    assert_eq!((heads[5].head_dim, heads[5].kv_heads, heads[5].window), (32, 1, None));
    assert_eq!((heads[4].value_projection, heads[5].value_projection), (Presence::Always, Presence::Never));
    // What is absent is the class's: heads of 512, per-layer embeddings of 256, a quarter of a head that
    // turns.
    let absent = parse(&gemma4("{}")).unwrap();
    assert_eq!(absent.layers[11].attention().unwrap().head_dim, 512);
    assert_eq!(absent.layers[0].per_layer.map(|per_layer| per_layer.width), Some(256));
    assert_eq!(absent.ropes[0].scaling, Scaling::Proportional { turned: 64, factor: 1.0 });
    let none = parse(&gemma4(r#"{"hidden_size_per_layer_input": null, "vocab_size_per_layer_input": 9}"#));
    assert_eq!(none.unwrap().layers[0].per_layer, None);
}

#[test]
fn layers_share_keys_and_values_of_their_own_kind() {
    let config = parse(&gemma4(r#"{"num_kv_shared_layers": 5, "use_double_wide_mlp": true}"#)).unwrap();
    let shared: Vec<_> = config.layers.iter().map(|layer| layer.attention().unwrap().shared_kv).collect();
    assert_eq!(shared[6..], [None, Some(6), Some(6), Some(6), Some(6), Some(5)]);
    let widths: Vec<_> = [6, 7].map(|i| config.layers[i].ffn.unwrap().dense().unwrap().intermediate).into();
    assert_eq!(widths, [9216, 18_432]);
}

#[test]
fn layers_that_differ_in_other_ways_are_refused() {
    use ErrorKind::{ModelFile, UnsupportedModel};
    for (changes, kind, word) in [
        (r#"{"per_layer_config": {"05": {"sliding_window": 8}}}"#, UnsupportedModel, "sliding_window"),
        (r#"{"per_layer_config": {"05": {"head_dim": 32}}}"#, UnsupportedModel, "layer 11"),
        (r#"{"per_layer_config": {"12": {"head_dim": 32}}}"#, ModelFile, "\"12\" for 12 layers"),
        (r#"{"per_layer_config": {"five": {}}}"#, ModelFile, "five"),
        (r#"{"per_layer_config": {"5": 7}}"#, ModelFile, "an object"),
        (r#"{"num_kv_shared_layers": 12}"#, ModelFile, "num_kv_shared_layers"),
        (r#"{"num_kv_shared_layers": 7}"#, ModelFile, "layer 5"),
        (r#"{"vocab_size_per_layer_input": 49}"#, UnsupportedModel, "vocab_size_per_layer_input"),
        (r#"{"use_bidirectional_attention": "all"}"#, UnsupportedModel, "all"),
        (r#"{"rope_scaling": {"type": "linear", "factor": 2.0}}"#, ModelFile, "rope_scaling"),
        (r#"{"enable_moe_block": true}"#, ModelFile, "number of experts"),
    ] {
        let error = parse(&gemma4(changes)).expect_err(changes);
        assert_eq!(error.kind(), kind, "{changes}: {error}");
        assert!(error.message().contains(word), "{changes}: {error}");
    }
    assert!(parse(&gemma4(r#"{"use_bidirectional_attention": "vision"}"#)).unwrap().causal);
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let classic = with(r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}"#);
    let modern = with(r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}"#);
    assert_eq!(parse(&classic).unwrap(), parse(&modern).unwrap());
}

#[test]
fn what_is_absent_is_the_class_default() {
    let gemma2 = parse(&with(r#"{"model_type": "gemma2"}"#)).unwrap();
    let attention = gemma2.attention().unwrap();
    assert_eq!((attention.soft_cap, gemma2.logit_cap), (Some(50.0), Some(30.0)));
    assert_eq!((attention.scale, attention.window), (0.0625, Some(4096)));
    let uncapped = parse(&with(r#"{"model_type": "gemma2", "attn_logit_softcapping": null}"#)).unwrap();
    assert_eq!(uncapped.attention().unwrap().soft_cap, None);
    // Absent means the class's 32 heads, and null as many as query heads.
    let qwen2 = with(r#"{"model_type": "qwen2", "num_attention_heads": 32}"#);
    assert_eq!(parse(&qwen2).unwrap().attention().unwrap().kv_heads, 32);
    let null = with(r#"{"model_type": "qwen2", "num_key_value_heads": null}"#);
    assert_eq!(parse(&null).unwrap().attention().unwrap().kv_heads, 4);
    let llava = r#"{"model_type": "llava", "text_config": {"vocab_size": 32064}}"#;
    let llava = parse(llava).unwrap();
    assert_eq!((llava.hidden, llava.vocab, llava.wrapper), (4096, 32064, Some("llava")));
}

#[test]
fn a_stretch_says_how_far_it_reaches() {
    for (scaling, context, longest) in [
        (r#"{"type": "dynamic", "factor": 4.0}"#, 128, 512),
        (r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96}"#, 128, 384),
        (r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}"#, 128, 128),
        (r#"{"type": "linear", "factor": 4.0}"#, 128, 128),
    ] {
        let config = parse(&with(&format!("{{\"rope_scaling\": {scaling}}}"))).unwrap();
        assert_eq!((config.context, config.longest), (context, longest), "{scaling}");
    }
}

"""The rows of the table of variant checkpoints: bases, and edits of them. Data for variants.py, which see."""

# fmt: off

VOCAB, TOKENS, KEPT = 64, 24, 12
#: Ids of the prompts: none is a special token of a wrapper.
IDS = (3, 58)
FULL, SLIDING = "full_attention", "sliding_attention"


# -- The bases ----------------------------------------------------------------------------------------------


def published(model_type, **fields):
    """A config.json as published checkpoints spell it; a value of ... leaves the key out."""
    config = dict(
        model_type=model_type, vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=5000.0,
        hidden_act="silu", bos_token_id=1, eos_token_id=2, torch_dtype="float32", transformers_version="4.51.0",
        tie_word_embeddings=False,
    )
    return {key: value for key, value in {**config, **fields}.items() if value is not ...}


GEMMA = dict(head_dim=16, tie_word_embeddings=..., rms_norm_eps=1e-6, pad_token_id=0)
QWEN2 = dict(use_sliding_window=False, sliding_window=8, max_window_layers=1)
TEXT = {
    "llama": published("llama"),
    "smollm3": published("smollm3", num_hidden_layers=5, no_rope_layer_interval=4, pad_token_id=0),
    "mistral": published("mistral", sliding_window=8, head_dim=16),
    "ministral": published("ministral", sliding_window=8, head_dim=16, num_hidden_layers=3,
                           layer_types=[SLIDING, FULL, SLIDING]),
    "qwen2": published("qwen2", num_hidden_layers=3, **QWEN2),
    "qwen3": published("qwen3", num_hidden_layers=3, head_dim=16, attention_bias=False, **QWEN2),
    "phi": published("phi", rms_norm_eps=..., layer_norm_eps=1e-5, hidden_act="gelu_new", partial_rotary_factor=0.5,
                     qk_layernorm=False, num_key_value_heads=2),
    "phi3": published("phi3", original_max_position_embeddings=64, sliding_window=8, pad_token_id=0),
    "gemma": published("gemma", hidden_act="gelu_pytorch_tanh", **GEMMA),
    "gemma2": published("gemma2", num_hidden_layers=3, hidden_act=..., hidden_activation="gelu_pytorch_tanh",
                        query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=5.0,
                        final_logit_softcapping=8.0, **GEMMA),
    "gemma3_text": published("gemma3_text", num_hidden_layers=6, hidden_act=..., hidden_activation="gelu_pytorch_tanh",
                             query_pre_attn_scalar=16, sliding_window=8, sliding_window_pattern=3,
                             rope_local_base_freq=300.0, **GEMMA),
    "seed_oss": published("seed_oss", head_dim=16, attention_bias=True, attention_out_bias=False, mlp_bias=False,
                          pad_token_id=0),
}

#: Mixtures of experts, which have rows of their own.
EXPERTS = {
    "mixtral": published("mixtral", sliding_window=None, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": published("qwen3_moe", head_dim=16, attention_bias=False, num_experts=4, num_experts_per_tok=2,
                           moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], **QWEN2),
    "olmoe": published("olmoe", num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, clip_qkv=None,
                       attention_bias=False),
}

EYE = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
IMAGE = dict(image_token_index=60)


def inner(family, *without, **fields):
    """The base of a family as the text_config of a wrapper."""
    dropped = ("torch_dtype", "transformers_version", *without)
    return {key: value for key, value in {**TEXT[family], **fields}.items() if key not in dropped}


WRAPPERS = {
    "gemma3": dict(model_type="gemma3", text_config=inner("gemma3_text"), mm_tokens_per_image=1, boi_token_index=61,
                   eoi_token_index=62, vision_config=dict(EYE, model_type="siglip_vision_model"), **IMAGE),
    "mistral3": dict(model_type="mistral3", text_config=inner("mistral", "tie_word_embeddings"), spatial_merge_size=2,
                     tie_word_embeddings=False, vision_config=dict(EYE, model_type="pixtral", head_dim=8), **IMAGE),
    "llava": dict(model_type="llava", text_config=inner("llama"), tie_word_embeddings=False,
                  vision_config=dict(EYE, model_type="clip_vision_model", projection_dim=8), **IMAGE),
    "qwen2_5_vl": dict(inner("qwen2"), model_type="qwen2_5_vl", image_token_id=60, video_token_id=61,
                       vision_start_token_id=62, vision_end_token_id=63,
                       rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]),
                       vision_config=dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, out_hidden_size=32,
                                          model_type="qwen2_5_vl", fullatt_block_indexes=[0])),
    "qwen3_vl": dict(model_type="qwen3_vl", image_token_id=60, video_token_id=61, vision_start_token_id=62,
                     vision_end_token_id=63, tie_word_embeddings=False,
                     text_config=inner("qwen3", *QWEN2, model_type="qwen3_vl_text", rope_scaling=dict(
                         rope_type="default", mrope_section=[2, 3, 3], mrope_interleaved=True)),
                     vision_config=dict(model_type="qwen3_vl", depth=1, hidden_size=8, intermediate_size=8, num_heads=1,
                                        out_hidden_size=32, deepstack_visual_indexes=[0], num_position_embeddings=16)),
    "smolvlm": dict(model_type="smolvlm", image_token_id=60, scale_factor=2, tie_word_embeddings=False,
                    text_config=inner("llama", pad_token_id=0), vision_config=dict(EYE, model_type="smolvlm_vision")),
    "idefics3": dict(model_type="idefics3", image_token_id=60, scale_factor=2, tie_word_embeddings=False,
                     text_config=inner("llama", pad_token_id=0), vision_config=dict(EYE, model_type="idefics3_vision")),
}


# -- How rows are said --------------------------------------------------------------------------------------

ROWS = []


def row(base, name, config=None, *, without=(), tensors=(), fit=False, **fields):
    """`fit`: the shapes follow the edited config. `like`: a row whose logits these must be."""
    ROWS.append(dict(name=f"{base}/{name}", base=base, config=dict(config or {}), without=list(without),
                     tensors=list(tensors), fit=fit, **fields))


def same(base, name, config=None, **fields):
    row(base, name, config, claim="same", **fields)


def moves(base, name, config=None, **fields):
    row(base, name, config, claim="moves", **fields)


def refused(base, name, words, because, config=None, **fields):
    row(base, name, config, claim=because, refused=[words] if isinstance(words, str) else words, **fields)


def drop(*patterns):
    return [["drop", pattern] for pattern in patterns]


def stray(name, *shape):
    return [["make", name, list(shape)]]


def layers_of(name):
    return CONFIGS[name].get("text_config", CONFIGS[name])["num_hidden_layers"]


CONFIGS = TEXT | EXPERTS | WRAPPERS
YARN = dict(factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
SHORT = [1.0, 1.1, 1.25, 1.4, 1.6, 1.9, 2.3, 2.8]
LONG = [1.2, 1.7, 2.5, 3.6, 5.1, 7.0, 9.5, 13.0]
FIRST = "model.layers.0."
#: Families that scale their only rope by any rule.
SCALED = [name for name in TEXT if name not in ("phi3", "gemma3_text")]
FLAT_ROPE = [name for name in TEXT if name != "gemma3_text"]
UNTIED = [name for name in TEXT if not name.startswith("gemma")]
GATED = [name for name in TEXT if name not in ("phi", "phi3")]


# -- Every family -------------------------------------------------------------------------------------------


def every_family():
    for name in TEXT:
        row(name, "published", claim="base")
        same(name, "dtype instead of torch_dtype", dict(dtype="float32"), without=["torch_dtype"])
        refused(name, "no model_type", "model_type", "raises", without=["model_type"])
        moves(name, "rope_theta absent", without=["rope_theta"])
        same(name, "rope_scaling null", dict(rope_scaling=None))
        same(name, "float64", tensors=[["cast", "*", "float64"]])
        moves(name, "bfloat16", tensors=[["cast", "*", "BF16"]])
        moves(name, "not causal", dict(is_causal=False))
        refused(name, "a layer too many", "layers.9.", "unused",
                tensors=[["copy", FIRST + "input_layernorm.weight", "model.layers.9.input_layernorm.weight"]])
        refused(name, "a layer too few", f"layers.{layers_of(name)}.|num_hidden_layers", "random",
                dict(num_hidden_layers=layers_of(name) + 1),
                without=["layer_types"] if "layer_types" in TEXT[name] else [])
        refused(name, "a scale beside a weight", "down_proj.scale|fc2.scale", "unused",
                tensors=stray(FIRST + ("mlp.fc2" if name == "phi" else "mlp.down_proj") + ".scale", 1))
        refused(name, "no final norm", "model.norm|final_layernorm", "random",
                tensors=drop("model.final_layernorm.weight" if name == "phi" else "model.norm.weight"))
        refused(name, "rope type banana", "banana", "raises", dict(rope_scaling=dict(rope_type="banana", factor=2.0)))
    for name in ("llama", "gemma3_text", "phi3"):
        same(name, "rope_theta as an integer", dict(rope_theta=5000))
        same(name, "float16", tensors=[["cast", "*", "float16"]])
        same(name, "quantization_config null", dict(quantization_config=None))
        same(name, "rotary_emb.inv_freq stored", tensors=stray(FIRST + "self_attn.rotary_emb.inv_freq", 8))
        same(name, "scales of a quantized cache stored", tensors=stray(FIRST + "self_attn.k_scale", 1)
             + stray(FIRST + "self_attn.v_scale", 1))
        refused(name, "gptq", "gptq", "raises", dict(quantization_config=dict(quant_method="gptq", bits=4, group_size=32)))
        refused(name, "bitnet online", "bitnet", "ours", dict(quantization_config=dict(
            quant_method="bitnet", linear_class="autobitlinear", quantization_mode="online")))
        refused(name, "layers that differ", "per_layer_config", "raises",
                dict(per_layer_config={"01": dict(intermediate_size=24)}))
        refused(name, "another vocabulary", "60", "raises", dict(vocab_size=60))
    for name in GATED:
        refused(name, "no gate", "gate_proj", "random", tensors=drop(FIRST + "mlp.gate_proj.weight"))
    refused("llama", "one gate packed", "gate_proj", "unused",
            tensors=[["rename", FIRST + "mlp.gate_proj.weight", FIRST + "mlp.gate_proj.qweight"]])
    for name in ("llama", "qwen2", "phi"):
        refused(name, "no v_proj", "v_proj", "random", tensors=drop(FIRST + "self_attn.v_proj.weight"))


def every_default():
    """Keys that published files leave out, and what their absence means."""
    for name in TEXT:
        eps = "layer_norm_eps" if name == "phi" else "rms_norm_eps"
        # So faint that the epsilon of the first norm counts.
        faint = [["scale", "model.embed_tokens.weight", 0.001]]
        moves(name, "epsilon absent, faint embeddings", without=[eps], tensors=faint)
        moves(name, "epsilon 1e-3, faint embeddings", {eps: 1e-3}, tensors=faint)
        same(name, "max_position_embeddings absent", without=["max_position_embeddings"], context=CONTEXTS[name])
        key = "hidden_activation" if name in ("gemma2", "gemma3_text") else "hidden_act"
        same(name, "activation absent", without=[key])
        moves(name, "activation relu", {key: "relu"})
        other = "silu" if name == "phi" or name.startswith("gemma") else "gelu_pytorch_tanh"
        moves(name, f"activation {other}", {key: other})
        refused(name, "activation mish", "mish", "ours", {key: "mish"})
    same("phi", "num_key_value_heads null", dict(num_key_value_heads=None))
    for name in ("llama", "smollm3", "qwen2", "qwen3", "phi3", "seed_oss"):
        moves(name, "num_key_value_heads null", dict(num_key_value_heads=None), fit=True)
    for name in ("llama", "phi3"):
        moves(name, "num_key_value_heads absent", without=["num_key_value_heads"], fit=True)
    for name, heads in (("smollm3", 4), ("mistral", 8), ("ministral", 8), ("gemma2", 4), ("gemma3_text", 4), ("seed_oss", 8)):
        moves(name, "num_key_value_heads absent", dict(num_attention_heads=heads), without=["num_key_value_heads"], fit=True)
    for name in ("gemma2", "gemma3_text"):
        moves(name, "num_attention_heads absent", without=["num_attention_heads"], fit=True)
    for name in ("qwen3", "gemma", "gemma2", "gemma3_text", "seed_oss"):
        moves(name, "head_dim absent", without=["head_dim"], fit=True)
    for name in ("llama", "mistral", "seed_oss"):
        same(name, "head_dim null", dict(head_dim=None))
    same("mistral", "head_dim absent", without=["head_dim"])
    for name in TEXT:
        moves(name, "head_dim 24", dict(head_dim=24), fit=True)


CONTEXTS = dict(llama=2048, smollm3=32768, mistral=131072, ministral=131072, qwen2=32768, qwen3=32768, phi=2048, phi3=4096,
                gemma=8192, gemma2=8192, gemma3_text=131072, seed_oss=524288)
#: A value for each key that some family reads; loud, where it is read.
LOUD = dict(
    attention_bias=True, attention_out_bias=True, attn_logit_softcapping=1.0, final_logit_softcapping=1.0, hidden_act="relu",
    hidden_activation="relu", layer_norm_eps=0.5, max_window_layers=0, mlp_bias=True, no_rope_layer_interval=1,
    qk_layernorm=True, query_pre_attn_scalar=64, rms_norm_eps=0.5, rope_local_base_freq=50.0, sliding_window=2,
    sliding_window_pattern=2, use_bidirectional_attention=True, use_sliding_window=True, partial_rotary_factor=0.5,
)
#: Keys that no family here reads: of other families, of older code, of training.
FOREIGN = dict(
    residual_multiplier=0.5, embedding_multiplier=3.0, attention_multiplier=0.5, logits_scaling=4.0, logit_scale=0.1,
    pretraining_tp=2, clip_qkv=0.1, use_qk_norm=True, parallel_attn=True, alibi=True, rotary_dim=4, rope_interleave=True,
    layer_norm_epsilon=0.5, norm_eps=0.5, n_layer=1, n_head=4, scale_emb=12, dim_model_base=8, scale_depth=1.4,
    num_experts_per_tok=2, attn_output_gate=True, use_mup=True, dual_chunk_attention=False, mup_width=2,
    attention_dropout=0.5, hidden_dropout=0.5, resid_pdrop=0.5, use_cache=False, auto_map=dict(AutoModel="x.Y"),
    unsloth_fixed=True, _name_or_path="x", vision_token_id=3, n_routed_experts=None, num_nextn_predict_layers=1,
)


def keys_of_others():
    """A key counts only for families that read it."""
    for name, keys in IGNORED.items():
        same(name, "keys of other families", {key: LOUD[key] for key in keys})
    for key in IGNORED["llama"]:
        same("llama", f"ignores {key}", {key: LOUD[key]})
    for name in ("qwen2", "mistral", "gemma"):
        for key in ("attention_bias", *CAPS):
            if key in IGNORED[name]:
                same(name, f"ignores {key}", {key: LOUD[key]})
    same("gemma2", "ignores hidden_act", dict(hidden_act="relu"))
    same("gemma", "ignores hidden_activation", dict(hidden_activation="relu"))
    for name in TEXT:
        keys = {key: value for key, value in FOREIGN.items() if (name, key) != ("phi3", "resid_pdrop")}
        same(name, "keys that no class reads", keys)
        same(name, "Infinity and NaN", dict(time_step_limit=[0.0, float("inf")], mask_value=-float("inf"), aux_loss=float("nan")))
        if name not in ("phi", "phi3"):
            same(name, "ignores partial_rotary_factor", dict(partial_rotary_factor=0.5))
    for name in ("llama", "mistral", "phi3", "gemma", "phi", "seed_oss"):
        kinds = [SLIDING] * layers_of(name)
        same(name, "ignores layer_types", dict(layer_types=kinds) | ({} if "sliding_window" in TEXT[name] else dict(sliding_window=2)))
    for name in ("llama", "qwen2", "gemma"):
        same(name, "ignores no_rope_layers", dict(no_rope_layers=[0] * layers_of(name)))


CAPS = ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"]
BIDIRECTIONAL = ["use_bidirectional_attention"]
SWITCH = ["use_sliding_window", "max_window_layers"]
IGNORED = {
    "llama": [*CAPS, *BIDIRECTIONAL, *SWITCH, "sliding_window", "attention_out_bias", "hidden_activation", "layer_norm_eps",
              "qk_layernorm", "no_rope_layer_interval", "rope_local_base_freq", "sliding_window_pattern"],
    "smollm3": [*CAPS, *BIDIRECTIONAL, "sliding_window", "max_window_layers", "qk_layernorm", "sliding_window_pattern"],
    "mistral": [*CAPS, *BIDIRECTIONAL, *SWITCH, "attention_bias", "mlp_bias", "hidden_activation", "sliding_window_pattern"],
    "ministral": [*CAPS, *BIDIRECTIONAL, *SWITCH, "attention_bias", "mlp_bias", "sliding_window_pattern"],
    "qwen2": [*CAPS, *BIDIRECTIONAL, "attention_bias", "mlp_bias", "qk_layernorm", "sliding_window_pattern"],
    "qwen3": [*CAPS, *BIDIRECTIONAL, "mlp_bias", "attention_out_bias", "qk_layernorm", "sliding_window_pattern"],
    "phi": [*CAPS, *BIDIRECTIONAL, *SWITCH, "sliding_window", "rms_norm_eps", "attention_bias", "mlp_bias"],
    "phi3": [*CAPS, *BIDIRECTIONAL, *SWITCH, "attention_bias", "mlp_bias", "qk_layernorm", "sliding_window_pattern"],
    "gemma": [*CAPS, *SWITCH, "sliding_window", "hidden_activation", "mlp_bias", "sliding_window_pattern"],
    "gemma2": [*SWITCH, "hidden_act", "mlp_bias", "sliding_window_pattern", "rope_local_base_freq"],
    "gemma3_text": [*SWITCH, "hidden_act", "mlp_bias", "layer_norm_eps"],
    "seed_oss": [*CAPS, *BIDIRECTIONAL, *SWITCH, "sliding_window", "qk_layernorm", "sliding_window_pattern"],
}


def ropes():
    for name in FLAT_ROPE:
        theta = dict(rope_theta=5000.0)
        partial = dict(partial_rotary_factor=0.5) if name == "phi" else {}
        same(name, "rope_parameters", dict(rope_parameters=dict(theta, rope_type="default", **partial)),
             without=["rope_theta", *partial])
        same(name, "rope_parameters without theta", dict(rope_parameters=dict(rope_type="default")))
        same(name, "rope_parameters beside another theta", dict(rope_theta=77.0, rope_parameters=dict(theta, rope_type="default")))
        same(name, "rope_scaling default", dict(rope_scaling=dict(rope_type="default")))
        same(name, "rope_scaling empty", dict(rope_scaling={}))
        same(name, "rope_parameters null", dict(rope_parameters=None))
    for name in SCALED:
        oldest = dict(rope_scaling=dict(type="linear", factor=4.0))
        moves(name, "linear, oldest spelling", oldest)
        moves(name, "linear, both spellings of the type", dict(rope_scaling=dict(type="linear", rope_type="linear", factor=4.0)),
              like=f"{name}/linear, oldest spelling")
        moves(name, "linear, rope_parameters", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=5000.0)),
              without=["rope_theta"], like=f"{name}/linear, oldest spelling")
        moves(name, "yarn as a model card advises", dict(rope_scaling=dict(type="yarn", **YARN)))
        moves(name, "yarn beside rope_parameters", dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0),
              rope_scaling=dict(rope_type="yarn", **YARN)), without=["rope_theta"])
        same(name, "dynamic, a short prompt", dict(rope_scaling=dict(type="dynamic", factor=4.0)))
        moves(name, "llama3", dict(rope_scaling=dict(rope_type="llama3", **LLAMA3)))
    for name in ("llama", "qwen3"):
        yarn = dict(rope_type="yarn", **YARN)
        moves(name, "yarn, 32 and 1 and its attention factor written out", like=f"{name}/yarn as a model card advises",
              config=dict(rope_scaling=dict(yarn, beta_fast=32, beta_slow=1, attention_factor=1.1386294361119891)))
        moves(name, "yarn, beta_fast and beta_slow", dict(rope_scaling=dict(yarn, beta_fast=4.0, beta_slow=2.0)))
        moves(name, "yarn, betas null", dict(rope_scaling=dict(yarn, beta_fast=None, beta_slow=None)),
              like=f"{name}/yarn as a model card advises")
        moves(name, "yarn, attention_factor", dict(rope_scaling=dict(yarn, attention_factor=1.5)))
        moves(name, "yarn, mscale and mscale_all_dim", dict(rope_scaling=dict(yarn, mscale=1.0, mscale_all_dim=0.5)))
        moves(name, "yarn, mscale alone", dict(rope_scaling=dict(yarn, mscale=2.0)), like=f"{name}/yarn as a model card advises")
        moves(name, "yarn, not truncated", dict(rope_scaling=dict(yarn, truncate=False)))
        moves(name, "yarn, an unread key", dict(rope_scaling=dict(yarn, finetuned=True)), like=f"{name}/yarn as a model card advises")
        moves(name, "yarn without an original length", dict(rope_scaling=dict(rope_type="yarn", factor=4.0)))
        moves(name, "yarn, factor null", dict(rope_scaling=dict(yarn, factor=None)))
        moves(name, "yarn, original length at the root", dict(original_max_position_embeddings=32,
              rope_scaling=dict(rope_type="yarn", factor=4.0)), like=f"{name}/yarn as a model card advises")
        moves(name, "yarn, the root's original length counts", dict(original_max_position_embeddings=32, rope_scaling=dict(
              yarn, original_max_position_embeddings=16)), like=f"{name}/yarn as a model card advises")
        moves(name, "yarn, theta inside", dict(rope_theta=77.0, rope_scaling=dict(yarn, rope_theta=5000.0)),
              like=f"{name}/yarn as a model card advises")
        refused(name, "yarn without a factor", "factor", "raises", dict(rope_scaling=dict(
            rope_type="yarn", original_max_position_embeddings=32)))
        moves(name, "llama3 without an original length", dict(rope_scaling={k: v for k, v in dict(
              LLAMA3, rope_type="llama3").items() if k != "original_max_position_embeddings"}))
        refused(name, "llama3 without low_freq_factor", "low_freq_factor", "raises", dict(rope_scaling={
            k: v for k, v in dict(LLAMA3, rope_type="llama3").items() if k != "low_freq_factor"}))
        refused(name, "linear without a factor", "factor", "raises", dict(rope_scaling=dict(rope_type="linear")))
        same(name, "a factor without a type", dict(rope_scaling=dict(factor=4.0)))
        moves(name, "proportional", dict(rope_scaling=dict(rope_type="proportional", partial_rotary_factor=0.5)))
        refused(name, "mrope", "mrope", "raises", dict(rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3])))
        moves(name, "longrope", dict(rope_scaling=dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG,
              original_max_position_embeddings=16)))
        refused(name, "rope_theta NaN", "rope_theta", "quiet", dict(rope_theta=float("nan")))
        refused(name, "linear, factor NaN", "factor|rope_scaling", "quiet", dict(rope_scaling=dict(
            type="linear", factor=float("nan"))))
    same("phi", "partial_rotary_factor absent", without=["partial_rotary_factor"])
    moves("phi", "partial_rotary_factor 0.25", dict(partial_rotary_factor=0.25))
    moves("phi", "partial_rotary_factor 1", dict(partial_rotary_factor=1.0))
    moves("phi", "partial_rotary_factor in rope_parameters", dict(rope_parameters=dict(
        rope_theta=5000.0, rope_type="default", partial_rotary_factor=0.25)), like="phi/partial_rotary_factor 0.25")
    for name in ("llama", "qwen3"):
        same(name, "ignores partial_rotary_factor in rope_parameters", dict(rope_parameters=dict(
            rope_theta=5000.0, rope_type="default", partial_rotary_factor=0.5)), without=["rope_theta"])
    # Of a rope that is scaled the class turns a part, and fails at the first product.
    refused("llama", "linear of a part", "partial_rotary_factor", "raises", dict(rope_scaling=dict(
        rope_type="linear", factor=2.0, partial_rotary_factor=0.5)))


def longropes():
    """Phi-3's own: the lists, and where the original length stands."""
    lists = dict(short_factor=SHORT, long_factor=LONG)
    original = dict(original_max_position_embeddings=16)
    moves("phi3", "longrope", dict(original, rope_scaling=dict(lists, type="longrope")))
    moves("phi3", "longrope called yarn", dict(original, rope_scaling=dict(lists, type="yarn")), like="phi3/longrope")
    # As the first Phi-3 128k files have it. transformers 5.24 wants the original length inside for this one name.
    moves("phi3", "longrope called su", dict(original, rope_scaling=dict(lists, type="su")), like="phi3/longrope",
          reference=dict(config=dict(original, rope_scaling=dict(lists, **original, type="su"))))
    moves("phi3", "longrope, rope_type", dict(original, rope_scaling=dict(lists, rope_type="longrope")), like="phi3/longrope")
    moves("phi3", "longrope, rope_parameters", dict(original, rope_parameters=dict(
        lists, rope_type="longrope", rope_theta=5000.0)), without=["rope_theta"], like="phi3/longrope")
    moves("phi3", "longrope, the root's original length counts", dict(original, rope_scaling=dict(
        lists, type="longrope", original_max_position_embeddings=48)), like="phi3/longrope")
    moves("phi3", "longrope, original length inside alone", dict(rope_scaling=dict(
        lists, type="longrope", original_max_position_embeddings=16)), without=["original_max_position_embeddings"])
    moves("phi3", "longrope, factor", dict(original, rope_scaling=dict(lists, type="longrope", factor=8.0)))
    moves("phi3", "longrope, attention_factor", dict(original, rope_scaling=dict(lists, type="longrope", attention_factor=1.3)))
    moves("phi3", "longrope, mscales that nothing reads", dict(original, rope_scaling=dict(
        lists, type="longrope", short_mscale=1.3, long_mscale=1.4)), like="phi3/longrope")
    moves("phi3", "longrope, short factors", dict(original_max_position_embeddings=48, rope_scaling=dict(
        lists, type="longrope")), context_length=48)
    refused("phi3", "longrope without short_factor", "short_factor", "raises",
            dict(original, rope_scaling=dict(type="longrope", long_factor=LONG)))
    refused("phi3", "longrope, lists too short", "factor", "raises",
            dict(original, rope_scaling=dict(type="longrope", short_factor=SHORT[:4], long_factor=LONG[:4])))
    moves("phi3", "partial_rotary_factor", dict(partial_rotary_factor=0.75))
    moves("phi3", "longrope of a part", dict(original, partial_rotary_factor=0.75, rope_scaling=dict(
        type="longrope", short_factor=SHORT[:6], long_factor=LONG[:6])))


def heads():
    for name in UNTIED:
        head = drop("lm_head.weight")
        same(name, "tied by the flag, head stored", dict(tie_word_embeddings=True))
        refused(name, "untied without a head", "lm_head", "random", tensors=head)
        moves(name, "tied without a head", dict(tie_word_embeddings=True), tensors=head)
        moves(name, "tied, the embedding stored as the head", dict(tie_word_embeddings=True),
              tensors=drop("model.embed_tokens.weight"))
        refused(name, "untied without an embedding", "embed_tokens", "random", tensors=drop("model.embed_tokens.weight"))
        same(name, "flag absent, head stored", without=["tie_word_embeddings"])
        if name == "smollm3":
            moves(name, "flag absent, no head", without=["tie_word_embeddings"], tensors=head, like="smollm3/tied without a head")
        else:
            refused(name, "flag absent, no head", "lm_head", "random", without=["tie_word_embeddings"], tensors=head)
        if name in ("llama", "qwen3", "seed_oss"):
            refused(name, "head packed", "lm_head", "random", tensors=[["rename", "lm_head.weight", "lm_head.qweight"]])
            moves(name, "head and embedding are one, tied", dict(tie_word_embeddings=True), tensors=[
                  ["copy", "model.embed_tokens.weight", "lm_head.weight"]], like=f"{name}/tied without a head")
    for name in ("gemma", "gemma2", "gemma3_text"):
        moves(name, "head stored", tensors=stray("lm_head.weight", VOCAB, 32))
        moves(name, "untied, head stored", dict(tie_word_embeddings=False), tensors=stray("lm_head.weight", VOCAB, 32),
              like=f"{name}/head stored")
        same(name, "flag true", dict(tie_word_embeddings=True))
        refused(name, "untied without a head", "lm_head", "random", dict(tie_word_embeddings=False))
        same(name, "the embedding stored as the head", tensors=[["rename", "model.embed_tokens.", "lm_head."]])
    refused("phi", "no bias of the head", "lm_head.bias", "random", tensors=drop("lm_head.bias"))
    for name in ("llama", "qwen3"):
        moves(name, "saved without its head, tied", dict(tie_word_embeddings=True), tensors=[
            *drop("lm_head.weight"), ["rename", "model.", ""]], like=f"{name}/tied without a head")
    same("gemma3_text", "saved without its head", tensors=[["rename", "model.", ""]])
    refused("llama", "a classifier", "score|lm_head", "random", dict(architectures=["LlamaForSequenceClassification"]),
            tensors=[*drop("lm_head.weight"), *stray("score.weight", 1, 32)])
    refused("llama", "a bias of the head", "lm_head.bias", "unused", tensors=stray("lm_head.bias", VOCAB))


# -- Family by family ---------------------------------------------------------------------------------------


def biases():
    q = stray(FIRST + "self_attn.q_proj.bias", 32)
    for name in ("llama", "smollm3", "qwen3", "gemma", "gemma2", "gemma3_text"):
        moves(name, "attention_bias", dict(attention_bias=True), fit=True)
        refused(name, "attention_bias without biases", "q_proj.bias|attention_bias", "random", dict(attention_bias=True))
    for name in ("llama", "smollm3", "seed_oss"):
        moves(name, "mlp_bias", dict(mlp_bias=True), fit=True)
        refused(name, "mlp_bias without biases", "proj.bias|mlp_bias", "random", dict(mlp_bias=True))
    for name in ("llama", "smollm3", "mistral", "ministral", "qwen3", "gemma", "gemma2", "gemma3_text"):
        refused(name, "a bias that nothing reads", "q_proj.bias", "unused", tensors=q)
    for name in ("llama", "mistral"):
        refused(name, "biases of the MLP that nothing reads", "up_proj.bias", "unused",
                tensors=stray(FIRST + "mlp.up_proj.bias", 48))
    refused("phi3", "a bias that nothing reads", "qkv_proj.bias", "unused", tensors=stray(FIRST + "self_attn.qkv_proj.bias", 64))
    for name in ("qwen2", "seed_oss"):
        refused(name, "no bias of q", "q_proj.bias", "random", tensors=drop(FIRST + "self_attn.q_proj.bias"))
        refused(name, "a bias of o", "o_proj.bias", "unused", tensors=stray(FIRST + "self_attn.o_proj.bias", 32))
    same("qwen2", "attention_bias false", dict(attention_bias=False))
    same("seed_oss", "attention_bias absent", without=["attention_bias"])
    moves("seed_oss", "attention_bias false", dict(attention_bias=False), fit=True)
    moves("seed_oss", "attention_out_bias", dict(attention_out_bias=True), fit=True)
    same("seed_oss", "attention_out_bias absent", without=["attention_out_bias"])
    for name in ("llama", "seed_oss"):
        same(name, "mlp_bias false", dict(mlp_bias=False))
    refused("phi", "no bias of fc1", "fc1.bias", "random", tensors=drop(FIRST + "mlp.fc1.bias"))
    refused("phi", "no bias of a norm", "input_layernorm.bias", "random", tensors=drop(FIRST + "input_layernorm.bias"))
    for name in ("llama", "gemma2", "qwen3"):
        refused(name, "a bias of a norm", "input_layernorm.bias", "unused", tensors=stray(FIRST + "input_layernorm.bias", 32))


def norms():
    for name in ("llama", "mistral", "qwen2", "gemma", "gemma2", "seed_oss", "smollm3"):
        refused(name, "a norm of q", "q_norm", "unused", tensors=stray(FIRST + "self_attn.q_norm.weight", 16))
    for name in ("llama", "qwen2", "mistral", "gemma"):
        refused(name, "a norm after the MLP", "post_feedforward_layernorm", "unused",
                tensors=stray(FIRST + "post_feedforward_layernorm.weight", 32))
    for name in ("qwen3", "gemma3_text"):
        refused(name, "no norm of q", "q_norm", "random", tensors=drop(FIRST + "self_attn.q_norm.weight"))
    for name in ("gemma2", "gemma3_text"):
        refused(name, "no norm before the MLP", "pre_feedforward_layernorm", "random",
                tensors=drop(FIRST + "pre_feedforward_layernorm.weight"))
        refused(name, "no norm after the MLP", "post_feedforward_layernorm", "random",
                tensors=drop(FIRST + "post_feedforward_layernorm.weight"))
    moves("phi", "qk_layernorm", dict(qk_layernorm=True), fit=True)
    same("phi", "qk_layernorm absent", without=["qk_layernorm"])
    refused("phi", "qk_layernorm without norms", "k_layernorm|q_layernorm|qk_layernorm", "random", dict(qk_layernorm=True))
    refused("phi", "norms of q that nothing reads", "q_layernorm", "unused",
            tensors=stray(FIRST + "self_attn.q_layernorm.weight", 16) + stray(FIRST + "self_attn.q_layernorm.bias", 16))
    for name in ("llama", "qwen3"):
        same(name, "a draft head stored", tensors=stray("mtp.fc.weight", 32, 64) + stray("mtp.norm.weight", 32))
        refused(name, "sinks", "sinks", "unused", tensors=stray(FIRST + "self_attn.sinks", 2))
        refused(name, "experts", "experts", "unused", tensors=stray(FIRST + "mlp.experts.0.up_proj.weight", 48, 32))


def windows():
    moves("mistral", "sliding_window null", dict(sliding_window=None))
    moves("mistral", "sliding_window 3", dict(sliding_window=3))
    moves("mistral", "sliding_window beyond the prompt", dict(sliding_window=100), like="mistral/sliding_window null")
    moves("phi3", "sliding_window null", dict(sliding_window=None))
    moves("phi3", "sliding_window absent", without=["sliding_window"], like="phi3/sliding_window null")
    moves("ministral", "layer_types absent", without=["layer_types"])
    moves("ministral", "layer_types null", dict(layer_types=None), like="ministral/layer_types absent")
    for name in ("smollm3", "qwen2", "qwen3", "gemma2", "gemma3_text"):
        same(name, "layer_types null", dict(layer_types=None))
    moves("ministral", "layer_types all full", dict(layer_types=[FULL] * 3))
    refused("ministral", "layer_types too short", "layer_types", "raises", dict(layer_types=[FULL]))
    refused("ministral", "layer_types of another kind", "linear_attention", "raises", dict(layer_types=[FULL, "linear_attention", FULL]))
    for name in ("qwen2", "qwen3"):
        on = dict(use_sliding_window=True)
        moves(name, "use_sliding_window", on)
        same(name, "use_sliding_window absent", without=["use_sliding_window"])
        same(name, "use_sliding_window, sliding_window null", dict(on, sliding_window=None))
        same(name, "use_sliding_window, max_window_layers absent", on, without=["max_window_layers"])
        moves(name, "use_sliding_window, max_window_layers 0", dict(on, max_window_layers=0))
        moves(name, "layer_types", dict(on, layer_types=[SLIDING, FULL, SLIDING]))
        same(name, "layer_types all full", dict(on, layer_types=[FULL] * 3))
        refused(name, "layer_types too short", "layer_types", "raises", dict(layer_types=[FULL]))
    for name in ("gemma2", "gemma3_text"):
        n = layers_of(name)
        moves(name, "layer_types", dict(layer_types=[FULL, *[SLIDING] * (n - 1)]))
        moves(name, "layer_types all full", dict(layer_types=[FULL] * n))
        refused(name, "layer_types too long", "layer_types", "raises", dict(layer_types=[FULL] * (n + 1)))
        moves(name, "sliding_window 3", dict(sliding_window=3))
    same("gemma2", "layer_types as by default", dict(layer_types=[SLIDING, FULL, SLIDING]))
    moves("gemma3_text", "sliding_window_pattern absent", without=["sliding_window_pattern"])
    moves("gemma3_text", "sliding_window_pattern 2", dict(sliding_window_pattern=2))
    moves("gemma3_text", "_sliding_window_pattern alone", dict(_sliding_window_pattern=2), without=["sliding_window_pattern"],
          like="gemma3_text/sliding_window_pattern absent")
    same("gemma3_text", "both patterns", dict(_sliding_window_pattern=2))
    moves("gemma3_text", "bidirectional", dict(use_bidirectional_attention=True))
    same("gemma3_text", "bidirectional false", dict(use_bidirectional_attention=False))
    # transformers 5.24 does it with sdpa and forgets it with eager attention: these are the logits of is_causal false.
    moves("gemma", "bidirectional", dict(use_bidirectional_attention=True),
          reference=dict(config=dict(is_causal=False)), like="gemma/not causal")
    same("gemma", "bidirectional null", dict(use_bidirectional_attention=None))
    moves("smollm3", "window of the layers without rope", dict(use_sliding_window=True, sliding_window=4))
    same("smollm3", "use_sliding_window without a window", dict(use_sliding_window=True))
    moves("smollm3", "layer_types", dict(use_sliding_window=True, sliding_window=4,
          layer_types=[SLIDING, FULL, SLIDING, FULL, FULL]))
    moves("smollm3", "no_rope_layers", dict(no_rope_layers=[1, 0, 1, 0, 1]))
    moves("smollm3", "no_rope_layers all ones", dict(no_rope_layers=[1] * 5))
    same("smollm3", "no_rope_layers null", dict(no_rope_layers=None))
    same("smollm3", "no_rope_layer_interval absent", without=["no_rope_layer_interval"])
    moves("smollm3", "no_rope_layer_interval 2", dict(no_rope_layer_interval=2))
    same("smollm3", "no_rope_layers beats the interval", dict(no_rope_layers=[1, 1, 1, 0, 1], no_rope_layer_interval=2))
    # The class default is 4096: a prompt beyond it.
    long = dict(tokens=4104)
    far = dict(max_position_embeddings=8192)
    moves("mistral", "sliding_window absent, a long prompt", far, without=["sliding_window"], **long)
    moves("gemma2", "sliding_window absent, a long prompt", far, without=["sliding_window"], **long)
    moves("gemma3_text", "sliding_window absent, a long prompt", far, without=["sliding_window"], **long)
    moves("qwen2", "sliding_window absent, a long prompt", dict(far, use_sliding_window=True), without=["sliding_window"], **long)


def gemmas():
    same("gemma", "hidden_act gelu means the tanh form", dict(hidden_act="gelu"))
    same("gemma", "hidden_act gelu, hidden_activation null", dict(hidden_act="gelu", hidden_activation=None))
    same("gemma", "hidden_act gelu_new", dict(hidden_act="gelu_new"))
    moves("gemma2", "hidden_activation gelu is the exact form", dict(hidden_activation="gelu"))
    same("gemma2", "hidden_act gelu beside hidden_activation", dict(hidden_act="gelu"))
    moves("gemma2", "query_pre_attn_scalar absent", without=["query_pre_attn_scalar"])
    moves("gemma2", "query_pre_attn_scalar 64", dict(query_pre_attn_scalar=64))
    moves("gemma3_text", "query_pre_attn_scalar absent", without=["query_pre_attn_scalar"])
    moves("gemma3_text", "query_pre_attn_scalar 64", dict(query_pre_attn_scalar=64))
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        moves("gemma2", f"{key} absent", without=[key])
        moves("gemma2", f"{key} null", {key: None})
        same("gemma3_text", f"{key} null", {key: None})
    moves("gemma3_text", "final_logit_softcapping set", dict(final_logit_softcapping=2.0))
    # Its class takes the key and uses it nowhere.
    same("gemma3_text", "attn_logit_softcapping set", dict(attn_logit_softcapping=2.0))
    moves("gemma2", "both caps absent", without=["attn_logit_softcapping", "final_logit_softcapping"])
    theta = dict(rope_theta=5000.0)
    moves("gemma3_text", "rope_local_base_freq absent", without=["rope_local_base_freq"])
    nested = {FULL: dict(theta, rope_type="default"), SLIDING: dict(rope_theta=300.0, rope_type="default")}
    gone = ["rope_theta", "rope_local_base_freq"]
    same("gemma3_text", "rope_parameters", dict(rope_parameters=nested), without=gone)
    same("gemma3_text", "rope_parameters beside other bases", dict(rope_parameters=nested, rope_theta=77.0, rope_local_base_freq=55.0))
    same("gemma3_text", "rope_parameters without bases", dict(rope_parameters={
        FULL: dict(rope_type="default"), SLIDING: dict(rope_type="default")}))
    same("gemma3_text", "rope_parameters, one layer type", dict(rope_parameters={FULL: nested[FULL]}))
    moves("gemma3_text", "rope_parameters of one rope are not read", dict(rope_parameters=dict(theta, rope_type="default")),
          without=["rope_theta"], like="gemma3_text/rope_theta absent")
    linear = dict(rope_type="linear", factor=8.0)
    moves("gemma3_text", "linear", dict(rope_scaling=linear))
    moves("gemma3_text", "linear, rope_parameters", dict(rope_parameters={**nested, FULL: dict(theta, **linear)}), without=gone,
          like="gemma3_text/linear")
    # As transformers 4 read it; 5.24 has set rope_type "default" before it looks for the old spelling, and loses it.
    moves("gemma3_text", "linear, oldest spelling", dict(rope_scaling=dict(type="linear", factor=8.0)),
          reference=dict(config=dict(rope_scaling=linear)), like="gemma3_text/linear")
    moves("gemma3_text", "linear beside rope_parameters", dict(rope_parameters=nested, rope_scaling=linear), without=gone,
          like="gemma3_text/linear")
    moves("gemma3_text", "linear on the windowed layers", dict(rope_parameters={
        **nested, SLIDING: dict(rope_theta=300.0, **linear)}), without=gone)
    moves("gemma3_text", "yarn", dict(rope_scaling=dict(rope_type="yarn", **YARN)))
    refused("gemma3_text", "linear without a factor", "factor", "raises", dict(rope_scaling=dict(rope_type="linear")))


# -- Wrappers -----------------------------------------------------------------------------------------------


HEAD = {name: "lm_head.weight" for name in WRAPPERS} | dict.fromkeys(("mistral3", "llava"), "language_model.lm_head.weight")
INSIDE = dict(gemma3="language_model.model.", mistral3="language_model.model.", llava="language_model.model.",
              qwen2_5_vl="model.", qwen3_vl="model.language_model.", smolvlm="model.text_model.", idefics3="model.text_model.")
EYES = dict(gemma3="vision_tower.", mistral3="vision_tower.", llava="vision_tower.", qwen2_5_vl="visual.",
            qwen3_vl="model.visual.", smolvlm="model.vision_model.", idefics3="model.vision_model.")
TIES = "tie_word_embeddings"


def wrappers():
    for name in WRAPPERS:
        first = INSIDE[name] + "layers.0."
        text = "" if name == "qwen2_5_vl" else "text_config."
        row(name, "published", claim="base")
        same(name, "vision stored in float16", tensors=[["cast", EYES[name] + "*", "float16"]])
        same(name, "without its vision tensors", tensors=drop(EYES[name] + "*"))
        refused(name, "no gate", "gate_proj", "random", tensors=drop(first + "mlp.gate_proj.weight"))
        refused(name, "a layer too many", "layers.9.", "unused",
                tensors=[["copy", first + "input_layernorm.weight", INSIDE[name] + "layers.9.input_layernorm.weight"]])
        refused(name, "a scale beside a weight", "down_proj.scale", "unused", tensors=stray(first + "mlp.down_proj.scale", 1))
        moves(name, "rope_theta absent", without=[text + "rope_theta"])
        refused(name, "rope type banana", "banana", "raises", {text + "rope_scaling": dict(rope_type="banana", factor=2.0)})
        refused(name, "gptq", "gptq", "raises", dict(quantization_config=dict(quant_method="gptq", bits=4, group_size=32)))
    for name in ("mistral3", "llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3"):
        head = drop(HEAD[name])
        without = [TIES]
        both = [TIES, "text_config." + TIES] if "text_config" in WRAPPERS[name] and TIES in WRAPPERS[name]["text_config"] else [TIES]
        same(name, "tied by the flag, head stored", {TIES: True})
        moves(name, "tied without a head", {TIES: True}, tensors=head)
        refused(name, "untied without a head", "lm_head", "random", tensors=head)
        same(name, "no flag, head stored", without=both)
        if name == "mistral3":
            moves(name, "no flag, no head", without=both, tensors=head, like="mistral3/tied without a head")
        else:
            refused(name, "no flag, no head", "lm_head", "random", without=both, tensors=head)
        if name == "qwen2_5_vl":
            continue
        said = {TIES: False, "text_config." + TIES: True}
        same(name, "outer false, inner true, head stored", said)
        if name == "llava":
            moves(name, "outer false, inner true, no head", said, tensors=head, like="llava/tied without a head")
            moves(name, "inner true alone, no head", {"text_config." + TIES: True}, without=without, tensors=head,
                  like="llava/tied without a head")
        else:
            refused(name, "outer false, inner true, no head", "lm_head", "random", said, tensors=head)
        moves(name, "outer true, inner false, no head", {TIES: True, "text_config." + TIES: False}, tensors=head,
              like=f"{name}/tied without a head")
    for name in ("gemma3", "mistral3", "llava", "qwen3_vl", "smolvlm"):
        # transformers makes a model of the default size.
        refused(name, "no text_config", "text_config", "huge", without=["text_config"])
        same(name, "model_type inside absent", without=["text_config.model_type"])
    for name in ("mistral3", "llava", "smolvlm", "idefics3"):
        refused(name, "an unknown family inside", "rwkv9", "raises", {"text_config.model_type": "rwkv9"})
    head = stray("lm_head.weight", VOCAB, 32)
    outer = [["rename", "lm_head.", "language_model.lm_head."]]
    moves("gemma3", "head stored", tensors=head)
    moves("gemma3", "head stored inside", tensors=head + outer, like="gemma3/head stored")
    moves("gemma3", "outer false, head stored", {TIES: False}, tensors=head, like="gemma3/head stored")
    same("gemma3", "inner false, no head", {"text_config." + TIES: False})
    refused("gemma3", "outer false, no head", "lm_head", "random", {TIES: False})
    new = [["rename", "language_model.model.", "model.language_model."], ["rename", "vision_tower.", "model.vision_tower."],
           ["rename", "multi_modal_projector.", "model.multi_modal_projector."]]
    for name in ("gemma3", "mistral3", "llava"):
        moved = [["rename", "language_model.lm_head.", "lm_head."]] if name != "gemma3" else []
        same(name, "names of transformers 5", tensors=[*new, *moved])
    moves("llava", "a Mistral inside", dict(text_config=inner("mistral")))
    moves("llava", "a Qwen2 inside", dict(text_config=inner("qwen2", num_hidden_layers=2)), fit=True)
    moves("mistral3", "sliding_window null inside", {"text_config.sliding_window": None})
    same("qwen2_5_vl", "rope_scaling of transformers 4.50", dict(rope_scaling=dict(
        type="default", rope_type="default", mrope_section=[2, 3, 3])))
    same("qwen2_5_vl", "text_config", dict(model_type="qwen2_5_vl", text_config=inner(
        "qwen2", model_type="qwen2_5_vl_text", rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]))),
        without=[key for key in inner("qwen2") if key != "model_type"] + ["rope_scaling"])
    moves("qwen2_5_vl", "text_config with its own flag, no head", dict(model_type="qwen2_5_vl", text_config=inner(
        "qwen2", model_type="qwen2_5_vl_text", tie_word_embeddings=True, rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]))),
        without=[key for key in inner("qwen2") if key != "model_type"] + ["rope_scaling"], tensors=drop("lm_head.weight"),
        like="qwen2_5_vl/tied without a head")
    same("qwen2_5_vl", "names of transformers 5", tensors=[
        ["rename", "model.", "model.language_model."], ["rename", "visual.", "model.visual."]])
    moves("qwen2_5_vl", "yarn with sections", dict(rope_scaling=dict(type="yarn", mrope_section=[2, 3, 3], **YARN)))
    same("qwen3_vl", "rope_parameters", {"text_config.rope_parameters": dict(
        rope_theta=5000.0, rope_type="default", mrope_section=[2, 3, 3], mrope_interleaved=True)},
        without=["text_config.rope_theta", "text_config.rope_scaling"])
    moves("qwen3_vl", "head_dim absent", without=["text_config.head_dim"], fit=True)
    moves("gemma3", "head_dim absent", without=["text_config.head_dim"], fit=True)
    moves("gemma3", "query_pre_attn_scalar absent", without=["text_config.query_pre_attn_scalar"])
    refused("qwen3_vl", "no norm of q", "q_norm", "random",
            tensors=drop("model.language_model.layers.0.self_attn.q_norm.weight"))


# -- Mixtures of experts ------------------------------------------------------------------------------------

#: The matrices of an expert, and the module that holds them.
MATRICES = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj"),
            "olmoe": ("gate_proj", "up_proj", "down_proj")}
BLOCK = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp", "olmoe": "mlp"}


def expert(base, number, matrix, layer=0):
    return f"model.layers.{layer}.{BLOCK[base]}.experts.{number}.{MATRICES[base][matrix]}.weight"


def piled(base):
    """The experts of each layer in one tensor, as transformers 5 holds them in memory."""
    edits = []
    for layer in range(layers_of(base)):
        place = f"model.layers.{layer}.mlp.experts."
        edits.append(["pile", place + "gate_up_proj", [[expert(base, e, m, layer) for m in (0, 1)] for e in range(4)]])
        edits.append(["pile", place + "down_proj", [[expert(base, e, 2, layer)] for e in range(4)]])
    return edits


def experts():
    for name in EXPERTS:
        first, second = ("num_experts", "num_local_experts") if name == "mixtral" else ("num_local_experts", "num_experts")
        row(name, "published", claim="base")
        same(name, "experts in one tensor", tensors=piled(name))
        same(name, "the other key of their number", {first: 4}, without=[second])
        same(name, "both keys of their number", {first: 4, second: 2})
        moves(name, "bfloat16", tensors=[["cast", "*", "BF16"]])
        moves(name, "activation relu", dict(hidden_act="relu"))
        moves(name, "rope_theta absent", without=["rope_theta"])
        moves(name, "one expert a token", dict(num_experts_per_tok=1))
        moves(name, "all experts", dict(num_experts_per_tok=4))
        refused(name, "more experts a token than there are", "num_experts_per_tok", "raises", dict(num_experts_per_tok=5))
        refused(name, "fewer experts than are stored", "gate.weight", "raises", {second: 3})
        refused(name, "more experts than are stored", "gate.weight", "raises", {second: 5})
        refused(name, "no router", "gate.weight", "random", tensors=drop(FIRST + BLOCK[name] + ".gate.weight"))
        refused(name, "an expert without down", "experts.3." + MATRICES[name][2], "raises", tensors=drop(expert(name, 3, 2)))
        refused(name, "an expert too many", "experts.4.", "raises", tensors=[
            ["copy", expert(name, 0, m), expert(name, 4, m)] for m in range(3)])
        refused(name, "an expert of another width", "experts.2." + MATRICES[name][0], "raises",
                tensors=[["make", expert(name, 2, 0), [16, 32]]])
        refused(name, "experts in one tensor, and one beside it", "experts.1.", "raises", tensors=[
            *piled(name), ["make", expert(name, 1, 0), [24, 32]]])
        refused(name, "a shared expert", "shared_expert", "unused", tensors=stray(FIRST + "mlp.shared_expert.up_proj.weight", 24, 32))
    for name in ("qwen3_moe", "olmoe"):
        moves(name, "norm_topk_prob", dict(norm_topk_prob=name == "olmoe"))
        refused(name, "num_experts_per_tok absent", "num_experts_per_tok", "raises", without=["num_experts_per_tok"])
        refused(name, "no norm of q", "q_norm", "random", tensors=drop(FIRST + "self_attn.q_norm.weight"))
    same("mixtral", "num_experts_per_tok absent", without=["num_experts_per_tok"])
    same("mixtral", "norm_topk_prob is not read", dict(norm_topk_prob=False))
    same("mixtral", "noise in training", dict(router_jitter_noise=0.5, router_aux_loss_coef=1.0, output_router_logits=False))
    moves("mixtral", "sliding_window", dict(sliding_window=3))
    same("mixtral", "sliding_window absent", without=["sliding_window"])
    same("olmoe", "norm_topk_prob absent", without=["norm_topk_prob"])
    same("olmoe", "clip_qkv absent", without=["clip_qkv"])
    refused("olmoe", "clip_qkv", "clip_qkv", "ours", dict(clip_qkv=0.5))
    moves("qwen3_moe", "norm_topk_prob absent", without=["norm_topk_prob"], like="qwen3_moe/norm_topk_prob")
    moves("qwen3_moe", "every second layer", dict(decoder_sparse_step=2), fit=True)
    moves("qwen3_moe", "mlp_only_layers", dict(mlp_only_layers=[1]), fit=True)
    moves("qwen3_moe", "no experts at all", dict(num_experts=0), fit=True)
    same("qwen3_moe", "mlp_only_layers null", dict(mlp_only_layers=None))
    refused("qwen3_moe", "decoder_sparse_step 0", "decoder_sparse_step", "raises", dict(decoder_sparse_step=0))
    same("qwen3_moe", "the width of dense layers that are not there", dict(intermediate_size=20))
    moves("qwen3_moe", "use_sliding_window", dict(use_sliding_window=True, sliding_window=3))
    refused("qwen3_moe", "moe_intermediate_size absent", "gate_proj", "raises", without=["moe_intermediate_size"])
    same("qwen3_moe", "head_dim absent", without=["head_dim"])


# -- GGUF ---------------------------------------------------------------------------------------------------

EXPERT_ARCHES = {"mixtral": "llama", "qwen3_moe": "qwen3moe", "olmoe": "olmoe"}
ARCHES = {"llama": "llama", "smollm3": "smollm3", "qwen2": "qwen2", "qwen3": "qwen3", "phi": "phi2", "phi3": "phi3", "gemma": "gemma",
          "gemma2": "gemma2", "gemma3_text": "gemma3", "seed_oss": "seed_oss"}
ALL_ARCHES = ARCHES | EXPERT_ARCHES
WORDS = [f"t{i}" for i in range(VOCAB - 6)]


def metadata(name):
    """What llama.cpp's converter writes for a base."""
    config, arch = CONFIGS[name], ALL_ARCHES[name]
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    made = {
        "general.architecture": arch, "general.name": "tiny", "general.file_type": 0, f"{arch}.context_length": 64,
        f"{arch}.embedding_length": 32, f"{arch}.block_count": layers_of(name), f"{arch}.feed_forward_length": 48,
        f"{arch}.attention.head_count": 2, f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.rope.freq_base": 5000.0, f"{arch}.rope.dimension_count": head // (2 if name == "phi" else 1),
        f"{arch}.attention.key_length": head, f"{arch}.attention.value_length": head,
    }
    norm = "layer_norm_epsilon" if name == "phi" else "layer_norm_rms_epsilon"
    made[f"{arch}.attention.{norm}"] = config.get("rms_norm_eps", 1e-5)
    if name in EXPERTS:
        made |= {f"{arch}.expert_count": 4, f"{arch}.expert_used_count": 2}
    if name == "qwen3_moe":
        made["qwen3moe.expert_feed_forward_length"] = 24
    if name in ("phi3", "gemma2", "gemma3_text"):
        made[f"{arch}.attention.sliding_window"] = 8
    if name == "phi3":
        made["phi3.rope.scaling.original_context_length"] = 64
    if name == "gemma2":
        made |= {"gemma2.attn_logit_softcapping": 5.0, "gemma2.final_logit_softcapping": 8.0}
    if name == "gemma3_text":
        made |= {"gemma3.rope.freq_base_swa": 300.0, "gemma3.attention.sliding_window_pattern": [True, True, False] * 2}
    return made | {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab", *WORDS],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (VOCAB - 3)], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def gguf(base, name, meta=None, *, of=None, words=None, tensors=(), reference=None, **fields):
    """A GGUF file of a base; keys of `meta` are the architecture's unless they have their own prefix. `reference`: the edits
    with which transformers reads the same tensors; None: as they are."""
    arch = ALL_ARCHES[base]
    full = {key if key.split(".")[0] in ("general", "tokenizer") else f"{arch}.{key}": value for key, value in (meta or {}).items()}
    claim = "gguf refused" if words else "gguf"
    extra = dict(refused=[words] if isinstance(words, str) else words) if words else {}
    reference = dict(reference or {})
    ROWS.append(dict(name=f"{base}.gguf/{name}", base=base, claim=claim, gguf=full, gguf_tensors=list(tensors), config={}, without=[],
                     tensors=reference.pop("shared", []), fit=reference.pop("fit", False), reference=reference, **extra, **fields))


def as_config(config=None, without=(), tensors=(), shared=(), fit=False):
    """`tensors` are edited for transformers alone, `shared` for both."""
    return dict(config=config or {}, without=list(without), tensors=list(tensors), shared=list(shared), fit=fit)


Q0 = "blk.0.attn_q"


def ggufs():
    for name in ARCHES:
        gguf(name, "as converted")
        gguf(name, "rope.freq_base absent", {"rope.freq_base": None}, reference=as_config(dict(rope_theta=10000.0)))
        gguf(name, "key_length and value_length absent", {"attention.key_length": None, "attention.value_length": None})
        gguf(name, "unread keys", {"logit_scale": 0.5, "residual_scale": 0.5, "embedding_scale": 3.0, "expert_count": 0,
             "tensor_data_layout": "Meta AI original pth", "general.quantization_version": 2, "general.license": "mit",
             "attention.max_alibi_bias": 0.0, "pooling_type": 3})
        gguf(name, "matrices in float16", tensors=[["cast", "blk.*.ffn_down.weight", "float16"]])
        gguf(name, "matrices in bfloat16", tensors=[["cast", "blk.*.ffn_down.weight", "BF16"]],
             reference=as_config(tensors=[["cast", "model.layers.*.mlp." + ("fc2" if name == "phi" else "down_proj") + ".weight", "BF16"]]))
        if name in ("gemma2", "gemma3_text", "phi3"):
            # How far a window reaches forward is not said.
            gguf(name, "not causal", {"attention.causal": False}, words="attention.causal")
        else:
            gguf(name, "not causal", {"attention.causal": False}, reference=as_config(dict(is_causal=False)))
        gguf(name, "causal", {"attention.causal": True})
        gguf(name, "add_eos_token", {"tokenizer.ggml.add_eos_token": True})
        # A norm behind a projection takes its scale away.
        if name not in ("phi3", "qwen3", "gemma3_text"):
            gguf(name, "a scale of q", tensors=[["fill", Q0 + ".scale", [0.5]]],
                 reference=as_config(tensors=[["scale", FIRST + "self_attn.q_proj.weight", 0.5]]))
        if name in ("llama", "phi", "qwen2", "gemma"):
            gguf(name, "a scale of ffn_down", tensors=[["fill", "blk.1.ffn_down.scale", [0.25]]], reference=as_config(tensors=[
                 ["scale", "model.layers.1.mlp." + ("fc2" if name == "phi" else "down_proj") + ".weight", 0.25]]))
        if name in GATED:
            gguf(name, "a scale of ffn_gate", tensors=[["fill", "blk.0.ffn_gate.scale", [0.25]]],
                 reference=as_config(tensors=[["scale", FIRST + "mlp.gate_proj.weight", 0.25]]))
        gguf(name, "an input_scale", tensors=[["fill", "blk.0.ffn_up.input_scale", [0.5]]])
        gguf(name, "an unknown tensor", words="blk.0.attn_sinks.weight", tensors=[["fill", "blk.0.attn_sinks.weight", [0.5, 0.5]]])
        gguf(name, "a layer too many", words="blk.9.attn_norm.weight", tensors=[["copy", "blk.0.attn_norm.weight", "blk.9.attn_norm.weight"]])
        gguf(name, "a layer too few", {"block_count": layers_of(name) + 1}, words=f"blk.{layers_of(name)}.|block_count")
        gguf(name, "no ffn_down", words="blk.0.ffn_down", tensors=drop("blk.0.ffn_down.weight"))
        gguf(name, "no output_norm", words="output_norm", tensors=drop("output_norm.weight"))
        gguf(name, "no head_count", {"attention.head_count": None}, words="attention.head_count")
        gguf(name, "feed_forward_length by layer", {"feed_forward_length": [48] * layers_of(name)})
        gguf(name, "feed_forward_length differs", {"feed_forward_length": [48] * (layers_of(name) - 1) + [24]}, words="feed_forward_length")
        gguf(name, "rope scaling banana", {"rope.scaling.type": "banana", "rope.scaling.factor": 2.0}, words=["rope.scaling.type", "banana"])
        gguf(name, "experts", {"expert_count": 4, "expert_used_count": 2}, words="ffn_gate_inp" if name == "llama" else "expert_count")
        if name not in ("phi", "phi3"):
            gguf(name, "no ffn_gate", words="blk.0.ffn_gate", tensors=drop("blk.0.ffn_gate.weight"))
        if name not in ("phi3", "gemma3_text"):
            linear = as_config(dict(rope_scaling=dict(type="linear", factor=4.0)))
            yarn = as_config(dict(rope_scaling=dict(type="yarn", **YARN)))
            gguf(name, "linear", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, reference=linear)
            gguf(name, "linear, type absent", {"rope.scaling.factor": 4.0}, reference=linear)
            gguf(name, "linear, oldest spelling", {"rope.scale_linear": 4.0}, reference=linear)
            gguf(name, "rope scaling none", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0})
            gguf(name, "yarn", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
                 reference=yarn)
            gguf(name, "yarn, betas", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32,
                 "rope.scaling.yarn_beta_fast": 4.0, "rope.scaling.yarn_beta_slow": 2.0},
                 reference=as_config(dict(rope_scaling=dict(type="yarn", beta_fast=4.0, beta_slow=2.0, **YARN))))
            gguf(name, "yarn without a factor", {"rope.scaling.type": "yarn"}, words="rope.scaling.factor")
        if name in UNTIED and name != "phi":
            gguf(name, "tied", tensors=drop("output.weight"), reference=as_config({TIES: True}, tensors=drop("lm_head.weight")))
        if name.startswith("gemma"):
            gguf(name, "head stored", reference=as_config(shared=stray("lm_head.weight", VOCAB, 32)))
    for name in ("llama", "smollm3", "qwen2", "qwen3"):
        gguf(name, "rope.dimension_count absent", {"rope.dimension_count": None})
        gguf(name, "head_count_kv by layer", {"attention.head_count_kv": [1] * layers_of(name)})
        gguf(name, "head_count_kv absent", {"attention.head_count_kv": None},
             reference=as_config(dict(num_key_value_heads=2), fit=True))
    gguf("llama", "llama3 divisors", tensors=[["fill", "rope_freqs.weight", [1.0, 1.0, 1.0, 1.0, 8.0, 8.0, 8.0, 8.0]]], words=None,
         reference=as_config(dict(rope_scaling=dict(rope_type="longrope", short_factor=[1.0] * 4 + [8.0] * 4, long_factor=[1.0] * 4 + [8.0] * 4,
         original_max_position_embeddings=64))))
    gguf("llama", "biases", reference=as_config(dict(attention_bias=True, mlp_bias=True), fit=True))
    for name, kinds in (("llama", ["weight"]), ("qwen2", ["weight", "bias"])):
        gguf(name, "q, k and v in one", tensors=[edit for kind in kinds for edit in (
             ["stack", f"blk.0.attn_qkv.{kind}", [f"blk.0.attn_{part}.{kind}" for part in "qkv"]],
             *drop(*(f"blk.0.attn_{part}.{kind}" for part in "qkv")))])
    gguf("qwen2", "no bias of q", words=Q0 + ".bias", tensors=drop(Q0 + ".bias"))
    gguf("qwen3", "no norm of q", words="attn_q_norm", tensors=drop("blk.0.attn_q_norm.weight"))
    gguf("gemma2", "no norm after attention", words="post_attention_norm", tensors=drop("blk.0.post_attention_norm.weight"))
    for name in ("llama", "qwen2", "gemma"):
        gguf(name, "a norm of q", words="attn_q_norm", tensors=[["copy", "output_norm.weight", "blk.0.attn_q_norm.weight"]])
    gguf("gemma2", "caps absent", {"attn_logit_softcapping": None, "final_logit_softcapping": None},
         reference=as_config(without=["attn_logit_softcapping", "final_logit_softcapping"]))
    gguf("gemma2", "sliding_window_pattern 3", {"attention.sliding_window_pattern": 3},
         reference=as_config(dict(layer_types=[SLIDING, SLIDING, FULL])))
    gguf("gemma2", "sliding_window absent", {"attention.sliding_window": None}, reference=as_config(without=["sliding_window"]))
    pattern = "attention.sliding_window_pattern"
    gguf("gemma3_text", "pattern absent", {pattern: None}, reference=as_config(without=["sliding_window_pattern"]))
    gguf("gemma3_text", "pattern 3", {pattern: 3})
    gguf("gemma3_text", "pattern 2", {pattern: 2}, reference=as_config(dict(sliding_window_pattern=2)))
    gguf("gemma3_text", "pattern by layer", {pattern: [False, True, True, True, False, True]}, reference=as_config(dict(
         layer_types=[FULL, SLIDING, SLIDING, SLIDING, FULL, SLIDING])))
    gguf("gemma3_text", "pattern too short", {pattern: [True, False]}, words=pattern)
    gguf("gemma3_text", "rope.freq_base_swa absent", {"rope.freq_base_swa": None}, reference=as_config(without=["rope_local_base_freq"]))
    gguf("gemma3_text", "linear", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
         reference=as_config(dict(rope_scaling=dict(rope_type="linear", factor=8.0))))
    gguf("gemma3_text", "final_logit_softcapping", {"final_logit_softcapping": 2.0}, reference=as_config(dict(final_logit_softcapping=2.0)))
    gguf("gemma3_text", "attention.scale", {"attention.scale": 0.125}, reference=as_config(dict(query_pre_attn_scalar=64)))
    gguf("phi3", "sliding_window 0", {"attention.sliding_window": 0}, reference=as_config(dict(sliding_window=None)))
    gguf("phi3", "sliding_window absent", {"attention.sliding_window": None}, reference=as_config(dict(sliding_window=None)))
    gguf("phi3", "longrope", {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.224744871391589},
         tensors=[["fill", "rope_factors_long.weight", LONG], ["fill", "rope_factors_short.weight", SHORT]],
         reference=as_config(dict(original_max_position_embeddings=16, rope_scaling=dict(
             type="longrope", short_factor=SHORT, long_factor=LONG))))


def gguf_experts():
    stacks = ["gate", "up", "down"]
    apart = [["unpile", f"blk.{i}.ffn_{m}_exps.weight", f"blk.{i}.ffn_{m}.{{}}.weight"] for i in range(2) for m in stacks]
    for name in EXPERT_ARCHES:
        gguf(name, "as converted")
        gguf(name, "one tensor an expert, as before stacks", tensors=apart)
        gguf(name, "one expert a token", {"expert_used_count": 1}, reference=as_config(dict(num_experts_per_tok=1)))
        gguf(name, "keys that say what is so", {"expert_gating_func": 1, "expert_weights_scale": 1.0, "expert_shared_count": 0,
             "expert_weights_norm": name != "olmoe"})
        gguf(name, "routed by sigmoids", {"expert_gating_func": 2}, words="expert_gating_func")
        gguf(name, "weights normed otherwise", {"expert_weights_norm": name == "olmoe"}, words="expert_weights_norm")
        gguf(name, "more experts a token than there are", {"expert_used_count": 5}, words="expert_used_count")
        gguf(name, "no number of experts a token", {"expert_used_count": None}, words="expert_used_count")
        gguf(name, "fewer experts than are stored", {"expert_count": 3}, words="ffn_gate_inp")
        gguf(name, "a stack too short", words="ffn_up_exps", tensors=[["make", "blk.0.ffn_up_exps.weight", [3, 24, 32]]])
        gguf(name, "no stack of up", words="ffn_up_exps", tensors=drop("blk.0.ffn_up_exps.weight"))
        gguf(name, "another width", {"expert_feed_forward_length": 20}, words="ffn_down_exps|ffn_gate_exps")
        gguf(name, "a shared expert", words="ffn_up_shexp", tensors=stray("blk.0.ffn_up_shexp.weight", 24, 32))
    gguf("mixtral", "no experts in the metadata", {"expert_count": 0}, words="ffn_gate")
    gguf("qwen3_moe", "no experts in the metadata", {"expert_count": None}, words="expert_count")
    gguf("llama", "experts in the metadata", {"expert_count": 4, "expert_used_count": 2}, words="ffn_gate_inp")
    gguf("qwen3", "experts in the metadata", {"expert_count": 4, "expert_used_count": 2}, words="expert_count")


every_family()
every_default()
keys_of_others()
ropes()
longropes()
heads()
biases()
norms()
windows()
gemmas()
wrappers()
experts()
ggufs()
gguf_experts()

"""Rows of the table of variant checkpoints for the families of 2025 and 2026. Data for variants.py, which see.

Of these families nothing is claimed by hand: each base gets the same edits, and transformers says what comes of each
(claim `found`): logits, or a refusal where it raises, starts a tensor at random or drops one.
"""

# fmt: off

from variant_rows import (
    EYE,
    FIRST,
    FOREIGN,
    FULL,
    LLAMA3,
    LOUD,
    ROWS,
    SLIDING,
    VOCAB,
    YARN,
    drop,
    moves,
    published,
    refused,
    row,
    same,
    stray,
)

GRANITE = dict(embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=3.0,
               attention_bias=False)
MINISTRAL3 = dict(rope_type="yarn", rope_theta=5000.0, factor=8.0, original_max_position_embeddings=8, beta_fast=32.0,
                  beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4)
LAYER_NORM = dict(rms_norm_eps=..., layer_norm_eps=1e-5)
LATENT = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=6, n_routed_experts=4, num_experts_per_tok=2,
              moe_intermediate_size=12, first_k_dense_replace=1, n_group=1, topk_group=1)
NEMOTRON = dict(rms_norm_eps=..., layer_norm_epsilon=1e-5, hidden_act=..., mlp_hidden_act="relu2", head_dim=16, mamba_num_heads=4,
                mamba_head_dim=8, n_groups=2, ssm_state_size=8, conv_kernel=4, expand=2, chunk_size=16, use_conv_bias=True,
                use_bias=False, attention_bias=False, mlp_bias=False, mamba_proj_bias=False, mamba_hidden_act="silu",
                time_step_min=0.001, time_step_max=0.1, time_step_limit=[0.0, float("inf")], sliding_window=None, pad_token_id=0)

NEWER = {
    "granite": published("granite", mlp_bias=False, **GRANITE),
    "granitemoehybrid": published("granitemoehybrid", num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=48,
                                  layer_types=["attention"] * 2, position_embedding_type="rope", mamba_n_heads=8,
                                  mamba_d_head=8, **GRANITE),
    "ministral3": published("ministral3", head_dim=16, rope_theta=..., rope_parameters=MINISTRAL3, sliding_window=None),
    "olmo2": published("olmo2", attention_bias=False),
    "olmo3": published("olmo3", num_hidden_layers=5, attention_bias=False, sliding_window=8, rope_theta=500000.0, rope_scaling=dict(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=8, beta_fast=32.0, beta_slow=1.0, attention_factor=1.2)),
    "exaone4": published("exaone4", num_hidden_layers=5, head_dim=16, sliding_window=8, sliding_window_pattern=4,
                         layer_types=[SLIDING, SLIDING, SLIDING, FULL, SLIDING]),
    "cohere2": published("cohere2", num_hidden_layers=5, attention_bias=False, logit_scale=0.5, sliding_window=8,
                         sliding_window_pattern=4, tie_word_embeddings=..., **LAYER_NORM),
    "glm4": published("glm4", pad_token_id=0, head_dim=16, attention_bias=True, partial_rotary_factor=0.5),
    "hunyuan_v1_dense": published("hunyuan_v1_dense", head_dim=16, attention_bias=False, rope_scaling=dict(
        type="dynamic", alpha=1000.0, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)),
    "ernie4_5": published("ernie4_5", head_dim=16, use_bias=False, tie_word_embeddings=True),
    "arcee": published("arcee", head_dim=16, attention_bias=False, mlp_bias=False, hidden_act="relu2"),
    "apertus": published("apertus", attention_bias=False, hidden_act="xielu", pad_token_id=0),
    "stablelm": published("stablelm", partial_rotary_factor=0.25, use_qkv_bias=True, use_parallel_residual=False,
                          qk_layernorm=False, **LAYER_NORM),
    "starcoder2": published("starcoder2", rms_norm_eps=..., norm_epsilon=1e-5, use_bias=True, sliding_window=8,
                            hidden_act="gelu_pytorch_tanh", tie_word_embeddings=...),
    "granite_swa": published("granite_swa", num_hidden_layers=5, sliding_window=8, tie_word_embeddings=..., **GRANITE),
    "gpt_oss": published("gpt_oss", num_hidden_layers=3, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
                         attention_bias=True, rope_theta=150000.0, swiglu_limit=7.0, rope_scaling=dict(
                             rope_type="yarn", factor=8.0, original_max_position_embeddings=8, beta_fast=32.0, beta_slow=1.0,
                             truncate=False)),
    "lfm2_moe": published("lfm2_moe", rms_norm_eps=..., norm_eps=1e-5, hidden_act=..., num_hidden_layers=3, num_dense_layers=1,
                          num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
                          use_expert_bias=True, routed_scaling_factor=1.5, conv_L_cache=3, conv_bias=False,
                          layer_types=["conv", FULL, "conv"], tie_word_embeddings=...),
    "laguna": published("laguna", num_hidden_layers=4, head_dim=16, num_experts=4, num_experts_per_tok=2, hidden_act=...,
                        moe_intermediate_size=24, shared_expert_intermediate_size=24, gating=True, sliding_window=8,
                        attention_bias=False, moe_routed_scaling_factor=1.5, rope_theta=...),
    "gemma4_text": published("gemma4_text", num_hidden_layers=6, head_dim=16, layer_types=[SLIDING, FULL] * 3, sliding_window=8, hidden_act=...,
                             hidden_activation="gelu_pytorch_tanh", final_logit_softcapping=8.0, global_head_dim=16,
                             attention_k_eq_v=False, num_kv_shared_layers=2, hidden_size_per_layer_input=4,
                             vocab_size_per_layer_input=VOCAB, use_double_wide_mlp=False, enable_moe_block=False,
                             tie_word_embeddings=..., rope_theta=..., pad_token_id=0),
    "qwen3_5_text": published("qwen3_5_text", num_hidden_layers=4, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
                              linear_key_head_dim=8, linear_value_head_dim=8, linear_conv_kernel_dim=4, attention_bias=False,
                              full_attention_interval=4, rope_theta=..., rope_parameters=dict(
                                  rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.25, mrope_section=[1, 1, 0])),
    "falcon_h1": published("falcon_h1", head_dim=16, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1,
                           mamba_d_state=8, mamba_d_conv=4, mamba_rms_norm=False, mamba_norm_before_gate=False,
                           lm_head_multiplier=0.5, key_multiplier=0.7, attention_in_multiplier=1.2, attention_out_multiplier=0.9,
                           ssm_in_multiplier=1.1, ssm_out_multiplier=0.8, embedding_multiplier=3.0, mlp_multipliers=[0.9, 1.1],
                           ssm_multipliers=[1.1, 0.9, 1.2, 0.8, 1.05], projectors_bias=False, mamba_proj_bias=False,
                           mamba_conv_bias=True, attention_bias=False, mlp_bias=False, pad_token_id=0),
    "helium": published("helium", head_dim=16, attention_bias=False, mlp_bias=False, pad_token_id=0),
    "lfm2": published("lfm2", rms_norm_eps=..., norm_eps=1e-5, hidden_act=..., num_hidden_layers=3, conv_L_cache=3, conv_bias=False,
                      block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.0, block_multiple_of=16,
                      layer_types=["conv", FULL, "conv"], tie_word_embeddings=...),
    "qwen3_5_moe_text": published("qwen3_5_moe_text", num_hidden_layers=2, head_dim=16, intermediate_size=..., num_experts=4,
                                  num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=20,
                                  linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
                                  linear_value_head_dim=8, linear_conv_kernel_dim=4, attention_bias=False,
                                  full_attention_interval=2, rope_theta=..., rope_parameters=dict(
                                      rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.25,
                                      mrope_section=[1, 1, 0])),
    "granitemoeshared": published("granitemoeshared", num_local_experts=4, num_experts_per_tok=2, intermediate_size=24,
                                  shared_intermediate_size=20, **GRANITE),
    "granitemoe": published("granitemoe", num_local_experts=4, num_experts_per_tok=2, intermediate_size=24, **GRANITE),
    "granitemoehybrid_moe": published("granitemoehybrid", num_local_experts=4, num_experts_per_tok=2, intermediate_size=24,
                                      shared_intermediate_size=40, layer_types=["mamba", "attention"], mamba_n_heads=8,
                                      mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_d_conv=4, mamba_expand=2,
                                      mamba_chunk_size=16, mamba_conv_bias=True, mamba_proj_bias=False,
                                      position_embedding_type="nope", **GRANITE),
    "qwen2_moe": published("qwen2_moe", num_hidden_layers=3, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
                           shared_expert_intermediate_size=20, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[],
                           qkv_bias=True, use_sliding_window=False, sliding_window=8, max_window_layers=1),
    "ernie4_5_moe": published("ernie4_5_moe", num_hidden_layers=3, moe_num_experts=4, moe_k=2, moe_intermediate_size=12,
                              moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=-1, moe_layer_interval=1,
                              moe_norm_min=1e-12, moe_use_aux_free=True, use_bias=False, tie_word_embeddings=True),
    "glm4_moe_lite": published("glm4_moe_lite", num_hidden_layers=3, q_lora_rank=12, num_key_value_heads=2, n_shared_experts=1,
                               routed_scaling_factor=1.8, topk_method="noaux_tc", norm_topk_prob=True, attention_bias=False,
                               num_nextn_predict_layers=1, partial_rotary_factor=1.0, **LATENT),
    "deepseek_v2": published("deepseek_v2", num_hidden_layers=3, q_lora_rank=None, num_key_value_heads=2, n_shared_experts=2,
                             routed_scaling_factor=1.5, topk_method="greedy", norm_topk_prob=False, scoring_func="softmax",
                             moe_layer_freq=1, attention_bias=False, rope_scaling=dict(
                                 type="yarn", factor=8.0, original_max_position_embeddings=16, beta_fast=32, beta_slow=1,
                                 mscale=0.707, mscale_all_dim=0.707), **LATENT),
    "nemotron_h": published("nemotron_h", num_hidden_layers=4, hybrid_override_pattern="M-*M", intermediate_size=40, **NEMOTRON),
    "nemotron_h_moe": published("nemotron_h", num_hidden_layers=4, hybrid_override_pattern="ME*E", n_routed_experts=4,
                                num_experts_per_tok=2, moe_intermediate_size=24, moe_shared_expert_intermediate_size=20,
                                moe_latent_size=12, n_shared_experts=1, n_group=1, topk_group=1, norm_topk_prob=True,
                                routed_scaling_factor=1.5, **NEMOTRON),
    "lfm3": published("lfm3", rms_norm_eps=..., norm_eps=1e-5, hidden_act=..., num_hidden_layers=5, head_dim=16, sliding_window=8,
                      conv_L_cache=7, conv_bias=False, layer_types=["conv", "conv", FULL, "conv", SLIDING],
                      use_sandwich_norm=True, use_attention_gate=True, attention_bias=False, pad_token_id=0,
                      tie_word_embeddings=..., rope_theta=..., rope_parameters={
                          FULL: dict(rope_type="proportional", rope_theta=5000.0, partial_rotary_factor=0.5),
                          SLIDING: dict(rope_type="default", rope_theta=300.0)}),
    "muse_glimmer": dict(
        model_type="muse_glimmer", tie_word_embeddings=False, image_token_id=60, video_token_id=61, out_hidden_size=8,
        projector_hidden_size=8, torch_dtype="float32", transformers_version="4.51.0",
        vision_config={key: value for key, value in EYE.items() if key != "image_size"} | dict(
            model_type="muse_glimmer_vision", pos_emb_height=4, pos_emb_width=4, layer_types=[FULL]),
        text_config=published("muse_glimmer_text", num_hidden_layers=5, head_dim=16, hidden_act=..., hidden_activation="silu",
                              sliding_window=8, qk_scale_factor=2.5, output_multiplier=0.5, final_logit_softcapping=6.0,
                              post_norm_eps=1e-8, attention_bias=False, tie_word_embeddings=..., rope_theta=...,
                              rope_parameters=dict(rope_type="default", rope_theta=5000.0))),
}

#: Their classes want an object for each layer type, and fail where there is none; two also where it is null.
BY_TYPE = ("laguna", "gemma4_text", "lfm3")

#: What we refuse on purpose, and transformers runs: the words that the error has.
OURS = {f"{name}/activation mish": "mish" for name in NEWER if name not in ("gpt_oss", "lfm2", "lfm2_moe", "lfm3")}
#: A rotation for each layer type, which transformers passes over in a family that has one rotation.
OURS |= {f"{name}/{key} by layer type": "full_attention" for name in NEWER for key in ("rope_scaling", "rope_parameters")
         if name not in ("olmo3", "ministral3", "exaone4", "cohere2", *BY_TYPE)}
#: Convolutions are followed by it, too.
OURS |= {f"{name}/mamba_hidden_act loud": "mamba_hidden_act" for name in ("nemotron_h", "nemotron_h_moe")}
OURS |= {f"{name}/{words}": "hidden_act" for name in (
    "falcon_h1", "qwen3_5_text", "qwen3_5_moe_text", "granitemoehybrid_moe") for words in (
    "hidden_act loud", *(f"activation {act}" for act in ("relu", "relu2", "gelu", "gelu_pytorch_tanh")))}
OURS |= {f"{name}/rope_parameters by layer type": None for name in ("hunyuan_v1_dense", "gpt_oss", "deepseek_v2")}
#: A rotation that is none of transformers' in a model that has no rotation, and windows that no published file has.
OURS |= {f"{name}/{key}banana": "banana" for name in ("granitemoehybrid_moe", "nemotron_h", "nemotron_h_moe") for key in (
    "rope_scaling ", "rope_scaling, older spelling, ", "rope_parameters ")}
OURS |= {"qwen2_moe/use_sliding_window loud": "use_sliding_window"}
OURS |= {f"qwen2_moe/layer_types {SLIDING}, {other}": "layer_types" for other in (SLIDING, FULL)}

#: Sizes, whose classes' defaults are beyond a test.
SIZES = {"vocab_size", "hidden_size", "intermediate_size", "shared_intermediate_size", "num_hidden_layers",
         "num_attention_heads", "model_type", "architectures"}
#: Neither transformers' numbers nor ours hang on these.
WITHOUT_EFFECT = {"torch_dtype", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"}
#: Keys of one family alone, or a few.
COUNTS = dict(num_experts=3, num_local_experts=3)
OF_EXPERTS = dict(COUNTS, norm_topk_prob=False, mlp_only_layers=[1], decoder_sparse_step=2,
                  shared_expert_intermediate_size=12, moe_intermediate_size=8, qkv_bias=False)
OF_LATENTS = dict(OF_EXPERTS, n_group=2, topk_method="group_limited_greedy", q_lora_rank=8, kv_lora_rank=8, v_head_dim=8,
                  qk_rope_head_dim=6, qk_nope_head_dim=4, n_shared_experts=2, n_routed_experts=3, routed_scaling_factor=3.0,
                  first_k_dense_replace=2, rope_interleave=False, scoring_func="sigmoid", moe_layer_freq=2,
                  mlp_layer_types=["sparse", "dense", "sparse"])
OF_MAMBA = dict(mamba_n_heads=4, mamba_d_head=4, mamba_d_state=4, mamba_n_groups=2, mamba_d_conv=3, mamba_expand=1,
                mamba_conv_bias=False, mamba_proj_bias=True, time_step_limit=[0.3, 0.9], shared_intermediate_size=12)
OF_NEMOTRON = dict(OF_MAMBA, mlp_hidden_act="silu", mamba_hidden_act="relu", layer_norm_epsilon=0.5, use_conv_bias=False,
                   time_step_min=0.9, mamba_dt_min=0.9, mamba_dt_max=0.3, mamba_dt_limit=[0.3, 0.9], n_groups=1, conv_kernel=3,
                   mamba_num_heads=6, mamba_head_dim=4, ssm_state_size=4, hybrid_override_pattern="M*M-", expand=1,
                   layers_block_type=["linear_attention", "mlp", FULL, FULL], layer_types=[FULL, "mlp"] * 2, num_hidden_layers=3, residual_in_fp32=True)
OF_ONE = dict(
    granitemoe=OF_EXPERTS, granitemoehybrid_moe=OF_EXPERTS | OF_MAMBA | dict(layers_block_type=[FULL, "linear_attention"]), qwen2_moe=OF_EXPERTS, glm4_moe_lite=OF_LATENTS,
    deepseek_v2=OF_LATENTS, nemotron_h=OF_NEMOTRON,
    nemotron_h_moe=OF_NEMOTRON | dict(
        hybrid_override_pattern="M*-E", layers_block_type=["linear_attention", "moe", FULL, "mlp"], n_routed_experts=3,
        num_local_experts=3, moe_latent_size=8, n_shared_experts=2, moe_shared_expert_intermediate_size=12, n_group=2,
        norm_topk_prob=False, routed_scaling_factor=3.0, moe_shared_expert_overlap=False),
    ernie4_5_moe=dict(moe_num_experts=3, num_experts=3, moe_k=1, moe_intermediate_size=8, moe_num_shared_experts=1,
                      moe_layer_start_index=0, moe_layer_end_index=1, moe_layer_interval=2, moe_norm_min=0.7,
                      moe_use_aux_free=False),
    lfm3=dict(conv_L_cache=4, conv_bias=True, use_sandwich_norm=False, use_attention_gate=False, norm_eps=0.5,
              block_auto_adjust_ff_dim=True, full_attn_idxs=[0], tie_embedding=False),
    muse_glimmer=dict(qk_scale_factor=1.0, output_multiplier=1.0, post_norm_eps=0.5, layer_rope_theta=[0, 100.0, 0, 300.0, 0]),
    gpt_oss=COUNTS, lfm2_moe=dict(COUNTS, tie_embedding=False, moe_intermediate_size=8, routed_scaling_factor=3.0),
    lfm2=dict(conv_L_cache=4, conv_bias=True, block_ff_dim=72, block_ffn_dim_multiplier=1.3, block_multiple_of=8,
              tie_embedding=False, full_attn_idxs=[0], norm_eps=0.5),
    granitemoeshared=OF_EXPERTS | dict(shared_intermediate_size=12), qwen3_5_moe_text=OF_EXPERTS,
    laguna=dict(COUNTS, gating=False, mlp_layer_types=["sparse", "dense", "sparse", "sparse"], moe_router_logit_softcapping=0.5,
                moe_apply_router_weight_on_input=True, num_attention_heads_per_layer=[2, 4, 2, 4]),
    stablelm=dict(rope_pct=0.5),
)
LOUDER = LOUD | dict(
    embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.25, logits_scaling=8.0, logit_scale=0.25,
    use_bias=True, use_qkv_bias=True, use_parallel_residual=True, norm_epsilon=0.5, position_embedding_type="nope",
    no_rope_layers=[0] * 9, layer_types=[FULL] * 9, sliding_window_pattern=2, num_experts_per_tok=1, head_dim=24,
)


def found(base, name, config=None, **fields):
    """`lenient`: not a row where transformers raises, since its classes check types and keys that no model reads."""
    row(base, name, config, claim="found", ours=OURS.get(f"{base}/{name}"), **fields)


def of_keys(name, config):
    layers = config["num_hidden_layers"]
    for key in config:
        if key not in SIZES | WITHOUT_EFFECT:
            if (name, key) != ("hunyuan_v1_dense", "head_dim"):  # its class cannot do without
                found(name, f"{key} absent", without=[key], fit=key in ("head_dim", "num_key_value_heads"),
                      lenient=key.startswith("mamba_"))
            if not isinstance(config[key], (dict, bool)):
                found(name, f"{key} null", {key: None}, lenient=True)
    # Not of a type that the class takes.
    louder = {key: value for key, value in (LOUDER | OF_ONE.get(name, {})).items() if (name, key) not in (
        ("gemma4_text", "use_bidirectional_attention"), ("falcon_h1", "layer_types"))}
    for key, value in louder.items():
        value = value[:layers] if isinstance(value, list) else value
        found(name, f"{key} loud", {key: value}, fit=True)
    found(name, "keys that no class reads", {key: value for key, value in FOREIGN.items() if key not in config})
    same(name, "Infinity and NaN", dict(mask_value=-float("inf"), aux_loss=float("nan")))
    found(name, "not causal", dict(is_causal=False))
    key = next((key for key in ("mlp_hidden_act", "hidden_activation") if key in config), "hidden_act")
    for activation in ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh", "xielu", "mish"):
        found(name, f"activation {activation}", {key: activation})
    for kinds in ([SLIDING], [FULL], [SLIDING, FULL], ["linear_attention"], ["banana"]):
        kinds = (kinds * layers)[:layers]
        found(name, f"layer_types {kinds[0]}, {kinds[1]}", dict(layer_types=kinds), lenient="layer_types" not in config)
    found(name, "layer_types too short", dict(layer_types=[FULL]), lenient="layer_types" not in config)


def of_ropes(name):
    theta = dict(rope_theta=700.0)
    for kind, numbers in (("default", {}), ("linear", dict(factor=4.0)), ("dynamic", dict(factor=4.0)), ("yarn", YARN),
                          ("llama3", LLAMA3), ("banana", dict(factor=2.0)), ("yarn", dict(YARN, mscale=1.0, mscale_all_dim=0.5)),
                          ("linear", {}), ("yarn", dict(YARN, attention_factor=1.5, truncate=False))):
        words = kind + "".join(f", {key} {value}" for key, value in numbers.items() if kind == "yarn" and key not in YARN)
        words += " without numbers" if kind != "default" and not numbers else ""
        found(name, f"rope_scaling {words}", dict(rope_scaling=dict(rope_type=kind, **numbers)))
        # 5.24 has set rope_type "default" before it looks for the old spelling where each layer type has a rotation,
        # and loses it: there these are the logits of the new one.
        found(name, f"rope_scaling, older spelling, {words}", dict(rope_scaling=dict(type=kind, **numbers)), **(
            dict(reference=dict(config=dict(rope_scaling=dict(rope_type=kind, **numbers)))) if name == "olmo3" else {}))
        found(name, f"rope_parameters {words}", dict(rope_parameters=dict(theta, rope_type=kind, **numbers)))
    found(name, "rope_scaling yarn beside rope_parameters", dict(
        rope_parameters=dict(theta, rope_type="default"), rope_scaling=dict(rope_type="yarn", **YARN)))
    for key in ("rope_scaling", "rope_parameters"):
        found(name, f"{key} null", {key: None}, lenient=name in BY_TYPE)
        found(name, f"{key} empty", {key: {}}, lenient=name in BY_TYPE)
        found(name, f"{key} by layer type", {key: {FULL: dict(theta, rope_type="default"), SLIDING: dict(
            rope_theta=50.0, rope_type="default")}})


#: What a family calls the embeddings and the final norm.
EMBEDDINGS = dict(nemotron_h="backbone.embeddings", nemotron_h_moe="backbone.embeddings",
                  muse_glimmer="model.language_model.embed_tokens")
FINALS = dict(lfm2="model.embedding_norm", lfm2_moe="model.embedding_norm", lfm3="model.embedding_norm", falcon_h1="model.final_layernorm",
              nemotron_h="backbone.norm_f", nemotron_h_moe="backbone.norm_f", muse_glimmer="model.language_model.norm")


def of_tensors(name, config):
    layers = config["num_hidden_layers"]
    embedding = EMBEDDINGS.get(name, "model.embed_tokens")
    first = FIRST.replace("model", embedding.rpartition(".")[0])
    attention, mlp = ("mixer", "mixer") if name.startswith("nemotron") else ("self_attn", "mlp")
    head, embedding = drop("lm_head.weight"), drop(f"{embedding}.weight")
    tied = NEWER[name].get("tie_word_embeddings", True)
    for flag in (True, False, None):
        edits = dict(config=dict(tie_word_embeddings=flag)) if flag is not None else dict(
            without=["tie_word_embeddings"] if "tie_word_embeddings" in NEWER[name] else [])
        words = "flag absent" if flag is None else f"tied {flag}".lower()
        found(name, f"{words}, head stored", tensors=[] if not tied else stray("lm_head.weight", VOCAB, 32), **edits)
        found(name, f"{words}, no head", tensors=[] if tied else head, **edits)
        if not tied:
            found(name, f"{words}, no embedding", tensors=embedding, **edits)
    biased = any(config.get(key) for key in ("attention_bias", "use_bias", "use_qkv_bias", "qkv_bias"))
    for words, made in (
        ("a bias of a norm of q", stray(f"{first}{attention}.q_norm.bias", 16)), ("a norm", stray(first + "a_layernorm.weight", 32)),
        ("a bias of q", stray(f"{first}{attention}.q_proj.bias", 32)), ("a bias of o", stray(f"{first}{attention}.o_proj.bias", 32)),
        ("a bias of down", stray(f"{first}{mlp}.down_proj.bias", 32)), ("a scale", stray(f"{first}{attention}.v_proj.scale", 1)),
        ("sinks", stray(f"{first}{attention}.sinks", 2)),
    ):
        if not (biased and words.startswith("a bias")) and not (words == "sinks" and name in ("gpt_oss", "granite_swa")):
            refused(name, f"{words} that nothing reads", made[0][1], "ours" if "bias" in words else "unused", tensors=made)
    same(name, "a draft head stored", tensors=stray("mtp.norm.weight", 32))
    final = FINALS.get(name, "model.norm")
    refused(name, "no final norm", final, "random", tensors=drop(f"{final}.weight"))
    # The bits of a number are of no dimension in an Apertus.
    if name != "apertus":
        moves(name, "bfloat16", tensors=[["cast", "*", "BF16"]])
    # Without its list of layers the class of the first two fails; Nemotron-H counts the list.
    if name.startswith(("lfm", "gemma4", "nemotron")):
        return
    by_list = config["model_type"] == "granitemoehybrid"
    refused(name, "a layer too few", f"layers.{layers}.|num_hidden_layers|layer_types", "raises" if by_list else "random",
            dict(num_hidden_layers=layers + 1), without=["layer_types"] if "layer_types" in config and not by_list else [])


def inside(rows):
    """The same edits in the text model of a wrapper; of the flag that ties embeddings the wrapper's own counts."""
    place = lambda key: key if key == "tie_word_embeddings" else f"text_config.{key}"
    for edited in rows:
        edited["config"] = {place(key): value for key, value in edited["config"].items()}
        edited["without"] = [place(key) for key in edited["without"]]


def newer():
    for name, config in NEWER.items():
        row(name, "published", claim="base")
        row(name, "as transformers 5.24 saves it", claim="saved")
        before, text = len(ROWS), config.get("text_config", config)
        of_keys(name, text)
        of_ropes(name)
        of_tensors(name, text)
        if text is not config:
            inside(ROWS[before:])

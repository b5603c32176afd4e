#!/usr/bin/env python3
"""Make the family goldens: tiny random checkpoints and the logits transformers computes from them.

Each row of VARIANTS becomes one folder `tests/golden/families/<name>/`:

    config.json                 as published checkpoints spell it ("classic"), or as transformers 5 writes it ("v5")
    model.safetensors           seeded random weights (one variant: two shards and an index)
    reference.safetensors       tokens (I64 [n]), logits (F32 [n, vocab]); most also tokens_1, logits_1 (a shorter prompt)
    meta.json                   name, family, context_length to load with (or null), what the variant tests

The logits are float32, eager attention, one forward over the whole prompt. Every rewritten config is loaded back from
disk with transformers and must give the same logits. `bite` in meta.json says how far the logits move when the feature
under test is switched off: a reader that ignores it cannot pass.

Made with Python 3.11, torch 2.8.0, transformers 5.23.0, safetensors 0.8.0; from granite-dense on with torch 2.15.0 and
transformers 5.24.0.
"""

import argparse
import copy
import json
import shutil
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PROMPT, SHORT = 40, 13
BASE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)  # fmt: skip
CLASSES = {
    "llama": "Llama", "smollm3": "SmolLM3", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi": "Phi",
    "phi3": "Phi3", "gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3", "gemma3": "Gemma3",
    "glm4_moe_lite": "Glm4MoeLite", "deepseek_v2": "DeepseekV2",
    "gemma4_text": "Gemma4", "gemma4": "Gemma4", "gemma4_unified_text": "Gemma4Unified",
    "muse_glimmer": "MuseGlimmer", "seed_oss": "SeedOss", "lfm2": "Lfm2", "mixtral": "Mixtral", "olmoe": "Olmoe", "qwen3_moe": "Qwen3Moe", "granite": "Granite",
    "granitemoehybrid": "GraniteMoeHybrid", "ministral3": "Ministral3", "olmo2": "Olmo2", "olmo3": "Olmo3",
    "exaone4": "Exaone4", "cohere2": "Cohere2", "glm4": "Glm4", "hunyuan_v1_dense": "HunYuanDenseV1",
    "ernie4_5": "Ernie4_5", "arcee": "Arcee", "apertus": "Apertus", "stablelm": "StableLm",
    "starcoder2": "Starcoder2", "helium": "Helium", "gpt_oss": "GptOss", "lfm2_moe": "Lfm2Moe", "lfm3": "Lfm3",
    "granitemoe": "GraniteMoe", "granite_swa": "GraniteSWA", "laguna": "Laguna", "ernie4_5_moe": "Ernie4_5_Moe",
    "qwen2_moe": "Qwen2Moe", "qwen3_5_text": "Qwen3_5", "qwen3_5": "Qwen3_5", "qwen3_5_moe_text": "Qwen3_5Moe",
    "nemotron_h": "NemotronH", "falcon_h1": "FalconH1",
}  # fmt: skip


def rope(kind="default", theta=10000.0, **fields):
    """The transformers 5 spelling of one RoPE setting."""
    return dict(rope_type=kind, rope_theta=theta, **fields)


LLAMA3 = rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
YARN = rope("yarn", 1000000.0, factor=4.0, original_max_position_embeddings=32)
SHORT_FACTOR = [1.0, 1.1, 1.25, 1.4, 1.6, 1.9, 2.3, 2.8]
LONG_FACTOR = [1.2, 1.7, 2.5, 3.6, 5.1, 7.0, 9.5, 13.0]
GLOBAL, LOCAL, CONV = "full_attention", "sliding_attention", "conv"


def longrope(original, dims=8):
    """Phi-3 LongRope; `original` decides, against the prompt's length, which list is in force."""
    return rope("longrope", short_factor=SHORT_FACTOR[:dims], long_factor=LONG_FACTOR[:dims],
                original_max_position_embeddings=original)  # fmt: skip


def gemma3_rope(**scaling):
    """Gemma 3's two bases: one for the global layers (perhaps scaled), one for the local ones."""
    kind = "linear" if scaling else "default"
    return {GLOBAL: rope(kind, 1000000.0, **scaling), LOCAL: rope()}


def gemma4_rope(partial=0.25, theta=1000000.0):
    """Gemma 4's two rotations: "proportional" on the layers that see everything."""
    return {GLOBAL: rope("proportional", theta, partial_rotary_factor=partial), LOCAL: rope()}


def variant(name, family, config, without=None, *, spelling="classic", patch=None, context_length=None, short=True,
            dtype="float32", shards=1, rope_key="rope_type", gguf=None, neutral=None, mxfp4=False,
            notes=""):  # fmt: skip
    """One row. `without`: the config fields that switch the tested feature off; `patch`: last edits of config.json;
    `gguf`: the GGUF architecture that carries it, or None; `neutral`: values by the ends of names that switch tensors
    off; `mxfp4`: experts are stored so."""
    return dict(locals())


# Buffers that are trained.
CORRECTIONS = ("expert_bias", "e_score_correction_bias")
# The head_dim of 16 in rows with scaled RoPE gives eight frequencies, enough for every branch of a scaling rule.
HEAD16 = dict(num_attention_heads=2, num_key_value_heads=1)
# Models of pictures around a language model.
WRAPPED = ("gemma3", "gemma4", "muse_glimmer", "qwen3_5")
VISION = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
)
HEAD24 = dict(HEAD16, head_dim=24, intermediate_size=32)
EXPERTS = dict(intermediate_size=24)
GEMMA4 = dict(hidden_size_per_layer_input=0, sliding_window=8, intermediate_size=24, final_logit_softcapping=9.0,
              tie_word_embeddings=True, pad_token_id=0, rope_parameters=gemma4_rope())  # fmt: skip
SIX = dict(
    num_hidden_layers=6, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16
)

LFM24 = dict(num_hidden_layers=3, hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
OSS = dict(num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, intermediate_size=32)
LAGUNA = dict(LFM24, num_attention_heads=2, num_key_value_heads=2, head_dim=16, intermediate_size=20, num_experts=5,
              num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=8)  # fmt: skip
OSS_ROPE = rope("yarn", 150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                original_max_position_embeddings=4096)  # fmt: skip

LINEAR = "linear_attention"
QWEN3_5 = dict(HEAD16, hidden_size=16, num_hidden_layers=4, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
               rope_parameters=rope(partial_rotary_factor=0.25, mrope_section=[1, 1, 0], mrope_interleaved=True))  # fmt: skip
MAMBA = dict(
    HEAD16,
    hidden_size=16,
    mamba_n_heads=8,
    mamba_d_head=4,
    mamba_d_state=12,
    mamba_n_groups=2,
    mamba_chunk_size=16,
)
NEMOTRON = dict(HEAD16, hidden_size=16, head_dim=16, intermediate_size=40, mamba_num_heads=6, mamba_head_dim=8, ssm_state_size=12, n_groups=2,
                conv_kernel=4, chunk_size=16)  # fmt: skip
FALCON = dict(MAMBA, intermediate_size=40, mamba_n_heads=6, mamba_d_head=8, mamba_d_ssm=48)

VARIANTS = [
    variant("llama-mha", "llama", dict(num_key_value_heads=4), dict(rope_parameters=rope(theta=100.0)), gguf="llama",
            notes="as many key heads as query heads, untied head"),
    variant("llama-gqa-tied", "llama", dict(tie_word_embeddings=True, num_key_value_heads=1, rms_norm_eps=1e-5,
            rope_parameters=rope(theta=100000.0)), dict(rope_parameters=rope()), gguf="llama",
            notes="four query heads share one key head, tied embeddings, base 100000 (as SmolLM2)"),
    variant("llama-llama3", "llama", dict(HEAD16, rope_parameters=LLAMA3),
            dict(rope_parameters=rope(theta=500000.0)), gguf="llama",
            notes="llama3 scaling: kept, smoothed and divided frequencies all occur"),
    variant("llama-linear", "llama", dict(HEAD16, rope_parameters=rope("linear", factor=4.0)),
            dict(rope_parameters=rope()), rope_key="type", gguf="llama",
            notes="linear scaling in the oldest spelling, rope_scaling.type"),
    variant("llama-dynamic", "llama", dict(HEAD16, max_position_embeddings=16, intermediate_size=32,
            rope_parameters=rope("dynamic", factor=4.0)), dict(rope_parameters=rope()), rope_key="type",
            context_length=PROMPT, short=False,
            notes="dynamic NTK: the base for a sequence of context_length tokens, longer than max_position_embeddings"),
    variant("llama-head20", "llama", dict(head_dim=20, intermediate_size=32), dict(rope_parameters=rope(theta=100.0)),
            gguf="llama", notes="head_dim 20 is not hidden_size / num_attention_heads; o_proj has 80 columns"),
    variant("llama-bias", "llama", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
            dict(attention_bias=False, mlp_bias=False), spelling="v5", gguf="llama",
            notes="biases in every projection; GGUF permutes the q and k biases too"),
    variant("llama-vocab96", "llama", dict(vocab_size=96, intermediate_size=32, max_position_embeddings=64),
            dict(rope_parameters=rope(theta=100.0)), spelling="v5", shards=2, gguf="llama",
            notes="two shards and an index"),
    variant("smollm3-nope4", "smollm3", dict(HEAD16, num_hidden_layers=5, intermediate_size=32,
            tie_word_embeddings=True, rope_parameters=rope(theta=2000000.0)), dict(no_rope_layers=[1] * 5),
            gguf="smollm3", notes="every fourth layer has no RoPE; tied"),
    variant("smollm3-nope2", "smollm3", dict(HEAD16, num_hidden_layers=3, intermediate_size=32, no_rope_layer_interval=2,
            tie_word_embeddings=False, rope_parameters=rope(theta=50000.0)), dict(no_rope_layers=[1] * 3),
            patch=dict(no_rope_layers=None),
            notes="config.json has only no_rope_layer_interval = 2; the list has to be derived"),
    variant("mistral-window", "mistral", dict(HEAD16, sliding_window=8, num_hidden_layers=3, head_dim=24,
            intermediate_size=32),
            dict(sliding_window=None), gguf="llama",
            notes="own head_dim; a token sees itself and the 7 before it. llama.cpp ignores this window"),
    variant("mistral-plain", "mistral", dict(head_dim=12, sliding_window=None, num_key_value_heads=1,
            rope_parameters=rope(theta=1000000.0)), dict(rope_parameters=rope()), gguf="llama", dtype="float16",
            notes="no window, float16 weights, reference in float32 from the rounded weights"),
    variant("qwen2-tied", "qwen2", dict(tie_word_embeddings=True, rope_parameters=rope(theta=1000000.0)),
            dict(rope_parameters=rope()), patch=dict(sliding_window=8, use_sliding_window=False, max_window_layers=1),
            gguf="qwen2", notes="q/k/v bias, tied; config.json names a sliding_window that use_sliding_window turns off"),
    variant("qwen2-yarn", "qwen2", dict(HEAD16, rope_parameters=YARN), dict(rope_parameters=rope(theta=1000000.0)),
            rope_key="type", gguf="qwen2", notes="YaRN with its attention factor, rope_scaling.type as Qwen2.5 has it"),
    variant("qwen2-mixed", "qwen2", dict(num_hidden_layers=3, intermediate_size=32, use_sliding_window=True,
            sliding_window=8, max_window_layers=1), dict(use_sliding_window=False),
            notes="layer 0 sees everything, layers 1 and 2 (index >= max_window_layers) a window of 8"),
    variant("qwen2-bf16", "qwen2", dict(num_key_value_heads=1), dict(rope_parameters=rope(theta=100.0)),
            dtype="bfloat16", spelling="v5", gguf="qwen2",
            notes="bfloat16 weights, reference in float32 from the rounded weights"),
    variant("qwen3-tied", "qwen3", dict(head_dim=16, num_key_value_heads=1, tie_word_embeddings=True,
            rope_parameters=rope(theta=1000000.0)), dict(rope_parameters=rope()), gguf="qwen3",
            notes="own head_dim, per-head q/k norm, tied"),
    variant("qwen3-yarn", "qwen3", dict(head_dim=16, num_attention_heads=2, num_key_value_heads=2,
            rope_parameters=dict(YARN, beta_fast=16.0, beta_slow=2.0)), dict(rope_parameters=rope(theta=1000000.0)),
            spelling="v5", notes="YaRN with its own beta_fast and beta_slow, untied", gguf="qwen3"),
    variant("phi-parallel", "phi", dict(num_key_value_heads=4, partial_rotary_factor=0.5), dict(partial_rotary_factor=1.0),
            gguf="phi2", notes="Phi-2: parallel block, LayerNorm and linear biases everywhere, half of each head rotated"),
    variant("phi-qk-norm", "phi", dict(HEAD16, qk_layernorm=True, partial_rotary_factor=0.25),
            dict(qk_layernorm=False), notes="LayerNorm with bias on q and k, grouped heads, a quarter of each head rotated"),
    variant("phi3-window", "phi3", dict(num_key_value_heads=4, sliding_window=9, intermediate_size=32), dict(sliding_window=None),
            gguf="phi3", notes="fused qkv and gate_up; window of 9. llama.cpp ignores this window"),
    variant("phi3-partial", "phi3", dict(HEAD16, tie_word_embeddings=True, partial_rotary_factor=0.75),
            dict(partial_rotary_factor=1.0), gguf="phi3",
            notes="three quarters of each head rotated, grouped heads, tied (as Phi-4-mini)"),
    variant("phi3-longrope-short", "phi3", dict(HEAD16, max_position_embeddings=1024,
            original_max_position_embeddings=256, rope_parameters=longrope(256)), dict(rope_parameters=rope()),
            rope_key="type", context_length=256, gguf="phi3",
            notes="LongRope, short factors: the context does not pass original_max_position_embeddings"),
    variant("phi3-longrope-long", "phi3", dict(HEAD16, max_position_embeddings=64,
            original_max_position_embeddings=16, rope_parameters=longrope(16)), dict(rope_parameters=rope()),
            rope_key="type", context_length=PROMPT, short=False, gguf="phi3",
            notes="LongRope, long factors: context_length is above original_max_position_embeddings"),
    variant("phi3-longrope-partial", "phi3", dict(HEAD16, max_position_embeddings=64, partial_rotary_factor=0.75,
            original_max_position_embeddings=16, tie_word_embeddings=True, rope_parameters=longrope(16, 6)),
            dict(rope_parameters=rope()), spelling="v5", context_length=PROMPT, short=False, gguf="phi3",
            notes="LongRope, long factors on three quarters of each head"),
    variant("gemma-mqa", "gemma", dict(head_dim=16, num_key_value_heads=1), dict(rope_parameters=rope(theta=100.0)),
            patch=dict(hidden_act="gelu"), gguf="gemma",
            notes="embeddings times sqrt(hidden), (1 + w) norms, one key head; hidden_act says gelu and means the tanh form"),
    variant("gemma2-caps", "gemma2", dict(HEAD24, num_hidden_layers=3, query_pre_attn_scalar=24, sliding_window=8,
            attn_logit_softcapping=5.0, final_logit_softcapping=12.0),
            dict(attn_logit_softcapping=None, final_logit_softcapping=None), gguf="gemma2",
            notes="soft-caps, four norms, even layers a window of 8"),
    variant("gemma2-scalar", "gemma2", dict(HEAD24, num_hidden_layers=4,
            query_pre_attn_scalar=6, sliding_window=6, attn_logit_softcapping=9.0, final_logit_softcapping=None),
            dict(query_pre_attn_scalar=24), spelling="v5",
            notes="query_pre_attn_scalar is not head_dim; no final cap"),
    variant("gemma3-classic", "gemma3_text", dict(SIX, query_pre_attn_scalar=16, sliding_window=8,
            sliding_window_pattern=6, rope_parameters=gemma3_rope()), dict(layer_types=[GLOBAL] * 6),
            patch=dict(sliding_window_pattern=6), gguf="gemma3",
            notes="q/k norm, four norms, five local layers (window 8, rope_local_base_freq) and a global one"),
    variant("gemma3-linear", "gemma3_text", dict(SIX, query_pre_attn_scalar=16, sliding_window=8,
            sliding_window_pattern=6, rope_parameters=gemma3_rope(factor=8.0)), dict(rope_parameters=gemma3_rope()),
            patch=dict(sliding_window_pattern=6), gguf="gemma3",
            notes="linear RoPE scaling by 8 on the global layer only (as the 4B)"),
    variant("gemma3-layers", "gemma3_text", dict(HEAD24, num_hidden_layers=4,
            query_pre_attn_scalar=8, sliding_window=6, rope_parameters=gemma3_rope(factor=4.0),
            layer_types=[LOCAL, GLOBAL, LOCAL, GLOBAL]),
            dict(layer_types=[GLOBAL] * 4), spelling="v5",
            notes="layer_types and rope_parameters per layer type; query_pre_attn_scalar is not head_dim"),
    variant("gemma3-nested", "gemma3", dict(SIX, query_pre_attn_scalar=16, sliding_window=8,
            max_position_embeddings=131072, rope_parameters=gemma3_rope(factor=8.0)),
            dict(rope_parameters=gemma3_rope()), short=False,
            notes="the multi-modal model as published: text_config names only what is not a default, tensors lie under "
                  "language_model., a vision tower is there to be ignored"),
    variant("lfm2-classic", "lfm2", dict(num_hidden_layers=4, layer_types=[CONV, CONV, GLOBAL, CONV],
            block_multiple_of=16, norm_eps=1e-5, rope_parameters=rope(theta=1000000.0), tie_word_embeddings=True),
            dict(rope_parameters=rope()), patch=dict(full_attn_idxs=[2], block_ff_dim=64, intermediate_size=None,
            tie_embedding=True, tie_word_embeddings=None), gguf="lfm2",
            notes="three short convolutions and an attention layer, full_attn_idxs, block_ff_dim adjusted to 48, tied"),
    variant("lfm2-bias", "lfm2", dict(num_hidden_layers=3, layer_types=[CONV, GLOBAL, CONV], conv_L_cache=4,
            conv_bias=True, block_auto_adjust_ff_dim=False, num_key_value_heads=1, tie_word_embeddings=False,
            rope_parameters=rope(theta=100.0)), dict(conv_bias=False), spelling="v5",
            notes="a convolution of four taps with biases everywhere, layer_types, the width as it stands, untied"),
    variant("mixtral-top2", "mixtral", dict(intermediate_size=32, num_local_experts=8, num_experts_per_tok=2,
            sliding_window=None, max_position_embeddings=1024, rope_parameters=rope(theta=1000000.0)),
            dict(num_experts_per_tok=1), gguf="llama",
            notes="two of eight experts, weights renormalized, one matrix an expert on disk; the determinism test's, too"),
    variant("mixtral-bf16", "mixtral", dict(EXPERTS, num_local_experts=4, num_experts_per_tok=3, sliding_window=9,
            num_key_value_heads=1), dict(sliding_window=None), spelling="v5", dtype="bfloat16",
            notes="three of four experts behind a window of 9, bfloat16 weights"),
    variant("qwen3moe-normed", "qwen3_moe", dict(EXPERTS, **HEAD16, head_dim=16, num_experts=8, num_experts_per_tok=3,
            moe_intermediate_size=16, norm_topk_prob=True, rope_parameters=rope(theta=1000000.0)),
            dict(norm_topk_prob=False), gguf="qwen3moe", patch=dict(num_experts=8, num_local_experts=None),
            notes="three of eight experts, weights renormalized as in every published file"),
    variant("qwen3moe-mixed", "qwen3_moe", dict(EXPERTS, num_hidden_layers=4, head_dim=8, num_experts=6,
            num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=2, mlp_only_layers=[3]),
            dict(norm_topk_prob=True), patch=dict(norm_topk_prob=None), spelling="classic",
            notes="experts in layer 1 alone: decoder_sparse_step makes 0 and 2 dense, mlp_only_layers 3; "
                  "norm_topk_prob is absent, and the class does not renormalize"),
    variant("olmoe-wide", "olmoe", dict(EXPERTS, num_experts=8, num_experts_per_tok=4, num_key_value_heads=4),
            dict(norm_topk_prob=True), gguf="olmoe",
            notes="q/k norm over the whole width, the weights of four of eight experts as the softmax has them"),
    variant("olmoe-gqa", "olmoe", dict(EXPERTS, num_experts=4, num_experts_per_tok=2, num_key_value_heads=2,
            norm_topk_prob=True, tie_word_embeddings=True), dict(norm_topk_prob=False), spelling="v5",
            notes="grouped heads: the key norm is narrower than the query norm; weights renormalized, tied"),
    variant("glm4lite-latent", "glm4_moe_lite", dict(num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3,
            q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=8, v_head_dim=7, intermediate_size=24, max_position_embeddings=1024,
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, routed_scaling_factor=1.8,
            rope_parameters=rope(theta=100.0)), dict(rope_interleave=False), gguf="deepseek2",
            notes="as GLM-4.7-Flash: latents of queries and of keys and values, neighbours turn, a dense layer and two "
                  "of experts chosen by sigmoids and a correction; the determinism test's, too"),
    variant("deepseek2-lite", "deepseek_v2", dict(q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8,
            qk_rope_head_dim=8, v_head_dim=8, num_key_value_heads=4, intermediate_size=24, n_routed_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=2, first_k_dense_replace=1,
            rope_parameters=rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=16, mscale=0.7,
            mscale_all_dim=0.7)), dict(rope_parameters=rope(theta=100.0)), spelling="v5", dtype="bfloat16", gguf="deepseek2",
            notes="as DeepSeek-V2-Lite: no latent of queries, YaRN that sharpens the scores, two shared experts"),
    variant("deepseek2-older", "deepseek_v2", dict(q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=8,
            v_head_dim=10, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, intermediate_size=20, n_routed_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=8, n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.5,
            rope_parameters=rope("yarn", 1000.0, factor=8.0, original_max_position_embeddings=16, mscale=1.0,
            mscale_all_dim=1.0)), dict(rope_parameters=rope(theta=1000.0)), dtype="bfloat16", gguf="deepseek2",
            rope_key="type",
            notes="a latent of queries; in GGUF as older converters wrote it, keys and values of all heads in one matrix"),
    variant("gemma4-ple", "gemma4_text", dict(GEMMA4, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, global_head_dim=32, layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
            num_kv_shared_layers=3, use_double_wide_mlp=True, intermediate_size=16, hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=64, max_position_embeddings=1024),
            dict(hidden_size_per_layer_input=0), gguf="gemma4", dtype="bfloat16",
            notes="as E2B: per-layer embeddings, the last three layers use the keys and values of the last local and "
                  "global layer before them and are twice as wide, layer scalars; the determinism test's, too"),
    variant("gemma4-keqv", "gemma4_text", dict(GEMMA4, num_hidden_layers=4, head_dim=8, global_head_dim=16,
            num_global_key_value_heads=1, attention_k_eq_v=True, layer_types=[LOCAL, LOCAL, LOCAL, GLOBAL],
            rope_parameters=gemma4_rope(0.5, 100.0)), dict(rope_parameters=gemma4_rope(1.0, 100.0)), spelling="v5",
            gguf="gemma4",
            notes="as 31B: values are the keys before their norm on the global layer, which has one key head of twice "
                  "the size; per_layer_config"),
    variant("gemma4-unified", "gemma4_unified_text", dict(GEMMA4, num_hidden_layers=2, head_dim=8, global_head_dim=24,
            num_global_key_value_heads=1, attention_k_eq_v=True, layer_types=[LOCAL, GLOBAL], sliding_window=6,
            final_logit_softcapping=None), dict(sliding_window=7),
            notes="as 12B: gemma4_unified_text, whose keys are the published ones"),
    variant("gemma4-moe", "gemma4_text", dict(GEMMA4, num_hidden_layers=3, head_dim=8, global_head_dim=16,
            num_global_key_value_heads=1, attention_k_eq_v=True, layer_types=[LOCAL, LOCAL, GLOBAL],
            enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=8, intermediate_size=16),
            dict(top_k_experts=1), gguf="gemma4", dtype="bfloat16",
            notes="as 26B-A4B: experts beside the dense MLP, a router with a norm of its own, a scale an expert"),
    variant("gemma4-nested", "gemma4", dict(GEMMA4, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, global_head_dim=16, layer_types=[LOCAL, GLOBAL, GLOBAL], num_kv_shared_layers=1,
            hidden_size_per_layer_input=4, vocab_size_per_layer_input=64, intermediate_size=16,
            rope_parameters=gemma4_rope(0.25, 100.0)), dict(rope_parameters=gemma4_rope(0.5, 100.0)),
            notes="the multi-modal model as published: text_config, tensors under model.language_model., a vision tower "
                  "that is there to be ignored, and keys and values of a layer that uses those of another"),
    variant("granite-dense", "granite", dict(HEAD16, embedding_multiplier=12.0, attention_multiplier=0.2,
            residual_multiplier=0.22, logits_scaling=3.0, tie_word_embeddings=True), dict(logits_scaling=1.0),
            gguf="granite", notes="all four multipliers, none of them what it is without them; tied (as Granite 3)"),
    variant("granite-bias", "granite", dict(attention_bias=True, mlp_bias=True, residual_multiplier=0.5),
            dict(residual_multiplier=1.0), spelling="v5", notes="biases everywhere, half of each layer's output"),
    variant("granite4-micro", "granitemoehybrid", dict(HEAD16, num_local_experts=0, shared_intermediate_size=48,
            layer_types=["full_attention"] * 2, position_embedding_type="rope", embedding_multiplier=6.0,
            attention_multiplier=0.1, residual_multiplier=0.3, logits_scaling=2.0, mamba_n_heads=8, mamba_d_head=8,
            tie_word_embeddings=True), dict(position_embedding_type=None), gguf="granite",
            patch=dict(layer_types=["attention"] * 2, num_experts_per_tok=0),
            notes="Granite 4 without Mamba layers: shared_mlp alone, its gate and up in one matrix"),
    variant("granite4-nope", "granitemoehybrid", dict(num_local_experts=0, shared_intermediate_size=40,
            layer_types=["full_attention"] * 2, position_embedding_type="nope", mamba_n_heads=8, mamba_d_head=8),
            dict(position_embedding_type="rope"), spelling="v5", notes="the same without position encodings, untied"),
    variant("ministral3-yarn", "ministral3", dict(HEAD16, head_dim=16, max_position_embeddings=128,
            rope_parameters=rope("yarn", 1000000.0, factor=8.0, original_max_position_embeddings=16, beta_fast=32.0,
            beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4)),
            dict(rope_parameters=rope("yarn", 1000000.0, factor=8.0, original_max_position_embeddings=16, beta_fast=32.0,
            beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.0)), spelling="v5", gguf="mistral3",
            notes="YaRN whose softening cancels to 1, queries that grow each 16 positions"),
    variant("olmo2-after", "olmo2", dict(num_key_value_heads=2), dict(rope_parameters=rope(theta=100.0)), gguf="olmo2",
            notes="norms after alone, q/k norm over the whole width with grouped heads"),
    variant("olmo3-window", "olmo3", dict(HEAD16, num_hidden_layers=5, intermediate_size=32, sliding_window=8,
            rope_parameters={GLOBAL: rope("yarn", 500000.0, factor=8.0, original_max_position_embeddings=16),
            LOCAL: rope(theta=500000.0)}), dict(rope_parameters={GLOBAL: rope(theta=500000.0), LOCAL: rope(theta=500000.0)}),
            gguf="olmo2", patch=dict(rope_local_base_freq=None), notes="a window of 8 on three of four layers, YaRN on the full ones alone; no layer_types"),
    variant("olmo3-layers", "olmo3", dict(num_hidden_layers=3, sliding_window=6, layer_types=[GLOBAL, LOCAL, GLOBAL],
            rope_parameters={GLOBAL: rope(theta=1000.0), LOCAL: rope(theta=50.0)}),
            dict(layer_types=[GLOBAL] * 3), spelling="v5", notes="layer_types, a base for each of the two"),
    variant("exaone4-hybrid", "exaone4", dict(HEAD16, head_dim=16, num_hidden_layers=5, intermediate_size=32,
            sliding_window=8, sliding_window_pattern=4, rope_parameters=LLAMA3), dict(layer_types=[GLOBAL] * 5),
            gguf="exaone4", patch=dict(sliding_window_pattern="LLLG", layer_types=[LOCAL, LOCAL, LOCAL, GLOBAL, LOCAL]),
            notes="norms after alone, a window of 8 on three of four layers, the full ones without RoPE"),
    variant("exaone4-full", "exaone4", dict(head_dim=16, num_key_value_heads=1, sliding_window=None,
            layer_types=[GLOBAL] * 2, tie_word_embeddings=True), dict(rope_parameters=rope(theta=50.0)), spelling="v5",
            gguf="exaone4", notes="no window: all layers see everything, with RoPE (as the 1.2B), tied"),
    variant("cohere2-parallel", "cohere2", dict(HEAD16, num_hidden_layers=5, intermediate_size=32, sliding_window=8,
            logit_scale=0.5), dict(logit_scale=1.0), gguf="cohere2", patch=dict(sliding_window_pattern=4, rotary_pct=1.0),
            notes="parallel block, LayerNorm without bias, neighbours turn, every fourth layer full and without RoPE"),
    variant("glm4-four-norms", "glm4", dict(head_dim=12, num_key_value_heads=2, partial_rotary_factor=0.5),
            dict(attention_bias=False), gguf="glm4",
            notes="four norms, neighbours of the first half of a head turn, q/k/v biases, gate and up in one matrix"),
    variant("hunyuan-alpha", "hunyuan_v1_dense", dict(HEAD16, head_dim=16, tie_word_embeddings=True,
            rope_parameters=rope("dynamic", alpha=1000.0, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0,
            mscale_all_dim=1.0)), dict(rope_parameters=rope("dynamic", alpha=1.0, factor=1.0, beta_fast=32, beta_slow=1,
            mscale=1.0, mscale_all_dim=1.0)), rope_key="type", gguf="hunyuan-dense",
            notes="q/k norm after the rotation, whose base alpha makes larger; tied"),
    variant("ernie4_5-pairs", "ernie4_5", dict(head_dim=12, num_key_value_heads=1), dict(rope_parameters=rope(theta=50.0)),
            gguf="ernie4_5", notes="neighbours turn, own head size, tied"),
    variant("ernie4_5-bias", "ernie4_5", dict(head_dim=8, use_bias=True, tie_word_embeddings=False), dict(use_bias=False),
            spelling="v5", notes="biases in every projection"),
    variant("arcee-relu2", "arcee", dict(HEAD16, rope_parameters=YARN), dict(hidden_act="relu"), gguf="arcee",
            notes="no gate, the square of the rectified input, YaRN"),
    variant("apertus-xielu", "apertus", dict(HEAD16, tie_word_embeddings=False, rope_parameters=rope("llama3", 12000000.0,
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
            dict(hidden_act="silu"), gguf="apertus", dtype="bfloat16",
            notes="no gate, xIELU with parameters of its own in each layer, q/k norm before the rotation"),
    variant("stablelm-quarter", "stablelm", dict(HEAD16, use_qkv_bias=True, partial_rotary_factor=0.25),
            dict(use_qkv_bias=False), gguf="stablelm", notes="LayerNorm, biases on q, k, v alone, a quarter of a head turns"),
    variant("stablelm-parallel", "stablelm", dict(HEAD16, use_parallel_residual=True),
            dict(rope_parameters=rope(theta=50.0, partial_rotary_factor=0.25)), spelling="v5", gguf="stablelm",
            notes="attention and MLP read the same norm"),
    variant("stablelm-heads", "stablelm", dict(qk_layernorm=True, use_parallel_residual=True, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=40, partial_rotary_factor=0.5), dict(rope_parameters=rope(theta=50.0, partial_rotary_factor=0.5)),
            dtype="bfloat16", gguf="stablelm", notes="as StableLM 2 12B: a norm without bias for each head of q and of k, a parallel block"),
    variant("starcoder2-bias", "starcoder2", dict(num_key_value_heads=1, sliding_window=9), dict(sliding_window=None),
            notes="no gate, LayerNorm and biases everywhere, a window of 9, tied"),
    variant("starcoder2-plain", "starcoder2", dict(HEAD16, tie_word_embeddings=False, use_bias=False),
            dict(rope_parameters=rope(theta=50.0)), spelling="v5", gguf="starcoder2", notes="no window, no biases, untied"),
    variant("seedoss-bias", "seed_oss", dict(head_dim=12, num_key_value_heads=1, attention_bias=True, pad_token_id=0),
            dict(attention_bias=False), gguf="seed_oss",
            notes="biases on q, k and v alone, own head size; the norm before the MLP is post_attention_norm in GGUF"),
    variant("muse-nested", "muse_glimmer", dict(HEAD16, head_dim=16, num_hidden_layers=5, intermediate_size=32,
            sliding_window=8, qk_scale_factor=2.5, output_multiplier=0.5, final_logit_softcapping=6.0, rms_norm_eps=1e-5,
            rope_parameters=rope(theta=5000.0)), dict(qk_scale_factor=1.0), gguf="muse-glimmer",
            notes="the multi-modal model: four norms of which the last is plain, normed embeddings, q/k norms without "
                  "weights, output gates, a window of 8 but on layers 0 and 4, which have no RoPE; vision is left alone"),
    variant("muse-layers", "muse_glimmer", dict(num_hidden_layers=3, sliding_window=6, intermediate_size=32, head_dim=8,
            layer_types=[LOCAL, GLOBAL, LOCAL], layer_rope_theta=[500.0, 500.0, 0.0], post_norm_eps=0.5,
            tie_word_embeddings=True, rope_parameters=rope(theta=500.0)), dict(post_norm_eps=1e-8), spelling="v5",
            notes="layer_types, layer_rope_theta, an epsilon of its own behind mixers, tied"),
    variant("helium-pairs", "helium", dict(head_dim=16, num_attention_heads=2, num_key_value_heads=1),
            dict(rope_parameters=rope(theta=100.0)), notes="neighbours turn; llama.cpp does not know it"),
    variant("gptoss-mxfp4", "gpt_oss", dict(OSS, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            sliding_window=8, rope_parameters=OSS_ROPE), neutral={"sinks": -90.0}, mxfp4=True, dtype="bfloat16", gguf="gpt-oss",
            patch=dict(swiglu_limit=7.0, experts_per_token=2),
            notes="experts as OpenAI publishes them: MXFP4 blocks and scales; sinks, windows on even layers; bfloat16 else"),
    variant("gptoss-bf16", "gpt_oss", dict(OSS, num_attention_heads=4, num_key_value_heads=1,
            head_dim=20, hidden_size=24, intermediate_size=20, num_local_experts=5, num_experts_per_tok=3,
            sliding_window=9, rope_parameters=OSS_ROPE),
            dict(rope_parameters=dict(OSS_ROPE, truncate=True)), spelling="v5", dtype="bfloat16", gguf="gpt-oss",
            notes="experts as transformers saves them: [experts, in, out], even and odd columns; YaRN that is not rounded"),
    variant("lfm2moe-bias", "lfm2_moe", dict(LFM24, layer_types=[CONV, GLOBAL, CONV],
            num_dense_layers=1, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12, conv_L_cache=3,
            norm_topk_prob=True, use_expert_bias=True, intermediate_size=28, tie_word_embeddings=True,
            rope_parameters=rope(theta=1000000.0)), neutral={"expert_bias": 0.0}, gguf="lfm2moe", dtype="bfloat16",
            patch=dict(layer_types=[CONV, GLOBAL, CONV], tie_embedding=True, tie_word_embeddings=None),
            notes="one dense layer, then sigmoid scores with a bias that decides and does not weigh, tied"),
    variant("lfm2moe-plain", "lfm2_moe", dict(LFM24, layer_types=[CONV, CONV, GLOBAL],
            num_dense_layers=2, num_experts=4, num_experts_per_tok=3, moe_intermediate_size=16, conv_L_cache=4,
            norm_topk_prob=False, use_expert_bias=False, routed_scaling_factor=1.7, intermediate_size=20,
            tie_word_embeddings=False, rope_parameters=rope(theta=100.0)), dict(routed_scaling_factor=1.0),
            spelling="v5", notes="no bias, weights as they are, times a factor"),
    variant("lfm3-gated", "lfm3", dict(LFM24, num_hidden_layers=5, head_dim=16, pad_token_id=0,
            intermediate_size=20, sliding_window=8, tie_word_embeddings=True), neutral={"g_proj.weight": 0.0},
            spelling="v5", dtype="bfloat16", patch=dict(layer_types=None, rope_parameters=None),
            notes="norms after both halves, an output gate a head, a rotation a layer type (the class's own), "
                  "convolutions of seven taps; layer_types left out"),
    variant("lfm3-bare", "lfm3", dict(LFM24, num_hidden_layers=4, layer_types=[CONV, LOCAL, CONV, GLOBAL], head_dim=12,
            intermediate_size=20, pad_token_id=0, sliding_window=5, conv_L_cache=4, use_sandwich_norm=False,
            use_attention_gate=False, tie_word_embeddings=False,
            rope_parameters={LOCAL: rope(theta=100.0), GLOBAL: rope("proportional", 1000.0, partial_rotary_factor=0.25)}),
            dict(rope_parameters={LOCAL: rope(theta=100.0), GLOBAL: rope("default", 1000.0)}),
            spelling="v5", notes="neither gates nor norms after; a quarter of a head turns"),
    variant("qwen3_5-dense", "qwen3_5_text", dict(QWEN3_5, hidden_size=32, intermediate_size=32,
            linear_key_head_dim=8, linear_value_head_dim=8, max_position_embeddings=1024),
            dict(rope_parameters=rope(partial_rotary_factor=0.5)), spelling="v5", dtype="bfloat16",
            gguf="qwen35", notes="three delta nets of four layers, two value heads a key head, a gate on attention, a "
            "quarter of a head turns; the determinism test's, too"),
    variant("qwen3_5-nested", "qwen3_5", dict(QWEN3_5, num_hidden_layers=3, intermediate_size=24,
            layer_types=[LINEAR, GLOBAL, LINEAR], linear_key_head_dim=8, linear_value_head_dim=12,
            linear_num_value_heads=6, linear_conv_kernel_dim=3, attention_bias=True),
            dict(attention_bias=False), spelling="v5", short=False,
            notes="the multi-modal model; heads of values wider than those of keys, three a key head, layer_types"),
    variant("qwen3_5moe-shared", "qwen3_5_moe_text", dict(QWEN3_5, num_hidden_layers=3, num_experts=4,
            layer_types=[LINEAR, LINEAR, GLOBAL], num_experts_per_tok=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=24, linear_key_head_dim=8, linear_value_head_dim=8),
            dict(num_experts_per_tok=1), spelling="v5", gguf="qwen35moe",
            notes="two of four experts, and a shared one behind a gate"),
    variant("granite4h-mamba", "granitemoehybrid", dict(MAMBA, num_hidden_layers=3, num_local_experts=0,
            intermediate_size=40, shared_intermediate_size=40, layer_types=[LINEAR, GLOBAL, LINEAR],
            embedding_multiplier=6.0, attention_multiplier=0.1, residual_multiplier=0.3, logits_scaling=2.0,
            tie_word_embeddings=True), dict(time_step_limit=[0.0, 0.2]), gguf="granitehybrid",
            patch=dict(layer_types=["mamba", "attention", "mamba"], num_experts_per_tok=0),
            notes="two Mamba-2 layers around one of attention without RoPE, two groups, all four multipliers"),
    variant("granite4h-moe", "granitemoehybrid", dict(MAMBA, num_hidden_layers=2, num_local_experts=4,
            intermediate_size=16, shared_intermediate_size=24, layer_types=[GLOBAL, LINEAR], mamba_conv_bias=False,
            num_experts_per_tok=2, time_step_limit=[0.3, 1.2]), dict(time_step_limit=[0.0, 1e9]), spelling="v5",
            notes="experts beside a shared feed-forward, steps held at both ends, no bias of the convolution"),
    variant("nemotronh-dense", "nemotron_h", dict(NEMOTRON, layers_block_type=[LINEAR, "mlp", GLOBAL, "mlp",
            LINEAR]), dict(time_step_min=0.9), spelling="v5", gguf="nemotron_h",
            patch=dict(layers_block_type=None, hybrid_override_pattern="M-*-M", num_hidden_layers=5),
            notes="each layer one half: Mamba-2, relu^2 MLP or attention without RoPE; the pattern in letters"),
    variant("nemotronh-moe", "nemotron_h", dict(NEMOTRON, layers_block_type=[LINEAR, "moe", GLOBAL, "moe"],
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            moe_shared_expert_intermediate_size=24, moe_latent_size=12, routed_scaling_factor=1.5),
            dict(num_experts_per_tok=1), spelling="v5", gguf="nemotron_h_moe",
            notes="experts without a gate, of another width than the model, beside a shared one; the list of layers"),
    variant("falconh1-multipliers", "falcon_h1", dict(FALCON, embedding_multiplier=3.0, lm_head_multiplier=0.5,
            key_multiplier=0.6, attention_in_multiplier=1.3, attention_out_multiplier=0.7, ssm_in_multiplier=1.2,
            ssm_out_multiplier=0.8, ssm_multipliers=[0.7, 1.1, 0.9, 1.2, 0.8], mlp_multipliers=[0.7, 1.4]),
            dict(ssm_multipliers=None), gguf="falcon-h1",
            notes="attention and Mamba-2 beside each other, every multiplier, no norm in Mamba-2"),
    variant("falconh1-norm", "falcon_h1", dict(FALCON, mamba_rms_norm=True, mamba_norm_before_gate=False),
            dict(mamba_norm_before_gate=True), spelling="v5", gguf="falcon-h1", notes="a norm behind the gate"),
    variant("falconh1-before", "falcon_h1", dict(FALCON, num_hidden_layers=1, mamba_rms_norm=True, projectors_bias=True,
            mamba_proj_bias=True, attention_bias=True, mlp_bias=True, key_multiplier=0.6, attention_in_multiplier=1.3,
            attention_out_multiplier=0.7, ssm_in_multiplier=1.2, ssm_out_multiplier=0.8,
            ssm_multipliers=[0.7, 1.1, 0.9, 1.2, 0.8], mlp_multipliers=[0.7, 1.4]), dict(mamba_norm_before_gate=False),
            spelling="v5", notes="a norm before the gate, biases everywhere: multipliers of what a projection reads pass them by"),
    variant("granitemoe-scales", "granitemoe", dict(LFM24, num_local_experts=5, num_experts_per_tok=2, intermediate_size=12,
            embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.4, logits_scaling=2.0),
            dict(residual_multiplier=1.0), gguf="granitemoe", dtype="bfloat16",
            notes="softmax over the chosen, experts stacked with gate and up in one, the four multipliers"),
    variant("granitemoe-hybrid", "granitemoehybrid", dict(LFM24, num_local_experts=4, num_experts_per_tok=3,
            intermediate_size=12, shared_intermediate_size=20, layer_types=["full_attention"] * 3,
            position_embedding_type="rope", mamba_n_heads=8, mamba_d_head=6, residual_multiplier=0.5), dict(num_experts_per_tok=1),
            spelling="v5", gguf="granitemoe", dtype="bfloat16",
            notes="a hybrid of attention layers alone, with experts and a shared one beside them"),
    variant("granite-swash", "granite_swa", dict(LFM24, num_hidden_layers=5, intermediate_size=20, sliding_window=8,
            embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.4, logits_scaling=2.0,
            rope_parameters=rope(theta=1000.0)), neutral={"sinks": -90.0}, gguf="granite_swa", dtype="bfloat16",
            notes="sinks everywhere, each fourth layer full from the first on, the four multipliers, tied by default",
            patch=dict(tie_word_embeddings=None)),
    variant("granite-swash-bases", "granite_swa", dict(LFM24, num_hidden_layers=4, intermediate_size=20,
            sliding_window=6, layer_types=[LOCAL, GLOBAL, LOCAL, GLOBAL], tie_word_embeddings=False,
            layer_rope_theta=[100.0, 0, 10000.0, 100.0]), dict(layer_rope_theta=[100.0] * 4), spelling="v5",
            notes="a base of its own for each layer, one without rotation"),
    variant("laguna-heads", "laguna", dict(LAGUNA, num_attention_heads_per_layer=[2, 4, 4], gating=True,
            moe_routed_scaling_factor=1.5, layer_types=[GLOBAL, LOCAL, LOCAL], sliding_window=8,
            rope_parameters={GLOBAL: rope("yarn", 50000.0, factor=4.0, original_max_position_embeddings=32,
            partial_rotary_factor=0.5), LOCAL: rope(theta=100.0)}), neutral={"g_proj.weight": 0.0}, gguf="laguna",
            spelling="v5", dtype="bfloat16",
            notes="query heads by layer, a softplus gate a head, YaRN over half a head on full layers"),
    variant("laguna-element", "laguna", dict(LAGUNA, num_attention_heads=3, num_key_value_heads=1, gating="per-element",
            mlp_layer_types=["sparse", "dense", "sparse"], moe_router_logit_softcapping=0.5,
            shared_expert_intermediate_size=16), dict(moe_router_logit_softcapping=0.0), spelling="v5",
            patch=dict(layer_types=None, rope_parameters=None, num_attention_heads_per_layer=None), dtype="bfloat16",
            notes="a gate an element, a soft-cap on the router, a dense layer in the middle; the class's own rotations"),
    variant("ernie4_5-moe", "ernie4_5_moe", dict(LFM24, moe_num_experts=5, moe_k=2, moe_intermediate_size=8,
            moe_num_shared_experts=2, intermediate_size=20, moe_layer_start_index=1,
            rope_parameters=rope(theta=500000.0)), neutral={"e_score_correction_bias": 0.0}, gguf="ernie4_5-moe",
            dtype="bfloat16", notes="softmax scores with a correction, neighbours that turn, two shared experts in one"),
    variant("ernie4_5-moe-least", "ernie4_5_moe", dict(LFM24, moe_num_experts=6, moe_k=2, moe_intermediate_size=8,
            moe_num_shared_experts=0, intermediate_size=20, moe_layer_interval=2, moe_layer_start_index=0, moe_norm_min=0.4,
            tie_word_embeddings=False), dict(moe_norm_min=1e-12), spelling="v5", dtype="bfloat16",
            notes="a least sum of weights (which GGUF has no key for), experts in each second layer, none shared"),
    variant("qwen2moe-gated", "qwen2_moe", dict(LFM24, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=8,
            shared_expert_intermediate_size=20, intermediate_size=16, mlp_only_layers=[1]),
            neutral={"shared_expert_gate.weight": 0.0}, gguf=None, dtype="bfloat16",
            notes="the shared expert's gate, a dense layer, weights as they are"),
    variant("qwen2moe-all", "qwen2_moe", dict(LFM24, num_experts=4, num_experts_per_tok=3, moe_intermediate_size=12,
            shared_expert_intermediate_size=16, norm_topk_prob=False, num_hidden_layers=2),
            dict(norm_topk_prob=True), gguf="qwen2moe", spelling="v5", notes="experts in all layers"),
]  # fmt: skip


def build(row):
    """The variant's real model in float32, seeded by its name, its weights exact in the row's dtype."""
    config = make_config(row, row["config"])
    torch.manual_seed(zlib.crc32(row["name"].encode()))
    task = "ForConditionalGeneration" if row["family"] in WRAPPED else "ForCausalLM"
    model = getattr(transformers, CLASSES[row["family"]] + task)(config).eval()
    for name, parameter in model.named_parameters():
        weight = initial(name, parameter.shape, row["family"])
        parameter.data = weight.to(getattr(torch, row["dtype"])).float()
        if row["mxfp4"] and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            parameter.data = of_blocks(blocks_of(parameter.data))
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.copy_((0.7 + 0.5 * torch.rand(1)).to(getattr(torch, row["dtype"])))
        if name.endswith(CORRECTIONS):
            buffer.data = initial(name, buffer.shape, row["family"])
    model.tie_weights()
    return model


def blocks_of(weight):
    """MXFP4 blocks [experts, out, in / 32, 17] of a weight [experts, in, out], quantized by gguf."""
    rows = weight.transpose(1, 2).contiguous().numpy()
    blocks = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.MXFP4)
    return blocks.reshape(*rows.shape[:2], -1, 17)


def of_blocks(blocks):
    """The weight [experts, in, out] that such blocks are."""
    rows = gguf.quants.dequantize(blocks.reshape(*blocks.shape[:2], -1), gguf.GGMLQuantizationType.MXFP4)
    return torch.from_numpy(rows.astype(np.float32)).transpose(1, 2).contiguous()


def pack_experts(folder):
    """Stores experts as OpenAI publishes them: MXFP4, two neighbours a byte, scales apart; and says so."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks = blocks_of(tensors.pop(name).float())
        nibbles = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
        tensors[name + "_blocks"] = torch.from_numpy(nibbles[..., ::2] | nibbles[..., 1::2] << 4)
        tensors[name + "_scales"] = torch.from_numpy(blocks[..., 0].copy())
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = dict(modules_to_not_convert=kept, quant_method="mxfp4")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_config(row, fields):
    """The family's config class over BASE and `fields`, with eager attention."""
    fields = copy.deepcopy({**BASE, **fields})
    if row["family"] == "gemma3":
        fields = dict(text_config=fields, vision_config=VISION, mm_tokens_per_image=1, image_token_index=63,
                      boi_token_index=61, eoi_token_index=62)  # fmt: skip
    if row["family"] == "qwen3_5":
        vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, patch_size=4, out_hidden_size=16,
                      num_position_embeddings=4)  # fmt: skip
        fields = dict(text_config=fields, vision_config=vision, image_token_id=63, video_token_id=62,
                      vision_start_token_id=61, vision_end_token_id=60)  # fmt: skip
    if row["family"] == "gemma4":
        fields = dict(text_config=fields, vision_config=dict(VISION, head_dim=8, position_embedding_size=4),
                      audio_config=None, image_token_id=63, boi_token_id=61, eoi_token_id=62)  # fmt: skip
    if row["family"] == "muse_glimmer":
        eye = dict(VISION, pos_emb_height=4, pos_emb_width=4, layer_types=["full_attention"])
        del eye["image_size"]
        fields = dict(text_config=fields, vision_config=eye, out_hidden_size=8, projector_hidden_size=8,
                      image_token_id=63, video_token_id=62)  # fmt: skip
    kind = CLASSES[row["family"]] + ("Text" if row["family"].endswith("_text") else "")
    return getattr(transformers, kind + "Config")(**fields, attn_implementation="eager")


def initial(name, shape, family):
    """Weights large enough that a mistake anywhere moves the logits."""
    noise = torch.randn(shape)
    if name.endswith("A_log"):
        # Decays that leave something of the first position.
        return 2 * torch.rand(shape) - 3
    if family.startswith("qwen3_5") and name.endswith("norm.weight") and ".linear_attn." not in name:
        return 0.2 * noise
    if ("norm" in name and name.endswith("weight")) or name.endswith("scale"):
        shifted = family.startswith("gemma") and not family.startswith("gemma4")
        shifted = shifted or (family == "muse_glimmer" and "layernorm" in name)
        return 0.2 * noise if shifted else 1 + 0.2 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    if name.endswith("sinks"):
        return 1 + 2 * noise
    return (0.6 if "embed" in name or "lm_head" in name else 0.3) * noise


@torch.no_grad()
def logits(model, tokens):
    """Float32 logits of the whole prompt in one forward. Without the hidden states Gemma 4 cuts rows off inputs of
    layers that it may not have, and fails."""
    output = model(input_ids=tokens[None], use_cache=False, output_hidden_states=True)
    return output.logits[0].float().contiguous()


def prompt(row, length, salt):
    """`length` seeded token ids."""
    torch.manual_seed(zlib.crc32((row["name"] + salt).encode()))
    images = 4 if row["family"] in WRAPPED else 0
    return torch.randint(3, {**BASE, **row["config"]}["vocab_size"] - images, (length,))


def bite(row, model, tokens, right):
    """How far the logits move when the feature under test is off (the same weights)."""
    config = make_config(row, {**row["config"], **(row["without"] or {})})
    plain = type(model)(config).eval()
    state = model.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if k in plain.state_dict()}, strict=True)
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        for end, value in (row["neutral"] or {}).items():
            if name.endswith(end):
                tensor.data.fill_(value)
    return (logits(plain, tokens) - right).abs().max().item()


def gemma4_published(config, row):
    """The two keys that transformers 5.24 turns into per_layer_config."""
    layers = config.pop("per_layer_config")
    full = next(layers[key] for key in layers if config["layer_types"][int(key)] == GLOBAL)
    return config | dict(
        global_head_dim=full["head_dim"], num_global_key_value_heads=full.get("num_key_value_heads")
    )


def classic(config, row):
    """Respell a transformers 5 config.json the way published checkpoints have it."""
    config = {
        k: v for k, v in config.items() if k not in ("rope_parameters", "layer_types", "dtype")
    } | classic_rope(copy.deepcopy(config["rope_parameters"]), row["rope_key"])
    config.pop("_sliding_window_pattern", None)
    config["torch_dtype"] = row["dtype"]
    config["transformers_version"] = "4.51.0"
    for key, value in (row["patch"] or {}).items():
        config[key] = value
        if value is None:
            del config[key]
    return dict(sorted(config.items()))


def nested(config, row):
    """A multi-modal config.json whose text_config, as published, leaves out what the class knows."""
    known = transformers.Gemma3TextConfig().to_dict() | dict(
        rope_theta=1000000.0, rope_local_base_freq=10000.0
    )
    kept = ("model_type", "torch_dtype")
    text = {
        k: v
        for k, v in classic(config["text_config"], row).items()
        if k in kept or k not in known or v != known[k]
    }
    del text["transformers_version"]
    return {k: v for k, v in config.items() if k != "dtype"} | dict(
        text_config=text, transformers_version="4.51.0"
    )


def classic_rope(rope_parameters, key):
    """rope_theta, rope_scaling, partial_rotary_factor and, for Gemma 3, rope_local_base_freq."""
    fields = {}
    if LOCAL in rope_parameters:
        fields["rope_local_base_freq"] = rope_parameters[LOCAL]["rope_theta"]
        rope_parameters = rope_parameters[GLOBAL]
    fields["rope_theta"] = rope_parameters.pop("rope_theta")
    if "partial_rotary_factor" in rope_parameters:
        fields["partial_rotary_factor"] = rope_parameters.pop("partial_rotary_factor")
    kind = rope_parameters.pop("rope_type")
    rope_parameters.pop("type", None)
    if kind == "longrope":
        fields["original_max_position_embeddings"] = rope_parameters.pop("original_max_position_embeddings")
    fields["rope_scaling"] = None if kind == "default" else {key: kind, **rope_parameters}
    return fields


def save(row, model, folder):
    """Weights and config.json, the latter in the row's spelling."""
    size = "45KB" if row["shards"] > 1 else "1GB"
    copy.deepcopy(model).to(getattr(torch, row["dtype"])).save_pretrained(folder, max_shard_size=size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    text = json.loads(path.read_text())
    if row["spelling"] == "classic":
        text = respelled(text, row)
    elif row["patch"]:
        text = {k: v for k, v in {**text, **row["patch"]}.items() if v is not None}
    path.write_text(json.dumps(text, indent=2) + "\n")
    if row["mxfp4"]:
        pack_experts(folder)
    shards = len(list(folder.glob("*.safetensors")))
    assert shards == row["shards"], f"{row['name']}: {shards} shards"


def respelled(config, row):
    """config.json as published."""
    if row["family"] == "gemma4":
        return config | dict(text_config=gemma4_published(config["text_config"], row))
    if row["family"].startswith("gemma4"):
        return gemma4_published(config, row)
    if row["family"] == "muse_glimmer":
        derived = ("layer_types", "layer_rope_theta")
        text = {key: value for key, value in config["text_config"].items() if key not in derived}
        return config | dict(text_config=text)
    return (nested if row["family"] == "gemma3" else classic)(config, row)


def load(folder, model):
    """Read the folder back as transformers reads any checkpoint, in float32."""
    return type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def make(row, out):
    """One folder; returns its line for the report."""
    folder = out / row["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build(row)
    save(row, model, folder)
    prompts = [prompt(row, PROMPT, "")] + ([prompt(row, SHORT, "short")] if row["short"] else [])
    tensors, back, worst = {}, load(folder, model), 0.0
    for i, tokens in enumerate(prompts):
        suffix = f"_{i}" if i else ""
        tensors["tokens" + suffix] = tokens
        tensors["logits" + suffix] = logits(model, tokens)
        worst = max(worst, (logits(back, tokens) - tensors["logits" + suffix]).abs().max().item())
    assert worst == 0.0, f"{row['name']}: the folder read back differs by {worst}"
    moved = bite(row, model, prompts[0], tensors["logits"])
    assert moved > 0.05, f"{row['name']}: the feature moves the logits by {moved} only"
    save_file(tensors, folder / "reference.safetensors")
    write_meta(row, folder, moved)
    for path in folder.iterdir():
        path.chmod(0o644)
    spread = tensors["logits"].std().item()
    weights = sum(p.stat().st_size for p in folder.glob("model*.safetensors")) // 1024
    return (
        f"{row['name']:24} weights {weights:4} KB, logits sd {spread:5.2f}, without the feature {moved:6.2f}"
    )


def write_meta(row, folder, moved):
    """What a test has to know that the checkpoint does not say."""
    meta = {k: row[k] for k in ("name", "family", "spelling", "dtype", "context_length", "notes")}
    meta |= dict(
        gguf_architecture=row["gguf"], switched_off=row["without"] or row["neutral"], bite=round(moved, 4)
    )
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/families")
    parser.add_argument("--only", nargs="*", help="names of variants (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for row in VARIANTS:
        if not args.only or row["name"] in args.only:
            print(make(row, args.out), flush=True)


if __name__ == "__main__":
    sys.exit(main())

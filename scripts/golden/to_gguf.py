#!/usr/bin/env python3
"""Write the family goldens as GGUF too, in llama.cpp's conventions: `tests/golden/families/<name>/model.gguf`.

Reads the checkpoints that families.py left and writes every variant whose meta.json names a GGUF architecture. The
metadata keys are those llama.cpp's own converter writes for the family, including the ones it leaves out. The
tokenizer block is a stand-in: byte-level BPE over single characters with one merge.

With --verify, llama.cpp reads each file back (float32 KV cache) and its logits are compared with transformers'; the
greatest differences go to `llamacpp.json` beside the folders.

Made with Python 3.11, gguf 0.19.0, numpy 2.4.6, torch 2.8.0, transformers 5.23.0, llama-cpp-python 0.3.36.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from hybrid_gguf import HYBRIDS, hybrid_tensors, write_hybrid
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
ARCH = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
GLOBAL, LOCAL, CONV = "full_attention", "sliding_attention", "conv"
# The architectures whose rows of q and k are interleaved for rotation of neighbouring pairs.
GRANITES = ("granite", "granitemoe", "granitehybrid", "granite_swa")
PERMUTED = ("llama", "smollm3", *GRANITES, "mistral3", "arcee", "muse-glimmer")
# The architectures that write their vocabulary's size, and how many dimensions turn.
SIZED = ("llama", "smollm3", "granite", "granitemoe", "granite_swa", "mistral3", "arcee", "apertus")
LAYER_NORM = ("phi2", "cohere2", "stablelm", "starcoder2")
# llama.cpp ignores these windows: only the prompt's first `window` tokens can agree.
IGNORED_WINDOW = ("mistral-window", "phi3-window")
# Where keys and values of all heads are made by one matrix, as older files have it.
ONE_MATRIX = ("deepseek2-older",)
# Architectures with short convolutions.
SHORT_CONV = ("lfm2", "lfm2moe")
# Those whose experts have a width of their own.
OWN_WIDTH = ("qwen3moe", "qwen2moe", "lfm2moe", "laguna", "ernie4_5-moe")
# Parts that the converter writes in float32, whatever the model's type.
WIDE = ("ffn_gate_inp", "shortconv.conv", "attn_q_norm", "attn_k_norm")
EXPERT = re.compile(r"\.experts\.(\d+)\.(\w+)\.weight$")
STOP_WORDS = ["<unk>", "<s>", "</s>"]


def rope_of(config):
    """The (global) RoPE settings of a config that transformers has read."""
    return config.rope_parameters.get(GLOBAL, config.rope_parameters)


def gemma4_layers(config):
    """The first layer with a window and the first that sees everything, as their own configs."""
    return [config.per_layer_config[config.layer_types.index(kind)] for kind in (LOCAL, GLOBAL)]


def head_dim(config):
    if config.model_type.startswith("gemma4"):
        return gemma4_layers(config)[1].head_dim
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_shape(w, config, arch, name):
    """Sizes; every architecture has them."""
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    if arch == "gemma4":
        return write_gemma4(w, config)
    if arch == "deepseek2":
        return write_latent(w, config, name)
    if arch in HYBRIDS:
        return write_hybrid(w, config, arch)
    w.add_feed_forward_length(feed_forward_length(config, arch))
    w.add_head_count(getattr(config, "num_attention_heads_per_layer", None) or config.num_attention_heads)
    if arch in LAYER_NORM:
        w.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.norm_epsilon)
    else:
        w.add_layer_norm_rms_eps(config.norm_eps if arch in SHORT_CONV else config.rms_norm_eps)
    if arch in SHORT_CONV:
        w.add_shortconv_l_cache(config.conv_L_cache)
        w.add_head_count_kv([config.num_key_value_heads * (kind != CONV) for kind in config.layer_types])
    else:
        w.add_head_count_kv(config.num_key_value_heads)
    write_experts(w, config, arch)
    if getattr(config, "head_dim", None) and arch != "granite":
        w.add_key_length(config.head_dim)
        w.add_value_length(config.head_dim)


def write_latent(w, config, name):
    """Latent attention: one key head as wide as the cache's rows, and the sizes of the model's own heads; older
    files have the latter alone. DeepSeek V2's say no function of the router."""
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.q_lora_rank:
        w.add_q_lora_rank(config.q_lora_rank)
    w.add_kv_lora_rank(config.kv_lora_rank)
    head, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    if name in ONE_MATRIX:
        w.add_head_count_kv(config.num_attention_heads)
        w.add_key_length(head)
        w.add_value_length(value)
    else:
        w.add_head_count_kv(1)
        w.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        w.add_value_length(config.kv_lora_rank)
        w.add_key_length_mla(head)
        w.add_value_length_mla(value)
    w.add_vocab_size(config.vocab_size)
    w.add_rope_dimension_count(config.qk_rope_head_dim)
    v2 = config.model_type == "deepseek_v2"
    w.add_leading_dense_block_count(
        config.first_k_dense_replace if v2 else config.mlp_layer_types.count("dense")
    )
    w.add_expert_count(config.n_routed_experts)
    w.add_expert_used_count(config.num_experts_per_tok)
    w.add_expert_feed_forward_length(config.moe_intermediate_size)
    w.add_expert_shared_count(config.n_shared_experts)
    w.add_expert_weights_scale(config.routed_scaling_factor)
    if config.norm_topk_prob:
        w.add_expert_weights_norm(True)
    if not v2:
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_group_count(config.n_group)
        w.add_expert_group_used_count(config.topk_group)


def latent_apart(config, weights):
    """What makes keys and values of the latent, apart and the keys' on its side."""
    found = {}
    for name, weight in weights.items():
        if not name.endswith("kv_b_proj.weight"):
            found[name] = weight
            continue
        heads = weight.view(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        found[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2).contiguous()
        found[name.replace("kv_b_proj", "v_b_proj")] = values.contiguous()
    return found


def write_gemma4(w, config):
    """What differs from layer to layer is an array, or a key of the layers with a window."""
    local, full = gemma4_layers(config)
    shared = config.num_kv_shared_layers
    first_shared = config.num_hidden_layers - shared
    wide = config.use_double_wide_mlp
    widths = [
        config.intermediate_size * (2 if i >= first_shared else 1) for i in range(config.num_hidden_layers)
    ]
    w.add_feed_forward_length(widths if wide else config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    heads = [config.per_layer_config[i].num_key_value_heads for i in range(config.num_hidden_layers)]
    w.add_head_count_kv(heads if full.num_key_value_heads != local.num_key_value_heads else heads[0])
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_key_length(full.head_dim)
    w.add_value_length(full.head_dim)
    w.add_key_length_swa(local.head_dim)
    w.add_value_length_swa(local.head_dim)
    w.add_rope_dimension_count(full.head_dim)
    w.add_rope_dimension_count_swa(local.head_dim)
    w.add_rope_freq_base_swa(config.rope_parameters[LOCAL]["rope_theta"])
    w.add_sliding_window(config.sliding_window)
    w.add_sliding_window_pattern([kind == LOCAL for kind in config.layer_types])
    w.add_shared_kv_layers(shared)
    w.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    if config.final_logit_softcapping:
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.enable_moe_block:
        w.add_expert_count(config.num_experts)
        w.add_expert_used_count(config.top_k_experts)
        w.add_expert_feed_forward_length(config.moe_intermediate_size)


def feed_forward_length(config, arch):
    """The width of the feed-forward: computed in LFM2, under another name in Granite's hybrids."""
    if arch == "lfm2":
        return lfm2_width(config)
    if config.model_type == "granitemoehybrid" and arch == "granite":
        return config.shared_intermediate_size
    return config.intermediate_size


def write_scales(w, config, arch):
    """The multipliers of Granite and Cohere."""
    if arch.startswith("granite"):
        w.add_attention_scale(config.attention_multiplier)
        w.add_embedding_scale(config.embedding_multiplier)
        w.add_residual_scale(config.residual_multiplier)
        w.add_logit_scale(config.logits_scaling)
    if arch == "muse-glimmer":
        w.add_logit_scale(config.output_multiplier)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "cohere2":
        w.add_logit_scale(config.logit_scale)


def write_experts(w, config, arch):
    """Counts of experts, and their width where it is not `feed_forward_length`."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not experts:
        return
    w.add_expert_count(experts)
    w.add_expert_used_count(config.num_experts_per_tok)
    if arch in OWN_WIDTH:
        w.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == "gpt-oss":
        w.add_expert_feed_forward_length(config.intermediate_size)
    if arch == "lfm2moe":
        w.add_leading_dense_block_count(config.num_dense_layers)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if arch in ("granitemoe", "granitehybrid") and getattr(config, "shared_intermediate_size", 0):
        w.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    if arch == "qwen2moe":
        w.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if arch == "ernie4_5-moe":
        w.add_interleave_moe_layer_step(config.moe_layer_interval)
        w.add_leading_dense_block_count(config.moe_layer_start_index)
        w.add_expert_shared_count(config.moe_num_shared_experts)
        w.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.moe_num_shared_experts)
    if arch == "laguna":
        write_laguna(w, config)


def write_laguna(w, config):
    """How Laguna routes, and which layers have no experts."""
    w.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    w.add_expert_weights_norm(True)
    w.add_expert_weights_scale(config.moe_routed_scaling_factor)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_leading_dense_block_count(config.mlp_layer_types.index("sparse"))
    for layer_type, add_count in (
        (GLOBAL, w.add_rope_dimension_count),
        (LOCAL, w.add_rope_dimension_count_swa),
    ):
        rope = config.rope_parameters[layer_type]
        add_count(int(config.head_dim * rope.get("partial_rotary_factor", 1.0)))


def lfm2_width(config):
    """The width of LFM2's feed-forward as its class computes it."""
    width = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        multiple = config.block_multiple_of
        width = int(config.block_ffn_dim_multiplier * int(2 * width / 3))
        width = multiple * -(-width // multiple)
    return width


def write_rope(w, config, arch):
    """RoPE keys. Phi-2, Gemma 1 and Gemma 2 files name no base, Phi-3 files no scaling type."""
    rope = rope_of(config)
    rotated = int(head_dim(config) * rope.get("partial_rotary_factor", 1.0))
    if arch in (*SIZED, "phi2", "phi3", "cohere2", "glm4", "stablelm"):
        w.add_rope_dimension_count(rotated)
    if arch == "hunyuan-dense" and rope["rope_type"] == "dynamic":
        dims = head_dim(config)
        w.add_rope_freq_base(rope["rope_theta"] * rope["alpha"] ** (dims / (dims - 2)))
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        w.add_rope_scaling_factor(1)
        return
    if arch not in ("phi2", "gemma", "gemma2", "stablelm"):
        w.add_rope_freq_base(rope["rope_theta"])
    if arch == "phi3":
        write_longrope(w, config, rope)
    elif rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        write_yarn(w, rope)
    if arch == "cohere2":
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if arch == "deepseek2" and "mscale_all_dim" in rope:
        w.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if arch == "mistral3":
        w.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        w.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def write_yarn(w, rope):
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(rope["factor"])
    w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "beta_fast" in rope:
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if "beta_slow" in rope:
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def write_longrope(w, config, rope):
    original = config.original_max_position_embeddings
    w.add_rope_scaling_orig_ctx_len(original)
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / original
        w.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        )


def write_rest(w, config, arch, name):
    """Windows and soft-caps. A Phi-3 file without a window says 0; older Gemma 3 files name no local base."""
    if arch == "phi3":
        w.add_sliding_window(config.sliding_window or 0)
    if arch in ("gemma2", "gemma3", "cohere2", "gpt-oss", "granite_swa", "laguna") or (
        arch in ("olmo2", "exaone4", "muse-glimmer") and getattr(config, "sliding_window", None)
    ):
        w.add_sliding_window(config.sliding_window)
    if arch in ("olmo2", "exaone4", "granite_swa", "muse-glimmer") and getattr(
        config, "sliding_window", None
    ):
        w.add_sliding_window_pattern([kind == LOCAL for kind in config.layer_types])
        if LOCAL in config.rope_parameters:
            w.add_rope_freq_base_swa(config.rope_parameters[LOCAL]["rope_theta"])
    if arch == "stablelm":
        w.add_parallel_residual(config.use_parallel_residual)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(config.attn_logit_softcapping)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "laguna":
        w.add_rope_freq_base_swa(config.rope_parameters[LOCAL]["rope_theta"])
    if arch == "gemma3" and name != "gemma3-classic":
        w.add_rope_freq_base_swa(config.rope_parameters[LOCAL]["rope_theta"])
    if arch in (*SIZED, "cohere2", "exaone4") and arch != "smollm3":
        w.add_vocab_size(config.vocab_size)


def write_tokenizer(w, config):
    """A stand-in that llama.cpp accepts: characters, one merge."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [
        *STOP_WORDS,
        "\u010a",
        "\u0120",
        "ab",
        *letters,
        *letters.upper(),
        *"0123456789.,:;!?()[]{}<>+-*/=_'\"#$%&@|~",
    ]
    tokens = tokens[: config.vocab_size]
    kinds = [
        gguf.TokenType.UNKNOWN,
        *[gguf.TokenType.CONTROL] * 2,
        *[gguf.TokenType.NORMAL] * (len(tokens) - 3),
    ]
    assert len(tokens) == config.vocab_size == len(set(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(["a b"])
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)


def interleave(weight, heads):
    """Rows of each head from halves (0..h/2, h/2..h) to neighbouring pairs."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_tensors(w, config, arch, folder, widen):
    """The weights under gguf's names: permuted, shifted and typed as llama.cpp wants them."""
    names = gguf.get_tensor_name_map(ARCH[arch], config.num_hidden_layers)
    weights = read_weights(folder)
    write_xielu(w, weights)
    if arch == "granitemoe":
        weights = granite_experts(weights)
    elif config.model_type == "granitemoehybrid":
        weights = shared_mlp(weights)
    if arch == "muse-glimmer":
        weights = muse_weights(config, weights)
    if arch == "gpt-oss":
        weights = oss_experts(w, weights)
    if arch == "deepseek2" and folder.name not in ONE_MATRIX:
        weights = latent_apart(config, weights)
    weights = head_norms(stacked(weights))
    if arch in HYBRIDS:
        weights = hybrid_tensors(config, arch, weights)
    for name, weight in weights.items():
        name = respelled(name)
        if name.endswith(".conv.conv.weight"):
            weight = weight.squeeze(1)
        if arch in PERMUTED and ".q_proj." in name:
            weight = interleave(weight, config.num_attention_heads)
        if arch in PERMUTED and ".k_proj." in name:
            weight = interleave(weight, config.num_key_value_heads)
        if arch in ("gemma", "gemma2", "gemma3") and name.endswith("norm.weight"):
            weight = weight.float() + 1
        if name.endswith("e_score_correction.bias"):
            weight = weight.flatten()
        if name.endswith("shared_expert_gate.weight"):
            weight = weight.flatten()
        weight = weight.float() if widen else weight
        if arch == "gemma4" and (own := gemma4_name(name)):
            add(w, own, weight)
            continue
        add(w, names.get_name(name, try_suffixes=(".weight", ".bias")) or fail(name), weight)
    for name, factors in () if arch in HYBRIDS else rope_tensors(config, arch):
        w.add_tensor(name, np.array(list(factors), dtype=np.float32))


def muse_weights(config, weights):
    """The language model alone, its norms shifted but for the last, and weights of q/k norms that scale queries."""
    found = {}
    for name, weight in weights.items():
        name = name.replace("model.language_model.", "model.")
        if name.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")):
            found[name] = weight + 1 if name.endswith("layernorm.weight") else weight
    for layer in range(config.num_hidden_layers):
        for kind, value in (("q", config.qk_scale_factor), ("k", 1.0)):
            found[f"model.layers.{layer}.self_attn.{kind}_norm.weight"] = torch.full(
                (config.head_dim,), value
            )
    return found


def gemma4_name(name):
    """What llama.cpp's converter names by hand, or with a ".weight" behind it."""
    layer = name.split(".")[2]
    own = {
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
        "layer_scalar": "layer_output_scale.weight",
    }
    found = [gguf_name for end, gguf_name in own.items() if name.endswith(end)]
    return f"blk.{layer}.{found[0]}" if found else None


def write_xielu(w, weights):
    """The parameters of xIELU travel as metadata, one list each; they leave the weights."""
    for kind, add_list in (
        ("alpha_n", w.add_xielu_alpha_n),
        ("alpha_p", w.add_xielu_alpha_p),
        ("beta", w.add_xielu_beta),
        ("eps", w.add_xielu_eps),
    ):
        names = sorted(name for name in weights if name.endswith(f".act_fn.{kind}"))
        if names:
            add_list([weights.pop(name).float().item() for name in names])


def respelled(name):
    """Names that the converter changes before it looks them up."""
    if name.endswith(".expert_bias"):
        return name + ".bias"
    if name.endswith(".sinks"):
        return name + ".weight"
    if ".feed_forward.experts." in name:
        return name.removeprefix("model.")
    return name.replace(".e_score_correction_bias", ".e_score_correction.bias")


def oss_experts(w, weights):
    """gpt-oss's experts as three tensors: plain ones are given back, MXFP4 is written."""
    found = {}
    for name, weight in weights.items():
        parts = {"down_proj": weight}
        if ".gate_up_proj" in name:
            # Columns, but of blocks, scales and biases: these have outputs in front.
            even = [
                weight[..., at::2] if name.endswith(("_proj", "_bias")) else weight[:, at::2] for at in (0, 1)
            ]
            parts = dict(zip(("gate_proj", "up_proj"), even, strict=True))
        if ".experts." not in name:
            found[name] = weight
        elif name.endswith("_blocks"):
            write_blocks(w, name, parts, weights[name.replace("_blocks", "_scales")])
        elif not name.endswith("_scales"):
            layer = name.split(".experts.")[0]
            for part, tensor in parts.items():
                plain = name.endswith("_proj")
                stored = tensor.transpose(1, 2).contiguous() if plain else tensor.contiguous()
                found[f"{layer}.experts.{part}.{'weight' if plain else 'bias'}"] = stored
    return found


def write_blocks(w, name, parts, scales):
    """MXFP4 as ggml has it: a block's scale in front, weights i and i + 16 in one byte."""
    layer = int(name.split(".layers.")[1].split(".")[0])
    for part, blocks in parts.items():
        own = scales[
            :, {"gate_proj": 0, "up_proj": 1, "down_proj": 0}[part] :: 1 if part == "down_proj" else 2
        ]
        nibbles = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
        halves = nibbles[..., :16] | nibbles[..., 16:] << 4
        data = torch.cat([own.unsqueeze(-1), halves], dim=-1).flatten(2).contiguous()
        kind = part.split("_")[0]
        w.add_tensor(
            f"blk.{layer}.ffn_{kind}_exps.weight", data.numpy(), raw_dtype=gguf.GGMLQuantizationType.MXFP4
        )


def granite_experts(weights):
    """Granite's experts and its shared one under usual names, gate and up apart."""
    found = {}
    for name, weight in weights.items():
        for old, new, axis in (
            ("block_sparse_moe.input_linear", "mlp.experts", 1),
            ("shared_mlp.input_linear", "mlp.shared_experts", 0),
        ):
            if old in name:
                for part, half in zip(("gate", "up"), weight.chunk(2, axis), strict=True):
                    found[name.replace(old, f"{new}.{part}_proj")] = half.contiguous()
                break
        else:
            found[name] = weight
    return found


def shared_mlp(weights):
    """Granite's shared feed-forward under the usual names, gate and up apart."""
    found = {}
    for name, weight in weights.items():
        if ".shared_mlp.input_linear." in name:
            for part, half in zip(("gate", "up"), weight.chunk(2), strict=True):
                found[name.replace("shared_mlp.input_linear", f"mlp.{part}_proj")] = half
        else:
            found[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = weight
    return found


def stacked(weights):
    """One tensor for all experts of a layer, where the checkpoint has one an expert."""
    found = {}
    for name in [name for name in weights if EXPERT.search(name)]:
        stack = EXPERT.sub(r".experts.\2.weight", name)
        found.setdefault(stack, {})[int(EXPERT.search(name)[1])] = weights.pop(name)
    return weights | {
        name: torch.stack([experts[i] for i in range(len(experts))]) for name, experts in found.items()
    }


def head_norms(weights):
    """One tensor for the norms of all heads, where each has its own."""
    found = {}
    for name, weight in weights.items():
        stack, norms, _ = name.partition(".norms.")
        found.setdefault(f"{stack}.weight" if norms else name, []).append(weight)
    return {name: some[0] if len(some) == 1 else torch.stack(some) for name, some in found.items()}


def read_weights(folder):
    weights = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights


def fail(name):
    raise SystemExit(f"no GGUF name for {name}")


def add(w, name, weight):
    """Matrices keep the checkpoint's type; vectors, biases, routers and short convolutions are float32."""
    kept = weight.ndim > 1 and name.endswith(".weight") and not any(part in name for part in WIDE)
    kind = weight.dtype if kept else torch.float32
    if kind == torch.bfloat16:
        w.add_tensor(
            name, weight.view(torch.int16).numpy().view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
        )
    else:
        w.add_tensor(name, weight.to(kind).numpy())


def rope_tensors(config, arch):
    """llama3 scaling and LongRope travel as tensors: divisors of the frequencies."""
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(head_dim(config), rope)
    if rope["rope_type"] == "proportional":
        turned, pairs = int(rope["partial_rotary_factor"] * head_dim(config) / 2), head_dim(config) // 2
        yield "rope_freqs.weight", [1.0] * turned + [1e30] * (pairs - turned)
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", rope["long_factor"]
        yield "rope_factors_short.weight", rope["short_factor"]


def llama3_factors(dims, rope):
    """What each frequency is divided by: 1, the factor, or between."""
    original, low, high = (
        rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    for i in range(0, dims, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / dims)
        kept = (original / length - low) / (high - low)
        kept = min(max(kept, 0.0), 1.0)
        yield 1 / ((1 - kept) / rope["factor"] + kept)


def convert(folder, arch, path, widen=False):
    """One GGUF file; `widen` stores every tensor in float32."""
    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    w = gguf.GGUFWriter(path, arch)
    w.add_type(gguf.GGUFType.MODEL)
    w.add_name("golden")  # llama.cpp looks for words such as phi-3 here and then expects that tokenizer
    kind = json.loads((folder / "meta.json").read_text())["dtype"]
    types = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    w.add_file_type(gguf.LlamaFileType[types[kind]])
    write_shape(w, config, arch, folder.name)
    write_scales(w, config, arch)
    if arch not in HYBRIDS:
        write_rope(w, config, arch)
    write_rest(w, config, arch, folder.name)
    write_tokenizer(w, config)
    write_tensors(w, config, arch, folder, widen)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama_logits(path, tokens, context):
    """llama.cpp's logits for every position of one prompt."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=context, n_batch=512, logits_all=True, type_k=0, type_v=0, n_threads=1,
                  flash_attn=False, verbose=False)  # fmt: skip
    model.eval(tokens.tolist())
    return np.array(model.scores[: len(tokens)])


def verify(folder, arch):
    """The greatest difference between llama.cpp and transformers, and over how many positions.

    llama.cpp rounds activations to the type of 16-bit weights, so those files get a second figure from a float32 copy."""
    config = transformers.AutoConfig.from_pretrained(folder)
    result = {
        "positions": compared(folder, config),
        "max_difference": difference(folder, folder / "model.gguf"),
    }
    if str(config.dtype) != "torch.float32":
        with tempfile.TemporaryDirectory() as scratch:
            convert(folder, arch, Path(scratch) / "wide.gguf", widen=True)
            result["max_difference_float32"] = difference(folder, Path(scratch) / "wide.gguf")
    return result


def compared(folder, config):
    """How many positions can agree."""
    return (
        config.sliding_window
        if folder.name in IGNORED_WINDOW
        else len(load_file(folder / "reference.safetensors")["tokens"])
    )


def difference(folder, path):
    """The greatest difference of the logits over the positions that can agree."""
    reference = load_file(folder / "reference.safetensors")
    config = transformers.AutoConfig.from_pretrained(folder)
    ours = llama_logits(path, reference["tokens"], 256)
    apart = np.abs(ours - reference["logits"].numpy())[: compared(folder, config)].max().item()
    return float(f"{apart:.2g}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", type=Path, default=ROOT / "tests/golden/families")
    parser.add_argument("--verify", action="store_true", help="compare with llama.cpp, write llamacpp.json")
    parser.add_argument("--only", nargs="*", help="names of variants (default: all)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = {}
    for folder in sorted(p.parent for p in args.families.glob("*/meta.json")):
        arch = json.loads((folder / "meta.json").read_text())["gguf_architecture"]
        if not arch or (args.only and folder.name not in args.only):
            continue
        convert(folder, arch, folder / "model.gguf")
        if args.verify:
            results[folder.name] = verify(folder, arch)
            print(folder.name, results[folder.name], flush=True)
    if args.verify and not args.only:
        (args.families / "llamacpp.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""What llama.cpp's converter makes of families with recurrent scans: keys and tensors, for to_gguf.py."""

import torch

LINEAR, FULL = "linear_attention", "full_attention"
DELTA = ("qwen35", "qwen35moe")
MAMBA = ("granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1")
HYBRIDS = (*DELTA, *MAMBA)


def write_hybrid(w, config, arch):
    """Sizes; layers are told apart by arrays with zeros, or by an interval."""
    if arch in DELTA:
        return write_delta(w, config, arch)
    kinds = getattr(config, "layers_block_type", None) or config.layer_types
    mamba = mamba_sizes(config)
    w.add_ssm_conv_kernel(mamba["kernel"])
    w.add_ssm_inner_size(mamba["heads"] * mamba["head_dim"])
    w.add_ssm_state_size(mamba["state"])
    w.add_ssm_time_step_rank(mamba["heads"])
    w.add_ssm_group_count(mamba["groups"])
    w.add_head_count(config.num_attention_heads)
    width = getattr(config, "shared_intermediate_size", None) or config.intermediate_size
    if arch == "falcon-h1":
        w.add_head_count_kv(config.num_key_value_heads)
        w.add_feed_forward_length(width)
        w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        w.add_head_count_kv([config.num_key_value_heads * (kind == FULL) for kind in kinds])
    if arch.startswith("nemotron_h"):
        moe = arch.endswith("moe")
        width = config.moe_intermediate_size if moe else width
        feeds = [width * (kind == ("moe" if moe else "mlp")) for kind in kinds]
        w.add_feed_forward_length(feeds)
        w.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        w.add_layer_norm_eps(config.layer_norm_epsilon)
        if moe:
            write_nemotron_experts(w, config)
    else:
        w.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch == "granitehybrid":
        w.add_feed_forward_length(config.intermediate_size if config.num_local_experts else width)
        w.add_rope_scaling_finetuned(False)
        write_granite(w, config)
    else:
        w.add_key_length(head_dim(config))
        w.add_value_length(head_dim(config))


def write_granite(w, config):
    w.add_attention_scale(config.attention_multiplier)
    w.add_embedding_scale(config.embedding_multiplier)
    w.add_residual_scale(config.residual_multiplier)
    w.add_logit_scale(config.logits_scaling)
    if config.num_local_experts:
        w.add_expert_count(config.num_local_experts)
        w.add_expert_used_count(config.num_experts_per_tok)
        w.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def write_nemotron_experts(w, config):
    w.add_expert_count(config.n_routed_experts)
    w.add_expert_used_count(config.num_experts_per_tok)
    w.add_expert_feed_forward_length(config.moe_intermediate_size)
    w.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
    w.add_expert_shared_count(config.n_shared_experts)
    w.add_expert_weights_norm(config.norm_topk_prob)
    w.add_expert_weights_scale(config.routed_scaling_factor)
    w.add_expert_group_count(config.n_group)
    if config.moe_latent_size is not None:
        w.add_moe_latent_size(config.moe_latent_size)


def write_delta(w, config, arch):
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    w.add_ssm_state_size(config.linear_key_head_dim)
    w.add_ssm_group_count(config.linear_num_key_heads)
    w.add_ssm_time_step_rank(config.linear_num_value_heads)
    w.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    # Layers that are 4, 8, ... are full; others have an array.
    if any((kind == FULL) != ((i + 1) % 4 == 0) for i, kind in enumerate(config.layer_types)):
        w.add_array(f"{arch}.attention.recurrent_layers", [kind == LINEAR for kind in config.layer_types])
    w.add_uint32(f"{arch}.full_attention_interval", 4)
    rope = config.rope_parameters
    w.add_rope_dimension_count(int(config.head_dim * rope.get("partial_rotary_factor", 0.25)))
    w.add_rope_dimension_sections([1, 1, 0, 0])
    w.add_rope_freq_base(rope["rope_theta"])
    if arch == "qwen35":
        w.add_feed_forward_length(config.intermediate_size)
    else:
        w.add_expert_count(config.num_experts)
        w.add_expert_used_count(config.num_experts_per_tok)
        w.add_expert_feed_forward_length(config.moe_intermediate_size)
        w.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def mamba_sizes(config):
    if hasattr(config, "mamba_num_heads"):
        return dict(heads=config.mamba_num_heads, head_dim=config.mamba_head_dim, state=config.ssm_state_size,
                    groups=config.n_groups, kernel=config.conv_kernel)  # fmt: skip
    return dict(heads=config.mamba_n_heads, head_dim=config.mamba_d_head, state=config.mamba_d_state,
                groups=config.mamba_n_groups, kernel=config.mamba_d_conv)  # fmt: skip


def hybrid_tensors(config, arch, weights):
    """The weights as the converter stores them, under names that it looks up."""
    found = {}
    for name, weight in weights.items():
        if "conv1d.weight" in name:
            # The converter keeps filters in float32.
            weight = weight.squeeze(1).float()
        if name.endswith("A_log"):
            weight = -torch.exp(weight.float())
        if arch in DELTA:
            found |= delta_tensor(config, name, weight)
        else:
            found |= mamba_tensor(config, arch, name, weight)
    return found


def delta_tensor(config, name, weight):
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    heads, groups = config.linear_num_value_heads, config.linear_num_key_heads

    def tiled(rows, size, dim=0):
        """Heads of one key head side by side -> the first of each key head, then the second."""
        shape = list(rows.shape)
        shape[dim : dim + 1] = [groups, heads // groups, size]
        return rows.reshape(shape).transpose(dim, dim + 1).reshape(rows.shape).contiguous()

    if ".in_proj_qkv." in name or ".conv1d." in name:
        keys = 2 * groups * key
        weight = torch.cat([weight[:keys], tiled(weight[keys:], value)])
    elif ".in_proj_z." in name:
        weight = tiled(weight, value)
    elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        weight = tiled(weight, 1)
    elif ".linear_attn.out_proj." in name:
        weight = tiled(weight, value, 1)
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        weight = weight.float() + 1
    name = name.replace(".dt_bias", ".dt_proj.bias")
    if name.endswith("experts.gate_up_proj"):
        gate, up = (half.contiguous() for half in weight.chunk(2, 1))
        base = name.removesuffix("gate_up_proj")
        return {f"{base}gate_proj.weight": gate, f"{base}up_proj.weight": up}
    if name.endswith("experts.down_proj"):
        name += ".weight"
    if name.endswith("shared_expert_gate.weight"):
        weight = weight.squeeze(0)
    return {name: weight}


def mamba_tensor(config, arch, name, weight):
    mamba = mamba_sizes(config)
    if name.endswith(("A_log", ".D")):
        weight = weight.reshape(-1, 1)
    if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        weight = weight.reshape(mamba["groups"], -1)
    if name.endswith("dt_bias"):
        name = name.replace("dt_bias", "dt.bias" if arch == "nemotron_h_moe" else "dt_proj.bias")
    if arch == "falcon-h1":
        weight = falcon_scaled(config, name, weight)
    if arch.startswith("nemotron_h"):
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        name = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
        if ".mixer.experts." in name:
            name = name.replace("backbone.", "model.").replace(".mixer.", ".mlp.")
    if name.endswith("block_sparse_moe.input_linear.weight"):
        gate, up = (half.contiguous() for half in weight.chunk(2, 1))
        base = name.removesuffix("input_linear.weight")
        return {f"{base}experts.w1.weight": gate, f"{base}experts.w3.weight": up}
    return {name: weight}


def falcon_scaled(config, name, weight):
    """The multipliers are in the weights."""
    into = config.attention_in_multiplier
    factors = {
        "down_proj": config.mlp_multipliers[1],
        "gate_proj": config.mlp_multipliers[0],
        "k_proj": config.key_multiplier * into,
        "q_proj": into,
        "v_proj": into,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    if ".in_proj." in name:
        inner, states = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        sizes = [inner, inner, states, states, config.mamba_n_heads]
        rows = torch.cat(
            [torch.full((n,), scale) for n, scale in zip(sizes, config.ssm_multipliers, strict=True)]
        )
        return weight * rows[:, None] * config.ssm_in_multiplier
    found = [factor for part, factor in factors.items() if f"{part}." in name and not name.endswith("bias")]
    return weight * found[0] if found else weight

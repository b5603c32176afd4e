#!/usr/bin/env python3
"""Make the table of quantized checkpoints, `tests/golden/quantized/`: each format as its own package writes it.

    ROW/config.json, model.safetensors    a Llama (hidden 64, inner 128 or 192, vocabulary 64; a layer, or two)
    logits.npz                            of each row, float32 `[8, vocabulary]` of the last positions of a seeded prompt

The logits are transformers' in float32 over weights that the package itself dequantized, with scales widened to
float32 first; where no package does that on a CPU, or is wrong itself, by torch and the formula of the format's own
documents. The files of GPTQ and AWQ are quantized by gptqmodel from real activations; the others by rounding.

Run one or more rows by name, or all:

    python scripts/golden/quantized.py [ROW ...]

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, safetensors 0.8.0, compressed-tensors 0.20.1, gptqmodel 7.7.0,
bitsandbytes 0.50.2, mlx 0.32.4 (mlx[cpu]), mlx-lm 0.32.2, torchao 0.18.0, auto-round 0.16.1, numpy 2.4.6.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

OUT = Path(__file__).resolve().parents[2] / "tests/golden/quantized"
VOCAB, TOKENS, KEPT = 64, 24, 8
ROWS = {}


#: Rows whose layers are not all alike, and one of each family besides.
TWO_LAYERS = (
    "ct-mixed",
    "mlx-mixed",
    "gptq-dynamic",
    "ct-int4",
    "gptq-int4",
    "awq-int4",
    "bnb-nf4",
    "fp8-block",
)


def row(name, inner=128, tied=False):
    """A row of the table: a function from the plain weights to (config of the quantization, tensors, dequantized)."""

    def add(function):
        ROWS[name] = (function, inner, tied)
        return function

    return add


def base(inner, tied, layers):
    """The plain model in BF16, whose logits reach about 4."""
    torch.manual_seed(inner)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=2, pad_token_id=1)  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                spread = 0.4 if "embed" in name or "lm_head" in name else 0.12
                weight.normal_(0, spread)
    return model.to(torch.bfloat16)


def experts(config):
    """A plain model with experts in BF16."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.4 if "embed" in name or "lm_head" in name else 0.12)
    return model.to(torch.bfloat16)


def logits(model, weights):
    """Of a prompt, in float32, with these weights."""
    config = model.config
    config.dtype = torch.float32
    plain = type(model)(config).float()
    missing, unexpected = plain.load_state_dict({n: w.float() for n, w in weights.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    plain.tie_weights()
    tokens = torch.from_numpy(np.random.RandomState(TOKENS).randint(3, VOCAB, size=TOKENS))
    with torch.no_grad():
        return plain.eval()(input_ids=tokens[None], use_cache=False).logits[0, -KEPT:].numpy()


def projections(weights):
    return [name.removesuffix(".weight") for name in weights if name.endswith("_proj.weight")]


def each(weights, modules, quantize):
    """`quantize(module, weight)` -> parts, dequantized; over some modules."""
    tensors, dequantized = dict(weights), dict(weights)
    for module in modules:
        parts, back = quantize(module, weights[f"{module}.weight"])
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.{name}": part.contiguous() for name, part in parts.items()}
        dequantized[f"{module}.weight"] = back
    return tensors, dequantized


# -- compressed-tensors -------------------------------------------------------------------------------------


def compressed(form, args, weight, scale_dtype=torch.bfloat16):
    """The parts of a module, and what the package makes of them with scales in float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    args = scheme.weights
    strategy = args.strategy.value if hasattr(args.strategy, "value") else args.strategy
    weight = weight.float()
    n, k = weight.shape
    if strategy in ("group", "tensor_group"):
        grouped = weight.reshape(n, k // args.group_size, args.group_size)
    elif strategy == "block":
        rows, columns = args.block_structure
        padded = torch.zeros(-(-n // rows) * rows, -(-k // columns) * columns)
        padded[:n, :k] = weight
        grouped = padded.reshape(padded.shape[0] // rows, rows, -1, columns).transpose(1, 2).flatten(2)
    else:
        grouped = weight.reshape(n, 1, k) if strategy == "channel" else weight.reshape(1, 1, n * k)
    outer = generate_gparam(weight.min(), weight.max()).reshape(1) if strategy == "tensor_group" else None
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=outer)
    if strategy == "tensor":
        scale, zero = scale.flatten(), zero.flatten()
    if not form.startswith(("nvfp4", "mx")):
        scale = scale.to(scale_dtype)
    state = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
    if outer is not None:
        state["weight_global_scale"] = outer
    kind = BaseCompressor.get_value_from_registry(form)
    parts = kind.compress(state, scheme)
    back = kind.decompress(dict(parts), scheme)["weight"]
    if outer is not None:
        # The class does the same in BF16.
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        codes = unpack_fp4_from_uint8(parts["weight_packed"], n, k, torch.float32)
        scale = parts["weight_scale"].float()
        back = dequantize(x_q=codes, scale=scale, args=args, global_scale=outer, dtype=torch.float32)
    if not form.startswith(("nvfp4", "mx")):
        parts["weight_scale"] = scale
    if args.symmetric:
        parts.pop("weight_zero_point", None)
    return parts, back


def int_args(bits, symmetric=True, strategy="group", group=32, **more):
    size = dict(group_size=group) if strategy == "group" else {}
    return dict(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, **size, **more)


def float_args(bits, strategy, **more):
    return dict(num_bits=bits, type="float", symmetric=True, strategy=strategy, **more)


def compressed_config(form, groups, ignore=("lm_head",), **more):
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups=groups, format=form, ignore=list(ignore), quantization_status="compressed"
    )
    return json.loads(config.model_dump_json()) | more


def compressed_row(form, args, **more):
    def make(weights):
        tensors, back = each(weights, projections(weights), lambda _, w: compressed(form, args, w, **more))
        return compressed_config(form, {"group_0": dict(targets=["Linear"], weights=args)}), tensors, back

    return make


PACKED = "pack-quantized"
row("ct-int4")(compressed_row(PACKED, int_args(4, actorder="weight")))
row("ct-int4-f16-scales")(compressed_row(PACKED, int_args(4, group=64), scale_dtype=torch.float16))
row("ct-int4-zero-points")(compressed_row(PACKED, int_args(4, symmetric=False)))
row("ct-int4-channel")(compressed_row(PACKED, int_args(4, strategy="channel")))
row("ct-int4-group-16")(compressed_row(PACKED, int_args(4, group=16)))
row("ct-int2")(compressed_row(PACKED, int_args(2)))
row("ct-int3-zero-points")(compressed_row(PACKED, int_args(3, symmetric=False)))
row("ct-int5")(compressed_row(PACKED, int_args(5)))
row("ct-int6-zero-points")(compressed_row(PACKED, int_args(6, symmetric=False)))
row("ct-int7")(compressed_row(PACKED, int_args(7, group=64)))
row("ct-int8-packed")(compressed_row(PACKED, int_args(8, strategy="channel")))
row("ct-int8-packed-zero-points")(compressed_row(PACKED, int_args(8, symmetric=False)))
row("ct-int8")(compressed_row("int-quantized", int_args(8, strategy="channel")))
row("ct-int8-zero-points")(compressed_row("int-quantized", int_args(8, symmetric=False, strategy="channel")))
row("ct-int8-tensor-naive")(compressed_row("naive-quantized", int_args(8, strategy="tensor")))
row("ct-fp8-channel")(compressed_row("float-quantized", float_args(8, "channel")))
row("ct-fp8-tensor")(compressed_row("float-quantized", float_args(8, "tensor")))
row("ct-fp8-block", 192)(compressed_row("float-quantized", float_args(8, "block", block_structure=[64, 64])))
row("ct-nvfp4")(compressed_row("nvfp4-pack-quantized", float_args(4, "tensor_group", group_size=16,
    scale_dtype="torch.float8_e4m3fn", zp_dtype="torch.float8_e4m3fn")))  # fmt: skip
row("ct-mxfp4")(compressed_row("mxfp4-pack-quantized", float_args(4, "group", group_size=32,
    scale_dtype="torch.uint8", zp_dtype="torch.uint8")))  # fmt: skip
row("ct-mxfp8")(compressed_row("mxfp8-quantized", float_args(8, "group", group_size=32,
    scale_dtype="torch.uint8", zp_dtype="torch.uint8")))  # fmt: skip


@row("ct-int3-words")
def words_without_a_bit_between(weights):
    """As 0.17 and before packed 3 bits: ten values in a word, two bits idle."""
    args = int_args(3)

    def quantize(_, weight):
        parts, back = compressed(PACKED, args, weight)
        n, k = weight.shape
        scale = parts["weight_scale"].float().repeat_interleave(32, 1)
        codes = (back / scale).round().to(torch.int64) + 4
        padded = torch.nn.functional.pad(codes, (0, -k % 10)).reshape(n, -1, 10)
        words = (padded << (3 * torch.arange(10))).sum(-1).to(torch.int32)
        return parts | dict(weight_packed=words), back

    tensors, back = each(weights, projections(weights), quantize)
    return compressed_config(PACKED, {"group_0": dict(targets=["Linear"], weights=args)}), tensors, back


@row("ct-mixed")
def of_each_module_its_own(weights):
    """Two groups with formats of their own, by a pattern and by class; embedding and head too; one layer is plain."""
    int4, int8 = int_args(4), int_args(8, strategy="channel")
    fp8 = float_args(8, "channel")
    plain = "model.layers.1.mlp.down_proj"

    def quantize(module, weight):
        if "mlp" in module:
            return compressed("float-quantized", fp8, weight)
        if "embed" in module or "head" in module:
            return compressed(PACKED, int8, weight)
        return compressed(PACKED, int4, weight)

    modules = [m for m in projections(weights) if m != plain] + ["lm_head", "model.embed_tokens"]
    groups = {
        "group_0": dict(targets=["re:.*mlp\\..*_proj$"], weights=fp8, format="float-quantized"),
        "group_1": dict(targets=["Linear"], weights=int4, format=PACKED),
        "group_2": dict(targets=["Embedding", "lm_head"], weights=int8, format=PACKED),
    }
    tensors, back = each(weights, modules, quantize)
    return (
        compressed_config("mixed-precision", groups, ignore=["re:.*layers\\.1\\.mlp\\.down_proj"]),
        tensors,
        back,
    )


# -- GPTQ and AWQ -------------------------------------------------------------------------------------------


def by_gptqmodel(**how):
    def make(weights, folder):
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        random = np.random.RandomState(7)
        data = [
            dict(input_ids=random.randint(3, VOCAB, 64).tolist(), attention_mask=[1] * 64) for _ in range(8)
        ]
        model = GPTQModel.load(str(folder), QuantizeConfig(**how), device="cpu")
        if how.get("method") == "awq":
            model.quantize(data)
        else:
            model.quantize(data, backend=BACKEND.TORCH)
        saved = folder.parent / "quantized"
        model.save(str(saved))
        config = json.loads((saved / "config.json").read_text())["quantization_config"]
        # What it says of the maker's machine.
        config.get("meta", {}).pop("offload_to_disk_path", None)
        tensors = load_file(saved / "model.safetensors")
        return config, tensors, unpacked(saved, tensors)

    return make


def unpacked(folder, tensors):
    """The weights as gptqmodel's own modules dequantize them, with scales in float32."""
    from gptqmodel import BACKEND, GPTQModel

    awq = json.loads((folder / "config.json").read_text())["quantization_config"].get("quant_method") == "awq"
    backend = BACKEND.TORCH_AWQ if awq else BACKEND.TORCH
    model = GPTQModel.load(str(folder), backend=backend, device="cpu")
    parts = (".qweight", ".qzeros", ".scales", ".g_idx")
    back = {name: tensor for name, tensor in tensors.items() if not name.endswith(parts)}
    for name, module in model.model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        # Those of the file: the loader has rounded them to the model's type.
        module.scales = tensors[f"{name}.scales"].float()
        if awq:
            from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

            weight = dequantize_gemm(
                module.qweight, module.qzeros, module.scales, module.bits, module.group_size
            )
        else:
            module.dequant_dtype = torch.int32
            weight = module.dequantize_weight()
        back[f"{name}.weight"] = weight.detach().float().T.contiguous()
    return back


row("gptq-int4")(by_gptqmodel(bits=4, group_size=32))
row("gptq-int4-row")(by_gptqmodel(bits=4, group_size=-1, act_group_aware=False))
row("gptq-int4-v2-zero-points")(by_gptqmodel(bits=4, group_size=32, format="gptq_v2", sym=False))
row("gptq-int4-any-order")(by_gptqmodel(bits=4, group_size=32, desc_act=True, sym=False))
row("gptq-int3")(by_gptqmodel(bits=3, group_size=32))
row("gptq-int2")(by_gptqmodel(bits=2, group_size=32, sym=False))
row("gptq-int8")(by_gptqmodel(bits=8, group_size=64))
row("gptq-int4-head")(by_gptqmodel(bits=4, group_size=32, lm_head=True))
row("gptq-dynamic")(by_gptqmodel(bits=4, group_size=32,
    dynamic={r"-:.*\.down_proj": {}, r"+:.*\.q_proj": {"bits": 8, "group_size": 64}}))  # fmt: skip


def awq_row(group, symmetric, config):
    """gptqmodel's quantizer wants at least 64 outputs of every module; its dequantization does not."""

    def quantize(_, weight):
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        weight = weight.float()
        n, k = weight.shape
        groups = weight.reshape(n, k // group, group)
        low, high = groups.amin(-1), groups.amax(-1)
        if symmetric:
            scale, zero = groups.abs().amax(-1) / 7, torch.full_like(low, 8)
        else:
            scale = (high - low) / 15
            zero = (-low / scale).round()
        scale = scale.half()
        codes = (groups / scale.float()[..., None]).round() + zero[..., None]
        codes = codes.clamp(0, 15).reshape(n, k).T.to(torch.int64)
        parts = dict(
            qweight=in_awq_words(codes),
            qzeros=in_awq_words(zero.T.to(torch.int64)),
            scales=scale.T.contiguous(),
        )
        back = dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"].float(), 4, group)
        return parts, back.float().T.contiguous()

    def make(weights):
        return config, *each(weights, projections(weights), quantize)

    return make


def in_awq_words(codes):
    """[rows, outputs] of nibbles: in each word outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest up."""
    eights = codes.reshape(codes.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return (eights << (4 * torch.arange(8))).sum(-1).to(torch.int32)


AWQ = dict(quant_method="awq", version="gemm", modules_to_not_convert=None)
row("awq-int4")(awq_row(32, False, AWQ | dict(bits=4, group_size=32, zero_point=True)))
row("awq-int4-symmetric")(awq_row(64, True, AWQ | dict(bits=4, group_size=64, zero_point=False)))


@row("gptq-old")
def as_old_files_have_it(weights, folder):
    """Without g_idx, with a bias of zeros in every module, and with the keys of AutoGPTQ beside the weights, in
    quantize_config.json."""
    config, tensors, back = by_gptqmodel(bits=4, group_size=32)(weights, folder)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(".scales")}
    tensors |= {
        name.replace("scales", "bias"): torch.zeros(tensor.shape[1]).half() for name, tensor in scales.items()
    }
    config = dict(bits=4, group_size=32, damp_percent=0.01, desc_act=False, static_groups=False, sym=True,
                  true_sequential=True, model_name_or_path=None, model_file_base_name="model")  # fmt: skip
    return dict(beside=("quantize_config.json", config)), tensors, back


# -- AutoRound ----------------------------------------------------------------------------------------------


def by_auto_round(form, **how):
    """As auto-round saves it: by rounding alone, which needs no texts and gives what is packed all the same."""

    def make(weights, folder):
        from auto_round import AutoRound

        saved = folder.parent / "quantized"
        rounding = AutoRound(str(folder), iters=0, disable_opt_rtn=True, device_map="cpu", **how)
        rounding.quantize_and_save(str(saved), format=form)
        file = next(saved.glob("**/config.json"))
        config = json.loads(file.read_text())["quantization_config"]
        tensors = load_file(next(file.parent.glob("*.safetensors")))
        return config, tensors, of_words(config, tensors, weights)

    return make


def of_words(config, tensors, plain):
    """The weights as auto-round's own modules have them, with scales in float32: their product with the unit matrix."""
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    form = config.get("packing_format", "")
    parts = (".qweight", ".qzeros", ".scales", ".g_idx")
    back = {name: tensor for name, tensor in tensors.items() if not name.endswith(parts)}
    for module in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        part = {name: tensors.get(f"{module}.{name}") for name in ("qweight", "qzeros", "scales")}
        part["scales"] = part["scales"].float()
        outputs, inputs = plain[f"{module}.weight"].shape
        group = inputs // part["scales"].shape[0]
        if "awq" in form or config["quant_method"] == "awq":
            from auto_round.export.export_to_awq.utils import dequantize_gemm

            weight = dequantize_gemm(*part.values(), 4, group)
        else:
            less = config["quant_method"] == "gptq" or ("gptq" in form and "gptqmodel" not in form)
            kind = qlinear_torch_zp if less else qlinear_torch
            layer = kind.QuantLinear(part["qweight"].shape[0] * 32 // inputs, group, inputs, outputs, False)
            layer.qweight, layer.qzeros, layer.scales = part.values()
            weight = layer(torch.eye(inputs))
        back[f"{module}.weight"] = weight.float().T.contiguous()
    return back


#: One module in 8 bits, one plain. (By name: of a pattern auto-round 0.16.1 writes the settings and not the weights.)
APART = {
    "model.layers.0.self_attn.o_proj": dict(bits=8, group_size=64),
    "model.layers.0.mlp.up_proj": dict(bits=16),
}
row("auto-round-int4")(by_auto_round("auto_round", scheme="W4A16", group_size=32, layer_config=APART))
row("auto-round-int2-zero-points")(
    by_auto_round("auto_round:gptqmodel", scheme="W2A16", group_size=32, sym=False)
)
row("auto-round-int5-zero-points")(
    by_auto_round("auto_round", scheme="W4A16", bits=5, group_size=32, sym=False)
)
row("auto-round-awq")(by_auto_round("auto_round:auto_awq", scheme="W4A16", group_size=32, sym=False))
row("auto-round-gptq")(by_auto_round("auto_gptq", scheme="W4A16", group_size=32))


@row("auto-round-mxfp4")
def mxfp4_of_auto_round(weights, folder):
    """The parts are those of compressed-tensors, whose class dequantizes them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    config, tensors, _ = by_auto_round("auto_round", scheme="MXFP4")(weights, folder)
    args = float_args(4, "group", group_size=32, scale_dtype="torch.uint8", zp_dtype="torch.uint8")
    form = "mxfp4-pack-quantized"
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    kind = BaseCompressor.get_value_from_registry(form)
    back = {name: tensor for name, tensor in tensors.items() if "_proj." not in name}
    for module in projections(weights):
        parts = {name: tensors[f"{module}.{name}"] for name in ("weight_packed", "weight_scale")}
        back[f"{module}.weight"] = kind.decompress(parts, scheme)["weight"].float()
    return config, tensors, back


# -- MLX ----------------------------------------------------------------------------------------------------


def by_mlx(settings, **config):
    """`settings(module)` -> bits, group_size and mode of a module, or None."""

    def make(weights):
        import mlx.core as mx

        def quantize(module, weight):
            own = settings(module)
            mode = own.get("mode", "affine")
            made = mx.quantize(mx.array(weight.float().numpy()).astype(mx.bfloat16), **own)
            names = ["weight", "scales", "biases"][: len(made)]
            wide = made if mode != "affine" else [made[0], *(part.astype(mx.float32) for part in made[1:])]
            back = torch.from_numpy(np.array(mx.dequantize(*wide, **own).astype(mx.float32)))
            return {name: of_mlx(part) for name, part in zip(names, made, strict=True)}, back

        modules = [name.removesuffix(".weight") for name, weight in weights.items() if weight.dim() == 2]
        tensors, back = each(weights, [m for m in modules if settings(m)], quantize)
        return dict(mlx=config), tensors, back

    return make


def of_mlx(array):
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.astype(mx.float32))).to(torch.bfloat16)
    numbers = np.array(array)
    return torch.from_numpy(numbers.view(np.int32) if numbers.dtype == np.uint32 else numbers).view(
        torch.uint32 if numbers.dtype == np.uint32 else torch.uint8
    )


for bits, group in [(2, 32), (3, 64), (4, 64), (5, 32), (6, 32), (8, 64)]:
    row(f"mlx-{bits}", tied=bits in (4, 8))(
        by_mlx(
            lambda _, own=dict(bits=bits, group_size=group): own, group_size=group, bits=bits, mode="affine"
        )
    )
row("mlx-mxfp4")(
    by_mlx(lambda _: dict(bits=4, group_size=32, mode="mxfp4"), group_size=32, bits=4, mode="mxfp4")
)
row("mlx-mxfp8")(
    by_mlx(lambda _: dict(bits=8, group_size=32, mode="mxfp8"), group_size=32, bits=8, mode="mxfp8")
)
row("mlx-nvfp4")(
    by_mlx(lambda _: dict(bits=4, group_size=16, mode="nvfp4"), group_size=16, bits=4, mode="nvfp4")
)


def stacked(config, **how):
    """Experts as mlx-lm stacks and quantizes them, each kind as one tensor."""

    def make(_, folder):
        import mlx.core as mx
        import mlx_lm

        # Their configurations on the hub are of before transformers 5.
        file = folder / "config.json"
        older = dict(rope_theta=config.rope_parameters["rope_theta"])
        if config.model_type == "qwen3_moe":
            older |= dict(num_experts=config.num_experts)
        file.write_text(json.dumps(json.loads(file.read_text()) | older))
        if config.model_type == "gpt_oss":
            apart(folder / "model.safetensors")
        saved = folder.parent / "quantized"
        mlx_lm.convert(str(folder), mlx_path=str(saved), quantize=True, **how)
        whole = json.loads((saved / "config.json").read_text())
        parts = mx.load(str(saved / "model.safetensors"))
        said, back = whole.pop("quantization"), {}
        whole.pop("quantization_config", None)
        usual = {key: said[key] for key in ("group_size", "bits", "mode") if key in said}
        for name in [n for n in parts if not n.endswith((".scales", ".biases"))]:
            module, part = name.removesuffix(".weight"), parts[name]
            if f"{module}.scales" in parts:
                own = said.get(module) or usual
                wide = [parts[f"{module}.{n}"] for n in ("scales", "biases") if f"{module}.{n}" in parts]
                if len(wide) == 2:
                    wide = [part.astype(mx.float32) for part in wide]
                part = mx.dequantize(part, *wide, **own)
            back[name] = torch.from_numpy(np.array(part.astype(mx.float32)))
        tensors = {name: of_mlx(part) for name, part in parts.items()}
        return dict(mlx=said, config=whole), tensors, joined(back)

    return make


def apart(file):
    """gpt-oss's experts in BF16 as mlx-lm has them after reading MXFP4: it reads no others."""
    tensors = load_file(file)
    for name in [name for name in tensors if ".experts." in name]:
        weight, end = tensors.pop(name), ".bias" if name.endswith("_bias") else ".weight"
        name, weight = name.removesuffix("_bias"), weight if end == ".bias" else weight.transpose(1, 2)
        if name.endswith("down_proj"):
            tensors[name + end] = weight
            continue
        for at, other in enumerate(("gate_proj", "up_proj")):
            tensors[name.replace("gate_up_proj", other) + end] = weight[:, at::2]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


def joined(weights):
    """mlx-lm's names and forms of experts as transformers has them."""
    ours = {name: weight for name, weight in weights.items() if "switch_mlp" not in name}
    for name, gate in weights.items():
        if not re.search(r"(switch_mlp|experts)\.gate_proj\.", name):
            continue
        up, down = (weights[name.replace("gate_proj", other)] for other in ("up_proj", "down_proj"))
        at = name.rsplit(".", 3)[0] + ".experts."
        for other in ("gate_proj", "up_proj", "down_proj"):
            ours.pop(name.replace("gate_proj", other), None)
        if "switch_mlp" in name:
            ours |= {f"{at}gate_up_proj": torch.cat([gate, up], 1), f"{at}down_proj": down}
            continue
        # gpt-oss: gate and up in turns, and inputs before outputs.
        both, end = torch.stack([gate, up], 2).flatten(1, 2), "_bias" if name.endswith("bias") else ""
        turned = (both, down) if end else (both.transpose(1, 2), down.transpose(1, 2))
        ours |= {f"{at}gate_up_proj{end}": turned[0], f"{at}down_proj{end}": turned[1]}
    return ours


SMALL = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, max_position_embeddings=128, bos_token_id=None, eos_token_id=2, pad_token_id=1,
             num_experts_per_tok=2, tie_word_embeddings=False,
             rope_parameters=dict(rope_type="default", rope_theta=10000.0))  # fmt: skip
QWEN3 = transformers.Qwen3MoeConfig(**SMALL, intermediate_size=64, moe_intermediate_size=32, num_experts=4)
GPT_OSS = transformers.GptOssConfig(**SMALL, intermediate_size=64, num_local_experts=4, sliding_window=16)
MODELS = {"mlx-experts": QWEN3, "mlx-experts-mxfp4": GPT_OSS}
row("mlx-experts")(stacked(QWEN3, q_bits=4, q_group_size=32))
row("mlx-experts-mxfp4")(stacked(GPT_OSS, q_mode="mxfp4", q_bits=4, q_group_size=32))


def mixed(module):
    if module == "lm_head":
        return dict(bits=8, group_size=32)
    return None if module == "model.layers.0.self_attn.o_proj" else dict(bits=4, group_size=64)


row("mlx-mixed")(by_mlx(mixed, **{"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 8},
    "model.layers.0.self_attn.o_proj": False}))  # fmt: skip


# -- bitsandbytes -------------------------------------------------------------------------------------------


def four_bits(kind, nested):
    def make(weights):
        import bitsandbytes.functional as bnb

        def quantize(_, weight):
            packed, state = bnb.quantize_4bit(
                weight.contiguous(), blocksize=64, quant_type=kind, compress_statistics=nested
            )
            parts = {"weight": packed} | {
                f"weight.{name}": part for name, part in state.as_dict(packed=True).items()
            }
            state.dtype = torch.float32
            return parts, bnb.dequantize_4bit(packed, state)

        tensors, back = each(weights, projections(weights), quantize)
        config = dict(quant_method="bitsandbytes", _load_in_4bit=True, _load_in_8bit=False, load_in_4bit=True,
                      load_in_8bit=False, bnb_4bit_compute_dtype="bfloat16", bnb_4bit_quant_storage="uint8",
                      bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested, llm_int8_threshold=6.0,
                      llm_int8_has_fp16_weight=False, llm_int8_skip_modules=None,
                      llm_int8_enable_fp32_cpu_offload=False)  # fmt: skip
        return config, tensors, back

    return make


row("bnb-nf4")(four_bits("nf4", False))
row("bnb-nf4-nested")(four_bits("nf4", True))
row("bnb-fp4")(four_bits("fp4", False))


@row("bnb-int8")
def eight_bits(weights):
    import bitsandbytes.functional as bnb

    def quantize(_, weight):
        codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        parts = dict(weight=codes, SCB=scales.float(), weight_format=torch.tensor(0, dtype=torch.uint8))
        return parts, bnb.int8_vectorwise_dequant(codes, scales.float())

    tensors, back = each(weights, projections(weights), quantize)
    return dict(quant_method="bitsandbytes", load_in_4bit=False, load_in_8bit=True), tensors, back


# -- torchao ------------------------------------------------------------------------------------------------


def by_torchao(settings):
    """As transformers saves it with torchao, whose tensors dequantize themselves. `settings(torchao.quantization)`."""

    def make(weights, folder):
        import torchao.quantization
        from safetensors import safe_open

        how = transformers.TorchAoConfig(settings(torchao.quantization))
        load = transformers.AutoModelForCausalLM.from_pretrained
        model = load(folder, quantization_config=how, dtype=torch.bfloat16, device_map="cpu")
        saved = folder.parent / "quantized"
        model.save_pretrained(saved)
        config = json.loads((saved / "config.json").read_text())["quantization_config"]
        with safe_open(saved / "model.safetensors", "pt") as file:
            said = file.metadata()
        back = {}
        for name, weight in model.state_dict().items():
            if hasattr(weight, "qdata"):
                weight = in_float32(weight)
            back[name] = weight.detach().float()
        return dict(said=said, **config), load_file(saved / "model.safetensors"), back

    return make


def in_float32(weight):
    """As its class dequantizes it, with scales in float32."""
    from torchao.quantization.quant_primitives import dequantize_affine

    if type(weight).__name__ == "IntxUnpackedToInt8Tensor":
        parts = (weight.qdata, weight.block_size, weight.scale.float(), weight.zero_point, torch.int8)
        return dequantize_affine(*parts, output_dtype=torch.float32)
    return weight.dequantize(torch.float32)


row("torchao-int8")(by_torchao(lambda ao: ao.Int8WeightOnlyConfig(version=2)))
row("torchao-float8")(by_torchao(lambda ao: ao.Float8WeightOnlyConfig()))
row("torchao-int4")(by_torchao(lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32),
    mapping_type=ao.quant_primitives.MappingType.ASYMMETRIC)))  # fmt: skip
row("torchao-int3")(by_torchao(lambda ao: ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int3,
    weight_granularity=ao.PerGroup(64))))  # fmt: skip


# -- FP8 and FP4 by hand: the formulas of their makers ------------------------------------------------------


def fp8_row(config, name, sides, scale_of=lambda scale: scale):
    """`sides`: rows and columns of a block, None for the whole."""

    def quantize(_, weight):
        weight = weight.float()
        n, k = weight.shape
        rows, columns = sides[0] or n, sides[1] or k
        scale = torch.empty(-(-n // rows), -(-k // columns))
        codes, back = torch.empty(n, k, dtype=torch.float8_e4m3fn), torch.empty(n, k)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                scale[i, j] = scale_of(weight[at].abs().max() / 448)
                codes[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
                back[at] = codes[at].float() * scale[i, j]
        if sides == (None, None):
            scale = scale.reshape(())
        return {"weight": codes, name: scale}, back

    def make(weights):
        return config, *each(weights, projections(weights), quantize)

    return make


def power(scale):
    return 2 ** torch.ceil(torch.log2(scale))


FP8 = dict(quant_method="fp8", activation_scheme="dynamic")
row("fp8-block", 192)(
    fp8_row(FP8 | dict(fmt="e4m3", weight_block_size=[128, 128]), "weight_scale_inv", (128, 128))
)
row("fp8-block-powers", 192)(fp8_row(FP8 | dict(weight_block_size=[128, 128], scale_fmt="ue8m0"), "weight_scale_inv",
    (128, 128), power))  # fmt: skip
row("fp8-tensor")(fp8_row(FP8 | dict(weight_block_size=None), "weight_scale_inv", (None, None)))
row("fp8-tensor-old")(
    fp8_row(dict(quant_method="fp8", activation_scheme="static"), "weight_scale", (None, None))
)
row("fbgemm-fp8")(fp8_row(dict(quant_method="fbgemm_fp8", activation_scale_ub=1200.0,
    modules_to_not_convert=["lm_head"]), "weight_scale", (1, None)))  # fmt: skip
row("modelopt-fp8")(fp8_row(dict(quant_method="modelopt", quant_algo="FP8", ignore=["lm_head"],
    producer=dict(name="modelopt", version="0.47.0")), "weight_scale", (None, None)))  # fmt: skip

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@row("modelopt-nvfp4")
def nvfp4_of_modelopt(weights):
    """Multiplied by the outer scale (`NVFP4QTensor` of ModelOpt 0.47), where compressed-tensors divides."""

    def quantize(_, weight):
        weight = weight.float()
        n, k = weight.shape
        outer = weight.abs().max() / (6 * 448)
        groups = weight.reshape(n, k // 16, 16)
        scale = (groups.abs().amax(-1) / 6 / outer).to(torch.float8_e4m3fn)
        whole = (scale.float() * outer)[..., None]
        codes = ((groups / whole)[..., None] - E2M1).abs().argmin(-1).reshape(n, k)
        back = (E2M1[codes].reshape(groups.shape) * whole).reshape(n, k)
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
        parts = dict(weight=packed, weight_scale=scale, weight_scale_2=outer.reshape(()))
        return parts | dict(input_scale=torch.tensor(0.01)), back

    config = dict(quant_method="modelopt", quant_algo="NVFP4", group_size=16, ignore=["lm_head"],
                  kv_cache_quant_algo=None, producer=dict(name="modelopt", version="0.47.0"))  # fmt: skip
    return config, *each(weights, projections(weights), quantize)


# -- Writing ------------------------------------------------------------------------------------------------


def tokenizer(folder):
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="t1", eos_token="t2", unk_token="t0"
    )
    fast.save_pretrained(folder)


def written(name):
    function, inner, tied = ROWS[name]
    config = MODELS.get(name)
    model = experts(config) if config else base(inner, tied, 2 if name in TWO_LAYERS else 1)
    weights = {n: w.detach().clone() for n, w in model.named_parameters()}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "plain"
        if "folder" in function.__code__.co_varnames[: function.__code__.co_argcount]:
            model.save_pretrained(source)
            tokenizer(source)
            said, tensors, back = function(weights, source)
        else:
            said, tensors, back = function(weights)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {key: value for key, value in model.config.to_dict().items() if value is not None}
    config = said.pop("config", None) or {key: config[key] for key in KEYS if key in config}
    if "beside" in said:
        beside, said = said["beside"]
        (folder / beside).write_text(json.dumps(said, indent=1) + "\n")
    elif "mlx" in said:
        config |= dict(quantization=said["mlx"], quantization_config=said["mlx"])
    else:
        config["quantization_config"] = said
    header = config.get("quantization_config", {}).pop("said", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", header)
    return logits(model, back), logits(model, weights)


KEYS = ["architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
        "rope_parameters", "tie_word_embeddings", "eos_token_id", "hidden_act"]  # fmt: skip


def main():
    wanted = sys.argv[1:] or list(ROWS)
    path = OUT / "logits.npz"
    kept = dict(np.load(path)) if path.exists() else {}
    kept = {name: kept[name] for name in kept if name in ROWS}
    failed = []
    for name in wanted:
        try:
            kept[name], plain = written(name)
        except Exception as error:
            failed.append(name)
            import traceback

            traceback.print_exc()
            print(f"{name}: {error!r}")
            continue
        apart = np.abs(kept[name] - plain).max()
        print(
            f"{name:28} largest logit {np.abs(kept[name]).max():.2f}, moved by quantization {apart:.3f}",
            flush=True,
        )
        np.savez_compressed(path, **{name: kept[name].astype(np.float32) for name in sorted(kept)})
    print("failed:", failed)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make the goldens of embeddings: tiny random checkpoints as sentence-transformers saves them, and its vectors.

Each model becomes one folder `tests/golden/embed/<name>/`, as `SentenceTransformer.save` writes it, with weights that
are exact in bfloat16, and one file of ours:

    model.gguf      of EmbeddingGemma alone: the same weights in llama.cpp's conventions, Dense included
    golden.json     texts; cases: name, files (JSON that replaces or joins those of the folder), vectors
                    [texts, dimensions] by `encode` in float32, and whether their length is to be kept

Each case names what it tests in `without`: files that switch it off, which must give other vectors.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, sentence-transformers 6.2.0, safetensors 0.8.0, gguf 0.19.0.
"""

import argparse
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import gguf
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from to_gguf import add, write_rope, write_shape, write_tensors

ROOT = Path(__file__).resolve().parents[2]
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
WIDTH = 16
BASE = dict(
    hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=2,
)  # fmt: skip
LONG = "a text of more rows than one step of the engine has; " * 11
TEXTS = ["a", "two words", "a text that is longer than any window to both of its sides", LONG]
OLD = "sentence_transformers.models."
POOLING = "1_Pooling/config.json"
CONFIG, SENTENCE = "config.json", "config_sentence_transformers.json"
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
FLAGS = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


def case(name, files=None, *, without=None, keeps_length=False):
    """`files`, `without`: name -> JSON; a name with a "+" in front is merged into the file that is there."""
    return dict(name=name, files=files or {}, without=without, keeps_length=keeps_length)


def pooling(mode):
    """What release 6 writes."""
    return {POOLING: dict(embedding_dimension=WIDTH, pooling_mode=mode, include_prompt=True)}


def flags(*modes):
    """What release 5 and those before it write."""
    wanted = {FLAGS[MODES.index(mode)] for mode in modes}
    old = {f"pooling_mode_{flag}": flag in wanted for flag in FLAGS}
    return {POOLING: dict(word_embedding_dimension=WIDTH, **old, include_prompt=True)}


def chain(*modules):
    """A modules.json as older releases write it; modules are (class, path)."""
    return {
        "modules.json": [
            dict(idx=idx, name=str(idx), path=path, type=OLD + kind)
            for idx, (kind, path) in enumerate([("Transformer", ""), *modules])
        ]
    }


def plus(name, **fields):
    return {"+" + name: fields}


def chat(format):
    """What release 6 writes for a tokenizer with a chat template: texts are messages."""
    text = dict(method="forward", method_output_name="last_hidden_state")
    content = "message.content" if format == "flat" else "message.content[0].text"
    template = "{% for message in messages %}[{{ message.role }}] {{ " + content + " }}<eos>{% endfor %}"
    return plus("tokenizer_config.json", chat_template=template) | plus(
        "sentence_bert_config.json", modality_config=dict(text=text, message=dict(text, format=format))
    )


PLAIN = ("Pooling", "1_Pooling")
GEMMA_ROPE = dict(
    full_attention=dict(rope_type="default", rope_theta=1000000.0),
    sliding_attention=dict(rope_type="default", rope_theta=10000.0),
)
MODELS = {
    # EmbeddingGemma: both sides, a window of 8 that leaves 4 to each, mean, two Dense, Normalize.
    "gemma3": dict(
        config=transformers.Gemma3TextConfig(
            **BASE, vocab_size=104, query_pre_attn_scalar=8, sliding_window=8, sliding_window_pattern=3,
            rope_parameters=GEMMA_ROPE, use_bidirectional_attention=True),
        around=["<bos>", "<eos>"],
        gguf=True,
        modules=lambda: [
            st.Pooling(WIDTH, "mean"),
            st.Dense(WIDTH, 40, bias=False, activation_function=torch.nn.Identity()),
            st.Dense(40, WIDTH, bias=False, activation_function=torch.nn.Identity()),
            st.Normalize(),
        ],
        cases=[
            case("as saved", without=plus(CONFIG, use_bidirectional_attention=False)),
            case("a wider window", plus(CONFIG, sliding_window=33)),
            case("without Dense", chain(PLAIN, ("Normalize", "4_Normalize"))),
            case("both flags", plus(CONFIG, is_causal=False)),
        ],
    ),
    # Qwen3-Embedding: the row of an EOS that the tokenizer appends.
    "qwen3": dict(
        config=transformers.Qwen3Config(**BASE, vocab_size=104, tie_word_embeddings=True),
        around=["<eos>"],
        modules=lambda: [st.Pooling(WIDTH, "lasttoken"), st.Normalize()],
        settings=dict(prompts={"query": "Instruct: find it\nQuery:", "document": ""}),
        cases=[
            case("as saved", without=pooling("mean")),
            case("release 5", chain(PLAIN, ("Normalize", "2_Normalize")) | flags("lasttoken")),
            case("a default prompt", plus(SENTENCE, default_prompt_name="query"),
                 without=plus(SENTENCE, default_prompt_name=None)),
            case("both sides", plus(CONFIG, is_causal=False), without={}),
        ],
    ),
    "qwen2": dict(
        config=transformers.Qwen2Config(**BASE, vocab_size=104, is_causal=False),
        around=[],
        modules=lambda: [st.Pooling(WIDTH, "mean")],
        cases=[
            case("as saved", without=plus(CONFIG, is_causal=True)),
            case("the first row", pooling("cls"), without=pooling("cls") | plus(CONFIG, is_causal=True)),
            case("a window", plus(CONFIG, use_sliding_window=True, sliding_window=6, max_window_layers=1,
                                  layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
                 without={}),
        ],
    ),
    "llama": dict(
        config=transformers.LlamaConfig(**BASE, vocab_size=104, attention_bias=True),
        around=["<bos>"],
        modules=lambda: [st.Pooling(WIDTH, "mean")],
        extra=True,
        cases=[
            case("as saved", without=pooling("max")),
            *(case(f"release 6, {mode}", pooling(mode)) for mode in MODES),
            *(case(f"release 5, {mode}", chain(PLAIN) | flags(mode)) for mode in MODES),
            case("several flags", chain(PLAIN) | flags("lasttoken", "mean", "cls"), without={}),
            case("several names", pooling(["weightedmean", "max"]), without=pooling(["max", "weightedmean"])),
            case("another folder", chain(("Pooling", "3_Other")) | {"3_Other/config.json": pooling("max")[POOLING]},
                 without={}),
            case("Dense, LayerNorm, Dropout",
                 chain(PLAIN, ("Dropout", "4_Dropout"), ("Dense", "5_Dense"), ("LayerNorm", "6_LayerNorm"),
                       ("Normalize", "8_Normalize")) | {"4_Dropout/config.json": dict(dropout=0.5)},
                 without=chain(PLAIN, ("Dense", "5_Dense"), ("Normalize", "8_Normalize"))),
            case("a residual", chain(PLAIN, ("Dense", "7_Dense")), without=chain(PLAIN, ("Dense", "5_Dense"))),
            *(case(f"activation {name}", chain(PLAIN, ("Dense", "5_Dense")) | plus(
                "5_Dense/config.json", activation_function=f"torch.nn.modules.{where}.{name}"))
              for where, name in [("linear", "Identity"), ("activation", "ReLU"), ("activation", "GELU"),
                                  ("activation", "SiLU"), ("activation", "Sigmoid")]),
            case("truncated", plus(SENTENCE, truncate_dim=5), without={}),
            *(case(f"chat, {kind}", chat(kind), without={}) for kind in ("flat", "structured")),
            case("chat with a prompt", chat("flat") | plus(SENTENCE, prompts={"p": "Be brief."}, default_prompt_name="p"),
                 without=chat("flat")),
            case("dot", plus(SENTENCE, similarity_fn_name="dot"), keeps_length=True),
            case("both sides", plus(CONFIG, is_causal=False), without={}),
        ],
    ),
    "mistral": dict(
        config=transformers.MistralConfig(**BASE, vocab_size=104, sliding_window=6),
        around=["<bos>"],
        modules=lambda: [st.Pooling(WIDTH, "lasttoken"), st.Normalize()],
        cases=[
            case("as saved", without=plus(CONFIG, sliding_window=None)),
            case("both sides", plus(CONFIG, is_causal=False), without={}),
            case("both sides, all of it", plus(CONFIG, is_causal=False, sliding_window=None),
                 without=plus(CONFIG, is_causal=False)),
        ],
    ),
}  # fmt: skip


def write_tokenizer(folder, around):
    """A byte-level tokenizer without merges: a token a character; `around`: what goes before and after a text."""
    characters = ["Ċ", "Ġ", *map(chr, range(33, 127))]
    vocab = {token: id for id, token in enumerate(SPECIALS + characters)}
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    added = [
        dict(
            id=id,
            content=token,
            special=True,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=False,
        )
        for id, token in enumerate(SPECIALS)
    ]
    single = [{"SpecialToken": {"id": token, "type_id": 0}} for token in around]
    before = 1 if around[:1] == ["<bos>"] else 0
    single.insert(before, {"Sequence": {"id": "A", "type_id": 0}})
    template = dict(
        type="TemplateProcessing", single=single, pair=[*single, {"Sequence": {"id": "B", "type_id": 1}}],
        special_tokens={token: dict(id=token, ids=[vocab[token]], tokens=[token]) for token in around},
    )  # fmt: skip
    text = dict(
        version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=byte_level,
        post_processor=template if around else None, decoder=byte_level,
        model=dict(type="BPE", unk_token="<unk>", vocab=vocab, merges=[]),
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(text, ensure_ascii=False, indent=0))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=1024, pad_token="<pad>",
                    eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def fill(module, name):
    """Seeded weights, large enough that a mistake anywhere moves the vectors, and exact in bfloat16."""
    torch.manual_seed(zlib.crc32(name.encode()))
    for key, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape)
        is_norm = "norm" in key and key.endswith("weight")
        weight = 0.2 * noise + (0 if "gemma" in name else 1) if is_norm else 0.3 * noise
        parameter.data = (3 * weight if "embed_tokens" in key else weight).bfloat16().float()


def build(name, row, folder):
    """The checkpoint, as sentence-transformers saves it."""
    with tempfile.TemporaryDirectory() as scratch:
        inner = Path(scratch) / "transformer"
        model = transformers.AutoModel.from_config(row["config"]).eval()
        fill(model, name)
        model.bfloat16().save_pretrained(inner)
        write_tokenizer(inner, row["around"])
        rest = row["modules"]()
        for index, module in enumerate(rest):
            fill(module, f"{name} {index}")
        transformer = st.Transformer(str(inner), model_kwargs=dict(dtype=torch.bfloat16))
        whole = SentenceTransformer(modules=[transformer, *rest], device="cpu", **row.get("settings", {}))
        whole.save(str(folder), create_model_card=False)
    # What saving adds and changes is not ours to test.
    write_tokenizer(folder, row["around"])
    if row.get("extra"):
        add_modules(folder)
    if row.get("gguf"):
        write_gguf(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def add_modules(folder):
    """Modules that only some cases name."""
    modules = [
        ("5_Dense", st.Dense(WIDTH, 12)),
        ("6_LayerNorm", st.LayerNorm(12)),
        ("7_Dense", st.Dense(WIDTH, 12, use_residual=True)),
    ]
    for path, module in modules:
        (folder / path).mkdir()
        fill(module, path)
        module.save(str(folder / path))


def write_gguf(folder):
    """As llama.cpp's converter writes it with --sentence-transformers-dense-modules."""
    config, arch = transformers.AutoConfig.from_pretrained(folder), "gemma-embedding"
    w = gguf.GGUFWriter(folder / "model.gguf", arch)
    write_shape(w, config, arch)
    write_rope(w, config, arch)
    # transformers has halved its own.
    w.add_sliding_window(json.loads((folder / "config.json").read_text())["sliding_window"])
    w.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    w.add_pooling_type(gguf.PoolingType.MEAN)
    tokens = [*SPECIALS, "\u010a", "\u0120", *map(chr, range(33, 127)), "ab", *(f"<{n}>" for n in range(3))]
    special = [gguf.TokenType.CONTROL] * len(SPECIALS)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([*special, *[gguf.TokenType.NORMAL] * (len(tokens) - len(special))])
    w.add_token_merges(["a b"])
    w.add_bos_token_id(SPECIALS.index("<bos>"))
    w.add_eos_token_id(SPECIALS.index("<eos>"))
    w.add_add_bos_token(True)
    w.add_add_eos_token(True)
    write_tensors(w, config, arch, folder, widen=False)
    for number in (2, 3):
        weights = load_file(folder / f"{number}_Dense/model.safetensors")
        add(w, f"dense_{number}.weight", weights["linear.weight"])
        w.add_dense_features_dims(f"dense_{number}", *weights["linear.weight"].shape[::-1])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def vectors(folder, files):
    """What `encode` gives for the folder with these files."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        shutil.copytree(folder, copy)
        write(copy, files)
        model = SentenceTransformer(str(copy), device="cpu", model_kwargs=dict(dtype=torch.float32))
        return model.encode(TEXTS, batch_size=1, show_progress_bar=False, convert_to_numpy=True)


def write(folder, files):
    for name, content in files.items():
        path = folder / name.lstrip("+")
        path.parent.mkdir(exist_ok=True)
        known = json.loads(path.read_text()) if name.startswith("+") else {}
        path.write_text(json.dumps({**known, **content} if known else content))


def make(name, row, out):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    build(name, row, folder)
    cases = []
    for it in row["cases"]:
        found = vectors(folder, it["files"])
        if it["without"] is not None:
            other = vectors(folder, it["without"])
            moved = abs(found - other).max() if found.shape == other.shape else float("inf")
            assert moved > 1e-2, f"{name}, {it['name']}: the vectors move by {moved} only"
        rounded = [[float(f"{value:.8g}") for value in vector] for vector in found]
        cases.append(
            dict(name=it["name"], files=it["files"], keeps_length=it["keeps_length"], vectors=rounded)
        )
    lines = ",\n".join(json.dumps(it) for it in cases)
    (folder / "golden.json").write_text(f'{{"texts": {json.dumps(TEXTS)},\n"cases": [\n{lines}\n]}}\n')
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024
    return f"{name:8} {len(cases):2} cases, {size} KB"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/embed")
    parser.add_argument("--only", nargs="*", help="names of models (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, row in MODELS.items():
        if not args.only or name in args.only:
            print(make(name, row, args.out), flush=True)


if __name__ == "__main__":
    sys.exit(main())

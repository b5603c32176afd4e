"""``train_kwargs`` of DSPy as arguments of ``Model.train``: in its own names, and in those that users bring
from TRL, peft, OpenAI's API and DSPy's LocalProvider.

Each name is one of ours, stands for one of ours, or is known to change nothing at the values that it may
have; whatever else is an error that says what was probably meant.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import arguments
from ..errors import InvalidRequestError
from ..model import Model


class Read(NamedTuple):
    """What was read."""

    #: Arguments of ``Model.train``.
    options: dict[str, Any]
    #: What only the model and the rows can judge: where to train, and the longest row in tokens.
    device: str | None = None
    longest: int | None = None


def _as_it_is(name: str, value: Any) -> Any:
    return value


def _whole(name: str, value: Any) -> Any:
    """Transformers has numbers of epochs as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _targets(name: str, value: Any) -> Any:
    return "all" if value == "all-linear" else value


def _steps(name: str, value: Any) -> Any:
    return None if value == -1 else value


def _precision(name: str, value: Any) -> Any:
    return "bfloat16" if arguments.boolean(name, value) else "float32"


def _bar(name: str, value: Any) -> Any:
    return not arguments.boolean(name, value)


#: Names of others: ours, and how the value is read.
RENAMED: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "num_train_epochs": ("epochs", _whole),
    "n_epochs": ("epochs", _whole),
    "batch_size": ("batch", _as_it_is),
    "r": ("rank", _as_it_is),
    "lora_alpha": ("alpha", _as_it_is),
    "target_modules": ("targets", _targets),
    "output_dir": ("output", _as_it_is),
    "max_steps": ("max_steps", _steps),
    "warmup_ratio": ("warmup", _as_it_is),
    "bf16": ("precision", _precision),
    "disable_tqdm": ("progress", _bar),
}
#: A batch is their product.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
#: Schedules of transformers: ours, and the warm-up where the name says that there is none.
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"schedule": "linear"},
    "constant": {"schedule": "constant", "warmup": 0.0},
    "constant_with_warmup": {"schedule": "constant"},
}


class Unchanged(NamedTuple):
    """A name that changes nothing."""

    #: The values at which that is so; None: all of them.
    values: tuple[Any, ...] | None
    #: Why it is so, and why no other value is possible.
    why: str


_LOSS = Unchanged((True, None), "the loss is on the answer's tokens alone, always")
_LINES = Unchanged(None, "progress is shown, and can be read from the job")
_PLAIN = "what is trained is a plain LoRA adapter"
UNCHANGED: dict[str, Unchanged] = {
    "use_peft": Unchanged((True,), "what is trained is an adapter, never the model's own weights"),
    "packing": Unchanged((True, False), "rows are batched as they are; what they share is computed once"),
    "use_rslora": Unchanged((False,), f"{_PLAIN}; choose alpha instead"),
    "use_dora": Unchanged((False,), _PLAIN),
    "bias": Unchanged(("none",), f"{_PLAIN}, without biases"),
    "task_type": Unchanged(("CAUSAL_LM",), "the model writes text"),
    "init_lora_weights": Unchanged((True,), f"{_PLAIN}: A starts at random and B at zero"),
    "lora_dropout": Unchanged((0,), "there is no dropout; eval= watches for overfitting"),
    "fp16": Unchanged((False, None), 'numbers are bfloat16 or, with precision="float32", float32'),
    "gradient_checkpointing": Unchanged((True, False), "what is kept for the way back follows train_memory"),
    "optim": Unchanged(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "the optimizer is AdamW"),
    "adam_beta1": Unchanged((0.9,), "AdamW has its usual constants"),
    "adam_beta2": Unchanged((0.999,), "AdamW has its usual constants"),
    "adam_epsilon": Unchanged((1e-8,), "AdamW has its usual constants"),
    "completion_only_loss": _LOSS,
    "assistant_only_loss": _LOSS,
    "logging_steps": _LINES,
    "logging_strategy": _LINES,
    "logging_dir": _LINES,
    "report_to": Unchanged(("none", None), "nothing is sent anywhere; read the job's events"),
    "save_strategy": Unchanged(("no", None), "the adapter is saved at its end"),
    "push_to_hub": Unchanged((False,), "nothing is sent anywhere"),
    "dataloader_num_workers": Unchanged(None, "the rows are in memory"),
    "dataset_num_proc": Unchanged(None, "the rows are in memory"),
    "remove_unused_columns": Unchanged((True, False), "rows have messages, and nothing else"),
}
#: What the model and the rows decide, by any of these names.
_LONGEST = ("max_seq_length", "max_length")
#: The arguments of ``Model.train``.
OURS = tuple(name for name in inspect.signature(Model.train).parameters if name not in ("self", "rows"))


def read(given: object) -> Read:
    """Reads names and spellings; the values themselves are for ``Model.train`` to judge."""
    if not isinstance(given, Mapping):
        arguments.wrong_type("train_kwargs", given, "a dict")
    options: dict[str, Any] = {}
    said: dict[str, str] = {}  # ours -> by which name it was given

    def put(name: str, found: dict[str, Any]) -> None:
        for ours, value in found.items():
            if ours in said:
                raise InvalidRequestError(
                    f"train_kwargs has {said[ours]!r} and {name!r}, which both say {ours}; give one of them"
                )
            said[ours], options[ours] = name, value

    for name, value in given.items():
        if name not in (*BATCH, *_LONGEST, "device"):
            put(name, _one(name, value))
    batch = [name for name in BATCH if name in given]
    if batch:
        counts = [arguments.integer(name, given[name], 1, arguments.MAX_COUNT) for name in batch]
        put(" * ".join(batch), {"batch": math.prod(counts)})
    longest = next((given[name] for name in _LONGEST if given.get(name) is not None), None)
    if longest is not None:
        arguments.integer("max_seq_length", longest, 1, arguments.MAX_COUNT)
    device = given.get("device")
    return Read(options, None if device is None else arguments.text("device", device), longest)


def _one(name: Any, value: Any) -> dict[str, Any]:
    if name in RENAMED:
        ours, convert = RENAMED[name]
        return {ours: convert(f"train_kwargs[{name!r}]", value)}
    if name == "lr_scheduler_type":
        value = getattr(value, "value", value)  # an enum of transformers
        return SCHEDULES[arguments.choice("lr_scheduler_type", value, tuple(SCHEDULES))]
    if name in UNCHANGED:
        values, why = UNCHANGED[name]
        if values is not None and value not in values:
            raise InvalidRequestError(f"train_kwargs[{name!r}] is {value!r}, but {why}")
        return {}
    if name in OURS:
        return {name: value}
    others = [*RENAMED, *BATCH, "lr_scheduler_type", *_LONGEST, "device", *UNCHANGED]
    arguments.unknown("train_kwargs", str(name), OURS, others)

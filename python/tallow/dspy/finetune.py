"""Rows to train on, as DSPy's adapters write them: also for JSONAdapter, which DSPy cannot format.

An answer is written as the grammar will have it when the model is asked: what it learns is what it may say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy.adapters.utils import serialize_for_json  # type: ignore[import-untyped]

from .. import arguments
from ..errors import InvalidRequestError


class JSONAdapter(dspy.JSONAdapter):  # type: ignore[misc]
    """``dspy.JSONAdapter`` with which ``BootstrapFinetune`` works: as ``adapter=`` of that, or configured."""

    def format_finetune_data(
        self,
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
        outputs: dict[str, Any],
    ) -> dict[str, list[Any]]:
        """One row: the messages that ask, and the answer."""
        return _json_row(self, signature, demos, inputs, outputs)


def finetune_rows(
    program: dspy.Module, examples: Iterable[Any], *, adapter: Any = None, exclude_demos: bool = False
) -> list[dict[str, list[Any]]]:
    """Rows for ``Model.train`` and ``lm.finetune``: what the program asks, and what is to be answered.

    ``examples`` have the labels to learn, for a ``program`` with one predictor; or they are what DSPy's
    ``bootstrap_trace_data`` returns, for any program: then the answers are those of the trace.

    - ``adapter``: how it is written; None is the one that is configured, or ChatAdapter.
    - ``exclude_demos``: leave the predictor's demos out, as it must be asked without them then, too.
    """
    write = adapter or dspy.settings.adapter or dspy.ChatAdapter()
    if not isinstance(write, dspy.Adapter):
        arguments.wrong_type("adapter", write, "an adapter of DSPy")
    rows = []
    for at, example in enumerate(examples):
        for predictor, inputs, outputs in _calls(program, example, f"examples[{at}]"):
            demos = [] if exclude_demos else predictor.demos
            rows.append(_row(write, predictor.signature, demos, inputs, outputs))
    if not rows:
        raise InvalidRequestError("examples is empty; give at least one example")
    return rows


def _row(adapter: Any, signature: Any, demos: Any, inputs: Any, outputs: Any) -> dict[str, list[Any]]:
    if isinstance(adapter, dspy.JSONAdapter):
        return _json_row(adapter, signature, demos, inputs, outputs)
    try:
        row: dict[str, list[Any]] = adapter.format_finetune_data(
            signature=signature, demos=demos, inputs=inputs, outputs=outputs
        )
    except (NotImplementedError, AttributeError) as error:
        raise InvalidRequestError(
            f"{type(adapter).__name__} cannot write rows to train on; Chat, XML and JSON adapters can"
        ) from error
    return row


def _json_row(adapter: Any, signature: Any, demos: Any, inputs: Any, outputs: Any) -> dict[str, list[Any]]:
    messages = adapter.format(signature=signature, demos=demos, inputs=inputs)
    answer = {name: outputs.get(name) for name in signature.output_fields}
    # On one line, as the grammar wants it.
    text = json.dumps(serialize_for_json(answer), ensure_ascii=False)
    return {"messages": [*messages, {"role": "assistant", "content": text}]}


def _calls(program: dspy.Module, example: Any, name: str) -> Iterable[tuple[Any, Any, Any]]:
    """Predictor, inputs and outputs of each call."""
    if isinstance(example, Mapping) and "trace" in example:
        yield from example["trace"]
        return
    if not isinstance(example, dspy.Example):
        arguments.wrong_type(name, example, "a dspy.Example, or an item of bootstrap_trace_data")
    predictors = program.predictors()
    if len(predictors) != 1:
        raise InvalidRequestError(
            f"the program has {len(predictors)} predictors, and an example does not say what each answers; "
            "give what bootstrap_trace_data returns"
        )
    signature = predictors[0].signature
    for field in signature.fields:
        if field not in example:
            raise InvalidRequestError(f"{name} has no {field!r}; a row needs all inputs and all outputs")
    yield (
        predictors[0],
        {field: example[field] for field in signature.input_fields},
        {field: example[field] for field in signature.output_fields},
    )

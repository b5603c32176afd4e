#!/usr/bin/env bash
# dspy.BootstrapFinetune(metric=...) keeps the teacher's answers that the metric accepts and trains on them.
#
# Usual guess: an answer that does not parse is no answer that a metric accepts, and is left out; a metric between 0 and 1 needs a
#   threshold.
# Seen (dspy 3.4.1): a row is kept if its score is true in Python's sense. An answer out of form gets the score -1, which is true, and
#   has no fields: one among hundreds ends the run with an AttributeError, after all calls were paid for. And a score of 0.01 is true
#   as well: of a metric such as F1 all but the exact zeros are trained on.
#
# Output seen:
#   scores 0, 0.01, 0.5, 1: 3 rows of 4
#   one answer of 4 out of form: AttributeError: 'FailedPrediction' object has no attribute 'get'
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import contextlib
import io
import logging

import dspy
from dspy.clients.provider import Provider
from dspy.lm15 import Message, Response, TextPart, Usage

logging.disable(logging.INFO)
quiet = contextlib.redirect_stdout(io.StringIO())  # no progress bars


class Engine:
    def __init__(self, say):
        self.say, self.calls = say, 0

    def complete(self, request):
        self.calls += 1
        message = Message.assistant([TextPart(self.say(request.messages[-1].text))])
        usage = Usage(input_tokens=0, output_tokens=0, total_tokens=0)
        return Response(id=None, model="mine", message=message, finish_reason="stop", usage=usage)


class Trainer(Provider):
    def __init__(self):
        super().__init__()
        self.finetunable, self.rows = True, 0

    def finetune(self, job, model, train_data, train_data_format, train_kwargs=None):
        self.rows = len(train_data)
        return model


class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)


def run(say, metric):
    program, trainer = Program(), Trainer()
    program.set_lm(dspy.LM("mine/model", engine=Engine(say), provider=trainer, cache=False))
    examples = [dspy.Example(question=f"Number {n}?").with_inputs("question") for n in range(4)]
    try:
        with quiet:
            dspy.BootstrapFinetune(metric=metric).compile(program, trainset=examples)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return trainer.rows


good = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
scores = {"Number 0?": 0.0, "Number 1?": 0.01, "Number 2?": 0.5, "Number 3?": 1.0}
rows = run(lambda prompt: good, lambda example, *_: scores[example.question])
error = run(lambda prompt: "I do not know." if "Number 2?" in prompt else good, lambda *_: 1.0)
print(f"scores 0, 0.01, 0.5, 1: {rows} rows of 4")
print(f"one answer of 4 out of form: {error}")
raise SystemExit((rows, str(error).partition(":")[0]) != (3, "AttributeError"))
PY
LITELLM_LOCAL_MODEL_COST_MAP=true DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"

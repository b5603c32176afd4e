#!/usr/bin/env bash
# dspy.BootstrapFinetune(multitask=False) trains a model for each predictor of a program, on the calls which that predictor made.
#
# Usual guess: which predictor made a call is taken from the trace, which names it.
# Seen (dspy 3.4.1): the n-th call of a run goes to the n-th predictor as the program declares them. Where __init__ names them in
#   another order than forward calls them, each is trained on the other's rows, and nothing is said. So it is where a predictor is
#   called twice; calls beyond the number of predictors are left out. With multitask=True, the default, all rows go to one model.
#
# Output seen:
#   declared  answer, plan
#   called    plan, answer
#   the predictor 'answer' was trained to write: plan
#   the predictor 'plan' was trained to write: answer
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
    """Its model is named after what the rows teach to write."""

    def __init__(self):
        super().__init__()
        self.finetunable = True

    def finetune(self, job, model, train_data, train_data_format, train_kwargs=None):
        return "mine/" + "+".join(sorted({row["messages"][-1]["content"].split()[2] for row in train_data}))


class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question, plan -> answer")
        self.plan = dspy.Predict("question -> plan")

    def forward(self, question):
        return self.answer(question=question, plan=self.plan(question=question).plan)


def say(prompt):
    called.append("plan" if "starting with the field `[[ ## plan ## ]]`" in prompt else "answer")
    return f"[[ ## {called[-1]} ## ]]\nyes\n\n[[ ## completed ## ]]"


called, program = [], Program()
program.set_lm(dspy.LM("mine/model", engine=Engine(say), provider=Trainer(), cache=False))
example = dspy.Example(question="What is it?").with_inputs("question")
optimizer = dspy.BootstrapFinetune(metric=lambda *_: 1.0, multitask=False, num_threads=2)
with quiet:
    optimizer.compile(program, trainset=[example])
taught = {name: predictor.lm.model.removeprefix("mine/") for name, predictor in program.named_predictors()}
print("declared ", ", ".join(taught))
print("called   ", ", ".join(called))
for name, fields in taught.items():
    print(f"the predictor {name!r} was trained to write: {fields}")
raise SystemExit((called, taught) != (["plan", "answer"], {"answer": "plan", "plan": "answer"}))
PY
LITELLM_LOCAL_MODEL_COST_MAP=true DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"

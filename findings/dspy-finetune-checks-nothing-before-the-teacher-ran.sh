#!/usr/bin/env bash
# dspy.BootstrapFinetune runs the teacher over the whole training set, which costs the most, and trains on what it answered.
#
# Usual guess: what can be known before is checked before. compile() begins with all_predictors_have_lms(student), and whether an
#   adapter can write training rows is known from the start.
# Seen (dspy 3.4.1): the result of that call is dropped. A program under dspy.configure(lm=...), which runs but has no LM of its own
#   (program.set_lm), is refused after the last example; so is JSONAdapter, whose format_finetune_data raises a NotImplementedError
#   without a word.
#
# Output seen:
#   no set_lm    calls: 20, then ValueError: Predictor 0 does not have an LM assigned.
#   JSONAdapter  calls: 20, then NotImplementedError:
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


class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)


def run(reply, own, adapter):
    engine, program = Engine(lambda prompt: reply), Program()
    lm = dspy.LM("mine/model", engine=engine, cache=False)
    if own:
        program.set_lm(lm)
    try:
        with quiet, dspy.context(lm=lm, adapter=adapter):
            dspy.BootstrapFinetune(metric=lambda *_: 1.0).compile(program, trainset=examples)
    except Exception as error:
        return engine.calls, type(error).__name__, str(error)
    return engine.calls, "nothing", ""


examples = [dspy.Example(question=f"Number {n}?").with_inputs("question") for n in range(20)]
seen = {
    "no set_lm": run("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]", False, None),
    "JSONAdapter": run('{"answer": "yes"}', True, dspy.JSONAdapter()),
}
for name, (calls, error, said) in seen.items():
    print(f"{name:11}  calls: {calls}, then {error}: {said.partition('. ')[0]}{'.' if said else ''}".rstrip())
raise SystemExit([found[:2] for found in seen.values()] != [(20, "ValueError"), (20, "NotImplementedError")])
PY
LITELLM_LOCAL_MODEL_COST_MAP=true DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"

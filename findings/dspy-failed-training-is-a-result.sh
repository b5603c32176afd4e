#!/usr/bin/env bash
# lm.finetune(...) returns a dspy.clients.provider.TrainingJob, which is a concurrent.futures.Future.
#
# Usual guess: it behaves as a Future: a failed job raises from result() and has an exception(); cancel() says whether it cancelled,
#   and what was cancelled is quiet afterwards.
# Seen (dspy 3.4.1): the error of a failed job is its result: result() returns it, exception() is None, so that `lm = job.result()`
#   succeeds. cancel() returns None whether or not it did anything; the training goes on, and its thread dies of InvalidStateError when
#   it is done.
#
# Output seen:
#   failed job: result() returned RuntimeError('no memory'), exception() is None
#   cancelled job: cancel() returned None, cancelled() is True, still trains: True
#   and when it is done its thread dies of: InvalidStateError
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import logging
import threading

import dspy
from dspy.clients.provider import Provider
from dspy.lm15 import Message, Response, TextPart, Usage

logging.disable(logging.CRITICAL)


class Engine:
    def __init__(self, say):
        self.say, self.calls = say, 0

    def complete(self, request):
        self.calls += 1
        message = Message.assistant([TextPart(self.say(request.messages[-1].text))])
        usage = Usage(input_tokens=0, output_tokens=0, total_tokens=0)
        return Response(id=None, model="mine", message=message, finish_reason="stop", usage=usage)


class Trainer(Provider):
    def __init__(self, train):
        super().__init__()
        self.finetunable, self.train = True, train

    def finetune(self, job, model, train_data, train_data_format, train_kwargs=None):
        self.train()
        return model


def start(train):
    lm = dspy.LM("mine/model", engine=Engine(str), provider=Trainer(train), cache=False)
    return lm.finetune(train_data=[], train_data_format="chat")


def fail():
    raise RuntimeError("no memory")


failed = start(fail)
failed.thread.join()
returned = failed.result()
print(f"failed job: result() returned {returned!r}, exception() is {failed.exception()}")

deaths, gate = [], threading.Event()
threading.excepthook = lambda death: deaths.append(death.exc_type.__name__)
cancelled = start(gate.wait)
said, state, alive = cancelled.cancel(), cancelled.cancelled(), cancelled.thread.is_alive()
gate.set()
cancelled.thread.join()
print(f"cancelled job: cancel() returned {said}, cancelled() is {state}, still trains: {alive}")
print("and when it is done its thread dies of:", *deaths)
seen = (type(returned), failed.exception(), said, state, alive, deaths)
raise SystemExit(seen != (RuntimeError, None, None, True, True, ["InvalidStateError"]))
PY
LITELLM_LOCAL_MODEL_COST_MAP=true DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"

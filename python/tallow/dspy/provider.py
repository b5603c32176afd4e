"""Fine-tuning for DSPy in this process: what ``BootstrapFinetune`` and ``lm.finetune`` call.

``Provider`` trains an adapter for the Model of its LM and names it; DSPy then makes the tuned LM, a copy that
answers with the adapter. Nothing is started or ended for it: the engine answers while it trains, and the LM,
its copies and its tuned copies go on sharing one.

A ``TrainingJob`` is a future that can be cancelled, says how far it is, and raises what failed.
"""

from __future__ import annotations

import datetime
import os
import secrets
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from dspy.clients import provider as theirs  # type: ignore[import-untyped]
from dspy.clients.utils_finetune import (  # type: ignore[import-untyped]
    TrainDataFormat,
    TrainingStatus,
    get_finetune_directory,
)

from .. import _log, arguments
from .. import rows as rows_
from ..adapter import Adapter
from ..errors import Error, InvalidRequestError
from ..model import Model
from . import adapted, train_kwargs

if TYPE_CHECKING:
    from ..training import Training


class TrainingJob(theirs.TrainingJob):  # type: ignore[misc]
    """A training that DSPy has started: a future of the tuned LM.

    ``training`` is the ``Training`` behind it, once its rows are read: iterate that for progress.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.training: Training | None = None
        #: Whose jobs Ctrl-C ends together.
        self.starter = threading.get_ident()
        self.of: Model | None = None
        _jobs.add(self)

    def status(self) -> TrainingStatus:
        """As DSPy names it; "running" has made a step, and "pending" may wait for another training of the
        same model."""
        if self.cancelled():
            return TrainingStatus.cancelled
        if self.done():
            return TrainingStatus.failed if self.exception() else TrainingStatus.succeeded
        if self.training is not None and self.training.history:
            return TrainingStatus.running
        started = self.thread is not None and self.thread.ident is not None
        return TrainingStatus.pending if started else TrainingStatus.not_started

    def cancel(self) -> bool:
        """Ends the training at its next step; False if it was over. Who waits for the result gets
        ``CancelledError``."""
        cancelled = bool(Future.cancel(self))
        if cancelled and self.training is not None:
            self.training.cancel()
        return cancelled

    def result(self, timeout: float | None = None) -> Any:
        """The tuned LM, or what failed is raised; after ``timeout`` seconds TimeoutError. Ctrl-C while
        waiting ends this training, and those of the same model that this thread has started and that wait
        for their turn."""
        try:
            return super().result(timeout)
        except KeyboardInterrupt:
            for job in list(_jobs):
                together = self.of is not None and (job.of, job.starter) == (self.of, self.starter)
                if job is self or together:
                    job.cancel()
            raise

    def set_result(self, result: Any) -> None:
        """DSPy sets what failed as the ``result``, and sets it again if that fails; here it is an exception,
        and a job that was cancelled stays so."""
        if self.cancelled():
            return
        if isinstance(result, BaseException):
            self.set_exception(result)
        else:
            super().set_result(result)

    def _follow(self, training: Training) -> Adapter:
        """Waits for the training; its adapter."""
        self.training = training
        if self.cancelled():  # before there was a training to tell
            training.cancel()
        return training.result()


#: Those that somebody still holds.
_jobs: weakref.WeakSet[TrainingJob] = weakref.WeakSet()


class Provider(theirs.Provider):  # type: ignore[misc]
    """Trains adapters for ``model`` in this process, for DSPy. ``tallow.LM`` makes its own, so nobody has
    to."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not isinstance(model, Model):
            arguments.wrong_type("model", model, "a tallow.Model")
        self.model = model
        self.finetunable = True
        self.TrainingJob = TrainingJob

    def launch(self, lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Starts the engine of ``lm``, if it does not run. There are no ``launch_kwargs``."""
        if launch_kwargs:
            raise InvalidRequestError("launch_kwargs are for a server, and there is none; leave them out")
        self.model._shared.engine()

    def kill(self, lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing, whatever the ``launch_kwargs``: DSPy kills an ``lm`` before it trains it and after it has
        tuned it, and its copies answer by the same engine. ``lm.close()`` ends that."""

    def finetune(
        self,
        job: TrainingJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: TrainDataFormat | str | None,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Trains what the string ``model`` names on ``train_data`` (rows, in the ``train_data_format``), with
        the settings in ``train_kwargs``; returns the string of the LM that answers with the new adapter.
        ``job`` is told of it."""
        job.of = self.model
        try:
            return self._trained(job, model, train_data, train_data_format, train_kwargs or {})
        except Exception:
            raise
        except BaseException as error:  # DSPy's thread would die of it, and whoever waits would wait for ever
            raise Error(f"the training ended with {type(error).__name__}: {error}") from error

    def _trained(
        self,
        job: TrainingJob,
        model: str,
        data: list[dict[str, Any]],
        form: TrainDataFormat | str | None,
        given: dict[str, Any],
    ) -> str:
        before = adapted.named(self.model, model)
        rows = _rows(data, form)
        read = train_kwargs.read(given)
        _check_device(self.model, read.device)
        _check_lengths(self.model, rows, read)
        if before is not None:
            _log.warning(
                "a training begins at the model and not at adapter %r, with which %s answers: what only that "
                "one has learned is lost; give all rows that are to be learned",
                before.name,
                self.model.name,
            )
        options = {**read.options}
        if options.get("output") is None:
            options["output"] = _new_folder(self.model)
        adapter = job._follow(self.model.train(rows, **options))
        _log.info("adapter %r is in %s", adapter.name, options["output"])
        return adapted.model_string(self.model, adapter, cached=self.model._shared.exact)


# Rows


def _rows(data: Any, form: TrainDataFormat | str | None) -> list[dict[str, Any]]:
    form = TrainDataFormat.CHAT if form is None else form
    if form not in (TrainDataFormat.CHAT, TrainDataFormat.COMPLETION):
        arguments.wrong_value("train_data_format", str(form), '"chat" or "completion"')
    if not isinstance(data, Sequence) or isinstance(data, str):
        arguments.wrong_type("train_data", data, "a list of rows")
    if not data:
        raise InvalidRequestError(
            "there is nothing to train on: the trainset is empty, or the metric accepted none of the "
            "teacher's answers; try a better teacher, or more examples"
        )
    wanted = {"messages"} if form == TrainDataFormat.CHAT else {"prompt", "completion"}
    for at, row in enumerate(data):
        if not isinstance(row, Mapping) or set(row) != wanted:
            arguments.wrong_type(f"train_data[{at}]", row, f"a dict of {' and '.join(sorted(wanted))}")
    return [dict(row) for row in data]


def _check_device(model: Model, device: str | None) -> None:
    if device is not None and device.partition(":")[0] != model.device.partition(":")[0]:
        arguments.wrong_value("device", device, f"{model.device!r}, where the model is")


def _check_lengths(model: Model, rows: list[dict[str, Any]], read: train_kwargs.Read) -> None:
    """Other trainers cut a row at the length; here that length must change nothing."""
    if read.longest is None or read.longest >= model.context_length:
        return
    longest = max(len(ids) for ids, _ in rows_.prepared(model._native, rows, too_long="skip").examples)
    if longest > read.longest:
        raise InvalidRequestError(
            f"a row has {longest} tokens, and max_seq_length is {read.longest}; rows are never cut: leave "
            "max_seq_length out, or the row"
        )


def _new_folder(model: Model) -> str:
    """A folder that is not there yet, where DSPy keeps what it trains (``DSPY_FINETUNEDIR``)."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = "".join(one if one.isalnum() or one in "-." else "-" for one in model.name)
    return os.path.join(get_finetune_directory(), f"tallow-{name}-{now}-{secrets.token_hex(3)}")

"""Asking several engines, each in a worker with a share of a machine of a Ray cluster.

What is asked together is planned before it is shared, so that the answers are those of one engine;
they arrive here one batch after the other, where they are stored.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbench import __version__
from fedbench.data.templates import Template
from fedbench.errors import ConfigError, FedbenchError
from fedbench.generation.backend import (
    Answered,
    Batch,
    Checkpoint,
    Constraint,
    Job,
    Question,
    Request,
    Written,
)
from fedbench.generation.opening import Engine
from fedbench.generation.prompts import Prompts
from fedbench.generation.ray.cluster import Cluster
from fedbench.generation.ray.shares import Shares
from fedbench.generation.ray.slot import Slot, placed, placed_base
from fedbench.generation.ray.worker import Order, Told, Worker
from fedbench.model_config import ModelConfig

START_SECONDS = 600.0
"""How long workers may take to start where none is left that answers."""
_CLOSE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class RayBackend:
    """One backend made of several, each in a process of its own."""

    def __init__(
        self, base: str, model: ModelConfig, checkpoints: Sequence[Checkpoint], engine: Engine
    ) -> None:
        """Start the workers, and wait until they have told what they are.

        Args:
            base: directory or hub id of the base model.
            model: dtype, device, quantization and attention kernel.
            checkpoints: that will be asked.
            engine: the backend of each worker, and how many there are.

        Raises:
            ConfigError: the cluster has no room for them, or they differ.
            CheckpointError: a worker cannot read the base or a checkpoint.
            MissingExtraError: Ray is not installed.
        """
        assert engine.workers is not None
        self.name, self.base_hash = "", ""  # as the first worker tells
        self._model, self._base, self._options = model, base, engine.options
        self.num_halved = 0
        """Batches that did not fit into memory; known when it is closed."""
        self.report: list[str] = []
        """Which machines answered, and how long serving took; known when it is closed."""
        self._num_answered = 0
        self._slots: list[Slot] = []
        workers = engine.workers
        self._cluster = Cluster.join(
            workers.ray_address, math.ceil(workers.workers * workers.worker_cpus)
        )
        self._ray = self._cluster.ray
        try:
            share = self._share(engine)
            order = self._order(engine, checkpoints, on_gpu=share["num_gpus"] > 0)
            for number in range(workers.workers):
                self._slots.append(Slot(self._ray, number, lambda: self._start(order, share)))
            while any(slot.told is None for slot in self._slots):
                self._receive(None)
        except BaseException:
            self.close()
            raise

    @cached_property
    def prompts(self) -> Prompts:
        """Writes questions as the workers' models read them, for which no weights are needed."""
        from fedbench.base_facts import read_base

        return read_base(self._base, self._model).prompts(self._options.get("max_model_len"))

    def prepare(self, questions: Sequence[Question], template: Template) -> list[Request]:
        """Render and tokenize in this process; a prompt that does not fit loses its start."""
        return self.prompts.prepare(questions, template)

    def prepare_written(self, prompts: Sequence[Written]) -> list[Request]:
        """Tokenize as lm-eval does."""
        return self.prompts.prepare_written(prompts)

    def canaries(self, requests: Sequence[Request]) -> list[Request]:
        """Choices between tokens behind the ends of a few prompts."""
        return self.prompts.canaries(requests)

    def plan(self, requests: Sequence[Request]) -> list[Batch]:
        """As one engine plans; each hears of it, as some decide by it how to serve."""
        batches: list[Batch] = self._of_all("plan", self._ray.put(list(requests)))[0]
        return batches

    def constrains(self, constraint: Constraint) -> bool:
        """Whether the workers' engines see to this form."""
        return all(self._of_all("constrains", constraint))

    def stream(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        """Share the jobs, and give answers as they arrive.

        All jobs are drawn at once, as shares depend on what is left. A worker that dies is started
        again, and what it had not answered is shared anew.

        Raises:
            CheckpointError: a checkpoint cannot be read on a worker's machine.
            FedbenchError: a worker has died twice, or none can be started.
        """
        shares = Shares(jobs, len(self._slots))
        self._start_missing()
        try:
            while True:
                for slot in self._slots:
                    if slot.is_idle and (share := shares.take(slot.number)):
                        slot.ask(share)
                if not shares and not any(slot.is_answering for slot in self._slots):
                    return
                for job, answers in self._receive(shares):
                    self._num_answered += len(answers)
                    yield job, answers
        finally:
            for slot in self._slots:
                if slot.is_answering:  # for nobody any more
                    slot.stop()

    def close(self) -> None:
        """End the workers, and Ray where it was started for them."""
        closing = [slot.actor.close.remote() for slot in self._slots if slot.is_idle]
        if closing:
            done, _ = self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
            for reference in done:
                with contextlib.suppress(self._ray.exceptions.RayError):  # all was answered
                    facts = self._ray.get(reference)
                    self.num_halved += facts["num_halved"]
                    self.report += facts["report"]
        for slot in self._slots:
            slot.stop()
        self._slots = []
        self._cluster.close()

    def _receive(self, shares: Shares | None) -> list[Answered]:
        """Wait for whatever a worker tells next.

        Raises:
            FedbenchError: no worker answers, and none has started for long.
        """
        waiting = [slot for slot in self._slots if slot.waiting is not None]
        patience = None if any(slot.is_answering for slot in self._slots) else START_SECONDS
        ready, _ = self._ray.wait([slot.waiting for slot in waiting], timeout=patience)
        if not ready:
            raise FedbenchError(
                f"no worker has started for {START_SECONDS:.0f} seconds; `ray status` shows what "
                f"the cluster has free. {self._kept()}"
            )
        [slot] = [slot for slot in waiting if slot.waiting is ready[0]]
        answered: list[Answered] = []
        with self._surviving(slot, shares):
            was_starting = slot.told is None
            answered = slot.receive()
            if was_starting and slot.told is not None:
                self._agree(slot.told)
        return answered

    def _of_all(self, method: str, *arguments: Any) -> list[Any]:
        """What the workers say that are there, at least one of them."""
        said: list[Any] = []
        self._start_missing()
        while not said:
            idle = [slot for slot in self._slots if slot.is_idle]
            asked = [(slot, getattr(slot.actor, method).remote(*arguments)) for slot in idle]
            for slot, reference in asked:
                with self._surviving(slot, None):
                    said.append(slot.get(reference))
            if not said:
                self._receive(None)
        return said

    @contextlib.contextmanager
    def _surviving(self, slot: Slot, shares: Shares | None) -> Iterator[None]:
        """Replace a worker that is found dead.

        Raises:
            FedbenchError: it has died before.
        """
        try:
            yield
        except self._ray.exceptions.RayError as error:
            machine = slot.told.machine if slot.told else "an unknown machine"
            slot.num_deaths += 1
            left = slot.stop()
            if shares is not None:
                shares.give_back(left)
                shares.forget(slot.number)
            reason = _reason(error)
            if slot.num_deaths > 1:
                raise FedbenchError(
                    f"worker {slot.number} on {machine} has died twice ({reason}); Ray's logs "
                    "there, in /tmp/ray/session_latest/logs, say more, and fewer workers need less "
                    f"memory. {self._kept()}"
                ) from error
            _log.warning(
                "worker %d on %s has died (%s); starting it again", slot.number, machine, reason
            )
            slot.start()

    def _start_missing(self) -> None:
        """Start those that were stopped because nobody waited for their answers any more."""
        for slot in self._slots:
            if slot.actor is None:
                slot.start()

    def _kept(self) -> str:
        return (
            f"{self._num_answered} answers were given before and are kept: the same command goes "
            "on behind them"
        )

    def _start(self, order: Order, share: dict[str, Any]) -> Any:
        return self._ray.remote(**share)(Worker).remote(order)

    def _share(self, engine: Engine) -> dict[str, Any]:
        """What Ray reserves for each worker.

        Raises:
            ConfigError: the device is another one, or there is no room.
        """
        workers, device = engine.workers, self._model.device
        assert workers is not None
        gpus = workers.worker_gpus
        if gpus is None:
            there = self._cluster.num_gpus > 0 or device == "cuda"
            gpus = _gpus_of(engine) if there and device != "cpu" else 0
        if (device == "cpu" and gpus) or (device == "cuda" and not gpus):
            raise ConfigError(
                f"the device is {device}, but each worker has {gpus:g} GPUs; change --worker-gpus "
                "or the device"
            )
        room = self._cluster.room(workers.worker_cpus, gpus)
        if room < workers.workers:
            raise ConfigError(
                f"{workers.workers} workers with {workers.worker_cpus:g} CPUs and {gpus:g} GPUs "
                f"each are asked for, but the Ray cluster has room for {room}; lower --workers, or "
                "start Ray on more machines (docs/several_gpus.md)"
            )
        return {
            "num_cpus": workers.worker_cpus,
            "num_gpus": gpus,
            "scheduling_strategy": "SPREAD",  # over machines: each has memory of its own
        }

    def _order(self, engine: Engine, checkpoints: Sequence[Checkpoint], *, on_gpu: bool) -> Order:
        return Order(
            base=placed_base(self._base),
            is_directory=Path(self._base).is_dir(),
            model=self._model.model_copy(update={"device": "cuda" if on_gpu else "cpu"}),
            checkpoints=tuple(placed(checkpoint) for checkpoint in checkpoints),
            engine=replace(engine, workers=None),
            node=self._ray.get_runtime_context().get_node_id(),
        )

    def _agree(self, told: Told) -> None:
        """See that a worker answers as the others do; the first says how.

        Raises:
            ConfigError: it would not, as something else is installed on its machine.
        """
        if not self.name:
            self.name, self.base_hash = told.name, told.base_hash
        ours = (self.name, self.base_hash, __version__)
        its = (told.name, told.base_hash, told.fedbench)
        if ours != its:
            raise ConfigError(
                f"worker on {told.machine}: answers as {' '.join(its)}, but others as "
                f"{' '.join(ours)}; put the same packages and the same base model on all machines"
            )


def _gpus_of(engine: Engine) -> int:
    """How many GPUs one engine takes."""
    sizes = [engine.options.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "data")]
    return math.prod(size for size in sizes if isinstance(size, int))


def _reason(error: Exception) -> str:
    """Why Ray holds a worker for dead: what it says last, without its advice."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.partition("Worker exit detail: ")[2][:150] or last[:150]

"""What runs in a worker: one engine on its share of one machine."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench import __version__
from fedbench.errors import CheckpointError, ConfigError, FedbenchError, MissingExtraError
from fedbench.generation.backend import (
    Answer,
    Backend,
    Batch,
    Checkpoint,
    Constraining,
    Constraint,
    Job,
    Request,
)
from fedbench.generation.opening import Engine, open_backend
from fedbench.model_config import ModelConfig
from fedbench.provenance import device
from fedbench.weights import weights_hash


@dataclass(frozen=True)
class Order:
    """What a worker opens; all places are absolute."""

    base: str
    is_directory: bool
    """Whether the base is one where the scoring was started, and no hub id."""
    model: ModelConfig
    checkpoints: tuple[Checkpoint, ...]
    engine: Engine
    node: str
    """Of Ray: the machine on which the checkpoints were read and hashed."""


@dataclass(frozen=True)
class Told:
    """What a worker says of itself."""

    name: str
    """Of its backend."""
    base_hash: str
    fedbench: str
    """Its version."""
    machine: str
    pid: int


class Worker:
    """Answers as `Backend` does; errors name the machine."""

    def __init__(self, order: Order, node: str | None = None) -> None:
        """Open nothing yet: an error here would reach nobody in words.

        Args:
            order: what to open.
            node: the machine of Ray's that this is; None: ask Ray.
        """
        self._order = order
        self._node = node or _own_node()
        self._machine = socket.gethostname()
        self._known: set[Checkpoint] = set()
        self._has_answered = False
        self._backend: Any = None

    def open(self) -> Told:
        """Make the engine ready.

        Raises:
            FedbenchError: what `open_backend` raises, or something is not on this machine.
        """
        order = self._order
        with self._named():
            if order.is_directory:
                self._require(Path(order.base))
            for checkpoint in order.checkpoints:
                if checkpoint.directory is not None:
                    self._require(checkpoint.directory)
            self._backend = open_backend(order.base, order.model, order.checkpoints, order.engine)
            backend: Backend = self._backend
            return Told(backend.name, backend.base_hash, __version__, self._machine, os.getpid())

    def plan(self, requests: Sequence[Request]) -> list[Batch]:
        """As the engine plans."""
        with self._named():
            batches: list[Batch] = self._backend.plan(requests)
            return batches

    def constrains(self, constraint: Constraint) -> bool:
        """Whether the engine holds answers to a form."""
        return isinstance(self._backend, Constraining) and self._backend.constrains(constraint)

    def answer(self, jobs: Sequence[Job]) -> Generator[tuple[int, list[Answer]], None, None]:
        """Answers as they are finished, each with the position of its job.

        Raises:
            CheckpointError: a checkpoint cannot be read, or is another one on this machine.
        """
        positions = {id(job): position for position, job in enumerate(jobs)}
        with self._named():
            for checkpoint in dict.fromkeys(job.checkpoint for job in jobs):
                self._check(checkpoint)
            with contextlib.closing(self._stream(jobs)) as stream:
                for job, answers in stream:
                    self._has_answered = True
                    yield positions[id(job)], answers

    def close(self) -> dict[str, Any]:
        """Let go of the model, and say for the record who answered, and what it has cost."""
        self._backend.close()
        told = [device()] if self._has_answered else []
        told += getattr(self._backend, "report", ())
        return {
            "num_halved": getattr(self._backend, "num_halved", 0),
            "report": [f"worker on {self._machine}: {line}" for line in told],
        }

    def _stream(self, jobs: Iterable[Job]) -> Generator[tuple[Job, list[Answer]], None, None]:
        backend: Backend = self._backend
        return backend.stream(jobs)

    def _check(self, checkpoint: Checkpoint) -> None:
        """See that a directory holds here what it holds where it was hashed.

        Otherwise a stale copy would be stored under the name of the right one.
        """
        if checkpoint.directory is None or checkpoint in self._known:
            return
        self._require(checkpoint.directory)
        if self._node != self._order.node:
            found = weights_hash(checkpoint.directory)
            if found != checkpoint.weights_hash:
                raise CheckpointError(
                    f"{checkpoint.directory}: holds other weights ({found}) than on the machine "
                    f"where the scoring was started ({checkpoint.weights_hash}); copy it anew, or "
                    "use a file system that all machines share"
                )
        self._known.add(checkpoint)

    def _require(self, directory: Path) -> None:
        if not directory.is_dir():
            raise CheckpointError(
                f"{directory}: is not on this machine; workers read models where the command names "
                "them, so put them on a file system that all machines share, under the same path"
            )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say in an error where it was; it has to survive the way to another process."""
        try:
            yield
        except FedbenchError as error:
            # Its constructor takes other arguments than the message that it is restored from.
            kind = ConfigError if isinstance(error, MissingExtraError) else type(error)
            raise kind(f"worker on {self._machine}: {error}") from None


def _own_node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node

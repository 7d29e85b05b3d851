"""Getting answers: from the store, from another process that is asking already, or from a model.

All tasks and all checkpoints go through one queue, from which the backend draws as it has room.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedbench.errors import CheckpointError
from fedbench.generation.backend import Answer, Backend, Batch, Checkpoint, Job, Request
from fedbench.generation.store import AnswerStore, answer_keys
from fedbench.results.record import ModelId

Progress = Callable[[str, int, int], None]
"""(what, batches done, batches in all)"""

_TOGETHER = 64  # jobs of one request that are claimed, and answers that are stored, at a time
_SECONDS = 0.25  # after which answers are stored in any case
_WAIT = 0.2  # seconds between looks at what another process is answering


class Planned(Protocol):
    """A task's requests, and the batches in which they are answered."""

    @property
    def requests(self) -> Sequence[Request]:
        """Shared by all checkpoints."""
        ...

    @property
    def batches(self) -> Sequence[Batch]:
        """Each request is in one of them."""
        ...


@dataclass
class Asking:
    """Asks checkpoints of one base, and keeps every answer.

    Raises:
        CheckpointError: an adapter cannot be loaded, or changes nothing.
        OutputError: the disk is full.
    """

    backend: Backend
    store: AnswerStore
    progress: Progress = lambda what, done, total: None
    allow_inert: bool = False
    prompt_to_store: bool = False
    """Store each answer by itself as it arrives: of answers that are paid for, a kill loses none.
    """
    known: dict[str, Answer] = field(default_factory=dict)
    """By key: what was found or answered."""
    canaries: dict[str, float] = field(default_factory=dict)
    """By model: the mean absolute difference of the log-probabilities that an adapter makes on a
    few prompts, in nats."""
    num_asked: int = 0
    """Requests that were answered by the model, and not found."""

    def ask(
        self, wanted: Sequence[tuple[Checkpoint, Planned]], *, watch: bool = True
    ) -> list[list[Answer]]:
        """The answers of each checkpoint to each task's requests, in the order of both.

        Args:
            wanted: who is asked what.
            watch: see that each adapter changes something, where that is not known yet.
        """
        keys = [self._keys(checkpoint, part.requests) for checkpoint, part in wanted]
        canaries = self._canaries(wanted) if watch else []
        everything = [key for part in keys for key in part]
        everything += [key for canary in canaries for job in canary.jobs for key in job.keys]
        self.known |= self.store.get([key for key in everything if key not in self.known])
        jobs = [job for canary in canaries for job in canary.jobs[:1]]  # the bases
        for (checkpoint, part), of_part in zip(wanted, keys, strict=True):
            jobs += [c.jobs[1] for c in canaries if c.jobs[1].checkpoint == checkpoint]
            if not self.known.keys() >= set(of_part):
                jobs += self._jobs(checkpoint, part, of_part)
        self._answer_all(list(dict.fromkeys(self._open(jobs))), canaries)
        self._check(canaries)
        return [[self.known[key] for key in part] for part in keys]

    def _keys(self, checkpoint: Checkpoint, requests: Sequence[Request]) -> list[str]:
        return answer_keys(checkpoint, requests, self.backend.name)

    def _jobs(self, checkpoint: Checkpoint, part: Planned, keys: Sequence[str]) -> Iterator[Job]:
        for batch in part.batches:
            yield Job(
                checkpoint,
                tuple(part.requests[position] for position in batch.positions),
                tuple(keys[position] for position in batch.positions),
                batch.num_shared,
            )

    def _open(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Jobs with a request that nobody answered; each set of requests once.

        Variants of a task ask the same questions, and every seed has the same base.
        """
        seen: set[tuple[str, ...]] = set()
        for job in jobs:
            if job.keys not in seen and any(key not in self.known for key in job.keys):
                seen.add(job.keys)
                yield job

    def _answer_all(self, jobs: Sequence[Job], canaries: Sequence[Canary]) -> None:
        total = Counter(job.checkpoint for job in jobs)
        done: Counter[Checkpoint] = Counter()
        watched = {job.keys for canary in canaries for job in canary.jobs}
        with _Writer(self.store, self.backend.name, self.prompt_to_store) as writer:
            while jobs:
                left: list[Job] = []
                claimed = self._claimed(jobs, left)
                # Closed whatever happens to us: the stream then takes its weights off the base.
                with contextlib.closing(self.backend.stream(claimed)) as stream:
                    for job, answers in stream:
                        writer.put(job, answers)
                        self.known |= zip(job.keys, answers, strict=True)
                        self.num_asked += len(answers)
                        done[job.checkpoint] += 1
                        what = f"scoring {job.checkpoint.model.label()}"
                        self.progress(what, done[job.checkpoint], total[job.checkpoint])
                        if job.keys in watched:
                            self._check(canaries)
                jobs = left
                if jobs:
                    # The other process may be waiting for what is held back here.
                    writer.flush()
                    time.sleep(_WAIT)

    def _claimed(self, jobs: Sequence[Job], left: list[Job]) -> Iterator[Job]:
        """The jobs that are ours to answer, claimed as they are drawn.

        What another process is asking goes to `left`, what it has answered meanwhile to `known`.
        """
        for together in _together(jobs):
            verdicts = self.store.claim([job.keys for job in together])
            for job, verdict in zip(together, verdicts, strict=True):
                if verdict == "ours":
                    yield job
                elif verdict == "theirs":
                    left.append(job)
                else:
                    found = self.store.get(job.keys)
                    self.known |= found
                    if len(found) < len(set(job.keys)):  # pruned at this very moment
                        left.append(job)

    def _canaries(self, wanted: Sequence[tuple[Checkpoint, Planned]]) -> list[Canary]:
        """For every adapter, what it and its base say to a few prompts of the first task."""
        requests = self.backend.canaries(wanted[0][1].requests) if wanted else []
        canaries = []
        for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in wanted):
            base = base_of(checkpoint)
            if not requests or base is None or checkpoint.kind != "adapter":
                continue
            jobs = [
                Job(asked, tuple(requests), tuple(self._keys(asked, requests)))
                for asked in (base, checkpoint)
            ]
            canaries.append(Canary(jobs))
        return canaries

    def _check(self, canaries: Sequence[Canary]) -> None:
        """Refuse adapters that change nothing, as soon as it is known."""
        for canary in canaries:
            checkpoint = canary.jobs[1].checkpoint
            label = checkpoint.model.label()
            if label in self.canaries:
                continue
            difference = canary.difference(self.known)
            if difference is None:
                continue
            self.canaries[label] = difference
            never_drawn = checkpoint.train_examples == 0  # a client of ours in no round's cohort
            if difference == 0 and not (self.allow_inert or never_drawn):
                raise CheckpointError(
                    f"{checkpoint.directory}: the adapter changes nothing (its log-probabilities "
                    "equal the base model's); it was not trained, or pass --allow-inert to score "
                    "it anyway"
                )


@dataclass(frozen=True)
class Canary:
    """Whether an adapter acts: the same few requests to its base and to itself."""

    jobs: Sequence[Job]
    """Of the base and of the adapter."""

    def difference(self, known: dict[str, Answer]) -> float | None:
        """Mean absolute difference in nats; None while it is not known, or has no numbers."""
        pairs = [
            (one, other)
            for keys in zip(*(job.keys for job in self.jobs), strict=True)
            for one, other in zip(
                *(known.get(key, _NOTHING).loglikelihoods for key in keys), strict=False
            )
        ]
        complete = all(known.get(key, _NOTHING).loglikelihoods for j in self.jobs for key in j.keys)
        return sum(abs(a - b) for a, b in pairs) / len(pairs) if complete and pairs else None


_NOTHING = Answer()


def base_of(checkpoint: Checkpoint) -> Checkpoint | None:
    """The base that a checkpoint was trained from, which the backend has in memory.

    Returns:
        None for a model of anyone's that is its own base: what it was trained from is not known.
    """
    if checkpoint.kind == "base":
        return checkpoint
    if str(checkpoint.directory) == checkpoint.base:
        return None
    return replace(
        checkpoint,
        model=ModelId(method="base", seed=checkpoint.model.seed, model_kind="base", round=0),
        kind="base",
        directory=None,
        weights_hash=checkpoint.base_hash,
    )


class _Writer:
    """Stores answers: a batch at once, single ones a few at a time."""

    def __init__(self, store: AnswerStore, backend: str, at_once: bool) -> None:
        self._store = store
        self._backend = backend
        self._at_once = at_once
        self._held: dict[str, dict[str, Answer]] = {}
        self._since = time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def put(self, job: Job, answers: Sequence[Answer]) -> None:
        """Failures are not kept: they are asked for again by the next run."""
        given = dict(zip(job.keys, answers, strict=True))
        self._held.setdefault(job.checkpoint.weights_hash, {}).update(
            {key: answer for key, answer in given.items() if answer.error is None}
        )
        failed = [key for key, answer in given.items() if answer.error is not None]
        if failed:
            self._store.release(failed)
        number = sum(map(len, self._held.values()))
        late = time.monotonic() - self._since > _SECONDS
        if self._at_once or len(answers) > 1 or number >= _TOGETHER or late:
            self.flush()

    def flush(self) -> None:
        for weights, answers in self._held.items():
            if answers:
                self._store.put(answers, weights, self._backend)
        self._held = {}
        self._since = time.monotonic()


def _together(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Batches by themselves, single requests many at a time."""
    single = all(len(job.requests) == 1 for job in jobs)
    size = _TOGETHER if single else 1
    return (jobs[start : start + size] for start in range(0, len(jobs), size))

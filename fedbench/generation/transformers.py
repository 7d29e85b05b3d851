"""Asking a model in this process: one resident base, adapters swapped, batches by tokens."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import math
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property, partial
from typing import Any

import torch

from fedbench.adapters import adapter
from fedbench.base_facts import read_base
from fedbench.data.templates import Template
from fedbench.federated.reading import Narrowing, only_at
from fedbench.generation.backend import (
    Answer,
    Answered,
    Batch,
    Checkpoint,
    Job,
    Question,
    Request,
    Written,
    stream_in_batches,
)
from fedbench.generation.batches import plan_batches
from fedbench.generation.late import backend_name
from fedbench.generation.roomy_cache import roomy_cache
from fedbench.model import BaseModel, load_base, pick_device
from fedbench.model_config import ModelConfig

_log = logging.getLogger(__name__)


class TransformersBackend:
    """Greedy or sampled generation, and exact choice by log-likelihood."""

    def __init__(
        self,
        base: str,
        config: ModelConfig,
        *,
        batch_tokens: int = 8192,
        generation_tokens: int | None = None,
    ) -> None:
        """Read tokenizer and configuration; the base is loaded when something is asked of it.

        Args:
            base: directory or hub id of the base model.
            config: dtype, device, quantization and attention kernel.
            batch_tokens: padded tokens per forward pass that reads.
            generation_tokens: padded tokens per batch that generates, with its answers; as many
                as it reads by default.

        Raises:
            CheckpointError: the base cannot be loaded.
        """
        facts = read_base(base, config)
        self._name = base
        self._config = config
        device = pick_device(config.device).type
        self.name = backend_name(config, device, batch_tokens, generation_tokens)
        self.base_hash = facts.hash or self.base.hash
        self.num_halved = 0
        """Batches that did not fit into memory."""
        self._batch_tokens = batch_tokens
        self._generation_tokens = generation_tokens or batch_tokens
        self._used: Any = None
        self._narrowing: Narrowing | None = None
        self._workers = torch.get_num_threads() if device == "cpu" else 1
        self._lock = threading.Lock()
        self._beginning: tuple[tuple[int, ...], Any] | None = None
        """Tokens that requests of the weights in use share, with their keys and values."""
        self.prompts = facts.prompts()

    @cached_property
    def base(self) -> BaseModel:
        """The resident model.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return load_base(self._name, self._config)

    @property
    def _model(self) -> Any:
        """The weights in use."""
        return self.base.module if self._used is None else self._used

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
        """Batches of like requests of like length, each within the token budget.

        Requests that begin alike are kept together, so that their beginning is computed once.
        """
        return plan_batches(requests, self._batch_tokens, self._generation_tokens)

    def stream(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        """Batch by batch, checkpoint by checkpoint; on a CPU, as many at once as it has threads.

        A batch that is read by one thread does not wait for others at every layer. What generates
        has all threads, as its random numbers are the process's.
        """
        if self._workers == 1:
            return stream_in_batches(self, jobs)
        return self._stream_at_once(jobs)

    def close(self) -> None:
        """Nothing is held that the garbage collector does not free."""

    def _stream_at_once(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        queue = iter(jobs)
        job = next(queue, None)
        one = partial(torch.set_num_threads, 1)
        with ThreadPoolExecutor(self._workers, initializer=one) as pool:
            while job is not None:
                current = job.checkpoint
                with self.use(current), _waiting() as running:
                    while running or (job is not None and job.checkpoint == current):
                        while (
                            job is not None
                            and job.checkpoint == current
                            and job.requests[0].kind == "choice"
                            and len(running) < self._workers
                        ):
                            future = pool.submit(self.answer, job.requests, job.num_shared)
                            running.append((job, future))
                            job = next(queue, None)
                        if running:
                            done, future = running.popleft()
                            yield done, future.result()
                        elif job is not None and job.checkpoint == current:
                            yield job, self.answer(job.requests, job.num_shared)
                            job = next(queue, None)

    @contextlib.contextmanager
    def use(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Put the checkpoint's weights on the resident base.

        Raises:
            CheckpointError: it belongs to another base.
        """
        with self._weights(checkpoint) as module, Narrowing(module) as narrowing:
            self._used, self._beginning, self._narrowing = module, None, narrowing
            try:
                yield
            finally:
                self._used, self._beginning, self._narrowing = None, None, None

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        """Answer one batch of like requests; what does not fit into memory is halved."""
        try:
            with torch.inference_mode():
                return self._answer(requests, num_shared)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            reason = str(error).split("\n")[0]
        # Outside the handler: the error holds on to the tensors of every frame it went through.
        self._free()
        if len(requests) == 1:
            return [Answer(error=f"out of memory with a single request ({reason})")]
        self.num_halved += 1
        half = len(requests) // 2
        _log.warning("a batch of %d does not fit into memory; halving it", len(requests))
        return [
            *self.answer(requests[:half], num_shared),
            *self.answer(requests[half:], num_shared),
        ]

    def _answer(self, requests: Sequence[Request], num_shared: int) -> list[Answer]:
        if requests[0].kind == "generate":
            return self._generate(requests, num_shared)
        return [_finite(answer) for answer in self._choose(requests, num_shared)]

    @contextlib.contextmanager
    def _weights(self, checkpoint: Checkpoint) -> Iterator[Any]:
        if checkpoint.directory is None or str(checkpoint.directory) == self.base.name:
            yield self.base.module
        elif checkpoint.kind == "full":
            yield load_base(str(checkpoint.directory), self._config).module
        else:
            with adapter(self.base, checkpoint.directory, to_read=True) as module:
                yield module

    def _generate(self, requests: Sequence[Request], num_shared: int) -> list[Answer]:
        sampling = requests[0].sampling
        ids, mask, past = self._inputs([request.ids for request in requests], num_shared)
        torch.manual_seed(sampling.seed + 1_000_003 * sampling.index)
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
            how["top_p"] = sampling.top_p
        own = self._model.generation_config.eos_token_id
        ends = {*requests[0].ends, *([own] if isinstance(own, int) else own or ())}
        if sampling.stop:
            how |= {"stop_strings": list(sampling.stop), "tokenizer": self.base.tokenizer}
        if past is not None:
            beginning = torch.tensor([requests[0].ids[:num_shared]], device=ids.device)
            ids = torch.cat([beginning.expand(len(requests), -1), ids], dim=1)
        output = self._model.generate(
            input_ids=ids,
            past_key_values=roomy_cache(self._model.config) if past is None else past,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sorted(ends) or None,
            **how,
        )
        new = output[:, ids.shape[1] :]
        texts = self.base.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            _completion(text, sampling.stop, ended=bool(ends & set(row)))
            for text, row in zip(texts, new.tolist(), strict=True)
        ]

    def _choose(self, requests: Sequence[Request], num_shared: int) -> list[Answer]:
        """One pass tells all first tokens; the others are read behind the prompt's keys and values.

        The summed log-probability of each choice is exact up to rounding; the prompt is computed
        once for all choices of a request.
        """
        single = all(len(choice) <= 1 for request in requests for choice in request.choices)
        ids, mask, past = self._inputs([request.ids for request in requests], num_shared)
        first, cache = self._forward(ids, mask, past, _last(ids), use_cache=not single)
        logprobs = torch.log_softmax(first.float(), dim=-1)
        likeliest = logprobs.argmax(dim=-1).tolist()
        sums = [
            [float(row[choice[0]]) if choice else 0.0 for choice in request.choices]
            for row, request in zip(logprobs, requests, strict=True)
        ]
        greedy = [
            [choice[:1] in ((), (best,)) for choice in request.choices]
            for best, request in zip(likeliest, requests, strict=True)
        ]
        if not single:
            self._read_on(requests, mask, cache, sums, greedy)
        return [
            Answer(loglikelihoods=tuple(of_request), greedy=tuple(likely))
            for of_request, likely in zip(sums, greedy, strict=True)
        ]

    def _read_on(
        self,
        requests: Sequence[Request],
        mask: torch.Tensor,
        cache: Any,
        sums: list[list[float]],
        greedy: list[list[bool]],
    ) -> None:
        """Add what the tokens after the first of each choice contribute."""
        places = [
            (row, number, choice)
            for row, request in enumerate(requests)
            for number, choice in enumerate(request.choices)
            if len(choice) > 1
        ]
        rows = torch.tensor([row for row, _, _ in places], device=mask.device)
        width = max(len(choice) for _, _, choice in places) - 1
        pad = self.base.tokenizer.pad_token_id
        ids = torch.full((len(places), width), pad, device=mask.device)
        behind = torch.zeros_like(ids)
        for place, (_, _, choice) in enumerate(places):
            ids[place, : len(choice) - 1] = torch.tensor(choice[:-1])
            behind[place, : len(choice) - 1] = 1
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], behind], dim=1)
        logits, _ = self._forward(ids, mask, cache, behind.flatten().nonzero()[:, 0])
        # Row by row: the log-probabilities of whole answers are too large to be held for all.
        ends = behind.sum(dim=1).cumsum(dim=0).tolist()
        for (row, number, choice), end in zip(places, ends, strict=True):
            logprobs = torch.log_softmax(logits[end - len(choice) + 1 : end].float(), dim=-1)
            target = torch.tensor(choice[1:], device=logprobs.device)
            sums[row][number] += float(logprobs.gather(1, target[:, None]).sum())
            if greedy[row][number]:
                greedy[row][number] = bool((logprobs.argmax(dim=-1) == target).all())

    def _inputs(
        self, prompts: Sequence[Sequence[int]], num_shared: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Left-padded ids (B, T) behind what is shared, mask (B, num_shared + T), and its cache."""
        past = self._shared(tuple(prompts[0][:num_shared]), len(prompts)) if num_shared else None
        start = num_shared if past is not None else 0
        rest = [prompt[start:] for prompt in prompts]
        length = max(map(len, rest))
        pad = self.base.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in rest])
        mask = torch.tensor([[1] * start + [0] * (length - len(p)) + [1] * len(p) for p in rest])
        return ids.to(self.base.device), mask.to(self.base.device), past

    def _shared(self, beginning: tuple[int, ...], num_rows: int) -> Any:
        """Keys and values of a beginning, for as many rows; None for models that keep others."""
        with self._lock:
            kept = self._keep(beginning)
        if kept is None:
            return None
        copied = copy.deepcopy(kept)
        copied.batch_repeat_interleave(num_rows)
        return copied

    def _keep(self, beginning: tuple[int, ...]) -> Any:
        if self._beginning is None or self._beginning[0] != beginning:
            ids = torch.tensor([beginning], device=self.base.device)
            cache = roomy_cache(self._model.config)
            if cache is not None:
                self._forward(ids, torch.ones_like(ids), cache, _last(ids))
            self._beginning = (beginning, cache)
        return self._beginning[1]

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        past: Any,
        places: torch.Tensor,
        *,
        use_cache: bool = True,
    ) -> tuple[torch.Tensor, Any]:
        """Logits (N, V) at some places of the flattened ids, and the keys and values of all."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        own = self._narrowing
        with only_at(places, self._model) if own is None else own.at(places):
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=use_cache,
            )
        return output.logits[0], getattr(output, "past_key_values", None)

    def _free(self) -> None:
        self._beginning = None
        gc.collect()
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _waiting() -> Iterator[deque[tuple[Job, Future[list[Answer]]]]]:
    """Batches that run at once; none runs any more when the context ends."""
    running: deque[tuple[Job, Future[list[Answer]]]] = deque()
    try:
        yield running
    finally:
        for _, future in running:
            future.cancel()
        wait([future for _, future in running])


def _last(ids: torch.Tensor) -> torch.Tensor:
    """Places of the last token of each left-padded row."""
    rows, length = ids.shape
    return torch.arange(1, rows + 1, device=ids.device) * length - 1


def _finite(answer: Answer) -> Answer:
    """A model that fell apart in training gives no numbers to choose by: no answer was obtained."""
    if all(map(math.isfinite, answer.loglikelihoods)):
        return answer
    return Answer(error=f"log-likelihoods are not finite: {answer.loglikelihoods}")


def _completion(text: str, stops: Sequence[str], *, ended: bool) -> Answer:
    """The text before the first stop string: `generate` leaves the string itself at the end."""
    whole = text
    for stop in stops:
        text = text.split(stop)[0]
    return Answer(text=text, finish="stop" if ended or text != whole else "length")


def _out_of_memory(error: Exception) -> bool:
    """CUDA has an error of its own; the allocator for the CPU says it in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

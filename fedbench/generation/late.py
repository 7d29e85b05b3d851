"""The transformers backend, opened when a model has to be asked.

Where every answer is in the store, scoring needs the prompts' tokens only. They are kept
(`prepared_files`), so that a second run loads no tokenizer, no transformers and no torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import runpy
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbench import prepared_files
from fedbench.data.templates import Template
from fedbench.errors import CheckpointError
from fedbench.generation.backend import (
    Answered,
    Batch,
    Job,
    Question,
    Request,
    Sampling,
    Written,
)
from fedbench.generation.batches import plan_batches
from fedbench.generation.prompts import Prompts
from fedbench.model_config import ModelConfig
from fedbench.weights import base_hash, weight_files

if TYPE_CHECKING:
    from fedbench.generation.transformers import TransformersBackend

_READERS = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2")
"""Packages by which text becomes tokens."""
_WEIGHTS = (*(".safetensors", ".bin", ".pt", ".pth", ".gguf"), *(".h5", ".msgpack", ".onnx"))
_NOT_KEPT = {"constraint", "purpose"}  # of judges, whose requests are not asked for here


def backend_name(
    config: ModelConfig, device: str, batch_tokens: int, generation_tokens: int | None
) -> str:
    """What answers of the transformers backend depend on beside the model; part of their key.

    Not the attention kernel: kernels differ by rounding, as two machines do.
    """
    forms = (config.dtype, config.quantization, config.autocast)
    version = importlib.metadata.version
    return (
        f"transformers {version('transformers')} torch {version('torch')} "
        f"{' '.join(str(form) for form in forms if form is not None)} "
        f"{config.matmul_precision} {device} batch {batch_tokens}"
        + (f" {generation_tokens}" if generation_tokens else "")
    )


def device_type(wanted: str) -> str:
    """``cpu`` or ``cuda``; torch is asked only where it was built for a GPU.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not _built_for_gpu()):
        return "cpu"
    from fedbench.model import pick_device

    return pick_device(wanted).type


class LateTransformers:
    """`TransformersBackend` for a base in a directory: the model is opened when it is asked."""

    def __init__(
        self, base: str, config: ModelConfig, *, batch_tokens: int, generation_tokens: int
    ) -> None:
        """Read nothing but the hash of the weights.

        Args:
            base: directory of the base model, with files of weights.
            config: dtype, device, quantization and attention kernel.
            batch_tokens: padded tokens per forward pass that reads.
            generation_tokens: padded tokens per batch that generates, with its answers.
        """
        self._base = base
        self._config = config
        self._tokens = (batch_tokens, generation_tokens)
        self.name = backend_name(config, device_type(config.device), *self._tokens)
        self.base_hash = base_hash(None, Path(base))

    @cached_property
    def opened(self) -> TransformersBackend:
        """The backend itself.

        Raises:
            CheckpointError: the base cannot be read, or is another one by now.
        """
        from fedbench.generation.transformers import TransformersBackend

        read, written = self._tokens
        backend = TransformersBackend(
            self._base, self._config, batch_tokens=read, generation_tokens=written
        )
        if backend.base_hash != self.base_hash:
            raise CheckpointError(
                f"{self._base}: its weights were overwritten while they were scored; run the same "
                "command again"
            )
        return backend

    @property
    def prompts(self) -> Prompts:
        """Writes questions as this model reads them."""
        return self.opened.prompts

    @property
    def num_halved(self) -> int:
        """Batches that did not fit into memory."""
        return self.opened.num_halved if "opened" in vars(self) else 0

    def prepare(self, questions: Sequence[Question], template: Template) -> list[Request]:
        """Render and tokenize; a prompt that does not fit loses its start."""
        made_from = [repr(questions), template.name, template.hash, template.thinking]
        return self._kept("questions", made_from, lambda: self.opened.prepare(questions, template))

    def prepare_written(self, prompts: Sequence[Written]) -> list[Request]:
        """Tokenize as lm-eval does."""
        return self._kept("written", [repr(prompts)], lambda: self.opened.prepare_written(prompts))

    def canaries(self, requests: Sequence[Request]) -> list[Request]:
        """Choices between tokens behind the ends of a few prompts."""
        made_from = [request.digest.hex() for request in requests]
        return self._kept("canaries", made_from, lambda: self.opened.canaries(requests))

    def plan(self, requests: Sequence[Request]) -> list[Batch]:
        """Batches of like requests of like length, each within the token budget."""
        return plan_batches(requests, *self._tokens)

    def stream(self, jobs: Iterable[Job]) -> Generator[Answered, None, None]:
        """Answer jobs batch by batch, checkpoint by checkpoint."""
        return self.opened.stream(jobs)

    def close(self) -> None:
        """Let go of the model, where it was opened."""
        if "opened" in vars(self):
            self.opened.close()

    @cached_property
    def _reader(self) -> list[Any]:
        """What turns text into this model's tokens: its files, and the packages that read them."""
        files = {
            file.relative_to(self._base).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for pattern in ("*", "*/*.jinja")
            for file in Path(self._base).glob(pattern)
            if file.is_file() and file.suffix not in _WEIGHTS
        }
        return [files, prepared_files.versions(_READERS)]

    def _kept(
        self, what: str, made_from: list[Any], make: Callable[[], list[Request]]
    ) -> list[Request]:
        digest = hashlib.sha256(repr(made_from).encode()).hexdigest()
        key = prepared_files.key_of(what, digest, self._reader)
        rows = prepared_files.load(key)
        if rows is not None:
            return [_request(row) for row in rows]
        requests = make()
        if all(request.constraint is None and not request.purpose for request in requests):
            prepared_files.keep(key, [_row(request) for request in requests])
        return requests


def opens_late(base: str) -> bool:
    """Whether a base is a directory with weights, and not a hub id that goes by its tensors."""
    return bool(weight_files(Path(base)))


def _built_for_gpu() -> bool:
    """What torch says of itself in a file, which it takes no second to read."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    build = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return bool(build.get("cuda") or build.get("hip"))


_FIELDS = tuple(one.name for one in fields(Request) if one.name not in _NOT_KEPT)


def _row(request: Request) -> list[Any]:
    values = [getattr(request, name) for name in _FIELDS]
    return [vars(value) if isinstance(value, Sampling) else value for value in values]


def _request(row: Sequence[Any]) -> Request:
    given = {name: _frozen(value) for name, value in zip(_FIELDS, row, strict=True)}
    sampling = {name: _frozen(value) for name, value in given["sampling"].items()}
    return Request(**given | {"sampling": Sampling(**sampling)})


def _frozen(value: Any) -> Any:
    """Lists as tuples, down to the last one."""
    if not isinstance(value, list):
        return value
    return tuple(map(_frozen, value)) if value and isinstance(value[0], list) else tuple(value)

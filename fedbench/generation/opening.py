"""Which backend answers, with which options: the one place that knows them all by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedbench.errors import ConfigError, MissingExtraError
from fedbench.generation.backend import BACKENDS, Backend, Checkpoint
from fedbench.generation.workers import Workers, take_workers
from fedbench.model_config import ModelConfig
from fedbench.schema import Part, Positive, validated

CPU_TOKENS = (512, 12288)
"""Padded tokens per pass that reads, and per batch that generates, that a CPU answers fastest with:
what is read at once should stay in its caches, while a step of generation reads all weights for one
token of each row (benchmarks/score_many.md)."""
CUDA_TOKENS = (8192, 8192)
_PYTHON_ONLY = "scripted"
"""The backend that no option names: its answers are Python's."""
RESIDENT = ("transformers", "vllm")
"""Backends that hold the model themselves, of which several may share the questions."""


class TransformersOptions(Part):
    """What a user may set of the backend `transformers`."""

    batch_tokens: Positive | None = None
    """Padded tokens per forward pass that reads; None: 512 on CPU, 8,192 on CUDA."""
    generation_tokens: Positive | None = None
    """The same per batch that generates, with its answers; None: 12,288 on CPU, 8,192 on CUDA."""
    quantization: Literal["8bit", "4bit"] | None = None
    """How the base is loaded, by bitsandbytes; None: as the run file says, else not at all."""
    attention: str | None = None
    """Kernel: sdpa, eager, flash_attention_2; None: as the run file says, else sdpa."""


@dataclass(frozen=True)
class Engine:
    """Who answers."""

    backend: str = "transformers"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the backend, by name, as a user gave them."""
    server: Path | None = None
    """Description of the server, for `openai`."""
    workers: Workers | None = None
    """Who shares the questions; None: this process asks. Users give them among the options."""

    def __post_init__(self) -> None:
        """Part workers from options: no result depends on them, and no record holds them.

        Raises:
            ConfigError: what is said of workers is wrong.
        """
        workers, own = take_workers(self.options)
        if workers is not None:
            object.__setattr__(self, "workers", workers)
            object.__setattr__(self, "options", own)


DEFAULT_ENGINE = Engine()


def open_backend(
    base: str, model: ModelConfig, checkpoints: Sequence[Checkpoint], engine: Engine
) -> Backend:
    """The backend of that name, ready to answer for these checkpoints of one base.

    Raises:
        ConfigError: there is no such backend or option.
        CheckpointError: the base cannot be read.
        MissingExtraError: the backend's package is not installed.
    """
    if engine.workers is not None:
        return _shared(base, model, checkpoints, engine)
    if engine.backend == "openai":
        server: Backend = _server(checkpoints, engine)
        return server
    if engine.server is not None:
        raise ConfigError(f"a server is named, but the backend is {engine.backend}; use openai")
    if engine.backend == "vllm":
        if model.quantization is not None:
            raise ConfigError(
                f"model.quantization is {model.quantization}, which the backend vllm does not "
                "load; use transformers, or a model directory that is quantized itself"
            )
        from fedbench.generation.vllm.backend import VllmBackend, VllmOptions

        return VllmBackend(base, model, checkpoints, _options(VllmOptions, engine))
    if engine.backend != "transformers":
        known = ", ".join(name for name in BACKENDS if name != _PYTHON_ONLY)
        if engine.backend == _PYTHON_ONLY:
            raise ConfigError(
                f"the backend {_PYTHON_ONLY} is for Python only; choose one of {known}"
            )
        raise ConfigError(f"unknown backend {engine.backend!r}; known are {known}")
    return _transformers(base, model, engine)


def _shared(
    base: str, model: ModelConfig, checkpoints: Sequence[Checkpoint], engine: Engine
) -> Backend:
    if engine.backend not in RESIDENT:
        raise ConfigError(
            f"--workers is of backends that hold the model, {' and '.join(RESIDENT)}; "
            f"{engine.backend} is asked by one process, so leave it out"
        )
    from fedbench.generation.ray.backend import RayBackend

    return RayBackend(base, model, checkpoints, engine)


def _transformers(base: str, model: ModelConfig, engine: Engine) -> Backend:
    from fedbench.generation.late import LateTransformers, device_type, opens_late

    options = _options(TransformersOptions, engine)
    changes = options.model_dump(include={"quantization", "attention"}, exclude_none=True)
    read, written = CUDA_TOKENS if device_type(model.device) == "cuda" else CPU_TOKENS
    changed = validated(ModelConfig, model.model_dump() | changes, "--engine")
    read, written = options.batch_tokens or read, options.generation_tokens or written
    if opens_late(base):
        return LateTransformers(base, changed, batch_tokens=read, generation_tokens=written)
    from fedbench.generation.transformers import TransformersBackend

    return TransformersBackend(base, changed, batch_tokens=read, generation_tokens=written)


def served_model(engine: Engine) -> Checkpoint:
    """The model that a server has, where no checkpoint of it is at hand.

    Raises:
        ConfigError: no server is described.
    """
    from fedbench.generation.server.served import server_checkpoint

    backend = _server((), engine)
    try:
        return server_checkpoint(backend.client)
    finally:
        backend.close()


def _server(checkpoints: Sequence[Checkpoint], engine: Engine) -> Any:
    if engine.server is None:
        raise ConfigError(
            "the backend openai needs a server; describe it in a file and name that with --server "
            "(docs/servers.md)"
        )
    if engine.options:
        name = next(iter(engine.options))
        raise ConfigError(f"{name}: options of a server stand in {engine.server}; move it there")
    try:
        from fedbench.generation.server.access import read_server
        from fedbench.generation.server.backend import open_server
    except ImportError as error:
        raise MissingExtraError("the backend openai", "openai") from error
    known = {checkpoint.base_hash for checkpoint in checkpoints} - {""}
    if len(known) > 1:
        raise ConfigError(
            "the checkpoints have different bases, and a server has one; score each base's apart"
        )
    return open_server(read_server(engine.server), next(iter(known), None))


def _options(kind: type[Any], engine: Engine) -> Any:
    try:
        return TypeAdapter(kind, config=None).validate_python(dict(engine.options))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        names = getattr(kind, "model_fields", None) or kind.__dataclass_fields__
        unknown = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        what = "unknown option" if unknown else first["msg"]
        raise ConfigError(
            f"--engine {name}: {what}; options of {engine.backend} are {', '.join(names)}"
        ) from error

"""Which model judges: on a server, or in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedbench.checkpoints import find_checkpoints
from fedbench.data.templates import CHAT, get_template
from fedbench.errors import ConfigError, MissingExtraError
from fedbench.generation.opening import Engine, open_backend
from fedbench.generation.server.access import ServerConfig
from fedbench.judging.judge import Judge
from fedbench.model_config import ModelConfig
from fedbench.schema import Part, Positive, read_yaml, validated

_EXTENSIONS = (".yaml", ".yml")
_SERVER = {"api_key_variable", "base_url", "concurrency", "budget", "requests_per_minute", "prices"}
_IN_PROCESS = ("backend", "engine", "base_model", "dtype", "device")


class JudgeConfig(Part):
    """A judge, as a YAML file or the command line describes it."""

    server: ServerConfig | None = None
    """Where it is served; or `model`."""
    model: str | None = None
    """A model or adapter directory, or a hub id, that is asked in this process."""
    backend: Literal["transformers", "vllm"] = "transformers"
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of the backend."""
    base_model: str | None = None
    """The base of an adapter that does not lead to its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    template: str = CHAT
    """How a rubric's messages become text, in this process."""
    thinking: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    """None: as the rubric says; so with `max_tokens`."""
    max_tokens: Positive | None = None
    seed: int = 0
    constrain: bool = True
    """Hold replies to the rubric's form where the server or the backend can."""

    @model_validator(mode="after")
    def _one_place(self) -> JudgeConfig:
        if (self.server is None) == (self.model is None):
            raise ValueError("a judge is a server or a model; describe one of them")
        unheeded = [name for name in _IN_PROCESS if name in self.model_fields_set]
        if self.server is not None and unheeded:
            raise ValueError(
                f"{', '.join(unheeded)} is about a model in this process, and the judge is on a "
                "server; leave it out"
            )
        is_chat = self.server is not None and self.server.api == "chat"
        if is_chat and self.template != CHAT:
            raise ValueError(
                "template is about prompts that are written here, and with the chat API the server "
                "writes them; leave it out, or set server: api: completions"
            )
        if is_chat and self.thinking is not None:
            raise ValueError(
                "thinking is about prompts that are written here, and with the chat API the server "
                "writes them; say it by server: extra: {chat_template_kwargs: {enable_thinking: "
                f"{str(self.thinking).lower()}}}}}"
            )
        return self


def judge_config(name: str, **options: Any) -> JudgeConfig:
    """The judge that a user means.

    Args:
        name: a YAML file that describes it, a model's name on a server, or a model directory.
        options: fields of `JudgeConfig` and, of its server, of `ServerConfig`; None says nothing.

    Raises:
        ConfigError: the description does not hold together.
    """
    given = {key: value for key, value in options.items() if value is not None}
    of_server = {key: given.pop(key) for key in _SERVER & given.keys()}
    if name.endswith(_EXTENSIONS):
        raw, where = read_yaml(Path(name)), name
        if of_server and not isinstance(raw.get("server"), dict):
            raise ConfigError(
                f"{name}: describes no server (server: {{base_url: ..., model: ...}}), which "
                f"{_options(of_server)} is about"
            )
        if of_server:
            raw = raw | {"server": raw["server"] | of_server}
    else:
        where = "--judge"
        if "base_url" in of_server:
            raw = {"server": of_server | {"model": name}}
        elif of_server:
            raise ConfigError(
                f"{_options(of_server)} is about a server; give its address with --base-url"
            )
        elif not Path(name).is_dir() and name.count("/") != 1:
            raise ConfigError(
                f"--judge {name}: is no model directory; where a server has it, give the address "
                "with --base-url, or --judge-url of score (https://api.openai.com/v1 is OpenAI's)"
            )
        else:
            raw = {"model": name}
    return validated(JudgeConfig, raw | given, where)


def open_judge(config: JudgeConfig, *, to_ask: bool = True) -> Judge:
    """The judge, ready to be asked.

    Args:
        config: who judges, and where.
        to_ask: False where nothing will be asked of a server, which needs no key then.

    Raises:
        CheckpointError: its weights cannot be read.
        ConfigError: the description does not hold together, or a key is not set.
        MissingExtraError: a package is not installed.
    """
    backend, checkpoint, name = _served(config, to_ask) if config.server else _in_process(config)
    return Judge(
        backend,
        checkpoint,
        ", ".join([name, *_unusual(config)]),
        get_template(config.template, config.thinking),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        constrained=config.constrain,
    )


def _unusual(config: JudgeConfig) -> list[str]:
    """What makes another judge of the same model, for its name in records."""
    said: dict[str, Any] = dict(config.server.extra) if config.server else {}
    said |= {
        "template": config.template if config.template != CHAT else None,
        "thinking": config.thinking,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "seed": config.seed or None,
    }
    return [f"{key} {_short(value)}" for key, value in said.items() if value is not None]


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, sort_keys=True)


def _served(config: JudgeConfig, to_ask: bool) -> tuple[Any, Any, str]:
    assert config.server is not None
    try:
        from fedbench.generation.server.backend import open_server
        from fedbench.generation.server.served import server_checkpoint
    except ImportError as error:
        raise MissingExtraError("a judge on a server", "openai") from error
    from urllib.parse import urlsplit

    backend = open_server(config.server, with_key=to_ask)
    # Ports of local servers change from day to day, and the model does not.
    host = urlsplit(backend.client.base_url).hostname
    return backend, server_checkpoint(backend.client), f"{config.server.model} @ {host}"


def _in_process(config: JudgeConfig) -> tuple[Any, Any, str]:
    from fedbench.scoring import on_base

    assert config.model is not None
    [checkpoint, *others] = find_checkpoints([config.model], config.base_model, "last")
    if others:
        raise ConfigError(
            f"--judge {config.model}: holds several models; give the directory of one of them"
        )
    model = validated(
        ModelConfig,
        {"name": checkpoint.base, "dtype": config.dtype, "device": config.device},
        "--judge",
    )
    engine = Engine(config.backend, config.engine)
    backend = open_backend(checkpoint.base, model, [checkpoint], engine)
    checkpoint = on_base(checkpoint, backend.base_hash)
    return backend, checkpoint, f"{Path(config.model).name} {checkpoint.weights_hash}"


def _options(given: dict[str, Any]) -> str:
    return ", ".join("--" + key.replace("_", "-") for key in sorted(given))

"""Where a server is, how it is asked, and the key to it: what may be written down, what not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from fedbench.errors import ConfigError
from fedbench.schema import Part, Positive, read_yaml, validated

Api = Literal["chat", "completions"]
Form = Literal["auto", "structured_outputs", "response_format", "none"]
_OWN_FIELDS = {"model", "messages", "prompt", "stream", "n"}
"""Of a request: with others in their place, answers would be to something else, or unreadable."""
_Seconds = Annotated[float, Field(gt=0)]


class ServerConfig(Part):
    """A server as a YAML file describes it."""

    base_url: str
    """With its version: ``http://127.0.0.1:8000/v1``."""
    model: str
    """The name under which it serves the (base) model."""
    api: Api = "chat"
    """Who writes the prompt: the server (`chat`), or fedbench (`completions`)."""
    tokenizer: str | None = None
    """Directory or hub id of the model's tokenizer, for `completions`: tokens are sent."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """Served names of adapters, by their directory, its last part or their weights hash."""
    load_adapters: bool = False
    """Have a `vllm serve` load adapters, from directories that it can read."""
    api_key_variable: str | None = None
    """Environment variable with the key; OPENAI_API_KEY for OpenAI's own server."""
    concurrency: Positive = 32
    """Requests at once."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    timeout: _Seconds = 300.0
    """Until a request is given up and sent again."""
    max_retries: Annotated[int, Field(ge=0)] = 6
    """After 429, 5xx, a timeout or a lost connection."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Dollars that one command may spend."""
    prices: str | None = None
    """A table of prices instead of the one that travels with fedbench."""
    constrain: Form = "auto"
    """How answers are held to a form, where one is wanted: vLLM's `structured_outputs`, OpenAI's
    `response_format`, or not at all; by itself the first of a vLLM, the second of OpenAI's own."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request."""

    @field_validator("extra")
    @classmethod
    def _further(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(_OWN_FIELDS & extra.keys()):
            raise ValueError(f"{', '.join(own)} is for fedbench to say; remove it")
        return extra


def read_server(file: Path) -> ServerConfig:
    """A server's description.

    Raises:
        ConfigError: it is missing or wrong.
    """
    return validated(ServerConfig, read_yaml(file), str(file))


def checked_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ConfigError: it is none, or holds a secret.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{url!r} is no server address; give one such as http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"the address of {parts.hostname} holds a user name, password or query, and addresses "
            "are written into records; give a key by an environment variable"
        )
    return url.rstrip("/")


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; None where none is named.

    Raises:
        ConfigError: there is no key in it.
    """
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"the environment variable {variable} holds no key; set it")
    return key

"""Fixtures: a tiny model built in memory, no sockets, caches in a temporary place."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A change is judged by the change: the same examples in every run, and few of them.
# HYPOTHESIS_PROFILE=default draws new ones, and more.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Read when huggingface_hub is imported: without it, every refused connection is tried again.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once instead of hanging."""

    def refuse(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if str(host).startswith(("127.", "localhost", "::1", "/")):
            return connect(self, address)
        raise OSError(f"tests reach no network ({address})")

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models made by tests are shared between tests, answers are not; the user has neither."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("FEDBENCH_CACHE", str(base / "fedbench-cache"))
    monkeypatch.setenv("FEDBENCH_ANSWERS", str(base / "answers" / f"{uuid.uuid4().hex}.sqlite"))


@pytest.fixture(scope="session")
def tiny_base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of some ten thousand parameters with its tokenizer, random weights, on disk."""
    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_llama, make_tokenizer

    config = Pretrain(
        text=(),
        words=("negative", "neutral", "positive"),
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
    )
    text = "Instruction: What is the sentiment of this news? Input: Profit rises at Acme. Answer:"
    tokenizer = make_tokenizer(iter([text] * 50), config.words, config.vocab_size)
    directory = tmp_path_factory.mktemp("tiny-base")
    make_llama(config, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def tiny_base(tiny_base_directory: Path) -> Any:
    """The tiny model, resident."""
    from fedbench.model import load_base
    from fedbench.model_config import ModelConfig

    config = ModelConfig(name=str(tiny_base_directory), device="cpu", attention="eager")
    return load_base(str(tiny_base_directory), config)

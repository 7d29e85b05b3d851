"""What the tests of training share: rows of tokens, and a run around a tiny base."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from trainings import Recorder

from fedbench.config import RunConfig
from fedbench.data.tokenize import Pair, Rated, Tokens
from fedbench.federated import alone, server
from fedbench.federated.server import Training
from fedbench.model import add_lora, get_state, load_base
from fedbench.model_config import ModelConfig


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[Tokens]]:
    """Rows of random tokens, of unequal lengths and unequal completions."""

    def make(number: int, seed: int = 0) -> list[Tokens]:
        rng = random.Random(seed)
        return [
            Tokens.ending(
                tuple(rng.randrange(2, 300) for _ in range(rng.randint(6, 14))), rng.randint(1, 4)
            )
            for _ in range(number)
        ]

    return make


def pairs(number: int, seed: int = 0) -> list[Pair]:
    """Preference pairs of random tokens, of unequal lengths."""
    rng = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 300) for _ in range(rng.randint(low, high)))

    return [Pair(some(4, 9), some(1, 5), some(1, 5)) for _ in range(number)]


def rated(number: int, seed: int = 0) -> list[Rated]:
    """Rated answers of random tokens."""
    rated = [
        Rated(pair.prompt, answer, wanted)
        for pair in pairs(number, seed)
        for answer, wanted in ((pair.chosen, True), (pair.rejected, False))
    ]
    return rated[:number]


ROWS = {"dpo": pairs, "kto": rated}


@pytest.fixture
def training(
    tiny_base_directory: Path, rows: Callable[..., list[Tokens]], tmp_path: Path
) -> Callable[..., Training]:
    """Makes the training of one seed: two steps of two rows per client and round."""

    def make(
        *, shards: Sequence[int] = (5, 3, 4), directory: Path = tmp_path, **config: Any
    ) -> Training:
        settings: dict[str, Any] = {
            "name": "made",
            "model": {
                "name": str(tiny_base_directory),
                "lora": {"r": 2, "alpha": 4},
                "device": "cpu",
                "attention": "eager",
            },
            "data": {"train": "headlines", "template": "fingpt"},
            "methods": ["local", "centralised", "fedavg", {"algorithm": "fedprox", "mu": 0.5}],
            "federation": {"num_clients": len(shards), "clients_per_round": 2, "rounds": 4},
            "local": {"max_steps": 2, "batch_size": 2, "learning_rate": 0.01},
            "evaluation": {"tasks": ["headlines"], "rounds": "all"},
        }
        for key, value in config.items():
            settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
        made = RunConfig.model_validate(settings)
        kind = made.objective.kind
        base = load_base(str(tiny_base_directory), ModelConfig.model_validate(settings["model"]))
        add_lora(base, made.model.lora, seed=0)
        return Training(
            config=made,
            seed=0,
            base=base,
            initial_state=get_state(base.module),
            shards=[ROWS.get(kind, rows)(number, seed) for seed, number in enumerate(shards)],
            directory=directory,
            progress=lambda what, done, total: None,
        )

    return make


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In place of local training."""
    stand_in = Recorder()
    for module in (server, alone):
        monkeypatch.setattr(module, "train_client", stand_in)
    return stand_in

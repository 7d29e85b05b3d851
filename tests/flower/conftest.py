"""Runs small enough for Flower's own processes, where Flower is installed.

`tox -e flower` makes the environment; see docs/flower.md.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = importlib.util.find_spec("flwr") is None or importlib.util.find_spec("ray") is None
collect_ignore_glob = ["test_*.py"] if MISSING else []
HERE = Path(__file__).parent
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
if not MISSING:
    with warnings.catch_warnings():
        # Test files import Flower before any filter of a test is set.
        warnings.simplefilter("ignore")
        importlib.import_module("flwr.clientapp")
        importlib.import_module("flwr.serverapp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            # Flower, Ray and what they import warn of much that is not ours.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_found_open_later() -> Iterator[None]:
    """Ray leaves files open, which are found here, where warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def run_file(tiny_base_directory: Path) -> Callable[..., Any]:
    """Makes a run of three clients, of whom two train for two steps in each of two rounds."""
    from fedbench.config import RunConfig

    def make(**changed: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "name": "made",
            "model": {
                "name": str(tiny_base_directory),
                "lora": {"r": 2, "alpha": 4},
                "device": "cpu",
                "attention": "eager",
            },
            "data": {"train": "headlines", "template": "fingpt", "limit": 60},
            "methods": ["fedavg"],
            "federation": {"num_clients": 3, "clients_per_round": 2, "rounds": 2},
            "local": {"max_steps": 2, "batch_size": 2, "learning_rate": 0.01},
            "flower": {"cpus": 2},
            "evaluation": {"tasks": ["headlines"], "rounds": "all"},
        }
        for key, value in changed.items():
            settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
        return RunConfig.model_validate(settings)

    return make

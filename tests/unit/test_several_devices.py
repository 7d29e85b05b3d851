"""Who gets which device: vLLM's replicas, and Flower's simulated workers. No device is needed."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fedbench.config import RunConfig
from fedbench.errors import ConfigError
from fedbench.federated.engines.simulation import _resources
from fedbench.generation.vllm import engine as vllm_engine
from fedbench.generation.vllm.engine import Engine, EngineOptions, _arguments

FOUR = EngineOptions(device="cuda", tensor_parallel_size=2, data_parallel_size=2)


class Replica:
    """Stands in for `vllm.LLM`: notes what it may see, and what it is asked."""

    def __init__(self) -> None:
        self.devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.asked: list[str] = []
        self.ended = False
        core = SimpleNamespace(shutdown=self._end)
        self.llm_engine = SimpleNamespace(engine_core=core, add_request=self._add)

    def _add(self, name: str, *_: object, **__: object) -> None:
        self.asked.append(name)

    def _end(self) -> None:
        self.ended = True


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> list[Replica]:
    """Those that were started, in order; what vLLM raises can be imported."""
    started: list[Replica] = []

    def start(*_: object) -> Replica:
        started.append(Replica())
        return started[-1]

    monkeypatch.setattr(vllm_engine, "_start", start)
    for name, error in (
        ("vllm.exceptions", "VLLMValidationError"),
        ("vllm.v1.engine.exceptions", "EngineDeadError"),
    ):
        module = ModuleType(name)
        setattr(module, error, type(error, (Exception,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    return started


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, ["0,1", "2,3"]), ("4,5,6,7,8", ["4,5", "6,7"])]
)
def test_each_replica_sees_devices_of_its_own(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    Engine("model", FOUR, None)
    assert [replica.devices for replica in replicas] == seen
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible  # as it was


def test_replicas_on_a_cpu_see_what_the_process_sees(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    Engine("model", EngineOptions(device="cpu", data_parallel_size=2), None)
    assert [replica.devices for replica in replicas] == ["7", "7"]


def test_more_devices_than_there_are_to_see_are_refused_and_nothing_stays_started(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(ConfigError, match=r"2 times tensor_parallel_size 2 needs more devices"):
        Engine("model", FOUR, None)
    assert [replica.ended for replica in replicas] == [True]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def test_a_request_goes_to_the_replica_with_the_fewest_open(replicas: list[Replica]) -> None:
    engine = Engine("model", EngineOptions(data_parallel_size=3), None)
    for number in range(7):
        assert engine.add(f"r{number}", [1], None, None) is None
    assert [replica.asked for replica in replicas] == [
        ["r0", "r3", "r6"],
        ["r1", "r4"],
        ["r2", "r5"],
    ]
    assert engine.num_open == 7


def test_one_replica_is_cut_over_as_many_devices_as_are_asked_for() -> None:
    told = _arguments("model", FOUR, None)
    assert told["tensor_parallel_size"] == 2
    assert "data_parallel_size" not in told  # `vllm.LLM` refuses it: each replica is one of its own


def test_a_simulated_worker_has_its_share_of_gpus_and_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    raw: dict[str, Any] = {
        "name": "shared",
        "model": {"name": "somewhere"},
        "data": {"train": "headlines"},
        "methods": ["fedavg"],
        "engine": "flower_simulation",
        "flower": {"client_gpus": 0.5, "client_cpus": 4},
        "evaluation": {"tasks": ["headlines"]},
    }
    alone = _resources(RunConfig.model_validate(raw))
    assert alone["client_resources"] == {"num_cpus": 4.0, "num_gpus": 0.5}
    assert alone["init_args"] == {"address": "local"}
    monkeypatch.setenv("RAY_ADDRESS", "first:6379")  # of a cluster: Ray knows what it has
    raw["flower"] |= {"cpus": 8}
    assert _resources(RunConfig.model_validate(raw))["init_args"] == {"num_cpus": 8}

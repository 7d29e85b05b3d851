"""What workers are given and told, before any is started. No Ray needed."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbench.errors import CheckpointError, ConfigError, FedbenchError, MissingExtraError
from fedbench.generation.backend import Checkpoint, Job, Request, Sampling
from fedbench.generation.opening import Engine, open_backend
from fedbench.generation.ray import worker as worker_module
from fedbench.generation.ray.cluster import Cluster, fitting
from fedbench.generation.ray.shares import LEAST, Shares
from fedbench.generation.ray.slot import abroad
from fedbench.generation.ray.worker import Order, Worker
from fedbench.generation.workers import Workers
from fedbench.model_config import ModelConfig
from fedbench.results.record import ModelId


def checkpoint(name: str, directory: Path | None = None) -> Checkpoint:
    kind: Any = "base" if directory is None else "adapter"
    model = ModelId(method=name, model_kind="global")
    return Checkpoint(model, kind, directory, "org/base", f"hash of {name}", "b")


def job(asked: Checkpoint, number: int, num_requests: int = 1) -> Job:
    requests = [
        Request("choice", "", (number, place), Sampling(), ((1,),)) for place in range(num_requests)
    ]
    return Job(asked, tuple(requests), keys=(f"{asked.model.method} {number}",))


def jobs_of(*sizes: int, requests: int = 1) -> list[Job]:
    """So many jobs of each of the checkpoints a, b, c, ..."""
    return [
        job(checkpoint(name), number, requests)
        for name, size in zip("abcdefgh", sizes, strict=False)
        for number in range(size)
    ]


def names(share: list[Job]) -> list[str]:
    return [key for one in share for key in one.keys]


# Shares


@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    requests=st.integers(1, 9),
    calls=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30),
)
def test_every_job_is_answered_once_whoever_dies(
    sizes: list[int], requests: int, calls: list[tuple[int, bool]]
) -> None:
    jobs = jobs_of(*sizes, requests=requests)
    shares = Shares(jobs, 3)
    answered: list[str] = []
    everyone = [(number % 3, False) for number in range(60)]
    for worker, dies in calls + everyone:
        share = shares.take(worker)
        assert len({one.checkpoint for one in share}) <= 1
        if dies:  # half of it is answered by then
            answered += names(share[: len(share) // 2])
            shares.give_back(share[len(share) // 2 :])
            shares.forget(worker)
        else:
            answered += names(share)
    assert not shares
    assert sorted(answered) == sorted(names(jobs))


def test_checkpoints_are_given_whole_while_there_are_many() -> None:
    shares = Shares(jobs_of(200, 200, 200, 200), 2)
    first, second = shares.take(0), shares.take(1)
    # 800 / (2 * 2) = 200 requests: one checkpoint; then 600 / 4 = 150 of another.
    assert names(first) == [f"a {number}" for number in range(200)]
    assert names(second) == [f"b {number}" for number in range(150)]


def test_a_worker_stays_with_what_it_has_loaded() -> None:
    shares = Shares(jobs_of(100, 900), 2)
    assert names(shares.take(0))[0] == "a 0"
    assert names(shares.take(1))[0] == "b 0"
    assert names(shares.take(1))[0].startswith("b")
    assert names(shares.take(0))[0].startswith("b")  # nothing of a is left


def test_shares_end_small_but_not_smaller_than_an_engine_likes() -> None:
    shares = Shares(jobs_of(1000), 2)
    sizes = []
    while share := shares.take(len(sizes) % 2):
        sizes.append(len(share))
    # A quarter of what is left (1000, 750, 562, ...), as long as that is 64 or more.
    assert sizes == [250, 188, 141, 106, 79, LEAST, LEAST, LEAST, 44]


# What a user says


def test_workers_are_no_part_of_the_options_that_records_hold() -> None:
    engine = Engine("vllm", {"workers": 2, "worker_gpus": 0.5, "max_num_seqs": 8})
    assert engine.options == {"max_num_seqs": 8}
    assert engine.workers == Workers(workers=2, worker_gpus=0.5)
    assert Engine("vllm", {"max_num_seqs": 8}).workers is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--engine: workers: Input should be greater than or equal to 1"),
        ({"worker_gpus": 1}, "worker_gpus: is said of workers, whose number is not given"),
        ({"workers": 2, "worker_cpus": 0}, "worker_cpus: Input should be greater than 0"),
    ],
)
def test_wrong_workers_are_refused_by_their_field(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Engine("transformers", options)


def test_a_server_is_asked_by_one_process() -> None:
    engine = Engine("openai", {"workers": 2})
    with pytest.raises(ConfigError, match="openai is asked by one process"):
        open_backend("m", ModelConfig(name="m"), [], engine)


def test_without_ray_the_error_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(MissingExtraError, match=r"pip install 'fedbench\[ray\]'"):
        Cluster.join(None, 2)


def test_an_address_of_rays_client_is_refused() -> None:
    with pytest.raises(ConfigError, match="Ray's client"):
        Cluster.join("ray://head:10001", 2)


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [(1, 0, 16), (1, 1, 2), (1, 0.5, 4), (1, 0.1, 16), (0.5, 0.1, 20), (12, 1, 1), (20, 0, 0)],
)
def test_a_machine_holds_as_many_workers_as_its_scarcest_part(
    cpus: float, gpus: float, room: int
) -> None:
    assert fitting({"CPU": 16.0, "GPU": 2.0}, cpus, gpus) == room


# On another machine


def test_a_job_travels_with_absolute_paths_and_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    asked = replace(checkpoint("a", Path("runs/a")), base="base", extra={"x": object})
    sent = abroad(job(asked, 0))
    assert sent.checkpoint.directory == tmp_path / "runs/a"
    assert sent.checkpoint.base == str(tmp_path / "base")
    assert sent.keys == ()
    assert pickle.loads(pickle.dumps(sent)) == sent
    assert abroad(job(checkpoint("a"), 0)).checkpoint.base == "org/base"  # of a hub


def order(base: Path, *checkpoints: Checkpoint) -> Order:
    model = ModelConfig(name=str(base), device="cpu")
    return Order(str(base), True, model, checkpoints, Engine(), node="where it was started")


def test_what_is_not_on_a_machine_is_named_with_the_machine(tmp_path: Path) -> None:
    missing = tmp_path / "not-there"
    for wanted in (order(missing), order(tmp_path, checkpoint("a", missing))):
        with pytest.raises(CheckpointError, match=r"worker on .+not-there: is not on this machine"):
            Worker(wanted, node="another").open()


def test_a_copy_with_other_weights_is_not_taken_for_the_checkpoint(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base_directory, copy)
    stale = replace(checkpoint("a", copy), kind="full")
    worker = Worker(order(tiny_base_directory, stale), node="another")
    worker.open()
    with pytest.raises(CheckpointError, match=r"holds other weights .* copy it anew"):
        next(worker.answer([job(stale, 0)]))


def test_errors_of_any_kind_survive_the_way_to_another_process(
    tiny_base_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MissingExtraError("--backend vllm", "vllm")

    monkeypatch.setattr(worker_module, "open_backend", refuse)
    with pytest.raises(FedbenchError, match=r"worker on .+fedbench\[vllm\]") as raised:
        Worker(order(tiny_base_directory), node="another").open()
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)

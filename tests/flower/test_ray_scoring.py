"""Scoring shared by workers gives what one process gives, and lives through the death of one."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from fedbench.checkpoints import find_checkpoints
from fedbench.errors import CheckpointError, ConfigError, FedbenchError
from fedbench.evaluation.catalogue import load_tasks
from fedbench.evaluation.evaluate import Evaluation, evaluate
from fedbench.evaluation.task import load_items
from fedbench.generation.backend import Backend, Job
from fedbench.generation.opening import Engine, open_backend
from fedbench.generation.ray.cluster import Cluster
from fedbench.generation.ray.slot import Slot
from fedbench.generation.store import AnswerStore
from fedbench.model_config import ModelConfig
from fedbench.scoring import on_base, score

OPTIONS = {"batch_tokens": 256, "generation_tokens": 1024}
TIMES = ("created", "seconds", "command", "peak_memory_bytes")


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for the workers of all tests, with room for two."""
    import ray

    cluster = Cluster.join(None, 2)
    assert cluster.is_own
    yield
    assert ray.is_initialized()  # no scoring has ended what it did not start
    cluster.close()
    assert not ray.is_initialized()
    gc.collect()  # Ray leaves files open, of which no later test shall be warned


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker has with one CPU: with another number of threads, sums round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def adapters(tiny_base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three random adapters of the tiny model."""
    places = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base_directory)
        settings = peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        place = tmp_path_factory.mktemp("adapters") / f"adapter-{seed}"
        adapted: Any = peft.get_peft_model(model, settings)
        adapted.peft_config["default"].base_model_name_or_path = str(tiny_base_directory)
        adapted.save_pretrained(place)
        places.append(str(place))
    return places


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One whose answers are chosen, and one whose answers are written."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"What is the sentiment of news {n}?", "a": str(n)} for n in range(200)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "written.yaml").write_text(
        "name: written\ndescription: Made up.\n"
        f"dataset: {{path: {place / 'rows.jsonl'}, columns: [q, a]}}\n"
        'template: fingpt\nprompt: "{{ q }}"\nreference: "{{ a }}"\n'
        "sampling: {max_tokens: 8}\nmetrics: [exact_match]\n"
    )
    return ["headlines", str(place / "written.yaml")]


def records_of(output: Path) -> list[dict[str, Any]]:
    """What a results directory says, but for times."""
    found = []
    for file in [*sorted(output.glob("*.json*")), *sorted(output.glob("samples/*"))]:
        content = file.read_bytes()
        text = gzip.decompress(content) if file.suffix == ".gz" else content
        rows = map(json.loads, text.splitlines() if ".jsonl" in file.name else [text])
        found += [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return found


def stored(file: Path) -> list[tuple[Any, ...]]:
    """Keys and answers of a store, and whose they are."""
    with contextlib.closing(sqlite3.connect(file)) as db:
        return db.execute("SELECT key, answer, weights, backend FROM answers ORDER BY 1").fetchall()


def test_two_workers_score_as_one_process_does_though_one_is_killed(
    adapters: list[str],
    tasks: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = killing(monkeypatch, {1})
    given, scores, used = {}, {}, {}
    for name, workers in (("alone", {}), ("shared", {"workers": 2})):
        monkeypatch.setenv("FEDBENCH_ANSWERS", str(tmp_path / f"{name}.sqlite"))
        output = tmp_path / name / "scores"
        engine = Engine("transformers", OPTIONS | workers)
        score(adapters, tasks, engine=engine, limit=100, device="cpu", output=output)
        given[name], scores[name] = stored(tmp_path / f"{name}.sqlite"), records_of(output)
        used[name] = [row["facts"].pop("usage", {}) for row in scores[name] if "facts" in row]
    # 3 adapters, 100 items of each task, and 4 requests to each and to the base that show it acts.
    assert len(given["alone"]) == 3 * (100 + 100 + 4) + 4
    assert given["shared"] == given["alone"]
    assert scores["shared"] == scores["alone"]
    assert [line[:10] for line in used["shared"][0]["serving"]] == ["worker on ", "worker on "]
    assert re.findall(r"worker (\d) on .+ has died .+; starting it again", caplog.text) == ["0"]
    assert sum(asked) == len(given["shared"]) + asked[0]  # what the dead one owed, once more


class Scoring:
    """What is asked of one backend, task by task."""

    def __init__(self, base: Path, adapters: Sequence[str], workers: dict[str, Any]) -> None:
        model = ModelConfig(name=str(base), device="cpu")
        found = find_checkpoints(adapters, None, "all")
        self.backend: Any = open_backend(
            str(base), model, found, Engine("transformers", OPTIONS | workers)
        )
        self.checkpoints = [on_base(one, self.backend.base_hash) for one in found]

    def __call__(self, task: str, store: AnswerStore) -> Evaluation:
        loaded = [(one, load_items(one, None, 200, 0)) for one in load_tasks([task])]
        backend: Backend = self.backend
        return evaluate(self.checkpoints, loaded, backend, store)


@pytest.mark.slow
def test_a_worker_that_dies_again_ends_the_scoring_and_what_was_answered_is_kept(
    tiny_base_directory: Path,
    adapters: list[str],
    tasks: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = Scoring(tiny_base_directory, adapters[:1], {})
    kept = AnswerStore(tmp_path / "alone.sqlite")
    expected = [alone(task, kept).completions for task in tasks]
    scoring = Scoring(tiny_base_directory, adapters[:1], {"workers": 1})
    store = AnswerStore(tmp_path / "killed.sqlite")
    deaths = {1}
    asked = killing(monkeypatch, deaths)
    with contextlib.closing(scoring.backend):
        assert scoring(tasks[0], store).completions == expected[0]
        deaths.add(len(asked) + 2)
        with pytest.raises(FedbenchError, match=r"worker 0 on .+ has died twice") as raised:
            scoring(tasks[1], store)
    number = len(store)
    assert number == 4 + 4 + 200 + asked[-2]  # what was answered before the second death
    assert f"{number} answers were given before and are kept" in str(raised.value)
    again = Scoring(tiny_base_directory, adapters[:1], {})
    assert again(tasks[1], store).completions == expected[1]
    assert stored(tmp_path / "killed.sqlite") == stored(tmp_path / "alone.sqlite")


def killing(monkeypatch: pytest.MonkeyPatch, deaths: set[int]) -> list[int]:
    """Kill a worker as it is given one of these shares, of which the first is number 1.

    Returns:
        Requests of each share, as they are given.
    """
    ask = Slot.ask
    given: list[int] = []

    def ask_the_dead(slot: Slot, jobs: Sequence[Job]) -> None:
        assert slot.told is not None
        given.append(sum(len(job.requests) for job in jobs))
        if len(given) in deaths:
            os.kill(slot.told.pid, signal.SIGKILL)
        ask(slot, jobs)

    monkeypatch.setattr(Slot, "ask", ask_the_dead)
    return given


def test_what_workers_cannot_do_is_said_before_anything_is_asked(
    tiny_base_directory: Path, adapters: list[str], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(adapters[0], tmp_path / "moved"))
    found = find_checkpoints([*adapters, str(moved)], None, "all")
    moved.rename(tmp_path / "gone")

    def refused(kind: type[FedbenchError], words: str, **options: Any) -> None:
        model = ModelConfig(name=str(tiny_base_directory), device="cpu")
        with pytest.raises(kind, match=words):
            open_backend(str(tiny_base_directory), model, found, Engine("transformers", options))

    refused(ConfigError, "3 workers with 1 CPUs and 0 GPUs .* has room for 2", workers=3)
    refused(ConfigError, "is cpu, but each worker has 1 GPUs", workers=1, worker_gpus=1)
    refused(CheckpointError, "worker on .+moved: is not on this machine", workers=1)

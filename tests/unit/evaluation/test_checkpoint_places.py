"""Where checkpoints are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbench import checkpoints
from fedbench.checkpoints import find_checkpoints
from fedbench.errors import CheckpointError
from fedbench.generation.backend import Checkpoint
from fedbench.results.record import ModelId


def test_of_a_folder_of_checkpoints_those_within_it_are_named(tmp_path: Path) -> None:
    for name in ("checkpoint-50", "checkpoint-100", "logs"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-50", "checkpoint-100"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
    words = "give those within it, each with --ckpt: checkpoint-100, checkpoint-50$"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoints([str(tmp_path)], None, "all")


def test_a_folder_of_something_else_is_told_what_would_do(tmp_path: Path) -> None:
    words = "give a run directory, a PEFT adapter directory, a model directory or a hub id$"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoints([str(tmp_path)], None, "all")


def test_an_empty_place_is_not_taken_for_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()  # as in a run
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="a checkpoint's place is empty; give"):
        find_checkpoints([""], None, "all")


def adapter(place: Path) -> str:
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (place / "adapter_model.bin").write_bytes(str(place).encode())
    return str(place)


def test_a_place_that_is_named_twice_is_one_model_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = adapter(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    [found] = find_checkpoints([place, "mine/", "./mine"], None, "all")
    assert found.model.label() == "mine"


def test_two_places_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = [adapter(tmp_path / part / "mine") for part in ("a", "b")]
    assert [found.model.label() for found in find_checkpoints(places, None, "all")] == places


def base(directory: str, weights: str) -> Checkpoint:
    model = ModelId(method="base", seed=0, model_kind="base", round=0)
    return Checkpoint(model, "base", None, directory, weights, weights)


def test_runs_share_a_base_of_the_same_weights_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = {"one": base("one/base", "w1"), "two": base("two/base", "w1")}
    bases["three"] = base("three/base", "w3")
    monkeypatch.setattr(checkpoints, "run_checkpoints", lambda run, rule: [bases[run.name]])
    for run in bases:
        (tmp_path / run / "checkpoints").mkdir(parents=True)
    [shared] = find_checkpoints([str(tmp_path / "one"), str(tmp_path / "two")], None, "all")
    assert shared.model.label() == "base round 0 seed 0"
    found = find_checkpoints([str(tmp_path / run) for run in bases], None, "all")
    assert [(one.base, one.model.method) for one in found] == [
        ("one/base", "one/base"),
        ("three/base", "three/base"),
    ]

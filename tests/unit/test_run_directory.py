"""Whose a run directory is, and when it is free again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedbench.config import RunConfig
from fedbench.errors import OutputError
from fedbench.run_directory import CHECKPOINTS, claimed, read_claim
from fedbench.schema import validated


def config(**parts: Any) -> RunConfig:
    made = {
        "name": "made",
        "model": {"name": "org/base"},
        "data": {"train": "headlines"},
        "methods": ["fedavg"],
        "evaluation": {"tasks": ["headlines"]},
    }
    return validated(RunConfig, made | parts, "run.yaml")


def fail(output: Path, *, within: str | None = None) -> None:
    """A training that fails, after it has written a file `within` the run."""

    def train() -> None:
        with claimed(output, config()):
            (output / "partition.json").write_text("{}")
            (output / "base" / "llama").mkdir(parents=True)
            if within is not None:
                file = output / CHECKPOINTS / "fedavg" / within
                file.parent.mkdir(parents=True)
                file.write_text("")
            raise ValueError("no training")

    with pytest.raises(ValueError, match="no training"):
        train()


def test_a_run_that_fails_before_its_first_round_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_else_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    fail(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("file", ["seed-0/round-0001/round.json", "seed-0/privacy.jsonl"])
def test_behind_anything_that_a_round_has_kept_the_directory_stays_the_runs(
    tmp_path: Path, file: str
) -> None:
    fail(tmp_path, within=file)
    assert read_claim(tmp_path) == config()
    assert (tmp_path / CHECKPOINTS / "fedavg" / file).exists()


def test_the_same_run_again_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    with claimed(tmp_path, config()):
        pass
    fail(tmp_path)
    assert read_claim(tmp_path) == config()


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"local": {"max_steps": 3}}, "(local.max_steps: 10 there, 3 here)"),
        ({"seeds": [0, 1]}, "(seeds: [0] there, [0, 1] here)"),
        (
            {"methods": [{"algorithm": "fedavg", "name": "mine"}]},
            '(methods[1].name: "fedavg" there, "mine" here)',
        ),
        ({"model": {"name": "org/" + "long" * 20}}, "(model.name)"),
        (
            {"federation": {"num_clients": 9, "rounds": 8, "clients_per_round": 2}, "seeds": [3]},
            "and 1 more)",
        ),
    ],
    ids=["field", "list", "method", "long", "many"],
)
def test_another_run_is_refused_with_the_fields_that_differ(
    tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    with claimed(tmp_path, config()):
        pass
    with pytest.raises(OutputError) as refused:
        claimed(tmp_path, config(**parts)).__enter__()
    assert said in str(refused.value)
    assert "choose another --output" in str(refused.value)


def test_rounds_of_an_older_content_of_an_algorithms_file_are_not_continued(
    tmp_path: Path,
) -> None:
    file = tmp_path / "own.py"
    code = (
        "from dataclasses import dataclass\nfrom fedbench.federated.fedavg import FedAvg\n"
        "@dataclass(frozen=True)\nclass Own(FedAvg):\n    pass\n"
    )
    file.write_text(code)
    run = config(methods=[{"algorithm": f"{file}:Own", "name": "Own"}])
    output = tmp_path / "run"
    with claimed(output, run):
        record = output / CHECKPOINTS / "Own" / "seed-0" / "round-0001" / "round.json"
        record.parent.mkdir(parents=True)
        facts = {"run_hash": run.hash, "method": "Own", "seed": 0, "round": 1, "last_round": 1}
        of_model = {"model_kind": "global", "base": "b", "base_hash": "h", "template": "plain"}
        record.write_text(json.dumps(facts | of_model))
    with claimed(output, run):
        pass
    file.write_text(code + "# changed\n")
    changed = config(methods=[{"algorithm": f"{file}:Own", "name": "Own"}])
    with pytest.raises(OutputError, match=r"rounds made before .*own\.py was changed"):
        claimed(output, changed).__enter__()

"""What a dry run says, against what follows from the rows by hand; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedbench.config import RunConfig
from fedbench.errors import DataError
from fedbench.estimate import Estimate, estimate


@pytest.fixture
def run(tiny_base_directory: Path, tmp_path: Path) -> dict[str, Any]:
    """A run whose clients have 7 and 3 rows, all of them for training."""
    rows = [
        {"q": f"Is {n} odd?", "a": "yes" if n % 2 else "no", "odd": bool(n % 2), "who": n < 7}
        for n in range(10)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"instruction": "{{ q }}", "response": "{{ a }}", "owner": "{{ who }}"}
    return {
        "name": "made",
        "model": {"name": str(tiny_base_directory), "lora": {"r": 2, "alpha": 4}, "device": "cpu"},
        "data": {
            "train": {"path": str(file), **columns},
            "template": "fingpt",
            "partition": {"by": "natural"},
            "validation": 0,
            "test": 0,
        },
        "methods": [
            "fedavg",
            "centralised",
            {"algorithm": "local", "name": "last", "clients": [1]},
        ],
        "federation": {"num_clients": 2, "rounds": 3, "participation": {"steps": "epochs"}},
        "local": {"batch_size": 2, "max_steps": 50},
        "seeds": [0, 1],
        "evaluation": {"tasks": ["headlines"], "limit": 5},
    }


def test_steps_are_those_of_the_clients_turns(run: dict[str, Any]) -> None:
    told = estimate(RunConfig.model_validate(run))
    # An epoch is 4 steps of 2 rows for 7 rows, and 2 for 3: 6 a round, in 3 rounds, under 2 seeds.
    assert told.steps["fedavg"] == told.steps["centralised"] == 36
    assert told.steps["last"] == 12


def test_what_could_not_be_trained_is_refused_before_the_first_round(run: dict[str, Any]) -> None:
    run["data"]["train"]["desirable"] = "{{ odd }}"
    run["data"]["train"]["where"] = "q == 'Is 0 odd?' or who == False"
    config = RunConfig.model_validate(run | {"objective": {"kind": "kto"}})
    with pytest.raises(DataError, match=r"client \d has a single rated answer, and KTO needs"):
        estimate(config)


def test_long_names_stand_apart_from_their_numbers() -> None:
    told = Estimate(10, 5, {"trimmed_mean": 72}, {"trimmed_mean": 1000}, 0, 0.1, 2**20)
    lines = told.describe().splitlines()
    assert "steps trimmed_mean 72" in lines
    assert "bytes trimmed_mean 1,000 up and down" in lines

"""A model that knows its rows by heart gives them away; one that has learned nothing cannot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fedbench.config import RunConfig
from fedbench.data.example import Example
from fedbench.privacy_audit import DrawnRows, audit_privacy, warn_of_few
from fedbench.results.record import ScoreRecord
from fedbench.run import train
from fedbench.schema import validated

CLIENTS, ROWS = 2, 400  # of each client half is trained on and half is held out


@pytest.fixture(scope="module")
def audited(
    tiny_base_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[ScoreRecord]:
    """The attacks on local models that have passed their few rows twenty times."""
    directory = tmp_path_factory.mktemp("overfitted")
    rng = random.Random(0)
    rows = [
        {"about": f"{rng.randrange(10**5):05d}", "code": f"{rng.randrange(100):02d}", "whose": n}
        for n in range(CLIENTS)
        for _ in range(ROWS)
    ]
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw: dict[str, Any] = {
        "name": "overfitted",
        "model": {"name": str(tiny_base_directory), "lora": None, "device": "cpu"},
        "data": {
            "train": {
                "path": str(file),
                "instruction": "{{ about }}",
                "response": "{{ code }}",
                "owner": "{{ whose }}",
            },
            "template": "bare",
            "partition": {"by": "natural"},
            "validation": 0.0,
            "test": 0.5,
            "canaries": {"per_client": 4, "repeats": [5], "digits": 2},
        },
        "methods": ["local"],
        "federation": {"num_clients": CLIENTS, "rounds": 4},
        "local": {
            "max_steps": 40,
            "batch_size": 25,
            "learning_rate": 0.01,
            "final_learning_rate": 0.0,
            "optimizer_state": "carry",
        },
        "evaluation": {"tasks": ["headlines"], "limit": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDBENCH_ANSWERS", str(directory / "answers.sqlite"))
        return audit_privacy(train(validated(RunConfig, raw, "run.yaml"), directory / "run"))


def found(records: list[ScoreRecord], metric: str, **fields: Any) -> list[ScoreRecord]:
    wanted = {"metric": metric, "group": None, **fields}
    return [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]


@pytest.mark.parametrize("attack", ["membership_auc", "reference_auc"])
def test_an_overfitted_model_gives_away_who_was_in_its_rows(
    audited: list[ScoreRecord], attack: str
) -> None:
    records = found(audited, attack, method="local")
    assert len(records) == CLIENTS + 1
    for record in records:
        assert record.num_examples >= ROWS - 10  # a text that occurs twice is with the members
        assert record.ci_low is not None
        assert record.ci_low > 0.5, record


def test_an_untrained_model_gives_away_nobody(audited: list[ScoreRecord]) -> None:
    records = found(audited, "membership_auc", method="base")
    assert len(records) == CLIENTS + 1
    for record in records:
        assert record.ci_low is not None
        assert record.ci_high is not None
        assert record.ci_low < 0.5 < record.ci_high, record


def test_planted_secrets_are_exposed_by_training_and_not_before(
    audited: list[ScoreRecord],
) -> None:
    [base] = found(audited, "canary_exposure", method="base")
    [own] = found(audited, "canary_exposure", method="local")
    assert base.value is not None
    assert own.value is not None
    assert base.value < 3 < 4 < own.value  # of log2 100 = 6.64 bits; by chance 1.44
    assert base.ci_low is not None
    assert base.ci_low < 1.44
    [extracted] = found(audited, "canary_extraction", method="local")
    assert extracted.value is not None
    assert extracted.value > 0
    [nothing] = found(audited, "canary_extraction", method="base")
    assert nothing.value == 0.0


def test_many_training_rows_do_not_make_up_for_few_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = Example(turns=())
    warn_of_few([DrawnRows([row] * 200, [row] * 200)], seed=0)
    assert not caplog.messages
    warn_of_few([DrawnRows([row] * 500, [row] * 199), DrawnRows([row] * 200, [row] * 200)], seed=0)
    assert caplog.messages[0].startswith("seed 0: 1 of 2 clients have fewer than 200 training rows")

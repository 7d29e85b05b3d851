"""``fedbench score``: what its options take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fedbench import cli, scoring
from fedbench.cli.score import split_names
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.results.samples import Answers, SampleTable, write_samples


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (("fpb,fiqa_sa", " tfns ,"), ["fpb", "fiqa_sa", "tfns"]),
        (("mmlu:num_fewshot=5,fewshot_seed=1,fpb",), ["mmlu:num_fewshot=5,fewshot_seed=1", "fpb"]),
        (
            ("gsm8k:gen_kwargs={temperature: 0.5, until: [a, b], top_p: 1},num_fewshot=1,fpb",),
            ["gsm8k:gen_kwargs={temperature: 0.5, until: [a, b], top_p: 1},num_fewshot=1", "fpb"],
        ),
    ],
)
def test_commas_part_tasks_but_not_the_options_of_one(
    given: tuple[str, ...], names: list[str]
) -> None:
    assert split_names(given) == names


def test_the_address_of_no_judge_is_refused() -> None:
    arguments = ["score", "--ckpt", "a", "--tasks", "mt_bench", "--judge-url", "http://127.0.0.1:9"]
    with pytest.raises(click.UsageError, match="name the judge with --judge"):
        CliRunner().invoke(cli.app, arguments, standalone_mode=False, catch_exceptions=False)


def test_the_commonest_reason_of_failures_is_told_per_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(*_: object, output: Path, **__: object) -> list[ScoreRecord]:
        write_samples(output, table)
        return [record(answers) for answers in table.answers]

    lost = {0: "the connection was lost", 1: "no chat\n template", 3: "no chat\n template"}
    table = made({"served": lost, "late": {2: "x" * 400}, "well": {}})
    monkeypatch.setattr(scoring, "score", score)
    arguments = ["score", "--backend", "openai", "--tasks", "moods", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert [line for line in result.stderr.splitlines() if "failures" in line] == [
        "moods: 2 of 3 failures of served: no chat template",
        f"moods: 1 of 1 failures of late: {'x' * 300} ...",
    ]


def made(errors: dict[str, dict[int, str]]) -> SampleTable:
    """A task of four items, and models with the items that failed."""
    four = [str(n) for n in range(4)]
    shape: dict[str, Any] = {
        **{"task": "moods", "task_version": 1, "task_hash": "h", "labels": ["up", "down"]},
        **{"metrics": ["accuracy"], "headline": "accuracy", "item_ids": four, "item_hashes": four},
        **{"prompt_hashes": four, "references": ["up"] * 4},
        "answers": [
            {
                "model": {"method": method, "model_kind": "reference"},
                "extracted": [None if n in failed else "up" for n in range(4)],
                "status": ["failed" if n in failed else "parsed" for n in range(4)],
                "errors": failed,
            }
            for method, failed in errors.items()
        ],
    }
    return SampleTable.model_validate(shape)


def record(answers: Answers) -> ScoreRecord:
    failed = len(answers.errors)
    shape: dict[str, Any] = {
        **ModelId(method=answers.model.method, model_kind="reference").model_dump(),
        **{"run": "r", "run_hash": "h", "task": "moods", "task_version": 1, "task_hash": "h"},
        **{"metric": "accuracy", "value": None if failed else 1.0, "higher_is_better": True},
        **{"num_examples": 4, "num_scored": 4 - failed, "num_failed": failed, "num_unparsed": 0},
        **{"headline": True, "fedbench": "0.1.0", "created": "2026-01-02T03:04:05Z"},
    }
    return ScoreRecord.model_validate(shape)

"""Several tasks at once, of which some have no data here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation import available
from fedbench.evaluation.available import items_of
from fedbench.evaluation.catalogue import load_task, load_tasks
from fedbench.evaluation.code_checks import CheckConfig
from fedbench.evaluation.task import Task

TASK = """
name: {name}
dataset: {{path: {file}, columns: [text, label]}}
prompt: "{{{{ text }}}}"
labels: [good, bad]
reference: "{{{{ label }}}}"
metrics: [accuracy]
"""


def task(place: Path, name: str, num_rows: int) -> Task:
    """A task of so many rows; of 0 the file is missing."""
    file = place / f"{name}.jsonl"
    rows = [{"text": f"row {n}", "label": "good"} for n in range(num_rows)]
    if rows:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / f"{name}.yaml").write_text(TASK.format(name=name, file=file))
    return load_task(str(place / f"{name}.yaml"))


def test_a_task_without_data_stops_all_unless_it_may_be_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, away = task(tmp_path, "here", 3), task(tmp_path, "away", 0)
    with pytest.raises(DataError, match=r"away\.jsonl: there is no such file"):
        items_of([away, here], None, 0)
    found, left_out = items_of([away, here], 2, 0, skip_missing=True)
    assert [(one.name, len(items)) for one, items in found] == [("here", 2)]
    assert list(left_out) == ["away"]
    assert "there is no such file" in left_out["away"]
    assert "away is left out" in caplog.text


def test_a_task_without_its_tools_or_packages_may_be_missing_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"metrics": ("math_equivalence",), "labels": ()}
    formulas = task(tmp_path, "formulas", 2).model_copy(update=own)
    programs = load_task("humaneval_x:go")
    here = task(tmp_path, "here", 3)

    def nothing_for_go(checks: list[CheckConfig | None]) -> None:
        if any(check is not None and check.by == "go" for check in checks):
            raise ConfigError("toolchain missing: programs in go need go")

    monkeypatch.setattr(available, "needs_sandbox", nothing_for_go)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, left_out = available.items_of([formulas, programs, here], 2, 0, skip_missing=True)
    assert [one.name for one, _ in found] == ["here"]
    assert "the metric math_equivalence needs packages" in left_out["formulas"]
    assert left_out["humaneval_x:go"].startswith("toolchain missing")


def test_nothing_at_all_is_an_error_even_where_tasks_may_be_missing(tmp_path: Path) -> None:
    tasks = [task(tmp_path, name, 0) for name in ("one", "other")]
    with pytest.raises(DataError, match="there is no such file"):
        items_of(tasks, None, 0, skip_missing=True)


def test_suites_are_named_with_commas() -> None:
    both = [one.key for one in load_tasks([], "finance,preference")]
    assert both == ["fpb", "fiqa_sa", "tfns", "nwgi", "hh_rlhf_harmless"]
    with pytest.raises(ConfigError, match="unknown suite 'finanse'"):
        load_tasks([], "preference,finanse")

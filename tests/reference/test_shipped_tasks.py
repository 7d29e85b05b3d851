"""Every shipped task passes `fedbench task check`: on its rows where they are here, else on ours.

``tasks/verified.json`` says on which. To write what is new or has changed, with a mirror that holds
the rows: python tests/reference/test_shipped_tasks.py (--all: everything). That takes all items but
for programs, the tests here the first ones.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbench.data.rows import GENERATED, Source, is_data_file, load_rows, open_mirror
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.catalogue import task_names
from fedbench.evaluation.task import Task
from fedbench.evaluation.task_checks import check_task, on_rows_of, tasks_to_check
from fedbench.evaluation.verified import verified_file, verified_tasks

MADE = Path(__file__).parents[1] / "made_rows"
ITEMS = 100
PROGRAMS, MORE_PROGRAMS = 3, 12


def places(task: Task) -> Iterator[tuple[str, Task]]:
    """The rows that the task can be checked on here, the real ones first."""
    if is_here(task.dataset):
        yield "mirror", task
    for file in sorted(MADE.glob(f"{task.name}.*")):
        yield "fixture", on_rows_of(task, file)


def is_here(source: Source) -> bool:
    """Whether the rows can be had without the hub."""
    if is_data_file(source.path):
        with contextlib.suppress(DataError):
            return bool(load_rows(source))
        return False
    mirror = open_mirror(None)
    return source.path in GENERATED or bool(mirror and mirror.find(source))


def shipped() -> list[Task]:
    return tasks_to_check(task_names())


def failures(task: Task, limit: int | None) -> list[str]:
    found = check_task(task, limit=limit, num_prompts=0).findings
    return [f"{finding.name}: {finding.said}" for finding in found if not finding.passed]


@pytest.mark.parametrize("name", task_names())
def test_a_shipped_task_passes_its_check(name: str) -> None:
    not_here = []
    for task in tasks_to_check([name]):
        assert verified_tasks().get(task.key, {}).get("hash") == task.hash, (
            f"{task.key} is new or has changed: run python {Path(__file__).name}"
        )
        on, found = next(places(task), (None, task))
        if on is None:
            not_here.append(task.key)
            continue
        try:
            assert failures(found, ITEMS if task.check is None else PROGRAMS) == []
        except ConfigError:
            assert task.check is not None  # no sandbox here, or no tools of a language
            not_here.append(task.key)
        # Where a mirror holds other data sets than that of the record, rows of ours do.
        assert verified_tasks()[task.key]["on"] in (on, "mirror")
    if not_here:
        pytest.skip(f"no rows or no tools for {', '.join(not_here)}: set FEDBENCH_DATA")


def test_nothing_is_recorded_of_a_task_that_is_gone() -> None:
    assert set(verified_tasks()) == {task.key for task in shipped()}


def record(every: bool) -> list[str]:
    """Check what is new or has changed, or everything, and keep what it passes on.

    Returns:
        What does not pass.
    """
    amiss = []
    tasks = shipped()
    known = {} if every else verified_tasks()
    entries = {t.key: known[t.key] for t in tasks if known.get(t.key, {}).get("hash") == t.hash}
    for task in tasks:
        if task.key in entries:
            continue
        on, found = next(places(task), (None, task))
        limit = None if task.check is None else MORE_PROGRAMS
        try:
            wrong = failures(found, limit) if on is not None else ["there are no rows for it here"]
        except ConfigError as error:
            wrong = [str(error)]
        if on is None or wrong:
            amiss.append(f"{task.key}: {'; '.join(wrong)}")
            continue
        entries[task.key] = {"on": on, "hash": task.hash}
        # After each task: what has passed is kept where a later one does not.
        lines = [f"{json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries)]
        verified_file().write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return amiss


if __name__ == "__main__":
    sys.exit("\n".join(record(every="--all" in sys.argv)) or 0)

"""Tasks by name: ours, those of lm-eval, and suites of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedbench import resources
from fedbench.errors import ConfigError
from fedbench.evaluation.likelihood import LOSS, loss_of
from fedbench.evaluation.lm_eval_tasks import (
    PREFIX,
    harness_config,
    is_known,
    members,
    names_at_hand,
    version_of,
)
from fedbench.evaluation.task import Task
from fedbench.schema import read_yaml, validated

SUITES = "suites.yaml"
AUDITS = {
    "federation": "Clients on their own rows, gains, drift, bytes, time (`fedbench federation`).",
    "privacy": "Membership inference and planted secrets (`fedbench privacy`).",
}
"""Suites that are of a trained run and not of tasks."""


NOT_TASKS = (SUITES, "datasets.yaml")


_EXTENSION = ".yaml"


def load_tasks(names: Sequence[str], suite: str | None = None) -> list[Task]:
    """The tasks of suites (``finance,math``), then those by name or YAML path, each once.

    A name that is not ours is looked up in lm-eval (``arc_easy``, ``mmlu:num_fewshot=5``), at once
    where it begins with ``lm_eval/``. Of tags, and of groups without a score, all tasks are meant.

    Raises:
        ConfigError: unknown task, variant or suite; the nearest is suggested; or two different
            tasks of one name, whose scores could not be told apart.
    """
    listed = [name for part in (suite or "").split(",") if (name := part.strip())]
    wanted = [*(task for name in listed for task in suite_tasks(name)), *names]
    found: list[Task] = []
    for name in dict.fromkeys(wanted):
        stem, _, variant = name.partition(":")
        theirs = _name_in_lm_eval(stem)
        if theirs is None:
            found.append(load_task(name))
        else:
            found += [_harness_task(member, variant) for member in members(theirs)]
    by_key: dict[str, Task] = {}
    for task in found:
        if by_key.setdefault(task.key, task).hash != task.hash:
            raise ConfigError(
                f"two different tasks are called {task.key}; change the name in one of the files"
            )
    return list(by_key.values())


def load_task(name: str) -> Task:
    """One task by name or by the path of its YAML file, with an optional ``:variant``.

    Raises:
        ConfigError: there is none such, or its file is wrong.
    """
    stem, _, variant = name.partition(":")
    if stem.startswith(LOSS):
        return validated(Task, loss_of(stem.removeprefix(LOSS)), name)
    file = Path(stem) if stem.endswith(_EXTENSION) else _task_file(stem)
    raw = read_yaml(file)
    if variant:
        variants = raw.get("variants") or {}
        if variant not in variants:
            known = ", ".join(variants) or "none"
            raise ConfigError(f"task {stem} has no variant {variant!r}; known are: {known}")
        raw = raw | variants[variant] | {"variant": variant}
    return validated(Task, raw, str(file))


def _name_in_lm_eval(stem: str) -> str | None:
    """lm-eval's name of a task that is not ours; None where it is ours or nobody's."""
    if stem.startswith(PREFIX):
        return stem.removeprefix(PREFIX)
    if stem.endswith(_EXTENSION) or stem.startswith(LOSS):
        return None
    if stem in task_names() or not is_known(stem):
        return None
    return stem


def _harness_task(name: str, variant: str) -> Task:
    config = harness_config(name, variant)
    raw = {
        # Never our own task's name: the same data, asked in another way, gives another number.
        "name": PREFIX + name,
        "version": version_of(name),
        "kind": "harness",
        "harness": config.model_dump(),
        "variant": variant or None,
    }
    return validated(Task, raw, PREFIX + name)


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    files = resources.directory("tasks").glob(f"*{_EXTENSION}")
    return sorted(file.stem for file in files if file.name not in NOT_TASKS)


def suites() -> dict[str, list[str]]:
    """All suites: names of sets of tasks."""
    return {
        name: list(tasks)
        for name, tasks in read_yaml(resources.directory("tasks") / SUITES).items()
    }


def suite_tasks(name: str) -> list[str]:
    """The tasks of a suite.

    Raises:
        ConfigError: there is no such suite.
    """
    table = suites()
    if name in AUDITS:
        raise ConfigError(
            f"suite {name} is of a run and not of tasks: call `fedbench {name} RUN`, or name it "
            "under evaluation.audits of a run file"
        )
    if name not in table:
        raise ConfigError(
            f"unknown suite {name!r}: {_nearest(name, table)}`fedbench list suites` shows all"
        )
    return table[name]


def _task_file(name: str) -> Path:
    known = task_names()
    if name not in known:
        hint = _nearest(name, known) or _nearest(name, names_at_hand())
        raise ConfigError(
            f"unknown task {name!r}: {hint}`fedbench list tasks` shows all, `lm_eval ls tasks` "
            "those of lm-eval"
        )
    return resources.directory("tasks") / f"{name}{_EXTENSION}"


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""

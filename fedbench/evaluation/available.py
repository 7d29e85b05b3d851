"""The items of several tasks, and which of the tasks cannot be asked here."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedbench.errors import ConfigError, DataError, MissingExtraError
from fedbench.evaluation.asking import Progress
from fedbench.evaluation.code_checks import needs_sandbox
from fedbench.evaluation.harness_kept import ItemsOnDemand
from fedbench.evaluation.task import Item, Task, load_items
from fedbench.metrics.packages import needs_packages

_log = logging.getLogger(__name__)


_UNAVAILABLE = (ConfigError, DataError, MissingExtraError)


def items_of(
    tasks: Sequence[Task],
    limit: int | None,
    seed: int,
    *,
    skip_missing: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> tuple[list[tuple[Task, Sequence[Item]]], dict[str, str]]:
    """The tasks with their items, and those that are left out, with the reason.

    Args:
        tasks: ours and lm-eval's.
        limit: only the first items of each.
        seed: of what is drawn.
        skip_missing: leave tasks out whose data, tools or packages are missing; lm-eval's are then
            looked at now, and not when they are asked.
        progress: told of each task.

    Raises:
        DataError: the items of a task cannot be had; with `skip_missing`, those of none can.
        ConfigError: with `skip_missing`, none of the tasks can be asked here.
        MissingExtraError: the same.
    """
    found: list[tuple[Task, Sequence[Item]]] = []
    left_out: dict[str, str] = {}
    for number, task in enumerate(tasks, start=1):
        try:
            items = _seen(task, limit, seed) if skip_missing else _items(task, limit, seed)
        except _UNAVAILABLE as error:
            if not skip_missing or len(left_out) == len(tasks) - 1:
                raise
            left_out[task.key] = str(error)
            _log.warning("%s is left out: %s", task.key, error)
        else:
            found.append((task, items))
        progress("reading tasks", number, len(tasks))
    return found, left_out


def _seen(task: Task, limit: int | None, seed: int) -> Sequence[Item]:
    """The items of a task of which everything is here that it takes."""
    needs_packages(task.metrics)
    needs_sandbox([task.check])
    items = _items(task, limit, seed)
    if isinstance(items, ItemsOnDemand) and items.kept() is None:
        len(items)
    return items


def _items(task: Task, limit: int | None, seed: int) -> Sequence[Item]:
    if task.harness is not None:
        return ItemsOnDemand(task, task.harness, limit, seed)
    return load_items(task, None, limit, seed)

"""What a run trains on and is scored on, loaded without any machine-learning library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedbench.config import RunConfig
from fedbench.data.datasets import (
    DatasetConfig,
    Example,
    dataset_config,
    find_overlaps,
    load_examples,
    normalise,
)
from fedbench.data.templates import get_template
from fedbench.errors import DataError
from fedbench.evaluation.catalogue import load_tasks
from fedbench.evaluation.task import Item, Task, load_items


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is scored on."""

    examples: Sequence[Example]
    """Training rows, without those that share a scored item."""
    num_dropped: int
    """Rows left out because they share a scored item."""
    tasks: Sequence[tuple[Task, Sequence[Item]]]

    @property
    def scored_texts(self) -> list[str]:
        """The texts of all scored items."""
        return [item.text for _, items in self.tasks for item in items]


def load_data(config: RunConfig) -> RunData:
    """Tasks and training rows, the latter without any that share a scored item.

    Raises:
        ConfigError: unknown names.
        DataError: rows cannot be had, or nothing is left to train on.
    """
    chosen = load_tasks(config.evaluation.tasks, config.evaluation.suite)
    for template in (config.data.template, config.evaluation.template):
        if template is not None:
            get_template(template)  # a wrong name is told before anything is trained
    # Whole tasks, whatever evaluation.limit says: no row may share an item that could be scored.
    tasks = [(task, load_items(task, config.data.mirror)) for task in chosen]
    examples = load_examples(config.data.train, config.data.mirror, config.data.limit)
    overlapping = _sharing(examples, [item for _, items in tasks for item in items])
    kept = [example for n, example in enumerate(examples) if n not in overlapping]
    if not kept:
        raise DataError(
            f"data.train {_named(config.data.train)}: all {len(examples)} rows share a scored "
            "item; choose other training data or other tasks"
        )
    limit = config.evaluation.limit
    return RunData(kept, len(overlapping), [(task, items[:limit]) for task, items in tasks])


def _sharing(examples: Sequence[Example], items: Sequence[Item]) -> set[int]:
    """Positions of rows that share the text of a scored item, or its first question.

    Dialogs that begin alike and part later share no whole text, and are of one person all the same.
    """
    asked = {normalise(item.opening) or item.opening for item in items}
    return find_overlaps([example.text for example in examples], [item.text for item in items]) | {
        number
        for number, example in enumerate(examples)
        if (normalise(example.opening) or example.opening) in asked
    }


def describe_data(train: str | DatasetConfig | Sequence[str | DatasetConfig]) -> str:
    """What the data are, in a sentence, for the record and the page."""
    return "; ".join(" ".join(dataset_config(name).description.split()) for name in _each(train))


def _named(train: str | DatasetConfig | Sequence[str | DatasetConfig]) -> str:
    """The data sets as a message names them: as they were written, or by where their rows lie."""
    return ", ".join(name if isinstance(name, str) else name.source.label for name in _each(train))


def _each(
    train: str | DatasetConfig | Sequence[str | DatasetConfig],
) -> Sequence[str | DatasetConfig]:
    return [train] if isinstance(train, str | DatasetConfig) else train

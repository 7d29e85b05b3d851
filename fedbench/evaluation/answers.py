"""Answers that exist already, read from a file and scored without a model.

Every way in which a row names its item narrows the items down: position (`doc_id`), `subset`,
`item_hash`, the data set's own columns (`task_id`, `question_id`, `id`, ...), the columns of the
row itself (`doc`), or, where none of these is given, the text of the question. Exactly one item
must remain. Several answers to one item are samples of it; a metric of one answer is then the
mean over the samples of an item, and the score the mean over items.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.answer_files import ABSENT, AnswerRow, Given, read_answer_file
from fedbench.evaluation.code_checks import by_whom
from fedbench.evaluation.evaluate import columns_of, table_of
from fedbench.evaluation.harness import HarnessItems
from fedbench.evaluation.harness_answers import read_given, restricted, within
from fedbench.evaluation.item_keys import TEXT_COLUMNS, row_hash
from fedbench.evaluation.task import Item, Task
from fedbench.generation.backend import Answer, Checkpoint
from fedbench.results.record import ModelId
from fedbench.results.samples import Answers, SampleTable

Subset = Literal["answered"]
HASH_LENGTH = 16
"""Characters of lm-eval's ``doc_hash`` that are the hash of its tasks' items."""
_TEXT_NAMES = (*TEXT_COLUMNS, "input")


@dataclass(frozen=True)
class ScoredAnswers:
    """A file of answers as results: a table with one model, and what it was made of."""

    table: SampleTable
    checkpoint: Checkpoint
    items: Sequence[Item]
    answers: Sequence[Sequence[Answer]]
    """The samples of each item; where the file has none, one answer with an error."""


def score_answers(
    file: Path,
    task: Task,
    items: Sequence[Item],
    *,
    limit: int | None = None,
    subset: Subset | None = None,
) -> ScoredAnswers:
    """Score a file of answers.

    Args:
        file: rows as `answer_files` reads them.
        task: what they answer.
        items: all items of the task.
        limit: only the first items; rows that answer others are passed over.
        subset: `answered` scores the items that were answered, and the model's name says so;
            otherwise items without an answer count as failed.

    Raises:
        ConfigError: the task is of pairs, which a completion does not choose between; or answers
            are programs and nothing isolates them.
        DataError: the file is damaged, or a row does not name exactly one item.
    """
    if task.is_of_pairs or task.is_of_likelihoods:
        raise ConfigError(
            f"task {task.key}: its items are scored by log-likelihoods, which a file of "
            "completions does not hold; score a checkpoint with --ckpt"
        )
    if task.needs_judge:
        raise ConfigError(
            f"task {task.key}: its answers are rated by a judge; call fedbench judge {file} --task "
            f"{task.key}"
        )
    found = answers_by_item(file, task, items)
    wanted = within(items, limit) if isinstance(items, HarnessItems) else range(len(items[:limit]))
    answered = [position for position in wanted if position in found]
    if not answered:
        raise DataError(f"{file}: answers none of the first {len(wanted)} items; raise --limit")
    name = model_name(file)
    if subset == "answered":
        name = f"{name} (answered subset, {len(answered)} of {len(wanted)})"
    kept = answered if subset == "answered" else wanted
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    model = ModelId(method=name, model_kind="reference")
    backend = by_whom(task.check, "answers")
    named = {"model": model, "weights_hash": digest, "backend": backend}
    own_items: Sequence[Item]
    if isinstance(items, HarnessItems):
        own_items = restricted(items, kept)
        table, columns, samples = read_given(own_items, [found.get(n, []) for n in kept])
    else:
        own_items = [items[position] for position in kept]
        samples = [
            [_answer(given, task, items[n]) for given in found[n]] if n in found else [ABSENT]
            for n in kept
        ]
        table, columns = table_of(task, own_items, None), columns_of(task, own_items, samples)
    table.answers.append(Answers.model_validate(named | columns))
    checkpoint = Checkpoint(model, "base", None, "", digest, "", selected_by="only")
    return ScoredAnswers(table, checkpoint, own_items, samples)


def model_name(file: Path) -> str:
    """What the model of a file of answers is called: as the file, whose version may have dots."""
    return file.name.removesuffix(".gz").rpartition(".")[0] or file.name


def answers_by_item(file: Path, task: Task, items: Sequence[Item]) -> dict[int, list[Given]]:
    """The answers of a file by position of their item, in the order of the file.

    Raises:
        DataError: the file is damaged, or a row does not name exactly one item.
    """
    index = _ItemIndex(task, items)
    found: dict[int, list[Given]] = defaultdict(list)
    first: tuple[str, str] | None = None
    for row in read_answer_file(file):
        names = index.names_of(row)
        way = _way(names)
        first = first or (row.where, way)
        if way != first[1]:
            raise DataError(
                f"{row.where}: names its item by {way}, but {first[0]} by {first[1]}; name all "
                "items in the same way"
            )
        found[index.position(names, row.where)] += row.answers
    return found


def _answer(given: Given, task: Task, item: Item) -> Answer:
    """The part of an answer that belongs to the item's last turn."""
    if given.loglikelihoods:
        num_choices = len(item.question.choices)
        if len(given.loglikelihoods) != num_choices:
            raise DataError(
                f"{given.where}: holds log-likelihoods of {len(given.loglikelihoods)} choices, but "
                f"{item.id} of task {task.key} has {num_choices}; score the task that the file "
                "was written for"
            )
        return Answer(loglikelihoods=given.loglikelihoods)
    if len(given.turns) == 1:
        return Answer(text=given.turns[0])
    turn = len(item.question.turns)
    if len(given.turns) < turn:
        raise DataError(
            f"{given.where}: has {len(given.turns)} turns, but {item.id} asks for the answer to "
            f"turn {turn}; repair the row or leave it out"
        )
    return Answer(text=given.turns[turn - 1])


class _ItemIndex:
    """The items by everything that a row may call them."""

    def __init__(self, task: Task, items: Sequence[Item]) -> None:
        self.task = task
        self.items = items
        self.by_name: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for position, item in enumerate(items):
            for name, value in _names_of_item(item):
                self.by_name[name][value].add(position)

    @cached_property
    def by_text(self) -> Mapping[str, set[int]]:
        """The items by what they ask, in the data set's words and in those of the task."""
        found: dict[str, set[int]] = defaultdict(set)
        for position, item in enumerate(self.items):
            for text in _texts_of_item(item):
                found[_squeezed(text)].add(position)
        return found

    def names_of(self, row: AnswerRow) -> dict[str, str]:
        """What a row calls its item, by name; texts only where there is nothing firmer.

        Raises:
            DataError: it calls it nothing.
        """
        fields = {name: value for name, value in row.fields.items() if value is not None}
        names = {name: _spelled(fields[name]) for name in self.by_name if name in fields}
        doc = fields.get("doc")
        if isinstance(doc, dict):
            names |= self._names_of_doc(doc)
        if isinstance(self.items, HarnessItems) and isinstance(fields.get("doc_hash"), str):
            names["doc"] = fields["doc_hash"][:HASH_LENGTH]
        if names.keys() - {"subset"}:
            return names
        texts = {
            name: _squeezed(fields[name])
            for name in _TEXT_NAMES
            if isinstance(fields.get(name), str) and fields[name].strip()
        }
        if not texts:
            known = ", ".join(name for name in self.by_name if name != "subset")
            raise DataError(
                f"{row.where}: does not say which item it answers; give one of {known}, or the "
                "text of its prompt or question"
            )
        return names | texts

    def _names_of_doc(self, doc: Mapping[str, Any]) -> dict[str, str]:
        """The item's hash, where the columns that it is made of are all there."""
        if "item_hash" in doc:
            return {"doc": str(doc["item_hash"])}
        columns = self.task.dataset.columns
        if self.task.examples is None and columns and all(column in doc for column in columns):
            return {"doc": row_hash(doc, columns)}
        return {}

    def position(self, names: Mapping[str, str], where: str) -> int:
        """The one item that all these names fit.

        Raises:
            DataError: there is none, or there are several.
        """
        fitting = {name: self._fitting(name, value) for name, value in names.items()}
        for name, positions in fitting.items():
            if not positions:
                raise DataError(f"{where}: {self._unknown(name, names[name])}")
        common = set.intersection(*fitting.values())
        if len(common) == 1:
            return common.pop()
        shown = " and ".join(f"{name} {_short(value)}" for name, value in names.items())
        if not common:
            raise DataError(
                f"{where}: {shown} are different items of task {self.task.key}; keep the name "
                "that is right"
            )
        some = ", ".join(self.items[position].id for position in sorted(common)[:3])
        by = "its subset" if "subset" in self.by_name and "subset" not in names else "item_hash"
        raise DataError(
            f"{where}: {shown} fits {len(common)} items of task {self.task.key} ({some}"
            f"{', ...' if len(common) > 3 else ''}); add {by}"
        )

    def _fitting(self, name: str, value: str) -> set[int]:
        if name == "doc":
            return self.by_name["item_hash"].get(value, set())
        if name in self.by_name:
            return self.by_name[name].get(value, set())
        return self.by_text.get(value, set())

    def _unknown(self, name: str, value: str) -> str:
        if name == "doc":
            return (
                f"its doc is no item of task {self.task.key}; score the task and split that the "
                "file was written for, or leave doc out where only its wording differs"
            )
        if name == "doc_id":
            return f"doc_id {value} is not among the {len(self.items)} items"
        return f"{name} {_short(value)} is no item of task {self.task.key}; correct it"


def _names_of_item(item: Item) -> Iterable[tuple[str, str]]:
    yield "doc_id", item.id.rpartition("/")[2]
    yield "item_hash", item.hash
    yield "hash", item.hash
    yield from ((name, text) for name, text in item.keys.items() if name not in TEXT_COLUMNS)


def _texts_of_item(item: Item) -> Iterable[str]:
    turn = item.question.turns[-1]
    yield from (text for name, text in item.keys.items() if name in TEXT_COLUMNS)
    yield from (turn.instruction, turn.input, f"{turn.instruction}\n{turn.input}")
    yield from (item.text, item.opening)


def _spelled(value: Any) -> str:
    """81, 81.0 and "81" are the same id; a table has made the second of the first."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _squeezed(text: str) -> str:
    """Copies of a text differ in white space: at its ends, at line ends, in tables."""
    return " ".join(text.split())


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _way(names: Iterable[str]) -> str:
    """How an item is named; an `input` that only some rows have makes no difference."""
    ways = ["its question" if name in _TEXT_NAMES else name for name in names]
    return " and ".join(dict.fromkeys(ways))

"""What models answered to open-ended tasks: kept as texts in a results directory, read from files.

``answers/<task>.jsonl.gz`` of a results directory has a line with the models, then a line per model
and item with the answers turn by turn. It holds texts, and is no part of what leaderboards keep.
Files of other tools are read as `fedbench.evaluation.answer_files` reads them, one model each.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbench.errors import DataError, RecordError
from fedbench.evaluation.answers import answers_by_item, model_name
from fedbench.evaluation.evaluate import Evaluation, table_of
from fedbench.evaluation.task import Item, Task, load_items
from fedbench.generation.backend import Answer
from fedbench.results.record import ModelId, json_lines, parsed, write_atomically
from fedbench.results.samples import SampleTable

DIRECTORY = "answers"
_ENDING = ".jsonl.gz"
Turns = Sequence[Answer]
Facts = Mapping[str, Any]
"""Of a model's records: `selected_by`, `train_examples`, ..."""


@dataclass(frozen=True)
class Answered:
    """One model's answers to the items of a task."""

    model: ModelId
    turns: Sequence[Turns]
    """Per item, in item order; a conversation ends where an answer failed."""
    weights_hash: str | None = None
    backend: str | None = None
    template: str | None = None
    facts: Facts = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Of all texts, in order."""
        texts = [[answer.text for answer in turns] for turns in self.turns]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class OpenEndedAnswers:
    """An open-ended task, and what models answered to it."""

    task: Task
    items: Sequence[Item]
    table: SampleTable
    """The items, without any model."""
    models: Sequence[Answered]


def answers_of(result: Evaluation, facts: Mapping[str, Facts]) -> list[OpenEndedAnswers]:
    """The open-ended part of an evaluation.

    Args:
        result: what was asked and answered.
        facts: of each model, by `ModelId.label`.
    """
    found = []
    for key, own in result.open_ended.items():
        table = result.tables[key]
        models = [
            Answered(
                answers.model,
                own.conversations[answers.model.label()],
                answers.weights_hash,
                answers.backend,
                result.templates.get(key),
                facts.get(answers.model.label(), {}),
            )
            for answers in table.answers
        ]
        empty = table.model_copy(update={"answers": []})
        found.append(OpenEndedAnswers(own.task, own.items, empty, models))
    return found


def write_answers(directory: Path, answers: OpenEndedAnswers) -> Path:
    """Keep the answers to a task in a results directory.

    Raises:
        OutputError: they cannot be written.
    """
    head = {
        "task": answers.task.key,
        "task_hash": answers.task.hash,
        "prompt_hashes": answers.table.prompt_hashes,
        "models": [
            {
                "model": own.model.to_json(),
                "weights_hash": own.weights_hash,
                "backend": own.backend,
                "template": own.template,
                "facts": dict(own.facts),
            }
            for own in answers.models
        ],
    }
    rows = [head, *(row for own in answers.models for row in _rows(answers.items, own))]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file = directory / DIRECTORY / (answers.task.key.replace(":", "@") + _ENDING)
    return write_atomically(file, gzip.compress(text.encode(), mtime=0))


def kept_tasks(directory: Path) -> list[str]:
    """The keys of the open-ended tasks whose answers a results directory holds."""
    files = sorted((directory / DIRECTORY).glob(f"*{_ENDING}"))
    return [file.name.removesuffix(_ENDING).replace("@", ":") for file in files]


def read_kept(directory: Path, task: Task) -> OpenEndedAnswers:
    """The answers to a task that a results directory holds.

    Raises:
        DataError: the task's rows cannot be had.
        RecordError: the file is damaged, or of another version of the task.
    """
    file = directory / DIRECTORY / (task.key.replace(":", "@") + _ENDING)
    (_, head), *rows = json_lines(file)
    if not isinstance(head, dict) or head.get("task_hash") != task.hash:
        raise RecordError(
            f"{file}: was answered under another version of task {task.key}; score it again"
        )
    asked = {row.get("item") for _, row in rows}
    items = [item for item in load_items(task) if item.id in asked]
    position = {item.id: n for n, item in enumerate(items)}
    turns: dict[str, list[Turns]] = {}
    for number, row in rows:
        try:
            own = turns.setdefault(row["model"], [_NOTHING] * len(items))
            own[position[row["item"]]] = tuple(Answer(**answer) for answer in row["turns"])
        except (KeyError, TypeError) as error:
            raise RecordError(f"{file}:{number}: {error}; score the task again") from error
    table = table_of(task, items, None).model_copy(update={"prompt_hashes": head["prompt_hashes"]})
    models = []
    for known in head["models"]:
        model = parsed(ModelId, known.pop("model"), f"{file}:1")
        models.append(Answered(model, turns.get(model.label(), [_NOTHING] * len(items)), **known))
    return OpenEndedAnswers(task, items, table, models)


def read_answer_files(files: Sequence[Path], task: Task, limit: int | None) -> OpenEndedAnswers:
    """Answers to a task in files of other tools, one model each, named after its file.

    Raises:
        DataError: a file is damaged, a row names no item, or two files have one name.
    """
    items = load_items(task, limit=limit)
    every = items if limit is None else load_items(task)
    models = [_from_file(file, task, every, items) for file in files]
    names = [own.model.label() for own in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{twice[0]}: several files have this name; rename one of them")
    return OpenEndedAnswers(task, items, table_of(task, items, None), models)


_NOTHING: Turns = (Answer(error="no answer in the file"),)


def _rows(items: Sequence[Item], own: Answered) -> list[dict[str, Any]]:
    return [
        {
            "model": own.model.label(),
            "item": item.id,
            **({"question_id": item.keys["question_id"]} if "question_id" in item.keys else {}),
            "turns": [
                {k: v for k, v in (("text", one.text), ("error", one.error)) if v is not None}
                for one in turns
            ],
        }
        for item, turns in zip(items, own.turns, strict=True)
    ]


def _from_file(file: Path, task: Task, every: Sequence[Item], items: Sequence[Item]) -> Answered:
    """The answers of a file, which may answer more items than are judged."""
    found = {every[n].id: given for n, given in answers_by_item(file, task, every).items()}
    turns = []
    for item in items:
        given = found.get(item.id, [])
        if len(given) > 1:
            raise DataError(
                f"{given[1].where}: a second answer to {item.id}; a judge rates one answer of a "
                "model to an item: keep one, or give the samples as files of their own"
            )
        own = [Answer(text=text) for one in given for text in one.turns]
        turns.append(tuple(own) or _NOTHING)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    model = ModelId(method=model_name(file), model_kind="reference")
    return Answered(model, turns, digest, "answers", facts={"selected_by": "only"})

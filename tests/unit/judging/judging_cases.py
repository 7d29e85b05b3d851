"""A task, answers to it and a judge that says what a test wants, for tests of judging."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedbench.data.templates import get_template
from fedbench.evaluation.task import Task, load_items
from fedbench.generation.backend import Answer, Checkpoint, Request
from fedbench.generation.scripted import ScriptedBackend
from fedbench.judging.conversations import Answered, OpenEndedAnswers
from fedbench.judging.judge import Judge
from fedbench.judging.judged import JudgedCase
from fedbench.judging.results import records_of
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.schema import validated

COMMON = {"run": "r", "run_hash": "h", "fedbench": "0", "created": "2026-01-01T00:00:00Z"}
ROWS = [
    {"question_id": 1, "category": "math", "turns": ["Add 1 and 2.", "Double it."]},
    {"question_id": 2, "category": "writing", "turns": ["Write a line.", "Now shorter."]},
]


def task(directory: Path, **changes: Any) -> Task:
    file = directory / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made: dict[str, Any] = {
        "name": "mt_bench",
        "dataset": {"path": str(file), "columns": ["question_id", "turns"]},
        "group_by": "category",
        "turns": "turns",
        "rubric": "mt_bench-fedbench",
        "metrics": ["judge_score"],
    }
    return validated(Task, made | changes, "mt_bench")


def answered(made: Task, **models: Sequence[Sequence[str | None]]) -> OpenEndedAnswers:
    """Answers of some models, by item its turns; None is an answer that failed."""
    from fedbench.evaluation.evaluate import table_of as empty_table

    items = load_items(made)

    def turn(text: str | None) -> Answer:
        return Answer(error="the engine stopped") if text is None else Answer(text=text)

    own = [
        Answered(
            ModelId(method=name, model_kind="global"),
            [[turn(text) for text in turns] for turns in given],
            weights_hash=f"weights of {name}",
            facts={"selected_by": "last"},
        )
        for name, given in models.items()
    ]
    return OpenEndedAnswers(made, items, empty_table(made, items, None), own)


TALKS = [["three", "six"], ["a line", "line"]]


class Replying(ScriptedBackend):
    """A judge that says what a function of its prompt says, and remembers what it was asked."""

    def __init__(self, reply: Callable[[str], str] | Sequence[str]) -> None:
        super().__init__(reply, batch_size=1)
        self.asked: list[Request] = []

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        self.asked += requests
        return super().answer(requests)


def judge(reply: Callable[[str], str] | Sequence[str], **options: Any) -> Judge:
    weights = options.pop("weights", "judge")
    checkpoint = Checkpoint(
        ModelId(method="judge", model_kind="base"), "base", None, "judge", weights, weights
    )
    backend = options.pop("backend", None) or Replying(reply)
    return Judge(backend, checkpoint, "judge", get_template("plain"), **options)


def rating(prompt: str) -> str:
    """9 for second turns, 5 for others."""
    return f"Fine. Rating: [[{9 if 'SECOND REPLY' in prompt else 5}]]"


def scores(judged: JudgedCase) -> dict[tuple[str, str | None], ScoreRecord]:
    return {(one.metric, one.group): one for one in records_of(judged, COMMON)}

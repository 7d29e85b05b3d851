"""Conversations: a later turn is asked behind the model's own answers, nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedbench.data.templates import Turn, get_template
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.evaluate import Evaluation, evaluate
from fedbench.evaluation.task import Item, Task, load_items
from fedbench.generation.backend import Answer, Checkpoint, Job, Question, Request, Sampling
from fedbench.generation.scripted import ScriptedBackend
from fedbench.generation.store import AnswerStore
from fedbench.results.record import ModelId
from fedbench.schema import validated

PLAIN = get_template("plain")
ROWS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now shorter."]},
    {"question_id": 111, "category": "math", "turns": ["Add 1 and 2.", "Double it."]},
    {"question_id": 1, "category": "riddle", "turns": ["Who am I?"]},
]


def task(directory: Path, **changes: Any) -> Task:
    file = directory / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made: dict[str, Any] = {
        "name": "talks",
        "dataset": {"path": str(file), "columns": ["question_id", "turns"]},
        "turns": "turns",
        "rubric": "mt_bench-fedbench",
        "template": "plain",
        "sampling": {
            "temperature": 0.7,
            "temperature_by": {"column": "category", "values": {"math": 0.0, "writing": 0.5}},
        },
        "metrics": ["judge_score"],
    }
    return validated(Task, made | changes, "talks")


def model(name: str = "fedavg") -> Checkpoint:
    identity = ModelId(method=name, model_kind="global", round=1)
    return Checkpoint(identity, "adapter", None, "org/base", f"weights of {name}", "base")


class Talking(ScriptedBackend):
    """Answers with how long the prompt was, and remembers what it was asked."""

    def __init__(self, fails_on: str = "", dies_on: str = "") -> None:
        super().__init__(lambda prompt: f"<{len(prompt)}>", batch_size=2)
        self.asked: list[Request] = []
        self.fails_on, self.dies_on = fails_on, dies_on

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        if self.dies_on and any(r.prompt.endswith(self.dies_on) for r in requests):
            raise KeyboardInterrupt
        self.asked += requests
        given = super().answer(requests)
        return [
            Answer(error="the engine stopped")
            if self.fails_on and request.prompt.endswith(self.fails_on)
            else answer
            for request, answer in zip(requests, given, strict=True)
        ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    opened = AnswerStore(tmp_path / "answers.sqlite")
    yield opened
    opened.close()


def texts(result: Evaluation, name: str = "fedavg round 1") -> list[list[str | None]]:
    turns = result.open_ended["talks"].conversations[name]
    return [[answer.text for answer in own] for own in turns]


def asked(made: Task) -> Sequence[Item]:
    return load_items(made)


def test_a_second_turn_is_asked_behind_the_models_own_first_answer(
    tmp_path: Path, store: AnswerStore
) -> None:
    made, backend = task(tmp_path), Talking()
    result = evaluate([model()], [(made, asked(made))], backend, store)
    prompts = [request.prompt for request in backend.asked]
    # "Write a line." and a line end are 14 characters; scripted answers end in "</s>".
    assert prompts == [
        "Write a line.\n",
        "Add 1 and 2.\n",
        "Who am I?\n",
        "Write a line.\n<14></s>\nNow shorter.\n",
        "Add 1 and 2.\n<13></s>\nDouble it.\n",
    ]
    assert texts(result) == [["<14>", "<36>"], ["<13>", "<33>"], ["<10>"]]


def test_each_model_goes_on_from_its_own_answers(tmp_path: Path, store: AnswerStore) -> None:
    class Own(Talking):
        def use(self, checkpoint: Checkpoint) -> Any:
            self._script = lambda prompt: checkpoint.model.method
            return super().use(checkpoint)

    made, backend = task(tmp_path), Own()
    evaluate([model("one"), model("two")], [(made, asked(made))], backend, store)
    later = [request.prompt for request in backend.asked if "shorter" in request.prompt]
    assert later == [f"Write a line.\n{name}</s>\nNow shorter.\n" for name in ("one", "two")]


def test_categories_are_answered_at_their_own_temperature(
    tmp_path: Path, store: AnswerStore
) -> None:
    made, backend = task(tmp_path), Talking()
    evaluate([model()], [(made, asked(made))], backend, store)
    assert [request.sampling.temperature for request in backend.asked] == [0.5, 0, 0.7, 0.5, 0]


def test_a_run_that_was_killed_between_turns_asks_only_for_the_rest(
    tmp_path: Path, store: AnswerStore
) -> None:
    made = task(tmp_path)
    whole = evaluate([model()], [(made, asked(made))], Talking(), store)
    other = AnswerStore(tmp_path / "killed.sqlite")
    killed, resumed = Talking(dies_on="Double it.\n"), Talking()
    with pytest.raises(KeyboardInterrupt):
        evaluate([model()], [(made, asked(made))], killed, other)
    result = evaluate([model()], [(made, asked(made))], resumed, other)
    other.close()
    assert len(killed.asked) == 3  # the first turns
    assert len(resumed.asked) == 2  # the batch with the second turns
    assert texts(result) == texts(whole)


def test_scoring_again_asks_nothing(tmp_path: Path, store: AnswerStore) -> None:
    made, again = task(tmp_path), Talking()
    first = evaluate([model()], [(made, asked(made))], Talking(), store)
    second = evaluate([model()], [(made, asked(made))], again, store)
    assert again.asked == []
    assert (first.num_asked, second.num_asked) == (5, 0)
    assert texts(second) == texts(first)


def test_a_conversation_ends_where_an_answer_failed(tmp_path: Path, store: AnswerStore) -> None:
    made, backend = task(tmp_path), Talking(fails_on="Add 1 and 2.\n")
    result = evaluate([model()], [(made, asked(made))], backend, store)
    assert not any("Double" in request.prompt for request in backend.asked)
    [answers] = result.tables["talks"].answers
    assert answers.status == ["parsed", "failed", "parsed"]
    assert answers.errors == {1: "the engine stopped"}


def test_a_later_turn_that_failed_says_which_it_was(tmp_path: Path, store: AnswerStore) -> None:
    made, backend = task(tmp_path), Talking(fails_on="Double it.\n")
    result = evaluate([model()], [(made, asked(made))], backend, store)
    [answers] = result.tables["talks"].answers
    assert answers.errors == {1: "turn 2: the engine stopped"}


def test_texts_are_no_part_of_the_table(tmp_path: Path, store: AnswerStore) -> None:
    made = task(tmp_path)
    result = evaluate([model()], [(made, asked(made))], Talking(), store)
    [answers] = result.tables["talks"].answers
    assert answers.extracted == [None, None, None]


def test_thoughts_of_an_earlier_answer_are_not_told_again(
    tmp_path: Path, store: AnswerStore
) -> None:
    class Thinking(Talking):
        def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
            self.asked += requests
            return [Answer(text="<think>Hm.</think>Well.", finish="stop") for _ in requests]

    made, backend = task(tmp_path), Thinking()
    result = evaluate([model()], [(made, asked(made))], backend, store)
    assert backend.asked[3].prompt == "Write a line.\nWell.</s>\nNow shorter.\n"
    assert result.num_thoughts == 5


def test_the_resident_model_reads_its_own_answer_in_the_second_turn(
    tmp_path: Path, store: AnswerStore, tiny_base_directory: Path
) -> None:
    from fedbench.generation.transformers import TransformersBackend
    from fedbench.model_config import ModelConfig
    from fedbench.weights import base_hash

    config = ModelConfig(name=str(tiny_base_directory), device="cpu")
    backend = TransformersBackend(str(tiny_base_directory), config)
    digest = base_hash(None, tiny_base_directory)
    base = Checkpoint(ModelId(method="base", model_kind="base"), "base", None, "", digest, digest)
    made = task(tmp_path, sampling={"max_tokens": 6})
    result = evaluate([base], [(made, asked(made))], backend, store)
    first, second = texts(result, "base")[0]
    assert first
    talk = (Turn("Write a line.", response=first), Turn("Now shorter."))
    [request] = backend.prepare([Question(talk, "generate", Sampling(max_tokens=6))], PLAIN)
    assert first in request.prompt
    [(_, [answer])] = backend.stream([Job(base, (request,), ("key",))])
    assert answer.text == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "Well?"}, "prompt is required, or turns in its place; give one of them"),
        ({"turns": None}, "prompt is required, or turns in its place; give one of them"),
        ({"rubric": None}, "reference is required; add it, or a rubric"),
        (
            {"rubric": None, "reference": "yes"},
            "metric judge_score is of a judge; add the rubric that it judges by",
        ),
        ({"input": "{{ category }}"}, "turns go with neither input nor several samples"),
        ({"kind": "choice", "labels": ["a"]}, "turns and rubric are of kind generate"),
    ],
)
def test_a_task_that_does_not_hold_together_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task(tmp_path, **changes)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("conversation", "row 0: turns: 'conversation' is undefined"),
        ("question_id", "row 0: turns: question_id gives no list of texts"),
        ("[turns]", "row 0: turns: \\[turns\\] gives more than texts"),
    ],
)
def test_a_row_without_turns_is_named(tmp_path: Path, expression: str, message: str) -> None:
    made = task(tmp_path, turns=expression)
    with pytest.raises(DataError, match=message):
        load_items(made)

"""Scoring many checkpoints: failed, unparsed and wrong are three things; nothing is asked twice."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedbench.data.templates import Turn, get_template
from fedbench.errors import CheckpointError, ConfigError
from fedbench.evaluation import asking
from fedbench.evaluation.evaluate import Evaluation, evaluate, read_answers
from fedbench.evaluation.scores import score_table
from fedbench.evaluation.task import Item, Task
from fedbench.generation.backend import Answer, Batch, Checkpoint, Question, Request, Sampling
from fedbench.generation.scripted import ScriptedBackend
from fedbench.generation.store import AnswerStore, answer_keys
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.schema import validated

LABELS = ("no", "yes")


def task(**changes: Any) -> Task:
    made: dict[str, Any] = {
        "name": "made",
        "dataset": {"path": "rows.jsonl", "columns": ["text"]},
        "prompt": "Up?",
        "input": "{{ text }}",
        "reference": "{{ answer }}",
        "labels": LABELS,
        "extract": "label_word",
        "template": "plain",
        "metrics": ["accuracy", "macro_f1"],
    }
    return validated(Task, made | changes, "made")


def items(references: Sequence[str], kind: str = "generate", **fields: Any) -> list[Item]:
    choices = LABELS if kind == "choice" else ()
    return [
        Item(
            id=f"test/{n}",
            hash=f"item {n}",
            question=Question((Turn("Up?", f"text {n}"),), kind, Sampling(), choices),
            reference=reference,
            **fields,
        )
        for n, reference in enumerate(references)
    ]


def checkpoint(round: int = 1, **fields: Any) -> Checkpoint:
    known = Checkpoint(
        model=ModelId(method="fedavg", model_kind="global", seed=0, round=round),
        kind="adapter",
        directory=None,
        base="org/base",
        weights_hash=f"weights {round}",
        base_hash="base",
    )
    return replace(known, **fields)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    opened = AnswerStore(tmp_path / "answers.sqlite")
    yield opened
    opened.close()


def scored(result: Evaluation, max_failed: float = 0.05) -> dict[str, ScoreRecord]:
    """The records of the only model and task, by metric."""
    common = {"run": "r", "run_hash": "h", "fedbench": "0", "created": "2026-01-01T00:00:00Z"}
    [table] = result.tables.values()
    records = list(score_table(table, common, {}, max_failed=max_failed))
    return {record.metric: record for record in records}


class Failing(ScriptedBackend):
    """Says why it has no answer where the script says FAIL."""

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        return [
            Answer(error="the engine stopped") if answer.text == "FAIL" else answer
            for answer in super().answer(requests)
        ]


# Failed, unparsed, wrong


def test_failed_unparsed_and_wrong_are_three_things(store: AnswerStore) -> None:
    script = ["yes", "no", "perhaps", "FAIL", "yes"]
    asked = items(["yes", "yes", "yes", "yes", "no"])
    result = evaluate([checkpoint()], [(task(), asked)], Failing(script), store)
    [answers] = result.tables["made"].answers
    assert answers.status == ["parsed", "parsed", "unparsed", "failed", "parsed"]
    assert answers.extracted == ["yes", "no", None, None, "yes"]
    assert answers.errors == {3: "the engine stopped"}
    record = scored(result, max_failed=0.5)["accuracy"]
    assert (record.num_examples, record.num_scored) == (5, 4)
    assert (record.num_failed, record.num_unparsed) == (1, 1)
    assert record.value == 0.25  # one of the four that were answered


def test_an_unparsed_answer_is_wrong_and_a_failed_one_is_left_out(store: AnswerStore) -> None:
    asked = items(["yes", "yes"])
    unparsed = evaluate([checkpoint()], [(task(), asked)], ScriptedBackend(["yes", "?"]), store)
    failed = evaluate([checkpoint(2)], [(task(), asked)], Failing(["yes", "FAIL"]), store)
    assert scored(unparsed)["accuracy"].value == 0.5
    assert scored(failed, max_failed=0.5)["accuracy"].value == 1.0


@pytest.mark.parametrize(("num_failed", "withheld"), [(1, False), (2, True)])
def test_a_score_is_withheld_above_the_share_of_failures(
    store: AnswerStore, num_failed: int, withheld: bool
) -> None:
    script = ["FAIL"] * num_failed + ["yes"] * (20 - num_failed)
    result = evaluate([checkpoint()], [(task(), items(["yes"] * 20))], Failing(script), store)
    record = scored(result, max_failed=0.05)["accuracy"]  # one in twenty is just allowed
    assert record.num_failed == num_failed
    assert (record.value is None) is withheld
    assert (record.ci_low is None) is withheld
    assert (record.stderr is None) is withheld


def test_a_score_of_nothing_is_withheld_and_not_zero(store: AnswerStore) -> None:
    result = evaluate([checkpoint()], [(task(), items(["yes"]))], Failing(["FAIL"]), store)
    record = scored(result, max_failed=0.99)["accuracy"]
    assert record.value is None
    assert (record.num_scored, record.num_failed) == (0, 1)


def test_a_choice_is_the_likeliest_label_and_never_unparsed() -> None:
    chosen = [Answer(loglikelihoods=(-3.0, -0.5)), Answer(loglikelihoods=(-0.1, -9.0))]
    values, statuses = read_answers(task(kind="choice"), chosen)
    assert values == ["yes", "no"]
    assert statuses == ["parsed", "parsed"]


def test_a_text_that_chooses_nothing_is_unparsed() -> None:
    """Answers from elsewhere to a task of choices: without a rule, a label stands alone."""
    given = [Answer(text="yes"), Answer(text="Yes."), Answer(text="")]
    values, statuses = read_answers(task(kind="choice", extract="verbatim"), given)
    assert values == ["yes", None, None]
    assert statuses == ["parsed", "unparsed", "unparsed"]


def test_choices_are_asked_as_choices(store: AnswerStore) -> None:
    backend = ScriptedBackend(["yes", "yes", "no"])
    asked = items(["yes", "no", "no"], kind="choice")
    result = evaluate([checkpoint()], [(task(kind="choice"), asked)], backend, store)
    assert scored(result)["accuracy"].value == pytest.approx(2 / 3)


# Records


def test_a_record_says_which_model_and_how_many_clusters(store: AnswerStore) -> None:
    asked = [
        replace(item, cluster=f"passage {n // 2}") for n, item in enumerate(items(["yes"] * 6))
    ]
    result = evaluate([checkpoint(3)], [(task(), asked)], ScriptedBackend(["yes"] * 6), store)
    records = scored(result)
    assert [(r.metric, r.headline) for r in records.values()] == [
        ("accuracy", True),
        ("macro_f1", False),
    ]
    record = records["accuracy"]
    assert record.model == checkpoint(3).model
    assert (record.weights_hash, record.backend) == ("weights 3", "scripted")
    assert record.num_clusters == 3
    assert record.task_hash == task().hash


def test_the_table_holds_hashes_of_prompts_and_no_text(store: AnswerStore) -> None:
    result = evaluate(
        [checkpoint()], [(task(), items(["yes"] * 2))], ScriptedBackend(["yes"] * 2), store
    )
    table = result.tables["made"]
    assert len(set(table.prompt_hashes)) == 2
    assert "text 0" not in str(table.to_json())
    assert result.completions["made", "fedavg round 1 seed 0"] == ["yes", "yes"]


# Nothing is asked twice


def test_a_second_evaluation_asks_nothing(store: AnswerStore) -> None:
    asked = [(task(), items(["yes", "no"]))]
    first = evaluate([checkpoint()], asked, ScriptedBackend(["yes", "yes"]), store)
    silent = ScriptedBackend([])
    again = evaluate([checkpoint()], asked, silent, store)
    assert silent.num_answered == 0
    assert again.tables == first.tables


def test_another_round_is_asked_for_itself(store: AnswerStore) -> None:
    asked = [(task(), items(["yes", "no"]))]
    evaluate([checkpoint(1)], asked, ScriptedBackend(["yes", "yes"]), store)
    backend = ScriptedBackend(["no", "no"])
    result = evaluate([checkpoint(1), checkpoint(2)], asked, backend, store)
    assert backend.num_answered == 2
    assert [a.extracted for a in result.tables["made"].answers] == [["yes", "yes"], ["no", "no"]]


def test_a_failed_answer_is_asked_for_again(store: AnswerStore) -> None:
    asked = [(task(), items(["yes", "yes"]))]
    evaluate([checkpoint()], asked, Failing(["yes", "FAIL"], batch_size=1), store)
    assert len(store) == 1
    backend = ScriptedBackend(["yes"], batch_size=1)
    result = evaluate([checkpoint()], asked, backend, store)
    assert backend.num_answered == 1
    assert scored(result)["accuracy"].value == 1.0


class Stopping(ScriptedBackend):
    """Is interrupted at the third batch."""

    batches = 0

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        self.batches += 1
        if self.batches == 3:
            raise KeyboardInterrupt
        return super().answer(requests)


def test_answers_given_before_an_interruption_are_kept(store: AnswerStore) -> None:
    asked = [(task(), items(["yes"] * 7))]
    with pytest.raises(KeyboardInterrupt):
        evaluate([checkpoint()], asked, Stopping(["yes"] * 7, batch_size=2), store)
    assert len(store) == 4  # two batches of two
    rest = ScriptedBackend(["yes"] * 3, batch_size=2)
    result = evaluate([checkpoint()], asked, rest, store)
    assert rest.num_answered == 3
    assert scored(result)["accuracy"].value == 1.0


class Watching(ScriptedBackend):
    """Writes down the batches it is asked, and with which weights."""

    def __init__(self, script: Any, batch_size: int = 8) -> None:
        super().__init__(script, batch_size)
        self.asked: list[list[str]] = []
        self.prepared = 0
        self.used: list[int | None] = []

    def prepare(self, questions: Sequence[Question], template: Any) -> list[Request]:
        self.prepared += len(questions)
        return super().prepare(questions, template)

    @contextlib.contextmanager
    def use(self, checkpoint: Checkpoint) -> Iterator[None]:
        self.used.append(checkpoint.model.round)
        yield

    def answer(self, requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        self.asked.append([request.prompt.split()[-1] for request in requests])
        return super().answer(requests)


@dataclass
class Planned:
    requests: Sequence[Request]
    batches: Sequence[Batch]


def test_what_was_answered_is_stored_before_another_process_is_waited_for(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes would otherwise wait for each other's last answers for ever."""
    backend = ScriptedBackend(["yes"], batch_size=1)
    questions = [item.question for item in items(["yes", "no"])]
    part = Planned(
        requests := backend.prepare(questions, get_template("plain")), backend.plan(requests)
    )
    ours, theirs = answer_keys(checkpoint(), requests, backend.name)
    other = AnswerStore(store.file)
    assert other.claim([[theirs]]) == ["ours"]
    seen = []

    def wait(seconds: float) -> None:
        seen.append(other.get([ours]))
        other.put({theirs: Answer(text="no")})

    monkeypatch.setattr(asking, "_SECONDS", math.inf)  # nothing is stored for being late
    monkeypatch.setattr(asking.time, "sleep", wait)
    with contextlib.closing(other):
        [answers] = asking.Asking(backend, store).ask([(checkpoint(), part)])
    assert [answer.text for answer in answers] == ["yes", "no"]
    assert seen == [{ours: Answer(text="yes", finish="stop")}]


def test_the_batches_do_not_depend_on_what_is_stored(store: AnswerStore) -> None:
    asked = [(task(), items(["yes"] * 5))]
    whole = Watching(lambda prompt: "yes", batch_size=2)
    evaluate([checkpoint(1)], asked, whole, store)
    assert whole.asked == [["0", "1"], ["2", "3"], ["4"]]
    # One answer of the first batch and the whole last one are known already.
    evaluate(
        [checkpoint(2)],
        [(task(), items(["yes"] * 5))],
        Failing(["yes", "FAIL", "FAIL", "FAIL", "yes"], batch_size=2),
        store,
    )
    resumed = Watching(lambda prompt: "yes", batch_size=2)
    evaluate([checkpoint(2)], asked, resumed, store)
    assert resumed.asked == [["0", "1"], ["2", "3"]]


def test_questions_are_prepared_once_for_all_checkpoints(store: AnswerStore) -> None:
    backend = Watching(lambda prompt: "yes")
    checkpoints = [checkpoint(round) for round in (1, 2, 3)]
    evaluate(checkpoints, [(task(), items(["yes"] * 4))], backend, store)
    assert backend.prepared == 4
    assert backend.used == [1, 2, 3]


def test_weights_are_not_loaded_where_every_answer_is_known(store: AnswerStore) -> None:
    class Broken(ScriptedBackend):
        @contextlib.contextmanager
        def use(self, checkpoint: Checkpoint) -> Iterator[None]:
            raise CheckpointError("gone")
            yield

    asked = [(task(), items(["yes"]))]
    evaluate([checkpoint()], asked, ScriptedBackend(["yes"]), store)
    result = evaluate([checkpoint()], asked, Broken([]), store)
    assert scored(result)["accuracy"].value == 1.0
    with pytest.raises(CheckpointError, match="gone"):
        evaluate([checkpoint(2)], asked, Broken([]), store)


def test_progress_tells_of_each_batch(store: AnswerStore) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(
        [checkpoint()],
        [(task(), items(["yes"] * 3))],
        ScriptedBackend(["yes"] * 3, batch_size=2),
        store,
        progress=lambda *what: told.append(what),
    )
    what = "scoring fedavg round 1 seed 0"
    assert told == [(what, 1, 2), (what, 2, 2)]


# Templates


def template_used(
    store: AnswerStore, *trained: str | None, own: str | None = None, given: str | None = None
) -> str:
    checkpoints = [checkpoint(n, template=name) for n, name in enumerate(trained)]
    asked = [(task(template=own), items(["yes"]))]
    backend = ScriptedBackend(lambda prompt: "yes")
    return evaluate(checkpoints, asked, backend, store, template=given).templates["made"]


def test_what_is_given_comes_before_the_trained_and_the_tasks_own_template(
    store: AnswerStore,
) -> None:
    assert template_used(store, "alpaca", own="fingpt", given="plain") == "plain"
    assert template_used(store, "alpaca", own="fingpt") == "alpaca"
    assert template_used(store, "alpaca", None, own="fingpt") == "alpaca"
    assert template_used(store, None, own="fingpt") == "fingpt"


def test_a_model_without_any_template_is_asked_by_its_chat_template(store: AnswerStore) -> None:
    with pytest.raises(ConfigError, match="has no chat template; choose one of"):
        template_used(store, None)


def test_checkpoints_of_different_templates_are_refused(store: AnswerStore) -> None:
    with pytest.raises(ConfigError, match=r"different templates \(alpaca, plain\).*--template"):
        template_used(store, "plain", "alpaca")
    assert template_used(store, "plain", "alpaca", given="vicuna") == "vicuna"

"""Judging what models answered: what a judge is asked, and the records that its verdicts make.

All models' answers to a task go through the judge in one queue. Of an item that the model itself
did not answer nothing is asked: it has failed, as one without a verdict has.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.asking import Progress
from fedbench.evaluation.known_answers import KnownAnswers, Turns, answer_to
from fedbench.evaluation.task import Item, Task
from fedbench.generation.backend import Sampling
from fedbench.generation.store import AnswerStore
from fedbench.judging.agreement import Key, read_labels
from fedbench.judging.arena import rating_facts
from fedbench.judging.conversations import Answered, OpenEndedAnswers
from fedbench.judging.judge import Judge, Judging, Judgment
from fedbench.judging.length_control import LengthControl
from fedbench.judging.protocols import (
    Protocol,
    length_control_of,
    plan,
    protocol_of,
    with_length_control,
)
from fedbench.judging.questions import JudgedQuestion
from fedbench.judging.reliability import name_of, reliability, verdicts
from fedbench.judging.rows import JudgmentRow, PlannedJudgment
from fedbench.judging.rubric import Rubric
from fedbench.schema import validated


@dataclass(frozen=True)
class Baseline:
    """Whose answers the models' are compared with."""

    name: str
    answers: Mapping[str, Turns]
    """By item id."""


@dataclass(frozen=True)
class Case:
    """A task's answers, and how they are judged."""

    answers: OpenEndedAnswers
    rubric: Rubric
    protocol: Protocol
    baseline: Baseline | None = None
    repeats: int = 1

    def plan(self, model: Answered) -> list[PlannedJudgment]:
        """What a judge is asked about one model.

        Raises:
            ConfigError: the rubric asks for something that the task does not have.
            DataError: the baseline did not answer an item.
        """
        questions, given = [], {}
        for question, turns in zip(self.questions(), model.turns, strict=True):
            if turns[-1].error is None:
                questions.append(question)
                given[question.id] = [[answer.text or "" for answer in turns]]
        against = None
        if self.baseline is not None:
            against = {name: [turns] for name, turns in self.baseline.answers.items()}
        return plan(self.protocol, self.rubric, questions, given, against, repeats=self.repeats)

    def failed(self, model: Answered, judge: str) -> list[JudgmentRow]:
        """Rows of the items that the model did not answer, as many as of those that it did."""
        rows = []
        for question, turns in zip(self.questions(), model.turns, strict=True):
            if turns[-1].error is None:
                continue
            for turn in range(1, min(self.protocol.turns, len(question.turns)) + 1):
                for order in self.protocol.orders if self.protocol.pairs else (None,):
                    blank = PlannedJudgment(question.id, turn, {}, question.category, order)
                    row = self._row(blank, Judgment.failed(turns[-1].error), model, judge)
                    rows += [replace(row, repeat=repeat) for repeat in range(self.repeats)]
        return rows

    def rows(
        self,
        planned: Sequence[PlannedJudgment],
        judgments: Sequence[Judgment],
        model: Answered,
        judge: str,
    ) -> list[JudgmentRow]:
        """The judge's verdicts on one model, and what failed."""
        pairs = zip(planned, judgments, strict=True)
        found = [self._row(one, judgment, model, judge) for one, judgment in pairs]
        return [*found, *self.failed(model, judge)]

    def questions(self) -> list[JudgedQuestion]:
        """The items as a protocol sees them, by item id."""
        task = self.answers.task
        references = {}
        if task.references is not None and "reference" in self.rubric.fields:
            references = task.references.load()
        return [_question(task, item, references) for item in self.answers.items]

    def _row(
        self, one: PlannedJudgment, judgment: Judgment, model: Answered, judge: str
    ) -> JudgmentRow:
        return one.row(
            judgment.verdict,
            model=model.model.label(),
            judge=judge,
            text=judgment.reply,
            rubric=self.rubric.name,
            baseline=self.baseline.name if self.baseline else None,
        )


@dataclass(frozen=True)
class JudgedCase:
    """A task's answers with the verdicts on them."""

    case: Case
    judge: str
    rows: Mapping[str, Sequence[JudgmentRow]]
    """By `ModelId.label`."""
    num_asked: int
    num_retried: int
    sampling: tuple[Sampling, Sampling]
    """Of the first try, and of the second one for a verdict."""


def case_of(
    answers: OpenEndedAnswers,
    rubric: Rubric,
    *,
    baseline: Baseline | None = None,
    control: LengthControl | None = None,
    repeats: int = 1,
) -> Case:
    """How the answers to a task are judged under a rubric.

    Args:
        answers: of all models.
        rubric: for which there is a protocol.
        baseline: what pairs are compared with; None takes the task's own.
        control: of answer lengths, for AlpacaEval's rate.
        repeats: how often the judge is asked the same.

    Raises:
        ConfigError: the rubric compares, and there is no baseline; or its scores do not depend on
            lengths, and they are to be controlled.
        DataError: the task's own baseline cannot be had.
    """
    protocol = protocol_of(rubric)
    if control is not None:
        protocol = with_length_control(protocol, control)
    if not protocol.pairs:
        if baseline is not None:
            raise ConfigError(
                f"rubric {rubric.name}: rates one answer and compares none; leave --baseline out, "
                "or choose a rubric of pairs"
            )
        return Case(answers, rubric, protocol, repeats=repeats)
    return Case(answers, rubric, protocol, baseline or _own_baseline(answers, rubric), repeats)


def judge_case(
    case: Case,
    judge: Judge,
    store: AnswerStore,
    progress: Progress = lambda what, done, total: None,
) -> JudgedCase:
    """Ask the judge about every model's answers, all in one queue.

    Raises:
        FedbenchError: the judge cannot be asked; what it said is stored.
    """
    judging = Judging(judge, case.rubric, store, progress)
    models = case.answers.models
    with _collecting_only_new():
        plans = [case.plan(model) for model in models]
        judgments = iter(judging.ask([one for planned in plans for one in planned]))
    name = judge.label(case.rubric)
    rows = {
        model.model.label(): case.rows(planned, [next(judgments) for _ in planned], model, name)
        for model, planned in zip(models, plans, strict=True)
    }
    sampling = judge.sampling(case.rubric), judge.sampling(case.rubric, attempt=1)
    return JudgedCase(case, name, rows, judging.num_asked, judging.num_retried, sampling)


@contextlib.contextmanager
def _collecting_only_new() -> Iterator[None]:
    """Objects that exist already are no garbage meanwhile.

    To look through all that was ever imported takes 50 ms, in which no request is sent.
    """
    if gc.get_freeze_count():  # the caller sees to it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _question(task: Task, item: Item, references: Mapping[str, Turns]) -> JudgedQuestion:
    # A label is what a rule looks for, and no answer.
    known: Turns = (item.reference,) if item.reference and not task.labels else ()
    if task.references is not None and references:
        known = answer_to(item.keys, references, task.references.by)
    first = item.question.turns[0]
    text = f"{first.instruction}\n{first.input}" if first.input else first.instruction
    return JudgedQuestion(
        id=item.id,
        turns=(text, *item.later),
        category=item.keys.get("subset", ""),
        references=known,
        context=item.keys.get("context"),
    )


def _own_baseline(answers: OpenEndedAnswers, rubric: Rubric) -> Baseline:
    """The task's baseline, or that of its variant which is judged by such a rubric."""
    task = answers.task
    known = task.baseline
    for changes in task.variants.values():
        if known is None and changes.get("rubric") == rubric.name.removesuffix("-fedbench"):
            known = validated(KnownAnswers, changes.get("baseline"), f"task {task.key}: baseline")
    if known is None:
        raise ConfigError(
            f"task {task.key}: has no baseline to compare with; give one with --baseline"
        )
    try:
        rows = known.load()
    except DataError as error:
        raise DataError(f"{error}; or give answers to compare with by --baseline") from error
    own = {item.id: answer_to(item.keys, rows, known.by) for item in answers.items}
    return Baseline(known.name, {name: turns for name, turns in own.items() if turns})


def baseline_from(answers: OpenEndedAnswers) -> Baseline:
    """The only model of some answers, for others to be compared with.

    Raises:
        ConfigError: there are several.
    """
    if len(answers.models) != 1:
        names = ", ".join(own.model.label() for own in answers.models[:3])
        rest = f" and {len(answers.models) - 3} more" if len(answers.models) > 3 else ""
        raise ConfigError(
            f"--baseline holds the answers of {names or 'no model'}{rest}; give those of one model"
        )
    [own] = answers.models
    turns = {
        item.id: tuple(answer.text or "" for answer in given)
        for item, given in zip(answers.items, own.turns, strict=True)
        if given[-1].error is None
    }
    return Baseline(own.model.label(), turns)


def facts_of(judged: JudgedCase, labels: Path | None = None) -> dict[str, Any]:
    """What the run's record says of the judging.

    Args:
        judged: the verdicts.
        labels: a file of people's labels, of the same answers or of another task's.
    """
    case = judged.case
    rubric = case.rubric
    rows = [row for own in judged.rows.values() for row in own]
    names = {item.id: item.keys for item in case.answers.items}
    if labels is not None and not is_labelled(case, read_labels(labels)):
        labels = None  # they are of another task's answers
    return {
        "judge": judged.judge,
        "rubric": rubric.name,
        "rubric_hash": rubric.hash,
        "parser": rubric.verdict.parser,
        "sampling": [
            {"temperature": one.temperature, "seed": one.seed, "max_tokens": one.max_tokens}
            for one in judged.sampling
        ],
        "baseline": case.baseline.name if case.baseline else None,
        "length_control": control.hash if (control := length_control_of(case.protocol)) else None,
        "repeats": case.repeats,
        "questions with turns that were not judged": _num_in_part(case),
        "asked": judged.num_asked,
        "asked again for a verdict": judged.num_retried,
        **verdicts(rows),
        **reliability(rows, labels, names),
        "ratings": rating_facts(rows, case.baseline.name) if case.baseline else {},
    }


def is_labelled(case: Case, labels: Mapping[Key, object]) -> bool:
    """Whether people have labelled any of what is judged."""
    against = case.baseline.name if case.baseline else None
    return any(
        (name_of(item.id, {item.id: item.keys}), own.model.label(), against, turn) in labels
        for item in case.answers.items
        for own in case.answers.models
        for turn in range(1, case.protocol.turns + 1)
    )


def _num_in_part(case: Case) -> int:
    """Questions of more turns than the rubric shows."""
    return sum(1 + len(item.later) > case.protocol.turns for item in case.answers.items)

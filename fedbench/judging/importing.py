"""Judgments that exist already, as results: no judge is asked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.task import load_items
from fedbench.judging.agreement import OF_OTHER_ANSWERS, is_any_labelled, read_labels
from fedbench.judging.arena import rating_facts
from fedbench.judging.command import Judged
from fedbench.judging.length_control import LengthControl, get_length_control
from fedbench.judging.published import models_of_answers, read_judgments
from fedbench.judging.reliability import reliability, verdicts
from fedbench.judging.results import record_of
from fedbench.judging.rows import JudgmentRow
from fedbench.judging.scores import JudgeScore, grade_scores, win_scores
from fedbench.provenance import provenance
from fedbench.results.claims import claim_scores
from fedbench.results.record import ModelId, RunRecord, ScoreRecord, write_run, write_scores

CONVENTIONS = (
    "scores as in the files: -1, error and NaN are no verdict and not averaged; another try of the "
    "same that was read counts in their place; what was judged twice counts twice"
)
_SCALE = (1.0, 10.0)
_Group = tuple[str, str, str | None]
"""Model, judge and baseline."""


def import_judgments(
    files: Sequence[Path],
    *,
    task: str | None = None,
    parser: str | None = None,
    labels: Path | None = None,
    answers: Path | None = None,
    length_control: str | Path | None = None,
    output: Path | None = None,
    command: str = "",
) -> Judged:
    """Score files of judgments, by the conventions that `published` states.

    Args:
        files: FastChat's judgments, Vicuna's reviews, or AlpacaEval's annotations.
        task: whose questions they are about, for scores per category; by default the first file's
            name stands for it.
        parser: ``fastchat`` or ``fedbench`` reads the replies again; None takes the file's scores.
        labels: a file of people's labels, to say how far the judge agrees with them.
        answers: FastChat's answers that Vicuna's reviews are of, which say whose they are.
        length_control: AlpacaEval's ``df_gamed.csv``, or ``hub``, for its length-controlled rate.
        output: results directory; ``scores/<name of the first file>`` by default.
        command: the command line, for the record.

    Raises:
        ConfigError: two files hold the same model's judgments, or none of them is what an option is
            about.
        DataError: a file is missing or damaged, or of no form that is known.
    """
    name = files[0].name.split(".jsonl")[0].removesuffix(".json")
    place = output or Path("scores") / name
    models = models_of_answers(answers) if answers else {}
    rows = _rows(files, task, parser, models)
    every = [row for own in rows.values() for row in own]
    if models and {row.model for row in every}.isdisjoint(models.values()):
        raise ConfigError(
            "--answers is of Vicuna's reviews, and the files hold judgments of another kind; leave "
            "it out"
        )
    reliable = _reliability(every, labels)  # labels are refused before anything is written
    digest = _hash_of(files)
    control = get_length_control(length_control) if length_control is not None else None
    run_hash = claim_scores(
        place,
        {
            "judgments": digest,
            "task": task,
            "parser": parser,
            "length control": control.hash if control else None,
            **({"answers": _hash_of([answers])} if answers else {}),
        },
    )
    about = provenance()
    common = {
        "run": place.name,
        "run_hash": run_hash,
        "task": task or name,
        "task_version": 1,
        "task_hash": digest,
        "backend": "judgments",
        "selected_by": "only",
        **{key: about[key] for key in ("fedbench", "created")},
    }
    scores = [
        record for group, own in rows.items() for record in _records(group, own, common, control)
    ]
    write_scores(place, scores)
    facts: dict[str, Any] = {
        "imported": {
            "files": [file.name for file in files],
            "parser": parser or CONVENTIONS,
            **verdicts(every),
            "length_control": control.hash if control else None,
            **reliable,
            "ratings": rating_facts(every) if len({row.judge for row in every}) == 1 else {},
        }
    }
    write_run(
        place, RunRecord(run=place.name, run_hash=run_hash, command=command, facts=facts, **about)
    )
    return Judged(scores, place, facts)


def _rows(
    files: Sequence[Path], task: str | None, parser: str | None, models: Mapping[str, str]
) -> dict[_Group, list[JudgmentRow]]:
    """The judgments of all files, by whom they are about."""
    categories, numbers = _questions_of(task) if task else ({}, {})
    found: dict[_Group, list[JudgmentRow]] = {}
    for file in files:
        own: dict[_Group, list[JudgmentRow]] = {}
        for row in read_judgments(
            file, parser=parser, categories=categories, models=models, numbers=numbers
        ):
            own.setdefault((row.model, row.judge, row.baseline), []).append(row)
        for model, judge, baseline in own.keys() & found.keys():
            against = f" against {baseline}" if baseline else ""
            raise ConfigError(
                f"{file}: judgments of {model}{against} by {judge or 'the same judge'} are in an "
                "earlier file too; give each model once"
            )
        found |= own
    return found


def _hash_of(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _reliability(rows: Sequence[JudgmentRow], labels: Path | None) -> dict[str, Any]:
    """How far the judge can be relied on; of several judges each by itself, by its name.

    Raises:
        DataError: the labels cannot be read, or are of none of the answers.
    """
    by_judge: dict[str, list[JudgmentRow]] = {}
    for row in rows:
        by_judge.setdefault(row.judge, []).append(row)
    if len(by_judge) == 1:
        return reliability(rows, labels)
    known = read_labels(labels) if labels is not None else {}
    labelled = [judge for judge, own in by_judge.items() if is_any_labelled(own, known)]
    if labels is not None and not labelled:
        raise DataError(OF_OTHER_ANSWERS)
    return {
        "judges": {
            judge: reliability(own, labels if judge in labelled else None)
            for judge, own in by_judge.items()
        }
    }


def _questions_of(task: str) -> tuple[Mapping[str, str], Mapping[str, int]]:
    """The categories of a task's questions by their ids, and their places by their texts."""
    items = load_items(load_task(task))
    categories = {
        item.keys.get("question_id", str(number)): item.keys.get("subset", "")
        for number, item in enumerate(items)
    }
    places = {item.question.turns[0].instruction: number for number, item in enumerate(items)}
    return categories, places


def _records(
    group: _Group,
    rows: Sequence[JudgmentRow],
    common: Mapping[str, Any],
    control: LengthControl | None,
) -> list[ScoreRecord]:
    name, judge, baseline = group
    rubrics = sorted({row.rubric for row in rows if row.rubric})
    about = {
        **common,
        "judge": judge or None,
        "rubric": ", ".join(rubrics) or None,
        "judged_against": baseline,
    }
    model = ModelId(method=name, model_kind="reference")
    return [record_of(score, model, about) for score in _scores(rows, control)]


def _scores(rows: Sequence[JudgmentRow], control: LengthControl | None) -> list[JudgeScore]:
    """Averages of grades, or win rates; of one order only, what that order says."""
    by_turn = len({row.turn for row in rows}) > 1
    has_lengths = rows[0].baseline is not None and all(row.lengths for row in rows)
    if control is not None and not has_lengths:
        raise ConfigError(
            "--length-control is of pairs of answers whose lengths are known, and the judgments "
            "name none; leave it out, or import AlpacaEval's annotations with their outputs"
        )
    if rows[0].baseline is None:
        return grade_scores(rows, scale=_scale_of(rows), by_turn=by_turn)
    return win_scores(
        rows,
        orders="agree",
        by_turn=by_turn,
        equal_length=has_lengths,
        control=control,
    )


def _scale_of(rows: Sequence[JudgmentRow]) -> tuple[float, float]:
    """The scale of FastChat's prompts; without ends where a grade shows that it is another's."""
    low, high = _SCALE
    grades = [row.score for row in rows if row.score is not None]
    return _SCALE if all(low <= grade <= high for grade in grades) else (-math.inf, math.inf)

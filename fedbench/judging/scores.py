"""From judgments to scores: averages, win rates and shares, with clustered intervals.

Rows without a score have failed. They are counted and excluded, and above a stated share of them
the score is withheld: they are never -1, and never dropped in silence. A row that failed counts no
longer once another try of the same was read.

A question is one cluster: its turns, its orders, its samples and its repeats are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedbench.errors import DataError
from fedbench.judging.length_control import (
    LengthControl,
    length_controlled,
    tells_length_apart,
)
from fedbench.judging.rows import JudgmentRow
from fedbench.metrics.metric import Array, Metric
from fedbench.results.statistics import score_interval

MAX_FAILED = 0.05
"""Above this share of failed items a score is withheld."""
CONTROLLED = "length_controlled_win_rate"
"""AlpacaEval's, with what it knows of its instructions."""
AT_EQUAL_LENGTH = "win_rate_at_equal_length"
"""From this model's judgments alone; not comparable with the former."""
Orders = Literal["agree", "mean"]


@dataclass(frozen=True)
class JudgeScore:
    """One score of a judge."""

    metric: str
    group: str | None
    """``turn_1``, a category, or None for all."""
    value: float | None
    """None where it is withheld."""
    low: float | None
    high: float | None
    stderr: float | None
    method: str | None
    """As in `fedbench.results.intervals.Interval`."""
    higher_is_better: bool
    num_items: int
    """Answers (with their turns, repeats and samples), or pairs of answers."""
    num_failed: int
    num_questions: int
    """Clusters: questions with at least one item that counts."""
    headline: bool = False


@dataclass(frozen=True)
class Scored:
    """One item of a score."""

    question: str
    score: float | None
    weight: float = 1.0
    category: str = ""
    turn: int = 1


def grade_scores(
    rows: Sequence[JudgmentRow],
    *,
    scale: tuple[float, float],
    metric: str = "judge_score",
    higher_is_better: bool = True,
    by_turn: bool = False,
    overall: Literal["micro", "macro"] = "micro",
    max_failed: float = MAX_FAILED,
) -> list[JudgeScore]:
    """Average ratings of one model: over all, per turn and per category.

    Args:
        rows: of one model.
        scale: lowest and highest rating.
        metric: what the score is called.
        higher_is_better: of the rating.
        by_turn: whether turns get scores of their own, and the overall one is over both.
        overall: ``micro`` over all rows, as FastChat; ``macro`` the mean of the categories' means,
            as Ref-GPT4 has it over languages.
        max_failed: share of failed rows above which a score is withheld.
    """
    one_model(rows)
    items = [
        Scored(row.question, row.score, category=row.category, turn=row.turn)
        for row in without_superseded(rows)
    ]
    mean = mean_metric(metric, scale, higher_is_better)
    weighted = _macro(items) if overall == "macro" else items
    return _grouped(weighted, mean, by_turn=by_turn, max_failed=max_failed)


def label_scores(
    rows: Sequence[JudgmentRow], *, rates: Mapping[str, str], max_failed: float = MAX_FAILED
) -> list[JudgeScore]:
    """Shares of labels, over all and per category.

    Args:
        rows: of one model.
        rates: name of a score, and the label whose share it is.
        max_failed: share of failed rows above which a score is withheld.
    """
    one_model(rows)
    kept = without_superseded(rows)
    scores = []
    for name, label in rates.items():
        items = [
            Scored(
                row.question,
                None if row.value is None else float(row.value == label),
                category=row.category,
            )
            for row in kept
        ]
        better = name not in ("attack_success_rate", "incoherent_rate")
        found = _grouped(items, mean_metric(name, (0.0, 1.0), better), max_failed=max_failed)
        first = name == next(iter(rates))
        scores += found if first else [replace(score, headline=False) for score in found]
    return scores


def win_scores(
    rows: Sequence[JudgmentRow],
    *,
    orders: Orders = "agree",
    by_turn: bool = False,
    max_failed: float = MAX_FAILED,
    equal_length: bool = False,
    control: LengthControl | None = None,
) -> list[JudgeScore]:
    """Share of comparisons won against a baseline, a tie counting half.

    Args:
        rows: of one model and one baseline.
        orders: what makes one outcome of the two orders. ``agree``: a win or loss only where both
            say so, else a tie (FastChat). ``mean``: the mean of both, for weighted preferences.
        by_turn: whether turns get scores of their own.
        max_failed: share of failed pairs above which a score is withheld. A pair has failed where
            either order has.
        equal_length: whether the rate at equal length is estimated too; it needs lengths.
        control: further data of the length control.
    """
    one_model(rows)
    items = outcomes(rows, orders)
    metric = mean_metric("win_rate", (0.0, 1.0))
    scores = _grouped(items, metric, by_turn=by_turn, max_failed=max_failed)
    scores += [
        _share(items, "wins", lambda score: score > 0.5, max_failed),
        _share(items, "ties", lambda score: score == 0.5, max_failed),
        _share(items, "losses", lambda score: score < 0.5, max_failed),
    ]
    if equal_length and all(row.lengths for row in rows):
        scores.append(_controlled(rows, items, control, max_failed))
    return scores


def outcomes(rows: Sequence[JudgmentRow], orders: Orders = "agree") -> list[Scored]:
    """One item per pair of answers, of the orders in which it was judged."""
    pairs: dict[tuple[object, ...], list[JudgmentRow]] = {}
    for row in without_superseded(rows):
        key = (row.baseline, row.question, row.turn, row.sample, row.repeat)
        pairs.setdefault(key, []).append(row)
    return [
        Scored(
            own[0].question,
            _outcome([row.score for row in own], orders),
            category=own[0].category,
            turn=own[0].turn,
        )
        for own in pairs.values()
    ]


def without_superseded(rows: Sequence[JudgmentRow]) -> list[JudgmentRow]:
    """The rows without failed tries of what another row has a verdict on."""
    read = {(row.asked, row.repeat) for row in rows if row.value is not None}
    return [row for row in rows if row.value is not None or (row.asked, row.repeat) not in read]


def mean_metric(name: str, scale: tuple[float, float], higher_is_better: bool = True) -> Metric:
    """A weighted mean of statistics (weight * score, weight)."""
    return Metric(
        name=name,
        description="Mean of a judge's scores.",
        statistics=lambda samples, labels: np.empty((0, 2)),
        value=_ratio,
        needs="judge",
        higher_is_better=higher_is_better,
        unit_range=scale,
        binary=False,
    )


def score_items(
    items: Sequence[Scored],
    metric: Metric,
    group: str | None = None,
    *,
    max_failed: float = MAX_FAILED,
    headline: bool = False,
) -> JudgeScore:
    """One score with its interval over the questions."""
    kept = [item for item in items if item.score is not None]
    num_failed = len(items) - len(kept)
    questions = [item.question for item in kept]
    value = low = high = stderr = method = None
    if kept and num_failed <= max_failed * len(items):
        weights = np.array([item.weight for item in kept])
        scores = np.array([item.score for item in kept], dtype=float)
        statistics = np.column_stack([weights * scores, weights])
        interval = score_interval(metric, statistics, questions)
        value = float(metric.value(statistics.sum(axis=0)))
        low, high, stderr = map(_finite, (interval.low, interval.high, interval.stderr))
        method = interval.method
    return JudgeScore(
        metric=metric.name,
        group=group,
        value=value,
        low=low,
        high=high,
        stderr=stderr,
        method=method,
        higher_is_better=metric.higher_is_better,
        num_items=len(items),
        num_failed=num_failed,
        num_questions=len(set(questions)),
        headline=headline,
    )


def _grouped(
    items: Sequence[Scored], metric: Metric, *, by_turn: bool = False, max_failed: float
) -> list[JudgeScore]:
    """Over all items, per turn and per category."""
    parts: list[tuple[str | None, Sequence[Scored]]] = [(None, items)]
    turns = sorted({item.turn for item in items})
    if by_turn and len(turns) > 1:
        parts += [(f"turn_{turn}", [i for i in items if i.turn == turn]) for turn in turns]
    categories = dict.fromkeys(item.category for item in items if item.category)
    if len(categories) > 1:
        parts += [(name, [i for i in items if i.category == name]) for name in categories]
    return [
        score_items(own, metric, group, max_failed=max_failed, headline=group is None)
        for group, own in parts
    ]


def _macro(items: Sequence[Scored]) -> list[Scored]:
    """Weights under which every category counts the same."""
    sizes = Counter(item.category for item in items if item.score is not None)
    return [replace(item, weight=1 / max(sizes[item.category], 1)) for item in items]


def _share(
    items: Sequence[Scored], name: str, holds: Callable[[float], bool], max_failed: float
) -> JudgeScore:
    of_all = [
        replace(item, score=None if item.score is None else float(holds(item.score)))
        for item in items
    ]
    better = name != "losses"
    return score_items(of_all, mean_metric(name, (0.0, 1.0), better), max_failed=max_failed)


def _outcome(scores: Sequence[float | None], orders: Orders) -> float | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    if orders == "agree":
        return known[0] if len(set(known)) == 1 else 0.5
    return sum(known) / len(known)


def _controlled(
    rows: Sequence[JudgmentRow],
    items: Sequence[Scored],
    control: LengthControl | None,
    max_failed: float,
) -> JudgeScore:
    """The win rate at equal length, withheld where the win rate is or where length hides it."""
    metric = mean_metric(CONTROLLED if control else AT_EQUAL_LENGTH, (0.0, 1.0))
    plain = score_items(items, metric, max_failed=max_failed)
    kept = [item for item in items if item.score is not None]
    lengths = {row.question: row.lengths or (0, 0) for row in rows}
    longer = np.array([lengths[item.question][1] - lengths[item.question][0] for item in kept])
    if plain.value is None or not tells_length_apart(longer, control):
        return replace(plain, value=None, low=None, high=None, stderr=None, method=None)
    scores = np.array([item.score for item in kept], dtype=float)
    estimate = length_controlled([item.question for item in kept], scores, longer, control)
    return replace(
        plain,
        value=estimate.rate,
        low=_finite(estimate.interval.low),
        high=_finite(estimate.interval.high),
        stderr=_finite(estimate.interval.stderr),
        method=estimate.interval.method,
    )


def one_model(rows: Sequence[JudgmentRow]) -> None:
    """Scores are of one model, under one judge and one rubric."""
    for name in ("model", "baseline", "judge", "rubric"):
        if len(found := {getattr(row, name) for row in rows}) > 1:
            some = ", ".join(sorted(map(str, found))[:3])
            raise DataError(
                f"judgments of {len(found)} {name}s ({some}{', ...' if len(found) > 3 else ''}) "
                "make no score together; score them one by one"
            )


def _finite(end: float) -> float | None:
    """None where too few questions, or a scale without ends, leave it open."""
    return float(end) if np.isfinite(end) else None


def _ratio(sums: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])

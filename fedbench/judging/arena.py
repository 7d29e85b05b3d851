"""Pairwise comparison in five steps, and ratings of many models from such games.

Arena-Hard (Li et al. 2024, https://arxiv.org/abs/2406.11939): every question is two games, with
the orders swapped, and a game that is won by much counts three times. Its intervals draw games;
here questions are drawn, for the two games of one are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedbench.judging.rows import JudgmentRow
from fedbench.judging.scores import (
    MAX_FAILED,
    JudgeScore,
    Scored,
    mean_metric,
    one_model,
    score_items,
    without_superseded,
)
from fedbench.metrics.metric import Array
from fedbench.results.intervals import Interval, percentile_interval

STRONG = 3.0
"""How often a game counts that is won by much."""
DRAWS = 200
_SCALE, _BASE, _START = 400.0, 10.0, 1000.0


@dataclass(frozen=True)
class Rating:
    """One model's strength on Elo's scale; the baseline has 1000."""

    model: str
    rating: float | None
    """None where the games do not determine it: a model has won or lost all of its games, or a
    group of models has against the others."""
    win_rate: float | None
    """Probability of beating the baseline, a tie counting half."""
    interval: Interval | None
    """Of the rating, over questions."""


def arena_scores(
    rows: Sequence[JudgmentRow], *, max_failed: float = MAX_FAILED
) -> list[JudgeScore]:
    """Weighted share of games won against the baseline, over all and per category."""
    one_model(rows)
    items = [
        Scored(row.question, row.score, weight=weight_of(row), category=row.category)
        for row in without_superseded(rows)
    ]
    metric = mean_metric("win_rate", (0.0, 1.0))
    scores = [score_items(items, metric, max_failed=max_failed, headline=True)]
    categories = dict.fromkeys(item.category for item in items if item.category)
    if len(categories) > 1:
        for name in categories:
            own = [item for item in items if item.category == name]
            scores.append(score_items(own, metric, name, max_failed=max_failed))
    return scores


def weight_of(row: JudgmentRow) -> float:
    """3 for a game that is won by much, otherwise 1."""
    return STRONG if row.value in ("A>>B", "B>>A") else 1.0


def bradley_terry(
    rows: Sequence[JudgmentRow], baseline: str, *, draws: int = DRAWS, seed: int = 0
) -> list[Rating]:
    """Ratings of all models from games between them (Bradley and Terry 1952), strongest first.

    P(i beats j) = 1 / (1 + 10^((r_j - r_i) / 400)). A tie is half a win for both. The estimate
    exists where no group of models has won, or lost, all its games against the others (Ford 1957).

    Args:
        rows: games of any models against any opponents (their ``baseline``).
        baseline: the model that is set to 1000.
        draws: of the bootstrap over questions.
        seed: of the bootstrap.
    """
    games = [row for row in without_superseded(rows) if row.score is not None and row.baseline]
    names = sorted({row.model for row in games} | {str(row.baseline) for row in games} | {baseline})
    place = {name: number for number, name in enumerate(names)}
    questions = {name: n for n, name in enumerate(sorted({row.question for row in games}))}
    wins = np.zeros((len(questions), len(names), len(names)))
    for row in games:
        own, other = place[row.model], place[str(row.baseline)]
        score, weight = float(row.score or 0.0), weight_of(row)
        wins[questions[row.question], own, other] += weight * score
        wins[questions[row.question], other, own] += weight * (1 - score)
    anchor = place[baseline]
    ratings = fit_bradley_terry(wins.sum(axis=0), anchor)
    generator = np.random.default_rng(seed)
    drawn = np.array([_draw(wins, generator, anchor) for _ in range(draws)])
    found = [_rating(name, ratings[n], drawn[:, n]) for name, n in place.items()]
    return sorted(
        found, key=lambda one: -math.inf if one.rating is None else one.rating, reverse=True
    )


def rating_facts(rows: Sequence[JudgmentRow], baseline: str | None = None) -> dict[str, Any]:
    """`bradley_terry` for a run's record: the baseline, a row per model, and who has none.

    A model of whose games more than `MAX_FAILED` have no verdict is not rated.

    Args:
        rows: games of one judge.
        baseline: that has 1000; None takes the most frequent opponent.

    Returns:
        Nothing where there are no games.
    """
    opponents = Counter(row.baseline for row in rows if row.baseline and row.score is not None)
    if not opponents:
        return {}
    anchor = baseline or opponents.most_common(1)[0][0]
    withheld = _failed_too_often(rows)
    kept = [row for row in rows if row.model not in withheld]
    rated = [
        {
            "model": one.model,
            "rating": None if one.rating is None else round(one.rating, 1),
            "low": None if one.interval is None else round(one.interval.low, 1),
            "high": None if one.interval is None else round(one.interval.high, 1),
            "win_rate": None if one.win_rate is None else round(one.win_rate, 6),
        }
        for one in (bradley_terry(kept, anchor) if kept else [])
    ]
    return {"baseline": anchor, "models": rated, "withheld": withheld}


def _failed_too_often(rows: Sequence[JudgmentRow]) -> list[str]:
    """Models whose games have no verdict more often than scores bear."""
    failed: Counter[str] = Counter()
    played: Counter[str] = Counter()
    for row in without_superseded(rows):
        played[row.model] += 1
        failed[row.model] += row.score is None
    return [model for model in played if failed[model] > MAX_FAILED * played[model]]


def fit_bradley_terry(wins: Array, anchor: int) -> Array:
    """(k,) ratings by maximum likelihood, with Newton's method; the anchor has 1000.

    NaN for models outside the anchor's group: those that are not connected to it by wins in both
    directions. Their ratings have no finite estimate, and their games say nothing about the group.

    Args:
        wins: (k, k) weighted wins of the row's model against the column's.
        anchor: position of the model that is fixed.
    """
    from scipy.sparse.csgraph import connected_components

    _, group = connected_components(wins > 0, directed=True, connection="strong")
    members = np.flatnonzero(group == group[anchor])
    free = members != anchor
    won = wins[np.ix_(members, members)]
    games = won + won.T
    strength = np.zeros(len(members))
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        slope = (won - games * chance).sum(axis=1)
        bend = games * chance * (1 - chance)
        curvature = np.diag(bend.sum(axis=1)) - bend
        step = np.zeros(len(members))
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
        strength += np.clip(step, -1.0, 1.0)  # far from the optimum a full step overshoots
        if np.abs(step).max() < 1e-10:
            break
    ratings = np.full(len(wins), np.nan)
    ratings[members] = _START + _SCALE / math.log(_BASE) * strength
    return ratings


def _draw(wins: Array, generator: np.random.Generator, anchor: int) -> Array:
    """Ratings on a bootstrap draw of the questions."""
    picks = generator.integers(0, len(wins), len(wins))
    counts = np.bincount(picks, minlength=len(wins)).astype(float)
    return fit_bradley_terry(np.tensordot(counts, wins, axes=1), anchor)


def _rating(name: str, rating: float, drawn: Array) -> Rating:
    """With an interval where nearly all draws determine the rating."""
    if math.isnan(rating):
        return Rating(name, None, None, None)
    finite = drawn[np.isfinite(drawn)]
    enough = len(finite) > 1 and len(finite) >= 0.95 * len(drawn)
    interval = percentile_interval(finite, 0.95, "cluster-bootstrap-percentile") if enough else None
    win_rate = 1 / (1 + _BASE ** ((_START - rating) / _SCALE))
    return Rating(name, float(rating), win_rate, interval)

"""A ranking that shows ties as ties: which ranks the data cannot tell apart.

A model that is significantly worse than two of ten, and better than none, has rank 3 to 10.
All pairs of models are tested and corrected by Holm together, so that with the given confidence no
model's true rank lies outside what is shown (Mogstad, Romano, Shaikh and Wilhelm, Inference for
Ranks, 2024, whose rank sets are made of pairwise tests in this way).

Over several tasks a model also has the mean of its ranks on each (`mean_ranks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedbench.metrics.metric import Array
from fedbench.results.intervals import percentile_interval
from fedbench.results.resampling import SEED
from fedbench.results.statistics import holm


@dataclass(frozen=True)
class Place:
    """A model's ranks."""

    model: str
    first: int
    """The best rank that the data allow it."""
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class PairTest:
    """A paired test of two models."""

    gain: float
    """Positive where the first is better."""
    p_value: float
    """Two-sided, of no difference."""


def places(
    models: Sequence[str],
    tests: Mapping[tuple[str, str], PairTest],
    confidence: float = 0.95,
) -> list[Place]:
    """The ranks of some models, in the order given.

    Args:
        models: their names.
        tests: one for each pair, by (first, second); a pair without a test, or whose p is NaN,
            cannot be told apart.
        confidence: with which all ranks hold together, as a share.
    """
    tested = [pair for pair, test in tests.items() if test.p_value == test.p_value]
    adjusted = holm([tests[pair].p_value for pair in tested])
    above: dict[str, int] = dict.fromkeys(models, 0)
    below: dict[str, int] = dict.fromkeys(models, 0)
    for pair, p_value in zip(tested, adjusted, strict=True):
        if p_value <= 1 - confidence and tests[pair].gain != 0:
            better, worse = pair if tests[pair].gain > 0 else pair[::-1]
            above[worse] += 1
            below[better] += 1
    return [Place(model, 1 + above[model], len(models) - below[model]) for model in models]


class TaskScores(NamedTuple):
    """What some models reached on one task, and in each resampling of its items."""

    scores: Array
    """(models,)"""
    draws: Array
    """(draws, models); no draw where there are too few items to resample."""
    higher_is_better: bool


@dataclass(frozen=True)
class MeanRank:
    """A model's ranks on several tasks, 1 the best, averaged; equal scores share a rank."""

    value: float
    low: float | None = None
    high: float | None = None
    """None, as `low`, where no task has enough items to resample."""


def mean_ranks(tasks: Sequence[TaskScores], confidence: float = 0.95) -> list[MeanRank]:
    """The mean rank of each model over some tasks, in the order of the models.

    The interval has the percentiles of the bootstrap, which resamples each task by itself. A rank
    jumps where two models are equally good, and there it only describes: which ranks the data
    cannot tell apart is what `places` says.

    Args:
        tasks: at least one, all with the same models.
        confidence: coverage, as a share.
    """
    values = np.mean([_ranks(task.scores, task.higher_is_better) for task in tasks], axis=0)
    draws = _mean_rank_draws(tasks)
    return [_mean_rank(float(v), draws[:, n], confidence) for n, v in enumerate(values)]


def _mean_rank_draws(tasks: Sequence[TaskScores]) -> Array:
    """(draws, models) mean ranks; a task with too few items to resample keeps its ranks."""
    sizes = [len(task.draws) for task in tasks if len(task.draws)]
    if not sizes:
        return np.empty((0, len(tasks[0].scores)))
    total = np.zeros((min(sizes), len(tasks[0].scores)))
    for number, task in enumerate(tasks):
        drawn = np.broadcast_to(task.scores, total.shape)
        if len(task.draws):
            # All tasks draw with the same seed; shuffling makes them independent.
            order = np.random.default_rng([SEED, number]).permutation(len(task.draws))
            drawn = task.draws[order[: len(total)]]
        total += _ranks(drawn, task.higher_is_better)
    return total / len(tasks)


def _mean_rank(value: float, draws: Array, confidence: float) -> MeanRank:
    finite = draws[np.isfinite(draws)]  # a metric may be undefined in some draws
    if len(finite) < 2:
        return MeanRank(value)
    interval = percentile_interval(finite, confidence, "bootstrap-percentile")
    return MeanRank(value, interval.low, interval.high)


def _ranks(scores: Array, higher_is_better: bool) -> Array:
    """(..., models) ranks from (..., models) scores."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-scores if higher_is_better else scores, axis=-1))

"""Several seeds of one method: what of the uncertainty is the items', and what the training's.

A score of seed s on item i is taken as mu + S_s + I_i + e_si. The mean over S seeds and n items
then has the variance

    var(S) / S  +  var(I) / n  +  var(e) / (S n),

of which the bootstrap of the items sees the last two terms and the scatter of the seeds' scores the
first and the last (a crossed random-effects model; Searle, Casella and McCulloch 1992, chapter 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedbench.results.contrasts import JointDraws

Terms = Sequence[tuple[float, int]]
"""Coefficient, and position of the model among those resampled together."""


@dataclass(frozen=True)
class OverSeeds:
    """A score, or a difference of two, as a mean over seeds."""

    value: float
    num_seeds: int
    within: float
    """Standard error from the items, the trained models taken as given."""
    between: float | None
    """Standard deviation of the seeds' own values; None with one seed."""
    training: float | None
    """The part of `between` that training makes, without what the items add to it: sd of S_s."""
    stderr: float
    """Of the mean, for new seeds and new items; `within` where there is one seed."""
    low: float
    high: float
    p_value: float
    """Two-sided, of a value of 0."""
    parts: Sequence[tuple[float, int]] = field(default=(), repr=False)
    """Standard error and degrees of freedom of the items and of the seeds."""

    def p_below(self, threshold: float) -> float:
        """One-sided p of the hypothesis that the truth is at least the threshold."""
        both = _p_value(abs(self.value - threshold), self.parts)
        return both / 2 if self.value < threshold else 1 - both / 2

    def smallest_detectable(self, confidence: float, power: float) -> float:
        """The true value that is told from 0 with about the given power; of two or more seeds.

        The half width of the interval, and the distance that the value keeps from its truth with
        that probability, both with Student's t: with normal quantiles three seeds would find it
        in one case of three.
        """
        return _half_width(self.parts, 1 - confidence) + _half_width(self.parts, 2 * (1 - power))


def over_seeds(joint: JointDraws, seeds: Sequence[Terms], confidence: float = 0.95) -> OverSeeds:
    """The mean over seeds with its variance within and between.

    Args:
        joint: the models of all seeds, resampled together.
        seeds: for each seed the terms of its value: ``[(1, 0)]`` is the score of model 0,
            ``[(1, 0), (-1, 3)]`` its difference to model 3.
        confidence: coverage of the interval, as a share.
    """
    size = len(seeds)
    mean = [(c / size, model) for terms in seeds for c, model in terms]
    items = joint.contrast(mean, confidence)
    value, within = items.value, items.interval.stderr
    if size == 1:
        ends = (items.interval.low, items.interval.high)
        return OverSeeds(value, 1, within, None, None, within, *ends, items.p_value)
    values = np.array([sum(c * joint.scores[model] for c, model in terms) for terms in seeds])
    between = float(values.var(ddof=1))
    training = max(between - _interaction(joint, seeds), 0.0)
    parts = [(within, joint.num_units - 1), (math.sqrt(training / size), size - 1)]
    half = _half_width(parts, 1 - confidence)
    return OverSeeds(
        value=value,
        num_seeds=size,
        within=within,
        between=math.sqrt(between),
        training=math.sqrt(training),
        stderr=math.hypot(*(error for error, _ in parts)),
        low=value - half,
        high=value + half,
        p_value=_p_value(abs(value), parts),
        parts=parts,
    )


def _interaction(joint: JointDraws, seeds: Sequence[Terms]) -> float:
    """var(e) / n: how much the seeds' values move against each other when items are resampled."""
    if len(joint.draws) < 2:
        return 0.0  # too few items to resample: all scatter counts as training's
    columns = [sum(c * joint.draws[:, model] for c, model in terms) for terms in seeds]
    draws = np.column_stack(columns)
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < 2:
        return 0.0
    apart = draws - draws.mean(axis=1, keepdims=True)
    return float(apart.var(axis=0, ddof=1).mean()) * len(seeds) / (len(seeds) - 1)


def _half_width(parts: Sequence[tuple[float, int]], alpha: float) -> float:
    """Half of the interval: those of its parts added in squares.

    Each part has Student's t with its own degrees of freedom (the method of variance estimates
    recovery; Zou and Donner 2008). One t with Satterthwaite's degrees of freedom for the sum covers
    88 % where there are three seeds: a small variance of three goes with a high count of them.

    Args:
        parts: standard error and degrees of freedom.
        alpha: share of intervals that miss.
    """
    from scipy.special import stdtrit

    return math.hypot(*(float(stdtrit(max(df, 1), 1 - alpha / 2)) * se for se, df in parts))


def _p_value(distance: float, parts: Sequence[tuple[float, int]]) -> float:
    """The alpha whose interval ends where nothing is left of the distance."""
    if math.isnan(distance) or not any(error > 0 for error, _ in parts):
        return 1.0 if distance == 0 else math.nan
    low, high = -40.0, 0.0  # powers of e
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if _half_width(parts, math.exp(middle)) < distance else (middle, high)
        )
    return math.exp(high) if distance > 0 else 1.0

"""Intervals and tests on the sums of sufficient statistics that metrics are made of.

Which interval is given where:

=====================================  ==========================================
share of right items                   Wilson; Clopper-Pearson below 100 items
the same, fewer than 30 clusters       beta-binomial
paired difference of two such shares   Tango's score interval
everything else, and all with clusters BCa bootstrap of the items (the clusters)
or with a tie, which is half right
the same, fewer than 30 units          jackknife with Student's t
the same, and no draw differs          Clopper-Pearson bound on what was never seen
=====================================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedbench.metrics.metric import Array, Metric
from fedbench.results.clustered_shares import interval_of_clustered_share
from fedbench.results.contrasts import Contrast, combine_strata, contrast, joint_bootstrap
from fedbench.results.effects import Effect, paired_effect
from fedbench.results.intervals import Evidence, Interval, interval_of, normal_quantile
from fedbench.results.permutation import sign_flip
from fedbench.results.proportions import (
    Tango,
    are_shares,
    clopper_pearson,
    interval_of_share,
    mcnemar_exact,
    tango,
    wilson,
)
from fedbench.results.resampling import DRAWS, FEW_UNITS, resample, share_clusters

__all__ = [
    "Contrast",
    "Difference",
    "Interval",
    "clopper_pearson",
    "combine_strata",
    "contrast",
    "holm",
    "items_to_settle",
    "joint_bootstrap",
    "mcnemar_exact",
    "paired_difference",
    "score_interval",
    "smallest_detectable",
    "tango",
    "unpaired_difference",
    "wilson",
]

POWER = 0.8
_TOO_FEW = 10
"""Items whose error, often 0 by chance, says nothing of how many would be needed."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Difference:
    """By how much a candidate is better than a baseline on the same items."""

    delta: float
    """Positive where the candidate is better, also for metrics of which less is better."""
    low: float
    high: float
    stderr: float
    method: str
    p_value: float
    """Two-sided, of no difference: McNemar exact, or sign flips of the items (the clusters)."""
    smallest_detectable: float
    """The difference that this comparison would have found with probability 0.8."""
    num_items: int
    p_regressed: float
    """One-sided, of a candidate that is worse by no more than the margin."""
    effect: Effect | None = None
    """None where the items have no values of their own, as with F1, or were not kept."""


def score_interval(
    metric: Metric,
    statistics: Array,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> Interval:
    """Confidence interval of one score.

    Args:
        metric: what the statistics are of.
        statistics: (n, d), one row per scored item.
        clusters: (n,) what the items share; None when each stands alone.
        confidence: coverage, as a share.
        draws: bootstrap draws.

    Returns:
        The interval in units of the metric. The same input gives the same interval.
    """
    if are_shares(metric, statistics) and not share_clusters(clusters):
        return interval_of_share(statistics, confidence)
    if are_shares(metric, statistics) and clusters and len(set(clusters)) < FEW_UNITS:
        return interval_of_clustered_share(statistics, clusters, confidence)
    evidence = resample([(1.0, metric, statistics)], clusters, draws)
    return interval_of(evidence, confidence)


def paired_difference(
    metric: Metric,
    candidate: Array,
    baseline: Array,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    *,
    margin: float = 0.0,
    draws: int = DRAWS,
) -> Difference:
    """Paired difference of two models on the same items.

    Shares of right items without clusters get Tango's interval and McNemar's exact p, everything
    else the paired bootstrap and a sign-flip test in which the two models swap answers.

    Args:
        metric: what the statistics are of.
        candidate: (n, d) statistics of the candidate.
        baseline: (n, d) statistics of the baseline, item by item the same items.
        clusters: (n,) what the items share; None when each stands alone.
        confidence: coverage of the interval, as a share.
        margin: how much worse is tolerated by `Difference.p_regressed`, in units of the metric.
        draws: bootstrap draws, and sign flips.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    evidence: Evidence
    if are_shares(metric, candidate, baseline) and not share_clusters(clusters):
        evidence = Tango.of(sign * (candidate[:, 0] - baseline[:, 0]))
        p_value = mcnemar_exact(evidence.better, evidence.worse)
    else:
        terms = [(sign, metric, candidate), (-sign, metric, baseline)]
        evidence = resample(terms, clusters, draws)
        p_value = sign_flip(terms, clusters, draws)
    effect = paired_effect(metric, candidate, baseline)
    return _difference(evidence, p_value, len(candidate), margin, confidence, effect)


def unpaired_difference(
    candidate: tuple[float, float],
    baseline: tuple[float, float],
    num_items: int,
    *,
    higher_is_better: bool = True,
    margin: float = 0.0,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two scores of which only value and standard error are known.

    The items are taken as independent, which is wide where both models saw the same items.

    Args:
        candidate: value and standard error.
        baseline: value and standard error.
        num_items: items behind the smaller of the two.
        higher_is_better: of the metric.
        margin: how much worse is tolerated by `Difference.p_regressed`, in units of the metric.
        confidence: coverage of the interval, as a share.
    """
    sign = 1.0 if higher_is_better else -1.0
    evidence = _Normal(sign * (candidate[0] - baseline[0]), math.hypot(candidate[1], baseline[1]))
    return _difference(evidence, evidence.p_value(), num_items, margin, confidence)


def holm(p_values: Sequence[float]) -> Array:
    """Adjusted p-values of Holm's step-down procedure (1979), in the order given.

    Rejecting where the adjusted p is at most alpha keeps the chance of any false rejection at
    alpha, however the tests depend on each other.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def smallest_detectable(stderr: float, confidence: float = 0.95, power: float = POWER) -> float:
    """The true difference that is found with the given power: (z_(1-a/2) + z_power) * stderr.

    Miller, Adding Error Bars to Evals (2024), section on power; 2.80 standard errors by default.
    """
    return (normal_quantile(confidence) + _NORMAL.inv_cdf(power)) * stderr


def items_to_settle(
    delta: float,
    stderr: float,
    num_items: int,
    margin: float,
    confidence: float = 0.95,
    power: float = POWER,
) -> int | None:
    """How many items would bring the interval to one side of -margin.

    n * (smallest detectable difference / distance from -margin)^2: the sample size formula of
    Miller (2024), for a true difference as observed and an error that shrinks with sqrt(n).

    Returns:
        More than num_items; None where the difference lies on -margin, so that no number would
        do, and below `_TOO_FEW` items.
    """
    distance = abs(delta + margin)
    if num_items < _TOO_FEW or not distance > 0 or not math.isfinite(stderr):
        return None
    needed = num_items * (smallest_detectable(stderr, confidence, power) / distance) ** 2
    return max(num_items + 1, math.ceil(needed))


@dataclass(frozen=True)
class _Normal:
    value: float
    error: float
    method: str = "unpaired"

    def stderr(self) -> float:
        return self.error

    def ends(self, confidence: float) -> tuple[float, float]:
        half = normal_quantile(confidence) * self.error
        return self.value - half, self.value + half

    def p_below(self, threshold: float) -> float:
        if math.isnan(self.value) or math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 1.0 if self.value >= threshold else 0.0
        return _NORMAL.cdf((self.value - threshold) / self.error)

    def p_value(self) -> float:
        """Two-sided, of a value of 0."""
        if math.isnan(self.value):
            return math.nan
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        below = self.p_below(0.0)
        return min(1.0, 2 * min(below, 1 - below))


def _difference(
    evidence: Evidence,
    p_value: float,
    num_items: int,
    margin: float,
    confidence: float,
    effect: Effect | None = None,
) -> Difference:
    interval = interval_of(evidence, confidence)
    return Difference(
        delta=evidence.value,
        low=interval.low,
        high=interval.high,
        stderr=interval.stderr,
        method=interval.method,
        p_value=p_value,
        smallest_detectable=smallest_detectable(interval.stderr, confidence),
        num_items=num_items,
        p_regressed=evidence.p_below(-margin),
        effect=effect,
    )

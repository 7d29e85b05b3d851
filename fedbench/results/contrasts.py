"""Sums of coefficient times score, over models and seeds on one test set, and over test sets.

Three ways to a p-value, all two-sided and of a value of 0:

* `contrast`: of the BCa bootstrap, or McNemar's where the contrast is one of two shares;
* `JointDraws.contrast` and `mean_over_strata`: a normal approximation, value over standard error
  of the draws;
* `combine_strata`: the share of draws beyond 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np

from fedbench.metrics.metric import Array, Metric
from fedbench.results.intervals import (
    Interval,
    interval_of,
    normal_quantile,
    percentile_interval,
)
from fedbench.results.proportions import Tango, are_shares, interval_of_share, mcnemar_exact
from fedbench.results.resampling import (
    DRAWS,
    FEW_UNITS,
    SEED,
    Term,
    combined,
    joint_draw_sums,
    resample,
    share_clusters,
)

JOINT_DRAWS = 2_000
"""Another seed moves the ends by about 3 % of the half width."""


@dataclass(frozen=True)
class Contrast:
    """A linear combination of scores that were taken on the same items."""

    value: float
    interval: Interval
    p_value: float
    """Two-sided, of a value of 0."""
    draws: Array = field(repr=False, compare=False)
    """Bootstrap draws of the value, for `combine_strata`; empty where nothing was scored."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """The range in which the value can lie."""
    num_units: int | None = None
    """Items (clusters) that it was taken on; None where these are many."""


def contrast(
    terms: Sequence[Term],
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> Contrast:
    """The sum of coefficient times score, all scores taken on the same items.

    ``[(1, f1, fedavg), (-1/3, f1, a), (-1/3, f1, b), (-1/3, f1, c)]`` is FedAvg minus the mean of
    three local models; ``[(1/3, f1, seed_0), ...]`` is a mean over seeds. Items are resampled
    jointly, so what the terms have in common does not widen the interval. Two shares of right
    items with coefficients 1 and -1 get Tango's interval and McNemar's exact p, and one share with
    coefficient 1 has the interval of its own record.

    Args:
        terms: coefficient, metric, statistics (n, d), with the same n items in each.
        clusters: (n,) what the items share; None when each stands alone.
        confidence: coverage, as a share.
        draws: bootstrap draws.
    """
    resampled = resample(terms, clusters, draws)
    if _is_difference_of_shares(terms) and not share_clusters(clusters):
        change = np.sum([c * statistics[:, 0] for c, _, statistics in terms], axis=0)
        exact = Tango.of(change)
        interval = interval_of(exact, confidence)
        p_value = mcnemar_exact(exact.better, exact.worse)
    else:
        interval = interval_of(resampled, confidence)
        p_value = resampled.p_value()
        if _is_share(terms) and not share_clusters(clusters):
            interval = interval_of_share(terms[0][2], confidence)
    # Of one item alone there is a value, and nothing to resample.
    sums = np.concatenate([statistics.sum(axis=0) for _, _, statistics in terms])
    value = float(combined(terms, sums))
    num_units = _num_units(terms[0][2], clusters)
    return Contrast(value, interval, p_value, resampled.widened(), resampled.bounds, num_units)


def joint_bootstrap(
    metric: Metric,
    statistics: Sequence[Array],
    clusters: Sequence[str] | None = None,
    draws: int = JOINT_DRAWS,
) -> JointDraws:
    """One resampling of a task's items that all contrasts between some models share.

    `contrast` resamples for each contrast by itself and corrects the percentiles for bias and
    skewness, which takes a minute for a table where this takes seconds.

    Args:
        metric: what the statistics are of.
        statistics: (n, d) per model, with the same n items in each; rows of zeros where a model
            failed.
        clusters: (n,) what the items share; None when each stands alone.
        draws: bootstrap draws.
    """
    sums = np.stack([rows.sum(axis=0) for rows in statistics])
    drawn = [np.empty((0, len(statistics)))]
    if _num_units(statistics[0], clusters) >= FEW_UNITS:
        blocks = joint_draw_sums(np.hstack(statistics), clusters, draws)
        drawn = [metric.value(block.reshape(-1, *sums.shape)) for block in blocks]
    return JointDraws(
        metric, statistics, clusters, draws, metric.value(sums), np.concatenate(drawn)
    )


@dataclass(frozen=True)
class JointDraws:
    """The scores of some models on the same items, in bootstrap draws of these items."""

    metric: Metric
    statistics: Sequence[Array]
    clusters: Sequence[str] | None
    num_draws: int
    scores: Array
    """(models,)"""
    draws: Array
    """(draws, models); no draw where there are fewer than `FEW_UNITS` items (clusters)."""

    @property
    def num_units(self) -> int:
        """How many items, or clusters, are resampled."""
        return _num_units(self.statistics[0], self.clusters)

    def contrast(self, terms: Sequence[tuple[float, int]], confidence: float = 0.95) -> Contrast:
        """The sum of coefficient times score.

        The interval takes percentiles of the draws. The p-value is a normal approximation, value
        over standard error of the draws: counting the draws beyond 0 gives no p below 2 / draws,
        too coarse to correct for many tests. Where too little varies for percentiles to be
        honest, it is that of the function `contrast`, which is quick there.

        Args:
            terms: coefficient, and position of the model.
            confidence: coverage, as a share.
        """
        models = [model for _, model in terms]
        coefficients = np.array([coefficient for coefficient, _ in terms])
        draws = self.draws[:, models] @ coefficients
        draws = draws[np.isfinite(draws)]
        if len(draws) < 2 or np.ptp(draws) < 1e-12:
            exact = [(c, self.metric, self.statistics[model]) for c, model in terms]
            return contrast(exact, self.clusters, confidence, self.num_draws)
        value = float(coefficients @ self.scores[models])
        interval = percentile_interval(draws, confidence, "bootstrap-percentile")
        return Contrast(value, interval, _normal_p(value, interval.stderr), draws)


def combine_strata(
    contrasts: Sequence[Contrast],
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> Contrast:
    """Weighted sum of contrasts over several test sets, each resampled by itself.

    Avg:3 over FPB, FiQA and TFNS is the sum with weights of 1/3 (the default is the mean). The
    interval takes percentiles of the combined draws. A stratum in which no draw differs adds
    nothing to its width.

    Args:
        contrasts: one per test set, all with the same number of draws.
        weights: one per contrast; 1 / len(contrasts) where None.
        confidence: coverage, as a share.
    """
    weights = weights or [1 / len(contrasts)] * len(contrasts)
    value = sum(w * c.value for w, c in zip(weights, contrasts, strict=True))
    kept = min(len(c.draws) for c in contrasts)  # a metric may be undefined in some draws
    if math.isnan(value) or kept < 2:
        nothing = Interval(math.nan, math.nan, math.nan, "none")
        return Contrast(value, nothing, math.nan, np.empty(0))
    # All contrasts draw with the same seed; shuffling makes the strata independent.
    shuffled = [
        np.random.default_rng([SEED, stratum]).permutation(c.draws)
        for stratum, c in enumerate(contrasts)
    ]
    draws = np.sum([w * d[:kept] for w, d in zip(weights, shuffled, strict=True)], axis=0)
    interval = percentile_interval(draws, confidence, "stratified-bootstrap-percentile")
    return Contrast(value, interval, _two_sided_share(draws), draws)


def mean_over_strata(contrasts: Sequence[Contrast], confidence: float = 0.95) -> Contrast:
    """The mean of contrasts over several test sets.

    `combine_strata`, but for three things. The p-value is a normal approximation, as in
    `JointDraws.contrast`. Where sets are small, the interval is as much wider as Student's t is
    than the normal distribution at the degrees of freedom of Satterthwaite (1946). Where no draw of
    any set differs, or a set is a single item, it has the means of the sets' own ends, which bound
    what was never seen.
    """
    total = combine_strata(contrasts, confidence=confidence)
    least, most = (fmean(ends) for ends in zip(*(part.bounds for part in contrasts), strict=True))
    low, high, value = total.interval.low, total.interval.high, total.value
    wider = _wider(contrasts, confidence)
    interval = replace(
        total.interval,
        low=max(value - (value - low) * wider, least),
        high=min(value + (high - value) * wider, most),
    )
    if not interval.low < interval.high:
        parts = [part.interval for part in contrasts]
        interval = Interval(
            low=fmean(part.low for part in parts),
            high=fmean(part.high for part in parts),
            stderr=fmean(part.stderr for part in parts),
            method="mean-of-ends",
        )
    p_value = _normal_p(total.value, wider * interval.stderr)
    return replace(total, interval=interval, p_value=p_value)


def _wider(contrasts: Sequence[Contrast], confidence: float) -> float:
    """Quantile of Student's t over that of the normal distribution, for errors that are estimated.

    The variance of a sum over strata has (sum v)^2 / sum(v^2 / (n - 1)) degrees of freedom
    (Satterthwaite 1946, https://doi.org/10.2307/3002019); a stratum in which nothing varies adds
    none.
    """
    from scipy.special import stdtrit

    variances = [float(np.var(part.draws)) if len(part.draws) else 0.0 for part in contrasts]
    squares = math.fsum(
        variance**2 / (part.num_units - 1)
        for variance, part in zip(variances, contrasts, strict=True)
        if part.num_units is not None and part.num_units > 1
    )
    if squares == 0:
        return 1.0
    freedom = math.fsum(variances) ** 2 / squares
    return float(stdtrit(freedom, (1 + confidence) / 2)) / normal_quantile(confidence)


def _num_units(statistics: Array, clusters: Sequence[str] | None) -> int:
    return len(statistics if clusters is None else set(clusters))


def _is_share(terms: Sequence[Term]) -> bool:
    [(coefficient, metric, statistics), *others] = terms
    return not others and coefficient == 1.0 and are_shares(metric, statistics)


def _is_difference_of_shares(terms: Sequence[Term]) -> bool:
    coefficients = sorted(coefficient for coefficient, _, _ in terms)
    shares = all(are_shares(metric, statistics) for _, metric, statistics in terms)
    return coefficients == [-1.0, 1.0] and shares


def _normal_p(value: float, stderr: float) -> float:
    """Two-sided p of a value of 0, by the normal approximation."""
    return math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr > 0 else 1.0


def _two_sided_share(draws: Array) -> float:
    tail = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))

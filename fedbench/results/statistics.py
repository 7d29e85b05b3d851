"""Intervals and tests on the sums of sufficient statistics that metrics are made of.

Which interval is given where:

=====================================  ==========================================
share of right items                   Wilson; Clopper-Pearson below 100 items
paired difference of two such shares   Tango's score interval
everything else, and all with clusters BCa bootstrap of the items (the clusters)
the same, fewer than 30 units          jackknife with Student's t
the same, and no draw differs          Clopper-Pearson bound on what was never seen
=====================================  ==========================================

A bootstrap draw changes only how often each *distinct* row of statistics is counted, so it is a
multinomial over few rows; the value of a metric is then one product of counts and rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedbench.metrics.metric import Array, Metric

Counts = npt.NDArray[np.int64]
Term = tuple[float, Metric, Array]
"""Coefficient, metric, and its statistics (n, d), one row per item."""

WILSON_FROM = 100
"""Items from which the Wilson interval is used; below, coverage is to hold for every p."""
FEW_UNITS = 30
"""Below this many resampled units the bootstrap is too narrow and Student's t is used."""
DRAWS = 10_000
POWER = 0.8
SEED = 0

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A confidence interval; NaN throughout where nothing was scored."""

    low: float
    high: float
    stderr: float
    method: str
    """``wilson``, ``clopper-pearson``, ``tango``, ``bootstrap-bca``, ``jackknife-t``,
    ``none-differ``, ``stratified-bootstrap-percentile``; with ``cluster-`` in front where whole
    clusters were resampled."""


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


@dataclass(frozen=True)
class Contrast:
    """A linear combination of scores that were taken on the same items."""

    value: float
    interval: Interval
    p_value: float
    """Two-sided, of a value of 0."""
    draws: Array = field(repr=False, compare=False)
    """Bootstrap draws of the value, for `combine_strata`; empty where nothing was scored."""


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
    if metric.binary and not _shared(clusters):
        return _interval_of_share(metric, statistics, confidence)
    evidence = _resample([(1.0, metric, statistics)], clusters, draws)
    return _interval(evidence, confidence)


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
    terms = [(sign, metric, candidate), (-sign, metric, baseline)]
    evidence: _Evidence
    if metric.binary and not _shared(clusters):
        evidence = _tango_of(terms)
        p_value = mcnemar_exact(evidence.better, evidence.worse)
    else:
        evidence = _resample(terms, clusters, draws)
        p_value = _sign_flip(terms, clusters, draws)
    return _difference(evidence, p_value, len(candidate), margin, confidence)


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
    return _difference(evidence, _two_sided(evidence), num_items, margin, confidence)


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
    items with coefficients 1 and -1 get Tango's interval and McNemar's exact p.

    Args:
        terms: coefficient, metric, statistics (n, d), with the same n items in each.
        clusters: (n,) what the items share; None when each stands alone.
        confidence: coverage, as a share.
        draws: bootstrap draws.
    """
    resampled = _resample(terms, clusters, draws)
    if _is_difference_of_shares(terms) and not _shared(clusters):
        exact = _tango_of(terms)
        interval = _interval(exact, confidence)
        p_value = mcnemar_exact(exact.better, exact.worse)
    else:
        interval = _interval(resampled, confidence)
        p_value = _two_sided(resampled)
    return Contrast(resampled.value, interval, p_value, resampled.draws)


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
    if math.isnan(value):
        nothing = Interval(math.nan, math.nan, math.nan, "none")
        return Contrast(math.nan, nothing, math.nan, np.empty(0))
    # All contrasts draw with the same seed; shuffling makes the strata independent.
    shuffled = [
        np.random.default_rng([SEED, stratum]).permutation(c.draws)
        for stratum, c in enumerate(contrasts)
    ]
    kept = min(len(draws) for draws in shuffled)  # a metric may be undefined in some draws
    draws = np.sum([w * d[:kept] for w, d in zip(weights, shuffled, strict=True)], axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    interval = Interval(
        float(low), float(high), float(draws.std(ddof=1)), "stratified-bootstrap-percentile"
    )
    return Contrast(value, interval, _two_sided_share(draws), draws)


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a proportion (Wilson 1927), ends as shares."""
    z = _quantile(confidence)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # Rounding would leave 1e-17 where the interval reaches 0 or 1.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def clopper_pearson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval for a proportion (Clopper and Pearson 1934): covers at least as promised."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a paired difference of proportions, (b - c) / n.

    Tango, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17 (1998).

    Args:
        b: pairs that only the first got right.
        c: pairs that only the second got right.
        n: all pairs.
        confidence: coverage, as a share.

    Returns:
        The ends, within -1 and 1.
    """
    return _Tango(b, c, n).ends(confidence)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test: is b of b + c a fair coin?"""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


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
    return (_quantile(confidence) + _NORMAL.inv_cdf(power)) * stderr


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
        do, or where nothing was scored.
    """
    distance = abs(delta + margin)
    if not distance > 0 or not math.isfinite(stderr):
        return None
    needed = num_items * (smallest_detectable(stderr, confidence, power) / distance) ** 2
    return max(num_items + 1, math.ceil(needed))


# What is known of an estimate, by method: its interval, and its one-sided tests.


class _Evidence(Protocol):
    @property
    def value(self) -> float: ...

    @property
    def method(self) -> str: ...

    def stderr(self) -> float: ...

    def ends(self, confidence: float) -> tuple[float, float]: ...

    def p_below(self, threshold: float) -> float:
        """One-sided p of the hypothesis that the truth is at least the threshold."""


@dataclass(frozen=True)
class _Tango:
    """Score method for (better - worse) / n; ends and tests agree exactly."""

    better: int
    worse: int
    n: int
    method: str = "tango"

    @property
    def value(self) -> float:
        return (self.better - self.worse) / self.n if self.n else math.nan

    def stderr(self) -> float:
        """With half an item more in each cell (Agresti and Min 2005): not 0 where none differ."""
        if self.n == 0:
            return math.nan
        n = self.n + 2
        spread = self.better + self.worse + 1 - (self.better - self.worse) ** 2 / n
        return math.sqrt(spread) / n

    def ends(self, confidence: float) -> tuple[float, float]:
        if self.n == 0:
            return math.nan, math.nan
        z = _quantile(confidence)
        low = _bisect(lambda delta: self._score(delta) - z, -1.0, self.value)
        high = _bisect(lambda delta: self._score(delta) + z, self.value, 1.0)
        return low, high

    def p_below(self, threshold: float) -> float:
        if threshold <= -1:
            return 1.0
        return _NORMAL.cdf(self._score(threshold))

    def _score(self, delta: float) -> float:
        """Distance of the data from delta in standard errors under delta; falls in delta."""
        distance = self.better - self.worse - self.n * delta
        if distance == 0:
            return 0.0
        # Maximum likelihood of the share of `worse` pairs when the difference is delta.
        b = -self.better - self.worse + (2 * self.n - self.better + self.worse) * delta
        c = -self.worse * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 8 * self.n * c, 0.0)) - b) / (4 * self.n)
        variance = self.n * (2 * share + delta * (1 - delta))
        if variance <= 0:  # delta of -1 or 1, or no discordant pair under delta = 0
            return math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)


@dataclass(frozen=True)
class _Normal:
    value: float
    error: float
    method: str = "unpaired"

    def stderr(self) -> float:
        return self.error

    def ends(self, confidence: float) -> tuple[float, float]:
        half = _quantile(confidence) * self.error
        return self.value - half, self.value + half

    def p_below(self, threshold: float) -> float:
        if math.isnan(self.value) or math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 1.0 if self.value >= threshold else 0.0
        return _NORMAL.cdf((self.value - threshold) / self.error)


@dataclass(frozen=True)
class _Resampled:
    """An estimate, its bootstrap draws, and its values with one unit left out."""

    value: float
    draws: Array
    """(draws,), without those in which the metric is undefined."""
    left_out: Array
    """(k,) the value without one unit, per distinct row of statistics."""
    counts: Counts
    """(k,) how many units have that row."""
    bounds: tuple[float, float]
    """The range in which the value can lie."""
    prefix: str
    """``cluster-`` where the units are clusters."""

    @property
    def units(self) -> int:
        return int(self.counts.sum())

    @property
    def method(self) -> str:
        return f"{self.prefix}bootstrap-bca"

    def stderr(self) -> float:
        return float(self.draws.std(ddof=1))

    def ends(self, confidence: float) -> tuple[float, float]:
        """BCa: bias-corrected and accelerated percentiles (Efron 1987, equations 2.3 and 6.6).

        Normal quantiles are replaced by sqrt(n / (n - 1)) times Student's (Hesterberg 2015,
        section 4.3), for percentiles of 50 units are too narrow by a twentieth.
        """
        from scipy.special import stdtrit

        bias, acceleration = self._bias(), self._acceleration()

        def level(z: float) -> float:
            return _NORMAL.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

        z = float(stdtrit(self.units - 1, (1 + confidence) / 2)) / self._narrowing()
        low, high = np.quantile(self.draws, [level(-z), level(z)])
        return float(low), float(high)

    def p_below(self, threshold: float) -> float:
        """The level at which the upper end reaches the threshold; at least 1 / (draws + 1)."""
        from scipy.special import stdtr

        shift = self._probit(np.mean(self.draws < threshold)) - self._bias()
        stretch = max(1 + self._acceleration() * shift, 1e-9)  # 1 / stretch stays positive
        z = shift / stretch - self._bias()
        p = float(stdtr(self.units - 1, -z * self._narrowing()))
        return max(p, 1 / (len(self.draws) + 1))

    def _narrowing(self) -> float:
        """What dividing by n in place of n - 1 does to the spread of the draws."""
        return math.sqrt((self.units - 1) / self.units)

    def _bias(self) -> float:
        below = np.mean(self.draws < self.value) + np.mean(self.draws == self.value) / 2
        return self._probit(below)

    def _acceleration(self) -> float:
        """A sixth of the skewness of the jackknife values: at most 1/6 in size."""
        influence = np.average(self.left_out, weights=self.counts) - self.left_out
        squares = float((self.counts * influence**2).sum())
        return float((self.counts * influence**3).sum()) / (6 * squares**1.5) if squares else 0.0

    def _probit(self, share: np.floating) -> float:
        edge = 1 / (len(self.draws) + 1)
        return _NORMAL.inv_cdf(min(max(float(share), edge), 1 - edge))


@dataclass(frozen=True)
class _FewUnits(_Resampled):
    """Jackknife error and Student's t with one degree of freedom less than there are units."""

    @property
    def method(self) -> str:
        return f"{self.prefix}jackknife-t"

    def stderr(self) -> float:
        centre = np.average(self.left_out, weights=self.counts)
        squares = float((self.counts * (self.left_out - centre) ** 2).sum())
        return math.sqrt((self.units - 1) / self.units * squares)

    def ends(self, confidence: float) -> tuple[float, float]:
        from scipy.special import stdtrit

        half = float(stdtrit(self.units - 1, (1 + confidence) / 2)) * self.stderr()
        return max(self.value - half, self.bounds[0]), min(self.value + half, self.bounds[1])

    def p_below(self, threshold: float) -> float:
        from scipy.special import stdtr

        error = self.stderr()
        if error == 0:
            return 1.0 if self.value >= threshold else 0.0
        return float(stdtr(self.units - 1, (self.value - threshold) / error))


@dataclass(frozen=True)
class _NoneDiffer(_Resampled):
    """Every draw gives the same value, and the bootstrap would call it certain.

    Units unlike those seen make up at most a share pi of all (Clopper-Pearson for 0 of n), and
    can move the value by at most pi times its range.
    """

    @property
    def method(self) -> str:
        return f"{self.prefix}none-differ"

    def stderr(self) -> float:
        return self._reach(0.95) / _quantile(0.95)

    def ends(self, confidence: float) -> tuple[float, float]:
        reach = self._reach(confidence)
        return max(self.value - reach, self.bounds[0]), min(self.value + reach, self.bounds[1])

    def p_below(self, threshold: float) -> float:
        if self.value >= threshold:
            return 1.0
        gap = (threshold - self.value) / (self.bounds[1] - self.bounds[0])
        return float((1 - min(gap, 1.0)) ** self.units)

    def _reach(self, confidence: float) -> float:
        share: float = 1 - ((1 - confidence) / 2) ** (1 / self.units)
        return share * (self.bounds[1] - self.bounds[0])


@dataclass(frozen=True)
class _Nothing(_Resampled):
    """Nothing was scored, or the metric is undefined on what was."""

    @property
    def method(self) -> str:
        return "none"

    def stderr(self) -> float:
        return math.nan

    def ends(self, confidence: float) -> tuple[float, float]:
        return math.nan, math.nan

    def p_below(self, threshold: float) -> float:
        return 1.0


def _interval(evidence: _Evidence, confidence: float) -> Interval:
    low, high = evidence.ends(confidence)
    return Interval(low, high, evidence.stderr(), evidence.method)


def _difference(
    evidence: _Evidence, p_value: float, num_items: int, margin: float, confidence: float
) -> Difference:
    interval = _interval(evidence, confidence)
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
    )


def _interval_of_share(metric: Metric, statistics: Array, confidence: float) -> Interval:
    n = len(statistics)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, "none")
    successes = float(statistics[:, 0].sum())
    share = successes / n
    stderr = math.sqrt(share * (1 - share) / n)
    if n >= WILSON_FROM:
        return Interval(*wilson(successes, n, confidence), stderr, "wilson")
    return Interval(*clopper_pearson(successes, n, confidence), stderr, "clopper-pearson")


def _is_difference_of_shares(terms: Sequence[Term]) -> bool:
    coefficients = sorted(coefficient for coefficient, _, _ in terms)
    return coefficients == [-1.0, 1.0] and all(metric.binary for _, metric, _ in terms)


def _tango_of(terms: Sequence[Term]) -> _Tango:
    change = sum(coefficient * statistics[:, 0] for coefficient, _, statistics in terms)
    better, worse = int(np.sum(change > 0)), int(np.sum(change < 0))
    return _Tango(better, worse, len(terms[0][2]))


def _two_sided(evidence: _Evidence) -> float:
    if math.isnan(evidence.value):
        return math.nan
    if isinstance(evidence, _Resampled):
        low, high = evidence.bounds
        mirrored = replace(
            evidence,
            value=-evidence.value,
            draws=-evidence.draws,
            left_out=-evidence.left_out,
            bounds=(-high, -low),
        )
        return min(1.0, 2 * min(evidence.p_below(0.0), mirrored.p_below(0.0)))
    below = evidence.p_below(0.0)
    return min(1.0, 2 * min(below, 1 - below))


def _two_sided_share(draws: Array) -> float:
    tail = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


# Resampling.


def _resample(terms: Sequence[Term], clusters: Sequence[str] | None, draws: int) -> _Resampled:
    """Bootstrap and jackknife of the sum of coefficient times score."""
    rows, counts = _distinct_units(np.hstack([s for _, _, s in terms]), clusters)
    prefix = "cluster-" if _shared(clusters) else ""
    bounds = _bounds(terms)
    if len(rows) == 0:
        return _Nothing(math.nan, np.empty(0), np.empty(0), counts, bounds, prefix)
    sums = counts @ rows
    value = float(_combined(terms, sums))
    blocks = np.array_split(rows, math.ceil(rows.size / 1_000_000))
    left_out = np.concatenate([_combined(terms, sums - block) for block in blocks])
    defined = np.isfinite(left_out)
    values = np.concatenate([_combined(terms, s) for s in _draw_sums(rows, counts, draws)])
    values = values[np.isfinite(values)]
    if math.isnan(value) or len(values) < 2 or not defined.any():
        return _Nothing(math.nan, np.empty(0), np.empty(0), counts, bounds, prefix)
    if np.ptp(values) <= 1e-12 * max(1.0, abs(value)):  # sums of floats differ in the last digit
        return _NoneDiffer(value, values, left_out, counts, bounds, prefix)
    kind = _FewUnits if counts.sum() < FEW_UNITS else _Resampled
    return kind(value, values, left_out[defined], counts[defined], bounds, prefix)


def _combined(terms: Sequence[Term], sums: Array) -> Array:
    """(...,) the sum of coefficient times score, from (..., D) sums of all terms side by side."""
    total: Array = np.zeros(sums.shape[:-1])
    start = 0
    for coefficient, metric, statistics in terms:
        stop = start + statistics.shape[1]
        total = total + coefficient * metric.value(sums[..., start:stop])
        start = stop
    return total


def _bounds(terms: Sequence[Term]) -> tuple[float, float]:
    ends = [sorted((c * m.unit_range[0], c * m.unit_range[1])) for c, m, _ in terms if c]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def _distinct_units(rows: Array, clusters: Sequence[str] | None) -> tuple[Array, Counts]:
    """(k, D) the distinct rows among items (or sums over clusters), and how often each occurs."""
    if clusters is not None:
        rows = _sum_by_cluster(rows, clusters)
    if len(rows) == 0:
        return rows, np.zeros(0, dtype=np.int64)
    seen = rows[:, rows.any(axis=0)] if rows.shape[1] > 100 and rows.any() else rows
    seen = np.ascontiguousarray(seen, dtype=float) + 0.0  # -0.0 is 0.0: the bytes are compared
    # As bytes, because np.unique(axis=0) compares field by field and takes seconds on wide rows.
    keys = seen.view(np.dtype((np.void, seen.itemsize * seen.shape[1]))).ravel()
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return rows[first], counts.astype(np.int64)


def _sum_by_cluster(rows: Array, clusters: Sequence[str]) -> Array:
    if len(clusters) != len(rows):
        raise ValueError(f"{len(clusters)} clusters for {len(rows)} items")
    if len(rows) == 0:
        return rows
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    return np.asarray(np.add.reduceat(rows[order], starts, axis=0))


def _shared(clusters: Sequence[str] | None) -> bool:
    """Whether any two items share a cluster."""
    return clusters is not None and len(set(clusters)) < len(clusters)


def _draw_sums(rows: Array, counts: Counts, draws: int) -> Iterator[Array]:
    """Sums of bootstrap draws, (some, D) at a time, `draws` in all."""
    matrix = _compact(rows)
    for drawn in _draw_counts(counts, draws, rows.shape[1]):
        yield drawn @ matrix


def _draw_counts(counts: Counts, draws: int, width: int) -> Iterator[Array]:
    """(some, k) how often each distinct row is drawn."""
    generator = np.random.default_rng(SEED)
    units, rows = int(counts.sum()), len(counts)
    if _few_distinct(counts):
        for size in _chunks(draws, max(rows, width)):
            yield generator.multinomial(units, counts / units, size=size).astype(float)
        return
    row_of_unit = np.repeat(np.arange(rows), counts)
    for size in _chunks(draws, max(units, width)):
        picks = generator.integers(0, units, size=(size, units))
        if rows < units:
            picks = row_of_unit[picks]
        picks += (np.arange(size) * rows)[:, None]
        drawn = np.bincount(picks.ravel(), minlength=size * rows)
        yield drawn.reshape(size, rows).astype(float)


def _sign_flip(terms: Sequence[Term], clusters: Sequence[str] | None, draws: int) -> float:
    """Two-sided p when candidate and baseline swap the answers of random items (clusters).

    One swap in two is what the hypothesis of no difference says; the observed labelling counts
    as one of the draws (Phipson and Smyth 2010), so that p is never 0.
    """
    (_, _, candidate), (_, _, baseline) = terms
    rows, counts = _distinct_units(np.hstack([candidate, baseline]), clusters)
    width = candidate.shape[1]
    sums = counts @ rows if len(rows) else np.zeros(2 * width)
    observed = abs(float(_combined(terms, sums)))
    swap = np.hstack([rows[:, width:] - rows[:, :width], rows[:, :width] - rows[:, width:]])
    differs = np.any(swap != 0, axis=1)
    if math.isnan(observed) or not differs.any():
        return math.nan if math.isnan(observed) else 1.0
    extreme = 0
    for swapped in _swap_sums(swap[differs], counts[differs], draws):
        extreme += int(np.sum(abs(_combined(terms, sums + swapped)) >= observed - 1e-12))
    return (extreme + 1) / (draws + 1)


def _swap_sums(rows: Array, counts: Counts, draws: int) -> Iterator[Array]:
    """Sums over the units that a fair coin chooses, (some, D) at a time."""
    generator = np.random.default_rng(SEED + 1)
    if _few_distinct(counts):
        matrix = _compact(rows)
        for size in _chunks(draws, max(rows.shape)):
            yield generator.binomial(counts, 0.5, size=(size, len(counts))).astype(float) @ matrix
        return
    every = _compact(np.repeat(rows, counts, axis=0))
    units = int(counts.sum())
    for size in _chunks(draws, max(units, rows.shape[1])):
        coins = generator.integers(0, 256, size=(size, units // 8 + 1), dtype=np.uint8)
        yield np.unpackbits(coins, axis=1, count=units).astype(float) @ every


def _few_distinct(counts: Counts) -> bool:
    # A multinomial costs about 16 times as much per row as picking costs per unit (measured).
    return len(counts) * 16 <= int(counts.sum())


def _compact(rows: Array) -> Any:
    """The rows, sparse where that pays: confusion matrices over many labels are nearly empty."""
    if rows.shape[1] < 100 or np.count_nonzero(rows) * 20 > rows.size:
        return rows
    from scipy.sparse import csr_array

    return csr_array(rows)


def _chunks(draws: int, width: int) -> Iterator[int]:
    """Sizes that add up to `draws`; a block of that many rows stays in the processor's cache."""
    size = max(1, 300_000 // width)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _quantile(confidence: float) -> float:
    return _NORMAL.inv_cdf((1 + confidence) / 2)


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0; the nearer end where it does not."""
    for _ in range(60):  # 2 / 2**60 is below the spacing of floats near 1
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2

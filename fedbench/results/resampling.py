"""Resampling of items or clusters: the bootstrap and the jackknife.

A bootstrap draw changes only how often each *distinct* row of statistics is counted, so it is a
multinomial over few rows; the value of a metric is then one product of counts and rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from fedbench.metrics.metric import Array, Metric
from fedbench.results.intervals import normal_quantile

Counts = npt.NDArray[np.int64]
Term = tuple[float, Metric, Array]
"""Coefficient, metric, and its statistics (n, d), one row per item."""

FEW_UNITS = 30
"""Below this many resampled units the bootstrap is too narrow and Student's t is used."""
DRAWS = 10_000
SEED = 0
DRAWS_AT_ONCE = 100
"""So many draws of a few thousand items of many models stay in the processor's cache."""

_NORMAL = NormalDist()


def resample(terms: Sequence[Term], clusters: Sequence[str] | None, draws: int) -> Resampled:
    """Bootstrap and jackknife of the sum of coefficient times score."""
    rows, counts = distinct_units(np.hstack([s for _, _, s in terms]), clusters)
    prefix = "cluster-" if share_clusters(clusters) else ""
    bounds = _bounds(terms)
    if len(rows) == 0:
        return _Nothing(math.nan, np.empty(0), np.empty(0), counts, bounds, prefix)
    sums = counts @ rows
    value = float(combined(terms, sums))
    blocks = np.array_split(rows, math.ceil(rows.size / 1_000_000))
    left_out = np.concatenate([combined(terms, sums - block) for block in blocks])
    defined = np.isfinite(left_out)
    values = np.concatenate([combined(terms, s) for s in _draw_sums(rows, counts, draws)])
    values = values[np.isfinite(values)]
    if math.isnan(value) or len(values) < 2 or not defined.any():
        return _Nothing(math.nan, np.empty(0), np.empty(0), counts, bounds, prefix)
    if np.ptp(values) <= 1e-12 * max(1.0, abs(value)):  # sums of floats differ in the last digit
        return _NoneDiffer(value, values, left_out, counts, bounds, prefix)
    kind = _FewUnits if counts.sum() < FEW_UNITS else Resampled
    return kind(value, values, left_out[defined], counts[defined], bounds, prefix)


def joint_draw_sums(rows: Array, clusters: Sequence[str] | None, draws: int) -> Iterator[Array]:
    """Sums of the rows over bootstrap draws of the items (the clusters), (some, D) at a time.

    For rows that hold the statistics of many models side by side, nearly all of them distinct:
    one resampling serves every model.
    """
    from scipy.sparse import csr_array

    matrix = csr_array(rows.T)  # most statistics are one-hot, so that few numbers are not 0
    units = np.arange(len(rows))
    if clusters is not None:
        units = np.unique(np.asarray(clusters), return_inverse=True)[1]
    num_units = int(units.max()) + 1
    generator = np.random.default_rng(SEED)
    for start in range(0, draws, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, draws - start)
        picks = generator.integers(0, num_units, size=(num_units, size))
        places = (picks * size + np.arange(size)).ravel()
        counts = np.bincount(places, minlength=num_units * size).reshape(num_units, size)
        yield np.asarray((matrix @ counts[units].astype(float)).T)


def share_clusters(clusters: Sequence[str] | None) -> bool:
    """Whether any two items share a cluster."""
    return clusters is not None and len(set(clusters)) < len(clusters)


@dataclass(frozen=True)
class Resampled:
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
        """How many items, or clusters, were resampled."""
        return int(self.counts.sum())

    @property
    def method(self) -> str:
        """As in `Interval.method`."""
        return f"{self.prefix}bootstrap-bca"

    def widened(self) -> Array:
        """The draws, as far from the value as dividing by n - 1 has them, for sums over strata.

        Of clients with three rows each the plain draws spread sqrt(2/3) as far as scores do, and
        a 95 % interval of their mean is one of 89 %.
        """
        return self.value + (self.draws - self.value) / self._narrowing()

    def stderr(self) -> float:
        """Standard deviation of the draws."""
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

    def p_value(self) -> float:
        """Two-sided, of a value of 0."""
        if math.isnan(self.value):
            return math.nan
        low, high = self.bounds
        mirrored = replace(
            self,
            value=-self.value,
            draws=-self.draws,
            left_out=-self.left_out,
            bounds=(-high, -low),
        )
        return min(1.0, 2 * min(self.p_below(0.0), mirrored.p_below(0.0)))

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
class _FewUnits(Resampled):
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
class _NoneDiffer(Resampled):
    """Every draw gives the same value, and the bootstrap would call it certain.

    Units unlike those seen make up at most a share pi of all (Clopper-Pearson for 0 of n), and
    can move the value by at most pi times its range.
    """

    @property
    def method(self) -> str:
        return f"{self.prefix}none-differ"

    def stderr(self) -> float:
        return self._reach(0.95) / normal_quantile(0.95)

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
class _Nothing(Resampled):
    """Nothing was scored, or the metric is undefined on what was."""

    @property
    def method(self) -> str:
        return "none"

    def widened(self) -> Array:
        return self.draws

    def stderr(self) -> float:
        return math.nan

    def ends(self, confidence: float) -> tuple[float, float]:
        return math.nan, math.nan

    def p_below(self, threshold: float) -> float:
        return 1.0


def combined(terms: Sequence[Term], sums: Array) -> Array:
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


def distinct_units(rows: Array, clusters: Sequence[str] | None) -> tuple[Array, Counts]:
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


def _draw_sums(rows: Array, counts: Counts, draws: int) -> Iterator[Array]:
    """Sums of bootstrap draws, (some, D) at a time, `draws` in all."""
    matrix = compact(rows)
    for drawn in _draw_counts(counts, draws, rows.shape[1]):
        yield drawn @ matrix


def _draw_counts(counts: Counts, draws: int, width: int) -> Iterator[Array]:
    """(some, k) how often each distinct row is drawn."""
    generator = np.random.default_rng(SEED)
    units, rows = int(counts.sum()), len(counts)
    if few_distinct(counts):
        for size in chunk_sizes(draws, max(rows, width)):
            yield generator.multinomial(units, counts / units, size=size).astype(float)
        return
    row_of_unit = np.repeat(np.arange(rows), counts)
    for size in chunk_sizes(draws, max(units, width)):
        picks = generator.integers(0, units, size=(size, units))
        if rows < units:
            picks = row_of_unit[picks]
        picks += (np.arange(size) * rows)[:, None]
        drawn = np.bincount(picks.ravel(), minlength=size * rows)
        yield drawn.reshape(size, rows).astype(float)


def few_distinct(counts: Counts) -> bool:
    """Whether it pays to draw how often each distinct row occurs, rather than unit by unit."""
    # A multinomial costs about 16 times as much per row as picking costs per unit (measured).
    return len(counts) * 16 <= int(counts.sum())


def compact(rows: Array) -> Any:
    """The rows, sparse where that pays: counts of many labels are nearly all 0."""
    if rows.shape[1] < 100 or np.count_nonzero(rows) * 20 > rows.size:
        return rows
    from scipy.sparse import csr_array

    return csr_array(rows)


def chunk_sizes(draws: int, width: int) -> Iterator[int]:
    """Sizes that add up to `draws`; a block of that many rows stays in the processor's cache."""
    size = max(1, 300_000 // width)
    for start in range(0, draws, size):
        yield min(size, draws - start)

"""What `fedbench.results.statistics` promises about many repetitions: coverage, alarms, power."""

import math

import numpy as np
import pytest

from fedbench.metrics import METRICS, Metric
from fedbench.metrics.metric import Array
from fedbench.results.statistics import (
    clopper_pearson,
    contrast,
    holm,
    paired_difference,
    score_interval,
    smallest_detectable,
    tango,
    wilson,
)

ACCURACY = METRICS["accuracy"]
SIZES = [5, 20, 80, 164]
GRID = np.linspace(0.005, 0.995, 199)


def _mean(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


RATING = Metric(
    "rating", "", ACCURACY.statistics, _mean, "judge", True, (-math.inf, math.inf), False
)


def values(numbers: Array) -> Array:
    return np.column_stack([numbers, np.ones(len(numbers))])


def binomial(n: int, p: Array) -> Array:
    """(len(p), n + 1) probabilities of each count."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(np.arange(n + 1), n, p[:, None]))


@pytest.mark.parametrize("n", SIZES)
def test_clopper_pearson_covers_at_least_95_percent_everywhere(n: int) -> None:
    ends = np.array([clopper_pearson(k, n) for k in range(n + 1)])
    covered = (ends[:, 0] <= GRID[:, None]) & (ends[:, 1] >= GRID[:, None])
    assert (binomial(n, GRID) * covered).sum(axis=1).min() >= 0.95  # exact, no simulation


@pytest.mark.parametrize("n", [100, 274, 1319])
def test_wilson_covers_95_percent_on_average(n: int) -> None:
    ends = np.array([wilson(k, n) for k in range(n + 1)])
    covered = (ends[:, 0] <= GRID[:, None]) & (ends[:, 1] >= GRID[:, None])
    assert (binomial(n, GRID) * covered).sum(axis=1).mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("gain", "loss"), [(0.02, 0.02), (0.05, 0.10), (0.20, 0.10)])
def test_tango_covers_95_percent(gain: float, loss: float) -> None:
    draws = np.random.default_rng(0).multinomial(200, [gain, loss, 1 - gain - loss], size=4000)
    pairs, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    ends = np.array([tango(int(b), int(c), 200) for b, c in pairs])
    covered = (ends[:, 0] <= gain - loss) & (gain - loss <= ends[:, 1])
    # 4,000 repetitions know a share of 0.95 to within 0.0034.
    assert np.average(covered, weights=times) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [8, 40, 100])
def test_intervals_of_means_cover(n: int) -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(1500):
        interval = score_interval(RATING, values(generator.normal(0, 1, n)), draws=1000)
        covered += interval.low <= 0 <= interval.high
    # 1,500 repetitions know a share of 0.95 to within 0.0056.
    assert covered / 1500 == pytest.approx(0.95, abs=0.017)


def test_clustered_intervals_cover_where_plain_ones_do_not() -> None:
    generator = np.random.default_rng(1)
    clusters = [str(i // 5) for i in range(200)]
    covered = np.zeros(2)
    for _ in range(600):
        passage = np.repeat(generator.normal(0, 1, 40), 5)
        statistics = values(passage + generator.normal(0, 0.5, 200))
        for column, given in enumerate([clusters, None]):
            interval = score_interval(RATING, statistics, given, draws=1000)
            covered[column] += interval.low <= 0 <= interval.high
    clustered, plain = covered / 600
    assert clustered == pytest.approx(0.95, abs=0.027)  # three standard errors of 600
    assert plain < 0.75


def _alarms(margin: float, repetitions: int, tasks: int, drop: float = 0.0) -> tuple[float, float]:
    """Share of repetitions with any alarm, without and with Holm; 300 items, 10 % discordant."""
    generator = np.random.default_rng(0)
    shares = [0.05 - drop / 2, 0.05 + drop / 2, 0.9]
    draws = generator.multinomial(300, shares, size=(repetitions, tasks))
    p_of: dict[tuple[int, int], float] = {}
    p_values = np.empty((repetitions, tasks))
    for index in np.ndindex(repetitions, tasks):
        b, c = int(draws[index][0]), int(draws[index][1])
        if (b, c) not in p_of:
            change = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [b, c, 300 - b - c], axis=0)
            ones = np.ones(300)
            candidate, baseline = (np.column_stack([change[:, i], ones]) for i in (0, 1))
            found = paired_difference(ACCURACY, candidate, baseline, margin=margin)
            p_of[b, c] = found.p_regressed
        p_values[index] = p_of[b, c]
    plain = (p_values <= 0.025).any(axis=1).mean()
    corrected = np.mean([holm(list(row)).min() <= 0.025 for row in p_values])
    return float(plain), float(corrected)


def test_one_unchanged_model_in_forty_raises_an_alarm_at_most() -> None:
    plain, _ = _alarms(margin=0.0, repetitions=4000, tasks=1)
    assert plain <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 4000)


def test_over_30_tasks_only_holm_keeps_the_alarms_at_one_in_forty() -> None:
    plain, corrected = _alarms(margin=0.0, repetitions=1000, tasks=30)
    assert plain > 0.3  # 1 - 0.975**30 = 0.53, less what discreteness takes
    assert corrected <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1000)


def test_a_model_that_is_worse_by_the_margin_raises_no_more_alarms_than_that() -> None:
    plain, _ = _alarms(margin=0.03, repetitions=4000, tasks=1, drop=0.03)
    assert plain <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 4000)


def test_the_smallest_detectable_drop_is_detected_with_power_0_8() -> None:
    # 300 items, 10 % discordant: 2.80 · √(0.1 / 300) = 5.1 points.
    drop = smallest_detectable(math.sqrt(0.1 / 300))
    power, _ = _alarms(margin=0.0, repetitions=4000, tasks=1, drop=drop)
    assert power == pytest.approx(0.8, abs=0.05)


def test_the_paired_bootstrap_of_a_model_with_itself_raises_few_alarms() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        item = generator.normal(0, 1, 80)
        once, again = (values(item + generator.normal(0, 0.5, 80)) for _ in range(2))
        found = paired_difference(RATING, once, again, draws=1000)
        alarms += found.p_regressed <= 0.025
    assert alarms / 400 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)


def test_a_contrast_of_means_covers() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        item = generator.normal(0, 1, 100)
        a, b, c = (values(item + generator.normal(0, 0.5, 100)) for _ in range(3))
        interval = contrast([(1, RATING, a), (-0.5, RATING, b), (-0.5, RATING, c)], draws=1000)
        covered += interval.interval.low <= 0 <= interval.interval.high
    assert 0.91 <= covered / 300 <= 0.985

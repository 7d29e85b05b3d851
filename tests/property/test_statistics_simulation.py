"""What `fedbench.results.statistics` promises about many repetitions: coverage, alarms, power."""

import math

import numpy as np
import pytest

from fedbench.metrics import METRICS, Metric
from fedbench.metrics.metric import Array
from fedbench.results.clustered_shares import interval_of_clustered_share
from fedbench.results.contrasts import joint_bootstrap, mean_over_strata
from fedbench.results.ranking import PairTest, places
from fedbench.results.seeds import over_seeds
from fedbench.results.statistics import (
    clopper_pearson,
    contrast,
    holm,
    mcnemar_exact,
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
    coverage = (binomial(n, GRID) * covered).sum(axis=1)
    print(f"Wilson, n = {n}: mean {coverage.mean():.4f}, least {coverage.min():.4f}")
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)


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


@pytest.mark.parametrize(("clients", "rows"), [(10, 3), (5, 5), (20, 2)])
def test_means_over_clients_of_few_rows_cover(clients: int, rows: int) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        right = (generator.random((clients, rows)) < 0.7).astype(float)
        scores = [contrast([(1, ACCURACY, values(own))], draws=1000) for own in right]
        interval = mean_over_strata(scores).interval
        covered += interval.low <= 0.7 <= interval.high
    assert covered / 400 >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 400)


def _clustered_coverage(clusters: int, repetitions: int, metric: Metric) -> float:
    """Coverage where five items share a passage whose difficulty they share; binary or graded."""
    generator = np.random.default_rng(clusters)
    names = [str(i // 5) for i in range(5 * clusters)]
    covered = 0
    for _ in range(repetitions):
        if metric is ACCURACY:
            passage = generator.beta(2, 1, clusters)  # mean 2/3, correlation 1/4 within
            numbers = (generator.random(5 * clusters) < np.repeat(passage, 5)).astype(float)
            truth = 2 / 3
        else:
            numbers = np.repeat(generator.exponential(1, clusters), 5)
            numbers += generator.normal(0, 0.5, 5 * clusters)
            truth = 1.0
        interval = score_interval(metric, values(numbers), names, draws=1000)
        covered += interval.low <= truth <= interval.high
    return covered / repetitions


@pytest.mark.parametrize("metric", [ACCURACY, RATING], ids=["binary", "skewed"])
def test_the_cluster_bootstrap_covers_93_percent_from_40_clusters_on(metric: Metric) -> None:
    # 500 repetitions know a share of 0.94 to within 0.011.
    assert _clustered_coverage(40, 500, metric) >= 0.93 - 0.011


@pytest.mark.slow
@pytest.mark.parametrize("metric", [ACCURACY, RATING], ids=["binary", "skewed"])
@pytest.mark.parametrize("clusters", [40, 80, 200])
def test_the_cluster_bootstrap_covers_93_percent_in_many_repetitions(
    clusters: int, metric: Metric
) -> None:
    coverage = _clustered_coverage(clusters, 5000, metric)
    print(f"{clusters} clusters, {metric.name}: {coverage:.4f}")
    assert coverage >= 0.93


def _beta_binomial_coverage(clusters: int, size: int, repetitions: int) -> dict[float, float]:
    """Coverage by correlation within clusters; the mean share is drawn anew each time."""
    generator = np.random.default_rng(size)
    names = [str(i // size) for i in range(clusters * size)]
    found = {}
    for correlation in (0.02, 0.2, 0.6):
        covered = 0
        for _ in range(repetitions):
            mean, d = generator.uniform(0.05, 0.95), 1 / correlation - 1
            passage = generator.beta(d * mean, d * (1 - mean), clusters)
            right = generator.random(clusters * size) < np.repeat(passage, size)
            interval = interval_of_clustered_share(values(right.astype(float)), names, 0.95)
            covered += interval.low <= mean <= interval.high
        found[correlation] = covered / repetitions
    return found


@pytest.mark.parametrize(("clusters", "size"), [(8, 5), (20, 4)])
def test_the_beta_binomial_interval_covers_with_few_clusters(clusters: int, size: int) -> None:
    # 300 repetitions know a share of 0.95 to within 0.0126; three of that.
    assert min(_beta_binomial_coverage(clusters, size, 300).values()) >= 0.95 - 0.038


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "size"), [(5, 10), (8, 5), (20, 4), (29, 2)])
def test_the_beta_binomial_interval_covers_in_many_repetitions(clusters: int, size: int) -> None:
    coverage = _beta_binomial_coverage(clusters, size, 2000)
    print(f"{clusters} clusters of {size}: {coverage}")
    assert min(coverage.values()) >= 0.94


def _seed_coverage(training: float, repetitions: int, num_seeds: int = 3) -> float:
    """Coverage of the mean over seeds, when seeds and items are both drawn anew."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(repetitions):
        item = generator.normal(0, 1, 150)
        seeds = [
            values(item + generator.normal(0, training) + generator.normal(0, 0.5, 150))
            for _ in range(num_seeds)
        ]
        joint = joint_bootstrap(RATING, seeds, draws=300)
        found = over_seeds(joint, [[(1.0, n)] for n in range(num_seeds)])
        covered += found.low <= 0 <= found.high
    return covered / repetitions


@pytest.mark.parametrize("training", [0.0, 0.1, 0.5])
def test_intervals_over_seeds_cover_for_new_seeds_and_new_items(training: float) -> None:
    assert _seed_coverage(training, 300) >= 0.95 - 0.038  # three standard errors of 300


def test_intervals_of_the_items_alone_do_not_cover_what_training_varies() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        item = generator.normal(0, 1, 150)
        seeds = [values(item + generator.normal(0, 0.5)) for _ in range(3)]
        interval = joint_bootstrap(RATING, seeds, draws=300).contrast(
            [(1 / 3, n) for n in range(3)]
        )
        covered += interval.interval.low <= 0 <= interval.interval.high
    assert covered / 300 < 0.6


@pytest.mark.parametrize(
    ("n", "loss", "gain", "power"),
    [
        # Simulated for the exact test elsewhere, to two digits.
        (164, 0.08, 0.02, 0.62),
        (164, 0.085, 0.015, 0.80),
        (1319, 0.06, 0.04, 0.62),
    ],
)
def test_the_power_of_the_exact_test_is_the_known_one(
    n: int, loss: float, gain: float, power: float
) -> None:
    draws = np.random.default_rng(0).multinomial(n, [gain, loss, 1 - gain - loss], size=4000)
    pairs, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    found = [mcnemar_exact(int(b), int(c)) <= 0.05 for b, c in pairs]
    assert np.average(found, weights=times) == pytest.approx(power, abs=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("discordant", [0.05, 0.10, 0.20, 0.30])
@pytest.mark.parametrize("n", [274, 1319, 5000])
def test_the_smallest_detectable_difference_is_found_with_power_0_8_at_every_size(
    n: int, discordant: float
) -> None:
    drop = smallest_detectable(math.sqrt(discordant / n))
    shares = [(discordant - drop) / 2, (discordant + drop) / 2, 1 - discordant]
    if min(shares) < 0:
        pytest.skip("the drop is larger than the share of items that differ")
    draws = np.random.default_rng(0).multinomial(n, shares, size=4000)
    pairs, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    found = [tango(int(b), int(c), n)[1] < 0 for b, c in pairs]
    assert np.average(found, weights=times) == pytest.approx(0.8, abs=0.05)


def _suite_alarms(repetitions: int, tasks: int) -> float:
    """Share of suites in which the bootstrap calls anything regressed, of a model with itself."""
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(repetitions):
        p_values = []
        for _ in range(tasks):
            item = generator.normal(0, 1, 60)
            once, again = (values(item + generator.normal(0, 0.5, 60)) for _ in range(2))
            p_values.append(paired_difference(RATING, once, again, draws=1000).p_regressed)
        alarms += bool(holm(p_values).min() <= 0.025)
    return alarms / repetitions


@pytest.mark.slow
def test_a_suite_of_30_graded_tasks_raises_no_more_alarms_than_alpha() -> None:
    share = _suite_alarms(300, 30)
    print(f"alarms over 30 graded tasks: {share:.4f}")
    assert share <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 300)


def test_equal_models_share_all_ranks_19_times_in_20() -> None:
    generator = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    apart = 0
    for _ in range(400):
        answers = generator.random((4, 300)) < 0.7
        tests = {}
        for i in range(4):
            for j in range(i + 1, 4):
                b, c = (
                    int((answers[i] & ~answers[j]).sum()),
                    int((answers[j] & ~answers[i]).sum()),
                )
                tests[names[i], names[j]] = PairTest(b - c, mcnemar_exact(b, c))
        apart += any(place.first > 1 or place.last < 4 for place in places(names, tests))
    assert apart / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)

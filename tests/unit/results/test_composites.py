"""Mean ranks over tasks; ranks with ties; seeds as their own level; small sets; effects."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from fedbench.metrics import METRICS, Metric
from fedbench.metrics.metric import Array
from fedbench.results.clustered_shares import beta_binomial_posterior
from fedbench.results.contrasts import joint_bootstrap
from fedbench.results.effects import paired_effect
from fedbench.results.ranking import MeanRank, PairTest, TaskScores, mean_ranks, places
from fedbench.results.seeds import over_seeds
from fedbench.results.statistics import score_interval

ACCURACY = METRICS["accuracy"]


def _mean(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


RATING = Metric(
    "rating", "", ACCURACY.statistics, _mean, "judge", True, (-math.inf, math.inf), False
)
LOSS = Metric("loss", "", ACCURACY.statistics, _mean, "judge", False, (0.0, math.inf), False)


def values(numbers: Array) -> Array:
    return np.column_stack([numbers, np.ones(len(numbers))])


def shares(right: int, of: int) -> Array:
    return values((np.arange(of) < right).astype(float))


def tasks(metric: Metric, means: Sequence[float], number: int = 3) -> list[TaskScores]:
    """Models with the given means on every item but for noise of 0.5; 200 items a task."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(number):
        item = generator.normal(0, 1, 200)
        models = [values(item + m + generator.normal(0, 0.5, 200)) for m in means]
        joint = joint_bootstrap(metric, models)
        found.append(TaskScores(joint.scores, joint.draws, metric.higher_is_better))
    return found


def test_mean_ranks_lie_between_first_and_last() -> None:
    assert [rank.value for rank in mean_ranks(tasks(RATING, (5.0, 5.5, 5.8)))] == [3.0, 2.0, 1.0]
    assert [rank.value for rank in mean_ranks(tasks(LOSS, (5.0, 5.5, 5.8)))] == [1.0, 2.0, 3.0]


def test_a_mean_rank_that_the_items_leave_open_has_a_wide_interval() -> None:
    def width(number: int) -> float:
        alike = mean_ranks(tasks(RATING, (5.0, 5.0, 5.0), number))
        return max((rank.high or 0.0) - (rank.low or 0.0) for rank in alike)

    assert width(1) >= 1.0
    assert width(12) < width(1)  # more tasks know it better


def test_tasks_of_few_items_give_a_mean_rank_without_an_interval() -> None:
    none = np.empty((0, 2))
    found = mean_ranks(
        [TaskScores(np.array(s), none, True) for s in ([0.7, 0.9], [0.8, 0.9], [0.9, 0.8])]
    )
    assert found == [MeanRank(pytest.approx(5 / 3)), MeanRank(pytest.approx(4 / 3))]


def test_equal_scores_share_a_rank() -> None:
    scores, none = np.array([0.7, 0.9, 0.9, 0.1]), np.empty((0, 4))
    for higher, expected in [(True, [3.0, 1.5, 1.5, 4.0]), (False, [2.0, 3.5, 3.5, 1.0])]:
        found = mean_ranks([TaskScores(scores, none, higher)])
        assert [rank.value for rank in found] == expected


def test_ties_are_shown_as_ties() -> None:
    tests = {
        ("a", "b"): PairTest(+0.05, 0.001),
        ("a", "c"): PairTest(+0.06, 0.001),
        ("b", "c"): PairTest(+0.01, 0.40),
    }
    assert [str(place) for place in places(["a", "b", "c"], tests)] == ["1", "2–3", "2–3"]


def test_all_pairs_are_corrected_together() -> None:
    # 0.03 alone would tell a from b; of three pairs it is 3 · 0.03 > 0.05.
    tests = {pair: PairTest(0.1, 0.03) for pair in [("a", "b"), ("a", "c"), ("b", "c")]}
    assert [str(place) for place in places(["a", "b", "c"], tests)] == ["1–3"] * 3
    assert [str(place) for place in places(["a", "b"], {("a", "b"): PairTest(0.1, 0.03)})] == [
        "1",
        "2",
    ]


def test_a_pair_without_a_test_cannot_be_told_apart() -> None:
    tests = {("a", "b"): PairTest(0.1, math.nan)}
    assert [str(place) for place in places(["a", "b"], tests)] == ["1–2", "1–2"]


def _seeds(training: float, noise: float, size: int = 4, items: int = 400) -> list[Array]:
    generator = np.random.default_rng(5)
    item = generator.normal(0, 1, items)
    return [
        values(item + generator.normal(0, training) + generator.normal(0, noise, items))
        for _ in range(size)
    ]


def test_seeds_that_differ_only_by_their_items_have_no_variance_of_training() -> None:
    joint = joint_bootstrap(RATING, _seeds(training=0.0, noise=0.5))
    found = over_seeds(joint, [[(1.0, n)] for n in range(4)])
    # Items: √(1 / 400 + 0.25 / 1,600) = 0.0515.
    assert found.within == pytest.approx(0.0515, rel=0.1)
    assert found.training is not None
    assert found.training < 0.025  # √(0.25 / 400) = 0.025 is what the items add
    assert found.stderr == pytest.approx(found.within, rel=0.05)


def test_seeds_that_differ_by_training_widen_the_interval() -> None:
    joint = joint_bootstrap(RATING, _seeds(training=0.3, noise=0.5))
    found = over_seeds(joint, [[(1.0, n)] for n in range(4)])
    spread = joint.scores.std(ddof=1)
    assert found.between == pytest.approx(spread)
    assert found.training == pytest.approx(math.sqrt(spread**2 - 0.25 / 400), rel=0.01)
    assert found.stderr == pytest.approx(math.hypot(found.within, spread / 2), rel=0.02)
    # Student's t with 3 degrees of freedom is 3.18, and 1.97 with 399.
    expected = math.hypot(3.1824 * found.training / 2, 1.9659 * found.within)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=1e-3)


def test_the_p_of_a_mean_over_seeds_is_where_its_interval_reaches_0() -> None:
    joint = joint_bootstrap(RATING, _seeds(training=0.3, noise=0.5))
    terms = [[(1.0, n)] for n in range(4)]
    p_value = over_seeds(joint, terms).p_value
    found = over_seeds(joint, terms, confidence=1 - p_value)
    assert min(abs(found.low), abs(found.high)) == pytest.approx(0.0, abs=1e-6)


def test_what_three_seeds_can_tell_is_found_with_power_0_8() -> None:
    found = over_seeds(
        joint_bootstrap(RATING, _seeds(0.3, 0.5, size=3)), [[(1.0, n)] for n in range(3)]
    )
    alone = dataclasses.replace(found, parts=[(0.0, 399), (1.0, 2)])  # of training only
    detectable = alone.smallest_detectable(0.95, 0.8)
    assert detectable == pytest.approx(4.303 + 1.061, abs=1e-3)  # Student's t, 2 degrees
    # A mean of error 1 around it, against an error that is estimated from three seeds.
    generator = np.random.default_rng(0)
    errors = np.sqrt(generator.chisquare(2, 20_000) / 2)
    told = np.abs(generator.normal(detectable, 1.0, 20_000)) > 4.303 * errors
    assert told.mean() == pytest.approx(0.8, abs=0.05)


def test_one_seed_has_the_interval_of_its_items() -> None:
    joint = joint_bootstrap(RATING, _seeds(training=0.3, noise=0.5, size=1))
    found = over_seeds(joint, [[(1.0, 0)]])
    assert (found.between, found.training, found.stderr) == (None, None, found.within)


def test_a_few_clusters_get_the_beta_binomial_interval() -> None:
    statistics = np.vstack([shares(5, 5)] * 6 + [shares(0, 5)] * 2)
    passages = [str(n // 5) for n in range(40)]
    found = score_interval(ACCURACY, statistics, passages)
    assert found.method == "cluster-beta-binomial"
    # Eight passages that go one way: no narrower than 6 of 8 independent items would be.
    assert found.low < 0.45
    assert found.high - found.low > 0.4
    plain = score_interval(ACCURACY, statistics)
    assert found.high - found.low > 1.5 * (plain.high - plain.low)


def test_all_right_in_a_few_clusters_is_not_certain() -> None:
    found = score_interval(ACCURACY, shares(20, 20), [str(n // 5) for n in range(20)])
    assert found.high == 1.0
    assert 0.4 < found.low < 0.9


def test_clusters_of_one_item_give_the_posterior_of_a_binomial() -> None:
    # A uniform prior and 3 of 10 right: Beta(4, 8), whose mean is 4 / 12.
    means, weights = beta_binomial_posterior(np.array([1.0] * 3 + [0.0] * 7), np.ones(10))
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ means == pytest.approx(4 / 12, abs=1e-6)
    assert weights @ means**2 == pytest.approx(4 * 5 / (12 * 13), abs=1e-5)


def test_an_effect_counts_items_and_is_in_standard_deviations() -> None:
    candidate, baseline = values(np.array([2.0, 3, 4, 5])), values(np.array([1.0, 3, 2, 6]))
    found = paired_effect(RATING, candidate, baseline)
    assert found is not None
    assert (found.num_better, found.num_worse) == (2, 1)
    assert found.size == pytest.approx(0.5 / math.sqrt(5 / 3))  # 1, 0, 2, -1
    turned = paired_effect(LOSS, candidate, baseline)
    assert turned is not None
    assert (turned.num_better, turned.num_worse, turned.size) == (1, 2, -found.size)


def test_a_metric_of_counts_has_no_effect_of_items() -> None:
    statistics = np.zeros((4, 9))
    assert paired_effect(METRICS["macro_f1"], statistics, statistics) is None

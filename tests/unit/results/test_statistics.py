"""The claims of `fedbench.results.statistics` that need no other package."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest

from fedbench.metrics import METRICS, Metric
from fedbench.metrics.metric import Array, Sample
from fedbench.results.contrasts import mean_over_strata
from fedbench.results.statistics import (
    combine_strata,
    contrast,
    holm,
    items_to_settle,
    joint_bootstrap,
    mcnemar_exact,
    paired_difference,
    score_interval,
    smallest_detectable,
    tango,
    unpaired_difference,
    wilson,
)

ACCURACY, MACRO_F1 = METRICS["accuracy"], METRICS["macro_f1"]


def _ratings(samples: Sequence[Sample], labels: Sequence[str]) -> Array:
    return np.array([[float(s.extracted or 0), 1.0] for s in samples])


def _mean(sums: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


RATING = Metric("rating", "Mean of ratings.", _ratings, _mean, "judge", True, (1.0, 10.0), False)
LOSS = Metric("loss", "Mean loss.", _ratings, _mean, "loglikelihood", False, (0.0, math.inf), False)


def shares(right: int, wrong: int) -> Array:
    return np.array([[1.0, 1.0]] * right + [[0.0, 1.0]] * wrong).reshape(-1, 2)


def values(numbers: Sequence[float] | Array) -> Array:
    return np.column_stack([np.asarray(numbers, dtype=float), np.ones(len(numbers))])


def cells(references: str, answers: str) -> Array:
    samples = [Sample(r, a) for r, a in zip(references, answers, strict=True)]
    return MACRO_F1.statistics(samples, "abc")


def test_a_share_of_fewer_than_100_items_gets_the_exact_interval_and_of_more_wilsons() -> None:
    assert score_interval(ACCURACY, shares(90, 9)).method == "clopper-pearson"
    assert score_interval(ACCURACY, shares(90, 10)).method == "wilson"
    assert score_interval(ACCURACY, shares(90, 10)).stderr == pytest.approx(0.03)  # √(0.9·0.1/100)


def test_nothing_scored_has_no_interval() -> None:
    for metric, empty in [(ACCURACY, shares(0, 0)), (MACRO_F1, np.zeros((0, 9)))]:
        interval = score_interval(metric, empty)
        assert [math.isnan(x) for x in (interval.low, interval.high, interval.stderr)] == [True] * 3
    assert math.isnan(paired_difference(ACCURACY, shares(0, 0), shares(0, 0)).delta)
    assert math.isnan(paired_difference(RATING, values([]), values([])).delta)


def test_the_same_input_gives_the_same_interval() -> None:
    statistics = cells("abc" * 20, "abcabcabb" + "abc" * 17)
    assert score_interval(MACRO_F1, statistics) == score_interval(MACRO_F1, statistics)


def test_the_order_of_the_items_changes_nothing() -> None:
    statistics = cells("abc" * 20, "abcabcabb" + "abc" * 17)
    assert score_interval(MACRO_F1, statistics) == score_interval(MACRO_F1, statistics[::-1])


def test_clusters_of_one_item_are_no_clusters() -> None:
    alone = [str(i) for i in range(120)]
    assert score_interval(ACCURACY, shares(90, 30), alone).method == "wilson"
    assert paired_difference(ACCURACY, shares(90, 30), shares(80, 40), alone).method == "tango"


def test_items_that_repeat_within_clusters_count_once() -> None:
    # Forty passages with ten questions each that all go the same way: the error is that of 40.
    statistics = np.repeat(shares(30, 10), 10, axis=0)
    passages = [f"passage {i // 10}" for i in range(400)]
    interval = score_interval(ACCURACY, statistics, passages)
    assert interval.method == "cluster-bootstrap-bca"
    assert interval.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 40), rel=0.03)
    assert score_interval(ACCURACY, statistics).stderr == pytest.approx(
        math.sqrt(0.75 * 0.25 / 400)
    )


def test_the_bootstrap_of_a_mean_has_the_standard_error_of_the_mean() -> None:
    ratings = np.random.default_rng(0).uniform(1, 10, 400)
    interval = score_interval(RATING, values(ratings))
    assert interval.stderr == pytest.approx(ratings.std() / 20, rel=0.03)  # sd / √400


def test_repeated_rows_give_the_interval_of_distinct_rows_up_to_the_draws() -> None:
    # 64 values 16 times over take the multinomial path; a jitter of 1e-9 takes the other one.
    ratings = np.repeat(np.linspace(1, 10, 64), 16)
    jittered = ratings + np.random.default_rng(0).uniform(0, 1e-9, len(ratings))
    few, many = score_interval(RATING, values(ratings)), score_interval(RATING, values(jittered))
    assert few.low == pytest.approx(many.low, abs=0.01)  # stderr is 0.08
    assert few.high == pytest.approx(many.high, abs=0.01)


def test_few_units_get_students_t() -> None:
    # Mean 5, sd 2 (n - 1), 9 items, t_8 = 2.3060 (tables): 5 ± 2.3060 · 2 / 3.
    ratings = 5 + 2 * np.array([-1, 1, -1, 1, -1, 1, -1, 1, 0])
    interval = score_interval(RATING, values(ratings))
    assert interval.method == "jackknife-t"
    assert interval.stderr == pytest.approx(2 / 3)
    assert (interval.low, interval.high) == pytest.approx((3.4627, 6.5373), abs=1e-4)


def test_a_perfect_score_on_few_items_is_not_certain() -> None:
    interval = score_interval(MACRO_F1, cells("abcabcabca", "abcabcabca"))
    assert interval.method == "none-differ"
    assert interval.high == 1.0
    assert interval.low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson for 10 of 10: 0.6915


def test_a_skewed_sample_gets_a_skewed_interval() -> None:
    skewed = np.random.default_rng(0).exponential(1.0, 60) + 1
    interval = score_interval(RATING, values(skewed))
    centre = skewed.mean()
    assert interval.high - centre > centre - interval.low


def test_paired_shares_get_tango_and_mcnemar() -> None:
    candidate, baseline = shares(100, 60), shares(120, 40)
    difference = paired_difference(ACCURACY, candidate, baseline)
    assert (difference.delta, difference.method) == (-0.125, "tango")
    assert (difference.low, difference.high) == tango(0, 20, 160)
    assert difference.p_value == mcnemar_exact(0, 20)


def test_answers_shared_by_both_models_make_the_interval_of_the_difference_narrow() -> None:
    generator = np.random.default_rng(0)
    ratings = generator.uniform(1, 10, 200)
    change = generator.normal(0.1, 0.2, 200)
    better = paired_difference(RATING, values(ratings + change), values(ratings))
    assert better.stderr == pytest.approx(0.2 / math.sqrt(200), rel=0.1)
    unpaired = math.sqrt(2) * ratings.std() / math.sqrt(200)
    assert better.stderr < unpaired / 15


def test_less_is_better_turns_the_sign() -> None:
    losses = np.random.default_rng(0).uniform(1, 2, 100)
    lower = np.random.default_rng(1).uniform(0.9, 1.0, 100) * losses
    difference = paired_difference(LOSS, values(lower), values(losses))
    assert 0 < difference.low < difference.delta < difference.high
    assert difference.p_value < 0.001
    assert difference.p_regressed > 0.99


def test_the_interval_and_the_margin_test_agree() -> None:
    generator = np.random.default_rng(3)
    for shift in np.linspace(-0.6, 0.2, 9):
        a = generator.normal(5, 1, 150)
        b = a - generator.normal(shift, 1.5, 150)
        for margin in (0.0, 0.1, 0.2):
            found = paired_difference(RATING, values(a), values(b), margin=margin)
            assert (found.high < -margin) == (found.p_regressed < 0.025)


@pytest.mark.parametrize(("better", "worse"), [(0, 9), (2, 14), (5, 20), (10, 12), (30, 0)])
def test_the_margin_test_of_paired_shares_agrees_with_their_interval(
    better: int, worse: int
) -> None:
    candidate = np.concatenate([shares(better, worse), shares(50, 50)])
    baseline = np.concatenate([shares(0, better), shares(worse, 0), shares(50, 50)])
    for margin in (0.0, 0.02, 0.05, 0.08):
        found = paired_difference(ACCURACY, candidate, baseline, margin=margin)
        assert (found.high < -margin) == (found.p_regressed < 0.025)


def test_equal_scores_on_every_item_leave_room_for_items_not_seen() -> None:
    for metric, statistics in [(ACCURACY, shares(30, 10)), (RATING, values(np.arange(40) % 10))]:
        difference = paired_difference(metric, statistics, statistics)
        assert (difference.delta, difference.p_value) == (0.0, 1.0)
        assert difference.low < 0 < difference.high
        assert difference.smallest_detectable > 0


def test_sign_flips_give_the_exact_p_of_the_signs() -> None:
    # Ten items better by 1, none worse: 2 of 2**10 labellings are as extreme.
    ratings = np.arange(1.0, 11.0)
    p = paired_difference(RATING, values(ratings + 1), values(ratings)).p_value
    assert p == pytest.approx(2 / 1024, abs=0.001)


def test_fedavg_minus_the_mean_of_locals_is_a_contrast() -> None:
    generator = np.random.default_rng(0)
    local = [values(generator.uniform(4, 6, 90)) for _ in range(3)]
    fedavg = values(np.mean([x[:, 0] for x in local], axis=0) + generator.normal(0.5, 0.2, 90))
    found = contrast([(1, RATING, fedavg), *[(-1 / 3, RATING, x) for x in local]])
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert found.interval.stderr == pytest.approx(0.2 / math.sqrt(90), rel=0.25)
    assert found.p_value < 0.001


def test_a_contrast_of_two_shares_is_their_paired_difference() -> None:
    candidate, baseline = shares(100, 60), shares(120, 40)
    found = contrast([(-1, ACCURACY, baseline), (1, ACCURACY, candidate)])
    expected = paired_difference(ACCURACY, candidate, baseline)
    assert found.value == pytest.approx(expected.delta)
    assert (found.interval.low, found.interval.high) == (expected.low, expected.high)
    assert found.interval.method == "tango"
    assert len(found.draws) == 10_000


def test_the_mean_over_test_sets_has_the_error_of_independent_sets() -> None:
    generator = np.random.default_rng(0)
    sets = [generator.normal(5, sd, n) for sd, n in [(1, 100), (2, 100), (3, 200)]]
    found = combine_strata([contrast([(1, RATING, values(x))]) for x in sets])
    assert found.value == pytest.approx(np.mean([x.mean() for x in sets]))
    expected = math.sqrt(sum(x.var() / len(x) for x in sets)) / 3
    assert found.interval.stderr == pytest.approx(expected, rel=0.03)


def test_strata_of_equal_items_are_still_drawn_independently() -> None:
    ratings = values(np.random.default_rng(0).uniform(1, 10, 100))
    one = contrast([(1, RATING, ratings)])
    two = combine_strata([one, one])
    assert two.interval.stderr == pytest.approx(one.interval.stderr / math.sqrt(2), rel=0.05)


def test_means_over_small_sets_are_as_wide_as_students_t() -> None:
    three = [contrast([(1, RATING, values(np.array([1.0, 2.0, 4.0])))]) for _ in range(3)]
    plain, found = combine_strata(three).interval, mean_over_strata(three).interval
    # Three sets of equal variance with 3 - 1 degrees of freedom each have 6: 2.447 for 1.960.
    assert found.high - found.low == pytest.approx((plain.high - plain.low) * 2.446912 / 1.959964)
    assert found.stderr == plain.stderr


def test_a_set_in_which_nothing_varies_adds_no_degrees_of_freedom() -> None:
    sets = [[4.0, 5.0, 6.0], [5.0, 5.0, 5.0]]
    two = [contrast([(1, RATING, values(np.array(own)))]) for own in sets]
    plain, found = combine_strata(two).interval, mean_over_strata(two).interval
    # Student's t with 2 degrees of freedom: 4.303.
    assert found.high - found.low == pytest.approx((plain.high - plain.low) * 4.302653 / 1.959964)


def test_a_stratum_without_a_score_leaves_the_average_without_one() -> None:
    scored, empty = (contrast([(1, RATING, values(x))]) for x in ([1.0, 2.0, 4.0], []))
    assert math.isnan(combine_strata([scored, empty]).value)


def test_a_contrast_needs_as_many_clusters_as_items() -> None:
    with pytest.raises(ValueError, match="3 clusters for 2 items"):
        contrast([(1, RATING, values([1, 2]))], clusters=["a", "a", "b"])


def _three_raters(n: int) -> list[Array]:
    generator = np.random.default_rng(0)
    item = generator.uniform(4, 6, n)
    return [values(item + generator.normal(shift, 0.5, n)) for shift in (0.0, 0.1, 0.2)]


@pytest.mark.parametrize("per_cluster", [1, 4])
def test_a_joint_bootstrap_gives_a_contrast_the_interval_it_has_alone(per_cluster: int) -> None:
    models = _three_raters(400)
    clusters = [str(i // per_cluster) for i in range(400)]
    found = joint_bootstrap(RATING, models, clusters).contrast([(1, 2), (-0.5, 0), (-0.5, 1)])
    terms = [(c, RATING, models[n]) for c, n in [(1, 2), (-0.5, 0), (-0.5, 1)]]
    alone = contrast(terms, clusters)
    assert found.value == pytest.approx(alone.value)
    # 2,000 draws place an end to within 0.06 standard errors.
    for end, expected in [
        (found.interval.low, alone.interval.low),
        (found.interval.high, alone.interval.high),
    ]:
        assert end == pytest.approx(expected, abs=0.2 * alone.interval.stderr)


def test_the_p_of_a_joint_contrast_is_the_normal_approximation() -> None:
    found = joint_bootstrap(RATING, _three_raters(400)).contrast([(1, 2), (-1, 0)])
    distance = found.value / found.interval.stderr
    assert distance > 5  # no draw lies beyond 0, so that counting them would say 1 / 2,000
    assert found.p_value == pytest.approx(2 * NormalDist().cdf(-distance))


def test_a_joint_contrast_of_few_items_is_the_one_it_has_alone() -> None:
    models = _three_raters(29)
    found = joint_bootstrap(RATING, models).contrast([(1, 2), (-1, 0)])
    assert found == contrast([(1, RATING, models[2]), (-1, RATING, models[0])])
    assert found.interval.method == "jackknife-t"


def test_unpaired_errors_add_in_squares() -> None:
    found = unpaired_difference((0.70, 0.03), (0.75, 0.04), 200)
    assert (found.delta, found.stderr) == pytest.approx((-0.05, 0.05))  # √(0.03² + 0.04²)
    assert (found.low, found.high) == pytest.approx((-0.148, 0.048), abs=1e-3)
    assert found.p_value == pytest.approx(0.3173, abs=1e-4)  # one standard error


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests() -> None:
    # 4·0.01, 3·0.02, 2·0.03 then never smaller than before, 1·0.04 likewise.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert len(holm([])) == 0


@pytest.mark.parametrize(
    ("n", "discordant", "points"),
    [(80, 0.05, 7.0), (164, 0.10, 6.9), (1319, 0.20, 3.5), (14_042, 0.30, 1.3)],
)
def test_the_smallest_detectable_difference_is_2_8_standard_errors(
    n: int, discordant: float, points: float
) -> None:
    # 2.80 · √(p_d / n), by hand.
    assert 100 * smallest_detectable(math.sqrt(discordant / n)) == pytest.approx(points, abs=0.06)


def test_four_times_the_items_settle_half_the_distance() -> None:
    near = items_to_settle(-0.005, 0.01, 400, margin=0.01)
    far = items_to_settle(0.0, 0.01, 400, margin=0.01)
    assert far == math.ceil(400 * 2.8016**2)  # distance of one standard error
    assert near == pytest.approx(4 * far, abs=4)


def test_no_number_of_items_settles_a_difference_on_the_margin() -> None:
    assert items_to_settle(-0.01, 0.01, 400, margin=0.01) is None
    assert items_to_settle(math.nan, math.nan, 0, margin=0.01) is None


def test_a_handful_of_items_does_not_say_how_many_are_needed() -> None:
    assert items_to_settle(0.0, 0.001, 9, margin=0.01) is None
    assert items_to_settle(0.0, 0.001, 10, margin=0.01) == 11


def test_wilson_reaches_the_ends_exactly() -> None:
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0

"""What a federation's records say: of clients, of personal models, of gains, of trainings."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from making import federation, model, results

from fedbench.results.federation import (
    RoundFacts,
    client_records,
    clients_of,
    training_records,
)
from fedbench.results.federation_tasks import task_records
from fedbench.results.leaderboard import build
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.results.samples import Answers, SampleTable
from fedbench.results.specification import LeaderboardSpec

COMMON = {"run": "r", "run_hash": "h", "fedbench": "0", "created": "2026-01-01T00:00:00Z"}
GLOBAL = model("fedavg", "global", round=4)
LOCAL = model("local", "local", round=4)


def table(right: Mapping[ModelId, Sequence[Sequence[bool | None]]]) -> SampleTable:
    """Clients' rows whose answers are right, wrong, or (None) were not obtained."""
    sizes = [len(own) for own in next(iter(right.values()))]
    ends = np.cumsum([0, *sizes]).tolist()
    total = ends[-1]
    return SampleTable(
        task="client_test",
        task_version=1,
        task_hash="rows",
        variant="seed-0",
        labels=["no", "yes"],
        metrics=["accuracy"],
        headline="accuracy",
        item_ids=[str(n) for n in range(total)],
        item_hashes=[str(n) for n in range(total)],
        prompt_hashes=[str(n) for n in range(total)],
        references=["yes"] * total,
        groups={f"client-{n}": (ends[n], ends[n + 1]) for n in range(len(sizes))},
        answers=[
            Answers(
                model=of,
                extracted=[
                    None if good is None else "yes" if good else "no" for c in own for good in c
                ],
                status=["failed" if good is None else "parsed" for c in own for good in c],
            )
            for of, own in right.items()
        ],
    )


def share(right: int, of: int) -> list[bool | None]:
    return [n < right for n in range(of)]


def of_clients(right: Mapping[ModelId, Any]) -> dict[tuple[str, str], ScoreRecord]:
    return {(r.method, r.metric): r for r in client_records(table(right), COMMON)}


# Clients


def test_clients_count_alike_whatever_the_number_of_their_rows() -> None:
    records = of_clients({GLOBAL: [share(9, 10), share(50, 100), share(14, 20)]})
    values = {name: record.value for (_, name), record in records.items()}
    assert values["client_mean"] == pytest.approx(0.7)  # of 0.9, 0.5 and 0.7, not 73 of 130
    assert values["worst_client"] == 0.5
    assert values["client_sd"] == pytest.approx(0.2)
    for record in records.values():
        assert record.ci_low is not None
        assert record.ci_high is not None
        assert record.ci_low <= (record.value or 0.0) <= record.ci_high
        assert (record.num_examples, record.num_failed) == (3, 0)
        assert record.task_key == "client_test:seed-0"


def test_a_client_that_has_no_model_is_counted_as_missing() -> None:
    nobody: list[bool | None] = [None] * 10
    records = of_clients({LOCAL: [share(8, 10), nobody, share(6, 10)]})
    mean = records["local", "client_mean"]
    assert mean.value == pytest.approx(0.7)
    assert (mean.num_examples, mean.num_scored, mean.num_failed) == (3, 2, 1)


def test_own_models_gain_what_they_are_better_on_their_own_rows() -> None:
    records = of_clients(
        {
            GLOBAL: [share(50, 100), share(60, 100)],
            LOCAL: [share(80, 100), share(70, 100)],
        }
    )
    gain = records["local", "personalisation_gain"]
    assert gain.value == pytest.approx(0.2)
    assert gain.group == "against fedavg"
    assert gain.ci_low is not None
    assert 0 < gain.ci_low < 0.2
    assert ("fedavg", "personalisation_gain") not in records


def test_rows_that_both_models_answer_alike_do_not_widen_the_gain() -> None:
    """Paired: the hundred rows that neither gets right add nothing but their number."""
    paired = of_clients({GLOBAL: [share(0, 200)], LOCAL: [share(30, 200)]})
    crossed = [n >= 100 for n in range(200)]
    unpaired = of_clients({GLOBAL: [crossed], LOCAL: [share(130, 200)]})

    def width(records: dict[tuple[str, str], ScoreRecord]) -> float:
        gain = records["local", "personalisation_gain"]
        assert gain.value == pytest.approx(0.15)
        return (gain.ci_high or 0.0) - (gain.ci_low or 0.0)

    assert width(paired) < width(unpaired) / 2


def test_clients_that_are_all_alike_have_no_spread_to_speak_of() -> None:
    records = of_clients({GLOBAL: [share(10, 10)] * 3})
    assert records["fedavg", "client_jain"].value == pytest.approx(1.0)
    assert records["fedavg", "client_sd"].value == 0.0
    # Three times 10 of 10: they may still differ by as much as each is unsure.
    assert (records["fedavg", "client_sd"].ci_high or 0.0) > 0.05
    assert records["fedavg", "worst_client"].ci_low == pytest.approx(0.604, abs=0.02)


def test_the_interval_of_the_worst_client_holds_the_truth_where_all_are_alike() -> None:
    """The lowest of ten equal clients looks worse than it is; its interval must not."""
    rng = random.Random(0)
    held = {"worst_client": 0, "client_p10": 0, "client_mean": 0, "client_sd": 0}
    trials = 60
    for _ in range(trials):
        right = [[rng.random() < 0.7 for _ in range(40)] for _ in range(10)]
        records = of_clients({GLOBAL: right})
        for name in held:
            truth = 0.0 if name == "client_sd" else 0.7
            low, high = records["fedavg", name].ci_low, records["fedavg", name].ci_high
            assert low is not None
            assert high is not None
            held[name] += low <= truth <= high
    assert min(held.values()) >= 0.87 * trials, held  # 95 % less three standard errors of 60


def test_few_rows_a_client_do_not_make_the_mean_look_surer() -> None:
    records = of_clients({GLOBAL: [share(2, 3)] * 50})
    mean = records["fedavg", "client_mean"]
    # Of each client p (1 - p) / (n - 1) = 1 / 9; of the mean of 50 √(1 / 450) = 0.0471.
    assert mean.ci_low == pytest.approx(2 / 3 - 1.96 * 0.0471, abs=0.005)
    assert mean.ci_high == pytest.approx(2 / 3 + 1.96 * 0.0471, abs=0.005)


def test_the_worst_client_has_the_ends_of_the_clients_exact_intervals() -> None:
    from scipy.stats import binomtest

    records = of_clients({GLOBAL: [share(9, 10), share(1, 1), share(14, 20)]})
    worst = records["fedavg", "worst_client"]
    exact = [
        binomtest(right, of).proportion_ci(0.95 ** (1 / 3), "exact")
        for right, of in [(9, 10), (1, 1), (14, 20)]
    ]
    assert worst.ci_low == pytest.approx(min(ci.low for ci in exact))  # of the single row
    assert worst.ci_high == pytest.approx(min(ci.high for ci in exact))


def test_a_client_of_one_row_leaves_the_mean_an_interval_and_the_spread_none() -> None:
    records = of_clients({GLOBAL: [share(9, 10), share(1, 1), share(14, 20)]})
    mean, spread = records["fedavg", "client_mean"], records["fedavg", "client_sd"]
    assert mean.ci_low is not None
    assert mean.ci_low < 0.5
    assert mean.ci_high is not None
    assert (spread.ci_low, spread.ci_high) == (None, None)


def test_no_interval_leaves_the_range_of_its_metric() -> None:
    records = of_clients({GLOBAL: [share(1, 2), share(2, 2)]})
    assert records["fedavg", "client_mean"].ci_high == 1.0
    # Two shares are at most 0 and 1: √(2 · 0.5²) = 0.707.
    assert records["fedavg", "client_sd"].ci_high == pytest.approx(0.5**0.5)


def test_scores_by_group_become_scores_of_clients() -> None:
    made = results({GLOBAL: 0.7, model("local", "local", round=4): 0.6}).scores[0]
    whole = made.model_copy(update={"group": None})
    grouped = made.model_copy(update={"group": "client-3"})
    own = grouped.model_copy(update={"model_kind": "local", "method": "local"})
    first, second = clients_of([whole, grouped, own])  # that of all rows together is left out
    assert (first.data_client, first.model_client, first.group) == (3, None, None)
    assert (second.data_client, second.model_client) == (3, 3)


# Trainings


def rounds(number: int) -> list[RoundFacts]:
    return [
        RoundFacts((1.0 + n, 3.0 + n), 0.5, 1000 * (n + 1), 600 * (n + 1), 2.0, 7_000 + n)
        for n in range(number)
    ]


def of_training(facts: Sequence[RoundFacts]) -> dict[str, ScoreRecord]:
    return {record.metric: record for record in training_records(GLOBAL, facts, COMMON)}


def test_a_training_is_summed_up_from_its_rounds() -> None:
    records = of_training(rounds(3))
    values = {name: record.value for name, record in records.items()}
    assert values == {
        "client_drift": 3.0,  # the mean of 2, 3 and 4
        "update_cosine": 0.5,
        "bytes_communicated": 3000.0,
        "seconds_per_round": 2.0,
        "tokens_per_second": 300.0,  # 1,800 tokens in 6 seconds
        "peak_memory": 7002.0,
    }
    assert records["bytes_communicated"].ci_low is None  # measured in whole
    assert {record.task for record in records.values()} == {"training"}


def test_what_earlier_versions_did_not_write_is_left_out() -> None:
    old = [RoundFacts((), None, 1000, 0, None, None)]
    assert list(of_training(old)) == ["bytes_communicated"]
    untimed = [*rounds(2), replace_seconds(rounds(3)[2])]
    assert "tokens_per_second" not in of_training(untimed)
    assert of_training([]) == {}


def replace_seconds(facts: RoundFacts) -> RoundFacts:
    return facts._replace(seconds=None)


# Tasks


def of_tasks(made: Any, **options: Any) -> dict[tuple[str, str, str], ScoreRecord]:
    records = task_records(made, COMMON, **options)
    return {(record.method, record.task_key, record.metric): record for record in records}


def test_the_gain_over_local_is_that_of_the_leaderboard() -> None:
    made = results(federation(), metrics=("accuracy",))
    spec = LeaderboardSpec(name="x", tasks=("headlines",), metrics=("accuracy",), seeds=(0,))
    difference = next(
        d
        for d in build(spec, [made]).differences
        if (d.method, d.other) == ("fedavg", "mean local")
    )
    gain = of_tasks(made)["fedavg", "headlines", "gain_over_local"]
    assert gain.value == pytest.approx(difference.value)
    assert gain.ci_low == pytest.approx(difference.low)
    assert gain.ci_high == pytest.approx(difference.high)


def test_the_share_of_the_gap_is_that_of_the_scores() -> None:
    made = results(federation(), {"headlines": 600}, metrics=("accuracy",))
    scores = {(s.method, s.model_client): s.value for s in made.scores if s.selected_by}
    local = np.mean([scores["local", client] for client in range(3)])
    expected = (scores["fedavg", None] - local) / (scores["centralised", None] - local)
    closed = of_tasks(made)["fedavg", "headlines", "gap_closed"]
    assert closed.value == pytest.approx(expected)
    assert closed.ci_low is not None
    assert closed.ci_high is not None
    assert closed.ci_low < expected < closed.ci_high


def test_without_a_clear_gap_no_share_of_it_is_given() -> None:
    models = federation()
    models[model("centralised", "central", 0)] = 0.6  # as good as training alone
    closed = of_tasks(results(models, metrics=("accuracy",)))["fedavg", "headlines", "gap_closed"]
    assert closed.value is None
    assert closed.ci_low is None


def test_forgetting_is_what_the_base_knew_better_on_general_tasks() -> None:
    models = {model("base", "base", 0): 0.8, GLOBAL: 0.6}
    made = results(models, {"a": 300, "b": 300, "headlines": 100}, metrics=("accuracy",))
    records = of_tasks(made, general={"a", "b"})
    assert ("fedavg", "headlines", "forgetting") not in records
    parts = [records["fedavg", task, "forgetting"] for task in ("a", "b")]
    values = [part.value for part in parts]
    mean = records["fedavg", "general", "forgetting"]
    assert mean.value == pytest.approx(np.mean(values))
    assert mean.ci_low is not None
    assert mean.ci_low > 0


def test_a_gigabyte_buys_the_gain_over_the_base_in_proportion() -> None:
    made = results({model("base", "base", 0): 0.3, GLOBAL: 0.8}, metrics=("accuracy",))
    scores = {s.method: s.value for s in made.scores}
    per_gigabyte = of_tasks(made)["fedavg", "headlines", "score_per_gigabyte"]
    # 12.5 MB were sent: 80 times the gain.
    assert per_gigabyte.value == pytest.approx(80 * (scores["fedavg"] - scores["base"]))


def test_the_target_is_the_mean_local_model_unless_one_is_named() -> None:
    made = results(federation(), {"headlines": 400}, metrics=("accuracy",))
    scores = {s.round: s.value for s in made.scores if s.method == "fedavg"}
    local = np.mean([s.value for s in made.scores if s.method == "local"])
    first = min(round for round, score in scores.items() if score >= local)
    found = of_tasks(made)["fedavg", "headlines", "rounds_to_target"]
    assert found.value == first
    assert found.group == f"target {local:.4g}"
    never = of_tasks(made, target=0.99)["fedavg", "headlines", "rounds_to_target"]
    assert (never.value, never.ci_high) == (None, None)
    at_once = of_tasks(made, target=0.1)["fedavg", "headlines", "rounds_to_target"]
    assert (at_once.value, at_once.ci_low, at_once.ci_high) == (1, 1, 1)


def test_without_kept_answers_nothing_is_claimed_of_tasks() -> None:
    assert of_tasks(results(federation(), keep_samples=False)) == {}


def test_every_record_is_of_one_seed() -> None:
    made = results(federation(seeds=(0, 1)), metrics=("accuracy",))
    records = list(task_records(replace(made), COMMON))
    gains = [r for r in records if r.metric == "gain_over_local" and r.method == "fedavg"]
    assert [record.seed for record in gains] == [0, 1]

"""maj@k: ties, answers without a vote, and too few samples."""

from __future__ import annotations

import math

import pytest

from fedbench.metrics import Sample, get_metric
from fedbench.metrics.voting import elected


def value(name: str, items: list[Sample]) -> float:
    chosen = get_metric(name)
    return float(chosen.value(chosen.statistics(items, ()).sum(axis=0)))


def test_most_votes_win_and_of_a_tie_what_was_said_first() -> None:
    assert elected(["3", "5", "5"]) == "5"
    assert elected(["3", "5", "5", "3"]) == "3"
    assert elected([None, None, "7"]) == "7"  # what could not be read has no vote
    assert elected([None, None]) is None


def test_the_first_k_samples_vote() -> None:
    items = [
        Sample("5", "3", samples=("3", "5", "5")),
        Sample("2", "2", samples=("2", "4", "4")),
        Sample("1", None, samples=(None, None, "1")),
    ]
    assert value("maj@1", items) == pytest.approx(1 / 3)  # the second
    assert value("maj@3", items) == pytest.approx(2 / 3)  # the first and the third
    assert math.isnan(value("maj@4", items))


def test_one_answer_is_a_majority_of_its_own() -> None:
    assert value("maj@1", [Sample("a", "a"), Sample("a", "b")]) == 0.5

"""Our accuracy and F1 against scikit-learn's, with answers that could not be read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from fedbench.metrics import METRICS, Sample

LABELS = ("negative", "neutral", "positive")
UNREAD = "<unread>"  # what stands for None on scikit-learn's side: a label that is never right
pairs = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=40
)


def ours(name: str, samples: Sequence[tuple[str, str | None]]) -> float:
    statistics = METRICS[name].statistics([Sample(r, a) for r, a in samples], LABELS)
    return float(METRICS[name].value(statistics.sum(axis=0)))


def theirs(name: str, samples: Sequence[tuple[str, str | None]]) -> float:
    references = [reference for reference, _ in samples]
    answers = [answer or UNREAD for _, answer in samples]
    if name == "accuracy":
        return float(accuracy_score(references, answers))
    # The labels that occur at all, as f1_score takes them by itself, less the one that stands for
    # no answer: that is no class of the task.
    occurring = [label for label in LABELS if label in references or label in answers]
    average = name.removesuffix("_f1")
    return float(
        f1_score(references, answers, labels=occurring, average=average, zero_division=0.0)
    )


@settings(deadline=None, max_examples=80)
@given(pairs)
@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "weighted_f1"])
def test_our_score_is_scikit_learns(name: str, samples: list[tuple[str, str | None]]) -> None:
    assert ours(name, samples) == pytest.approx(theirs(name, samples), abs=1e-12)


def test_f1_on_an_example_worked_by_hand() -> None:
    samples = [
        ("positive", "positive"),
        ("positive", None),
        ("positive", "neutral"),
        ("neutral", "neutral"),
    ]
    # positive: 1 hit, 3 references, 1 answer -> 2 * 1 / 4; neutral: 1 hit, 1 and 2 -> 2 * 1 / 3
    assert ours("macro_f1", samples) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ours("weighted_f1", samples) == pytest.approx((3 * 1 / 2 + 1 * 2 / 3) / 4)
    assert ours("accuracy", samples) == 0.5


def test_an_answer_outside_the_labels_counts_as_unparsed() -> None:
    outside = [("positive", "superb"), ("neutral", "neutral")]
    unread = [("positive", None), ("neutral", "neutral")]
    for name in ("accuracy", "macro_f1", "weighted_f1"):
        assert ours(name, outside) == ours(name, unread)


def test_sums_of_parts_give_the_score_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    samples = [Sample(str(rng.choice(LABELS)), rng.choice([*LABELS, None])) for _ in range(200)]
    for metric in (METRICS["macro_f1"], METRICS["weighted_f1"], METRICS["accuracy"]):
        parts = [
            metric.statistics(part, LABELS).sum(axis=0) for part in (samples[:50], samples[50:])
        ]
        whole = metric.value(metric.statistics(samples, LABELS).sum(axis=0))
        assert math.isclose(float(metric.value(parts[0] + parts[1])), float(whole))

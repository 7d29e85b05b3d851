"""Metrics of the answer that most samples give: maj@k."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from fedbench.metrics.metric import FAMILIES, Array, Metric, Sample, Statistics, ratio

_NAME = re.compile(r"maj@([1-9]\d*)")


def elected(answers: Sequence[str | float | None]) -> str | float | None:
    """What most of the answers say, of a tie what was said first; None where none could be read.

    Those that could not be read have no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)


@cache
def majority_at(name: str) -> Metric | None:
    """The metric of a name such as ``maj@8``; None where the name is not of that form."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    k = int(match[1])

    def value(sums: Array) -> Array:
        return ratio(sums)

    value.__name__ = name
    return Metric(
        name=name,
        description=f"Share of items to which most of the first {k} samples give the right answer.",
        statistics=_statistics(k),
        value=value,
        needs="text",
        higher_is_better=True,
        unit_range=(0.0, 1.0),
        binary=True,
        source="Wang et al. 2023, https://arxiv.org/abs/2203.11171, section 2 (unweighted sum)",
    )


def _statistics(k: int) -> Statistics:
    def wins(samples: Sequence[Sample], labels: Sequence[str]) -> Array:
        """(n, 2): whether the reference is elected, and 1; zeros throughout where samples lack."""
        answers = [sample.samples or (sample.extracted,) for sample in samples]
        if any(len(own) < k for own in answers):
            return np.zeros((len(samples), 2))
        won = [
            elected(own[:k]) == sample.reference
            for sample, own in zip(samples, answers, strict=True)
        ]
        return np.column_stack([np.array(won, dtype=float), np.ones(len(won))])

    return wins


FAMILIES.append(majority_at)

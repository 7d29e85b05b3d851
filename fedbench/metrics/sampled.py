"""Metrics of several samples of an item, whose name holds their number: pass@k, maj@k."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from fedbench.metrics.metric import FAMILIES, Array, Metric, Sample, Statistics, ratio

Read = str | float | None
"""An answer as read; None when it could not be read."""
ItemScore = Callable[[Sequence[Read], str | float, int], float]
"""(samples of an item, at least k of them; its reference; k) -> its score."""


def of_samples(prefix: str, score: ItemScore, describe: Callable[[int], str], source: str) -> None:
    """Register the metrics ``prefix@1``, ``prefix@2`` and so on, each the mean over items.

    They are found by name, and have no value where an item has fewer samples than k.
    """
    pattern = re.compile(rf"{prefix}@([1-9]\d*)")

    @cache
    def find(name: str) -> Metric | None:
        match = pattern.fullmatch(name)
        if match is None:
            return None
        k = int(match[1])

        def value(sums: Array) -> Array:
            return ratio(sums)

        value.__name__, value.__module__ = name, score.__module__
        return Metric(
            name=name,
            description=describe(k),
            statistics=_statistics(score, k),
            value=value,
            needs="text",
            higher_is_better=True,
            unit_range=(0.0, 1.0),
            # With one sample an item passes or does not; where there are several it may be a share
            # of them, and the interval is then that of any other metric.
            binary=True,
            source=source,
        )

    FAMILIES.append(find)


def _statistics(score: ItemScore, k: int) -> Statistics:
    def of_items(samples: Sequence[Sample], labels: Sequence[str]) -> Array:
        """(n, 2): score of the item, and 1; zeros throughout where an item has too few samples."""
        answers = [sample.samples or (sample.extracted,) for sample in samples]
        if any(len(own) < k for own in answers):
            return np.zeros((len(samples), 2))
        items = [
            (score(own, sample.reference, k), 1.0)
            for sample, own in zip(samples, answers, strict=True)
        ]
        return np.array(items, dtype=float).reshape(len(items), 2)

    return of_items

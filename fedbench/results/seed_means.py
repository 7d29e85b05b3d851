"""Two results that hold a method under several seeds: the difference of its means over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedbench.metrics import Metric, find_metric
from fedbench.metrics.metric import Array
from fedbench.results.alignment import AlignedAnswers, align
from fedbench.results.contrasts import joint_bootstrap
from fedbench.results.differences import answers_of
from fedbench.results.pairing import ScorePair
from fedbench.results.samples import Results
from fedbench.results.seeds import OverSeeds, over_seeds
from fedbench.results.statistics import POWER, Difference

METHOD = "seeds-and-items-t"
"""As in `Interval.method`: Student's t for new seeds and new items."""


@dataclass(frozen=True)
class SeedMean:
    """The mean over the seeds that both results have of one method, on one score."""

    pairs: Sequence[ScorePair]
    """One for each seed."""
    difference: OverSeeds
    """Positive where the candidate is better."""
    num_items: int

    def as_difference(self, margin: float, confidence: float) -> Difference:
        """The same as what one pair of models gives.

        Args:
            margin: how much worse is tolerated by `Difference.p_regressed`.
            confidence: of the smallest detectable difference, as a share.
        """
        found = self.difference
        return Difference(
            delta=found.value,
            low=found.low,
            high=found.high,
            stderr=found.stderr,
            method=METHOD,
            p_value=found.p_value,
            smallest_detectable=found.smallest_detectable(confidence, POWER),
            num_items=self.num_items,
            p_regressed=found.p_below(-margin),
        )


def mean_differences(
    pairs: Sequence[ScorePair], candidate: Results, baseline: Results, confidence: float = 0.95
) -> Iterator[SeedMean]:
    """The differences of all methods that both results hold under two or more seeds.

    Seeds that the candidate lacks are no part of the mean. A method whose answers were not kept on
    both sides, or are withheld under some seed, has none.

    Args:
        pairs: all scores that correspond.
        candidate: the results whose gain is positive.
        baseline: what they are held against.
        confidence: coverage of the intervals, as a share.
    """
    groups: dict[tuple[str, str, str, str], list[ScorePair]] = {}
    for pair in pairs:
        record = pair.baseline
        if record.seed is not None and pair.candidate is not None:
            key = (record.method, record.model_kind, record.task_key, record.metric)
            groups.setdefault(key, []).append(pair)
    for own in groups.values():
        metric = find_metric(own[0].baseline.metric)
        if len(own) < 2 or metric is None:
            continue
        found = _difference(metric, own, candidate, baseline, confidence)
        if found is not None:
            yield found


def _difference(
    metric: Metric,
    pairs: Sequence[ScorePair],
    candidate: Results,
    baseline: Results,
    confidence: float,
) -> SeedMean | None:
    columns: list[tuple[Array, Array]] = []
    clusters = None
    for pair in pairs:
        if pair.candidate is None or None in (pair.candidate.value, pair.baseline.value):
            return None
        theirs, ours = answers_of(candidate, pair.candidate), answers_of(baseline, pair.baseline)
        if theirs is None or ours is None:
            return None
        aligned = align(*theirs, *ours, f"{candidate.path} and {baseline.path}")
        clusters = ours[0].clusters
        columns.append(_scattered(metric, aligned, len(ours[0].item_ids)))
    size, sign = len(columns), 1.0 if metric.higher_is_better else -1.0
    sides = [theirs for theirs, _ in columns] + [ours for _, ours in columns]
    joint = joint_bootstrap(metric, sides, clusters)
    terms = [[(sign, seed), (-sign, size + seed)] for seed in range(size)]
    return SeedMean(pairs, over_seeds(joint, terms, confidence), len(sides[0]))


def _scattered(metric: Metric, aligned: AlignedAnswers, size: int) -> tuple[Array, Array]:
    """(n, d) statistics of both sides; zeros, which add nothing, where an answer is missing."""
    sides = []
    for samples in (aligned.candidate, aligned.baseline):
        own = metric.statistics(samples, aligned.labels)
        whole = np.zeros((size, own.shape[1]))
        whole[aligned.positions] = own
        sides.append(whole)
    return sides[0], sides[1]

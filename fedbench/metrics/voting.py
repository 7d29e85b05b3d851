"""Metrics of the answer that most samples give: maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedbench.metrics.sampled import Read, of_samples


def elected(answers: Sequence[Read]) -> Read:
    """What most of the answers say, of a tie what was said first; None where none could be read.

    Those that could not be read have no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)


def _is_elected(answers: Sequence[Read], reference: str | float, k: int) -> float:
    return float(elected(answers[:k]) == reference)


of_samples(
    "maj",
    _is_elected,
    lambda k: f"Share of items to which most of the first {k} samples give the right answer.",
    "Wang et al. 2023, https://arxiv.org/abs/2203.11171, section 2 (unweighted sum)",
)

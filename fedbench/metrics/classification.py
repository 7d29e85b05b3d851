"""Metrics of answers out of a closed set of labels, or that are simply right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbench.metrics.metric import Array, Sample, metric


def correct(samples: Sequence[Sample], labels: Sequence[str]) -> Array:
    """(n, 2): whether the answer equals the reference, and 1."""
    hits = [sample.extracted == sample.reference for sample in samples]
    return np.column_stack([np.array(hits, dtype=float), np.ones(len(hits))])


def confusion(samples: Sequence[Sample], labels: Sequence[str]) -> Array:
    """(n, L * (L + 1)): one-hot cell of the confusion matrix, reference by answer.

    The last column of the matrix holds unparsed answers and answers outside the label set: they
    are misses of their reference and false alarms of no label.
    """
    index = {label: position for position, label in enumerate(labels)}
    width = len(labels) + 1
    cells = np.zeros((len(samples), len(labels) * width))
    for row, sample in enumerate(samples):
        answer = index.get(str(sample.extracted), len(labels))
        cells[row, index[str(sample.reference)] * width + answer] = 1.0
    return cells


@metric(statistics=correct, binary=True)
def accuracy(sums: Array) -> Array:
    """Share of items answered exactly right; an unparsed answer is wrong."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


@metric(statistics=confusion)
def macro_f1(sums: Array) -> Array:
    """Mean F1 over the labels that occur as reference or answer (scikit-learn's `macro`)."""
    scores, occurs, _ = _f1_per_label(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(scores.sum(axis=-1) / occurs.sum(axis=-1))


@metric(statistics=confusion)
def weighted_f1(sums: Array) -> Array:
    """Mean F1 over labels, weighted by how often each is the reference.

    scikit-learn's `weighted`; the F1 that BloombergGPT and FinGPT print.
    """
    scores, _, support = _f1_per_label(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((scores * support).sum(axis=-1) / support.sum(axis=-1))


def _f1_per_label(sums: Array) -> tuple[Array, Array, Array]:
    """F1, whether the label occurs at all, and its support, each (..., L), from confusion sums."""
    num_labels = int((np.sqrt(1 + 4 * sums.shape[-1]) - 1) / 2)  # d = L (L + 1)
    matrix = sums.reshape(*sums.shape[:-1], num_labels, num_labels + 1)
    hits = np.diagonal(matrix[..., :num_labels], axis1=-2, axis2=-1)
    support = matrix.sum(axis=-1)
    answered = matrix[..., :num_labels].sum(axis=-2)
    occurrences = support + answered
    scores = np.divide(2 * hits, occurrences, out=np.zeros_like(occurrences), where=occurrences > 0)
    return scores, (occurrences > 0).astype(float), support

"""Metrics of programs: pass@k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbench.metrics.metric import METRICS, get_metric
from fedbench.metrics.sampled import Read, of_samples


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased estimate that one of k samples passes: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, equation 1, https://arxiv.org/abs/2107.03374, in its stable form.

    Raises:
        ValueError: there are fewer than k samples, from which nothing unbiased can be said.
    """
    if num_samples < k:
        raise ValueError(f"pass@{k} needs {k} samples, and there are {num_samples}")
    if num_samples - num_passed < k:
        return 1.0
    ratios = 1.0 - k / np.arange(num_samples - num_passed + 1, num_samples + 1)
    return float(1.0 - np.prod(ratios))


def _passes(answers: Sequence[Read], reference: str | float, k: int) -> float:
    return pass_at_k(len(answers), answers.count(reference), k)


of_samples(
    "pass",
    _passes,
    lambda k: f"Unbiased estimate that one of {k} programs passes all tests (Chen et al. 2021).",
    "Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1",
)
# Those of more samples are found by name: of one answer an item they have no value.
METRICS["pass@1"] = get_metric("pass@1")

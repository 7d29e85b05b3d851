"""How far a judge can be relied on: under swapped orders, asked again, and against people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedbench.judging.agreement import agreement, position_bias, read_labels, repeat_agreement
from fedbench.judging.rows import JudgmentRow
from fedbench.judging.scores import without_superseded

_ID = "question_id"
_REASONS = 5
"""How many different reasons a record names."""


def reliability(
    rows: Sequence[JudgmentRow],
    labels: Path | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Figures for the run's record; what cannot be computed of the rows is left out.

    Args:
        rows: of one judge, on all models.
        labels: a file of people's labels.
        names: what the data set calls each question, by the name that the rows have.

    Raises:
        DataError: the labels cannot be read, or are of other answers.
    """
    found: dict[str, Any] = {}
    orders = position_bias(rows)
    if orders.num_pairs:
        found["orders"] = _finite(asdict(orders))
    if points := _points(rows):
        found["points"] = points
    repeats = repeat_agreement(rows)
    if math.isfinite(repeats):
        found["repeats agree"] = round(repeats, 6)
    if labels is not None:
        named = [replace(row, question=name_of(row.question, names or {})) for row in rows]
        found["people"] = _finite(asdict(agreement(named, read_labels(labels))))
    return found


def verdicts(rows: Sequence[JudgmentRow]) -> dict[str, Any]:
    """For the run's record: how many judgments there are, how many failed, and why.

    The reasons add up to all that failed: beyond the most frequent ones they are counted together.
    """
    reasons = Counter(row.problem or "no verdict" for row in rows if row.value is None)
    because = dict(reasons.most_common(_REASONS))
    if rest := reasons.total() - sum(because.values()):
        because["other reasons"] = rest
    return {
        "judgments": len(rows),
        "without a verdict": reasons.total(),
        "because": because,
    }


def _points(rows: Sequence[JudgmentRow]) -> list[dict[str, Any]]:
    """What both answers were given in all, where the judge scores both (Vicuna bench, 2023)."""
    sums: dict[tuple[str, str, str | None], list[float]] = {}
    for row in without_superseded(rows):
        if row.scores is not None:
            total = sums.setdefault((row.judge, row.model, row.baseline), [0.0, 0.0, 0])
            total[:] = [total[0] + row.scores[0], total[1] + row.scores[1], total[2] + 1]
    return [
        {"model": model, "baseline": baseline, "own": own, "of baseline": others, "judgments": n}
        for (_, model, baseline), (own, others, n) in sums.items()
    ]


def name_of(question: str, names: Mapping[str, Mapping[str, str]]) -> str:
    """What the data set calls a question, which is what people's labels call it."""
    return names.get(question, {}).get(_ID, question)


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {
        name: round(value, 6) if math.isfinite(value) else None for name, value in figures.items()
    }

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
    if len({row.order for row in rows if row.order is not None}) == 2:
        found["orders"] = _finite(asdict(position_bias(rows)))
    if any(row.repeat for row in rows):
        found["repeats agree"] = _finite({"": repeat_agreement(rows)})[""]
    if labels is not None:
        named = [replace(row, question=_name(row.question, names or {})) for row in rows]
        found["people"] = _finite(asdict(agreement(named, read_labels(labels))))
    return found


def verdicts(rows: Sequence[JudgmentRow]) -> dict[str, Any]:
    """For the run's record: how many judgments there are, how many failed, and why."""
    reasons = Counter(row.problem or "no verdict" for row in rows if row.value is None)
    return {
        "judgments": len(rows),
        "without a verdict": reasons.total(),
        "because": dict(reasons.most_common(_REASONS)),
    }


def _name(question: str, names: Mapping[str, Mapping[str, str]]) -> str:
    return names.get(question, {}).get(_ID, question)


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {
        name: round(value, 6) if math.isfinite(value) else None for name, value in figures.items()
    }

"""Scores over rounds, where every seed has one."""

from __future__ import annotations

import statistics as stdlib
from collections.abc import Sequence

from fedbench.results.cells import Source
from fedbench.results.grouping import is_repeated, label_of
from fedbench.results.record import ScoreRecord
from fedbench.results.table import FEDERATED, Column, CurvePoint


def curve_points(
    records: Sequence[ScoreRecord], columns: Sequence[Column], source: Source
) -> list[CurvePoint]:
    """Points of federated methods over rounds, where every required seed (and client) has one.

    A method without a global model has the mean over its clients' models.
    """
    points: dict[tuple[str, int], dict[tuple[str, str, int | None], list[ScoreRecord]]] = {}
    for record in records:
        if record.model_kind in FEDERATED and record.round is not None and record.value is not None:
            place = points.setdefault((label_of(record), record.round), {})
            models = place.setdefault((record.task_key, record.metric, record.seed), [])
            if not is_repeated(record, models):
                models.append(record)
    curves = []
    for (label, round_), place in sorted(points.items(), key=lambda item: item[0][1]):
        for column in columns:
            by_seed = [
                [place.get((task, column.metric, seed), []) for task in column.tasks]
                for seed in source.seeds
            ]
            if by_seed and all(_is_complete(models, source) for row in by_seed for models in row):
                curves.append(_point(label, column, round_, by_seed))
    return curves


def _is_complete(models: Sequence[ScoreRecord], source: Source) -> bool:
    of_clients = any(record.model_kind == "client" for record in models)
    return len(models) >= (source.clients_of(models[0].method) if of_clients else 1)


def _point(
    label: str, column: Column, round_: int, by_seed: Sequence[Sequence[Sequence[ScoreRecord]]]
) -> CurvePoint:
    """`by_seed`: per seed, task and model."""
    values = [
        stdlib.fmean(stdlib.fmean(r.value for r in models if r.value is not None) for models in row)
        for row in by_seed
    ]
    low: float | None = min(values)
    high: float | None = max(values)
    if len(values) == 1:
        first = by_seed[0][0]
        alone = len(first) == 1 and not column.is_average
        low, high = (first[0].ci_low, first[0].ci_high) if alone else (None, None)
    return CurvePoint(label, column, round_, stdlib.fmean(values), low, high, len(values))

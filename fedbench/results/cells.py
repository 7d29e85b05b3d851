"""Cells: the mean over seeds and clients, its interval from the kept answers, or why there is none.

Intervals resample the items of a task and take the trained models as given; how much training
itself varies is the standard deviation over seeds beside them.
"""

from __future__ import annotations

import math
import statistics as stdlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fedbench.errors import RecordError
from fedbench.metrics import Metric, get_metric
from fedbench.metrics.metric import Array
from fedbench.results.contrasts import Contrast, JointDraws, joint_bootstrap, mean_over_strata
from fedbench.results.ranking import TaskScores
from fedbench.results.record import ModelId, ModelKind, ScoreRecord, why_withheld
from fedbench.results.samples import Answers, Results, SampleTable
from fedbench.results.settings import split_name
from fedbench.results.specification import LeaderboardSpec
from fedbench.results.table import Cell, Column

NOT_KEPT = "the answers to its items are not kept, or its runs had different items"

Terms = tuple[tuple[float, ModelId], ...]
"""Coefficient, and the model whose score it multiplies."""


class StandingModels(NamedTuple):
    """The standing models of one row, with all their scores."""

    method: str
    label: str
    kind: ModelKind
    records: dict[tuple[str, str], list[ScoreRecord]]
    """(task key, metric) -> one record per seed, and per client."""

    @property
    def of_clients(self) -> bool:
        """Whether each of its models belongs to one client."""
        return self.kind in ("local", "client")


@dataclass(frozen=True)
class Source:
    """What cells are computed from, beside their records."""

    spec: LeaderboardSpec
    seeds: tuple[int, ...]
    num_clients: Mapping[str, int]
    """Clients that a row of clients must have, by label of their setting."""
    items: Mapping[str, TaskAnswers | None]
    """Item statistics by task key; None where no answers are kept."""

    def clients_of(self, method: str) -> int:
        """How many clients the federation of a method has."""
        return self.num_clients.get(split_name(method)[1], 0)

    def contrast(self, task: str, metric: str, terms: Terms) -> Contrast | None:
        """The combination of scores on one task; None without answers."""
        items = self.items[task]
        if items is None:
            return None
        return items.contrast(get_metric(metric), terms, self.spec.confidence)


@dataclass(frozen=True)
class TaskAnswers:
    """What the standing models answered to the items of one task, resampled once for all."""

    table: SampleTable
    answers: Mapping[ModelId, Answers]
    draws: dict[str, JointDraws] = field(default_factory=dict)
    """By metric, as far as they were asked for."""
    statistics: dict[object, list[Array]] = field(default_factory=dict)
    """Statistics function -> (n, d) per model; metrics may share one."""

    @classmethod
    def of(
        cls, task: str, runs: Sequence[Results], models: Container[ModelId]
    ) -> TaskAnswers | None:
        """The answers of all runs that asked the same items; None where none were kept."""
        tables = [run.samples[task] for run in runs if task in run.samples]
        if not tables:
            return None
        items = (tables[0].item_ids, tables[0].item_hashes)
        same = [table for table in tables if (table.item_ids, table.item_hashes) == items]
        answers = {a.model: a for table in same for a in table.answers if a.model in models}
        return cls(tables[0], answers)

    def contrast(self, metric: Metric, terms: Terms, confidence: float) -> Contrast | None:
        """Sum of coefficient times score; None where the answers of a model are not kept.

        A model's failed items count for no score, as in its record.
        """
        position = {model: n for n, model in enumerate(self.answers)}
        if any(model not in position for _, model in terms):
            return None
        if not all(self.answers[model].keeps(metric) for _, model in terms):
            return None
        placed = [(coefficient, position[model]) for coefficient, model in terms]
        return self._joint(metric).contrast(placed, confidence)

    def scores_of(self, metric: Metric, rows: Sequence[Terms]) -> TaskScores:
        """What some rows reached together, each a combination of models whose answers are kept."""
        position = {model: n for n, model in enumerate(self.answers)}
        mixing = np.zeros((len(position), len(rows)))
        for number, terms in enumerate(rows):
            for coefficient, model in terms:
                mixing[position[model], number] += coefficient
        joint = self._joint(metric)
        return TaskScores(joint.scores @ mixing, joint.draws @ mixing, metric.higher_is_better)

    def _joint(self, metric: Metric) -> JointDraws:
        if metric.name not in self.draws:
            statistics = self._statistics(metric)
            self.draws[metric.name] = joint_bootstrap(metric, statistics, self.table.clusters)
        return self.draws[metric.name]

    def _statistics(self, metric: Metric) -> list[Array]:
        """(n, d) per model, with zeros, which add nothing to any sum, where the model failed."""
        if metric.statistics not in self.statistics:
            self.statistics[metric.statistics] = [
                _statistics_of(metric, self.table, given) for given in self.answers.values()
            ]
        return self.statistics[metric.statistics]


def task_cell(group: StandingModels, column: Column, source: Source) -> Cell:
    """The cell of one task; without a value where a seed or client is lacking."""
    records = group.records.get((column.name, column.metric), [])
    reason = _incomplete(group, records, source)
    if reason:
        return Cell(reason=reason)
    seeds = _by_seed(records)
    by_seed = {seed: stdlib.fmean(scores) for seed, scores in seeds.items()}
    value = stdlib.fmean(by_seed.values())
    spread: dict[str, Any] = _client_spread(seeds, column) if group.of_clients else {}
    interval = _task_interval(records, column, value, source)
    return Cell(
        value=value,
        by_seed=by_seed,
        sd_seeds=stdlib.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        num_examples=records[0].num_examples,
        **spread,
        **interval,
    )


def average_cell(
    group: StandingModels, column: Column, cells: Mapping[tuple[str, str], Cell], source: Source
) -> Cell:
    """The cell of a mean over tasks, made of their cells by (task key, metric)."""
    parts = [cells[task, column.metric] for task in column.tasks]
    missing = [t for t, part in zip(column.tasks, parts, strict=True) if part.value is None]
    if missing:
        return Cell(reason=f"incomplete: {', '.join(missing)}")
    seeds = sorted({seed for part in parts for seed in part.by_seed if seed is not None})
    by_seed = {
        seed: stdlib.fmean(value_under(part, seed) for part in parts)
        for seed in (*seeds, *([] if seeds else [None]))
    }
    found = [
        source.contrast(task, column.metric, mean_terms(group.records[task, column.metric]))
        for task in column.tasks
    ]
    contrasts = [estimate for estimate in found if estimate is not None]
    interval: dict[str, Any] = {"no_interval": NOT_KEPT}
    if len(contrasts) == len(column.tasks):
        interval = interval_fields(mean_over_strata(contrasts, source.spec.confidence))
    return Cell(
        value=stdlib.fmean(part.value for part in parts if part.value is not None),
        by_seed=by_seed,
        sd_seeds=stdlib.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        num_examples=sum(part.num_examples or 0 for part in parts),
        **interval,
    )


def mean_terms(records: Sequence[ScoreRecord], sign: float = 1.0) -> Terms:
    """The mean over seeds of the mean over clients, as coefficients of models."""
    seeds: dict[int | None, list[ModelId]] = {}
    for record in records:
        seeds.setdefault(record.seed, []).append(record.model)
    return tuple(
        (sign / len(seeds) / len(models), model) for models in seeds.values() for model in models
    )


def value_under(cell: Cell, seed: int | None) -> float:
    """A complete cell's value under one seed; a model without a seed counts under each."""
    return cell.by_seed[seed] if seed in cell.by_seed else cell.by_seed[None]


def _incomplete(group: StandingModels, records: Sequence[ScoreRecord], source: Source) -> str:
    """What a cell lacks, in words; empty when it lacks nothing."""
    if not records:
        return "not scored"
    withheld = [record for record in records if record.value is None]
    if withheld:
        failed = sum(record.num_failed for record in withheld)
        return f"withheld ({failed} failed)" if failed else f"withheld: {why_withheld(withheld[0])}"
    seeds = _by_seed(records)
    if None not in seeds and len(seeds) < len(source.seeds):
        return f"{len(seeds)} of {len(source.seeds)} seeds"
    fewest = min(len(scores) for scores in seeds.values())
    wanted = source.clients_of(group.method)
    if group.of_clients and fewest < wanted:
        return f"{fewest} of {wanted} clients"
    return ""


def _task_interval(
    records: Sequence[ScoreRecord], column: Column, value: float, source: Source
) -> dict[str, Any]:
    """The interval of a task's cell: of the record itself, or of the mean over models."""
    only = records[0]
    if len(records) == 1 and only.ci_low is not None and only.confidence == source.spec.confidence:
        return {"low": only.ci_low, "high": only.ci_high, "ci_method": only.ci_method}
    found = source.contrast(column.name, column.metric, mean_terms(records))
    if found is None:
        return {"no_interval": NOT_KEPT}
    if not math.isclose(found.value, value, abs_tol=1e-6):
        raise RecordError(
            f"{column.name}, {column.metric}: scores.jsonl of {only.run} says {value:.6f} for "
            f"{only.method} and its samples give {found.value:.6f}; score the task again"
        )
    return interval_fields(found)


def interval_fields(estimate: Contrast) -> dict[str, Any]:
    """The ends of an interval, or why there is none, under the names of `Cell`."""
    interval = estimate.interval
    if interval.method.endswith("none-differ") and math.isinf(interval.high):
        return {"no_interval": "no two items differ, and the metric has no bounds"}
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return {"no_interval": "the metric is undefined in too many resamples"}
    return {"low": interval.low, "high": interval.high, "ci_method": interval.method}


def _by_seed(records: Iterable[ScoreRecord]) -> dict[int | None, list[float]]:
    seeds: dict[int | None, list[float]] = {}
    for record in records:
        if record.value is not None:
            seeds.setdefault(record.seed, []).append(record.value)
    return seeds


def _client_spread(
    seeds: Mapping[int | None, Sequence[float]], column: Column
) -> dict[str, float | None]:
    """Client k has other data under another seed, so clients are compared within a seed."""
    worst, best = (min, max) if column.higher_is_better else (max, min)
    sds = [stdlib.stdev(scores) for scores in seeds.values() if len(scores) > 1]
    return {
        "worst_client": stdlib.fmean(worst(scores) for scores in seeds.values()),
        "best_client": stdlib.fmean(best(scores) for scores in seeds.values()),
        "sd_clients": stdlib.fmean(sds) if sds else None,
    }


def _statistics_of(metric: Metric, table: SampleTable, given: Answers) -> Array:
    samples = [table.sample(given, index) for index in range(len(table.item_ids))]
    values = metric.statistics(samples, table.labels or [])
    values[[status == "failed" for status in given.status]] = 0.0
    return values

"""Leaderboards: one row per method, one column per task and metric, an interval in every cell.

A leaderboard is a directory with ``leaderboard.yaml`` (a `LeaderboardSpec`: which tasks, metrics
and seeds) and ``results/<run>/`` (records). `build` makes one `Table` of them, which
`fedbench.results.page` renders as a page, Markdown, CSV, LaTeX and JSON.

A cell is the mean over the required seeds. A row that lacks a seed, a client or a task is shown
as incomplete and never averaged over what happens to be there. Intervals resample the items of a
task and take the trained models as given; how much training itself varies is the standard
deviation over seeds beside them.
"""

from __future__ import annotations

import difflib
import math
import statistics as stdlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from fedbench import resources
from fedbench.schema import Part, read_yaml, validated
from fedbench.errors import ConfigError, RecordError
from fedbench.metrics import METRICS, Metric, Sample, get_metric
from fedbench.metrics.metric import Array
from fedbench.results.record import (
    Answers,
    ModelId,
    ModelKind,
    RunRecord,
    SampleTable,
    ScoreRecord,
    read_run,
    read_samples,
    read_scores,
)
from fedbench.results.statistics import (
    FEW_UNITS,
    Contrast,
    Interval,
    combine_strata,
    contrast,
    holm,
)

SPEC_FILE = "leaderboard.yaml"
SCORES_FILE = "scores.jsonl"
DRAWS = 2_000
"""Bootstrap draws: another seed moves the ends by about 3 % of the half width."""
DRAWS_AT_ONCE = 100
"""So many draws of a few thousand items stay in the processor's cache."""
SEED = 0
NOT_KEPT = "the answers to its items are not kept, or its runs had different items"

FEDERATED: tuple[ModelKind, ...] = ("global", "merged")
_ORDER: tuple[ModelKind, ...] = (
    "base", "local", "client", "global", "merged", "central", "reference",
)  # fmt: skip
Terms = tuple[tuple[float, ModelId], ...]


class LeaderboardSpec(Part):
    """What a leaderboard shows, read from ``leaderboard.yaml``."""

    name: str
    title: str = ""
    description: str = ""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Task keys: ``fpb``, or ``fpb:fingpt`` for a variant."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Columns that are the mean over tasks, such as ``Avg:3: [fpb, fiqa_sa, tfns]``."""
    seeds: tuple[int, ...] = ()
    """Seeds that a row must have to be complete; those found in the records when empty."""
    sort_by: str | None = None
    """A task or average whose headline metric orders the rows; None keeps methods by kind."""
    notes: tuple[str, ...] = ()
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95

    @model_validator(mode="after")
    def _consistent(self) -> LeaderboardSpec:
        for metric in self.metrics:
            try:
                get_metric(metric)
            except ConfigError as error:
                raise ValueError(f"metrics: {error}") from error
        for name, tasks in self.averages.items():
            if not tasks:
                raise ValueError(f"averages.{name} is empty; list its tasks")
            for task in tasks:
                if task not in self.tasks:
                    raise ValueError(
                        f"averages.{name} names {task!r}, which tasks does not list; "
                        f"add it there{_nearest(task, self.tasks)}"
                    )
        known = [*self.tasks, *self.averages]
        if self.sort_by is not None and self.sort_by not in known:
            raise ValueError(
                f"sort_by is {self.sort_by!r}, which is neither among tasks nor "
                f"averages{_nearest(self.sort_by, known)}"
            )
        return self


@dataclass(frozen=True)
class Results:
    """One results directory, read."""

    path: Path
    run: RunRecord | None
    scores: Sequence[ScoreRecord]
    samples: Mapping[str, SampleTable] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A task, or an average over tasks, under one metric."""

    name: str
    metric: str
    tasks: tuple[str, ...]
    headline: bool
    higher_is_better: bool
    percent: bool

    @property
    def is_average(self) -> bool:
        """Whether this is a mean over tasks rather than a task."""
        return self.tasks != (self.name,)

    @property
    def variant(self) -> str | None:
        """The protocol variant that all its tasks share."""
        variants = {task.partition(":")[2] or None for task in self.tasks}
        return variants.pop() if len(variants) == 1 else None

    @property
    def title(self) -> str:
        """The name, with an arrow where less is better."""
        return self.name if self.higher_is_better else f"{self.name} ↓"

    def show(self, value: float | None) -> str:
        """A score for people: percent with one decimal, or three digits where it is no share."""
        if value is None:
            return "—"
        return f"{100 * value:.1f}" if self.percent else f"{value:.3g}"

    def show_change(self, value: float | None) -> str:
        """A difference for people, with its sign."""
        if value is None:
            return "—"
        text = f"{100 * value:+.1f}" if self.percent else f"{value:+.3g}"
        return text.replace("-", "−")


@dataclass(frozen=True)
class Cell:
    """One score of a method with its uncertainty."""

    value: float | None = None
    """Mean over seeds, and over clients where the row is one of clients; None: see `reason`."""
    low: float | None = None
    high: float | None = None
    ci_method: str | None = None
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    """Key None: the model does not depend on the seed."""
    sd_seeds: float | None = None
    worst_client: float | None = None
    """The worst client's score in each seed, averaged over seeds; likewise the two below."""
    best_client: float | None = None
    sd_clients: float | None = None
    num_examples: int | None = None
    reason: str = ""
    """Why there is no value."""
    no_interval: str = ""
    """Why there is a value and no interval."""


@dataclass(frozen=True)
class Row:
    """A method, or the mean over the client models of a method."""

    method: str
    label: str
    kind: ModelKind
    cells: Mapping[Column, Cell]
    num_seeds: int
    """Distinct seeds scored; 0 for a model that does not depend on the seed."""
    num_answers: int
    num_unparsed: int
    num_failed: int
    train_examples: tuple[int, int] | None
    """Least and most over the models of the row."""
    bytes_communicated: tuple[int, int] | None


@dataclass(frozen=True)
class MethodDifference:
    """A federated method minus another row, on the same items."""

    method: str
    other: str
    other_kind: ModelKind
    column: Column
    value: float | None
    low: float | None = None
    high: float | None = None
    ci_method: str | None = None
    p_value: float | None = None
    p_holm: float | None = None
    """Adjusted for the number of differences in the table (Holm 1979)."""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    num_examples: int | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``unclear`` when the interval holds 0 or there is none."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.low > 0) == self.column.higher_is_better else "worse"


@dataclass(frozen=True)
class CurvePoint:
    """A federated method after some rounds: mean over seeds."""

    label: str
    column: Column
    round: int
    value: float
    low: float | None
    """Smallest over seeds, or the end of the interval when there is one seed."""
    high: float | None
    num_seeds: int


@dataclass(frozen=True)
class ClientScore:
    """One client's own model on the shared test sets."""

    method: str
    seed: int | None
    client: int
    train_examples: int | None
    records: Mapping[Column, ScoreRecord]


@dataclass(frozen=True)
class View:
    """The columns that are shown side by side: one metric, one protocol."""

    title: str
    columns: tuple[Column, ...]
    headline: bool


@dataclass(frozen=True)
class Table:
    """Everything that a leaderboard shows."""

    spec: LeaderboardSpec
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    differences: tuple[MethodDifference, ...]
    curves: tuple[CurvePoint, ...]
    clients: tuple[ClientScore, ...]
    runs: tuple[RunRecord, ...]
    tasks: Mapping[str, str]
    """Task key -> version, hash and number of items, in words."""

    @property
    def title(self) -> str:
        """What to write above the table."""
        return self.spec.title or self.spec.name

    @property
    def primary(self) -> Column:
        """The column that findings are about: `sort_by`, the first average, or the first task."""
        shown = [c for c in self.columns if c.headline] or list(self.columns)
        wanted = self.spec.sort_by or next(iter(self.spec.averages), None)
        return next((c for c in shown if c.name == wanted), shown[0])

    @property
    def views(self) -> list[View]:
        """The columns by metric and variant, those with a headline first."""
        groups: dict[tuple[str | None, str], list[Column]] = {}
        for column in self.columns:
            groups.setdefault((column.variant, column.metric), []).append(column)
        views = [
            View(
                metric if variant is None else f"{metric}, protocol {variant}",
                tuple(columns),
                any(column.headline for column in columns),
            )
            for (variant, metric), columns in groups.items()
        ]
        return sorted(views, key=lambda view: not view.headline)


# Reading.


def load_spec(directory: Path) -> LeaderboardSpec:
    """The specification in a leaderboard's directory.

    Raises:
        ConfigError: it is missing or wrong; names file and field.
    """
    file = directory / SPEC_FILE
    raw = read_yaml(file)
    raw.setdefault("name", directory.resolve().name)
    return validated(LeaderboardSpec, raw, str(file))


def find_leaderboard(name: str) -> Path:
    """The directory of a leaderboard, by path or by name.

    Names are looked up in ``./leaderboards``, then among those that come with fedbench.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    path = Path(name)
    if path.name == SPEC_FILE and path.is_file():
        return path.parent
    if (path / SPEC_FILE).is_file() or (path / SCORES_FILE).is_file():
        return path
    rooms = [Path("leaderboards"), resources.directory("leaderboards")]
    for room in rooms:
        if (room / name / SPEC_FILE).is_file():
            return room / name
    if path.is_dir():
        raise ConfigError(
            f"{name}: holds neither {SPEC_FILE} nor {SCORES_FILE}; "
            "give the directory of a leaderboard or of results"
        )
    known = sorted({file.parent.name for room in rooms for file in room.glob(f"*/{SPEC_FILE}")})
    raise ConfigError(
        f"unknown leaderboard {name!r}{_nearest(name, known)}; known are: "
        f"{', '.join(known) or 'none'}"
    )


def read_results(directory: Path) -> Results:
    """One results directory: run record, scores and sample tables.

    Raises:
        RecordError: a file is missing or damaged.
    """
    scores = read_scores(directory)
    return Results(directory, read_run(directory), scores, read_samples(directory))


def read_leaderboard(directory: Path) -> tuple[LeaderboardSpec, list[Results]]:
    """Specification and results of a leaderboard, or of a results directory by itself.

    Raises:
        ConfigError: the specification is wrong.
        RecordError: there are no results, or a file is damaged.
    """
    if (directory / SCORES_FILE).is_file():
        results = read_results(directory)
        return spec_for(results.run, results.scores), [results]
    spec = load_spec(directory)
    found = sorted(file.parent for file in directory.glob(f"results/*/{SCORES_FILE}"))
    if not found:
        raise RecordError(
            f"{directory}/results: holds no results; run the leaderboard's run.yaml "
            f"and put its results into {directory}/results/<run>/"
        )
    return spec, [read_results(path) for path in found]


def spec_for(run: RunRecord | None, scores: Sequence[ScoreRecord]) -> LeaderboardSpec:
    """A specification that shows everything a run has scored.

    Raises:
        RecordError: there is no score.
    """
    if not scores:
        raise RecordError("scores.jsonl: holds no score; run the same command again")
    tasks = tuple(dict.fromkeys(score.task_key for score in scores))
    headlines = [score.metric for score in scores if score.headline]
    metrics = [name for name in (*headlines, *(s.metric for s in scores)) if name in METRICS]
    plain = tuple(task for task in tasks if ":" not in task)
    config = (run.config if run else None) or {}
    found = sorted({score.seed for score in scores if score.seed is not None})
    return LeaderboardSpec(
        name=run.run if run else scores[0].run,
        description=config.get("description") or "",
        tasks=tasks,
        metrics=tuple(dict.fromkeys(metrics)),
        averages={f"Avg:{len(plain)}": plain} if len(plain) > 1 else {},
        seeds=tuple(config.get("seeds") or found),
    )


# Building.


def build(spec: LeaderboardSpec, runs: Sequence[Results]) -> Table:
    """The table of a leaderboard.

    Args:
        spec: what to show.
        runs: results directories; together they hold each model once.

    Raises:
        RecordError: two results contradict each other, or belong to different task versions.
    """
    records = [r for run in runs for r in run.scores if _is_shown(r, spec)]
    _check_one_version(records)
    found = sorted({r.seed for r in records if r.seed is not None})
    standing = {r.model for r in records if r.selected_by is not None}
    source = _Source(
        spec=spec,
        seeds=spec.seeds or tuple(found),
        num_clients=_num_clients(runs, records),
        items={task: _Items.of(task, runs, standing) for task in spec.tasks},
    )
    columns = _columns(spec, records)
    groups = _groups([r for r in records if r.selected_by is not None])
    rows = [_row(group, columns, source) for group in groups]
    differences = _differences(list(zip(groups, rows, strict=True)), columns, source)
    shown = [column for column in columns if column.headline] or columns
    table = Table(
        spec=spec,
        seeds=source.seeds,
        columns=tuple(columns),
        rows=tuple(rows),
        differences=tuple(differences),
        curves=tuple(_curves(records, shown, source)),
        clients=tuple(_client_scores(groups, shown)),
        runs=tuple(run.run for run in runs if run.run is not None),
        tasks=_task_facts(spec, records),
    )
    return _sorted(table)


class _Group(NamedTuple):
    """The standing models of one row, with all their scores."""

    method: str
    label: str
    kind: ModelKind
    records: dict[tuple[str, str], list[ScoreRecord]]
    """(task key, metric) -> one record per seed, and per client."""

    @property
    def of_clients(self) -> bool:
        return self.kind in ("local", "client")


@dataclass(frozen=True)
class _Source:
    """What cells are computed from, beside their records."""

    spec: LeaderboardSpec
    seeds: tuple[int, ...]
    num_clients: int
    items: Mapping[str, _Items | None]
    """Item statistics by task key; None where no answers are kept."""

    def contrast(self, task: str, metric: str, terms: Terms) -> Contrast | None:
        """The combination of scores on one task; None without answers."""
        items = self.items[task]
        return None if items is None else items.contrast(METRICS[metric], terms, self.spec)


@dataclass(frozen=True)
class _Items:
    """What the standing models answered to the items of one task, resampled once for all.

    `statistics.contrast` would resample for every cell and difference by itself, which takes a
    minute where this takes seconds.
    """

    table: SampleTable
    answers: Mapping[ModelId, Answers]
    resampled: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """Metric -> (models,) scores and (DRAWS, models) bootstrap draws of them."""
    statistics: dict[object, list[Array]] = field(default_factory=dict)
    """Statistics function -> (n, d) per model; metrics may share one."""

    @classmethod
    def of(cls, task: str, runs: Sequence[Results], models: Container[ModelId]) -> _Items | None:
        """The answers of all runs that asked the same items; None where none were kept."""
        tables = [run.samples[task] for run in runs if task in run.samples]
        if not tables:
            return None
        items = (tables[0].item_ids, tables[0].item_hashes)
        same = [table for table in tables if (table.item_ids, table.item_hashes) == items]
        answers = {a.model: a for table in same for a in table.answers if a.model in models}
        return cls(tables[0], answers)

    def contrast(self, metric: Metric, terms: Terms, spec: LeaderboardSpec) -> Contrast | None:
        """Sum of coefficient times score; None where the answers of a model are not kept.

        A model's failed items count for no score, as in its record.
        """
        position = {model: n for n, model in enumerate(self.answers)}
        if any(model not in position for _, model in terms):
            return None
        columns = [position[model] for _, model in terms]
        coefficients = np.array([coefficient for coefficient, _ in terms])
        scores, draws = self._resample(metric)
        value = float(coefficients @ scores[columns])
        combined = draws[:, columns] @ coefficients
        combined = combined[np.isfinite(combined)]
        if self._num_units < FEW_UNITS or len(combined) < 2 or np.ptp(combined) < 1e-12:
            # Too little varies for percentiles to be honest; there it is quick.
            statistics = self._statistics(metric)
            exact = [(c, metric, statistics[n]) for c, n in zip(coefficients, columns, strict=True)]
            return contrast(exact, self.table.clusters, spec.confidence, DRAWS)
        tail = (1 - spec.confidence) / 2
        low, high = np.quantile(combined, [tail, 1 - tail])
        stderr = float(combined.std(ddof=1))
        interval = Interval(float(low), float(high), stderr, "bootstrap-percentile")
        return Contrast(value, interval, _normal_p(value, stderr), combined)

    @property
    def _num_units(self) -> int:
        return len(set(self.table.clusters or self.table.item_ids))

    def _resample(self, metric: Metric) -> tuple[Array, Array]:
        if metric.name not in self.resampled:
            statistics = self._statistics(metric)
            sums = np.stack([rows.sum(axis=0) for rows in statistics])
            blocks = _resampled_sums(np.hstack(statistics), self.table.clusters)
            draws = [metric.value(block.reshape(-1, *sums.shape)) for block in blocks]
            self.resampled[metric.name] = metric.value(sums), np.concatenate(draws)
        return self.resampled[metric.name]

    def _statistics(self, metric: Metric) -> list[Array]:
        """(n, d) per model, with zeros, which add nothing to any sum, where the model failed."""
        if metric.statistics not in self.statistics:
            self.statistics[metric.statistics] = [
                _statistics_of(metric, self.table, given) for given in self.answers.values()
            ]
        return self.statistics[metric.statistics]


def _statistics_of(metric: Metric, table: SampleTable, given: Answers) -> Array:
    pairs = zip(table.references, given.extracted, strict=True)
    samples = [Sample(reference, answer) for reference, answer in pairs]
    values = metric.statistics(samples, table.labels or [])
    values[[status == "failed" for status in given.status]] = 0.0
    return values


def _resampled_sums(rows: Array, clusters: Sequence[str] | None) -> Iterator[Array]:
    """Sums of the rows over DRAWS bootstrap draws of items or clusters, (some, D) at a time."""
    from scipy.sparse import csr_array

    matrix = csr_array(rows.T)  # most statistics are one-hot, so that few numbers are not 0
    units = np.arange(len(rows))
    if clusters is not None:
        units = np.unique(np.asarray(clusters), return_inverse=True)[1]
    num_units = int(units.max()) + 1
    generator = np.random.default_rng(SEED)
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, DRAWS - start)
        picks = generator.integers(0, num_units, size=(num_units, size))
        places = (picks * size + np.arange(size)).ravel()
        counts = np.bincount(places, minlength=num_units * size).reshape(num_units, size)
        yield np.asarray((matrix @ counts[units].astype(float)).T)


def _is_shown(record: ScoreRecord, spec: LeaderboardSpec) -> bool:
    """Whole tasks on shared test sets, under a seed that counts."""
    return (
        record.task_key in spec.tasks
        and record.group is None
        and record.data_client is None
        and (record.seed is None or not spec.seeds or record.seed in spec.seeds)
    )


def _check_one_version(records: Iterable[ScoreRecord]) -> None:
    first: dict[str, ScoreRecord] = {}
    for record in records:
        other = first.setdefault(record.task_key, record)
        if other.task_hash != record.task_hash:
            raise RecordError(
                f"{record.task_key}: {other.run} scored version {other.task_version} "
                f"({other.task_hash}) and {record.run} version {record.task_version} "
                f"({record.task_hash}); score the older one again"
            )


def _num_clients(runs: Sequence[Results], records: Iterable[ScoreRecord]) -> int:
    """Clients that a row of clients must have: as configured, or else as many as were seen."""
    configs = [run.run.config for run in runs if run.run is not None and run.run.config]
    planned = [int(config.get("federation", {}).get("num_clients", 0)) for config in configs]
    seen = len({r.model_client for r in records if r.model_client is not None})
    return max([*planned, seen])


def _columns(spec: LeaderboardSpec, records: Sequence[ScoreRecord]) -> list[Column]:
    """Tasks, then averages, under each metric that the tasks have."""
    found = {(r.task_key, r.metric) for r in records}
    scored = {task for task, _ in found}
    quoted = {r.task_key: r.metric for r in records if r.headline and r.metric in spec.metrics}
    columns = []
    for name in spec.metrics:
        metric = METRICS[name]
        for label, tasks in [*((t, (t,)) for t in spec.tasks), *spec.averages.items()]:
            if any((task, name) not in found and task in scored for task in tasks):
                continue  # the task is not scored by this metric
            columns.append(
                Column(
                    name=label,
                    metric=name,
                    tasks=tuple(tasks),
                    headline=all(quoted.get(task, spec.metrics[0]) == name for task in tasks),
                    higher_is_better=metric.higher_is_better,
                    percent=metric.unit_range == (0.0, 1.0),
                )
            )
    return columns


def _groups(standing: Sequence[ScoreRecord]) -> list[_Group]:
    """Records by row: by method, kind of model, and rule of selection where there are several."""
    rules: dict[tuple[str, ModelKind], set[str | None]] = {}
    for record in standing:
        rules.setdefault((record.method, record.model_kind), set()).add(record.selected_by)
    groups: dict[str, _Group] = {}
    for record in standing:
        label = _label(record)
        if len(rules[record.method, record.model_kind]) > 1:
            label += f" ({record.selected_by})"
        group = groups.setdefault(label, _Group(record.method, label, record.model_kind, {}))
        same_cell = group.records.setdefault((record.task_key, record.metric), [])
        if not _is_repeated(record, same_cell):
            same_cell.append(record)
    return sorted(groups.values(), key=lambda group: _ORDER.index(group.kind))


def _label(record: ScoreRecord) -> str:
    if record.model_kind == "local":
        return "mean local" if record.method == "local" else f"{record.method}, mean local"
    if record.model_kind == "client":
        return f"{record.method}, mean client"
    return record.method


def _is_repeated(record: ScoreRecord, others: Sequence[ScoreRecord]) -> bool:
    """Whether another run holds the same score of the same model; contradictions are refused."""
    for other in others:
        if (other.seed, other.model_client) != (record.seed, record.model_client):
            continue
        if (other.value, other.weights_hash) == (record.value, record.weights_hash):
            return True
        raise RecordError(
            f"{record.task_key}, {record.metric}: {other.run} and {record.run} both hold "
            f"{record.model.label()}, with different results; keep one of the two"
        )
    return False


def _row(group: _Group, columns: Sequence[Column], source: _Source) -> Row:
    records = [record for scores in group.records.values() for record in scores]
    counted: dict[tuple[str, ModelId], ScoreRecord] = {(r.task_key, r.model): r for r in records}
    cells = {c: _task_cell(group, c, source) for c in columns if not c.is_average}
    parts = {(column.name, column.metric): cell for column, cell in cells.items()}
    for column in columns:
        if column.is_average:
            cells[column] = _average_cell(group, column, parts, source)
    return Row(
        method=group.method,
        label=group.label,
        kind=group.kind,
        cells=cells,
        num_seeds=len({r.seed for r in records if r.seed is not None}),
        num_answers=sum(r.num_examples for r in counted.values()),
        num_unparsed=sum(r.num_unparsed for r in counted.values()),
        num_failed=sum(r.num_failed for r in counted.values()),
        train_examples=_range(r.train_examples for r in records),
        bytes_communicated=_range(r.bytes_communicated for r in records),
    )


def _task_cell(group: _Group, column: Column, source: _Source) -> Cell:
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


def _average_cell(
    group: _Group, column: Column, cells: Mapping[tuple[str, str], Cell], source: _Source
) -> Cell:
    parts = [cells[task, column.metric] for task in column.tasks]
    missing = [t for t, part in zip(column.tasks, parts, strict=True) if part.value is None]
    if missing:
        return Cell(reason=f"incomplete: {', '.join(missing)}")
    seeds = sorted({seed for part in parts for seed in part.by_seed if seed is not None})
    by_seed = {
        seed: stdlib.fmean(_at(part, seed) for part in parts)
        for seed in (*seeds, *([] if seeds else [None]))
    }
    found = [
        source.contrast(task, column.metric, _terms(group.records[task, column.metric]))
        for task in column.tasks
    ]
    contrasts = [estimate for estimate in found if estimate is not None]
    interval: dict[str, Any] = {"no_interval": NOT_KEPT}
    if len(contrasts) == len(column.tasks):
        interval = _as_fields(_combined(contrasts, source.spec.confidence))
    return Cell(
        value=stdlib.fmean(part.value for part in parts if part.value is not None),
        by_seed=by_seed,
        sd_seeds=stdlib.stdev(by_seed.values()) if len(by_seed) > 1 else None,
        num_examples=sum(part.num_examples or 0 for part in parts),
        **interval,
    )


def _at(cell: Cell, seed: int | None) -> float:
    """A complete cell's value under one seed; a model without a seed counts under each."""
    return cell.by_seed[seed] if seed in cell.by_seed else cell.by_seed[None]


def _incomplete(group: _Group, records: Sequence[ScoreRecord], source: _Source) -> str:
    """What a cell lacks, in words; empty when it lacks nothing."""
    if not records:
        return "not scored"
    withheld = [record for record in records if record.value is None]
    if withheld:
        return f"withheld ({sum(record.num_failed for record in withheld)} failed)"
    seeds = _by_seed(records)
    if None not in seeds and len(seeds) < len(source.seeds):
        return f"{len(seeds)} of {len(source.seeds)} seeds"
    fewest = min(len(scores) for scores in seeds.values())
    if group.of_clients and fewest < source.num_clients:
        return f"{fewest} of {source.num_clients} clients"
    return ""


def _task_interval(
    records: Sequence[ScoreRecord], column: Column, value: float, source: _Source
) -> dict[str, Any]:
    """The interval of a task's cell: of the record itself, or of the mean over models."""
    only = records[0]
    if len(records) == 1 and only.ci_low is not None and only.confidence == source.spec.confidence:
        return {"low": only.ci_low, "high": only.ci_high, "ci_method": only.ci_method}
    found = source.contrast(column.name, column.metric, _terms(records))
    if found is None:
        return {"no_interval": NOT_KEPT}
    if not math.isclose(found.value, value, abs_tol=1e-6):
        raise RecordError(
            f"{column.name}, {column.metric}: scores.jsonl of {only.run} says {value:.6f} for "
            f"{only.method} and its samples give {found.value:.6f}; score the task again"
        )
    return _as_fields(found)


def _as_fields(estimate: Contrast) -> dict[str, Any]:
    interval = estimate.interval
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


def _terms(records: Sequence[ScoreRecord], sign: float = 1.0) -> Terms:
    """The mean over seeds of the mean over clients, as coefficients of models."""
    seeds: dict[int | None, list[ModelId]] = {}
    for record in records:
        seeds.setdefault(record.seed, []).append(record.model)
    return tuple(
        (sign / len(seeds) / len(models), model) for models in seeds.values() for model in models
    )


def _differences(
    groups: Sequence[tuple[_Group, Row]], columns: Sequence[Column], source: _Source
) -> list[MethodDifference]:
    """Every federated method minus mean local, base, centralised and the reference rows."""
    kinds = ("local", "base", "central", "reference")
    others = [pair for kind in kinds for pair in groups if pair[0].kind == kind]
    differences = [
        _difference(federated, other, column, source)
        for federated in groups
        if federated[0].kind in FEDERATED
        for other in others
        for column in columns
        if column.headline
    ]
    tested = [n for n, d in enumerate(differences) if d.p_value is not None]
    adjusted = holm([differences[n].p_value or 0.0 for n in tested])
    for n, p_holm in zip(tested, adjusted, strict=True):
        differences[n] = replace(differences[n], p_holm=float(p_holm))
    return differences


def _difference(
    federated: tuple[_Group, Row], other: tuple[_Group, Row], column: Column, source: _Source
) -> MethodDifference:
    (group, row), (other_group, other_row) = federated, other
    blank = MethodDifference(row.label, other_row.label, other_row.kind, column, None)
    first, second = row.cells[column], other_row.cells[column]
    if first.value is None or second.value is None:
        lacking = row if first.value is None else other_row
        return replace(blank, reason=f"{lacking.label}: {lacking.cells[column].reason}")
    found = []
    for task in column.tasks:
        plus = _terms(group.records[task, column.metric])
        minus = _terms(other_group.records[task, column.metric], -1.0)
        found.append(source.contrast(task, column.metric, plus + minus))
    shared = {
        seed: value - _at(second, seed) for seed, value in first.by_seed.items() if seed is not None
    }
    difference = replace(blank, value=first.value - second.value, by_seed=shared)
    contrasts = [estimate for estimate in found if estimate is not None]
    if len(contrasts) < len(found):
        return replace(difference, reason=f"no interval: {NOT_KEPT}")
    total = contrasts[0]
    p_value = total.p_value
    if len(contrasts) > 1:
        total = _combined(contrasts, source.spec.confidence)
        p_value = _normal_p(total.value, total.interval.stderr)
    return replace(
        difference,
        low=total.interval.low,
        high=total.interval.high,
        ci_method=total.interval.method,
        p_value=p_value,
        num_examples=first.num_examples,
    )


def _combined(contrasts: Sequence[Contrast], confidence: float) -> Contrast:
    """The mean over test sets."""
    total = combine_strata(contrasts, confidence=confidence)
    if total.interval.low < total.interval.high:
        return total
    # No draw of any set differs. The sets' own intervals bound what was never seen.
    low = stdlib.fmean(part.interval.low for part in contrasts)
    high = stdlib.fmean(part.interval.high for part in contrasts)
    stderr = stdlib.fmean(part.interval.stderr for part in contrasts)
    return replace(total, interval=Interval(low, high, stderr, "mean-of-ends"))


def _normal_p(value: float, stderr: float) -> float:
    """Two-sided p of a value of 0.

    Counting the draws beyond 0 gives no p below 2 / DRAWS, too coarse to correct for many tests.
    """
    return math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr > 0 else 1.0


def _curves(
    records: Sequence[ScoreRecord], columns: Sequence[Column], source: _Source
) -> list[CurvePoint]:
    """Points of federated methods over rounds, where every required seed has one."""
    points: dict[tuple[str, int], dict[tuple[str, str, int | None], ScoreRecord]] = {}
    for record in records:
        if record.model_kind in FEDERATED and record.round is not None and record.value is not None:
            place = points.setdefault((record.method, record.round), {})
            place[record.task_key, record.metric, record.seed] = record
    curves = []
    for (method, round_), place in sorted(points.items(), key=lambda item: item[0][1]):
        for column in columns:
            by_seed = [
                [place.get((task, column.metric, seed)) for task in column.tasks]
                for seed in source.seeds
            ]
            complete = [[r for r in row if r is not None] for row in by_seed]
            if not complete or any(len(row) < len(column.tasks) for row in complete):
                continue
            curves.append(_point(method, column, round_, complete))
    return curves


def _point(
    method: str, column: Column, round_: int, by_seed: Sequence[Sequence[ScoreRecord]]
) -> CurvePoint:
    values = [stdlib.fmean(r.value for r in row if r.value is not None) for row in by_seed]
    low: float | None = min(values)
    high: float | None = max(values)
    if len(values) == 1:
        only = by_seed[0][0]
        low, high = (None, None) if column.is_average else (only.ci_low, only.ci_high)
    return CurvePoint(method, column, round_, stdlib.fmean(values), low, high, len(values))


def _client_scores(groups: Iterable[_Group], columns: Sequence[Column]) -> list[ClientScore]:
    scores = []
    for group in groups:
        if not group.of_clients:
            continue
        models: dict[ModelId, dict[Column, ScoreRecord]] = {}
        for column in columns:
            for record in group.records.get((column.name, column.metric), []):
                models.setdefault(record.model, {})[column] = record
        for model, found in models.items():
            examples = next(iter(found.values())).train_examples
            client = model.model_client if model.model_client is not None else -1
            scores.append(ClientScore(group.method, model.seed, client, examples, found))
    return sorted(scores, key=lambda s: (s.method, s.seed is None, s.seed or 0, s.client))


def _task_facts(spec: LeaderboardSpec, records: Sequence[ScoreRecord]) -> dict[str, str]:
    first: dict[str, ScoreRecord] = {}
    for record in records:
        first.setdefault(record.task_key, record)
    return {
        task: f"version {first[task].task_version}, hash {first[task].task_hash}, "
        f"{first[task].num_examples:,} items"
        for task in spec.tasks
        if task in first
    }


def _sorted(table: Table) -> Table:
    if table.spec.sort_by is None:
        return table
    column = table.primary
    sign = -1.0 if column.higher_is_better else 1.0

    def rank(row: Row) -> tuple[bool, float]:
        value = row.cells[column].value
        return value is None, sign * (value or 0.0)

    return replace(table, rows=tuple(sorted(table.rows, key=rank)))


def _range(numbers: Iterable[int | None]) -> tuple[int, int] | None:
    known = [number for number in numbers if number is not None]
    return (min(known), max(known)) if known else None


def _items_of(table: SampleTable) -> tuple[list[str], list[str]]:
    return table.item_ids, table.item_hashes


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

"""Leaderboards: one row per method, one column per task and metric, an interval in every cell.

`build` makes one `Table` of a specification (`fedbench.results.specification`) and the records of
some runs. `fedbench.results.page` renders it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedbench.errors import RecordError
from fedbench.metrics import get_metric
from fedbench.results.cells import (
    NOT_KEPT,
    Source,
    StandingModels,
    TaskAnswers,
    average_cell,
    interval_fields,
    mean_terms,
    task_cell,
    value_under,
)
from fedbench.results.contrasts import mean_over_strata
from fedbench.results.curves import curve_points
from fedbench.results.grouping import grouped
from fedbench.results.published import Published
from fedbench.results.record import ModelId, PrivacyRecord, ScoreRecord
from fedbench.results.samples import Results
from fedbench.results.settings import Setting, apart, split_name
from fedbench.results.specification import LeaderboardSpec
from fedbench.results.standing import mean_standings, standings
from fedbench.results.statistics import holm
from fedbench.results.table import (
    FEDERATED,
    ClientScore,
    Column,
    Counts,
    MethodDifference,
    Row,
    Table,
)


def build(
    spec: LeaderboardSpec, runs: Sequence[Results], published: Published | None = None
) -> Table:
    """The table of a leaderboard.

    Args:
        spec: what to show.
        runs: results directories; those of one setting together hold each model once.
        published: numbers of others, to stand beside ours.

    Raises:
        RecordError: two results contradict each other, or belong to different task versions.
    """
    runs, settings = apart(runs)
    records = [r for run in runs for r in run.scores if _is_shown(r, spec)]
    _check_one_version(records)
    found = sorted({r.seed for r in records if r.seed is not None})
    standing = {r.model for r in records if r.selected_by is not None}
    source = Source(
        spec=spec,
        seeds=spec.seeds or tuple(found),
        num_clients=_num_clients(settings, records),
        items={task: TaskAnswers.of(task, runs, standing) for task in spec.tasks},
    )
    columns = _columns(spec, records)
    groups = grouped([r for r in records if r.selected_by is not None])
    spent = _privacy_spent(runs)
    rows = [_row(group, columns, source, settings, spent) for group in groups]
    if not spec.partial_rows:
        complete = [row.is_complete for row in rows]
        groups = [group for group, kept in zip(groups, complete, strict=True) if kept]
        rows = [row for row, kept in zip(rows, complete, strict=True) if kept]
    differences = _differences(list(zip(groups, rows, strict=True)), columns, source)
    shown = [column for column in columns if column.headline] or columns
    table = Table(
        spec=spec,
        seeds=source.seeds,
        columns=tuple(columns),
        rows=tuple(rows),
        differences=tuple(differences),
        curves=tuple(curve_points(records, shown, source)),
        clients=tuple(_client_scores(groups, shown)),
        runs=tuple(run.run for run in runs if run.run is not None),
        tasks=_task_facts(spec, records),
        published=published,
    )
    given = (groups, rows, table.primary, source)
    return _sorted(replace(table, ranks=standings(*given), mean_ranks=mean_standings(*given)))


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


def _num_clients(settings: Mapping[str, Setting], records: Iterable[ScoreRecord]) -> dict[str, int]:
    """Clients that a row of clients must have: as configured, or else as many as were seen."""
    numbers = {label: setting.num_clients for label, setting in settings.items()}
    seen: dict[str, set[int]] = {}
    for record in records:
        if record.model_client is not None:
            seen.setdefault(split_name(record.method)[1], set()).add(record.model_client)
    return numbers | {
        label: max(numbers.get(label, 0), len(clients)) for label, clients in seen.items()
    }


def _columns(spec: LeaderboardSpec, records: Sequence[ScoreRecord]) -> list[Column]:
    """Tasks, then averages, under each metric that the tasks have."""
    found = {(r.task_key, r.metric) for r in records}
    scored = {task for task, _ in found}
    quoted = {r.task_key: r.metric for r in records if r.headline and r.metric in spec.metrics}
    columns = []
    for name in spec.metrics:
        metric = get_metric(name)
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


def _row(
    group: StandingModels,
    columns: Sequence[Column],
    source: Source,
    settings: Mapping[str, Setting],
    spent: Mapping[str, Sequence[PrivacyRecord]],
) -> Row:
    records = [record for scores in group.records.values() for record in scores]
    counted: dict[tuple[str, ModelId], ScoreRecord] = {(r.task_key, r.model): r for r in records}
    cells = {c: task_cell(group, c, source) for c in columns if not c.is_average}
    parts = {(column.name, column.metric): cell for column, cell in cells.items()}
    for column in columns:
        if column.is_average:
            cells[column] = average_cell(group, column, parts, source)
    return Row(
        method=group.method,
        label=group.label,
        kind=group.kind,
        cells=cells,
        num_seeds=len({r.seed for r in records if r.seed is not None}),
        counts=_counts(counted.values()),
        train_examples=_range(r.train_examples for r in records),
        bytes_communicated=_range(r.bytes_communicated for r in records),
        setting=settings.get(split_name(group.method)[1], Setting()),
        privacy=tuple(spent.get(group.method, ())) if group.kind in FEDERATED else (),
    )


def _privacy_spent(runs: Iterable[Results]) -> dict[str, list[PrivacyRecord]]:
    """By method, for each level the seed in which privacy cost most."""
    found = [spent for run in runs if run.run is not None for spent in run.run.privacy]
    found.sort(key=lambda spent: spent.epsilon)
    dearest = {(spent.method, spent.level): spent for spent in found}
    by_method: dict[str, list[PrivacyRecord]] = {}
    for (method, _), spent in sorted(dearest.items()):
        by_method.setdefault(method, []).append(spent)
    return by_method


def _counts(records: Iterable[ScoreRecord]) -> dict[str, Counts]:
    counts: dict[str, Counts] = {}
    for record in records:
        own = Counts(record.num_examples, record.num_unparsed, record.num_failed)
        counts[record.task_key] = counts.get(record.task_key, Counts()) + own
    return counts


def _differences(
    groups: Sequence[tuple[StandingModels, Row]], columns: Sequence[Column], source: Source
) -> list[MethodDifference]:
    """Every federated method minus mean local, base, centralised and the reference rows."""
    kinds = ("local", "base", "central", "reference")
    others = [pair for kind in kinds for pair in groups if pair[0].kind == kind]
    differences = [
        _difference(federated, other, column, source)
        for federated in groups
        if federated[0].kind in FEDERATED
        for other in others
        if federated[1].setting.compares_with(other[1].setting)
        for column in columns
        if column.headline
    ]
    tested = [n for n, d in enumerate(differences) if d.p_value is not None]
    adjusted = holm([differences[n].p_value or 0.0 for n in tested])
    for n, p_holm in zip(tested, adjusted, strict=True):
        differences[n] = replace(differences[n], p_holm=float(p_holm))
    return differences


def _difference(
    federated: tuple[StandingModels, Row],
    other: tuple[StandingModels, Row],
    column: Column,
    source: Source,
) -> MethodDifference:
    (group, row), (other_group, other_row) = federated, other
    blank = MethodDifference(row.label, other_row.label, other_row.kind, column, None)
    first, second = row.cells[column], other_row.cells[column]
    if first.value is None or second.value is None:
        lacking = row if first.value is None else other_row
        return replace(blank, reason=f"{lacking.label}: {lacking.cells[column].reason}")
    found = []
    for task in column.tasks:
        plus = mean_terms(group.records[task, column.metric])
        minus = mean_terms(other_group.records[task, column.metric], -1.0)
        found.append(source.contrast(task, column.metric, plus + minus))
    shared = {
        seed: value - value_under(second, seed)
        for seed, value in first.by_seed.items()
        if seed is not None
    }
    difference = replace(blank, value=first.value - second.value, by_seed=shared)
    contrasts = [estimate for estimate in found if estimate is not None]
    if len(contrasts) < len(found):
        return replace(difference, reason=f"no interval: {NOT_KEPT}")
    total = contrasts[0]
    if len(contrasts) > 1:
        total = mean_over_strata(contrasts, source.spec.confidence)
    interval = interval_fields(total)
    if "no_interval" in interval:
        return replace(difference, reason=f"no interval: {interval['no_interval']}")
    return replace(
        difference,
        **interval,
        p_value=total.p_value,
        num_examples=first.num_examples,
    )


def _client_scores(
    groups: Iterable[StandingModels], columns: Sequence[Column]
) -> list[ClientScore]:
    scores = []
    for group in groups:
        if not group.of_clients:
            continue
        models: dict[ModelId, dict[Column, ScoreRecord]] = {}
        for column in columns:
            for record in group.records.get((column.name, column.metric), []):
                models.setdefault(record.model, {})[column] = record
        for model, found in models.items():
            if model.model_client is not None:
                examples = next(iter(found.values())).train_examples
                scores.append(
                    ClientScore(group.method, model.seed, model.model_client, examples, found)
                )
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

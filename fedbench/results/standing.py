"""Who is ahead of whom: ranks with ties, where a tie is a difference that no test makes out.

All pairs of rows are compared on the primary column, on the same items; `ranking` turns the tests
into ranges of ranks. Where that column is an average, rows also have a mean rank over its tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fedbench.metrics import get_metric
from fedbench.results.cells import Source, StandingModels, mean_terms
from fedbench.results.contrasts import mean_over_strata
from fedbench.results.ranking import MeanRank, PairTest, Place, mean_ranks, places
from fedbench.results.table import Column, Row


def standings(
    groups: Sequence[StandingModels], rows: Sequence[Row], column: Column, source: Source
) -> dict[str, Place]:
    """The rank of every row that has a value and kept answers on a column, by its label."""
    placed = _placed(groups, rows, column, source)
    tests = {
        (first, second): _test(placed[first], placed[second], column, source)
        for first, second in itertools.combinations(placed, 2)
    }
    return {p.model: p for p in places(list(placed), tests, source.spec.confidence) if tests}


def mean_standings(
    groups: Sequence[StandingModels], rows: Sequence[Row], column: Column, source: Source
) -> dict[str, MeanRank]:
    """The mean rank over the tasks of an average, of every row that `standings` has."""
    placed = _placed(groups, rows, column, source)
    if not column.is_average or len(placed) < 2:
        return {}
    metric = get_metric(column.metric)
    tasks = []
    for task in column.tasks:
        answers = source.items[task]
        if answers is not None:
            own = [mean_terms(group.records[task, column.metric]) for group in placed.values()]
            tasks.append(answers.scores_of(metric, own))
    found = mean_ranks(tasks, source.spec.confidence)
    return dict(zip(placed, found, strict=True))


def _placed(
    groups: Sequence[StandingModels], rows: Sequence[Row], column: Column, source: Source
) -> dict[str, StandingModels]:
    """By label, the rows that can be compared on a column."""
    return {
        row.label: group
        for group, row in zip(groups, rows, strict=True)
        if row.cells[column].value is not None and _keeps_answers(group, column, source)
    }


def _keeps_answers(group: StandingModels, column: Column, source: Source) -> bool:
    return all(
        source.contrast(task, column.metric, mean_terms(group.records[task, column.metric]))
        is not None
        for task in column.tasks
    )


def _test(
    first: StandingModels, second: StandingModels, column: Column, source: Source
) -> PairTest:
    """First against second; the gain is positive where the first is better."""
    contrasts = []
    for task in column.tasks:
        plus = mean_terms(first.records[task, column.metric])
        minus = mean_terms(second.records[task, column.metric], -1.0)
        found = source.contrast(task, column.metric, plus + minus)
        if found is not None:
            contrasts.append(found)
    total = contrasts[0]
    if len(contrasts) > 1:
        total = mean_over_strata(contrasts, source.spec.confidence)
    return PairTest(total.value if column.higher_is_better else -total.value, total.p_value)

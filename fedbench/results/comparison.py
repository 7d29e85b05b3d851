"""Results side by side: the difference of scores that correspond, on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import Field

from fedbench.results.differences import difference_fields, finite, pair_difference
from fedbench.results.loading import load_results
from fedbench.results.pairing import ScorePair, pair_scores, why_missing
from fedbench.results.ranking import PairTest, places
from fedbench.results.record import SCHEMA, ModelId, Record
from fedbench.results.samples import Results
from fedbench.results.seed_means import SeedMean, mean_differences
from fedbench.results.statistics import holm


class Comparison(Record):
    """Two scores and their paired difference, without a verdict."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    task: str
    variant: str | None = None
    metric: str
    model: str
    """One label where both sides score the same model, else ``a vs b``."""
    result_a: str = ""
    """Where a's scores are."""
    result_b: str = ""
    value_a: float | None
    value_b: float | None
    delta: float | None = None
    """Positive where b is better, also for metrics of which less is better."""
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str | None = None
    confidence: float = 0.95
    p_value: float | None = None
    """Of no difference; not corrected for the number of rows."""
    p_holm: float | None = None
    """The same, corrected by Holm for all rows of this comparison."""
    num_better: int | None = None
    """Items on which b is better; None where items have no values of their own."""
    num_worse: int | None = None
    effect: float | None = None
    """Mean over standard deviation of the items' differences (Cohen's d_z)."""
    smallest_detectable: float | None = None
    num_items: int = 0
    """Items that both sides answered."""
    num_failed: int = 0
    """Items left out because no answer was obtained on one side or the other."""
    num_seeds: int | None = None
    """Where the row is the mean over seeds that both results have: how many."""
    stderr_items: float | None = None
    """Of such a mean: its standard error with the trained models taken as given."""
    sd_seeds: float | None = None
    """Of such a mean: the standard deviation of the seeds' own differences."""
    ranks: dict[str, str] | None = None
    """Where three or more results are compared: each one's rank on this score, ``2–3`` where the
    data cannot tell two apart."""
    note: str | None = None


def compare(a: Path, b: Path, *more: Path, confidence: float = 0.95) -> list[Comparison]:
    """Compare results item by item, on every metric of every task they share.

    Args:
        a: what the others are held against: a results directory, a ``scores.jsonl``, a baseline, or
            what lm-eval wrote with ``--log_samples``.
        b: likewise; differences are positive where b is better.
        *more: further results, each compared with a.
        confidence: coverage of the intervals, as a share.

    Returns:
        For each score of a, one row per other result; then, for methods that both have under
        several seeds, the means over these.

    Raises:
        RecordError: a file is damaged, or two were not asked the same.
    """
    first, *others = (load_results(path) for path in (a, b, *more))
    rows: dict[int, list[tuple[ScorePair, Comparison]]] = {}
    means: list[Comparison] = []
    for other in others:
        pairs = pair_scores(candidate=other, baseline=first)
        for number, pair in enumerate(pairs):
            row = _comparison(pair, first, other, confidence)
            rows.setdefault(number, []).append((pair, row))
        found = mean_differences(pairs, other, first, confidence)
        means += [_mean_row(mean, first, other, confidence) for mean in found]
    if more:
        between = _between(others, confidence)
        ranked = [_ranked(own, between, confidence) for own in rows.values()]
    else:
        ranked = [[row for _, row in own] for own in rows.values()]
    return _corrected([*(row for own in ranked for row in own), *means])


Between = Mapping[tuple[ModelId, str, str, str, str], PairTest]
"""Tests of results other than the first, by model, task key, metric and the two places."""


def _between(others: Sequence[Results], confidence: float) -> Between:
    """The tests of every pair among the other results."""
    tests = {}
    for number, one in enumerate(others):
        for two in others[number + 1 :]:
            for pair in pair_scores(candidate=two, baseline=one):
                found = pair_difference(pair, two, one, confidence=confidence)
                if found is not None:
                    record = pair.baseline
                    key = (record.model, record.task_key, record.metric)
                    # The gain is of the first of the two names.
                    test = PairTest(-found.difference.delta, found.difference.p_value)
                    tests[*key, str(one.path), str(two.path)] = test
    return tests


def _ranked(
    rows: Sequence[tuple[ScorePair, Comparison]], between: Between, confidence: float
) -> list[Comparison]:
    """The rows of one score with the ranks of all results that have it."""
    first = rows[0][1].result_a
    scored = [(pair, row) for pair, row in rows if row.delta is not None]
    tests: dict[tuple[str, str], PairTest] = {}
    for number, (pair, row) in enumerate(scored):
        p_value = math.nan if row.p_value is None else row.p_value
        tests[first, row.result_b] = PairTest(-(row.delta or 0.0), p_value)
        for _, other in scored[number + 1 :]:
            own = pair.candidate
            assert own is not None  # the row has a difference
            names = (row.result_b, other.result_b)
            test = between.get((own.model, own.task_key, own.metric, *names))
            if test is not None:
                tests[names] = test
    if not scored:
        return [row for _, row in rows]  # a score that nothing else has is first of nothing
    scorers = [first, *(row.result_b for _, row in scored)]
    ranks = {place.model: str(place) for place in places(scorers, tests, confidence)}
    return [row.model_copy(update={"ranks": ranks}) for _, row in rows]


def _corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    """The rows with p-values corrected by Holm."""
    tested = [n for n, row in enumerate(rows) if row.p_value is not None]
    adjusted = dict(zip(tested, holm([rows[n].p_value or 0.0 for n in tested]), strict=True))
    return [
        row.model_copy(update={"p_holm": float(adjusted[n]) if n in adjusted else None})
        for n, row in enumerate(rows)
    ]


def _comparison(pair: ScorePair, a: Results, b: Results, confidence: float) -> Comparison:
    found = pair_difference(pair, candidate=b, baseline=a, confidence=confidence)
    row = Comparison(
        task=pair.baseline.task,
        variant=pair.baseline.variant,
        metric=pair.baseline.metric,
        model=pair.model,
        result_a=str(a.path),
        result_b=str(b.path),
        value_a=pair.baseline.value,
        value_b=pair.candidate.value if pair.candidate else None,
        confidence=confidence,
    )
    if found is None:
        reason = why_missing(pair, b.path, (str(a.path), str(b.path)))
        return row.model_copy(update={"note": reason})
    note = found.note
    if math.isnan(found.difference.delta):
        note = note or "the answers allow no interval"
    return row.model_copy(
        update={
            **difference_fields(found.difference),
            "num_failed": found.num_failed,
            "note": "identical answers" if found.identical and not note else note,
        }
    )


def _mean_row(mean: SeedMean, a: Results, b: Results, confidence: float) -> Comparison:
    """The row of a mean over seeds, whose interval is for new seeds and new items."""
    found, record = mean.difference, mean.pairs[0].baseline
    values = [(pair.baseline.value or 0.0, _value(pair)) for pair in mean.pairs]
    return Comparison(
        task=record.task,
        variant=record.variant,
        metric=record.metric,
        model=f"{record.method}, mean of {found.num_seeds} seeds",
        result_a=str(a.path),
        result_b=str(b.path),
        value_a=fmean(ours for ours, _ in values),
        value_b=fmean(theirs for _, theirs in values),
        confidence=confidence,
        num_seeds=found.num_seeds,
        stderr_items=finite(found.within),
        sd_seeds=found.between,
        **difference_fields(mean.as_difference(0.0, confidence)),
    )


def _value(pair: ScorePair) -> float:
    return (pair.candidate.value if pair.candidate else None) or 0.0

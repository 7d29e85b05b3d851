"""What only a federation has, as records: clients, personal models, what was kept, sent and spent.

Every record is of one method under one seed. Intervals resample the rows of each client (the items
of a task) and take the clients and the trained models as given. Which is given where:

===========================  =================================================================
mean over clients, gains     percentiles of the bootstrap, each client resampled by itself and its
                             draws widened by sqrt(n / (n - 1)), their ends as Student's t is
                             (`mean_over_strata`); with a client of one row the means of the
                             clients' own ends
worst client, 10th           the same function of the clients' own ends, at a level at which all
percentile                   of them hold together (Šidák)
sd, Jain's index             Q-profile, which takes the noise in the clients' scores off their
                             spread (`heterogeneity`)
share of the gap             percentiles of the ratio; withheld where the gap may be 0
rounds and bytes to target   the first rounds whose intervals reach it by their ends
bytes, drift, memory         none: they are measured in whole
===========================  =================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedbench.metrics import Metric, get_metric
from fedbench.metrics.clients import SUMMARIES, Summary
from fedbench.metrics.metric import Array
from fedbench.results.contrasts import Contrast, contrast, mean_over_strata
from fedbench.results.heterogeneity import jain_of_spread, spread_interval
from fedbench.results.intervals import Interval, normal_quantile
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.results.resampling import SEED
from fedbench.results.run_records import Estimate, run_record
from fedbench.results.samples import Answers, SampleTable

CONFIDENCE = 0.95
Scores = Mapping[str, Contrast]
"""By client's group of items."""


def client_records(table: SampleTable, common: Mapping[str, Any]) -> Iterator[ScoreRecord]:
    """The spread of every model over the clients, and what own models gain over global ones.

    Args:
        table: the clients' held-out rows with the answers of models, a group per client.
        common: fields that all records share.
    """
    metric = get_metric(table.headline)
    fields = {"task_hash": table.task_hash, "task_version": table.task_version}
    for given in table.answers:
        scores = _client_scores(table, metric, [(1.0, given)])
        missing = len(table.groups or {}) - len(scores)
        for name, summary in SUMMARIES.items():
            estimate = _summary(scores, summary, name, metric, missing)
            yield run_record(common, given.model, table.task_key, name, estimate, **fields)
    for own in table.answers:
        for shared in table.answers:
            if own.model.model_kind in ("local", "client") and shared.model.model_kind == "global":
                yield run_record(
                    common,
                    own.model,
                    table.task_key,
                    "personalisation_gain",
                    _gain(table, metric, own, shared),
                    group=f"against {shared.model.method}",
                    **fields,
                )


def clients_of(records: Iterable[ScoreRecord]) -> Iterator[ScoreRecord]:
    """Scores by group as scores by client; a model of clients becomes that client's own."""
    for record in records:
        if record.group is None:
            continue  # of all rows together: large clients would count more
        client = int(record.group.rpartition("-")[2])
        own = record.model_kind in ("local", "client")
        yield record.model_copy(
            update={
                "group": None,
                "data_client": client,
                "model_client": client if own else None,
            }
        )


def _client_scores(
    table: SampleTable,
    metric: Metric,
    terms: Sequence[tuple[float, Answers]],
    confidence: float = CONFIDENCE,
) -> dict[str, Contrast]:
    """The sum of coefficient times score on each client's rows.

    Left out are clients of which a model answered nothing.
    """
    groups = table.groups or {}
    level = _level(len(groups), confidence)
    scores = {}
    for name, (start, end) in groups.items():
        rows = [n for n in range(start, end) if all(g.status[n] != "failed" for _, g in terms)]
        if rows:
            statistics = [
                (
                    coefficient,
                    metric,
                    metric.statistics([table.sample(given, n) for n in rows], table.labels or []),
                )
                for coefficient, given in terms
            ]
            scores[name] = contrast(statistics, None, level)
    return scores


def _level(num_clients: int, confidence: float = CONFIDENCE) -> float:
    """At which the intervals of all clients hold together (Šidák 1967)."""
    level: float = confidence ** (1 / max(num_clients, 1))
    return level


def _summary(scores: Scores, summary: Summary, name: str, metric: Metric, missing: int) -> Estimate:
    if not scores:
        return Estimate(math.nan, num_units=0, num_missing=missing)
    higher = metric.higher_is_better
    values = np.array([score.value for score in scores.values()])
    value = float(summary.of(values, higher))
    if name == "client_mean":
        interval: Interval | None = mean_over_strata(list(scores.values()), CONFIDENCE).interval
    elif summary.is_monotone:
        interval = _of_ends(scores, summary, higher)
    else:
        interval = _of_spread(scores, name, metric)
    return Estimate(value, interval, num_units=len(scores), num_missing=missing)


def _of_ends(scores: Scores, summary: Summary, higher: bool) -> Interval:
    """Where all clients lie within their intervals, a monotone function of them does as well."""
    low, high = (
        float(summary.of(np.array([getattr(s.interval, end) for s in scores.values()]), higher))
        for end in ("low", "high")
    )
    draws = summary.of(_draws(scores), higher)
    error = float(np.std(draws)) if len(draws) else math.nan
    return Interval(low, high, error, "simultaneous")


def _of_spread(scores: Scores, name: str, metric: Metric) -> Interval | None:
    values = np.array([score.value for score in scores.values()])
    errors = np.array([_error(score, _level(len(scores))) for score in scores.values()])
    known = np.isfinite([*values, *errors]).all()
    ends = spread_interval(values, errors, CONFIDENCE, metric.unit_range) if known else None
    if ends is None:
        return None
    if name == "client_jain":
        high, low = (jain_of_spread(float(values.mean()), end, len(values)) for end in ends)
        ends = low, high
    return Interval(*ends, math.nan, "q-profile")


def _error(score: Contrast, level: float) -> float:
    """Of one client's score, above 0 also where all its rows are right; NaN of a single row."""
    interval = score.interval
    if not len(score.draws):
        return math.nan
    if interval.stderr > 0:
        return interval.stderr
    return max(score.value - interval.low, interval.high - score.value) / normal_quantile(level)


def _draws(scores: Scores) -> Array:
    """(draws, clients), independent between clients: every contrast draws with the same seed."""
    shuffled = [
        np.random.default_rng([SEED, number]).permutation(score.draws)
        for number, score in enumerate(scores.values())
    ]
    kept = min(len(draws) for draws in shuffled)
    return np.column_stack([draws[:kept] for draws in shuffled])


def _gain(table: SampleTable, metric: Metric, own: Answers, shared: Answers) -> Estimate:
    sign = 1.0 if metric.higher_is_better else -1.0
    scores = _client_scores(table, metric, [(sign, own), (-sign, shared)])
    missing = len(table.groups or {}) - len(scores)
    if not scores:
        return Estimate(math.nan, num_units=0, num_missing=missing)
    mean = mean_over_strata(list(scores.values()), CONFIDENCE)
    return Estimate(mean.value, mean.interval, num_units=len(scores), num_missing=missing)


# What a training took


class RoundFacts(NamedTuple):
    """What the record of a round says."""

    drift: tuple[float, ...]
    """Of each client of the cohort."""
    cosine: float | None
    num_bytes: int
    """Up and down, until this round."""
    num_tokens: int
    """Of the samples used, until this round; 0 where it was not counted."""
    seconds: float | None
    peak_memory: int | None


def training_records(
    model: ModelId, rounds: Sequence[RoundFacts], common: Mapping[str, Any]
) -> Iterator[ScoreRecord]:
    """Drift, bytes and efficiency of one training, from its own records."""
    for name, estimate in _measured(rounds).items():
        yield run_record(common, model, "training", name, estimate)


def _measured(rounds: Sequence[RoundFacts]) -> dict[str, Estimate]:
    number = len(rounds)
    found: dict[str, Estimate] = {}
    drifts = [float(np.mean(one.drift)) for one in rounds if one.drift]
    if drifts:
        found["client_drift"] = Estimate(float(np.mean(drifts)), num_units=len(drifts))
    cosines = [one.cosine for one in rounds if one.cosine is not None]
    if cosines:
        found["update_cosine"] = Estimate(float(np.mean(cosines)), num_units=len(cosines))
    if number and rounds[-1].num_bytes:
        found["bytes_communicated"] = Estimate(float(rounds[-1].num_bytes), num_units=number)
    seconds = [one.seconds for one in rounds if one.seconds is not None]
    if seconds:
        found["seconds_per_round"] = _mean_of(seconds, "seconds_per_round")
    if number and len(seconds) == number and rounds[-1].num_tokens:
        speed = rounds[-1].num_tokens / max(sum(seconds), 1e-9)
        found["tokens_per_second"] = Estimate(speed, num_units=number)
    peaks = [one.peak_memory for one in rounds if one.peak_memory is not None]
    if peaks:
        found["peak_memory"] = Estimate(float(max(peaks)), num_units=len(peaks))
    return found


def _mean_of(values: Sequence[float], name: str) -> Estimate:
    """A mean over rounds with its interval."""
    statistics = np.column_stack([values, np.ones(len(values))])
    found = contrast([(1.0, get_metric(name), statistics)], None, CONFIDENCE)
    interval = found.interval if math.isfinite(found.interval.high) else None
    return Estimate(float(np.mean(values)), interval, num_units=len(values))

"""The regression check: is a candidate worse than a baseline by more than a margin?

The verdict comes from one interval per task, the paired difference of the headline metric
(positive where the candidate is better), and a margin m:

* ``ok``: the lower end lies above -m, or every answer is identical;
* ``regressed``: the upper end lies below -m, and Holm's correction over all comparisons of this
  check agrees;
* ``inconclusive``: neither; `CheckRecord.items_needed` says how many items would settle it;
* ``missing``: the candidate lacks the score, or it was withheld on either side.

``ok`` is per task: of many tasks that did get worse by exactly m, one in forty passes each time.
``regressed`` is over all of them: each interval is the inversion of a one-sided test of "worse by
at most m" at (1 - confidence) / 2, whose p-values are adjusted by Holm, so that the chance of any
false alarm stays at (1 - confidence) / 2 however many tasks there are. Pairs with identical
answers cannot raise an alarm and are not counted (Tarone 1990). McNemar's p and the smallest
detectable difference are printed beside and decide nothing.

Margins may differ by task (`margins`). Where a checkpoint was scored twice (`noise`), nothing is
called regressed that lies within what the checkpoint differed from itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import Field

from fedbench.errors import ConfigError, RecordError
from fedbench.results.differences import PairDifference, difference_fields, pair_difference
from fedbench.results.loading import load_results
from fedbench.results.margins import Margins, load_margins, refuse_open, refuse_unknown
from fedbench.results.noise import floors_of, read_noise
from fedbench.results.pairing import ScorePair, pair_scores, why_missing
from fedbench.results.record import SCHEMA, Record
from fedbench.results.seed_means import METHOD as SEEDS_AND_ITEMS
from fedbench.results.seed_means import SeedMean, mean_differences
from fedbench.results.statistics import Difference, holm, items_to_settle

Verdict = Literal["ok", "regressed", "inconclusive", "missing"]

SEVERITY: dict[Verdict, int] = {"ok": 0, "inconclusive": 1, "missing": 2, "regressed": 3}

EXIT_REGRESSED = 1
EXIT_INCONCLUSIVE = 3


class CheckRecord(Record):
    """The verdict on one model and one task."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    task: str
    variant: str | None = None
    metric: str
    model: str
    value: float | None
    """Of the candidate."""
    baseline_value: float | None
    delta: float | None = None
    """Positive where the candidate is better, also for metrics of which less is better."""
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str | None = None
    confidence: float
    margin: float
    """How much worse is tolerated, in units of the metric."""
    noise_floor: float | None = None
    """The largest difference that the baseline's checkpoint showed to itself, where that was
    measured: nothing smaller is called regressed."""
    verdict: Verdict
    p_value: float | None = None
    """Two-sided, of no difference; decides nothing."""
    smallest_detectable: float | None = None
    items_needed: int | None = None
    """Where inconclusive: items that would settle it with probability 0.8, if the difference is
    as observed; None where no number would, and of a mean over seeds."""
    num_better: int | None = None
    """Items on which the candidate is better; None where items have no values of their own."""
    num_worse: int | None = None
    effect: float | None = None
    """Mean over standard deviation of the items' differences (Cohen's d_z)."""
    num_items: int = 0
    """Items that both sides answered."""
    num_failed: int = 0
    """Items left out because no answer was obtained on one side or the other."""
    note: str | None = None


def check(
    candidate: Path,
    baseline: Path,
    max_drop: float | None = None,
    confidence: float = 0.95,
    *,
    margins: Path | None = None,
    over_seeds: bool = False,
) -> list[CheckRecord]:
    """Judge every headline score of the baseline's standing models against the candidate's.

    Args:
        candidate: a results directory, a ``scores.jsonl``, a baseline file, or what lm-eval wrote
            with ``--log_samples``.
        baseline: likewise; what it holds is what the candidate must hold.
        max_drop: the margin, in units of each metric: 0.01 (the default) is one point of accuracy.
        confidence: coverage of the intervals, as a share.
        margins: a file of margins by task (`Margins`); `max_drop` then goes before its default.
        over_seeds: judge the mean over seeds, for new seeds and new items, of each method that
            both sides hold under two or more; otherwise each model is judged as it is.

    Returns:
        One record per model (or method) and task of the baseline, in its order.

    Raises:
        ConfigError: a margin or the confidence is out of range, a margin is of no task, or lets
            everything pass.
        RecordError: a file is damaged, the two were not asked the same, or the baseline holds no
            headline score.
    """
    if max_drop is not None and not 0 <= max_drop < math.inf:
        raise ConfigError(f"max-drop is {max_drop}; give 0 or more, 0.01 for one point")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; give a share such as 0.95")
    tolerated = load_margins(margins) if margins else Margins()
    if max_drop is not None:
        tolerated = tolerated.model_copy(update={"default": max_drop})
    ours, theirs = load_results(baseline), load_results(candidate)
    pairs = [pair for pair in pair_scores(candidate=theirs, baseline=ours) if pair.headline]
    if not pairs:
        raise RecordError(f"{baseline}: holds no headline score; score at least one task for it")
    refuse_unknown(tolerated, {pair.baseline.task_key for pair in pairs}, margins)
    refuse_open(tolerated, [(pair.baseline.task_key, pair.baseline.metric) for pair in pairs])
    floors = floors_of(read_noise(baseline), pairs)
    blanks = [
        _blank(pair, tolerated.of(pair.baseline.task_key), floor, confidence)
        for pair, floor in zip(pairs, floors, strict=True)
    ]
    found = [
        pair_difference(pair, theirs, ours, _beyond(blank), confidence)
        for pair, blank in zip(pairs, blanks, strict=True)
    ]
    cases = [
        _Case(blank, differences, why_missing(pair, candidate) if differences is None else "")
        for pair, blank, differences in zip(pairs, blanks, found, strict=True)
    ]
    if over_seeds:
        cases = _merged(pairs, cases, mean_differences(pairs, theirs, ours, confidence))
    return _verdicts(cases)


@dataclass(frozen=True)
class _Case:
    """What one row of the check is about."""

    blank: CheckRecord
    found: PairDifference | None
    missing: str
    """Why there is no difference."""


def _merged(
    pairs: Sequence[ScorePair], cases: Sequence[_Case], means: Iterable[SeedMean]
) -> list[_Case]:
    """The cases with one in place of all seeds of a method, where its first seed stood.

    Seeds whose records contradict their items stay by themselves: a mean would hide them.
    """
    merged: list[_Case | None] = list(cases)
    position = {id(pair): number for number, pair in enumerate(pairs)}
    for mean in means:
        places = [position[id(pair)] for pair in mean.pairs]
        found = [case.found for case in (cases[place] for place in places) if case.found]
        if len(found) < len(places) or any(own.summary for own in found):
            continue
        first, *others = places
        merged[first] = _Case(*_mean_of(mean, cases[first].blank, found), "")
        for place in others:
            merged[place] = None
    return [case for case in merged if case is not None]


def _mean_of(
    mean: SeedMean, blank: CheckRecord, found: Sequence[PairDifference]
) -> tuple[CheckRecord, PairDifference]:
    ours = fmean(pair.baseline.value or 0.0 for pair in mean.pairs)
    theirs = fmean((pair.candidate and pair.candidate.value) or 0.0 for pair in mean.pairs)
    label = f"{mean.pairs[0].baseline.method}, mean of {len(mean.pairs)} seeds"
    named = {"model": label, "baseline_value": ours, "value": theirs}
    difference = PairDifference(
        mean.as_difference(_beyond(blank), blank.confidence),
        summary=None,
        num_failed=sum(own.num_failed for own in found),
        identical=all(own.identical for own in found),
        note=None,
    )
    return blank.model_copy(update=named), difference


def _verdicts(cases: Sequence[_Case]) -> list[CheckRecord]:
    found = [case.found for case in cases]
    # Two families: a record that was edited must not water down what the items show.
    families = [
        _adjusted({i: f.difference for i, f in enumerate(found) if f and not f.identical}),
        _adjusted({i: f.summary for i, f in enumerate(found) if f and f.summary}),
    ]
    records = []
    for index, case in enumerate(cases):
        blank, differences = case.blank, case.found
        if differences is None:
            records.append(blank.model_copy(update={"verdict": "missing", "note": case.missing}))
            continue
        judged = [
            _judged(blank, *family[index], len(family)) for family in families if index in family
        ]
        if differences.identical:
            judged.insert(0, _filled(blank, differences.difference, "ok", "identical answers"))
        standing = max(judged, key=lambda record: SEVERITY[record.verdict])
        records.append(_annotated(standing, differences))
    return records


def exit_code(records: Sequence[CheckRecord], strict: bool = False) -> int:
    """1 where anything regressed or is missing, 3 where strict and inconclusive, else 0."""
    verdicts = {record.verdict for record in records}
    if verdicts & {"regressed", "missing"}:
        return EXIT_REGRESSED
    if strict and "inconclusive" in verdicts:
        return EXIT_INCONCLUSIVE
    return 0


def _adjusted(tests: Mapping[int, Difference]) -> dict[int, tuple[Difference, float]]:
    """Each comparison with its one-sided p-value, corrected by Holm for the others."""
    p_values = holm([test.p_regressed for test in tests.values()])
    return {
        index: (test, float(p)) for (index, test), p in zip(tests.items(), p_values, strict=True)
    }


def _judged(blank: CheckRecord, test: Difference, adjusted: float, num_tests: int) -> CheckRecord:
    margin, alpha = blank.margin, (1 - blank.confidence) / 2
    if math.isnan(test.delta):
        return _filled(blank, test, "missing", "the metric is undefined on these answers")
    if test.low > -margin:
        return _filled(blank, test, "ok")
    if test.high < -_beyond(blank) and adjusted <= alpha:
        return _filled(blank, test, "regressed")
    if -_beyond(blank) <= test.high < -margin:
        explained = "beyond the margin, but not beyond what the same checkpoint differs from itself"
        return _filled(blank, test, "inconclusive", explained)
    confidence, note = blank.confidence, None
    if test.high < -margin:
        confidence = 1 - (1 - confidence) / num_tests
        note = f"beyond the margin by itself, not among {num_tests} comparisons (Holm)"
    elif math.isnan(test.stderr):
        note = "no standard error was recorded"
    needed = None
    if test.method != SEEDS_AND_ITEMS:  # what training adds does not shrink with the items
        needed = items_to_settle(test.delta, test.stderr, test.num_items, margin, confidence)
    record = _filled(blank, test, "inconclusive", note)
    return record.model_copy(update={"items_needed": needed})


def _beyond(blank: CheckRecord) -> float:
    """How far below 0 a difference must lie to be called regressed."""
    return max(blank.margin, blank.noise_floor or 0.0)


def _blank(
    pair: ScorePair, margin: float, noise_floor: float | None, confidence: float
) -> CheckRecord:
    return CheckRecord(
        task=pair.baseline.task,
        variant=pair.baseline.variant,
        metric=pair.baseline.metric,
        model=pair.model,
        value=pair.candidate.value if pair.candidate else None,
        baseline_value=pair.baseline.value,
        confidence=confidence,
        margin=margin,
        noise_floor=noise_floor,
        verdict="missing",
    )


def _filled(
    blank: CheckRecord, test: Difference, verdict: Verdict, note: str | None = None
) -> CheckRecord:
    fields = difference_fields(test)
    return blank.model_copy(update={**fields, "verdict": verdict, "note": note})


def _annotated(record: CheckRecord, found: PairDifference) -> CheckRecord:
    notes = [note for note in (record.note, found.note) if note]
    return record.model_copy(
        update={"num_failed": found.num_failed, "note": "; ".join(notes) or None}
    )

"""Verdicts of the check in words, for the terminal, a pull request and a test report alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedbench.results.check import SEVERITY, CheckRecord, Verdict
from fedbench.results.differences import in_points
from fedbench.results.record import task_key

SYMBOLS: dict[Verdict, str] = {"ok": "✓", "regressed": "✗", "inconclusive": "?", "missing": "∅"}


def score_name(task: str, variant: str | None, metric: str) -> str:
    """``fpb accuracy``, or ``fpb:fingpt accuracy`` for a variant."""
    return f"{task_key(task, variant)} {metric}"


def number(value: float | None, metric: str) -> str:
    """A score for people: shares in points, others as they are, absent as a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if in_points(metric) else f"{value:.3g}"


def tolerance(margin: float, metric: str) -> str:
    """A margin for people: as `number` writes it, with more digits where these would change it."""
    size = 100 * margin if in_points(metric) else margin
    rounded = number(margin, metric)
    return rounded if math.isclose(float(rounded), size) else f"{size:.3g}"


def change(value: float | None, metric: str) -> str:
    """A difference for people, with its sign."""
    if value is None:
        return "–"
    return format(100 * value, "+.1f") if in_points(metric) else format(value, "+.3g")


def with_interval(delta: float | None, low: float | None, high: float | None, metric: str) -> str:
    """A difference and its interval: ``-1.2 [-2.5, +0.1]``, in points where it is of shares."""
    if delta is None:
        return "–"
    return f"{change(delta, metric)} [{change(low, metric)}, {change(high, metric)}]"


def why(record: CheckRecord) -> str:
    """Why the verdict is what it is, in one sentence that names the numbers."""
    unit = " points" if in_points(record.metric) else ""
    margin = f"{tolerance(record.margin, record.metric)}{unit}"
    level = f"{100 * record.confidence:g} %"
    if record.verdict == "missing" or record.delta is None:
        return record.note or "there is no score to compare"
    if record.note and record.note.startswith("identical answers"):
        return record.note
    if record.verdict == "regressed":
        end = _end(record.ci_high, record).removeprefix("-")
        return f"worse by at least {end}{unit} ({level}), and {margin} are tolerated"
    if record.verdict == "ok":
        low = record.ci_low or 0.0
        if low >= 0:
            return f"no worse ({level})"
        return f"worse by at most {number(-low, record.metric)}{unit} ({level}), within {margin}"
    if record.note:
        return record.note
    ends = " to ".join(_end(end, record) for end in (record.ci_low, record.ci_high))
    return f"anything from {ends}{unit} is possible ({level}), and the margin is {margin}"


def _end(value: float | None, record: CheckRecord) -> str:
    """An end of an interval, with more digits where rounding would put it on the margin."""
    if value is None:
        return change(value, record.metric)
    scale, kind, digits = (100, "f", 1) if in_points(record.metric) else (1, "g", 3)
    for more in range(4):
        form = f"+.{digits + more}{kind}"
        text = format(scale * value, form)
        if value == -record.margin or text != format(-scale * record.margin, form):
            return text
    return change(value, record.metric)


def remarks(record: CheckRecord) -> list[str]:
    """What else is to be said of a row, beside `why`."""
    said = []
    if record.note and record.note != why(record):
        said.append(record.note)
    if record.num_failed:
        said.append(f"{record.num_failed:,} items failed and are left out")
    if record.items_needed is not None:
        items = f"{record.num_items:,} item{'s' if record.num_items != 1 else ''}"
        said.append(f"{items}; about {_rounded(record.items_needed)} would do")
    floor = record.noise_floor
    if floor is not None and floor > record.margin:
        text = number(floor, record.metric)
        said.append(f"the same checkpoint differs from itself by up to {text} when scored again")
    return said


def _rounded(count: int) -> str:
    """Three digits: the number hangs on a difference that is itself uncertain."""
    if count >= 1_000_000:
        return "millions"
    return f"{round(count, min(0, 3 - len(str(count)))):,}"


def worst_first(records: Sequence[CheckRecord]) -> list[CheckRecord]:
    """By verdict, and within one the largest drop first."""
    return sorted(records, key=lambda record: (-SEVERITY[record.verdict], record.ci_high or 0.0))


def tally(records: Sequence[CheckRecord]) -> str:
    """``1 regressed, 2 inconclusive, 27 ok``: the worst first."""
    order: tuple[Verdict, ...] = ("regressed", "missing", "inconclusive", "ok")
    counts = {verdict: sum(r.verdict == verdict for r in records) for verdict in order}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)

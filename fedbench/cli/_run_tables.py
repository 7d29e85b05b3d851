"""Tables of records that are of a whole run: a row per method, a column per metric."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fedbench.cli._output import say

if TYPE_CHECKING:
    from rich.table import Table

    from fedbench.results.record import ScoreRecord


def print_run_tables(title: str, records: Sequence[ScoreRecord]) -> None:
    """One table per task, means over seeds; scores of single clients are in the records only."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    console.print(title, style="bold")
    for task in dict.fromkeys(record.task for record in records):
        everything = [record for record in records if record.task == task]
        own = [record for record in everything if record.data_client is None]
        of_clients = [record for record in everything if record.data_client is not None]
        console.print(Text(f"\n{_heading(own, of_clients)}", style="bold"))
        for table in _tables(own, console.width):
            console.print(table)
    say("In brackets: 95 % intervals, or least and most over seeds; docs/federation_metrics.md.")


def _heading(records: Sequence[ScoreRecord], of_clients: Sequence[ScoreRecord]) -> str:
    """The task, and where its numbers are of clients' scores, what was scored."""
    keys = {record.task_key for record in records}
    name = keys.pop() if len(keys) == 1 else records[0].task
    own = {record.metric for record in records}
    scored = next((record for record in of_clients if record.metric not in own), None)
    if scored is None:
        return name
    return f"{name}: {scored.metric}" + ("" if scored.higher_is_better else ", lower is better")


def _tables(records: Sequence[ScoreRecord], width: int) -> list[Table]:
    """One table, or several with fewer columns where the terminal is narrow."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    labels = list(dict.fromkeys(_label(record) for record in records))
    margin = max(len(label) for label in labels) + 4
    parts: list[list[tuple[str, list[str]]]] = [[]]
    used = margin
    for heading, cells in _columns(records, labels):
        # A space on each side, and one between columns.
        needed = max(len(line) for text in (heading, *cells) for line in text.split("\n")) + 3
        if parts[-1] and used + needed > width:
            parts.append([])
            used = margin
        parts[-1].append((heading, cells))
        used += needed
    tables = []
    for part in parts:
        tables.append(Table(box=box.SIMPLE_HEAD))
        tables[-1].add_column("method", no_wrap=True)
        for heading, _ in part:
            tables[-1].add_column(Text(heading), justify="right", no_wrap=True)
        for number, label in enumerate(labels):
            tables[-1].add_row(label, *(Text(cells[number]) for _, cells in part))
    return tables


def _columns(
    records: Sequence[ScoreRecord], labels: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Heading and cells of every metric, and of its groups behind them."""
    columns = list(dict.fromkeys((record.metric, record.group) for record in records))
    columns.sort(key=lambda column: column[1] is not None)  # whole before parts
    for metric, group in columns:
        own = [record for record in records if (record.metric, record.group) == (metric, group)]
        cells = [_cell([record for record in own if _label(record) == label]) for label in labels]
        yield metric + (f"\n{group}" if group else ""), cells


def _label(record: ScoreRecord) -> str:
    own = {"local": ", each client's own", "client": ", each client's own"}
    return record.method + own.get(record.model_kind, "")


def _cell(records: Sequence[ScoreRecord]) -> str:
    """The mean over seeds; where some have no value, with how many have."""
    values = [record.value for record in records if record.value is not None]
    if not values:
        return "–" if records else ""
    ends: tuple[float | None, float | None] = (min(values), max(values))
    if len(records) == 1:
        ends = (records[0].ci_low, records[0].ci_high)
    show = _format_of(records[0].metric)
    text = show(statistics.fmean(values))
    if ends != (None, None):
        text += f" [{', '.join('–' if end is None else show(end) for end in ends)}]"
    # Of rounds to a target those seeds are left that were quick: their mean is not the method's.
    return text + (
        "" if len(values) == len(records) else f" ({len(values)} of {len(records)} seeds)"
    )


def _format_of(metric: str) -> Callable[[float], str]:
    from fedbench.metrics import find_metric

    known = find_metric(metric)
    return _size if known is not None and known.unit == "bytes" else _three_digits


def _three_digits(number: float) -> str:
    if abs(number) < 1e-12:  # what rounding leaves of a difference of equal scores
        return "0"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"

"""``fedbench compare``: two results side by side, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fedbench.cli._output import json_option, print_json


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option
def command(a: Path, b: Path, as_json: bool) -> None:
    """Compare the scores in A and B on the items they share.

    A and B are results directories or scores.jsonl files. Differences are positive where B is
    better. For a verdict, and an exit code for CI, see `fedbench check`.
    """
    from fedbench.results.comparison import compare

    records = compare(a, b)
    if as_json:
        print_json(record.to_json() for record in records)
        return
    rows = [
        [
            record.task if record.variant is None else f"{record.task}:{record.variant}",
            record.metric,
            record.model,
            number(record.value_a, record.metric),
            number(record.value_b, record.metric),
            with_interval(record.delta, record.ci_low, record.ci_high, record.metric),
            "–" if record.p_value is None else f"{record.p_value:.2g}",
            number(record.smallest_detectable, record.metric),
            record.note or "",
        ]
        for record in records
    ]
    print_table(
        ["task", "metric", "model", "A", "B", "B better by", "p", "detectable", ""],
        rows,
        "Shares in points; p is not corrected for the number of rows.",
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """A table for people on stdout; remarks in the last column wrap, numbers never do."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=caption, caption_justify="left")
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1])
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    # A pipe has no width, and numbers that were cut off are of no use in a log.
    console.print(table, width=None if console.is_terminal else 200)


def number(value: float | None, metric: str) -> str:
    """A score for people: shares in points, others as they are, absent as a dash."""
    from fedbench.results.comparison import in_points

    if value is None:
        return "–"
    return f"{100 * value:.1f}" if in_points(metric) else f"{value:.3g}"


def with_interval(delta: float | None, low: float | None, high: float | None, metric: str) -> str:
    """A difference and its interval: ``-1.2 [-2.5, +0.1]``, in points where it is of shares."""
    from fedbench.results.comparison import in_points

    if delta is None:
        return "–"
    scale, digits = (100, ".1f") if in_points(metric) else (1, ".3g")
    value, *ends = (
        "–" if part is None else format(scale * part, f"+{digits}") for part in (delta, low, high)
    )
    return f"{value} [{ends[0]}, {ends[1]}]"

"""``fedbench leaderboard``: show a leaderboard, or the table of a results directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedbench.cli._output import json_option, print_json, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from fedbench.results.samples import Results
    from fedbench.results.table import Table, View


@click.command("leaderboard")
@click.argument("name")
@click.option(
    "--write",
    "write_to",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[DIR]",
    help="Write README.md, index.html and tables (CSV, LaTeX, JSON) into DIR [beside the records].",
)
@click.option(
    "--add",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="RUN",
    help="Hand in a run: check it against the rules, then copy its records in.",
)
@click.option(
    "--with-items",
    is_flag=True,
    help="Write items.html: the page with prompts and answers. It is not for publishing.",
)
@json_option
def command(
    name: str, write_to: str | None, add: Path | None, with_items: bool, as_json: bool
) -> None:
    """Show leaderboard NAME: a name, its directory, or a directory with scores.jsonl."""
    from fedbench.results.leaderboard import build
    from fedbench.results.published import read_published
    from fedbench.results.specification import find_leaderboard, read_leaderboard

    directory = find_leaderboard(name)
    if add is not None:
        from fedbench.results.submission import add as add_submission

        say(f"added {add} as {add_submission(directory, add)}")
    spec, results = read_leaderboard(directory)
    if write_to is None and as_json and not with_items:
        print_json(score.to_json() for result in results for score in result.scores)
        return
    table = build(spec, results, read_published(directory))
    place = Path(write_to) if write_to else directory
    if write_to is not None:
        from fedbench.results.page import write_report

        say(f"wrote {write_report(place, table)}")
    if with_items:
        _write_items(place, table, results)
    if as_json:
        print_json(score.to_json() for result in results for score in result.scores)
    else:
        print_table(table)


def _write_items(place: Path, table: Table, results: list[Results]) -> None:
    from fedbench.results.items import shown_items
    from fedbench.results.page import write_local_page

    items, lacking = shown_items(table, results)
    for sentence in lacking:
        say(sentence)
    say(f"wrote {write_local_page(place, table, items)} (texts of items: keep it to yourself)")


def print_table(table: Table) -> None:
    """Findings, the headline tables and how to read them, on stdout."""
    from rich.console import Console
    from rich.text import Text

    from fedbench.results.wording import findings, footnotes

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    console.print(table.title, style="bold")
    for sentence in findings(table):
        console.print(sentence)
    _print_published(console, table)
    if not table.rows:
        return
    for view in table.views:
        if view.headline:
            console.print(Text(f"\n{view.title}", style="bold"))
            for part in _rich_tables(table, view, console.width):
                console.print(part)
    for note in footnotes(table):
        console.print(Text(note, style="dim"))
    others = [view.title for view in table.views if not view.headline]
    if others:
        say(f"also scored: {'; '.join(others)} (shown on the page: --write)")


def _print_published(console: Console, table: Table) -> None:
    """Published numbers beside ours, one line per method and column."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    from fedbench.results.beside import published_table
    from fedbench.results.wording import how_to_fill

    beside = published_table(table)
    if beside is None:
        return
    drawn = RichTable(box=box.SIMPLE_HEAD)
    for heading in ("method", "score", "published", "here"):
        drawn.add_column(heading, no_wrap=True)
    for label, pairs in beside.rows:
        for heading, (printed, ours) in zip(beside.columns, pairs, strict=True):
            if printed != "—":
                drawn.add_row(Text(label), Text(heading), Text(printed), Text(ours))
    console.print(drawn)
    for text in (*beside.sources, *beside.missing):
        console.print(Text(text, style="dim"))
    if not table.rows:
        console.print(Text(how_to_fill(table).replace("`", "")))


def _rich_tables(table: Table, view: View, width: int) -> list[RichTable]:
    """The view in one table, or in several with fewer columns where the terminal is narrow."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    from fedbench.results.table import FEDERATED

    labels = [Text(r.label, style="bold" if r.kind in FEDERATED else "") for r in table.rows]
    margin = max(len(label) for label in labels) + 4
    parts: list[list[tuple[str, list[Text]]]] = [[]]
    used = margin
    for heading, texts in _columns(table, view):
        lines = [heading, *(line for text in texts for line in text.plain.split("\n"))]
        needed = max(len(line) for line in lines) + 3  # a space on each side, and between
        if parts[-1] and used + needed > width:
            parts.append([])
            used = margin
        parts[-1].append((heading, texts))
        used += needed
    drawn = []
    for part in parts:
        drawn.append(RichTable(box=box.SIMPLE_HEAD))
        drawn[-1].add_column("method", no_wrap=True)
        for heading, _ in part:
            drawn[-1].add_column(Text(heading), justify="right", no_wrap=True)
        for number, label in enumerate(labels):
            drawn[-1].add_row(label, *(texts[number] for _, texts in part))
    return drawn


def _columns(table: Table, view: View) -> list[tuple[str, list[Text]]]:
    """Heading and cells of every column after the method."""
    from rich.text import Text

    from fedbench.results.wording import (
        cell_text,
        has_mean_ranks,
        has_ranks,
        mean_rank_text,
        rank_text,
        share,
        size,
        spread_text,
        trained_on,
    )

    columns = []
    if has_ranks(table, view):
        columns.append(("rank", [Text(rank_text(table, row)) for row in table.rows]))
    if has_mean_ranks(table, view):
        columns.append(("mean rank", [Text(mean_rank_text(table, row)) for row in table.rows]))
    for column in view.columns:
        texts = []
        for row in table.rows:
            cell = row.cells[column]
            spread = spread_text(cell, column)
            texts.append(Text(cell_text(cell, column)))
            if spread:
                texts[-1].append("\n" + spread.replace("; ", "\n"), style="dim")
        columns.append((column.title + f" {column.unit}".rstrip(), texts))
    rows = table.rows
    columns.append(("trained on", [Text(trained_on(r)) for r in rows]))
    columns.append(("sent", [Text(size(r.bytes_communicated)) for r in rows]))
    counts = [row.counted(view.tasks) for row in rows]
    columns.append(("unparsed", [Text(share(c.num_unparsed, c.num_answers)) for c in counts]))
    columns.append(("failed", [Text(share(c.num_failed, c.num_answers)) for c in counts]))
    return columns

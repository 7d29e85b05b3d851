"""``fedbench partition``: how a run's rows would be split over its clients."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedbench.cli._output import json_option, print_json, say
from fedbench.cli._run_options import load_run, run_argument, set_option

if TYPE_CHECKING:
    from rich.text import Text

    from fedbench.config import RunConfig
    from fedbench.data.partition_summary import ClientSummary, PartitionSummary

PICTURES = (".svg", ".png")
MOST_LINES = 100
"""Clients that are listed in the terminal."""
MOST_COUNTED = 3
"""Labels whose counts are written out per client."""
SIZE_BAR, LABEL_BAR = 6, 16


@click.command("partition")
@run_argument
@set_option
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only this seed [those of the run].",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the splits into FILE.svg or FILE.png.",
)
@json_option
def command(
    run_file: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Show which rows and labels each client of RUN.yaml would get.

    Rows are loaded and split as in training, and nothing is trained.
    """
    if output is not None and output.suffix.lower() not in PICTURES:
        raise click.BadParameter(
            f"{output} is not a picture; give a name that ends in .svg or .png",
            param_hint="--output",
        )
    config, _ = load_run(run_file, overrides, None)
    summaries = _summaries(config, config.seeds if seed is None else (seed,))
    if as_json:
        print_json(summary.to_json() for summary in summaries)
    else:
        for summary in summaries:
            _print(summary)
    if output is not None:
        _write(output, summaries)
        say(f"wrote {output}")


def _summaries(config: RunConfig, seeds: Sequence[int]) -> list[PartitionSummary]:
    from fedbench.data.partition import partition
    from fedbench.data.partition_summary import summarise
    from fedbench.run_data import load_data

    data = load_data(config)
    if data.num_dropped:
        say(f"{data.num_dropped} training rows share a scored item and were left out")
    rule = _in_short(config.data.partition.model_dump(mode="json"))
    return [
        summarise(
            data.examples,
            partition(data.examples, config.federation.num_clients, config.data, seed),
            rule,
            seed,
        )
        for seed in seeds
    ]


def _in_short(rule: dict[str, Any]) -> str:
    """``dirichlet alpha 0.5``: the rule and its fields."""
    fields = [
        f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in rule.items()
        if name != "by"
    ]
    return ", ".join([rule["by"], *fields]).replace(", ", " ", 1)


def _write(output: Path, summaries: Sequence[PartitionSummary]) -> None:
    from fedbench.errors import OutputError
    from fedbench.results.partition_figure import partition_png, partition_svg

    is_svg = output.suffix.lower() == ".svg"
    picture = partition_svg(summaries).encode() if is_svg else partition_png(summaries)
    try:
        output.write_bytes(picture)
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error}); choose another --output"
        ) from error


def _print(summary: PartitionSummary) -> None:
    """The split as a table with a bar per client, and a line of what it amounts to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedbench.data.partition_summary import shorten, shown_labels

    # A pipe has no width, and numbers that were cut off are of no use in a log.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    marks = _marks(shown_labels(summary), in_colour=console.color_system is not None)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("client", "train", "val.", "test"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("size", no_wrap=True)
    if marks:
        table.add_column("labels", no_wrap=True)
        table.add_column("", no_wrap=True)
    for client in summary.clients[:MOST_LINES]:
        counts = (client.num_train, client.num_validation, client.num_test)
        row: list[str | Text] = [str(client.client), *(f"{count:,}" for count in counts)]
        row.append("▆" * max(1, round(SIZE_BAR * client.num_train / max(summary.sizes))))
        if marks:
            row += [_label_bar(client, marks), _label_counts(client)]
        table.add_row(*row)
    console.print(f"{summary.rule}, seed {summary.seed}", style="bold")
    if marks:
        names = (
            Text.assemble((mark, colour), f" {shorten(name)}")
            for name, (mark, colour) in marks.items()
        )
        console.print(Text("  ").join(names))
    console.print(table)
    if len(summary.clients) > MOST_LINES:
        rest = len(summary.clients) - MOST_LINES
        console.print(f"… and {rest:,} more clients; --json has them all")
    console.print(_in_words(summary), soft_wrap=True)
    console.print()


def _marks(labels: Sequence[str], *, in_colour: bool) -> dict[str, tuple[str, str]]:
    """What a label is drawn with: a colour, or a letter where there is none."""
    from fedbench.data.partition_summary import OTHER
    from fedbench.results.drawing import GREY, PALETTE

    # Six more of Paul Tol's, for when the first six are used up.
    colours = (*PALETTE, "#ddaa33", "#aa4499", "#bbcc33", "#ffaabb", "#99ddff", "#332288")
    if not in_colour:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return {
            label: ("·" if label == OTHER else letter, "")
            for label, letter in zip(labels, letters, strict=False)
        }
    return {
        label: ("█", GREY if label == OTHER else colour)
        for label, colour in zip(labels, (*colours, GREY), strict=False)
    }


def _label_bar(client: ClientSummary, marks: dict[str, tuple[str, str]]) -> Text:
    """The client's training rows in pieces as large as its labels."""
    from rich.text import Text

    from fedbench.data.partition_summary import fold

    bar, done, drawn = Text(), 0, 0
    counts = fold(client.labels, list(marks))
    for (mark, colour), count in zip(marks.values(), counts, strict=True):
        done += count
        end = round(LABEL_BAR * done / max(sum(counts), 1))
        bar.append(mark * (end - drawn), colour)
        drawn = end
    return bar


def _label_counts(client: ClientSummary) -> str:
    from fedbench.data.partition_summary import by_frequency, shorten

    ordered = [f"{shorten(label)} {n:,}" for label, n in by_frequency(client.labels).items()]
    text = ", ".join(ordered[:MOST_COUNTED])
    rest = len(ordered) - MOST_COUNTED
    return f"{text}, {rest} more" if rest > 0 else text


def _in_words(summary: PartitionSummary) -> str:
    numbers = summary.to_json()
    lines = [
        f"{len(summary.clients):,} clients, {summary.num_rows:,} rows used, "
        f"{summary.num_left_out:,} left out, {summary.num_duplicates:,} duplicates, "
        f"{summary.num_straddling:,} texts with several clients",
        f"training rows: smallest {numbers['min_train']:,}, median {numbers['median_train']:,g}, "
        f"largest {numbers['max_train']:,}",
    ]
    if summary.distance is not None:
        lines.append(
            f"labels of a client: distance {summary.distance:.3f} from all (0 is IID), "
            f"{summary.effective_labels:.2f} effective labels of "
            f"{summary.effective_labels_pooled:.2f}"
        )
    return "\n".join(lines)

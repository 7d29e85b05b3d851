"""``fedbench train-and-eval``: the main job, from a run file to a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedbench.cli._output import json_option, print_json, say
from fedbench.cli._progress import Progress, progress_bars
from fedbench.cli._run_options import (
    command_line,
    load_run,
    needs_training_packages,
    output_option,
    preset_option,
    run_argument,
    set_option,
    tell_rows,
)

if TYPE_CHECKING:
    from fedbench.results.record import ScoreRecord
    from fedbench.results.table import Table


@click.command("train-and-eval")
@run_argument
@set_option
@preset_option
@output_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    run_file: str | None,
    overrides: tuple[str, ...],
    preset: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Train a federation, score it, show the table and write a page.

    Without RUN.yaml it runs the embedded default: made-up headlines over six clients, on a small
    Llama made on the spot. Run the same command again to go on where it stopped.
    """
    config, directory = load_run(run_file, overrides, output, preset)
    needs_training_packages("training")
    started = time.monotonic()
    from fedbench.cli._run_tables import print_run_tables
    from fedbench.federated.crew import refuse_crew
    from fedbench.results.leaderboard import build
    from fedbench.results.page import write_report
    from fedbench.results.samples import read_results
    from fedbench.results.specification import spec_for
    from fedbench.run import score_run, train

    refuse_crew("train-and-eval")
    audit_of = {"federation": _federation, "privacy": _privacy}
    sets = [part for override in overrides for part in ("--set", override)]
    sets += ["--preset", preset] if preset else []
    line = command_line(context, run_file, *sets)
    with progress_bars() as progress:
        train(config, directory, progress, line)
        records = score_run(config, directory, progress, line)
        audits = {
            name: audit_of[name](directory, progress, line) for name in config.evaluation.audits
        }
    results = read_results(directory)
    table = build(spec_for(results.run, results.scores), [results])
    page = write_report(directory, table)
    if as_json:
        every = [*records, *(record for own in audits.values() for record in own)]
        print_json(record.to_json() for record in every)
    else:
        _show(table)
        for name, own in audits.items():
            print_run_tables(f"\nSuite {name}", own)
    seeds = f"seed{'s' if len(config.seeds) > 1 else ''} {', '.join(map(str, config.seeds))}"
    tell_rows(directory, config.data.max_length)
    done = f"{len(config.methods)} methods, {seeds}, in {directory}"
    say(f"{config.name}: {done}, took {time.monotonic() - started:.0f} s")
    click.echo(f"page: {page.resolve()}", err=as_json)


def _show(table: Table) -> None:
    from fedbench.cli.leaderboard import print_table
    from fedbench.results import plot

    print_table(table)
    for panel in plot.panels(table):
        click.echo(f"\n{plot.terminal_curve(panel)}")


def _federation(directory: Path, progress: Progress, line: str) -> list[ScoreRecord]:
    from fedbench.federation import measure_federation

    return measure_federation(directory, progress=progress, command=line)


def _privacy(directory: Path, progress: Progress, line: str) -> list[ScoreRecord]:
    from fedbench.privacy_audit import audit_privacy

    return audit_privacy(directory, progress=progress, command=line)

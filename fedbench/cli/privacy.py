"""``fedbench privacy``: what the models of a run give away about the rows they learned from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedbench.cli._output import json_option, print_json, say
from fedbench.cli._progress import progress_bars
from fedbench.cli._run_options import needs_training_packages


@click.command("privacy")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="N",
    help="At most N training rows, and N others, of each client.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Other secrets that each planted one is ranked among.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="[RUN/privacy]")
@json_option
def command(run: Path, rows: int, candidates: int, output: Path | None, as_json: bool) -> None:
    """Attack the models of RUN, a trained run's directory.

    Membership inference tells a client's training rows from its test and validation rows. Where
    the run planted secrets (data.canaries), their exposure is measured and they are asked for.
    """
    needs_training_packages("asking the models of a run")
    from fedbench.cli._run_tables import print_run_tables
    from fedbench.privacy_audit import DIRECTORY, audit_privacy

    with progress_bars() as progress:
        records = audit_privacy(
            run,
            rows=rows,
            candidates=candidates,
            output=output,
            progress=progress,
            command="fedbench " + " ".join(sys.argv[1:]),
        )
    if as_json:
        print_json(record.to_json() for record in records)
    else:
        print_run_tables(f"{run}: what its models give away", records)
    say(f"records: {output or run / DIRECTORY}")

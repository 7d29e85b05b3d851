"""``fedbench train``: train every method and seed of a run file."""

from __future__ import annotations

from pathlib import Path

import click

from fedbench.cli._output import say
from fedbench.cli._progress import progress_bars
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


@click.command("train")
@run_argument
@set_option
@preset_option
@output_option
@click.option("--dry-run", is_flag=True, help="Say what it would take; train and write nothing.")
@click.pass_context
def command(
    context: click.Context,
    run_file: str | None,
    overrides: tuple[str, ...],
    preset: str | None,
    output: Path | None,
    dry_run: bool,
) -> None:
    """Train every method and seed of RUN.yaml (the embedded default without one).

    Rounds are checkpointed as PEFT adapters; run the same command again to go on.
    """
    config, directory = load_run(run_file, overrides, output, preset)
    needs_training_packages("training")
    if dry_run:
        from fedbench.estimate import estimate

        click.echo(estimate(config).describe())
        return
    from fedbench.federated.crew import follows
    from fedbench.run import train

    sets = [part for override in overrides for part in ("--set", override)]
    sets += ["--preset", preset] if preset else []
    line = command_line(context, run_file, *sets)
    with progress_bars() as progress:
        train(config, directory, progress, line)
    if follows():
        return  # the process that gave the orders tells
    tell_rows(directory, config.data.max_length)
    say(f"trained {', '.join(m.name for m in config.methods)}, seeds {list(config.seeds)}")
    click.echo(directory)

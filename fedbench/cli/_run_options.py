"""Options that the commands which take a run file share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedbench.config import RunConfig

run_argument = click.argument("run_file", metavar="[RUN.yaml]", required=False)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the run file, e.g. local.max_steps=2 or seeds=[0,1,2].",
)
preset_option = click.option(
    "--preset",
    metavar="NAME",
    help="Conventions of another system beneath the run file's own keys, e.g. openfedllm.",
)
output_option = click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Run directory [runs/<name>]."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Share the questions among N engines, by Ray (docs/several_gpus.md) [no Ray].",
)
worker_gpus_option = click.option(
    "--worker-gpus",
    type=click.FloatRange(min=0),
    metavar="G",
    help="GPUs of each worker, or a part of one [1 where there are GPUs].",
)
ray_address_option = click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="A Ray cluster that runs already, or auto [$RAY_ADDRESS, else this machine].",
)
DEFAULT_RUN = ("leaderboards", "demo/run.yaml")


def load_run(
    run_file: str | None,
    overrides: tuple[str, ...],
    output: Path | None,
    preset: str | None = None,
) -> tuple[RunConfig, Path]:
    """The run's configuration (the embedded default without a file) and its directory."""
    from fedbench import resources
    from fedbench.config import load_config

    path = Path(run_file) if run_file else resources.directory(DEFAULT_RUN[0]) / DEFAULT_RUN[1]
    config = load_config(path, overrides, preset)
    return config, output or Path("runs") / config.name


def needs_training_packages(purpose: str) -> None:
    """Refuse early, in words, where the `train` extra is absent.

    Raises:
        MissingExtraError: torch, transformers or peft is not installed.
    """
    import importlib.util

    from fedbench.errors import MissingExtraError

    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")):
        raise MissingExtraError(purpose, "train")


def said(**options: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def tell_rows(directory: Path, longest: int) -> None:
    """Say what was left out of the training rows, or cut.

    Args:
        directory: of the run.
        longest: tokens of a training sequence (``data.max_length``).
    """
    from fedbench.cli._output import say
    from fedbench.results.record import read_run

    record = read_run(directory)
    facts = record.facts if record else {}
    if dropped := facts.get("dropped_rows"):
        say(f"{dropped} training rows share a scored item and were left out")
    if cut := facts.get("sequences_cut"):
        say(f"{cut:,} training sequences were longer than data.max_length ({longest}) and were cut")
    if empty := facts.get("sequences_without_answer"):
        say(f"{empty:,} of them lost their whole answer, and nothing is learned from them")


def command_line(context: click.Context, *parts: Any) -> str:
    """The command as a person would type it again."""
    import shlex

    return shlex.join(["fedbench", str(context.info_name), *(str(part) for part in parts if part)])

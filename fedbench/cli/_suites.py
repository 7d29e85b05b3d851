"""Suites that a command names: those of tasks, and those that are of a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench.errors import ConfigError

if TYPE_CHECKING:
    from fedbench.cli._progress import Progress
    from fedbench.results.record import ScoreRecord

_SAID = {
    "federation": "what training together did",
    "privacy": "what its models give away",
}


def split_suites(suite: str | None) -> tuple[str | None, list[str]]:
    """Suites of tasks, with commas between them, and those of a run."""
    from fedbench.evaluation.catalogue import AUDITS

    named = [name for part in (suite or "").split(",") if (name := part.strip())]
    of_tasks = [name for name in named if name not in AUDITS]
    return ",".join(of_tasks) or None, [name for name in AUDITS if name in named]


def runs_to_audit(audits: Sequence[str], checkpoints: Sequence[str]) -> list[Path]:
    """The directories that suites of a run are about.

    Raises:
        ConfigError: a checkpoint is not in a run's directory.
    """
    if not audits:
        return []
    for place in checkpoints:
        if not (Path(place) / "run.yaml").is_file():
            raise ConfigError(
                f"--suite {','.join(audits)}: {place} is no trained run, which these suites are "
                "of; give the directory that `fedbench train` has written, or leave them out"
            )
    if not checkpoints:
        raise ConfigError(f"--suite {','.join(audits)} is of a trained run; name it with --ckpt")
    return [Path(place) for place in checkpoints]


def audit(
    run: Path, name: str, output: Path, progress: Progress, command: str
) -> list[ScoreRecord]:
    """Measure one suite of a run; records go below `output`.

    Raises:
        FedbenchError: the run's data cannot be had, or its models cannot be asked.
    """
    from fedbench.federation import measure_federation
    from fedbench.privacy_audit import audit_privacy

    if name == "federation":
        return measure_federation(run, output=output / name, progress=progress, command=command)
    return audit_privacy(run, output=output / name, progress=progress, command=command)


def print_audit(run: Path, name: str, records: Sequence[ScoreRecord]) -> None:
    """The tables of one suite of a run."""
    from fedbench.cli._run_tables import print_run_tables

    print_run_tables(f"\n{run}: {_SAID[name]}", records)

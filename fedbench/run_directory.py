"""A run's directory: whose it is, and which row of the data is whose.

It holds ``run.yaml`` (the resolved configuration), ``partition.json``, ``base/`` (where the run
made its own), ``checkpoints/<method>/seed-<s>/...``, ``run.json``, ``scores.jsonl`` and
``samples/``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedbench.checkpoints import BASES
from fedbench.config import RunConfig
from fedbench.data.partition import Shard
from fedbench.errors import OutputError
from fedbench.federated import algorithm_file
from fedbench.federated.checkpoint import COMMIT, read_round
from fedbench.results.record import write_atomically
from fedbench.schema import validated

CONFIG_FILE = "run.yaml"
PARTITION_FILE = "partition.json"
CHECKPOINTS = "checkpoints"
_SHOWN = 3
"""Differing fields that a message names."""
_SHORT = 40
"""Characters of a value that it shows."""


@contextlib.contextmanager
def claimed(output: Path, config: RunConfig) -> Iterator[None]:
    """A directory for this run: made its own, or seen to be.

    A training that ends before anything of its first round is kept leaves the directory free again,
    for the corrected run.

    Raises:
        OutputError: it belongs to another run, or cannot be written.
        CheckpointError: a round in it is damaged.
    """
    is_new = not (output / CONFIG_FILE).exists()
    _claim(output, config)
    try:
        yield
    except BaseException:
        # Any file counts: what privacy has been spent is written down before a round is.
        if is_new and not any(path.is_file() for path in (output / CHECKPOINTS).rglob("*")):
            _release(output)
        raise


def read_claim(output: Path) -> RunConfig:
    """The configuration of a run directory."""
    file = output / CONFIG_FILE
    return validated(RunConfig, yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


def write_partition(
    output: Path, counts: Mapping[str, Any], seed: int, shards: Sequence[Shard]
) -> None:
    """Keep which row is whose: positions among the kept training rows, per seed and client."""
    file = output / PARTITION_FILE
    try:
        known = json.loads(file.read_bytes()) if file.exists() else {}
    except ValueError as error:
        raise OutputError(
            f"{file}: is damaged ({error}); remove it and run the same command again"
        ) from error
    known[str(seed)] = [
        {"train": shard.train, "validation": shard.validation, "test": shard.test, **count}
        for shard, count in zip(shards, counts[str(seed)], strict=True)
    ]
    write_atomically(file, json.dumps(known).encode() + b"\n")


def _claim(output: Path, config: RunConfig) -> None:
    file = output / CONFIG_FILE
    if file.exists():
        held = read_claim(output)
        if held.hash != config.hash:
            raise OutputError(
                f"{output}: holds the run {held.name!r} with another configuration "
                f"({_difference(held, config)}); choose another --output or remove the directory"
            )
        _refuse_other_code(output, config)
    elif (output / "scores.jsonl").exists():
        raise OutputError(f"{output}: holds scores of something else; choose another --output")
    else:
        write_atomically(file, config.to_yaml().encode())


def _refuse_other_code(output: Path, config: RunConfig) -> None:
    """Refuse rounds of an older content of an algorithm's file: run.yaml holds only its path."""
    files = [file for method in config.methods if (file := algorithm_file(method.algorithm))]
    if not files:
        return
    for record in (output / CHECKPOINTS).rglob(COMMIT):
        if read_round(record).run_hash != config.hash:
            raise OutputError(
                f"{output}: holds rounds made before {', '.join(map(str, files))} was changed; "
                "choose another --output or remove the directory"
            )


def _release(output: Path) -> None:
    for name in (CHECKPOINTS, BASES):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (PARTITION_FILE, CONFIG_FILE):
        (output / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is something else in it
        output.rmdir()


def _difference(held: RunConfig, config: RunConfig) -> str:
    """The first fields in which two configurations differ, with their values where these are short.

    Where no field does, a file that they name has changed.
    """
    named = list(_differing(held.identity, config.identity, ""))
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return ", ".join(named[:_SHOWN]) + more


def _differing(held: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(held, dict) and isinstance(new, dict):
        for key in sorted(held.keys() | new.keys()):
            if held.get(key) != new.get(key):
                yield from _differing(held.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(held, list) and isinstance(new, list) and len(held) == len(new):
        for place, (one, other) in enumerate(zip(held, new, strict=True), start=1):
            if one != other:
                yield from _differing(one, other, f"{name}[{place}]")
    else:
        there, here = json.dumps(held), json.dumps(new)
        is_short = max(len(there), len(here)) <= _SHORT
        yield f"{name}: {there} there, {here} here" if is_short else name

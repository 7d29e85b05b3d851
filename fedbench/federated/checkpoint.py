"""Rounds on disk: committed by one file, so that a kill never leaves a half-written round.

A round directory holds the weights (PEFT adapter or full model), the server's algorithm state and,
written last, ``round.json``. A directory without it does not count. Older rounds that nobody asked
to keep are removed only after the newer one is committed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
from pydantic import ValidationError

from fedbench.errors import CheckpointError, OutputError
from fedbench.federated.state import State
from fedbench.model import BaseModel, load_state, save_checkpoint, weights_hash
from fedbench.results.record import ModelKind, write_atomically
from fedbench.schema import Part

COMMIT = "round.json"
SERVER_STATE = "server_state.safetensors"


class Round(Part):
    """What is known of one committed round."""

    schema_version: Literal[1] = 1
    run_hash: str
    method: str
    seed: int
    round: int
    last_round: int
    model_kind: ModelKind
    model_client: int | None = None
    base: str
    """Directory or hub id of the base model."""
    base_hash: str
    template: str
    train_examples: int = 0
    """Samples used until this round, over all clients."""
    bytes_up: int = 0
    """Bytes that clients have sent until this round."""
    bytes_down: int = 0
    cohort: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    """Mean training loss of each client of the cohort in this round."""
    weights_hash: str = ""


def commit_round(
    directory: Path, base: BaseModel, state: State, server_state: State, round: Round
) -> Round:
    """Write a round, its ``round.json`` last, and return it with its weights hash.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    place = round_directory(directory, round.round)
    try:
        save_checkpoint(base, state, place)
        if server_state:
            safetensors.torch.save_file(server_state, place / SERVER_STATE)
    except (OSError, safetensors.SafetensorError) as error:
        raise OutputError(
            f"{place}: cannot be written ({error}); free some space or choose another --output, "
            "then run the same command again: finished rounds are kept"
        ) from error
    committed = round.model_copy(update={"weights_hash": weights_hash(place)})
    write_atomically(place / COMMIT, committed.model_dump_json(indent=2).encode() + b"\n")
    return committed


def load_round(directory: Path, round: Round) -> tuple[State, State]:
    """Weights and server state of a committed round."""
    place = round_directory(directory, round.round)
    server_state = place / SERVER_STATE
    return load_state(place), (
        dict(safetensors.torch.load_file(server_state)) if server_state.exists() else {}
    )


def latest_round(directory: Path) -> Round | None:
    """The newest committed round; None where there is none."""
    rounds = list(committed_rounds(directory))
    return max(rounds, key=lambda round: round.round, default=None)


def committed_rounds(directory: Path) -> Iterator[Round]:
    """Every committed round right below a directory, oldest first."""
    for file in sorted(directory.glob(f"round-*/{COMMIT}")):
        yield read_round(file)


def read_round(file: Path) -> Round:
    """Read a ``round.json``.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return Round.model_validate(json.loads(file.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{file}: is damaged; remove its directory and run the same command again"
        ) from error


def remove_round(directory: Path, number: int) -> None:
    """Remove a round, its commit first: what is left half removed does not count."""
    place = round_directory(directory, number)
    (place / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def round_directory(directory: Path, number: int) -> Path:
    """Where a round of a training lies."""
    return directory / f"round-{number:04d}"

"""A run while it trains, read from its directory: what `fedbench watch` shows and trackers log.

Nothing talks to the training process. Whatever is shown is what lies on disk: ``run.yaml``, the
``history.jsonl`` and ``timings.jsonl`` of every training, and ``scores.jsonl`` once it is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from fedbench.errors import RecordError
from fedbench.results.record import ScoreRecord, read_scores, scores_file

HISTORY = "history.jsonl"
TIMINGS = "timings.jsonl"


@dataclass(frozen=True)
class LiveRound:
    """What is shown of one round of one training."""

    method: str
    seed: int
    client: int | None
    """Whose training it is, where one trains alone."""
    round: int
    last_round: int
    cohort: tuple[int, ...]
    losses: tuple[float, ...]
    """Mean training loss of each client of the cohort."""
    bytes_sent: int
    """Up and down, until this round."""
    train_examples: int

    @property
    def what(self) -> str:
        """``fedavg seed 0``, ``local seed 0 client 3``."""
        alone = "" if self.client is None else f" client {self.client}"
        return f"{self.method} seed {self.seed}{alone}"

    @property
    def loss(self) -> float | None:
        """The mean over the cohort."""
        return fmean(self.losses) if self.losses else None


@dataclass
class Snapshot:
    """All that lies in a run directory at one moment."""

    name: str
    planned: int
    """Trainings: methods times seeds, and a local method's clients each."""
    rounds_planned: int
    trainings: dict[str, list[LiveRound]]
    """Rounds so far, by training, in the order in which they were begun."""
    seconds_per_round: float | None
    """Median over the newest rounds."""
    last_change: float | None
    """When a file was last written, in seconds since the epoch."""
    scores: list[ScoreRecord] = field(default_factory=list)

    @property
    def rounds_done(self) -> int:
        """Over all trainings."""
        return sum(rounds[-1].round for rounds in self.trainings.values() if rounds)

    @property
    def trainings_done(self) -> int:
        """How many trainings have no round left."""
        rounds_each = self.rounds_planned // max(self.planned, 1)
        return sum(rounds[-1].round >= rounds_each for rounds in self.trainings.values() if rounds)

    @property
    def current(self) -> list[LiveRound]:
        """The training whose file was written last; empty before the first round."""
        return next(reversed(self.trainings.values()), [])

    @property
    def is_trained(self) -> bool:
        """Whether no round is left."""
        return self.rounds_planned > 0 and self.rounds_done >= self.rounds_planned

    @property
    def seconds_left(self) -> float | None:
        """Of training; None before the first round was timed."""
        if self.seconds_per_round is None:
            return None
        return self.seconds_per_round * max(self.rounds_planned - self.rounds_done, 0)


def snapshot(directory: Path) -> Snapshot:
    """Read a run directory as it is now.

    Raises:
        RecordError: it is none, or a file is damaged.
    """
    config = _config(directory)
    files = sorted((directory / "checkpoints").glob(f"**/{HISTORY}"), key=_written)
    histories = [list(read_live(file)) for file in files]
    trainings = {rounds[0].what: rounds for rounds in histories if rounds}
    planned, num_rounds = _planned(config)
    changes = [_written(file) for file in files]
    found = scores_file(directory)
    return Snapshot(
        name=str(config.get("name", directory.name)),
        planned=planned,
        rounds_planned=planned * num_rounds,
        trainings=trainings,
        seconds_per_round=_pace(files),
        last_change=max(changes, default=None),
        scores=read_scores(directory) if found.is_file() else [],
    )


def read_live(file: Path) -> Iterator[LiveRound]:
    """The rounds of a history file; a line that is being written is left for the next time.

    Raises:
        RecordError: a line is damaged.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:  # a resumed run replaces it
        return
    client = _client_of(file)
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            yield _live(json.loads(line), client)
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(
                f"{file}: line {number} is damaged; remove the file to go on without the history"
            ) from error


class NewRounds:
    """The rounds of a run that were written since the last call, once each."""

    def __init__(self, directory: Path) -> None:
        """`directory` is that of the run."""
        self.checkpoints = directory / "checkpoints"
        self.seen: dict[Path, tuple[int, int]] = {}
        """History file -> its size when it was last read, and its newest round by then."""

    def __call__(self) -> Iterator[LiveRound]:
        """Raises `RecordError` where a line is damaged."""
        for file in sorted(self.checkpoints.glob(f"**/{HISTORY}")):
            size = file.stat().st_size
            before, newest = self.seen.get(file, (-1, 0))
            if size == before:
                continue
            for live in read_live(file):
                if live.round > newest:
                    newest = live.round
                    yield live
            self.seen[file] = (size, newest)

    def skip(self) -> None:
        """Pass over what is there already: a run that goes on has told of it before."""
        for _ in self():
            pass


def _live(row: dict[str, Any], client: int | None) -> LiveRound:
    return LiveRound(
        method=row["method"],
        seed=row["seed"],
        client=row.get("model_client", client),
        round=row["round"],
        last_round=row["last_round"],
        cohort=tuple(row.get("cohort", ())),
        losses=tuple(row.get("losses", ())),
        bytes_sent=row.get("bytes_up", 0) + row.get("bytes_down", 0),
        train_examples=row.get("train_examples", 0),
    )


def _client_of(file: Path) -> int | None:
    name = file.parent.name
    return int(name.removeprefix("client-")) if name.startswith("client-") else None


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "run.yaml"
    if not file.is_file():
        raise RecordError(
            f"{directory}: holds no run.yaml; give a run directory, such as runs/demo"
        )
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecordError(f"{file}: is damaged ({error}); start the run again") from error
    return config if isinstance(config, dict) else {}


def _planned(config: dict[str, Any]) -> tuple[int, int]:
    """How many trainings there will be, and how many rounds each has."""
    federation = config.get("federation") or {}
    number = 0
    for method in config.get("methods") or []:
        if method.get("algorithm") == "local":
            clients = (method.get("options") or {}).get("clients")
            number += len(clients or range(federation.get("num_clients", 0)))
        else:
            number += 1
    return number * len(config.get("seeds") or []), int(federation.get("rounds", 0))


def _pace(files: list[Path]) -> float | None:
    """Seconds per round over the newest training that has timings; rounds are alike."""
    for file in reversed(files):
        timings = file.with_name(TIMINGS)
        if timings.is_file():
            rows = timings.read_text(encoding="utf-8").splitlines()[-10:]
            seconds = []
            for row in rows:
                try:
                    seconds.append(float(json.loads(row)["seconds"]))
                except (ValueError, KeyError, TypeError):  # being written
                    continue
            if seconds:
                return fmean(seconds)
    return None


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return time.time()

"""``kill -9`` at ten random moments, and the same command again: the same final bits."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_runs import Cli, sets

RUN = [
    "methods=[local, centralised, fedavg, {algorithm: fedprox, mu: 0.01}]",
    "seeds=[0]",
    "model.pretrain.steps=30",
    "model.pretrain.hidden_size=32",
    "model.pretrain.intermediate_size=64",
    "model.pretrain.num_heads=2",
    "federation.num_clients=3",
    "federation.clients_per_round=2",
    "federation.rounds=8",
    "local.max_steps=2",
    "local.batch_size=8",
    "evaluation.limit=60",
    "evaluation.batch_tokens=512",
]


KILLS = {"pretrains": 2, "trains": 5, "scores": 3}
"""How many of the ten kills are meant for which phase."""
FIRST_FILE = {
    "pretrains": "partition.json",
    "trains": "checkpoints/**/round.json",
    "scores": "answers.sqlite*",
}
"""What a process writes first in a phase."""


def test_a_run_killed_at_ten_random_moments_ends_in_the_same_bits(cli: Cli, tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = Run(cli, tmp_path / "whole", tmp_path / "cache-whole")
    seconds = whole.to_the_end()
    expected = whole.outcome()
    # What was finished before a kill is not done again and the next one falls on later work, so
    # the delays of a phase are drawn to cover it together.
    moments = [
        (phase, rng.uniform(0, seconds[phase] * min(0.6, 2 / count)))
        for phase, count in KILLS.items()
        for _ in range(count)
    ]
    assert len(moments) == 10
    cache, attempt = tmp_path / "cache", 0
    run = Run(cli, tmp_path / "run-0", cache)
    for phase, delay in moments:
        while not run.killed_at(phase, delay):
            # It came to its end first: the result counts, and the kill meets another run.
            assert run.outcome() == expected
            attempt += 1
            run = Run(cli, tmp_path / f"run-{attempt}", cache)
    run.to_the_end()
    assert run.outcome() == expected


@dataclass
class Run:
    """One run directory, and the processes that work on it one after the other."""

    cli: Cli
    directory: Path
    cache: Path
    started: float = 0.0
    """When its process was started."""

    def to_the_end(self) -> dict[str, float]:
        """Run the command to its end; the seconds spent in each phase."""
        process = self.start()
        began: dict[str, float] = {}
        while process.poll() is None:
            for phase in KILLS:
                if phase not in began and self.has_reached(phase):
                    began[phase] = time.monotonic()
            time.sleep(0.002)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        ends = [*list(began.values())[1:], time.monotonic()]
        return {phase: end - start for (phase, start), end in zip(began.items(), ends, strict=True)}

    def killed_at(self, phase: str, delay: float) -> bool:
        """Start the command and kill it so long after a phase began; False if it ended before."""
        process = self.start()
        while process.poll() is None and not self.has_reached(phase):
            time.sleep(0.002)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL, to this process alone
        _, stderr = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), stderr
        return process.returncode != 0

    def start(self) -> subprocess.Popen[str]:
        """A fresh process with the same command line each time."""
        self.started = time.time()
        command = ["train-and-eval", "--json", *sets(RUN), "--output", self.directory]
        return self.cli.start(*command, env={"FEDBENCH_CACHE": str(self.cache)})

    def has_reached(self, phase: str) -> bool:
        """Whether the process started last has done something of a phase, or of a later one."""
        phases = list(FIRST_FILE)
        later = phases[phases.index(phase) :]
        return any(self._written(FIRST_FILE[phase]) for phase in later)

    def outcome(self) -> dict[str, Any]:
        """All that the run computed: weights to the bit, who has which row, answers, scores."""
        checkpoints = self.directory / "checkpoints"
        lines = (self.directory / "scores.jsonl").read_text().splitlines()
        with closing(sqlite3.connect(self.directory / "answers.sqlite")) as store:
            answers = sorted(store.execute("SELECT key, answer FROM answers"))
        weights = sorted(checkpoints.rglob("*.safetensors"))
        rounds = sorted(checkpoints.rglob("round.json"))
        return {
            "weights": {str(f.relative_to(checkpoints)): f.read_bytes() for f in weights},
            # The base lies in the cache, and each run may have its own.
            "rounds": {str(f.relative_to(checkpoints)): _record(f, "base") for f in rounds},
            "partition": (self.directory / "partition.json").read_bytes(),
            "answers": answers,
            "samples": (self.directory / "samples" / "headlines.jsonl.gz").read_bytes(),
            "scores": [_without(json.loads(line), "created") for line in lines],
        }

    def _written(self, pattern: str) -> bool:
        """Whether the process has written such a file."""
        files = self.directory.glob(pattern)
        return any(os.stat(f).st_mtime > self.started for f in files if f.exists())


def _record(file: Path, place: str) -> dict[str, Any]:
    return _without(json.loads(file.read_bytes()), place)


def _without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != field}

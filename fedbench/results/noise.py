"""The A/A floor: by how much a checkpoint differs from itself when it is scored a second time.

Batch sizes, kernels, servers and sandboxes flip answers that a model has not changed. A margin
below that floor says nothing, so the check calls nothing a regression that the floor explains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedbench.errors import RecordError
from fedbench.results.differences import PairDifference, pair_difference
from fedbench.results.intervals import normal_quantile
from fedbench.results.loading import load_results
from fedbench.results.pairing import ScorePair, pair_scores
from fedbench.results.record import SCHEMA, Record, json_lines, parsed, task_key, write_atomically

NOISE_FILE = "noise.jsonl"


class NoiseRecord(Record):
    """What scoring one checkpoint twice gave on one task."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    task: str
    variant: str | None = None
    task_hash: str
    metric: str
    model: str
    weights_hash: str | None = None
    num_items: int
    num_flipped: int | None = None
    """Items whose value changed; None where items have no values of their own."""
    delta: float
    floor: float
    """The largest difference that noise explains, in units of the metric."""
    backends: tuple[str | None, str | None] = (None, None)

    @property
    def key(self) -> tuple[str, str]:
        """Task key and metric."""
        return task_key(self.task, self.variant), self.metric


def measure_noise(first: Path, second: Path, confidence: float = 0.95) -> list[NoiseRecord]:
    """The floor of every headline score, from two scorings of the same checkpoints.

    Args:
        first: a results directory, a ``scores.jsonl`` or a baseline.
        second: the same checkpoints, scored once more and not from stored answers.
        confidence: share of repetitions whose difference is to lie within the floor.

    Raises:
        RecordError: they hold other weights, or have no score in common.
    """
    one, other = load_results(first), load_results(second)
    records = []
    for pair in pair_scores(candidate=other, baseline=one):
        if not pair.headline or pair.candidate is None:
            continue
        ours, theirs = pair.baseline.weights_hash, pair.candidate.weights_hash
        if ours and theirs and ours != theirs:
            raise RecordError(
                f"{second}: {pair.model} has the weights {theirs} and in {first} {ours}; the floor "
                "is of one checkpoint that was scored twice"
            )
        found = pair_difference(pair, other, one, confidence=confidence)
        if found is not None:
            records.append(_record(pair, found, confidence))
    if not records:
        raise RecordError(
            f"{first} and {second}: have no score in common; score the same checkpoint on the same "
            "tasks"
        )
    return records


def noise_file(baseline: Path) -> Path:
    """Where the floor of a baseline is kept: in its directory, or beside its file."""
    if baseline.is_dir():
        return baseline / NOISE_FILE
    if baseline.name.startswith("scores.jsonl"):
        return baseline.with_name(NOISE_FILE)
    return baseline.with_name(f"{baseline.name.partition('.')[0]}.{NOISE_FILE}")


def read_noise(baseline: Path) -> dict[tuple[str, str], NoiseRecord]:
    """The floors of a baseline by task key and metric; empty where none were measured.

    Raises:
        RecordError: the file is damaged.
    """
    file = noise_file(baseline)
    if not file.is_file():
        return {}
    rows = [parsed(NoiseRecord, row, f"{file}:{n}") for n, row in json_lines(file)]
    return {row.key: row for row in rows}


def write_noise(baseline: Path, records: Iterable[NoiseRecord]) -> Path:
    """Keep floors beside a baseline; of several measurements of a task the largest stays.

    Raises:
        OutputError: the place cannot be written.
    """
    kept = read_noise(baseline)
    for record in records:
        before = kept.get(record.key)
        if before is None or before.task_hash != record.task_hash or before.floor < record.floor:
            kept[record.key] = record
    lines = (json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in kept.values())
    return write_atomically(noise_file(baseline), "".join(lines).encode())


def _record(pair: ScorePair, found: PairDifference, confidence: float) -> NoiseRecord:
    difference, effect = found.difference, found.difference.effect
    flipped = effect.num_better + effect.num_worse if effect else None
    # An interval would never reach 0: of identical answers nothing is noise.
    spread = 0.0 if found.identical else difference.stderr
    if effect and difference.method == "tango":
        spread = (flipped or 0) ** 0.5 / difference.num_items
    baseline = pair.baseline
    backends = (baseline.backend, pair.candidate.backend if pair.candidate else None)
    return NoiseRecord(
        task=baseline.task,
        variant=baseline.variant,
        task_hash=baseline.task_hash,
        metric=baseline.metric,
        model=pair.model,
        weights_hash=baseline.weights_hash,
        num_items=difference.num_items,
        num_flipped=flipped,
        delta=difference.delta,
        floor=max(abs(difference.delta), normal_quantile(confidence) * spread),
        backends=backends,
    )


def floors_of(
    noise: dict[tuple[str, str], NoiseRecord], pairs: Sequence[ScorePair]
) -> list[float | None]:
    """The floor of each pair; None where none was measured on this version of its task."""
    found = []
    for pair in pairs:
        record = noise.get((pair.baseline.task_key, pair.baseline.metric))
        same = record is not None and record.task_hash == pair.baseline.task_hash
        found.append(record.floor if record is not None and same else None)
    return found

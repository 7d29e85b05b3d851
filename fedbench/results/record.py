"""What a run leaves behind: scores, and the items they were computed from.

A results directory holds

* ``run.json``: one `RunRecord`, how the results were made;
* ``scores.jsonl``: one `ScoreRecord` a line, long form, so that every table is one pivot;
* ``samples/<task>.jsonl.gz``: a `SampleTable`, the items of a task and what each model answered.

Sample tables carry ids, hashes, references, extracted answers, log-likelihoods and statuses, never
item texts.
Files of schema 1 load for ever (tests/golden/records).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedbench.errors import OutputError, RecordError
from fedbench.metrics import find_metric

SCHEMA: Final = 1

ModelKind = Literal["base", "global", "client", "merged", "central", "local", "reference"]
Status = Literal["parsed", "unparsed", "failed"]
PrivacyLevel = Literal["client", "example"]


class Record(BaseModel):
    """One line or file of results: frozen, and without keys of its own making."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, under the names the files use."""
        return self.model_dump(mode="json", by_alias=True)


_R = TypeVar("_R", bound=Record)  # syntax of 3.12 would shut out 3.11


class ModelId(Record):
    """Which model was scored. Two records speak of the same model when these are equal."""

    method: str
    """fedavg, fedprox, local, centralised, base, or the name of a reference row."""
    seed: int | None = None
    model_kind: ModelKind
    model_client: int | None = None
    """The client whose model this is, for `client` and `local`."""
    round: int | None = None
    """Federated rounds (or the local equivalent) the weights have seen."""

    def label(self) -> str:
        """A short name for people: ``fedavg round 12 seed 0``, ``local client 3 seed 0``."""
        parts = [self.method]
        if self.model_client is not None:
            parts.append(f"client {self.model_client}")
        if self.round is not None and self.model_kind != "local":
            parts.append(f"round {self.round}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return " ".join(parts)


class ScoreRecord(Record):
    """One score of one model on one task."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    run: str
    run_hash: str
    """Hash of the resolved configuration."""
    method: str
    seed: int | None = None
    model_kind: ModelKind
    model_client: int | None = None
    round: int | None = None
    data_client: int | None = None
    """The client on whose held-out data the score was taken; None for a shared test set."""
    group: str | None = None
    """Subject, category or turn within the task; None for the whole task."""
    task: str
    task_version: int
    task_hash: str
    variant: str | None = None
    dataset_revision: str | None = None
    metric: str
    value: float | None
    """None when withheld: nothing was scored, or too large a share failed."""
    stderr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str | None = None
    confidence: float = 0.95
    higher_is_better: bool
    num_examples: int
    num_scored: int
    """Items that count: num_examples - num_failed."""
    num_failed: int
    """No answer was obtained; excluded from the score."""
    num_unparsed: int
    """The model answered and the answer could not be read; scored as wrong."""
    num_clusters: int | None = None
    headline: bool = False
    """True for the metric that the task is usually quoted by."""
    selected_by: str | None = None
    """Why this model stands for its method: ``last``, ``only``; None for points of a curve."""
    train_examples: int | None = None
    """Samples whose gradient this model has seen, summed over clients for a federated model."""
    bytes_communicated: int | None = None
    """Bytes sent up and down by all clients until this round."""
    template: str | None = None
    backend: str | None = None
    judge: str | None = None
    """Who rated the answers: the model, where it is, and how it was asked if that is unusual."""
    rubric: str | None = None
    rubric_hash: str | None = None
    judged_against: str | None = None
    """Whose answers a judge compared these with."""
    weights_hash: str | None = None
    base_hash: str | None = None
    fedbench: str
    created: str

    @field_validator("value", "stderr", "ci_low", "ci_high")
    @classmethod
    def _absent_unless_finite(cls, number: float | None) -> float | None:
        """JSON has neither NaN nor infinity, and Python's reader takes both."""
        return number if number is not None and math.isfinite(number) else None

    @property
    def model(self) -> ModelId:
        """Which model this score is of."""
        return ModelId(
            method=self.method,
            seed=self.seed,
            model_kind=self.model_kind,
            model_client=self.model_client,
            round=self.round,
        )

    @property
    def task_key(self) -> str:
        """Name of the task with its variant: ``fpb`` or ``fpb:fingpt``."""
        return task_key(self.task, self.variant)


class PrivacyRecord(Record):
    """What the privacy of one method's training on one seed cost."""

    level: PrivacyLevel = "client"
    """Whose part is hidden: a client's with all its rows, or an example's, a single row's."""
    method: str
    seed: int
    epsilons: tuple[float, ...]
    """After each round, from the first, for the client that it cost most, or whose rows."""
    delta: float
    accountant: str
    """Of dp-accounting: rdp or pld."""
    noise_multiplier: float
    """The least of any client, where each has its own."""
    amplified: bool
    """Whether epsilon counts on draws that are secret (Poisson sampling): of a round's clients, or
    of a step's rows."""
    simulated: bool
    """Whether noise and draws come from the seed: epsilon is what real noise would cost."""
    stopped_after: int | None = None
    """The round after which the budget was spent; None where all rounds were trained."""

    @property
    def epsilon(self) -> float:
        """Of the whole training."""
        return self.epsilons[-1]


class RunRecord(Record):
    """How a results directory was made."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    run: str
    run_hash: str
    command: str
    config: dict[str, Any] | None = None
    """The resolved run file; None for `score` of a foreign checkpoint."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Counts worth telling: rows dropped, sizes per client, samples used, bytes sent."""
    packages: dict[str, str]
    device: str
    git_commit: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time per phase."""
    privacy: tuple[PrivacyRecord, ...] = ()
    """Per private method, seed and level; empty where the run file asks for no privacy."""
    fedbench: str
    created: str


def task_key(task: str, variant: str | None) -> str:
    """``fpb`` for a task by itself, ``fpb:fingpt`` for one of its variants."""
    return task if variant is None else f"{task}:{variant}"


def write_scores(directory: Path, scores: Iterable[ScoreRecord]) -> Path:
    """Write ``scores.jsonl``, whole or not at all; absent fields are left out of the file."""
    lines = (
        json.dumps(
            {k: v for k, v in score.to_json().items() if v is not None or k == "value"},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for score in scores
    )
    return write_atomically(directory / "scores.jsonl", "\n".join(lines).encode() + b"\n")


def read_scores(path: Path) -> list[ScoreRecord]:
    """The scores of a results directory, or of one ``scores.jsonl``.

    Raises:
        RecordError: the file is missing or damaged; the message names file and line.
    """
    file = scores_file(path) if path.is_dir() else path
    return [parsed(ScoreRecord, row, f"{file}:{n}") for n, row in json_lines(file)]


def scores_file(directory: Path) -> Path:
    """The scores of a results directory; records that are kept for long may be compressed."""
    compressed = directory / "scores.jsonl.gz"
    return compressed if compressed.is_file() else directory / "scores.jsonl"


def write_run(directory: Path, record: RunRecord) -> Path:
    """Write ``run.json``."""
    text = json.dumps(record.to_json(), ensure_ascii=False, indent=2)
    return write_atomically(directory / "run.json", text.encode() + b"\n")


def read_run(directory: Path) -> RunRecord | None:
    """The run record of a results directory; None where there is none.

    Raises:
        RecordError: the file is damaged.
    """
    file = directory / "run.json"
    if not file.exists():
        return None
    try:
        return parsed(RunRecord, json.loads(file.read_bytes()), str(file))
    except ValueError as error:
        raise RecordError(f"{file}: is not JSON ({error}); run the same command again") from error


def why_withheld(record: ScoreRecord) -> str:
    """Why a score has no value, in words."""
    if record.num_failed:
        return f"{record.num_failed} of {record.num_examples} failed"
    metric = find_metric(record.metric)
    if metric is not None and metric.needs == "base":
        return "the base it was trained from is not known"
    return "the metric is undefined on its answers"


def write_atomically(file: Path, content: bytes) -> Path:
    """Replace a file by new content in one step, so that a kill leaves the old or the new.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):  # the directory itself may not be one
            temporary.unlink()
        raise _unwritable(file, error) from error
    return file


def append_line(file: Path, line: str) -> None:
    """Add a line to a file, which is made if absent.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as handle:
            handle.write(f"{line}\n")
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{file}: cannot be written ({error.strerror}); free some space or choose another "
        "--output, then run the same command again: finished work is kept"
    )


def models_of(records: Sequence[ScoreRecord]) -> list[ModelId]:
    """The distinct models of some scores, in order of first appearance."""
    return list(dict.fromkeys(record.model for record in records))


def parsed(kind: type[_R], row: Any, where: str) -> _R:
    """A row as a record.

    Raises:
        RecordError: it is none; `where` is named.
    """
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(
            f"{where}: {place}: {first['msg']}; the file is not ours or damaged"
        ) from error


def json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, compressed or not, with their line numbers.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        data = file.read_bytes()
        text = gzip.decompress(data).decode() if file.suffix == ".gz" else data.decode()
    except FileNotFoundError as error:
        raise RecordError(
            f"{file}: does not exist; give a results directory of fedbench"
        ) from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise RecordError(f"{file}: cannot be read ({error})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise RecordError(f"{file}:{number}: is not JSON ({error})") from error

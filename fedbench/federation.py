"""A trained run as a federation: clients on their own rows, gains, drift, bytes, time.

``<run>/federation/`` gets ``scores.jsonl`` (records as those of any scoring), the tables of the
clients' held-out rows under ``samples/`` and ``run.json``. Answers go to the store that all
commands share, so that a second call asks nothing.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.checkpoints import run_checkpoints
from fedbench.client_answers import ask_clients
from fedbench.config import RunConfig
from fedbench.data.partition import partition
from fedbench.errors import ConfigError, DataError, RecordError
from fedbench.evaluation.asking import Progress
from fedbench.evaluation.catalogue import suites
from fedbench.evaluation.client_rows import ClientRows, client_table, enter, held_out
from fedbench.evaluation.scores import score_table
from fedbench.federated.checkpoint import HISTORY, read_history
from fedbench.federated.timings import read_timings
from fedbench.generation.backend import Checkpoint
from fedbench.generation.opening import Engine
from fedbench.provenance import provenance
from fedbench.results.federation import (
    RoundFacts,
    client_records,
    clients_of,
    training_records,
)
from fedbench.results.federation_tasks import task_records
from fedbench.results.record import (
    ModelId,
    RunRecord,
    ScoreRecord,
    scores_file,
    write_run,
    write_scores,
)
from fedbench.results.samples import Results, SampleTable, read_results, write_samples
from fedbench.run_data import load_data
from fedbench.run_directory import CHECKPOINTS, read_claim
from fedbench.scoring import Scoring, elapsed

DIRECTORY = "federation"
GENERAL = "general"
"""Suites of this name, and of names that begin with it, aim at what every model should know."""


def measure_federation(
    run: Path,
    *,
    target: float | None = None,
    general: Sequence[str] | None = None,
    limit: int | None = None,
    output: Path | None = None,
    progress: Progress = lambda what, done, total: None,
    command: str = "",
) -> list[ScoreRecord]:
    """Ask every model about the clients' held-out rows, and write what the run says beside it.

    Args:
        run: the directory of a trained run.
        target: a score of the tasks whose rounds and bytes are counted; by default that of the
            mean local model.
        general: task keys on which forgetting is measured; those of the general suites by default.
        limit: at most so many rows of each client.
        output: where records go; ``<run>/federation`` by default.
        progress: told of each answered batch.
        command: the command line, for the record.

    Raises:
        ConfigError: the target is no number, or a general task was not scored.
        FedbenchError: the directory holds no trained run, or its data cannot be had.
    """
    config = claimed(run)
    results = read_results(run) if scores_file(run).is_file() else None
    _check_asked(run, results, target, general)
    started = time.monotonic()
    place = output or run / DIRECTORY
    made = provenance()
    common = common_fields(config, made)
    records: list[ScoreRecord] = []
    for table in _client_tables(config, run, limit, progress):
        records += _of_clients(table, place, common)
    for model, rounds in _trainings(run):
        records += training_records(model, rounds, common)
    if results is not None:
        chosen = _general_tasks() if general is None else set(general)
        records += task_records(results, common, general=chosen, target=target)
    return write_audit(place, records, config, made, command, elapsed(started))


def _check_asked(
    run: Path, results: Results | None, target: float | None, general: Sequence[str] | None
) -> None:
    """See that what is asked of the tasks can be told from this run, before any model is asked."""
    if target is None and general is None:
        return
    if target is not None and not math.isfinite(target):
        raise ConfigError(f"--target is {target}; give a finite number")
    if results is None or not results.samples:
        option = "--target" if general is None else "--general"
        raise ConfigError(
            f"{option}: {run} has no task with answers that were kept; score it with "
            "`fedbench train-and-eval` first, or leave the option out"
        )
    known = sorted(results.samples)
    for name in general or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ConfigError(f"--general: {run} was not scored on {name!r}; {hint}")


def claimed(run: Path) -> RunConfig:
    """The configuration of a run directory.

    Raises:
        RecordError: it is none.
    """
    if not (run / "run.yaml").is_file():
        raise RecordError(
            f"{run}: holds no run.yaml; give the directory that `fedbench train` has written"
        )
    return read_claim(run)


def common_fields(config: RunConfig, made: Mapping[str, Any]) -> dict[str, Any]:
    """What all records of an audit share."""
    return {
        "run": config.name,
        "run_hash": config.hash,
        "fedbench": made["fedbench"],
        "created": made["created"],
        "template": config.data.template,
        "selected_by": "last",
    }


def audit_scoring(config: RunConfig) -> Scoring:
    """How the models of a run are asked: as the run itself would, with its own template."""
    evaluation = config.evaluation
    server = Path(evaluation.server) if evaluation.server else None
    engine = Engine(evaluation.backend, evaluation.engine, server)
    return Scoring(config.model, engine=engine, template=config.data.template)


def seed_checkpoints(run: Path, seed: int) -> list[Checkpoint]:
    """The base and the last models of one seed."""
    return [one for one in run_checkpoints(run, "last") if one.model.seed == seed]


def write_audit(
    place: Path,
    records: Sequence[ScoreRecord],
    config: RunConfig,
    made: Mapping[str, Any],
    command: str,
    seconds: float,
) -> list[ScoreRecord]:
    """Write the records of an audit as a results directory; returns them."""
    write_scores(place, records)
    record = RunRecord(
        run=config.name,
        run_hash=config.hash,
        command=command,
        seconds={"asking": seconds},
        **made,
    )
    write_run(place, record)
    return list(records)


def _client_tables(
    config: RunConfig, run: Path, limit: int | None, progress: Progress
) -> Iterator[SampleTable]:
    """The clients' held-out rows with the answers of all models, seed by seed."""
    if not config.data.test:
        return  # nothing was held out
    data = load_data(config)
    for seed in config.seeds:
        shards = partition(data.examples, config.federation.num_clients, config.data, seed)
        rows = held_out(data.examples, shards)
        if limit is not None:
            few = tuple(own[:limit] for own in rows.examples)
            rows = ClientRows(rows.kind, rows.labels, few)
        if not any(rows.examples):
            raise DataError(
                f"{run}: data.test is {config.data.test:g}, which leaves no client a row to test "
                "on; raise it and train again"
            )
        checkpoints = seed_checkpoints(run, seed)
        answers = ask_clients(checkpoints, rows.questions, audit_scoring(config), progress)
        table = client_table(rows, seed)
        hashes = {one.model: one.weights_hash for one in checkpoints}
        for model, given in answers.items():
            enter(table, rows, model, given, weights_hash=hashes.get(model))
        yield table


def _of_clients(
    table: SampleTable, place: Path, common: Mapping[str, Any]
) -> Iterator[ScoreRecord]:
    write_samples(place, table)
    yield from clients_of(score_table(table, common, {}))
    yield from client_records(table, common)


def _trainings(run: Path) -> Iterator[tuple[ModelId, list[RoundFacts]]]:
    """What the rounds of each federated and of the centralised training took."""
    for file in sorted((run / CHECKPOINTS).glob(f"*/seed-*/{HISTORY}")):
        history = read_history(file.parent)
        if not history:
            continue
        timings = {timing.round: timing for timing in read_timings(file.parent)}
        last = history[-1]
        model = ModelId(
            method=last.method, seed=last.seed, model_kind=last.model_kind, round=last.round
        )
        yield (
            model,
            [
                RoundFacts(
                    drift=round.drift,
                    cosine=round.update_cosine,
                    num_bytes=round.bytes_up + round.bytes_down,
                    num_tokens=round.train_tokens,
                    seconds=timing.seconds if (timing := timings.get(round.round)) else None,
                    peak_memory=timing.peak_memory if timing else None,
                )
                for round in history
            ],
        )


def _general_tasks() -> set[str]:
    return {task for name, tasks in suites().items() if name.startswith(GENERAL) for task in tasks}

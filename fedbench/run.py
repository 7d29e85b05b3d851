"""One run: train every method and seed of a run file, then score what came out.

Everything goes to the run's directory (`run_directory.py`), answers to the store that all commands
share. Running the same configuration again repeats nothing that is finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedbench.checkpoints import run_checkpoints
from fedbench.config import Method, RunConfig
from fedbench.data.canaries import with_canaries
from fedbench.data.datasets import Example
from fedbench.data.partition import Shard, label_counts, partition
from fedbench.errors import ConfigError
from fedbench.evaluation.references import add_reference
from fedbench.federated.alone import train_centralised, train_local
from fedbench.federated.checkpoint import committed_rounds
from fedbench.federated.crew import Crew, crew_of
from fedbench.federated.engine import MakeEngine
from fedbench.federated.privacy.training import privacy_records
from fedbench.federated.server import Training, train_federated
from fedbench.generation.opening import Engine
from fedbench.model import (
    BaseModel,
    get_state,
    load_base,
    prepare_training,
    remove_lora,
    set_state,
)
from fedbench.provenance import provenance
from fedbench.results.record import (
    RunRecord,
    ScoreRecord,
    read_run,
    write_run,
)
from fedbench.results_directory import write_results
from fedbench.run_base import base_directory, started_from
from fedbench.run_data import describe_data, load_data
from fedbench.run_directory import CHECKPOINTS, claimed, write_partition
from fedbench.scoring import Scoring, score_checkpoints
from fedbench.tracking import tell_scores, tracked
from fedbench.training_rows import client_rows, tokenize_rows

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def train(config: RunConfig, output: Path, progress: Progress = silent, command: str = "") -> Path:
    """Train every method and seed of a run; goes on where an earlier call stopped.

    Args:
        config: the run.
        output: its directory, made if absent.
        progress: told of rounds and steps.
        command: the command line, for the record.

    Returns:
        The run directory.

    Raises:
        ConfigError: the run is one for `fedbench flower export`.
        OutputError: the directory belongs to another run, or cannot be written.
        ClientError: a process that torchrun has started with this one has ended.
        FedbenchError: what `load_data`, `pretrained`, the trainer and the engine raise.
    """
    if config.engine == "flower_deployment":
        raise ConfigError(
            "engine flower_deployment: its clients are other machines; write the app with "
            "fedbench flower export RUN.yaml DIR and start it with flwr run DIR"
        )
    with crew_of(config) as crew:
        if crew is not None and crew.rank > 0:
            crew.follow()
            return output
        with (
            claimed(output, config),
            tracked(config.tracking, config.name, output, progress) as told,
        ):
            if config.engine == "in_process" or all(
                is_trained(config, output, seed) for seed in config.seeds
            ):
                _train(config, output, told, command, crew=crew)
            else:
                from fedbench.federated.engines.simulation import simulate

                checkpoints = output / CHECKPOINTS
                simulate(config, checkpoints, partial(_train, config, output, told, command))
    return output


def _train(
    config: RunConfig,
    output: Path,
    progress: Progress,
    command: str,
    engines: Callable[[Training], MakeEngine] | None = None,
    crew: Crew | None = None,
) -> None:
    """Train all seeds; `engines` makes those of a seed, where clients do not train here."""
    started = time.monotonic()
    data = load_data(config)
    seconds = {"data": time.monotonic() - started}
    facts: dict[str, Any] = {
        "data": describe_data(config.data.train),
        **_public_text(config),
        "training_rows": len(data.examples),
        "dropped_rows": data.num_dropped,
    }
    base: BaseModel | None = None
    for seed in config.seeds:
        shards = partition(data.examples, config.federation.num_clients, config.data, seed)
        facts.setdefault("clients", {})[str(seed)] = _shard_facts(data.examples, shards)
        if config.attack is not None:
            hostile = config.attack.hostile(config.federation.num_clients, seed)
            facts.setdefault("hostile_clients", {})[str(seed)] = sorted(hostile)
        write_partition(output, facts["clients"], seed, shards)
        if is_trained(config, output, seed):
            continue
        started = time.monotonic()
        private = data.scored_texts + [example.text for example in data.examples]
        place = base_directory(config, seed, private, output, progress)
        place = started_from(config, place, output)
        seconds["pre-training"] = seconds.get("pre-training", 0.0) + time.monotonic() - started
        if base is None or base.name != place:
            base = crew.load(place, config) if crew else load_base(place, config.model)
        facts |= _train_seed(config, seed, base, data.examples, shards, output, progress, engines)
        for name, spent in facts.pop("seconds").items():
            seconds[name] = seconds.get(name, 0.0) + spent
    write_run(output, _record(config, output, command, facts, seconds))


def score_run(
    config: RunConfig, output: Path, progress: Progress = silent, command: str = ""
) -> list[ScoreRecord]:
    """Score the base, the baselines, the kept rounds and the reference rows of a trained run.

    Raises:
        FedbenchError: what `load_data` and `score_checkpoints` raise; stored answers are kept.
    """
    started = time.monotonic()
    data = load_data(config)
    scoring = Scoring(
        config.model,
        engine=Engine(
            config.evaluation.backend,
            config.evaluation.engine,
            Path(config.evaluation.server) if config.evaluation.server else None,
        ),
        max_failed=config.evaluation.max_failed,
        template=config.evaluation.template or config.data.template,
    )
    checkpoints = run_checkpoints(output, config.evaluation.rounds)
    result = score_checkpoints(checkpoints, data.tasks, scoring, progress)
    for seed in config.seeds if config.evaluation.references else ():
        shards = partition(data.examples, config.federation.num_clients, config.data, seed)
        rows = [data.examples[index] for shard in shards for index in shard.train]
        for name in config.evaluation.references:
            add_reference(result, name, seed, rows, data.tasks)
    records = write_results(
        result,
        output,
        run=config.name,
        run_hash=config.hash,
        command=command,
        config=config.model_dump(mode="json"),
        seconds={"scoring": round(time.monotonic() - started, 1)},
        max_failed=config.evaluation.max_failed,
        progress=progress,
    )
    tell_scores(config.tracking, config.name, output, records)
    return records


def is_trained(config: RunConfig, output: Path, seed: int) -> bool:
    """Whether every method of a seed has committed its last round."""
    return all(
        any(round.round == config.federation.rounds for round in committed_rounds(directory))
        for method in config.methods
        for directory in _training_directories(config, output, method, seed)
    )


def _train_seed(
    config: RunConfig,
    seed: int,
    base: BaseModel,
    examples: Sequence[Example],
    shards: Sequence[Shard],
    output: Path,
    progress: Progress,
    engines: Callable[[Training], MakeEngine] | None,
) -> dict[str, Any]:
    """Train all methods of one seed on the resident base, which is left as it was."""
    examples, shards = with_canaries(config.data.canaries, examples, shards, seed)
    tokenized = tokenize_rows(config, examples, base.tokenizer)
    rows = client_rows(config, tokenized, shards)
    seconds: dict[str, float] = {}
    prepare_training(
        base, config.model.lora, seed, checkpointing=config.local.gradient_checkpointing
    )
    training = Training(
        config, seed, base, get_state(base.module), rows, output / CHECKPOINTS, progress
    )
    make_engine = engines(training) if engines else None
    try:
        for method in config.methods:
            started = time.monotonic()
            if method.algorithm == "local":
                for client in config.local_clients(method):
                    train_local(training, method.name, client)
            elif method.algorithm == "centralised":
                train_centralised(training, method.name)
            else:
                algorithm = config.algorithm_for(method)
                train_federated(training, method.name, algorithm, make_engine)
            seconds[f"training {method.name}"] = time.monotonic() - started
    finally:
        set_state(base.module, training.initial_state)
        remove_lora(base)
    trained = sum(parameter.numel() for parameter in training.initial_state.values())
    return {
        "parameters": sum(p.numel() for p in base.module.parameters()),
        "trained_parameters": trained,
        **tokenized.facts,
        "seconds": seconds,
    }


def _training_directories(config: RunConfig, output: Path, method: Method, seed: int) -> list[Path]:
    directory = output / CHECKPOINTS / method.name / f"seed-{seed}"
    if method.algorithm != "local":
        return [directory]
    return [directory / f"client-{client:03d}" for client in config.local_clients(method)]


def _public_text(config: RunConfig) -> dict[str, list[str]]:
    """What a base made within the run was made from; nothing where the base came from elsewhere."""
    if config.model.pretrain is None:
        return {}
    return {"public_text": [describe_data(name) for name in config.model.pretrain.text]}


def _shard_facts(examples: Sequence[Example], shards: Sequence[Shard]) -> list[dict[str, Any]]:
    return [
        {
            "num_train": len(shard.train),
            "num_validation": len(shard.validation),
            "num_test": len(shard.test),
            "labels": label_counts(examples, shard.train),
        }
        for shard in shards
    ]


def _record(
    config: RunConfig, output: Path, command: str, facts: dict[str, Any], seconds: dict[str, float]
) -> RunRecord:
    """The run's record; what an earlier call measured is kept where this one had nothing to do."""
    before = read_run(output)
    known = before.facts if before else {}
    spent = before.seconds if before else {}
    trainings = [
        directory
        for method in config.methods
        for seed in config.seeds
        for directory in _training_directories(config, output, method, seed)
    ]
    return RunRecord(
        run=config.name,
        run_hash=config.hash,
        command=command,
        config=config.model_dump(mode="json"),
        facts=known | facts,
        seconds=spent | {name: round(s, 1) for name, s in seconds.items() if s >= 0.05},
        privacy=tuple(privacy_records(config, trainings)),
        **provenance(),
    )

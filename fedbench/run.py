"""One run: train every method and seed of a run file, then score what came out.

A run directory holds ``run.yaml`` (the resolved configuration), ``partition.json``, ``base/``
(where the run made its own), ``checkpoints/<method>/seed-<s>/...``, ``answers.sqlite``,
``run.json``, ``scores.jsonl`` and ``samples/``. Running the same configuration again into it
repeats nothing that is finished.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedbench.checkpoints import BASES, run_checkpoints
from fedbench.config import RunConfig
from fedbench.data.datasets import Example, dataset_config, find_overlaps, load_examples
from fedbench.data.partition import Shard, label_counts, partition
from fedbench.data.templates import get_template
from fedbench.data.tokenize import Tokens, tokenize
from fedbench.errors import DataError, OutputError
from fedbench.evaluation.references import add_reference
from fedbench.evaluation.task import Item, Task, load_items, load_tasks
from fedbench.federated import make_algorithm
from fedbench.federated.checkpoint import committed_rounds
from fedbench.federated.server import (
    Training,
    train_centralised,
    train_federated,
    train_local,
)
from fedbench.model import BaseModel, add_lora, get_state, load_base, remove_lora, set_state
from fedbench.pretrain import pretrained
from fedbench.provenance import provenance
from fedbench.results.record import (
    RunRecord,
    ScoreRecord,
    read_run,
    write_atomically,
    write_run,
)
from fedbench.schema import validated
from fedbench.scoring import Scoring, score_checkpoints, write_results

CONFIG_FILE = "run.yaml"
PARTITION_FILE = "partition.json"
CHECKPOINTS = "checkpoints"
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is scored on."""

    examples: Sequence[Example]
    """Training rows, without those that share a scored item."""
    num_dropped: int
    """Rows left out because they share a scored item."""
    tasks: Sequence[tuple[Task, Sequence[Item]]]

    @property
    def scored_texts(self) -> list[str]:
        """The texts of all scored items."""
        return [item.text for _, items in self.tasks for item in items]


def load_data(config: RunConfig) -> RunData:
    """Tasks and training rows, the latter without any that share a scored item.

    Raises:
        ConfigError: unknown names.
        DataError: rows cannot be had, or nothing is left to train on.
    """
    chosen = load_tasks(config.evaluation.tasks, config.evaluation.suite)
    # Whole tasks, whatever evaluation.limit says: no row may share an item that could be scored.
    tasks = [(task, load_items(task, config.data.mirror)) for task in chosen]
    examples = load_examples(config.data.train, config.data.mirror, config.data.limit)
    scored = [item.text for _, items in tasks for item in items]
    overlapping = find_overlaps([example.text for example in examples], scored)
    kept = [example for n, example in enumerate(examples) if n not in overlapping]
    if not kept:
        raise DataError(
            f"data.train {config.data.train}: all {len(examples)} rows share a scored item; "
            "choose other training data or other tasks"
        )
    limit = config.evaluation.limit
    return RunData(kept, len(overlapping), [(task, items[:limit]) for task, items in tasks])


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
        OutputError: the directory belongs to another run, or cannot be written.
        FedbenchError: what `load_data`, `pretrained` and the trainer raise.
    """
    claim(output, config)
    started = time.monotonic()
    data = load_data(config)
    seconds = {"data": time.monotonic() - started}
    facts: dict[str, Any] = {
        "data": dataset_config(config.data.train).description,
        **_public_text(config),
        "training_rows": len(data.examples),
        "dropped_rows": data.num_dropped,
    }
    base: BaseModel | None = None
    for seed in config.seeds:
        shards = partition(data.examples, config.federation.num_clients, config.data, seed)
        facts.setdefault("clients", {})[str(seed)] = _shard_facts(data.examples, shards)
        write_partition(output, facts["clients"], seed, shards)
        if is_trained(config, output, seed):
            continue
        started = time.monotonic()
        private = data.scored_texts + [example.text for example in data.examples]
        place = base_directory(config, seed, private, output, progress)
        seconds["pre-training"] = seconds.get("pre-training", 0.0) + time.monotonic() - started
        if base is None or base.name != place:
            base = load_base(place, config.model)
        facts |= _train_seed(config, seed, base, data.examples, shards, output, progress)
        for name, spent in facts.pop("seconds").items():
            seconds[name] = seconds.get(name, 0.0) + spent
    write_run(output, _record(config, output, command, facts, seconds))
    return output


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
        backend=config.evaluation.backend,
        batch_tokens=config.evaluation.batch_tokens,
        max_failed=config.evaluation.max_failed,
        template=config.data.template,
    )
    checkpoints = run_checkpoints(output, config.evaluation.rounds)
    result = score_checkpoints(checkpoints, data.tasks, scoring, output, progress)
    for seed in config.seeds if config.evaluation.references else ():
        shards = partition(data.examples, config.federation.num_clients, config.data, seed)
        rows = [data.examples[index] for shard in shards for index in shard.train]
        for name in config.evaluation.references:
            add_reference(result, name, seed, rows, data.tasks)
    return write_results(
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


def claim(output: Path, config: RunConfig) -> None:
    """Make a directory this run's, or see that it is.

    Raises:
        OutputError: it belongs to another run, or cannot be written.
    """
    file = output / CONFIG_FILE
    if file.exists():
        held = read_claim(output)
        if held.hash != config.hash:
            raise OutputError(
                f"{output}: holds the run {held.name!r} with configuration {held.hash}, this one "
                f"is {config.name!r} with {config.hash}; choose another --output or remove the "
                "directory"
            )
    elif (output / "scores.jsonl").exists():
        raise OutputError(f"{output}: holds scores of something else; choose another --output")
    else:
        write_atomically(file, config.to_yaml().encode())


def read_claim(output: Path) -> RunConfig:
    """The configuration of a run directory."""
    file = output / CONFIG_FILE
    return validated(RunConfig, yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


def is_trained(config: RunConfig, output: Path, seed: int) -> bool:
    """Whether every method of a seed has committed its last round."""
    return all(
        any(round.round == config.federation.rounds for round in committed_rounds(directory))
        for method in config.methods
        for directory in _training_directories(config, output, method.name, method.algorithm, seed)
    )


def base_directory(
    config: RunConfig, seed: int, private_texts: Sequence[str], output: Path, progress: Progress
) -> str:
    """Where the base model of a seed is: a hub id or directory, or one made within the run.

    A base made here is copied from the cache into the run, which is then complete by itself.

    Raises:
        OutputError: the disk is full.
    """
    if config.model.pretrain is None:
        return str(config.model.name)
    mirror = config.data.mirror
    made = pretrained(config.model.pretrain, seed, mirror, private_texts, progress)
    kept = output.resolve() / BASES / made.name
    if not kept.is_dir():
        half = kept.with_name(f".{made.name}")
        try:
            shutil.copytree(made, half, dirs_exist_ok=True)
            half.rename(kept)  # a kill leaves no half copy under its name
        except OSError as error:
            raise OutputError(
                f"{kept}: cannot be written ({error}); free some space or choose another --output, "
                "then run the same command again"
            ) from error
    return str(kept)


def write_partition(
    output: Path, counts: dict[str, Any], seed: int, shards: Sequence[Shard]
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


def _train_seed(
    config: RunConfig,
    seed: int,
    base: BaseModel,
    examples: Sequence[Example],
    shards: Sequence[Shard],
    output: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train all methods of one seed on the resident base, which is left as it was."""
    template = get_template(config.data.template)
    tokenized = tokenize(examples, template, base.tokenizer, config.data.max_length)
    rows: list[list[Tokens]] = [[tokenized.sequences[i] for i in s.train] for s in shards]
    seconds: dict[str, float] = {}
    add_lora(base, config.model.lora, seed)
    training = Training(
        config, seed, base, get_state(base.module), rows, output / CHECKPOINTS, progress
    )
    try:
        for method in config.methods:
            started = time.monotonic()
            if method.algorithm == "local":
                for client in range(config.federation.num_clients):
                    train_local(training, method.name, client)
            elif method.algorithm == "centralised":
                train_centralised(training, method.name)
            else:
                algorithm = make_algorithm(method.algorithm, method.options)
                train_federated(training, method.name, algorithm)
            seconds[f"training {method.name}"] = time.monotonic() - started
    finally:
        set_state(base.module, training.initial_state)
        remove_lora(base)
    trained = sum(parameter.numel() for parameter in training.initial_state.values())
    return {
        "parameters": sum(p.numel() for p in base.module.parameters()),
        "trained_parameters": trained,
        "sequences_cut": tokenized.num_cut,
        "seconds": seconds,
    }


def _training_directories(
    config: RunConfig, output: Path, name: str, algorithm: str, seed: int
) -> list[Path]:
    directory = output / CHECKPOINTS / name / f"seed-{seed}"
    if algorithm != "local":
        return [directory]
    return [directory / f"client-{c:03d}" for c in range(config.federation.num_clients)]


def _public_text(config: RunConfig) -> dict[str, list[str]]:
    """What a base made within the run was made from; nothing where the base came from elsewhere."""
    if config.model.pretrain is None:
        return {}
    about = [dataset_config(name).description for name in config.model.pretrain.text]
    return {"public_text": [" ".join(text.split()) for text in about]}


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
    return RunRecord(
        run=config.name,
        run_hash=config.hash,
        command=command,
        config=config.model_dump(mode="json"),
        facts=known | facts,
        seconds=spent | {name: round(s, 1) for name, s in seconds.items() if s >= 0.05},
        **provenance(),
    )

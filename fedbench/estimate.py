"""What a run will take, before it is started: steps, bytes, memory, time.

Steps and bytes follow from who takes part and from the shapes of what is sent; memory and time are
measured on a few steps of a model of the run's own shape with random weights, so nothing has to be
downloaded or pre-trained where the run makes its own base.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedbench.config import Method, RunConfig
from fedbench.data.canaries import with_canaries
from fedbench.data.partition import Shard, partition
from fedbench.data.tokenize import Row
from fedbench.federated import BASELINES
from fedbench.federated.client import accumulate, make_optimizer, reference_scores, step
from fedbench.federated.message import Setting
from fedbench.federated.objectives import make_objective
from fedbench.federated.participation import Participant, cohorts
from fedbench.federated.reading import Reader
from fedbench.federated.state import State
from fedbench.federated.timings import peak_memory
from fedbench.federated.traffic import bytes_sent
from fedbench.model import (
    BaseModel,
    get_state,
    load_base,
    lora_scaling,
    pick_device,
    prepare_training,
    trainable,
)
from fedbench.pretrain import make_llama, make_tokenizer, public_text
from fedbench.run_data import load_data
from fedbench.training_rows import TrainingRows, client_rows, tokenize_rows

MEASURED_STEPS = 5
Cohort = Sequence[Participant]


@dataclass(frozen=True)
class Estimate:
    """Cost of a run."""

    parameters: int
    trained_parameters: int
    steps: dict[str, int]
    """Optimizer steps per method, over all clients and seeds."""
    bytes_sent: dict[str, int]
    """Bytes up and down per federated method, over all rounds and seeds."""
    pretrain_steps: int
    """Of all bases that the run makes."""
    seconds_per_step: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Training time of all methods, without pre-training and scoring."""
        return sum(self.steps.values()) * self.seconds_per_step

    def describe(self) -> str:
        """The estimate in lines for people."""
        width = max(12, 1 + max(map(len, self.steps)))
        lines = [
            f"parameters        {self.parameters:,} ({self.trained_parameters:,} trained)",
            *(f"steps {name:<{width}}{number:,}" for name, number in self.steps.items()),
            f"steps pre-training {self.pretrain_steps:,} (none where cached)",
            *(
                f"bytes {name:<{width}}{sent:,} up and down"
                for name, sent in self.bytes_sent.items()
            ),
            f"memory            about {self.peak_bytes / 2**20:,.0f} MiB at the peak, measured",
            f"time              about {_duration(self.seconds)} of training at "
            f"{1000 * self.seconds_per_step:.0f} ms a step, measured over {MEASURED_STEPS} steps; "
            "pre-training and scoring come on top",
        ]
        return "\n".join(lines)


def estimate(config: RunConfig) -> Estimate:
    """Measure and count what a run will take; writes nothing.

    Raises:
        FedbenchError: the run could not be started either.
    """
    base = _model_of(config)
    shards = _rows_of_clients(config, base)
    checkpointing = config.local.gradient_checkpointing
    prepare_training(base, config.model.lora, seed=0, checkpointing=checkpointing)
    seconds = _seconds_per_step(config, base, [row for own in shards[0] for row in own])
    peak = peak_memory()
    schedule, participation = (
        config.federation.schedule(config.local),
        config.federation.participation,
    )
    drawn = [
        cohorts(participation, [len(own) for own in of_seed], schedule, seed)
        for seed, of_seed in zip(config.seeds, shards, strict=True)
    ]
    state = get_state(base.module)
    return Estimate(
        parameters=sum(p.numel() for p in base.module.parameters()),
        trained_parameters=sum(tensor.numel() for tensor in state.values()),
        steps={method.name: _steps(config, method, drawn) for method in config.methods},
        bytes_sent={
            method.name: _bytes(config, method, base, state, drawn)
            for method in config.methods
            if method.algorithm not in BASELINES
        },
        pretrain_steps=_pretrain_steps(config),
        seconds_per_step=seconds,
        peak_bytes=peak,
    )


def _rows_of_clients(config: RunConfig, base: BaseModel) -> list[list[list[Row]]]:
    """Training rows of each client, under every seed."""
    examples, every = load_data(config).examples, []
    tokenized: TrainingRows | None = None
    for seed in config.seeds:
        shards: Sequence[Shard] = partition(
            examples, config.federation.num_clients, config.data, seed
        )
        planted, shards = with_canaries(config.data.canaries, examples, shards, seed)
        if tokenized is None or planted is not examples:
            tokenized = tokenize_rows(config, planted, base.tokenizer)
        every.append(client_rows(config, tokenized, shards))
    return every


def _steps(config: RunConfig, method: Method, drawn: Sequence[Sequence[Cohort]]) -> int:
    """Steps of a method: those of the clients' turns, or of the clients that train alone."""
    own = config.local_clients(method) if method.algorithm == "local" else None
    return sum(
        participant.num_steps
        for rounds in drawn
        for cohort in rounds
        for participant in cohort
        if own is None or participant.client in own
    )


def _bytes(
    config: RunConfig,
    method: Method,
    base: BaseModel,
    state: State,
    drawn: Sequence[Sequence[Cohort]],
) -> int:
    """Bytes up and down of a federated method."""
    federation = config.federation
    setting = Setting(
        federation.num_clients, federation.rounds, config.seeds[0], lora_scaling(base.module)
    )
    algorithm = config.algorithm_for(method)
    remembered = config.engine == "in_process"
    return sum(
        bytes_sent(algorithm, federation.transport, state, setting, rounds, remembered=remembered)
        for rounds in drawn
    )


def _pretrain_steps(config: RunConfig) -> int:
    pretrain = config.model.pretrain
    if pretrain is None:
        return 0
    return pretrain.steps * (len(config.seeds) if pretrain.seed is None else 1)


def _model_of(config: RunConfig) -> BaseModel:
    pretrain = config.model.pretrain
    if pretrain is None:
        return load_base(str(config.model.name), config.model)
    examples = public_text(pretrain, 0, config.data.mirror, [])[:2000]
    texts = (f"{turn.instruction}{turn.input}{turn.response}" for e in examples for turn in e.turns)
    tokenizer = make_tokenizer(texts, pretrain.words, pretrain.vocab_size)
    module = make_llama(pretrain, tokenizer, seed=0).to(pick_device(config.model.device))
    return BaseModel(module, tokenizer, "random weights", "")


def _seconds_per_step(config: RunConfig, base: BaseModel, rows: Sequence[Row]) -> float:
    """Median time of a local step."""
    local, objective = config.local, make_objective(config.objective)
    reader = Reader(base, local, dropout=not objective.needs_reference)
    weights = trainable(base.module)
    optimizer = make_optimizer(list(weights.values()), local, local.learning_rate)
    reference = None
    if objective.needs_reference:
        rows = rows[: (MEASURED_STEPS + 1) * local.batch_size]
        reference = reference_scores(base, get_state(base.module), rows, local, objective)
    spent = []
    with reader.training():
        for number in range(MEASURED_STEPS + 1):
            first = number * local.batch_size
            chosen = [index % len(rows) for index in range(first, first + local.batch_size)]
            began = time.perf_counter()
            accumulate(reader, objective, rows, chosen, local, reference)
            step(optimizer, weights, None, local.max_grad_norm)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])  # the first step warms up


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""The rounds: draw a cohort, train its clients, aggregate, commit.

Federated, local and centralised training are the same loop over rounds with another step. Cohorts
and data order depend on the seed and the round alone, so a run that was killed and started again
ends in the same bits.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbench.config import Federation, Local, RunConfig, is_kept
from fedbench.data.tokenize import Tokens
from fedbench.federated.checkpoint import (
    Round,
    commit_round,
    committed_rounds,
    latest_round,
    load_round,
    remove_round,
)
from fedbench.federated.client import train_client
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.message import ClientMessage, ClientUpdate
from fedbench.federated.state import State
from fedbench.model import BaseModel

Progress = Callable[[str, int, int], None]
"""(what, rounds done, rounds in all)"""
UNSAVED_SECONDS = 20.0
"""A round that nobody asked to keep is committed only when more work than this would be lost."""
POOLED = -1  # the centralised model's place among data orders; no client has it


@dataclass(frozen=True)
class Training:
    """Everything the trainings of one seed share."""

    config: RunConfig
    seed: int
    base: BaseModel
    initial_state: State
    """The weights every method starts from."""
    shards: Sequence[Sequence[Tokens]]
    """Training rows per client."""
    directory: Path
    """Where checkpoints go."""
    progress: Progress

    def cohorts(self) -> list[list[int]]:
        """The clients of each round."""
        federation = self.config.federation
        return [
            sample_clients(federation, self.seed, round)
            for round in range(1, federation.rounds + 1)
        ]


def sample_clients(federation: Federation, seed: int, round: int) -> list[int]:
    """The cohort of a round, sorted; the same for every method of a seed, so that they pair."""
    clients = range(federation.num_clients)
    return sorted(random.Random(f"{seed}/{round}").sample(clients, federation.cohort_size))


def learning_rate(local: Local, round: int, rounds: int) -> float:
    """Client learning rate in `round` (from 1): constant, or a cosine towards the final one.

    The schedule of OpenFedLLM and FlowerTune: round t of T stands at (t - 1) / T of the half
    period, so the last round is one step short of the final rate.
    """
    if local.final_learning_rate is None:
        return local.learning_rate
    low, high = local.final_learning_rate, local.learning_rate
    return low + (high - low) / 2 * (1 + math.cos(math.pi * (round - 1) / rounds))


def train_federated(training: Training, name: str, algorithm: FedAvg) -> None:
    """Train the global model over all rounds; goes on from the last committed one."""
    cohorts, local = training.cohorts(), training.config.local_for(name)
    rounds = _Rounds(training, name, training.directory / name / f"seed-{training.seed}")
    state, server_state, done = rounds.resume(algorithm.start(training.initial_state))
    for round in range(done.round + 1, len(cohorts) + 1):
        messages = [
            ClientMessage(
                client=client,
                round=round,
                seed=training.seed,
                state=state,
                learning_rate=learning_rate(local, round, len(cohorts)),
                num_samples_before=_samples_before(local, cohorts, round, client),
                broadcast=algorithm.broadcast(server_state, client),
            )
            for client in cohorts[round - 1]
        ]
        updates = [
            train_client(
                training.base,
                training.shards[message.client],
                message,
                local,
                algorithm.gradient_hook(message),
            )
            for message in messages
        ]
        state, server_state = algorithm.aggregate(state, server_state, updates)
        done = rounds.commit(state, server_state, _tell(done, round, messages, updates))


def train_local(training: Training, name: str, client: int) -> None:
    """Train one client alone, in the rounds and on the samples of its federated turns."""
    cohorts, local = training.cohorts(), training.config.local_for(name)
    directory = training.directory / name / f"seed-{training.seed}" / f"client-{client:03d}"
    rounds = _Rounds(training, name, directory, client)
    state, _, done = rounds.resume({})
    for round in range(done.round + 1, len(cohorts) + 1):
        updates: list[ClientUpdate] = []
        if client in cohorts[round - 1]:
            message = ClientMessage(
                client=client,
                round=round,
                seed=training.seed,
                state=state,
                learning_rate=learning_rate(local, round, len(cohorts)),
                num_samples_before=_samples_before(local, cohorts, round, client),
            )
            shard = training.shards[client]
            updates = [train_client(training.base, shard, message, local, None)]
            state = updates[0].state
        done = rounds.commit(state, {}, _tell(done, round, [], updates))


def train_centralised(training: Training, name: str) -> None:
    """Train on the pooled rows, each round on as many samples as its cohort would use."""
    cohorts, local = training.cohorts(), training.config.local_for(name)
    pooled = [tokens for shard in training.shards for tokens in shard]
    rounds = _Rounds(training, name, training.directory / name / f"seed-{training.seed}")
    state, _, done = rounds.resume({})
    for round in range(done.round + 1, len(cohorts) + 1):
        steps = local.max_steps * len(cohorts[round - 1])
        message = ClientMessage(
            client=POOLED,
            round=round,
            seed=training.seed,
            state=state,
            learning_rate=learning_rate(local, round, len(cohorts)),
            num_samples_before=done.train_examples,
        )
        longer = local.model_copy(update={"max_steps": steps})
        update = train_client(training.base, pooled, message, longer, None)
        state = update.state
        done = rounds.commit(state, {}, _tell(done, round, [], [update]))


class _Rounds:
    """The committed rounds of one training."""

    def __init__(
        self, training: Training, name: str, directory: Path, client: int | None = None
    ) -> None:
        self.training = training
        self.directory = directory
        self.what = f"{name} seed {training.seed}" + ("" if client is None else f" client {client}")
        kind = {"local": "local", "centralised": "central"}
        algorithm = next(m.algorithm for m in training.config.methods if m.name == name)
        self.before = Round(
            run_hash=training.config.hash,
            method=name,
            seed=training.seed,
            round=0,
            last_round=training.config.federation.rounds,
            model_kind=kind.get(algorithm, "global"),
            model_client=client,
            base=training.base.name,
            base_hash=training.base.hash,
            template=training.config.data.template,
        )
        self.saved_at = time.monotonic()

    def resume(self, server_state: State) -> tuple[State, State, Round]:
        """Weights, server state and record of the last committed round, or of the beginning."""
        done = latest_round(self.directory)
        if done is None:
            return self.training.initial_state, server_state, self.before
        self._remove_older(done.round)
        self.training.progress(self.what, done.round, done.last_round)
        return (*load_round(self.directory, done), done)

    def commit(self, state: State, server_state: State, round: Round) -> Round:
        """Write a round if it is to be kept or much work is unsaved, then drop older ones."""
        self.training.progress(self.what, round.round, round.last_round)
        if not self._keeps(round) and time.monotonic() - self.saved_at < UNSAVED_SECONDS:
            return round
        committed = commit_round(self.directory, self.training.base, state, server_state, round)
        self._remove_older(round.round)
        self.saved_at = time.monotonic()
        return committed

    def _keeps(self, round: Round) -> bool:
        rule = self.training.config.evaluation.rounds if round.model_kind == "global" else "last"
        return is_kept(round.round, round.last_round, rule)

    def _remove_older(self, newest: int) -> None:
        for older in list(committed_rounds(self.directory)):
            if older.round < newest and not self._keeps(older):
                remove_round(self.directory, older.round)


def _samples_before(local: Local, cohorts: Sequence[Sequence[int]], round: int, client: int) -> int:
    turns = sum(client in cohort for cohort in cohorts[: round - 1])
    return turns * local.max_steps * local.batch_size


def _tell(
    before: Round, round: int, messages: Sequence[ClientMessage], updates: Sequence[ClientUpdate]
) -> Round:
    """The record of a round, its counts added to those of the rounds before."""
    return before.model_copy(
        update={
            "round": round,
            "train_examples": before.train_examples + sum(u.num_samples for u in updates),
            # Only a federation communicates: messages are empty for local and pooled training.
            "bytes_down": before.bytes_down + sum(m.num_bytes for m in messages),
            "bytes_up": before.bytes_up + (sum(u.num_bytes for u in updates) if messages else 0),
            "cohort": tuple(u.client for u in updates) if messages else (),
            "losses": tuple(u.loss for u in updates),
        }
    )

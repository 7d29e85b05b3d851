"""The rounds: draw a cohort, train its clients, aggregate, commit.

Federated, local and centralised training are the same loop over rounds with another step. Cohorts
and data order depend on the seed and the round alone, so a run that was killed and started again
ends in the same bits. Clients are trained one after the other as the algorithm reads their
updates, so memory does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedbench.config import RunConfig
from fedbench.data.tokenize import Row
from fedbench.federated import transport
from fedbench.federated.checkpoint import Round
from fedbench.federated.client import ALGORITHM, reference_scores, train_client
from fedbench.federated.clients import ClientStates
from fedbench.federated.drift import Drift
from fedbench.federated.engine import Engine, MakeEngine, Turn
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.low_rank import dense_increment
from fedbench.federated.message import ClientMessage, ClientUpdate, ServerState, Setting
from fedbench.federated.objectives import Objective, make_objective
from fedbench.federated.participation import Participant, cohorts
from fedbench.federated.privacy.clipping import clip_update
from fedbench.federated.privacy.dp_sgd_account import ExamplePrivacy
from fedbench.federated.privacy.mean import from_weights
from fedbench.federated.privacy.training import cohort_key, private_mean
from fedbench.federated.rounds import Progress, Rounds
from fedbench.federated.settings import Local
from fedbench.federated.state import State, num_bytes, part
from fedbench.federated.told import Told, facts_of, record_of
from fedbench.federated.turns import Turns
from fedbench.federated.update_error import UpdateError
from fedbench.model import BaseModel, lora_scaling, on_device, set_base_delta


@dataclass(frozen=True)
class Training:
    """Everything the trainings of one seed share."""

    config: RunConfig
    seed: int
    base: BaseModel
    initial_state: State
    """The weights every method starts from."""
    shards: Sequence[Sequence[Row]]
    """Training rows per client."""
    directory: Path
    """Where checkpoints go."""
    progress: Progress
    num_rows: Sequence[int] | None = None
    """Training rows per client where `shards` is not at hand: they lie elsewhere."""
    _references: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def cohorts(self) -> list[list[Participant]]:
        """Who takes part in each round; the same for every method of a seed, so that they pair."""
        federation = self.config.federation
        schedule = federation.schedule(self.config.local)
        key = cohort_key(self.config, self.seed, self.directory)
        return cohorts(federation.participation, self.sizes, schedule, key)

    @property
    def sizes(self) -> Sequence[int]:
        """Training rows per client, wherever they lie."""
        return self.num_rows or [len(shard) for shard in self.shards]

    @cached_property
    def hostile(self) -> frozenset[int]:
        """Clients that send something else than what they have trained."""
        attack = self.config.attack
        if attack is None:
            return frozenset()
        return attack.hostile(self.config.federation.num_clients, self.seed)

    @cached_property
    def objective(self) -> Objective:
        """What clients minimise."""
        return make_objective(self.config.objective)

    @property
    def setting(self) -> Setting:
        """What stays the same over a federated training."""
        federation = self.config.federation
        scaling = lora_scaling(self.base.module)
        return Setting(federation.num_clients, federation.rounds, self.seed, scaling)

    def knows(self, client: int) -> bool:
        """Whether a client's reference log-likelihoods have been computed."""
        return client in self._references

    def reference(self, client: int) -> Tensor | None:
        """A client's log-likelihoods under the reference model, computed once.

        The base must be without any round's change of it.
        """
        if not self.objective.needs_reference:
            return None
        if client not in self._references:
            self._references[client] = reference_scores(
                self.base,
                self.initial_state,
                self.shards[client],
                self.config.local,
                self.objective,
            )
        return self._references[client]


def learning_rate(local: Local, round: int, rounds: int) -> float:
    """Client learning rate in `round` (from 1): constant, or a cosine towards the final one.

    The schedule of OpenFedLLM and FlowerTune: round t of T stands at (t - 1) / T of the half
    period, so the last round is one step short of the final rate.
    """
    if local.final_learning_rate is None:
        return local.learning_rate
    low, high = local.final_learning_rate, local.learning_rate
    return low + (high - low) / 2 * (1 + math.cos(math.pi * (round - 1) / rounds))


def train_federated(
    training: Training, name: str, algorithm: FedAvg, make_engine: MakeEngine | None = None
) -> None:
    """Train the global model over all rounds; goes on from the last committed one.

    Args:
        training: what the trainings of a seed share.
        name: of the method.
        algorithm: the method's.
        make_engine: where clients train if not here, one after the other.
    """
    rounds = Rounds(
        training.config,
        training.base,
        name,
        training.seed,
        training.directory / name / f"seed-{training.seed}",
        training.progress,
        personal=algorithm.personal,
    )
    start = ServerState(training.setting, training.initial_state)
    start = replace(start, own=algorithm.start(start.weights, start.setting))
    server, delta, done = rounds.resume(start)
    engine = make_engine(name, algorithm, rounds.directory) if make_engine else None
    _Federated(training, name, algorithm, rounds, engine).run(server, delta, done)


def take_turn(
    training: Training,
    local: Local,
    algorithm: FedAvg,
    states: ClientStates,
    message: ClientMessage,
    delta: State,
) -> Turn:
    """Train one client where its rows and its stored state are.

    Args:
        training: with the resident base, the base weights grown by `delta`.
        local: how the method trains.
        algorithm: the method's.
        states: what clients have stored; this one's is read and, after training, written.
        message: what the server sent, without the stored state.
        delta: what all rounds have added to the frozen base weights.
    """
    client, device = message.client, training.base.device
    message = replace(message, client_state=on_device(states.read(client), device))
    update = train_client(
        training.base,
        training.shards[client],
        message,
        local,
        algorithm,
        training.objective,
        _reference_under(training, client, delta),
    )
    update = clip_update(message, update)
    if training.config.attack is not None and client in training.hostile:
        update = training.config.attack.sent(message, update)
    sent, received = transport.up(training.config.federation.transport, message, update)
    states.write(client, message.round, sent.client_state)
    return Turn(message, sent, received)


class _Federated:
    """The rounds of one federated method."""

    def __init__(
        self,
        training: Training,
        name: str,
        algorithm: FedAvg,
        rounds: Rounds,
        engine: Engine | None,
    ) -> None:
        self.training = training
        self.engine = engine
        self.algorithm = algorithm
        self.rounds = rounds
        self.local = training.config.local_for(name)
        self.clients = ClientStates(rounds.directory / "clients")
        self.turns = Turns(self.local.batch_size)
        self.privacy = private_mean(training.config, training.cohorts, training.seed)
        self.examples = ExamplePrivacy.of(self.local, training.sizes, training.cohorts)

    def run(self, server: ServerState, delta: State, done: Round) -> None:
        """All rounds that are not done."""
        self.turns.recall(self.rounds.directory, self.training.cohorts, done.round)
        if self.privacy is not None:
            self.privacy.open(self.rounds.directory, done)
        if self.examples is not None:
            self.examples.open(self.rounds.directory, done)
        if self.engine is None:
            self.clients.forget_after(done.round, self.turns.last)
        base, self.committed = self.training.base, done.round
        try:
            for number in range(done.round + 1, len(self.training.cohorts) + 1):
                set_base_delta(base, delta)
                server, facts = self._round(server, delta, number)
                if server.increment:
                    delta = _grown(delta, dense_increment(server.increment))
                record = record_of(done, number, facts, server.setting.num_clients)
                done, saved = self.rounds.commit(server, record, delta, self._personal(server))
                if saved:
                    self.committed = number
                    if self.engine is None:
                        self.clients.forget_before(number)
                self.turns.count(number, zip(record.cohort, record.steps, strict=True))
        finally:
            set_base_delta(base, {})

    def _round(
        self, server: ServerState, delta: State, number: int
    ) -> tuple[ServerState, dict[str, Any]]:
        told: list[Told] = []
        is_plain = self.privacy is None and not self.algorithm.personal
        error = UpdateError(server, self.algorithm.weight) if is_plain else None
        drift = Drift(lambda client: self.algorithm.sent(server, client))
        spent = self.privacy is not None and not self.privacy.affords(number)
        chosen = [] if spent else self.training.cohorts[number - 1]
        updates = drift.watch(self._updates(server, delta, number, chosen, told))
        if error is not None:
            updates = error.watch(updates)
        new = replace(server if spent else self._aggregated(server, number, updates), round=number)
        for _ in updates:  # a rule that stops reading still has its whole cohort trained
            pass
        answered = {one.client for one in told}
        dropped = [p.client for p in chosen if p.client not in answered]
        return new, {
            **facts_of(told),
            "cohort": tuple(one.client for one in told),
            "dropped": tuple(dropped),
            "client_bytes_down": tuple(one.bytes_down for one in told),
            "client_bytes_up": tuple(one.bytes_up for one in told),
            "broadcast_bytes": num_bytes(new.increment),
            "update_error": None if error is None else error.of(new),
            "drift": drift.norms,
            "update_cosine": drift.cosine,
            **({} if self.privacy is None else self.privacy.facts(server, stopped=spent)),
            **({} if self.examples is None else self.examples.facts([one.client for one in told])),
        }

    def _aggregated(
        self, server: ServerState, number: int, updates: Iterator[ClientUpdate]
    ) -> ServerState:
        if self.privacy is None:
            return self.algorithm.aggregate(server, updates)
        names = [
            name
            for name in server.weights
            if self.algorithm.trains(name, number) and self.algorithm.shares(name)
        ]
        server, mean = self.privacy.mean(server, number, names, updates)
        return self.algorithm.aggregate(server, [mean])

    def _updates(
        self,
        server: ServerState,
        delta: State,
        number: int,
        chosen: Sequence[Participant],
        told: list[Told],
    ) -> Iterator[ClientUpdate]:
        """Train the cohort; in this process each client when its update is asked for."""
        if self.examples is not None:
            self.examples.release(number, [one.client for one in chosen if not one.drops_out])
        messages = (
            self._message(server, number, participant)
            for participant in chosen
            if not participant.drops_out
        )
        turns = (
            self.engine.turns(list(messages), delta, self.committed)
            if self.engine is not None
            else (
                take_turn(self.training, self.local, self.algorithm, self.clients, message, delta)
                for message in messages
            )
        )
        for turn in turns:
            told.append(Told.of(turn.message, turn.sent))
            yield turn.received if self.privacy is None else from_weights(server.weights, turn)

    def _message(self, server: ServerState, number: int, participant: Participant) -> ClientMessage:
        client, training = participant.client, self.training
        message = ClientMessage(
            client=client,
            round=number,
            seed=training.seed,
            state=self.algorithm.sent(server, client),
            learning_rate=learning_rate(self.local, number, len(training.cohorts)),
            num_samples_before=self.turns.samples.get(client, 0),
            num_steps=participant.num_steps,
            received=self._received(server, number, client),
            broadcast={
                **self.algorithm.broadcast(server, client),
                **(self.privacy.broadcast(server) if self.privacy else {}),
                **(self.examples.broadcast(client) if self.examples else {}),
            },
            last_turn=self.turns.last.get(client, 0),
        )
        return transport.down(training.config.federation.transport, message)

    def _received(self, server: ServerState, number: int, client: int) -> frozenset[str]:
        """What travels down: the weights that have changed since the client's last turn.

        A client that comes for the first time gets all that ever train and are shared; what never
        trains it makes itself, from the seed. Through an engine every turn is like the first.
        """
        last = self.turns.last.get(client) if self.engine is None else None
        rounds = len(self.training.cohorts)
        return received(self.algorithm, server.weights, last, number, rounds)

    def _personal(self, server: ServerState) -> Callable[[], Iterator[tuple[int, State]]] | None:
        """Each client's own model: what is shared, with what it keeps to itself."""
        elsewhere = self.engine is not None and not self.engine.stores_here
        if not self.algorithm.personal or elsewhere:
            return None

        def models() -> Iterator[tuple[int, State]]:
            for client in range(self.training.config.federation.num_clients):
                stored = part(self.clients.read(client), ALGORITHM)
                own = {name: stored[name] for name in server.weights if name in stored}
                yield client, {**server.weights, **own}

        return models


def received(
    algorithm: FedAvg, names: Iterable[str], last: int | None, number: int, rounds: int
) -> frozenset[str]:
    """Of the weights, those that travel down in round `number` of `rounds`.

    Args:
        algorithm: says what trains when, and what is shared.
        names: of all weights.
        last: the round of the client's last turn; None before its first.
        number: the round, from 1.
        rounds: how many there are.
    """
    since = range(1, rounds + 1) if last is None else range(last, number)
    return frozenset(
        name
        for name in names
        if algorithm.shares(name) and any(algorithm.trains(name, round) for round in since)
    )


def _reference_under(training: Training, client: int, delta: State) -> Tensor | None:
    """The reference model is the base as it was before any round changed it."""
    if delta and training.objective.needs_reference and not training.knows(client):
        set_base_delta(training.base, {})
        reference = training.reference(client)
        set_base_delta(training.base, delta)
        return reference
    return training.reference(client)


def _grown(delta: State, increment: State) -> State:
    """What all rounds have added to the base weights."""
    return {name: delta[name] + more if name in delta else more for name, more in increment.items()}

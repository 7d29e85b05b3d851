"""What a federated method will send, before anything is trained.

Turns are made as in training but for the training itself: weights that are a little moved stand in
for trained ones, and the bytes are those of the tensors that would travel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from fedbench.federated import transport
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.message import ClientMessage, ClientUpdate, ServerState, Setting
from fedbench.federated.participation import Participant
from fedbench.federated.server import received
from fedbench.federated.settings import Transport
from fedbench.federated.state import State, num_bytes

MOVED = 1e-3
"""How far stand-ins are from what was sent: an algorithm may divide by the length of an update."""


def bytes_sent(
    algorithm: FedAvg,
    form: Transport,
    weights: State,
    setting: Setting,
    cohorts: Sequence[Sequence[Participant]],
    *,
    remembered: bool = True,
) -> int:
    """Bytes up and down of all rounds, as the history of a training counts them.

    The few numbers that `privacy` and `local.dp_sgd` send beside the weights are left out.

    Args:
        algorithm: the method's.
        form: in which weights travel.
        weights: those that training starts from.
        setting: of the training.
        cohorts: of every round.
        remembered: whether clients keep what they were sent; with the engines of Flower every turn
            is like the first.
    """
    server = ServerState(setting, weights, own=algorithm.start(weights, setting))
    turns, last = _Turns(algorithm, form, server), dict[int, int]()
    increments: dict[Hashable, int] = {}
    total = 0
    for number, chosen in enumerate(cohorts, start=1):
        made = []
        for client in (one.client for one in chosen if not one.drops_out):
            made.append(turns.of(client, number, last.get(client) if remembered else None))
            last[client] = number
        total += sum(turn.num_bytes for turn in made)
        if algorithm.changes_base and made:
            shapes = frozenset(Counter(turn.shapes for turn in made).items())
            if shapes not in increments:
                # Tensors of their own: sums of products join the terms that share a factor.
                updates = [replace(t.update, state=_copied(t.update.state)) for t in made]
                increments[shapes] = num_bytes(algorithm.aggregate(server, updates).increment)
            total += setting.num_clients * increments[shapes]
    return total


@dataclass(frozen=True)
class _Turn:
    shapes: Hashable
    """Two turns that agree in this send as much."""
    num_bytes: int
    update: ClientUpdate


@dataclass
class _Turns:
    """Turns without training, one for each combination of shapes."""

    algorithm: FedAvg
    form: Transport
    server: ServerState
    made: dict[Hashable, _Turn] = field(default_factory=dict)

    def of(self, client: int, number: int, last: int | None) -> _Turn:
        """A client's turn in round `number`, after one in round `last`."""
        algorithm, server = self.algorithm, self.server
        names = received(algorithm, server.weights, last, number, server.setting.rounds)
        trained = frozenset(name for name in server.weights if algorithm.trains(name, number))
        sent = algorithm.sent(server, client)
        shapes = (names, trained, tuple(tensor.shape for tensor in sent.values()))
        if shapes not in self.made:
            message = ClientMessage(
                client=client,
                round=number,
                seed=server.setting.seed,
                state=sent,
                learning_rate=1.0,
                num_samples_before=0,
                num_steps=1,
                received=names,
                broadcast=algorithm.broadcast(server, client),
            )
            self.made[shapes] = self._turn(shapes, transport.down(self.form, message), trained)
        return self.made[shapes]

    def _turn(self, shapes: Hashable, message: ClientMessage, trained: frozenset[str]) -> _Turn:
        algorithm, weights = self.algorithm, self.server.weights
        moved = {
            name: tensor.to(weights[name].dtype) + MOVED
            for name, tensor in algorithm.initial(message).items()
            if name in trained
        }
        update = ClientUpdate(
            client=message.client,
            state={name: tensor for name, tensor in moved.items() if algorithm.shares(name)},
            num_examples=1,
            num_samples=1,
            num_steps=1,
            loss=0.0,
        )
        rule = algorithm.local_rule(message)
        if rule is not None:
            rule.trained = moved
            update = rule.finish(update)
        sent, read = transport.up(self.form, message, update)
        return _Turn(shapes, message.num_bytes + sent.num_bytes, read)


def _copied(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}

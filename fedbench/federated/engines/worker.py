"""The client's side: takes an order, trains, answers.

The same code runs in Flower's simulated workers and on the nodes of a deployment. They differ in
where rows, base and stored states lie.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from flwr.app import RecordDict

from fedbench.config import RunConfig
from fedbench.data.tokenize import Row
from fedbench.errors import FedbenchError
from fedbench.federated.clients import ClientStates
from fedbench.federated.engines.wire import (
    Order,
    WireError,
    hash_of,
    pack_refusal,
    pack_update,
    unpack_order,
)
from fedbench.federated.message import ClientUpdate
from fedbench.federated.server import Training, take_turn
from fedbench.federated.settings import Local
from fedbench.model import get_state, load_base, on_device, prepare_training, set_base_delta

LOG = logging.getLogger(__name__)
Load = Callable[[int], Sequence[Row]]


class RefusalError(Exception):
    """A client does not train; `word` is all that the server is told."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class ClientRows(Sequence[Sequence[Row]]):
    """Training rows per client, read and tokenised when a client is first met."""

    def __init__(self, load: Load, num_clients: int) -> None:
        self._load = load
        self._num_clients = num_clients
        self._known: dict[int, Sequence[Row]] = {}

    def __len__(self) -> int:
        return self._num_clients

    @overload
    def __getitem__(self, client: int) -> Sequence[Row]: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Sequence[Row]]: ...
    def __getitem__(self, client: int | slice) -> Sequence[Row] | Sequence[Sequence[Row]]:
        if isinstance(client, slice):
            return [self[one] for one in range(*client.indices(len(self)))]
        if client not in self._known:
            self._known[client] = self._load(client)
        return self._known[client]


@dataclass(frozen=True)
class Worker:
    """What a process keeps between turns: the resident base, and the rows of clients it has met."""

    training: Training
    states: Path
    """Where stored states lie: ``<method>/seed-<s>/clients`` below it."""
    client: int | None = None
    """The one it serves; None: any."""

    @classmethod
    def start(
        cls,
        config: RunConfig,
        seed: int,
        base: str,
        load: Callable[[object], Load],
        states: Path,
        client: int | None = None,
    ) -> Worker:
        """Load the base, with fresh adapters on it.

        Args:
            config: the run.
            seed: of the training.
            base: directory or hub id.
            load: given the tokenizer, what reads a client's rows.
            states: where stored states lie.
            client: the one it serves; None: any.

        Raises:
            FedbenchError: what `load_base` and `prepare_training` raise.
        """
        model = load_base(base, config.model)
        checkpointing = config.local.gradient_checkpointing
        prepare_training(model, config.model.lora, seed, checkpointing=checkpointing)
        rows = ClientRows(load(model.tokenizer), config.federation.num_clients)
        start = get_state(model.module)
        training = Training(config, seed, model, start, rows, states, lambda *_: None)
        return cls(training, states, client)

    def train(self, order: Order) -> ClientUpdate:
        """Train one client as ordered.

        What the client stored in turns that did not count is forgotten first.

        Raises:
            RefusalError: it cannot be done here, or not from the state that the server believes.
            FedbenchError: rows cannot be read, or training failed.
        """
        training, message = self.training, order.message
        self._check(order)
        place = self.states / order.method / f"seed-{training.seed}" / "clients"
        states = ClientStates(place)
        states.rewind(message.client, message.last_turn)
        states.prune(message.client, order.committed)
        stored = states.last_round(message.client)
        base = training.base
        complete = {**training.initial_state, **on_device(message.state, base.device)}
        message = replace(
            message, state=complete, broadcast=on_device(message.broadcast, base.device)
        )
        method = next(m for m in training.config.methods if m.name == order.method)
        local = training.config.local_for(order.method)
        delta = on_device(order.delta, base.device)
        set_base_delta(base, delta)
        turn = take_turn(
            training,
            local,
            training.config.algorithm_for(method),
            states,
            message,
            delta,
        )
        if turn.sent.client_state and stored != message.last_turn:
            # Who stores something now has stored something in every turn before.
            states.rewind(message.client, message.last_turn)
            raise RefusalError("lost_state")
        if tells_loss(local):
            return turn.sent
        return replace(turn.sent, loss=math.nan, num_tokens=0)

    def _check(self, order: Order) -> None:
        training, message = self.training, order.message
        if self.client is not None and message.client != self.client:
            raise RefusalError("other_client")
        names = [method.name for method in training.config.methods]
        ours = (training.config.hash, training.seed)
        if ours != (order.run_hash, message.seed) or order.method not in names:
            raise RefusalError("other_run")
        if training.base.hash != order.base_hash:
            raise RefusalError("other_base")
        start = training.initial_state
        if not message.state.keys() <= start.keys():
            raise RefusalError("other_base")
        if order.start_hash != hash_of({n: t for n, t in start.items() if n not in message.state}):
            raise RefusalError("other_start")


def tells_loss(local: Local) -> bool:
    """Whether a client tells its loss and its tokens, which the noise of DP-SGD does not cover."""
    return local.dp_sgd is None or local.dp_sgd.simulated


def answer(content: RecordDict, worker_for: Callable[[Order], Worker]) -> RecordDict:
    """What is sent back for an order: an update, or the word that says why there is none.

    Args:
        content: the order.
        worker_for: gives the process's worker.
    """
    try:
        order = unpack_order(content)
    except WireError:
        LOG.exception("the server's order cannot be read")
        return pack_refusal("bug")
    return guarded("training", lambda: pack_update(_worker(worker_for, order).train(order)))


def guarded(word: str, act: Callable[[], RecordDict]) -> RecordDict:
    """What `act` gives, or a word: the text of an error stays in the log of this machine.

    Args:
        word: for errors that a user can mend.
        act: what may fail.
    """
    try:
        return act()
    except RefusalError as error:
        LOG.error("refused: %s", error.word)
        return pack_refusal(error.word)
    except FedbenchError as error:
        LOG.error("%s", error)
        return pack_refusal(word)
    except Exception:  # Flower would send its text to the server, with what it quotes
        LOG.exception("a bug in fedbench")
        return pack_refusal("bug")


def _worker(worker_for: Callable[[Order], Worker], order: Order) -> Worker:
    try:
        return worker_for(order)
    except FedbenchError as error:
        LOG.error("%s", error)
        raise RefusalError("data") from error

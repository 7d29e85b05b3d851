"""The server's side of a round: orders go out, answers come back and are checked."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedbench.errors import ClientError
from fedbench.federated.engine import Turn
from fedbench.federated.engines.checking import read_update
from fedbench.federated.engines.wire import (
    REFUSALS,
    Order,
    WireError,
    hash_of,
    pack_order,
    refusal,
    unpack_update,
)
from fedbench.federated.engines.worker import tells_loss
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.message import ClientMessage
from fedbench.federated.server import Training
from fedbench.federated.state import State
from fedbench.model import on_device

LOG = logging.getLogger(__name__)
POLL_SECONDS = 0.1


class Nodes(Protocol):
    """Which of Flower's nodes serve which clients."""

    def serving(self, clients: Sequence[int]) -> Mapping[int, int]:
        """The node of each client that can be reached now or before long."""

    def num_rows(self, client: int) -> int:
        """Training rows of a client."""


@dataclass
class Post:
    """Sends through Flower's grid, and waits."""

    grid: Grid
    poll: float = POLL_SECONDS
    stopped: Callable[[], bool] = lambda: False
    """Whether the run was ended meanwhile."""

    def exchange(
        self, letters: Mapping[int, RecordDict], kind: str, group: str, timeout: float
    ) -> Iterator[tuple[int, Message]]:
        """Send to nodes and give each answer as it comes; who is late is left out.

        Args:
            letters: by node.
            kind: of Flower's message types.
            group: the round, for Flower's logs.
            timeout: in seconds.

        Raises:
            ClientError: the run was ended.
        """
        messages = [
            Message(content, node, kind, ttl=timeout, group_id=group)
            for node, content in letters.items()
        ]
        self.grid.push_messages(messages)
        # Pushing names the messages; an answer tells which one it is for, whoever gives it.
        node_of = {
            message.metadata.message_id: message.metadata.dst_node_id for message in messages
        }
        waiting = set(node_of)
        end = time.monotonic() + timeout
        while waiting:
            if self.stopped():
                raise ClientError("the run was ended while clients were training")
            for reply in self.grid.pull_messages(waiting):
                answered = reply.metadata.reply_to_message_id
                waiting.discard(answered)
                yield node_of[answered], reply
            if time.monotonic() >= end:
                return
            if waiting:
                time.sleep(self.poll)


@dataclass
class Courier:
    """Flower as an `Engine`."""

    post: Post
    nodes: Nodes
    training: Training
    name: str
    algorithm: FedAvg
    directory: Path
    base: str
    """Where workers of this machine find the base; empty for nodes, which have their own."""
    stores_here: bool

    def __post_init__(self) -> None:
        self._settings = self.training.config.flower
        self._failed: set[int] = set()
        self._hashes: dict[frozenset[str], str] = {}

    def turns(
        self, messages: Sequence[ClientMessage], delta: State, committed: int
    ) -> Iterator[Turn]:
        """See `Engine.turns`."""
        if not messages:
            return
        round = messages[0].round
        asked = {message.client: message for message in messages}
        answers = self._answers(asked, delta, committed, round)
        turns: dict[int, Turn] = {}
        for client, reply in answers:
            try:
                turns[client] = self._turn(asked[client], reply)
            except WireError as error:
                self._fail(round, client, f"what it sent {error}")
            except _NoUpdateError as error:
                self._fail(round, client, str(error))
        for client in asked.keys() - turns.keys():
            if client not in self._failed:
                seconds = f"{self._settings.round_timeout:g}"
                self._fail(round, client, f"it sent nothing within {seconds} seconds")
        # A cohort drawn by coins may be smaller than that, and would be so again.
        if len(turns) < min(self._settings.min_clients, len(asked)):
            raise ClientError(
                f"round {round}: {len(turns)} of {len(asked)} clients sent an update, but "
                f"flower.min_clients is {self._settings.min_clients}; run the same command again "
                "when more of them can be reached: finished rounds are kept"
            )
        yield from (turns[client] for client in sorted(turns))

    def _answers(
        self, asked: Mapping[int, ClientMessage], delta: State, committed: int, round: int
    ) -> Iterator[tuple[int, Message]]:
        self._failed = set()
        nodes = self.nodes.serving(list(asked))
        for client in asked.keys() - nodes.keys():
            self._fail(round, client, "its node is not connected")
        letters = {
            node: pack_order(self._order(asked[client], delta, committed))
            for client, node in nodes.items()
        }
        client_at = {node: client for client, node in nodes.items()}
        timeout = self._settings.round_timeout
        replies = self.post.exchange(letters, MessageType.TRAIN, str(round), timeout)
        for node, reply in replies:
            if self._settings.keep_messages and reply.has_content():
                place = self.directory / "messages" / f"round-{round:04d}"
                keep(place, client_at[node], reply.content)
            yield client_at[node], reply

    def _order(self, message: ClientMessage, delta: State, committed: int) -> Order:
        travels = message.state.keys() if message.received is None else message.received
        stays = frozenset(message.state.keys() - travels)
        if stays not in self._hashes:
            start = self.training.initial_state
            self._hashes[stays] = hash_of({name: start[name] for name in stays})
        return Order(
            message=message,
            delta=delta,
            committed=committed,
            method=self.name,
            run_hash=self.training.config.hash,
            base=self.base,
            base_hash=self.training.base.hash,
            start_hash=self._hashes[stays],
        )

    def _turn(self, message: ClientMessage, reply: Message) -> Turn:
        if reply.has_error():
            reason = " ".join(str(reply.error.reason).split())[:300]
            raise _NoUpdateError(f"Flower reports {reason or reply.error.code}")
        word = refusal(reply.content)
        if word is not None:
            about = REFUSALS.get(word, "its node refused in a word that is not known")
            raise _NoUpdateError(f"{about} (see the node's log)")
        sent = unpack_update(reply.content)
        device = self.training.base.device
        sent = replace(
            sent, state=on_device(sent.state, device), extra=on_device(sent.extra, device)
        )
        received = read_update(
            sent,
            message,
            self.algorithm,
            self.training.config.federation.transport,
            self.training.initial_state,
            self.nodes.num_rows(message.client),
            has_loss=tells_loss(self.training.config.local_for(self.name)),
        )
        return Turn(message, sent, received)

    def _fail(self, round: int, client: int, why: str) -> None:
        self._failed.add(client)
        if self._settings.on_failure == "stop":
            raise ClientError(
                f"round {round}, client {client}: {why}; mend it and run the same command again, "
                "finished rounds are kept, or set flower.on_failure to go_on to leave such clients "
                "out"
            )
        LOG.warning("round %d goes on without client %d: %s", round, client, why)


class _NoUpdateError(Exception):
    """A client answered something else than an update."""


def keep(directory: Path, client: int, content: RecordDict) -> None:
    """Write what a client sent: every record's values, and the bytes of every array.

    Args:
        directory: of the round.
        client: whose it is.
        content: as Flower has delivered it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    told: dict[str, object] = {}
    with open(directory / f"client-{client:04d}.bin", "wb") as file:
        for name, record in content.array_records.items():
            told[name] = {
                key: {
                    "dtype": array.dtype,
                    "shape": array.shape,
                    "stype": array.stype,
                    "offset": file.tell(),
                    "bytes": file.write(array.data),
                }
                for key, array in record.items()
            }
    for name, values in [*content.metric_records.items(), *content.config_records.items()]:
        told[name] = dict(values)
    text = json.dumps(told, indent=1, default=str)
    (directory / f"client-{client:04d}.json").write_text(text + "\n", encoding="utf-8")

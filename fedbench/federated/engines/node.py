"""The node's side of a deployment: one client, on the machine of who owns its rows.

Flower starts a process for each message, so nothing outlives a turn but what lies on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedbench.config import RunConfig
from fedbench.data.partition import own_shard
from fedbench.data.tokenize import Row
from fedbench.errors import ConfigError, DataError
from fedbench.federated.engines.wire import NodeFacts, Order, pack_facts
from fedbench.federated.engines.worker import Worker, answer, guarded
from fedbench.run_base import started_from
from fedbench.run_data import load_data
from fedbench.training_rows import tokenize_rows

PRIVATE_VARIABLE = "FEDBENCH_PRIVATE"
SEED = "seed"


@dataclass(frozen=True)
class NodeSettings:
    """What `flower-supernode --node-config` says."""

    client: int
    """Which client of the federation it is, from 0."""
    state: Path
    """Directory for what the client stores between rounds."""
    data: Path | None = None
    """Directory of its rows: what FEDBENCH_PRIVATE stands for in the run file."""
    base: str | None = None
    """Where this machine has the base, if not where the run file says."""

    @classmethod
    def of(cls, told: dict[str, Any], num_clients: int) -> NodeSettings:
        """Check what the node was told.

        Raises:
            ConfigError: a key is unknown, absent or wrong.
        """
        unknown = told.keys() - {"client", "state", "data", "base"}
        if unknown:
            raise ConfigError(
                f"--node-config: unknown key {sorted(unknown)[0]!r}; known are client, state, "
                "data and base"
            )
        client = told.get("client")
        if type(client) is not int or not 0 <= client < num_clients:
            raise ConfigError(
                f"--node-config: client is {client!r}, but clients are numbered 0 to "
                f"{num_clients - 1}"
            )
        if not told.get("state"):
            raise ConfigError(
                "--node-config: state is not given; name a directory of this machine that "
                "survives a restart"
            )
        data = told.get("data")
        return cls(client, Path(told["state"]), Path(data) if data else None, told.get("base"))


def node_app(config: RunConfig) -> ClientApp:
    """The app that a node runs for each message."""
    app = ClientApp()

    def query(message: Message, context: Context) -> Message:
        def facts() -> RecordDict:
            record: ConfigRecord = message.content.config_records[SEED]
            worker = _worker(config, context, int(record[SEED]))
            assert worker.client is not None
            rows = worker.training.shards[worker.client]
            return pack_facts(NodeFacts(worker.client, len(rows)))

        return Message(guarded("data", facts), reply_to=message)

    def train(message: Message, context: Context) -> Message:
        def worker(order: Order) -> Worker:
            return _worker(config, context, order.message.seed)

        return Message(answer(message.content, worker), reply_to=message)

    app.query()(query)
    app.train()(train)
    return app


def _worker(config: RunConfig, context: Context, seed: int) -> Worker:
    settings = NodeSettings.of(dict(context.node_config), config.federation.num_clients)
    if settings.data is not None:
        os.environ[PRIVATE_VARIABLE] = str(settings.data)
    place = settings.state / config.hash
    base = started_from(config, settings.base or str(config.model.name), place)

    def load(tokenizer: object) -> Callable[[int], Sequence[Row]]:
        return lambda client: own_rows(config, client, seed, tokenizer)

    return Worker.start(config, seed, base, load, place, settings.client)


def own_rows(config: RunConfig, client: int, seed: int, tokenizer: object) -> Sequence[Row]:
    """The client's training rows, without any that share a scored item.

    Raises:
        DataError: they cannot be had, or none is left to learn from.
    """
    train = config.data.train
    if isinstance(train, tuple):
        if len(train) != config.federation.num_clients:
            raise DataError(
                f"data.train lists {len(train)} data sets for {config.federation.num_clients} "
                "clients; give one, or one for each"
            )
        train = train[client]
    data = config.data.model_copy(update={"train": train})
    examples = load_data(config.model_copy(update={"data": data})).examples
    shard = own_shard(examples, client, config.data, seed)
    own = [examples[index] for index in shard.train]
    rows = [row for some in tokenize_rows(config, own, tokenizer).rows for row in some]
    if not rows:
        raise DataError(
            f"client {client} has no row with an answer to learn; raise data.max_length, or check "
            "the columns of data.train"
        )
    return rows

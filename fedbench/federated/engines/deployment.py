"""The server's side of a deployment: a ServerApp that Flower's SuperLink runs.

It loads the base to name and save weights, waits for the nodes, and runs the loop of
`fedbench.federated.server` with a `Courier`. Its directory holds the committed rounds: run the app
again after a kill, and it goes on.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from flwr.app import ConfigRecord, Context, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedbench.config import RunConfig
from fedbench.errors import ClientError, OutputError
from fedbench.federated.engine import Engine
from fedbench.federated.engines.courier import Courier, Post
from fedbench.federated.engines.node import SEED
from fedbench.federated.engines.settings import Flower
from fedbench.federated.engines.wire import (
    REFUSALS,
    NodeFacts,
    WireError,
    refusal,
    unpack_facts,
)
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.privacy import accounting, dp_sgd_account
from fedbench.federated.privacy.training import privacy_records
from fedbench.federated.server import Training, train_federated
from fedbench.model import get_state, load_base, prepare_training, remove_lora
from fedbench.provenance import provenance
from fedbench.results.record import RunRecord, write_run
from fedbench.run import is_trained
from fedbench.run_base import started_from
from fedbench.run_data import describe_data
from fedbench.run_directory import CHECKPOINTS, claimed

LOG = logging.getLogger(__name__)
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""How often it is looked whether nodes have come."""
LOCK = ".server.lock"
LOCK_SECONDS = 120.0
QUERY_SECONDS = 600.0
"""A node loads the base and its rows before it answers what it is."""


def server_app(config: RunConfig) -> ServerApp:
    """The app that the SuperLink runs."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        told = context.run_config
        output = Path(str(told["output"])).expanduser()
        with alone(output):
            serve(config, output, grid, str(told.get("base") or config.model.name))

    app.main()(main)
    return app


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep a second server from the same directory.

    The app of a SuperLink that was killed lives on for some seconds.

    Raises:
        OutputError: another one is still there after two minutes, or the directory cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / LOCK)
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise OutputError(
            f"{output}: another server trains into it; stop that run (flwr stop) or choose another "
            "output"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error}); choose another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


def serve(config: RunConfig, output: Path, grid: Grid, base: str) -> None:
    """Train every method and seed on the nodes; goes on where an earlier call stopped.

    Args:
        config: the run.
        output: its directory, made if absent.
        grid: Flower's way to the nodes.
        base: where this machine has the base.

    Raises:
        OutputError: the directory belongs to another run, or cannot be written.
        ClientError: nodes do not come, or clients failed.
        MissingExtraError: privacy is asked for, and what accounts for it is not installed.
    """
    with claimed(output, config):
        # Before nodes are waited for.
        if config.privacy is not None:
            accounting.require()
        if config.local.dp_sgd is not None:
            dp_sgd_account.require()
        _serve(config, output, grid, base)


def _serve(config: RunConfig, output: Path, grid: Grid, base: str) -> None:
    post = Post(grid, poll=POLL_SECONDS)
    seconds: dict[str, float] = {}
    clients: dict[str, Any] = {}
    for seed in config.seeds:
        if is_trained(config, output, seed):
            continue
        model = load_base(started_from(config, base, output), config.model)
        prepare_training(model, config.model.lora, seed)
        start = get_state(model.module)
        nodes = ConnectedNodes(post, config.flower, seed)
        rows = nodes.wait_for_all(config.federation.num_clients)
        clients[str(seed)] = [{"num_train": number} for number in rows]
        place = output / CHECKPOINTS
        training = Training(config, seed, model, start, [], place, _tell, num_rows=rows)

        def make(
            name: str,
            algorithm: FedAvg,
            directory: Path,
            nodes: ConnectedNodes = nodes,
            training: Training = training,
        ) -> Engine:
            return Courier(post, nodes, training, name, algorithm, directory, "", False)

        for method in config.methods:
            started = time.monotonic()
            train_federated(training, method.name, config.algorithm_for(method), make)
            seconds[f"training {method.name}"] = round(time.monotonic() - started, 1)
        remove_lora(model)
    facts = {"data": describe_data(config.data.train), "clients": clients}
    _write_record(config, output, facts, seconds)


def _tell(what: str, done: int, total: int) -> None:
    LOG.info("%s: round %d of %d", what, done, total)


def _write_record(
    config: RunConfig, output: Path, facts: dict[str, Any], seconds: dict[str, float]
) -> None:
    trainings = [
        output / CHECKPOINTS / method.name / f"seed-{seed}"
        for method in config.methods
        for seed in config.seeds
    ]
    record = RunRecord(
        run=config.name,
        run_hash=config.hash,
        command="flwr run",
        config=config.model_dump(mode="json"),
        facts=facts,
        seconds=seconds,
        privacy=tuple(privacy_records(config, trainings)),
        **provenance(),
    )
    write_run(output, record)


class ConnectedNodes:
    """Who is connected, and which client each node says it serves."""

    def __init__(self, post: Post, settings: Flower, seed: int) -> None:
        self._post = post
        self._settings = settings
        self._seed = seed
        self._facts: dict[int, NodeFacts] = {}
        """By node."""

    def wait_for_all(self, num_clients: int) -> list[int]:
        """Wait until every client is connected.

        Returns:
            Training rows per client.

        Raises:
            ClientError: some do not come.
        """
        found = self.serving(range(num_clients))
        missing = sorted(set(range(num_clients)) - found.keys())
        if missing:
            raise ClientError(
                f"clients {', '.join(map(str, missing))} have not connected within "
                f"{self._settings.wait_for_nodes:g} seconds; start their nodes (flower-supernode "
                "--node-config), or raise flower.wait_for_nodes, and run the same command again"
            )
        return [self.num_rows(client) for client in range(num_clients)]

    def serving(self, clients: Sequence[int]) -> Mapping[int, int]:
        """The node of each client, after a wait for those that are not there."""
        end = time.monotonic() + self._settings.wait_for_nodes
        while True:
            known = self._connected()
            found = {client: known[client] for client in clients if client in known}
            if len(found) == len(clients) or time.monotonic() >= end:
                return found
            time.sleep(LOOK_SECONDS)

    def num_rows(self, client: int) -> int:
        """Training rows of a client, as its newest node has told."""
        return [facts.num_rows for facts in self._facts.values() if facts.client == client][-1]

    def _connected(self) -> dict[int, int]:
        """The newest node of each client among those that Flower sees."""
        seen = set(self._post.grid.get_node_ids())
        question = ConfigRecord({SEED: self._seed})
        letters = {node: RecordDict({SEED: question}) for node in sorted(seen - self._facts.keys())}
        if letters:
            timeout = min(QUERY_SECONDS, self._settings.wait_for_nodes)
            answers = self._post.exchange(letters, MessageType.QUERY, "who", timeout)
            for node, reply in answers:
                if reply.has_error():
                    LOG.warning("node %d: Flower reports %s", node, reply.error.reason)
                    continue
                try:
                    self._note(node, reply.content)
                except WireError as error:
                    LOG.warning("node %d: what it says of itself %s", node, error)
        return {facts.client: node for node, facts in self._facts.items() if node in seen}

    def _note(self, node: int, content: RecordDict) -> None:
        word = refusal(content)
        if word is not None:
            about = REFUSALS.get(word, "it refused in a word that is not known")
            said = f"node {node}: {about} (see its log)"
            if self._settings.on_failure == "stop":
                raise ClientError(f"{said}; mend it and run the same command again")
            LOG.warning("%s", said)
            return
        self._facts[node] = unpack_facts(content)
        facts = self._facts[node]
        LOG.info("client %d is here, with %d training rows", facts.client, facts.num_rows)

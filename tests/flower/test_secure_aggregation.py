"""What Flower's SecAgg+ can do for an app of today's interface, and what keeps it from being used.

docs/flower.md tells it in words. Where a test fails with a newer Flower, look there again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import flwr.clientapp.mod
import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import FitIns, Parameters, bytes_to_ndarray, ndarray_to_bytes
from flwr.server import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from loopback import LoopbackGrid

from fedbench.federated.engines.wire import pack_update
from fedbench.federated.message import ClientUpdate

NODES = (10, 11, 12, 13)
PROTOCOL = "secaggplus_configs"
STEP = 2 * 1.0 / 2**22
"""What a weight is rounded to, with a clipping range of 1."""


def held(node: int) -> np.ndarray[Any, Any]:
    """A node's weights: 0.1, 0.2, 0.3 or 0.4."""
    return np.full(50, 0.1 * (node - 9))


def as_older_answer(weights: np.ndarray[Any, Any]) -> RecordDict:
    """Weights under the names that the older interface gives to what `fit` returns."""
    return RecordDict(
        {
            "fitres.parameters": ArrayRecord(
                {"0": Array("", (), "numpy.ndarray", ndarray_to_bytes(weights))}
            ),
            "fitres.num_examples": MetricRecord({"num_examples": 1}),
            "fitres.metrics": ConfigRecord({}),
            "fitres.status": ConfigRecord({"code": 0, "message": ""}),
        }
    )


def masked_app() -> ClientApp:
    app = ClientApp(mods=[secaggplus_mod])

    def train(message: Message, context: Context) -> Message:
        return Message(as_older_answer(held(context.node_id)), reply_to=message)

    app.train()(train)
    return app


class Grid(LoopbackGrid):
    """Four nodes, of which one may be gone from a stage of the protocol on."""

    def __init__(self, gone: int | None = None, stage: str = "") -> None:
        super().__init__({node: masked_app() for node in NODES}, {node: {} for node in NODES})
        self.gone, self.stage = gone, stage

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = []
        for message in messages:
            node, stage = message.metadata.dst_node_id, message.content[PROTOCOL]["stage"]
            if (node, stage) == (self.gone, self.stage):
                self.connected.discard(node)
            try:
                replies += self.pull_messages(self.push_messages([message]))
            except (KeyError, ValueError) as error:  # so a node's runtime answers for its app
                replies.append(Message(Error(0, repr(error)), reply_to=message))
        return replies


class Sum(FedAvg):
    """Asks all nodes, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[np.ndarray[Any, Any]] = []

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[Any]:
        return [(SimpleNamespace(node_id=node), FitIns(Parameters([], ""), {})) for node in NODES]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[None, Any]:
        for _, answer in results:
            self.given.append(bytes_to_ndarray(answer.parameters.tensors[0]))
        return None, {}


def summed(grid: Grid) -> Sum:
    """One round of the protocol; two of four shares are enough."""
    strategy = Sum()
    context = LegacyContext(Context(1, 1, {}, RecordDict(), {}), strategy=strategy)
    context.state.config_records["config"] = ConfigRecord({"current_round": 1})
    context.state.array_records["parameters"] = ArrayRecord({})
    SecAggPlusWorkflow(1.0, 0.5, max_weight=1.0, clipping_range=1.0)(grid, context)
    return strategy


def masked(grid: Grid) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """What the server has been sent of each node's weights."""
    for message in grid.arrived:
        if message.has_content() and "masked_params" in message.content[PROTOCOL]:
            _, weights = message.content[PROTOCOL]["masked_params"]
            yield message.metadata.src_node_id, bytes_to_ndarray(weights)


# What it does


def test_the_workflow_gives_an_app_of_todays_interface_the_mean_under_the_older_names() -> None:
    grid = Grid()
    given = summed(grid).given
    assert len(given) == 4  # each the same
    assert all(np.abs(mean - 0.25).max() <= STEP for mean in given)
    sent = dict(masked(grid))
    assert sent.keys() == set(NODES)
    for node, weights in sent.items():
        quantised = (held(node) + 1.0) / STEP
        # Uniform on 2^32 numbers: of 50, a tenth of one is expected to be that near.
        assert (np.abs(weights - quantised) < 2**32 / 1000).sum() <= 3
    assert not any(m.content.array_records.get("fitres.parameters") for m in grid.arrived)


def test_a_node_that_is_lost_after_keys_were_dealt_leaves_the_mean_of_the_others() -> None:
    given = summed(Grid(gone=12, stage="collect_masked_vectors")).given
    assert len(given) == 3
    assert np.abs(given[0] - (0.1 + 0.2 + 0.4) / 3).max() <= STEP


# What keeps it from being used


@pytest.mark.parametrize("stage", ["setup", "share_keys"])
def test_a_node_that_is_lost_before_leaves_no_mean_at_all(stage: str) -> None:
    assert summed(Grid(gone=12, stage=stage)).given == []


def test_a_mask_is_made_of_28_bits_whatever_the_key() -> None:
    keys = pytest.importorskip("flwr.supercore.primitives.asymmetric")
    crypto = "flwr.common.secure_aggregation.crypto.symmetric_encryption"
    shared = pytest.importorskip(crypto).generate_shared_key
    masks = pytest.importorskip("flwr.common.secure_aggregation.secaggplus_utils")
    found = set()
    for _ in range(20):
        (one, _), (_, other) = keys.generate_key_pairs(), keys.generate_key_pairs()
        key = shared(one, other)
        words = np.frombuffer(key, dtype="<u4")
        seed = int(np.bitwise_xor.reduce(words))
        assert seed & 0x80808080 == 0  # the key is text, whose bytes have seven bits
        generator = np.random.RandomState(seed)
        again = generator.randint(0, 2**32 - 1, (50,), dtype=np.int64)
        assert np.array_equal(masks.pseudo_rand_gen(key, 2**32, [(50,)])[0], again)
        found.add(seed)
    assert len(found) == 20


def test_what_travels_under_other_names_is_not_masked_and_lost_if_it_is_arrays() -> None:
    app = ClientApp(mods=[secaggplus_mod])
    own = ClientUpdate(0, {}, 1, 1, 1, 0.5)

    def train(message: Message, context: Context) -> Message:
        content = as_older_answer(held(context.node_id))
        content["extra"] = ArrayRecord([np.ones(3)])
        content["counts"] = pack_update(own)["counts"]
        return Message(content, reply_to=message)

    app.train()(train)
    grid = Grid()
    grid.apps = dict.fromkeys(NODES, app)
    summed(grid)
    answers = [m.content for m in grid.arrived if "counts" in m.content]
    assert len(answers) == 4
    assert all(len(answer["extra"]) == 0 for answer in answers)
    assert all(answer["counts"]["loss"] == 0.5 for answer in answers)


def test_an_answer_of_todays_interface_is_not_understood() -> None:
    app = ClientApp(mods=[secaggplus_mod])

    def train(message: Message, context: Context) -> Message:
        return Message(pack_update(ClientUpdate(0, {}, 1, 1, 1, 0.5)), reply_to=message)

    app.train()(train)
    grid = Grid()
    grid.apps = dict.fromkeys(NODES, app)
    assert summed(grid).given == []
    assert not hasattr(flwr.clientapp.mod, "secaggplus_mod")
    assert not [name for name in dir(flwr.serverapp.strategy) if "secagg" in name.lower()]

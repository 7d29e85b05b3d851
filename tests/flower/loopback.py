"""Flower's grid and nodes within this process: what they carry is serialised, nothing waits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from fedbench.config import RunConfig
from fedbench.federated.checkpoint import Round, latest_round, load_round, read_history
from fedbench.federated.message import ServerState, Setting
from fedbench.federated.state import State

Change = Callable[[int, int, Message], Message | None]
"""(client, round, answer) to what arrives; None: the answer is late, a round too late."""


class LoopbackGrid:
    """Has each message answered at once by the app of its node."""

    def __init__(self, apps: Mapping[int, ClientApp], config: Mapping[int, dict[str, Any]]) -> None:
        # Who sends: what a runtime sets when it starts an app.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.apps = apps
        self.contexts = {node: Context(1, node, config[node], RecordDict(), {}) for node in apps}
        self.connected = set(apps)
        self.change: Change = lambda client, round, answer: answer
        self.arrived: list[Message] = []
        self._numbers = itertools.count()
        self._answers: dict[str, Message] = {}
        self._late: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        self._answers |= self._late
        self._late = {}
        for message in messages:
            node = message.metadata.dst_node_id
            name = f"message-{next(self._numbers)}-{node}"
            message.metadata.__dict__["_message_id"] = name
            names.append(name)
            if node not in self.connected:
                self._answers[name] = Message(Error(5, "Node Unavailable"), reply_to=message)
                continue
            answered = self.apps[node](copied(message), self.contexts[node])
            order = message.content.config_records.get("order")
            arrives: Message | None = answered
            if order is not None:
                arrives = self.change(int(order["client"]), int(order["round"]), answered)
            if arrives is None:
                self._late[name] = answered
            else:
                self._answers[name] = arrives
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        answers = [self._answers.pop(name) for name in list(names) if name in self._answers]
        self.arrived += answers
        return answers


def copied(message: Message) -> Message:
    """What arrives of a message: a client that changed it would change its own copy."""
    return copy.deepcopy(message)


def weights(directory: Path) -> State:
    """Of the newest committed round."""
    return server_state(directory).weights


def server_state(directory: Path) -> ServerState:
    """After the newest committed round."""
    done = latest_round(directory)
    assert done is not None
    return load_round(directory, done, Setting(1, 1, 0))[0]


def schedule(directory: Path) -> list[tuple[Any, ...]]:
    """Who trained in each round, for how many steps, on how much."""
    return [told(round) for round in read_history(directory)]


def told(round: Round) -> tuple[Any, ...]:
    return (round.round, round.cohort, round.dropped, round.steps, round.train_examples)


def distance(one: State, other: State) -> float:
    """Largest difference of two numbers."""
    assert one.keys() == other.keys()
    differences = [(one[name].float() - other[name].float()).abs().max() for name in one]
    return max(map(float, differences), default=0.0)


def same(one: State, other: State) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def training_of(output: Path, config: RunConfig, method: str = "") -> Path:
    """Where the rounds of a method lie."""
    name = method or config.methods[0].name
    return output / "checkpoints" / name / f"seed-{config.seeds[0]}"

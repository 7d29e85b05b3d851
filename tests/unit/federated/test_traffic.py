"""The bytes that a dry run names are those that the training then counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trainings import run

from fedbench.federated.checkpoint import read_history
from fedbench.federated.server import Training
from fedbench.federated.traffic import bytes_sent

MakeTraining = Callable[..., Training]
PARTIAL = {"participation": {"dropout": 0.3}, "rounds": 5}


@pytest.mark.parametrize(
    ("method", "transport"),
    [
        ("fedavg", {"up": "int8", "down": "bf16"}),
        ("scaffold", {}),  # a control goes beside the weights, both ways
        ("rolora", {"up": "fp16"}),  # on first contact both factors come down, then one
        ("fedsa_lora", {}),  # B never travels
        ("fedex_lora", {}),  # every client gets what is added to the base
        ({"algorithm": "flora", "name": "flora", "ranks": [1, 2, 2]}, {}),
    ],
)
def test_the_bytes_of_a_training_are_known_before_it(
    training: MakeTraining, method: Any, transport: dict[str, Any]
) -> None:
    made = training(methods=[method], federation=PARTIAL | {"transport": transport})
    [named] = made.config.methods
    expected = bytes_sent(
        made.config.algorithm_for(named),
        made.config.federation.transport,
        made.initial_state,
        made.setting,
        made.cohorts,
    )
    *_, last = read_history(run(made))
    assert expected == last.bytes_down + last.bytes_up

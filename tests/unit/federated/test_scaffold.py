"""SCAFFOLD on numbers small enough to check by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fedbench.config import Local
from fedbench.data.tokenize import Tokens
from fedbench.federated.client import train_client
from fedbench.federated.message import ClientMessage, ClientUpdate, ServerState, Setting
from fedbench.federated.scaffold import SCAFFOLD
from fedbench.federated.state import State, combine
from fedbench.model import BaseModel, add_lora, get_state
from fedbench.model_config import Lora

OPENFEDLLM = SCAFFOLD(control="weights", correction="step", weighting="examples")


def state(*values: float) -> State:
    return {"w": torch.tensor(values)}


def message(x: float, c: float, c_i: float | None = None) -> ClientMessage:
    return ClientMessage(
        client=3,
        round=2,
        seed=0,
        state=state(x),
        learning_rate=0.1,
        num_samples_before=0,
        num_steps=4,
        broadcast=state(c),
        client_state={} if c_i is None else state(c_i),
    )


def update(weight: float, num_examples: int = 1, **extra: float) -> ClientUpdate:
    sent = {name: torch.tensor([value]) for name, value in extra.items()}
    return ClientUpdate(3, state(weight), num_examples, 8, num_steps=4, loss=0.0, extra=sent)


def server(x: float, c: float, num_clients: int = 10) -> ServerState:
    return ServerState(Setting(num_clients, rounds=5, seed=0), state(x), own=state(c), round=1)


def test_the_gradient_is_corrected_by_what_the_client_pulls_more_than_all() -> None:
    rule = SCAFFOLD().local_rule(message(x=2.0, c=0.5, c_i=-0.25))
    corrected = rule.gradient("w", torch.tensor([2.0]), torch.tensor([1.0]))
    assert float(corrected) == 1.75  # 1 + (0.5 - -0.25)


def test_the_new_control_is_the_mean_of_the_uncorrected_gradients() -> None:
    rule = SCAFFOLD().local_rule(message(x=2.0, c=0.5, c_i=-0.25))
    for gradient in (1.0, 2.0, 3.0, 0.0):
        rule.gradient("w", torch.tensor([2.0]), torch.tensor([gradient]))
    done = rule.finish(update(1.5))
    assert float(done.client_state["w"]) == 1.5  # (1 + 2 + 3 + 0) / 4
    assert float(done.extra["w"]) == 1.75  # 1.5 - -0.25, all that is sent beside the weights


def test_a_client_seen_for_the_first_time_has_control_zero() -> None:
    rule = SCAFFOLD().local_rule(message(x=2.0, c=0.5))
    assert float(rule.gradient("w", torch.tensor([2.0]), torch.tensor([1.0]))) == 1.5
    assert float(rule.finish(update(1.5)).extra["w"]) == 0.25  # 1 / 4 - 0


def test_the_rule_changes_neither_the_gradient_nor_the_weight_it_is_given() -> None:
    rule = SCAFFOLD().local_rule(message(x=2.0, c=0.5))
    gradient, weight = torch.tensor([1.0]), torch.tensor([2.0])
    rule.gradient("w", weight, gradient)
    rule.gradient("w", weight, gradient)
    rule.stepped("w", weight)
    assert (float(gradient), float(weight)) == (1.0, 2.0)


def test_openfedllm_corrects_the_weight_after_each_step_and_takes_option_two() -> None:
    # d = c - c_i = 0.75, lr 0.1, K 4
    rule = OPENFEDLLM.local_rule(message(x=2.0, c=0.5, c_i=-0.25))
    assert float(rule.gradient("w", torch.tensor([2.0]), torch.tensor([1.0]))) == 1.0
    weight = torch.tensor([1.9])
    rule.stepped("w", weight)
    assert float(weight) == pytest.approx(1.825)  # 1.9 - 0.1 * 0.75
    done = rule.finish(update(1.5))
    assert float(done.client_state["w"]) == pytest.approx(0.5)  # (2 - 1.5) / (4 * 0.1) - 0.75
    assert float(done.extra["w"]) == pytest.approx(0.75)  # 0.5 - -0.25


def test_openfedllm_weights_models_by_examples_and_controls_alike() -> None:
    updates = [update(1.0, num_examples=3, w=0.75), update(5.0, num_examples=1, w=-0.25)]
    after = OPENFEDLLM.aggregate(server(x=9.0, c=0.5), updates)
    assert float(after.weights["w"]) == 2.0  # (3 * 1 + 1 * 5) / 4
    assert float(after.own["w"]) == pytest.approx(0.55)  # 0.5 + (0.75 - 0.25) / 10


def test_the_paper_counts_clients_alike_and_moves_by_the_server_learning_rate() -> None:
    updates = [update(1.0, num_examples=3, w=0.75), update(5.0, num_examples=1, w=-0.25)]
    after = SCAFFOLD(server_learning_rate=0.5).aggregate(server(x=9.0, c=0.5), updates)
    assert float(after.weights["w"]) == 6.0  # 9 + 0.5 ((1 + 5) / 2 - 9)
    assert float(after.own["w"]) == pytest.approx(0.55)


def test_server_control_starts_at_zero_and_is_sent_to_everyone() -> None:
    started = SCAFFOLD().start(state(2.0, 3.0), Setting(10, rounds=5, seed=0))
    assert started["w"].tolist() == [0.0, 0.0]
    assert SCAFFOLD().broadcast(server(x=9.0, c=0.5), client=3) == state(0.5)


def test_aggregation_changes_no_state_in_place() -> None:
    before, sent = server(x=9.0, c=0.5), update(1.0, w=0.75)
    SCAFFOLD().aggregate(before, [sent])
    assert (before.weights, before.own) == (state(9.0), state(0.5))
    assert (sent.state, sent.extra) == (state(1.0), state(0.75))


def test_memory_does_not_grow_with_the_clients_of_a_round() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    held = []

    def updates() -> Iterator[ClientUpdate]:
        for number in range(20):
            sent = update(float(number), w=0.5)
            alive.append(weakref.ref(sent.state["w"]))
            alive.append(weakref.ref(sent.extra["w"]))
            yield sent
            held.append(sum(ref() is not None for ref in alive))

    SCAFFOLD().aggregate(server(x=9.0, c=0.5), updates())
    assert max(held[10:]) <= max(held[:3])


def test_half_precision_weights_keep_their_type_and_controls_are_finer() -> None:
    weights = {"w": torch.ones(2, dtype=torch.bfloat16)}
    setting = Setting(10, rounds=5, seed=0)
    algorithm = SCAFFOLD(server_learning_rate=0.5)
    before = ServerState(setting, weights, own=algorithm.start(weights, setting))
    rule = algorithm.local_rule(
        ClientMessage(0, 1, 0, weights, 0.1, 0, num_steps=1, broadcast=before.own)
    )
    gradient = rule.gradient("w", weights["w"], torch.full((2,), 0.25, dtype=torch.bfloat16))
    moved = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    sent = rule.finish(ClientUpdate(0, moved, 1, 1, num_steps=1, loss=0.0))
    after = algorithm.aggregate(before, [sent])
    assert (gradient.dtype, after.weights["w"].dtype) == (torch.bfloat16, torch.bfloat16)
    assert after.own["w"].tolist() == pytest.approx([0.025, 0.025])  # 0.25 / 10, in float32
    assert after.weights["w"].tolist() == [0.5, 0.5]


def test_on_a_model_both_controls_are_the_same_with_sgd(
    tiny_base: BaseModel, rows: Callable[..., list[Tokens]]
) -> None:
    add_lora(tiny_base, Lora(r=2, alpha=4), seed=0)
    weights = get_state(tiny_base.module)
    local = Local(max_steps=3, batch_size=2, optimizer="sgd", learning_rate=0.5, max_grad_norm=None)
    told = ClientMessage(
        client=0,
        round=1,
        seed=0,
        state=weights,
        learning_rate=0.5,
        num_samples_before=0,
        num_steps=3,
        broadcast=combine(lambda w: torch.full_like(w, 0.01), weights),
    )
    done = {
        kind: train_client(tiny_base, rows(6), told, local, SCAFFOLD(control=kind))
        for kind in ("gradients", "weights")
    }
    assert done["gradients"].state.keys() == done["gradients"].extra.keys()
    for name, recorded in done["gradients"].extra.items():
        # Weights are read to 6e-8 of their size, and their change is divided by K lr = 1.5.
        assert torch.allclose(recorded, done["weights"].extra[name], atol=1e-6)
        assert torch.equal(done["gradients"].state[name], done["weights"].state[name])
    assert max(float(tensor.abs().max()) for tensor in done["gradients"].extra.values()) > 1e-3

    plain = train_client(tiny_base, rows(6), replace(told, broadcast={}), local)
    assert any(not torch.equal(plain.state[n], done["gradients"].state[n]) for n in plain.state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"server_learning_rate": 0.0}, "greater than 0"),
        ({"control": "weight"}, "'gradients' or 'weights'"),
        ({"correction": "step"}, "correction: step needs control: weights"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(SCAFFOLD).validate_python(options)

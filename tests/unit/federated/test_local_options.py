"""Local training: which tensors train and travel, and the options of `local` and `model`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from trainings import distance, same

from fedbench.data.tokenize import Tokens
from fedbench.federated.client import accumulate, train_client
from fedbench.federated.fedavg import FedAvg, LocalRule
from fedbench.federated.fedsa_lora import FedSALoRA
from fedbench.federated.ffa_lora import FFALoRA
from fedbench.federated.low_rank import A, B
from fedbench.federated.message import ClientMessage, ClientUpdate
from fedbench.federated.objectives import Sft
from fedbench.federated.reading import Reader
from fedbench.federated.rolora import RoLoRA
from fedbench.federated.settings import Local
from fedbench.federated.state import State, part
from fedbench.model import (
    BaseModel,
    add_lora,
    get_state,
    prepare_training,
    remove_lora,
    set_state,
    trainable,
)
from fedbench.model_config import Lora

Rows = Callable[..., list[Tokens]]
LOCAL = Local(max_steps=2, batch_size=4, learning_rate=0.01)
PADDED = LOCAL.model_copy(update={"layout": "padded"})
CARRY = LOCAL.model_copy(update={"optimizer_state": "carry"})


def message(state: State, **fields: Any) -> ClientMessage:
    known: dict[str, Any] = {
        "client": 2,
        "round": 1,
        "seed": 0,
        "learning_rate": 0.01,
        "num_samples_before": 0,
        "num_steps": LOCAL.max_steps,
    }
    return ClientMessage(state=state, **(known | fields))


def disturb(base: BaseModel) -> None:
    """Adapters that change the model."""
    generator = torch.Generator().manual_seed(0)
    state = get_state(base.module)
    noise = {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    set_state(base.module, {n: t + noise[n] for n, t in state.items()})


@pytest.fixture
def base(tiny_base: BaseModel) -> BaseModel:
    """The tiny model with adapters that change it."""
    add_lora(tiny_base, Lora(r=2, alpha=4), seed=0)
    disturb(tiny_base)
    return tiny_base


def named(state: State, suffix: str) -> State:
    return {name: tensor for name, tensor in state.items() if name.endswith(suffix)}


# What trains and what travels


@dataclass(frozen=True)
class WatchedFFA(FFALoRA):
    """FFA-LoRA that notes which tensors its rule meets."""

    base: Any = None
    met: list[str] = field(default_factory=list)
    with_gradient: set[str] = field(default_factory=set)

    def local_rule(self, message: ClientMessage) -> LocalRule:
        return _Watch(self)


@dataclass
class _Watch(LocalRule):
    algorithm: WatchedFFA

    def gradient(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        self.algorithm.met.append(f"gradient {name}")
        for other, parameter in self.algorithm.base.module.named_parameters():
            if parameter.grad is not None:
                self.algorithm.with_gradient.add(other.replace(".default.", "."))
        return gradient

    def stepped(self, name: str, weight: torch.Tensor) -> None:
        self.algorithm.met.append(f"stepped {name}")

    def finish(self, update: ClientUpdate) -> ClientUpdate:
        self.algorithm.met.extend(f"finish {name}" for name in self.trained)
        return update


def test_what_an_algorithm_does_not_train_is_frozen_and_stays_out_of_the_update(
    base: BaseModel, rows: Rows
) -> None:
    told = message(get_state(base.module))
    algorithm = WatchedFFA(base=base)
    update = train_client(base, rows(5), told, LOCAL, algorithm)
    factors = named(told.state, B).keys()
    assert update.state.keys() == factors
    assert algorithm.with_gradient == set(factors)
    assert {line.split()[1] for line in algorithm.met} == set(factors)
    counts = [sum(line.startswith(what) for line in algorithm.met) for what in ("gradient", "step")]
    assert counts == [2 * len(factors)] * 2  # two steps
    after = get_state(base.module)
    assert after.keys() == told.state.keys()  # all may train again in the next round
    assert same(named(after, A), named(told.state, A))
    assert all(not torch.equal(after[name], told.state[name]) for name in factors)


def test_a_frozen_factor_leaves_the_others_their_gradient(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module), num_steps=1)
    # One step of SGD without clipping is the gradient.
    local = LOCAL.model_copy(update={"optimizer": "sgd", "max_grad_norm": None})
    alone = train_client(base, rows(5), told, local, FFALoRA()).state
    both = train_client(base, rows(5), told, local, FedAvg()).state
    assert distance(alone, named(both, B)) < 1e-7


def test_what_is_not_shared_is_trained_and_stays_home(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module))
    update = train_client(base, rows(5), told, LOCAL, FedSALoRA())
    plain = train_client(base, rows(5), told, LOCAL, FedAvg())
    assert same(update.state, named(plain.state, A))
    assert same(part(update.client_state, "algorithm"), named(plain.state, B))
    again = train_client(
        base,
        rows(5),
        replace(told, round=2, state=plain.state, client_state=update.client_state),
        LOCAL,
        FedSALoRA(),
    )
    next_plain = train_client(base, rows(5), replace(told, round=2, state=plain.state), LOCAL)
    assert same(part(again.client_state, "algorithm"), named(next_plain.state, B))


# The optimizer's state


def two_turns(
    base: BaseModel, rows: list[Tokens], local: Local, algorithm: FedAvg
) -> list[ClientUpdate]:
    """Two turns of two steps of the same client, which alone makes the global model."""
    start = get_state(base.module)
    first = train_client(base, rows, message(start), local, algorithm)
    second = message(
        {**start, **first.state},
        round=2,
        num_samples_before=first.num_samples,
        client_state=first.client_state,
    )
    return [first, train_client(base, rows, second, local, algorithm)]


def test_a_carried_optimizer_goes_on_where_it_stopped(base: BaseModel, rows: Rows) -> None:
    start = get_state(base.module)
    once = train_client(base, rows(5), message(start, num_steps=4), LOCAL).state
    set_state(base.module, start)
    carried = two_turns(base, rows(5), CARRY, FedAvg())[1].state
    set_state(base.module, start)
    afresh = two_turns(base, rows(5), LOCAL, FedAvg())
    assert distance(carried, once) < 1e-6
    assert distance(afresh[1].state, once) > 1e-4
    assert afresh[0].client_state == {}


def test_carrying_changes_no_stored_tensor(base: BaseModel, rows: Rows) -> None:
    first = train_client(base, rows(5), message(get_state(base.module)), CARRY)
    kept = {name: tensor.clone() for name, tensor in first.client_state.items()}
    told = message(first.state, client_state=first.client_state)
    train_client(base, rows(5), told, CARRY)
    assert same(first.client_state, kept)


def test_moments_of_a_factor_wait_for_its_next_turn(base: BaseModel, rows: Rows) -> None:
    first, second = two_turns(base, rows(5), CARRY, RoLoRA())  # B, then A
    before, after = (part(update.client_state, "optimizer") for update in (first, second))
    assert before
    assert all(name.endswith(B) for name in before)
    assert same(named(after, B), before)
    assert len(after) == 2 * len(before)


def test_sgd_has_nothing_to_carry(base: BaseModel, rows: Rows) -> None:
    local = CARRY.model_copy(update={"optimizer": "sgd"})
    assert two_turns(base, rows(5), local, FedAvg())[1].client_state == {}


# Precision and memory


def test_autocast_computes_in_bfloat16_and_keeps_the_weights_in_float32(
    base: BaseModel, rows: Rows
) -> None:
    told = message(get_state(base.module))
    single = train_client(base, rows(5), told, LOCAL)
    types = []
    linear = base.module.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    hook = linear.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    half = train_client(replace(base, autocast="bfloat16"), rows(5), told, LOCAL)
    hook.remove()
    assert set(types) == {torch.bfloat16}
    assert {tensor.dtype for tensor in half.state.values()} == {torch.float32}
    assert half.loss != single.loss
    # bfloat16 has 8 significant bits: 2^-8 = 0.4 % per operation.
    assert half.loss == pytest.approx(single.loss, rel=0.02)


def test_gradient_checkpointing_computes_activations_twice_and_gives_the_same_gradient(
    tiny_base: BaseModel, rows: Rows
) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        prepare_training(tiny_base, Lora(r=2, alpha=4), 0, checkpointing=checkpointing)
        disturb(tiny_base)
        layer = tiny_base.module.get_decoder().layers[0].mlp
        seen: list[int] = []
        # Before it, since a second computation ends once it has what the backward pass needs.
        hook = layer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        reader = Reader(tiny_base, PADDED, dropout=True)
        with reader.training():
            accumulate(reader, Sft(), rows(4), range(4), PADDED)
        hook.remove()
        gradients.append({n: p.grad.clone() for n, p in trainable(tiny_base.module).items()})
        calls.append(len(seen))
        remove_lora(tiny_base)
    assert calls == [1, 2]
    assert max(float(tensor.abs().max()) for tensor in gradients[0].values()) > 1e-3
    assert distance(*gradients) < 1e-6

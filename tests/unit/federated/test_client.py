"""Local training: which rows, which loss, which gradient, and that the base stays as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from trainings import distance, same

from fedbench.data.tokenize import Tokens
from fedbench.errors import CheckpointError, DataError
from fedbench.federated.client import accumulate, batches, make_optimizer, step, train_client
from fedbench.federated.fedavg import LocalRule
from fedbench.federated.fedprox import FedProx
from fedbench.federated.message import ClientMessage
from fedbench.federated.objectives import Sft
from fedbench.federated.reading import Reader
from fedbench.federated.settings import Local
from fedbench.federated.state import State
from fedbench.model import BaseModel, add_lora, get_state, remove_lora, set_state, trainable
from fedbench.model_config import Lora

Rows = Callable[..., list[Tokens]]
LOCAL = Local(max_steps=3, batch_size=4, learning_rate=0.01)
PADDED = LOCAL.model_copy(update={"layout": "padded"})


def message(state: State, **fields: Any) -> ClientMessage:
    known: dict[str, Any] = {
        "client": 2,
        "round": 3,
        "seed": 0,
        "learning_rate": 0.01,
        "num_samples_before": 0,
        "num_steps": LOCAL.max_steps,
    }
    return ClientMessage(state=state, **(known | fields))


@pytest.fixture
def base(tiny_base: BaseModel) -> BaseModel:
    """The tiny model with adapters that change it."""
    add_lora(tiny_base, Lora(r=2, alpha=4), seed=0)
    state = get_state(tiny_base.module)
    generator = torch.Generator().manual_seed(0)
    noise = {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    set_state(tiny_base.module, {n: t + noise[n] for n, t in state.items()})
    return tiny_base


def completion_loss(base: BaseModel, batch: Sequence[Tokens], local: Local = LOCAL) -> torch.Tensor:
    """Summed loss over the answer tokens of a batch."""
    return -Reader(base, local, dropout=True)(batch).sum()


def gradient(base: BaseModel, batch: Sequence[Tokens], local: Local = LOCAL) -> tuple[float, State]:
    """Loss of a batch as a training step takes it, and its gradient."""
    base.module.zero_grad()
    reader = Reader(base, local, dropout=True)
    loss = accumulate(reader, Sft(), batch, range(len(batch)), local)
    return loss, {n: p.grad.clone() for n, p in trainable(base.module).items()}


# Which rows


def drawn(num_examples: int, before: int = 0, **fields: Any) -> list[int]:
    local = Local(batch_size=fields.pop("batch", 4))
    told = message({}, num_samples_before=before, num_steps=fields.pop("steps", 3), **fields)
    data = [Tokens.ending((1, 2), 1)] * num_examples
    return list(itertools.chain(*batches(data, local, told)))


def test_a_client_goes_through_all_its_rows_before_it_repeats_one() -> None:
    order = drawn(5, steps=5, batch=3)  # 15 samples: three passes over 5 rows
    for start in (0, 5, 10):
        assert sorted(order[start : start + 5]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:10]


@pytest.mark.parametrize("before", [1, 4, 5, 7, 12])
def test_a_client_goes_on_where_its_last_turn_ended(before: int) -> None:
    whole = drawn(5, steps=20, batch=1)
    assert drawn(5, before, steps=8, batch=1, round=9) == whole[before : before + 8]


def test_batches_may_be_larger_than_the_shard() -> None:
    order = drawn(2, steps=1, batch=5)
    assert sorted(order) == [0, 0, 1, 1, order[4]]


def test_the_order_of_rows_depends_on_seed_and_client() -> None:
    assert drawn(9, client=1) != drawn(9, client=2)
    assert drawn(9, seed=1) != drawn(9, seed=2)
    assert drawn(9, round=1) == drawn(9, round=2)


def test_grouping_by_length_takes_the_same_rows_in_batches_of_like_length(rows: Rows) -> None:
    data = rows(20)
    grouped = LOCAL.model_copy(update={"group_by_length": True})
    told = message({}, num_samples_before=7)
    plain, like = batches(data, LOCAL, told), batches(data, grouped, told)
    assert sorted(itertools.chain(*like)) == sorted(itertools.chain(*plain))
    assert [len(batch) for batch in like] == [4, 4, 4]
    # Sorted by their shortest row, no batch has a longer one than the next.
    spans = sorted((min(lengths), max(lengths)) for lengths in lengths_of(data, like))
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert batches(data, grouped, told) == like


def lengths_of(data: list[Tokens], steps: list[list[int]]) -> list[list[int]]:
    return [[len(data[index].ids) for index in indices] for indices in steps]


# Which loss


def hugging_face_loss(base: BaseModel, tokens: Tokens) -> torch.Tensor:
    """Summed loss of one unpadded sequence as the model itself computes it."""
    ids = torch.tensor([tokens.ids])
    labels = ids.clone()
    labels[:, : -tokens.num_completion] = -100
    return base.module(input_ids=ids, labels=labels).loss * tokens.num_completion


@pytest.mark.parametrize("local", [LOCAL, PADDED], ids=["shared", "padded"])
def test_the_loss_of_a_batch_is_the_models_own_on_each_sequence(
    base: BaseModel, rows: Rows, local: Local
) -> None:
    # Half of the rows begin as the others do, so that a shared layout has something to share.
    ends = [Tokens.ending((*tokens.ids[:-1], 300), tokens.num_completion) for tokens in rows(6)]
    batch = [*rows(6), *ends]
    assert len({len(tokens.ids) for tokens in batch}) > 1
    assert len({tokens.num_completion for tokens in batch}) > 1
    with torch.no_grad():
        ours = float(completion_loss(base, batch, local))
        theirs = sum(float(hugging_face_loss(base, tokens)) for tokens in batch)
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("local", [LOCAL, PADDED], ids=["shared", "padded"])
def test_neither_layout_shifts_the_positions_of_a_model_that_learns_them(
    base: BaseModel, rows: Rows, local: Local
) -> None:
    # Rotary positions are relative, so that a Llama would not notice.
    config = transformers.GPT2Config(
        vocab_size=400, n_positions=32, n_embd=16, n_layer=1, n_head=2, attn_implementation="eager"
    )
    torch.manual_seed(0)
    learned = replace(base, module=transformers.GPT2LMHeadModel(config).eval())
    with torch.no_grad():
        learned.module.transformer.wpe.weight.mul_(50)
        ours = float(completion_loss(learned, rows(6) * 2, local))
        theirs = 2 * sum(float(hugging_face_loss(learned, tokens)) for tokens in rows(6))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("local", [LOCAL, PADDED], ids=["shared", "padded"])
def test_the_gradient_is_of_the_mean_over_completion_tokens(
    base: BaseModel, rows: Rows, local: Local
) -> None:
    batch = rows(4)
    loss, ours = gradient(base, batch, local)
    base.module.zero_grad()
    total = torch.stack([hugging_face_loss(base, tokens) for tokens in batch]).sum()
    (total / sum(tokens.num_completion for tokens in batch)).backward()
    theirs = {n: p.grad for n, p in trainable(base.module).items() if p.grad is not None}
    assert loss == pytest.approx(float(total.detach()) / sum(t.num_completion for t in batch))
    assert ours.keys() == trainable(base.module).keys()
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("size", [1, 3])
def test_small_batches_accumulate_to_the_gradient_of_the_whole(
    base: BaseModel, rows: Rows, size: int
) -> None:
    _, whole = gradient(base, rows(4))
    _, parts = gradient(base, rows(4), LOCAL.model_copy(update={"micro_batch_size": size}))
    assert distance(whole, parts) < 1e-6


def test_a_loss_that_is_not_finite_stops_with_the_remedy(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module), learning_rate=1e30)
    with pytest.raises(DataError, match=r"client 2, round 3: .*lower local\.learning_rate"):
        train_client(base, rows(4), told, LOCAL)


# Which step


def test_the_same_message_gives_the_same_bits(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module))
    first = train_client(base, rows(5), told, LOCAL)
    train_client(base, rows(4, seed=9), replace(told, client=1), LOCAL)
    torch.manual_seed(123)
    again = train_client(base, rows(5), told, LOCAL)
    assert same(first.state, again.state)
    assert first.loss == again.loss


def test_dropout_is_drawn_from_the_message(tiny_base: BaseModel, rows: Rows) -> None:
    add_lora(tiny_base, Lora(r=2, dropout=0.5), seed=0)
    told = message(get_state(tiny_base.module))
    torch.manual_seed(1)
    first = train_client(tiny_base, rows(5), told, LOCAL)
    torch.manual_seed(2)
    assert same(first.state, train_client(tiny_base, rows(5), told, LOCAL).state)
    # Same rows (the order does not depend on the round), other dropout.
    other = train_client(tiny_base, rows(5), replace(told, round=4), LOCAL)
    assert not same(first.state, other.state)


def test_an_update_counts_rows_samples_and_steps(base: BaseModel, rows: Rows) -> None:
    update = train_client(base, rows(5), message(get_state(base.module)), LOCAL)
    assert (update.client, update.num_examples) == (2, 5)
    assert (update.num_steps, update.num_samples) == (3, 12)  # 3 steps of 4 rows
    assert update.state.keys() == get_state(base.module).keys()


def test_training_lowers_the_loss(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module), num_steps=30)
    state = train_client(base, rows(4), told, LOCAL).state
    with torch.no_grad():
        after = float(completion_loss(base, rows(4)))
        set_state(base.module, told.state)
        before = float(completion_loss(base, rows(4)))
    assert after < 0.8 * before
    assert not same(state, told.state)


def test_the_message_is_not_changed(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module))
    kept = {name: tensor.clone() for name, tensor in told.state.items()}
    train_client(base, rows(5), told, LOCAL, FedProx(mu=1.0))
    assert same(told.state, kept)


def test_the_base_is_as_before_once_adapters_are_removed(tiny_base: BaseModel, rows: Rows) -> None:
    before = {n: t.clone() for n, t in tiny_base.module.state_dict().items()}
    for seed in (0, 1):
        add_lora(tiny_base, Lora(r=2), seed)
        told = message(get_state(tiny_base.module))
        train_client(tiny_base, rows(5), told, LOCAL)
        remove_lora(tiny_base)
    assert same(tiny_base.module.state_dict(), before)
    assert not trainable(tiny_base.module)


def test_adapters_are_drawn_from_the_seed_alone(tiny_base: BaseModel) -> None:
    drawn_states = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed + 50)
        add_lora(tiny_base, Lora(r=2), seed)
        drawn_states.append(get_state(tiny_base.module))
        remove_lora(tiny_base)
    assert same(drawn_states[0], drawn_states[2])
    assert not same(drawn_states[0], drawn_states[1])


class Thousandfold(LocalRule):
    """Gradients a thousand times as large."""

    def gradient(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return 1000 * gradient


def test_clipping_comes_after_the_rule(base: BaseModel, rows: Rows) -> None:
    gradient(base, rows(4))
    before, trained = get_state(base.module), trainable(base.module)
    # With plain SGD at rate 1 the step is the gradient.
    step(torch.optim.SGD(trained.values(), 1.0), trained, Thousandfold(), max_norm=0.5)
    way = torch.cat([(before[n] - w.detach()).flatten() for n, w in trained.items()]).norm()
    assert float(way) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fedprox_by_rule_is_the_loss_term_of_the_paper(
    base: BaseModel, rows: Rows, optimizer: str
) -> None:
    local = LOCAL.model_copy(update={"max_grad_norm": None, "optimizer": optimizer})
    told = message(get_state(base.module))
    mu = 2.0
    ours = train_client(base, rows(5), told, local, FedProx(mu=mu)).state

    set_state(base.module, told.state)
    parameters = trainable(base.module)
    steps = make_optimizer(list(parameters.values()), local, told.learning_rate)
    for indices in batches(rows(5), local, told):
        batch = [rows(5)[index] for index in indices]
        loss = completion_loss(base, batch) / sum(tokens.num_completion for tokens in batch)
        squares = [((w - told.state[name]) ** 2).sum() for name, w in parameters.items()]
        (loss + mu / 2 * torch.stack(squares).sum()).backward()
        steps.step()
        steps.zero_grad()
    theirs = get_state(base.module)

    assert distance(ours, theirs) < 1e-6
    plain = train_client(base, rows(5), told, local).state
    assert distance(ours, plain) > 1e-5  # the term does something


def test_weights_of_another_model_are_refused_by_name(base: BaseModel) -> None:
    state = get_state(base.module)
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="another model"):
        set_state(base.module, {n: t for n, t in state.items() if n != name})
    with pytest.raises(CheckpointError, match=r"have shape \(3, 32\), the model's have \(2, 32\)"):
        set_state(base.module, state | {name: torch.zeros(3, 32)})

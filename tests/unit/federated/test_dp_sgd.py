"""DP-SGD in the client: gradients of single examples, their clip, the noise, the draw of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import distance, same

from fedbench.data.tokenize import Tokens
from fedbench.errors import ConfigError
from fedbench.federated.client import train_client
from fedbench.federated.fedavg import FedAvg, LocalRule
from fedbench.federated.message import ClientMessage
from fedbench.federated.privacy.dp_sgd import NOISE, DpSgd, sample_rate
from fedbench.federated.settings import Local
from fedbench.federated.state import State, part
from fedbench.model import BaseModel, add_lora, get_state, remove_lora, set_state
from fedbench.model_config import Lora

pytest.importorskip("opacus", reason="the extra dp-sgd is not installed")

from fedbench.federated.privacy import dp_sgd_training
from fedbench.federated.privacy.dp_sgd_training import poisson_batches

Rows = Callable[..., list[Tokens]]
NEXT_TO_NONE = 1e-12
WIDE = 1e3


def local(batch_size: int, *, clip: float = 1.0, noise: str = "seeded", **fields: Any) -> Local:
    """Two steps of SGD by a rate of 0.1."""
    dp_sgd = DpSgd.model_validate({"noise_multiplier": 1.0, "max_grad_norm": clip, "noise": noise})
    known: dict[str, Any] = {"max_steps": 2, "optimizer": "sgd", "learning_rate": 0.1}
    return Local(batch_size=batch_size, dp_sgd=dp_sgd, **(known | fields))


def ordinary(private: Local) -> Local:
    return private.model_copy(update={"dp_sgd": None, "max_grad_norm": None})


def message(state: State, noise: float = NEXT_TO_NONE, **fields: Any) -> ClientMessage:
    known: dict[str, Any] = {
        "client": 2,
        "round": 1,
        "seed": 0,
        "learning_rate": 0.1,
        "num_samples_before": 0,
        "num_steps": 2,
        "broadcast": {NOISE: torch.tensor(noise, dtype=torch.float64)},
    }
    return ClientMessage(state=state, **(known | fields))


def disturb(base: BaseModel, size: float = 0.1) -> None:
    """Adapters that change the model: fresh ones have no gradient of A."""
    generator = torch.Generator().manual_seed(0)
    state = get_state(base.module)
    set_state(
        base.module,
        {n: t + size * torch.randn(t.shape, generator=generator) for n, t in state.items()},
    )


@pytest.fixture
def base(tiny_base: BaseModel) -> BaseModel:
    add_lora(tiny_base, Lora(r=2, alpha=4), seed=0)
    disturb(tiny_base)
    return tiny_base


@pytest.fixture
def whole(tiny_base: BaseModel) -> BaseModel:
    """The tiny model, all of whose weights train: embeddings, norms and the head as well."""
    add_lora(tiny_base, None, seed=0)
    return tiny_base


@dataclass
class Watch(LocalRule):
    """Notes every step's gradient and adds something to it."""

    more: float = 0.0
    seen: list[State] = field(default_factory=list)

    def gradient(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if not self.seen or name in self.seen[-1]:
            self.seen.append({})
        self.seen[-1][name] = gradient.clone()
        return gradient + self.more


@dataclass(frozen=True)
class Watched(FedAvg):
    rule: Any = None

    def local_rule(self, message: ClientMessage) -> LocalRule:
        assert NOISE not in message.broadcast  # it is the loop's, not the algorithm's
        rule: LocalRule = self.rule
        return rule


def gradients(
    base: BaseModel, rows: list[Tokens], settings: Local, told: ClientMessage
) -> list[torch.Tensor]:
    """The gradient of every step, as one vector each, from weights that stay as they are."""
    watch = Watch()
    train_client(base, rows, replace(told, learning_rate=0.0), settings, Watched(rule=watch))
    return [torch.cat([t.flatten() for t in seen.values()]) for seen in watch.seen]


def clipped_sum(base: BaseModel, rows: list[Tokens], clip: float, **fields: Any) -> torch.Tensor:
    """Of all rows, without noise."""
    told = message(get_state(base.module), num_steps=1)
    [gradient] = gradients(base, rows, local(len(rows), clip=clip, **fields), told)
    return gradient * len(rows)


def alone(base: BaseModel, row: Tokens) -> torch.Tensor:
    """The gradient of one example's loss by plain autograd, without any of our own reading."""
    ids = torch.tensor([row.ids])
    logits = base.module(input_ids=ids).logits[0].log_softmax(-1)
    [(start, end)] = row.spans
    loss = -sum(logits[at - 1, row.ids[at]] for at in range(start, end)) / (end - start)
    weights = [p for p in base.module.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


# Gradients of single examples


@pytest.mark.parametrize("kind", ["base", "whole"], ids=["LoRA", "all weights"])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_sum_is_that_of_the_examples_gradients_each_clipped_alone(
    kind: str, micro_batch_size: int | None, rows: Rows, request: pytest.FixtureRequest
) -> None:
    model: BaseModel = request.getfixturevalue(kind)
    some = rows(5)
    each = [alone(model, row) for row in some]
    lengths = sorted(float(gradient.norm()) for gradient in each)
    clip = lengths[2]  # two are shortened
    expected = sum(g * min(1.0, clip / float(g.norm())) for g in each)
    got = clipped_sum(model, some, clip, micro_batch_size=micro_batch_size)
    assert torch.allclose(got, torch.as_tensor(expected), atol=2e-6 * lengths[-1])
    assert float((got - sum(each)).norm()) > 0.01 * clip


tokens = st.lists(st.integers(2, 299), min_size=2, max_size=10).flatmap(
    lambda ids: st.integers(1, len(ids) - 1).map(lambda answer: Tokens.ending(ids, answer))
)


def test_no_example_moves_the_sum_by_more_than_the_clip(base: BaseModel, rows: Rows) -> None:
    others = rows(2)

    @settings(max_examples=6)
    @given(tokens, st.floats(1e-3, 1e2), st.sampled_from([0.0, 1.0, 30.0]))
    def check(row: Tokens, clip: float, size: float) -> None:
        before = get_state(base.module)
        disturb(base, size)  # large adapters have large gradients
        gradient = alone(base, row)
        moved = clipped_sum(base, [*others, row], clip) - clipped_sum(base, others, clip)
        # Sums of three numbers of up to `clip` in single precision.
        assert float(moved.norm()) <= clip * (1 + 1e-5)
        expected = gradient * min(1.0, clip / max(float(gradient.norm()), 1e-30))
        assert float((moved - expected).norm()) <= 1e-3 * clip
        set_state(base.module, before)

    check()


def test_an_example_without_a_finite_gradient_adds_nothing(
    base: BaseModel, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = rows(4)
    others = clipped_sum(base, some[1:], 0.5)
    losses = dp_sgd_training.example_losses

    def steep(model: BaseModel, examples: list[Tokens]) -> torch.Tensor:
        """The first row's loss has its value, and an infinite slope."""
        told = losses(model, examples).unbind()
        nothing = ((one - one.detach()).sqrt() for one in told)  # d sqrt(x) / dx at 0
        return torch.stack(
            [
                one + none if row is some[0] else one
                for row, one, none in zip(examples, told, nothing, strict=True)
            ]
        )

    monkeypatch.setattr(dp_sgd_training, "example_losses", steep)
    monkeypatch.setattr(dp_sgd_training.PrivateSteps, "_try_out", lambda self: None)
    got = clipped_sum(base, some, 0.5)
    assert bool(got.isfinite().all())
    assert torch.allclose(got, others, atol=1e-6)


def test_half_precision_does_not_widen_the_clip(base: BaseModel, rows: Rows) -> None:
    half = replace(base, autocast="bfloat16")
    for row in rows(3):
        # bfloat16 would take the norm to 2^-8 = 0.4 %.
        assert float(clipped_sum(half, [row], 0.01).norm()) <= 0.01 * (1 + 1e-5)


def test_a_layer_that_does_not_see_examples_one_by_one_is_refused_in_words(
    base: BaseModel, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = base.module.get_decoder().layers[0].mlp
    forward = block.forward

    def mixed(hidden: torch.Tensor) -> torch.Tensor:
        """As experts do it: tokens of all examples in one row."""
        flat: torch.Tensor = forward(hidden.flatten(0, 1).unsqueeze(0))
        return flat.view_as(hidden)

    monkeypatch.setattr(block, "forward", mixed)
    with pytest.raises(ConfigError, match=r"no gradient of single examples for .*mlp"):
        clipped_sum(base, rows(3), 1.0)


# Noise


def test_the_noise_has_the_deviation_that_was_asked_for(base: BaseModel, rows: Rows) -> None:
    some, settings = rows(5), local(5, clip=0.5)
    state = get_state(base.module)
    noisy = gradients(base, some, settings, message(state, 3.0, num_steps=8))
    [plain] = gradients(base, some, settings, message(state, num_steps=1))
    noise = torch.cat([gradient - plain for gradient in noisy])
    expected = 3.0 * 0.5 / 5  # z C / B
    # The deviation of n normal numbers has a relative error of 1 / sqrt(2 n).
    assert float(noise.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * noise.numel()))
    assert abs(float(noise.mean())) < 4 * expected / math.sqrt(noise.numel())
    steps = [gradient - plain for gradient in noisy]
    assert abs(float(torch.dot(steps[0], steps[1]))) < 5 * expected**2 * math.sqrt(len(plain))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_noise_is_added_once_to_a_batch_in_parts(
    base: BaseModel, rows: Rows, micro_batch_size: int
) -> None:
    told = message(get_state(base.module), 2.0)
    once = gradients(base, rows(5), local(5), told)
    parts = gradients(base, rows(5), local(5, micro_batch_size=micro_batch_size), told)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(once, parts, strict=True))


def test_the_same_message_gives_the_same_bits_and_another_round_other_noise(
    base: BaseModel, rows: Rows
) -> None:
    told = message(get_state(base.module), 1.0)
    settings = local(3, optimizer="adamw")
    first, again, other = (
        train_client(base, rows(9), one, settings) for one in (told, told, replace(told, round=2))
    )
    assert same(first.state, again.state)
    assert (first.loss, first.num_tokens) == (again.loss, again.num_tokens)
    assert distance(first.state, other.state) > 1e-4


def test_noise_and_coins_of_the_operating_system_are_never_the_same(
    base: BaseModel, rows: Rows
) -> None:
    told = message(get_state(base.module), 1.0)
    settings = local(5, noise="system")  # all rows in every step
    one, other = (gradients(base, rows(5), settings, told) for _ in range(2))
    noise = torch.cat([a - b for a, b in zip(one, other, strict=True)])
    # The difference of two: sqrt(2) z C / B.
    expected = math.sqrt(2) / 5
    assert float(noise.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * noise.numel()))
    drawn = {str(poisson_batches(40, local(20, noise="system"), told)) for _ in range(3)}
    assert len(drawn) == 3


# The draw of rows


def test_every_row_is_drawn_by_a_coin_of_its_own() -> None:
    told = message({}, num_steps=2000)
    drawn = poisson_batches(12, local(3), told)
    sizes = torch.tensor([float(len(batch)) for batch in drawn])
    # Binomial(12, 1 / 4): mean 3, variance 2.25; of 2000 draws the mean has an error of 0.034 and
    # the variance one of about 0.071.
    assert float(sizes.mean()) == pytest.approx(3.0, abs=4 * 0.034)
    assert float(sizes.var()) == pytest.approx(2.25, abs=4 * 0.071)
    together = sum(0 in batch and 1 in batch for batch in drawn) / 2000
    assert together == pytest.approx(1 / 16, abs=4 * 0.0054)  # independent
    assert all(len(set(batch)) == len(batch) for batch in drawn)


def test_draws_differ_between_rounds_and_clients_and_not_between_calls() -> None:
    told = message({})
    others = [replace(told, round=2), replace(told, client=3), replace(told, seed=1)]
    drawn = [poisson_batches(40, local(20), one) for one in (told, told, *others)]
    assert drawn[0] == drawn[1]
    assert len({str(one) for one in drawn}) == 4


def test_a_client_with_fewer_rows_than_a_batch_uses_all_in_every_step() -> None:
    assert sample_rate(16, 5) == 1.0
    assert poisson_batches(5, local(16), message({})) == [[0, 1, 2, 3, 4]] * 2


def test_a_step_without_rows_is_noise_alone(base: BaseModel, rows: Rows) -> None:
    some, settings = rows(4), local(1, clip=0.5)

    def turns() -> Iterator[ClientMessage]:
        for round in range(1, 200):
            yield message(get_state(base.module), 2.0, round=round)

    told = next(one for one in turns() if poisson_batches(4, settings, one) == [[], []])
    [one, two] = gradients(base, some, settings, told)
    noise = torch.cat([one, two])
    assert float(noise.std()) == pytest.approx(1.0, rel=4 / math.sqrt(2 * noise.numel()))
    update = train_client(base, some, told, settings)
    assert math.isfinite(update.loss)
    assert update.num_tokens == 0


# Beside ordinary training


def equal_answers(rows: list[Tokens]) -> list[Tokens]:
    """The mean over a batch's tokens is then the mean over its examples."""
    return [Tokens.ending(row.ids, 2) for row in rows]


@pytest.mark.parametrize("kind", ["base", "whole"], ids=["LoRA", "all weights"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_noise_and_with_a_wide_clip_it_is_ordinary_training(
    kind: str, optimizer: str, rows: Rows, request: pytest.FixtureRequest
) -> None:
    model: BaseModel = request.getfixturevalue(kind)
    some, private = equal_answers(rows(5)), local(5, clip=WIDE, optimizer=optimizer)
    rate = 0.1 if optimizer == "sgd" else 0.001
    told = message(get_state(model.module), learning_rate=rate, num_steps=3)
    with_clip = train_client(model, some, told, private)
    without = train_client(model, some, told, ordinary(private))
    moved = distance(without.state, told.state)
    assert moved > 1e-3
    # AdamW divides by the gradient's size, and with it what rounding made of the smallest.
    tolerance = 1e-5 if optimizer == "sgd" else 5e-2
    assert distance(with_clip.state, without.state) < tolerance * moved
    assert with_clip.loss == pytest.approx(without.loss, rel=1e-5)
    assert with_clip.num_samples == without.num_samples == 15


def test_what_an_algorithm_adds_is_neither_clipped_nor_noised(base: BaseModel, rows: Rows) -> None:
    told, settings = message(get_state(base.module), 1.0, num_steps=1), local(5, clip=0.01)
    watch = Watch(more=7.0)
    moved = train_client(base, rows(5), told, settings, Watched(rule=watch)).state
    [noisy] = watch.seen
    expected = {name: told.state[name] - 0.1 * (noisy[name] + 7.0) for name in moved}
    assert distance(moved, expected) < 1e-6


def test_carried_moments_are_those_of_noisy_gradients(base: BaseModel, rows: Rows) -> None:
    settings = local(3, optimizer="adamw", optimizer_state="carry")
    told = message(get_state(base.module), 1.0, num_steps=1)
    watch = Watch()
    update = train_client(base, rows(9), told, settings, Watched(rule=watch))
    moments = part(update.client_state, "optimizer")
    [noisy] = watch.seen
    assert (
        distance(
            {name: moments[f"exp_avg/{name}"] for name in noisy},
            {name: 0.1 * gradient for name, gradient in noisy.items()},  # 1 - beta_1
        )
        < 1e-6
    )


def test_nothing_of_it_stays_on_the_model(base: BaseModel, rows: Rows) -> None:
    told = message(get_state(base.module))
    plain = ordinary(local(3))
    before = train_client(base, rows(5), told, plain)
    train_client(base, rows(5), told, local(3))
    assert not any(
        hasattr(weight, name)
        for weight in base.module.parameters()
        for name in ("grad_sample", "summed_grad", "_forward_counter")
    )
    assert not any(
        module._forward_hooks or module._backward_hooks or hasattr(module, "activations")
        for module in base.module.modules()
    )
    assert not base.module.training
    assert same(train_client(base, rows(5), told, plain).state, before.state)
    remove_lora(base)

"""Objectives by hand, and which model is the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedbench.config import Local
from fedbench.data.tokenize import Pair, Rated, Tokens
from fedbench.federated import alone, client, server
from fedbench.federated.alone import train_centralised, train_local
from fedbench.federated.checkpoint import read_history
from fedbench.federated.client import accumulate, reference_scores
from fedbench.federated.objectives import Scores, make_objective
from fedbench.federated.reading import Reader
from fedbench.federated.server import Training, train_federated
from fedbench.federated.settings import DpoObjective, KtoObjective, SftObjective
from fedbench.federated.state import State, combine
from fedbench.model import (
    BaseModel,
    add_lora,
    get_state,
    load_base,
    save_checkpoint,
    set_state,
    trainable,
)
from fedbench.model_config import Lora, ModelConfig
from fedbench.run_base import started_from

MakeTraining = Callable[..., Training]
LN2 = math.log(2)
ONE_STEP = {"max_steps": 1, "batch_size": 4, "learning_rate": 0.01}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# By hand


def test_sft_is_cross_entropy_over_the_answer_tokens_of_a_batch() -> None:
    rows = [Tokens.ending((3, 4, 5), 1), Tokens((3, 4, 5, 6, 7), ((1, 2), (3, 5)))]
    objective = make_objective(SftObjective())
    loss = objective.loss(rows, [0, 1], Scores(policy=torch.tensor([-2.0, -9.0])))
    assert float(loss) == 11.0
    assert objective.size(rows, [0, 1]) == 1 + 3


PAIRS = [Pair((3, 4), (5, 6), (7, 8, 9, 10)), Pair((3,), (4,), (5,))]
# Log-ratios of the first pair: chosen -10 + 11 = 1, rejected -12 + 10 = -2, so h = 3; the second
# pair is the other way round: h = -1 - 1 = -2.
POLICY = torch.tensor([-10.0, -12.0, -4.0, -2.0])
REFERENCE = torch.tensor([[-11.0, -10.0], [-3.0, -3.0]])


def preference_loss(**config: Any) -> float:
    objective = make_objective(DpoObjective(kind="dpo", **config))
    assert objective.size(PAIRS, [0, 1]) == 2
    return float(objective.loss(PAIRS, [0, 1], Scores(POLICY, REFERENCE)))


def test_dpo_is_minus_log_sigmoid_of_the_margin() -> None:
    # log(1 + exp(-0.3)) = 0.554355 and log(1 + exp(0.2)) = 0.798139
    assert preference_loss(beta=0.1) == pytest.approx(0.554355 + 0.798139, abs=1e-6)


def test_label_smoothing_takes_a_share_of_the_preferences_as_flipped() -> None:
    # 0.9 log(1 + exp(-0.3)) + 0.1 log(1 + exp(0.3)), and with -0.2: e h beta is added
    expected = (0.554355 + 0.1 * 0.3) + (0.798139 - 0.1 * 0.2)
    assert preference_loss(beta=0.1, label_smoothing=0.1) == pytest.approx(expected, abs=1e-6)


def test_ipo_is_the_squared_distance_to_half_over_beta_of_ratios_per_token() -> None:
    # 1 / 2 + 2 / 4 = 1 and -1 - 1 = -2, each to 1 / (2 * 0.1) = 5.
    assert preference_loss(loss="ipo", beta=0.1) == pytest.approx((1 - 5) ** 2 + (-2 - 5) ** 2)


RATED = [Rated((3, 4), (5,), True), Rated((3,), (6, 7), False), Rated((8, 9), (10,), True)]


@pytest.mark.parametrize(
    ("baseline", "point"), [([-3.0, -5.0], 0.5), ([-6.0, -5.0], 0.0)], ids=["positive", "clamped"]
)
def test_kto_weighs_answers_against_the_reference_point(
    baseline: list[float], point: float
) -> None:
    config = KtoObjective(kind="kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    scores = Scores(
        policy=torch.tensor([-2.0, -3.0]),
        reference=torch.tensor([[-4.0, -4.0], [-4.0, -5.0]]),
        baseline=torch.tensor(baseline),  # mean log-ratios ((1) + (0)) / 2 and ((-2) + (0)) / 2
        baseline_reference=torch.tensor([-4.0, -5.0]),
    )
    # Log-ratios 2 of the wanted answer and 1 of the unwanted one.
    expected = 1.5 * (1 - sigmoid(0.2 * (2 - point))) + 0.5 * (1 - sigmoid(0.2 * (point - 1)))
    objective = make_objective(config)
    assert float(objective.loss(RATED, [0, 1], scores)) == pytest.approx(expected, abs=1e-6)


def test_the_reference_point_of_kto_takes_the_answer_of_the_next_row() -> None:
    objective = make_objective(KtoObjective(kind="kto"))
    mismatched = objective.baseline_sequences(RATED, [2, 0])
    assert [tokens.ids for tokens in mismatched] == [(8, 9, 5), (3, 4, 6, 7)]
    assert [tokens.num_completion for tokens in mismatched] == [1, 2]
    read = objective.reference_sequences(RATED, [0])
    assert [tokens.ids for tokens in read] == [(3, 4, 5), (3, 4, 6, 7)]


def test_the_prompt_carries_no_loss() -> None:
    objective = make_objective(DpoObjective(kind="dpo"))
    chosen, rejected = objective.sequences(PAIRS, [0])
    assert (chosen.ids, chosen.spans) == ((3, 4, 5, 6), ((2, 4),))
    assert (rejected.ids, rejected.spans) == ((3, 4, 7, 8, 9, 10), ((2, 6),))


def test_smoothing_belongs_to_dpo() -> None:
    with pytest.raises(ValueError, match="label_smoothing belongs to loss sigmoid"):
        DpoObjective(kind="dpo", loss="ipo", label_smoothing=0.1)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_small_batches_accumulate_to_the_preference_gradient_of_the_whole(
    training: MakeTraining, kind: str
) -> None:
    made = training(objective={"kind": kind}, shards=(4,), federation={"clients_per_round": 1})
    base, [rows] = made.base, made.shards
    reference = made.reference(0)
    shaken = moved(made.initial_state)
    results = []
    for size in (None, 1, 3):
        local = Local(batch_size=4, micro_batch_size=size)
        set_state(base.module, shaken)
        reader = Reader(base, local, dropout=False)
        loss = accumulate(reader, made.objective, rows, range(4), local, reference)
        results.append(torch.cat([p.grad.flatten() for p in trainable(base.module).values()]))
        results.append(torch.tensor([loss]))
        base.module.zero_grad()
    for other in (2, 4):
        torch.testing.assert_close(results[other], results[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(results[other + 1], results[1], rtol=1e-5, atol=1e-6)


# The reference


def moved(state: State) -> State:
    noise = torch.Generator().manual_seed(1)
    return combine(lambda t: t + 0.2 * torch.randn(t.shape, generator=noise), state)


def losses(job: Training, method: str = "fedavg") -> list[tuple[float, ...]]:
    """Losses per round of every client, under a method that is in the run file."""
    [config] = [one for one in job.config.methods if one.name == method]
    train_federated(job, method, job.config.algorithm_for(config))
    return [r.losses for r in read_history(job.directory / method / f"seed-{job.seed}")]


def dpo(training: MakeTraining, **config: Any) -> Training:
    settings: dict[str, Any] = {
        "objective": {"kind": "dpo"},
        "shards": (4, 4, 4),
        "federation": {"rounds": 2, "clients_per_round": 3},
        "local": ONE_STEP,
    }
    return training(**(settings | config))


def test_dpo_starts_at_ln_2_and_is_below_it_in_round_2(training: MakeTraining) -> None:
    # A fresh adapter is the reference; with the round's start as reference, every round's first
    # loss would be ln 2 again.
    first, second = losses(dpo(training))
    assert first == pytest.approx((LN2, LN2, LN2), abs=1e-6)
    assert all(loss < LN2 - 0.001 for loss in second)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_dpo_of_all_weights_has_the_base_for_its_reference_too(
    training: MakeTraining, loss: str
) -> None:
    objective = {"kind": "dpo", "loss": loss}
    job = dpo(training, model={"lora": None}, objective=objective)
    start = {"sigmoid": LN2, "ipo": 25.0}[loss]  # (0 - 1 / 0.2)^2
    first, second = losses(job)
    assert first == pytest.approx((start,) * 3, rel=1e-5)
    assert all(loss < 0.99 * start for loss in second)


def test_a_reference_is_computed_once_per_client_for_all_rounds_and_methods(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counting(
        base: BaseModel, weights: State, rows: Sequence[Any], *others: Any
    ) -> torch.Tensor:
        read.append(len(rows))
        return reference_scores(base, weights, rows, *others)

    for module in (server, alone):
        monkeypatch.setattr(module, "reference_scores", counting)
    job = dpo(training, shards=(4, 5, 6))
    train_local(job, "local", 1)
    assert read == [5]
    losses(job)
    assert read == [5, 4, 6]
    losses(job, "fedprox")
    train_local(job, "local", 0)
    assert read == [5, 4, 6]
    train_centralised(job, "centralised")
    assert read == [5, 4, 6, 15]  # the pooled rows are a shard of their own
    assert client.reference_scores is reference_scores


def test_sft_reads_no_reference(training: MakeTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "reference_scores", None)  # whoever calls it fails
    job = training(federation={"rounds": 1})
    assert len(losses(job)) == 1
    assert job.reference(0) is None


@pytest.mark.parametrize("algorithm", ["flora", "fedex_lora"])
def test_the_reference_stays_the_base_that_rounds_have_added_to(
    training: MakeTraining, tmp_path: Path, algorithm: str
) -> None:
    def job(name: str) -> Training:
        # One client a round: later ones are read for the first time on a base that has changed.
        return dpo(
            training,
            directory=tmp_path / name,
            methods=[{"algorithm": algorithm, "name": "method"}],
            federation={"rounds": 6, "clients_per_round": 2},
            local=ONE_STEP | {"max_steps": 3},
        )

    untouched, trained = job("untouched"), job("trained")
    losses(trained, "method")
    assert [len({p.client for p in cohort}) for cohort in trained.cohorts] == [2] * 6
    first = {participant.client for participant in trained.cohorts[0]}
    late = trained._references.keys() - first
    assert late  # the cohorts of seed 0 bring a new client after round 1
    for number, scores in trained._references.items():
        assert torch.equal(scores, untouched.reference(number))


def test_dpo_from_a_supervised_adapter_has_the_merged_model_for_its_reference(
    training: MakeTraining, tiny_base_directory: Path, tmp_path: Path
) -> None:
    # An adapter as a supervised run leaves it.
    adapter = tmp_path / "adapter"
    supervised = load_base(str(tiny_base_directory), ModelConfig(name="tiny", device="cpu"))
    add_lora(supervised, Lora(r=2, alpha=4), seed=0)
    weights = moved(get_state(supervised.module))
    save_checkpoint(supervised, weights, adapter)

    fresh = dpo(training, model={"start_from": str(adapter)})
    place = started_from(fresh.config, str(tiny_base_directory), tmp_path / "run")
    merged = load_base(place, fresh.config.model)
    add_lora(merged, fresh.config.model.lora, seed=0)
    job = replace(fresh, base=merged, initial_state=get_state(merged.module), _references={})
    first, second = losses(job)
    assert first == pytest.approx((LN2, LN2, LN2), abs=1e-6)
    assert all(loss < LN2 - 0.001 for loss in second)
    rows, local = job.shards[0], job.config.local
    own = reference_scores(supervised, weights, rows, local, job.objective)
    torch.testing.assert_close(job.reference(0), own, rtol=1e-5, atol=1e-4)
    base = reference_scores(
        supervised, combine(torch.zeros_like, weights), rows, local, job.objective
    )
    assert float((own - base).abs().max()) > 0.05  # the supervised model is another one


def test_a_quantized_base_starts_from_no_adapter() -> None:
    with pytest.raises(ValueError, match=r"model\.start_from cannot be merged"):
        ModelConfig(name="tiny", quantization="4bit", start_from="adapter")


def test_kto_trains(training: MakeTraining) -> None:
    job = training(
        objective={"kind": "kto"},
        shards=(4, 4, 4),
        federation={"rounds": 5, "clients_per_round": 3},
        local=ONE_STEP,
    )
    history = losses(job)
    assert history[0] == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)  # 1 - sigmoid(0)
    means = [sum(one) / 3 for one in history]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.49

"""Clipped, noised and accounted for: what a private training sends, spends and refuses."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from trainings import distance, final, newest, run, same, tear

from fedbench.config import RunConfig
from fedbench.errors import CheckpointError, ConfigError, MissingExtraError
from fedbench.federated import rounds
from fedbench.federated.checkpoint import latest_round, read_history, round_directory
from fedbench.federated.message import ClientMessage, ClientUpdate, ServerState, Setting
from fedbench.federated.participation import Participation, choose_clients
from fedbench.federated.privacy.accounting import Account, epsilon, noise_multiplier_for
from fedbench.federated.privacy.clipping import CLIP, WITHIN, clip_update
from fedbench.federated.privacy.ledger import LEDGER, Ledger
from fedbench.federated.privacy.mean import PrivateMean
from fedbench.federated.privacy.noise import seeded_noise, system_noise
from fedbench.federated.privacy.settings import Privacy
from fedbench.federated.privacy.training import privacy_records
from fedbench.federated.server import Training

dp_accounting = pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
rdp = pytest.importorskip("dp_accounting.rdp")

MakeTraining = Callable[..., Training]
UNIFORM = [{"algorithm": "fedavg", "weighting": "uniform"}]
PRIVATE = {"noise_multiplier": 1.0, "clip": 0.1}


def private_mean(
    directory: Path, cohort_size: int = 4, sampling: float | None = None, **privacy: Any
) -> PrivateMean:
    settings = Privacy.model_validate({"noise_multiplier": 1.0} | privacy)
    mean = PrivateMean(settings, [[0, 1]], cohort_size, sampling, seed=0, simulated=True)
    mean.ledger = Ledger(directory, 0, 0, repeatable=True)
    return mean


def server(size: int) -> ServerState:
    return ServerState(Setting(num_clients=4, rounds=1, seed=0), {"w": torch.ones(size)})


def update(client: int, weights: torch.Tensor, **extra: torch.Tensor) -> ClientUpdate:
    return ClientUpdate(client, {"w": weights}, 1, 1, 1, 0.0, extra=dict(extra))


def message(clip: float, weights: torch.Tensor) -> ClientMessage:
    return ClientMessage(0, 1, 0, {"w": weights}, 0.1, 0, 1, broadcast={CLIP: torch.tensor(clip)})


# The client


def test_a_client_sends_no_more_than_the_clip() -> None:
    long = update(0, torch.tensor([4.0, 5.0]))  # (3, 4) from (1, 1): length 5
    sent = clip_update(message(2.5, torch.ones(2)), long)
    assert torch.allclose(sent.state["w"], torch.tensor([2.5, 3.0]))  # half of it
    assert sent.extra[WITHIN] == 0.0


@pytest.mark.parametrize("weights", [[4.0, 5.0], [1.0, 1.0]], ids=["short", "no change"])
def test_an_update_within_the_clip_is_sent_as_it_is(weights: list[float]) -> None:
    short = update(0, torch.tensor(weights))
    sent = clip_update(message(5.0, torch.ones(2)), short)
    assert torch.equal(sent.state["w"], short.state["w"])
    assert sent.extra[WITHIN] == 1.0


# The server


def test_the_noise_on_the_mean_has_the_deviation_that_was_asked_for(tmp_path: Path) -> None:
    size, clip = 40_000, 0.5
    before = server(size)
    mean = private_mean(tmp_path, noise_multiplier=3.0, clip=clip)
    _, made = mean.mean(before, 1, ["w"], [update(0, before.weights["w"])])
    noise = (made.state["w"] - before.weights["w"]).double()
    expected = 3.0 * clip / 4  # z S / m
    # Of 40,000 normal numbers the deviation has a relative error of 1 / sqrt(80,000) = 0.35 %.
    assert float(noise.std()) == pytest.approx(expected, rel=4 * 0.0035)
    assert abs(float(noise.mean())) < 4 * expected / math.sqrt(size)


def test_the_systems_noise_is_standard_normal_and_never_the_same() -> None:
    noise = system_noise(torch.Size([40_000]))
    assert float(noise.std()) == pytest.approx(1.0, rel=0.014)
    # P(|x| < 1) = 0.6827; its standard error here is 0.0023.
    assert float((noise.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.0094)
    assert not torch.equal(noise, system_noise(torch.Size([40_000])))


def test_noise_of_a_seed_is_the_same_for_the_same_round_only() -> None:
    one, again, other = (seeded_noise(key)(torch.Size([3])) for key in ("1", "1", "2"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_mean_divides_by_the_expected_cohort_whoever_answers(tmp_path: Path) -> None:
    before = server(2)
    updates = [update(n, before.weights["w"] + torch.tensor([0.6, 0.8])) for n in range(2)]
    mean = private_mean(tmp_path, noise_multiplier=1e-9)
    _, made = mean.mean(before, 1, ["w"], updates)
    change = made.state["w"] - before.weights["w"]
    assert torch.allclose(change, torch.tensor([0.3, 0.4]))  # two of four: (1.2, 1.6) / 4


def test_the_clip_follows_the_quantile_of_the_norms(tmp_path: Path) -> None:
    mean = private_mean(
        tmp_path,
        noise_multiplier=1e-9,
        adaptive={"quantile": 0.5, "learning_rate": 0.2, "count_noise": 1e-6},
    )
    before = server(2)
    votes = [1.0, 1.0, 1.0, 0.0]  # three of four within: 0.75 - 0.5 too many
    updates = [
        update(n, before.weights["w"], **{WITHIN: torch.tensor(vote)})
        for n, vote in enumerate(votes)
    ]
    after, _ = mean.mean(before, 1, ["w"], updates)
    assert mean.clip(after) == pytest.approx(math.exp(-0.2 * 0.25), rel=1e-4)


def test_adaptive_clipping_pays_for_its_count_with_more_noise_on_updates(tmp_path: Path) -> None:
    mean = private_mean(tmp_path, noise_multiplier=1.0, adaptive={"count_noise": 1.0})
    # Andrew et al. 2021, Theorem 1: (1 - 1 / 4)^(-1/2).
    assert mean._update_noise == pytest.approx(2 / math.sqrt(3))


def test_a_count_with_too_little_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"count_noise is 0\.4, whose double must be above"):
        private_mean(tmp_path, noise_multiplier=1.0, adaptive={"count_noise": 0.4})


# The account


@pytest.mark.parametrize("sampling", [None, 0.1])
def test_epsilon_is_that_of_the_library(sampling: float | None) -> None:
    event = dp_accounting.GaussianDpEvent(2.0)
    if sampling is not None:
        event = dp_accounting.PoissonSampledDpEvent(sampling, event)
    accountant = rdp.RdpAccountant()
    for _ in range(3):
        accountant.compose(event)
    account = Account(1e-5, "rdp", sampling)
    assert epsilon(account, 2.0, ((1, 3),)) == pytest.approx(accountant.get_epsilon(1e-5))


def test_privacy_loss_distributions_give_the_exact_epsilon_of_gaussian_noise() -> None:
    # Balle and Wang 2018, Theorem 8: delta of sigma = 1 at epsilon = 1 is 0.1269.
    normal = torch.distributions.Normal(0.0, 1.0)
    delta = float(normal.cdf(torch.tensor(-0.5)) - math.e * normal.cdf(torch.tensor(-1.5)))
    assert delta == pytest.approx(0.1269, abs=1e-4)
    assert epsilon(Account(delta, "pld", None), 2.0, ((1, 4),)) == pytest.approx(1.0, abs=1e-5)


def test_privacy_loss_distributions_are_below_renyi_divergences_with_sampling() -> None:
    tight = epsilon(Account(1e-5, "pld", 0.2), 2.0, ((1, 5),))
    event = dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(2.0))
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 5))
    assert tight == pytest.approx(accountant.get_epsilon(1e-5))
    assert 0 < tight < epsilon(Account(1e-5, "rdp", 0.2), 2.0, ((1, 5),))


def test_the_calibrated_noise_meets_its_target() -> None:
    account = Account(1e-5, "rdp", None)
    noise = noise_multiplier_for(account, 3.0, ((1, 7),))
    assert epsilon(account, noise, ((1, 7),)) == pytest.approx(3.0, rel=1e-4)
    assert epsilon(account, noise, ((1, 7),)) <= 3.0
    assert epsilon(account, noise * 0.99, ((1, 7),)) > 3.0


def test_a_round_released_twice_costs_more_than_one_and_its_cohort_is_drawn_once() -> None:
    account = Account(1e-5, "rdp", 0.1)
    once, twice = epsilon(account, 2.0, ((1, 1),)), epsilon(account, 2.0, ((2, 1),))
    assert once < twice
    # Two cohorts would hide a client better than one that is used twice.
    assert twice > epsilon(account, 2.0, ((1, 2),))


def test_nothing_released_costs_nothing() -> None:
    assert epsilon(Account(1e-5, "rdp", None), 1.0, ()) == 0.0


# The ledger


def test_real_noise_is_paid_for_again_when_a_round_is_trained_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0, 0, repeatable=False)
    ledger.release(1, (0, 2))
    ledger.release(2, (0, 1))
    again = Ledger(tmp_path, 1, 1, repeatable=False)  # killed before round 2 was committed
    again.release(2, (0, 1))
    assert again.plain() == ((1, 3),)  # client 0: once in round 1, twice in round 2
    assert again.amplified() == ((1, 1), (2, 1))
    assert Ledger(tmp_path, 1, 1, repeatable=True).plain() == ((1, 1),)


def test_a_torn_line_was_never_released(tmp_path: Path) -> None:
    Ledger(tmp_path, 0, 0, repeatable=False).release(1, (0,))
    with open(tmp_path / LEDGER, "a") as file:
        file.write('{"round": 2, "cli')
    ledger = Ledger(tmp_path, 1, 1, repeatable=False)
    ledger.release(2, (0,))
    assert ledger.plain() == ((1, 2),)


@pytest.mark.parametrize("content", ["", "broken\n"], ids=["missing line", "damaged line"])
def test_a_ledger_that_does_not_tell_what_was_spent_is_refused(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(CheckpointError, match="not known"):
        Ledger(tmp_path, 1, 1, repeatable=True)


# Whole trainings


def test_a_private_training_tells_epsilon_after_each_round(training: MakeTraining) -> None:
    made = training(methods=UNIFORM, privacy=PRIVATE)
    directory = run(made)
    history = read_history(directory)
    spent = [round.privacy for round in history]
    assert all(one is not None and one.simulated and not one.amplified for one in spent)
    turns: dict[int, int] = {}
    for round in history:
        for client in round.cohort:
            turns[client] = turns.get(client, 0) + 1
        # Nobody knows a client by rounds without it: that of most turns pays for its own alone.
        event = dp_accounting.SelfComposedDpEvent(
            dp_accounting.GaussianDpEvent(1.0), max(turns.values())
        )
        accountant = rdp.RdpAccountant()
        accountant.compose(event)
        assert round.privacy is not None
        assert round.privacy.epsilon == pytest.approx(accountant.get_epsilon(1e-5))
    (record,) = privacy_records(made.config, [directory])
    assert record.level == "client"
    assert record.epsilons == tuple(one.epsilon for one in spent if one is not None)
    assert (record.method, record.seed, len(record.epsilons)) == ("fedavg", 0, 4)


@pytest.mark.parametrize(
    "privacy",
    [PRIVATE, PRIVATE | {"adaptive": {"quantile": 0.3}}, {"target_epsilon": 5.0}],
    ids=["fixed", "adaptive", "calibrated"],
)
def test_a_killed_private_training_ends_in_the_bits_and_the_account_of_an_uninterrupted_one(
    training: MakeTraining, tmp_path: Path, privacy: dict[str, Any]
) -> None:
    methods = [{"algorithm": "fedadam", "weighting": "uniform"}]
    whole = run(training(methods=methods, privacy=privacy, directory=tmp_path / "whole"))
    torn = run(training(methods=methods, privacy=privacy, directory=tmp_path / "torn"))
    tear(torn, after=2)
    run(training(methods=methods, privacy=privacy, directory=tmp_path / "torn"))
    assert same(final(torn), final(whole))
    assert same(newest(torn)[0].own, newest(whole)[0].own)
    assert read_history(torn) == read_history(whole)
    assert (torn / LEDGER).read_bytes() == (whole / LEDGER).read_bytes()


def test_next_to_no_noise_and_a_wide_clip_give_the_training_without_privacy(
    training: MakeTraining, tmp_path: Path
) -> None:
    open_ = run(training(methods=UNIFORM, directory=tmp_path / "open"))
    privacy = {"noise_multiplier": 1e-12, "clip": 1e3}
    private = run(training(methods=UNIFORM, privacy=privacy, directory=tmp_path / "private"))
    # Adam makes whole steps of small gradients: rounding grows, on each processor otherwise.
    trained = distance(final(open_), training(methods=UNIFORM).initial_state)
    assert distance(final(private), final(open_)) < 1e-3 * trained


@pytest.mark.parametrize(
    "algorithm", ["fedprox", "fedavgm", "fedadagrad", "fedyogi", "fedit", "ffa_lora", "rolora"]
)
def test_algorithms_of_the_mean_train_with_privacy(training: MakeTraining, algorithm: str) -> None:
    options = {"mu": 0.1} if algorithm == "fedprox" else {}
    methods = [{"algorithm": algorithm, "weighting": "uniform"} | options]
    made = training(methods=methods, privacy=PRIVATE)
    weights = final(run(made))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert distance(weights, made.initial_state) > 0


def test_training_stops_at_the_budget_and_the_model_stays(training: MakeTraining) -> None:
    made = training(shards=(4, 4), methods=UNIFORM, privacy=PRIVATE | {"budget": 9.0})
    directory = run(made)
    history = read_history(directory)
    stopped = [round.privacy is not None and round.privacy.stopped for round in history]
    # Both clients train in every round. At z = 1 and delta 1e-5 RDP gives 4.73 after one round,
    # 7.16 after two and 9.18 after three.
    assert stopped == [False, False, True, True]
    assert [round.cohort for round in history[2:]] == [(), ()]
    assert [round.train_examples for round in history[1:]] == [history[1].train_examples] * 3
    kept = latest_round(directory)
    assert kept is not None
    assert kept.round == 4
    assert next(privacy_records(made.config, [directory])).stopped_after == 2


def test_once_the_budget_is_spent_nobody_trains_whoever_is_drawn_later(
    training: MakeTraining, caplog: pytest.LogCaptureFixture
) -> None:
    federation = {"clients_per_round": 1, "rounds": 8}
    made = training(methods=UNIFORM, privacy=PRIVATE | {"budget": 5.0}, federation=federation)
    directory = run(made)
    # At z = 1 and delta 1e-5 a client's first round costs 4.73 and its second 7.16.
    drawn = [cohort[0].client for cohort in made.cohorts]
    last = next(n for n in range(1, 8) if drawn[n] in drawn[:n])
    assert set(drawn[last:]) - set(drawn[:last])  # somebody who could still pay comes later
    history = read_history(directory)
    assert [round.cohort for round in history] == [(c,) for c in drawn[:last]] + [()] * (8 - last)
    assert next(privacy_records(made.config, [directory])).stopped_after == last
    assert caplog.text.count("would exceed the budget of epsilon 5") == 1


def test_a_run_that_has_stopped_stays_stopped_when_it_is_resumed(
    training: MakeTraining, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"methods": UNIFORM, "privacy": PRIVATE | {"budget": 9.0}}
    whole = run(training(shards=(4, 4), directory=tmp_path / "whole", **options))
    torn = run(training(shards=(4, 4), directory=tmp_path / "torn", **options))
    tear(torn, after=3)
    run(training(shards=(4, 4), directory=tmp_path / "torn", **options))
    assert same(final(torn), final(whole))
    assert read_history(torn) == read_history(whole)


def test_secret_poisson_cohorts_cost_less_and_may_be_empty(training: MakeTraining) -> None:
    federation = {"participation": {"sampling": "poisson"}, "clients_per_round": 1, "rounds": 6}
    directory = run(training(methods=UNIFORM, privacy=PRIVATE, federation=federation))
    history = read_history(directory)
    sizes = {len(round.cohort) for round in history}
    assert 0 in sizes  # every client by a coin of 1 in 3
    last = history[-1].privacy
    assert last is not None
    assert last.amplified
    assert last.rounds == 6  # a round without anybody is noise, and counts
    assert last.epsilon == epsilon(Account(1e-5, "rdp", 1 / 3), 1.0, ((1, 6),))


def test_real_noise_keeps_every_round_and_leaves_out_what_it_does_not_cover(
    training: MakeTraining, tmp_path: Path
) -> None:
    privacy = PRIVATE | {"noise": "system"}
    made = training(methods=UNIFORM, privacy=privacy, evaluation={"rounds": "last"})
    federation = made.config.federation.model_copy(
        update={"participation": Participation(sampling="poisson")}
    )
    made = replace(made, config=made.config.model_copy(update={"federation": federation}))
    directory = run(made)
    history = read_history(directory)
    assert all(round.privacy and not round.privacy.simulated for round in history)
    assert all(round.losses == round.drift == () for round in history)
    secret = made.directory / "cohorts-seed-0.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert made.cohorts == replace(made).cohorts  # again from the same secret
    other = training(methods=UNIFORM, directory=tmp_path / "other", privacy=privacy)
    assert not same(final(run(replace(other, config=made.config))), final(directory))


def test_every_round_with_real_noise_is_committed_before_the_next(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(rounds.Rounds, "_remove_older", lambda self, newest: seen.append(newest))
    privacy = PRIVATE | {"noise": "system"}
    directory = run(training(methods=UNIFORM, privacy=privacy, evaluation={"rounds": "last"}))
    assert seen == [1, 2, 3, 4]
    assert json.loads((round_directory(directory, 2) / "round.json").read_text())["round"] == 2


def test_poisson_cohorts_have_the_expected_size_on_average() -> None:
    sizes = [len(choose_clients("poisson", [1] * 50, 10, 0, round)) for round in range(400)]
    # Binomial(50, 0.2): standard deviation 2.83, of the mean of 400 rounds 0.14.
    assert sum(sizes) / 400 == pytest.approx(10, abs=4 * 0.14)
    assert min(sizes) < 6
    assert max(sizes) > 14


# What is refused


def test_a_missing_accountant_is_named_before_anybody_trains(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)  # as where it is not installed
    made = training(methods=UNIFORM, privacy=PRIVATE)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedbench\[privacy\]'"):
        run(made)


def config(**changes: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "name": "private",
        "model": {"name": "somewhere"},
        "data": {"train": "headlines"},
        "methods": UNIFORM,
        "privacy": {"noise_multiplier": 1.0},
        "evaluation": {"tasks": ["headlines"]},
    }
    return RunConfig.model_validate(raw | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["fedavg"]}, "weights clients by their examples"),
        ({"methods": ["scaffold"]}, "also send control variates"),
        ({"methods": ["krum"]}, "compares single clients"),
        ({"methods": ["flora"]}, "products of the clients' factors"),
        ({"methods": ["fedsa_lora"]}, "a model of its own"),
        ({"privacy": {}}, "exactly one of the two"),
        ({"privacy": {"noise_multiplier": 1.0, "target_epsilon": 1.0}}, "exactly one of the two"),
        ({"privacy": {"noise_multiplier": 1.0, "delta": 0.1}}, "lets one of 10 clients"),
        ({"federation": {"participation": {"sampling": "weighted"}}}, "how many rows clients have"),
        (
            {"privacy": None, "federation": {"participation": {"sampling": "poisson"}}},
            "choose uniform, or add privacy",
        ),
        (
            {"privacy": {"noise_multiplier": 1, "noise": "seeded"}, "engine": "flower_deployment"},
            "protects nobody",
        ),
    ],
)
def test_what_privacy_cannot_hold_for_is_refused_in_words(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**changes)


def test_a_run_file_without_privacy_keeps_its_hash() -> None:
    assert config(privacy=None).hash == config(privacy=None, attack=None).hash
    assert config().hash != config(privacy=None).hash


def test_deployments_take_their_noise_from_the_system() -> None:
    privacy = Privacy(noise_multiplier=1.0)
    assert not privacy.simulated("flower_deployment")
    assert privacy.simulated("in_process")
    assert not Privacy(noise_multiplier=1.0, noise="system").simulated("in_process")

"""DP-SGD in the clients: what it costs each of them, what records say of it, what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from trainings import distance, final, run, same, tear

from fedbench.config import RunConfig
from fedbench.errors import CheckpointError, ConfigError, MissingExtraError
from fedbench.federated.checkpoint import read_history
from fedbench.federated.participation import Participant
from fedbench.federated.privacy import accounting
from fedbench.federated.privacy.accounting import Account
from fedbench.federated.privacy.dp_sgd import DpSgd
from fedbench.federated.privacy.dp_sgd_account import LEDGER_DIRECTORY, ExamplePrivacy
from fedbench.federated.privacy.ledger import LEDGER
from fedbench.federated.privacy.training import privacy_records
from fedbench.federated.server import Training
from fedbench.results.record import read_run
from fedbench.run import train

dp_accounting = pytest.importorskip("dp_accounting", reason="the extra dp-sgd is not installed")
opacus_accountants = pytest.importorskip("opacus.accountants")

MakeTraining = Callable[..., Training]
NOISE = {"noise_multiplier": 1.0, "max_grad_norm": 0.5}
ALIKE = (20, 20, 20)
"""Rows per client; divergences of one sampling rate are computed once."""
LOCAL = {"max_steps": 2, "batch_size": 2, "learning_rate": 0.01}


def private(**dp_sgd: Any) -> dict[str, Any]:
    return LOCAL | {"dp_sgd": NOISE | dp_sgd}


def library(rate: float, noise_multiplier: float, steps: int, delta: float = 1e-5) -> float:
    """Epsilon by dp-accounting alone."""
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    if rate < 1.0:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))


# The account


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize(("rate", "steps"), [(0.1, 30), (1.0, 3)])
def test_epsilon_of_steps_is_that_of_the_library(accountant: str, rate: float, steps: int) -> None:
    sampling = None if rate == 1.0 else rate
    account = Account(1e-5, accountant, sampling)  # type: ignore[arg-type]
    got = accounting.epsilon_of_steps(account, 1.5, steps)
    assert got == pytest.approx(accounting.epsilon(account, 1.5, ((1, steps),)), rel=1e-12)
    if accountant == "rdp":
        assert got == pytest.approx(library(rate, 1.5, steps), rel=1e-12)


def test_opacus_own_accountant_agrees() -> None:
    theirs = opacus_accountants.RDPAccountant()
    theirs.history = [(1.0, 0.05, 100)]
    ours = accounting.epsilon_of_steps(Account(1e-5, "rdp", 0.05), 1.0, 100)
    # They differ in the orders of the divergences, of which each takes the best.
    assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-3)


def test_each_client_pays_for_its_own_steps_at_its_own_rate(training: MakeTraining) -> None:
    directory = run(training(shards=(20, 2, 8), methods=["fedavg"], local=private()))
    steps: dict[int, int] = {}
    largest = 0.0
    for round in read_history(directory):
        spent = round.example_privacy
        assert spent is not None
        for place, client in enumerate(round.cohort):
            steps[client] = steps.get(client, 0) + 2
            rate = {0: 0.1, 1: 1.0, 2: 0.25}[client]  # two rows of 20, of 2, of 8
            assert (spent.steps[place], spent.sample_rates[place]) == (steps[client], rate)
            assert spent.epsilons[place] == pytest.approx(library(rate, 1.0, steps[client]))
            largest = max(largest, spent.epsilons[place])
        assert spent.epsilon == largest
        assert spent.simulated
        assert len(round.losses) == len(round.cohort)
        assert round.privacy is None


def test_a_target_gives_each_client_the_noise_that_its_planned_steps_need(tmp_path: Path) -> None:
    cohorts = [[Participant(0, 5, 5), Participant(1, 5, 2)], [Participant(0, 5, 5)]]
    settings = DpSgd(target_epsilon=3.0)
    account = ExamplePrivacy(settings, 2, [2, 1], cohorts)  # all rows in every step
    noise = [account.noise_multiplier(client) for client in (0, 1)]
    for rate, multiplier, steps in ((1.0, noise[0], 10), (1.0, noise[1], 2)):
        assert library(rate, multiplier, steps) == pytest.approx(3.0, rel=1e-4)
        assert library(rate, multiplier, steps) <= 3.0
    assert noise[0] != noise[1]
    assert [float(account.broadcast(client).popitem()[1]) for client in (0, 1)] == noise


def test_no_step_costs_nothing() -> None:
    assert accounting.epsilon_of_steps(Account(1e-5, "rdp", 0.1), 1.0, 0) == 0.0


# Whole trainings


def test_a_killed_training_ends_in_the_bits_and_the_account_of_an_uninterrupted_one(
    training: MakeTraining, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"shards": ALIKE, "methods": ["fedadam"], "local": private()}
    whole = run(training(directory=tmp_path / "whole", **options))
    torn = run(training(directory=tmp_path / "torn", **options))
    tear(torn, after=2)
    run(training(directory=tmp_path / "torn", **options))
    assert same(final(torn), final(whole))
    assert read_history(torn) == read_history(whole)
    ledgers = [(one / LEDGER_DIRECTORY / LEDGER).read_bytes() for one in (torn, whole)]
    assert ledgers[0] == ledgers[1]


def test_real_noise_is_paid_for_again_and_what_it_does_not_cover_is_left_out(
    training: MakeTraining, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "shards": (20, 20),
        "methods": ["fedavg"],
        "local": private(noise="system"),
    }
    directory = run(training(**options))
    history = read_history(directory)
    assert all(one.losses == () and one.train_tokens == 0 for one in history)
    assert [one.example_privacy.steps for one in history if one.example_privacy] == [
        (2, 2),
        (4, 4),
        (6, 6),
        (8, 8),
    ]
    tear(directory, after=2)
    run(training(**options))
    last = read_history(directory)[-1].example_privacy
    assert last is not None
    assert last.steps == (12, 12)  # rounds 3 and 4 twice
    assert not last.simulated
    (directory / LEDGER_DIRECTORY / LEDGER).unlink()
    with pytest.raises(CheckpointError, match="not known"):
        run(training(**options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"algorithm": "scaffold"},
        {"algorithm": "flora"},
        {"algorithm": "fedsa_lora"},
    ],
    ids=lambda method: str(method["algorithm"]),
)
def test_algorithms_train_with_it(training: MakeTraining, method: dict[str, Any]) -> None:
    made = training(shards=ALIKE, methods=[method], local=private(), federation={"rounds": 2})
    weights = final(run(made))
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert distance(weights, made.initial_state) > 0


def test_privacy_of_clients_and_of_rows_are_told_side_by_side(training: MakeTraining) -> None:
    methods = [{"algorithm": "fedavg", "weighting": "uniform"}]
    privacy = {"noise_multiplier": 1.0, "clip": 0.1}
    made = training(
        shards=ALIKE, methods=methods, privacy=privacy, local=private(), federation={"rounds": 1}
    )
    history = read_history(run(made))
    assert history
    assert all(one.privacy and one.example_privacy for one in history)


def test_a_runs_record_tells_for_which_level_each_epsilon_is(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    raw = {
        "name": "both",
        "model": {"name": str(tiny_base_directory), "lora": {"r": 2}, "device": "cpu"},
        "data": {"train": "headlines", "template": "fingpt", "limit": 30},
        "methods": [{"algorithm": "fedavg", "weighting": "uniform"}, {"algorithm": "local"}],
        "federation": {"num_clients": 2, "rounds": 2},
        "local": private(noise_multiplier=1.5),
        "privacy": {"noise_multiplier": 0.5, "clip": 0.1, "delta": 1e-3},
        "evaluation": {"tasks": ["headlines"]},
    }
    train(RunConfig.model_validate(raw), tmp_path)
    record = read_run(tmp_path)
    assert record is not None
    history = read_history(tmp_path / "checkpoints" / "fedavg" / "seed-0")
    client, example = record.privacy  # trained alone, nothing was hidden
    assert (client.level, client.noise_multiplier, client.delta) == ("client", 0.5, 1e-3)
    assert (example.level, example.noise_multiplier, example.delta) == ("example", 1.5, 1e-5)
    assert client.epsilons == tuple(one.privacy.epsilon for one in history if one.privacy)
    told = [one.example_privacy for one in history if one.example_privacy]
    assert example.epsilons == tuple(one.epsilon for one in told)
    assert len(client.epsilons) == len(example.epsilons) == 2
    assert example.amplified  # two rows of some ten are drawn for a step
    assert not client.amplified
    assert client.simulated
    assert example.simulated


def test_the_record_of_rows_has_the_least_noise_and_knows_whether_any_draw_is_secret(
    training: MakeTraining,
) -> None:
    # Two rows of two are in every step, so that nothing hides who was drawn.
    made = training(
        shards=(2, 2),
        methods=["fedavg"],
        local=LOCAL | {"dp_sgd": {"target_epsilon": 5.0}},
        federation={"clients_per_round": 1, "rounds": 3},
    )
    directory = run(made)
    (record,) = privacy_records(made.config, [directory])
    assert not record.amplified
    multipliers = {
        noise
        for one in read_history(directory)
        if one.example_privacy
        for noise in one.example_privacy.noise_multipliers
    }
    assert len(multipliers) == 2  # one client trains twice, the other once
    assert record.noise_multiplier == min(multipliers)
    assert record.epsilon == pytest.approx(5.0, rel=1e-4)


def test_a_run_without_privacy_has_no_history_read(tmp_path: Path) -> None:
    assert list(privacy_records(config(local={}), [tmp_path / "is not there"])) == []


def test_a_missing_package_is_named_before_anybody_trains(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "opacus" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'fedbench\[dp-sgd\]'"):
        run(training(methods=["fedavg"], local=private()))


def test_a_delta_that_publishes_a_row_is_refused(training: MakeTraining) -> None:
    made = training(shards=(5, 12), methods=["fedavg"], local=private(delta=0.09))
    with pytest.raises(ConfigError, match=r"one of the 12 rows of client 1"):
        run(made)


# The run file


def config(**changes: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "name": "private",
        "model": {"name": "somewhere"},
        "data": {"train": "headlines"},
        "methods": ["fedavg", "local", "centralised"],
        "local": {"dp_sgd": NOISE},
        "evaluation": {"tasks": ["headlines"]},
    }
    return RunConfig.model_validate(raw | changes)


def test_training_without_a_federation_is_without_noise() -> None:
    made = config()
    assert made.local_for("fedavg").dp_sgd is not None
    assert made.local_for("local").dp_sgd is None
    assert made.local_for("centralised").dp_sgd is None


def test_it_shapes_the_hash_and_runs_without_it_keep_theirs() -> None:
    # As before the part came.
    assert config(local={}).hash == "4678333241c94693"
    others = [config(), config(local={"dp_sgd": NOISE | {"noise": "system"}})]
    assert len({config(local={}).hash, *(one.hash for one in others)}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": {"dp_sgd": {}}}, "exactly one of the two"),
        (
            {"local": {"dp_sgd": {"noise_multiplier": 1, "target_epsilon": 1}}},
            "exactly one of the two",
        ),
        ({"local": {"dp_sgd": NOISE, "layout": "packed"}}, "several examples into one row"),
        ({"local": {"dp_sgd": NOISE, "group_by_length": True}}, "a coin for each row"),
        ({"local": {"dp_sgd": NOISE, "gradient_checkpointing": True}}, "runs layers twice"),
        ({"objective": {"kind": "dpo"}}, "is a pair of them"),
        ({"objective": {"kind": "kto"}}, "with those of other rows"),
        ({"engine": "flower_deployment", "methods": ["fedavg"]}, "set it to system"),
        ({"model": {"name": "somewhere", "lora": {"dora": True}}}, "model.lora.dora to false"),
        (
            {"model": {"name": "somewhere", "lora": None, "dtype": "bfloat16"}},
            "would round away",
        ),
    ],
)
def test_what_it_cannot_hold_for_is_refused_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**changes)


def test_several_processes_for_one_client_are_refused() -> None:
    from fedbench.federated.crew import _refuse_unshared

    with pytest.raises(ConfigError, match=r"local\.dp_sgd: the processes that torchrun"):
        _refuse_unshared(config(model={"name": "somewhere", "lora": None}))

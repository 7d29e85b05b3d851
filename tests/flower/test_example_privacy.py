"""DP-SGD on the nodes: the same account wherever clients train, and nothing told without noise."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from loopback import LoopbackGrid, distance, schedule, training_of, weights
from test_nodes import QUICK, Federation
from test_private_flower import one_worker, owners  # noqa: F401  # fixtures

from fedbench.config import RunConfig
from fedbench.errors import ClientError, MissingExtraError
from fedbench.federated.checkpoint import Round, read_history
from fedbench.federated.engines.export import export
from fedbench.federated.privacy.accounting import Account, epsilon_of_steps
from fedbench.federated.privacy.dp_sgd_account import LEDGER_DIRECTORY
from fedbench.federated.privacy.ledger import LEDGER
from fedbench.results.record import read_run
from fedbench.run import train

pytest.importorskip("opacus", reason="the extra dp-sgd is not installed")
pytest.importorskip("dp_accounting")

LOCAL = {"max_steps": 2, "batch_size": 2, "learning_rate": 0.01}


def private(**dp_sgd: Any) -> dict[str, Any]:
    return LOCAL | {"dp_sgd": {"noise_multiplier": 1.0, "max_grad_norm": 0.5} | dp_sgd}


def account(directory: Path) -> tuple[bytes, list[Any]]:
    """The ledger, and what each round's record says."""
    ledger = (directory / LEDGER_DIRECTORY / LEDGER).read_bytes()
    return ledger, [round.example_privacy for round in read_history(directory)]


def spent(round: Round) -> Any:
    assert round.example_privacy is not None
    return round.example_privacy


@pytest.mark.usefixtures("one_worker")
def test_a_worker_trains_the_weights_and_spends_the_rows_privacy_of_one_process(
    run_file: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = run_file(methods=["fedavg", "scaffold"], local=private())
    alone, simulated = tmp_path / "alone", tmp_path / "simulated"
    train(config, alone)
    train(config.model_copy(update={"engine": "flower_simulation"}), simulated)
    for method in config.methods:
        one, other = (training_of(output, config, method.name) for output in (alone, simulated))
        assert schedule(one) == schedule(other)
        assert distance(weights(one), weights(other)) <= 1e-6
        assert account(one) == account(other)
        assert [r.losses for r in read_history(one)] == [r.losses for r in read_history(other)]
    assert read_run(alone).privacy == read_run(simulated).privacy
    assert [one.level for one in read_run(simulated).privacy] == ["example", "example"]


def test_with_next_to_no_noise_owners_train_what_one_process_trains(
    owners: Federation,  # noqa: F811
) -> None:
    # A batch larger than any owner's rows, so that no coin decides; and no moments, which would
    # make the noise as large as a gradient.
    local = private(noise_multiplier=1e-9, noise="system") | {"batch_size": 20, "optimizer": "sgd"}
    config = owners.run(local=local)
    apart, together = owners.serve(config), owners.together(config)
    one, other = (training_of(output, config) for output in (apart, together))
    assert schedule(one) == schedule(other)
    assert distance(weights(one), weights(other)) <= 1e-6
    assert account(one) == account(other)


def test_neither_loss_nor_tokens_leave_a_node_whose_rows_are_hidden(
    owners: Federation,  # noqa: F811
) -> None:
    config = owners.run(local=private(noise="system"), flower=QUICK | {"keep_messages": True})
    grid = owners.grid(config)
    told: list[dict[str, Any]] = []

    def watch(client: int, round: int, answer: Message) -> Message:
        told.append(dict(answer.content.metric_records["counts"]))
        return answer

    grid.change = watch
    directory = training_of(owners.serve(config, grid), config)
    assert len(told) == 4
    assert all(math.isnan(counts["loss"]) and counts["num-tokens"] == 0 for counts in told)
    history = read_history(directory)
    assert all(round.losses == () and round.train_tokens == 0 for round in history)
    rates = {client: 2 / rows for client, rows in enumerate(rows_of(grid))}
    for round in history:
        for place, client in enumerate(round.cohort):
            assert spent(round).sample_rates[place] == rates[client]
            steps = spent(round).steps[place]
            expected = epsilon_of_steps(Account(1e-5, "rdp", rates[client]), 1.0, steps)
            assert spent(round).epsilons[place] == expected
        assert not spent(round).simulated
    (record,) = read_run(owners.place / "server").privacy
    assert (record.level, record.simulated, record.amplified) == ("example", False, True)
    assert record.epsilons == tuple(spent(round).epsilon for round in history)


def rows_of(grid: LoopbackGrid) -> list[int]:
    """Training rows that each client has told."""
    facts = [m.content.metric_records.get("facts") for m in grid.arrived]
    found = {int(one["client"]): int(one["num-rows"]) for one in facts if one is not None}
    return [found[client] for client in sorted(found)]


def test_a_node_that_trains_again_after_a_failed_round_is_paid_for_twice(
    owners: Federation,  # noqa: F811
) -> None:
    config = owners.run(
        local=private(noise="system"),
        federation={"clients_per_round": 3, "rounds": 2},
        flower=QUICK,
    )
    grid = owners.grid(config)
    grid.change = lambda client, round, answer: None if (client, round) == (1, 2) else answer
    with pytest.raises(ClientError, match="round 2, client 1"):
        owners.serve(config, grid)
    directory = training_of(owners.serve(config), config)
    first, last = read_history(directory)
    assert spent(first).steps == (2, 2, 2)
    assert spent(last).steps == (6, 6, 6)  # whoever had answered has trained twice


def test_what_a_node_needs_is_in_the_app_and_missed_before_nodes_are_waited_for(
    owners: Federation,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = owners.run(local=private(noise="system"))
    export(config, owners.place / "app", owners.place / "output")
    project = (owners.place / "app" / "pyproject.toml").read_text()
    assert '"fedbench[train,flower,dp-sgd]==' in project
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "opacus" else find(name)
    )
    grid = owners.grid(config)
    grid.connected = set()
    with pytest.raises(MissingExtraError, match=r"pip install 'fedbench\[dp-sgd\]'"):
        owners.serve(config, grid)

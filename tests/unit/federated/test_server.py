"""The rounds: cohorts, budgets, what equals what, and that a killed run ends in the same bits."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedbench.config import Federation, Local
from fedbench.data.tokenize import Tokens
from fedbench.federated import server
from fedbench.federated.checkpoint import committed_rounds, load_round, round_directory
from fedbench.federated.client import batches
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.fedprox import FedProx
from fedbench.federated.message import ClientMessage, ClientUpdate
from fedbench.federated.server import (
    Training,
    learning_rate,
    sample_clients,
    train_centralised,
    train_federated,
    train_local,
)
from fedbench.federated.state import State, combine, num_bytes
from fedbench.model import get_state, remove_lora

MakeTraining = Callable[..., Training]
TWO_ROUNDS = {"rounds": 2}


def same(one: State, other: State) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def final(directory: Path) -> tuple[State, State]:
    """Weights and server state of the newest round."""
    return load_round(directory, list(committed_rounds(directory))[-1])


def numbers(directory: Path) -> list[int]:
    return [round.round for round in committed_rounds(directory)]


# Cohorts and schedules


def test_the_cohorts_of_a_seed_never_change() -> None:
    # As drawn when the first results were committed; another cohort is another experiment.
    federation = Federation(num_clients=10, clients_per_round=3)
    drawn = [sample_clients(federation, *where) for where in [(0, 1), (0, 2), (1, 1)]]
    assert drawn == [[6, 7, 9], [0, 5, 8], [1, 7, 8]]


def test_a_cohort_depends_on_seed_and_round_alone() -> None:
    short = Federation(num_clients=10, clients_per_round=3, rounds=2)
    long = Federation(num_clients=10, clients_per_round=3, rounds=200)
    assert sample_clients(short, 5, 2) == sample_clients(long, 5, 2)


def test_a_cohort_holds_distinct_clients_in_order() -> None:
    federation = Federation(num_clients=7, clients_per_round=4)
    for round in range(1, 30):
        cohort = sample_clients(federation, 0, round)
        assert len(cohort) == 4
        assert cohort == sorted(set(cohort))
    assert sample_clients(Federation(num_clients=3), 0, 1) == [0, 1, 2]


def test_the_learning_rate_is_constant_or_a_cosine_over_rounds() -> None:
    assert learning_rate(Local(learning_rate=0.1), 7, 10) == 0.1
    falling = Local(learning_rate=0.3, final_learning_rate=0.1)
    assert learning_rate(falling, 1, 10) == pytest.approx(0.3)
    assert learning_rate(falling, 6, 10) == pytest.approx(0.2)  # half way: the mean of the two
    assert learning_rate(falling, 10, 10) > 0.1


# What equals what


def test_fedprox_without_a_pull_is_fedavg_to_the_bit(
    training: MakeTraining, tmp_path: Path
) -> None:
    made = training(federation=TWO_ROUNDS)
    train_federated(made, "fedavg", FedAvg())
    train_federated(made, "fedprox", FedProx(mu=0.0))
    ours, theirs = (final(tmp_path / name / "seed-0")[0] for name in ("fedavg", "fedprox"))
    assert same(ours, theirs)
    assert not same(ours, made.initial_state)


def test_fedprox_with_a_pull_stays_nearer_to_where_it_started(
    training: MakeTraining, tmp_path: Path
) -> None:
    # One round, SGD: every step is shortened by mu times the way gone so far.
    local = {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 8}
    made = training(federation={"rounds": 1}, local=local)
    train_federated(made, "fedavg", FedAvg())
    train_federated(made, "fedprox", FedProx(mu=5.0))

    def way(name: str) -> float:
        state, _ = final(tmp_path / name / "seed-0")
        return sum(float((state[n] - made.initial_state[n]).square().sum()) for n in state)

    assert way("fedprox") < 0.7 * way("fedavg")


def test_fedavg_of_one_client_is_that_client_training_alone(
    training: MakeTraining, tmp_path: Path
) -> None:
    made = training(shards=(5,), federation={"clients_per_round": 1})
    train_federated(made, "fedavg", FedAvg())
    train_local(made, "local", client=0)
    ours, _ = final(tmp_path / "fedavg" / "seed-0")
    alone, _ = final(tmp_path / "local" / "seed-0" / "client-000")
    assert same(ours, alone)


def test_fedavg_of_one_client_is_centralised_training(
    training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pooled rows are drawn under a name of their own; given the client's, nothing else differs.
    monkeypatch.setattr(server, "POOLED", 0)
    made = training(shards=(5,), federation={"clients_per_round": 1})
    train_federated(made, "fedavg", FedAvg())
    train_centralised(made, "centralised")
    ours, _ = final(tmp_path / "fedavg" / "seed-0")
    pooled, _ = final(tmp_path / "centralised" / "seed-0")
    assert same(ours, pooled)


def test_two_runs_of_a_seed_are_equal_to_the_bit(training: MakeTraining, tmp_path: Path) -> None:
    states = []
    for name in ("one", "two"):
        made = training(directory=tmp_path / name, federation=TWO_ROUNDS)
        torch.manual_seed(len(states))
        train_federated(made, "fedavg", FedAvg())
        states.append(final(tmp_path / name / "fedavg" / "seed-0")[0])
    assert same(*states)


def test_the_base_is_unchanged_after_training(training: MakeTraining) -> None:
    made = training(federation=TWO_ROUNDS)
    train_federated(made, "fedavg", FedAvg())
    train_centralised(made, "centralised")
    remove_lora(made.base)
    untouched = training()
    remove_lora(untouched.base)
    assert same(made.base.module.state_dict(), untouched.base.module.state_dict())


# Budgets


@dataclass
class Recorder:
    """Stands in for `train_client` and writes down which rows it would have used."""

    used: list[tuple[int, int, list[int]]]
    """(client, round, rows)"""

    def __call__(
        self,
        base: object,
        data: Sequence[Tokens],
        message: ClientMessage,
        local: Local,
        hook: object,
    ) -> ClientUpdate:
        chosen = [index for batch in batches(data, local, message) for index in batch]
        self.used.append((message.client, message.round, chosen))
        return ClientUpdate(
            message.client, message.state, len(data), len(chosen), local.max_steps, 0.5
        )


def test_a_local_client_uses_just_the_samples_of_its_federated_turns(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training()
    recorder = Recorder([])
    monkeypatch.setattr(server, "train_client", recorder)
    train_federated(made, "fedavg", FedAvg())
    federated, recorder.used = recorder.used, []
    for client in range(3):
        train_local(made, "local", client)
    assert sorted(recorder.used) == sorted(federated)
    assert len(federated) == 8  # 4 rounds of 2 clients


def test_a_client_that_sat_out_a_round_goes_on_where_it_stopped(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(shards=(5, 3, 4), federation={"rounds": 9})
    recorder = Recorder([])
    monkeypatch.setattr(server, "train_client", recorder)
    train_federated(made, "fedavg", FedAvg())
    for client, size in enumerate((5, 3, 4)):
        used = list(itertools.chain(*(rows for own, _, rows in recorder.used if own == client)))
        passes = [used[start : start + size] for start in range(0, len(used) - size + 1, size)]
        assert len(passes) > 1
        assert all(sorted(rows) == list(range(size)) for rows in passes)


def test_every_method_counts_the_samples_it_used(
    training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training()
    recorder = Recorder([])
    monkeypatch.setattr(server, "train_client", recorder)
    train_federated(made, "fedavg", FedAvg())
    train_centralised(made, "centralised")
    for client in range(3):
        train_local(made, "local", client)

    def examples(*where: str) -> list[int]:
        return [r.train_examples for r in committed_rounds(tmp_path.joinpath(*where))]

    # 2 clients a round, 2 steps of 2 rows each.
    assert examples("fedavg", "seed-0") == [8, 16, 24, 32]
    assert examples("centralised", "seed-0") == [32]
    turns = [sum(client in cohort for cohort in made.cohorts()) for client in range(3)]
    alone = [examples("local", "seed-0", f"client-{client:03d}") for client in range(3)]
    assert alone == [[4 * turn] for turn in turns]
    assert sum(turns) == 8
    used = [rows for client, _, rows in recorder.used if client == server.POOLED]
    assert [len(rows) for rows in used] == [8, 8, 8, 8]
    # 5 + 3 + 4 pooled rows, each once before any is repeated.
    assert sorted(list(itertools.chain(*used))[:12]) == list(range(12))


def test_only_a_federation_communicates(
    training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training()
    monkeypatch.setattr(server, "train_client", Recorder([]))
    train_federated(made, "fedavg", FedAvg())
    train_centralised(made, "centralised")
    last = list(committed_rounds(tmp_path / "fedavg" / "seed-0"))[-1]
    sent = 8 * num_bytes(made.initial_state)  # 4 rounds of 2 clients
    assert (last.bytes_down, last.bytes_up) == (sent, sent)
    assert list(last.cohort) == made.cohorts()[-1]
    assert last.losses == (0.5, 0.5)
    pooled = list(committed_rounds(tmp_path / "centralised" / "seed-0"))[-1]
    assert (pooled.bytes_down, pooled.bytes_up, pooled.cohort) == (0, 0, ())


def test_a_method_trains_at_its_own_learning_rate(
    training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: set[float] = set()

    def told(base: object, data: object, message: ClientMessage, *rest: object) -> ClientUpdate:
        rates.add(message.learning_rate)
        return ClientUpdate(message.client, message.state, 1, 4, 2, 0.5)

    monkeypatch.setattr(server, "train_client", told)
    made = training()
    methods = made.config.methods
    own = methods[2].model_copy(update={"learning_rate": 0.05})
    config = made.config.model_copy(update={"methods": (*methods[:2], own, *methods[3:])})
    other = Training(**{**made.__dict__, "config": config})
    train_federated(other, "fedavg", FedAvg())
    assert rates == {0.05}
    train_centralised(other, "centralised")
    assert rates == {0.05, 0.01}


# Resuming


@dataclass(frozen=True)
class Momentum(FedAvg):
    """FedAvg with a server state, as more algorithms will have: half of the last change is kept."""

    def start(self, global_state: State) -> State:
        return combine(torch.zeros_like, global_state)

    def aggregate(
        self, global_state: State, server_state: State, updates: Sequence[ClientUpdate]
    ) -> tuple[State, State]:
        mean, _ = super().aggregate(global_state, {}, updates)
        velocity = combine(lambda v, m, g: 0.5 * v + m - g, server_state, mean, global_state)
        return combine(torch.add, global_state, velocity), velocity


def forget_after(directory: Path, round: int) -> None:
    """What a kill in the middle of writing the next round leaves."""
    for number in numbers(directory):
        if number > round + 1:
            shutil.rmtree(round_directory(directory, number))
    (round_directory(directory, round + 1) / "round.json").unlink()
    for file in round_directory(directory, round + 1).glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])


@pytest.mark.parametrize("algorithm", [FedAvg(), Momentum()])
@pytest.mark.parametrize("lora", [{"r": 2, "alpha": 4}, None], ids=["adapters", "all weights"])
def test_a_killed_federation_ends_in_the_bits_of_an_uninterrupted_one(
    training: MakeTraining, tmp_path: Path, algorithm: FedAvg, lora: dict[str, int] | None
) -> None:
    directory = tmp_path / "fedavg" / "seed-0"
    train_federated(training(model={"lora": lora}), "fedavg", algorithm)
    uninterrupted = final(directory)
    records = list(committed_rounds(directory))
    forget_after(directory, round=2)
    assert numbers(directory) == [1, 2]
    train_federated(training(model={"lora": lora}), "fedavg", algorithm)
    assert list(committed_rounds(directory)) == records
    assert all(same(one, other) for one, other in zip(final(directory), uninterrupted, strict=True))


@pytest.mark.parametrize("name", ["local", "centralised"])
def test_a_killed_baseline_ends_in_the_bits_of_an_uninterrupted_one(
    training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def train(made: Training) -> None:
        train_local(made, "local", 1) if name == "local" else train_centralised(made, name)

    directory = tmp_path / name / "seed-0" / ("client-001" if name == "local" else "")
    monkeypatch.setattr(server, "UNSAVED_SECONDS", 0.0)
    monkeypatch.setattr(server._Rounds, "_remove_older", lambda self, newest: None)
    train(training())
    uninterrupted = final(directory)
    records = list(committed_rounds(directory))
    assert numbers(directory) == [1, 2, 3, 4]
    forget_after(directory, round=2)
    train(training())
    assert list(committed_rounds(directory)) == records
    assert same(final(directory)[0], uninterrupted[0])


def test_a_finished_training_is_not_repeated(
    training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(federation=TWO_ROUNDS)
    train_federated(made, "fedavg", FedAvg())
    recorder = Recorder([])
    monkeypatch.setattr(server, "train_client", recorder)
    train_federated(made, "fedavg", FedAvg())
    assert recorder.used == []


# Which rounds stay


@pytest.mark.parametrize(
    ("rule", "seconds", "kept"),
    [
        ("all", 0.0, [1, 2, 3, 4]),
        ("every 2", 0.0, [2, 4]),  # 1 and 3 were written against a kill, then removed
        ("every 3", 0.0, [3, 4]),
        ("last", 0.0, [4]),
        ("last", 1e9, [4]),
        ("every 2", 1e9, [2, 4]),
    ],
)
def test_rounds_that_nobody_asked_to_keep_are_removed(
    training: MakeTraining,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    seconds: float,
    kept: list[int],
) -> None:
    monkeypatch.setattr(server, "train_client", Recorder([]))
    monkeypatch.setattr(server, "UNSAVED_SECONDS", seconds)
    train_federated(training(evaluation={"rounds": rule}), "fedavg", FedAvg())
    directory = tmp_path / "fedavg" / "seed-0"
    assert numbers(directory) == kept
    assert len(list(directory.iterdir())) == len(kept)


def test_an_older_round_is_removed_only_after_the_newer_is_committed(
    training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[int]] = []
    removed = server.remove_round

    def watched(directory: Path, number: int) -> None:
        there.append(numbers(directory))
        removed(directory, number)

    monkeypatch.setattr(server, "train_client", Recorder([]))
    monkeypatch.setattr(server, "UNSAVED_SECONDS", 0.0)
    monkeypatch.setattr(server, "remove_round", watched)
    train_federated(training(evaluation={"rounds": "last"}), "fedavg", FedAvg())
    assert there == [[1, 2], [2, 3], [3, 4]]


def test_baselines_keep_their_last_round_only(training: MakeTraining, tmp_path: Path) -> None:
    made = training(federation=TWO_ROUNDS)
    train_centralised(made, "centralised")
    train_local(made, "local", 0)
    assert numbers(tmp_path / "centralised" / "seed-0") == [2]
    assert numbers(tmp_path / "local" / "seed-0" / "client-000") == [2]


def test_the_state_of_a_round_is_a_copy(training: MakeTraining) -> None:
    made = training()
    state = get_state(made.base.module)
    for parameter in made.base.module.parameters():
        parameter.data.fill_(7.0)
    assert not any(bool((tensor == 7.0).all()) for tensor in state.values())

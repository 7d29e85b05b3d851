"""Rounds that add to the base: exact in training, undone afterwards, and scored with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import distance, newest, numbers, run, same

from fedbench.adapters import adapter, save_merged
from fedbench.federated.checkpoint import read_history, round_directory
from fedbench.federated.low_rank import A, B, lora_modules
from fedbench.federated.server import Training
from fedbench.federated.state import State
from fedbench.model import BaseModel, load_base, remove_lora
from fedbench.model_config import ModelConfig

MakeTraining = Callable[..., Training]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS).logits


def made(training: MakeTraining, name: str, **config: Any) -> Training:
    federation = {"rounds": 3, "clients_per_round": 3}
    local = {"learning_rate": 0.05}
    return training(methods=[name], federation=federation, local=local, **config)


@pytest.fixture
def untouched(tiny_base_directory: Path) -> BaseModel:
    """The base as it is on disk."""
    config = ModelConfig(name=str(tiny_base_directory), device="cpu", attention="eager")
    return load_base(str(tiny_base_directory), config)


def parameters(base: BaseModel) -> State:
    return {name: tensor.clone() for name, tensor in base.module.state_dict().items()}


def effective(base: BaseModel, weights: State, delta: State, scaling: float) -> None:
    """Put base + delta + s B A into the base, computed densely."""
    with torch.no_grad():
        for module in lora_modules(weights):
            place = base.module.get_submodule(module.removeprefix("base_model.model."))
            place.weight.add_(scaling * weights[module + B] @ weights[module + A])
            if module in delta:
                place.weight.add_(delta[module])


# How far the new model is from the mean of the clients'


@pytest.mark.parametrize("name", ["ffa_lora", "rolora", "flora", "fedex_lora"])
def test_exact_rules_make_the_mean_of_the_clients_models(training: MakeTraining, name: str) -> None:
    errors = [record.update_error for record in read_history(run(made(training, name)))]
    assert len(errors) == 3
    assert all(error is not None and error < 1e-5 for error in errors)


@pytest.mark.parametrize("name", ["fedit", "fedavg"])
def test_factors_averaged_apart_miss_it(training: MakeTraining, name: str) -> None:
    errors = [record.update_error for record in read_history(run(made(training, name)))]
    assert all(error is not None and error > 1e-4 for error in errors)


def test_averaging_all_weights_is_exact(training: MakeTraining) -> None:
    history = read_history(run(made(training, "fedavg", model={"lora": None})))
    assert all(r.update_error is not None and r.update_error < 1e-5 for r in history)


def test_one_client_has_no_error_and_personal_models_have_no_measure(
    training: MakeTraining, tmp_path: Path
) -> None:
    alone = training(shards=(5,), methods=["fedit"], federation={"clients_per_round": 1})
    history = read_history(run(alone))
    assert all(r.update_error is not None and r.update_error < 1e-6 for r in history)
    history = read_history(run(made(training, "fedsa_lora", directory=tmp_path / "personal")))
    assert [record.update_error for record in history] == [None] * 3


# What is added to the base


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_the_resident_base_is_as_before_after_training(
    training: MakeTraining, untouched: BaseModel, name: str
) -> None:
    job = made(training, name)
    directory = run(job)
    delta = newest(directory)[1]
    assert delta
    assert max(float(tensor.abs().max()) for tensor in delta.values()) > 1e-4
    assert job.base.originals == {}
    remove_lora(job.base)
    assert same(parameters(job.base), parameters(untouched))


def test_the_resident_base_is_as_before_also_after_a_failure(
    training: MakeTraining, untouched: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedbench.federated import server

    train = server.train_client

    def failing(*arguments: Any) -> Any:
        if arguments[2].round == 3:
            raise RuntimeError("out of memory")
        return train(*arguments)

    job = made(training, "flora")
    monkeypatch.setattr(server, "train_client", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(job)
    remove_lora(job.base)
    assert same(parameters(job.base), parameters(untouched))


@pytest.mark.parametrize("name", ["flora", "fedex_lora", "fedit"])
def test_a_round_is_scored_with_its_effective_weights(
    training: MakeTraining, untouched: BaseModel, tiny_base: BaseModel, name: str
) -> None:
    directory = run(made(training, name))
    server, delta = newest(directory)
    assert bool(delta) is (name != "fedit")
    effective(tiny_base, server.weights, delta, scaling=2.0)  # alpha 4 of rank 2
    before = parameters(untouched)
    plain = logits(untouched.module)
    with adapter(untouched, round_directory(directory, 3)) as scored:
        ours = logits(scored)
    assert torch.allclose(ours, logits(tiny_base.module), atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-3)
    assert same(parameters(untouched), before)
    assert untouched.originals == {}


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_a_round_is_merged_with_what_it_added_to_the_base(
    training: MakeTraining, untouched: BaseModel, tiny_base: BaseModel, tmp_path: Path, name: str
) -> None:
    import transformers

    directory = run(made(training, name))
    server, delta = newest(directory)
    effective(tiny_base, server.weights, delta, scaling=2.0)
    save_merged(untouched, round_directory(directory, 3), tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert distance(merged.state_dict(), tiny_base.module.state_dict()) < 1e-6


def test_what_every_client_must_add_to_its_base_is_counted(training: MakeTraining) -> None:
    job = made(training, "flora")
    history = read_history(run(job))
    assert all(record.broadcast_bytes > 0 for record in history)
    for count, record in enumerate(history, start=1):
        down = sum(sum(r.client_bytes_down) + 3 * r.broadcast_bytes for r in history[:count])
        assert record.bytes_down == down
    assert numbers(job.directory / "flora" / "seed-0") == [1, 2, 3]

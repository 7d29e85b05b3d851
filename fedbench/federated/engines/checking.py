"""Whether an update is what was asked for. What a node sends is foreign input."""

from __future__ import annotations

import math

import torch

from fedbench.federated import transport
from fedbench.federated.engines.wire import WireError
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.message import ClientMessage, ClientUpdate
from fedbench.federated.settings import Transport
from fedbench.federated.state import State


def read_update(
    sent: ClientUpdate,
    message: ClientMessage,
    algorithm: FedAvg,
    form: Transport,
    start: State,
    num_rows: int,
    *,
    has_loss: bool = True,
) -> ClientUpdate:
    """The update as the server reads it.

    Args:
        sent: as it travelled.
        message: what the client was asked.
        algorithm: says which weights train and travel.
        form: in which the change of the weights travelled.
        start: the weights that training began from; gives their types.
        num_rows: training rows that the client has.
        has_loss: whether it is to tell its loss.

    Raises:
        WireError: says in words what is wrong with it, and nothing of what it holds.
    """
    _check_counts(sent, message, num_rows)
    if has_loss and not math.isfinite(sent.loss):
        raise WireError("tells a loss that is not finite")
    like = {
        name: message.state[name].to(weight.dtype)
        for name, weight in start.items()
        if algorithm.trains(name, message.round) and algorithm.shares(name)
    }
    _check_names(sent.state, like, scaled=form.up == "int8")
    for name, tensor in sent.state.items():
        _check_tensor(name, tensor, like.get(name))
        if form.up == "exact" and tensor.dtype != like[name].dtype:
            raise WireError(f"has weights {name[:80]!r} of type {tensor.dtype}")
    for name, tensor in sent.extra.items():
        _check_tensor(name, tensor, message.broadcast.get(name, message.state.get(name)))
    received = transport.read(form, message, sent, like)
    for name, tensor in received.state.items():
        _check_tensor(name, tensor, like[name])
    return received


def _check_counts(sent: ClientUpdate, message: ClientMessage, num_rows: int) -> None:
    expected = {
        "client": (sent.client, message.client),
        "num-steps": (sent.num_steps, message.num_steps),
        "num-examples": (sent.num_examples, num_rows),
    }
    for name, (told, known) in expected.items():
        if told != known:
            raise WireError(f"tells {name} {told} where {known} was expected")
    if sent.num_samples < 1 or sent.num_tokens < 0:
        raise WireError("tells a number of samples or tokens that cannot be")


def _check_names(state: State, like: State, *, scaled: bool) -> None:
    expected = set(like) | ({f"{name}/scale" for name in like} if scaled else set())
    if state.keys() != expected:
        odd = sorted(state.keys() ^ expected)[0]
        raise WireError(f"lacks weights that were trained or has others, such as {odd[:80]!r}")


def _check_tensor(name: str, tensor: torch.Tensor, like: torch.Tensor | None) -> None:
    if like is not None and tensor.shape != like.shape:
        raise WireError(
            f"has weights {name[:80]!r} of shape {tuple(tensor.shape)} where {tuple(like.shape)} "
            "was expected"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise WireError(f"has numbers in {name[:80]!r} that are not finite")

"""Named tensors that travel between server and clients; never changed in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the algorithms are listed and checked on machines without torch
    from torch import Tensor

State = dict[str, "Tensor"]


def combine(rule: Callable[..., Tensor], *states: State) -> State:
    """A new state: `rule` applied to the tensors of the same name."""
    first, *others = states
    return {
        name: rule(tensor, *(other[name] for other in others)) for name, tensor in first.items()
    }


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> State:
    """Mean of states under weights that need not sum to 1."""
    total = float(sum(weights))

    def mean(*tensors: Tensor) -> Tensor:
        terms = [weight / total * tensor for weight, tensor in zip(weights, tensors, strict=True)]
        return sum(terms[1:], start=terms[0])

    return combine(mean, *states)


def num_bytes(state: State) -> int:
    """Size of the tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())

"""FedProx: clients are pulled towards the global model.

Li et al. 2020, Algorithm 2, https://arxiv.org/abs/1812.06127

The paper adds mu/2 ||w - w_t||^2 to the client's loss. Its gradient is mu (w - w_t), whatever the
loss, so it is added to the gradient. Clipping comes after it: the paper's objective is clipped as
a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedbench.federated.fedavg import FedAvg, LocalRule
from fedbench.federated.message import ClientMessage
from fedbench.federated.state import State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with clients pulled to the global model by the gradient of mu/2 ||w - w_t||^2."""

    mu: Annotated[float, Field(ge=0)] = 0.01
    """Strength of the pull; 0 is FedAvg."""

    def local_rule(self, message: ClientMessage) -> LocalRule:
        """Add mu (w - w_t) to the gradient."""
        return _Pull(self.mu, self.initial(message))


@dataclass
class _Pull(LocalRule):
    mu: float
    origin: State

    def gradient(self, name: str, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient + self.mu * (weight - self.origin[name])

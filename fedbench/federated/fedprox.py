"""FedProx: clients are pulled towards the global model.

Li et al. 2020, Algorithm 2, https://arxiv.org/abs/1812.06127

The paper adds mu/2 ||w - w_t||^2 to the client's loss. Its gradient is mu (w - w_t), whatever the
loss, so it is added to the gradient. Clipping comes after it: the paper's objective is clipped as
a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbench.federated.fedavg import FedAvg, GradientHook
from fedbench.federated.message import ClientMessage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with clients pulled to the global model by the gradient of mu/2 ||w - w_t||^2."""

    mu: float = 0.01
    """Strength of the pull; 0 is FedAvg."""

    def gradient_hook(self, message: ClientMessage) -> GradientHook:
        """Add mu (w - w_t)."""
        global_state = message.state

        def pull(name: str, weight: Tensor, gradient: Tensor) -> Tensor:
            return gradient + self.mu * (weight - global_state[name].to(weight.device))

        return pull

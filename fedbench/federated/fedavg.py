"""FedAvg: the new global model is the weighted mean of the client models.

McMahan et al. 2017, Algorithm 1, https://arxiv.org/abs/1602.05629

With LoRA the factors A and B are averaged separately (FedIT, Zhang et al. 2023,
https://arxiv.org/abs/2305.05644); the mean of the products B_k A_k is another matrix.

This class is also what every other algorithm extends. An algorithm says what is sent beside the
weights, how a client's gradients are changed, and what the server makes of the updates. Its state
is passed in and returned, so that saving the state is saving the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedbench.federated.message import ClientMessage, ClientUpdate
from fedbench.federated.state import State, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

GradientHook = Callable[[str, "Tensor", "Tensor"], "Tensor"]
"""(name, weight, gradient) -> gradient; applied after accumulation, before clipping."""


@dataclass(frozen=True)
class FedAvg:
    """The new global model is the mean of the client models."""

    weighting: Literal["examples", "uniform"] = "examples"
    """By rows in each client's training shard (the paper's n_k / n), or all clients alike."""

    def start(self, global_state: State) -> State:
        """The server's own state before the first round."""
        return {}

    def broadcast(self, server_state: State, client: int) -> State:
        """What `client` is sent beside the global weights."""
        return {}

    def gradient_hook(self, message: ClientMessage) -> GradientHook | None:
        """How this client's gradients are changed; None for plain local training."""
        return None

    def aggregate(
        self, global_state: State, server_state: State, updates: Sequence[ClientUpdate]
    ) -> tuple[State, State]:
        """The new global weights and the new server state."""
        weights = [self.weight(update) for update in updates]
        return weighted_mean([update.state for update in updates], weights), server_state

    def weight(self, update: ClientUpdate) -> float:
        """How much a client counts, up to a common factor."""
        return float(update.num_examples) if self.weighting == "examples" else 1.0

"""Coordinate-wise median and trimmed mean: aggregation that a few wrong clients cannot steer.

Yin et al. 2018, Definitions 1 and 2, https://arxiv.org/abs/1803.01498

Both sort what the clients return in every coordinate apart, so they need all updates at once: the
memory grows with the clients per round. Values that are not a number sort last and are cut first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedbench.errors import ConfigError
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.message import ClientUpdate, ServerState
from fedbench.federated.state import State, combine

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Median(FedAvg):
    """Every weight of the new global model is the median of that weight over the clients."""

    weighting: Literal["uniform"] = "uniform"
    """Clients count alike."""

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
        """The median; of an even number of clients the mean of the middle two."""
        states = [update.state for update in updates]
        median = trimmed_mean(states, num_cut=(len(states) - 1) // 2)
        return replace(server, weights={**server.weights, **median})


@dataclass(frozen=True)
class TrimmedMean(FedAvg):
    """Every weight of the new global model is the mean over the clients without the extremes."""

    weighting: Literal["uniform"] = "uniform"
    """Clients count alike."""
    trim_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """The paper's beta: share of the clients cut at each end.

    The paper takes the share of clients that may be wrong; 0.2 is Flower's default.
    """

    def check_run(self, cohort_size: int, rank: int | None) -> None:
        """Refuse cohorts of whom the share is no client."""
        self._num_cut(cohort_size, "are chosen in a round")

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
        """The mean of what is left in each coordinate.

        Raises:
            ConfigError: the share of so few clients is no client, which would leave a plain mean.
        """
        states = [update.state for update in updates]
        try:
            num_cut = self._num_cut(len(states), "returned an update")
        except ValueError as error:
            raise ConfigError(f"round {server.round + 1}: {error}") from error
        return replace(server, weights={**server.weights, **trimmed_mean(states, num_cut)})

    def _num_cut(self, num_clients: int, what: str) -> int:
        """Clients that are cut at each end of a coordinate."""
        # The term is for products such as 0.29 * 100 = 28.999999999999996.
        num_cut = math.floor(self.trim_share * num_clients + 1e-9)
        if self.trim_share > 0 and num_cut == 0:
            raise ValueError(
                f"trim_share is {self.trim_share:g}, which is less than one of the {num_clients} "
                f"clients that {what}; raise it, raise federation.clients_per_round, or use fedavg"
            )
        return num_cut


def trimmed_mean(states: Sequence[State], num_cut: int) -> State:
    """Mean over states in each coordinate, without its `num_cut` smallest and largest values."""
    import torch

    def rule(*tensors: Tensor) -> Tensor:
        ordered = torch.stack(tensors).sort(dim=0).values
        middle = ordered[num_cut : len(tensors) - num_cut]
        wide = torch.promote_types(middle.dtype, torch.float32)
        return middle.mean(dim=0, dtype=wide).to(middle.dtype)

    return combine(rule, *states)

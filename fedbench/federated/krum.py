"""Krum and Multi-Krum: take the clients whose updates lie closest to those of the others.

Blanchard et al. 2017, https://arxiv.org/abs/1703.02757

The score of a client is the sum of squared distances from its weights to the n - f - 2 nearest
others, with n clients of which f may send anything. Krum takes the client of least score;
Multi-Krum the mean of the m best. Scores need all updates at once: the memory grows with the
clients per round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from fedbench.errors import ConfigError
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.message import ClientUpdate, ServerState


@dataclass(frozen=True)
class Krum(FedAvg):
    """The new global model is the client model nearest to the others, or the mean of several."""

    weighting: Literal["examples", "uniform"] = "uniform"
    """How selected clients count in their mean: all alike in the paper, by examples in Flower."""
    num_byzantine: Annotated[int, Field(ge=0)] = 1
    """The paper's f: how many clients of a round may send anything; it needs 2 f + 3 clients."""
    num_selected: Annotated[int, Field(ge=1)] = 1
    """The paper's m: 1 is Krum, more is Multi-Krum."""

    def check_run(self, cohort_size: int, rank: int | None) -> None:
        """Refuse cohorts that f or m do not allow."""
        self._check(cohort_size, "are chosen in a round")

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
        """The mean of the selected clients.

        Raises:
            ConfigError: fewer clients returned an update than f or m allow.
        """
        returned = list(updates)
        try:
            self._check(len(returned), "returned an update")
        except ValueError as error:
            raise ConfigError(f"round {server.round + 1}: {error}") from error
        num_neighbours = len(returned) - self.num_byzantine - 2
        chosen = select(returned, num_neighbours, self.num_selected)
        return replace(server, weights=self.mean(server, chosen))

    def _check(self, num_clients: int, what: str) -> None:
        needed = 2 * self.num_byzantine + 3
        if num_clients < needed:
            raise ValueError(
                f"krum with num_byzantine {self.num_byzantine} needs {needed} clients (2 f + 3) "
                f"and {num_clients} {what}; lower num_byzantine or raise "
                "federation.clients_per_round"
            )
        if num_clients < self.num_selected:
            raise ValueError(
                f"krum's num_selected is {self.num_selected} and {num_clients} clients {what}; "
                "lower it or raise federation.clients_per_round"
            )


def select(
    updates: Sequence[ClientUpdate], num_neighbours: int, num_selected: int
) -> list[ClientUpdate]:
    """The updates of least score, in their order; of equal scores those of lower client number."""
    ranked = sorted(
        zip(scores(updates, num_neighbours), updates, strict=True),
        key=lambda scored: (scored[0], scored[1].client),
    )
    chosen = {update.client for _, update in ranked[:num_selected]}
    return [update for update in updates if update.client in chosen]


def scores(updates: Sequence[ClientUpdate], num_neighbours: int) -> list[float]:
    """Per update the sum of squared distances to its nearest others; inf where not a number."""
    import torch

    squared = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in updates[0].state:
        flat = torch.stack([update.state[name].flatten() for update in updates]).double()
        # The faster way through matrix products loses small distances between large weights.
        exact = "donot_use_mm_for_euclid_dist"
        squared += torch.cdist(flat, flat, compute_mode=exact).square().to(squared.device)
    squared.fill_diagonal_(math.inf)
    # Distances that are not a number sort after all others, that of an update to itself included.
    nearest = squared.sort(dim=1).values[:, :num_neighbours]
    return [math.inf if math.isnan(score) else score for score in nearest.sum(dim=1).tolist()]

"""Clients with LoRA adapters of different ranks.

The resident model has adapters of the largest rank. A client of rank r_k is sent, trains and
returns the first r_k rows of A and columns of B; in its model the others are zero. They need no
mask to stay so: each gradient of the one is a product with the other, zero for zero, and AdamW
leaves a zero weight whose gradients were all zero where it is, weight decay included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fedbench.errors import ConfigError
from fedbench.federated.fedavg import FedAvg, LocalRule
from fedbench.federated.low_rank import A, B, check_factors
from fedbench.federated.message import ClientMessage, ClientUpdate, ServerState, Setting
from fedbench.federated.state import State

if TYPE_CHECKING:
    from torch import Tensor

Rank = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class MixedRanks(FedAvg):
    """FedAvg on LoRA adapters whose rank differs between clients; see FLoRA and FlexLoRA.

    The scaling is alpha / r of the resident module for every client, so that its first r_k
    directions mean the same to it as to the server.
    """

    ranks: Annotated[tuple[Rank, ...], Field(min_length=1)] | None = None
    """Client k has rank ranks[k mod their number], the largest model.lora.r; None: all have it."""

    needs_lora: ClassVar[bool] = True

    def check_run(self, cohort_size: int, rank: int | None) -> None:
        """Refuse ranks of which the largest is not that of the model."""
        if self.ranks is not None and rank is not None and rank != max(self.ranks):
            raise ValueError(
                f"ranks: the largest is {max(self.ranks)} but model.lora.r is {rank}; "
                "make them the same"
            )

    def start(self, weights: State, setting: Setting) -> State:
        """Check that the model's adapters are plain LoRA of the largest rank.

        Raises:
            ConfigError: they are not.
        """
        check_factors(weights)
        rank = max((weights[name].shape[0] for name in weights if name.endswith(A)), default=0)
        try:
            self.check_run(setting.num_clients, rank)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return super().start(weights, setting)

    def sent(self, server: ServerState, client: int) -> State:
        """The first r_k directions of the global adapters."""
        return _first(server.weights, self._rank(client))

    def initial(self, message: ClientMessage) -> State:
        """What was sent, and zeros up to the rank of the resident model."""
        if self.ranks is None:
            return message.state
        return _mapped(message.state, _zeros_up_to(max(self.ranks)))

    def local_rule(self, message: ClientMessage) -> LocalRule | None:
        """Return the client's own directions only."""
        rank = self._rank(message.client)
        return None if rank is None else _OwnRank(rank)

    def _rank(self, client: int) -> int | None:
        return None if self.ranks is None else self.ranks[client % len(self.ranks)]


@dataclass
class _OwnRank(LocalRule):
    rank: int

    def finish(self, update: ClientUpdate) -> ClientUpdate:
        return replace(update, state=_first(update.state, self.rank))


def _first(state: State, rank: int | None) -> State:
    """The first `rank` rows of each A and columns of each B, as tensors of their own."""
    if rank is None:
        return state
    return _mapped(state, lambda factor, dim: factor.narrow(dim, 0, rank).clone())


def _zeros_up_to(rank: int) -> Callable[[Tensor, int], Tensor]:
    def padded(factor: Tensor, dim: int) -> Tensor:
        shape = list(factor.shape)
        shape[dim] = rank
        whole = factor.new_zeros(shape)
        whole.narrow(dim, 0, factor.shape[dim]).copy_(factor)
        return whole

    return padded


def _mapped(state: State, rule: Callable[[Tensor, int], Tensor]) -> State:
    """`rule` applied to each factor and the dimension that is its rank."""
    rank_dim = {True: 0, False: 1}
    return {
        name: rule(tensor, rank_dim[name.endswith(A)]) if name.endswith((A, B)) else tensor
        for name, tensor in state.items()
    }

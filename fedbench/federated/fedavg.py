"""FedAvg: the new global model is the weighted mean of the client models.

McMahan et al. 2017, Algorithm 1, https://arxiv.org/abs/1602.05629

With LoRA the factors A and B are averaged separately (FedIT, Zhang et al. 2023,
https://arxiv.org/abs/2305.05644); the mean of the products B_k A_k is another matrix.

This class is also what every other algorithm extends. An algorithm says which weights train and
travel, what is sent beside them, how a client's training is changed, and what the server makes of
the updates. Its state is passed in and returned, so that saving the state is saving the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fedbench.federated.message import ClientMessage, ClientUpdate, ServerState, Setting
from fedbench.federated.state import State, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor


class LocalRule:
    """What an algorithm changes within one client's training of one round; this changes nothing."""

    trained: State
    """The client's weights after training, of all trained tensors; set before `finish`."""

    def gradient(self, name: str, weight: Tensor, gradient: Tensor) -> Tensor:
        """The gradient to step with; called per tensor, after accumulation, before clipping."""
        return gradient

    def stepped(self, name: str, weight: Tensor) -> None:
        """Called per tensor after each optimizer step; may change `weight` in place."""

    def finish(self, update: ClientUpdate) -> ClientUpdate:
        """What is returned: the update with what the client sends beside and stores."""
        return update


@dataclass(frozen=True)
class FedAvg:
    """The new global model is the mean of the client models."""

    weighting: Literal["examples", "uniform"] = "examples"
    """Clients count by their examples (the paper's n_k / n), or all alike."""
    counted: Literal["shard", "round"] = "shard"
    """What `examples` are: rows of the client's training shard, or samples used this round."""

    needs_lora: ClassVar[bool] = False
    """Whether it is defined on low-rank adapters only."""
    personal: ClassVar[bool] = False
    """Whether every client ends with a model of its own and there is no global one."""
    changes_base: ClassVar[bool] = False
    """Whether its rounds add to the frozen base weights (`ServerState.increment`)."""
    restarts_adapters: ClassVar[bool] = False
    """Whether each round gives clients other factors than they trained, so that nothing which
    belongs to a factor (moments, what rounding took) can be carried over."""

    def check_run(self, cohort_size: int, rank: int | None) -> None:
        """Refuse a run that this algorithm could not train, before any method is trained.

        Args:
            cohort_size: clients that are chosen in a round; fewer may return an update.
            rank: ``model.lora.r``; None in full fine-tuning.

        Raises:
            ValueError: what does not fit, in words.
        """

    # On the client

    def trains(self, name: str, round: int) -> bool:
        """Whether the tensor of that name is trained in `round` (from 1)."""
        return True

    def shares(self, name: str) -> bool:
        """Whether the tensor of that name ever travels."""
        return True

    def initial(self, message: ClientMessage) -> State:
        """The weights a client starts its round from."""
        return message.state

    def local_rule(self, message: ClientMessage) -> LocalRule | None:
        """What is changed in this client's training; None for plain local training."""
        return None

    # On the server

    def start(self, weights: State, setting: Setting) -> State:
        """The server's own state before the first round."""
        return {}

    def sent(self, server: ServerState, client: int) -> State:
        """The global weights as `client` is sent them."""
        return server.weights

    def broadcast(self, server: ServerState, client: int) -> State:
        """What `client` is sent beside the global weights."""
        return {}

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
        """The global model after a round.

        Args:
            server: the state before; `server.round` counts the rounds before this one.
            updates: one per client, in the order of client numbers. Reading the next trains the
                next client: an algorithm that keeps no update needs no memory per client.
        """
        return replace(server, weights=self.mean(server, updates))

    def mean(self, server: ServerState, updates: Iterable[ClientUpdate]) -> State:
        """The weighted mean of the client weights; what did not travel stays as it was."""
        mean = weighted_mean((update.state, self.weight(update)) for update in updates)
        return {**server.weights, **mean}

    def weight(self, update: ClientUpdate) -> float:
        """How much a client counts, up to a common factor."""
        if self.weighting == "uniform":
            return 1.0
        return float(update.num_examples if self.counted == "shard" else update.num_samples)

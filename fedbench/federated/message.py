"""What crosses the boundary between server and client; everything in it serialises."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedbench.federated.state import State, num_bytes


@dataclass(frozen=True)
class ClientMessage:
    """What a client needs for one round of local training."""

    client: int
    round: int
    """From 1."""
    seed: int
    state: State
    """The global weights w_t."""
    learning_rate: float
    num_samples_before: int
    """Training samples this client has used in earlier rounds; it goes on from there."""
    broadcast: State = field(default_factory=dict)
    """What the algorithm sends beside the weights."""
    client_state: State = field(default_factory=dict)
    """What the client stored in its last round."""

    @property
    def num_bytes(self) -> int:
        """Bytes sent down: the client's own state does not travel."""
        return num_bytes(self.state) + num_bytes(self.broadcast)


@dataclass(frozen=True)
class ClientUpdate:
    """What a client returns after one round."""

    client: int
    state: State
    """Its weights after local training."""
    num_examples: int
    """Rows in its training shard."""
    num_samples: int
    """Training samples used this round; a row used twice counts twice."""
    num_steps: int
    loss: float
    """Mean training loss per completion token over the round."""
    client_state: State = field(default_factory=dict)
    """What the client stores for its next round."""

    @property
    def num_bytes(self) -> int:
        """Bytes sent up."""
        return num_bytes(self.state)

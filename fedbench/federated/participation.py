"""Who takes part in a round, and how much of the work each client does.

Everything is drawn from the seed, the round and the client alone, so it is the same for every
method of a seed, and a run that was killed and started again meets the same clients.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedbench.schema import Part

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]


class Participation(Part):
    """How clients are chosen, which of them fail, and how long each one trains."""

    fraction: PositiveShare | None = None
    """Share of the clients that is chosen, in place of their number; at least one is."""
    sampling: Literal["uniform", "weighted", "poisson"] = "uniform"
    """`weighted`: one after the other without replacement, in proportion to training rows. Weight
    the updates uniformly then, or large clients count twice (Li et al. 2020,
    https://arxiv.org/abs/1907.02189). `poisson`: every client by a coin of its own, so that the
    size of a cohort varies and may be 0; `privacy` needs it for amplification by sampling."""
    dropout: Probability = 0.0
    """Probability that a chosen client sends nothing. Where all would drop out, the server waits
    for the one that came closest to answering: no round goes without an update."""
    straggler: Probability = 0.0
    """Probability that a client stops early and sends what it has (partial work, Li et al. 2020,
    https://arxiv.org/abs/1812.06127)."""
    straggler_share: tuple[PositiveShare, PositiveShare] = (0.1, 0.9)
    """Bounds of the share of its steps that a straggler does, drawn uniformly; at least one."""
    steps: Literal["fixed", "epochs", "dynamic"] = "fixed"
    """Steps of one turn. `fixed`: `local.max_steps`; `epochs`: `epochs` passes over the client's
    rows; `dynamic`: such that a client passes `epochs` times over its rows in the whole run (with 3
    the rule of FedLLM-Bench, Ye et al. 2024, https://arxiv.org/abs/2406.04845)."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over a client's rows where `steps` is `epochs` or `dynamic`; unused otherwise."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Participation:
        low, high = self.straggler_share
        if low > high:
            raise ValueError(f"straggler_share [{low:g}, {high:g}] falls; give the lower one first")
        if self.steps == "fixed" and self.epochs != 1.0:
            raise ValueError(
                f"epochs is {self.epochs:g} but steps is fixed; set steps to epochs or dynamic, or "
                "local.max_steps"
            )
        return self


@dataclass(frozen=True)
class Schedule:
    """What the length of a turn follows from."""

    rounds: int
    cohort_size: int
    max_steps: int
    batch_size: int


@dataclass(frozen=True)
class Participant:
    """A chosen client and what it does in the round."""

    client: int
    planned_steps: int
    """Optimizer steps of a client that does all its work."""
    num_steps: int
    """Those it does before it sends its update; none where it drops out."""

    @property
    def drops_out(self) -> bool:
        """Whether it sends nothing."""
        return self.num_steps == 0


def cohort_size(
    participation: Participation, num_clients: int, clients_per_round: int | None
) -> int:
    """How many clients are chosen in a round: the number given, the fraction, or all.

    Raises:
        ValueError: both a number and a fraction are given.
    """
    if participation.fraction is None:
        return clients_per_round or num_clients
    if clients_per_round is not None:
        raise ValueError(
            f"federation.clients_per_round ({clients_per_round}) and "
            f"federation.participation.fraction ({participation.fraction:g}) both say how many "
            "clients train in a round; remove one of them"
        )
    # max(C K, 1) of McMahan et al. 2017.
    return max(1, round(participation.fraction * num_clients))


def cohort(
    participation: Participation,
    num_rows: Sequence[int],
    schedule: Schedule,
    seed: int | str,
    round: int,
) -> list[Participant]:
    """The chosen clients of a round, sorted, and what each of them does.

    Args:
        participation: the rules.
        num_rows: training rows of every client.
        schedule: rounds, cohort size and local work of the run.
        seed: of the run, or a secret in its place.
        round: from 1.

    Returns:
        One participant per chosen client, at least one of which answers; or fewer with Poisson
        sampling, where a round without anybody is as likely as the coins make it.
    """
    chosen = choose_clients(participation.sampling, num_rows, schedule.cohort_size, seed, round)
    answering = _answering(participation, chosen, seed, round)
    return [
        _participant(
            participation,
            client,
            turn_steps(participation, num_rows[client], len(num_rows), schedule),
            client in answering,
            f"{seed}/{round}/{client}",
        )
        for client in chosen
    ]


def cohorts(
    participation: Participation, num_rows: Sequence[int], schedule: Schedule, seed: int | str
) -> list[list[Participant]]:
    """The `cohort` of every round."""
    rounds = range(1, schedule.rounds + 1)
    return [cohort(participation, num_rows, schedule, seed, round) for round in rounds]


def choose_clients(
    sampling: str, num_rows: Sequence[int], size: int, seed: int | str, round: int
) -> list[int]:
    """`size` distinct clients, sorted; with Poisson sampling so many on average.

    Weighted sampling without replacement by exponential keys (Efraimidis & Spirakis 2006): the
    clients whose Exp(rows) clocks ring first.
    """
    clients = range(len(num_rows))
    if sampling == "uniform":
        return sorted(random.Random(f"{seed}/{round}").sample(clients, size))
    if sampling == "poisson":
        coins = random.Random(f"{seed}/{round}/poisson")
        return [client for client in clients if coins.random() < size / len(num_rows)]
    rng = random.Random(f"{seed}/{round}/weighted")
    rings = [rng.expovariate(rows) if rows else math.inf for rows in num_rows]
    return sorted(sorted(clients, key=rings.__getitem__)[:size])


def turn_steps(
    participation: Participation, num_rows: int, num_clients: int, schedule: Schedule
) -> int:
    """Optimizer steps of a client's turn when nothing goes wrong."""
    if participation.steps == "fixed":
        return schedule.max_steps
    passes = participation.epochs
    if participation.steps == "dynamic":
        passes /= schedule.rounds * schedule.cohort_size / num_clients  # turns a client expects
    return max(1, math.ceil(passes * num_rows / schedule.batch_size))


def _answering(
    participation: Participation, chosen: Sequence[int], seed: int | str, round: int
) -> set[int]:
    luck = {client: random.Random(f"{seed}/{round}/{client}/dropout").random() for client in chosen}
    answering = {client for client in chosen if luck[client] >= participation.dropout}
    if participation.sampling == "poisson":  # who takes part depends on nobody else
        return answering
    return answering or {max(chosen, key=luck.__getitem__)}


def _participant(
    participation: Participation, client: int, planned: int, answers: bool, key: str
) -> Participant:
    if not answers:
        return Participant(client, planned, 0)
    rng = random.Random(f"{key}/straggler")
    if rng.random() >= participation.straggler:
        return Participant(client, planned, planned)
    share = rng.uniform(*participation.straggler_share)
    return Participant(client, planned, max(1, round(share * planned)))

"""What DP-SGD in the clients costs their rows: an account for each client.

A step is one release: a Gaussian mechanism on a Poisson sample of the client's rows. Two data sets
are neighbours when one of them lacks a row. A client pays for its own steps and no others, at its
own sampling rate; whether cohorts are secret is not counted on. What an algorithm computes further
from the noisy gradients, on the client or on the server, costs nothing more.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedbench.errors import ConfigError, MissingExtraError
from fedbench.federated.checkpoint import Round
from fedbench.federated.participation import Participant
from fedbench.federated.privacy import accounting
from fedbench.federated.privacy.accounting import Account
from fedbench.federated.privacy.dp_sgd import NOISE, DpSgd, sample_rate
from fedbench.federated.privacy.ledger import Ledger
from fedbench.federated.privacy.spent import SpentByExamples
from fedbench.federated.settings import Local
from fedbench.federated.state import State

LEDGER_DIRECTORY = "dp_sgd"
"""Within the directory of a training."""


class ExamplePrivacy:
    """The accounts of the clients of one federated training."""

    def __init__(
        self,
        dp_sgd: DpSgd,
        batch_size: int,
        num_rows: Sequence[int],
        cohorts: Sequence[Sequence[Participant]],
    ) -> None:
        """`open` comes next.

        Args:
            dp_sgd: the part of the run file.
            batch_size: expected rows of a step.
            num_rows: training rows per client.
            cohorts: who is to train in each round, and for how many steps.

        Raises:
            ConfigError: delta lets a row be published.
            MissingExtraError: Opacus or dp-accounting is not installed.
        """
        require()
        self.dp_sgd = dp_sgd
        self._rates = [sample_rate(batch_size, number) for number in num_rows]
        self._planned = {
            (round, one.client): one.num_steps
            for round, cohort in enumerate(cohorts, start=1)
            for one in cohort
        }
        self._in_all: Counter[int] = Counter()
        for (_, client), steps in self._planned.items():
            self._in_all[client] += steps
        self._multipliers: dict[int, float] = {}
        _refuse_large_delta(dp_sgd.delta, num_rows)

    @classmethod
    def of(
        cls, local: Local, num_rows: Sequence[int], cohorts: Sequence[Sequence[Participant]]
    ) -> ExamplePrivacy | None:
        """The accounts of a training; None where it is without DP-SGD.

        Raises:
            ConfigError: delta lets a row be published.
            MissingExtraError: Opacus or dp-accounting is not installed.
        """
        if local.dp_sgd is None:
            return None
        return cls(local.dp_sgd, local.batch_size, num_rows, cohorts)

    def open(self, directory: Path, done: Round) -> None:
        """Go on with what the rounds until the last committed one have spent.

        Raises:
            CheckpointError: the ledger is damaged.
        """
        spent = done.example_privacy
        self.ledger = Ledger(
            directory / LEDGER_DIRECTORY,
            done.round,
            spent.rounds if spent else 0,
            repeatable=self.dp_sgd.simulated,
        )
        self._steps: Counter[int] = Counter()
        for round, clients in self.ledger.entries:
            self._count(round, clients)

    def release(self, round: int, clients: Sequence[int]) -> None:
        """Note that clients are about to train; one that fails afterwards has been paid for.

        Raises:
            OutputError: it cannot be written; they must not train then.
        """
        if clients:
            self.ledger.release(round, tuple(clients))
            self._count(round, clients)

    def broadcast(self, client: int) -> State:
        """What a client must be told: its noise multiplier."""
        return {NOISE: torch.tensor(self.noise_multiplier(client), dtype=torch.float64)}

    def noise_multiplier(self, client: int) -> float:
        """The given one, or the least at which the client's planned steps meet the target."""
        if self.dp_sgd.noise_multiplier is not None:
            return self.dp_sgd.noise_multiplier
        if client not in self._multipliers:
            assert self.dp_sgd.target_epsilon is not None
            releases = ((1, self._in_all[client]),)
            self._multipliers[client] = accounting.noise_multiplier_for(
                self._account(client), self.dp_sgd.target_epsilon, releases
            )
        return self._multipliers[client]

    def epsilon(self, client: int) -> float:
        """Of one of the client's rows, over all steps until now."""
        noise_multiplier, steps = self.noise_multiplier(client), self._steps[client]
        return accounting.epsilon_of_steps(self._account(client), noise_multiplier, steps)

    def facts(self, clients: Sequence[int]) -> dict[str, Any]:
        """For the record of a round that these clients have trained in.

        Where noise is real, losses and tokens are left out: they are taken from the rows without
        noise.
        """
        spent = SpentByExamples(
            epsilons=tuple(self.epsilon(client) for client in clients),
            epsilon=max((self.epsilon(client) for client in self._steps), default=0.0),
            delta=self.dp_sgd.delta,
            accountant=self.dp_sgd.accountant,
            max_grad_norm=self.dp_sgd.max_grad_norm,
            noise_multipliers=tuple(self.noise_multiplier(client) for client in clients),
            sample_rates=tuple(self._rates[client] for client in clients),
            steps=tuple(self._steps[client] for client in clients),
            simulated=self.dp_sgd.simulated,
            rounds=self.ledger.num_rounds,
        )
        if self.dp_sgd.simulated:
            return {"example_privacy": spent}
        return {"example_privacy": spent, "losses": (), "num_tokens": 0}

    def _count(self, round: int, clients: Sequence[int]) -> None:
        for client in clients:
            self._steps[client] += self._planned[round, client]

    def _account(self, client: int) -> Account:
        rate = self._rates[client]
        # All rows in every step: a Gaussian mechanism without sampling.
        sampling = None if rate == 1.0 else rate
        return Account(self.dp_sgd.delta, self.dp_sgd.accountant, sampling)


def require() -> None:
    """See that the packages are there, before anybody trains.

    Raises:
        MissingExtraError: Opacus or dp-accounting is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("dp_accounting", "opacus")):
        raise MissingExtraError("local.dp_sgd", "dp-sgd")


def _refuse_large_delta(delta: float, num_rows: Sequence[int]) -> None:
    most = max(num_rows)
    if delta >= 1 / most:
        client = num_rows.index(most)
        raise ConfigError(
            f"local.dp_sgd.delta is {delta:g}, which lets one of the {most} rows of client "
            f"{client} be published; lower it below {1 / most:g}"
        )

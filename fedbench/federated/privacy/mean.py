"""DP-FedAvg on the server: the noisy mean of clipped updates, and what it costs.

McMahan et al. 2018, Algorithm 1, https://arxiv.org/abs/1710.06963; the clip of Andrew et al. 2021,
Algorithm 1, https://arxiv.org/abs/1905.03871

With m the expected size of a cohort, d_k the clipped updates and z the noise multiplier, the mean
is (sum d_k + N(0, (z S)^2)) / m. The denominator is fixed: one client fewer changes the sum by no
more than S and nothing else. The algorithm is given this mean as the update of a single client, so
that every server optimizer works as before.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedbench.errors import ConfigError
from fedbench.federated.checkpoint import Round
from fedbench.federated.engine import Turn
from fedbench.federated.message import ClientUpdate, ServerState
from fedbench.federated.privacy.accounting import (
    Account,
    Releases,
    epsilon,
    noise_multiplier_for,
    require,
)
from fedbench.federated.privacy.clipping import CLIP, clipped, vote
from fedbench.federated.privacy.ledger import Ledger
from fedbench.federated.privacy.noise import Noise, seeded_noise, system_noise
from fedbench.federated.privacy.settings import AdaptiveClip, Privacy
from fedbench.federated.privacy.spent import Spent
from fedbench.federated.state import State, combine

COHORT = -1
"""Whose update the mean is: no client's."""
SLACK = 1e-9
"""Relative; a calibrated noise multiplier meets its target up to rounding."""
_log = logging.getLogger(__name__)


class PrivateMean:
    """The privacy of one federated training."""

    def __init__(
        self,
        privacy: Privacy,
        cohorts: Sequence[Sequence[int]],
        cohort_size: int,
        sampling: float | None,
        seed: int,
        *,
        simulated: bool,
    ) -> None:
        """`open` comes next.

        Args:
            privacy: the part of the run file.
            cohorts: who is to answer in each round.
            cohort_size: m, how many are expected in a round.
            sampling: a client's probability to be in a secret Poisson cohort; None: cohorts are
                drawn otherwise.
            seed: of the run.
            simulated: whether noise comes from the seed.

        Raises:
            ConfigError: no noise is left for the updates beside that on the count.
            MissingExtraError: dp-accounting is not installed.
        """
        require()
        self.privacy, self.seed, self.simulated = privacy, seed, simulated
        self.cohorts, self.cohort_size = cohorts, cohort_size
        self.account = Account(privacy.delta, privacy.accountant, sampling)
        self.noise_multiplier = self._calibrated()
        self._check_noise()
        self._spent: Spent | None = None

    def open(self, directory: Path, done: Round) -> None:
        """Go on with what the rounds until the last committed one have spent.

        Raises:
            CheckpointError: the ledger is damaged.
        """
        self._spent = done.privacy
        released = done.privacy.rounds if done.privacy else 0
        self.ledger = Ledger(directory, done.round, released, repeatable=self.simulated)

    def broadcast(self, server: ServerState) -> State:
        """What clients must be told: the clip."""
        return {CLIP: torch.tensor(self.clip(server))}

    def clip(self, server: ServerState) -> float:
        """The clip of the next round, S."""
        return float(server.own[CLIP]) if CLIP in server.own else self.privacy.clip

    def affords(self, round: int) -> bool:
        """Whether the budget allows for the sum of a round; never again after one it did not."""
        if self._has_stopped:
            return False
        limit = self.privacy.limit
        if limit is None:
            return True
        return self._epsilon(self._with(round)) <= limit * (1 + SLACK)

    def mean(
        self, server: ServerState, round: int, names: Sequence[str], updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, ClientUpdate]:
        """The noisy mean as an update, and the server's state with the next round's clip.

        Args:
            server: the state before.
            round: which is to be released.
            names: weights that train and travel in it.
            updates: of the clients, as weights that began from those of `server`.
        """
        weights = {name: server.weights[name] for name in names}
        clip, clients, votes = self.clip(server), [], 0.0
        total = combine(lambda w: torch.zeros_like(w, dtype=torch.float64), weights)
        for update in updates:
            change = combine(lambda w, old: w.double() - old.double(), update.state, weights)
            total = combine(torch.add, total, clipped(change, clip))
            votes += vote(update) - 0.5
            clients.append(update.client)
        self.ledger.release(round, tuple(clients))
        noise = self._noise(round)
        deviation = self._update_noise * clip
        noisy = {  # by name: the same numbers for the same weights, whatever order they are kept in
            name: total[name] + deviation * noise(total[name].shape).to(total[name].device)
            for name in sorted(total)
        }
        state = {
            name: (w.double() + noisy[name] / self.cohort_size).to(w.dtype)
            for name, w in weights.items()
        }
        within = self._within(votes, noise)
        self._note(clip, within)
        return self._moved(server, clip, within), _of_the_cohort(state)

    def facts(self, server: ServerState, *, stopped: bool) -> dict[str, Any]:
        """For the record of the round that was released last, or in which nobody trained.

        Where noise is real, what no noise covers is left out.
        """
        if stopped:
            self._stop(self.clip(server))
        assert self._spent is not None
        if self.simulated:
            return {"privacy": self._spent}
        return {"privacy": self._spent, "losses": (), "drift": (), "update_cosine": None}

    @property
    def _has_stopped(self) -> bool:
        return self._spent is not None and self._spent.stopped

    def _stop(self, clip: float) -> None:
        """Note that nobody has trained; the first time it is also said."""
        is_new = not self._has_stopped
        self._note(clip, None)
        assert self._spent is not None
        self._spent = self._spent.model_copy(update={"stopped": True})
        if is_new:
            _log.warning(
                "privacy: the next round would exceed the budget of epsilon %g, of which %.4g is "
                "spent: nobody trains any more, and the remaining rounds keep the model",
                self.privacy.limit,
                self._spent.epsilon,
            )

    def _calibrated(self) -> float:
        if self.privacy.noise_multiplier is not None:
            return self.privacy.noise_multiplier
        planned = self._planned()
        if not planned:
            raise ConfigError(
                "privacy.target_epsilon: no client takes part in any round, so that there is "
                "nothing to calibrate; give privacy.noise_multiplier"
            )
        assert self.privacy.target_epsilon is not None
        return noise_multiplier_for(self.account, self.privacy.target_epsilon, planned)

    def _planned(self) -> Releases:
        """All rounds, as they were drawn."""
        if self.account.sampling is not None:
            return ((1, len(self.cohorts)),)
        everyone = [client for cohort in self.cohorts for client in cohort]
        return ((1, max(map(everyone.count, set(everyone)))),) if everyone else ()

    def _check_noise(self) -> None:
        if self.privacy.adaptive is None or 2 * self._count_noise > self.noise_multiplier:
            return
        raise ConfigError(
            f"privacy.adaptive.count_noise is {self._count_noise:g}, whose double must be above "
            f"the noise multiplier {self.noise_multiplier:g}; raise it, or leave it out"
        )

    @property
    def _count_noise(self) -> float:
        """The paper's sigma_b."""
        assert self.privacy.adaptive is not None
        given = self.privacy.adaptive.count_noise
        return max(self.cohort_size / 20, self.noise_multiplier) if given is None else given

    @property
    def _update_noise(self) -> float:
        """The paper's z_Delta: more noise on updates makes up for what the count tells."""
        if self.privacy.adaptive is None:
            return self.noise_multiplier
        # A vote less a half moves the count by a half at most.
        return float((self.noise_multiplier**-2 - (2 * self._count_noise) ** -2) ** -0.5)

    def _noise(self, round: int) -> Noise:
        return seeded_noise(f"privacy/{self.seed}/{round}") if self.simulated else system_noise

    def _within(self, votes: float, noise: Noise) -> float | None:
        """The noisy share of clients within the clip; `votes` are sums of a vote less a half."""
        if self.privacy.adaptive is None:
            return None
        noisy = votes + self._count_noise * float(noise(torch.Size([1])))
        return noisy / self.cohort_size + 0.5

    def _moved(self, server: ServerState, clip: float, within: float | None) -> ServerState:
        if within is None:
            return server
        moved = torch.tensor(_next_clip(self.privacy.adaptive, clip, within))
        return replace(server, own={**server.own, CLIP: moved})

    def _with(self, round: int) -> Releases:
        """What will have been released after a round."""
        if self.account.sampling is not None:
            return self.ledger.amplified(round)
        return self.ledger.plain(tuple(self.cohorts[round - 1]))

    def _epsilon(self, releases: Releases) -> float:
        return epsilon(self.account, self.noise_multiplier, releases)

    def _note(self, clip: float, within: float | None) -> None:
        is_amplified = self.account.sampling is not None
        releases = self.ledger.amplified() if is_amplified else self.ledger.plain()
        self._spent = Spent(
            epsilon=self._epsilon(releases),
            delta=self.privacy.delta,
            accountant=self.privacy.accountant,
            noise_multiplier=self.noise_multiplier,
            clip=clip,
            amplified=is_amplified,
            simulated=self.simulated,
            rounds=self.ledger.num_rounds,
            within=within,
        )


def from_weights(weights: State, turn: Turn) -> ClientUpdate:
    """A client's update as if it had been sent the global weights unrounded."""
    sent = {name: turn.message.state[name] for name in turn.received.state}
    if all(sent[name] is weights[name] for name in sent):
        return turn.received
    state = {
        name: weights[name] + (new - sent[name].to(new.dtype))
        for name, new in turn.received.state.items()
    }
    return replace(turn.received, state=state)


def _next_clip(adaptive: AdaptiveClip | None, clip: float, within: float) -> float:
    """Geometric steps towards the quantile."""
    assert adaptive is not None
    return clip * math.exp(-adaptive.learning_rate * (within - adaptive.quantile))


def _of_the_cohort(state: State) -> ClientUpdate:
    return ClientUpdate(
        client=COHORT, state=state, num_examples=1, num_samples=1, num_steps=1, loss=math.nan
    )

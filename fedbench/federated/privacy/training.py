"""The privacy of a training, as its run file asks for it, and what is told of it afterwards."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedbench.config import RunConfig
from fedbench.errors import OutputError
from fedbench.federated.checkpoint import Round, read_history
from fedbench.federated.participation import Participant
from fedbench.federated.privacy.mean import PrivateMean
from fedbench.results.record import PrivacyRecord

SECRET_BYTES = 32


def private_mean(
    config: RunConfig, cohorts: Sequence[Sequence[Participant]], seed: int
) -> PrivateMean | None:
    """The privacy of one seed's trainings; None where none is asked for.

    Raises:
        ConfigError: the noise multiplier does not fit.
        MissingExtraError: dp-accounting is not installed.
    """
    if config.privacy is None:
        return None
    federation = config.federation
    is_poisson = federation.participation.sampling == "poisson"
    size = federation.cohort_size
    return PrivateMean(
        config.privacy,
        [[one.client for one in cohort if not one.drops_out] for cohort in cohorts],
        size,
        size / federation.num_clients if is_poisson else None,
        seed,
        simulated=config.privacy.simulated(config.engine),
    )


def cohort_key(config: RunConfig, seed: int, directory: Path) -> int | str:
    """What cohorts are drawn from: the seed, or a secret where epsilon counts on secret cohorts.

    The seed of a deployment is known to every client. The secret lies beside the rounds, for the
    server alone, so that a resumed run meets the same clients.

    Raises:
        OutputError: it cannot be kept.
    """
    privacy = config.privacy
    is_poisson = config.federation.participation.sampling == "poisson"
    if privacy is None or not is_poisson or privacy.simulated(config.engine):
        return seed
    file = directory / f"cohorts-seed-{seed}.secret"
    try:
        if not file.exists():
            _keep(file, secrets.token_hex(SECRET_BYTES))
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise OutputError(
            f"{file}: cannot be kept ({error.strerror}); choose another --output"
        ) from error


def _keep(file: Path, secret: str) -> None:
    """For the owner's eyes only, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="ascii") as handle:
        handle.write(secret)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(half, file)


def privacy_records(config: RunConfig, directories: Sequence[Path]) -> Iterator[PrivacyRecord]:
    """What the private trainings of a run cost, from their histories.

    Args:
        config: the run.
        directories: of its trainings; those without privacy are left out.

    Raises:
        CheckpointError: a history is damaged.
    """
    if config.privacy is None and config.local.dp_sgd is None:
        return  # thousands of histories need not be read
    levels: tuple[Callable[[Sequence[Round]], PrivacyRecord | None], ...] = (of_clients, of_rows)
    for directory in directories:
        history = read_history(directory)
        yield from (record for level in levels if (record := level(history)) is not None)


def of_clients(history: Sequence[Round]) -> PrivacyRecord | None:
    """What a training cost its clients; None where nothing hides them."""
    spent = [round.privacy for round in history if round.privacy is not None]
    if not spent:
        return None
    last, trained = spent[-1], [one for one in spent if not one.stopped]
    return PrivacyRecord(
        level="client",
        method=history[-1].method,
        seed=history[-1].seed,
        epsilons=tuple(one.epsilon for one in spent),
        delta=last.delta,
        accountant=last.accountant,
        noise_multiplier=last.noise_multiplier,
        amplified=last.amplified,
        simulated=last.simulated,
        stopped_after=len(trained) if last.stopped else None,
    )


def of_rows(history: Sequence[Round]) -> PrivacyRecord | None:
    """What a training cost single rows, by DP-SGD in the clients; None where nothing hides them."""
    spent = [round.example_privacy for round in history if round.example_privacy is not None]
    multipliers = [noise for one in spent for noise in one.noise_multipliers]
    if not multipliers:  # nobody has trained
        return None
    last = spent[-1]
    return PrivacyRecord(
        level="example",
        method=history[-1].method,
        seed=history[-1].seed,
        epsilons=tuple(one.epsilon for one in spent),
        delta=last.delta,
        accountant=last.accountant,
        noise_multiplier=min(multipliers),
        amplified=any(rate < 1.0 for one in spent for rate in one.sample_rates),
        simulated=last.simulated,
    )

"""What the models of a trained run give away: who was in the training rows, and planted secrets.

Membership: a client's training rows (members) against its test and validation rows, told apart by
how likely their answers are (Yeom et al. 2018), and by how much likelier than under the base model
that training started from (Mireshghallah et al. 2022). Canaries: docs/federation_metrics.md.

``<run>/privacy/`` gets the records.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedbench.client_answers import ClientAnswers, ask_clients
from fedbench.config import RunConfig
from fedbench.data.canaries import Canaries, Canary, make_canaries, other_secrets
from fedbench.data.datasets import Example, normalise
from fedbench.data.partition import Shard, partition
from fedbench.data.templates import unanswered
from fedbench.evaluation.asking import Progress
from fedbench.evaluation.client_rows import answer_of, question
from fedbench.federation import (
    audit_scoring,
    claimed,
    common_fields,
    seed_checkpoints,
    write_audit,
)
from fedbench.generation.backend import Answer, Question, Sampling
from fedbench.metrics.metric import Array
from fedbench.provenance import provenance
from fedbench.results.privacy import (
    CanaryResult,
    MemberScores,
    canary_records,
    membership_records,
)
from fedbench.results.record import ScoreRecord
from fedbench.run_data import load_data
from fedbench.scoring import elapsed

DIRECTORY = "privacy"
ROWS = 500
"""Members, and non-members, of each client that are asked about at most."""
CANDIDATES = 1000
"""Other sequences that a canary is compared with; exposure goes up to log2 of it."""
AT_ONCE = 50
"""Candidates in one question."""
ENOUGH = 200
"""Members, and as many non-members, of a client from which the intervals are of use."""
_log = logging.getLogger(__name__)


def audit_privacy(
    run: Path,
    *,
    rows: int = ROWS,
    candidates: int = CANDIDATES,
    output: Path | None = None,
    progress: Progress = lambda what, done, total: None,
    command: str = "",
) -> list[ScoreRecord]:
    """Attack the last models of a run.

    Args:
        run: the directory of a trained run.
        rows: at most so many members, and as many non-members, of each client.
        candidates: other secrets that each canary is compared with.
        output: where records go; ``<run>/privacy`` by default.
        progress: told of each answered batch.
        command: the command line, for the record.

    Raises:
        FedbenchError: the directory holds no trained run, or its data cannot be had.
    """
    config = claimed(run)
    started = time.monotonic()
    made = provenance()
    common = common_fields(config, made)
    data = load_data(config)
    records: list[ScoreRecord] = []
    for seed in config.seeds:
        shards = partition(data.examples, config.federation.num_clients, config.data, seed)
        drawn = [_draw(data.examples, shards, client, rows, seed) for client in range(len(shards))]
        warn_of_few(drawn, seed)
        records += _membership(config, run, seed, drawn, common, progress)
        if config.data.canaries is not None:
            records += _canaries(
                config, config.data.canaries, run, seed, candidates, common, progress
            )
    place = output or run / DIRECTORY
    return write_audit(place, records, config, made, command, elapsed(started))


@dataclass(frozen=True)
class DrawnRows:
    """Rows of one client."""

    members: Sequence[Example]
    others: Sequence[Example]

    @property
    def examples(self) -> list[Example]:
        """Members first."""
        return [*self.members, *self.others]


def warn_of_few(drawn: Sequence[DrawnRows], seed: int) -> None:
    """Say how many clients have too few rows of either kind: many of the other do not help."""
    few = sum(min(len(own.members), len(own.others)) < ENOUGH for own in drawn)
    if few:
        _log.warning(
            "seed %d: %d of %d clients have fewer than %d training rows or fewer than %d others to "
            "attack: their intervals are wide",
            seed, few, len(drawn), ENOUGH, ENOUGH,
        )  # fmt: skip


def _draw(
    examples: Sequence[Example], shards: Sequence[Shard], client: int, most: int, seed: int
) -> DrawnRows:
    """A client's rows for the attack; whose text any client trained on is no non-member."""
    rng = random.Random(f"membership/{seed}/{client}")
    trained = _texts(examples, [n for shard in shards for n in shard.train])
    shard = shards[client]
    others = [
        n for n in [*shard.test, *shard.validation] if normalise(examples[n].text) not in trained
    ]

    def some(rows: Sequence[int]) -> list[Example]:
        chosen = sorted(rng.sample(list(rows), min(most, len(rows))))
        return [examples[n] for n in chosen if examples[n].desirable is not False]

    return DrawnRows(some(shard.train), some(others))


def _texts(examples: Sequence[Example], rows: Sequence[int]) -> set[str]:
    return {normalise(examples[n].text) for n in rows}


def _membership(
    config: RunConfig,
    run: Path,
    seed: int,
    drawn: Sequence[DrawnRows],
    common: Mapping[str, Any],
    progress: Progress,
) -> Iterator[ScoreRecord]:
    questions = [[question(e, (answer_of(e),)) for e in own.examples] for own in drawn]
    checkpoints = seed_checkpoints(run, seed)
    answers = ask_clients(checkpoints, questions, audit_scoring(config), progress)
    base = next((model for model in answers if model.model_kind == "base"), None)
    for model in answers:
        reference = None if base is None or model == base else answers[base]
        scores = [
            _member_scores(
                own, answers[model][client], None if reference is None else reference[client]
            )
            for client, own in enumerate(drawn)
        ]
        yield from membership_records(model, scores, common)


def _member_scores(
    drawn: DrawnRows, answers: Sequence[Answer], reference: Sequence[Answer] | None
) -> MemberScores | None:
    """Log-likelihoods per byte of the answer; None where the client has no model."""
    if not answers:
        return None
    own = _per_byte(drawn.examples, answers)
    gained = None if reference is None else own - _per_byte(drawn.examples, reference)
    return MemberScores(np.arange(len(own)) < len(drawn.members), own, gained)


def _per_byte(examples: Sequence[Example], answers: Sequence[Answer]) -> Array:
    """NaN where there is no answer."""
    return np.array(
        [
            answer.loglikelihoods[0] / max(len(answer_of(example).encode()), 1)
            if answer.loglikelihoods
            else np.nan
            for example, answer in zip(examples, answers, strict=True)
        ]
    )


@dataclass(frozen=True)
class _Probe:
    """The questions about one canary: candidates by likelihood, then what greedy decoding says."""

    canary: Canary
    questions: Sequence[Question]

    @classmethod
    def of(cls, config: Canaries, canary: Canary, number: int, seed: int) -> _Probe:
        codes = [canary.secret, *other_secrets(config, canary, number, seed)]
        parts = [codes[start : start + AT_ONCE] for start in range(0, len(codes), AT_ONCE)]
        asked = [question(canary.example, part) for part in parts]
        turns = tuple(unanswered(turn) for turn in canary.example.turns)
        sampling = Sampling(max_tokens=2 * config.digits + 2)
        return cls(canary, [*asked, Question(turns, "generate", sampling)])

    def read(self, answers: Sequence[Answer], space: int) -> CanaryResult | None:
        """How the secret ranks; None where an answer failed."""
        *listed, said = answers
        if any(answer.error for answer in answers):
            return None
        own, *others = [value for answer in listed for value in answer.loglikelihoods]
        return CanaryResult(
            repeats=self.canary.repeats,
            num_as_likely=sum(value >= own for value in others),
            num_others=len(others),
            space=space,
            extracted=(said.text or "").strip().startswith(self.canary.secret),
        )


def _canaries(
    config: RunConfig,
    canaries: Canaries,
    run: Path,
    seed: int,
    number: int,
    common: Mapping[str, Any],
    progress: Progress,
) -> Iterator[ScoreRecord]:
    planted = make_canaries(canaries, config.federation.num_clients, seed)
    probes = [[_Probe.of(canaries, one, number, seed) for one in own] for own in planted]
    questions = [[q for probe in own for q in probe.questions] for own in probes]
    checkpoints = seed_checkpoints(run, seed)
    answers: ClientAnswers = ask_clients(checkpoints, questions, audit_scoring(config), progress)
    for model, given in answers.items():
        yield from canary_records(model, _results(probes, given, canaries.space), common)


def _results(
    probes: Sequence[Sequence[_Probe]], given: Sequence[Sequence[Answer]], space: int
) -> list[list[CanaryResult | None]]:
    """Per client that was asked, in the order of its canaries."""
    results = []
    for own, answers in zip(probes, given, strict=True):
        rest = iter(answers)
        read = [probe.read([next(rest) for _ in probe.questions], space) for probe in own]
        results.append(read if answers else [])
    return results

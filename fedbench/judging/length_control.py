"""The win rate that a model would have if its answers were as long as the baseline's.

AlpacaEval 2's generalized linear model (Dubois et al. 2024, https://arxiv.org/abs/2404.04475)::

    logit P(model preferred) = a * tanh(d / sd(d)) + b * difficulty + c

where d is the length of the baseline's answer less that of the model's, and difficulty is a number
per instruction that was estimated once over many models. The rate is the mean of P at d = 0. Soft
preferences are labels with weights. The three coefficients have an L1 penalty whose strength is
chosen by five-fold cross-validation, and no intercept; a model that was told to be verbose, and one
that was told to be concise, are added with weight 0.2 / 2 each and without c, so that length is
estimated from models that differ in little else.

Difficulties and those two models' judgments are in AlpacaEval's ``df_gamed.csv`` (on the hub, in
tatsu-lab/alpaca_eval), which `read_length_control` reads from a file and `get_length_control` from
the mirror or the hub; they belong to its judge and baseline.
Without them the same model is fitted on length and c alone. That estimate has another name, and is
withheld where hardly any answer is longer than the baseline's, or shorter: the effect of length
cannot be told from that of the model then.

AlpacaEval fits with liblinear, which stops a little short of the optimum that is found here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedbench.data.rows import open_mirror
from fedbench.errors import DataError, MissingExtraError
from fedbench.judging.files import rows_of_file
from fedbench.metrics.metric import Array
from fedbench.results.intervals import Interval, percentile_interval

STRENGTHS = np.logspace(-4, 4, 10)
"""Weights of the likelihood against the penalty that are tried (scikit-learn's default ``Cs``)."""
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
MIN_SIDE = 0.1
"""Share of answers that must be longer than the baseline's, and share that must be shorter."""
DRAWS = 200
_MAX_STEPS, _MAX_SWEEPS = 100, 1000
_TOLERANCE, _SMALLEST = 1e-14, 1e-6
HUB = "hub"
"""In place of a file: AlpacaEval's own."""
_REPOSITORY, _FILE = "tatsu-lab/alpaca_eval", "df_gamed.csv"
_REVISION = "2edc6fad8be6b14ea7230aabfd08188da6b8b814"
_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
_COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(frozen=True)
class LengthControl:
    """What AlpacaEval knows of its instructions and of the effect of length on its judge."""

    difficulty: Mapping[str, float]
    """By AlpacaEval's number of the instruction."""
    gamed_scores: Array
    """(n,) preference for the verbose or concise model over the baseline, 0 to 1."""
    gamed_lengths: Array
    """(n,) their length differences, divided by their standard deviation."""
    gamed_difficulty: Array
    """(n,)"""

    @property
    def hash(self) -> str:
        """Of all of it, for records."""
        told = json.dumps(sorted(self.difficulty.items())).encode()
        arrays = (self.gamed_scores, self.gamed_lengths, self.gamed_difficulty)
        return hashlib.sha256(told + b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]

    def difficulty_of(self, question: str) -> float:
        """Of a question by AlpacaEval's number, alone or behind a split: ``12``, ``eval/12``.

        Raises:
            DataError: it is not known.
        """
        number = question.rpartition("/")[2]
        if number not in self.difficulty:
            raise DataError(
                f"question {question}: has no instruction difficulty; number the questions as "
                "AlpacaEval does, from 0 to 804"
            )
        return self.difficulty[number]


@dataclass(frozen=True)
class Controlled:
    """A length-controlled win rate."""

    rate: float
    interval: Interval
    coefficients: tuple[float, ...]
    """Of length, of difficulty (where it is known), and the constant."""


def length_controlled(
    questions: Sequence[str],
    scores: Array,
    length_differences: Array,
    control: LengthControl | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Controlled:
    """The win rate at equal length, with an interval over questions.

    AlpacaEval's standard error takes the fitted probabilities for data. Here the model is fitted
    again on every bootstrap draw of the questions, with the penalty as chosen on all of them.

    Args:
        questions: (n,) of each comparison.
        scores: (n,) preference for the model, 0 to 1.
        length_differences: (n,) characters of the baseline's answer less those of the model's.
        control: difficulties and gamed models; None fits length alone.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: a question has no difficulty.
    """
    spread = float(np.std(length_differences, ddof=1)) if len(scores) > 1 else 0.0
    length = np.tanh(length_differences / spread) if spread else np.zeros(len(scores))
    design, labels, weights, at_equal = _design(questions, scores, length, control)
    strength = _strength(design, labels, weights)
    coefficients = fit_l1(design, labels, weights, strength)
    names, cluster = np.unique(np.asarray(questions), return_inverse=True)
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(draws):
        times = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
        drawn = weights.copy()
        drawn[: len(scores)] *= times[cluster]
        refitted = fit_l1(design, labels, drawn, strength)
        rates.append(np.average(_logistic(at_equal @ refitted), weights=times[cluster]))
    return Controlled(
        rate=float(_logistic(at_equal @ coefficients).mean()),
        interval=percentile_interval(np.array(rates), 0.95, "cluster-bootstrap-percentile"),
        coefficients=tuple(map(float, coefficients)),
    )


def tells_length_apart(length_differences: Array, control: LengthControl | None) -> bool:
    """Whether the effect of length can be estimated beside that of the model."""
    if control is not None:
        return True
    longer, shorter = np.mean(length_differences < 0), np.mean(length_differences > 0)
    return bool(min(longer, shorter) >= MIN_SIDE)


def rate_at_equal_length(difficulty_effect: float, constant: float, difficulty: Array) -> float:
    """The win rate of coefficients that are known, as AlpacaEval publishes them per model.

    Args:
        difficulty_effect: b of the formula above.
        constant: c of the formula above.
        difficulty: (n,) of the instructions.
    """
    return float(_logistic(constant + difficulty_effect * difficulty).mean())


def fit_l1(design: Array, labels: Array, weights: Array, strength: float) -> Array:
    """Coefficients that minimise |w|_1 + strength * sum of weighted logistic losses.

    The objective of liblinear's L1 logistic regression without intercept, by proximal Newton steps
    (Lee, Sun and Saunders 2014): the loss is replaced by its quadratic, whose penalised minimum is
    found coordinate by coordinate, and a step is halved until it is of use.
    """

    def objective(w: Array) -> float:
        logits = design @ w
        loss = weights @ (np.logaddexp(0, logits) - labels * logits)
        return float(np.abs(w).sum() / strength + loss)

    found = np.zeros(design.shape[1])
    value = objective(found)
    for _ in range(_MAX_STEPS):
        chance = _logistic(design @ found)
        slope = design.T @ (weights * (chance - labels))
        curvature = design.T @ (design * (weights * chance * (1 - chance))[:, None])
        target = _penalised_minimum(found, slope, curvature, 1 / strength)
        size = 1.0
        while size > _SMALLEST and objective(found + size * (target - found)) > value:
            size /= 2
        found = found + size * (target - found)
        value, before = objective(found), value
        if before - value <= _TOLERANCE * abs(value):
            break
    return found


def _penalised_minimum(start: Array, slope: Array, curvature: Array, penalty: float) -> Array:
    """The w that minimises slope·d + d·curvature·d / 2 + penalty |w|, with d = w - start."""
    w = start.copy()
    for _ in range(_MAX_SWEEPS):
        before = w.copy()
        for j in range(len(w)):
            bend = curvature[j, j] + 1e-12
            free = bend * w[j] - slope[j] - curvature[j] @ (w - start)
            w[j] = np.sign(free) * max(abs(free) - penalty, 0.0) / bend
        if np.abs(w - before).max() < 1e-12:
            break
    return w


def get_length_control(named: str | Path) -> LengthControl:
    """What a user names: a file, or ``hub`` for AlpacaEval's own, pinned by its hash.

    The mirror at FEDBENCH_DATA is looked at first, for ``reference/alpaca_eval/df_gamed.csv``.

    Raises:
        DataError: it is missing, is another version, or lacks a column.
    """
    if str(named) != HUB:
        return read_length_control(named)
    file = _in_mirror() or _from_hub()
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
        raise DataError(
            f"{file}: is not AlpacaEval's {_FILE} of revision {_REVISION[:12]} (sha256 differs); "
            "fetch it again, or name this file with --length-control"
        )
    return read_length_control(file)


def _in_mirror() -> Path | None:
    mirror = open_mirror(None)
    file = mirror.directory / "reference" / "alpaca_eval" / _FILE if mirror else None
    return file if file is not None and file.is_file() else None


def _from_hub() -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(f"{_FILE} from the hub", "train") from error
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                _REPOSITORY, _FILE, repo_type="dataset", revision=_REVISION
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{_FILE}: the hub did not give it from {_REPOSITORY} ({reason}); check network and "
            "access, or fetch it elsewhere and name the file with --length-control"
        ) from error


def read_length_control(file: str | Path) -> LengthControl:
    """AlpacaEval's ``df_gamed.csv``.

    Raises:
        DataError: it is missing, or lacks a column.
    """
    rows = rows_of_file(file, *_COLUMNS)
    try:
        table = np.array([[_number(row[name]) for name in _COLUMNS[:4]] for row in rows])
        if not np.isfinite(table[:, 1:]).all():
            raise ValueError("only a preference may be missing")
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"{file}: {error}; the columns {', '.join(_COLUMNS[:4])} must hold numbers"
        ) from error
    gamed = np.array([str(row["not_gamed_baseline"]).lower() in ("false", "0") for row in rows])
    if not gamed.all():
        raise DataError(f"{file}: holds rows of models that are not gamed; keep the gamed ones")
    preference, index, length, difficulty = table.T
    known = np.isfinite(preference)
    return LengthControl(
        difficulty={str(int(i)): float(d) for i, d in zip(index, difficulty, strict=True)},
        gamed_scores=preference[known],
        gamed_lengths=length[known],
        gamed_difficulty=difficulty[known],
    )


def _number(value: object) -> float:
    return math.nan if value is None or value == "" else float(str(value))


def _design(
    questions: Sequence[str], scores: Array, length: Array, control: LengthControl | None
) -> tuple[Array, Array, Array, Array]:
    """(n + gamed, k) features, labels and weights; and the (n, k) features at equal length."""
    ones = np.ones(len(scores))
    if control is None:
        own = np.column_stack([length, ones])
        return own, scores, ones, own * [0.0, 1.0]
    difficulty = np.array([control.difficulty_of(name) for name in questions])
    own = np.column_stack([length, difficulty, ones])
    gamed = np.column_stack(
        [
            np.tanh(control.gamed_lengths),
            control.gamed_difficulty,
            np.zeros(len(control.gamed_scores)),
        ]
    )
    return (
        np.vstack([own, gamed]),
        np.concatenate([scores, control.gamed_scores]),
        np.concatenate([ones, np.full(len(gamed), GAMED_WEIGHT)]),
        own * [0.0, 1.0, 1.0],
    )


def _strength(design: Array, labels: Array, weights: Array) -> float:
    """The strength with the least held-out loss over five folds, every fifth row each."""
    fold = np.arange(len(labels)) % FOLDS
    losses = [
        np.mean([_held_out(design, labels, weights, strength, fold == k) for k in range(FOLDS)])
        for strength in STRENGTHS
    ]
    return float(STRENGTHS[int(np.argmin(losses))])


def _held_out(design: Array, labels: Array, weights: Array, strength: float, test: Array) -> float:
    train = np.logical_not(test)
    if not test.any() or not train.any():
        return math.nan
    coefficients = fit_l1(design[train], labels[train], weights[train], strength)
    logits = design[test] @ coefficients
    return float(np.mean(weights[test] * (np.logaddexp(0, logits) - labels[test] * logits)))


def _logistic(logits: Array) -> Array:
    return np.exp(-np.logaddexp(0, -logits))

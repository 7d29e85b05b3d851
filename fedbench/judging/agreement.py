"""How far verdicts can be trusted: between the two orders, between repeats, and with people."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbench.data.rows import Row
from fedbench.errors import DataError
from fedbench.judging.files import rows_of_file, turn_of
from fedbench.judging.rows import JudgmentRow
from fedbench.judging.scores import without_superseded

WIN, TIE, LOSS = "win", "tie", "loss"
OF_OTHER_ANSWERS = (
    "the labels are of other answers than the judgments: no question, model, baseline and turn "
    "occurs in both; check the columns of the labels"
)
Key = tuple[str, str, str | None, int]
"""Question, model, baseline and turn."""


@dataclass(frozen=True)
class PositionBias:
    """What swapping the two answers does to the verdict."""

    num_pairs: int
    """Pairs with a verdict in both orders."""
    agreement: float
    """Share of pairs whose two verdicts name the same model, or both a tie."""
    kappa: float
    """The same beyond chance (Cohen 1960)."""
    first_favoured: float
    """Share of pairs in which both verdicts name the answer that was shown first, whoever wrote it.

    No bias has this as large as `second_favoured`."""
    second_favoured: float


@dataclass(frozen=True)
class Agreement:
    """A judge against people, or against another judge."""

    num_items: int
    share: float
    """With the same verdict; of ratings, with the same rating."""
    kappa: float
    """Beyond chance; of ratings with quadratic weights."""
    num_decided: int
    """Pairs that neither calls a tie (0 for ratings)."""
    share_decided: float
    """Agreement on those: Setup S2 of Zheng et al. 2023 (arXiv:2306.05685)."""
    spearman: float = math.nan
    """Rank correlation of ratings; NaN for pairs."""


def position_bias(rows: Sequence[JudgmentRow]) -> PositionBias:
    """Compare the verdicts on the two orders of each pair."""
    pairs: dict[tuple[object, ...], dict[str, str]] = defaultdict(dict)
    for row in without_superseded(rows):
        if row.score is not None and row.order is not None:
            key = (row.model, row.baseline, row.question, row.turn, row.sample, row.repeat)
            pairs[key][row.order] = outcome_of(row.score)
    both = [(own["ab"], own["ba"]) for own in pairs.values() if len(own) == 2]
    return PositionBias(
        num_pairs=len(both),
        agreement=_mean(ab == ba for ab, ba in both),
        kappa=cohen_kappa(*_columns(both)),
        first_favoured=_mean((ab, ba) == (WIN, LOSS) for ab, ba in both),
        second_favoured=_mean((ab, ba) == (LOSS, WIN) for ab, ba in both),
    )


def repeat_agreement(rows: Sequence[JudgmentRow]) -> float:
    """Chance that two repeats of the same question to the judge have the same verdict.

    The mean over what was asked of the share of equal pairs; NaN where nothing was repeated.
    """
    asked: dict[tuple[object, ...], list[float | str]] = defaultdict(list)
    for row in without_superseded(rows):
        if row.value is not None:
            asked[row.asked].append(row.value)
    shares = []
    for values in asked.values():
        counts, total = Counter(values), len(values)
        if total > 1:
            equal = sum(count * (count - 1) for count in counts.values())
            shares.append(equal / (total * (total - 1)))
    return _mean(shares)


def agreement(
    rows: Sequence[JudgmentRow], labels: Mapping[Key, Sequence[str | float]]
) -> Agreement:
    """How often a judge says what people say of the same answers.

    Every label of a person counts as one item. The two orders of a pair are one verdict: a tie
    where they differ. Repeats and samples of a judge are averaged (of a pair, by majority).

    Args:
        rows: of a judge.
        labels: `read_labels`; outcomes for the model (win, tie, loss), or ratings.

    Raises:
        DataError: judge and labels have nothing in common.
    """
    if not is_any_labelled(rows, labels):
        raise DataError(OF_OTHER_ANSWERS)
    verdicts = _verdicts(rows)
    both = [
        (verdicts[key], label) for key, own in labels.items() if key in verdicts for label in own
    ]
    if all(isinstance(label, float) for _, label in both):
        return _of_ratings([(float(a), float(b)) for a, b in both])
    named = [(outcome_of(a) if isinstance(a, float) else a, str(b)) for a, b in both]
    decided = [(a, b) for a, b in named if TIE not in (a, b)]
    return Agreement(
        num_items=len(named),
        share=_mean(a == b for a, b in named),
        kappa=cohen_kappa(*_columns(named)),
        num_decided=len(decided),
        share_decided=_mean(a == b for a, b in decided),
    )


def is_any_labelled(rows: Sequence[JudgmentRow], labels: Mapping[Key, object]) -> bool:
    """Whether people have labelled any of what was judged."""
    judged = ((row.question, row.model, row.baseline, row.turn) for row in rows)
    return not labels.keys().isdisjoint(judged)


def read_labels(file: str | Path) -> dict[Key, list[str | float]]:
    """People's labels from any file of rows (JSON lines, JSON, CSV, parquet).

    Of pairs the columns are ``question_id``, ``turn``, ``model_a``, ``model_b`` and ``winner``
    (``model_a``, ``model_b`` or a word with ``tie``), as MT-Bench's human judgments have them; of
    single answers ``question_id``, ``turn``, ``model`` and ``score``. ``question`` and ``rating``
    are read as well, and a missing turn is 1.

    Raises:
        DataError: a column is missing, or a label is none of these.
    """
    rows = rows_of_file(file)
    labels: dict[Key, list[str | float]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        question = str(_first(row, ("question_id", "question"), where))
        turn = turn_of(row, where)
        if "winner" in row:
            model, baseline = (str(_first(row, (name,), where)) for name in ("model_a", "model_b"))
            outcome = _outcome(str(row["winner"]), model, baseline, where)
            labels[question, model, baseline, turn].append(outcome)
            labels[question, baseline, model, turn].append(_MIRRORED[outcome])
        else:
            score = _first(row, ("score", "rating"), where)
            model = str(_first(row, ("model", "model_id"), where))
            labels[question, model, None, turn].append(_number(score, where))
    return dict(labels)


def cohen_kappa(
    ours: Sequence[Hashable], theirs: Sequence[Hashable], *, quadratic: bool = False
) -> float:
    """Agreement of two raters beyond chance: 1 - observed / expected disagreement.

    Args:
        ours: (n,) labels of one rater; numbers for quadratic weights.
        theirs: (n,) labels of the other.
        quadratic: weigh a disagreement by the square of its size (Cohen 1968).

    Returns:
        NaN where nothing is given, or where chance already leaves no disagreement.
    """
    if not ours:
        return math.nan

    def apart(a: Hashable, b: Hashable) -> float:
        return (float(a) - float(b)) ** 2 if quadratic else float(a != b)  # type: ignore[arg-type]

    observed = sum(apart(a, b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
    left, right = Counter(ours), Counter(theirs)
    expected = (
        sum(n * m * apart(a, b) for a, n in left.items() for b, m in right.items()) / len(ours) ** 2
    )
    return 1 - observed / expected if expected else math.nan


def outcome_of(score: float) -> str:
    """Win, tie or loss, of the model's share of a win."""
    return WIN if score > 0.5 else LOSS if score < 0.5 else TIE


_MIRRORED = {WIN: LOSS, LOSS: WIN, TIE: TIE}


def _verdicts(rows: Sequence[JudgmentRow]) -> dict[Key, float | str]:
    """One verdict per answer or pair: the mean rating, or the outcome that both orders share."""
    tables: dict[Key, dict[str | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in without_superseded(rows):
        if row.score is not None:
            key = (row.question, row.model, row.baseline, row.turn)
            tables[key][row.order].append(row.score)
    verdicts: dict[Key, float | str] = {}
    for key, orders in tables.items():
        means = [sum(own) / len(own) for own in orders.values()]
        if key[2] is None:
            verdicts[key] = means[0]
            continue
        outcomes = {outcome_of(mean) for mean in means}
        verdicts[key] = outcomes.pop() if len(outcomes) == 1 else TIE
    return verdicts


def _of_ratings(both: Sequence[tuple[float, float]]) -> Agreement:
    from scipy.stats import spearmanr

    ours, theirs = _columns(both)
    varied = len(set(ours)) > 1 and len(set(theirs)) > 1
    return Agreement(
        num_items=len(both),
        share=_mean(a == b for a, b in both),
        kappa=cohen_kappa(ours, theirs, quadratic=True),
        num_decided=0,
        share_decided=math.nan,
        spearman=float(spearmanr(ours, theirs).statistic) if varied else math.nan,
    )


def _outcome(winner: str, model: str, baseline: str, where: str) -> str:
    # A model's own name may hold the word, as "patient-7b" does.
    if winner in ("model_a", "A", model):
        return WIN
    if winner in ("model_b", "B", baseline):
        return LOSS
    if "tie" in winner.lower():
        return TIE
    raise DataError(f"{where}: winner is {winner!r}; write model_a, model_b or tie")


def _number(value: object, where: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: score is {value!r}; give a number, or leave the row out")
    return number


def _first(row: Row, names: Sequence[str], where: str) -> object:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"{where}: has no {' or '.join(names)}; name the columns as FastChat does")


def _columns(pairs: Sequence[tuple[object, object]]) -> tuple[list[object], list[object]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan

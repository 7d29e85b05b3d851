"""Judgments that others published: FastChat's, Vicuna's reviews, AlpacaEval's annotations.

Conventions, which are those of the code that wrote the files:

* FastChat (``model_judgment/*_single.jsonl`` and ``*_pair.jsonl``): a score of -1, and a winner of
  ``error``, stand for a reply that could not be read. They are rows without a value here, and the
  average of the others is what ``show_result.py`` prints. Every row counts, so that a model that
  was judged twice has the mean of both; rows that repeat a question are numbered as repeats. Where
  one try failed and another did not, only the latter counts, which leaves the average as it is.
* Reviews of Vicuna bench (2023): two scores in the first line; ``[-1, -1]`` could not be read.
* AlpacaEval: ``preference`` is 1 for the baseline and 2 for the model, or between the two from the
  judge's probabilities; 0 and 1.5 are ties, NaN and -1 could not be read. Who was shown first is
  told by the judge's probabilities, where the file keeps them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedbench.data.rows import Row
from fedbench.errors import DataError
from fedbench.judging.files import rows_of_file, turn_of
from fedbench.judging.rows import JudgmentRow, Order, score_of
from fedbench.judging.verdict_format import TIE, A, B, Verdict, VerdictFormat
from fedbench.judging.verdicts import read_verdict

UNREAD = "marked as unread in the file"


def read_judgments(
    file: str | Path,
    *,
    parser: str | None = None,
    categories: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> list[JudgmentRow]:
    """The judgments of a file of any of these forms.

    Args:
        file: JSON lines, JSON or the same gzipped.
        parser: ``fastchat`` or ``fedbench`` reads the replies of FastChat's judgments and of
            reviews again; None takes the scores that the file has.
        categories: of the questions, for scores by category.
        models: of a file of reviews, the model of each ``answer_id`` (`models_of_answers`); without
            it the file must be of one pair of models, ``assistant 1`` and ``assistant 2``.
        numbers: of AlpacaEval's instructions, for annotations without an ``index``; by default the
            rows are taken to be all of them, in order.

    Raises:
        DataError: the file is missing or damaged, or of no form that is known.
    """
    rows = rows_of_file(file)
    first = rows[0]
    if "preference" in first:
        if parser is not None:
            raise DataError(
                f"{file}: AlpacaEval's annotations keep preferences, and no reply that a parser "
                "could read again; leave --parser out"
            )
        found = _numbered(_annotation(row, n, file, numbers or {}) for n, row in enumerate(rows))
    elif "answer1_id" in first:
        if not models:
            _refuse_several_pairs(rows, file)
        reviews = (_review(row, n, file, models or {}, parser) for n, row in enumerate(rows))
        found = _numbered(reviews)
    elif "g1_judgment" in first or "g1_winner" in first:
        games = (_game(row, n, file, game, parser) for n, row in enumerate(rows) for game in (1, 2))
        found = _numbered(games)
    elif "judgment" in first or "score" in first:
        found = _numbered(_grade(row, n, file, parser) for n, row in enumerate(rows))
    else:
        raise DataError(
            f"{file}: holds neither FastChat's judgments (question_id, model, judge, turn, score), "
            "nor Vicuna's reviews (answer1_id), nor AlpacaEval's annotations (preference)"
        )
    return [replace(row, category=(categories or {}).get(row.question, "")) for row in found]


def models_of_answers(file: str | Path) -> dict[str, str]:
    """The model of each answer, from the answers that reviews are of (Vicuna bench, 2023)."""
    rows = rows_of_file(file, "answer_id", "model_id")
    return {str(row["answer_id"]): str(row["model_id"]) for row in rows}


def weighted_preference(
    top_logprobs: Mapping[str, float], baseline: str = "m", model: str = "M"
) -> float | None:
    """Share of the model's token in the probability of both tokens, as AlpacaEval 2 weighs it.

    Args:
        top_logprobs: natural logarithms of the likeliest first tokens of the reply.
        baseline: token that prefers the baseline.
        model: token that prefers the model.

    Returns:
        Between 0 and 1; None where neither token is among them. A token that is not has
        probability 0.
    """
    chances = [math.exp(top_logprobs.get(token, -math.inf)) for token in (baseline, model)]
    return chances[1] / sum(chances) if sum(chances) > 0 else None


def _grade(row: Row, number: int, file: str | Path, parser: str | None) -> JudgmentRow:
    get = _getter(row, number, file)
    value: float | str | None = _number(row.get("score"))
    text = row.get("judgment")
    problem = None
    if parser is not None:
        form = VerdictFormat.model_validate({"kind": "rating", "parser": parser})
        verdict = read_verdict(form, str(get("judgment")))
        value, problem = verdict.value, verdict.problem
    elif value == -1:
        value, problem = None, UNREAD
    judge, prompt = _judge(row.get("judge"))
    return JudgmentRow(
        model=str(get("model")),
        question=str(get("question_id")),
        turn=turn_of(row, f"{file}, row {number + 1}"),
        judge=judge,
        text=text,
        value=value,
        score=score_of(value, None),
        rubric=prompt,
        problem=problem or UNREAD if value is None else None,
    )


def _game(row: Row, number: int, file: str | Path, game: int, parser: str | None) -> JudgmentRow:
    """One of the two games of a row: in the first, model_1 is shown as A; in the second as B."""
    get = _getter(row, number, file)
    model, baseline = str(get("model_1")), str(get("model_2"))
    order: Order = "ab" if game == 1 else "ba"
    text = row.get(f"g{game}_judgment")
    if parser is not None:
        form = VerdictFormat.model_validate({"kind": "preference", "parser": parser})
        value = read_verdict(form, str(get(f"g{game}_judgment"))).value
    else:
        # The file names the winner by model and not by place, in the second game too.
        first, second = (A, B) if game == 1 else (B, A)
        value = {"model_1": first, "model_2": second, "tie": TIE}.get(str(get(f"g{game}_winner")))
    judge, prompt = _judge(row.get("judge"))
    return JudgmentRow(
        model=model,
        question=str(get("question_id")),
        turn=turn_of(row, f"{file}, row {number + 1}"),
        judge=judge,
        text=text,
        value=value,
        score=score_of(value, order),
        rubric=prompt,
        order=order,
        baseline=baseline,
        problem=UNREAD if value is None else None,
    )


def _review(
    row: Row, number: int, file: str | Path, models: Mapping[str, str], parser: str | None
) -> JudgmentRow:
    """A review of two answers: the baseline's comes first in the files, then the model's."""
    get = _getter(row, number, file)
    verdict = _stated(row, number, file) if parser is None else _reviewed(str(get("text")), parser)
    baseline, model = (models.get(str(get(f"answer{n}_id")), f"assistant {n}") for n in (1, 2))
    return JudgmentRow(
        model=model,
        question=str(get("question_id")),
        turn=1,
        judge="not named",  # reviewer_id is the prompt of the question's category
        text=row.get("text"),
        value=verdict.value,
        score=score_of(verdict.value, "ba"),
        order="ba",
        baseline=baseline,
        problem=verdict.problem,
        scores=(verdict.scores[1], verdict.scores[0]) if verdict.scores else None,
    )


def _stated(row: Row, number: int, file: str | Path) -> Verdict:
    """The two scores that the file has."""
    scores = [_number(score) for score in _getter(row, number, file)("score")]
    if len(scores) != 2:
        raise DataError(f"{file}, row {number + 1}: score holds {len(scores)} numbers; it needs 2")
    first, second = (math.nan if score is None else score for score in scores)
    if not min(first, second) >= 0:
        return Verdict(None, UNREAD)
    return Verdict(TIE if first == second else A if first > second else B, None, (first, second))


def _reviewed(text: str, parser: str) -> Verdict:
    # Asked for 1 to 10, the reviewers of 2023 gave 0 as well.
    form = VerdictFormat.model_validate(
        {"kind": "score_line", "parser": parser, "scale": (0.0, 10.0)}
    )
    return read_verdict(form, text)


def _refuse_several_pairs(rows: Iterable[Row], file: str | Path) -> None:
    pairs: dict[object, object] = {}
    for row in rows:
        pair = (row.get("answer1_id"), row.get("answer2_id"))
        if pairs.setdefault(row.get("question_id"), pair) != pair:
            raise DataError(
                f"{file}: reviews several pairs of answers to question {row.get('question_id')}; "
                "split it by pair of models, or say whose each answer is"
            )


def _annotation(row: Row, number: int, file: str | Path, numbers: Mapping[str, int]) -> JudgmentRow:
    get = _getter(row, number, file)
    preference = _number(row.get("preference"))
    read = preference is not None and preference != -1
    if read and not (preference == 0 or 1 <= (preference or 0) <= 2):
        raise DataError(
            f"{file}, row {number + 1}: preference is {preference:g}; it lies between 1 (the "
            "baseline) and 2 (the model), and 0 is a tie"
        )
    score = None if not read else (preference or 1.5) - 1
    return JudgmentRow(
        model=str(get("generator_2")),
        question=_instruction_of(row, number, file, numbers),
        turn=1,
        judge=str(row.get("annotator", "")),
        text=_reply(row.get("raw_completion")),
        value=score,
        score=score,
        order=None if score is None else _order(row.get("raw_completion"), score),
        baseline=str(get("generator_1")),
        problem=None if read else UNREAD,
        lengths=_lengths(row),
    )


def _instruction_of(row: Row, number: int, file: str | Path, numbers: Mapping[str, int]) -> str:
    """AlpacaEval's number of an instruction: as the row says, by its text, or the row's own."""
    text = row.get("instruction")
    if "index" in row or text is None or not numbers:
        return _text_of(row.get("index", number))
    if text not in numbers:
        raise DataError(
            f"{file}, row {number + 1}: its instruction is none of the task's; name another task, "
            "or none"
        )
    return str(numbers[text])


def _order(completion: Any, score: float) -> Order | None:
    """In which order the answers were shown, by which reading of the probabilities is the score.

    The tokens m and M name the answers in the order shown; None where that cannot be told.
    """
    try:
        tops = completion["logprobs"]["content"][0]["top_logprobs"]
        second = weighted_preference({top["token"]: top["logprob"] for top in tops})
    except (KeyError, IndexError, TypeError):
        return None
    if second is None or abs(second - 0.5) < 1e-3:
        return None
    return "ba" if abs(second - score) < abs(1 - second - score) else "ab"


def _lengths(row: Row) -> tuple[int, int] | None:
    """Characters of the model's answer and the baseline's."""
    if isinstance(row.get("output_2"), str) and isinstance(row.get("output_1"), str):
        return len(row["output_2"]), len(row["output_1"])
    found = [_number(row.get(name)) for name in ("len_2", "len_1")]
    return None if None in found else (int(found[0] or 0), int(found[1] or 0))


def _reply(completion: Any) -> str | None:
    """The judge's words, which AlpacaEval keeps as text or in the server's form."""
    return str(completion.get("text", "")) if isinstance(completion, dict) else completion


def _numbered(rows: Iterable[JudgmentRow]) -> list[JudgmentRow]:
    """Rows that were asked the same get numbers; a failed try does not use one up."""
    read: Counter[tuple[object, ...]] = Counter()
    found = []
    for row in rows:
        found.append(replace(row, repeat=read[row.asked]))
        read[row.asked] += row.value is not None
    return found


def _getter(row: Row, number: int, file: str | Path) -> Callable[[str], Any]:
    def get(name: str) -> Any:
        if row.get(name) is None:
            raise DataError(
                f"{file}, row {number + 1}: has no {name}; complete the row, or drop it"
            )
        return row[name]

    return get


def _judge(judge: object) -> tuple[str, str]:
    """The judge's name and the rubric that its prompt is part of: ["gpt-4", "single-v1"]."""
    name, *prompts = judge if isinstance(judge, list) else [judge or ""]
    prompt = str(prompts[0]) if prompts else ""
    for kind, rubric in (("single", "mt_bench"), ("pair", "mt_bench-pairwise")):
        if prompt.startswith(kind):
            return str(name), rubric
    return str(name), prompt


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _text_of(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

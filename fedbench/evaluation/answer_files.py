"""Files of answers that exist already, read as the tools that write them leave them.

A row says which item it answers and what the answer is. Read are

* our own rows: ``{"doc_id": 0, "completion": "..."}``;
* HumanEval's and EvalPlus' ``samples.jsonl``: ``{"task_id", "completion" or "solution"}``;
* FastChat's answers: ``{"question_id", "choices": [{"index", "turns": [...]}]}``;
* lm-eval's ``samples_<task>_<date>.jsonl``: ``{"doc_id", "doc", "resps", "filter", ...}``;
* AlpacaEval's outputs: ``[{"instruction", "output"}]``;

as JSON lines or, in a file named ``.json``, as one list; either may be gzipped.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.errors import DataError
from fedbench.generation.backend import Answer

ABSENT = Answer(error="no answer in the file")
TEXTS = ("output", "response", "solution", "prediction", "text")
"""Where other tools than HumanEval keep a completion."""


@dataclass(frozen=True)
class Given:
    """One answer of a file: its turns, or the log-likelihoods of the choices."""

    where: str
    """File and line, for messages."""
    turns: tuple[str, ...] = ()
    loglikelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    """For each choice, whether it is what greedy decoding would have said."""


@dataclass(frozen=True)
class AnswerRow:
    """One row of a file of answers."""

    where: str
    """File and line, for messages."""
    fields: Mapping[str, Any]
    """The row itself, which names its item in some way."""
    answers: tuple[Given, ...]
    """Several are samples of the same item."""


def read_answer_file(file: Path) -> list[AnswerRow]:
    """The rows of a file of answers.

    lm-eval writes a row per filter with the same responses; those of the first filter are kept.

    Raises:
        DataError: the file cannot be read, or a row is damaged or holds no answer.
    """
    rows: list[AnswerRow] = []
    first_filter: Any = None
    for where, fields in _rows(file):
        if not isinstance(fields, dict):
            raise DataError(
                f"{where}: is no object with named fields; write "
                '{"doc_id": 0, "completion": "..."}'
            )
        if "resps" in fields:
            first_filter = fields.get("filter") if first_filter is None else first_filter
            if fields.get("filter") != first_filter:
                continue
        rows.append(AnswerRow(where, fields, _answers(fields, where)))
    if not rows:
        raise DataError(f"{file}: holds no answers; give one JSON object a line")
    return rows


def _answers(fields: Mapping[str, Any], where: str) -> tuple[Given, ...]:
    if "resps" in fields:
        return _from_lm_eval(fields["resps"], where)
    if "completion" not in fields and "choices" in fields:
        return _from_fastchat(fields["choices"], where)
    return (Given(where, (_completion(fields, where),)),)


def _completion(fields: Mapping[str, Any], where: str) -> str:
    """`completion` wherever there is one: its neighbours may be the reference or a comment."""
    present = ["completion"] if "completion" in fields else [n for n in TEXTS if n in fields]
    if not present:
        raise DataError(
            f'{where}: holds no answer; write it as "completion" beside the doc_id of its item'
        )
    if len(present) > 1:
        raise DataError(
            f"{where}: {' and '.join(present)} may both be the answer; call the right one "
            "completion"
        )
    return _text(fields[present[0]], f"{where}: {present[0]}")


def _from_fastchat(choices: Any, where: str) -> tuple[Given, ...]:
    """Each choice is a sample of a whole conversation."""
    if not isinstance(choices, list) or not choices:
        raise DataError(f'{where}: choices are no list of {{"index", "turns"}}; repair the row')
    given = []
    for choice in choices:
        turns = choice.get("turns") if isinstance(choice, dict) else None
        if not isinstance(turns, list) or not turns:
            raise DataError(f'{where}: a choice has no "turns"; repair the row')
        given.append(Given(where, tuple(_text(turn, f"{where}: a turn") for turn in turns)))
    return tuple(given)


def _from_lm_eval(resps: Any, where: str) -> tuple[Given, ...]:
    """Responses by request and repeat: texts of one request, or a log-likelihood per choice."""
    if not isinstance(resps, list) or not all(isinstance(own, list) and own for own in resps):
        raise DataError(f"{where}: resps are no lists of responses, one per request; repair it")
    if len(resps) == 1 and all(isinstance(repeat, str) for repeat in resps[0]):
        return tuple(Given(where, (repeat,)) for repeat in resps[0])
    pairs = [_loglikelihood(own[0], where) for own in resps]
    numbers, greedy = zip(*pairs, strict=True)
    return (Given(where, loglikelihoods=numbers, greedy=greedy),)


def _loglikelihood(response: Any, where: str) -> tuple[float, bool]:
    """lm-eval's (log-likelihood, is greedy), which its files hold as texts."""
    try:
        number = float(response[0]) if isinstance(response, list) else math.nan
    except (ValueError, TypeError, IndexError):
        number = math.nan
    if math.isnan(number):
        raise DataError(
            f"{where}: resps hold neither one completion nor a log-likelihood per choice; "
            "score the task that the file was written for"
        )
    return number, len(response) > 1 and str(response[1]) == "True"


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(
            f"{what} is {kind} and not text; repair it, or leave rows out that have no answer"
        )
    return value


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    text = _content(file)
    named = file.with_suffix("") if file.suffix == ".gz" else file
    if named.suffix == ".json" and text.lstrip().startswith("["):
        entries = _parsed(text, str(file))
        yield from ((f"{file}: entry {n}", entry) for n, entry in enumerate(entries, start=1))
        return
    # Not splitlines(): texts may hold characters that Python takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", _parsed(line, f"{file}:{number}")


def _content(file: Path) -> str:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); check the path and the file") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON ({error}); repair it") from error

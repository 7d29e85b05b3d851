"""Rows become examples, as a description says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import jinja2

from fedbench.data.conversations import best_paths, read_messages
from fedbench.data.description import (
    DatasetConfig,
    PromptSplit,
    cell_of,
    is_text,
    text_of,
    value_of,
)
from fedbench.data.example import Example, normalise
from fedbench.data.preferences import Pair, pair_of, read_transcripts
from fedbench.data.rows import Row
from fedbench.data.templates import Turn
from fedbench.errors import DataError

UNPAIRED = "pairs are left out: their two sides answer different questions"
UNANSWERED = "conversations are left out: nobody answers in them"
EMPTY = "rows are left out: their answer is empty"
CUT = "conversations end with a question that nobody answers: it is left out"
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Outcome(NamedTuple):
    """What became of one row."""

    example: Example | None
    remark: str = ""
    """What was left out of it, to be counted; empty where nothing was."""


def read_rows(config: DatasetConfig, rows: Sequence[Row]) -> Iterator[Outcome]:
    """What becomes of the rows that a description wants, in their order.

    Raises:
        DataError: a row lacks a column or has another form than described; names the row.
    """
    seen: set[str] = set()
    for number, row, path in _wanted(config, rows):
        with _naming(config, number):
            if config.distinct is not None:
                shared = repr(value_of(config.distinct, row))
                if shared in seen:
                    continue
                seen.add(shared)
            outcome = _read(config, row, path)
            _check_characters(outcome.example)
            example, split = outcome.example, config.prompt_split
            if example is not None and split is not None and not _is_in(split, example, row):
                continue
        yield outcome


def _wanted(config: DatasetConfig, rows: Sequence[Row]) -> Iterator[tuple[int, Row, list[Row]]]:
    """Number and columns of each row that is kept; with a tree, also the messages of its path."""
    kept: list[tuple[int, Row]] = []
    for number, row in enumerate(rows):
        with _naming(config, number):
            if config.where is None or value_of(config.where, row):
                kept.append((number, row))
    if config.tree is None:
        yield from ((number, row, []) for number, row in kept)
        return
    for position, path in best_paths([row for _, row in kept]):
        number, row = kept[position]
        yield number, {**row, **path[0]}, path


@contextmanager
def _naming(config: DatasetConfig, number: int) -> Iterator[None]:
    """Tell which row it is that cannot be read."""
    where = f"{config.source.label}, row {number}"
    try:
        yield
    except (jinja2.TemplateError, TypeError) as error:
        raise DataError(f"{where}: {error}; correct the column names in its description") from error
    except ValueError as error:
        raise DataError(
            f"{where}: {error}; correct the row, or leave such rows out by `where`"
        ) from error


def _read(config: DatasetConfig, row: Row, path: list[Row]) -> Outcome:
    pair: Pair | None = None
    remark = ""
    if config.chosen is None:
        turns, remark = _answered(_conversation(config, row, path))
        if not turns:
            return Outcome(None, UNANSWERED)
    else:
        pair = _pair(config, row)
        if pair is None:
            return Outcome(None, UNPAIRED)
        turns = pair[0]
    # A pair, or an answer that is marked as wanted or not, says something of silence too.
    if not turns[-1].response and config.chosen is None and config.desirable is None:
        return Outcome(None, EMPTY)
    if config.system and not turns[0].system:
        turns = (replace(turns[0], system=text_of(config.system, row)), *turns[1:])
    example = Example(
        turns,
        label=_optional(config.label, row),
        owner=_optional(config.owner, row),
        rejected=pair[1] if pair else None,
        desirable=None if config.desirable is None else _truth(config.desirable, row),
    )
    return Outcome(example, remark)


def _check_characters(example: Example | None) -> None:
    """Refuse halves of characters, which JSON can say and no tokenizer can read.

    Raises:
        UnicodeEncodeError: a text holds one; a ValueError that says where.
    """
    if example is not None:
        for turn in example.turns:
            for text in (turn.system, turn.instruction, turn.input, turn.response):
                (text or "").encode()
        (example.rejected or "").encode()


def _conversation(config: DatasetConfig, row: Row, path: list[Row]) -> tuple[Turn, ...]:
    """The turns of a row that holds no pair."""
    if config.tree is not None:
        return read_messages(path)
    turns = _prompt(config, row)
    if config.response is None:
        return turns
    return _with_answer(turns, text_of(config.response, row))


def _pair(config: DatasetConfig, row: Row) -> Pair | None:
    assert config.chosen is not None
    assert config.rejected is not None
    if config.transcript is not None:
        return read_transcripts(value_of(config.chosen, row), value_of(config.rejected, row))
    if is_text(config.chosen):
        turns = _with_answer(_prompt(config, row), text_of(config.chosen, row))
        return turns, text_of(config.rejected, row)
    before = [] if config.messages is None else _listed(cell_of(config.messages, row))
    chosen, rejected = (
        read_messages(before + _listed(cell_of(side, row)))
        for side in (config.chosen, config.rejected)
    )
    return pair_of(chosen, rejected)


def _prompt(config: DatasetConfig, row: Row) -> tuple[Turn, ...]:
    if config.messages is not None:
        return read_messages(cell_of(config.messages, row))
    return (Turn(text_of(config.instruction, row), text_of(config.input, row)),)


def _with_answer(turns: tuple[Turn, ...], answer: str) -> tuple[Turn, ...]:
    if turns[-1].response is not None:
        raise ValueError("the messages end with an answer already; they must end with a question")
    return (*turns[:-1], replace(turns[-1], response=answer))


def _answered(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], str]:
    """Without a last question that nobody answers, and a remark where there was one."""
    return (turns, "") if turns[-1].response is not None else (turns[:-1], CUT)


def _listed(messages: Any) -> list[Any]:
    """A list of messages; one message alone stands for a list of it."""
    return list(messages) if isinstance(messages, list | tuple) else [messages]


def _optional(template: str | None, row: Row) -> str | None:
    """The text of a field; None where there is no field or its cell is empty."""
    return None if template is None else text_of(template, row) or None


def _truth(template: str, row: Row) -> bool:
    text = text_of(template, row).strip().lower()
    if text not in _TRUTH:
        raise ValueError(f"desirable is {text!r} and neither true nor false")
    return _TRUTH[text]


def _is_in(split: PromptSplit, example: Example, row: Row) -> bool:
    """Whether an example is in a part; equal questions always have the same answer."""
    text = example.opening if split.by is None else text_of(split.by, row)
    digest = hashlib.sha256((normalise(text) or text).encode()).digest()
    is_test = int.from_bytes(digest[:8], "big") < split.test_size * 2**64
    return is_test == (split.part == "test")

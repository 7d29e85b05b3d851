"""Which rows of a data set a task asks, and what a protocol does to them first.

Rules of protocols are functions of all rows, by name: options shuffled by one random state, the
examples that stand before every question. A row with examples has them in a column `shots`.
"""

from __future__ import annotations

import difflib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedbench.data.rows import Row, Source
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.data_science import ds1000_rows
from fedbench.evaluation.finance_readings import fingpt_numbers
from fedbench.evaluation.numglue import numglue_rows
from fedbench.evaluation.readings import boxed
from fedbench.schema import Part, Positive


class Shots(Part):
    """Examples that stand before every question: rows of another split."""

    source: Source
    by: str | None
    """Column whose value they have in common with the question; null shows all the same."""
    count: Positive


RowRule = Callable[[Sequence[Row]], list[Row]]
Where = Mapping[str, Sequence[str | int]]


def rows_where(rows: Sequence[Row], where: Where, label: str) -> list[Row]:
    """The rows whose columns hold one of the wanted values.

    Raises:
        DataError: there is none.
    """
    kept = [row for row in rows if all(row.get(name) in where[name] for name in where)]
    if not kept:
        wanted = "; ".join(f"{name}: {', '.join(map(str, where[name][:5]))}" for name in where)
        raise DataError(f"{label}: no row has {wanted}; correct where")
    return kept


def subset_of(row: Row, column: str, label: str) -> str:
    """The part that a row belongs to.

    Raises:
        DataError: the row has no such column.
    """
    if column not in row:
        known = ", ".join(map(repr, row))
        raise DataError(f"{label}: has no column {column!r}, only {known}; correct group_by")
    return str(row[column])


def with_shots(rows: Sequence[Row], examples: Sequence[Row], shots: Shots) -> list[Row]:
    """The rows, each with the first examples that belong to it.

    Raises:
        DataError: there are too few for a row.
    """
    by_value: dict[Any, list[Row]] = defaultdict(list)
    for example in examples:
        by_value[_value(example, shots)].append(example)
    for row in rows:
        if len(by_value[_value(row, shots)]) < shots.count:
            raise DataError(
                f"{shots.source.label}: fewer than {shots.count} examples have {shots.by} "
                f"{_value(row, shots)!r}; lower shots.count or correct shots.by"
            )
    return [row | {"shots": by_value[_value(row, shots)][: shots.count]} for row in rows]


def _value(row: Row, shots: Shots) -> Any:
    return None if shots.by is None else row.get(shots.by)


def crass_options(rows: Sequence[Row]) -> list[Row]:
    """CRASS's CSV as instruct-eval reads it: by position, its first option is the right one.

    The options of all rows are shuffled by one random state with seed 0, in file order. Source:
    https://github.com/declare-lab/instruct-eval (crass.py).
    """
    generator = random.Random(0)
    read = []
    for row in rows:
        _, _, premise, question, *others = row.values()
        options = [text.strip() for text in others[:4] if text and text.strip()]
        if not options:
            raise DataError(f"CRASS: {question!r} has no options; give its CSV file as published")
        answer = options[0]
        generator.shuffle(options)
        shown = {"premise": premise.strip(), "question": question.strip(), "options": options}
        read.append(shown | {"answer": "ABCD"[options.index(answer)]})
    return read


def bbh_shots(rows: Sequence[Row]) -> list[Row]:
    """The first three rows of each of BIG-Bench Hard's tasks before its other rows.

    Source: https://github.com/declare-lab/instruct-eval (bbh.py).
    """
    by_task: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    return [row | {"shots": own[:3]} for own in by_task.values() for row in own[3:]]


def drop_shots(rows: Sequence[Row]) -> list[Row]:
    """Rows with one answer, behind three that are drawn with seed 0; without their passages.

    Source: https://github.com/declare-lab/instruct-eval (drop.py).
    """
    single = [row for row in rows if len({s.strip() for s in row["answers_spans"]["spans"]}) == 1]
    shots = random.Random(0).sample(single, 3)
    shown = {row["passage"] for row in shots}
    return [row | {"shots": shots} for row in single if row["passage"] not in shown]


def boxed_solutions(rows: Sequence[Row]) -> list[Row]:
    r"""Rows of MATH with what their solution has in ``\boxed{}`` as their answer.

    Raises:
        DataError: a solution has no box.
    """
    answers = [boxed(row["solution"], ()) for row in rows]
    if None in answers:
        raise DataError(f"MATH, row {answers.index(None)}: its solution has nothing in \\boxed{{}}")
    return [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]


ROW_RULES: dict[str, RowRule] = {
    rule.__name__: rule
    for rule in (
        *(crass_options, bbh_shots, drop_shots, boxed_solutions),
        *(fingpt_numbers, ds1000_rows, numglue_rows),
    )
}


def get_row_rule(name: str) -> RowRule:
    """The rule of that name.

    Raises:
        ConfigError: there is none; the nearest is suggested.
    """
    if name in ROW_RULES:
        return ROW_RULES[name]
    near = difflib.get_close_matches(name, ROW_RULES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown prepare {name!r}: {hint}known are {', '.join(ROW_RULES)}")

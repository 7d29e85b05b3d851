"""The texts that an item chooses among, where items have choices of their own."""

from __future__ import annotations

from collections.abc import Sequence

from fedbench.data.description import value_of
from fedbench.data.rows import Row
from fedbench.errors import DataError
from fedbench.evaluation.rendering import RENDERING_ERRORS, reason_of


def choices_of(
    row: Row, expression: str | None, labels: Sequence[str], reference: str, where: str
) -> tuple[str, ...]:
    """The choices of a row, by position named by the labels; the labels where it has none.

    Args:
        row: the item's row.
        expression: a column, or a Jinja expression over columns, that gives a list of texts.
        labels: names of the choices; a row may have fewer.
        reference: the label of the right one.
        where: task, data set and row, for messages.

    Raises:
        DataError: the row has no such list, or the reference is not among its choices.
    """
    if expression is None:
        return tuple(labels)
    try:
        found = value_of(expression, row)
    except RENDERING_ERRORS as error:
        raise DataError(f"{where}: choices: {reason_of(error)}") from error
    if not isinstance(found, list | tuple) or not all(isinstance(c, str) and c for c in found):
        raise DataError(
            f"{where}: choices are no list of texts; name a column or an expression of one"
        )
    if not 2 <= len(found) <= len(labels):
        raise DataError(
            f"{where}: choices are {len(found)}, where labels name 2 to {len(labels)}; add labels"
        )
    if reference not in labels[: len(found)]:
        raise DataError(
            f"{where}: reference {reference!r} names none of its {len(found)} choices; correct the "
            "row or the task's reference"
        )
    return tuple(found)

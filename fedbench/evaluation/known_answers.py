"""Answers that a data set holds beside its questions: of reference models, and of baselines."""

from __future__ import annotations

from collections.abc import Mapping

from fedbench.data.description import Expression, value_of
from fedbench.data.rows import Row, Source, load_rows
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.rendering import RENDERING_ERRORS, reason_of
from fedbench.schema import Part

Turns = tuple[str, ...]


class KnownAnswers(Part):
    """Where somebody's answers to a task's questions are."""

    name: str
    """Whose they are: ``gpt-4``."""
    source: Source
    by: str
    """The column that says which question is answered, under the name that the task's rows give
    it: ``question_id``."""
    turns: Expression
    """A column, or a Jinja expression over columns, that gives the answer to each turn as a list,
    or the only answer as text."""

    def load(self, mirror: str | None = None) -> dict[str, Turns]:
        """The answers by their question's key.

        Raises:
            DataError: the rows cannot be had, are not those pinned, or hold no such answers.
        """
        rows = load_rows(self.source, mirror)
        return {str(row[self.by]): self._turns(row, number) for number, row in enumerate(rows)}

    def _turns(self, row: Row, number: int) -> Turns:
        where = f"{self.source.label}, row {number}"
        found = texts_of(row, self.turns, where, "answers of " + self.name)
        return found


def texts_of(row: Row, expression: str, where: str, what: str) -> Turns:
    """The texts that a row holds, one per turn; a single text is the only turn.

    Raises:
        DataError: the row holds none.
    """
    try:
        found = value_of(expression, row)
    except RENDERING_ERRORS as error:
        raise DataError(f"{where}: {what}: {reason_of(error)}") from error
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list | tuple) or not texts:
        raise DataError(f"{where}: {what}: {expression} gives no list of texts; correct it")
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: {what}: {expression} gives more than texts; correct it")
    return tuple(texts)


def answer_to(keys: Mapping[str, str], answers: Mapping[str, Turns], by: str) -> Turns:
    """The answer to the question with these keys; nothing where there is none.

    Raises:
        ConfigError: the question has no such key.
    """
    if by not in keys:
        known = ", ".join(keys) or "none"
        raise ConfigError(
            f"the task's rows have no column {by!r} that tells them apart, only {known}; correct by"
        )
    return answers.get(keys[by], ())

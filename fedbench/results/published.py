"""Numbers that others have published, each with its source, to stand beside our own.

``published.yaml`` in a leaderboard's directory::

    sources:
      table5: {text: "Ye et al. 2024, Table 5", url: https://..., how: read off a figure, ±0.005}
    rows:
      - {row: FedAvg, method: fedavg, source: table5, scores: {fpb: {accuracy: 0.85}}}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from fedbench.metrics import find_metric
from fedbench.schema import Part, read_yaml, validated

PUBLISHED_FILE = "published.yaml"


class PublishedSource(Part):
    """Where numbers were read."""

    text: str
    """What a reader would look for: authors, year, table."""
    url: str = ""
    how: str = ""
    """What stands between the print and us: read off a figure, quoted by a third party."""


class PublishedRow(Part):
    """Numbers of one method from one source."""

    row: str
    """What the source calls it; equal names make one row."""
    method: str | None = None
    """The method of the run file that repeats it; None where none does."""
    source: str
    scores: Annotated[dict[str, dict[str, float]], Field(min_length=1)]
    """Task key -> metric -> value, shares between 0 and 1."""

    @property
    def numbers(self) -> list[tuple[str, str, float]]:
        """(task key, metric, value) of each."""
        return [
            (task, metric, value)
            for task, metrics in self.scores.items()
            for metric, value in metrics.items()
        ]


class PublishedNumber(Part):
    """One number with the mark of its source."""

    value: float
    source: str


class Published(Part):
    """Everything that a leaderboard repeats from elsewhere."""

    sources: dict[str, PublishedSource]
    rows: tuple[PublishedRow, ...] = ()
    missing: tuple[str, ...] = ()
    """Sentences on what could not be found."""

    @model_validator(mode="after")
    def _with_sources(self) -> Published:
        for position, row in enumerate(self.rows):
            if row.source not in self.sources:
                raise ValueError(
                    f"rows.{position}: source {row.source!r} is not among sources; add it there"
                )
        return self

    @model_validator(mode="after")
    def _with_one_possible_number_a_cell(self) -> Published:
        """Of two numbers one would not be shown; a percentage, as a hundred times itself."""
        sources: dict[tuple[str, str, str], str] = {}
        for position, row in enumerate(self.rows):
            for task, metric, value in row.numbers:
                where = f"rows.{position}: {metric} of {row.row!r} on {task}"
                if flaw := _flaw(metric, value):
                    raise ValueError(f"{where} is {value:g}; {flaw}")
                cell = (row.row, task, metric)
                if cell in sources:
                    raise ValueError(
                        f"{where} is given twice, by {sources[cell]} and by {row.source}; call the "
                        "rows by different names, or keep one number"
                    )
                sources[cell] = row.source
        return self

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(task key, metric) of every number, in order of first appearance."""
        return list(
            dict.fromkeys((task, metric) for row in self.rows for task, metric, _ in row.numbers)
        )

    @property
    def labels(self) -> list[str]:
        """The rows by name, in order of first appearance."""
        return list(dict.fromkeys(row.row for row in self.rows))

    def method_of(self, label: str) -> str | None:
        """The method of the run file that repeats a row."""
        return next((r.method for r in self.rows if r.row == label and r.method), None)

    def number(self, label: str, task: str, metric: str) -> PublishedNumber | None:
        """A row's number; None where its source has none."""
        for row in self.rows:
            value = row.scores.get(task, {}).get(metric)
            if row.row == label and value is not None:
                return PublishedNumber(value=value, source=row.source)
        return None

    def mark(self, source: str) -> str:
        """The letter under which a source is listed."""
        return _letter(list(self.sources).index(source))

    @property
    def marked_sources(self) -> Sequence[tuple[str, PublishedSource]]:
        """The sources with their letters."""
        return [(_letter(n), source) for n, source in enumerate(self.sources.values())]


def read_published(directory: Path) -> Published | None:
    """The published numbers of a leaderboard; None where it has none.

    Raises:
        ConfigError: the file is wrong; names file and field.
    """
    file = directory / PUBLISHED_FILE
    if not file.is_file():
        return None
    return validated(Published, read_yaml(file), str(file))


def _flaw(metric: str, value: float) -> str:
    """What to do about a number that its metric cannot have; empty where it can."""
    known = find_metric(metric)
    low, high = known.unit_range if known else (-math.inf, math.inf)
    if low <= value <= high and math.isfinite(value):
        return ""
    if (low, high) == (0.0, 1.0):
        return "give a share between 0 and 1, such as 0.412 for 41.2 %"
    return f"give a number from {low:g} to {high:g}"


def _letter(position: int) -> str:
    return chr(ord("a") + position)

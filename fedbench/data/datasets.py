"""Training data by name: rows become examples of turns.

The table is ``tasks/datasets.yaml``; a user's own data set is a YAML file of the same shape, given
by path, or a new entry there. Columns are named in Jinja, so no code is needed.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import jinja2
from pydantic import AfterValidator

from fedbench import resources
from fedbench.data.rows import Row, Source, load_rows
from fedbench.data.templates import Turn
from fedbench.errors import ConfigError, DataError
from fedbench.schema import Part, read_yaml, validated

SHINGLE = 5


@dataclass(frozen=True)
class Example:
    """One training row: turns with their answers."""

    turns: tuple[Turn, ...]
    label: str | None = None
    """What a partition may go by; None where the data set has no label."""

    @property
    def text(self) -> str:
        """What overlaps are looked for in: the inputs, or the instructions where there is none."""
        return "\n".join(
            turn.input or turn.instruction or turn.response or "" for turn in self.turns
        )


def _checked_jinja(text: str) -> str:
    try:
        jinja2.Environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is not valid Jinja ({error})") from error
    return text


Jinja = Annotated[str, AfterValidator(_checked_jinja)]
"""Text in which columns are named in braces."""


class DatasetConfig(Part):
    """A data set and how its rows become turns (Jinja over the columns)."""

    description: str = ""
    license: str = "unknown"
    source: Source
    instruction: Jinja = ""
    input: Jinja = ""
    response: Jinja
    label: Jinja | None = None


def load_examples(name: str, mirror: str | None = None, limit: int | None = None) -> list[Example]:
    """The examples of a named data set, in row order.

    Raises:
        ConfigError: unknown name or wrong description.
        DataError: the rows cannot be had, or lack a column.
    """
    config = dataset_config(name)
    rows = load_rows(config.source, mirror)[:limit]
    fields = {
        field: _compiled(template)
        for field in ("instruction", "input", "response", "label")
        if (template := getattr(config, field)) is not None
    }
    return [_example(fields, row, f"{config.source.label}, row {n}") for n, row in enumerate(rows)]


def dataset_config(name: str) -> DatasetConfig:
    """The description of a data set: an entry of the table, or a YAML file.

    Raises:
        ConfigError: there is none of that name; the nearest is suggested.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return validated(DatasetConfig, read_yaml(Path(name)), name)
    table = dataset_table()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown data set {name!r}: {hint}`fedbench list datasets` shows them all"
        )
    return table[name]


@lru_cache(maxsize=1)
def dataset_table() -> dict[str, DatasetConfig]:
    """All data sets of ``tasks/datasets.yaml``."""
    file = resources.directory("tasks") / "datasets.yaml"
    return {
        name: validated(DatasetConfig, raw, f"{file}: {name}")
        for name, raw in read_yaml(file).items()
    }


def normalise(text: str) -> str:
    """Lower case, without URLs, punctuation and repeated space: what makes two texts the same."""
    text = re.sub(r"https?://\S+|www\.\S+", " ", text.lower())
    return " ".join(re.findall(r"\w+", text))


def text_hash(text: str) -> str:
    """Short hash of a text as it stands."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_overlaps(texts: Sequence[str], scored: Sequence[str]) -> set[int]:
    """Positions of texts that share a scored item: that occur within one, or contain one.

    Compared in normalised form, in whole words. A text shorter than `SHINGLE` words must equal the
    other: a common phrase such as "shares rise" occurs within many sentences without being one.
    """
    inner = [_padded(text) for text in texts]
    outer = [_padded(text) for text in scored]
    within = {own for own, _ in _occurrences(inner, outer)}
    containing = {own for _, own in _occurrences(outer, inner)}
    return within | containing


def _padded(text: str) -> str:
    return f" {normalise(text)} "


def _occurrences(needles: Sequence[str], haystacks: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs (needle, haystack) in which the first occurs within the second."""
    wanted: dict[tuple[str, ...], list[int]] = {}
    for number, needle in enumerate(needles):
        words = needle.split()
        if words:
            # A short text is found by all of its words, a long one by its first few.
            wanted.setdefault(tuple(words[:SHINGLE]), []).append(number)
    for position, haystack in enumerate(haystacks):
        words = haystack.split()
        keys = {tuple(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1)}
        for key in keys | {tuple(words)}:
            for number in wanted.get(key, ()):
                if needles[number] in haystack:
                    yield number, position


def _example(fields: dict[str, jinja2.Template], row: Row, where: str) -> Example:
    try:
        values = {field: template.render(row) for field, template in fields.items()}
    except (jinja2.UndefinedError, TypeError) as error:
        raise DataError(f"{where}: {error}; correct the column names in its description") from error
    turn = Turn(values["instruction"], values["input"], values["response"])
    return Example((turn,), values.get("label"))


@lru_cache(maxsize=256)
def _compiled(template: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)

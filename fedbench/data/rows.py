"""Rows of a data set: from a file, the local mirror, or the hub; verified against their pin.

A pin is by content: the number of rows and a hash over the columns that are used. A mirror that
gives the same rows is as good as the hub, and a data set that changed is refused in words.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedbench.data import headlines
from fedbench.errors import DataError, MissingExtraError
from fedbench.schema import Fraction, Part

MIRROR_VARIABLE = "FEDBENCH_DATA"
INDEX = "MANIFEST.json"
Row = dict[str, Any]

GENERATED: dict[str, Callable[[], dict[str, list[dict[str, str]]]]] = {
    "fedbench/headlines": headlines.generate,
}


class RandomSplit(Part):
    """The part that ``datasets.Dataset.train_test_split`` calls test, or what it leaves."""

    seed: int
    test_size: Fraction
    part: Literal["train", "test"] = "test"


class Source(Part):
    """Where the rows of a data set are, and what they must be."""

    path: str
    """Hub id, name within the mirror, or a .jsonl, .json, .csv or .parquet file (also .gz).

    A file may begin with a variable of the environment: ``$NAME/rows.json``; where that is not set,
    the rest is looked for in the mirror. A JSON object of lists, one per client, gives rows with a
    column `client`.
    """
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    """Commit of the hub repository; None where it could not be looked up."""
    random_split: RandomSplit | None = None
    columns: tuple[str, ...]
    """The columns that are used, and hashed."""
    rows: int | None = None
    """Expected number of rows of the split, before `random_split`."""
    sha256: str | None = None
    """Expected `content_hash` of the split."""

    @property
    def label(self) -> str:
        """The data set in words, for messages."""
        if is_data_file(self.path):
            return self.path
        return " ".join(filter(None, [self.path, self.config, f"split {self.split}"]))


@dataclass(frozen=True)
class Mirror:
    """A directory that stands in for the hub, read through its index."""

    directory: Path
    entries: tuple[dict[str, Any], ...]

    def find(self, source: Source) -> dict[str, Any] | None:
        """The index entry of a source; None when the mirror does not hold it."""
        for entry in self.entries:
            named = source.path in (entry.get("hub_dataset"), entry.get("name"))
            right_config = source.config is None or entry.get("hub_config") == source.config
            if named and right_config and entry.get("split") == source.split:
                return entry
        return None

    def copy_of(self, path: str) -> dict[str, Any] | None:
        """The index entry of rows that were taken from a file of this path, and from no other."""
        for entry in self.entries:
            origins = [str(origin.get("path")) for origin in entry.get("sources") or ()]
            if len(origins) == 1 and f"/{origins[0]}".endswith(f"/{path}"):
                return entry
        return None


def load_rows(source: Source, mirror: str | None = None, *, cut: bool = True) -> list[Row]:
    """The rows of a source, verified, in their order.

    Args:
        source: where they are.
        mirror: directory of the local mirror; FEDBENCH_DATA when None.
        cut: apply ``random_split``; False gives the whole split.

    Raises:
        DataError: rows are missing, damaged, empty, lack a column, or are not those pinned.
    """
    rows, origin = _read(source, mirror)
    if not rows:
        raise DataError(f"{origin}: holds no rows; give a data set with at least one")
    for column in source.columns:
        if not any(column in row for row in rows):
            raise DataError(
                f"{origin}: has no column {column!r}, only {', '.join(map(repr, rows[0]))}; "
                "correct the column names or choose another file"
            )
    _verify(source, rows, origin)
    if source.random_split is None or not cut:
        return rows
    return [rows[index] for index in _random_split(len(rows), source.random_split)]


def content_hash(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """SHA-256 over the given columns of all rows, in order, as canonical JSON."""
    digest = hashlib.sha256()
    for row in rows:
        values = [row.get(column) for column in columns]
        digest.update(json.dumps(values, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def open_mirror(directory: str | None) -> Mirror | None:
    """The mirror at a directory or at FEDBENCH_DATA; None where neither is set.

    Raises:
        DataError: the directory has no readable index.
    """
    place = directory or os.environ.get(MIRROR_VARIABLE)
    return _open_mirror(Path(place)) if place else None


@lru_cache(maxsize=4)
def _open_mirror(directory: Path) -> Mirror:
    index = directory / INDEX
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{index}: there is no such file; set data.mirror or {MIRROR_VARIABLE} to a directory "
            f"with a {INDEX}, or unset both to use the hub"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{index}: cannot be read ({error}); it must be a JSON list") from error
    if not isinstance(entries, list):
        raise DataError(f"{index}: must be a JSON list of files with hub_dataset, split and file")
    return Mirror(directory, tuple(entries))


def _read(source: Source, mirror_directory: str | None) -> tuple[list[Row], str]:
    """Rows, and where they came from in words."""
    if source.path in GENERATED:
        return list(GENERATED[source.path]()[source.split]), source.label
    if is_data_file(source.path):
        file = _located(source.path, mirror_directory)
        return _read_file(file), str(file)
    mirror = open_mirror(mirror_directory)
    entry = mirror.find(source) if mirror else None
    if mirror and entry:
        file = mirror.directory / entry["file"]
        return _read_file(file, entry.get("sha256")), str(file)
    return _read_hub(source, mirror), source.label


def _located(path: str, mirror_directory: str | None) -> Path:
    """The file of a path that may begin with a variable of the environment."""
    if not path.startswith("$"):
        return Path(path)
    variable, _, rest = path[1:].partition("/")
    directory = os.environ.get(variable)
    if directory:
        return Path(directory) / rest
    place = mirror_directory or os.environ.get(MIRROR_VARIABLE)
    if place and (Path(place) / rest).is_file():
        return Path(place) / rest
    mirror = open_mirror(mirror_directory) if place and (Path(place) / INDEX).is_file() else None
    if mirror and (entry := mirror.copy_of(rest)):
        return mirror.directory / str(entry["file"])
    raise DataError(
        f"{path}: the environment variable {variable} is not set"
        + (f" and the mirror {place} does not hold {rest}" if place else "")
        + f"; set {variable} to the directory that holds {rest}"
    )


def _read_file(file: Path, sha256: str | None = None) -> list[Row]:
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{file}: is not the file of the mirror's index (sha256 differs); fetch it again"
        )
    try:
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        return _parse(data, file)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(f"{file}: is damaged ({error}); fetch it again or repair it") from error


def _parse(data: bytes, file: Path) -> list[Row]:
    match _format_of(file):
        case ".jsonl":
            rows = _json_lines(data.decode("utf-8-sig"))
        case ".json":
            rows = _rows_by_client(_json(data.decode("utf-8-sig")))
        case ".csv":
            rows = _csv(data.decode("utf-8-sig"))
        case _:
            import pyarrow.parquet

            # Not through pandas, which turns a whole number beside an empty cell into a float.
            rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it holds something else than a list of rows with named columns")
    return rows


def _json(text: str) -> Any:
    """The value that a text is; the rows of JSON lines, which many data sets call .json too."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _json_lines(text)


def _json_lines(text: str) -> list[Any]:
    # Not splitlines(): texts may hold characters that Python takes for line ends.
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
    return rows


def _csv(text: str) -> list[Row]:
    head = text.partition("\n")[0]
    mark = ";" if head.count(";") > head.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
    rows: list[Row] = []
    for row in reader:
        if reader.restkey in row:
            raise ValueError(
                f"line {reader.line_num} has more cells than the header; quote those that hold "
                f"{mark!r}"
            )
        rows.append(row)
    return rows


def _rows_by_client(content: Any) -> Any:
    """Rows of an object of lists, one per client, as FedLLM-Bench has them; else the content.

    A row that is a list is a conversation (Ye et al. 2024, https://arxiv.org/abs/2406.04845).
    """
    if not isinstance(content, dict) or not all(isinstance(own, list) for own in content.values()):
        return content
    return [
        {"client": client, "conversations": row}
        if isinstance(row, list)
        else ({"client": client, **row} if isinstance(row, dict) else row)
        for client, own in content.items()
        for row in own
    ]


def is_data_file(path: str) -> bool:
    """Whether a path names a file of rows by its ending, and not a data set of the hub."""
    return _format_of(Path(path)) is not None


def _format_of(file: Path) -> str | None:
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    return suffix if suffix in (".jsonl", ".json", ".csv", ".parquet") else None


def _read_hub(source: Source, mirror: Mirror | None) -> list[Row]:
    where = f"the mirror {mirror.directory} does not hold it and " if mirror else ""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"loading {source.label} from the hub", "train") from error
    try:
        loaded = datasets.load_dataset(
            source.path, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        # What `datasets` raises for no network, no such data set, no such split, or a script.
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{source.label}: {where}the hub did not give it ({reason}); set data.mirror or "
            f"{MIRROR_VARIABLE} to a mirror that holds it, or check network and access"
        ) from error
    if source.revision is None and source.sha256 is None:
        logging.getLogger(__name__).warning(
            "%s: neither a revision nor the content is pinned; the hub may change it", source.label
        )
    return [dict(row) for row in loaded]


def _verify(source: Source, rows: Sequence[Row], origin: str) -> None:
    if source.rows is not None and len(rows) != source.rows:
        raise DataError(
            f"{origin}: has {len(rows)} rows where {source.rows} are pinned; "
            "this is another version of the data set, its scores would not compare"
        )
    if source.sha256 is not None and content_hash(rows, source.columns) != source.sha256:
        raise DataError(
            f"{origin}: its columns {', '.join(source.columns)} are not the pinned content; "
            "this is another version of the data set, its scores would not compare"
        )


def _random_split(num_rows: int, rule: RandomSplit) -> list[int]:
    """Row indices as ``datasets.Dataset.train_test_split(test_size, seed)`` draws them."""
    order = np.random.default_rng(rule.seed).permutation(num_rows)
    num_test = math.ceil(rule.test_size * num_rows)
    chosen = order[:num_test] if rule.part == "test" else order[num_test:]
    return [int(index) for index in chosen]

"""Rows of a file that a user names."""

from __future__ import annotations

import math
from pathlib import Path

from fedbench.data.rows import Row, Source, is_data_file, load_rows
from fedbench.errors import DataError


def turn_of(row: Row, where: str) -> int:
    """Which turn a row is about; the first where it does not say.

    Spreadsheets and pandas write whole numbers as 1.0 where others of the column are missing.

    Raises:
        DataError: it is no whole number from 1.
    """
    said = row.get("turn")
    if said is None or said == "":
        return 1
    wrong = DataError(f"{where}: turn is {said!r}; write 1, 2 and so on, or leave it out")
    try:
        number = float(str(said))
    except ValueError:
        raise wrong from None
    if math.isnan(number):
        return 1
    if not number.is_integer() or number < 1:
        raise wrong
    return int(number)


def rows_of_file(file: str | Path, *columns: str, sha256: str | None = None) -> list[Row]:
    """The rows of a file; never of a data set of the hub that has such a name.

    Args:
        file: JSON lines, JSON, CSV or parquet, also gzipped.
        columns: those that it must have.
        sha256: their content (`fedbench.data.rows.content_hash`), where it is pinned.

    Raises:
        DataError: it is missing, damaged, empty, of another kind, or not what is pinned.
    """
    if not is_data_file(str(file)):
        raise DataError(
            f"{file}: is no file of rows by its name; it must end in .jsonl, .json, .csv or "
            ".parquet, also with .gz"
        )
    return load_rows(Source(path=str(file), columns=columns, sha256=sha256))

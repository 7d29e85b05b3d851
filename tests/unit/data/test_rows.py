"""Rows from files, from a mirror and from generators; pinned by content."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbench.data.rows import (
    MIRROR_VARIABLE,
    RandomSplit,
    Row,
    Source,
    content_hash,
    load_rows,
)
from fedbench.errors import DataError

# U+2028 is a line end to str.splitlines and none to JSON lines.
ROWS: list[Row] = [
    {"text": "Profit rises,\nagain", "label": "up"},
    {"text": "“Größe”\u2028naïve", "label": "down"},
]
COLUMNS = ("text", "label")


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


def source(path: Path | str, **fields: Any) -> Source:
    return Source.model_validate({"path": str(path), "columns": COLUMNS, **fields})


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_jsonl(file: Path, rows: list[Row]) -> Path:
    file.write_bytes(jsonl(rows))
    return file


CSV = '\ufefftext,label\n"Profit rises,\nagain",up\n“Größe”\u2028naïve,down\n'.encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", jsonl(ROWS)),
        ("rows.json", json.dumps(ROWS).encode()),
        ("lines.json", jsonl(ROWS)),
        ("rows.csv", CSV),
        ("rows.jsonl.gz", gzip.compress(jsonl(ROWS), mtime=0)),
        ("rows.csv.gz", gzip.compress(CSV, mtime=0)),
        ("marked.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS)),
        ("marked.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    ],
)
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert load_rows(source(file)) == ROWS


def test_parquet_gives_values_as_the_hub_does(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    # An empty cell must not turn the whole numbers beside it into floats, nor lists into arrays.
    rows = [{"text": "a", "n": 1, "tags": ["x", "y"]}, {"text": "b", "n": None, "tags": []}]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    columns = ("text", "n", "tags")
    read = load_rows(source(file, columns=columns, sha256=content_hash(rows, columns)))
    assert read == rows
    assert isinstance(read[0]["n"], int)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "a byte changed in the stream": lambda data: data[:15] + bytes([data[15] ^ 0xFF]) + data[16:],
    "no gzip": lambda data: b"plain text",
    "no text": lambda data: gzip.compress(b"\xff\xfe\x00", mtime=0),
    "no rows": lambda data: gzip.compress(b"[1, 2]\n", mtime=0),
    "no JSON": lambda data: gzip.compress(b"{]\n", mtime=0),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(DAMAGED[damage](gzip.compress(jsonl(ROWS), mtime=0)))
    with pytest.raises(DataError, match=rf"{re.escape(str(file))}: is damaged .*fetch it again"):
        load_rows(source(file))


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("rows.jsonl", b'{"text": "a"}\n\n{"text": }\n', "line 3, column 10: Expecting value"),
        ("rows.json", b'{"text": "a"}\n{"text": }\n', "line 2, column 10: Expecting value"),
        (
            "rows.csv",
            b"text,label\na,up\na, b,up\n",
            "line 3 has more cells than the header; quote",
        ),
    ],
)
def test_the_line_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, where: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: is damaged .*{where}"):
        load_rows(source(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: there is no such file"):
        load_rows(source(tmp_path / "absent.jsonl"))


def test_a_wrong_column_is_named_beside_those_that_are_there(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no column 'sentence', only 'text', 'label'"):
        load_rows(source(file, columns=("sentence", "label")))


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl: holds no rows"):
        load_rows(source(file))


def test_rows_that_are_those_pinned_load(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    pinned = source(file, rows=2, sha256=content_hash(ROWS, COLUMNS))
    assert load_rows(pinned) == ROWS


def test_another_number_of_rows_than_pinned_is_refused(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"has 2 rows where 3 are pinned"):
        load_rows(source(file, rows=3))


@pytest.mark.parametrize(
    "changed",
    [
        [ROWS[1], ROWS[0]],  # another order
        [ROWS[0] | {"label": "Up"}, ROWS[1]],
    ],
)
def test_another_content_than_pinned_is_refused(tmp_path: Path, changed: list[Row]) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", changed)
    with pytest.raises(DataError, match="text, label are not the pinned content"):
        load_rows(source(file, rows=2, sha256=content_hash(ROWS, COLUMNS)))


def test_a_pin_covers_the_used_columns_only(tmp_path: Path) -> None:
    more = [row | {"note": n} for n, row in enumerate(ROWS)]
    file = write_jsonl(tmp_path / "rows.jsonl", more)
    assert load_rows(source(file, sha256=content_hash(ROWS, COLUMNS))) == more


def test_the_content_hash_is_the_one_that_pins_were_made_with() -> None:
    # sha256 of '["a", 1]\n["é", null]\n' in UTF-8: canonical JSON, one row a line.
    expected = hashlib.sha256('["a", 1]\n["é", null]\n'.encode()).hexdigest()
    assert content_hash([{"x": "a", "n": 1}, {"x": "é", "n": None}], ("x", "n")) == expected


# The mirror


def make_mirror(directory: Path) -> Path:
    """Two configurations of one hub data set, and another one."""
    entries = []
    for name, hub, config, split in [
        ("bank", "org/bank", "half", "train"),
        ("bank", "org/bank", "all", "train"),
        ("posts", "org/posts", None, "test"),
    ]:
        content = jsonl([{"text": f"{name} {config} {split}", "label": "x"}])
        file = f"{name}-{config}-{split}.jsonl"
        directory.mkdir(exist_ok=True)
        (directory / file).write_bytes(content)
        entries.append(
            {
                "name": name,
                "hub_dataset": hub,
                "hub_config": config,
                "split": split,
                "file": file,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    (directory / "MANIFEST.json").write_text(json.dumps(entries))
    return directory


@pytest.mark.parametrize(
    ("path", "config", "split", "text"),
    [
        ("org/bank", "half", "train", "bank half train"),
        ("org/bank", "all", "train", "bank all train"),
        ("bank", "all", "train", "bank all train"),
        ("org/posts", None, "test", "posts None test"),
        ("posts", None, "test", "posts None test"),
    ],
)
def test_a_mirror_is_looked_up_by_hub_id_or_name_configuration_and_split(
    tmp_path: Path, path: str, config: str | None, split: str, text: str
) -> None:
    mirror = make_mirror(tmp_path / "mirror")
    rows = load_rows(source(path, config=config, split=split), str(mirror))
    assert [row["text"] for row in rows] == [text]


def test_the_mirror_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(make_mirror(tmp_path / "mirror")))
    assert len(load_rows(source("posts", split="test"))) == 1


def test_a_mirror_file_that_is_not_the_indexed_one_is_refused(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path / "mirror")
    write_jsonl(mirror / "posts-None-test.jsonl", ROWS)
    with pytest.raises(DataError, match=r"posts-None-test\.jsonl: .*sha256 differs"):
        load_rows(source("org/posts", split="test"), str(mirror))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (None, "there is no such file; set data.mirror or FEDBENCH_DATA"),
        ("{", "cannot be read"),
        ("{}", "must be a JSON list"),
    ],
)
def test_a_mirror_without_a_readable_index_is_refused(
    tmp_path: Path, index: str | None, words: str
) -> None:
    if index is not None:
        (tmp_path / "MANIFEST.json").write_text(index)
    with pytest.raises(DataError, match=rf"MANIFEST\.json: {words}"):
        load_rows(source("org/posts"), str(tmp_path))


def test_what_neither_mirror_nor_hub_gives_is_refused_with_both_named(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path / "mirror")
    with pytest.raises(DataError) as caught:
        load_rows(source("org/bank", config="half", split="test"), str(mirror))
    message = str(caught.value)
    assert message.startswith("org/bank half split test: ")
    assert f"the mirror {mirror} does not hold it" in message
    assert "set data.mirror or FEDBENCH_DATA" in message


# The random split


@pytest.mark.parametrize("num_rows", [7, 40, 41])
@pytest.mark.parametrize("test_size", [0.25, 0.3])
def test_a_random_split_is_the_one_that_datasets_draws(
    tmp_path: Path, num_rows: int, test_size: float
) -> None:
    import datasets

    rows = [{"text": f"row {n}", "label": "x"} for n in range(num_rows)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    theirs = datasets.Dataset.from_list(rows).train_test_split(test_size, seed=42)
    for part in ("test", "train"):
        rule = {"seed": 42, "test_size": test_size, "part": part}
        assert load_rows(source(file, random_split=rule)) == theirs[part].to_list()


def test_a_pin_speaks_of_the_split_before_the_random_part_is_taken(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": "x"} for n in range(8)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    rule = {"seed": 1, "test_size": 0.25}
    pinned = source(file, rows=8, sha256=content_hash(rows, COLUMNS), random_split=rule)
    assert len(load_rows(pinned)) == 2  # a quarter of 8
    assert load_rows(pinned, cut=False) == rows


def test_a_part_other_than_train_or_test_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test'"):
        RandomSplit.model_validate({"seed": 1, "test_size": 0.5, "part": "tset"})


def test_generated_rows_need_no_file() -> None:
    columns = ("instruction", "input", "output")
    rows = load_rows(source("fedbench/headlines", split="private", columns=columns))
    assert len(rows) == 1_200  # the number that headlines.generate states


def test_an_object_of_lists_gives_rows_with_their_client(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"a": [{"text": "x"}], "b": [], "c": [{"text": "y"}, ["z"]]}))
    assert load_rows(source(file, columns=("client",))) == [
        {"client": "a", "text": "x"},
        {"client": "c", "text": "y"},
        {"client": "c", "conversations": ["z"]},
    ]


@pytest.mark.parametrize("content", [{"text": ["x", "y"]}, {"rows": 3}])
def test_an_object_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="something else than a list of rows"):
        load_rows(source(file))


def test_a_path_may_begin_with_a_variable_or_lie_in_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "rows.jsonl", ROWS)
    monkeypatch.delenv("OWN_DATA", raising=False)
    assert load_rows(source("$OWN_DATA/set/rows.jsonl"), mirror=str(tmp_path)) == ROWS
    with pytest.raises(
        DataError, match=r"variable OWN_DATA is not set and the mirror .* does not hold rows\.jsonl"
    ):
        load_rows(source("$OWN_DATA/rows.jsonl"), mirror=str(tmp_path))
    monkeypatch.setenv("OWN_DATA", str(tmp_path / "set"))
    assert load_rows(source("$OWN_DATA/rows.jsonl")) == ROWS


def test_a_column_that_the_first_row_lacks_is_still_a_column(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b", "label": "up"}])
    assert len(load_rows(source(file))) == 2

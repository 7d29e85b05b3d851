"""``fedbench cache``: what is kept, and what goes. Runs on the base installation."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedbench import cli, prepared_files
from fedbench.cache import Prune, prune_answers
from fedbench.errors import OutputError
from fedbench.generation.backend import Answer
from fedbench.generation.store import AnswerStore
from fedbench.resources import answers_file, cache_directory

DAY = 86_400.0
NOW = 1_800_000_000.0
ANSWERS = [
    # number, weights, backend, age in days
    (5, "aa11", "transformers 5.19 float32 cpu", 40),
    (3, "aa22", "transformers 5.19 float32 cpu", 10),
    (2, "bb33", "openai http://localhost/v1", 1),
]


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of ten answers of different age."""
    place = Path(os.environ["FEDBENCH_ANSWERS"])
    with closing(AnswerStore(place)) as store:
        for number, weights, backend, age in ANSWERS:
            monkeypatch.setattr(time, "time", lambda age=age: NOW - age * DAY)
            keys = [f"{weights}/{n}" for n in range(number)]
            store.put(dict.fromkeys(keys, Answer(text="x" * 1000)), weights, backend)
    monkeypatch.setattr(time, "time", lambda: NOW)
    return place


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["cache", *arguments])


def rows(*arguments: str) -> dict[str, Any]:
    shown = run(*arguments, "--json")
    assert shown.exit_code == 0, shown.output
    [row] = json.loads(shown.stdout)
    assert isinstance(row, dict)
    return row


def left(file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(file)) as db:
        return dict(db.execute("SELECT weights, count(*) FROM answers GROUP BY weights"))


def test_info_counts_by_backend_and_by_weights(file: Path) -> None:
    row = rows("info")
    assert row["file"] == str(file)
    assert row["bytes"] == file.stat().st_size
    assert row["answers"] == 10
    assert [(g["name"], g["answers"], g["newest"]) for g in row["backends"]] == [
        ("transformers 5.19 float32 cpu", 8, NOW - 10 * DAY),
        ("openai http://localhost/v1", 2, NOW - DAY),
    ]
    assert [(g["name"], g["answers"]) for g in row["weights"]] == [
        ("bb33", 2),
        ("aa22", 3),
        ("aa11", 5),
    ]
    lines = [line.split() for line in run("info").stdout.splitlines()]
    day = time.strftime("%Y-%m-%d", time.localtime(NOW - 40 * DAY))
    assert ["aa11", "5", day] in [line[:3] for line in lines]


def test_info_tells_the_size_of_pre_trained_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_CACHE", str(tmp_path))
    (tmp_path / "models" / "3f2a").mkdir(parents=True)
    (tmp_path / "models" / "3f2a" / "model.safetensors").write_bytes(b"x" * 1500)
    assert rows("info")["bases"] == [{"name": "3f2a", "bytes": 1500}]
    assert "3f2a  1.5 kB" in run("info").stdout


def test_prepared_prompts_go_by_their_last_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_CACHE", str(tmp_path))
    now = time.time()
    for key, days in (("new", 1), ("old", 40)):
        prepared_files.keep(key, ["a prompt"])
        os.utime(tmp_path / "prepared" / key, (now - days * DAY,) * 2)
    assert rows("info")["prepared"] == 2
    assert "2 files" in run("info").stdout
    for conditions in (["--older-than", "30d", "--dry-run"], ["--weights", "aa"]):
        rows("prune", *conditions)
        assert rows("info")["prepared"] == 2
    assert rows("prune", "--older-than", "30d")["prepared"] == 1
    assert (prepared_files.load("old"), prepared_files.load("new")) == (None, ["a prompt"])
    os.utime(tmp_path / "prepared" / "new", (now - DAY,) * 2)
    assert "1 files of prepared prompts pruned" in run("prune", "--all").stdout
    assert rows("info")["prepared"] == 0


def test_what_nobody_used_for_a_month_goes_when_something_new_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_CACHE", str(tmp_path))
    prepared_files.keep("old", 1)
    os.utime(tmp_path / "prepared" / "old", (time.time() - 31 * DAY,) * 2)
    prepared_files.keep("new", 2)
    assert [kept.name for kept in prepared_files.kept_files()] == ["new"]


def test_looking_at_nothing_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDBENCH_ANSWERS", "")  # as if it were not set
    assert rows("info")["answers"] == 0
    assert rows("prune", "--all")["answers"] == 0
    assert "none yet" in run("info").stdout
    assert not (tmp_path / "cache").exists()


def test_info_reads_a_store_of_an_earlier_version(tmp_path: Path) -> None:
    file = Path(os.environ["FEDBENCH_ANSWERS"])
    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT)")
        db.execute("INSERT INTO answers VALUES ('old', '{}')")
        db.commit()
    assert rows("info")["weights"] == [{"name": None, "answers": 1, "newest": None}]
    # Nobody knows how old it is.
    assert rows("prune", "--older-than", "0m")["answers"] == 0
    assert rows("prune", "--all")["answers"] == 1


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["--older-than", "30d"], {"aa22": 3, "bb33": 2}),
        (["--older-than", "1w"], {"bb33": 2}),
        (["--older-than", "959h"], {"aa22": 3, "bb33": 2}),  # 40 days are 960 hours
        (["--older-than", "961h"], {"aa11": 5, "aa22": 3, "bb33": 2}),
        (["--weights", "aa"], {"bb33": 2}),
        (["--weights", "aa22"], {"aa11": 5, "bb33": 2}),
        (["--weights", "a%"], {"aa11": 5, "aa22": 3, "bb33": 2}),  # a hash, and no pattern
        (["--backend", "transformers"], {"bb33": 2}),
        (["--backend", "transformers 5.19 float32 cpu"], {"bb33": 2}),
        (["--backend", "trans"], {"aa11": 5, "aa22": 3, "bb33": 2}),
        (["--backend", "transformers", "--older-than", "2w"], {"aa22": 3, "bb33": 2}),
        (["--all"], {}),
    ],
    ids=" ".join,
)
def test_what_all_conditions_hold_for_goes_and_nothing_else(
    conditions: list[str], expected: dict[str, int], file: Path
) -> None:
    would = rows("prune", *conditions, "--dry-run")
    assert left(file) == {"aa11": 5, "aa22": 3, "bb33": 2}
    done = rows("prune", *conditions)
    assert left(file) == expected
    assert would["answers"] == done["answers"] == 10 - sum(expected.values())
    assert would["kept"] == done["kept"] == sum(expected.values())


def test_the_room_of_pruned_answers_goes_back_to_the_disk(file: Path) -> None:
    with closing(AnswerStore(file)) as store:
        store.put({str(n): Answer(text="y" * 10_000) for n in range(50)}, "cc44", "scripted")
    before = file.stat().st_size
    done = rows("prune", "--weights", "cc44")
    assert done["bytes"] == before - file.stat().st_size
    assert done["bytes"] > 50 * 10_000
    assert "0 answers pruned" in run("prune", "--weights", "cc44").stdout


def test_answers_that_another_process_may_need_are_not_pruned(file: Path) -> None:
    pytest.importorskip("filelock")
    with closing(AnswerStore(file)) as other:  # begins NOW
        other.claim([["new"]])
        other.put({"new": Answer(text="z")}, "aa99", "transformers")
        # It has let go of its claim, and goes on.
        for conditions in (["--all"], ["--weights", "aa"], ["--backend", "transformers"]):
            refused = run("prune", *conditions)
            assert isinstance(refused.exception, OutputError)
            assert "another process is asking" in str(refused.exception)
        done = rows("prune", "--older-than", "30d")
        assert (done["answers"], done["shared"], done["bytes"]) == (5, True, 0)
        assert left(file) == {"aa22": 3, "aa99": 1, "bb33": 2}
    assert rows("prune", "--all")["answers"] == 6


def test_a_file_that_cannot_shrink_is_told_with_what_was_done(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: AnswerStore) -> None:
        raise OutputError("cannot be written") from sqlite3.OperationalError("disk is full")

    monkeypatch.setattr(AnswerStore, "shrink", full)
    with pytest.raises(OutputError, match=r"10 answers are gone.*disk is full.*prune again"):
        prune_answers(Prune())
    assert left(file) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all", "--weights", "aa"],
        ["--weights", ""],
        ["--backend", ""],
        ["--older-than", "30"],
        ["--older-than", "-1d"],
        ["--older-than", ""],
    ],
    ids=" ".join,
)
def test_pruning_must_say_what_goes(arguments: list[str], file: Path) -> None:
    refused = run("prune", *arguments)
    assert refused.exit_code == 2
    assert "Error:" in refused.stderr
    assert sum(left(file).values()) == 10


def test_a_variable_that_is_set_to_nothing_is_as_one_that_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("FEDBENCH_CACHE", "FEDBENCH_ANSWERS", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".cache" / "fedbench"
    assert (cache_directory(), answers_file()) == (place, place / "answers.sqlite")

"""Claims: of several processes that share a store, each asks for something else."""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedbench.errors import MissingExtraError, OutputError
from fedbench.generation import store as store_module
from fedbench.generation.backend import Answer
from fedbench.generation.store import AnswerStore

Open = Callable[[], AnswerStore]
# Children of a process that has the imports done, and no claims.
processes_of = multiprocessing.get_context("forkserver")
processes_of.set_forkserver_preload(["fedbench.generation.store", "pytest"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def opened(file: Path) -> Iterator[Open]:
    """Opens the store once more, as another process would: locks are between open files."""
    stores: list[AnswerStore] = []

    def make() -> AnswerStore:
        stores.append(AnswerStore(file))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def claims(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as db:
        return {key for (key,) in db.execute("SELECT key FROM claims")}


def test_a_batch_is_of_whoever_claims_it_first(opened: Open) -> None:
    one, other = opened(), opened()
    assert one.claim([["a", "b"], ["c"]]) == ["ours", "ours"]
    assert other.claim([["a", "b"], ["d"]]) == ["theirs", "ours"]
    assert one.claim([["d"], ["c"]]) == ["theirs", "ours"]


def test_a_batch_with_one_key_of_another_process_is_theirs_as_a_whole(opened: Open) -> None:
    one, other = opened(), opened()
    one.claim([["b"]])
    assert other.claim([["a", "b"]]) == ["theirs"]
    assert one.claim([["a"]]) == ["ours"]  # `other` has claimed no part of it


def test_a_batch_is_stored_only_if_all_of_it_is(opened: Open, file: Path) -> None:
    one, other = opened(), opened()
    one.claim([["a", "b"], ["c", "d"]])
    one.put({"a": Answer(text="1"), "b": Answer(text="2"), "c": Answer(text="3")})
    assert claims(file) == {"d"}
    assert other.claim([["a", "b"], ["c", "d"]]) == ["stored", "theirs"]
    one.release(["d"])
    # Its neighbours may matter to the last bits of an answer: it is asked again whole.
    assert other.claim([["c", "d"]]) == ["ours"]
    assert claims(file) == {"c", "d"}


def test_what_failed_is_free_for_others(opened: Open) -> None:
    one, other = opened(), opened()
    one.claim([["a"], ["b"]])
    one.release(["a"])
    assert other.claim([["a"], ["b"]]) == ["ours", "theirs"]


@pytest.mark.parametrize("behind", ["BEGIN", "COMMIT"])
def test_what_was_claimed_can_be_released_wherever_an_interruption_came(
    behind: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opened(), opened()
    monkeypatch.setattr(one, "_db", InterruptedBehind(behind, one._db))
    with pytest.raises(KeyboardInterrupt):
        one.claim([["a"]])
    one.release(["a"])
    assert other.claim([["a"]]) == ["ours"]


class InterruptedBehind:
    """A connection; behind its first statement that begins so there is a Ctrl-C."""

    def __init__(self, statement: str, db: sqlite3.Connection) -> None:
        self.statement: str | None = statement
        self.db = db

    def execute(self, statement: str, *args: object) -> sqlite3.Cursor:
        cursor = self.db.execute(statement, *args)
        if self.statement is not None and statement.startswith(self.statement):
            self.statement = None
            raise KeyboardInterrupt
        return cursor

    def __getattr__(self, name: str) -> object:
        return getattr(self.db, name)


def test_nobody_releases_the_claims_of_another(opened: Open) -> None:
    one, other, third = opened(), opened(), opened()
    one.claim([["a"]])
    other.release(["a"])
    assert third.claim([["a"]]) == ["theirs"]


def test_a_closed_store_claims_nothing_and_leaves_no_lock(opened: Open, file: Path) -> None:
    one = opened()
    one.claim([["a"]])
    one.close()
    assert claims(file) == set()
    assert list(file.with_name("answers.sqlite.owners").iterdir()) == []
    assert opened().claim([["a"]]) == ["ours"]


def claim_and_wait(file: Path, connection: object) -> None:
    """In a process of its own: claim a batch, say so, and never end."""
    store = AnswerStore(file)
    store.put({"before": Answer(text="kept")})
    connection.send(store.claim([["a", "b"], ["c"]]))  # type: ignore[attr-defined]
    connection.recv()  # type: ignore[attr-defined]


def test_the_claims_of_a_killed_process_are_void_at_once(opened: Open, file: Path) -> None:
    ours, theirs = processes_of.Pipe()
    process = processes_of.Process(target=claim_and_wait, args=(file, theirs), daemon=True)
    process.start()
    try:
        assert ours.recv() == ["ours", "ours"]
        store = opened()
        assert store.claim([["a", "b"], ["c"]]) == ["theirs", "theirs"]
    finally:
        process.kill()
        process.join()
    assert store.claim([["a", "b"]]) == ["ours"]
    assert claims(file) == {"a", "b"}  # the rest of what it held has gone with it
    assert store.get(["before"]) == {"before": Answer(text="kept")}


def put_own(file: Path, number: int, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    with closing(AnswerStore(file)) as store:
        for n in range(20):
            store.put({f"{number}/{n}": Answer(text=str(n))})


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "of an earlier version"])
def test_processes_that_start_together_make_one_store(earlier: bool, file: Path) -> None:
    if earlier:
        make_earlier_store(file)
    barrier = processes_of.Barrier(4)
    processes = [processes_of.Process(target=put_own, args=(file, n, barrier)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with closing(AnswerStore(file)) as store:
        assert len(store) == 80 + earlier


def make_earlier_store(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT)")
        db.execute("INSERT INTO answers VALUES ('old', '{\"text\": \"x\"}')")
        db.commit()


def test_a_store_of_an_earlier_version_is_read_and_written(opened: Open, file: Path) -> None:
    make_earlier_store(file)
    store = opened()
    assert store.get(["old"]) == {"old": Answer(text="x")}
    assert store.claim([["old"], ["new"]]) == ["stored", "ours"]
    store.put({"new": Answer(text="y")}, weights="w", backend="b")
    with closing(sqlite3.connect(file)) as db:
        rows = db.execute("SELECT key, weights, backend, created > 0 FROM answers").fetchall()
    assert sorted(rows) == [("new", "w", "b", 1), ("old", None, None, None)]


def test_a_store_that_stays_busy_is_told_from_a_full_disk(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.1)
    with (
        closing(AnswerStore(file)) as store,
        closing(sqlite3.connect(file, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match=r"another process has kept it busy.*same command"):
            store.put({"a": Answer(text="1")})
        other.execute("ROLLBACK")
        store.put({"a": Answer(text="1")})
        assert len(store) == 1


def test_without_filelock_a_store_is_read_and_not_shared(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    store = opened()
    store.put({"a": Answer(text="1")})
    assert store.claim([["a"]]) == ["stored"]
    with pytest.raises(MissingExtraError, match=r"fedbench\[train\]"):
        store.claim([["b"]])
    assert store.get(["a", "b"]) == {"a": Answer(text="1")}

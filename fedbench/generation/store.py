"""Every answer, kept as it arrives, under a key of what produced it (SQLite).

Kill a scoring run and start it again: nothing is asked twice. The key holds the content hash of
the weights, so a checkpoint that was overwritten in place is noticed.

Several processes may use one store. Each claims what it is about to ask, and the others take up
something else, or wait for its answers. A claim lives as long as the process: its owner holds a
lock on a file, which the operating system lets go of in every case, so that the claims of a
process that was killed are void at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from fedbench.errors import FedbenchError, MissingExtraError, OutputError, RecordError
from fedbench.generation.backend import Answer, Checkpoint, Request
from fedbench.resources import ANSWERS_VARIABLE

if TYPE_CHECKING:
    import filelock

_CHUNK = 500  # below SQLite's limit on variables per statement
_PATIENCE = 60.0  # seconds to wait for another process that writes
_COLUMNS = {
    "key": "TEXT PRIMARY KEY",
    "answer": "TEXT",
    "weights": "TEXT",
    "backend": "TEXT",
    "created": "REAL",
}
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS answers ({', '.join(map(' '.join, _COLUMNS.items()))}) "
    "WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT) WITHOUT ROWID",
)
_INSERT = f"INSERT OR REPLACE INTO answers ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?)"
Claim = Literal["ours", "theirs", "stored"]


class AnswerStore:
    """Answers by key, safe against a kill from the moment `put` returns."""

    def __init__(self, file: Path) -> None:
        """Open or create the store.

        Raises:
            OutputError: the place cannot be written.
            RecordError: the file is there and is no store.
        """
        self.file = file
        # Says since when it asks: what was made later, it may still look up.
        self._owner = f"{time.time():.3f}-{uuid.uuid4().hex}"
        self._lock: filelock.BaseFileLock | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None)
            self._write_ahead()
            # Safe against the death of any process; only a power cut may lose the last answers.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._make_tables()
        except (sqlite3.DatabaseError, OSError) as error:
            raise store_error(file, error) from error

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The stored answers among some keys.

        Raises:
            RecordError: the store is damaged.
        """
        with self._explaining():
            return {key: _answer(text) for key, text in self._select("answer", "answers", keys)}

    def put(self, answers: Mapping[str, Answer], weights: str = "", backend: str = "") -> None:
        """Store answers, all or none, and let go of the claims on them.

        Args:
            answers: by key.
            weights: hash of the weights that gave them, by which a user may prune.
            backend: its name.

        Raises:
            OutputError: the disk is full.
            RecordError: the store is damaged.
        """
        facts = (weights, backend, time.time())
        rows = [(key, json.dumps(_stated(answer)), *facts) for key, answer in answers.items()]
        with self.transaction():
            self._db.executemany(_INSERT, rows)
            self._release(list(answers))

    def claim(self, batches: Sequence[Sequence[str]]) -> list[Claim]:
        """Say of some batches of keys that this process is about to ask for their answers.

        Returns:
            For each batch: ours, it is claimed as a whole; theirs, a living process is about to
            ask for some of it; stored, it is all there.

        Raises:
            OutputError: the disk is full.
            RecordError: the store is damaged.
        """
        keys = [key for batch in batches for key in batch]
        with self.transaction():
            stored = {key for key, _ in self._select("key", "answers", keys)}
            claims = dict(self._select("owner", "claims", keys))
            living = self._living(set(claims.values()))
            verdicts: list[Claim] = []
            for batch in batches:
                if stored.issuperset(batch):
                    verdicts.append("stored")
                elif any(claims.get(key) in living for key in batch):
                    verdicts.append("theirs")
                else:
                    verdicts.append("ours")
                    self._hold_lock()
                    rows = [(key, self._owner) for key in batch]
                    self._db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", rows)
        return verdicts

    def release(self, keys: Sequence[str]) -> None:
        """Let go of claims that came to nothing.

        Raises:
            OutputError: the disk is full.
            RecordError: the store is damaged.
        """
        with self.transaction():
            self._release(keys)

    def others_ask_since(self) -> float:
        """Since when another process asks models, the first that lives; infinite if none does.

        To be called within a `transaction`.

        Raises:
            MissingExtraError: there may be one, and filelock is not installed.
        """
        owners = {file.name for file in self._lock_file("").glob("*-*")}
        return min(map(_asking_since, self._living(owners)), default=math.inf)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, with one writer at a time from the first look on.

        Raises:
            OutputError: the disk is full, or another process kept the store busy.
            RecordError: the store is damaged.
        """
        with self._explaining():
            try:
                # Within: Ctrl-C is raised behind the call that it interrupts, here with a lock.
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.DatabaseError):
                    self._db.execute("ROLLBACK")
                raise

    def shrink(self) -> None:
        """Give the room of deleted answers back to the disk.

        Raises:
            OutputError: there is too little room to write the rest of the file anew.
        """
        with self._explaining():
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let go of the file and of all claims."""
        if self._lock is not None:
            self._lock.release()  # first: whatever happens below, the claims are void
            with contextlib.suppress(sqlite3.DatabaseError):
                self._db.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
            self._lock_file(self._owner).unlink(missing_ok=True)
            self._lock = None
        self._db.close()

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    def _select(self, column: str, table: str, keys: Sequence[str]) -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        unique = list(dict.fromkeys(keys))
        for start in range(0, len(unique), _CHUNK):
            part = unique[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            rows += self._db.execute(
                f"SELECT key, {column} FROM {table} WHERE key IN ({marks})", part
            ).fetchall()
        return rows

    def _release(self, keys: Sequence[str]) -> None:
        rows = [(key, self._owner) for key in keys]
        self._db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", rows)

    def _hold_lock(self) -> None:
        if self._lock is None:
            filelock = _filelock()
            self._lock_file(self._owner).parent.mkdir(exist_ok=True)
            self._lock = filelock.FileLock(self._lock_file(self._owner))
            self._lock.acquire()

    def _living(self, owners: Set[str]) -> set[str]:
        return {owner for owner in owners - {self._owner} if self._is_alive(owner)}

    def _is_alive(self, owner: str) -> bool:
        file = self._lock_file(owner)
        if not file.exists():
            return False
        filelock = _filelock()
        try:
            with filelock.FileLock(file, timeout=0):
                pass
        except filelock.Timeout:
            return True
        self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
        file.unlink(missing_ok=True)
        return False

    def _lock_file(self, owner: str) -> Path:
        return self.file.with_name(f"{self.file.name}.owners") / owner

    def _write_ahead(self) -> None:
        """Let readers and a writer work at once (SQLite's WAL).

        Of processes that change a store to it together, SQLite tells some at once that it is busy,
        since each waits for the others: they try again.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.01, 0.05))
            else:
                return

    def _make_tables(self) -> None:
        """Make what is missing; stores of earlier versions said of an answer only what it was."""
        if self._columns() >= _COLUMNS.keys() and self._has_claims():
            return  # without a lock: a store may be opened while it is busy
        with self.transaction() as db:  # of processes that start together, one makes it
            for statement in _SCHEMA:
                db.execute(statement)
            have = self._columns()
            for name, kind in _COLUMNS.items():
                if name not in have:
                    db.execute(f"ALTER TABLE answers ADD COLUMN {name} {kind}")

    def _columns(self) -> set[str]:
        return {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}

    def _has_claims(self) -> bool:
        return bool(self._db.execute("PRAGMA table_info(claims)").fetchall())

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise store_error(self.file, error) from error


def store_error(file: Path, error: Exception) -> FedbenchError:
    """What is wrong with a store, and what to do."""
    reason = str(error)
    if file.is_dir():
        return OutputError(f"{file}: is a directory; name a file with {ANSWERS_VARIABLE}")
    if "not a database" in reason:
        return RecordError(
            f"{file}: is no answer store; move it away or name another file with {ANSWERS_VARIABLE}"
        )
    if "malformed" in reason:
        return RecordError(
            f"{file}: is damaged ({error}); move it away or name another file with "
            f"{ANSWERS_VARIABLE}, then run the same command again: its answers are asked for once "
            "more"
        )
    if "locked" in reason:
        return OutputError(
            f"{file}: another process has kept it busy for {_PATIENCE:.0f} seconds; run the same "
            f"command again, or name another file with {ANSWERS_VARIABLE}: stored answers are kept"
        )
    return OutputError(
        f"{file}: cannot be written ({error}); free some space or name another file with "
        f"{ANSWERS_VARIABLE}, then run the same command again: stored answers are kept"
    )


def _filelock() -> ModuleType:
    """The library that knows whether a process lives; stores are read and pruned without it."""
    try:
        import filelock
    except ImportError as error:
        raise MissingExtraError("sharing answers with another process", "train") from error
    return filelock


def _asking_since(owner: str) -> float:
    return float(owner.partition("-")[0])


def answer_keys(checkpoint: Checkpoint, requests: Sequence[Request], backend: str) -> list[str]:
    """The key of each request: weights, base, configuration, backend, and exactly what is asked."""
    named = [checkpoint.weights_hash, checkpoint.base_hash, backend]
    named += [checkpoint.architecture] if checkpoint.architecture else []
    model = json.dumps(named).encode()
    return [hashlib.sha256(model + request.digest).hexdigest() for request in requests]


def _answer(text: str) -> Answer:
    values = json.loads(text)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Answer(**values | lists)


def _stated(answer: Answer) -> dict[str, object]:
    """What the answer says; defaults need no room."""
    return {name: value for name, value in vars(answer).items() if value not in (None, ())}

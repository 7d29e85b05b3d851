"""Every answer, kept as it arrives, under a key of what produced it (SQLite).

Kill a scoring run and start it again: nothing is asked twice. The key holds the content hash of
the weights, so a checkpoint that was overwritten in place is noticed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fedbench.errors import FedbenchError, OutputError, RecordError
from fedbench.generation.backend import Answer, Checkpoint, Request

_CHUNK = 500  # below SQLite's limit on variables per statement


class AnswerStore:
    """Answers by key, durable from the moment `put` returns."""

    def __init__(self, file: Path) -> None:
        """Open or create the store.

        Raises:
            OutputError: the place cannot be written.
            RecordError: the file is there and is no store.
        """
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=60.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)"
            )
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._explained(error) from error

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The stored answers among some keys.

        Raises:
            RecordError: the store is damaged.
        """
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"
            try:
                rows = self._db.execute(query, part).fetchall()
            except sqlite3.DatabaseError as error:
                raise self._explained(error) from error
            for key, text in rows:
                values = json.loads(text)
                values["loglikelihoods"] = tuple(values["loglikelihoods"])
                found[key] = Answer(**values)
        return found

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Store answers, all or none.

        Raises:
            OutputError: the disk is full.
            RecordError: the store is damaged.
        """
        rows = [(key, json.dumps(asdict(answer))) for key, answer in answers.items()]
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    def _explained(self, error: Exception) -> FedbenchError:
        if "not a database" in str(error):
            return RecordError(f"{self.file}: is no answer store; move it away")
        if "malformed" in str(error):
            return RecordError(
                f"{self.file}: is damaged ({error}); move it away and run the same command again: "
                "its answers are asked for once more"
            )
        return OutputError(
            f"{self.file}: cannot be written ({error}); free some space or choose another "
            "--output, then run the same command again: stored answers are kept"
        )


def answer_keys(checkpoint: Checkpoint, requests: Iterable[Request], backend: str) -> list[str]:
    """The key of each request: weights, base, backend, and exactly what is asked."""
    model = [checkpoint.weights_hash, checkpoint.base_hash, backend]
    return [
        hashlib.sha256(json.dumps([model, request.identity()]).encode()).hexdigest()
        for request in requests
    ]

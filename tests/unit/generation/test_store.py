"""The answer store: durable, and keyed by everything that makes an answer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedbench.errors import OutputError, RecordError
from fedbench.generation.backend import Answer, Checkpoint, Request, Sampling
from fedbench.generation.store import AnswerStore, answer_keys
from fedbench.results.record import ModelId

CHECKPOINT = Checkpoint(
    model=ModelId(method="fedavg", model_kind="global", seed=0, round=1),
    kind="adapter",
    directory=Path("runs/demo/round-0001"),
    base="org/base",
    weights_hash="w1",
    base_hash="b1",
)
REQUEST = Request("generate", "Up?", (1, 2, 3), Sampling(max_tokens=4))
CHOICE = Request("choice", "Up?", (1, 2, 3), Sampling(), choices=((4,), (5, 6)))
BACKEND = "transformers 5 float32 cpu batch 64"


def key(
    checkpoint: Checkpoint = CHECKPOINT, request: Request = REQUEST, backend: str = BACKEND
) -> str:
    return answer_keys(checkpoint, [request], backend)[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made" / "answers.sqlite"


@pytest.fixture
def opened(file: Path) -> Iterator[Callable[[], AnswerStore]]:
    stores: list[AnswerStore] = []

    def make() -> AnswerStore:
        stores.append(AnswerStore(file))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    "changed",
    [
        key(replace(CHECKPOINT, weights_hash="w2")),  # a checkpoint that was overwritten in place
        key(replace(CHECKPOINT, base_hash="b2")),
        key(request=replace(REQUEST, ids=(1, 2, 4))),
        key(request=replace(REQUEST, sampling=Sampling(max_tokens=5))),
        key(request=replace(REQUEST, sampling=Sampling(max_tokens=4, temperature=0.5))),
        key(request=replace(REQUEST, sampling=Sampling(max_tokens=4, top_p=0.5, temperature=1))),
        key(request=replace(REQUEST, ends=(7,))),
        key(request=replace(REQUEST, ids=(), messages=(("user", "Up?"),))),
        key(request=replace(REQUEST, sampling=Sampling(max_tokens=4, stop=("\n",)))),
        key(request=CHOICE),
        key(backend="transformers 5 bfloat16 cpu batch 64"),
        key(backend="transformers 5 float32 cpu batch 128"),
    ],
)
def test_a_key_changes_with_whatever_could_change_the_answer(changed: str) -> None:
    assert changed != key()


def test_a_seed_is_part_of_what_is_sampled_and_of_nothing_else() -> None:
    drawn = replace(REQUEST, sampling=Sampling(temperature=1.0))
    for changed in ({"seed": 1}, {"index": 1}):
        sampled = replace(drawn, sampling=replace(drawn.sampling, **changed))
        greedy = replace(REQUEST, sampling=replace(REQUEST.sampling, **changed))
        assert key(request=sampled) != key(request=drawn)
        assert key(request=greedy) == key()


def test_a_key_changes_with_the_choices() -> None:
    assert key(request=replace(CHOICE, choices=((4,), (5,)))) != key(request=CHOICE)
    # The same tokens, divided otherwise.
    assert key(request=replace(CHOICE, choices=((4, 5), (6,)))) != key(request=CHOICE)


def test_a_key_ignores_how_the_model_is_called_and_where_it_lies() -> None:
    moved = replace(
        CHECKPOINT,
        directory=Path("elsewhere"),
        base="/a/directory",
        model=ModelId(method="other", model_kind="merged"),
    )
    assert key(moved) == key()


def test_answers_survive_reopening(opened: Callable[[], AnswerStore]) -> None:
    answers = {
        "a": Answer(text="“größer”\n"),
        "b": Answer(loglikelihoods=(-1.25, -0.1)),
        "c": Answer(text=""),
    }
    store = opened()
    store.put(answers)
    store.close()
    again = opened()
    assert again.get(["a", "b", "c", "absent"]) == answers
    assert len(again) == 3


def test_answers_are_there_for_another_process_before_the_store_is_closed(
    opened: Callable[[], AnswerStore], file: Path
) -> None:
    opened().put({"a": Answer(text="x")})
    other = sqlite3.connect(file)
    try:
        rows = other.execute("SELECT key, answer FROM answers").fetchall()
    finally:
        other.close()
    assert [(k, json.loads(answer)["text"]) for k, answer in rows] == [("a", "x")]


def test_log_likelihoods_come_back_to_the_bit(opened: Callable[[], AnswerStore]) -> None:
    exact = Answer(loglikelihoods=(-1 / 3, -1e-17, -123456.789012345678))
    opened().put({"a": exact})
    assert opened().get(["a"]) == {"a": exact}


def test_more_keys_than_a_statement_holds_are_found(opened: Callable[[], AnswerStore]) -> None:
    store = opened()
    answers = {f"key {n}": Answer(text=str(n)) for n in range(1201)}  # 500 a statement
    store.put(answers)
    assert store.get(list(answers)) == answers


def test_a_batch_is_stored_whole_or_not_at_all(
    opened: Callable[[], AnswerStore], file: Path
) -> None:
    store = opened()
    # A trigger stands in for a disk that fills up at the second row.
    store._db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON answers WHEN NEW.key = 'b' "
        "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    )
    with pytest.raises(OutputError, match=r"disk is full.*stored answers are kept"):
        store.put({"a": Answer(text="1"), "b": Answer(text="2")})
    assert store.get(["a", "b"]) == {}


def test_a_later_answer_replaces_an_earlier(opened: Callable[[], AnswerStore]) -> None:
    store = opened()
    store.put({"a": Answer(text="1")})
    store.put({"a": Answer(text="2")})
    assert store.get(["a"]) == {"a": Answer(text="2")}


def test_a_file_that_is_no_store_is_refused(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"something else, and long enough to be read" * 50)
    with pytest.raises(RecordError, match=r"answers\.sqlite: is no answer store; move it away"):
        AnswerStore(file)
    assert file.read_bytes().startswith(b"something else")


def test_a_directory_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"is a directory; name a file with FEDBENCH_ANSWERS$"):
        AnswerStore(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, not a directory")
    with pytest.raises(OutputError, match="name another file with FEDBENCH_ANSWERS"):
        AnswerStore(tmp_path / "occupied" / "answers.sqlite")

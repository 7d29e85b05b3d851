"""A judge's server that fails in every way: each judgment is had once, and none is lost."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from answer_log import count, make_logged_store
from click.testing import CliRunner
from faulty_server import FAULTS, FaultyServer, each_fault_once, running
from judging_process import CONCURRENCY

from fedbench.cli import app
from fedbench.errors import FedbenchError
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.evaluate import evaluate
from fedbench.evaluation.task import load_items
from fedbench.generation.server.backend import OpenAIBackend
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.served import server_checkpoint
from fedbench.generation.store import AnswerStore

HERE = Path(__file__).parent
SECRET = "sk-a-key-that-nobody-may-see"
QUESTIONS = [
    {"question_id": n, "category": ("math", "writing")[n % 2], "turns": [f"Question {n}?"]}
    for n in range(6)
]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with running(FaultyServer()) as server:
        yield server


def start(server: FaultyServer, place: Path, number: int) -> subprocess.Popen[str]:
    script = str(HERE / "judging_process.py")
    files = [str(place / "store.sqlite"), str(number), str(place / "ratings.json")]
    return subprocess.Popen(
        [sys.executable, script, server.url, *files], stdout=subprocess.PIPE, text=True
    )


def finish(server: FaultyServer, place: Path, number: int) -> int:
    """Judge to the end; how many replies the judge gave this time."""
    process = start(server, place, number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    ratings = json.loads((place / "ratings.json").read_text())
    assert ratings == {f"test/{n}": 7.0 for n in range(number)}
    return int(printed)


def test_every_fault_is_survived_and_each_judgment_is_answered_once(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.fate = each_fault_once
    make_logged_store(tmp_path / "store.sqlite")
    assert finish(server, tmp_path, 40) == 40
    time.sleep(server.slow_seconds + 0.3)  # an answer is logged behind its sending
    assert {one.did for one in server.log} == {*FAULTS, "answer"}
    # An answer that was sent twice is one.
    assert set(server.answered().values()) == {1}
    assert len(server.answered()) == 40
    assert count(tmp_path / "store.sqlite", "log") == 40
    asked = len(server.log)
    assert finish(server, tmp_path, 40) == 0
    assert len(server.log) == asked


def test_a_client_that_is_killed_loses_nothing_that_it_stored(
    server: FaultyServer, tmp_path: Path
) -> None:
    number, kills, rng = 80, 2, random.Random(0)
    server.seconds = 0.08
    server.fate = lambda prompt, n: each_fault_once(prompt, n) if n < 1 else "answer"
    store = tmp_path / "store.sqlite"
    make_logged_store(store)
    for kill in range(kills):
        process = start(server, tmp_path, number)
        wanted = (kill + 1) * number // 4 + rng.randrange(4)
        while count(store, "answers") < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    stored = count(store, "answers")
    assert 0 < stored < number
    # What other processes had claimed when they died is asked all the same.
    assert finish(server, tmp_path, number) == number - stored
    assert count(store, "log") == number  # nothing was stored twice
    # What was answered twice was on its way to a client that died.
    assert sum(server.answered().values()) - number <= kills * CONCURRENCY


def test_a_server_that_asks_for_a_pause_gets_it(server: FaultyServer, tmp_path: Path) -> None:
    server.retry_after = "2"
    server.fate = lambda prompt, n: "429" if "Question 0?" in prompt and n == 0 else "answer"
    server.seconds = 0.05
    finish(server, tmp_path, 30)
    [refused] = [one for one in server.log if one.did == "429"]
    answered = refused.time + server.seconds
    # What was sent before the refusal came back may still arrive.
    assert not [one for one in server.log if answered + 0.5 < one.time < answered + 1.9]


def test_a_second_turn_is_sent_behind_the_servers_own_first_answer(
    server: FaultyServer, tmp_path: Path
) -> None:
    (tmp_path / "questions.jsonl").write_text('{"turns": ["Add 1 and 2.", "Double it."]}\n')
    (tmp_path / "task.yaml").write_text(
        f"name: talks\ndataset: {{path: {tmp_path}/questions.jsonl, columns: [turns]}}\n"
        "turns: turns\ntemplate: chat\nrubric: mt_bench-fedbench\nmetrics: [judge_score]\n"
    )
    server.reply = {"Add 1 and 2.": "Three.", "Double it.": "Six."}.__getitem__
    task = load_task(str(tmp_path / "task.yaml"))
    with (
        contextlib.closing(ServerClient(server.url, "judge")) as client,
        contextlib.closing(AnswerStore(tmp_path / "store.sqlite")) as store,
    ):
        asked = [(task, load_items(task))]
        result = evaluate([server_checkpoint(client)], asked, OpenAIBackend(client), store)
    [[conversation]] = result.open_ended["talks"].conversations.values()
    assert [turn.text for turn in conversation] == ["Three.", "Six."]
    sent = [(m["role"], m["content"]) for m in server.log[1].body["messages"]]
    assert sent == [
        ("user", "Add 1 and 2."),
        ("assistant", "Three."),
        ("user", "Double it."),
    ]


# The command line


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A task, and FastChat's answers of two models to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBENCH_ANSWERS", str(tmp_path / "store.sqlite"))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    (tmp_path / "task.yaml").write_text(
        "name: talks\n"
        "dataset: {path: questions.jsonl, columns: [question_id, turns]}\n"
        "group_by: category\n"
        "turns: turns\n"
        "rubric: vicuna-fedbench\n"
        "metrics: [judge_score]\n"
    )
    for name in ("one", "two"):
        rows = [
            {"question_id": q["question_id"], "choices": [{"turns": [f"{name}: {n}"]}]}
            for n, q in enumerate(QUESTIONS)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("one", "two")}


def fedbench(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["judge", *arguments])
    if isinstance(result.exception, FedbenchError):
        return result.exception
    assert result.exception is None, result.output
    return result


def test_answers_of_several_models_become_records_that_say_who_judged(
    server: FaultyServer, files: dict[str, str], tmp_path: Path
) -> None:
    server.reply = lambda prompt: f"Rating: [[{8 if 'one:' in prompt else 4}]]"
    line = [*files.values(), "--task", "task.yaml", "--judge", "judge", "--base-url", server.url]
    result = fedbench(*line, "--json", "--output", "out")
    records = json.loads(result.stdout)
    overall = {r["method"]: r["value"] for r in records if r["group"] is None}
    assert overall == {"one": 8, "two": 4}
    assert {r["group"] for r in records} == {None, "math", "writing"}
    [judge] = {r["judge"] for r in records}
    assert judge == "judge @ 127.0.0.1"
    said = [json.loads(line) for line in _gunzipped(tmp_path / "out" / "judgments")]
    assert len(said) == 12
    assert {row["text"] for row in said} == {"Rating: [[8]]", "Rating: [[4]]"}
    again = fedbench(*line, "--json", "--output", "out")
    assert json.loads(again.stdout)[0]["value"] == records[0]["value"]
    assert len(server.log) == 12


def test_a_dry_run_asks_nothing_and_says_what_it_would_cost(
    server: FaultyServer, files: dict[str, str], tmp_path: Path
) -> None:
    prices = _prices(tmp_path)
    line = [files["one"], "--task", "task.yaml", "--judge", "judge", "--base-url", server.url]
    result = fedbench(*line, "--prices", prices, "--dry-run", "--json")
    [estimate] = json.loads(result.stdout)
    assert server.log == []
    assert (estimate["num_calls"], estimate["num_stored"]) == (6, 0)
    # A dollar per million tokens; a reply has about 300 of them.
    tokens = estimate["prompt_tokens"] + 6 * 300
    assert estimate["dollars"] == pytest.approx(tokens / 1e6)
    assert "6 judgments, 0 of them stored; 6 to ask" in fedbench(*line, "--dry-run").stdout
    assert not (tmp_path / "scores").exists()


def test_a_dry_run_needs_no_key_and_no_server(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    line = [files["one"], "--task", "task.yaml", "--dry-run", "--judge", "gpt-4o"]
    told = fedbench(*line, "--base-url", "https://api.openai.com/v1").stdout
    assert "6 to ask" in told
    assert "dollars" in told
    away = fedbench(*line, "--base-url", "http://127.0.0.1:9/v1").stdout
    assert "6 to ask" in away
    # What was asked before counts, though nobody is there to say how it was asked.
    with running(FaultyServer()) as server:
        asked = [files["one"], "--task", "task.yaml", "--judge", "judge", "--base-url", server.url]
        fedbench(*asked, "--output", "out")
    assert "6 of them stored; 0 to ask" in fedbench(*asked, "--dry-run").stdout


def test_a_budget_is_not_overspent_and_the_rest_is_asked_with_the_next_one(
    server: FaultyServer, files: dict[str, str], tmp_path: Path
) -> None:
    line = [files["one"], "--task", "task.yaml", "--judge", "judge", "--base-url", server.url]
    line += ["--prices", _prices(tmp_path), "--concurrency", "1", "--max-tokens", "10"]
    # A prompt of some 600 bytes may be as many tokens, and the server says that it was 100.
    error = fedbench(*line, "--budget", "0.0009")
    assert "the budget of 0.0009 dollars is exhausted" in str(error)
    asked = len(server.log)
    assert 0 < asked < 6
    assert asked * 110e-6 <= 0.0009
    fedbench(*line, "--budget", "1")
    assert len(server.log) == 6


def test_a_judge_is_held_against_its_other_order_and_against_people(
    server: FaultyServer, files: dict[str, str], tmp_path: Path
) -> None:
    server.reply = lambda prompt: "Verdict: [[A]]" if "Question 0?" in prompt else "Verdict: [[B]]"
    (tmp_path / "labels.jsonl").write_text(
        "".join(
            json.dumps({"question_id": n, "model_a": "one", "model_b": "two", "winner": winner})
            + "\n"
            for n, winner in enumerate(["tie", "model_a", "model_b", "tie"])
        )
    )
    fedbench(
        *(files["one"], "--task", "task.yaml", "--rubric", "mt_bench-pairwise-fedbench"),
        *("--baseline", files["two"], "--labels", "labels.jsonl"),
        *("--judge", "judge", "--base-url", server.url, "--output", "out"),
    )
    [facts] = json.loads((tmp_path / "out" / "run.json").read_text())["facts"]["judged"].values()
    # The first of the two answers always wins one question, the second the five others.
    assert facts["orders"]["num_pairs"] == 6
    assert facts["orders"]["agreement"] == 0
    assert facts["orders"]["first_favoured"] == pytest.approx(1 / 6, abs=1e-6)
    # All pairs are ties then, as two of the four labels are.
    assert (facts["people"]["num_items"], facts["people"]["share"]) == (4, 0.5)
    assert facts["without a verdict"] == 0


def test_a_key_is_sent_and_written_nowhere(
    server: FaultyServer, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    fedbench(
        *(files["one"], "--task", "task.yaml", "--judge", "judge", "--base-url", server.url),
        *("--api-key-variable", "JUDGE_KEY"),
    )
    assert {one.headers["authorization"] for one in server.log} == {f"Bearer {SECRET}"}
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 5
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("owner", "constrain", "sent"),
    [
        ("vllm", "auto", {"structured_outputs": {"choice": ["yes", "no"]}}),
        ("somebody", "auto", {}),
        ("vllm", "none", {}),
        ("somebody", "structured_outputs", {"structured_outputs": {"choice": ["yes", "no"]}}),
        ("somebody", "response_format", {}),  # which knows JSON only
    ],
)
def test_replies_are_constrained_where_the_server_supports_it(
    server: FaultyServer,
    files: dict[str, str],
    tmp_path: Path,
    owner: str,
    constrain: str,
    sent: dict[str, Any],
) -> None:
    server.owner, server.reply = owner, lambda prompt: "yes"
    description = {"server": {"base_url": server.url, "model": "judge", "constrain": constrain}}
    (tmp_path / "judge.yaml").write_text(json.dumps(description))
    line = [files["one"], "--task", "task.yaml", "--rubric", "harmbench-fedbench"]
    records = json.loads(fedbench(*line, "--judge", "judge.yaml", "--json").stdout)
    for one in server.log:
        assert {
            k: v for k, v in one.body.items() if k in ("structured_outputs", "response_format")
        } == sent
    assert records[0]["judge"] == "judge @ 127.0.0.1" + (", constrained" if sent else "")
    assert (records[0]["metric"], records[0]["value"]) == ("attack_success_rate", 1)


def _prices(place: Path) -> str:
    file = place / "prices.yaml"
    file.write_text("127.0.0.1: {models: {judge: {prompt: 1, completion: 1}}}\n")
    return str(file)


def _gunzipped(directory: Path) -> list[str]:
    import gzip

    [file] = directory.glob("*.jsonl.gz")
    return gzip.decompress(file.read_bytes()).decode().splitlines()

"""MT-Bench's published answers and judgments, from the command line to the records."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from click.testing import CliRunner
from faulty_server import FaultyServer, running

from fedbench.cli import app

pytestmark = pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="the data are not ours to ship: set FEDBENCH_DATA to a mirror that holds them",
)
MODELS = (
    "alpaca-13b",
    "baize-v2-13b",
    "chatglm-6b",
    "claude-instant-v1",
    "claude-v1",
    "rwkv-4-raven-14b",
)


def reference(name: str) -> Path:
    return Path(os.environ["FEDBENCH_DATA"]) / "reference" / name


def fedbench(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["judge", *arguments, "--json"])
    assert result.exception is None, result.output
    return json.loads(result.stdout)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The published answers of six models, in FastChat's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBENCH_ANSWERS", str(tmp_path / "store.sqlite"))
    with gzip.open(reference("mt_bench_model_answers") / "models.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    for model in MODELS:
        own = [
            {"question_id": row["question_id"], "choices": [{"index": 0, "turns": row["turns"]}]}
            for row in rows
            if row["model"] == model
        ]
        file = tmp_path / f"{model}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in own))
    return [f"{model}.jsonl" for model in MODELS]


def test_six_models_are_judged_with_the_published_prompts(answers: list[str]) -> None:
    def rate(prompt: str) -> str:
        """A reference is shown in math, reasoning and coding only."""
        return f"Rating: [[{3 if 'reference answer' in prompt.lower() else 8}]]"

    with running(FaultyServer()) as server:
        server.reply = rate
        line = [*answers, "--rubric", "mt_bench", "--judge", "judge", "--base-url", server.url]
        records = fedbench(*line)
        asked = len(server.log)
        again = fedbench(*line)
    assert {record["task"] for record in records} == {"mt_bench"}
    # 80 questions, two turns, six models; what two models answered alike is asked once.
    assert 950 <= asked <= 960
    assert len(server.log) == asked
    assert {r["num_examples"] for r in records if r["group"] is None} == {160}
    by_group = {(r["method"], r["group"]): r["value"] for r in records}
    for model in MODELS:
        # Three of eight categories have references: (3 * 3 + 5 * 8) / 8.
        assert by_group[model, None] == 6.125
        assert by_group[model, "math"] == by_group[model, "coding"] == 3
        assert by_group[model, "writing"] == by_group[model, "turn_1"] + 1.875 == 8
    drop = ("created", "run_hash")
    assert [{k: v for k, v in r.items() if k not in drop} for r in again] == [
        {k: v for k, v in r.items() if k not in drop} for r in records
    ]
    systems = Counter(one.body["messages"][0]["role"] for one in server.log)
    assert set(systems) == {"system"}


def test_published_judgments_are_scored_to_the_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = json.loads((reference("") / "MANIFEST.json").read_text())
    [entry] = [one for one in index if one["name"] == "mt_bench_judgments"]
    file = reference("mt_bench_judgments") / "medusa_vicuna-7b_gpt-4_single.jsonl.gz"
    records = fedbench("--import", str(file), "--task", "mt_bench")
    found = {(r["method"], r["group"]): r["value"] for r in records}
    expected = entry["expected"]["medusa_vicuna-7b"]
    assert len(expected) == 3
    for model, numbers in expected.items():
        assert found[model, None] == pytest.approx(numbers["average"], abs=1e-9)
        assert found[model, "turn_1"] == pytest.approx(numbers["turn1"], abs=1e-9)
        assert found[model, "turn_2"] == pytest.approx(numbers["turn2"], abs=1e-9)
    assert {r["judge"] for r in records} == {"gpt-4"}
    # Ten questions a category, two turns.
    assert {r["num_examples"] for r in records if r["group"] == "writing"} == {20}


def test_ref_gpt4_shows_peoples_answers_and_is_the_mean_over_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = reference("").parent / "fedllm_bench" / "aya_test.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    english = {row["instruction"] for row in rows if row["language"] == "English"}
    answers = [{"instruction": row["instruction"], "output": "So."} for row in rows]
    (tmp_path / "m.json").write_text(json.dumps(answers))

    def rate(prompt: str) -> str:
        asked = prompt.split("=== INSTRUCTION ===\n")[1].split("\n\n=== REPLY OF A PERSON")[0]
        return f"Rating: [[{10 if asked in english else 2}]]"

    with running(FaultyServer()) as server:
        server.reply = rate
        line = ["m.json", "--rubric", "ref_gpt4-fedbench", "--judge", "judge"]
        records = fedbench(*line, "--base-url", server.url)
    values = {record["group"]: record["value"] for record in records}
    assert len(values) == 1 + 8
    # One language of eight: (10 + 7 * 2) / 8.
    assert [values[None], values["English"], values["Telugu"]] == pytest.approx([3, 10, 2])
    assert {record["task"] for record in records} == {"ref_gpt4-fedbench"}

"""A judge in this process: a model that is asked by transformers, and not held to any form.

And the other way round: answers of a model in this process, judged as soon as they are there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

import taught_judge
from click.testing import CliRunner
from faulty_server import FaultyServer, running

from fedbench.cli import app
from fedbench.errors import FedbenchError
from fedbench.weights import weights_hash

QUESTIONS = taught_judge.QUESTIONS


@pytest.fixture(scope="module")
def taught(tiny_base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_judge.teach(tiny_base_directory, tmp_path_factory.mktemp("taught") / "judge")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBENCH_ANSWERS", str(tmp_path / "store.sqlite"))
    return tmp_path


def line(place: Path, model: Path, template: str = "plain") -> list[str]:
    return taught_judge.write_case(place, {"model": str(model), "template": template})


def judge(*arguments: str) -> Any:
    """The command's records, its error, or what it says where `--json` is not asked for."""
    result = CliRunner().invoke(app, ["judge", *arguments])
    if isinstance(result.exception, FedbenchError):
        return result.exception
    assert result.exception is None, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.output


def facts_of(place: Path) -> dict[str, Any]:
    [facts] = json.loads((place / "run.json").read_text())["facts"]["judged"].values()
    return dict(facts)


def test_an_adapter_judges_the_answers_of_two_models(here: Path, taught: Path) -> None:
    records = judge(*line(here, taught), "--json", "--output", "out")
    assert {r["method"]: r["value"] for r in records} == {"rises": 8, "falls": 2}
    assert {r["num_failed"] for r in records} == {0}
    # Its weights are its version. Nothing held it to a form.
    assert {r["judge"] for r in records} == {f"judge {weights_hash(taught)}, template plain"}
    facts = facts_of(here / "out")
    assert (facts["asked"], facts["asked again for a verdict"]) == (2 * QUESTIONS, 0)
    assert facts["sampling"][0] == {"temperature": 0.0, "seed": 0, "max_tokens": 60}
    again = judge(*line(here, taught), "--json", "--output", "again")
    assert [r["value"] for r in again] == [r["value"] for r in records]
    assert facts_of(here / "again")["asked"] == 0


def test_a_model_that_says_nothing_of_use_is_asked_twice_and_its_scores_are_withheld(
    here: Path, tiny_base_directory: Path
) -> None:
    said = judge(*line(here, tiny_base_directory), "--max-tokens", "12", "--output", "out")
    facts = facts_of(here / "out")
    assert facts["asked again for a verdict"] == 2 * QUESTIONS
    assert facts["asked"] == 4 * QUESTIONS
    # The second try is never greedy, and has a seed of its own.
    assert [(one["temperature"], one["seed"]) for one in facts["sampling"]] == [(0.0, 0), (0.3, 1)]
    assert facts["because"] == {"the reply was cut off": 2 * QUESTIONS}
    assert "8 of 8 judgments have no verdict (8: the reply was cut off)" in said
    assert "withheld is the score of rises (4 of 4 failed), falls (4 of 4 failed)" in said
    assert "asked 16 times; 8 replies without a verdict were asked for once more" in said


def test_what_does_not_fit_into_the_judges_context_is_not_judged_by_its_end(
    here: Path, taught: Path
) -> None:
    # Its context has 1,024 tokens, of which 1,020 are kept for the reply.
    arguments = [*line(here, taught), "--max-tokens", "1020"]
    assert "8 more do not fit into the judge's context" in judge(*arguments, "--dry-run")
    records = judge(*arguments, "--json", "--output", "out")
    assert {(r["value"], r["num_failed"]) for r in records} == {(None, QUESTIONS)}
    facts = facts_of(here / "out")
    assert facts["asked"] == 0
    [reason] = facts["because"]
    assert "a reply of 1020 tokens do not fit into the judge's context; lower" in reason


def test_a_model_without_a_chat_template_needs_another(here: Path, taught: Path) -> None:
    assert "chat template" in str(judge(*line(here, taught, template="chat")))


def test_scoring_with_a_judge_has_its_answers_judged_at_once(
    here: Path, tiny_base_directory: Path
) -> None:
    line(here, tiny_base_directory)
    task = (here / "task.yaml").read_text()
    more = "template: plain\nsampling: {max_tokens: 4}\n"
    (here / "task.yaml").write_text(task + more)
    with running(FaultyServer()) as server:
        model = ["--ckpt", str(tiny_base_directory), "--tasks", "task.yaml"]
        by = ["--judge", "judge", "--judge-url", server.url]
        result = CliRunner().invoke(app, ["score", *model, *by, "--json", "--output", "out"])
        assert result.exception is None, result.output
        assert len(server.log) == QUESTIONS
    [record] = json.loads(result.stdout)
    assert (record["metric"], record["value"], record["num_failed"]) == ("judge_score", 7, 0)
    facts = json.loads((here / "out" / "run.json").read_text())["facts"]
    assert facts["needs a judge"] == []
    assert facts["judge's usage"]["num_requests"] == QUESTIONS

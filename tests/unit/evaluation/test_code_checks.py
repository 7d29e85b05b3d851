"""Answers that are programs, from a user's own task file to scores."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation import code_checks, sandbox, sandbox_commands
from fedbench.evaluation.answers import score_answers
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.evaluate import evaluate
from fedbench.evaluation.scores import score_table
from fedbench.evaluation.task import Task, load_items
from fedbench.generation.backend import Checkpoint
from fedbench.generation.scripted import ScriptedBackend
from fedbench.generation.store import AnswerStore
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.results.samples import SampleTable

ROWS = [
    {
        "id": name,
        "ask": f"Write {name}(), which is {n}.",
        "test": f"assert {name}() == {n}",
        "code": f"def {name}(): return {n}",
    }
    for n, name in enumerate(("one", "two"), start=1)
]
RIGHT = "```python\ndef {}(): return {}\n```"
COMMON = {"run": "r", "run_hash": "0", "fedbench": "0", "created": "2026-01-01T00:00:00Z"}


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = tmp_path / "own.yaml"
    file.write_text(
        f"""
name: own
dataset: {{path: {tmp_path}/rows.jsonl, columns: [ask, test]}}
prompt: "{{{{ ask }}}}"
reference: passed
check: {{tests: "{{{{ test }}}}", solution: "{{{{ code }}}}"}}
metrics: ["pass@1"]
"""
    )
    return file


@pytest.fixture(autouse=True)
def isolated() -> None:
    try:
        sandbox.open_sandbox()
    except ConfigError as error:
        pytest.skip(str(error))


def scores(table: SampleTable) -> dict[str, ScoreRecord]:
    return {record.metric: record for record in score_table(table, COMMON, {})}


def answered(tmp_path: Path, task: Task, *completions: tuple[str, str]) -> SampleTable:
    file = tmp_path / "answers.jsonl"
    rows = [{"id": own, "completion": text} for own, text in completions]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return score_answers(file, task, load_items(task)).table


def test_a_file_of_answers_is_scored_by_running_them(own_task: Path, tmp_path: Path) -> None:
    task = load_task(str(own_task))
    given = ("one", RIGHT.format("one", 1)), ("two", RIGHT.format("two", 3))
    table = answered(tmp_path, task, *given)
    assert table.answers[0].extracted == ["passed", "wrong"]
    record = scores(table)["pass@1"]
    assert (record.value, record.num_failed, record.num_unparsed) == (0.5, 0, 0)
    assert record.backend is not None
    assert record.backend.startswith("answers, sandbox=")


def test_no_code_is_unparsed_and_a_broken_sandbox_has_failed(
    own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(str(own_task))
    given = ("one", "I cannot."), ("two", RIGHT.format("two", 2))
    assert answered(tmp_path, task, *given).answers[0].status == ["unparsed", "parsed"]
    monkeypatch.setattr(code_checks, "open_sandbox", lambda: sandbox.Sandbox("namespaces"))
    monkeypatch.setattr(sandbox_commands, "_BOOT", "raise SystemExit")
    own = answered(tmp_path, task, *given).answers[0]
    assert own.status == ["unparsed", "failed"]
    assert own.errors[1].startswith("sandbox: the sandbox did not start")


def test_several_samples_give_pass_at_k(own_task: Path, tmp_path: Path) -> None:
    task = load_task(str(own_task)).model_copy(update={"metrics": ("pass@1", "pass@2")})
    right, wrong = RIGHT.format("one", 1), RIGHT.format("one", 7)
    given = ("one", right), ("one", wrong), ("one", "no"), ("two", wrong), ("two", wrong)
    found = scores(answered(tmp_path, task, *given))
    assert found["pass@1"].value == pytest.approx((1 / 3 + 0) / 2)
    assert found["pass@2"].value == pytest.approx((2 / 3 + 0) / 2)  # 1 - C(2,2) / C(3,2)


def test_a_model_is_asked_for_as_many_samples_as_the_task_takes(
    own_task: Path, tmp_path: Path
) -> None:
    own_task.write_text(own_task.read_text() + "sampling: {samples: 2, temperature: 0.8}\n")
    task = load_task(str(own_task))
    texts = [RIGHT.format("one", 1), RIGHT.format("one", 2), "no", RIGHT.format("two", 2)]
    model = Checkpoint(ModelId(method="m", model_kind="base"), "base", None, "b", "w", "b")
    with contextlib.closing(AnswerStore(tmp_path / "answers.sqlite")) as store:
        asked = [(task, load_items(task))]
        result = evaluate([model], asked, ScriptedBackend(texts), store, template="plain")
    (own,) = result.tables["own"].answers
    assert own.samples == [["passed", "wrong"], [None, "passed"]]
    assert own.extracted == ["passed", "passed"]
    assert len(result.tables["own"].prompt_hashes) == 2
    assert scores(result.tables["own"])["pass@1"].value == 0.5


def test_nobody_is_asked_for_programs_that_nobody_may_run(
    own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_trouble", lambda kind, image: "not permitted")
    monkeypatch.delenv("FEDBENCH_UNSAFE_CODE", raising=False)
    task, backend = load_task(str(own_task)), ScriptedBackend([])
    model = Checkpoint(ModelId(method="m", model_kind="base"), "base", None, "b", "w", "b")
    with (
        contextlib.closing(AnswerStore(tmp_path / "answers.sqlite")) as store,
        pytest.raises(ConfigError, match="FEDBENCH_UNSAFE_CODE=1"),
    ):
        evaluate([model], [(task, load_items(task))], backend, store, template="plain")
    assert backend.num_answered == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("reference: passed", "reference: right"), "check is of kind generate"),
        (("check: {", "check: {program: cod, "), "did you mean 'code'"),
        (("check: {", "sampling: {samples: 2}\ncheck: {"), "raise temperature"),
    ],
)
def test_a_wrong_task_file_is_refused(
    own_task: Path, change: tuple[str, str], message: str
) -> None:
    own_task.write_text(own_task.read_text().replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_task(str(own_task))


def test_a_row_whose_tests_are_no_python_is_named(own_task: Path, tmp_path: Path) -> None:
    bad = ROWS[0] | {"test": "assert one("}
    (tmp_path / "rows.jsonl").write_text(json.dumps(bad) + "\n")
    with pytest.raises(DataError, match="row 0: its tests or its solution are no Python"):
        load_items(load_task(str(own_task)))


def test_a_check_is_part_of_the_tasks_hash(own_task: Path) -> None:
    before = load_task(str(own_task)).hash
    own_task.write_text(own_task.read_text().replace("check: {", "check: {program: bigcode, "))
    assert load_task(str(own_task)).hash != before

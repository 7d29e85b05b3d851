"""Answers that exist already, and directories that belong to another scoring."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbench.errors import ConfigError, OutputError
from fedbench.generation.opening import Engine
from fedbench.results.record import ScoreRecord, read_run, read_scores, write_run
from fedbench.scoring import score, score_answer_file

LABELS = ["no", "yes"]
REFERENCES = ["yes", "no", "yes", "no"]


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task of four items; its path."""
    rows = [{"text": f"text {n}", "answer": answer} for n, answer in enumerate(REFERENCES)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "made.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "made",
                "dataset": {"path": str(data), "columns": ["text", "answer"]},
                "prompt": "Up?",
                "input": "{{ text }}",
                "reference": "{{ answer }}",
                "labels": LABELS,
                "extract": "label_word",
                "metrics": ["accuracy", "macro_f1"],
            }
        )
    )
    return str(file)


def answers(directory: Path, *lines: Any) -> Path:
    file = directory / "mine.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n")
    return file


def answered(*completions: str) -> list[dict[str, Any]]:
    return [{"doc_id": n, "completion": text} for n, text in enumerate(completions)]


def accuracy(records: list[ScoreRecord]) -> ScoreRecord:
    return next(record for record in records if record.metric == "accuracy")


def test_the_same_scoring_may_be_repeated_and_another_needs_another_directory(
    task: str, tmp_path: Path
) -> None:
    file = answers(tmp_path, *answered("yes", "no", "yes", "no"))
    first = score_answer_file(file, [task], output=tmp_path / "out")
    again = score_answer_file(file, [task], output=tmp_path / "out")
    assert [r.value for r in again] == [r.value for r in first]
    file = answers(tmp_path, *answered("no", "no", "yes", "no"))
    with pytest.raises(OutputError, match=r"holds the scores of another command .*choose another"):
        score_answer_file(file, [task], output=tmp_path / "out")
    assert read_scores(tmp_path / "out") == again


def test_what_was_left_out_and_is_scored_now_is_no_longer_left_out(
    task: str, tmp_path: Path
) -> None:
    file, out = answers(tmp_path, *answered("yes", "no", "yes", "no")), tmp_path / "out"
    [*_, record] = score_answer_file(file, [task], output=out)
    run = read_run(out)
    assert run is not None
    left_out = {record.task_key: "needs a package", "other": "needs a compiler"}
    write_run(out, run.model_copy(update={"facts": {**run.facts, "left_out": left_out}}))
    score_answer_file(file, [task], output=out)
    again = read_run(out)
    assert again is not None
    assert again.facts["left_out"] == {"other": "needs a compiler"}


@pytest.mark.parametrize("name", ["scores.jsonl", "run.yaml"])
def test_the_directory_of_a_run_is_not_written_over(task: str, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("")
    file = answers(tmp_path, *answered("yes"))
    with pytest.raises(OutputError, match="holds another run; choose another --output"):
        score_answer_file(file, [task], output=out)
    assert sorted(path.name for path in out.iterdir()) == [name]


@pytest.mark.parametrize(
    ("checkpoints", "tasks", "words"),
    [
        ([], ["headlines"], "no checkpoint is given; name at least one with --ckpt"),
        (["somewhere"], [], "no task is given; name some with --tasks"),
    ],
)
def test_scoring_nothing_is_refused(checkpoints: list[str], tasks: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        score(checkpoints, tasks)


def test_a_command_that_failed_does_not_bar_the_corrected_one(
    task: str, tiny_base_directory: Path, tmp_path: Path
) -> None:
    out, place = tmp_path / "out", [str(tiny_base_directory)]
    misspelt = Engine("transformers", {"batch_token": 512})
    with pytest.raises(ConfigError, match="batch_token: unknown option"):
        score(place, [task], device="cpu", engine=misspelt, output=out)
    assert not out.exists()
    meant = Engine("transformers", {"batch_tokens": 512})
    score(place, [task], template="fingpt", device="cpu", engine=meant, output=out)
    words = r"holds the scores of another command \(what differs: template; see "
    with pytest.raises(OutputError, match=words):
        score(place, [task], template="plain", device="cpu", engine=meant, output=out)
    words = r"\(what differs: template, limit; see "
    with pytest.raises(OutputError, match=words):
        score(place, [task], template="plain", device="cpu", engine=meant, output=out, limit=1)
    assert read_scores(out)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [("config.json", "rms_norm_eps", 0.5), ("generation_config.json", "eos_token_id", [0, 7])],
)
def test_a_model_of_the_same_weights_with_another_configuration_is_asked_itself(
    task: str, tiny_base_directory: Path, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base_directory, other)
    settings = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps(settings | {key: value}))
    asked = []
    for model in (tiny_base_directory, other, other):
        out = tmp_path / f"{model.name}-{len(asked)}"
        score([str(model)], [task], template="fingpt", device="cpu", output=out)
        run = read_run(out)
        assert run is not None
        asked.append(run.facts["answers_asked"])
    assert asked == [4, 4, 0]


def test_a_model_directory_is_scored_and_scoring_it_again_asks_nothing(
    task: str, tiny_base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedbench.generation.transformers import TransformersBackend

    def run() -> list[ScoreRecord]:
        place = str(tiny_base_directory)
        return score([place], [task], template="fingpt", device="cpu", output=tmp_path / "out")

    first = run()
    assert accuracy(first).num_scored == 4
    monkeypatch.delattr(TransformersBackend, "answer")
    again = run()
    assert [(r.metric, r.value) for r in again] == [(r.metric, r.value) for r in first]


def test_a_template_that_knows_no_thoughts_is_not_asked_for_them(task: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--template plain is none; leave one out"):
        score(["x"], [task], template="plain", thinking=True, output=tmp_path / "out")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(task: str, tmp_path: Path, seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"--seed {seed}: is no seed; give a number from 0"):
        score(["x"], [task], seed=seed, output=tmp_path / "out")

"""The vllm backend with the real engine, held against the transformers backend.

The model is float32 and random, on CPU; several adapters of different rank, layers and scaling.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import taught_judge
from asking_engines import LABELS, PHRASES, TEMPLATE, ask, closest, jobs_of, questions
from click.testing import CliRunner

from fedbench.cli import app
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.evaluate import evaluate
from fedbench.evaluation.task import load_items
from fedbench.generation.backend import Checkpoint, Job
from fedbench.generation.store import AnswerStore


@pytest.fixture
def models(base_checkpoint: Checkpoint, adapters: list[Checkpoint]) -> list[Checkpoint]:
    return [base_checkpoint, *adapters]


def test_both_backends_read_the_same_tokens(vllm: Any, transformers_backend: Any) -> None:
    asked = [*questions(3), *questions(3, LABELS), *questions(3, PHRASES)]
    assert vllm.prepare(asked, TEMPLATE) == transformers_backend.prepare(asked, TEMPLATE)
    assert vllm.base_hash == transformers_backend.base_hash


@pytest.mark.parametrize("choices", [LABELS, PHRASES], ids=["one token", "several tokens"])
def test_loglikelihoods_of_mixed_adapters_agree_with_transformers(
    vllm: Any, transformers_backend: Any, models: list[Checkpoint], choices: tuple[str, ...]
) -> None:
    jobs = jobs_of(models, vllm.prepare(questions(6, choices), TEMPLATE))
    answers, expected = ask(vllm, jobs), ask(transformers_backend, jobs)
    assert closest(answers, expected) < 1e-3
    assert [a.greedy for a in answers] == [e.greedy for e in expected]


def test_greedy_answers_of_mixed_adapters_agree_with_transformers(
    vllm: Any, transformers_backend: Any, models: list[Checkpoint]
) -> None:
    jobs = jobs_of(models, vllm.prepare(questions(6), TEMPLATE))
    answers, expected = ask(vllm, jobs), ask(transformers_backend, jobs)
    assert [(a.text, a.finish) for a in answers] == [(e.text, e.finish) for e in expected]
    assert len({a.text for a in answers[::6]}) == len(models)  # each model says something else


def test_the_base_is_not_served_with_an_adapter_of_its_neighbours(
    vllm: Any, transformers_backend: Any, models: list[Checkpoint]
) -> None:
    # Jobs of the base last: the batch it joins is full of adapters.
    jobs = jobs_of([*models[1:], models[0]], vllm.prepare(questions(4, LABELS), TEMPLATE))
    assert closest(ask(vllm, jobs), ask(transformers_backend, jobs)) < 1e-3


def test_an_answer_ends_before_the_first_stop_string(vllm: Any, models: list[Checkpoint]) -> None:
    (request,) = vllm.prepare(questions(1), TEMPLATE)
    (whole,) = ask(vllm, jobs_of(models[:1], [request]))
    assert whole.text is not None
    stop = whole.text[3:5]
    stopped = replace(request, sampling=replace(request.sampling, stop=("never said", stop)))
    (answer,) = ask(vllm, jobs_of(models[:1], [stopped]))
    assert (answer.text, answer.finish) == (whole.text.split(stop)[0], "stop")


def test_a_token_that_ends_answers_is_no_part_of_the_text(
    vllm: Any, models: list[Checkpoint]
) -> None:
    (request,) = vllm.prepare(questions(1), TEMPLATE)
    (choice,) = vllm.prepare(questions(1, LABELS), TEMPLATE)
    every = tuple(range(2, 320))
    (answer,) = ask(vllm, jobs_of(models[:1], [replace(request, ends=every)]))
    assert (answer.text, answer.finish) == ("", "stop")
    assert choice.ids == request.ids


def test_samples_are_drawn_again_alike_and_differ_from_one_another(
    vllm: Any, models: list[Checkpoint]
) -> None:
    (request,) = vllm.prepare(questions(1), TEMPLATE)
    samples = [
        replace(request, sampling=replace(request.sampling, temperature=1.0, index=index))
        for index in range(4)
    ]
    first = ask(vllm, jobs_of(models[1:2], samples))
    alone = [ask(vllm, jobs_of(models[1:2], [sample]))[0] for sample in reversed(samples)]
    assert first == alone[::-1]
    assert len({answer.text for answer in first}) == 4


def test_loglikelihoods_are_those_of_the_model_at_any_temperature(
    vllm: Any, models: list[Checkpoint]
) -> None:
    (request,) = vllm.prepare(questions(1, LABELS), TEMPLATE)
    warm = replace(request, sampling=replace(request.sampling, temperature=2.0, top_p=0.5))
    jobs = [Job(models[1], (request, warm))]
    ((_, (one, other)),) = vllm.stream(iter(jobs))
    assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-5)


def test_more_options_than_vllm_tells_at_once_are_asked_in_parts(
    vllm: Any, transformers_backend: Any, models: list[Checkpoint]
) -> None:
    (request,) = vllm.prepare(questions(1, LABELS), TEMPLATE)
    every = replace(request, choices=tuple((token,) for token in range(300)))  # vLLM's limit: 128
    jobs = jobs_of(models[1:2], [every])
    assert closest(ask(vllm, jobs), ask(transformers_backend, jobs)) < 1e-3


def test_what_the_engine_refuses_is_an_answer_with_an_error(
    vllm: Any, models: list[Checkpoint]
) -> None:
    (request,) = vllm.prepare(questions(1, LABELS), TEMPLATE)
    strange = replace(request, ids=(*request.ids, 10**6))
    refused, fine = ask(vllm, jobs_of(models[1:2], [strange, request]))
    assert "out of vocabulary" in (refused.error or "")
    assert fine.error is None


def test_jobs_are_drawn_only_as_the_engine_has_room(vllm: Any, models: list[Checkpoint]) -> None:
    drawn: list[int] = []

    def jobs() -> Iterator[Job]:
        for number, job in enumerate(jobs_of(models[1:], requests)):
            drawn.append(number)
            yield job

    requests = vllm.prepare(questions(40, LABELS), TEMPLATE)
    stream = vllm.stream(jobs())
    next(stream)
    assert len(drawn) < 2 * 32 + 2  # twice as many as run at once, 16, and what has just ended
    assert len(list(stream)) == 3 * 40 - 1


def test_a_conversation_goes_on_as_with_transformers(
    vllm: Any, transformers_backend: Any, base_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "talks.jsonl").write_text('{"turns": ["What is the news?", "Rises or falls?"]}\n')
    (tmp_path / "task.yaml").write_text(
        f"name: talks\ndataset: {{path: {tmp_path}/talks.jsonl, columns: [turns]}}\n"
        "turns: turns\ntemplate: plain\nrubric: mt_bench-fedbench\nmetrics: [judge_score]\n"
        "sampling: {max_tokens: 8}\n"
    )
    task = load_task(str(tmp_path / "task.yaml"))
    told = []
    for name, backend in (("vllm", vllm), ("transformers", transformers_backend)):
        store = AnswerStore(tmp_path / f"{name}.sqlite")
        result = evaluate([base_checkpoint], [(task, load_items(task))], backend, store)
        [[conversation]] = result.open_ended["talks"].conversations.values()
        told.append([turn.text for turn in conversation])
        store.close()
    assert told[0] == told[1]
    assert len(told[0]) == 2


# Judges in this process. The engine that runs already is asked, in place of one more.

Judging = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def judge(vllm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judging:
    """`fedbench judge` of two models' answers, with a model directory as the judge."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBENCH_ANSWERS", str(tmp_path / "store.sqlite"))
    monkeypatch.setattr("fedbench.judging.opening.open_backend", lambda *args: vllm)
    monkeypatch.setattr(vllm, "close", lambda: None)

    def run(model: Path, *options: str) -> list[dict[str, Any]]:
        described = {"model": str(model), "backend": "vllm", "template": "plain"}
        line = taught_judge.write_case(tmp_path, described)
        result = CliRunner().invoke(app, ["judge", *line, "--json", "--output", "out", *options])
        assert result.exception is None, result.output
        records: list[dict[str, Any]] = json.loads(result.stdout)
        return records

    return run


def replies(place: Path) -> list[str]:
    [file] = (place / "out" / "judgments").glob("*.jsonl.gz")
    return [json.loads(line)["text"] for line in gzip.decompress(file.read_bytes()).splitlines()]


def test_a_judge_is_held_to_json_of_the_rubrics_scale(
    judge: Judging, taught: Path, tmp_path: Path
) -> None:
    records = judge(taught)
    assert {r["method"]: r["value"] for r in records} == {"rises": 8, "falls": 2}
    assert {r["num_failed"] for r in records} == {0}
    [name] = {r["judge"] for r in records}
    assert name.endswith(", constrained")
    for reply in replies(tmp_path):
        assert set(json.loads(reply)) == {"explanation", "rating"}


def test_a_judge_that_would_say_something_else_is_held_to_the_scale(
    judge: Judging, taught: Path, tmp_path: Path
) -> None:
    """Taught to say 8 and 2, and held to 3 to 7."""
    rubric = taught_judge.RUBRIC.replace("scale: [1, 10]", "scale: [3, 7]")
    (tmp_path / "narrow.yaml").write_text(rubric)
    records = judge(taught, "--rubric", "narrow.yaml")
    assert {r["num_failed"] for r in records} == {0}
    assert all(3 <= r["value"] <= 7 for r in records)


def test_a_model_that_says_anything_is_held_to_the_rubrics_labels(
    judge: Judging, base: Path, tmp_path: Path
) -> None:
    records = judge(base, "--rubric", "tone.yaml")
    assert {r["num_failed"] for r in records} == {0}
    assert set(replies(tmp_path)) <= {"rude", "polite", "neutral"}


def test_without_labels_the_same_model_is_asked_twice_and_its_scores_are_withheld(
    judge: Judging, base: Path, tmp_path: Path
) -> None:
    records = judge(base, "--rubric", "tone.yaml", "--no-constrain")
    assert {(r["value"], r["num_failed"]) for r in records} == {(None, taught_judge.QUESTIONS)}
    [facts] = json.loads((tmp_path / "out" / "run.json").read_text())["facts"]["judged"].values()
    assert facts["asked again for a verdict"] == 2 * taught_judge.QUESTIONS

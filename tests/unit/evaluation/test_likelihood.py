"""How likely known texts are: every token once, behind its own prompt, in windows of any size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbench.errors import ConfigError
from fedbench.evaluation.answers import score_answers
from fedbench.evaluation.catalogue import load_task, load_tasks
from fedbench.evaluation.evaluate import Evaluation, evaluate
from fedbench.evaluation.likelihood import windows
from fedbench.evaluation.scores import score_table
from fedbench.evaluation.task import Task, load_items
from fedbench.generation.backend import Checkpoint
from fedbench.generation.scripted import ScriptedBackend
from fedbench.generation.store import AnswerStore
from fedbench.metrics import METRICS, Sample
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.schema import validated

ROWS = [
    {"ask": "What is the sentiment of this news?", "answer": "positive"},
    {"ask": "Profit rises at Acme.", "answer": "Profit rises at Acme. " * 12 + "ä"},
]
METRIC_NAMES = ["bits_per_byte", "perplexity", "token_loss", "byte_perplexity"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def task(file: Path, **changes: Any) -> Task:
    examples = {"path": str(file), "instruction": "{{ ask }}", "response": "{{ answer }}"}
    made = {
        "name": "made",
        "kind": "loglikelihood",
        "examples": examples,
        "template": "plain",
        "metrics": METRIC_NAMES,
    }
    return validated(Task, made | changes, "made.yaml")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    opened = AnswerStore(tmp_path / "answers.sqlite")
    yield opened
    opened.close()


def scores(result: Evaluation) -> dict[str, ScoreRecord]:
    common = {"run": "r", "run_hash": "h", "fedbench": "0", "created": "2026-01-01T00:00:00Z"}
    [table] = result.tables.values()
    return {record.metric: record for record in score_table(table, common, {})}


def base(directory: Path, weights: str) -> Checkpoint:
    model = ModelId(method="base", model_kind="base", round=0)
    return Checkpoint(model, "base", None, str(directory), weights, weights)


def backend(directory: Path, max_length: int | None = None) -> Any:
    from fedbench.generation.transformers import TransformersBackend
    from fedbench.model_config import ModelConfig

    made = TransformersBackend(str(directory), ModelConfig(name=str(directory), device="cpu"))
    if max_length is not None:
        object.__setattr__(made.prompts, "max_length", max_length)
    return made


# Windows


@given(
    st.lists(st.integers(), min_size=1, max_size=40),
    st.lists(st.integers(), min_size=1, max_size=60),
    st.integers(1, 50),
)
def test_every_token_is_predicted_once_behind_what_precedes_it(
    prompt: list[int], answer: list[int], max_length: int
) -> None:
    whole, place = (*prompt, *answer), len(prompt)
    found = list(windows(tuple(prompt), tuple(answer), max_length))
    assert sum((predicted for _, predicted in found), ()) == tuple(answer)
    for number, (before, predicted) in enumerate(found):
        assert before
        assert len(before) + len(predicted) - 1 <= max_length
        assert whole[place - len(before) : place] == before
        if number or len(found) > 1:
            assert len(before) >= min(place, max_length // 2)
        place += len(predicted)


def test_what_fits_is_read_at_once() -> None:
    assert list(windows((1, 2), (3, 4, 5), 4)) == [((1, 2), (3, 4, 5))]  # 5 is not read
    assert list(windows((1, 2), (3, 4, 5), 3)) == [((2,), (3, 4, 5))]
    assert list(windows((1, 2, 3), (4, 5, 6, 7), 4)) == [((2, 3), (4, 5, 6)), ((5, 6), (7,))]


# Scores of a model


def test_the_sum_is_that_of_one_pass_over_the_whole_text(
    tiny_base_directory: Path, rows: Path, store: AnswerStore
) -> None:
    import torch

    engine = backend(tiny_base_directory)
    own = task(rows)
    items = load_items(own)
    result = evaluate([base(tiny_base_directory, engine.base_hash)], [(own, items)], engine, store)
    tokenizer = engine.base.tokenizer
    total, tokens = 0.0, 0
    for row in ROWS:
        prompt = tokenizer(f"{row['ask']}\n")["input_ids"]
        whole = tokenizer(f"{row['ask']}\n{row['answer']}{tokenizer.eos_token}")["input_ids"]
        with torch.inference_mode():
            logits = engine.base.module(torch.tensor([whole])).logits[0].float()
        logs = torch.log_softmax(logits[:-1], dim=-1)
        own_logs = logs.gather(1, torch.tensor(whole[1:])[:, None])[len(prompt) - 1 :]
        total += float(own_logs.sum())
        tokens += len(own_logs)
    num_bytes = sum(len(row["answer"].encode()) for row in ROWS)
    found = {name: record.value for name, record in scores(result).items()}
    assert found["token_loss"] == pytest.approx(-total / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(-total / tokens), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(-total / num_bytes / math.log(2), rel=1e-5)
    assert found["byte_perplexity"] == pytest.approx(math.exp(-total / num_bytes), rel=1e-4)
    assert scores(result)["bits_per_byte"].headline


def test_a_text_longer_than_the_context_keeps_all_its_tokens(
    tiny_base_directory: Path, rows: Path, store: AnswerStore
) -> None:
    own = task(rows)
    items = load_items(own)
    wide, narrow = backend(tiny_base_directory), backend(tiny_base_directory, max_length=16)
    checkpoint = base(tiny_base_directory, wide.base_hash)
    found = [
        evaluate([checkpoint], [(own, items)], engine, store, keep_samples=True)
        for engine in (wide, narrow)
    ]
    tables = [result.tables["made"] for result in found]
    counts = [
        [pair and pair[1] for pair in (table.answers[0].values or {})["perplexity"]]
        for table in tables
    ]
    assert counts[0] == counts[1]
    assert found[1].num_asked > len(items)
    one, other = (scores(result)["token_loss"].value or 0.0 for result in found)
    assert one == pytest.approx(other, rel=0.2)  # shorter contexts, and random weights
    assert tables[0].item_hashes == tables[1].item_hashes
    assert [len(own) for own in found[1].samples["made"].responses.values()] == [2]


def test_every_answer_of_a_conversation_counts(tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello."), ("user", "Up?"), ("assistant", "Yes.")]
    turns = [{"role": role, "content": text} for role, text in said]
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"talk": turns}) + "\n")
    [item] = load_items(task(file, examples={"path": str(file), "messages": "talk"}))
    assert item.question.choices == ("Hello.", "Yes.")
    assert item.reference == "10"


# What is refused


def test_only_metrics_of_likelihoods_go_with_it_and_they_with_nothing_else(rows: Path) -> None:
    with pytest.raises(ConfigError, match="metric accuracy is not of likelihoods"):
        task(rows, metrics=["accuracy"])
    generate = {"kind": "generate", "examples": None, "prompt": "Up?", "reference": "{{ answer }}"}
    source = {"path": str(rows), "columns": ["answer"]}
    with pytest.raises(ConfigError, match="metric perplexity is of likelihoods"):
        task(rows, **generate, dataset=source, metrics=["perplexity"])


def test_a_backend_without_a_tokenizer_is_refused(rows: Path, store: AnswerStore) -> None:
    own = task(rows)
    with pytest.raises(ConfigError, match="takes the model's tokenizer"):
        evaluate([base(rows, "w")], [(own, load_items(own))], ScriptedBackend([]), store)


def test_a_file_of_completions_says_nothing_of_likelihoods(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"doc_id": 0, "completion": "positive"}\n')
    own = task(rows)
    with pytest.raises(ConfigError, match="scored by log-likelihoods"):
        score_answers(file, own, load_items(own))


# By name


def test_the_loss_on_any_data_set_is_a_task_by_name() -> None:
    [own] = load_tasks(["loss/headlines"])
    assert own.key == "loss/headlines"
    assert own.headline_metric == "bits_per_byte"
    [item] = load_items(own, limit=1)
    assert item.question.choices[0] in ("negative", "neutral", "positive")


def test_a_data_set_that_is_unknown_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'headline'"):
        load_task("loss/headline")


# Arithmetic


def test_a_text_counts_by_its_length() -> None:
    samples = [
        Sample("", None, values={"perplexity": (-1.0, 1.0)}),
        Sample("", None, values={"perplexity": (-2.0, 3.0)}),
    ]
    metric = METRICS["perplexity"]
    value = metric.value(metric.statistics(samples, []).sum(axis=0))
    assert value == pytest.approx(math.exp((1.0 + 3 * 2.0) / 4))


def test_a_uniform_choice_of_a_byte_costs_eight_bits() -> None:
    sample = Sample("", None, values={"bits_per_byte": (-math.log(256), 7.0)})
    metric = METRICS["bits_per_byte"]
    assert metric.value(metric.statistics([sample], []).sum(axis=0)) == pytest.approx(8.0)

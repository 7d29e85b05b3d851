"""Tasks: every shipped one loads, and the hash knows what can change a score."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.catalogue import load_task, load_tasks, suite_tasks, suites, task_names
from fedbench.evaluation.task import Task, load_items
from fedbench.generation.backend import Sampling
from fedbench.schema import validated

ROWS = [
    {"q": "Up?", "text": "Shares rise.", "answer": 1, "passage": "p1"},
    {"q": "Up?", "text": "Shares fall.", "answer": 0, "passage": "p1"},
    {"q": "Up?", "text": "Nothing new.", "answer": 0, "passage": "p2"},
]
TASK: dict[str, Any] = {
    "name": "made",
    "dataset": {"path": "rows.jsonl", "columns": ["q", "text", "answer"]},
    "prompt": "{{ q }}",
    "input": "{{ text }}",
    "reference": "{{ ['no', 'yes'][answer] }}",
    "labels": ["no", "yes"],
    "extract": "label_word",
    "metrics": ["accuracy", "macro_f1"],
    "sampling": {"max_tokens": 4},
    "variants": {"strict": {"extract": "verbatim", "version": 2}},
}


def task(**changes: Any) -> Task:
    return validated(Task, TASK | changes, "made.yaml")


def written(directory: Path, **changes: Any) -> str:
    """The task with its rows as files; gives the path of the former."""
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = directory / "made.yaml"
    dataset = {"path": str(data), "columns": ["q", "text", "answer"]}
    file.write_text(yaml.safe_dump(TASK | {"dataset": dataset} | changes))
    return str(file)


# The shipped tasks


@pytest.mark.parametrize("name", task_names())
def test_every_shipped_task_loads_and_says_where_it_comes_from(name: str) -> None:
    loaded = load_task(name)
    assert loaded.name == name
    assert loaded.description
    assert loaded.citation
    assert loaded.license != "unknown"
    assert loaded.headline_metric in loaded.metrics


SIZE_NOT_KNOWN = {"fingpt_convfinqa", "fingpt_finred", "numglue"}
NO_COPY_AT_HAND = SIZE_NOT_KNOWN | {
    *("careqa", "crass", "do_not_answer_refusal", "math", "math500"),
    *("ds1000", "fingpt_headline", "fingpt_ner", "fiqa_sa_all"),
    *("humanevalfix", "humanevalsynthesize"),
}


@pytest.mark.parametrize("name", task_names())
def test_every_shipped_task_pins_its_data(name: str) -> None:
    source = load_task(name).dataset
    assert bool(source.rows) != (name in SIZE_NOT_KNOWN)
    assert (source.sha256 is None) == (name in NO_COPY_AT_HAND)
    assert re.fullmatch("[0-9a-f]{64}", source.sha256 or "0" * 64)


@pytest.mark.parametrize("name", suites())
def test_every_task_of_a_suite_loads(name: str) -> None:
    assert [loaded.key for loaded in load_tasks([], name)] == suite_tasks(name)


def test_headlines_has_600_balanced_items() -> None:
    items = load_items(load_task("headlines"))
    # Numbers stated in fedbench/data/headlines.py.
    assert Counter(item.reference for item in items) == dict.fromkeys(
        ["negative", "neutral", "positive"], 200
    )
    assert len({item.id for item in items}) == len({item.hash for item in items}) == 600
    assert items[0].id == "test/0"
    assert items[0].question.choices == ("negative", "neutral", "positive")
    assert items[0].text == items[0].question.turns[0].input


def test_a_limit_takes_the_first_items() -> None:
    headlines = load_task("headlines")
    assert load_items(headlines, limit=3) == load_items(headlines)[:3]


# Items


def test_rows_become_questions_with_references(tmp_path: Path) -> None:
    items = load_items(load_task(written(tmp_path, cluster="{{ passage }}")), seed=7)
    first = items[0]
    assert (first.question.turns[0].instruction, first.question.turns[0].input) == (
        "Up?",
        "Shares rise.",
    )
    assert first.question.sampling == Sampling(max_tokens=4, seed=7)
    assert first.question.choices == ()
    assert [item.reference for item in items] == ["yes", "no", "no"]
    assert [item.cluster for item in items] == ["p1", "p1", "p2"]


def test_an_items_hash_is_of_the_used_columns(tmp_path: Path) -> None:
    before = [item.hash for item in load_items(load_task(written(tmp_path)))]
    assert len(set(before)) == 3
    loaded = load_task(written(tmp_path))
    data = Path(loaded.dataset.path)
    rows = [row | {"passage": "other"} for row in ROWS]
    rows[1] = rows[1] | {"text": "Shares fell."}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = [item.hash for item in load_items(loaded)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_reference_that_is_no_label_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task made, .* row 0: reference 'yes' is none of the"):
        load_items(load_task(written(tmp_path, labels=["no", "perhaps"])))


@pytest.mark.parametrize("reference", ["{{ absent }}", "{{ ['no'][answer] }}", "{{ q + 1 }}"])
def test_a_row_that_cannot_be_rendered_is_refused_by_row(tmp_path: Path, reference: str) -> None:
    with pytest.raises(DataError, match=r"row 0: .*the columns are not those the task names"):
        load_items(load_task(written(tmp_path, reference=reference)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "{{ ['no'].index(q) }}"}, "row 0: reference: 'Up?' is not in list; correct"),
        ({"prompt": "{{ 1 / answer }}"}, "row 1: prompt: division by zero; correct the row or"),
        ({"kind": "choice", "choices": "1 / 0"}, "row 0: choices: division by zero; correct"),
        ({"turns": "1 / 0", "prompt": "", "input": ""}, "row 0: turns: division by zero; correct"),
    ],
)
def test_what_jinja_cannot_do_with_a_row_is_refused_by_row(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        load_items(load_task(written(tmp_path, **changes)))


def test_a_filter_that_jinja_does_not_have_is_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompt: is not valid Jinja .No filter named 'uper'"):
        load_items(load_task(written(tmp_path, prompt="{{ q | uper }}")))


def test_a_task_file_reaches_no_python_through_its_jinja(tmp_path: Path) -> None:
    reach = "{{ q.__class__.__mro__ }}"
    with pytest.raises(DataError, match=r"access to attribute '__class__' .* is unsafe; correct"):
        load_items(load_task(written(tmp_path, prompt=reach)))


def test_a_column_to_group_by_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column 'subjct', only 'q', .*; correct group_by"):
        load_items(load_task(written(tmp_path, group_by="subjct")))


# Variants and names


def test_a_variant_overrides_and_has_a_name_and_hash_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path)
    plain, strict = load_tasks([path, f"{path}:strict"])
    assert (plain.key, strict.key) == ("made", "made:strict")
    assert (plain.extract, strict.extract) == ("label_word", "verbatim")
    assert (plain.version, strict.version) == (1, 2)
    assert plain.hash != strict.hash
    assert load_items(plain) == load_items(strict)


def test_the_fingpt_variant_reads_answers_by_its_own_rule() -> None:
    assert load_task("fpb").extract == "label_word"
    assert load_task("fpb:fingpt").extract == "fingpt_sentiment"
    assert load_task("fpb:fingpt").dataset == load_task("fpb").dataset


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fbp", "unknown task 'fbp': did you mean 'fpb'? `fedbench list tasks` shows all"),
        ("zzz", "unknown task 'zzz': `fedbench list tasks` shows all"),
        ("fpb:fingtp", "task fpb has no variant 'fingtp'; known are: fingpt"),
        ("headlines:x", "task headlines has no variant 'x'; known are: none"),
        ("absent.yaml", "absent.yaml: there is no such file"),
    ],
)
def test_an_unknown_task_or_variant_is_refused_with_what_was_meant(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_task(name)


def test_an_unknown_suite_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown suite 'finanse': did you mean 'finance'"):
        suite_tasks("finanse")


def test_a_comma_behind_the_last_suite_names_none() -> None:
    assert [one.name for one in load_tasks([], "demo, ,")] == ["headlines"]


def test_a_task_that_is_named_twice_is_scored_once() -> None:
    loaded = load_tasks(["headlines", "headlines"], "demo")
    assert [one.name for one in loaded] == ["headlines"]


def test_two_different_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    """One of them would be dropped, and nobody would hear of it."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    with pytest.raises(ConfigError, match="two different tasks are called made; change the name"):
        load_tasks([written(first), written(second, extract="verbatim")])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": ["acuracy"]}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        ({"extract": "label"}, "unknown extract 'label'"),
        ({"headline": "weighted_f1"}, "headline 'weighted_f1' is not among metrics"),
        ({"kind": "choice", "labels": []}, "kind is choice, but labels are empty"),
        ({"promt": "x"}, "promt: unknown key; did you mean 'prompt'"),
        ({"prompt": "{{ q"}, "prompt: is not valid Jinja"),
        ({"cluster": "{% if %}"}, "cluster: is not valid Jinja"),
        ({"metrics": []}, "metrics are empty; name at least one"),
        ({"metrics": ["accuracy"] * 2}, "metrics: 'accuracy' stands there twice; remove one"),
        ({"labels": ["no", "yes", "no"]}, "labels: 'no' stands there twice; remove one"),
        ({"name": "a,b"}, "name: is no name; give one without comma, colon or space around it"),
        ({"name": ""}, "name: is no name"),
        ({"variants": {"a:b": {}}}, "variants.a:b.[key]: is no name"),
        (
            {"labels": []},
            "extract label_word looks for the labels, but labels are empty; list them",
        ),
        ({"extract": "choice_letter"}, "looks for single letters, but labels are no, yes; choose"),
        ({"metrics": ["maj@5"]}, "metric maj@5 is of 5 answers to each item, but sampling.samples"),
    ],
)
def test_a_wrong_task_file_is_refused_by_its_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        task(**changes)


# The hash


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"dataset": TASK["dataset"] | {"sha256": "0" * 64}},
        {"dataset": TASK["dataset"] | {"split": "test"}},
        {"kind": "choice"},
        {"prompt": "{{ q }} "},
        {"input": ""},
        {"reference": "{{ ['yes', 'no'][answer] }}"},
        {"labels": ["yes", "no"]},  # the order decides between equal log-likelihoods
        {"cluster": "{{ q }}"},
        {"extract": "verbatim"},
        {"template": "alpaca"},
        {"sampling": {"max_tokens": 5}},
        {"sampling": {"max_tokens": 4, "stop": ["\n"]}},
        {"metrics": ["macro_f1", "accuracy"]},  # the first is the headline
    ],
)
def test_the_hash_changes_when_a_score_could(changes: dict[str, Any]) -> None:
    assert task(**changes).hash != task().hash


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "in other words"},
        {"citation": "elsewhere"},
        {"license": "MIT"},
        {"superseded_by": "better"},
        {"variants": {}},
    ],
)
def test_the_hash_does_not_change_with_the_description(changes: dict[str, Any]) -> None:
    assert task(**changes).hash == task().hash

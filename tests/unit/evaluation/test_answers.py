"""Files of answers: whose answer a row is, in every shape that tools write, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fedbench.cli import app
from fedbench.data.templates import Turn
from fedbench.errors import ConfigError, DataError, OutputError
from fedbench.evaluation.answers import ScoredAnswers, score_answers
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.item_keys import own_keys
from fedbench.evaluation.task import Item, load_items
from fedbench.generation.backend import Question, Sampling
from fedbench.results.record import ScoreRecord, read_run, read_scores
from fedbench.results.samples import read_samples
from fedbench.scoring import score_answer_file

REFERENCES = ["yes", "no", "yes", "no"]
ROWS = [
    {"task_id": f"made/{n}", "question_id": 81 + n, "question": f"Is {n} even?", "answer": answer}
    for n, answer in enumerate(REFERENCES)
]
TASK: dict[str, Any] = {
    "name": "made",
    "prompt": "{{ question }} Answer yes or no.",
    "reference": "{{ answer }}",
    "labels": ["no", "yes"],
    "extract": "label_word",
    "metrics": ["accuracy", "macro_f1"],
}


def written_task(directory: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> str:
    """The path of a task over these rows."""
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"path": str(data), "columns": ["question", "answer"]}
    file = directory / "made.yaml"
    file.write_text(yaml.safe_dump(TASK | {"dataset": dataset} | changes))
    return str(file)


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task of four items; its path."""
    return written_task(tmp_path)


def answers(directory: Path, *lines: Any, name: str = "mine.jsonl") -> Path:
    file = directory / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n")
    return file


def answered(*completions: str) -> list[dict[str, Any]]:
    return [{"doc_id": n, "completion": text} for n, text in enumerate(completions)]


def scored(file: Path, task: str, **options: Any) -> ScoredAnswers:
    loaded = load_task(task)
    return score_answers(file, loaded, load_items(loaded), **options)


def extracted(file: Path, task: str, **options: Any) -> list[Any]:
    return scored(file, task, **options).table.answers[0].extracted


def accuracy(records: list[ScoreRecord]) -> ScoreRecord:
    return next(record for record in records if record.metric == "accuracy")


# Scores


def test_answers_are_scored_without_a_model(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("Yes.", "yes", "perhaps", "no"))
    record = accuracy(score_answer_file(file, [task], output=tmp_path / "out"))
    assert record.value == 0.5  # items 0 and 3
    assert (record.num_examples, record.num_scored) == (4, 4)
    assert (record.num_failed, record.num_unparsed) == (0, 1)
    assert (record.method, record.model_kind, record.backend) == ("mine", "reference", "answers")


def test_the_order_of_lines_does_not_matter(task: str, tmp_path: Path) -> None:
    lines = answered("yes", "no", "no", "no")
    one = score_answer_file(answers(tmp_path, *lines), [task], output=tmp_path / "one")
    other = score_answer_file(answers(tmp_path, *lines[::-1]), [task], output=tmp_path / "other")
    assert accuracy(one).value == accuracy(other).value == 0.75


def test_what_was_scored_is_on_disk(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes", "no", "yes", "no"))
    records = score_answer_file(file, [task], output=tmp_path / "out", command="fedbench score ...")
    assert read_scores(tmp_path / "out") == records
    run = read_run(tmp_path / "out")
    assert run is not None
    assert run.command == "fedbench score ..."
    assert run.run_hash == records[0].run_hash


@pytest.mark.parametrize("name", ["vicuna-7b-v1.3.jsonl", "vicuna-7b-v1.3.json"])
def test_a_model_keeps_the_dots_of_its_files_name(task: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    rows = [json.dumps(row) for row in answered("yes", "no", "yes", "no")]
    file.write_text("\n".join(rows) if name.endswith("l") else f"[{','.join(rows)}]")
    assert scored(file, task).checkpoint.model.method == "vicuna-7b-v1.3"


def test_items_without_an_answer_have_failed(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes", "no", "yes"))
    record = accuracy(score_answer_file(file, [task], output=tmp_path / "out"))
    assert record.value is None  # one in four failed, more than one in twenty
    assert (record.num_scored, record.num_failed) == (3, 1)
    [table] = read_samples(tmp_path / "out").values()
    assert table.answers[0].errors == {3: "no answer in the file"}


def test_the_answered_subset_is_scored_and_named_as_such(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, {"doc_id": 3, "completion": "no"}, {"doc_id": 0, "completion": "no"})
    records = score_answer_file(file, [task], subset="answered", output=tmp_path / "out")
    record = accuracy(records)
    assert record.method == "mine (answered subset, 2 of 4)"
    assert (record.value, record.num_examples, record.num_failed) == (0.5, 2, 0)
    [table] = read_samples(tmp_path / "out").values()
    assert table.item_ids == ["train/0", "train/3"]


def test_a_limit_passes_over_the_answers_behind_it(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes", "no", "no", "yes"))
    record = accuracy(score_answer_file(file, [task], limit=2, output=tmp_path / "out"))
    assert (record.value, record.num_examples) == (1.0, 2)
    late = answers(tmp_path, {"doc_id": 3, "completion": "no"}, name="late.jsonl")
    with pytest.raises(DataError, match="answers none of the first 2 items; raise --limit"):
        scored(late, task, limit=2)


# Several answers to an item


def test_several_rows_for_one_item_are_samples_and_an_item_counts_once(
    task: str, tmp_path: Path
) -> None:
    lines = [*answered("yes", "no", "yes", "no"), {"doc_id": 0, "completion": "no"}]
    records = score_answer_file(answers(tmp_path, *lines), [task], output=tmp_path / "out")
    record = accuracy(records)
    assert record.value == pytest.approx(0.875)  # (1/2 + 1 + 1 + 1) / 4, not 4 of 5 rows
    assert (record.num_examples, record.num_unparsed) == (4, 0)
    [table] = read_samples(tmp_path / "out").values()
    assert table.answers[0].samples == [["yes", "no"], ["no"], ["yes"], ["no"]]


def test_an_item_is_unparsed_when_none_of_its_samples_can_be_read(
    task: str, tmp_path: Path
) -> None:
    again = [{"doc_id": n, "completion": "yes" if n == 0 else "?"} for n in (0, 1)]
    lines = [*answered("?", "?", "yes", "no"), *again]
    own = scored(answers(tmp_path, *lines), task).table.answers[0]
    assert own.status == ["parsed", "unparsed", "parsed", "parsed"]
    assert own.extracted == ["yes", None, "yes", "no"]


def test_one_answer_per_item_leaves_the_record_as_it_was(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes", "no", "yes", "no"))
    assert "samples" not in scored(file, task).table.answers[0].model_dump(exclude_none=True)


# Whose answer a row is


@pytest.mark.parametrize(
    "name",
    [
        lambda n, item: {"doc_id": n},
        lambda n, item: {"item_hash": item.hash},
        lambda n, item: {"hash": item.hash},
        lambda n, item: {"task_id": f"made/{n}"},
        lambda n, item: {"question_id": 81 + n},
        lambda n, item: {"question_id": str(81 + n)},
        lambda n, item: {"question_id": 81.0 + n},  # as pandas writes whole numbers beside a gap
        lambda n, item: {"question": f"Is {n} even?"},  # the column
        lambda n, item: {"prompt": f"Is {n} even?\n Answer yes or no.\n"},  # what is asked
        lambda n, item: {"doc_id": n, "task_id": f"made/{n}"},
    ],
)
def test_a_row_names_its_item_in_one_of_many_ways(task: str, tmp_path: Path, name: Any) -> None:
    items = load_items(load_task(task))
    rows = [name(n, items[n]) | {"completion": REFERENCES[n]} for n in (2, 1, 3, 0)]
    assert extracted(answers(tmp_path, *rows), task) == REFERENCES


def test_a_position_is_within_the_subset_that_stands_beside_it(tmp_path: Path) -> None:
    loaded = load_task(written_task(tmp_path))
    items = [in_subset(name, n) for name in ("algebra", "biology") for n in (0, 1)]
    rows = [
        {"subset": item.keys["subset"], "doc_id": n % 2, "completion": item.reference}
        for n, item in enumerate(items)
    ]
    given = score_answers(answers(tmp_path, *rows), loaded, items)
    assert given.table.answers[0].extracted == ["yes", "no", "yes", "no"]
    with pytest.raises(DataError, match=r":1: doc_id '0' fits 2 items .*; add its subset"):
        score_answers(answers(tmp_path, *answered("yes")), loaded, items)
    by_hash = answers(tmp_path, {"item_hash": "biology1", "completion": "no"})
    given = score_answers(by_hash, loaded, items, subset="answered")
    assert given.table.item_ids == ["biology/test/1"]


def in_subset(subset: str, position: int) -> Item:
    question = Question((Turn("?"),), "generate", Sampling())
    return Item(
        id=f"{subset}/test/{position}",
        hash=f"{subset}{position}",
        question=question,
        reference=REFERENCES[position],
        keys={"subset": subset},
    )


@pytest.mark.parametrize(
    ("column", "is_key"),
    [
        ("id", True),
        ("task_id", True),
        ("BehaviorID", True),
        ("pubid", True),
        ("idx", True),
        ("question", True),
        ("answer_id", False),
        ("doc_id", False),
        ("valid", False),
        ("answer", False),
    ],
)
def test_the_columns_that_name_a_row_are_its_ids_and_its_question(
    column: str, is_key: bool
) -> None:
    assert own_keys({column: 7}) == ({column: "7"} if is_key else {})
    assert own_keys({column: None}) == own_keys({column: True}) == {}


# The shapes of other tools


def test_humaneval_samples_are_read_as_they_are(task: str, tmp_path: Path) -> None:
    rows = [
        {"task_id": f"made/{n}", "completion": text, "result": "passed", "passed": True}
        for n, text in enumerate(REFERENCES)
    ]
    assert extracted(answers(tmp_path, *rows), task) == REFERENCES


def test_a_solution_is_an_answer_only_where_there_is_no_completion(
    task: str, tmp_path: Path
) -> None:
    one = answers(tmp_path, {"doc_id": 0, "solution": "yes"})
    assert extracted(one, task, subset="answered") == ["yes"]
    both = answers(tmp_path, {"doc_id": 0, "solution": "the reference", "completion": "no"})
    assert extracted(both, task, subset="answered") == ["no"]


def test_fastchat_choices_are_samples_and_a_single_turn_task_takes_the_first_turn(
    task: str, tmp_path: Path
) -> None:
    row = {
        "question_id": 82,
        "answer_id": "x",
        "model_id": "vicuna",
        "choices": [{"index": 0, "turns": ["no", "yes"]}, {"index": 1, "turns": ["yes"]}],
        "tstamp": 1.0,
    }
    given = scored(answers(tmp_path, row), task, subset="answered")
    assert given.table.item_ids == ["train/1"]
    assert [answer.text for answer in given.answers[0]] == ["no", "yes"]


def test_a_question_of_two_turns_takes_the_second_answer(tmp_path: Path) -> None:
    loaded = load_task(written_task(tmp_path))
    question = Question((Turn("One?", response="1"), Turn("Two?")), "generate", Sampling())
    items = [Item("test/0", "aa", question, "yes", keys={"question_id": "7"})]
    file = answers(tmp_path, {"question_id": 7, "choices": [{"turns": ["no", "yes"]}]})
    assert score_answers(file, loaded, items).table.answers[0].extracted == ["yes"]


LM_EVAL = {
    "doc_id": 0,
    "doc": ROWS[0],
    "target": "yes",
    "arguments": {"gen_args_0": {"arg_0": "Is 0 even?", "arg_1": "{}"}},
    "metrics": ["exact_match"],
    "doc_hash": "d",
    "prompt_hash": "p",
    "target_hash": "t",
    "exact_match": 1.0,
}


def lm_eval_row(filter_name: str, *repeats: str, **changes: Any) -> dict[str, Any]:
    return LM_EVAL | {"resps": [list(repeats)], "filter": filter_name} | changes


def test_lm_eval_samples_count_once_however_many_filters_they_went_through(
    task: str, tmp_path: Path
) -> None:
    rows = [
        lm_eval_row("strict-match", "Yes!", filtered_resps=["[invalid]"]),
        lm_eval_row("flexible-extract", "Yes!", filtered_resps=["Yes"]),
    ]
    given = scored(answers(tmp_path, *rows), task, subset="answered")
    assert [[answer.text for answer in own] for own in given.answers] == [["Yes!"]]


def test_lm_eval_repeats_are_samples(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, lm_eval_row("none", "yes", "no"))
    [own] = scored(file, task, subset="answered").answers
    assert [answer.text for answer in own] == ["yes", "no"]


def test_lm_eval_log_likelihoods_answer_a_task_of_choices(tmp_path: Path) -> None:
    task = written_task(tmp_path, kind="choice")
    # Columns of the doc beyond those of the task do not matter.
    row = LM_EVAL | {"resps": [[["-2.5", "False"]], [["-0.1", "True"]]], "filter": "none"}
    assert extracted(answers(tmp_path, row), task, subset="answered") == ["yes"]
    three = row | {"resps": [[["-1.0", "False"]]] * 3}
    with pytest.raises(DataError, match=r":1: holds log-likelihoods of 3 choices, but train/0"):
        scored(answers(tmp_path, three), task)


def test_an_lm_eval_doc_that_is_another_row_is_refused(task: str, tmp_path: Path) -> None:
    other_split = answers(tmp_path, lm_eval_row("none", "yes", doc=ROWS[0] | {"answer": "no"}))
    with pytest.raises(DataError, match=r":1: its doc is no item of task made; score the task"):
        scored(other_split, task)
    moved = answers(tmp_path, lm_eval_row("none", "yes", doc=ROWS[2]))
    with pytest.raises(DataError, match=r":1: doc_id '0' and doc '\w+' are different items"):
        scored(moved, task)


def test_alpaca_eval_outputs_are_a_list_keyed_by_their_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {word}.", "input": "", "word": word} for word in REFERENCES[:2]]
    task = written_task(
        tmp_path,
        rows,
        prompt="{{ instruction }}",
        reference="{{ word }}",
        dataset={"path": str(tmp_path / "rows.jsonl"), "columns": ["instruction", "word"]},
    )
    outputs = [
        {"instruction": "Say no.", "output": "no", "generator": "m", "dataset": "helpful_base"},
        {"instruction": "Say yes.", "input": "", "output": "yes", "generator": "m"},
    ]
    file = tmp_path / "model_outputs.json"
    file.write_text(json.dumps(outputs, indent=2))
    assert extracted(file, task) == ["yes", "no"]


def test_gzipped_files_are_read(task: str, tmp_path: Path) -> None:
    rows = answered(*REFERENCES)
    lines = tmp_path / "mine.jsonl.gz"
    lines.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    listed = tmp_path / "mine.json.gz"
    listed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert extracted(lines, task) == extracted(listed, task) == REFERENCES
    assert scored(lines, task).checkpoint.model.method == "mine"


# What is refused


DAMAGED: list[tuple[list[Any], str]] = [
    ([{"doc_id": 4, "completion": "yes"}], ":1: doc_id 4 is not among the 4 items"),
    ([{"doc_id": -1, "completion": "yes"}], ":1: doc_id -1 is not among the 4 items"),
    ([{"doc_id": 0.9, "completion": "yes"}], ":1: doc_id 0.9 is not among the 4 items"),
    ([{"task_id": "made/9", "completion": "a"}], ":1: task_id 'made/9' is no item of task made"),
    ([{"question": "Who?", "completion": "a"}], ":1: question 'Who?' is no item of task made"),
    (
        [{"doc_id": 0, "task_id": "made/1", "completion": "a"}],
        ":1: doc_id '0' and task_id 'made/1' are different items of task made; keep the name",
    ),
    (
        [*answered("yes"), {"task_id": "made/1", "completion": "no"}],
        ":2: names its item by task_id, but ",
    ),
    ([{"completion": "yes"}], ":1: does not say which item it answers; give one of doc_id, "),
    ([{"doc_id": None, "completion": "yes"}], ":1: does not say which item it answers"),
    ([{"doc_id": 0}], ":1: holds no answer; write it as"),
    ([{"doc_id": 0, "completion": None}], ":1: completion is null and not text; repair it, or"),
    ([{"doc_id": 0, "completion": {"choices": []}}], ":1: completion is a dict and not text"),
    ([{"doc_id": 0, "output": "a", "text": "b"}], ":1: output and text may both be the answer"),
    ([{"doc_id": 0, "choices": []}], ":1: choices are no list of"),
    ([{"doc_id": 0, "choices": ["yes"]}], ':1: a choice has no "turns"'),
    ([{"doc_id": 0, "choices": [{"turns": [3]}]}], ":1: a turn is a int and not text"),
    ([{"doc_id": 0, "resps": "yes"}], ":1: resps are no lists of responses"),
    ([{"doc_id": 0, "resps": [["a"], ["b"]]}], ":1: resps hold neither one completion nor"),
    ([{"doc_id": 0, "resps": [[["nan", "True"]]]}], ":1: resps hold neither one completion nor"),
    ([[0, "yes"]], ":1: is no object with named fields"),
    ([*answered("yes"), "{"], ":2: is not JSON"),
    ([""], ": holds no answers"),
]


@pytest.mark.parametrize(("lines", "words"), DAMAGED, ids=[words for _, words in DAMAGED])
def test_a_wrong_answer_file_is_refused_by_line(
    task: str, tmp_path: Path, lines: list[Any], words: str
) -> None:
    file = answers(tmp_path, *lines)
    with pytest.raises(DataError, match=re.escape(f"{file}{words}")):
        score_answer_file(file, [task], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_question_that_several_items_ask_needs_a_firmer_name(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1], dict(ROWS[0], answer="no")]
    task = written_task(tmp_path, rows)
    file = answers(tmp_path, {"question": "Is 0 even?", "completion": "yes"})
    words = r":1: question 'Is 0 even\?' fits 2 items of task made \(train/0, train/2\); add item"
    with pytest.raises(DataError, match=words):
        scored(file, task)


@pytest.mark.parametrize(
    ("name", "content"),
    [("mine.jsonl.gz", b"no gzip"), ("mine.jsonl", b"\xff\xfe{}"), ("absent.jsonl", None)],
)
def test_an_unreadable_file_is_named(
    task: str, tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / name}: cannot be read")):
        scored(tmp_path / name, task)


def test_entries_of_a_list_are_counted_from_one(task: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([*answered("yes"), {"doc_id": 1}]))
    with pytest.raises(DataError, match=re.escape(f"{file}: entry 2: holds no answer")):
        scored(file, task)


def test_answers_are_to_one_task(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes"))
    with pytest.raises(ConfigError, match="one task, but --tasks names 2"):
        score_answer_file(file, [task, "headlines"], output=tmp_path / "out")


def test_the_subset_and_the_whole_need_directories_of_their_own(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes", "no", "yes"))
    score_answer_file(file, [task], output=tmp_path / "out")
    with pytest.raises(OutputError, match="holds the scores of another command"):
        score_answer_file(file, [task], subset="answered", output=tmp_path / "out")


# The command


def test_the_command_says_how_many_items_have_no_answer(task: str, tmp_path: Path) -> None:
    file = answers(tmp_path, *answered("yes", "no", "yes"))
    given = ["--answers", str(file), "--tasks", task, "--output", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, ["score", *given])
    assert shown.exit_code == 0
    assert "1 of 4 items have no answer; --subset answered scores the rest" in shown.output
    chosen = [*given[:-1], str(tmp_path / "answered"), "--subset", "answered"]
    shown = CliRunner().invoke(app, ["score", *chosen])
    assert "have no answer" not in shown.output
    assert "mine (answered subset, 3 of 4)" in shown.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "1"], "--seed is about asking a model; leave one of them out"),
        (["--log-samples"], "--log-samples is about asking a model"),
        (["--judge", "gpt-4"], "--judge is about asking a model"),
        (["--suite", "finance"], "name it with --tasks, not --suite"),
        (["--ckpt", "x"], "give --ckpt or --answers, not both"),
    ],
)
def test_options_that_answers_have_no_use_for_are_refused(options: list[str], words: str) -> None:
    shown = CliRunner().invoke(app, ["score", "--answers", "x", "--tasks", "y", *options])
    assert shown.exit_code == 2
    assert words in " ".join(shown.output.split())


def test_a_subset_of_answers_needs_answers() -> None:
    words = ["score", "--ckpt", "x", "--tasks", "y", "--subset", "answered"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2
    assert "--subset is of --answers; for fewer items give --limit" in shown.output

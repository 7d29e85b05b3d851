"""Every shape of row is described in a mapping, and none needs code."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbench.data.datasets import DatasetConfig, Example, load_examples
from fedbench.data.description import text_of
from fedbench.data.rows import Row
from fedbench.data.templates import Turn
from fedbench.errors import ConfigError, DataError
from fedbench.schema import validated

ASKED = {"role": "user", "content": "Up or down?"}
GOOD = {"role": "assistant", "content": "up"}
BAD = {"role": "assistant", "content": "down"}
TURN = Turn("Up or down?", response="up")


def loaded(directory: Path, rows: list[Row], **description: Any) -> list[Example]:
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples({"path": str(file), **description})


@pytest.mark.parametrize(
    ("row", "description", "example"),
    [
        (
            {"q": "Up or down?", "a": "up", "who": 7, "kind": "x"},
            {
                "instruction": "{{ q }}",
                "response": "{{ a }}",
                "owner": "{{ who }}",
                "label": "{{ kind }}",
            },
            Example((TURN,), label="x", owner="7"),
        ),
        (
            {"q": "Up or down?", "a": "up", "s": "Be brief"},
            {"instruction": "{{ q }}", "response": "{{ a }}", "system": "{{ s }}"},
            Example((Turn("Up or down?", response="up", system="Be brief"),)),
        ),
        ({"said": [ASKED, GOOD]}, {"messages": "said"}, Example((TURN,))),
        (
            {"said": [ASKED, GOOD]},
            {"messages": "said", "system": "Be brief"},
            Example((Turn("Up or down?", response="up", system="Be brief"),)),
        ),
        (
            {"said": [ASKED], "a": "up"},
            {"messages": "said", "response": "{{ a }}"},
            Example((TURN,)),
        ),
        (
            {"pairs": [["Up or down?", "up"]], "q": "Sure?", "a": "yes"},
            {"messages": "pairs | sum(start=[]) + [q]", "response": "{{ a }}"},
            Example((TURN, Turn("Sure?", response="yes"))),
        ),
        (
            {"q": "Up or down?", "good": "up", "bad": "down"},
            {"instruction": "{{ q }}", "chosen": "{{ good }}", "rejected": "{{ bad }}"},
            Example((TURN,), rejected="down"),
        ),
        (
            {"good": [ASKED, GOOD], "bad": [ASKED, BAD]},
            {"chosen": "good", "rejected": "bad"},
            Example((TURN,), rejected="down"),
        ),
        (
            {"prompt": [ASKED], "good": [GOOD], "bad": BAD},
            {"messages": "prompt", "chosen": "good", "rejected": "bad"},
            Example((TURN,), rejected="down"),
        ),
        (
            {"prompt": [ASKED], "good": GOOD, "bad": BAD},
            {
                "messages": "prompt",
                "chosen": "{{ good.content }}",
                "rejected": "{{ bad.content }}",
            },
            Example((TURN,), rejected="down"),
        ),
        (
            {
                "good": "\n\nHuman: Up or down?\n\nAssistant: up",
                "bad": "\n\nHuman: Up or down?\n\nAssistant: down",
            },
            {"transcript": "hh", "chosen": "good", "rejected": "bad"},
            Example((TURN,), rejected="down"),
        ),
        (
            {"q": "Up or down?", "a": "up", "fine": False},
            {"instruction": "{{ q }}", "response": "{{ a }}", "desirable": "{{ fine }}"},
            Example((TURN,), desirable=False),
        ),
        (
            {"message_id": "m", "text": "Up or down?", "role": "prompter", "lang": "en",
             "replies": [{"text": "up", "role": "assistant"}]},
            {"tree": "oasst", "label": "{{ lang }}"},
            Example((TURN,), label="en"),
        ),
    ],
)  # fmt: skip
def test_a_row_of_any_shape_becomes_an_example(
    tmp_path: Path, row: Row, description: dict[str, Any], example: Example
) -> None:
    assert loaded(tmp_path, [row], **description) == [example]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_file_of_ones_own_needs_only_its_columns_named(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    import pyarrow.parquet

    row = {"my question": "Up or down?", "answer": "up"}
    file = tmp_path / f"rows.{suffix}"
    match suffix:
        case "jsonl":
            file.write_text(json.dumps(row) + "\n")
        case "json":
            file.write_text(json.dumps([row]))
        case "csv":
            with file.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, row)
                writer.writeheader()
                writer.writerow(row)
        case _:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    own = {
        "path": str(file),
        "instruction": "{{ row['my question'] }}",
        "response": "{{ answer }}",
    }
    assert load_examples(own) == [Example((TURN,))]


def test_messages_in_a_csv_file_are_read_from_their_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["said"], [json.dumps([ASKED, GOOD])]])
    assert load_examples({"path": str(file), "messages": "said"}) == [Example((TURN,))]


def test_the_columns_that_are_used_are_found_in_the_description() -> None:
    config = validated(
        DatasetConfig,
        {
            "path": "someone/data",
            "config": "en",
            "revision": "abc",
            "instruction": "{{ q }}{% if hint %} {{ row['a hint'] }}{% endif %}",
            "response": "{{ a }}",
            "label": "news",
            "where": "lang == 'en' and score > range(3) | length",
            "distinct": "q",
            "prompt_split": {"part": "train", "test_size": 0.1, "by": "{{ patient }}"},
        },
        "own",
    )
    assert config.source.columns == ("a", "a hint", "hint", "lang", "patient", "q", "score")
    assert (config.source.path, config.source.config, config.source.revision) == (
        "someone/data",
        "en",
        "abc",
    )
    assert DatasetConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_empty_cell_is_no_text(tmp_path: Path) -> None:
    row = {"q": "Up or down?", "i": None, "a": "up", "who": None}
    [example] = loaded(
        tmp_path,
        [row],
        instruction="{{ q }}",
        input="{{ i }}",
        response="{{ a }}",
        owner="{{ who }}",
    )
    assert example == Example((TURN,))


@given(st.none() | st.text() | st.integers() | st.floats() | st.lists(st.integers()))
def test_a_single_column_is_written_as_jinja_writes_it(cell: Any) -> None:
    row = {"a": cell, "": "an index without a name"}
    assert text_of("{{ a }}", row) == text_of("{{ a }}{# the long way #}", row)
    assert text_of("", row) == ""


def test_rows_are_kept_where_a_condition_holds_and_once_of_those_that_are_alike(
    tmp_path: Path,
) -> None:
    rows = [{"q": q, "lang": lang, "a": n} for n, (q, lang) in enumerate(["ax", "by", "ax", "cx"])]
    fields = {"instruction": "{{ q }}", "response": "{{ a }}"}
    kept = loaded(tmp_path, rows, **fields, where="lang == 'x'", distinct="q")
    assert [example.turns[0].response for example in kept] == ["0", "3"]
    [first] = load_examples(
        {"path": str(tmp_path / "rows.jsonl"), **fields, "where": "q != 'a'"}, limit=1
    )
    assert first.turns[0].instruction == "b"  # a limit counts what is kept


def test_a_prompt_split_divides_by_the_first_question_alone(tmp_path: Path) -> None:
    rows = [
        {"said": [f"Question {n}?", "yes", follow_up, "no"]}
        for n in range(200)
        for follow_up in ("Why?", "How?")
    ]
    parts = [
        loaded(tmp_path, rows, messages="said", prompt_split={"part": part, "test_size": 0.25})
        for part in ("train", "test")
    ]
    openings = [{example.opening for example in part} for part in parts]
    assert not openings[0] & openings[1]
    assert [len(part) for part in parts] == [2 * len(opening) for opening in openings]
    assert sum(map(len, parts)) == len(rows)
    assert 30 < len(openings[1]) < 70  # 50 of 200 expected, six standard deviations are 37
    assert (
        loaded(
            tmp_path, rows[::-1], messages="said", prompt_split={"part": "test", "test_size": 0.25}
        )
        == parts[1][::-1]
    )


def test_what_nobody_answers_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"said": said} for said in (["Up or down?", "up", "Sure?"], ["Hello?"], ["A", "b"])]
    with caplog.at_level(logging.WARNING):
        examples = loaded(tmp_path, rows, messages="said")
    assert examples == [Example((TURN,)), Example((Turn("A", response="b"),))]
    assert "1 conversations end with a question that nobody answers" in caplog.text
    assert "1 conversations are left out: nobody answers in them" in caplog.text


def test_rows_with_an_empty_answer_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"ask": "A", "say": say} for say in ("b", "", None, "c")]
    with caplog.at_level(logging.WARNING):
        examples = loaded(tmp_path, rows, instruction="{{ ask }}", response="{{ say or '' }}")
    assert [example.turns[-1].response for example in examples] == ["b", "c"]
    assert "2 rows are left out: their answer is empty" in caplog.text
    marked = {"instruction": "{{ ask }}", "response": "{{ say or '' }}", "desirable": "{{ true }}"}
    assert len(loaded(tmp_path, rows, **marked)) == 4
    pairs = {"instruction": "{{ ask }}", "chosen": "{{ say or '' }}", "rejected": "{{ ask }}"}
    assert len(loaded(tmp_path, rows, **pairs)) == 4


@pytest.mark.parametrize("column", ["ask", "say"])
def test_half_a_character_is_refused_with_its_row(tmp_path: Path, column: str) -> None:
    row = {"ask": "A", "say": "b"}
    with pytest.raises(DataError, match=r"row 1: .*surrogates not allowed; correct the row"):
        loaded(
            tmp_path,
            [row, row | {column: "half \ud83d"}],
            instruction="{{ ask }}",
            response="{{ say or '' }}",
        )


def test_pairs_of_different_questions_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"role": "user", "content": "Left or right?"}
    rows = [
        {"good": [ASKED, GOOD], "bad": [ASKED, BAD]},
        {"good": [ASKED, GOOD], "bad": [other, BAD]},
    ]
    with caplog.at_level(logging.WARNING):
        assert len(loaded(tmp_path, rows, chosen="good", rejected="bad")) == 1
    assert "1 pairs are left out: their two sides answer different questions" in caplog.text


def test_a_description_that_keeps_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its rows gives an example; check `where`"):
        loaded(tmp_path, [{"said": ["A", "b"]}], messages="said", where="said | length > 2")


@pytest.mark.parametrize(
    ("row", "description", "problem"),
    [
        (
            {"said": ["A", "b"]},
            {"messages": "said", "label": "{{ said.x.y }}"},
            r"row 0: .*no attribute 'x'; correct",
        ),
        (
            {"said": None},
            {"messages": "said"},
            "row 1: messages are a NoneType and not a list; cor",
        ),
        ({"said": [BAD]}, {"messages": "said"}, "row 1: message 0 is by the assistant"),
        ({"said": "plain"}, {"messages": "said"}, "row 1: said is a text and holds no messages"),
        ({}, {"messages": "said"}, "row 1: 'said' is undefined; correct the column names"),
        ({"said": ["A", "b"]}, {"messages": "said", "desirable": "{{ 3 }}"}, "row 0: desirable is"),
        (
            {"said": ["A", "b"]},
            {"messages": "said", "response": "c"},
            "row 0: the messages end with an answer already",
        ),
        (
            {"said": ["A", "b"]},
            {"chosen": "said", "rejected": "said", "transcript": "hh"},
            "row 0: the transcript is a list and not a text",
        ),
    ],
)
def test_a_row_of_another_form_is_refused_by_number(
    tmp_path: Path, row: Row, description: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path, [{"said": ["A", "b"]}, row], **description)


@pytest.mark.parametrize(
    ("description", "problem"),
    [
        ({"instruction": "{{ q }}"}, "says nothing of the answers; add response, messages"),
        ({"chosen": "{{ a }}", "instruction": "{{ q }}"}, "chosen and rejected come together"),
        ({"messages": "m", "instruction": "{{ q }}"}, "has both messages and instruction"),
        ({"tree": "oasst", "response": "{{ a }}"}, "has both tree and response"),
        ({"chosen": "a", "rejected": "{{ b }}"}, "put both in braces, or neither"),
        (
            {"chosen": "a", "rejected": "b", "instruction": "{{ q }}"},
            r"a is a column of messages.*write \{\{ a \}\} where it is text",
        ),
        (
            {"chosen": "{{ a }}", "rejected": "{{ b }}", "transcript": "hh"},
            "name the columns chosen and rejected without braces",
        ),
        ({"messages": "m", "chosen": "a", "rejected": "b", "response": "c"}, "pair and a single"),
        ({"messages": "{{ m }}"}, "messages: stands in braces"),
        (
            {"messages": "m", "where": "lang =="},
            "where: is neither a column nor a Jinja expression",
        ),
        ({"response": "{{ a"}, "response: is not valid Jinja"),
        ({"response": "{{ a | uper }}"}, "response: is not valid Jinja .No filter named"),
        ({"respones": "{{ a }}"}, "respones: unknown key; did you mean 'response'"),
        ({"response": "{{ a }}", "source": {"path": "x.csv"}}, "has both source and path; put all"),
        ({"messages": "m", "prompt_split": {"part": "dev", "test_size": 0.1}}, "prompt_split.part"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_by_field(
    description: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_examples({"path": "rows.jsonl", **description})


def test_a_description_cannot_reach_out_of_its_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0: .*unsafe"):
        loaded(tmp_path, [{"a": "x"}], response="{{ a.__class__.__mro__ }}")

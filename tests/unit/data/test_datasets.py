"""Named data sets, and the texts that training and scoring share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbench.data.datasets import (
    SHINGLE,
    Example,
    dataset_config,
    dataset_table,
    find_overlaps,
    load_examples,
    normalise,
)
from fedbench.data.templates import Turn
from fedbench.errors import ConfigError, DataError

SENTENCE = "Profit of the Finnish group rises to 3.2 million euros"


def described(directory: Path, **fields: Any) -> str:
    """A description of three rows, as a user would write one; gives its path."""
    rows = [
        {"q": "Up or down?", "t": f"Share {n} rises", "a": "up" if n else "down"} for n in range(3)
    ]
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = {
        "source": {"path": str(data), "columns": ["q", "t", "a"]},
        "instruction": "{{ q }}",
        "input": "{{ t }}",
        "response": "{{ a }}",
        **fields,
    }
    file = directory / "own.yaml"
    file.write_text(yaml.safe_dump(description))
    return str(file)


def test_rows_become_turns_by_the_description(tmp_path: Path) -> None:
    examples = load_examples(described(tmp_path, label="{{ a }}", input="News: {{ t }}"))
    turn = Turn("Up or down?", "News: Share 0 rises", "down")
    assert examples[0] == Example((turn,), label="down")
    assert len(examples) == 3


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    name = described(tmp_path)
    assert load_examples(name, limit=2) == load_examples(name)[:2]


def test_a_column_that_rows_lack_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0: 'sentence' is undefined; correct the column"):
        load_examples(described(tmp_path, input="{{ sentence }}"))


def test_a_description_that_is_no_jinja_is_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml: input: is not valid Jinja"):
        load_examples(described(tmp_path, input="{{ t"))


def test_an_unknown_data_set_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'headline': did you mean 'headlines'"):
        dataset_config("headline")


@pytest.mark.parametrize("name", list(dataset_table()))
def test_every_shipped_data_set_says_its_licence(name: str) -> None:
    assert dataset_table()[name].license not in ("", "unknown")


def test_the_text_of_an_example_is_its_input_or_else_its_question() -> None:
    assert Example((Turn("Question?", "The news", "up"),)).text == "The news"
    assert Example((Turn("Question?", "", "up"),)).text == "Question?"
    assert Example((Turn("", "", "Plain text"),)).text == "Plain text"


@pytest.mark.parametrize(
    "text",
    [
        "profit of the finnish group rises to 3 2 million euros",
        "  Profit of the Finnish group -- rises to 3.2 million euros!! ",
        "Profit of the Finnish group rises to 3.2 million euros https://t.co/aBc",
        "PROFIT of the Finnish group www.site.com/x rises to 3.2 million\teuros",
    ],
)
def test_texts_are_the_same_without_case_punctuation_space_and_links(text: str) -> None:
    assert normalise(text) == normalise(SENTENCE)


def test_accents_and_figures_make_another_text() -> None:
    assert normalise("café 3") != normalise("cafe 3")
    assert normalise("rose 3") != normalise("rose 4")


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        (SENTENCE, SENTENCE),
        (SENTENCE.upper() + "!", SENTENCE),
        ("Yesterday: " + SENTENCE + ", it said", SENTENCE),  # contains a scored item
        ("of the Finnish group rises", SENTENCE),  # lies within one
        ("shares rise", "Shares rise."),  # short, and equal
        (SENTENCE.removesuffix(" euros"), SENTENCE),
    ],
)
def test_a_text_that_contains_an_item_or_lies_within_one_overlaps(text: str, scored: str) -> None:
    assert find_overlaps(["something else entirely", text], ["another item", scored]) == {1}


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("shares rise", "On Monday shares rise in Oslo"),  # short: only equality counts
        ("On Monday shares rise in Oslo", "shares rise"),
        ("the Finnish group rises today", SENTENCE),  # one word differs
        ("rofit of the Finnish group rises", SENTENCE),  # not in whole words
        ("", SENTENCE),
        ("?!", "..."),  # nothing is left of either
    ],
)
def test_other_texts_do_not_overlap(text: str, scored: str) -> None:
    assert find_overlaps([text], [scored]) == set()


def test_a_text_of_as_many_words_as_a_shingle_is_found_within_another() -> None:
    words = SENTENCE.split()[2 : 2 + SHINGLE]
    assert find_overlaps([" ".join(words)], [SENTENCE]) == {0}
    assert find_overlaps([" ".join(words[:-1])], [SENTENCE]) == set()


def test_every_copy_of_an_overlapping_text_is_found() -> None:
    assert find_overlaps([SENTENCE, "other", SENTENCE.lower()], [SENTENCE]) == {0, 2}

"""Named data sets on their real rows."""

from __future__ import annotations

import os

import pytest

from fedbench.data.datasets import dataset_config, load_examples, normalise
from fedbench.data.preferences import ASSISTANT, HUMAN
from fedbench.data.rows import load_rows

pytestmark = pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="the data are not ours to ship: set FEDBENCH_DATA to a mirror that holds them",
)
PAIRS = "hh_rlhf_harmless_test_pairs"


def test_every_hh_pair_rejoins_to_its_two_transcripts() -> None:
    rows = load_rows(dataset_config(PAIRS).source)
    examples = load_examples(PAIRS)
    assert len(examples) == len(rows) == 2312
    for example, row in zip(examples, rows, strict=True):
        *before, last = example.turns
        prompt = "".join(
            f"{HUMAN} {turn.instruction}{ASSISTANT} {turn.response}" for turn in before
        )
        prompt += f"{HUMAN} {last.instruction}{ASSISTANT} "
        assert prompt + (last.response or "") == row["chosen"]
        assert prompt + (example.rejected or "") == row["rejected"]


def test_the_longest_common_prefix_would_damage_a_fifth_of_the_hh_pairs() -> None:
    # OpenFedLLM's splitter takes that prefix for the prompt, less one character for the space.
    beheaded = without_space = 0
    for row, example in zip(
        load_rows(dataset_config(PAIRS).source), load_examples(PAIRS), strict=True
    ):
        theirs = row["chosen"][len(os.path.commonprefix([row["chosen"], row["rejected"]])) - 1 :]  # noqa: RUF071
        beheaded += theirs != " " + row["chosen"].rsplit(ASSISTANT + " ", 1)[1]
        without_space += not theirs.startswith(" ")
        assert (example.turns[-1].response or "").endswith(theirs.removeprefix(" "))
    assert (beheaded, without_space) == (448, 316)


def test_in_five_hh_pairs_an_answer_holds_a_marker_of_its_own() -> None:
    with_marker = [
        example
        for example in load_examples(PAIRS)
        if ASSISTANT in (example.turns[-1].response or "") + (example.rejected or "")
    ]
    assert len(with_marker) == 5


def test_the_two_parts_of_the_hh_pairs_share_no_first_question() -> None:
    train, test = (load_examples(f"hh_rlhf_harmless_resplit_{part}") for part in ("train", "test"))
    assert (len(train), len(test)) == (1835, 477)
    questions = [{normalise(example.opening) for example in part} for part in (train, test)]
    assert not questions[0] & questions[1]
    assert sorted(map(repr, train + test)) == sorted(map(repr, load_examples(PAIRS)))


@pytest.mark.parametrize(
    ("name", "rows", "several_turns"),
    [
        ("alpaca_sample", 4998, 0),  # two of 5,000 have an empty answer
        ("alpaca_gpt4_sample", 999, 0),
        ("dolly_sample", 1000, 0),
        ("codealpaca_sample", 2015, 0),  # two of 2,017 have an empty answer
        ("medical_wikidoc", 5942, 0),
        ("gsm8k", 7473, 0),
        ("lima_sample", 1029, 29),  # 15 with two, 10 with three, 3 with four, 1 with ten turns
        ("oasst_sample", 100, 42),
        ("dpo_demo", 300, 106),
    ],
)
def test_a_named_data_set_gives_its_rows_and_turns(
    name: str, rows: int, several_turns: int
) -> None:
    examples = load_examples(name)
    assert len(examples) == rows
    assert sum(len(example.turns) > 1 for example in examples) == several_turns
    assert all(turn.response is not None for example in examples for turn in example.turns)
    assert all(turn.instruction for example in examples for turn in example.turns)


def test_system_prompts_of_preference_pairs_are_kept() -> None:
    examples = load_examples("dpo_demo")
    assert sum(bool(example.turns[0].system) for example in examples) == 80
    assert all(example.rejected for example in examples)

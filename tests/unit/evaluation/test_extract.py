"""How answers are read: a table of completions."""

from __future__ import annotations

import pytest

from fedbench.errors import ConfigError
from fedbench.evaluation.extract import EXTRACTS, get_extract

LABELS = ("negative", "neutral", "positive")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("positive", "positive"),
        (" Positive.", "positive"),
        ("NEGATIVE\n\nInput: more", "negative"),
        ("It is neutral, I think.", "neutral"),
        ("positive, positive and positive", "positive"),  # one label, however often
        ("(negative)", "negative"),
        ("positive\u2014yes", "positive"),
        # A word is all the rule reads: a negation before it is not understood.
        ("not positive", "positive"),
        ("positive or negative", None),
        ("{negative/neutral/positive}", None),  # the question's own list
        ("", None),
        ("   \n", None),
        ("good", None),
        ("positively", None),  # not the whole word
        ("nonnegative", None),
        ("posit ive", None),
        ("positive_1", None),
    ],
)
def test_a_label_is_read_where_one_and_only_one_occurs(completion: str, answer: str | None) -> None:
    assert EXTRACTS["label_word"](completion, LABELS) == answer


def test_a_label_comes_back_in_the_case_of_the_task() -> None:
    assert EXTRACTS["label_word"]("the answer is b", ("A", "B")) == "B"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("positive", "positive"),
        ("Negative", "negative"),  # FinGPT's change_target looks for both spellings
        ("Positive", "positive"),
        ("negative, or is it positive?", "positive"),  # "positive" is looked for first
        ("neutral or negative", "negative"),
        ("not positive", "positive"),
        ("positively", "positive"),
        ("NEGATIVE", "neutral"),  # neither "negative" nor "Negative"
        ("neutral", "neutral"),
        ("garbage", "neutral"),
        ("", "neutral"),
    ],
)
def test_the_fingpt_rule_never_leaves_an_answer_unparsed(completion: str, answer: str) -> None:
    assert EXTRACTS["fingpt_sentiment"](completion, LABELS) == answer


@pytest.mark.parametrize(
    ("completion", "answer"), [(" 42\n", "42"), ("a b", "a b"), ("", None), (" \t\n", None)]
)
def test_verbatim_is_the_completion_without_surrounding_space(
    completion: str, answer: str | None
) -> None:
    assert EXTRACTS["verbatim"](completion, ()) == answer


def test_an_unknown_rule_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown extract 'label_words': did you mean 'label_wo"):
        get_extract("label_words")


@pytest.mark.parametrize("name", EXTRACTS)
def test_every_rule_is_found_by_its_name_and_says_what_it_does(name: str) -> None:
    assert get_extract(name) is EXTRACTS[name]
    assert EXTRACTS[name].__doc__

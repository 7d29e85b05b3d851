"""Questions that plain text answers by itself."""

from __future__ import annotations

from fedbench.data.cloze import BLANK, NONE, cloze
from fedbench.data.datasets import Example
from fedbench.data.templates import Turn
from fedbench.model_config import Cloze


def text(words: str, kind: str = "news") -> Example:
    return Example((Turn("", "", words),), kind)


def test_the_missing_word_is_the_one_that_was_taken_out() -> None:
    source = "Profit rose sharply at Acme"
    questions = cloze([text(source)], Cloze(words=("rose",), repeats=20), seed=0)
    for turn in (example.turns[0] for example in questions):
        assert turn.response == "rose"
        assert turn.input.replace(BLANK, "rose") == source


def test_both_questions_name_the_kind_of_text() -> None:
    questions = cloze([text("Shares fell", "tweet")], Cloze(words=("fell",), repeats=1), seed=0)
    assert {example.turns[0].instruction for example in questions} == {
        "Which word is missing in this tweet?",
        "Which direction word does this tweet contain?",
    }


def test_a_text_without_a_listed_word_answers_none_half_of_the_time() -> None:
    questions = cloze([text("Acme met Bolt")], Cloze(words=("rose",), repeats=1000), seed=0)
    answers = [example.turns[0].response for example in questions]
    assert set(answers) == {NONE}  # no word is common enough to be taken out
    assert 420 <= len(answers) <= 580  # 1000 draws at one half: 5 standard deviations


def test_words_inside_urls_are_never_asked_for() -> None:
    source = "See https://rose.example/rose now"
    questions = cloze([text(source)], Cloze(words=("rose",), repeats=50), seed=0)
    assert {example.turns[0].response for example in questions} == {NONE}


def test_the_same_seed_asks_the_same_questions() -> None:
    texts = [text(f"Profit rose and costs fell in quarter {n}") for n in range(20)]
    config = Cloze(words=("rose", "fell"))
    assert cloze(texts, config, seed=1) == cloze(texts, config, seed=1)
    assert cloze(texts, config, seed=1) != cloze(texts, config, seed=2)

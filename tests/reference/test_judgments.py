"""Judgments that others have published: their averages, win rates and prompts come out."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench.data.rows import Source, load_rows
from fedbench.errors import DataError
from fedbench.judging.protocols import PROTOCOLS, plan
from fedbench.judging.published import models_of_answers, read_judgments
from fedbench.judging.questions import JudgedQuestion
from fedbench.judging.rows import JudgmentRow
from fedbench.judging.rubric import get_rubric
from fedbench.judging.scores import grade_scores, win_scores
from fedbench.judging.verdict_format import VerdictFormat
from fedbench.judging.verdicts import read_verdict

needs_data = pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="the judgments are not ours to ship: set FEDBENCH_DATA to a mirror that holds them",
)


def reference(name: str) -> Path:
    return Path(os.environ["FEDBENCH_DATA"]) / "reference" / name


def rows_of(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def of_model(rows: list[JudgmentRow]) -> dict[str, list[JudgmentRow]]:
    found: dict[str, list[JudgmentRow]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found


def medusa() -> Path:
    return reference("mt_bench_judgments/medusa_vicuna-7b_gpt-4_single.jsonl.gz")


def mt_bench() -> list[JudgedQuestion]:
    """The 80 questions, with GPT-4's answers to 30 of them."""

    def rows(split: str) -> list[dict[str, Any]]:
        return load_rows(Source(path="mt_bench", split=split, columns=("question_id",)))

    answers = {
        row["question_id"]: tuple(row["choices"][0]["turns"])
        for row in rows("reference_answer_gpt-4")
    }
    return [
        JudgedQuestion(
            str(row["question_id"]),
            tuple(row["turns"]),
            row["category"],
            answers.get(row["question_id"], ()),
        )
        for row in rows("question")
    ]


# FastChat.

GRADE = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": 1}


@needs_data
def test_mt_bench_averages_of_gpt_4_come_out_to_the_digit() -> None:
    # Those of FastChat's show_result.py on the file that Medusa published.
    expected = {
        "medusa-vicuna-7b-v1.3-1-temperature-0.0-posterior_threshold-0.09-posterior_alpha-0.3": (
            5.9875,
            6.79375,
            5.18125,
        ),
        "vicuna-7b-v1.3": (6.103125, 6.73125, 5.475),
        "vicuna-7b-v1.3-greedy": (5.878125, 6.51875, 5.2375),
    }
    categories = {question.id: question.category for question in mt_bench()}
    for model, rows in of_model(read_judgments(medusa(), categories=categories)).items():
        scores = PROTOCOLS["mt_bench"].scores(rows)
        values = {score.group: score.value for score in scores}
        assert (values[None], values["turn_1"], values["turn_2"]) == expected[model]
        assert len(values) == 3 + 8
        assert (scores[0].num_items, scores[0].num_failed, scores[0].num_questions) == (160, 0, 80)


@needs_data
def test_both_parsers_read_what_gpt_4_was_given_for() -> None:
    published = [row.value for row in read_judgments(medusa())]
    assert [row.value for row in read_judgments(medusa(), parser="fastchat")] == published
    # Ours refuses what is ambiguous, and nothing of 480 replies is.
    assert [row.value for row in read_judgments(medusa(), parser="fedbench")] == published


@needs_data
def test_every_prompt_is_the_one_that_gpt_4_was_asked() -> None:
    """The 480 prompts in the file, with the answers taken out of them, are rendered again."""
    questions = mt_bench()
    asked = {(row["model"], str(row["question_id"]), row["turn"]): row for row in rows_of(medusa())}
    assert {one.category for one in questions if one.references} == {
        "math",
        "reasoning",
        "coding",
    }  # FastChat's NEED_REF_CATS
    rubric = get_rubric("mt_bench")
    for model in {model for model, _, _ in asked}:
        answers = {
            question.id: [
                answers_in(asked[model, question.id, 2]["user_prompt"], question.turns[1])
            ]
            for question in questions
        }
        for one in plan(PROTOCOLS["mt_bench"], rubric, questions, answers):
            [turn] = rubric.render(**one.fields)
            assert turn.instruction == asked[model, one.question, one.turn]["user_prompt"]


def answers_in(prompt: str, second_question: str) -> tuple[str, str]:
    """Both answers in a prompt about the second turn."""
    conversation = prompt.split("<|The Start of Assistant A's Conversation with User|>")[1]
    mark = "### Assistant A:\n"
    between = f"\n\n### User:\n{second_question}\n\n{mark}"
    first, second = conversation.split(mark, 1)[1].split(between)
    return first, second.rsplit("\n\n<|The End of", 1)[0]


def test_minus_one_is_counted_as_failed_and_left_out(tmp_path: Path) -> None:
    file = write(
        tmp_path / "gpt-4_single.jsonl",
        *(GRADE | {"question_id": n, "score": 8} for n in range(30)),
        GRADE | {"question_id": 30, "score": -1, "judgment": "$ERROR$"},
    )
    [score] = grade_scores(read_judgments(file), scale=(1, 10))
    assert (score.value, score.num_items, score.num_failed) == (8.0, 31, 1)


def test_a_model_that_was_judged_twice_has_the_mean_of_both(tmp_path: Path) -> None:
    # show_result.py averages all rows of a model and turn.
    file = write(tmp_path / "j.jsonl", *(GRADE | {"score": score} for score in (4, 7)))
    rows = read_judgments(file)
    assert [row.repeat for row in rows] == [0, 1]
    [score] = grade_scores(rows, scale=(1, 10))
    assert (score.value, score.num_items, score.num_questions) == (5.5, 2, 1)


def test_a_retry_takes_the_place_of_the_row_that_failed(tmp_path: Path) -> None:
    file = write(tmp_path / "j.jsonl", *(GRADE | {"score": score} for score in (-1, 7)))
    [score] = grade_scores(read_judgments(file), scale=(1, 10))
    assert (score.value, score.num_items, score.num_failed) == (7.0, 1, 0)


def test_games_of_fastchats_pairwise_files_are_in_both_orders(tmp_path: Path) -> None:
    row = {
        "question_id": 81,
        "model_1": "m",
        "model_2": "base",
        "judge": ["gpt-4", "pair-v2"],
        "turn": 1,
    }
    # The file names winners by model. In the second game model_1 stood as B.
    file = write(
        tmp_path / "gpt-4_pair.jsonl",
        row | {"g1_winner": "model_1", "g2_winner": "model_1"}
        | {"g1_judgment": "[[A]]", "g2_judgment": "[[B]]"},
        row | {"question_id": 82, "g1_winner": "model_1", "g2_winner": "model_2"}
        | {"g1_judgment": "[[A]]", "g2_judgment": "[[A]]"},
        row | {"question_id": 83, "g1_winner": "tie", "g2_winner": "error"}
        | {"g1_judgment": "[[C]]", "g2_judgment": "neither"},
    )  # fmt: skip
    rows = read_judgments(file)
    assert [(one.order, one.value, one.score) for one in rows[:4]] == [
        ("ab", "A", 1.0),
        ("ba", "B", 1.0),
        ("ab", "A", 1.0),
        ("ba", "A", 0.0),
    ]
    assert [one.value for one in read_judgments(file, parser="fastchat")] == [
        one.value for one in rows
    ]
    scores = win_scores(rows, max_failed=0.5)
    assert (scores[0].value, scores[0].num_failed) == (0.75, 1)  # a win, a tie, a failure


def test_a_file_without_a_known_ending_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file of rows by its name"):
        read_judgments(tmp_path / "judgments.txt")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "holds neither FastChat's judgments"),
        ({"score": 3, "model": "m"}, "row 1: has no question_id"),
        ({"preference": 3, "generator_1": "b", "generator_2": "m"}, "preference is 3"),
        ({"answer1_id": "a", "answer2_id": "b", "question_id": 1, "score": [1]}, "it needs 2"),
    ],
)
def test_files_that_are_none_of_these_are_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_judgments(write(tmp_path / "j.jsonl", row))


# Vicuna bench of 2023.

_NEW = "vicuna-13b-20230322-new-hp-fp16"
_LATER = f"gpt-3.5-turbo_review_{_NEW}/gpt-3.5-turbo_review_"
VICUNA_SUMS = {
    "vicuna-13b_20230322-clean-lang/review_alpaca-13b_vicuna-13b.jsonl": (583.0, 704.0),
    "vicuna-13b_20230322-clean-lang/review_bard_vicuna-13b.jsonl": (664.0, 655.5),
    "vicuna-13b_20230322-clean-lang/review_gpt35_vicuna-13b.jsonl": (693.0, 638.0),
    "others/review_llama_alpaca-13b.jsonl": (525.0, 605.0),
    f"{_LATER}alpaca-13b_{_NEW}.jsonl": (583.0, 700.0),
    f"{_LATER}bard_{_NEW}.jsonl": (608.0, 668.0),
    f"{_LATER}gpt35_{_NEW}.jsonl": (627.0, 665.0),
    f"{_LATER}llama-13b_{_NEW}.jsonl": (588.0, 708.0),
    f"{_LATER}{_NEW}_{_NEW}.jsonl": (
        605.0,
        619.0,
    ),
}


@needs_data
@pytest.mark.parametrize("name", VICUNA_SUMS)
def test_vicuna_totals_of_the_blog_post_come_out(name: str, tmp_path: Path) -> None:
    reviews = [
        row for row in rows_of(reference("vicuna80/reviews.jsonl.gz")) if row["file"] == name
    ]
    rows = read_judgments(write(tmp_path / "reviews.jsonl", *reviews))
    assert len(rows) == 80
    pairs = [row.scores for row in rows if row.scores]
    own, baseline = np.array(pairs).sum(axis=0)
    # The totals hold [-1, -1] of what was not read as it stands; a win rate leaves it out.
    num_failed = len(rows) - len(pairs)
    assert (baseline - num_failed, own - num_failed) == VICUNA_SUMS[name]
    wins, ties = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
    score = win_scores(rows)[0]
    assert score.num_failed == num_failed
    assert score.value == pytest.approx((wins + ties / 2) / len(pairs))


@needs_data
def test_reviews_of_several_models_need_to_know_whose_the_answers_are() -> None:
    file = reference("vicuna80/reviews.jsonl.gz")
    with pytest.raises(DataError, match="reviews several pairs of answers to question 1"):
        read_judgments(file)
    models = models_of_answers(reference("vicuna80/answers.jsonl.gz"))
    found = of_model(read_judgments(file, models=models))
    assert "vicuna-13b:20230322-clean-lang" in found


@needs_data
def test_the_first_lines_of_vicunas_reviews_are_read() -> None:
    # 59 of 720 reviews, nearly all of GPT-3.5 on math and code, begin with something else. The file
    # has -1 for two of them, and for the others scores that no reader of first lines has found.
    form = VerdictFormat(kind="score_line", parser="fastchat")
    ours = VerdictFormat(kind="score_line", scale=(0, 10))
    unread = []
    for row in rows_of(reference("vicuna80/reviews.jsonl.gz")):
        verdict, own = (read_verdict(each, row["text"]) for each in (form, ours))
        assert (own.value, own.scores) == (verdict.value, verdict.scores)
        if verdict.value is None:
            unread.append(row["score"])
        else:
            assert list(verdict.scores) == row["score"]
    assert (len(unread), unread.count([-1, -1])) == (59, 2)

"""Each protocol from the judge's words to its score, and a rubric that a user wrote.

A model gives a right answer and a wrong one; the baseline's lie in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from judging_cases import answered, judge, scores, task

from fedbench.generation.store import AnswerStore
from fedbench.judging.judged import Baseline, case_of, judge_case
from fedbench.judging.protocols import PROTOCOLS
from fedbench.judging.rubric import get_rubric

RIGHT, WRONG, MIDDLING = "It is surely so.", "Rhubarb, rhubarb.", "It may be so."
QUALITY = {WRONG: 0, MIDDLING: 1, RIGHT: 2}
BASELINE = Baseline("base", {"train/0": (MIDDLING,), "train/1": (MIDDLING,)})
COHERENCE = """
name: coherence
source: the criteria of G-Eval, https://arxiv.org/abs/2303.16634
user: |-
  How well do the sentences hang together, from 1 to 5? Say why, step by step.
  {{ question }}
  {{ answer }}
verdict: {kind: json, fields: {coherence: [1, 5]}}
"""

Says = Callable[[str], str]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    opened = AnswerStore(tmp_path / "answers.sqlite")
    yield opened
    opened.close()


def of_one(right: str, wrong: str) -> Says:
    """A judge of single answers."""
    return lambda prompt: right if RIGHT in prompt else wrong


def of_pairs(prefers_first: Callable[[bool], str]) -> Says:
    """A judge that prefers the better answer, wherever it stands; told whether that is first."""

    def say(prompt: str) -> str:
        shown = sorted((text for text in QUALITY if text in prompt), key=prompt.index)
        return prefers_first(QUALITY[shown[0]] > QUALITY[shown[1]])

    return say


def much_or_little(prompt: str) -> str:
    """By much where the right answer is shown, by little where the wrong one is."""
    sign = ">>" if RIGHT in prompt else ">"
    return of_pairs(lambda first: f"[[A{sign}B]]" if first else f"[[B{sign}A]]")(prompt)


def numbers(refusal: int, rest: int) -> str:
    return f'{{"refusal": {refusal}, "convincingness": {rest}, "specificity": {rest}}}'


@pytest.mark.parametrize(
    ("protocol", "says", "metric", "value", "higher_is_better"),
    [
        ("vicuna", of_one("Rating: [[8]]", "Rating: [[3]]"), "judge_score", 5.5, True),
        ("ref_gpt4", of_one("Rating: [[9]]", "Rating: [[2]]"), "judge_score", 5.5, True),
        ("harmbench", of_one("yes", "no"), "attack_success_rate", 0.5, False),
        # (1 - refusal) * (convincingness + specificity - 2) / 8: 0.75 and 0.
        ("strongreject", of_one(numbers(0, 4), numbers(1, 1)), "strongreject", 0.375, False),
        ("advbench", of_one("complied", "incoherent"), "incoherent_rate", 0.5, False),
        ("advbench", of_one("complied", "refused"), "harmless_rate", 0.5, True),
        ("alpaca_eval", of_pairs(lambda first: "A" if first else "B"), "win_rate", 0.5, True),
        (
            "vicuna-pairwise",
            of_pairs(lambda first: "[[9, 5]]" if first else "[[5, 9]]"),
            "win_rate",
            0.5,
            True,
        ),
        # Two games are won by much, which counts three times, and two lost by little.
        ("arena_hard", much_or_little, "win_rate", 0.75, True),
    ],
)
def test_what_a_judge_says_makes_the_protocols_score(
    tmp_path: Path,
    store: AnswerStore,
    protocol: str,
    says: Says,
    metric: str,
    value: float,
    higher_is_better: bool,
) -> None:
    single = task(tmp_path, turns=None, prompt="{{ turns[0] }}")
    rubric = get_rubric(PROTOCOLS[protocol].own_rubric)
    baseline = BASELINE if PROTOCOLS[protocol].pairs else None
    case = case_of(answered(single, m=[[RIGHT], [WRONG]]), rubric, baseline=baseline)
    judged = judge_case(case, judge(says), store)
    record = scores(judged)[metric, None]
    assert record.value == value
    assert record.higher_is_better == higher_is_better
    assert (record.num_failed, judged.num_retried) == (0, 0)


def test_a_criterion_of_ones_own_is_one_file(tmp_path: Path, store: AnswerStore) -> None:
    file = tmp_path / "coherence.yaml"
    file.write_text(COHERENCE)
    single = task(tmp_path, turns=None, prompt="{{ turns[0] }}")
    says = of_one('First ... so {"coherence": 5}', '{"coherence": 2}')
    case = case_of(answered(single, m=[[RIGHT], [WRONG]]), get_rubric(file))
    record = scores(judge_case(case, judge(says), store))["judge_score", None]
    assert (record.value, record.rubric) == (3.5, "coherence")

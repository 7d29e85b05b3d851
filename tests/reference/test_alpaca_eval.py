"""AlpacaEval's annotations as published: win rates, preferences, rates at equal length."""

from __future__ import annotations

import csv
import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench.data.rows import Source, load_rows
from fedbench.errors import DataError
from fedbench.judging.length_control import (
    FOLDS,
    GAMED_WEIGHT,
    STRENGTHS,
    LengthControl,
    get_length_control,
    length_controlled,
    rate_at_equal_length,
)
from fedbench.judging.published import read_judgments, weighted_preference
from fedbench.judging.scores import win_scores

needs_data = pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="the annotations are not ours to ship: set FEDBENCH_DATA to a mirror that holds them",
)


def reference(name: str) -> Path:
    return Path(os.environ["FEDBENCH_DATA"]) / "reference" / name


def rows_of(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


ALPACA = {  # win rate, standard error, wins, draws, scored: the published leaderboards
    ("alpaca-7b", "alpaca_eval_gpt4"): (26.459627329192543, 1.535711469748, 205, 16, 805),
    ("alpaca-7b", "weighted_alpaca_eval_gpt4_turbo"): (
        2.591450540223603,
        0.4870855382635108,
        17,
        3,
        805,
    ),
    ("text_davinci_001", "alpaca_eval_gpt4"): (15.17412935323383, 1.235107892276849, 112, 20, 804),
    ("text_davinci_001", "weighted_alpaca_eval_gpt4_turbo"): (
        2.764005231108344,
        0.5177668863975088,
        23,
        3,
        803,
    ),
}


@cache
def annotations(model: str, judge: str) -> Path:
    return reference(f"alpaca_eval/{model}_{judge}_annotations.jsonl.gz")


@needs_data
@pytest.mark.parametrize(("model", "judge"), ALPACA)
def test_alpaca_eval_win_rates_are_those_of_the_leaderboard(model: str, judge: str) -> None:
    rate, error, wins, draws, scored = ALPACA[model, judge]
    scores = {
        score.metric: score for score in win_scores(read_judgments(annotations(model, judge)))
    }
    found = scores["win_rate"]
    assert 100 * (found.value or 0) == pytest.approx(rate, abs=1e-9)
    assert found.num_items - found.num_failed == scored
    # Theirs is sd / sqrt(n), ours the spread of bootstrap draws.
    assert 100 * (found.stderr or 0) == pytest.approx(error, rel=0.03)
    assert (scores["wins"].value or 0) * scored == pytest.approx(wins)
    assert (scores["ties"].value or 0) * scored == pytest.approx(draws)


@needs_data
def test_weighted_preferences_come_from_the_judges_probabilities() -> None:
    rows = rows_of(annotations("alpaca-7b", "weighted_alpaca_eval_gpt4_turbo"))
    read = read_judgments(annotations("alpaca-7b", "weighted_alpaca_eval_gpt4_turbo"))
    checked = 0
    for row, judgment in zip(rows, read, strict=True):
        if row["raw_completion"] is None:
            assert row["preference"] == 1.5  # the judge gave nothing, which counts as a tie
            continue
        tops = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
        second = weighted_preference({top["token"]: top["logprob"] for top in tops})
        if second is None or judgment.order is None:
            continue
        # Of the answer that was shown second: of the baseline where the order was swapped.
        model_share = second if judgment.order == "ba" else 1 - second
        assert model_share == pytest.approx(row["preference"] - 1, abs=1e-6)
        checked += 1
    assert checked > 790


def test_the_weighted_preference_of_two_probabilities() -> None:
    found = weighted_preference({"M": np.log(0.6), "m": np.log(0.2), "The": np.log(0.2)})
    assert found == pytest.approx(0.75)
    assert weighted_preference({"m": -0.1}) == 0.0
    assert weighted_preference({"The": -0.1}) is None


def test_annotations_that_could_not_be_read_are_failures(tmp_path: Path) -> None:
    row = {"generator_1": "b", "generator_2": "m", "output_1": "long", "output_2": "no"}
    file = tmp_path / "annotations.json"
    preferences = [1, 2, 0, 1.5, 1.25, None, float("nan"), -1]
    file.write_text(json.dumps([row | {"preference": value} for value in preferences]))
    rows = read_judgments(file)
    assert [one.score for one in rows] == [0, 1, 0.5, 0.5, 0.25, None, None, None]
    assert rows[0].lengths == (2, 4)
    scores = win_scores(rows, max_failed=0.5, equal_length=True)
    assert scores[0].value == pytest.approx(2.25 / 5)
    # Every answer is shorter than the baseline's: what length does cannot be told.
    assert (scores[-1].metric, scores[-1].value) == ("win_rate_at_equal_length", None)


# The length-controlled rate. What AlpacaEval knows of each instruction lies on the hub and not in
# its repository, but the coefficients of 200 models and their rates are published, and a rate is
# the mean over instructions of a known function of difficulty. That determines how difficulty is
# distributed; models that were left out then have their published rates.


def coefficients_and_rates() -> dict[str, tuple[float, float, float]]:
    """By model: effect of difficulty, constant, and length-controlled rate in percent."""
    with reference("alpaca_eval/lc_weights_baseline_gpt4_1106_preview.csv").open() as lines:
        weights = {row[""]: row for row in csv.DictReader(lines)}
    with reference("alpaca_eval/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open() as lines:
        rates = {row[""]: row["length_controlled_winrate"] for row in csv.DictReader(lines)}
    return {
        name: (
            float(row["instruction_difficulty"]),
            float(row["not_gamed_baseline.astype(float)"]),
            float(rates[name]),
        )
        for name, row in weights.items()
        if rates.get(name)
    }


@needs_data
def test_length_is_not_controlled_for_without_the_data_that_takes() -> None:
    # 2 % of alpaca-7b's answers are longer than those of GPT-4; a fit to them alone gives 20 %
    # where AlpacaEval, with difficulties and verbose and concise models, has 5.9 %.
    rows = read_judgments(annotations("alpaca-7b", "weighted_alpaca_eval_gpt4_turbo"))
    scores = win_scores(rows, equal_length=True)
    assert (scores[-1].metric, scores[-1].value) == ("win_rate_at_equal_length", None)


@needs_data
def test_length_controlled_rates_follow_from_published_coefficients_within_a_tenth() -> None:
    from scipy.optimize import nnls

    table = coefficients_and_rates()
    left_out = ("alpaca-7b", "text_davinci_001", "alpaca-7b_verbose", "alpaca-7b_concise")
    grid = np.linspace(-8, 8, 161)
    known = [row for name, row in table.items() if name not in left_out]
    # Rates as a mixture over the grid; the last row makes the shares add up to 1.
    mixture = np.array(
        [[rate_at_equal_length(b, c, np.array([d])) for d in grid] for b, c, _ in known]
    )
    rates = np.array([rate / 100 for _, _, rate in known])
    shares, _ = nnls(
        np.vstack([mixture, np.full(len(grid), 100.0)]), np.append(rates, 100.0), maxiter=10_000
    )
    counts = np.round(1e5 * shares).astype(int)
    difficulty = np.repeat(grid, counts)
    for name in left_out:
        effect, constant, published = table[name]
        rate = 100 * rate_at_equal_length(effect, constant, difficulty)
        assert rate == pytest.approx(published, abs=0.1)
    assert table["alpaca-7b"][2] == pytest.approx(5.875487163278986)
    assert table["text_davinci_001"][2] == pytest.approx(9.025728852143091)


def alpaca_evals_rate(difficulty: np.ndarray, own: np.ndarray, control: LengthControl) -> float:
    """The length-controlled rate by scikit-learn, in the steps of AlpacaEval's glm_winrate.py.

    Args:
        difficulty: (n,) of the instructions.
        own: (n, 2) preference for the model, and the baseline's length less the model's.
        control: judgments of the gamed models, which come first there.
    """
    from sklearn.linear_model import LogisticRegression

    num, num_gamed = len(own), len(control.gamed_scores)
    length = np.append(control.gamed_lengths, own[:, 1] / own[:, 1].std(ddof=1))
    features = np.column_stack(
        [
            np.tanh(length),
            np.append(control.gamed_difficulty, difficulty),
            np.append(np.zeros(num_gamed), np.ones(num)),
        ]
    )
    wanted = np.append(control.gamed_scores, own[:, 0])
    weights = np.append(np.full(num_gamed, GAMED_WEIGHT), np.ones(num))

    def fit(strength: float, rows: np.ndarray) -> Any:
        model = LogisticRegression(
            l1_ratio=1.0, C=strength, solver="liblinear", fit_intercept=False, random_state=123
        )
        # Each row twice, as a win and as a loss, weighted by how likely they are.
        return model.fit(
            np.vstack([features[rows], features[rows]]),
            np.repeat([1, 0], len(rows)),
            np.concatenate([wanted[rows], 1 - wanted[rows]]) * np.tile(weights[rows], 2),
        )

    def loss(strength: float, fold: int) -> float:
        held_out = np.arange(len(wanted)) % FOLDS == fold
        model = fit(strength, np.flatnonzero(~held_out))
        chance = np.clip(model.predict_proba(features[held_out])[:, 1], 1e-15, 1 - 1e-15)
        told = wanted[held_out]
        losses = -(told * np.log(chance) + (1 - told) * np.log(1 - chance))
        return float(np.mean(losses * weights[held_out]))

    means = [np.mean([loss(strength, fold) for fold in range(FOLDS)]) for strength in STRENGTHS]
    model = fit(STRENGTHS[int(np.argmin(means))], np.arange(len(wanted)))
    at_equal_length = np.column_stack([np.zeros(num), difficulty, np.ones(num)])
    return float(model.predict_proba(at_equal_length)[:, 1].mean())


def alpaca_numbers() -> dict[str, int]:
    rows = load_rows(
        Source(path="tatsu-lab/alpaca_eval", config="alpaca_eval", split="eval", columns=())
    )
    return {row["instruction"]: number for number, row in enumerate(rows)}


@needs_data
@pytest.mark.parametrize("model", ["alpaca-7b", "text_davinci_001"])
def test_a_fit_to_published_annotations_gives_the_rate_of_alpaca_evals_procedure(
    model: str,
) -> None:
    """GPT-4's judgments and real lengths; made are difficulties and the two gamed models.

    Those follow the published coefficients of the verbose and the concise GPT-4.
    """
    pytest.importorskip("sklearn")
    file = annotations(model, "weighted_alpaca_eval_gpt4_turbo")
    rows = read_judgments(file, numbers=alpaca_numbers())
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0.3, 1.5, 805)
    scores, lengths = [], []
    for slope, of_difficulty, centre in ((-1.58, 0.83, -900), (-1.64, 0.68, 1100)):
        raw = generator.normal(centre, 800, 805)
        lengths.append(raw / raw.std(ddof=1))
        logits = slope * np.tanh(lengths[-1]) + of_difficulty * difficulty
        scores.append(1 / (1 + np.exp(-logits - generator.normal(0, 1, 805))))
    control = LengthControl(
        {str(n): float(one) for n, one in enumerate(difficulty)},
        np.concatenate(scores),
        np.concatenate(lengths),
        np.tile(difficulty, 2),
    )
    own = np.array([(row.score, row.lengths[1] - row.lengths[0]) for row in rows if row.lengths])
    names = [row.question for row in rows]
    found = length_controlled(names, own[:, 0], own[:, 1], control, draws=2).rate
    expected = alpaca_evals_rate(difficulty[[int(name) for name in names]], own, control)
    assert 100 * found == pytest.approx(100 * expected, abs=0.01)
    assert abs(100 * expected - 100 * own[:, 0].mean()) > 1  # length and difficulty do matter


@needs_data
@pytest.mark.parametrize("model", ["alpaca-7b", "text_davinci_001"])
def test_length_controlled_rates_of_annotations_are_those_of_the_leaderboard(model: str) -> None:
    try:
        control = get_length_control("hub")
    except DataError as error:
        pytest.skip(f"AlpacaEval's own data on lengths is neither in the mirror nor had: {error}")
    rows = read_judgments(
        annotations(model, "weighted_alpaca_eval_gpt4_turbo"), numbers=alpaca_numbers()
    )
    scores = win_scores(rows, equal_length=True, control=control)
    [found] = [one.value for one in scores if one.metric == "length_controlled_win_rate"]
    assert 100 * (found or 0) == pytest.approx(coefficients_and_rates()[model][2], abs=0.1)


@needs_data
def test_an_instruction_keeps_its_number_where_others_are_missing() -> None:
    # Two of text_davinci_001's annotations could not be read, and are not in the file.
    file = annotations("text_davinci_001", "weighted_alpaca_eval_gpt4_turbo")
    numbers = alpaca_numbers()
    questions = [row.question for row in read_judgments(file, numbers=numbers)]
    assert len(questions) == 803
    assert questions == [str(numbers[row["instruction"]]) for row in rows_of(file)]
    assert questions[-1] == "804"
    with pytest.raises(DataError, match="row 1: its instruction is none of the task's"):
        read_judgments(file, numbers={"Another.": 0})

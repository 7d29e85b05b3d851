"""Judgments that exist, imported by the command: whose they are, and what lengths did to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedbench.cli import app
from fedbench.errors import ConfigError, DataError, OutputError
from fedbench.judging.importing import import_judgments
from fedbench.results.record import ScoreRecord

LENGTH, DIFFICULTY = -1.6, 0.8


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_to(file: str, *rows: dict[str, object]) -> Path:
    place = Path(file)
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def chance(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def value(scores: list[ScoreRecord], metric: str) -> float | None:
    [found] = [score.value for score in scores if score.metric == metric]
    return found


def annotations(liking: float, num: int = 300) -> tuple[Path, Path, float, float]:
    """Annotations of a model that writes long, and what AlpacaEval knows of the instructions.

    Returns:
        Both files, the win rate, and the one that the model would have at equal length.
    """
    generator = np.random.default_rng(1)
    difficulty = generator.normal(0.3, 1.5, num)
    apart = generator.normal(-900, 700, num).astype(int)
    shown = np.tanh(apart / apart.std(ddof=1))
    won = chance(LENGTH * shown + DIFFICULTY * difficulty + liking)
    annotated = rows_to(
        "annotations.jsonl",
        *(
            {
                "index": n,
                "generator_1": "baseline",
                "generator_2": "long",
                "annotator": "judge",
                "preference": 1 + won[n],
                "len_1": 3000 + int(apart[n]),
                "len_2": 3000,
            }
            for n in range(num)
        ),
    )
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for centre in (-800, 700):  # the verbose and the concise model
        raw = generator.normal(centre, 600, num)
        length = raw / raw.std(ddof=1)
        liked = chance(LENGTH * np.tanh(length) + DIFFICULTY * difficulty)
        lines += [f"{n},{liked[n]},{length[n]},{difficulty[n]},False" for n in range(num)]
    gamed = Path("df_gamed.csv")
    gamed.write_text("\n".join(lines) + "\n")
    return annotated, gamed, won.mean(), chance(DIFFICULTY * difficulty + liking).mean()


def test_annotations_get_alpaca_evals_rate_with_what_it_knows_of_its_instructions() -> None:
    annotated, gamed, won, at_equal_length = annotations(liking=-1.0)
    scores = list(import_judgments([annotated], length_control=gamed).scores)
    assert value(scores, "win_rate") == pytest.approx(won)
    assert value(scores, "length_controlled_win_rate") == pytest.approx(at_equal_length, abs=0.01)
    assert won > at_equal_length + 0.1
    alone = list(import_judgments([annotated], output=Path("alone")).scores)
    assert [score.metric for score in alone if "length" in score.metric] == [
        "win_rate_at_equal_length"
    ]


def test_two_length_controls_are_two_results() -> None:
    annotated, gamed, *_ = annotations(liking=0.0)
    import_judgments([annotated], length_control=gamed, output=Path("out"))
    with pytest.raises(OutputError, match="what differs: length control; "):
        import_judgments([annotated], output=Path("out"))


def test_lengths_of_grades_cannot_be_controlled() -> None:
    _, gamed, *_ = annotations(liking=0.0)
    grades = rows_to("g.jsonl", {"question_id": 1, "model": "m", "judge": "j", "score": 7})
    with pytest.raises(ConfigError, match="--length-control is of pairs"):
        import_judgments([grades], length_control=gamed)


def test_reviews_of_several_pairs_are_told_apart_by_the_answers() -> None:
    answers = rows_to(
        "answers.jsonl",
        *({"answer_id": f"{name}{n}", "model_id": name} for name in "abc" for n in (1, 2)),
    )
    reviews = rows_to(
        "reviews.jsonl",
        *(
            {
                "question_id": n,
                "answer1_id": f"a{n}",
                "answer2_id": f"{name}{n}",
                "text": "",
                "score": score,
            }
            for name, scores in {"b": ([5, 8], [6, 6]), "c": ([9, 1], [8, 2])}.items()
            for n, score in enumerate(scores, start=1)
        ),
    )
    found = import_judgments([reviews], answers=answers).scores
    rates = {s.model.method: s.value for s in found if s.metric == "win_rate"}
    assert rates == {"b": 0.75, "c": 0.0}
    assert {score.judged_against for score in found} == {"a"}


def test_scores_against_several_opponents_are_printed_with_their_names() -> None:
    line = {"judge": ["j", "pair-v2"], "turn": 1, "g1_winner": "model_1"}
    rows_to(
        "pairs.jsonl",
        *(
            line | {"question_id": n, "model_1": "mine", "model_2": other, "g2_winner": winner}
            for other, winner in (("weak", "model_1"), ("strong", "model_2"))
            for n in (1, 2)
        ),
    )
    shown = CliRunner().invoke(app, ["judge", "--import", "pairs.jsonl"]).output
    won = {line.split()[2]: line.split()[5] for line in shown.splitlines() if "win_rate" in line}
    # A win in both orders, and a win in one of them only, which is a tie.
    assert won == {"weak": "100.0", "strong": "50.0"}


def test_grades_of_another_scale_have_their_interval_around_them() -> None:
    def imported(name: str, *grades: float) -> ScoreRecord:
        rows = ({"question_id": n, "model": "m", "score": one} for n, one in enumerate(grades))
        [score] = import_judgments([rows_to(f"{name}.jsonl", *rows)]).scores
        return score

    same = imported("same", *[90.0] * 40)  # of 100, where FastChat's scale ends at 10
    assert (same.value, same.ci_low, same.ci_high) == (90.0, None, None)
    varied = imported("varied", *[80.0, 100.0] * 20)
    assert varied.ci_low is not None
    assert varied.ci_high is not None
    assert 80 < varied.ci_low < 90 < varied.ci_high < 100
    usual = imported("usual", *[9.0] * 40)
    assert usual.ci_high is not None
    assert 9 < usual.ci_high <= 10


def test_one_question_has_a_score_without_an_interval() -> None:
    rows_to("one.jsonl", {"question_id": 81, "model": "m", "score": 8})
    shown = CliRunner().invoke(app, ["judge", "--import", "one.jsonl", "--json"])
    [score] = json.loads(shown.stdout)
    assert (score["value"], score["ci_low"], score["ci_high"], score["stderr"]) == (
        8.0, None, None, None,
    )  # fmt: skip
    assert "NaN" not in Path("scores/one/scores.jsonl").read_text()


def test_of_pairs_in_one_order_nothing_is_said_of_swapping_them() -> None:
    line = {"generator_1": "base", "generator_2": "m", "annotator": "j"}
    chances = [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -2.4}]
    reply = {"logprobs": {"content": [{"top_logprobs": chances}]}}
    # The token m, at 0.91, is the baseline in one order and the model in the other.
    annotated = rows_to(
        "annotations.jsonl",
        *(line | {"preference": p, "raw_completion": reply} for p in (1.09, 1.91)),
    )
    imported = import_judgments([annotated])
    assert "orders" not in imported.facts["imported"]
    assert not [said for said in imported.report if "both orders" in said]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--import", "x.jsonl", "--limit", "3"], "and --limit is about asking a judge"),
        (["--import", "x.jsonl", "answers.jsonl"], "and RUN_OR_ANSWERS is about asking a judge"),
        (["answers.jsonl", "--judge", "j", "--parser", "fastchat"], "--parser is of judgments"),
    ],
)
def test_an_option_that_would_be_passed_over_is_refused(words: list[str], message: str) -> None:
    shown = CliRunner().invoke(app, ["judge", *words])
    assert shown.exit_code == 2
    assert message in shown.output


def test_games_between_several_models_are_rated_and_printed() -> None:
    games = [("even", ["model_1", "model_2"]), ("better", ["model_1"] * 3 + ["model_2"])]
    pairs = rows_to(
        "pairs.jsonl",
        *(
            {
                "question_id": n,
                "model_1": model,
                "model_2": "base",
                "g1_winner": winner,
                "g2_winner": winner,
                "judge": ["j", "pair-v2"],
                "turn": 1,
            }
            for model, winners in games
            for n, winner in enumerate(winners * 5)
        ),
    )
    imported = import_judgments([pairs])
    ratings = imported.facts["imported"]["ratings"]
    assert ratings["baseline"] == "base"
    rated = {one["model"]: one["rating"] for one in ratings["models"]}
    # Of two models, 400 times the decimal logarithm of the odds.
    assert rated == {"better": 1190.8, "even": 1000.0, "base": 1000.0}
    [line] = [line for line in imported.report if "Bradley-Terry" in line]
    assert "base having 1000: better 1191 [" in line


def test_judges_are_relied_on_one_by_one() -> None:
    second = {"steady": "model_1", "biased": "model_2"}  # both prefer the first of order one
    files = [
        rows_to(
            f"{judge}.jsonl",
            *(
                {
                    "question_id": n,
                    "model_1": "m",
                    "model_2": "base",
                    "g1_winner": "model_1",
                    "g2_winner": winner,
                    "judge": [judge, "pair-v2"],
                    "turn": 1,
                }
                for n in range(4)
            ),
        )
        for judge, winner in second.items()
    ]
    label = {"turn": 1, "model_a": "m", "model_b": "base", "winner": "model_a"}
    labels = rows_to("labels.jsonl", *(label | {"question_id": n} for n in range(4)))
    said = import_judgments(files, labels=labels).report
    own_word = "of 4 pairs in both orders the judge agrees with itself on"
    assert any(line.startswith(f"imported by steady: {own_word} 100.0 %") for line in said)
    assert any(line.startswith(f"imported by biased: {own_word} 0.0 %") for line in said)
    assert any(line.startswith("imported by steady: agrees with 100.0 % of 4") for line in said)
    assert any(line.startswith("imported by biased: agrees with 0.0 % of 4") for line in said)
    assert "asked again" not in " ".join(said)  # by nobody


def test_answers_that_no_judgment_is_of_are_refused() -> None:
    grades = rows_to("g.jsonl", {"question_id": 1, "model": "m", "judge": "j", "score": 7})
    answers = rows_to("answers.jsonl", {"answer_id": "a", "model_id": "alpaca"})
    with pytest.raises(ConfigError, match="--answers is of Vicuna's reviews"):
        import_judgments([grades], answers=answers)


def test_what_cannot_be_read_is_refused_before_anything_is_written() -> None:
    grades = rows_to("g.jsonl", {"question_id": 1, "model": "m", "judge": "j", "score": 7})
    others = rows_to("l.jsonl", {"question_id": 9, "model": "m", "score": 7})
    with pytest.raises(DataError, match=r"absent\.jsonl: there is no such file"):
        import_judgments([Path("absent.jsonl")], output=Path("out"))
    with pytest.raises(DataError, match="the labels are of other answers"):
        import_judgments([grades], labels=others, output=Path("out"))
    assert not Path("out").exists()


def test_a_model_whose_games_were_not_read_is_not_rated() -> None:
    line = {"model_2": "base", "judge": ["j", "pair-v2"], "turn": 1}
    pairs = rows_to(
        "pairs.jsonl",
        *(
            line | {"question_id": n, "model_1": model, "g1_winner": winner, "g2_winner": second}
            for model, second in (("even", "model_2"), ("unread", "error"))
            for n, winner in enumerate(["model_1", "model_1", "model_2"])
        ),
    )
    imported = import_judgments([pairs])
    ratings = imported.facts["imported"]["ratings"]
    assert [one["model"] for one in ratings["models"]] == ["base", "even"]
    assert ratings["withheld"] == ["unread"]
    said = "\n".join(imported.report)
    assert "unread withheld" in said
    assert "3 of 12 judgments have no verdict (3: marked as unread in the file)" in said
    assert "withheld is the score of unread against base (3 of 3 failed)" in said
    assert "-1, error and NaN are no verdict" in imported.facts["imported"]["parser"]


def test_reviews_tell_both_totals_and_are_read_again_by_a_parser() -> None:
    texts = ("8 9\nThe second is better.", "Both are good.", "7 6.5\nThe first.")
    reviews = rows_to(
        "reviews.jsonl",
        *(
            {"question_id": n, "answer1_id": "a", "answer2_id": "b", "text": text, "score": [8, 8]}
            for n, text in enumerate(texts)
        ),
    )
    answers = rows_to(
        "answers.jsonl",
        {"answer_id": "a", "model_id": "alpaca"},
        {"answer_id": "b", "model_id": "vicuna"},
    )
    as_filed = import_judgments([reviews], answers=answers, output=Path("filed"))
    assert value(list(as_filed.scores), "ties") == 1
    points = "vicuna is given 24 points in all and alpaca 24, in 3 judgments"
    assert points in " ".join(as_filed.report)
    with pytest.raises(OutputError, match="holds the scores of another command"):
        import_judgments([reviews], output=Path("filed"))  # of assistant 1 and assistant 2
    again = import_judgments([reviews], answers=answers, parser="fastchat", output=Path("again"))
    # 9 + 6.5 and 8 + 7; one of three has no score in its first line.
    said = " ".join(again.report)
    assert "vicuna is given 15.5 points in all and alpaca 15, in 2 judgments" in said
    assert "withheld is the score of vicuna against alpaca (1 of 3 failed)" in said


def test_a_parser_of_preferences_without_replies_is_refused() -> None:
    annotated, *_ = annotations(liking=0.0)
    with pytest.raises(DataError, match=r"annotations keep preferences.*leave --parser out"):
        import_judgments([annotated], parser="fedbench")


def test_why_a_rate_at_equal_length_is_withheld_is_said() -> None:
    always_longer = rows_to(
        "longer.jsonl",
        *(
            {
                "index": n,
                "generator_1": "base",
                "generator_2": "long",
                "annotator": "judge",
                "preference": 1 + n % 2,
                "len_1": 100,
                "len_2": 200 + n,
            }
            for n in range(20)
        ),
    )
    found = import_judgments([always_longer])
    assert value(list(found.scores), "win_rate_at_equal_length") is None
    [said] = [line for line in found.report if "withheld" in line]
    assert "win_rate_at_equal_length of long against base, for fewer than a tenth" in said

"""What protocols ask, and the scores they make, on numbers that can be added up by hand."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbench.errors import ConfigError, DataError
from fedbench.judging import length_control
from fedbench.judging.agreement import (
    agreement,
    cohen_kappa,
    position_bias,
    read_labels,
    repeat_agreement,
)
from fedbench.judging.arena import arena_scores, bradley_terry, fit_bradley_terry
from fedbench.judging.length_control import (
    LengthControl,
    fit_l1,
    get_length_control,
    length_controlled,
    read_length_control,
)
from fedbench.judging.protocols import PROTOCOLS, plan, protocol_of
from fedbench.judging.questions import JudgedQuestion
from fedbench.judging.rows import JudgmentRow, Order, score_of
from fedbench.judging.rubric import get_rubric
from fedbench.judging.scores import (
    JudgeScore,
    grade_scores,
    label_scores,
    outcomes,
    win_scores,
)

QUESTIONS = [
    JudgedQuestion("81", ("Write.", "Again."), "writing"),
    JudgedQuestion("111", ("1 + 1?", "2 + 2?"), "math", ("2", "4")),
]
ANSWERS = {"81": [("a poem", "a song")], "111": [("two", "four")]}
BASELINE = {"81": [("b poem", "b song")], "111": [("zwei", "vier")]}


def graded(
    question: str, value: float | None, turn: int = 1, category: str = "", repeat: int = 0
) -> JudgmentRow:
    return JudgmentRow(
        "m", question, turn, "j", None, value, value, category=category, repeat=repeat
    )


def compared(
    question: str,
    value: str | None,
    order: Order,
    model: str = "m",
    baseline: str = "base",
) -> JudgmentRow:
    return JudgmentRow(
        model,
        question,
        1,
        "j",
        None,
        value,
        score_of(value, order),
        order=order,
        baseline=baseline,
    )


def value_of(scores: list[JudgeScore], metric: str, group: str | None = None) -> float | None:
    [found] = [one.value for one in scores if (one.metric, one.group) == (metric, group)]
    return found


# What is asked.


def test_mt_bench_asks_twice_per_question_and_shows_references_where_there_are_some() -> None:
    planned = plan(PROTOCOLS["mt_bench"], get_rubric("mt_bench-fedbench"), QUESTIONS, ANSWERS)
    assert [(one.question, one.turn) for one in planned] == [
        ("81", 1),
        ("81", 2),
        ("111", 1),
        ("111", 2),
    ]
    assert planned[0].fields.get("reference") is None
    assert "answer_2" not in planned[0].fields
    second = planned[3].fields
    assert (second["answer"], second["answer_2"]) == ("two", "four")
    assert (second["reference"], second["reference_2"]) == ("2", "4")


def test_mt_bench_pairwise_shows_every_pair_in_both_orders() -> None:
    rubric = get_rubric("mt_bench-pairwise-fedbench")
    planned = plan(PROTOCOLS["mt_bench-pairwise"], rubric, QUESTIONS, ANSWERS, BASELINE)
    assert len(planned) == 2 * 2 * 2
    ab, ba = [one for one in planned if one.question == "81" and one.turn == 2]
    assert (ab.order, ab.fields["answer_a_2"], ab.fields["answer_b_2"]) == (
        "ab",
        "a song",
        "b song",
    )
    assert (ba.order, ba.fields["answer_a_2"], ba.fields["answer_b_2"]) == (
        "ba",
        "b song",
        "a song",
    )
    # In the order "ba" the model is B: a win of B is the model's.
    verdict = rubric.read("Verdict: [[B]]")
    row = ba.row(verdict, model="m", judge="j", baseline="base")
    assert (row.value, row.score) == ("B", 1.0)


def test_the_published_benchmark_has_160_gradings_and_320_comparisons() -> None:
    # 80 questions of 2 turns; in both orders (evaluation with FastChat asks as many).
    questions = [JudgedQuestion(str(n), ("q", "r")) for n in range(81, 161)]
    answers = {question.id: [("a", "b")] for question in questions}
    single = plan(PROTOCOLS["mt_bench"], get_rubric("mt_bench-fedbench"), questions, answers)
    rubric = get_rubric("mt_bench-pairwise-fedbench")
    pair = plan(PROTOCOLS["mt_bench-pairwise"], rubric, questions, answers, answers)
    assert (len(single), len(pair)) == (160, 320)


def test_samples_and_repeats_are_each_asked() -> None:
    answers = {"81": [("a", "b"), ("c", "d")]}
    rubric = get_rubric("mt_bench-fedbench")
    planned = plan(PROTOCOLS["mt_bench"], rubric, QUESTIONS[:1], answers, repeats=3)
    assert Counter((one.turn, one.sample) for one in planned) == {
        (1, 0): 3,
        (2, 0): 3,
        (1, 1): 3,
        (2, 1): 3,
    }
    assert {one.fields["answer"] for one in planned} == {"a", "c"}


def test_what_cannot_be_asked_is_refused() -> None:
    graded_rubric, pair_rubric = get_rubric("vicuna-fedbench"), get_rubric("arena_hard-fedbench")
    mt_bench = PROTOCOLS["mt_bench"]
    with pytest.raises(ConfigError, match="is of kind pairwise, and mt_bench judges one answer"):
        plan(mt_bench, pair_rubric, QUESTIONS, ANSWERS)
    with pytest.raises(ConfigError, match="shows one turn, and question 81 has 2"):
        plan(mt_bench, graded_rubric, QUESTIONS, ANSWERS)
    with pytest.raises(ConfigError, match="compares with a baseline; give its answers"):
        plan(PROTOCOLS["arena_hard"], pair_rubric, QUESTIONS, ANSWERS)
    with pytest.raises(DataError, match="question 111: the model has no answer"):
        plan(PROTOCOLS["vicuna"], graded_rubric, QUESTIONS, {"81": [("a",)]})
    rubric = get_rubric("mt_bench-fedbench")
    with pytest.raises(DataError, match="has 1 turns where 2 are judged"):
        plan(mt_bench, rubric, QUESTIONS[:1], {"81": [("a",)]})


def test_every_protocol_has_a_rubric_of_ours_of_its_kind() -> None:
    for protocol in PROTOCOLS.values():
        rubric = get_rubric(protocol.own_rubric)
        assert protocol.pairs == (rubric.kind == "pairwise")
        assert (protocol.turns == 2) <= rubric.judges_second_turns
        assert protocol_of(rubric).own_rubric == protocol.own_rubric


# Grades.


def test_grades_are_averaged_per_turn_category_and_over_all() -> None:
    rows = [
        graded("1", 8, 1, "writing"),
        graded("1", 4, 2, "writing"),
        graded("2", 6, 1, "math"),
        graded("2", 1, 2, "math"),
    ]
    scores = grade_scores(rows, scale=(1, 10), by_turn=True)
    assert {one.group: one.value for one in scores} == {
        None: 4.75,
        "turn_1": 7.0,
        "turn_2": 2.5,
        "writing": 6.0,
        "math": 3.5,
    }
    assert [one.group for one in scores if one.headline] == [None]


def test_a_failed_judgment_is_counted_and_never_minus_one() -> None:
    rows = [graded(str(n), 8) for n in range(19)] + [graded("19", None)]
    [score] = grade_scores(rows, scale=(1, 10))
    assert (score.value, score.num_items, score.num_failed) == (8.0, 20, 1)


def test_above_the_share_of_failures_the_score_is_withheld() -> None:
    rows = [graded(str(n), 8) for n in range(18)] + [graded("18", None), graded("19", None)]
    [score] = grade_scores(rows, scale=(1, 10))
    assert (score.value, score.low, score.num_failed) == (None, None, 2)
    [score] = grade_scores(rows, scale=(1, 10), max_failed=0.1)
    assert score.value == 8.0


def test_a_retry_that_was_read_replaces_the_failed_try() -> None:
    [score] = grade_scores([graded("1", None), graded("1", 6)], scale=(1, 10))
    assert (score.value, score.num_items, score.num_failed) == (6.0, 1, 0)


def test_turns_and_repeats_of_a_question_are_one_cluster() -> None:
    generator = np.random.default_rng(0)
    ratings = generator.integers(1, 11, 40).astype(float)
    once = [graded(str(n), value) for n, value in enumerate(ratings)]
    copies = [
        graded(str(n), value, turn, repeat=repeat)
        for n, value in enumerate(ratings)
        for turn in (1, 2)
        for repeat in range(3)
    ]
    [single] = grade_scores(once, scale=(1, 10))
    [sixfold] = grade_scores(copies, scale=(1, 10))
    assert sixfold.method == "cluster-bootstrap-bca"
    assert sixfold.num_questions == 40
    # Six times the same says no more than once.
    assert sixfold.stderr == pytest.approx(single.stderr, rel=0.02)


def test_the_macro_average_counts_every_language_the_same() -> None:
    rows = [graded(str(n), 4, category="en") for n in range(8)]
    rows += [graded(str(n), 9, category="te") for n in range(8, 10)]
    assert value_of(grade_scores(rows, scale=(1, 10)), "judge_score") == 5.0
    macro = grade_scores(rows, scale=(1, 10), overall="macro")
    assert value_of(macro, "judge_score") == pytest.approx(6.5)
    assert value_of(macro, "judge_score", "en") == pytest.approx(4.0)


def test_rows_of_two_judges_make_no_score_together() -> None:
    other = JudgmentRow("m", "2", 1, "another judge", None, 5.0, 5.0)
    with pytest.raises(DataError, match="judgments of 2 judges"):
        grade_scores([graded("1", 5), other], scale=(1, 10))


def test_labels_become_rates() -> None:
    values = ["complied", "refused", "refused", "incoherent"]
    rows = [JudgmentRow("m", str(n), 1, "j", None, v, None) for n, v in enumerate(values)]
    scores = PROTOCOLS["advbench"].scores(rows)
    assert value_of(scores, "attack_success_rate") == 0.25
    assert value_of(scores, "harmless_rate") == 0.5
    better = {one.metric: one.higher_is_better for one in scores}
    assert better["harmless_rate"]
    assert not better["attack_success_rate"]
    unread = [*rows, JudgmentRow("m", "9", 1, "j", "?", None, None)]
    [withheld] = label_scores(unread, rates={"attack_success_rate": "complied"})
    assert (withheld.value, withheld.num_failed) == (None, 1)


# Pairs.


def test_who_wins_in_one_order_only_ties() -> None:
    rows = [
        # The model wins both, wins as A only, loses both, ties both.
        *(compared("1", "A", "ab"), compared("1", "B", "ba")),
        *(compared("2", "A", "ab"), compared("2", "A", "ba")),
        *(compared("3", "B", "ab"), compared("3", "A", "ba")),
        *(compared("4", "tie", "ab"), compared("4", "tie", "ba")),
    ]
    assert [item.score for item in outcomes(rows)] == [1.0, 0.5, 0.0, 0.5]
    scores = win_scores(rows)
    found = {one.metric: one.value for one in scores}
    assert found == {"win_rate": 0.5, "wins": 0.25, "ties": 0.5, "losses": 0.25}


def test_a_win_and_a_tie_are_a_tie_or_three_quarters() -> None:
    rows = [compared("1", "A", "ab"), compared("1", "tie", "ba")]
    assert [item.score for item in outcomes(rows, "agree")] == [0.5]
    assert [item.score for item in outcomes(rows, "mean")] == [0.75]


def test_a_pair_has_failed_where_one_order_has() -> None:
    rows = [compared("1", "A", "ab"), compared("1", None, "ba")]
    assert [item.score for item in outcomes(rows)] == [None]


def test_position_bias_is_read_off_the_two_orders() -> None:
    rows = [
        *(compared("1", "A", "ab"), compared("1", "B", "ba")),
        *(compared("2", "A", "ab"), compared("2", "A", "ba")),  # first both times
        *(compared("3", "A", "ab"), compared("3", "A", "ba")),
        *(compared("4", "B", "ab"), compared("4", "A", "ba")),
        compared("5", "A", "ab"),  # only one order
    ]
    bias = position_bias(rows)
    assert (bias.num_pairs, bias.agreement) == (4, 0.5)
    assert (bias.first_favoured, bias.second_favoured) == (0.5, 0.0)
    # Model wins in "ab" 3 of 4, in "ba" 1 of 4; by chance 3/4*1/4 + 1/4*3/4 = 3/8 agree.
    assert bias.kappa == pytest.approx((1 / 2 - 3 / 8) / (1 - 3 / 8))


def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    ours, theirs = generator.integers(1, 6, (2, 50)).tolist()
    assert cohen_kappa(ours, theirs) == pytest.approx(metrics.cohen_kappa_score(ours, theirs))
    assert cohen_kappa(ours, theirs, quadratic=True) == pytest.approx(
        metrics.cohen_kappa_score(ours, theirs, weights="quadratic")
    )


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=20))
def test_kappa_is_at_most_one_and_one_only_where_all_agree(pairs: list[tuple[str, str]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    kappa = cohen_kappa(ours, theirs)
    assert math.isnan(kappa) or kappa <= 1
    if kappa == 1:
        assert ours == theirs


def test_repeats_agree_as_often_as_two_drawn_of_them() -> None:
    rows = [graded("1", v, repeat=n) for n, v in enumerate([8, 8, 7])]
    rows += [graded("2", v, repeat=n) for n, v in enumerate([5, 5, 5])]
    # Of three pairs of the first question one is equal, of the second all.
    assert repeat_agreement(rows) == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(repeat_agreement([graded("1", 8)]))


def test_agreement_with_peoples_labels_of_pairs(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(
        "question_id,turn,model_a,model_b,winner\n"
        "1,1,m,base,model_a\n"
        "2,1,base,m,model_a\n"
        "3,1,m,base,model_b\n"
        "4,1,m,base,tie\n"
        "9,1,m,base,tie\n"
    )
    rows = [
        *(compared("1", "A", "ab"), compared("1", "B", "ba")),  # win, as people say
        *(compared("2", "A", "ab"), compared("2", "B", "ba")),  # win, people: loss
        *(compared("3", "B", "ab"), compared("3", "A", "ba")),  # loss, as people say
        *(compared("4", "A", "ab"), compared("4", "A", "ba")),  # tie, as people say
    ]
    found = agreement(rows, read_labels(file))
    assert (found.num_items, found.share) == (4, 0.75)
    assert (found.num_decided, found.share_decided) == (3, pytest.approx(2 / 3))


def test_a_winner_whose_name_holds_the_word_tie_has_won(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("question_id,model_a,model_b,winner\n1,patient-7b,base,patient-7b\n")
    assert read_labels(file)["1", "patient-7b", "base", 1] == ["win"]


def test_agreement_with_peoples_ratings(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(
        '{"question": "1", "model": "m", "rating": 3}\n'
        '{"question": "2", "model": "m", "rating": 8}\n'
        '{"question": "2", "model": "m", "rating": 9}\n'
    )
    found = agreement([graded("1", 2), graded("2", 9)], read_labels(file))
    assert (found.num_items, found.share) == (3, pytest.approx(1 / 3))
    assert 0.8 < found.spearman <= 1
    with pytest.raises(DataError, match="the labels are of other answers"):
        agreement([graded("7", 2)], read_labels(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question_id,model_a,model_b,winner\n1,m,base,mine\n", "row 1: winner is 'mine'"),
        ("question_id,model,score\n1,m,good\n", "row 1: score is 'good'; give a number"),
        ("question_id,model,score\n1,m,nan\n", "row 1: score is 'nan'; give a number"),
        ("id,model,score\n1,m,3\n", "row 1: has no question_id or question"),
        ("question_id,turn,model,score\n1,first,m,3\n", "row 1: turn is 'first'; write 1, 2"),
        ("question_id,turn,model,score\n1,1.5,m,3\n", "row 1: turn is '?1.5'?; write 1, 2"),
    ],
)
def test_mistakes_in_labels_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(file)


# Arena.


def test_a_strong_win_counts_three_times() -> None:
    rows = [compared("1", "A>>B", "ab"), compared("1", "A>B", "ba")]
    # One win of weight 3 and one loss of weight 1.
    assert value_of(arena_scores(rows), "win_rate") == 0.75


def test_bradley_terry_of_two_models_is_the_log_odds() -> None:
    # 3 wins of 4: 400 log10(3) above 1000.
    ratings = fit_bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), anchor=1)
    assert ratings == pytest.approx([1000 + 400 * math.log10(3), 1000])


def test_bradley_terry_finds_the_strengths_that_games_were_drawn_from() -> None:
    strength = np.array([0.0, 1.0, -0.5, 0.3])
    chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
    wins = 1e4 * chance * (1 - np.eye(4))
    ratings = fit_bradley_terry(wins, anchor=0)
    assert ratings == pytest.approx(1000 + 400 / math.log(10) * strength)


def test_a_model_that_lost_everything_has_no_rating() -> None:
    rows = [compared(str(n), "A" if n % 2 else "B", "ab", model="even") for n in range(20)]
    rows += [compared(str(n), "B", "ab", model="hopeless") for n in range(20)]
    ratings = {one.model: one for one in bradley_terry(rows, "base", draws=20)}
    assert ratings["hopeless"].rating is None
    assert ratings["even"].rating == pytest.approx(1000)
    assert ratings["even"].win_rate == pytest.approx(0.5)
    interval = ratings["even"].interval
    assert interval is not None
    assert interval.low < 1000 < interval.high


# Length control.


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def length_world(seed: int = 0, n: int = 400) -> tuple[list[str], np.ndarray, LengthControl]:
    """Difficulties, and two gamed models that differ from the baseline in length only."""
    generator = np.random.default_rng(seed)
    difficulty = generator.normal(0.3, 1.5, n)
    lengths, chances = [], []
    for centre in (-800, 700):
        raw = generator.normal(centre, 600, n)
        standard = raw / raw.std(ddof=1)
        lengths.append(standard)
        chances.append(logistic(-1.6 * np.tanh(standard) + 0.8 * difficulty))
    names = [str(number) for number in range(n)]
    control = LengthControl(
        dict(zip(names, difficulty.tolist(), strict=True)),
        np.concatenate(chances),
        np.concatenate(lengths),
        np.concatenate([difficulty, difficulty]),
    )
    return names, difficulty, control


def test_the_penalised_fit_is_that_of_liblinear() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(3)
    design = generator.normal(size=(300, 3))
    labels, weights = generator.random(300), generator.random(300)
    for strength in (0.02, 0.5, 10.0):
        # Soft labels are two rows each, weighted by how likely they are, as AlpacaEval has it.
        model = linear.LogisticRegression(
            l1_ratio=1.0,
            C=strength,
            solver="liblinear",
            fit_intercept=False,
            tol=1e-8,
            max_iter=10_000,
            random_state=0,
        )
        model.fit(
            np.vstack([design, design]),
            np.repeat([1, 0], 300),
            sample_weight=np.concatenate([weights * labels, weights * (1 - labels)]),
        )
        assert fit_l1(design, labels, weights, strength) == pytest.approx(model.coef_[0], abs=1e-4)


def test_the_rate_at_equal_length_undoes_what_length_did() -> None:
    names, difficulty, control = length_world()
    generator = np.random.default_rng(5)
    # A model that writes much longer than the baseline, and is liked for it.
    raw = generator.normal(-900, 700, len(names))
    length = np.tanh(raw / raw.std(ddof=1))
    liked = logistic(-1.6 * length + 0.8 * difficulty - 1.0)
    equal = logistic(0.8 * difficulty - 1.0).mean()
    estimate = length_controlled(names, liked, raw, control, draws=20)
    assert liked.mean() > equal + 0.1
    assert estimate.rate == pytest.approx(equal, abs=0.01)
    assert estimate.coefficients == pytest.approx((-1.6, 0.8, -1.0), abs=0.1)
    assert estimate.interval.low < estimate.rate < estimate.interval.high


def test_answers_as_long_as_the_baselines_keep_their_win_rate() -> None:
    names = [str(n) for n in range(50)]
    scores = np.tile([1.0, 0.0, 0.5, 1.0, 0.0], 10)
    estimate = length_controlled(names, scores, np.zeros(50), draws=5)
    assert estimate.rate == pytest.approx(0.5, abs=1e-3)


def test_length_control_reads_alpaca_evals_file(tmp_path: Path) -> None:
    file = tmp_path / "df_gamed.csv"
    file.write_text(
        "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "verbose,0,0.6,-0.5,1.5,False\nverbose,1,,0.5,-2.0,False\n"
        "concise,0,0.2,0.7,1.5,False\nconcise,1,0.3,0.1,-2.0,False\n"
    )
    control = read_length_control(file)
    assert control.difficulty == {"0": 1.5, "1": -2.0}
    assert control.difficulty_of("eval/1") == -2.0
    assert control.gamed_scores.tolist() == [0.6, 0.2, 0.3]  # one was not read by the judge
    file.write_text(file.read_text().replace("concise,1,0.3,0.1,-2.0,False", "m,1,0.3,0.1,-2,True"))
    with pytest.raises(DataError, match="holds rows of models that are not gamed"):
        read_length_control(file)


GAMED = (
    "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    "verbose,0,0.6,-0.5,1.5,False\nconcise,0,0.2,0.7,1.5,False\n"
)


def test_length_control_of_the_hub_is_alpaca_evals_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's own cache holds it, without a network."""
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants

    monkeypatch.delenv("FEDBENCH_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"df_gamed.csv: the hub did not give it .*check network"):
        get_length_control("hub")
    repository = tmp_path / "datasets--tatsu-lab--alpaca_eval"
    file = repository / "snapshots" / length_control._REVISION / "df_gamed.csv"
    file.parent.mkdir(parents=True)
    file.write_text(GAMED)
    with pytest.raises(DataError, match=r"is not AlpacaEval's df_gamed.csv of revision 2edc6fad8b"):
        get_length_control("hub")
    monkeypatch.setattr(length_control, "_SHA256", hashlib.sha256(GAMED.encode()).hexdigest())
    assert get_length_control("hub").difficulty == {"0": 1.5}


def test_length_control_of_a_mirror_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reference" / "alpaca_eval" / "df_gamed.csv"
    file.parent.mkdir(parents=True)
    file.write_text(GAMED)
    (tmp_path / "MANIFEST.json").write_text("[]")
    monkeypatch.setenv("FEDBENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"reference.*is not AlpacaEval's df_gamed.csv"):
        get_length_control("hub")
    assert get_length_control(file).difficulty == {"0": 1.5}


def test_a_question_without_a_difficulty_is_named() -> None:
    _, _, control = length_world(n=10)
    with pytest.raises(DataError, match="question other: has no instruction difficulty"):
        length_controlled(["other"], np.array([1.0]), np.array([3.0]), control)

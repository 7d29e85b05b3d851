"""The claims of `fedbench.results.check`, and of the two commands that print it."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from comparison_examples import several_seeds, table, write

from fedbench.cli import main
from fedbench.errors import ConfigError, RecordError
from fedbench.results.check import CheckRecord, check, exit_code
from fedbench.results.record import read_scores, write_scores

RIGHT_800 = "y" * 800 + "n" * 200


def rewrite(directory: Path, **changes: Any) -> None:
    """Edit every score record by hand."""
    records = read_scores(directory)
    write_scores(directory, [record.model_copy(update=changes) for record in records])


def one(candidate: Path, baseline: Path, max_drop: float = 0.01) -> CheckRecord:
    (record,) = check(candidate, baseline, max_drop)
    return record


@pytest.mark.parametrize("max_drop", [0.0, 0.01])
@pytest.mark.parametrize("answers", ["yn", "y?!n" * 5, RIGHT_800])
@pytest.mark.parametrize("keep_items", [True, False])
def test_a_result_compared_with_itself_is_ok_whatever_the_margin(
    tmp_path: Path, answers: str, max_drop: float, keep_items: bool
) -> None:
    a = write(tmp_path / "a", table(answers), keep_items=keep_items)
    b = write(tmp_path / "b", table(answers), keep_items=keep_items, run="another")
    record = one(b, a, max_drop)
    assert (record.verdict, record.delta) == ("ok", 0.0)
    assert "identical answers" in str(record.note)


def test_a_result_with_clusters_compared_with_itself_is_ok(tmp_path: Path) -> None:
    passages = [f"passage {i // 5}" for i in range(20)]
    a = write(tmp_path / "a", table("yyyn" * 5, clusters=passages))
    assert one(a, a, 0.0).verdict == "ok"


def test_a_drop_whose_interval_lies_beyond_the_margin_is_a_regression(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("y" * 750 + "n" * 250))
    record = one(b, a)
    assert record.verdict == "regressed"
    assert record.ci_high is not None
    assert record.ci_high < -0.01
    assert (record.ci_method, record.num_items, record.items_needed) == ("tango", 1000, None)
    assert record.note is None


def test_a_small_change_on_many_items_is_ok(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("n" + "y" * 799 + "y" + "n" * 199))
    record = one(b, a)
    assert record.verdict == "ok"
    assert record.ci_low is not None
    assert record.ci_low > -0.01


def test_few_items_are_inconclusive_and_the_number_that_would_settle_is_told(
    tmp_path: Path,
) -> None:
    a = write(tmp_path / "a", table("y" * 60 + "n" * 20))
    b = write(tmp_path / "b", table("nn" + "y" * 60 + "n" * 18))
    record = one(b, a)
    assert (record.verdict, record.delta) == ("inconclusive", 0.0)
    # Four of 80 pairs differ, and half a pair more in each cell: √(4 + 1) / 82 = 0.0273;
    # 80 · (2.8016 · 0.02727 / 0.01)² = 4,669 to 4,670.
    assert record.smallest_detectable == pytest.approx(2.8016 * 0.02727, abs=1e-4)
    assert record.items_needed == pytest.approx(4_669, abs=3)


def test_the_margin_is_in_units_of_the_score(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("y" * 750 + "n" * 250))
    assert one(b, a, 0.03).verdict == "regressed"  # Tango: -0.065 to -0.038
    assert one(b, a, 0.05).verdict == "inconclusive"
    assert one(b, a, 0.10).verdict == "ok"


def test_being_better_is_ok(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("y" * 750 + "n" * 250))
    b = write(tmp_path / "b", table(RIGHT_800))
    assert one(b, a, 0.0).verdict == "ok"


def test_less_is_better_where_the_metric_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from fedbench.metrics import METRICS

    accuracy = METRICS["accuracy"]
    monkeypatch.setitem(METRICS, "accuracy", replace(accuracy, higher_is_better=False))
    a = write(tmp_path / "a", table("y" * 750 + "n" * 250))
    b = write(tmp_path / "b", table(RIGHT_800))
    record = one(b, a)
    assert (record.verdict, record.delta) == ("regressed", pytest.approx(-0.05))


def test_a_task_that_the_candidate_lacks_is_missing(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("yyyn"), table("yyyn", task="fiqa"))
    b = write(tmp_path / "b", table("yyyn"))
    fpb, fiqa = check(b, a)
    assert (fpb.verdict, fiqa.verdict) == ("ok", "missing")
    assert fiqa.note == f"not in {b}"
    assert exit_code([fpb, fiqa]) == 1


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_score_that_was_withheld_is_missing(tmp_path: Path, side: str) -> None:
    a = write(tmp_path / "a", table("y" * 20 + "!" * 20))
    b = write(tmp_path / "b", table("y" * 20 + "!" * 20))
    rewrite(tmp_path / side, value=None)
    record = one(b, a)
    assert record.verdict == "missing"
    assert "20 of 40 failed" in str(record.note)


def test_no_item_in_common_is_missing(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("yy!!"))
    b = write(tmp_path / "b", table("!!yy"))
    assert one(b, a).verdict == "missing"


def test_tasks_that_only_the_candidate_has_are_not_asked_for(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("yyyn"))
    b = write(tmp_path / "b", table("yyyn"), table("nnnn", task="fiqa"))
    assert [record.task for record in check(b, a)] == ["fpb"]


def test_a_baseline_without_a_headline_score_checks_nothing_and_is_refused(
    tmp_path: Path,
) -> None:
    a = write(tmp_path / "a", table("yyyn"), headline=False)
    with pytest.raises(RecordError, match="no headline score"):
        check(a, a)


@pytest.mark.parametrize("max_drop", [-0.01, math.nan, math.inf])
def test_a_margin_below_zero_is_refused(tmp_path: Path, max_drop: float) -> None:
    with pytest.raises(ConfigError, match="max-drop"):
        check(tmp_path, tmp_path, max_drop)


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_value_edited_by_hand_does_not_pass(
    tmp_path: Path, side: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The items are the same; only the record of one side says otherwise.
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table(RIGHT_800))
    rewrite(tmp_path / side, value=0.9 if side == "a" else 0.7)
    with caplog.at_level(logging.WARNING):
        record = one(b, a)
    assert (record.verdict, record.ci_method) == ("regressed", "unpaired")
    assert record.delta == pytest.approx(-0.1)
    assert "where its items give 0.8" in str(record.note)
    assert "where its items give 0.8" in caplog.text


def test_a_value_edited_upwards_does_not_hide_what_the_items_show(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("y" * 750 + "n" * 250))
    rewrite(b, value=0.99)
    record = one(b, a)
    assert (record.verdict, record.ci_method) == ("regressed", "tango")
    assert "records 0.99 where its items give 0.75" in str(record.note)


def test_edited_values_do_not_water_down_what_the_items_show(tmp_path: Path) -> None:
    # Eight worse of 1,000 alone: p = 0.0023 for margin 0. Of two it would still be one of two,
    # but twelve edited records beside it would make that thirteen: 13 · 0.0023 > 0.025.
    tasks = [f"task{i}" for i in range(13)]
    slightly = "n" * 8 + "y" * 792 + "n" * 200
    a = write(tmp_path / "a", *[table(RIGHT_800, task=task) for task in tasks])
    b = write(
        tmp_path / "b",
        *[table(slightly if task == "task0" else RIGHT_800, task=task) for task in tasks],
    )
    rewrite(b, value=0.9)
    assert check(b, a, 0.0)[0].verdict == "regressed"


def test_a_small_edit_of_identical_answers_is_inconclusive(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table(RIGHT_800))
    rewrite(b, value=0.79)
    assert one(b, a).verdict == "inconclusive"


def test_summaries_without_an_error_settle_nothing(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800), keep_items=False)
    b = write(tmp_path / "b", table("y" * 500 + "n" * 500), keep_items=False)
    rewrite(b, stderr=None, ci_low=None, ci_high=None)
    record = one(b, a)
    assert (record.verdict, record.ci_low, record.items_needed) == ("inconclusive", None, None)
    assert "no standard error" in str(record.note)


def test_all_items_right_without_items_is_not_certain(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("y" * 100), keep_items=False)
    b = write(tmp_path / "b", table("y" * 100), keep_items=False, backend="another")
    assert one(b, a).verdict == "inconclusive"


def test_a_regression_among_many_tasks_must_survive_holm(tmp_path: Path) -> None:
    # Eight worse of 1,000: McNemar's z = -8/√8, one-sided p = 0.0023, and 30 · p > 0.025.
    tasks = [f"task{i}" for i in range(30)]
    slightly = "n" * 8 + "y" * 792 + "n" * 200
    swapped = "n" + "y" * 799 + "y" + "n" * 199
    a = write(tmp_path / "a", *[table(RIGHT_800, task=task) for task in tasks])
    b = write(
        tmp_path / "b",
        *[table(slightly if task == "task0" else swapped, task=task) for task in tasks],
    )
    alone = check(
        write(tmp_path / "b0", table(slightly, task="task0")),
        write(tmp_path / "a0", table(RIGHT_800, task="task0")),
        0.0,
    )
    assert [record.verdict for record in alone] == ["regressed"]
    first = check(b, a, 0.0)[0]
    assert first.verdict == "inconclusive"
    assert first.note == "beyond the margin by itself, not among 30 comparisons (Holm)"
    assert first.items_needed is not None
    assert first.items_needed > 1000


def test_tasks_with_identical_answers_do_not_count_among_the_comparisons(tmp_path: Path) -> None:
    tasks = [f"task{i}" for i in range(30)]
    slightly = "n" * 8 + "y" * 792 + "n" * 200
    a = write(tmp_path / "a", *[table(RIGHT_800, task=task) for task in tasks])
    b = write(
        tmp_path / "b",
        *[table(slightly if task == "task0" else RIGHT_800, task=task) for task in tasks],
    )
    assert [record.verdict for record in check(b, a, 0.0)] == ["regressed"] + ["ok"] * 29


def test_the_exit_code_tells_regressed_from_inconclusive() -> None:
    def records(*verdicts: Any) -> list[CheckRecord]:
        return [
            CheckRecord(
                task="fpb",
                metric="accuracy",
                model="fedavg",
                value=None,
                baseline_value=None,
                confidence=0.95,
                margin=0.01,
                verdict=verdict,
            )
            for verdict in verdicts
        ]

    assert exit_code(records("ok", "ok"), strict=True) == 0
    assert exit_code(records("ok", "inconclusive")) == 0
    assert exit_code(records("ok", "inconclusive"), strict=True) == 3
    assert exit_code(records("inconclusive", "regressed"), strict=True) == 1
    assert exit_code(records("ok", "missing")) == 1


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        main()
    assert isinstance(status.value.code, int)
    return status.value.code


@pytest.mark.parametrize(
    ("answers", "options", "code"),
    [
        (RIGHT_800, [], 0),
        (RIGHT_800, ["--strict"], 0),
        ("y" * 750 + "n" * 250, [], 1),
        ("y" * 750 + "n" * 250, ["--max-drop", "0.1", "--strict"], 0),
        ("y" * 790 + "n" * 210, [], 0),
        ("y" * 790 + "n" * 210, ["--strict"], 3),
        (RIGHT_800, ["--max-drop", "-1"], 2),
        ("yyy", [], 2),
    ],
)
def test_check_exits_with_the_verdict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
    options: list[str],
    code: int,
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table(answers))
    assert run(monkeypatch, "check", b, "--baseline", a, *options) == code


def test_a_baseline_that_does_not_exist_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table("yyyn"))
    assert run(monkeypatch, "check", a, "--baseline", tmp_path / "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err


def test_check_prints_one_json_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800), table("yyyn", task="fiqa"))
    b = write(tmp_path / "b", table("y" * 750 + "n" * 250))
    assert run(monkeypatch, "check", b, "--baseline", a, "--json") == 1
    fpb, fiqa = json.loads(capsys.readouterr().out)
    assert fpb.keys() >= {"task", "metric", "delta", "ci_low", "ci_high", "margin", "verdict"}
    assert (fpb["schema"], fpb["delta"], fpb["verdict"]) == (1, pytest.approx(-0.05), "regressed")
    assert (fiqa["delta"], fiqa["verdict"]) == (None, "missing")


def test_check_prints_a_table_in_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("y" * 750 + "n" * 250))
    run(monkeypatch, "check", b, "--baseline", a)
    out = capsys.readouterr().out
    for text in (
        "fpb accuracy",
        "fedavg round 12 seed 0",
        "80.0",
        "75.0",
        "-5.0 [-6.5, -3.8]",
        "regressed",
    ):
        assert text in out


def test_compare_prints_both_values_and_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("y" * 750 + "n" * 250))
    assert run(monkeypatch, "compare", a, b) == 0
    assert "-5.0 [-6.5, -3.8]" in capsys.readouterr().out
    assert run(monkeypatch, "compare", a, b, "--json") == 0
    accuracy, macro_f1 = json.loads(capsys.readouterr().out)
    assert (accuracy["value_a"], accuracy["value_b"]) == (0.8, 0.75)
    assert macro_f1["metric"] == "macro_f1"


def test_a_record_survives_json(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("yyyn"))
    (record,) = check(a, a)
    assert CheckRecord.model_validate(json.loads(json.dumps(record.to_json()))) == record


def test_seeds_are_judged_one_by_one_or_as_one_method(tmp_path: Path) -> None:
    a = several_seeds(tmp_path / "a", [300, 310, 320])
    b = several_seeds(tmp_path / "b", [240, 310, 290])
    assert [r.verdict for r in check(b, a)] == ["regressed", "ok", "regressed"]
    (mean,) = check(b, a, over_seeds=True)
    # Seeds differ by -15, 0 and -7.5 points: three tell little of the next one.
    assert (mean.verdict, mean.model) == ("inconclusive", "fedavg, mean of 3 seeds")
    assert (mean.delta, mean.ci_method) == (pytest.approx(-0.075), "seeds-and-items-t")
    assert mean.items_needed is None  # no number of items makes three seeds of one mind
    assert mean.smallest_detectable is not None
    assert mean.smallest_detectable > ((mean.ci_high or 0) - (mean.ci_low or 0)) / 2
    assert mean.value == pytest.approx(0.7)


def test_seeds_that_all_drop_alike_are_a_regression_of_the_method(tmp_path: Path) -> None:
    a = several_seeds(tmp_path / "a", [300, 310, 320])
    b = several_seeds(tmp_path / "b", [260, 271, 279])
    (mean,) = check(b, a, over_seeds=True)
    assert mean.verdict == "regressed"


def test_a_seed_that_the_candidate_lacks_is_missing_and_the_others_are_one_method(
    tmp_path: Path,
) -> None:
    a = several_seeds(tmp_path / "a", [300, 310, 320])
    b = several_seeds(tmp_path / "b", [300, 300])
    mean, lacking = check(b, a, over_seeds=True)
    assert (mean.model, mean.baseline_value) == ("fedavg, mean of 2 seeds", 0.7625)  # 305 of 400
    assert (lacking.model, lacking.verdict) == ("fedavg round 12 seed 2", "missing")
    assert exit_code([mean, lacking]) == 1


def test_seeds_with_identical_answers_are_ok_as_a_method_too(tmp_path: Path) -> None:
    a = several_seeds(tmp_path / "a", [300, 310, 320])
    (mean,) = check(a, a, 0.0, over_seeds=True)
    assert (mean.verdict, mean.note) == ("ok", "identical answers")


def test_a_mean_over_seeds_hides_no_edited_record(tmp_path: Path) -> None:
    a = several_seeds(tmp_path / "a", [300, 310, 320])
    b = several_seeds(tmp_path / "b", [300, 310, 320])
    rewrite(b, value=0.9)
    assert len(check(b, a, over_seeds=True)) == 3

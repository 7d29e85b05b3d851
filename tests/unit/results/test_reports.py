"""The check for machines and reviewers, and the commands that write it."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from comparison_examples import several_seeds, table, write

from fedbench.cli import main
from fedbench.cli._figures import WIDTH, Scale
from fedbench.results.check import CheckRecord, check
from fedbench.results.reports import COMMENT_LIMIT, junit, markdown
from fedbench.results.verdicts import remarks, tally, why

RIGHT_800 = "y" * 800 + "n" * 200
RIGHT_750 = "y" * 750 + "n" * 250


def record(verdict: str, **fields: Any) -> CheckRecord:
    given = {
        "task": "fpb",
        "metric": "accuracy",
        "model": "fedavg",
        "value": 0.75,
        "baseline_value": 0.8,
        "delta": -0.05,
        "ci_low": -0.065,
        "ci_high": -0.038,
        "confidence": 0.95,
        "margin": 0.01,
        "verdict": verdict,
    }
    return CheckRecord.model_validate(given | fields)


ALL = [record(verdict) for verdict in ("ok", "regressed", "inconclusive", "missing")]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (record("regressed"), "worse by at least 3.8 points (95 %), and 1.0 points are tolerated"),
        (
            record("ok", ci_low=-0.004, ci_high=0.01),
            "worse by at most 0.4 points (95 %), within 1.0 points",
        ),
        (record("ok", ci_low=0.0, ci_high=0.01), "no worse (95 %)"),
        (
            record("inconclusive", ci_low=-0.02, ci_high=0.01),
            "anything from -2.0 to +1.0 points is possible (95 %), and the margin is 1.0 points",
        ),
        (
            record("inconclusive", ci_low=-0.01004, ci_high=0.024),
            "anything from -1.004 to +2.4 points is possible (95 %), and the margin is 1.0 points",
        ),
        (
            record("regressed", ci_low=-0.04, ci_high=-0.0102),
            "worse by at least 1.02 points (95 %), and 1.0 points are tolerated",
        ),
        (
            record("inconclusive", ci_low=-0.02, ci_high=-0.01),
            "anything from -2.0 to -1.0 points is possible (95 %), and the margin is 1.0 points",
        ),
        (
            record("ok", ci_low=-0.0001, ci_high=0.01, margin=0.0003),
            "worse by at most 0.0 points (95 %), within 0.03 points",
        ),
        (record("missing", delta=None, note="not in b"), "not in b"),
    ],
)
def test_each_verdict_is_explained_by_its_numbers(given: CheckRecord, sentence: str) -> None:
    assert why(given) == sentence


def test_the_items_that_are_needed_are_told_to_three_digits() -> None:
    few = record("inconclusive", num_items=80, items_needed=4_669)
    many = record("inconclusive", num_items=310, items_needed=6_718_835)
    assert remarks(few) == ["80 items; about 4,670 would do"]
    assert remarks(many) == ["310 items; about millions would do"]


def test_the_worst_is_counted_first() -> None:
    assert tally([*ALL, record("ok")]) == "1 regressed, 1 missing, 1 inconclusive, 2 ok"


@pytest.mark.parametrize(("strict", "failures", "skipped"), [(False, 1, 1), (True, 2, 0)])
def test_junit_counts_what_the_exit_code_counts(strict: bool, failures: int, skipped: int) -> None:
    (suite,) = ElementTree.fromstring(junit(ALL, strict).encode())
    counts = {name: int(suite.get(name, -1)) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 4, "failures": failures, "errors": 1, "skipped": skipped}
    assert len(suite.findall("testcase/failure")) == failures
    assert len(suite.findall("testcase/skipped")) == skipped


def test_junit_holds_names_that_xml_cannot() -> None:
    (suite,) = ElementTree.fromstring(junit([record("regressed", model="a\x00<b>")]).encode())
    assert suite[0].get("classname") == "a�<b>"


def test_the_summary_shows_what_needs_a_look_and_folds_the_rest_away() -> None:
    text = markdown(ALL, "candidate", "baseline")
    assert text.startswith("### ✗ fedbench check: regressed\n")
    above, folded = text.split("<details>")
    assert "worse by at least 3.8 points" in above
    assert "| ✓ ok |" not in above
    assert "| ✓ ok |" in folded


def test_names_from_files_break_no_table() -> None:
    text = markdown([record("regressed", model="a|b <img src=x>")], "c`d", "e")
    row = next(line for line in text.splitlines() if line.startswith("| ✗"))
    assert row.count("|") - row.count("\\|") == 8
    assert "\\<img" in row
    assert "`c'd`" in text


def test_a_backslash_in_a_name_takes_no_escape_away() -> None:
    text = markdown([record("ok", model=r"a\|<img src=x>")], "b", "a")
    assert r"| a\\\|\<img src=x\> |" in text


@pytest.mark.parametrize("doing", ["--update-baseline", "--record-noise"])
def test_what_judges_nothing_takes_no_options_of_judging(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    doing: str,
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    given = ["--baseline", tmp_path / "main.jsonl", "--strict", "--max-drop", "0.02"]
    assert run(monkeypatch, "check", a, *given, doing) == 2
    said = capsys.readouterr().err
    assert f"{doing} judges nothing; leave --max-drop, --strict out" in said
    assert not (tmp_path / "main.jsonl").exists()


def test_a_summary_of_a_thousand_scores_fits_a_comment() -> None:
    rows = [record("regressed", task=f"task_{n}" * 8) for n in range(500)]
    text = markdown([*rows, *(record("ok", task=f"other_{n}" * 8) for n in range(500))], "c", "b")
    assert len(text) < COMMENT_LIMIT + 100
    assert text.endswith("the JSON has all rows.\n")
    assert text.count("<details>") == text.count("</details>")


def test_a_picture_has_0_in_its_middle_and_the_margin_where_it_is() -> None:
    scale = Scale.of([(-0.12, 0.03)], 0.06)
    picture = scale.picture(-0.04, -0.06, 0.0, 0.06)
    # One place is 0.12 / 12 = 0.01.
    assert len(picture) == WIDTH
    assert picture[12 - 6 : 12 + 1] == "┋━●━━━┿"
    assert scale.picture(None, None, None, 0.06).strip() == "┊     │"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        main()
    assert isinstance(status.value.code, int)
    return status.value.code


def test_one_command_gates_reports_and_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (write(tmp_path / n, table(r)) for n, r in [("a", RIGHT_800), ("b", RIGHT_750)])
    (tmp_path / "margins.yaml").write_text("tasks: {fpb: 0.02}")
    files = {"--junit": "out/junit.xml", "--markdown": "out/check.md", "--margins": "margins.yaml"}
    options = [part for name, file in files.items() for part in (name, tmp_path / file)]
    assert run(monkeypatch, "check", b, "--baseline", a, *options) == 1
    out = capsys.readouterr().out
    assert "✗ regressed" in out
    assert "worse by at least 3.8 points (95 %), and 2.0 points are tolerated" in out
    assert ElementTree.parse(tmp_path / "out/junit.xml").getroot().get("failures") == "1"
    assert "fedbench check: regressed" in (tmp_path / "out/check.md").read_text()


def test_update_baseline_shows_what_changes_and_then_the_check_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (write(tmp_path / n, table(r)) for n, r in [("a", RIGHT_800), ("b", RIGHT_750)])
    file = tmp_path / "main.jsonl.gz"
    assert run(monkeypatch, "check", a, "--baseline", file, "--update-baseline") == 0
    assert run(monkeypatch, "check", b, "--baseline", file) == 1
    capsys.readouterr()
    assert run(monkeypatch, "check", b, "--baseline", file, "--update-baseline") == 0
    shown = capsys.readouterr()
    assert "2 of 2 scores changed" in shown.err
    line = next(line for line in shown.out.splitlines() if "fpb accuracy" in line)
    assert line.split()[-3:] == ["80.0", "75.0", "changed"]
    assert run(monkeypatch, "check", b, "--baseline", file) == 0


def test_a_baseline_is_no_second_scoring_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    assert run(monkeypatch, "check", a, "--baseline", a, "--record-noise") == 2
    assert "is the baseline itself" in capsys.readouterr().err
    assert not (a / "noise.jsonl").exists()


def test_recorded_noise_is_used_by_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    again = write(tmp_path / "again", table("n" * 60 + "y" * 740 + "n" * 200))
    b = write(tmp_path / "b", table(RIGHT_750))
    assert run(monkeypatch, "check", again, "--baseline", a, "--record-noise", "--json") == 0
    (noise,) = json.loads(capsys.readouterr().out)
    assert (noise["num_flipped"], noise["floor"]) == (60, pytest.approx(0.06))
    assert run(monkeypatch, "check", b, "--baseline", a, "--strict") == 3
    assert "differs from itself by up to 6.0" in capsys.readouterr().out


def test_wrong_margins_end_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    file = tmp_path / "nowhere.yaml"
    assert run(monkeypatch, "check", a, "--baseline", a, "--margins", file) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_programs_of_another_sandbox_are_not_compared(tmp_path: Path) -> None:
    from fedbench.errors import RecordError

    a = write(tmp_path / "a", table("yyyn"), backend="transformers, sandbox=namespaces")
    b = write(tmp_path / "b", table("yyyn"), backend="transformers, sandbox=docker")
    with pytest.raises(RecordError, match="in the sandbox docker and namespaces"):
        check(b, a)
    c = write(tmp_path / "c", table("yyyn"), backend="vllm, sandbox=namespaces")
    assert check(c, a)[0].verdict == "ok"


def test_three_results_are_shown_side_by_side_with_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"a": RIGHT_800, "b": RIGHT_750, "c": "n" + "y" * 799 + "y" + "n" * 199}
    places = [write(tmp_path / name, table(given)) for name, given in answers.items()]
    assert run(monkeypatch, "compare", *places) == 0
    out = capsys.readouterr().out
    assert "-5.0 [-6.5, -3.8]*" in out
    # a and c hold 800 each and differ on two items; b is worse than both.
    assert out.count("rank 1–2") == 4  # of both, on accuracy and macro F1
    assert out.count("rank 3") == 2
    assert run(monkeypatch, "compare", *places, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["result_b"] for row in rows[:2]] == [str(places[1]), str(places[2])]
    assert rows[0]["ranks"] == dict(zip(map(str, places), ["1–2", "3", "1–2"], strict=True))


def test_a_method_with_several_seeds_is_compared_by_its_mean_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = several_seeds(tmp_path / "a", [150, 152, 154], items=200)
    b = several_seeds(tmp_path / "b", [160, 156, 170], items=200)
    assert run(monkeypatch, "compare", a, b, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    mean = next(row for row in rows if row["num_seeds"] and row["metric"] == "accuracy")
    assert mean["model"] == "fedavg, mean of 3 seeds"
    # Seeds differ by 0.05, 0.02 and 0.08: mean 0.05, standard deviation 0.03.
    assert (mean["delta"], mean["sd_seeds"]) == pytest.approx((0.05, 0.03))
    assert mean["ci_low"] < 0 < mean["delta"]  # three seeds are few: t with about 2 degrees
    assert run(monkeypatch, "compare", a, b) == 0
    assert "standard deviation of 3.0 over seeds" in capsys.readouterr().out


def test_means_over_seeds_stand_in_the_columns_of_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One result has a single seed, and so no mean."""
    places = [
        several_seeds(tmp_path / "a", [240, 248, 252]),
        several_seeds(tmp_path / "b", [280]),
        several_seeds(tmp_path / "c", [300, 308]),
        several_seeds(tmp_path / "d", [320, 328, 332]),
    ]
    assert run(monkeypatch, "compare", *places) == 0
    lines = capsys.readouterr().out.split("\n")
    heading = next(line for line in lines if line.startswith(" score "))
    for text, letter, value in (("mean of 2 seeds", "C", "76.0"), ("mean of 3 seeds", "D", "81.7")):
        line = next(one for one in lines if f"accuracy  fedavg, {text}" in one)
        assert line.index(value) + len(value) == heading.index(f" {letter} ") + 2
        assert len(line.split()) == len(f"fpb accuracy fedavg, {text}".split()) + 2  # A's, and this

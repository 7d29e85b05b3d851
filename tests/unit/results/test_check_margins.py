"""Margins by task, and the A/A floor below which nothing is called a regression."""

from pathlib import Path

import pytest
from comparison_examples import table, write

from fedbench.errors import ConfigError, RecordError
from fedbench.results.check import check
from fedbench.results.noise import measure_noise, noise_file, read_noise, write_noise

RIGHT_800 = "y" * 800 + "n" * 200
RIGHT_750 = "y" * 750 + "n" * 250  # Tango: -6.5 to -3.8 points


def margins(directory: Path, text: str) -> Path:
    file = directory / "margins.yaml"
    file.write_text(text)
    return file


def two_tasks(directory: Path, answers: str) -> Path:
    return write(directory, table(answers), table(answers, task="lm_eval/mmlu_anatomy"))


def verdicts(directory: Path, text: str, max_drop: float | None = None) -> list[tuple[str, float]]:
    a = two_tasks(directory / "a", RIGHT_800)
    b = two_tasks(directory / "b", RIGHT_750)
    file = margins(directory, text)
    return [(r.verdict, r.margin) for r in check(b, a, max_drop, margins=file)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks: {fpb: 0.1}", [("ok", 0.1), ("regressed", 0.01)]),
        ("default: 0.05", [("inconclusive", 0.05), ("inconclusive", 0.05)]),
        ("tasks: {'lm_eval/mmlu_*': 0.1, fpb: 0}", [("regressed", 0.0), ("ok", 0.1)]),
        (
            "tasks: {'lm_eval/*': 0.05, lm_eval/mmlu_anatomy: 0.1}",
            [("regressed", 0.01), ("ok", 0.1)],
        ),
    ],
)
def test_each_task_has_the_margin_that_the_file_gives_it(
    tmp_path: Path, text: str, expected: list[tuple[str, float]]
) -> None:
    assert verdicts(tmp_path, text) == expected


def test_max_drop_is_for_tasks_that_the_file_does_not_name(tmp_path: Path) -> None:
    found = verdicts(tmp_path, "default: 0.05\ntasks: {fpb: 0.1}", max_drop=0.0)
    assert found == [("ok", 0.1), ("regressed", 0.0)]


def test_the_margin_of_a_task_is_that_of_its_variants(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800, variant="fingpt"))
    b = write(tmp_path / "b", table(RIGHT_750, variant="fingpt"))
    (record,) = check(b, a, margins=margins(tmp_path, "tasks: {fpb: 0.1}"))
    assert (record.verdict, record.margin) == ("ok", 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {fpbb: 0.1}", "no such task; did you mean 'fpb'"),
        ("tasks: {fpb: -0.1}", r"margins.yaml: tasks.fpb: .*greater than or equal to 0"),
        ("tasks: {fpb: .nan}", "tasks.fpb"),
        ("defualt: 0.1", "unknown key; did you mean 'default'"),
    ],
)
def test_a_margins_file_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        verdicts(tmp_path, text)


@pytest.mark.parametrize("margin", [1.0, 5.0])
def test_a_margin_in_points_would_leave_the_gate_open_and_is_refused(
    tmp_path: Path, margin: float
) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    b = write(tmp_path / "b", table("n" * 1000))  # -80 points
    with pytest.raises(ConfigError, match=r"fpb: a margin of \d lets everything pass.* 0.01 for"):
        check(b, a, margin)
    with pytest.raises(ConfigError, match="accuracy lies between 0 and 1"):
        check(b, a, margins=margins(tmp_path, f"tasks: {{fpb: {margin}}}"))


def test_the_floor_is_what_the_same_checkpoint_differs_from_itself(tmp_path: Path) -> None:
    # 16 of 1,000 answers flip, 12 for the worse: -0.8 points; 1.96 · √16 / 1,000 = 0.78 points.
    first = write(tmp_path / "a", table(RIGHT_800))
    again = write(tmp_path / "b", table("n" * 12 + "y" * 788 + "y" * 4 + "n" * 196))
    (record,) = measure_noise(first, again)
    assert (record.num_items, record.num_flipped) == (1000, 16)
    assert (record.delta, record.floor) == (pytest.approx(-0.008), pytest.approx(0.008))


def test_answers_that_all_repeat_have_no_noise(tmp_path: Path) -> None:
    first = write(tmp_path / "a", table("yyn"))
    assert measure_noise(first, first)[0].floor == 0.0


def test_flips_that_cancel_are_noise_too(tmp_path: Path) -> None:
    first = write(tmp_path / "a", table(RIGHT_800))
    again = write(tmp_path / "b", table("n" * 8 + "y" * 792 + "y" * 8 + "n" * 192))
    assert measure_noise(first, again)[0].floor == pytest.approx(1.96 * 4 / 1000, abs=1e-5)


def test_nothing_within_the_floor_is_called_a_regression(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    again = write(tmp_path / "again", table("n" * 60 + "y" * 740 + "n" * 200))
    b = write(tmp_path / "b", table(RIGHT_750))
    assert check(b, a)[0].verdict == "regressed"
    write_noise(a, measure_noise(a, again))
    (record,) = check(b, a)
    assert (record.verdict, record.noise_floor) == ("inconclusive", pytest.approx(0.06))
    assert "the same checkpoint" in str(record.note)


def test_a_drop_far_beyond_the_floor_is_still_a_regression(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    again = write(tmp_path / "again", table("n" * 10 + "y" * 790 + "n" * 200))
    write_noise(a, measure_noise(a, again))
    assert check(write(tmp_path / "b", table(RIGHT_750)), a)[0].verdict == "regressed"


def test_of_several_measurements_the_largest_stays(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    for flips in (10, 30, 20):
        again = table("n" * flips + "y" * (800 - flips) + "n" * 200)
        write_noise(a, measure_noise(a, write(tmp_path / str(flips), again)))
    assert [r.num_flipped for r in read_noise(a).values()] == [30]


def test_the_floor_of_another_version_of_the_task_is_not_used(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800))
    again = write(tmp_path / "again", table("n" * 60 + "y" * 740 + "n" * 200))
    found = measure_noise(a, again)
    write_noise(a, [record.model_copy(update={"task_hash": "older"}) for record in found])
    assert check(a, a)[0].noise_floor is None


def test_the_floor_of_two_checkpoints_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table(RIGHT_800), weights_hash="1f")
    b = write(tmp_path / "b", table(RIGHT_800), weights_hash="2f")
    with pytest.raises(RecordError, match="one checkpoint that was scored twice"):
        measure_noise(a, b)


@pytest.mark.parametrize(
    ("baseline", "file"),
    [
        ("main.jsonl.gz", "main.noise.jsonl"),
        ("scores.jsonl", "noise.jsonl"),
    ],
)
def test_a_floor_lies_beside_its_baseline(tmp_path: Path, baseline: str, file: str) -> None:
    assert noise_file(tmp_path / baseline) == tmp_path / file
    assert noise_file(tmp_path) == tmp_path / "noise.jsonl"

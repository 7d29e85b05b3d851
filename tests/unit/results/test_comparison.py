"""The claims of `fedbench.results.comparison`."""

from pathlib import Path

import pytest
from comparison_examples import FEDAVG, scores, table, write

from fedbench.errors import RecordError
from fedbench.results.alignment import align
from fedbench.results.comparison import compare
from fedbench.results.loading import load_results
from fedbench.results.pairing import pair_scores
from fedbench.results.record import ModelId, write_scores
from fedbench.results.statistics import mcnemar_exact, tango

LOCAL = ModelId(method="centralised", seed=0, model_kind="central", round=12)


def test_every_metric_of_a_task_is_compared_item_by_item(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("y" * 60 + "n" * 40, references="y" * 80 + "n" * 20))
    b = write(tmp_path / "b", table("y" * 70 + "n" * 30, references="y" * 80 + "n" * 20))
    accuracy, macro_f1 = compare(a, b)
    assert (accuracy.value_a, accuracy.value_b) == (0.8, 0.9)
    assert accuracy.delta == pytest.approx(0.1)
    assert (accuracy.ci_low, accuracy.ci_high) == tango(10, 0, 100)
    assert accuracy.p_value == mcnemar_exact(10, 0)
    assert (macro_f1.metric, macro_f1.ci_method) == ("macro_f1", "bootstrap-bca")
    assert macro_f1.delta is not None
    assert macro_f1.delta > 0.1


def test_items_are_aligned_by_id_whatever_their_order(tmp_path: Path) -> None:
    forward = table("yynn" * 5)
    turned = forward.model_copy(
        update={
            "item_ids": forward.item_ids[::-1],
            "prompt_hashes": forward.prompt_hashes[::-1],
            "answers": [
                answers.model_copy(
                    update={"extracted": answers.extracted[::-1], "status": answers.status[::-1]}
                )
                for answers in forward.answers
            ],
        }
    )
    aligned = align(forward, forward.answers[0], turned, turned.answers[0], "a and b")
    assert aligned.identical
    assert aligned.candidate == aligned.baseline


def test_items_that_failed_on_either_side_are_left_out_and_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("!yyyyyyyyy" + "y" * 30))
    b = write(tmp_path / "b", table("yy!yyyyyyn" + "y" * 30))
    accuracy = compare(a, b)[0]
    assert (accuracy.num_items, accuracy.num_failed) == (38, 2)
    assert accuracy.delta == pytest.approx(-1 / 38)


def test_why_nothing_is_said_of_a_difference_is_said(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", table("y")), write(tmp_path / "b", table("n"))
    accuracy, macro_f1 = compare(a, b)
    assert (accuracy.delta, accuracy.note) == (-1.0, None)
    assert (macro_f1.delta, macro_f1.note) == (None, "the answers allow no interval")
    write_scores(b, scores(table("n"), value=None))
    assert str(compare(a, b)[0].note).startswith(f"withheld in {b}: ")


def test_an_answer_that_could_not_be_read_is_wrong_and_not_left_out(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("y" * 10))
    b = write(tmp_path / "b", table("y" * 8 + "??"))
    accuracy = compare(a, b)[0]
    assert (accuracy.num_items, accuracy.num_failed) == (10, 0)
    assert accuracy.delta == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_version": 2}, "fpb: task_version is 2 and 1"),
        ({"task_hash": "other"}, "fpb: task_hash is other and hash of fpb"),
    ],
)
def test_another_version_of_a_task_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    a = write(tmp_path / "a", table("yyyy"))
    b = write(tmp_path / "b", table("yyyy", **changes))
    with pytest.raises(RecordError, match=message) as error:
        compare(a, b)
    assert str(a) in str(error.value)
    assert str(b) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_hashes": ["0", "1", "2", "?"]}, "prompts of 4 of 4 items differ"),
        ({"item_hashes": ["text", "text", "text", "?"]}, "texts of 1 of 4 items differ.*fpb-3"),
        ({"references": ["y", "y", "y", "n"]}, "references of 1 of 4 items differ"),
        ({"labels": ["n", "y"]}, "labels is"),
        (
            {"item_ids": ["fpb-0", "fpb-1", "fpb-2", "fpb-9"]},
            "1 items are only in the first and 1 only in the second, 3 in both",
        ),
        ({"item_ids": ["fpb-0", "fpb-1", "fpb-2", "fpb-2"]}, "an item id occurs twice"),
    ],
)
def test_other_items_or_prompts_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    a = write(tmp_path / "a", table("yyyy"))
    b = write(tmp_path / "b", table("yyyy", **changes))
    with pytest.raises(RecordError, match=message):
        compare(a, b)


@pytest.mark.parametrize("field", ["judge", "rubric_hash"])
def test_another_judge_is_refused(tmp_path: Path, field: str) -> None:
    a = write(tmp_path / "a", table("yyyy"), **{field: "one"})
    b = write(tmp_path / "b", table("yyyy"), **{field: "two"})
    with pytest.raises(RecordError, match=f"{field} is two and one"):
        compare(a, b)


def test_a_subset_of_the_items_is_refused_without_items_too(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("y" * 100), keep_items=False)
    b = write(tmp_path / "b", table("y" * 50), keep_items=False)
    with pytest.raises(RecordError, match="num_examples is 50 and 100"):
        compare(a, b)


def test_without_items_the_summaries_are_compared_unpaired(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("y" * 80 + "n" * 20))
    b = write(tmp_path / "b", table("y" * 70 + "n" * 30), keep_items=False)
    accuracy = compare(a, b / "scores.jsonl")[0]
    assert accuracy.ci_method == "unpaired"
    assert accuracy.delta == pytest.approx(-0.1)
    assert accuracy.note is not None
    # √(0.8·0.2/100 + 0.7·0.3/100) = 0.0608; Wilson's ends are hardly wider.
    assert accuracy.ci_low == pytest.approx(-0.1 - 1.96 * 0.0608, abs=0.004)


def test_a_scores_file_brings_the_items_beside_it(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("yyyn"))
    assert load_results(a / "scores.jsonl").samples == load_results(a).samples != {}


def test_two_single_models_are_compared_whatever_they_are(tmp_path: Path) -> None:
    a = write(tmp_path / "a", table("yyyn"))
    b = write(tmp_path / "b", table("yyyn", model=LOCAL))
    assert compare(a, b)[0].model == "fedavg round 12 seed 0 vs centralised round 12 seed 0"


def test_of_several_models_those_of_the_same_method_seed_and_kind_are_compared(
    tmp_path: Path,
) -> None:
    later = FEDAVG.model_copy(update={"round": 24})
    a = [*scores(table("yyyn")), *scores(table("yynn", model=LOCAL))]
    b = [*scores(table("ynnn", model=later))]
    write_scores(tmp_path / "a", a)
    write_scores(tmp_path / "b", b)
    fedavg, _, central, _ = compare(tmp_path / "a", tmp_path / "b")
    assert (fedavg.value_a, fedavg.value_b) == (0.75, 0.25)
    assert fedavg.model == "fedavg round 12 seed 0 vs fedavg round 24 seed 0"
    assert (central.value_a, central.value_b) == (0.5, None)
    assert central.note == f"not in {tmp_path / 'b'}"


def test_points_of_a_curve_clients_groups_and_reference_rows_are_not_compared(
    tmp_path: Path,
) -> None:
    earlier = FEDAVG.model_copy(update={"round": 6})
    client = ModelId(method="local", seed=0, model_kind="local", model_client=3)
    published = ModelId(method="published", model_kind="reference")
    write_scores(
        tmp_path,
        [
            *scores(table("yyyn", model=earlier), selected_by=None),
            *scores(table("yyyn")),
            *scores(table("yyyn"), group="anatomy"),
            *scores(table("yyyn"), data_client=2),
            *scores(table("yyyn", model=client)),
            *scores(table("yyyn", model=published)),
        ],
    )
    results = load_results(tmp_path)
    pairs = pair_scores(results, results)
    assert [(pair.model, pair.baseline.metric) for pair in pairs] == [
        ("fedavg round 12 seed 0", "accuracy"),
        ("fedavg round 12 seed 0", "macro_f1"),
    ]


def test_a_foreign_checkpoint_scored_by_itself_needs_no_selection(tmp_path: Path) -> None:
    results = load_results(write(tmp_path, table("yyyn"), selected_by=None))
    assert len(pair_scores(results, results)) == 2


def test_several_models_of_which_none_is_selected_are_refused(tmp_path: Path) -> None:
    both = [*scores(table("yyyn")), *scores(table("yyyn", model=LOCAL))]
    write_scores(tmp_path, [score.model_copy(update={"selected_by": None}) for score in both])
    with pytest.raises(RecordError, match="2 models and none with selected_by"):
        compare(tmp_path, tmp_path)


def test_answers_from_files_are_compared_where_there_is_nothing_else(tmp_path: Path) -> None:
    first, second = (ModelId(method=name, model_kind="reference") for name in ("one", "two"))
    a = write(tmp_path / "a", table("y" * 6 + "n" * 4, model=first))
    b = write(tmp_path / "b", table("y" * 8 + "n" * 2, model=second))
    assert compare(a, b)[0].delta == pytest.approx(0.2)


def test_two_models_that_stand_for_one_method_are_refused(tmp_path: Path) -> None:
    later = FEDAVG.model_copy(update={"round": 24})
    write_scores(tmp_path, [*scores(table("yyyn")), *scores(table("yyyn", model=later))])
    with pytest.raises(RecordError, match="stand for fedavg"):
        compare(tmp_path, tmp_path)


def test_a_score_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write_scores(tmp_path, scores(table("yyyn")) * 2)
    with pytest.raises(RecordError, match="occurs twice"):
        compare(tmp_path, tmp_path)


def test_a_score_that_the_first_result_alone_has_is_not_ranked(tmp_path: Path) -> None:
    fpb, tfns = table("y" * 60 + "n" * 40), table("y" * 60 + "n" * 40, task="tfns")
    a = write(tmp_path / "a", fpb, tfns)
    b, c = (write(tmp_path / name, fpb) for name in "bc")
    ranks = {(row.task, row.metric): row.ranks for row in compare(a, b, c)}
    assert ranks["fpb", "accuracy"] == dict.fromkeys(map(str, (a, b, c)), "1–3")
    assert ranks["tfns", "accuracy"] is None


def test_a_place_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="does not exist"):
        compare(tmp_path / "nowhere", tmp_path)


def test_items_that_share_a_passage_are_resampled_together(tmp_path: Path) -> None:
    passages = [f"passage {i // 2}" for i in range(80)]
    a = write(tmp_path / "a", table("y" * 60 + "n" * 20, clusters=passages))
    b = write(tmp_path / "b", table("y" * 56 + "n" * 24, clusters=passages))
    assert compare(a, b)[0].ci_method == "cluster-bootstrap-bca"

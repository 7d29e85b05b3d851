"""Asking a judge: what is stored, retried, failed and withheld, and the records that come of it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judging_cases import COMMON, ROWS, TALKS, Replying, answered, judge, rating, scores, task

from fedbench.errors import ConfigError, DataError, RecordError
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.evaluate import evaluate
from fedbench.evaluation.scores import score_table
from fedbench.evaluation.task import Task, load_items
from fedbench.generation.backend import Checkpoint, Constraint
from fedbench.generation.scripted import ScriptedBackend
from fedbench.generation.store import AnswerStore
from fedbench.judging.command import find_cases, judge_answers
from fedbench.judging.conversations import (
    kept_tasks,
    read_answer_files,
    read_kept,
    write_answers,
)
from fedbench.judging.estimate import estimate
from fedbench.judging.judge import RETRY_TEMPERATURE
from fedbench.judging.judged import Baseline, baseline_from, case_of, facts_of, judge_case
from fedbench.judging.opening import JudgeConfig, judge_config, open_judge
from fedbench.judging.reliability import verdicts
from fedbench.judging.report import report_of
from fedbench.judging.results import reported_as, table_of
from fedbench.judging.rows import JudgmentRow
from fedbench.judging.rubric import get_rubric
from fedbench.results.alignment import align
from fedbench.results.record import ModelId
from fedbench.results_directory import write_results


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    opened = AnswerStore(tmp_path / "answers.sqlite")
    yield opened
    opened.close()


# Scores


def test_both_turns_are_graded_and_the_score_is_the_mean_over_them(
    tmp_path: Path, store: AnswerStore
) -> None:
    asked = judge(rating)
    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    found = scores(judge_case(case, asked, store))
    assert len(asked.backend.asked) == 4  # two questions, two turns
    values = {group: record.value for (_, group), record in found.items()}
    assert values == {None: 7, "turn_1": 5, "turn_2": 9, "math": 7, "writing": 7}
    overall = found["judge_score", None]
    assert (overall.task, overall.rubric, overall.judge) == (
        "mt_bench-fedbench",
        "mt_bench-fedbench",
        "judge",
    )
    assert overall.rubric_hash == get_rubric("mt_bench-fedbench").hash
    assert (overall.num_examples, overall.num_failed, overall.num_clusters) == (4, 0, 2)
    assert (overall.headline, found["judge_score", "math"].headline) == (True, False)
    assert (overall.weights_hash, overall.selected_by) == ("weights of fedavg", "last")


def test_a_table_gives_the_same_score_as_the_protocol(tmp_path: Path, store: AnswerStore) -> None:
    replies = [f"Rating: [[{n}]]" for n in (3, 4, 8, 10)]
    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    judged = judge_case(case, judge(replies), store)
    table = table_of(judged)
    assert table.answers[0].values == {"judge_score": [(3.5, 2), (9, 2)]}
    own = {one.group: one for one in score_table(table, COMMON, {})}
    expected = scores(judged)
    for group in (None, "math", "writing"):
        assert own[group].value == expected["judge_score", group].value
        assert own[group].rubric_hash == expected["judge_score", group].rubric_hash


@pytest.mark.parametrize(
    ("variant", "rubric", "name"),
    [
        (None, "mt_bench-fedbench", ("mt_bench-fedbench", None)),
        ("openfedllm", "mt_bench-fedbench", ("mt_bench-fedbench", "openfedllm")),
        ("pairwise", "mt_bench-pairwise-fedbench", ("mt_bench-pairwise-fedbench", None)),
        (None, "vicuna-fedbench", ("mt_bench-vicuna-fedbench", None)),
    ],
)
def test_scores_by_our_own_words_are_not_called_by_the_benchmarks_name(
    tmp_path: Path, variant: str | None, rubric: str, name: tuple[str, str | None]
) -> None:
    assert reported_as(task(tmp_path, variant=variant), get_rubric(rubric)) == name


# Failed, retried, withheld


def test_a_reply_without_a_verdict_is_asked_for_once_more(
    tmp_path: Path, store: AnswerStore
) -> None:
    replies = ["Rating: [[5]]", "I would not know.", "Rating: [[6]]", "Rating: [[7]]"]
    asked = judge([*replies, "Rating: [[8]]"])
    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    judged = judge_case(case, asked, store)
    assert scores(judged)["judge_score", None].value == 6.5  # of 5, 8, 6 and 7
    assert (judged.num_asked, judged.num_retried) == (5, 1)
    first, *_, again = asked.backend.asked
    assert first.sampling.temperature == 0
    assert again.sampling.temperature == RETRY_TEMPERATURE
    assert again.prompt == asked.backend.asked[1].prompt


def test_a_verdict_that_never_comes_has_failed_and_is_not_asked_for_a_third_time(
    tmp_path: Path, store: AnswerStore
) -> None:
    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    judge_case(case, judge(lambda prompt: "Who can say?"), store)
    again = judge(lambda prompt: "Rating: [[10]]")
    record = scores(judge_case(case, again, store))["judge_score", None]
    assert again.backend.asked == []
    assert (record.value, record.num_failed, record.num_examples) == (None, 4, 4)


@pytest.mark.parametrize(("num_silent", "withheld"), [(1, False), (2, True)])
def test_a_score_is_withheld_above_a_share_of_failures(
    tmp_path: Path, store: AnswerStore, num_silent: int, withheld: bool
) -> None:
    rows = [{"question_id": n, "category": "c", "turns": [f"Question {n}."]} for n in range(20)]
    made = task(tmp_path)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    silent = {f"Question {n}." for n in range(num_silent)}

    def reply(prompt: str) -> str:
        return "Hm." if any(text in prompt for text in silent) else "Rating: [[4]]"

    answers = answered(made, fedavg=[["Well."]] * 20)
    record = scores(
        judge_case(case_of(answers, get_rubric("mt_bench-fedbench")), judge(reply), store)
    )["judge_score", None]
    assert record.num_failed == num_silent
    assert record.value == (None if withheld else 4)


def test_an_answer_that_the_model_failed_to_give_is_not_judged_and_counts_as_failed(
    tmp_path: Path, store: AnswerStore
) -> None:
    asked = judge(rating)
    answers = answered(task(tmp_path), fedavg=[["three", None], ["a line", "line"]])
    judged = judge_case(case_of(answers, get_rubric("mt_bench-fedbench")), asked, store)
    assert len(asked.backend.asked) == 2
    [own] = table_of(judged).answers
    assert (own.status, own.errors) == (["failed", "parsed"], {0: "the engine stopped"})
    assert scores(judged)["judge_score", None].num_failed == 2  # both turns


def test_a_missing_answer_fails_as_often_as_a_judge_would_have_been_asked(
    tmp_path: Path, store: AnswerStore
) -> None:
    rows = [{"question_id": n, "category": "c", "turns": [f"Question {n}."]} for n in range(15)]
    made = task(tmp_path)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = answered(made, fedavg=[[None], *[["Well."]] * 14])
    case = case_of(answers, get_rubric("mt_bench-fedbench"), repeats=3)
    found = scores(judge_case(case, judge(lambda prompt: "Rating: [[4]]"), store))
    record = found["judge_score", None]
    # One answer of 15 is more than one in twenty, however often the others are judged.
    assert (record.num_examples, record.num_failed, record.value) == (45, 3, None)


# The store


def test_judging_again_asks_nothing(tmp_path: Path, store: AnswerStore) -> None:
    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    first = judge_case(case, judge(rating), store)
    again = judge(lambda prompt: "Rating: [[1]]")
    second = judge_case(case, again, store)
    assert (again.backend.asked, second.num_asked) == ([], 0)
    assert second.rows == first.rows


def test_another_judge_rubric_repeat_or_answer_is_asked_anew(
    tmp_path: Path, store: AnswerStore
) -> None:
    made = task(tmp_path)
    file = tmp_path / "stricter.yaml"
    text = Path("tasks/rubrics/mt_bench-fedbench.yaml").read_text()
    text = text.replace("name: mt_bench-fedbench", "name: stricter")
    file.write_text(text.replace("scale: [1, 10]", "scale: [1, 9]"))
    own, stricter = get_rubric("mt_bench-fedbench"), get_rubric(file)
    talks = answered(made, fedavg=TALKS)
    others = answered(made, fedavg=[["three", "six!"], ["a line", "line"]])
    first = judge(rating)
    judge_case(case_of(talks, own), first, store)

    def num_asked(case: Any, **options: Any) -> int:
        asked = judge(rating, **options)
        judge_case(case, asked, store)
        return len(asked.backend.asked)

    assert num_asked(case_of(talks, own), weights="other") == 4
    assert num_asked(case_of(talks, own), temperature=0.5) == 4
    # The same words, but read differently.
    assert num_asked(case_of(talks, stricter)) == 4
    assert num_asked(case_of(talks, own, repeats=3)) == 8
    assert num_asked(case_of(others, own)) == 1
    assert num_asked(case_of(talks, own)) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_old_objects_are_collected_again_behind_the_judging(
    fails: bool, tmp_path: Path, store: AnswerStore
) -> None:
    frozen = []

    def reply(prompt: str) -> str:
        frozen.append(gc.get_freeze_count())
        if fails:
            raise KeyboardInterrupt
        return "Rating: [[5]]"

    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        judge_case(case, judge(reply), store)
    assert min(frozen) > 0
    assert gc.get_freeze_count() == 0


def test_an_answer_that_two_models_gave_is_judged_once(tmp_path: Path, store: AnswerStore) -> None:
    asked = judge(rating)
    answers = answered(task(tmp_path), one=TALKS, two=TALKS)
    judged = judge_case(case_of(answers, get_rubric("mt_bench-fedbench")), asked, store)
    assert len(asked.backend.asked) == 4
    assert {len(rows) for rows in judged.rows.values()} == {4}


# Pairs and labels


@pytest.fixture
def single(tmp_path: Path) -> Task:
    return task(tmp_path, turns=None, prompt="{{ turns[0] }}", metrics=["win_rate"])


BASE = Baseline("base", {"train/0": ("four",), "train/1": ("my line",)})


def test_answers_are_compared_in_both_orders(single: Task, store: AnswerStore) -> None:
    def shorter(prompt: str) -> str:
        first, second = (
            prompt.split(f"ASSISTANT {name} ===\n")[1].split("\n")[0] for name in ("A", "B")
        )
        return f"Verdict: [[{'A' if len(first) < len(second) else 'B'}]]"

    rubric = get_rubric("mt_bench-pairwise-fedbench")
    asked = judge(shorter)
    answers = answered(single, fedavg=[["three"], ["a line"]])
    found = scores(judge_case(case_of(answers, rubric, baseline=BASE), asked, store))
    assert len(asked.backend.asked) == 4
    # "four" is shorter than "three", and "a line" is shorter than "my line".
    assert found["win_rate", None].value == 0.5
    assert (found["wins", None].value, found["ties", None].value) == (0.5, 0.0)
    assert found["win_rate", None].judged_against == "base"


def test_a_judge_that_always_prefers_the_first_makes_ties(single: Task, store: AnswerStore) -> None:
    answers = answered(single, fedavg=[["three"], ["a line"]])
    case = case_of(answers, get_rubric("mt_bench-pairwise-fedbench"), baseline=BASE)
    judged = judge_case(case, judge(lambda prompt: "Verdict: [[A]]"), store)
    assert scores(judged)["ties", None].value == 1
    assert table_of(judged).answers[0].values == {"win_rate": [(0.5, 1), (0.5, 1)]}


def test_a_rubric_of_pairs_needs_a_baseline_and_a_grade_takes_none(
    single: Task, store: AnswerStore
) -> None:
    answers = answered(single, fedavg=[["three"], ["a line"]])
    with pytest.raises(ConfigError, match="has no baseline to compare with; give one with --base"):
        case_of(answers, get_rubric("mt_bench-pairwise-fedbench"))
    with pytest.raises(ConfigError, match="rates one answer and compares none"):
        case_of(answers, get_rubric("vicuna-fedbench"), baseline=BASE)
    partly = case_of(
        answers,
        get_rubric("mt_bench-pairwise-fedbench"),
        baseline=Baseline("base", {"train/0": ("four",)}),
    )
    with pytest.raises(DataError, match="question train/1: the baseline has no answer to it"):
        judge_case(partly, judge(["Verdict: [[A]]"]), store)


def test_labels_make_the_rates_that_rules_make_too(single: Task, store: AnswerStore) -> None:
    answers = answered(single, fedavg=[["I can't."], ["Sure: ..."]])
    case = case_of(answers, get_rubric("harmbench-fedbench"))
    reply = judge(lambda prompt: "yes" if "Sure" in prompt else "no")
    judged = judge_case(case, reply, store)
    record = scores(judged)["attack_success_rate", None]
    assert (record.value, record.higher_is_better) == (0.5, False)
    table = table_of(judged)
    [own] = table.answers
    assert (own.extracted, table.references) == (["no", "yes"], ["no", "no"])
    again = {one.metric: one.value for one in score_table(table, COMMON, {}) if one.group is None}
    assert again == {"attack_success_rate": 0.5}


# Structured output


class Constrained(Replying):
    """A backend that can hold replies to choices."""

    def constrains(self, constraint: Constraint) -> bool:
        return bool(constraint.choices)


def test_replies_are_held_to_the_form_where_the_backend_can(
    single: Task, store: AnswerStore
) -> None:
    case = case_of(answered(single, fedavg=TALKS), get_rubric("harmbench-fedbench"))
    free = judge(lambda prompt: "no")
    held = judge("", backend=Constrained(lambda prompt: "no"))
    off = judge("", backend=Constrained(lambda prompt: "no"), constrained=False)
    names = [judge_case(case, one, store).judge for one in (free, held, off)]
    assert names == ["judge", "judge, constrained", "judge"]
    assert [request.constraint for request in held.backend.asked] == [
        Constraint(choices=("yes", "no"))
    ] * 2
    assert off.backend.asked == []  # found: the same question, in the same form


def test_reasons_come_before_all_numbers_of_the_form() -> None:
    """A server writes the properties in the order in which the schema has them."""
    form = judge(rating).wanted_constraint(get_rubric("strongreject-fedbench"))
    assert form is not None
    assert list(json.loads(form.json_schema)["properties"]) == [
        "explanation",
        "refusal",
        "convincingness",
        "specificity",
    ]


# Comparisons


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": "other"}, "judge is other and judge, and ratings under different judges"),
        ({"rubric_hash": "f00"}, "rubric_hash is f00 and "),
        ({"judged_against": "gpt-4"}, "judged_against is gpt-4 and none"),
    ],
)
def test_ratings_of_different_judging_are_not_compared(
    tmp_path: Path, store: AnswerStore, changes: dict[str, str], message: str
) -> None:
    case = case_of(answered(task(tmp_path), fedavg=TALKS), get_rubric("mt_bench-fedbench"))
    table = table_of(judge_case(case, judge(rating), store))
    [own] = table.answers
    with pytest.raises(RecordError, match=message):
        align(table, own.model_copy(update=changes), table, own, "a and b")


# Answers that are kept, and scores that need a judge


def test_answers_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    made = task(tmp_path)
    answers = answered(made, one=TALKS, two=[["three", None], [None]])
    write_answers(tmp_path / "run", answers)
    assert kept_tasks(tmp_path / "run") == ["mt_bench"]
    read = read_kept(tmp_path / "run", made)
    assert read.table == answers.table
    assert [own.model for own in read.models] == [own.model for own in answers.models]
    assert [[list(own) for own in model.turns] for model in read.models] == [
        model.turns for model in answers.models
    ]
    with pytest.raises(RecordError, match="another version of task mt_bench; score it again"):
        read_kept(tmp_path / "run", task(tmp_path, version=2))


def test_kept_answers_to_a_task_of_ones_own_are_judged_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "letters.jsonl").write_text('{"request": "Write."}\n')
    file, place = tmp_path / "letters.yaml", tmp_path / "run"
    file.write_text(
        f"name: letters\ndataset: {{path: {tmp_path / 'letters.jsonl'}, columns: [request]}}\n"
        "prompt: '{{ request }}'\nrubric: vicuna-fedbench\nmetrics: [judge_score]\n"
    )
    write_answers(place, answered(load_task(str(file)), one=[["Dear you"]]))
    [case] = find_cases([place], task=str(file))
    assert (case.answers.task.key, case.rubric.name) == ("letters", "vicuna-fedbench")
    for unclear in (None, "letters"):
        with pytest.raises(ConfigError, match="letters, which is a task of your own; name its f"):
            find_cases([place], task=unclear)
    with pytest.raises(ConfigError, match="holds answers to letters, and none to vicuna"):
        find_cases([place], task="vicuna")


def test_files_of_fastchat_are_read_as_conversations(tmp_path: Path) -> None:
    made = task(tmp_path)
    rows = [
        {"question_id": row["question_id"], "choices": [{"index": 0, "turns": ["x", "y"]}]}
        for row in reversed(ROWS[:1])
    ]
    file = tmp_path / "vicuna-7b-v1.3.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [own] = read_answer_files([file], made, None).models
    assert own.model.label() == "vicuna-7b-v1.3"
    assert [[turn.text for turn in turns] for turns in own.turns] == [["x", "y"], [None]]
    assert own.turns[1][0].error == "no answer in the file"
    with pytest.raises(DataError, match=r"vicuna-7b-v1\.3: several files have this name"):
        read_answer_files([file, file], made, None)


def test_a_task_without_a_judge_is_named_with_the_command_and_the_rest_is_scored(
    tmp_path: Path, store: AnswerStore, caplog: pytest.LogCaptureFixture
) -> None:
    judged = task(tmp_path)
    closed = task(
        tmp_path,
        **{"name": "sums", "turns": None, "prompt": "{{ turns[0] }}", "rubric": None},
        reference="yes",
        metrics=["exact_match"],
    )
    checkpoint = Checkpoint(ModelId(method="m", model_kind="base"), "base", None, "", "w", "w")
    backend = ScriptedBackend(lambda prompt: "yes")
    tasks = [(judged, load_items(judged)), (closed, load_items(closed))]
    result = evaluate([checkpoint], tasks, backend, store, template="plain")
    place = tmp_path / "out"
    records = write_results(result, place, run="out", run_hash="h", command="")
    assert {record.task for record in records} == {"sums"}
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("mt_bench: needs a judge")
    assert f"fedbench judge {place} --task mt_bench --judge MODEL" in message
    facts = json.loads((place / "run.json").read_text())["facts"]
    assert facts["needs a judge"] == ["mt_bench"]
    [own] = read_kept(place, judged).models
    assert [len(turns) for turns in own.turns] == [2, 2]


# Estimates and descriptions


def test_mistakes_are_found_before_a_judge_is_asked(tmp_path: Path) -> None:
    file, labels = tmp_path / "mine.jsonl", tmp_path / "labels.csv"
    labels.write_text("question_id,model,score\n81,mine,good\n")
    config = judge_config("gpt-4o", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(DataError, match="score is 'good'; give a number"):
        judge_answers([file], config, rubric="mt_bench-fedbench", labels=labels)
    # The rubric's name is wrong, and not that a task is missing.
    with pytest.raises(ConfigError, match="did you mean 'mt_bench'"):
        judge_answers([file], config, rubric="mtbench")


def test_labels_of_other_answers_are_refused_before_a_judge_is_asked(tmp_path: Path) -> None:
    task(tmp_path)  # writes its questions
    made, labels, mine = (tmp_path / name for name in ("talks.yaml", "labels.csv", "mine.jsonl"))
    made.write_text(
        f"name: talks\ndataset: {{path: {tmp_path / 'questions.jsonl'}, columns: [question_id]}}\n"
        "turns: turns\nrubric: mt_bench-fedbench\nmetrics: [judge_score]\n"
    )
    given = [{"question_id": n, "choices": [{"index": 0, "turns": ["a", "b"]}]} for n in (1, 2)]
    mine.write_text("".join(json.dumps(row) + "\n" for row in given))
    labels.write_text("question_id,model,score\n1,fedprox,3\n")
    config = judge_config("gpt-4o", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(DataError, match="the labels are of other answers"):
        judge_answers([mine], config, task=str(made), labels=labels)


def test_labels_of_one_task_are_no_mistake_of_another(tmp_path: Path, store: AnswerStore) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("question_id,turn,model,score\n1,2.0,fedavg,9\n")
    rubric = get_rubric("mt_bench-fedbench")
    one, other = answered(task(tmp_path), fedavg=TALKS), answered(task(tmp_path), fedprox=TALKS)
    own, others = (judge_case(case_of(each, rubric), judge(rating), store) for each in (one, other))
    assert facts_of(own, labels)["people"]["share"] == 1  # the second turn of question 1 has 9
    assert "people" not in facts_of(others, labels)


def test_turns_that_a_rubric_does_not_show_are_named(tmp_path: Path, store: AnswerStore) -> None:
    file = tmp_path / "first.yaml"
    file.write_text("name: first\nuser: '{{ question }} {{ answer }}'\n")
    answers = answered(task(tmp_path), fedavg=TALKS)
    judged = judge_case(case_of(answers, get_rubric(file)), judge(rating), store)
    assert len(judged.rows["fedavg"]) == 2  # of two conversations of two turns
    [said] = report_of([], {"mt_bench-first": facts_of(judged)})[:1]
    assert "fewer turns than 2 questions have; their later answers are not judged" in said
    both = judge_case(case_of(answers, get_rubric("mt_bench-fedbench")), judge(rating), store)
    assert not [said for said in report_of([], {"x": facts_of(both)}) if "fewer turns" in said]


def test_of_stored_replies_nothing_is_said_where_there_are_none(
    tmp_path: Path, store: AnswerStore
) -> None:
    rubric = get_rubric("mt_bench-fedbench")
    for given, said in (
        (TALKS, "nothing was asked of the judge: all of its replies are stored"),
        ([[None], [None]], "nothing was asked of the judge"),
    ):
        case = case_of(answered(task(tmp_path), fedavg=given), rubric)
        judge_case(case, judge(rating), store)
        again = judge_case(case, judge(rating), store)
        assert report_of([], {"mt_bench": facts_of(again)})[-1] == said


def test_a_baseline_of_many_models_is_refused_in_one_line(tmp_path: Path) -> None:
    many = answered(task(tmp_path), **dict.fromkeys(("a", "b", "c", "d", "e"), TALKS))
    with pytest.raises(ConfigError, match="the answers of a, b, c and 2 more; give those of one"):
        baseline_from(many)


def test_reasons_of_failures_add_up_to_all_of_them() -> None:
    rows = [
        JudgmentRow("m", str(n), 1, "j", None, None, None, problem=f"{11 + n % 7} is off the scale")
        for n in range(20)
    ]
    facts = verdicts(rows)
    assert len(facts["because"]) == 6
    assert sum(facts["because"].values()) == facts["without a verdict"] == 20


def test_an_estimate_counts_what_is_left_to_ask(tmp_path: Path, store: AnswerStore) -> None:
    rubric = get_rubric("mt_bench-fedbench")
    made = task(tmp_path)
    judge_case(case_of(answered(made, one=TALKS), rubric), judge(rating), store)
    more = case_of(answered(made, one=TALKS, two=[["3", "6"], ["a line", "!"]]), rubric)
    config = judge_config(
        "gpt-4o", base_url="https://api.openai.com/v1", api_key_variable="SOME_KEY"
    )
    asked = judge(rating)
    found = estimate(more, asked, store, config)
    assert asked.backend.asked == []
    # Of two's four judgments, "a line" as a first answer was rated already.
    assert (found.num_calls, found.num_stored, found.num_left) == (7, 4, 3)
    assert (found.completion_tokens, found.most_completion_tokens) == (3 * 300, 3 * 2048)
    # 2.5 and 10 dollars per million tokens of prompt and completion.
    assert found.most_dollars == pytest.approx((2.5 * found.prompt_tokens + 10 * 3 * 2048) / 1e6)


def test_an_estimate_counts_tokens_of_other_scripts_by_their_bytes(
    tmp_path: Path, store: AnswerStore
) -> None:
    pytest.importorskip("openai")
    file = tmp_path / "first.yaml"
    file.write_text("name: first\nuser: '{{ answer }}'\n")
    rubric = get_rubric(file)
    config = judge_config("m", base_url="http://127.0.0.1:9/v1")

    def tokens(text: str) -> int:
        case = case_of(answered(task(tmp_path), one=[[text], [text]]), rubric)
        with contextlib.closing(open_judge(config, to_ask=False)) as opened:
            return estimate(case, opened, store, config).prompt_tokens

    # Common tokenizers make a token of about four English letters, and of one or two characters
    # of Chinese: 400 characters are 100 tokens and 300, beside the name of the role.
    assert tokens("\u4f60" * 400) - tokens("a" * 400) == 200


def test_dollars_of_requests_without_a_count_are_said_to_be_the_most() -> None:
    facts = {"t": {"asked": 2, "asked again for a verdict": 0, "without a verdict": 0}}
    usage = {"num_requests": 0, "num_uncounted": 2, "dollars": 0.5}
    [said] = report_of([], facts, usage)
    assert ", 0.50 dollars; of 2 requests the server told no tokens, which count at the" in said


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "gpt-4o",
            {},
            "--judge gpt-4o: is no model directory; .* --base-url, or --judge-url of score",
        ),
        ("gpt-4o", {"budget": 3.0}, "--budget is about a server; give its address with --base-url"),
        ("no.yaml", {}, "no.yaml: there is no such file"),
        (
            "m",
            {"base_url": "http://127.0.0.1:1/v1", "temperature": -1.0},
            "--judge: temperature: Input should be greater than or equal to 0",
        ),
    ],
)
def test_a_judge_that_is_described_wrongly_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        judge_config(name, **options)


def test_a_file_describes_a_judge_and_options_come_before_it(tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text(
        "server: {base_url: 'http://127.0.0.1:8000/v1', model: big, concurrency: 4}\n"
        "temperature: 0.2\n"
    )
    config = judge_config(str(file), concurrency=8, seed=1, budget=None)
    assert isinstance(config, JudgeConfig)
    assert config.server is not None
    assert (config.server.model, config.server.concurrency) == ("big", 8)
    assert (config.temperature, config.seed) == (0.2, 1)


def test_prompts_of_one_question_differ_by_what_is_judged_only(
    tmp_path: Path, store: AnswerStore
) -> None:
    asked = judge(rating)
    answers = answered(task(tmp_path), fedavg=TALKS)
    judge_case(case_of(answers, get_rubric("mt_bench-fedbench")), asked, store)
    digests = [request.digest for request in asked.backend.asked]
    assert all(one != other for one, other in itertools.combinations(digests, 2))

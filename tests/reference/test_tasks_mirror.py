"""Our medical, mathematical and general tasks against published sizes, outputs and other code."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedbench.data.rows import Source, load_rows
from fedbench.evaluation.catalogue import load_task
from fedbench.evaluation.extract import get_extract
from fedbench.evaluation.readings import boxed
from fedbench.evaluation.task import load_items
from fedbench.metrics import METRICS, Sample
from fedbench.results.record import ScoreRecord
from fedbench.scoring import score_answer_file

pytestmark = pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="the data are not ours to ship: set FEDBENCH_DATA to a mirror that holds them",
)
ITEMS = {
    "mmlu_letters": 14042,
    "medqa": 1273,
    "medmcqa": 4183,
    "pubmedqa": 500,
    "headqa": 2742,
    "gsm8k_chat": 1319,
    "svamp": 1000,
    "asdiv": 2305,
    "multiarith": 600,
    "aqua_rat": 254,
    "agieval_math": 1000,
    "bbh": 6511,
    "drop": 9536,
}


def published(name: str) -> Path:
    return Path(os.environ["FEDBENCH_DATA"]) / "reference" / name


def lines(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        yield from map(json.loads, handle)


def scores(directory: Path, rows: list[dict[str, Any]], task: str) -> list[ScoreRecord]:
    """What `fedbench score --answers` makes of the rows, on the items that they answer."""
    file = directory / "published.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return score_answer_file(
        file, [task], subset="answered", output=directory / task.replace(":", "-")
    )


def percent(records: list[ScoreRecord], metric: str, group: str | None = None) -> float:
    [record] = [one for one in records if (one.metric, one.group) == (metric, group)]
    assert record.value is not None
    return round(100 * record.value, 3)


def value(metric: str, pairs: Sequence[tuple[str, str | None]]) -> list[float]:
    """The metric of each (reference, answer) by itself."""
    own = METRICS[metric]
    samples = [Sample(reference, answer) for reference, answer in pairs]
    return [float(own.value(row)) for row in own.statistics(samples, [])]


@pytest.mark.parametrize(("name", "count"), ITEMS.items())
def test_a_task_has_as_many_items_as_its_paper(name: str, count: int) -> None:
    items = load_items(load_task(name))
    assert len(items) == count
    assert len({item.id for item in items}) == count


@pytest.mark.parametrize(
    ("name", "right", "score"),
    # Flower's published Mistral-7B baselines, https://github.com/adap/flower
    # (benchmarks/flowertune-llm): only with these sizes are they shares of whole items.
    [
        ("mmlu_letters:flowertune-stem", 390, "12.37"),
        ("mmlu_letters:flowertune-social-sciences", 415, "13.49"),
        ("mmlu_letters:flowertune-humanities", 593, "12.60"),
        ("pubmedqa:flowertune", 295, "59.00"),
        ("medmcqa:flowertune", 991, "23.69"),
        ("medqa:flowertune", 345, "27.10"),
        ("fpb", 540, "44.55"),
        ("tfns", 687, "28.77"),
    ],
)
def test_flowertunes_baselines_are_shares_of_our_items(name: str, right: int, score: str) -> None:
    count = len(load_items(load_task(name)))
    assert f"{100 * right / count:.2f}" == score
    # One item more or less would show.
    assert {f"{100 * n / count:.2f}" for n in (right - 1, right + 1)}.isdisjoint({score})


def test_big_bench_hard_has_27_tasks_of_250_but_for_three() -> None:
    sizes = Counter(item.keys["subset"] for item in load_items(load_task("bbh")))
    assert len(sizes) == 27
    # Suzgun et al. 2022, table 2 and its note.
    assert {name: count for name, count in sizes.items() if count != 250} == {
        "causal_judgement": 187,
        "penguins_in_a_table": 146,
        "snarks": 178,
    }
    assert len(load_items(load_task("bbh:instruct-eval"))) == 6511 - 3 * 27


def test_questions_of_drop_are_clustered_by_passage() -> None:
    items = load_items(load_task("drop"))
    assert len({item.cluster for item in items}) == 579


def test_mmlu_in_five_shots_shows_its_subject() -> None:
    [item] = load_items(load_task("mmlu_letters:instruct-eval"), limit=1)
    prompt = item.question.turns[0].instruction
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
    )
    assert prompt.count("\nAnswer: ") == 5
    assert prompt.endswith("\nAnswer:")
    assert "\n\n\n" not in prompt


@pytest.mark.parametrize("model", ["DeepSeek-R1", "DeepSeek-V3"])
@pytest.mark.parametrize(
    ("name", "key", "count", "expected"),
    # Accuracies of xk-huang/medagents-benchmark, output/<data set>/<model>-...-zero_shot.json.
    [
        ("medqa", "doc_id", 1273, {"DeepSeek-R1": 91.987, "DeepSeek-V3": 79.262}),
        ("medmcqa", "id", 2816, {"DeepSeek-R1": 81.854, "DeepSeek-V3": 74.290}),
        ("pubmedqa", "pubid", 500, {"DeepSeek-R1": 76.2, "DeepSeek-V3": 73.6}),
    ],
)
def test_medagents_predictions_score_as_published(
    tmp_path: Path, name: str, key: str, count: int, expected: dict[str, float], model: str
) -> None:
    decisions = {"A": "yes", "B": "no", "C": "maybe"} if name == "pubmedqa" else {}
    rows = [
        {key: row["realidx"], "completion": decisions.get(answer, answer)}
        for row in lines(published("medagents_zero_shot/predictions.jsonl.gz"))
        if (row["dataset"], row["model"]) == (name, model)
        for answer in [row["predicted_answer"]]
    ]
    records = scores(tmp_path, rows, f"{name}:generate")
    assert {record.num_scored for record in records if record.group is None} == {count}
    assert percent(records, "accuracy") == expected[model]


@pytest.mark.parametrize(("model", "expected"), [("DeepSeek-R1", 95.041), ("DeepSeek-V3", 89.715)])
def test_medagents_predictions_on_medical_mmlu_score_as_published(
    model: str, expected: float
) -> None:
    """By the letters that their rows hold: these name no subject, and so no item of ours."""
    rows = [
        row
        for row in lines(published("medagents_zero_shot/predictions.jsonl.gz"))
        if (row["dataset"], row["model"]) == ("mmlu", model)
    ]
    right = value("accuracy", [(row["answer_idx"], row["predicted_answer"]) for row in rows])
    assert len(right) == 1089
    assert round(100 * sum(right) / len(right), 3) == expected


def test_codex_on_big_bench_hard_scores_as_its_authors_say(tmp_path: Path) -> None:
    manifest = json.loads(published("MANIFEST.json").read_text())
    [entry] = [one for one in manifest if one["name"] == "bbh_codex"]
    expected = entry["expected"]["direct"]["per_task"]
    outputs = lines(published("bbh_codex/direct.jsonl.gz"))
    rows = [
        {"doc_id": number, "subset": row["task"], "completion": row["prediction"]}
        for number, row in enumerate(outputs)
    ]
    records = scores(tmp_path, rows, "bbh:direct")
    for metric in ("accuracy", "exact_match"):
        own = {name: percent(records, metric, name) for name in expected}
        assert own == {name: round(share, 3) for name, share in expected.items()}
    mean = percent(records, "exact_match_by_subset")
    assert round(mean, 2) == entry["expected"]["direct"]["mean_27"]
    # Of all rows, where the three small tasks count less, it is another number.
    assert round(percent(records, "exact_match"), 2) == 52.34


@pytest.mark.parametrize(
    ("checkpoint", "micro", "macro"),
    # Of a federated run at rounds 0 and 50, 55 of the 57 subjects (the mirror's manifest).
    [("checkpoint-0", 46.917, 46.645), ("checkpoint-50", 46.682, 46.306)],
)
def test_mmlu_by_question_and_by_subject(
    tmp_path: Path, checkpoint: str, micro: float, macro: float
) -> None:
    first: dict[str, int] = {}
    for position, row in enumerate(
        load_rows(Source(path="cais/mmlu", config="all", split="test", columns=("subject",)))
    ):
        first.setdefault(row["subject"], position)
    rows = [
        {"doc_id": first[row["subject"]] + row["i"], "completion": row["prediction"]}
        for row in lines(published("mmlu_fed_checkpoints/predictions.jsonl.gz"))
        if row["checkpoint"] == checkpoint
    ]
    records = scores(tmp_path, rows, "mmlu_letters:instruct-eval")
    of_subjects = [100 * (record.value or 0) for record in records if record.group]
    assert len(of_subjects) == 55
    assert percent(records, "accuracy") == micro
    assert round(sum(of_subjects) / 55, 3) == macro


SOLUTIONS = "gsm8k_example_model_solutions/example_model_solutions.jsonl.gz"


@pytest.mark.parametrize(
    ("model", "expected"),
    # OpenAI's own flags (openai/grade-school-math, example_model_solutions.jsonl).
    [("6b_finetuning", 21.683), ("6b_verification", 39.045)],
)
def test_gsm8k_solutions_are_right_where_openai_says_so(
    tmp_path: Path, model: str, expected: float
) -> None:
    rows = [
        {"doc_id": number, "completion": row[model]["solution"]}
        for number, row in enumerate(lines(published(SOLUTIONS)))
    ]
    assert percent(scores(tmp_path, rows, "gsm8k_chat:flexible"), "accuracy") == expected
    # As numbers: 18.0 is 18.
    assert percent(scores(tmp_path, rows, "gsm8k_chat"), "numeric_match") >= expected
    # They end in "A: 18", where the strict reading wants "#### 18".
    assert percent(scores(tmp_path, rows, "gsm8k_chat:strict"), "accuracy") == 0.0


def test_numbers_are_read_as_lm_evals_filters_of_gsm8k_read_them() -> None:
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    metrics = pytest.importorskip("lm_eval.api.metrics")
    ignored = [",", r"\$", r"(?s).*#### ", r"\.$"]  # tasks/gsm8k/gsm8k.yaml of lm-eval 0.4.13
    filters = {
        "number_after_hashes": extraction.RegexFilter(r"#### (\-?[0-9\.\,]+)"),
        "last_number": extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    }
    golds, completions = [], []
    for row in lines(published(SOLUTIONS)):
        gold = row["ground_truth"].replace("\nA: ", "\n#### ")
        for model in ("6b_finetuning", "6b_verification"):
            text = row[model]["solution"]
            completions += [text, text.replace("\nA: ", "\n#### "), f"{text}.00.", gold]
            golds += [gold] * 4
    for rule, theirs in filters.items():
        filtered = [found[0] for found in theirs.apply([[text] for text in completions], [])]
        right = [
            metrics.exact_match_hf_evaluate(
                predictions=[answer], references=[gold], regexes_to_ignore=ignored, ignore_case=True
            )["exact_match"]
            for answer, gold in zip(filtered, golds, strict=True)
        ]
        pairs = [
            (gold.split("#### ")[1].replace(",", ""), get_extract(rule)(text, ()))
            for text, gold in zip(completions, golds, strict=True)
        ]
        assert value("accuracy", pairs) == [float(one) for one in right]


def test_drop_is_scored_as_lm_eval_scores_it() -> None:
    utils = pytest.importorskip("lm_eval.tasks.drop.utils")
    items = load_items(load_task("drop"))[::5]
    generator = random.Random(0)
    references = [json.loads(item.reference) for item in items]
    pairs, theirs = [], []
    for item, own in zip(items, references, strict=True):
        other = generator.choice(generator.choice(references))
        right = generator.choice(own)
        answers = [right, other, f"The {right}.", f"{right} {other}", right.split("-")[0], "", "$7"]
        for answer in answers:
            result = utils.process_results({"answers": [(one,) for one in own]}, [answer])
            pairs.append((item.reference, answer))
            theirs.append((result["em"], result["f1"]))
    assert value("drop_em", pairs) == [em for em, _ in theirs]
    assert value("drop_f1", pairs) == pytest.approx([f1 for _, f1 in theirs], abs=1e-12)


def test_one_answer_to_several_spans_is_scored_as_lm_eval_scores_it() -> None:
    utils = pytest.importorskip("lm_eval.tasks.drop.utils")
    generator = random.Random(1)
    words = ["Brady", "Manning", "the", "3", "4.0", "4", "yards", "field-goal", "", "12,5"]
    pairs, theirs = [], []
    for _ in range(3000):
        phrase = [" ".join(generator.choices(words, k=generator.randint(1, 3))) for _ in range(6)]
        golds = [phrase[: generator.randint(1, 3)], phrase[3 : generator.randint(4, 5)]]
        result = utils.process_results({"answers": golds}, [phrase[5]])
        pairs.append((json.dumps(golds), phrase[5]))
        theirs.append((result["em"], result["f1"]))
    assert value("drop_em", pairs) == [em for em, _ in theirs]
    assert value("drop_f1", pairs) == pytest.approx([f1 for _, f1 in theirs], abs=1e-12)


ORDER = "math-verify takes what commas separate for a set, whose order says nothing"
ALGEBRA_DIFFERS = {"order": ORDER, "decimals": ORDER}


def test_hendrycks_cases_of_equivalence_but_for_those_where_algebra_says_more() -> None:
    pytest.importorskip("math_verify")
    cases = list(lines(published("math_equivalence/hendrycks_cases.jsonl.gz")))
    assert len(cases) == 16
    own = value("math_equivalence", [(case["str2"], case["str1"]) for case in cases])
    differs = {case["name"] for case, equal in zip(cases, own, strict=True)
               if bool(equal) != case["equivalent"]}  # fmt: skip
    assert differs == set(ALGEBRA_DIFFERS)


def test_the_boxes_of_math_solutions_are_their_answers() -> None:
    pytest.importorskip("math_verify")
    rows = load_rows(Source(path="agieval", split="test", columns=("task", "answer", "other")))
    problems = [row for row in rows if row["task"] == "math"]
    pairs = [(row["answer"], boxed(row["other"]["solution"], ())) for row in problems]
    equal = value("math_equivalence", pairs)
    assert sum(equal) == 1000


def references_by_group(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for item in load_items(load_task(name)):
        found[item.keys["subset"]].add(item.reference)
    return found


@pytest.mark.parametrize(("name", "groups"), [("headqa", 6), ("medmcqa", 21)])
def test_every_group_has_every_letter(name: str, groups: int) -> None:
    found = references_by_group(name)
    assert len(found) == groups
    assert {name for name, letters in found.items() if letters != set("ABCD")} <= {"Unknown"}

"""Tasks of lm-eval on our engine: names, rows, requests, answers, scores. Rows made here."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedbench.errors import ConfigError, DataError
from fedbench.evaluation import lm_eval_tasks
from fedbench.evaluation.catalogue import load_task, load_tasks
from fedbench.evaluation.evaluate import evaluate
from fedbench.evaluation.harness import HarnessItems
from fedbench.evaluation.harness_requests import Columns
from fedbench.evaluation.lm_eval_tasks import Entry
from fedbench.evaluation.scores import score_table
from fedbench.evaluation.task import load_items
from fedbench.evaluation.task_checks import check_task
from fedbench.generation.backend import Answer, Checkpoint, Request
from fedbench.generation.scripted import ScriptedBackend
from fedbench.generation.store import AnswerStore
from fedbench.metrics import Sample, get_metric
from fedbench.results.check import check
from fedbench.results.comparison import compare
from fedbench.results.leaderboard import build
from fedbench.results.record import ModelId, write_scores
from fedbench.results.samples import Results, read_samples, write_samples
from fedbench.results.specification import spec_for

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

CHOICES = """
dataset_path: made/{name}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
"""
ACC = "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
SUMS = """
task: sums
dataset_path: made/sums
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "{{question}} ="
doc_to_target: "{{answer}}"
num_fewshot: 1
repeats: 2
generation_kwargs: {until: ["\\n", ""], max_gen_toks: 7, do_sample: true, temperature: 0.5}
filter_list:
  - name: digits
    filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]
  - name: whole
    filter: [{function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 2.5}
"""
TWINS = """
group: twins
task: [capitals, rivers]
aggregate_metric_list: {metric: acc, weight_by_size: false}
"""
TASKS = {
    "capitals": "task: capitals\ntag: geography\n" + CHOICES.format(name="capitals") + ACC,
    "rivers": "task: rivers\ntag: geography\n" + CHOICES.format(name="rivers") + ACC,
    "mcc": "task: mcc\n" + CHOICES.format(name="capitals") + "  - metric: mcc\n",
    "sums": SUMS,
    "beam": SUMS.replace("task: sums", "task: beam").replace(
        "do_sample", "num_beams: 4, do_sample"
    ),
    "twins": TWINS,
    "code": SUMS.replace("task: sums", "task: code\nunsafe_code: true"),
    "nowhere": SUMS.replace("task: sums", "task: nowhere").replace("made/sums", "made/nothing"),
}
KINDS = {"twins": "GROUP"}
ROWS = {
    "capitals": [
        {"question": "Capital of Peru?", "choices": ["Lima", "Quito"], "answer": 0},
        {"question": "Capital of Chad?", "choices": ["Doha", "N'Djamena"], "answer": 1},
        {"question": "Capital of Mali?", "choices": ["Bamako", "Praia"], "answer": 0},
    ],
    "rivers": [{"question": "Longest of Africa?", "choices": ["Nile", "Niger"], "answer": 0}],
    "sums": [{"question": "1 + 2", "answer": "3"}, {"question": "2 + 2", "answer": "4"}],
}


@pytest.fixture(autouse=True)
def _made_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lm-eval's index holds the tasks above, and the mirror their rows."""
    index = {}
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        index[name] = Entry(KINDS.get(name, "TASK"), str(tmp_path / f"{name}.yaml"), [])
    index["geography"] = Entry("TAG", None, ["capitals", "rivers"])
    monkeypatch.setattr(lm_eval_tasks, "task_index", lambda: index)
    monkeypatch.setattr(lm_eval_tasks, "_is_mentioned", lambda name: True)
    lm_eval_tasks._manager.cache_clear()
    entries = []
    for name, rows in ROWS.items():
        for split in ("train", "test") if name == "sums" else ("test",):
            file = tmp_path / f"{name}-{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            where = {"hub_dataset": f"made/{name}", "hub_config": None, "split": split}
            entries.append({**where, "file": file.name})
    (tmp_path / "MANIFEST.json").write_text(json.dumps(entries))
    monkeypatch.setenv("FEDBENCH_DATA", str(tmp_path))
    yield
    lm_eval_tasks._manager.cache_clear()


def items_of(name: str, limit: int | None = None) -> HarnessItems:
    (task,) = load_tasks([f"lm_eval/{name}"])
    items = load_items(task, None, limit)
    assert isinstance(items, HarnessItems)
    return items


def read(items: HarnessItems, answers: Callable[[Request], Answer]) -> Columns:
    asked = items.prepare(ScriptedBackend([]))
    return asked.read([answers(request) for request in asked.requests])


def likeliest(*numbers: int) -> Callable[[Request], Answer]:
    """The number of the choice that is given to each document, in order."""
    order = iter(numbers)

    def answer(request: Request) -> Answer:
        chosen = next(order)
        scores = tuple(-1.0 if n == chosen else -2.0 for n in range(len(request.choices)))
        return Answer(loglikelihoods=scores)

    return answer


def test_the_choices_of_a_document_are_one_request() -> None:
    asked = items_of("capitals").prepare(ScriptedBackend([]))
    assert [(r.prompt, r.texts) for r in asked.requests] == [
        ("Capital of Peru?", (" Lima", " Quito")),
        ("Capital of Chad?", (" Doha", " N'Djamena")),
        ("Capital of Mali?", (" Bamako", " Praia")),
    ]


def test_what_lm_eval_says_of_each_document_is_kept() -> None:
    columns = read(items_of("capitals"), likeliest(0, 0, 0))
    assert columns.extracted == ["0", "0", "0"]
    assert columns.values == {"acc,none": [1.0, 0.0, 1.0]}
    assert columns.status == ["parsed"] * 3


def test_a_document_that_failed_is_left_out_and_the_others_are_scored() -> None:
    answers = iter([Answer(error="cut off"), Answer(loglikelihoods=(-2.0, -1.0))] * 2)
    columns = read(items_of("capitals"), lambda request: next(answers))
    assert columns.status == ["failed", "parsed", "failed"]
    assert columns.errors == {0: "cut off", 2: "cut off"}
    assert columns.values == {"acc,none": [None, 1.0, None]}


def test_generation_options_samples_and_examples_are_those_of_the_task() -> None:
    asked = items_of("sums").prepare(ScriptedBackend([]))
    first, second = asked.requests[:2]
    assert (first.sampling.stop, first.sampling.max_tokens) == (("\n",), 7)
    assert (first.sampling.temperature, first.sampling.top_p) == (0.5, 1.0)
    assert [first.sampling.index, second.sampling.index] == [0, 1]  # repeats: 2
    # One example, which is not the document itself: there are two rows.
    assert first.prompt in ("1 + 2 = 3\n\n1 + 2 =", "2 + 2 = 4\n\n1 + 2 =")


def test_every_filter_has_its_own_score_and_an_answer_without_a_match_is_unparsed() -> None:
    texts = iter([" 3", "unused", "four", "unused"])
    items = items_of("sums")
    columns = read(items, lambda request: Answer(text=next(texts)))
    assert items.metrics == ("exact_match,digits", "exact_match,whole")
    assert columns.values["exact_match,digits"] == [1.0, 0.0]
    assert columns.values["exact_match,whole"] == [0.0, 0.0]  # " 3" is not "3"
    assert columns.extracted == ["3", None]
    assert columns.status == ["parsed", "unparsed"]
    assert columns.texts == [" 3", "four"]


def test_sampling_options_of_a_greedy_task_do_not_matter() -> None:
    items = items_of("sums:gen_kwargs={do_sample: false, top_k: 5}")
    sampling = items.prepare(ScriptedBackend([])).requests[0].sampling
    assert (sampling.temperature, sampling.max_tokens) == (0.0, 7)


def test_an_option_that_our_backends_lack_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_beams is not among ours"):
        items_of("beam").prepare(ScriptedBackend([]))


def test_a_group_whose_tasks_weigh_alike_is_the_mean_of_their_scores() -> None:
    items = items_of("twins")
    columns = read(items, likeliest(0, 0, 0, 1))  # 2 of 3 capitals, no river
    assert columns.values["acc,none"] == [(1.0, 1 / 3), (0.0, 1 / 3), (1.0, 1 / 3), (0.0, 1.0)]
    assert items.groups == {"capitals": (0, 3), "rivers": (3, 4)}
    assert [item.id for item in items][2:] == ["capitals/test/2", "rivers/test/0"]


def test_a_limit_holds_for_each_task_of_a_group() -> None:
    assert [item.id for item in items_of("twins", limit=1)] == ["capitals/test/0", "rivers/test/0"]


def test_what_lm_eval_computes_of_all_documents_is_kept_as_it_gives_it() -> None:
    columns = read(items_of("mcc"), likeliest(0, 1, 0))
    assert columns.values == {}
    given = columns.aggregates["mcc,none"]
    assert given.value == 1.0  # all right
    assert given.stderr is not None


def test_names_of_lm_eval_are_taken_where_ours_end() -> None:
    assert [task.key for task in load_tasks(["capitals", "fpb"])] == ["lm_eval/capitals", "fpb"]
    tagged = load_tasks(["lm_eval/geography", "rivers"])
    assert [task.key for task in tagged] == ["lm_eval/capitals", "lm_eval/rivers"]


def test_the_check_of_a_task_leaves_the_split_to_lm_eval() -> None:
    (task,) = load_tasks(["capitals"])
    checked = check_task(task)
    # Asked are the rows of the split `test`, which is the only one that the mirror has.
    assert (checked.dataset, checked.num_items) == ("lm_eval/capitals", 3)
    assert checked.prompts == ("Capital of Peru?",)


def test_a_variant_of_a_name_sets_options() -> None:
    (task,) = load_tasks(["sums:num_fewshot=0,fewshot_seed=7"])
    assert task.key == "lm_eval/sums:num_fewshot=0,fewshot_seed=7"
    assert task.version == 2
    assert task.harness is not None
    assert (task.harness.num_fewshot, task.harness.fewshot_seed) == (0, 7)
    assert task.hash != load_tasks(["sums"])[0].hash


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sums:5", "'5' is no option; write num_fewshot=5"),
        ("sums:shots=5", "shots"),
        ("sums:gen_kwargs={a", "'gen_kwargs={a' is no option"),
        ("lm_eval/capitols", "did you mean 'capitals'"),
    ],
)
def test_a_wrong_name_is_told_in_words(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_tasks([name])


def test_a_misspelt_name_is_looked_for_among_those_of_lm_eval_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "index.json"
    monkeypatch.setattr(lm_eval_tasks, "_index_file", lambda: made)
    with pytest.raises(ConfigError, match="unknown task 'capitols': `fedbench list tasks`"):
        load_tasks(["capitols"])  # does not wait for the index to be made
    made.touch()
    with pytest.raises(ConfigError, match="unknown task 'capitols': did you mean 'capitals'"):
        load_tasks(["capitols"])
    with pytest.raises(ConfigError, match="unknown task 'headlins': did you mean 'headlines'"):
        load_tasks(["headlins"])


def test_tasks_that_run_generated_code_are_refused() -> None:
    with pytest.raises(ConfigError, match="code runs code that the model writes"):
        items_of("code")


def test_rows_that_nobody_holds_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def nothing(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", nothing)
    with pytest.raises(DataError, match=r"made/nothing: the mirror .*no network"):
        items_of("nowhere")
    assert datasets.load_dataset is nothing  # given back


def test_examples_that_the_mirror_does_not_hold_are_told_in_words() -> None:
    assert len(items_of("capitals")) == 3  # asks for none
    with pytest.raises(DataError, match="does not hold made/capitals split train"):
        items_of("capitals:num_fewshot=2")


def test_a_yaml_of_ours_may_name_a_task_of_lm_eval(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nkind: harness\nharness: {task: sums, num_fewshot: 0}\n"
        "headline: exact_match,whole\n"
    )
    task = load_task(str(file))
    items = load_items(task)
    assert isinstance(items, HarnessItems)
    assert (task.key, items.headline) == ("mine", "exact_match,whole")
    file.write_text("name: mine\nkind: harness\nharness: {task: sums}\nprompt: hello\n")
    with pytest.raises(ConfigError, match="prompt: lm-eval's task says this; remove it"):
        load_task(str(file))


def test_a_headline_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nkind: harness\nharness: {task: sums}\nheadline: acc\n")
    with pytest.raises(ConfigError, match="headline 'acc' is not among exact_match,digits"):
        load_items(load_task(str(file)))


def test_templates_are_compiled_once_while_prompts_are_written_and_only_then() -> None:
    from lm_eval import utils

    before = utils.env.from_string
    with lm_eval_tasks.templates_compiled_once():
        assert utils.env.from_string("{{a}}") is utils.env.from_string("{{a}}")
    assert utils.env.from_string == before
    assert "from_string" not in vars(utils.env)


def test_metrics_of_lm_eval_are_known_by_name() -> None:
    accuracy, perplexity = get_metric("acc,none"), get_metric("word_perplexity,none")
    assert (accuracy.higher_is_better, accuracy.binary) == (True, True)
    assert (perplexity.higher_is_better, perplexity.binary) == (False, False)
    # Two texts of 10 and 30 words with -20 and -30 nats: exp(50 / 40).
    sums = perplexity.statistics([_item(-2.0, 10), _item(-1.0, 30)], []).sum(axis=0)
    assert float(perplexity.value(sums)) == pytest.approx(math.exp(1.25))
    with pytest.raises(ConfigError, match="unknown metric 'acc,'"):
        get_metric("acc,")


def _item(value: float, weight: float) -> Any:
    return Sample("", None, values={"word_perplexity,none": (value, weight)})


def test_scores_checks_and_leaderboards_are_made_of_the_values(tmp_path: Path) -> None:
    left = _results(tmp_path / "left", "twins", [0, 1, 0, 0])  # all right
    right = _results(tmp_path / "right", "twins", [0, 0, 0, 1])
    scores = {(s.group, s.metric): s for s in right.scores}
    assert scores[None, "acc,none"].value == pytest.approx((2 / 3 + 0) / 2)
    assert scores["capitals", "acc,none"].value == pytest.approx(2 / 3)
    assert scores["capitals", "acc,none"].num_examples == 3
    assert scores["rivers", "acc,none"].value == 0.0
    assert scores[None, "acc,none"].headline
    (row,) = compare(left.path, right.path)
    assert row.delta == pytest.approx(1 / 3 - 1)
    assert row.num_items == 4
    (verdict,) = check(right.path, left.path, max_drop=0.5)
    assert verdict.delta == pytest.approx(-2 / 3)
    assert verdict.note is None  # paired by item
    table = build(spec_for(None, right.scores), [right])
    assert [column.name for column in table.columns] == ["lm_eval/twins"]
    (cell,) = table.rows[0].cells.values()
    assert cell.value == pytest.approx(1 / 3)


def test_scores_without_values_per_item_are_compared_as_they_are(tmp_path: Path) -> None:
    left = _results(tmp_path / "left", "mcc", [0, 1, 0])
    right = _results(tmp_path / "right", "mcc", [0, 1, 1])
    score = right.scores[0]
    # Two right and one wrong of three: (1 * 1 - 1 * 0) / sqrt(1 * 2 * 2 * 1).
    assert score.value == pytest.approx(0.5)
    assert score.ci_method == "lm-eval-bootstrap"
    (row,) = compare(left.path, right.path)
    assert row.delta == pytest.approx(-0.5)
    assert row.note == "items were not kept on both sides: compared without pairing"
    table = build(spec_for(None, right.scores), [right])
    (cell,) = table.rows[0].cells.values()
    assert cell.value == pytest.approx(0.5)


def _results(path: Path, name: str, numbers: Sequence[int]) -> Results:
    """The directory of a model that gives these choices in order."""
    items = items_of(name)
    rows = {row["question"]: row["choices"] for row in ROWS["capitals"] + ROWS["rivers"]}
    order = iter(numbers)
    backend = ScriptedBackend(lambda prompt: f" {rows[prompt][next(order)]}")
    model = ModelId(method="fedavg", model_kind="global", seed=0, round=1)
    checkpoint = Checkpoint(model, "full", path, str(path), path.name, "base")
    with contextlib.closing(AnswerStore(path / "answers.sqlite")) as store:
        result = evaluate([checkpoint], [(items.task, items)], backend, store)
    table = result.tables[items.task.key]
    assert result.templates == {items.task.key: "lm-eval"}
    made = {"run": "run", "run_hash": "0", "fedbench": "0.1.0", "created": "2026-01-02T03:04:05Z"}
    scores = list(score_table(table, made, {model.label(): {"selected_by": "last"}}))
    write_scores(path, scores)
    write_samples(path, table)
    assert read_samples(path) == {table.task_key: table}
    return Results(path, None, scores, {table.task_key: table})

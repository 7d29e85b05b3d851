"""Leaderboards: what a cell says, when it says nothing, and which file is wrong."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from making import federation, model, results, without_answers

from fedbench.cli import app
from fedbench.errors import ConfigError, RecordError
from fedbench.metrics import METRICS, Sample
from fedbench.results.leaderboard import build
from fedbench.results.record import write_run, write_scores
from fedbench.results.samples import Results, read_results, write_samples
from fedbench.results.specification import LeaderboardSpec, find_leaderboard, load_spec, spec_for
from fedbench.results.statistics import contrast
from fedbench.results.table import Cell, Table


def spec(tasks: tuple[str, ...] = ("headlines",), **more: object) -> LeaderboardSpec:
    return LeaderboardSpec.model_validate(
        {"name": "made", "tasks": tasks, "metrics": ("accuracy",), "seeds": (0,), **more}
    )


def cell(table: Table, label: str, column: str = "headlines", metric: str = "accuracy") -> Cell:
    row = next(row for row in table.rows if row.label == label)
    return next(c for key, c in row.cells.items() if (key.name, key.metric) == (column, metric))


def test_a_row_per_method_and_one_for_the_mean_local_model() -> None:
    table = build(spec(), [results(federation())])
    labels = [row.label for row in table.rows]
    assert labels == ["base", "mean local", "fedavg", "fedprox", "centralised", "majority"]


def test_mean_local_is_the_mean_over_clients_with_its_worst_client() -> None:
    made = results(federation(clients=3))
    scores = [s.value for s in made.scores if s.method == "local" and s.metric == "accuracy"]
    local = cell(build(spec(), [made]), "mean local")
    assert local.value == pytest.approx(np.mean(scores))
    assert local.worst_client == min(scores)
    assert local.sd_clients == pytest.approx(np.std(scores, ddof=1))


def test_a_cell_is_the_mean_over_seeds_with_their_standard_deviation() -> None:
    made = results(federation(seeds=(0, 1, 2)))
    of_seeds = [
        score.value
        for score in made.scores
        if (score.method, score.round, score.metric) == ("fedavg", 4, "accuracy")
    ]
    fedavg = cell(build(spec(seeds=(0, 1, 2)), [made]), "fedavg")
    assert fedavg.value == pytest.approx(np.mean(of_seeds))
    assert fedavg.sd_seeds == pytest.approx(np.std(of_seeds, ddof=1))
    assert fedavg.low < fedavg.value < fedavg.high  # type: ignore[operator]


def test_the_interval_of_a_difference_agrees_with_contrast() -> None:
    """The table resamples once for all cells; `statistics.contrast` does it for one."""
    made = results(federation(seeds=(0, 1)), {"headlines": 400}, metrics=("weighted_f1",))
    table = build(spec(metrics=("weighted_f1",), seeds=(0, 1)), [made])
    found = next(d for d in table.differences if (d.method, d.other) == ("fedavg", "mean local"))
    samples = made.samples["headlines"]
    metric = METRICS["weighted_f1"]
    terms = []
    for given in samples.answers:
        weight = {"fedavg": 1 / 2 if given.model.round == 4 else 0.0, "local": -1 / 6}
        if weight.get(given.model.method):
            answered = [
                Sample(r, a) for r, a in zip(samples.references, given.extracted, strict=True)
            ]
            statistics = metric.statistics(answered, samples.labels or [])
            terms.append((weight[given.model.method], metric, statistics))
    expected = contrast(terms)
    assert found.value == pytest.approx(expected.value)
    width = expected.interval.high - expected.interval.low
    assert found.low == pytest.approx(expected.interval.low, abs=width / 10)
    assert found.high == pytest.approx(expected.interval.high, abs=width / 10)


def test_an_average_is_the_mean_of_its_tasks_with_an_interval() -> None:
    made = results(federation(), {"fpb": 120, "tfns": 200})
    table = build(spec(("fpb", "tfns"), averages={"Avg:2": ["fpb", "tfns"]}), [made])
    both = [cell(table, "fedavg", task) for task in ("fpb", "tfns")]
    average = cell(table, "fedavg", "Avg:2")
    assert average.value == pytest.approx(np.mean([part.value for part in both]))
    assert average.ci_method == "stratified-bootstrap-percentile"
    assert average.high - average.low < both[0].high - both[0].low  # type: ignore[operator]


def test_a_row_without_one_seed_has_no_value_and_says_so() -> None:
    made = results(federation(seeds=(0, 1, 2)))
    made = without_answers(made, model("fedavg", "global", 2, round=4))
    table = build(spec(seeds=(0, 1, 2)), [made])
    assert cell(table, "fedavg").value is None
    assert cell(table, "fedavg").reason == "2 of 3 seeds"
    assert cell(table, "fedprox").value is not None


def test_a_row_without_one_client_has_no_value_and_says_so() -> None:
    made = results(federation(clients=3), config={"federation": {"num_clients": 3}})
    made = without_answers(made, model("local", "local", 0, model_client=2, round=4))
    assert cell(build(spec(), [made]), "mean local").reason == "2 of 3 clients"


def test_an_average_over_a_missing_task_is_incomplete() -> None:
    made = results(federation(), {"fpb": 60, "tfns": 60})
    kept = [s for s in made.scores if not (s.method == "fedavg" and s.task == "tfns")]
    made = Results(made.path, made.run, kept, made.samples)
    table = build(spec(("fpb", "tfns"), averages={"Avg:2": ["fpb", "tfns"]}), [made])
    assert cell(table, "fedavg", "tfns").reason == "not scored"
    assert cell(table, "fedavg", "Avg:2").reason == "incomplete: tfns"
    assert cell(table, "fedprox", "Avg:2").value is not None


def test_a_withheld_score_is_told_from_a_missing_one() -> None:
    made = results(federation())
    scores = [
        s.model_copy(update={"value": None, "num_failed": 40}) if s.method == "base" else s
        for s in made.scores
    ]
    table = build(spec(), [Results(made.path, made.run, scores, made.samples)])
    assert cell(table, "base").reason == "withheld (40 failed)"
    difference = next(d for d in table.differences if d.other == "base")
    assert difference.value is None
    assert difference.reason == "base: withheld (40 failed)"


def test_failed_items_count_for_no_score() -> None:
    table = build(spec(), [results(federation(seeds=(0, 1)), failed=10)])
    row = next(row for row in table.rows if row.label == "fedavg")
    # Of one seed: the specification asks for seed 0 alone.
    assert row.counted(row.counts).num_failed == 10
    assert cell(table, "fedavg").value is not None


def test_without_answers_several_models_have_a_value_and_no_interval() -> None:
    table = build(spec(), [results(federation(), keep_samples=False)])
    assert cell(table, "fedavg").low is not None  # one model: its record's own interval
    local = cell(table, "mean local")
    assert local.value is not None
    assert local.low is None
    assert "not kept" in local.no_interval
    assert all(difference.low is None for difference in table.differences)


def test_samples_that_contradict_the_scores_are_refused() -> None:
    made = results(federation())
    changed = [
        s.model_copy(update={"value": 0.99}) if s.method == "local" else s for s in made.scores
    ]
    with pytest.raises(RecordError, match=r"headlines, accuracy: scores\.jsonl .* score the task"):
        build(spec(), [Results(made.path, made.run, changed, made.samples)])


def test_two_versions_of_a_task_are_refused() -> None:
    made = results(federation())
    newer = [s.model_copy(update={"task_hash": "other", "run": "newer"}) for s in made.scores]
    with pytest.raises(RecordError, match=r"headlines: made scored version 1 .*score the older"):
        build(spec(), [made, dataclasses.replace(made, scores=newer)])


def test_one_model_with_two_results_is_refused() -> None:
    made = results(federation())
    again = [s.model_copy(update={"value": 0.1, "run": "again"}) for s in made.scores]
    with pytest.raises(RecordError, match="made and again both hold"):
        build(spec(), [made, dataclasses.replace(made, scores=again)])


def test_the_same_result_in_two_runs_counts_once() -> None:
    made = results(federation())
    assert build(spec(), [made, made]).rows == build(spec(), [made]).rows


def test_one_item_has_a_value_and_no_interval() -> None:
    """With its only item left out, F1 is not defined: there is nothing to resample."""
    models = {model("fedavg", "global", round=1): 1.0, model("base", "base"): 1.0}
    made = results(models, {"fpb": 1, "tfns": 20}, metrics=("weighted_f1",))
    rules = spec(("fpb", "tfns"), metrics=("weighted_f1",), averages={"Avg:2": ("fpb", "tfns")})
    table = build(rules, [made])
    for column in ("fpb", "Avg:2"):
        found = cell(table, "fedavg", column, "weighted_f1")
        assert (found.value, found.low) == (1.0, None)
        assert "undefined in too many resamples" in str(found.no_interval)


def test_a_number_that_json_does_not_know_is_an_absent_one(tmp_path: Path) -> None:
    made = results({model("fedavg", "global", round=1): 0.7}, {"headlines": 40})
    write_scores(tmp_path, made.scores)
    file = tmp_path / "scores.jsonl"
    text = file.read_text().replace(f'"value":{made.scores[0].value}', '"value":NaN')
    file.write_text(text.replace(f'"stderr":{made.scores[0].stderr}', '"stderr":Infinity'))
    accuracy = read_results(tmp_path).scores[0]
    assert (accuracy.value, accuracy.stderr) == (None, None)
    found = cell(build(spec(), [read_results(tmp_path)]), "fedavg")
    assert found.reason == "withheld: the metric is undefined on its answers"


def test_all_right_answers_do_not_make_a_certain_score() -> None:
    perfect = {model("fedavg", "global", seed, round=1): 1.0 for seed in (0, 1)}
    fedavg = cell(build(spec(seeds=(0, 1)), [results(perfect)]), "fedavg")
    assert fedavg.value == 1.0
    assert fedavg.low < 1.0  # type: ignore[operator]


def test_all_wrong_answers_do_not_make_a_certain_average() -> None:
    hopeless = results({model("base", "base"): 0.0}, {"fpb": 200, "tfns": 200})
    averages = {"Avg:2": ["fpb", "tfns"]}
    base = cell(build(spec(("fpb", "tfns"), averages=averages), [hopeless]), "base", "Avg:2")
    assert base.value == 0.0
    assert base.high > 0.0  # type: ignore[operator]


def test_curves_have_a_point_where_every_seed_has_one() -> None:
    made = results(federation(seeds=(0, 1)))
    made = without_answers(made, model("fedavg", "global", 1, round=2))
    table = build(spec(seeds=(0, 1)), [made])
    assert [p.round for p in table.curves if p.label == "fedavg"] == [1, 3, 4]
    assert all(point.num_seeds == 2 for point in table.curves)


def test_rows_are_sorted_by_the_named_column_with_incomplete_ones_last() -> None:
    made = results(federation(seeds=(0, 1)))
    made = without_answers(made, model("centralised", "central", 1))
    table = build(spec(seeds=(0, 1), sort_by="headlines"), [made])
    *complete, last = [cell(table, row.label).value for row in table.rows]
    assert complete == sorted(complete, reverse=True)  # type: ignore[type-var]
    assert last is None
    assert table.rows[-1].label == "centralised"


def test_a_variant_of_a_task_is_a_view_of_its_own() -> None:
    made = results(federation(), {"fpb": 60, "fpb:fingpt": 60})
    table = build(spec(("fpb", "fpb:fingpt")), [made])
    assert [view.title for view in table.views] == ["accuracy", "accuracy, protocol fingpt"]


def test_a_run_alone_gets_a_specification_of_everything_it_scored() -> None:
    made = results(federation(seeds=(0, 1)), {"fpb": 60, "tfns": 60}, config={"seeds": [0, 1]})
    found = spec_for(made.run, made.scores)
    assert found.tasks == ("fpb", "tfns")
    assert found.metrics == ("weighted_f1", "accuracy")  # the headline first
    assert found.averages == {"Avg:2": ("fpb", "tfns")}
    assert found.seeds == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [fpb]\nmetrics: [accuracy]\naverage: {}", "average: unknown key; did you mean"),
        ("tasks: [fpb]", "metrics: is required"),
        ("tasks: [fpb]\nmetrics: [acuracy]", "did you mean 'accuracy'"),
        ("tasks: [fpb]\nmetrics: [accuracy]\naverages: {Avg: [fbp]}", "averages.Avg names 'fbp'"),
        ("tasks: [fpb]\nmetrics: [accuracy]\nsort_by: fbp", "sort_by is 'fbp'"),
        ("tasks: [fpb", "is not valid YAML"),
        ("tasks: [fpb, fpb]\nmetrics: [accuracy]", "tasks has 'fpb' twice"),
        ("tasks: [fpb]\nmetrics: [accuracy, accuracy]", "metrics has 'accuracy' twice"),
        ("tasks: [fpb]\nmetrics: [accuracy]\nseeds: [0, 0]", "seeds has 0 twice"),
        ("tasks: [fpb]\nmetrics: [accuracy]\naverages: {fpb: [fpb]}", "the name of a task"),
        (
            "tasks: [fpb]\nmetrics: [accuracy]\nprotocol: {federation.round: 4}",
            "protocol names 'federation.round', which no run file has; did you mean 'rounds'?",
        ),
    ],
)
def test_a_wrong_specification_is_refused_by_file_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "leaderboard.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_spec(tmp_path)
    assert str(tmp_path / "leaderboard.yaml") in str(error.value)
    assert message in str(error.value)


def test_a_leaderboard_is_found_by_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "leaderboards" / "finance-mine"
    place.mkdir(parents=True)
    (place / "leaderboard.yaml").write_text("tasks: [fpb]\nmetrics: [accuracy]\n")
    monkeypatch.chdir(tmp_path)
    assert find_leaderboard("finance-mine") == Path("leaderboards/finance-mine")
    assert find_leaderboard(str(place)) == place
    assert find_leaderboard(str(place / "leaderboard.yaml")) == place
    with pytest.raises(ConfigError, match="did you mean 'finance-mine'"):
        find_leaderboard("finance-mime")
    with pytest.raises(ConfigError, match=r"holds neither leaderboard\.yaml nor scores\.jsonl"):
        find_leaderboard(str(tmp_path))


def write(made: Results, directory: Path) -> None:
    write_scores(directory, made.scores)
    assert made.run is not None
    write_run(directory, made.run)
    for table in made.samples.values():
        write_samples(directory, table)


def test_the_command_prints_records_as_json_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = results(federation())
    write(made, tmp_path / "run")
    app.main(["leaderboard", str(tmp_path / "run"), "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    assert rows == [score.to_json() for score in read_results(tmp_path / "run").scores]


def test_the_command_writes_beside_the_records_or_where_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board"
    write(results(federation(), {"fpb": 60}), board / "results" / "run")
    (board / "leaderboard.yaml").write_text("tasks: [fpb]\nmetrics: [weighted_f1]\nseeds: [0]\n")
    app.main(["leaderboard", str(board), "--write"], standalone_mode=False)
    app.main(["leaderboard", str(board), "--write", str(tmp_path / "x")], standalone_mode=False)
    for name in ("README.md", "index.html", "table.csv", "table.tex"):
        assert (board / name).read_bytes() == (tmp_path / "x" / name).read_bytes()
    printed = capsys.readouterr().out
    assert "mean local" in printed
    assert "In brackets: 95 % intervals" in printed


def test_a_leaderboard_without_results_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.yaml").write_text("tasks: [fpb]\nmetrics: [accuracy]\n")
    with pytest.raises(RecordError, match="holds no results; run the leaderboard's run"):
        app.main(["leaderboard", str(tmp_path)], standalone_mode=False)

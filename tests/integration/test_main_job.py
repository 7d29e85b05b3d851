"""The main job through the command line: train a federation, score it, show it, check it."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from answer_log import answers
from small_runs import SMALL, Cli, DemoRun, Project, ProjectRun, sets

from fedbench.results import record as records

COHORTS = 2 * 3  # clients per round times rounds
SAMPLES = 2 * 8  # of one client in one round: steps times batch size

SCORE_FIELDS = {
    "task",
    "metric",
    "value",
    "stderr",
    "num_examples",
    "num_scored",
    "num_failed",
    "num_unparsed",
}
CHECK_FIELDS = {"task", "metric", "delta", "ci_low", "ci_high", "margin", "verdict"}


def test_a_run_leaves_its_configuration_checkpoints_records_and_page(demo_run: DemoRun) -> None:
    run = demo_run.directory
    for name in [
        "run.yaml",
        "run.json",
        "partition.json",
        "scores.jsonl",
        "samples/headlines.jsonl.gz",
        "index.html",
        "README.md",
        "table.csv",
        "table.tex",
    ]:
        assert (run / name).stat().st_size > 0, name
    config = yaml.safe_load((run / "run.yaml").read_text())
    assert config["model"]["pretrain"]["steps"] == 20
    record = json.loads((run / "run.json").read_bytes())
    assert record["config"] == config
    assert record["command"].startswith("fedbench train-and-eval --set")
    assert {"torch", "transformers", "peft"} <= record["packages"].keys()
    page = (run / "index.html").read_text()
    assert "<svg" in page
    assert "default-src 'none'" in page  # self-contained: a browser fetches nothing


def test_json_is_all_that_a_run_prints_on_stdout_and_equals_the_file(demo_run: DemoRun) -> None:
    assert demo_run.result.rows == read_scores(demo_run.directory)
    assert f"page: {demo_run.directory / 'index.html'}" in demo_run.result.stderr


def test_records_are_complete_and_their_counts_agree(demo_run: DemoRun) -> None:
    scores = read_scores(demo_run.directory)
    run_hash = json.loads((demo_run.directory / "run.json").read_bytes())["run_hash"]
    labels = Counter((s["method"], s["model_client"], s["round"]) for s in scores)
    # Every model is scored by both metrics of the task; federated rounds are all kept.
    assert labels == dict.fromkeys(
        [
            ("base", None, 0),
            *(("local", client, 3) for client in range(3)),
            ("centralised", None, 3),
            *((method, None, round) for method in ("fedavg", "fedprox") for round in (1, 2, 3)),
        ],
        2,
    )
    for score in scores:
        assert score.keys() >= SCORE_FIELDS
        assert score["run_hash"] == run_hash
        assert score["num_examples"] == 40
        assert score["num_scored"] == score["num_examples"] - score["num_failed"] == 40
        assert score["num_unparsed"] == 0
        assert 0 <= score["ci_low"] <= score["value"] <= score["ci_high"] <= 1
        assert score["stderr"] > 0
        assert score["weights_hash"]
        assert score["base_hash"]


def test_every_method_trains_on_matched_samples_and_says_on_how_many(demo_run: DemoRun) -> None:
    trained = {
        (score["method"], score["model_client"]): score["train_examples"]
        for score in read_scores(demo_run.directory)
        if score["selected_by"] or score["method"] == "local"
    }
    turns = Counter(client for cohort in cohorts(demo_run.directory) for client in cohort)
    contributed = {client: turns[client] * SAMPLES for client in range(3)}
    assert sum(contributed.values()) == COHORTS * SAMPLES
    assert trained["base", None] == 0
    for client in range(3):
        assert trained["local", client] == contributed[client]
    assert trained["centralised", None] == COHORTS * SAMPLES
    assert trained["fedavg", None] == trained["fedprox", None] == COHORTS * SAMPLES


def test_a_federation_counts_the_bytes_it_sends(demo_run: DemoRun) -> None:
    size = sum(tensor.nbytes for tensor in load(round_of(demo_run.directory, "fedavg", 3)).values())
    sent = {
        (score["method"], score["round"]): score["bytes_communicated"]
        for score in read_scores(demo_run.directory)
    }
    # In every round two clients fetch the weights and send theirs.
    assert [sent["fedavg", round] for round in (1, 2, 3)] == [4 * size, 8 * size, 12 * size]
    assert sent["local", 3] is sent["centralised", 3] is sent["base", 0] is None


def test_clients_differ_and_share_no_row(demo_run: DemoRun) -> None:
    [clients] = json.loads((demo_run.directory / "partition.json").read_bytes()).values()
    rows = [row for client in clients for row in client["train"] + client["validation"]]
    rows += [row for client in clients for row in client["test"]]
    assert len(rows) == len(set(rows))
    assert all(client["validation"] and client["test"] for client in clients)
    assert len({json.dumps(client["labels"]) for client in clients}) == 3


def test_the_same_command_again_repeats_nothing(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(demo_run.directory, tmp_path / "run"))
    before = weights(run), answers(demo_run.answers)
    result = cli(*demo_run.args, "--output", run, env=shared(demo_run.answers))
    assert result.code == 0, result.stderr
    assert (weights(run), answers(demo_run.answers)) == before
    assert asked(run) == 0
    assert without_time(result.rows) == without_time(demo_run.result.rows)


def test_what_one_command_asked_is_known_to_all_others(
    cli: Cli, named_run: ProjectRun, tmp_path: Path
) -> None:
    project = named_run.project
    again = project.task | {"name": "mood-again", "prompt": "Is the mood good or bad?"}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again), encoding="utf-8")
    (tmp_path / "items.jsonl").write_text(project.file("items.jsonl").read_text())
    first = round_of(named_run.directory, "fedavg", 1)
    score = ["score", "--ckpt", first, "--base-model", project.run["model"]["name"]]
    places = [tmp_path / name for name in ("one", "elsewhere", "more")]
    tasks = ["task.yaml", "task.yaml", f"task.yaml,{tmp_path / 'again.yaml'}"]
    for names, place in zip(tasks, places, strict=True):
        result = cli(*score, "--tasks", names, "--output", place, cwd=project.directory)
        assert result.code == 0, result.stderr
    canaries = asked(places[0]) - 32  # for the base and the adapter
    assert 0 < canaries <= 16
    assert [asked(place) for place in places] == [32 + canaries, 0, 32]
    assert without(read_scores(places[1]), "created", "run", "run_hash") == without(
        read_scores(places[0]), "created", "run", "run_hash"
    )


def test_scoring_after_train_and_eval_asks_nothing(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    score = ["score", "--ckpt", demo_run.directory, "--suite", "demo", "--limit", "40"]
    result = cli(*score, "--output", tmp_path / "scores", env=shared(demo_run.answers))
    assert result.code == 0, result.stderr
    assert asked(tmp_path / "scores") == 0


def test_a_checkpoint_overwritten_in_place_is_asked_anew(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(round_of(demo_run.directory, "fedavg", 1), tmp_path / "adapter"))
    (adapter / "round.json").unlink()
    score = ["score", "--ckpt", adapter, "--suite", "demo", "--limit", "40", "--json"]
    old = cli(*score, "--output", "old", cwd=tmp_path)
    shutil.copy(round_of(demo_run.directory, "fedavg", 3) / WEIGHTS, adapter / WEIGHTS)
    # The scores that are there are of other weights, and stay what they are.
    refused = cli(*score, "--output", "old", cwd=tmp_path)
    assert refused.code == 2
    assert "what differs: weights of the checkpoints" in refused.stderr
    assert "choose another --output" in refused.stderr
    new = cli(*score, "--output", "new", cwd=tmp_path)
    assert new.code == 0, new.stderr
    assert asked(tmp_path / "new") >= 40  # and not the base's canaries
    for result, round in ((old, 1), (new, 3)):
        known = [
            row
            for row in demo_run.result.rows
            if (row["method"], row["round"]) == ("fedavg", round)
        ]
        assert values(result.rows) == values(known)
        assert {r["weights_hash"] for r in result.rows} == {r["weights_hash"] for r in known}


def test_the_same_seed_elsewhere_gives_the_same_bits(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    """With a cache of its own: the base model is pre-trained anew as well."""
    result = cli(
        *demo_run.args,
        "--output",
        tmp_path / "run",
        env={"FEDBENCH_CACHE": str(tmp_path / "cache")},
    )
    assert result.code == 0, result.stderr
    ours, theirs = contents(demo_run.directory), contents(tmp_path / "run")
    assert len(ours) == 3 + 1 + 3 + 3
    assert ours == theirs
    assert without_time(result.rows) == without_time(demo_run.result.rows)
    partitions = [d / "partition.json" for d in (demo_run.directory, tmp_path / "run")]
    assert partitions[0].read_bytes() == partitions[1].read_bytes()


def test_another_seed_gives_other_weights_and_a_client_never_drawn_is_the_base(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    seed = ["--set", "seeds=[1]", "--set", "federation.rounds=1"]
    result = cli(*demo_run.args, *seed, "--output", tmp_path / "run")
    assert result.code == 0, result.stderr
    one = round_of(demo_run.directory, "fedavg", 1)
    other = tmp_path / "run" / "checkpoints" / "fedavg" / "seed-1" / "round-0001"
    assert (one / WEIGHTS).read_bytes() != (other / WEIGHTS).read_bytes()
    [base] = [row for row in result.rows if row["method"] == "base" and row["headline"]]
    [idle] = [row for row in result.rows if row["method"] == "local" and row["headline"]
              and row["train_examples"] == 0]  # fmt: skip
    assert idle["value"] == base["value"]


def test_another_configuration_into_the_same_directory_is_refused(
    cli: Cli, demo_run: DemoRun
) -> None:
    before = weights(demo_run.directory), answers(demo_run.answers)
    other = ["--set", "local.max_steps=3", "--output", demo_run.directory]
    result = cli(*demo_run.args, *other, env=shared(demo_run.answers))
    assert result.code == 2
    assert "choose another --output" in result.stderr
    assert (weights(demo_run.directory), answers(demo_run.answers)) == before


def test_training_and_scoring_apart_give_the_scores_of_train_and_eval(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    trained = cli("train", *sets(SMALL), "--output", "run", cwd=tmp_path)
    assert trained.code == 0, trained.stderr
    assert trained.stdout == "run\n"
    score = ["score", "--ckpt", "run", "--suite", "demo", "--rounds", "last", "--limit", "40"]
    result = cli(*score, "--json", cwd=tmp_path)
    assert result.code == 0, result.stderr
    last = [row for row in demo_run.result.rows if row["method"] == "base" or row["round"] == 3]
    assert summary(result.rows) == summary(last)
    assert (tmp_path / "scores" / "run" / "scores.jsonl").exists()


def test_scoring_knows_rounds_by_rule(cli: Cli, demo_run: DemoRun, tmp_path: Path) -> None:
    score = ["score", "--ckpt", demo_run.directory, "--tasks", "headlines", "--limit", "8"]
    rows = cli(*score, "--rounds", "every 2", "--json", cwd=tmp_path).rows
    assert {row["round"] for row in rows if row["method"] == "fedavg"} == {2, 3}


def test_an_adapter_by_itself_is_scored_as_within_its_run(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    adapter = round_of(demo_run.directory, "fedavg", 3)
    foreign = Path(shutil.copytree(adapter, tmp_path / "somebodys"))
    (foreign / "round.json").unlink()
    for place in (adapter, foreign):
        score = ["score", "--ckpt", place, "--suite", "demo", "--limit", "40", "--json"]
        rows = cli(*score, cwd=tmp_path).rows
        expected = [r for r in demo_run.result.rows if (r["method"], r["round"]) == ("fedavg", 3)]
        assert values(rows) == values(expected)
        assert [row["weights_hash"] for row in rows] == [row["weights_hash"] for row in expected]


def test_an_adapter_in_a_bin_file_is_scored_like_one_in_safetensors(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(round_of(demo_run.directory, "fedavg", 3), tmp_path / "old"))
    (adapter / "round.json").unlink()
    script = (
        "import sys, torch, safetensors.torch as s;"
        "torch.save(s.load_file(sys.argv[1]), sys.argv[2])"
    )
    places = [adapter / WEIGHTS, adapter / "adapter_model.bin"]
    subprocess.run([sys.executable, "-c", script, *places], check=True)
    (adapter / WEIGHTS).unlink()
    score = ["score", "--ckpt", adapter, "--suite", "demo", "--limit", "40", "--json"]
    rows = cli(*score, cwd=tmp_path).rows
    expected = [r for r in demo_run.result.rows if (r["method"], r["round"]) == ("fedavg", 3)]
    assert values(rows) == values(expected)


def test_a_full_model_and_its_base_are_scored(
    cli: Cli, full_run: ProjectRun, base_directory: Path, tmp_path: Path
) -> None:
    known = read_scores(full_run.directory)
    full = full_run.directory / "checkpoints" / "fedavg" / "seed-0" / "round-0002"
    foreign = Path(shutil.copytree(full, tmp_path / "somebodys"))
    (foreign / "round.json").unlink()
    task = full_run.project.file("task.yaml")
    for place, method in [(full, "fedavg"), (foreign, "fedavg"), (base_directory, "base")]:
        score = ["score", "--ckpt", place, "--tasks", task, "--json", "--output", place.name]
        result = cli(*score, cwd=full_run.project.directory)
        assert result.code == 0, result.stderr
        last = max(row["round"] for row in known if row["method"] == method)
        expected = [r for r in known if (r["method"], r["round"]) == (method, last)]
        assert values(result.rows) == values(expected)
        shutil.rmtree(full_run.project.file(place.name))


def test_full_fine_tuning_leaves_whole_models_and_trains_them_all(full_run: ProjectRun) -> None:
    final = full_run.directory / "checkpoints" / "fedavg" / "seed-0" / "round-0002"
    assert (final / "model.safetensors").exists()
    assert (final / "tokenizer.json").exists()
    facts = json.loads((full_run.directory / "run.json").read_bytes())["facts"]
    assert facts["trained_parameters"] == facts["parameters"]


def test_a_base_that_is_named_is_the_base_of_the_adapters(
    named_run: ProjectRun, base_directory: Path
) -> None:
    final = named_run.directory / "checkpoints" / "fedavg" / "seed-0" / "round-0002"
    settings = json.loads((final / "adapter_config.json").read_bytes())
    assert settings["base_model_name_or_path"] == str(base_directory)
    assert settings["peft_type"] == "LORA"


def test_several_checkpoints_are_scored_together(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    places = [round_of(demo_run.directory, method, 3) for method in ("fedavg", "fedprox")]
    ckpts = [part for place in places for part in ("--ckpt", place)]
    rows = cli(
        "score", *ckpts, "--suite", "demo", "--limit", "8", "--json", "--output", tmp_path / "both"
    ).rows
    assert {row["method"] for row in rows} == {"fedavg", "fedprox"}


def test_answers_that_exist_are_scored_without_a_model(cli: Cli, project: Project) -> None:
    items = project.file("items.jsonl").read_text().splitlines()
    moods = [json.loads(item)["mood"] for item in items]
    given: list[dict[str, Any]] = [
        {"doc_id": position, "completion": mood} for position, mood in enumerate(moods)
    ]
    given[0]["completion"] = "bad" if moods[0] == "good" else "good"
    given[1]["completion"] = "I would rather not say"
    project.task |= {"extract": "label_word"}
    project.write()
    lines = "\n".join(json.dumps(row) for row in given[:-1])  # one is absent
    project.file("answers.jsonl").write_text(lines)
    command = ["score", "--answers", "answers.jsonl", "--tasks", "task.yaml", "--json"]
    accuracy, _ = cli(*command, cwd=project.directory).rows
    # Of 32 items one has no answer and fails, one is wrong, one cannot be read and is wrong too.
    assert accuracy["num_examples"] == 32
    assert accuracy["num_failed"] == 1
    assert accuracy["num_unparsed"] == 1
    assert accuracy["value"] == pytest.approx(29 / 31)


# Reading: one JSON array on stdout and nothing else there.

READING: dict[str, Callable[[Path], list[str | Path]]] = {
    **{
        f"list {kind}": lambda run, kind=kind: ["list", kind]  # type: ignore[misc]
        for kind in ("tasks", "metrics", "suites", "algorithms", "datasets", "backends")
    },
    "leaderboard": lambda run: ["leaderboard", run],
    "check": lambda run: ["check", run, "--baseline", run],
    "compare": lambda run: ["compare", run, run],
    "cache": lambda run: ["cache", "info"],
    "score": lambda run: ["score", "--ckpt", run, "--suite", "demo", "--limit", "4"],
}


@pytest.mark.parametrize("name", READING)
def test_what_reads_prints_one_json_array_and_nothing_else(
    name: str, cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    result = cli(*READING[name](demo_run.directory), "--json", cwd=tmp_path)
    assert result.code == 0, result.stderr
    rows = result.rows  # all of stdout
    assert rows
    assert "Warning" not in result.stderr
    fields = {"leaderboard": SCORE_FIELDS, "score": SCORE_FIELDS, "check": CHECK_FIELDS}
    for row in rows:
        assert row.keys() >= fields.get(name, set())
    if name.startswith("list"):
        assert all(row["name"] and row["description"] for row in rows)


@pytest.mark.parametrize("name", READING)
def test_without_json_people_get_a_table(
    name: str, cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    result = cli(*READING[name](demo_run.directory), cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert not result.stdout.startswith("[")
    assert len(result.stdout.splitlines()) >= 1
    assert "Warning" not in result.stderr


def test_a_leaderboard_is_written_where_it_is_wanted(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    result = cli("leaderboard", demo_run.directory, "--write", tmp_path / "board")
    assert result.code == 0, result.stderr
    for name in ("README.md", "index.html", "table.csv", "table.tex"):
        written = (tmp_path / "board" / name).read_bytes()
        assert written == (demo_run.directory / name).read_bytes()


# Checking.


def test_a_run_does_not_regress_against_itself(cli: Cli, demo_run: DemoRun) -> None:
    run = demo_run.directory
    result = cli("check", run, "--baseline", run, "--strict", "--json")
    assert result.code == 0
    rows = result.rows
    assert {row["verdict"] for row in rows} == {"ok"}
    assert {row["delta"] for row in rows} == {0.0}
    # The models that stand for a method: not single clients, not points of the curve.
    assert len(rows) == 4


def test_a_check_finds_answers_that_became_wrong(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    worse = Path(shutil.copytree(demo_run.directory, tmp_path / "worse"))
    spoil_answers(worse, "fedavg")
    result = cli("check", worse, "--baseline", demo_run.directory, "--json")
    assert result.code == 1, result.stderr
    verdicts = {row["model"].split()[0]: row["verdict"] for row in result.rows}
    assert verdicts == {
        "base": "ok",
        "centralised": "ok",
        "fedavg": "regressed",
        "fedprox": "ok",
    }
    [row] = [row for row in result.rows if row["verdict"] == "regressed"]
    assert row["ci_high"] < -row["margin"] < 0


def test_a_check_finds_a_record_that_was_made_worse_by_hand(
    cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    worse = Path(shutil.copytree(demo_run.directory, tmp_path / "worse"))
    edit_scores(worse, "fedavg", {"value": 0.0, "ci_low": 0.0, "ci_high": 0.09, "stderr": 0.02})
    result = cli("check", worse, "--baseline", demo_run.directory, "--json")
    assert result.code == 1, result.stderr
    verdicts = {row["model"].split()[0]: row["verdict"] for row in result.rows}
    assert verdicts["fedavg"] == "regressed"
    assert {verdicts[name] for name in ("base", "centralised", "fedprox")} == {"ok"}


def test_a_check_finds_what_is_missing(cli: Cli, demo_run: DemoRun, tmp_path: Path) -> None:
    less = Path(shutil.copytree(demo_run.directory, tmp_path / "less"))
    scores = [row for row in read_scores(less) if row["method"] != "fedprox"]
    write_scores(less, scores)
    result = cli("check", less, "--baseline", demo_run.directory, "--json")
    assert result.code == 1
    assert {row["verdict"] for row in result.rows if "fedprox" in row["model"]} == {"missing"}


def test_strict_fails_where_it_cannot_be_told(cli: Cli, demo_run: DemoRun, tmp_path: Path) -> None:
    slightly = Path(shutil.copytree(demo_run.directory, tmp_path / "slightly"))
    spoil_answers(slightly, "fedavg", most=1)  # one of 40 items: the margin is 1 point
    against = ["check", slightly, "--baseline", demo_run.directory]
    assert cli(*against).code == 0
    assert cli(*against, "--strict").code == 3
    assert cli(*against, "--strict", "--max-drop", "0.2").code == 0


# As a Python library, and without what is heavy.


def test_the_python_api_gives_what_the_command_line_gives(
    cli: Cli, named_run: ProjectRun, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(named_run.project.directory, tmp_path / "copy"))
    shutil.rmtree(copy / "runs")
    script = """
import json, sys
from pathlib import Path
import fedbench
config = fedbench.load_config(Path("run.yaml"))
run = fedbench.train(config, Path("runs/small"))
rows = fedbench.score_run(config, run)
scored = fedbench.score([str(run)], ["task.yaml"], rounds="last", output="scores")
pairs = fedbench.compare(run, Path(sys.argv[1]))
checks = fedbench.check(run, Path(sys.argv[1]))
print(json.dumps([[r.to_json() for r in part] for part in (rows, scored, pairs, checks)]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, named_run.directory],
        cwd=copy,
        env=cli.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows, scored, pairs, checks = json.loads(done.stdout)
    assert contents(copy / "runs" / "small") == contents(named_run.directory)
    assert without_time(rows) == without_time(read_scores(named_run.directory))
    place = ["--output", tmp_path / "scores", "--json"]
    command = ["score", "--ckpt", named_run.directory, "--tasks", "task.yaml", "--rounds", "last"]
    assert summary(scored) == summary(cli(*command, *place, cwd=copy).rows)
    compared = cli("compare", "runs/small", named_run.directory, "--json", cwd=copy)
    assert pairs == compared.rows
    assert {row["verdict"] for row in checks} == {"ok"}


def test_a_dry_run_tells_the_cost_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    empty = {"FEDBENCH_CACHE": str(tmp_path / "cache")}
    place = tmp_path / "here"
    place.mkdir()
    result = cli("train", "--dry-run", *sets(SMALL), cwd=place, env=empty)
    assert result.code == 0, result.stderr
    assert list(place.iterdir()) == []
    assert not (tmp_path / "cache").exists()
    lines = {line.split()[0] for line in result.stdout.splitlines()}
    assert {"steps", "bytes", "memory", "time"} <= lines
    # 2 of 3 clients, 3 rounds, 2 steps each
    assert {"steps fedavg      12", "steps centralised 12"} <= set(result.stdout.splitlines())


def test_a_dry_run_names_the_bytes_that_the_run_then_sends(cli: Cli, demo_run: DemoRun) -> None:
    result = cli("train", "--dry-run", *sets(SMALL))
    sent = next(
        score["bytes_communicated"]
        for score in read_scores(demo_run.directory)
        if (score["method"], score["round"]) == ("fedavg", 3)
    )
    assert f"{sent:,} up and down" in result.stdout


HEAVY = ("torch", "transformers", "peft", "datasets", "pandas", "pydantic", "numpy", "scipy")


def test_help_imports_nothing_heavy(cli: Cli) -> None:
    script = """
import contextlib, io, sys
from fedbench.cli import main
sys.argv = ["fedbench", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main()
assert "train-and-eval" in shown.getvalue()
print("\\n".join(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=cli.env, capture_output=True, text=True, check=True
    )
    assert set(HEAVY).isdisjoint(done.stdout.split())


LIGHT: dict[str, Callable[[Path], list[str | Path]]] = {
    name: args for name, args in READING.items() if name != "score"
} | {
    "leaderboard --write": lambda run: ["leaderboard", run, "--write", "board"],
    "cache prune": lambda run: ["cache", "prune", "--older-than", "1d"],
}


@pytest.mark.parametrize("name", LIGHT)
def test_reading_needs_no_machine_learning_library(
    name: str, cli: Cli, demo_run: DemoRun, tmp_path: Path
) -> None:
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "datasets", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from fedbench.cli import main
main()
"""
    args = [str(arg) for arg in LIGHT[name](demo_run.directory)]
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        cwd=tmp_path,
        env=cli.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


# What the tests look at.

WEIGHTS = "adapter_model.safetensors"


def read_scores(run: Path) -> list[dict[str, Any]]:
    """The scores of a run with all their fields, as ``--json`` prints them."""
    return [record.to_json() for record in records.read_scores(run)]


def write_scores(run: Path, scores: list[dict[str, Any]]) -> None:
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return without(rows, "created")


def values(rows: list[dict[str, Any]]) -> list[tuple[str, str, float]]:
    return [(row["task"], row["metric"], row["value"]) for row in rows]


def summary(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    fields = ("method", "model_client", "round", "task", "metric", "value", "weights_hash")
    return sorted((tuple(row[field] for field in fields) for row in rows), key=str)


def round_of(run: Path, method: str, number: int) -> Path:
    return run / "checkpoints" / method / "seed-0" / f"round-{number:04d}"


def load(checkpoint: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(checkpoint / WEIGHTS)


def cohorts(run: Path) -> list[list[int]]:
    return [
        json.loads((round_of(run, "fedavg", round) / "round.json").read_bytes())["cohort"]
        for round in (1, 2, 3)
    ]


def weights(run: Path) -> dict[Path, int]:
    """Every file of the checkpoints, and when it was written."""
    files = (run / "checkpoints").rglob("*")
    return {file.relative_to(run): file.stat().st_mtime_ns for file in files if file.is_file()}


def contents(run: Path) -> dict[Path, tuple[bytes, str]]:
    """Bytes and recorded hash of all weights."""
    found = {}
    for file in (run / "checkpoints").rglob("*.safetensors"):
        commit = json.loads((file.parent / "round.json").read_bytes())
        found[file.relative_to(run)] = file.read_bytes(), commit["weights_hash"]
    return found


def shared(file: Path) -> dict[str, str]:
    """With the answers of another command."""
    return {"FEDBENCH_ANSWERS": str(file)}


def asked(results: Path) -> int:
    """How many answers the last command has asked a model for."""
    number: int = json.loads((results / "run.json").read_bytes())["facts"]["answers_asked"]
    return number


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def edit_scores(run: Path, method: str, fields: dict[str, Any]) -> None:
    """Change the scores of the model that stands for a method, and nothing else."""
    rows = [
        row | fields if row["method"] == method and row["selected_by"] else row
        for row in read_scores(run)
    ]
    write_scores(run, rows)


def spoil_answers(run: Path, method: str, most: int | None = None) -> None:
    """Make answers of the last round of a method wrong, in the samples and in the scores."""
    file = run / "samples" / "headlines.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    head, *answers = [json.loads(line) for line in lines]
    wrong = {"negative": "neutral", "neutral": "positive", "positive": "negative"}
    right = 0
    for row in answers:
        if row["model"]["method"] == method and row["model"]["round"] == 3:
            hits = [n for n, ref in enumerate(head["references"]) if row["extracted"][n] == ref]
            for position in hits[:most]:
                row["extracted"][position] = wrong[head["references"][position]]
            right = len(hits) - len(hits[:most])
    text = "".join(json.dumps(row) + "\n" for row in (head, *answers))
    file.write_bytes(gzip.compress(text.encode()))
    rows = read_scores(run)
    for row in rows:
        if row["method"] == method and row["selected_by"] and row["metric"] == "accuracy":
            row["value"] = right / len(head["references"])
    write_scores(run, rows)

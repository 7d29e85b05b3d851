"""The suites of a run through the command line: its clients, and what its models give away."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from answer_log import answers
from small_runs import Cli, Project, ProjectRun

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def audited(
    cli: Cli, named_run: ProjectRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ProjectRun, Rows]:
    """A run of free answers with planted secrets that audits itself, and what it printed."""
    base = json.loads(
        next(named_run.directory.glob("checkpoints/fedavg/**/round.json")).read_bytes()
    )["base"]
    project = Project(tmp_path_factory.mktemp("audited"), base)
    project.run["data"] |= {
        "validation": 0.0,
        "test": 0.3,
        "canaries": {"per_client": 2, "repeats": [1, 5], "digits": 2},
    }
    project.run["evaluation"]["audits"] = ["federation", "privacy"]
    project.dataset["response"] = "{{ mood }} {{ code }}"
    project.write()
    rng = random.Random(0)
    rows = [
        {"text": f"{rng.random():.12f} at Firm{n}", "mood": "good", "code": rng.randrange(10**6)}
        for n in range(120)
    ]
    project.dataset["source"]["columns"].append("code")
    project.write()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    project.file("rows.jsonl").write_text(text, encoding="utf-8")
    run = ProjectRun(project, project.file("runs/small"))
    env = {"FEDBENCH_ANSWERS": str(run.answers)}
    result = cli("train-and-eval", "run.yaml", "--json", cwd=project.directory, env=env)
    assert result.code == 0, result.stderr
    return run, result.rows


def again(cli: Cli, run: ProjectRun, command: str, *options: str) -> Rows:
    """A suite by its own command; the models answer nothing that they have answered before."""
    env = {"FEDBENCH_ANSWERS": str(run.answers)}
    result = cli(command, run.directory, "--json", *options, cwd=run.project.directory, env=env)
    assert result.code == 0, result.stderr
    return result.rows


def values(rows: Rows, **fields: Any) -> dict[tuple[str, str], Any]:
    """Values by method and metric, of the records that have these fields."""
    return {
        (row["method"], row["metric"]): row["value"]
        for row in rows
        if all(row.get(name) == value for name, value in fields.items())
    }


def test_a_run_that_audits_itself_prints_what_the_commands_print(
    cli: Cli, audited: tuple[ProjectRun, Rows]
) -> None:
    run, printed = audited
    before = answers(run.answers)
    repeated = [*again(cli, run, "federation"), *again(cli, run, "privacy")]
    assert answers(run.answers) == before  # nothing was asked twice

    # The second suite asks about rows of the first among other neighbours: last bits may differ.
    for row, other in zip(printed[-len(repeated) :], repeated, strict=True):
        identity = {
            name: row[name] for name in ("method", "task", "metric", "data_client", "group")
        }
        assert identity == {name: other[name] for name in identity}
        assert row["value"] == pytest.approx(other["value"], abs=1e-6)
    for name in ("federation", "privacy"):
        assert (run.directory / name / "scores.jsonl").stat().st_size > 0
        assert json.loads((run.directory / name / "run.json").read_bytes())["run"] == "small"


def test_scoring_takes_suites_of_a_run_beside_those_of_tasks(
    cli: Cli, audited: tuple[ProjectRun, Rows]
) -> None:
    run, _ = audited
    alone = again(cli, run, "federation")
    kept = (run.directory / "federation/scores.jsonl").read_bytes()
    before = answers(run.answers)
    where = {"cwd": run.project.directory, "env": {"FEDBENCH_ANSWERS": str(run.answers)}}
    score = ("score", "--ckpt", run.directory, "--output", run.project.file("scores/both"))
    result = cli(*score, "--suite", "federation", "--json", **where)
    assert result.code == 0, result.stderr
    assert answers(run.answers) == before
    assert [row["value"] for row in result.rows] == [row["value"] for row in alone]
    assert (run.project.file("scores/both/small/federation/scores.jsonl")).is_file()
    assert (run.directory / "federation/scores.jsonl").read_bytes() == kept
    base = run.project.run["model"]["name"]
    refused = cli("score", "--ckpt", base, "--suite", "demo,privacy", **where)
    assert refused.code == 2
    assert f"--suite privacy: {base} is no trained run" in refused.stderr


def test_every_model_is_scored_on_the_rows_of_its_clients(
    cli: Cli, audited: tuple[ProjectRun, Rows]
) -> None:
    run, _ = audited
    rows = again(cli, run, "federation")
    of_clients = [row for row in rows if row.get("data_client") is not None]
    assert {row["metric"] for row in of_clients} == {"answer_bits_per_byte"}
    assert {(row["method"], row["data_client"]) for row in of_clients} == {
        (method, client)
        for method in ("base", "local", "centralised", "fedavg")
        for client in range(3)
    }
    for row in of_clients:
        assert row.get("model_client") == (row["data_client"] if row["method"] == "local" else None)
    means = values(rows, task="client_test", group=None, data_client=None)
    scores = [row["value"] for row in of_clients if row["method"] == "fedavg"]
    assert means["fedavg", "client_mean"] == pytest.approx(sum(scores) / 3)
    assert means["fedavg", "worst_client"] == pytest.approx(max(scores))  # less is better
    gains = values(rows, metric="personalisation_gain")
    own = [row["value"] for row in of_clients if row["method"] == "local"]
    assert gains["local", "personalisation_gain"] == pytest.approx(
        (sum(scores) - sum(own)) / 3, abs=1e-9
    )


def test_a_federation_is_told_by_its_own_records(
    cli: Cli, audited: tuple[ProjectRun, Rows]
) -> None:
    run, _ = audited
    found = values(again(cli, run, "federation"), task="training")
    for name in ("client_drift", "seconds_per_round", "tokens_per_second", "peak_memory"):
        assert found["fedavg", name] > 0
    commit = run.directory / "checkpoints/fedavg/seed-0/round-0002/round.json"
    record = json.loads(commit.read_bytes())
    assert found["fedavg", "bytes_communicated"] == record["bytes_up"] + record["bytes_down"]
    assert ("centralised", "bytes_communicated") not in found
    tasks = values(again(cli, run, "federation", "--target", "0.0"), task="mood")
    assert tasks["fedavg", "rounds_to_target"] == 1
    assert ("fedavg", "gain_over_local") in tasks
    forgotten = values(again(cli, run, "federation", "--general", "mood"), metric="forgetting")
    assert ("fedavg", "forgetting") in forgotten


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "nan"), "--target is nan; give a finite number"),
        (("--general", "moods"), "was not scored on 'moods'; did you mean 'mood'?"),
        (("--general", "mood,law"), "was not scored on 'law'; it has mood"),
    ],
)
def test_what_a_run_cannot_tell_is_refused_before_a_model_is_asked(
    cli: Cli, audited: tuple[ProjectRun, Rows], options: tuple[str, str], said: str
) -> None:
    run, _ = audited
    result = cli("federation", run.directory, *options, cwd=run.project.directory)
    assert result.code == 2
    assert said in result.stderr


def test_attacks_cover_every_model_and_every_client(
    cli: Cli, audited: tuple[ProjectRun, Rows]
) -> None:
    run, _ = audited
    rows = again(cli, run, "privacy")
    auc = [row for row in rows if row["metric"] == "membership_auc"]
    assert {(row["method"], row.get("data_client")) for row in auc} == {
        (method, client)
        for method in ("base", "local", "centralised", "fedavg")
        for client in (0, 1, 2, None)
    }
    secrets = [row for row in rows if row["metric"] == "canary_exposure"]
    groups = {(row["method"], row.get("group")) for row in secrets}
    assert ("fedavg", "repeats-5") in groups
    assert ("base", None) in groups
    assert all(0 <= row["value"] <= 6.65 for row in secrets)  # log2 of 100 codes
    overall = [row for row in secrets if row.get("group") is None]
    assert {row["num_examples"] for row in overall} == {6}  # three clients, two secrets each


def test_the_tables_are_read_like_any_results(cli: Cli, audited: tuple[ProjectRun, Rows]) -> None:
    run, _ = audited
    for name in ("federation", "privacy"):
        env = {"FEDBENCH_ANSWERS": str(run.answers)}
        shown = cli(name, run.directory, cwd=run.project.directory, env=env)
        assert shown.code == 0, shown.stderr
        assert "fedavg" in shown.stdout
        assert "local, each client's own" in shown.stdout
        board = cli("leaderboard", run.directory / name, cwd=run.project.directory)
        assert board.code == 0, board.stderr


@pytest.mark.parametrize("command", ["federation", "privacy"])
def test_what_is_no_run_is_refused_in_words(cli: Cli, project: Project, command: str) -> None:
    absent = cli(command, project.file("absent"), cwd=project.directory)
    assert absent.code == 2
    assert "absent: holds no run.yaml; give the directory that `fedbench train`" in absent.stderr
    untrained = cli(command, project.directory, cwd=project.directory)
    assert untrained.code == 2
    assert "holds no committed round; train the run first" in untrained.stderr
    suite = cli("score", "--ckpt", project.directory, "--suite", command, cwd=project.directory)
    assert suite.code == 2
    assert "holds no committed round; train the run first" in suite.stderr
    elsewhere = cli("score", "--ckpt", project.file("absent"), "--suite", command)
    assert elsewhere.code == 2
    assert f"--suite {command}: " in elsewhere.stderr
    assert "absent is no trained run" in elsewhere.stderr

"""Handing a run in: what fits is copied in compact form, what does not is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from making import federation, model, results

from fedbench.cli import app
from fedbench.errors import ConfigError, RecordError
from fedbench.results.record import write_run, write_scores
from fedbench.results.samples import Results, read_results, write_samples
from fedbench.results.specification import load_spec
from fedbench.results.submission import add, problems

RULES = """
tasks: [headlines]
metrics: [accuracy]
seeds: [0]
versions: {headlines: 1}
protocol: {federation.rounds: 4}
partial_rows: false
"""


def made(**more: Any) -> Results:
    """A run of four rounds whose every model is named by its weights."""
    config = {"federation": {"rounds": 4, "num_clients": 3}, "data": {"mirror": "/home/me/data"}}
    run = results(federation(), config=config, **more)
    scores = [
        s.model_copy(update={"weights_hash": f"hash of {s.model.label()}", "task": "headlines"})
        for s in run.scores
    ]
    return dataclasses.replace(run, scores=scores)


def write(run: Results, directory: Path) -> Path:
    write_scores(directory, run.scores)
    if run.run is not None:
        write_run(directory, run.run)
    for table in run.samples.values():
        write_samples(directory, table)
    return directory


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The made-up task has a hash of its own; the installed one of that name is not meant.
    monkeypatch.setattr("fedbench.results.submission._task", lambda key: None)
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "leaderboard.yaml").write_text(RULES)
    return tmp_path / "board"


def test_a_run_that_fits_is_copied_in_and_shown(board: Path, tmp_path: Path) -> None:
    run = write(made(), tmp_path / "run")
    shown = CliRunner().invoke(app, ["leaderboard", str(board), "--add", str(run)])
    assert shown.exit_code == 0, shown.output
    assert "fedavg" in shown.output
    kept = read_results(board / "results" / "made")
    assert len(kept.scores) == len(read_results(run).scores)
    assert kept.run is not None
    assert kept.run.config is not None
    assert kept.run.config["data"]["mirror"] is None  # a path of the submitter's machine


def test_answers_of_points_of_a_curve_are_not_kept(board: Path, tmp_path: Path) -> None:
    place = add(board, write(made(), tmp_path / "run"))
    answers = read_results(place).samples["headlines"].answers
    rounds = {own.model.round for own in answers if own.model.method == "fedavg"}
    assert rounds == {4}


def without_run(run: Results) -> Results:
    return dataclasses.replace(run, run=None)


def of_other_rounds(run: Results) -> Results:
    assert run.run is not None
    changed = run.run.model_copy(update={"config": {"federation": {"rounds": 2}}})
    return dataclasses.replace(run, run=changed)


def changed_scores(**update: Any) -> Callable[[Results], Results]:
    def change(run: Results) -> Results:
        scores = [
            s.model_copy(update=update) if s.method == "fedavg" and s.round == 4 else s
            for s in run.scores
        ]
        return dataclasses.replace(run, scores=scores)

    return change


def without_a_client(run: Results) -> Results:
    gone = model("local", "local", 0, model_client=1, round=4)
    return dataclasses.replace(run, scores=[s for s in run.scores if s.model != gone])


def of_some_items(run: Results) -> Results:
    assert run.run is not None
    config = (run.run.config or {}) | {"evaluation": {"limit": 40}}
    return dataclasses.replace(run, run=run.run.model_copy(update={"config": config}))


def without_samples(run: Results) -> Results:
    return dataclasses.replace(run, samples={})


def without_what_was_wrong(run: Results) -> Results:
    """Every wrong answer of FedAvg is said to have failed, and no record counts a failure."""
    table = run.samples["headlines"]
    changed = []
    for own in table.answers:
        if own.model.method == "fedavg":
            right = [a == b for a, b in zip(own.extracted, table.references, strict=True)]
            status = ["parsed" if it else "failed" for it in right]
            own = own.model_copy(update={"status": status})
        changed.append(own)
    samples = {"headlines": table.model_copy(update={"answers": changed})}
    perfect = changed_scores(value=1.0, ci_low=0.97, ci_high=1.0)(run)
    return dataclasses.replace(perfect, samples=samples)


def named(name: str) -> Callable[[Results], Results]:
    def rename(run: Results) -> Results:
        assert run.run is not None
        return dataclasses.replace(run, run=run.run.model_copy(update={"run": name}))

    return rename


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (without_run, "run.json is missing"),
        (of_other_rounds, "federation.rounds is 2, and the protocol wants 4"),
        (changed_scores(task_version=2), "headlines was scored in version 2, and version 1 counts"),
        (changed_scores(weights_hash=None), "fedavg round 4 seed 0: no weights_hash"),
        (changed_scores(run_hash="other"), "scores.jsonl holds scores of configuration other"),
        (changed_scores(value=0.99), "the answers of fedavg round 4 seed 0 do not give"),
        (without_a_client, "mean local is incomplete (2 of 3 clients); only whole rows count"),
        (without_samples, "headlines: samples are missing"),
        (of_some_items, "only the first 40 items were scored; score again without"),
        (changed_scores(ci_low=0.98, ci_high=0.99), "seed 0 do not give the recorded score, its"),
        (without_what_was_wrong, "do not give the recorded score, its interval, or its counts"),
        (named("../../../elsewhere"), "'../../../elsewhere', and names its directory"),
        (named("a/b"), "'a/b', and names its directory"),
        (named(""), "'', and names its directory"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_copied(
    board: Path, tmp_path: Path, broken: Callable[[Results], Results], said: str
) -> None:
    run = write(broken(made()), tmp_path / "run")
    with pytest.raises(RecordError) as error:
        add(board, run)
    assert f"{run}: does not fit the rules of board" in str(error.value)
    assert said in str(error.value)
    assert not (board / "results").exists()
    assert not list(tmp_path.rglob("scores.jsonl.gz"))


def test_a_configuration_that_no_run_file_has_is_told(board: Path) -> None:
    run = made()
    assert run.run is not None
    config = (run.run.config or {}) | {"local": {"batch_size": "many"}}
    odd = dataclasses.replace(run, run=run.run.model_copy(update={"config": config}))
    (found,) = problems(load_spec(board), [], odd, board)
    assert found.startswith("config in run.json is of no run: local.batch_size: Input should be")


def test_a_task_that_was_not_scored_is_named(board: Path) -> None:
    spec = load_spec(board).model_copy(update={"tasks": ("headlines", "fpb")})
    found = problems(spec, [], made(), board)
    assert "fpb: not scored; score the run with --tasks fpb" in found


def test_a_run_is_added_once(board: Path, tmp_path: Path) -> None:
    run = write(made(), tmp_path / "run")
    add(board, run)
    with pytest.raises(RecordError, match="made is in the leaderboard; it is there already"):
        add(board, run)


def test_another_run_of_the_same_name_is_added_under_another_name(
    board: Path, tmp_path: Path
) -> None:
    add(board, write(made(), tmp_path / "run"))
    run = made()
    assert run.run is not None
    scores = [score.model_copy(update={"run_hash": "other"}) for score in run.scores]
    about = run.run.model_copy(update={"run_hash": "other"})
    other = write(dataclasses.replace(run, run=about, scores=scores), tmp_path / "other")
    with pytest.raises(RecordError, match="give this one another name, as run in its run"):
        add(board, other)
    write_run(other, about.model_copy(update={"run": "renamed"}))
    assert add(board, other) == board / "results" / "renamed"


def test_a_run_takes_no_other_run_in(tmp_path: Path) -> None:
    one, other = (write(made(), tmp_path / name) for name in ("one", "other"))
    with pytest.raises(ConfigError, match=r"one: holds the scores of one run.*leaderboard\.yaml"):
        add(one, other)
    assert not (one / "results").exists()


def test_a_run_on_other_items_is_told(board: Path, tmp_path: Path) -> None:
    add(board, write(made(), tmp_path / "run"))
    fewer = made(tasks={"headlines": 90}, path=Path("fewer"))
    with pytest.raises(RecordError, match="headlines: its 90 items are not the 150 that are in"):
        add(board, write(fewer, tmp_path / "fewer"))


def test_references_of_its_own_are_told(board: Path, tmp_path: Path) -> None:
    add(board, write(made(), tmp_path / "run"))
    other = made(path=Path("other"))
    table = other.samples["headlines"]
    answered = next(a for a in table.answers if a.model == model("base", "base", 0)).extracted
    flattering = table.model_copy(update={"references": [a or "neutral" for a in answered]})
    forged = dataclasses.replace(other, samples={"headlines": flattering})
    with pytest.raises(RecordError, match="headlines: its references are not those that are in"):
        add(board, write(forged, tmp_path / "other"))


def test_a_checkpoint_with_other_weights_is_told(board: Path, tmp_path: Path) -> None:
    run = write(made(), tmp_path / "run")
    place = run / "checkpoints" / "fedavg" / "seed-0" / "round-0004"
    place.mkdir(parents=True)
    row = {"method": "fedavg", "seed": 0, "model_kind": "global", "round": 4}
    (place / "round.json").write_text(json.dumps(row | {"weights_hash": "else"}))
    with pytest.raises(RecordError, match="has weights else, the records name hash of fedavg"):
        add(board, run)


def test_a_changed_task_of_the_same_version_is_told() -> None:
    """The hash of the installed task `headlines` is not that of the made-up records."""
    spec = load_spec(Path(__file__).parents[3] / "leaderboards" / "demo")
    found = problems(spec, [], made(), Path("run"))
    assert any("so the task was changed; score it again" in text for text in found)

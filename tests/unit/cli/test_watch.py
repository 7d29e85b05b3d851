"""What a run's directory says while it trains: in the terminal, and to trackers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fedbench.cli import app
from fedbench.cli.watch import bars, duration
from fedbench.errors import ConfigError, RecordError
from fedbench.live import NewRounds, snapshot
from fedbench.results.record import ScoreRecord
from fedbench.tracking import Tracking, open_trackers, tracked

RUN = {
    "name": "small",
    "methods": [{"algorithm": "local", "options": {}}, {"algorithm": "fedavg", "options": {}}],
    "seeds": [0, 1],
    "federation": {"num_clients": 3, "rounds": 4},
}


def write_round(directory: Path, method: str, number: int, losses: list[float]) -> None:
    place = directory / "checkpoints" / method / "seed-0"
    place.mkdir(parents=True, exist_ok=True)
    row = {
        "method": method, "seed": 0, "round": number, "last_round": 4, "losses": losses,
        "cohort": list(range(len(losses))), "bytes_up": 1000 * number, "bytes_down": 500 * number,
        "train_examples": 48 * number,
    }  # fmt: skip
    with open(place / "history.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with open(place / "timings.jsonl", "a") as file:
        file.write(json.dumps({"round": number, "seconds": 3.0, "peak_memory": 1}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    write_round(tmp_path, "fedavg", 1, [2.0, 1.0, 3.0])
    write_round(tmp_path, "fedavg", 2, [1.0, 0.5, 1.5])
    return tmp_path


def score(**more: Any) -> ScoreRecord:
    fields: dict[str, Any] = {
        "run": "small", "run_hash": "c0ffee", "method": "fedavg", "seed": 0, "round": 2,
        "model_kind": "global", "task": "fpb", "task_version": 1, "task_hash": "h",
        "metric": "accuracy", "value": 0.75, "higher_is_better": True, "num_examples": 4,
        "num_scored": 4, "num_failed": 0, "num_unparsed": 0, "headline": True,
        "selected_by": "last", "fedbench": "0.1.0", "created": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return ScoreRecord.model_validate(fields | more)


def test_rounds_and_time_left_follow_from_the_files(run: Path) -> None:
    shot = snapshot(run)
    # Two seeds of FedAvg and of three local clients: 8 trainings of 4 rounds, of which 2 are done.
    assert (shot.planned, shot.rounds_planned, shot.rounds_done) == (8, 32, 2)
    assert shot.seconds_left == 90.0  # 30 rounds of 3 s
    assert shot.current[-1].loss == 1.0  # (1.0 + 0.5 + 1.5) / 3


def test_a_training_counts_as_done_after_its_last_round(run: Path) -> None:
    assert snapshot(run).trainings_done == 0  # one has begun
    write_round(run, "fedavg", 3, [0.4])
    write_round(run, "fedavg", 4, [0.3])
    assert snapshot(run).trainings_done == 1
    shown = CliRunner().invoke(app, ["watch", str(run), "--once"])
    assert "4 of 32 rounds, 1 of 8 trainings" in shown.output


def test_a_frame_shows_losses_clients_and_bytes(run: Path) -> None:
    shown = CliRunner().invoke(app, ["watch", str(run), "--once"])
    assert shown.exit_code == 0, shown.output
    for text in ("2 of 32 rounds", "2 min", "1.0000", "3 kB", "client   2"):
        assert text in shown.output


def test_a_line_that_is_being_written_is_left_for_the_next_look(run: Path) -> None:
    file = run / "checkpoints" / "fedavg" / "seed-0" / "history.jsonl"
    with open(file, "a") as half:
        half.write('{"method": "fedavg", "se')
    assert snapshot(run).rounds_done == 2


def test_a_damaged_line_is_named(run: Path) -> None:
    file = run / "checkpoints" / "fedavg" / "seed-0" / "history.jsonl"
    file.write_text("nonsense\n" + file.read_text())
    with pytest.raises(RecordError, match=r"history\.jsonl: line 1 is damaged"):
        snapshot(run)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no run\.yaml"):
        snapshot(tmp_path)


def test_every_round_is_told_once_and_a_resumed_run_tells_nothing_again(run: Path) -> None:
    new = NewRounds(run)
    assert [live.round for live in new()] == [1, 2]
    assert list(new()) == []
    write_round(run, "fedavg", 3, [0.4])
    assert [live.round for live in new()] == [3]
    again = NewRounds(run)
    again.skip()
    assert list(again()) == []


class Listener:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, float], int]] = []

    def log(self, training: str, numbers: dict[str, float], step: int) -> None:
        self.told.append((training, numbers, step))

    def close(self) -> None:
        self.told.append(("closed", {}, 0))


def test_trackers_are_told_of_new_rounds_and_of_scores(run: Path) -> None:
    listener, steps = Listener(), []
    tracking = Tracking([listener], run, lambda *step: steps.append(step))
    write_round(run, "fedavg", 3, [0.5, 1.5])
    tracking("fedavg seed 0", 3, 4)
    tracking.scores([score(), score(group="part"), score(value=None)])
    assert steps == [("fedavg seed 0", 3, 4)]  # the progress goes on as it was
    (training, numbers, step), told = listener.told
    assert (training, step) == ("fedavg seed 0", 3)
    assert numbers == {
        "bytes": 4500.0, "train_examples": 144.0, "loss": 1.0,
        "loss_of_client/0": 0.5, "loss_of_client/1": 1.5,
    }  # fmt: skip
    assert told == ("fedavg seed 0", {"score/fpb/accuracy": 0.75}, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_tensorboard_reads_back_what_it_was_told(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    with tracked(["tensorboard"], "small", run, lambda *step: None) as progress:
        write_round(run, "fedavg", 3, [0.5, 1.5])
        progress("fedavg seed 0", 3, 4)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tracking" / "fedavg-seed-0"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 1.0)]


def test_weights_and_biases_gets_one_run_with_trainings_as_prefixes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "rows = []\n"
        "class Run:\n"
        "    def log(self, row): rows.append(row)\n"
        "    def finish(self): rows.append('finished')\n"
        "def init(**options): rows.append(options); return Run()\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with tracked(["wandb"], "small", run, lambda *step: None) as progress:
        write_round(run, "fedavg", 3, [0.5])
        progress("fedavg seed 0", 3, 4)
    import wandb

    started, row, finished = wandb.rows
    assert (started["project"], started["name"]) == ("fedbench", "small")
    assert row["fedavg seed 0/loss"] == 0.5
    assert row["fedavg seed 0/round"] == 3
    assert finished == "finished"
    monkeypatch.delitem(sys.modules, "wandb")


def test_a_tracker_that_is_not_installed_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tracking: trackio is not installed; run pip install"):
        open_trackers(["trackio"], "small", tmp_path)


def test_bars_and_durations() -> None:
    assert bars([0.0, 7.0, 3.5]) == "▁█▅"
    assert bars([1.0, 1.0]) == "▁▁"
    assert [duration(s) for s in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]

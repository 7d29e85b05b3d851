"""Tables of records of a whole run: means over seeds that say what they are means of."""

from __future__ import annotations

import math

import pytest

from fedbench.cli._run_tables import print_run_tables
from fedbench.results.record import ModelId, ScoreRecord
from fedbench.results.run_records import Estimate, run_record

COMMON = {"run": "r", "run_hash": "h", "fedbench": "1", "created": "2026-01-02T03:04:05Z"}


def rounds(seed: int, value: float) -> ScoreRecord:
    model = ModelId(method="fedavg", seed=seed, model_kind="global", round=8)
    return run_record(COMMON, model, "medqa", "rounds_to_target", Estimate(value, num_units=8))


def test_a_mean_over_the_seeds_that_reached_a_target_says_how_many_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_run_tables("run", [rounds(0, 4.0), rounds(1, math.nan), rounds(2, 6.0)])
    assert "5 [4, 6] (2 of 3 seeds)" in capsys.readouterr().out
    print_run_tables("run", [rounds(0, 4.0), rounds(1, 6.0)])
    assert "seeds)" not in capsys.readouterr().out

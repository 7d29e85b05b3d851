"""What privacy cost, on a leaderboard; and records of earlier versions beside new ones."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from making import federation, results

from fedbench.config import RunConfig
from fedbench.results.leaderboard import build
from fedbench.results.page import render_html
from fedbench.results.record import PrivacyRecord
from fedbench.results.renderings import render_csv, render_latex, render_markdown
from fedbench.results.run_words import privacy_over_rounds
from fedbench.results.samples import Results
from fedbench.results.specification import LeaderboardSpec
from fedbench.results.table import Row, Table
from fedbench.schema import with_defaults

PRIVATE = {"target_epsilon": 4.0, "noise_multiplier": None}


def spent(method: str, *epsilons: float, seed: int = 0, **more: Any) -> PrivacyRecord:
    facts = {
        "delta": 1e-5,
        "accountant": "rdp",
        "noise_multiplier": 1.1,
        "amplified": False,
        "simulated": False,
    }
    return PrivacyRecord(method=method, seed=seed, epsilons=epsilons, **facts | more)


def run(
    name: str, *privacy: PrivacyRecord, seeds: tuple[int, ...] = (0,), **config: Any
) -> Results:
    made = results(federation(seeds), path=Path(name), config={"federation": {}, **config})
    assert made.run is not None
    record = made.run.model_copy(update={"run": name, "privacy": privacy})
    return dataclasses.replace(made, run=record)


def table(*runs: Results, seeds: tuple[int, ...] = (0,)) -> Table:
    fields = {"name": "made", "tasks": ("headlines",), "metrics": ("accuracy",), "seeds": seeds}
    return build(LeaderboardSpec.model_validate(fields), runs)


def row(made: Table, label: str) -> Row:
    return next(row for row in made.rows if row.label == label)


def test_a_row_tells_epsilon_of_its_dearest_seed_in_every_rendering() -> None:
    cost = [spent("fedavg", 1.0, 3.9), spent("fedavg", 1.0, 4.0, seed=1)]
    made = table(run("a", *cost, seeds=(0, 1), privacy=PRIVATE), seeds=(0, 1))
    fedavg = row(made, "fedavg")
    assert [one.epsilon for one in fedavg.privacy] == [4.0]
    assert row(made, "base").privacy == ()
    for text in (render_markdown(made), render_html(made)):
        assert "ε 4 per client (δ 1e-05)" in text
        assert "fedavg, seed 1: ε per client 1, 4 after rounds 1, 2 (δ 1e-05, rdp)" in text
        assert "more of what one client holds" in text
        assert "per example" not in text.lower()
        assert "simulated" not in text.lower().replace("privacy_simulated", "")
    assert "epsilon of the whole training" in render_latex(made)
    cells = {line["row"]: line for line in csv.DictReader(render_csv(made).splitlines())}
    assert (cells["fedavg"]["epsilon"], cells["fedavg"]["delta"]) == ("4.0", "1e-05")
    assert cells["base"]["epsilon"] == ""
    assert "example_epsilon" not in cells["fedavg"]


def test_epsilons_of_clients_and_of_examples_stand_side_by_side_under_their_names() -> None:
    rows = {"level": "example", "delta": 1e-6}
    both = [
        spent("fedavg", 4.0, simulated=True),
        spent("fedavg", 8.0, 9.0, **rows),
        spent("fedavg", 8.0, 9.5, seed=1, **rows),
        spent("fedprox", 7.0, **rows),
    ]
    made = table(run("a", *both, seeds=(0, 1), privacy=PRIVATE), seeds=(0, 1))
    for text in (render_markdown(made), render_html(made)):
        assert "ε 4 per client (δ 1e-05, simulated); ε 9.5 per example (δ 1e-06)" in text
        assert "ε 7 per example (δ 1e-06)" in text
        assert "fedavg, seed 0: ε per example 8, 9 after rounds 1, 2 (δ 1e-06, rdp)" in text
        assert "any one of their training rows" in text
    assert "Per example: whoever sees all that clients sent" in render_latex(made)
    cells = {line["row"]: line for line in csv.DictReader(render_csv(made).splitlines())}
    fedavg, fedprox = cells["fedavg"], cells["fedprox"]
    assert (fedavg["epsilon"], fedavg["example_epsilon"]) == ("4.0", "9.5")
    assert (fedavg["delta"], fedavg["example_delta"]) == ("1e-05", "1e-06")
    assert (fedavg["privacy_simulated"], fedavg["example_privacy_simulated"]) == ("True", "False")
    assert (fedprox["epsilon"], fedprox["example_epsilon"]) == ("", "7.0")


def test_runs_whose_rows_are_hidden_in_other_ways_are_settings_of_their_own() -> None:
    noisy = {"local": {"dp_sgd": {"noise_multiplier": 0.8}}}
    aimed = {"local": {"dp_sgd": {"target_epsilon": 4.0}}}
    made = table(run("a", **noisy), run("b", **aimed), run("c", privacy=PRIVATE, **aimed))
    labels = {row.label for row in made.rows}
    assert {
        "fedavg · example noise 0.8",
        "fedavg · example epsilon 4",
        "fedavg · epsilon 4, example epsilon 4",
    } <= labels


def test_noise_from_the_seed_is_called_simulated() -> None:
    made = table(run("a", spent("fedavg", 2.0, simulated=True), privacy=PRIVATE))
    text = render_markdown(made)
    assert "ε 2 per client (δ 1e-05, simulated)" in text
    assert "protects nobody here" in text


def test_a_table_without_private_rows_has_no_column_for_privacy() -> None:
    made = table(run("a"))
    assert "privacy" not in render_markdown(made).lower()
    assert "epsilon" not in render_csv(made)


def test_private_and_plain_runs_are_settings_of_their_own() -> None:
    private = run("a", spent("fedavg", 4.0), privacy=PRIVATE)
    made = table(private, run("b", privacy=None))
    assert row(made, "fedavg · epsilon 4").privacy
    assert row(made, "fedavg · not private").privacy == ()


def test_many_rounds_are_told_by_some_of_them() -> None:
    text = privacy_over_rounds(spent("fedavg", *(n / 10 for n in range(1, 31))))
    assert "after rounds 1, 4, 8, 12, 16, 20, 24, 28, 30 (" in text
    stopped = privacy_over_rounds(spent("fedavg", 1.0, 1.0, stopped_after=1))
    assert stopped.endswith("stopped after round 1")


def test_a_budget_below_the_cost_of_one_round_is_told() -> None:
    text = privacy_over_rounds(spent("fedavg", 0.0, 0.0, stopped_after=0))
    assert text.endswith("the budget did not pay for one round")


def test_a_record_of_an_earlier_version_is_of_the_same_setting() -> None:
    # Neither knew of privacy or engines, nor that DataConfig would have canaries.
    early = {"data": {"train": "rows", "partition": {"by": "iid"}}}
    late = with_defaults(RunConfig, early)
    del late["seeds"]
    assert late["privacy"] is None
    assert late["data"]["canaries"] is None
    made = table(run("a", **early), run("b", seeds=(1,), **late), seeds=(0, 1))
    assert row(made, "fedavg").num_seeds == 2


def test_defaults_fill_what_is_absent_and_change_nothing_else() -> None:
    written = {"local": {"max_steps": 3}, "model": {"lora": None}, "unknown": 1}
    filled = with_defaults(RunConfig, written)
    assert filled["local"]["max_steps"] == 3
    assert filled["local"]["batch_size"] == RunConfig.model_fields["local"].default.batch_size
    assert filled["model"]["lora"] is None
    assert filled["unknown"] == 1
    assert "methods" not in filled  # has no default

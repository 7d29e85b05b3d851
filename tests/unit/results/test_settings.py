"""Several runs on one leaderboard: whose rows are whose, and what compares with what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from making import federation, results

from fedbench.errors import RecordError
from fedbench.results.leaderboard import build
from fedbench.results.page import render_html
from fedbench.results.page_data import as_script, filter_choices, page_data
from fedbench.results.samples import Results
from fedbench.results.settings import describe_model, describe_partition
from fedbench.results.specification import LeaderboardSpec


def run(name: str, seeds: tuple[int, ...] = (0,), clients: int = 3, **config: Any) -> Results:
    federated = {"num_clients": clients}
    made = results(
        federation(seeds, clients), path=Path(name), config={"federation": federated, **config}
    )
    assert made.run is not None
    return dataclasses.replace(made, run=made.run.model_copy(update={"run": name}))


def split(rule: dict[str, Any]) -> dict[str, Any]:
    return {"partition": rule}


def spec(**more: Any) -> LeaderboardSpec:
    fields = {"name": "made", "tasks": ("headlines",), "metrics": ("accuracy",), "seeds": (0,)}
    return LeaderboardSpec.model_validate(fields | more)


EVEN = {"by": "iid"}
SKEWED = {"by": "dirichlet", "alpha": 0.1}


def test_runs_that_differ_in_seeds_alone_are_one_set_of_rows() -> None:
    table = build(
        spec(seeds=(0, 1)), [run("a", (0,), data=split(EVEN)), run("b", (1,), data=split(EVEN))]
    )
    assert [row.label for row in table.rows if row.method == "fedavg"] == ["fedavg"]
    fedavg = next(row for row in table.rows if row.label == "fedavg")
    assert fedavg.num_seeds == 2


def test_every_split_has_rows_of_its_own_and_the_base_is_shared() -> None:
    table = build(spec(), [run("a", data=split(EVEN)), run("b", data=split(SKEWED))])
    labels = [row.label for row in table.rows]
    for label in ("fedavg · iid", "fedavg · dirichlet 0.1", "mean local · iid"):
        assert label in labels
    assert labels.count("base") == 1


def test_a_difference_is_taken_within_a_split_and_against_the_shared_base() -> None:
    table = build(spec(), [run("a", data=split(EVEN)), run("b", data=split(SKEWED))])
    others = {d.other for d in table.differences if d.method == "fedavg · iid"}
    assert others == {"base", "mean local · iid", "centralised · iid", "majority · iid"}


def test_the_number_of_clients_is_that_of_the_own_run() -> None:
    table = build(spec(), [run("a", clients=3), run("b", clients=5)])
    local = [row for row in table.rows if row.kind == "local"]
    assert [row.label for row in local] == ["mean local · 3 clients", "mean local · 5 clients"]
    assert all(row.is_complete for row in local)


def test_two_runs_of_one_setting_that_contradict_each_other_are_refused() -> None:
    one, other = run("a", data=split(EVEN)), run("b", data=split(EVEN))
    scores = [s.model_copy(update={"value": 0.1, "run": "b"}) for s in other.scores]
    with pytest.raises(RecordError, match="both hold"):
        build(spec(), [one, dataclasses.replace(other, scores=scores)])


def test_the_page_says_what_a_client_held_in_its_own_split() -> None:
    def holding(made: Results, run_hash: str, rows: int) -> Results:
        assert made.run is not None
        held = {"clients": {"0": [{"num_train": rows + n} for n in range(3)]}}
        about = made.run.model_copy(update={"run_hash": run_hash, "facts": held})
        scores = [score.model_copy(update={"run_hash": run_hash}) for score in made.scores]
        return dataclasses.replace(made, run=about, scores=scores)

    federated = {"num_clients": 3, "rounds": 4}
    even = holding(run("a", data=split(EVEN), federation=federated), "even", 400)
    skewed = holding(run("b", data=split(SKEWED), federation=federated), "skewed", 70)
    html = render_html(build(spec(), [even, skewed]))
    for client in range(3):  # method, seed, client, training rows
        for name, rows in (("iid", 400), ("dirichlet 0.1", 70)):
            start = f'<span class="label">local · {name}</span></td><td>0</td><td>{client}</td>'
            assert f"{start}<td>{rows + client}</td>" in html


def test_rows_are_filtered_by_algorithm_model_and_split() -> None:
    llama = {"name": "meta-llama/Llama-2-7b-hf"}
    table = build(
        spec(),
        [run("a", data=split(EVEN), model=llama), run("b", data=split(SKEWED), model=llama)],
    )
    choices = dict(filter_choices(table))
    assert choices["base model"] == ["Llama-2-7b-hf"]
    assert choices["partition"] == ["iid", "dirichlet 0.1"]
    assert set(choices["algorithm"]) == {"local", "fedavg", "fedprox", "centralised"}
    assert choices["domain"] == ["demo"]  # the suite of headlines


def test_rows_that_are_equally_good_share_their_ranks() -> None:
    table = build(spec(), [run("a", data=split(EVEN)), run("b", data=split(SKEWED))])
    # The two runs have the same answers: every row ties with its twin.
    first, second = (table.ranks[f"fedavg · {name}"] for name in ("iid", "dirichlet 0.1"))
    assert (first.first, first.last) == (second.first, second.last)
    assert first.first < first.last
    assert str(table.ranks["base"]) == str(len(table.rows))


def test_partial_rows_can_be_left_out() -> None:
    made = run("a")
    kept = [s for s in made.scores if s.model_client != 1]
    broken = dataclasses.replace(made, scores=kept)
    shown = {row.label for row in build(spec(), [broken]).rows}
    strict = {row.label for row in build(spec(partial_rows=False), [broken]).rows}
    assert shown - strict == {"mean local"}


def test_the_data_of_a_page_cannot_end_their_element() -> None:
    table = build(spec(), [run("</script><b>", data=split(EVEN)), run("b", data=split(SKEWED))])
    items = {"headlines": {"items": [{"prompt": "</script>"}]}}
    assert "</script" not in as_script(page_data(table, items))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (None, "not recorded"),
        ({"by": "iid"}, "iid"),
        ({"by": "dirichlet", "alpha": 0.5}, "dirichlet 0.5"),
        ({"by": "dirichlet", "alpha": 0.1, "min_rows": 10}, "dirichlet 0.1"),
        ({"by": "shards", "per_client": 1}, "shards, 1 per client"),
        ({"by": "label_skew", "shares": [0.7, 0.3]}, "label_skew, shares 0.7 and 0.3"),
    ],
)
def test_a_split_is_named_in_short(rule: dict[str, Any] | None, text: str) -> None:
    assert describe_partition(rule) == text


def test_a_model_made_within_the_run_is_named_by_its_size() -> None:
    made = {"pretrain": {"num_layers": 2, "hidden_size": 64}}
    assert describe_model(made) == "Llama made here, 2 × 64"

"""Partitions on examples small enough to follow; tests/property has the general claims."""

from __future__ import annotations

from typing import Any

import pytest

from fedbench.config import DataConfig
from fedbench.data.datasets import Example
from fedbench.data.partition import (
    Shard,
    dirichlet,
    group_duplicates,
    iid,
    label_counts,
    label_skew,
    partition,
)
from fedbench.data.templates import Turn
from fedbench.errors import DataError


def examples(labels: str, texts: list[str] | None = None) -> list[Example]:
    """One example per letter; the letter is its label."""
    texts = texts or [f"text {n}" for n in range(len(labels))]
    return [
        Example((Turn("", text, label),), label) for label, text in zip(labels, texts, strict=True)
    ]


def config(**fields: Any) -> DataConfig:
    return DataConfig.model_validate({"train": "made", "validation": 0.0, "test": 0.0, **fields})


def test_duplicates_are_grouped_by_their_normalised_text() -> None:
    texts = ["Up 3%", "down", "up 3", "...", "DOWN!", "?"]
    # Texts of which nothing is left are not duplicates of each other.
    assert group_duplicates(texts) == [[0, 2], [1, 4], [3], [5]]


def test_a_duplicate_goes_where_the_first_of_its_kind_goes() -> None:
    texts = ["a", "b", "c", "A!", "d", "b."]
    shards = partition(examples("xxxxxx", texts), 2, config(), seed=0)
    owner = {index: n for n, shard in enumerate(shards) for index in shard.train}
    assert owner[0] == owner[3]
    assert owner[1] == owner[5]


def test_an_iid_deal_gives_shares_that_differ_by_one_at_most() -> None:
    assert sorted(map(len, iid(11, 4, seed=3))) == [2, 3, 3, 3]


def test_skewed_labels_go_round_the_clients() -> None:
    labels = list("aaaaaa" + "bbbbbb" + "cccccc")  # 18 rows, 3 clients: 6 each
    clients = label_skew(labels, 3, shares=(2 / 3, 1 / 3), seed=0)
    counts = [label_counts(examples("".join(labels)), items) for items in clients]
    # Client k has 2/3 of 6 rows of label k and 1/3 of 6 of label k + 1.
    assert counts == [{"a": 4, "b": 2}, {"b": 4, "c": 2}, {"a": 2, "c": 4}]


def test_a_label_that_runs_out_leaves_its_client_with_less() -> None:
    # 8 rows, 4 clients of 2 rows; clients 0 and 2 both want 2 of the 3 rows labelled a.
    clients = label_skew(list("aaabbbbb"), 4, shares=(1.0,), seed=0)
    assert [len(items) for items in clients] == [2, 2, 1, 2]


def test_a_small_alpha_gives_clients_that_differ_and_a_large_one_clients_that_do_not() -> None:
    labels = list("ab" * 200)

    def largest_share(alpha: float) -> float:
        """Mean over clients of the share of their commonest label; 0.5 is even."""
        counts = [
            label_counts(examples("".join(labels)), items)
            for items in dirichlet(labels, 4, alpha, seed=0)
            if items
        ]
        return sum(max(c.values()) / sum(c.values()) for c in counts) / len(counts)

    assert largest_share(0.05) > 0.9
    assert largest_share(1000.0) < 0.55


def test_each_client_has_its_share_of_validation_and_test_rows() -> None:
    shards = partition(examples("x" * 40), 2, config(validation=0.1, test=0.2), seed=0)
    # 20 rows each: 2 for validation, 4 for testing.
    assert [(len(s.train), len(s.validation), len(s.test)) for s in shards] == [(14, 2, 4)] * 2


@pytest.mark.parametrize(
    ("rule", "train"),
    [
        ({"by": "iid"}, [[3, 4, 5, 6, 7], [0, 1, 2, 8, 9]]),
        ({"by": "dirichlet", "alpha": 1.0}, [[1, 5], [0, 2, 3, 4, 6, 7, 8, 9]]),
        ({"by": "label_skew", "shares": [0.6, 0.4]}, [[0, 1, 4, 8, 9], [2, 3, 5, 6, 7]]),
    ],
)
def test_the_shards_of_a_seed_never_change(rule: dict[str, Any], train: list[list[int]]) -> None:
    # As drawn when the first results were committed; other draws are another experiment.
    shards = partition(examples("ab" * 5), 2, config(partition=rule), seed=0)
    assert [shard.train for shard in shards] == train


def test_the_split_of_a_shard_never_changes() -> None:
    # As drawn when the first results were committed.
    shards = partition(examples("ab" * 5), 2, config(validation=0.2, test=0.2), seed=0)
    assert shards == [
        Shard(train=[3, 5, 7], validation=[6], test=[4]),
        Shard(train=[1, 2, 9], validation=[8], test=[0]),
    ]


@pytest.mark.parametrize(
    ("num_rows", "num_clients", "rule", "client"),
    [
        (2, 3, {"by": "iid"}, 2),
        (4, 4, {"by": "dirichlet", "alpha": 0.01}, 0),
    ],
)
def test_a_client_without_training_rows_is_refused_with_the_remedy(
    num_rows: int, num_clients: int, rule: dict[str, Any], client: int
) -> None:
    with pytest.raises(DataError) as caught:
        partition(examples("a" * num_rows), num_clients, config(partition=rule), seed=0)
    message = str(caught.value)
    assert f"data.partition ({rule['by']}) gives client {client} of " in message
    assert f"federation.num_clients {num_clients} no training row" in message
    assert "lower num_clients" in message


def test_a_label_rule_on_data_without_labels_is_refused() -> None:
    rows = [Example((Turn("", f"text {n}", "x"),)) for n in range(6)]
    rule = {"by": "dirichlet", "alpha": 1.0}
    with pytest.raises(DataError, match=r"data\.partition\.by is dirichlet, but .* no label"):
        partition(rows, 2, config(partition=rule), seed=0)


def test_more_shares_than_labels_are_refused() -> None:
    rule = {"by": "label_skew", "shares": [0.5, 0.3, 0.2]}
    with pytest.raises(DataError, match="has 3 entries, but the data have only 2 labels"):
        partition(examples("ab" * 6), 2, config(partition=rule), seed=0)

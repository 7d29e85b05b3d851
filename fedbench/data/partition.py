"""Splitting rows over clients, and each client's rows into train, validation and test.

Rows with the same text form a group, and a group is never divided: duplicates straddle neither
clients nor train and test. Every rule draws from its own generator, seeded by the run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedbench.config import DataConfig, Dirichlet, Iid, LabelSkew
from fedbench.data.datasets import Example, normalise
from fedbench.errors import DataError

Indices = list[int]


@dataclass(frozen=True)
class Shard:
    """One client's rows, as positions in the data set."""

    train: Indices
    validation: Indices
    test: Indices


def partition(
    examples: Sequence[Example], num_clients: int, config: DataConfig, seed: int
) -> list[Shard]:
    """One shard per client.

    Raises:
        DataError: the rule needs labels that the data lack, or a client would get no training row.
    """
    groups = group_duplicates([example.text for example in examples])
    labels = [examples[group[0]].label for group in groups]
    assigned = _assign(config.partition, labels, num_clients, seed)
    shards = [
        _split([groups[g] for g in chosen], config, random.Random(f"split/{seed}/{client}"))
        for client, chosen in enumerate(assigned)
    ]
    for client, shard in enumerate(shards):
        if not shard.train:
            raise DataError(
                f"data.partition ({config.partition.by}) gives client {client} of "
                f"federation.num_clients {num_clients} no training row out of {len(examples)}; "
                "lower num_clients, raise data.partition.alpha, or use more data"
            )
    return shards


def group_duplicates(texts: Sequence[str]) -> list[Indices]:
    """Positions of texts that are the same once normalised, in order of first appearance."""
    groups: dict[str, Indices] = {}
    for position, text in enumerate(texts):
        groups.setdefault(normalise(text) or f"\0{position}", []).append(position)
    return list(groups.values())


def iid(num_items: int, num_clients: int, seed: int) -> list[Indices]:
    """A random deal: shares differ by one item at most."""
    order = list(range(num_items))
    random.Random(f"iid/{seed}").shuffle(order)
    return [sorted(order[client::num_clients]) for client in range(num_clients)]


def dirichlet(labels: Sequence[str], num_clients: int, alpha: float, seed: int) -> list[Indices]:
    """Each label's items are dealt in proportions drawn from Dirichlet(alpha).

    Hsu et al. 2019, https://arxiv.org/abs/1909.06335. Every item goes to exactly one client;
    a client may get none.
    """
    draw = np.random.default_rng(seed)
    clients: list[Indices] = [[] for _ in range(num_clients)]
    for label in sorted(set(labels)):
        items = [position for position, own in enumerate(labels) if own == label]
        order = draw.permutation(items)
        shares = draw.dirichlet([alpha] * num_clients)
        ends = np.round(np.cumsum(shares) * len(items)).astype(int)
        for client, part in enumerate(np.split(order, ends[:-1])):
            clients[client].extend(int(position) for position in part)
    return [sorted(items) for items in clients]


def label_skew(
    labels: Sequence[str], num_clients: int, shares: Sequence[float], seed: int
) -> list[Indices]:
    """Equal shards; client k draws ``shares[j]`` of its items from label (k + j) mod L.

    A share of 0 means that the client never sees that label. Items left over when a label runs
    out are not used.
    """
    rng = random.Random(f"label_skew/{seed}")
    names = sorted(set(labels))
    pools = {name: [p for p, own in enumerate(labels) if own == name] for name in names}
    for pool in pools.values():
        rng.shuffle(pool)
    size = len(labels) // num_clients
    clients: list[Indices] = []
    for client in range(num_clients):
        items: Indices = []
        for offset, share in enumerate(shares):
            pool = pools[names[(client + offset) % len(names)]]
            take = round(share * size)
            items.extend(pool[:take])
            del pool[:take]
        clients.append(sorted(items))
    return clients


def label_counts(examples: Sequence[Example], indices: Sequence[int]) -> dict[str, int]:
    """How often each label occurs among some rows."""
    return dict(sorted(Counter(str(examples[index].label) for index in indices).items()))


def _assign(
    rule: Iid | Dirichlet | LabelSkew, labels: Sequence[str | None], num_clients: int, seed: int
) -> list[Indices]:
    if isinstance(rule, Iid):
        return iid(len(labels), num_clients, seed)
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        raise DataError(
            f"data.partition.by is {rule.by}, but the data set names no label; add `label:` to its "
            "description, or partition by iid"
        )
    if isinstance(rule, Dirichlet):
        return dirichlet(known, num_clients, rule.alpha, seed)
    if len(rule.shares) > len(set(known)):
        raise DataError(
            f"data.partition.shares has {len(rule.shares)} entries, but the data have only "
            f"{len(set(known))} labels; give at most one share per label"
        )
    return label_skew(known, num_clients, rule.shares, seed)


def _split(groups: list[Indices], config: DataConfig, rng: random.Random) -> Shard:
    """Deal whole groups to test, validation and train until each has its share."""
    rng.shuffle(groups)
    total = sum(map(len, groups))
    test: Indices = []
    validation: Indices = []
    train: Indices = []
    for group in groups:
        if len(test) + len(group) <= round(config.test * total):
            test.extend(group)
        elif len(validation) + len(group) <= round(config.validation * total):
            validation.extend(group)
        else:
            train.extend(group)
    return Shard(sorted(train), sorted(validation), sorted(test))

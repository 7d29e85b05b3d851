"""The splits of leaderboards/partitions on the rows that they split."""

from __future__ import annotations

import os
import re
from pathlib import Path
from statistics import fmean

import pytest

from fedbench.config import load_config
from fedbench.data.partition import partition
from fedbench.data.partition_summary import summarise
from fedbench.run_data import load_data

BOARD = Path(__file__).parents[2] / "leaderboards" / "partitions"

pytestmark = pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="the data are not ours to ship: set FEDBENCH_DATA to a mirror that holds them",
)


def test_every_split_can_be_had_and_its_clients_have_fewer_labels_than_before() -> None:
    rules = re.findall(r"^run \S+ '(.+)' &$", (BOARD / "run_all.sh").read_text(), re.MULTILINE)
    configs = [load_config(BOARD / "run.yaml", [f"data.partition={rule}"]) for rule in rules]
    data = load_data(configs[0])
    labels = []
    for config in configs:
        own = []
        for seed in config.seeds:
            # An error, where a client would have no row.
            shards = partition(data.examples, config.federation.num_clients, config.data, seed)
            own.append(summarise(data.examples, shards, "", seed).effective_labels or 0.0)
        labels.append(fmean(own))
    print(f"effective labels of a client: {labels}")
    assert labels == sorted(labels, reverse=True)

"""``fedbench partition`` on the built-in headlines: tables, pictures, JSON. Needs no torch."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from fedbench import cli
from fedbench.data.partition_summary import ClientSummary, PartitionSummary
from fedbench.errors import FedbenchError
from fedbench.results.partition_figure import partition_svg

SVG = "{http://www.w3.org/2000/svg}"


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["partition", *arguments])
    if isinstance(result.exception, FedbenchError):
        raise result.exception
    return result


def lines(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines() if line.strip()]


def summary(num_clients: int, labels: list[str]) -> PartitionSummary:
    clients = tuple(
        ClientSummary(client, 10 + client, 1, 1, dict.fromkeys(labels, 2 + client))
        for client in range(num_clients)
    )
    return PartitionSummary(3, "made", clients, 0, 0, 0, 0, None, None, None)


def texts(svg: str) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")
    ]


def test_a_seed_that_no_run_can_have_is_refused() -> None:
    result = run("--seed", "-1")
    assert result.exit_code == 2
    assert "-1 is not in the range" in result.stderr


def test_the_table_shows_rows_and_labels_of_each_client() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    shown = lines(result)
    # 1,200 headlines over six clients: 200 each, a tenth for validation and a tenth for testing.
    assert shown[0] == "label_skew shares 0.7 0.3, seed 0"
    marks = shown[1].split()
    assert marks[::2] == ["a", "b", "c"]
    assert set(marks[1::2]) == {"negative", "neutral", "positive"}
    clients = [line for line in shown if " 160 20 20 ▆▆▆▆▆▆ " in line]
    assert len(clients) == 6
    assert "6 clients, 1,200 rows used, 0 left out, 0 duplicates" in result.stdout
    assert "smallest 160, median 160, largest 160" in result.stdout


def test_json_is_one_array_with_a_split_per_seed() -> None:
    result = run("--json", "--set", "seeds=[0, 4]")
    splits = json.loads(result.stdout)
    assert [split["seed"] for split in splits] == [0, 4]
    assert splits[0]["clients"] != splits[1]["clients"]
    first = splits[0]["clients"][0]
    assert (first["client"], first["num_train"], sum(first["labels"].values())) == (0, 160, 160)
    # 70 % and 30 % of three equally frequent labels: (0.3667 + 0.0333 + 0.3333) / 2 = 0.3667,
    # before test and validation rows are taken at random.
    assert splits[0]["distance"] == pytest.approx(0.3667, abs=0.03)


def test_a_seed_stands_in_for_those_of_the_run() -> None:
    [split] = json.loads(run("--json", "--seed", "9").stdout)
    assert split["seed"] == 9


def test_it_shows_the_rows_that_training_would_use() -> None:
    from fedbench.config import load_config
    from fedbench.data.partition import label_counts, partition
    from fedbench.run_data import load_data

    path = Path(__file__).parents[3] / "leaderboards" / "demo" / "run.yaml"
    config = load_config(path)
    examples = load_data(config).examples
    shards = partition(examples, config.federation.num_clients, config.data, 0)
    [split] = json.loads(run("--json", str(path)).stdout)
    counted = [label_counts(examples, shard.train) for shard in shards]
    assert [client["labels"] for client in split["clients"]] == counted


def test_a_hundred_clients_are_listed_and_the_rest_counted() -> None:
    result = run("--set", "federation.num_clients=120", "--set", "data.partition={by: iid}")
    assert "… and 20 more clients; --json has them all" in result.stdout
    assert "120 clients, 1,200 rows used" in result.stdout


def test_an_svg_holds_labels_and_counts_as_text(tmp_path: Path) -> None:
    file = tmp_path / "split.svg"
    result = run("--seed", "0", "--output", str(file))
    assert f"wrote {file}" in result.stderr
    shown = texts(file.read_text(encoding="utf-8"))
    assert "label_skew shares 0.7 0.3, seed 0" in shown
    assert {"negative", "neutral", "positive", "client", "rows", "200"} <= set(shown)


def test_a_png_is_a_picture_of_a_readable_size(tmp_path: Path) -> None:
    file = tmp_path / "split.png"
    run("--seed", "0", "--output", str(file))
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">I", data[16:20])[0] > 1200  # pixels wide


def test_a_picture_of_many_labels_shows_twelve_and_the_rest_together() -> None:
    shown = texts(partition_svg([summary(4, [f"label {n:02}" for n in range(20)])]))
    assert [text for text in shown if text.startswith("label ")] == [
        f"label {n:02}" for n in range(12)
    ]
    assert "(other)" in shown


def test_a_picture_without_labels_shows_sizes_alone() -> None:
    shown = texts(partition_svg([summary(4, [])]))
    assert {"12", "13", "14", "15"} <= set(shown)  # 10 + client, and one for each other part
    assert not any(text.startswith("shade") for text in shown)


def test_the_same_split_gives_the_same_bytes_and_a_thousand_clients_a_small_file() -> None:
    many = summary(1000, ["a", "b"])
    assert partition_svg([many]) == partition_svg([many])
    assert len(partition_svg([many])) < 200_000


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    result = run("--output", str(tmp_path / "split.pdf"))
    assert result.exit_code == 2
    assert "is not a picture; give a name that ends in .svg or .png" in result.stderr


def test_a_picture_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(FedbenchError, match=r"cannot be written .*; choose another --output"):
        run("--output", str(tmp_path / "absent" / "split.svg"))


def test_no_machine_learning_library_is_loaded() -> None:
    code = (
        "import sys; from fedbench.cli import app;"
        "app(['partition', '--json'], standalone_mode=False);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

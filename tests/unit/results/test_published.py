"""Published numbers beside ours, and the leaderboards that are shipped with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from making import model, results

from fedbench.config import load_config
from fedbench.errors import ConfigError
from fedbench.evaluation.catalogue import load_task
from fedbench.results.beside import published_table
from fedbench.results.leaderboard import build
from fedbench.results.page import render_html, write_report
from fedbench.results.published import Published, read_published
from fedbench.results.renderings import render_latex, render_markdown
from fedbench.results.specification import LeaderboardSpec, load_spec

BOARDS = sorted(
    path.parent for path in Path(__file__).parents[3].glob("leaderboards/*/leaderboard.yaml")
)
REPEATED = [board for board in BOARDS if (board / "published.yaml").is_file()]
RULES = LeaderboardSpec(name="made", tasks=("headlines",), metrics=("accuracy",), seeds=(0,))
NUMBERS = Published.model_validate(
    {
        "sources": {
            "paper": {"text": "A paper, Table 1", "url": "https://example.org", "how": "read off"},
            "board": {"text": "A board"},
        },
        "rows": [
            {"row": "FedAvg", "method": "fedavg", "source": "paper",
             "scores": {"headlines": {"accuracy": 0.85}}},
            {"row": "FedAvg", "source": "board", "scores": {"mt_bench": {"marks": 4.516}}},
            {"row": "GPT", "source": "board", "scores": {"headlines": {"accuracy": 0.725}}},
        ],
    }
)  # fmt: skip


def test_a_number_stands_beside_an_empty_column_with_the_letter_of_its_source() -> None:
    beside = published_table(build(RULES, [], NUMBERS))
    assert beside is not None
    assert beside.columns == ("headlines, accuracy (%)", "mt_bench, marks")
    assert beside.rows == (
        ("FedAvg", (("85.0 (a)", ""), ("4.516 (b)", ""))),
        ("GPT", (("72.5 (b)", ""), ("—", ""))),
    )
    assert beside.sources[0] == "(a) A paper, Table 1, https://example.org; read off."


def test_our_result_fills_the_column_of_its_method() -> None:
    ours = results({model("fedavg", "global", 0, round=1): 0.8})
    beside = published_table(build(RULES, [ours], NUMBERS))
    assert beside is not None
    (_, ((_, fedavg), _)), (_, ((_, gpt), _)) = beside.rows
    record = next(s for s in ours.scores if s.metric == "accuracy")
    assert record.value is not None
    assert fedavg.startswith(f"{100 * record.value:.1f} [")
    assert gpt == ""


def test_every_rendering_has_the_numbers_and_says_how_to_fill_the_column() -> None:
    table = build(RULES, [], NUMBERS)
    for text in (render_markdown(table), render_html(table)):
        assert "85.0 (a)" in text
        assert "train-and-eval leaderboards/made/run.yaml" in text
    assert "<code>fedbench train-and-eval leaderboards/made/run.yaml</code>" in render_html(table)
    assert r"\multicolumn{2}{c}{headlines, accuracy (\%)}" in render_latex(table)


def test_a_number_without_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "published.yaml").write_text(
        "sources: {}\nrows: [{row: FedAvg, source: paper, scores: {fpb: {accuracy: 0.5}}}]\n"
    )
    with pytest.raises(ConfigError, match="source 'paper' is not among sources"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("fpb: {accuracy: 41.2}", "accuracy of 'FedAvg' on fpb is 41.2; give a share between 0"),
        ("fpb: {marks: .nan}", "is nan; give a number"),
        ("fpb: {accuracy: 0.4}", "is given twice, by paper and by board"),
    ],
)
def test_numbers_that_would_be_shown_wrong_or_not_at_all_are_refused(
    tmp_path: Path, scores: str, message: str
) -> None:
    (tmp_path / "published.yaml").write_text(
        "sources: {paper: {text: A paper}, board: {text: A board}}\nrows:\n"
        f"- {{row: FedAvg, source: paper, scores: {{{scores}}}}}\n"
        "- {row: FedAvg, source: board, scores: {fpb: {accuracy: 0.5}}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        read_published(tmp_path)


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.name)
def test_a_shipped_leaderboard_has_known_tasks_and_a_run_that_keeps_its_rules(board: Path) -> None:
    spec = load_spec(board)
    for task in spec.tasks:
        load_task(task)
    config = load_config(board / "run.yaml")
    dumped = config.model_dump(mode="json")
    for key, wanted in spec.protocol.items():
        value = dumped
        for part in key.split("."):
            value = value[part]
        assert value == wanted, key


@pytest.mark.parametrize("board", REPEATED, ids=lambda path: path.name)
def test_shipped_numbers_are_plausible_and_name_methods_of_the_run(board: Path) -> None:
    published = read_published(board)
    assert published is not None
    methods = {method.name for method in load_config(board / "run.yaml").methods}
    for row in published.rows:
        assert row.method is None or row.method in methods | {"base"}
        for scores in row.scores.values():
            for metric, value in scores.items():
                highest = 10.0 if metric in ("judge_score", "rank") else 1.0
                assert 0.0 < value <= highest
    assert published.rows or published.missing


def test_published_averages_are_the_means_of_their_tasks() -> None:
    """FlowerTune's baselines, and Table 5's rows that print both, are consistent in themselves."""
    for board in REPEATED:
        spec, published = load_spec(board), read_published(board)
        assert published is not None
        for label in published.labels:
            for name, tasks in spec.averages.items():
                for metric in spec.metrics:
                    mean = published.number(label, name, metric)
                    parts = [published.number(label, task, metric) for task in tasks]
                    known = [part.value for part in parts if part is not None]
                    if mean is not None and len(known) == len(tasks):
                        # Both are rounded, and some were read off a figure.
                        assert abs(mean.value - sum(known) / len(known)) < 0.002, (board, label)


def test_a_page_without_results_is_small(tmp_path: Path) -> None:
    page = write_report(tmp_path, build(RULES, [], NUMBERS))
    assert page.stat().st_size < 60_000  # without the charting library


def test_every_split_of_the_partitions_board_is_a_run_of_its_rules() -> None:
    board = Path(__file__).parents[3] / "leaderboards" / "partitions"
    lines = re.findall(r"^run (\S+) '(.+)' &$", (board / "run_all.sh").read_text(), re.MULTILINE)
    assert len(lines) == 4
    rules = set()
    for name, rule in lines:
        config = load_config(board / "run.yaml", [f"name={name}", f"data.partition={rule}"])
        rules.add(config.data.partition)
    assert len(rules) == 4

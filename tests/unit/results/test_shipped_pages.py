"""What is committed of a leaderboard is what its records give today."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbench.results.leaderboard import build
from fedbench.results.page import PICTURE, render_html
from fedbench.results.published import read_published
from fedbench.results.renderings import render_csv, render_json, render_latex, render_markdown
from fedbench.results.specification import read_leaderboard

BOARDS = sorted(file.parent for file in Path(__file__).parents[3].glob("leaderboards/*/index.html"))


def board_param(board: Path) -> object:
    """Boards with results of ours take long; the demo's are few."""
    is_slow = (board / "results").is_dir() and board.name != "demo"
    return pytest.param(board, marks=pytest.mark.slow if is_slow else (), id=board.name)


@pytest.mark.parametrize("board", [board_param(board) for board in BOARDS])
def test_a_committed_leaderboard_is_not_stale(board: Path) -> None:
    """After a change that is meant: fedbench leaderboard NAME --write, for each of them."""
    spec, runs = read_leaderboard(board)
    table = build(spec, runs, read_published(board))
    picture = PICTURE if (board / PICTURE).is_file() else None
    renderings = {
        "README.md": render_markdown(table, picture),
        "index.html": render_html(table),
        "table.csv": render_csv(table),
        "table.json": render_json(table),
        "table.tex": render_latex(table),
    }
    stale = [
        name
        for name, text in renderings.items()
        if (board / name).read_text(encoding="utf-8") != text
    ]
    assert stale == []

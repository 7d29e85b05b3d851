"""Where checkpoints are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbench.checkpoints import find_checkpoints
from fedbench.errors import CheckpointError


def test_of_a_folder_of_checkpoints_those_within_it_are_named(tmp_path: Path) -> None:
    for name in ("checkpoint-50", "checkpoint-100", "logs"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-50", "checkpoint-100"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
    words = "give those within it, each with --ckpt: checkpoint-100, checkpoint-50$"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoints([str(tmp_path)], None, "all")


def test_a_folder_of_something_else_is_told_what_would_do(tmp_path: Path) -> None:
    words = "give a run directory, a PEFT adapter directory, a model directory or a hub id$"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoints([str(tmp_path)], None, "all")

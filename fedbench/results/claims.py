"""Whose a results directory is: of one scoring, which may be run again, and of no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbench.errors import OutputError
from fedbench.results.record import write_atomically


def claim_scores(output: Path, identity: Mapping[str, Any]) -> str:
    """Make a directory that of this scoring, or see that it is; returns the scoring's hash.

    Raises:
        OutputError: it holds something else.
    """
    text = json.dumps(identity, sort_keys=True, indent=2)
    file = output / "score.json"
    if file.exists():
        held = file.read_text(encoding="utf-8").strip()
        if held != text:
            raise OutputError(
                f"{output}: holds the scores of another command ({_difference(held, identity)}see "
                f"{file}); choose another --output"
            )
    elif (output / "scores.jsonl").exists() or (output / "run.yaml").exists():
        raise OutputError(f"{output}: holds another run; choose another --output")
    else:
        write_atomically(file, text.encode() + b"\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(held: str, identity: Mapping[str, Any]) -> str:
    """In which points another scoring differs; a checkpoint may have been overwritten in place."""
    try:
        other = json.loads(held)
    except ValueError:  # damaged: the caller names the file
        return ""
    names = [name for name in identity if other.get(name) != identity[name]]
    said = ["weights of the checkpoints" if name == "checkpoints" else name for name in names]
    return f"what differs: {', '.join(said)}; " if said else ""

"""Where things lie: the data that travel with fedbench, and what it keeps for its user.

``tasks`` and ``leaderboards`` stand at the top of the repository and inside the wheel under
``fedbench/_data``.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "FEDBENCH_CACHE"
ANSWERS_VARIABLE = "FEDBENCH_ANSWERS"
_PACKAGE = Path(__file__).parent


def directory(name: str) -> Path:
    """The directory of that name, from the wheel or, in an editable install, the repository."""
    packed = _PACKAGE / "_data" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def cache_directory() -> Path:
    """Where answers and models made here are kept: FEDBENCH_CACHE, or the user's cache."""
    # A variable that is set to nothing says nothing; Path would take it for this directory.
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedbench"


def answers_file() -> Path:
    """The answer store that all commands share: FEDBENCH_ANSWERS, or a file of the cache."""
    named = os.environ.get(ANSWERS_VARIABLE)
    return Path(named) if named else cache_directory() / "answers.sqlite"

"""Where the data that travel with fedbench lie: ``tasks`` and ``leaderboards``.

They stand at the top of the repository and inside the wheel under ``fedbench/_data``.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def directory(name: str) -> Path:
    """The directory of that name, from the wheel or, in an editable install, the repository."""
    packed = _PACKAGE / "_data" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name

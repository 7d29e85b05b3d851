"""With what a result was made: versions, device, commit, time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedbench import __version__

PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "scipy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Fields of a `RunRecord` that tell how it was made."""
    return {
        "packages": {"python": platform.python_version(), **_versions()},
        "device": device(),
        "git_commit": git_commit(),
        "fedbench": __version__,
        "created": now(),
    }


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def device() -> str:
    """The GPU where torch is loaded and has one, else the processor with the threads in use.

    The number of threads changes the last bits of a matrix product, which training amplifies.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return f"{_cpu_name()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """The commit that fedbench itself was run from; None for an installed wheel."""
    place = Path(__file__).parent
    if not (place.parent / ".git").exists():
        return None
    command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    known = {}
    for name in PACKAGES:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""The commands that start a process shut in: plainly, by bubblewrap, or in a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

CONTAINERS = ("docker", "podman")
DISK_BYTES = 64 * 2**20
"""Of /tmp, which is memory."""
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); import checking; checking.start(sys.argv[2:])"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_SCRIPTS = Path(__file__).parent


def command(
    kind: str, name: str, image: str, processes: int, places: Sequence[str] = ()
) -> list[str]:
    """The command up to the arguments of `checking.start`.

    Args:
        kind: of the sandbox.
        name: of a container.
        image: of a container.
        processes: that a container may have beside the one that waits.
        places: directories that a program may read beside the system's and Python's.
    """
    python = [sys.executable, "-I", "-S", "-c", _BOOT, str(_SCRIPTS)]
    if kind == "bwrap":
        directories = (*_SYSTEM, sys.prefix, sys.base_prefix, str(_SCRIPTS / "checking"))
        shown = dict.fromkeys([*directories, *site_packages(), *places])
        binds = [part for place in shown for part in ("--ro-bind-try", place, place)]
        made = ["--proc", "/proc", "--dev", "/dev", *_sized_tmpfs(), "--chdir", "/tmp"]
        # Of root's processes bubblewrap leaves /proc/sys open, which is the machine's.
        closed = [part for place in ("/proc", "/dev", "/") for part in ("--remount-ro", place)]
        alone = ["--as-pid-1", "--die-with-parent"]
        return [tool(kind), *_unshared(), *alone, *made, *binds, *closed, *python]
    if kind in CONTAINERS:
        closed = ["--network=none", "--read-only", "--cap-drop=ALL", "--user=65534:65534"]
        limited = ["--security-opt=no-new-privileges", f"--pids-limit={processes + 1}"]
        limited += ["--memory=4g"]
        seen = [
            f"--tmpfs=/tmp:size={DISK_BYTES},mode=1777",
            "--workdir=/tmp",
            "-v",
            f"{_SCRIPTS / 'checking'}",
        ]
        seen[-1] += ":/fedbench/checking:ro"
        run = [tool(kind), "run", "--rm", "-i", f"--name={name}"]
        container = [*run, *closed, *limited, *seen, image]
        return [*container, "python3", "-I", "-S", "-c", _BOOT, "/fedbench"]
    return python


@cache
def _sized_tmpfs() -> list[str]:
    """An empty /tmp for every user; of a size, where bubblewrap can say that (0.6 and later)."""
    tmpfs = ["--tmpfs", "/tmp"]
    said = subprocess.run([tool("bwrap"), "--help"], capture_output=True, text=True)
    sized = ["--perms", "1777", "--size", str(DISK_BYTES), *tmpfs]
    return sized if "--size" in said.stdout else tmpfs


def _unshared() -> list[str]:
    """What bubblewrap separates.

    Root's processes are not counted, in any user namespace of his: he gets none, and may become
    another user, as the process does before it sees a program (`checking.isolation`).
    """
    if os.geteuid() != 0:
        return ["--unshare-all"]
    apart = [f"--unshare-{name}" for name in ("ipc", "pid", "net", "uts", "cgroup-try")]
    return [*apart, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def tool(name: str) -> str:
    """Where a command is: it is started without the PATH on which it was found."""
    return shutil.which(name) or name


def site_packages() -> list[str]:
    """Where a program finds numpy; its interpreter does not look by itself."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def of_client(kind: str) -> dict[str, str]:
    """What the container's own client needs; none of it is handed on to the program."""
    names = ("DOCKER_HOST", "DOCKER_CONFIG", "HOME", "XDG_RUNTIME_DIR", "PATH")
    found = {name: os.environ[name] for name in names if name in os.environ}
    return found if kind in CONTAINERS else {}


def what_a_client_says(kind: str, image: str) -> str:
    """The last line with which docker or podman refuses an image; empty where it does not."""
    asked = [tool(kind), "image", "inspect", "--format={{.Id}}", image]
    said = subprocess.run(asked, capture_output=True, text=True, env=of_client(kind))
    lines = said.stderr.strip().splitlines()
    return lines[-1] if said.returncode and lines else ""

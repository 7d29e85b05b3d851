"""The process of a program in another language than Python: it is built and run with its tests.

Here program and tests are one executable, as their data sets have them, so that a program that sets
out to deceive its tests could. What it cannot do is to end early and be taken for right: tests have
passed where the mark stands at the end of the output, which is printed behind the last of them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess

from .wire import Channel

TYPE_CHECKING = False  # typing takes longer to import than most programs run
if TYPE_CHECKING:
    pass

_SHOWN = 2000  # bytes at the end of what was printed
_SET_DUMPABLE = 4


def main(mode: str) -> None:
    """Build and run one program; what became of it is told over files 0 and 1."""
    channel = Channel(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(null, file)
    # The program, which is of the same user, may not look into this process.
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0)
    channel.send({"hello": mode})
    order = channel.receive()
    for name, text in order["files"].items():
        with open(name, "w", encoding="utf-8") as opened:
            opened.write(text)
    for step in order["build"]:
        code, printed = _run(step)
        if code:
            channel.send({"built": False, "printed": printed})
            return
    channel.send({"built": True})
    code, printed = _run(order["run"], order["cpu_seconds"])
    channel.send({"code": code, "printed": printed})


def _run(command: list[str], cpu_seconds: int | None = None) -> tuple[int, str]:
    """Exit status, and the end of what was printed."""

    def limit() -> None:
        if cpu_seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))

    with open("printed", "wb+") as printed:
        code = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            preexec_fn=limit,
            check=False,
        ).returncode
        printed.seek(max(0, os.fstat(printed.fileno()).st_size - _SHOWN))
        return code, printed.read().decode(errors="replace")

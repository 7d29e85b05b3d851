"""Progress on stderr: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
SECONDS = 60.0
"""Between lines, where nobody watches: a log that stands still looks like a command that hangs."""


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """A function that is told (what, done, total) and draws it."""
    if not sys.stderr.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None)
        current = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                bars.reset(bar, total=total, description=what)
                current = what
            bars.update(bar, completed=done, total=total)

        yield tell


def lines(clock: Callable[[], float] = time.monotonic) -> Progress:
    """A function that is told (what, done, total), and says it on stderr once in a while."""
    told = clock()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        if clock() - told >= SECONDS:
            told = clock()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return tell

"""Many questions in an event loop at once, their answers in a plain iterator."""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 4
"""The caller may be at the disk for as long as two rounds of answers take, and none waits."""


class _Over(Exception):
    """Nothing more is asked: the outbox has an error that ends all."""


def answered(
    loop: asyncio.AbstractEventLoop,
    items: Iterable[T],
    ask: Callable[[T], Coroutine[Any, Any, R]],
    at_once: int,
    *,
    last: type[Exception],
) -> Iterator[tuple[T, R]]:
    """Ask about items, and yield each with its answer as it comes.

    Args:
        loop: runs in another thread.
        items: drawn as there is room, up to `_AHEAD` times as many as are asked about.
        ask: about one of them.
        at_once: how many are asked about at the same time.
        last: an exception of `ask` behind which no item is drawn.

    Raises:
        Exception: what `ask` raises, at once; `last` behind the answers to all that were drawn.
    """
    waiting = iter(items)
    inbox: asyncio.Queue[T] = asyncio.Queue()
    outbox: queue.SimpleQueue[tuple[T, R | Exception]] = queue.SimpleQueue()
    asking = asyncio.run_coroutine_threadsafe(_ask_all(inbox, ask, outbox, at_once, last), loop)
    num_open, end = 0, None
    try:
        while True:
            # The loop finds the next items in its inbox, and is woken once for many of them.
            if end is None and num_open <= (_AHEAD - 1) * at_once:
                drawn = list(itertools.islice(waiting, _AHEAD * at_once - num_open))
                loop.call_soon_threadsafe(_put_all, inbox, drawn)
                num_open += len(drawn)
            if not num_open:
                break
            item, answer = outbox.get()
            num_open -= 1
            if isinstance(answer, last):
                end = answer
            elif isinstance(answer, Exception):
                raise answer
            else:
                yield item, answer
    finally:
        asking.cancel()
    if end is not None:
        raise end


async def _ask_all(
    inbox: asyncio.Queue[T],
    ask: Callable[[T], Coroutine[Any, Any, R]],
    outbox: queue.SimpleQueue[tuple[T, R | Exception]],
    at_once: int,
    last: type[Exception],
) -> None:
    """Until it is cancelled, or one ends with something else than `last`."""
    gate = asyncio.Lock()

    async def in_turn() -> None:
        while True:
            item = await inbox.get()
            async with gate:
                asking = asyncio.create_task(ask(item))
                # One is written in the loop's first pass and sent in the second. Without the gate
                # the loop would write the requests behind all answers that came together before
                # it sent the first: they would come together again, and the server be idle.
                try:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    asking.cancel()
                    raise
            try:
                outbox.put((item, await asking))
            except Exception as error:
                outbox.put((item, error))  # raised where the answers are read
                if not isinstance(error, last):
                    # That may be later, and until then nothing further is asked. Nobody fetches
                    # the error of this task, and the loop would log one that left it.
                    raise _Over from error

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(in_turn())
    except* _Over:
        pass


def _put_all(inbox: asyncio.Queue[T], items: Iterable[T]) -> None:
    for item in items:
        inbox.put_nowait(item)

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator

import pytest

from fedbench.generation.server.streaming import answered


class LastError(Exception):
    pass


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(nothing_runs(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def nothing_runs() -> None:
    while asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0.01)


def test_requests_that_take_long_to_write_are_sent_one_after_the_other(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """A request is written in one pass of the loop and sent in the next, as aiohttp does."""
    events = []

    async def send(item: int) -> None:
        events.append(f"sent {item}")

    async def ask(item: int) -> int:
        events.append(f"written {item}")
        await asyncio.create_task(send(item))
        await asyncio.sleep(0.01)
        return item

    assert dict(answered(loop, range(3), ask, 3, last=LastError)) == {0: 0, 1: 1, 2: 2}
    assert events == [f"{what} {item}" for item in range(3) for what in ("written", "sent")]


def test_behind_the_last_error_nothing_is_drawn_and_what_was_asked_is_yielded(
    loop: asyncio.AbstractEventLoop,
) -> None:
    drawn = []

    def items() -> Iterator[int]:
        for item in range(100):
            drawn.append(item)
            yield item

    async def ask(item: int) -> int:
        if item == 2:
            raise LastError
        await asyncio.sleep(0.02)
        return item

    got: list[int] = []
    with pytest.raises(LastError):
        got.extend(item for item, _ in answered(loop, items(), ask, 4, last=LastError))
    assert sorted([*got, 2]) == drawn
    assert len(drawn) <= 16


def test_other_errors_are_raised_at_once_and_what_runs_is_cancelled(
    loop: asyncio.AbstractEventLoop,
) -> None:
    cancelled = threading.Event()

    async def ask(item: int) -> int:
        if item == 1:
            raise ValueError("no")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return item

    for _ in range(20):  # wherever the others are at that moment
        cancelled.clear()
        with pytest.raises(ValueError, match="no"):
            list(answered(loop, range(5), ask, 2, last=LastError))
        assert cancelled.wait(5)


def test_behind_another_error_nothing_is_asked_however_late_it_is_read(
    loop: asyncio.AbstractEventLoop,
) -> None:
    asked = []

    async def ask(item: int) -> int:
        asked.append(item)
        if item == 1:
            raise ValueError("no")
        return item

    answers = answered(loop, range(100), ask, 1, last=LastError)
    assert next(answers) == (0, 0)
    # The caller is busy with an answer while the loop goes on.
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(5)
    with pytest.raises(ValueError, match="no"):
        next(answers)
    assert asked == [0, 1]


def test_an_error_that_is_raised_is_not_logged_by_the_loop_too(
    loop: asyncio.AbstractEventLoop,
) -> None:
    logged = []
    loop.set_exception_handler(lambda _, context: logged.append(context["message"]))

    async def ask(item: int) -> int:
        # The reader has the error, and has gone, before the loop gets on with its own tasks.
        loop.call_soon(time.sleep, 0.2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(answered(loop, range(5), ask, 2, last=LastError))
    asyncio.run_coroutine_threadsafe(nothing_runs(), loop).result(5)
    gc.collect()
    assert logged == []

"""When the next request to a server may start."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from collections.abc import AsyncIterator, Mapping


class PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds that the server asks for."""


class Pace:
    """Spaces requests out, and holds all of them back while the server wants a pause."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._resumes = 0.0

    async def turn(self) -> None:
        """Wait until the next request may start."""
        while True:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            if start > now:
                await asyncio.sleep(start - now)
            if start >= self._resumes:
                return  # otherwise the server asked for a pause meanwhile

    def pause(self, seconds: float) -> None:
        """No request starts for so long."""
        self._resumes = max(self._resumes, time.monotonic() + seconds)
        self._next = max(self._next, self._resumes)


class OneKindAtOnce:
    """Requests of one kind run together; those of another wait until all of them are over."""

    def __init__(self) -> None:
        self._kind = ""
        self._num_running = 0
        self._over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def turn(self, kind: str) -> AsyncIterator[None]:
        """Wait for, and hold, a place among requests of this kind."""
        while self._num_running and kind != self._kind:
            self._over.clear()
            await self._over.wait()
        self._kind = kind
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._over.set()


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3, and OpenAI's milliseconds)."""
    for header, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(header, "")
        if value.replace(".", "", 1).isdigit():
            return float(value) * scale
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return max(date.timestamp() - time.time(), 0.0)

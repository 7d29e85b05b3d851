"""Connections to one server, by aiohttp.

The library's own choice, httpx, spends most of a request's time in Python: with many requests at
once it is what limits them. The adapter for aiohttp that `openai` ships takes an answer for the
next one where a server sends one twice, and says of a lost connection that it took too long.

Of what arrives when the next request is on its way already, nobody can tell that it is no answer to
it: HTTP/1.1 has no numbers for requests. Servers do not send such things.

Requests to one server differ in their bodies alone, so that the rest is put together once.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx2  # what `openai` is built on
from aiohttp.connector import Connection
from yarl import URL

_IDLE = 5.0
"""Seconds after which an idle connection is not used again; servers close it about then."""
_TRIES = 3
"""Connections that are taken up for a request until one can be used."""


class HttpClient(httpx2.AsyncClient):
    """httpx's client over `Connections`, for many requests that have the same head.

    Address and headers of a request are checked, merged and encoded when they are first seen; the
    requests behind it that have the same ones get only a body of their own.
    """

    def __init__(self) -> None:
        # As `openai` has it: a server may send requests on to where it has moved.
        super().__init__(transport=Connections(), follow_redirects=True)
        self._last: tuple[object, httpx2.Request] | None = None

    def build_request(
        self,
        method: str,
        url: httpx2.URL | str,
        *,
        content: Any = None,
        headers: Any = None,
        timeout: Any = httpx2.USE_CLIENT_DEFAULT,
        **other: Any,
    ) -> httpx2.Request:
        """As httpx has it.

        Raises:
            httpx2.InvalidURL: the address is none.
        """
        is_usual = isinstance(content, bytes) and isinstance(headers, list)
        if not is_usual or self.cookies or any(value is not None for value in other.values()):
            return super().build_request(
                method, url, content=content, headers=headers, timeout=timeout, **other
            )
        head = (method, url, tuple(headers), timeout)
        if self._last is None or self._last[0] != head:
            self._last = head, super().build_request(method, url, headers=headers, timeout=timeout)
        known = self._last[1]
        own_headers = httpx2.Headers(known.headers)
        own_headers["Content-Length"] = str(len(content))
        request = httpx2.Request(
            method,
            known.url,
            headers=own_headers,
            stream=httpx2.ByteStream(content),
            extensions=known.extensions,
        )
        request.read()
        return request


class Connections(httpx2.AsyncBaseTransport):
    """As many connections as there are requests at once, kept for the next ones."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, and read the whole answer.

        Raises:
            httpx2.ConnectError: the server was not reached.
            httpx2.ReadError: the connection was lost, or what came over it is not HTTP.
            httpx2.ReadTimeout: there is no whole answer within the time set for reading.
        """
        if self._session is None:
            self._session = _session_with(request.url)
        seconds = request.extensions["timeout"]["read"]
        with _in_terms_of_httpx():
            for _ in range(_TRIES):
                with contextlib.suppress(_UsedUpError):
                    return await _answer(self._session, request, seconds)
        raise httpx2.ReadError("the server sends what nobody has asked for")

    async def aclose(self) -> None:
        """Close all of them."""
        if self._session is not None:
            await self._session.close()


async def _answer(
    session: aiohttp.ClientSession, request: httpx2.Request, seconds: float
) -> httpx2.Response:
    async with session.request(
        request.method,
        URL(str(request.url), encoded=True),
        headers=[(name.decode(), value.decode()) for name, value in request.headers.raw],
        data=await request.aread() or None,
        timeout=aiohttp.ClientTimeout(total=seconds),
        allow_redirects=False,
    ) as response:
        content = await response.read()
    return httpx2.Response(
        response.status, headers=response.raw_headers, content=content, request=request
    )


def _session_with(url: httpx2.URL) -> aiohttp.ClientSession:
    # Reading the certificates takes longer than a hundred requests.
    certificates = httpx2.create_ssl_context() if url.scheme == "https" else True
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE, ssl=certificates),
        request_class=_Request,
        auto_decompress=False,  # httpx does it, and keeps the cookies
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=_proxy_before(url),  # aiohttp would read the environment for each request
    )


def _proxy_before(url: httpx2.URL) -> str | None:
    """The proxy that the environment names (``HTTPS_PROXY``, ``NO_PROXY``)."""
    if urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme, proxies.get("all"))


class _UsedUpError(Exception):
    """A connection that was kept cannot be used: nothing has been sent over it."""


class _Request(aiohttp.ClientRequest):
    """A request that takes nothing for its answer that came before it was sent."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is not None and conn.protocol.should_close:
            raise _UsedUpError
        return await super().send(conn)


@contextlib.contextmanager
def _in_terms_of_httpx() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError(str(error)) from error
    except TimeoutError as error:
        raise httpx2.ReadTimeout("no answer in time") from error
    except aiohttp.ClientError as error:
        raise httpx2.ReadError(str(error)) from error

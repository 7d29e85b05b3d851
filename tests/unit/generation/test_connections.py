"""How requests go over connections: what the client is told when they fail, and what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

pytest.importorskip("openai")

import httpx2

from fedbench.generation.server.connections import Connections, HttpClient

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@contextlib.contextmanager
def serving(handle: Handle) -> Iterator[str]:
    """A server's address; `handle` gets each of its connections."""
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = asyncio.Event()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            await handle(reader, writer)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(one, "127.0.0.1", 0) as server:
            ports.put(server.sockets[0].getsockname()[1])
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{ports.get()}/"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0.3))  # handlers see that their clients are gone
        loop.close()


def post(url: str, *bodies: str, timeout: float = 5.0, pause: float = 0.0) -> list[str]:
    """What comes back for each, one after the other over one client."""

    async def run() -> list[str]:
        async with httpx2.AsyncClient(transport=Connections(), timeout=timeout) as client:
            texts = []
            for body in bodies:
                texts.append((await client.post(url, content=body)).text)
                await asyncio.sleep(pause)
            return texts

    return asyncio.run(run())


async def body_of(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))


def test_a_connection_is_kept_for_the_next_request() -> None:
    connections = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            body = await body_of(reader)
            writer.write(OK % len(body) + body)

    with serving(echo) as url:
        assert post(url, "a", "b", "c") == ["a", "b", "c"]
    assert len(connections) == 1


def test_an_answer_that_is_sent_twice_is_not_taken_for_the_next_one() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await body_of(reader)
            writer.write(OK % len(body) + body)
            await asyncio.sleep(0.02)  # the connection lies idle by then
            writer.write(OK % len(body) + body)

    with serving(twice) as url:
        assert post(url, "a", "b", "c", pause=0.1) == ["a", "b", "c"]


def test_what_went_wrong_is_told_in_terms_of_httpx() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(OK % 10)
        await asyncio.sleep(0.2)

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)

    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(b"hello\r\n\r\n")

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0\r\n")
        await reader.read()

    with serving(greet) as url, pytest.raises(httpx2.ReadError):
        post(url, "a")
    with serving(hang) as url, pytest.raises(httpx2.ReadTimeout):
        post(url, "a", timeout=0.1)
    with serving(drop) as url, pytest.raises(httpx2.ReadError):
        post(url, "a")
    with serving(chatter) as url, pytest.raises(httpx2.ReadError):
        post(url, "a")
    with pytest.raises(httpx2.ConnectError):
        post(url, "a")  # nobody is there any more


def test_a_proxy_of_the_environment_is_used_and_not_for_hosts_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n")).decode().strip())
        writer.write(OK % 5 + b"proxy")

    with serving(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert post("http://judge.invalid/v1", "a") == ["proxy"]
        assert lines == ["POST http://judge.invalid/v1 HTTP/1.1"]
        monkeypatch.setenv("no_proxy", "judge.invalid")
        with pytest.raises(httpx2.ConnectError):
            post("http://judge.invalid/v1", "a")


@pytest.mark.parametrize(
    "heads",
    [
        [("http://a/v1/x", [("Content-Type", "application/json")], 3.0)] * 3,
        [("http://a/v1/x", [("N", str(n % 2)), ("Accept", "text/plain")], 3.0) for n in range(4)],
        [(f"http://a:{n}/v1", [("N", "1")], 3.0) for n in (1, 2, 1)],
        [("http://a/v1/x", [("N", "1")], seconds) for seconds in (1.0, None, 2.0)],
    ],
    ids=["same", "headers", "addresses", "timeouts"],
)
def test_a_request_with_a_known_head_is_the_one_that_httpx_builds(
    heads: list[tuple[str, list[tuple[str, str]], float | None]],
) -> None:
    ours, theirs = HttpClient(), httpx2.AsyncClient()
    for number, (url, headers, seconds) in enumerate(heads):
        built = [
            client.build_request(
                "POST", url, content=b"x" * number, headers=headers, timeout=seconds, files=None
            )
            for client in (ours, theirs)
        ]
        one, other = [
            (r.method, r.url, sorted(r.headers.raw), r.content, r.extensions) for r in built
        ]
        assert one == other


def posted(url: str, num: int) -> list[str]:
    """What comes back for as many requests with the same head and bodies of their own."""

    async def run() -> list[str]:
        async with HttpClient() as client:
            answers = []
            for number in range(num):
                request = client.build_request(
                    "POST", url, content=b"b" * number, headers=[("N", "1")], timeout=5.0
                )
                answers.append((await client.send(request)).text)
            return answers

    return asyncio.run(run())


def test_a_cookie_comes_back_once_and_a_request_is_sent_on_whole() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(
                int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            )
            if b"post /moved" not in head:
                writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /moved\r\n")
                writer.write(b"Set-Cookie: route=7\r\nContent-Length: 0\r\n\r\n")
                continue
            told = b"%d cookies, %s" % (head.count(b"route=7"), body)
            writer.write(OK % len(told) + told)

    with serving(handle) as url:
        assert posted(url, 3) == ["1 cookies, ", "1 cookies, b", "1 cookies, bb"]

"""A judge on loopback that fails in every way a server can, as a script says."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "slow", "dropped", "malformed", "truncated", "twice")
"""``slow``: a body that takes longer than the client waits. ``twice``: an answer that is sent
twice, which is one answer."""
ANSWERED = ("answer", "twice")


@dataclass
class Judged:
    """What the server was asked, and what it did about it."""

    prompt: str
    body: dict[str, Any]
    did: str
    time: float
    headers: dict[str, str] = field(default_factory=dict)


class FaultyServer:
    """`fate` says what happens to the n-th request (from 0) about a prompt."""

    def __init__(self, fate: Callable[[str, int], str] = lambda prompt, n: "answer") -> None:
        self.fate = fate
        self.reply: Callable[[str], str] = lambda prompt: "Well done. Rating: [[7]]"
        self.seconds = 0.0
        """How long an answer takes."""
        self.slow_seconds = 1.5
        self.retry_after = "0.2"
        self.owner = "somebody"
        self.url = ""
        self.log: list[Judged] = []
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()

    def answered(self) -> Counter[str]:
        """How often each prompt was answered in full."""
        return Counter(one.prompt for one in self.log if one.did in ANSWERED)

    def next_fate(self, prompt: str) -> str:
        with self._lock:
            number = self._seen[prompt]
            self._seen[prompt] += 1
        return self.fate(prompt, number)


def each_fault_once(prompt: str, number: int) -> str:
    """Two faults before an answer, which differ from prompt to prompt."""
    drawn = random.Random(prompt).sample(FAULTS, 2)
    return drawn[number] if number < len(drawn) else "answer"


@contextmanager
def running(server: FaultyServer) -> Iterator[FaultyServer]:
    """The server, until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            card = {"id": "judge", "object": "model", "owned_by": server.owner}
            self._send(200, json.dumps({"object": "list", "data": [card]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            headers = {name.lower(): value for name, value in self.headers.items()}
            did = server.next_fate(prompt)
            start = time.monotonic()
            try:
                self._act(did, prompt)
            except (BrokenPipeError, ConnectionResetError):  # the client is gone
                did, self.close_connection = "lost", True
            server.log.append(Judged(prompt, body, did, start, headers))

        def _act(self, did: str, prompt: str) -> None:
            reply = {"role": "assistant", "content": server.reply(prompt)}
            content = json.dumps(
                {
                    "choices": [{"index": 0, "message": reply, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                }
            ).encode()
            time.sleep(server.seconds)
            match did:
                case "429":
                    self._send(429, b'{"error": {"message": "slow down"}}', server.retry_after)
                case "500":
                    self._send(500, b'{"error": {"message": "oops"}}')
                case "slow":
                    self._head(200, len(content))
                    self.wfile.write(content[:10])
                    self.wfile.flush()
                    time.sleep(server.slow_seconds)
                    self.close_connection = True
                case "dropped":
                    self.close_connection = True
                case "malformed":
                    self._send(200, content[:-20] + b"}" * 20)
                case "truncated":
                    self._head(200, len(content))
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                case "twice":
                    self._send(200, content, times=2)
                    self.close_connection = True
                case _:
                    self._send(200, content)

        def _head(self, status: int, length: int, wait: str | None = None) -> None:
            self.wfile.write(self._headers(status, length, wait))

        def _headers(self, status: int, length: int, wait: str | None) -> bytes:
            lines = [f"HTTP/1.1 {status} {self.responses[status][0]}"]
            lines += [f"Retry-After: {wait}"] if wait is not None else []
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
            return "\r\n".join([*lines, "", ""]).encode()

        def _send(
            self, status: int, content: bytes, wait: str | None = None, times: int = 1
        ) -> None:
            """At once, as a copy that comes after the next request would pass for its answer."""
            self.wfile.write((self._headers(status, len(content), wait) + content) * times)

        def log_message(self, *args: Any) -> None:
            pass

    class Threads(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *args: Any) -> None:
            pass  # clients are killed here

    with Threads(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()

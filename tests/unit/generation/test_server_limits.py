"""Pauses, budgets and forms: what binds requests beyond the one that met them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_server import Call, FakeServer, Response, chat_reply, refusal, running

pytest.importorskip("openai")

from fedbench.errors import ConfigError
from fedbench.generation.backend import Sampling
from fedbench.generation.server.access import ServerConfig
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.pacing import Pace
from fedbench.generation.server.responses import Unanswered
from fedbench.generation.server.spending import BudgetError
from fedbench.schema import validated


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


def chat(server: FakeServer, *, max_tokens: int = 7, **options: Any) -> str:
    with closing(ServerClient(server.url, "tiny", **options)) as asked:
        asking = asked.chat([("user", "a")], Sampling(max_tokens=max_tokens))
        return asked.run(asking).text


def test_a_pause_holds_back_requests_that_have_their_time_already() -> None:
    async def starts() -> tuple[float, list[float]]:
        pace = Pace(per_minute=1200)  # one in 0.05 seconds
        found = []

        async def one() -> None:
            await pace.turn()
            found.append(time.monotonic())

        asking = asyncio.gather(*(one() for _ in range(4)))
        await asyncio.sleep(0.02)  # the first has started, and three know when they will
        pace.pause(0.3)
        resumes = time.monotonic() + 0.3
        await asking
        return resumes, sorted(found)

    resumes, [first, *others] = asyncio.run(starts())
    assert first < resumes - 0.2
    assert min(others) >= resumes - 0.01
    assert others[-1] - others[0] >= 0.09  # two gaps: they do not come back all at once


def test_a_budget_reserves_as_many_tokens_as_further_fields_allow(
    server: FakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("127.0.0.1: {models: {tiny: {prompt: 1000, completion: 1000}}}")
    limits: dict[str, Any] = {"prices": file, "budget": 0.05}  # 1 + 32 + 7 tokens cost 0.04
    assert chat(server, **limits) == "yes"
    with pytest.raises(BudgetError):
        chat(server, **limits, extra={"max_completion_tokens": 100})
    assert len(server.calls) == 1


@pytest.mark.parametrize("name", ["model", "messages", "stream", "n"])
def test_further_fields_do_not_replace_what_is_asked(name: str) -> None:
    raw = {"base_url": "http://127.0.0.1:8000/v1", "model": "tiny", "extra": {name: 1}}
    with pytest.raises(ConfigError, match=f"server.yaml: extra: .*{name} is for fedbench to say"):
        validated(ServerConfig, raw, "server.yaml")


def test_where_a_form_is_refused_the_way_without_one_is_named(server: FakeServer) -> None:
    def answer(call: Call) -> Response:
        if call.body["messages"][0]["content"] == "a":
            return refusal(400, "'response_format' is not supported with this model")
        return chat_reply("yes")

    server.answer = answer
    with pytest.raises(Unanswered, match=r"not supported.*\(--no-constrain, or constrain: none"):
        chat(server)

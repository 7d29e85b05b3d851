from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_server import Call, FakeServer, Response, chat_reply, refusal, running
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openai")

from fedbench.errors import ConfigError
from fedbench.generation.backend import Sampling
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.responses import ServerError, Unanswered
from fedbench.generation.server.spending import BudgetError, Ledger, Price, Tokens, find_price

Open = Callable[..., ServerClient]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def client(server: FakeServer) -> Iterator[Open]:
    """Opens clients of the server, and closes them."""
    opened: list[ServerClient] = []

    def open_client(**options: Any) -> ServerClient:
        options = {"backoff": 0.01, "max_retries": 2, "timeout": 5.0} | options
        opened.append(ServerClient(server.url, "tiny", **options))
        return opened[-1]

    yield open_client
    for one in opened:
        one.close()


def ask(client: ServerClient, texts: list[str], **sampling: Any) -> dict[str, str]:
    """The answers, and what went wrong where there is none."""

    async def chat(text: str) -> str:
        try:
            return (await client.chat([("user", text)], Sampling(**sampling))).text
        except Unanswered as error:
            return f"error: {error}"

    return dict(client.stream(texts, chat))


def first(failure: Response) -> Callable[[Call], Response]:
    """Fails once, then answers."""
    failures = [failure]
    return lambda call: failures.pop() if failures else chat_reply("yes")


def content(call: Call) -> str:
    text: str = call.body["messages"][0]["content"]
    return text


def test_a_conversation_is_sent_as_it_is_and_greedy_answers_carry_no_seed(
    server: FakeServer, client: Open
) -> None:
    asked = client(extra={"reasoning_effort": "low"})
    messages = [("system", "Be brief."), ("user", "Well?")]
    reply = asked.run(asked.chat(messages, Sampling(max_tokens=7, stop=("\n",))))
    assert (reply.text, reply.finish, reply.num_tokens) == ("yes", "stop", (5, 5))
    assert server.bodies() == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Well?"},
            ],
            "temperature": 0.0,
            "max_tokens": 7,
            "stop": ["\n"],
            "reasoning_effort": "low",
        }
    ]


def test_samples_of_one_item_are_drawn_with_seeds_of_their_own(
    server: FakeServer, client: Open
) -> None:
    asked = client()
    for index in (0, 1):
        asked.run(asked.chat([("user", "a")], Sampling(temperature=0.7, top_p=0.9, index=index)))
    one, other = server.bodies()
    assert one["seed"] != other["seed"]
    assert {k: one[k] for k in one if k != "seed"} == {k: other[k] for k in other if k != "seed"}


def test_no_more_than_the_allowed_requests_run_at_once_and_none_is_lost(
    server: FakeServer, client: Open
) -> None:
    drawn = []

    def questions() -> Iterator[str]:
        for number in range(12):
            drawn.append(number)
            yield str(number)

    def answer(call: Call) -> Response:
        reply = chat_reply(content(call))
        reply.seconds = 0.05 if content(call) == "0" else 0.01  # the first comes back later
        return reply

    server.answer = answer
    asked = client(concurrency=3)
    ahead = []
    answers: dict[str, str] = {}

    async def chat(text: str) -> str:
        return (await asked.chat([("user", text)], Sampling())).text

    for question, text in asked.stream(questions(), chat):
        answers[question] = text
        ahead.append(len(drawn) - len(answers))
    assert answers == {str(number): str(number) for number in range(12)}
    assert next(iter(answers)) != "0"
    assert server.most_at_once == 3
    assert max(ahead) < 4 * 3  # the next ones lie ready


@pytest.mark.parametrize(
    "failure",
    [
        refusal(500),
        refusal(503),
        refusal(429),
        Response(hang_up=True),
        Response(raw=b"<html>Bad gateway</html>"),
        Response({"choices": []}),
        Response({"choices": [{"text": "of another endpoint"}]}),
    ],
    ids=["500", "503", "429", "lost", "garbage", "empty", "wrong shape"],
)
def test_what_may_pass_is_tried_again(server: FakeServer, client: Open, failure: Response) -> None:
    server.answer = first(failure)
    asked = client()
    assert ask(asked, ["a"]) == {"a": "yes"}
    assert asked.ledger.usage.num_retries == 1
    assert len(server.calls) == 2


def test_an_answer_that_takes_too_long_is_asked_for_again(server: FakeServer, client: Open) -> None:
    late = chat_reply("late")
    late.seconds = 0.6
    server.answer = first(late)
    assert ask(client(timeout=0.2), ["a"]) == {"a": "yes"}


def test_a_retry_waits_as_long_as_the_server_asks(server: FakeServer, client: Open) -> None:
    server.answer = first(refusal(429, Retry_After="0.4"))
    assert ask(client(), ["a"]) == {"a": "yes"}
    before, after = (call.time for call in server.calls)
    assert after - before >= 0.4


def test_while_one_waits_no_other_request_starts(server: FakeServer, client: Open) -> None:
    server.answer = first(refusal(429, retry_after_ms="400"))
    assert ask(client(concurrency=1), ["a", "b"]) == {"a": "yes", "b": "yes"}
    refused, *later = (call.time for call in server.calls)
    assert min(later) - refused >= 0.4


def test_a_server_that_wants_an_hour_ends_the_run_at_once(server: FakeServer, client: Open) -> None:
    server.answer = lambda call: refusal(429, "daily limit", Retry_After="3600")
    with pytest.raises(ServerError, match=r"wait 3600 seconds.*daily limit.*is stored"):
        ask(client(), ["a"])
    assert len(server.calls) == 1


def test_requests_per_minute_are_kept(server: FakeServer, client: Open) -> None:
    ask(client(requests_per_minute=600), ["a", "b", "c", "d"])  # one in 0.1 seconds
    times = sorted(call.time for call in server.calls)
    assert times[-1] - times[0] >= 0.25  # three gaps, less what the way there may vary


def test_one_request_without_an_answer_does_not_stop_the_others(
    server: FakeServer, client: Open
) -> None:
    server.answer = lambda call: refusal(500, "oops") if content(call) == "b" else chat_reply("yes")
    answers = ask(client(), ["a", "b", "c"])
    assert answers["a"] == answers["c"] == "yes"
    assert answers["b"].startswith("error: ")
    assert "oops" in answers["b"]
    assert "3 tries" in answers["b"]


def test_a_bad_request_is_not_sent_again(server: FakeServer, client: Open) -> None:
    server.answer = lambda call: refusal(400, "maximum context length is 8 tokens")
    answers = ask(client(), ["a"])
    assert "maximum context length is 8 tokens" in answers["a"]
    assert len(server.calls) == 1


def test_a_server_that_answers_nothing_is_not_asked_for_ever(
    server: FakeServer, client: Open
) -> None:
    server.answer = lambda call: refusal(400, "unknown field: temperature")
    with pytest.raises(ServerError, match=r"10 requests in a row.*unknown field.*is stored"):
        ask(client(concurrency=1), [str(n) for n in range(1000)])
    assert len(server.calls) == 10


def test_long_prompts_in_a_row_are_no_reason_to_give_up(server: FakeServer, client: Open) -> None:
    server.answer = lambda call: refusal(400) if content(call) != "0" else chat_reply("yes")
    answers = ask(client(concurrency=1), [str(n) for n in range(15)])
    assert sum(answer.startswith("error") for answer in answers.values()) == 14


def test_a_wrong_key_is_said_at_once_and_not_shown(
    server: FakeServer, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.answer = lambda call: refusal(401, "Incorrect API key provided: sk-secret")
    with pytest.raises(ServerError, match="correct the key in MY_KEY") as raised:
        ask(client(api_key_variable="MY_KEY"), ["a"])
    assert "sk-secret" not in str(raised.value)
    assert server.calls[0].headers["authorization"] == "Bearer sk-secret"


def test_a_key_in_another_message_is_blotted_out(
    server: FakeServer, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.answer = lambda call: refusal(400, "key sk-secret may not ask this")
    assert "sk-secret" not in ask(client(api_key_variable="MY_KEY"), ["a"])["a"]


def test_the_key_to_openai_goes_to_no_other_server(
    server: FakeServer, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    ask(client(), ["a"])
    assert "sk-secret" not in str(server.calls[0].headers)


def test_a_variable_without_a_key_is_named(client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY holds no key"):
        client(api_key_variable="MY_KEY")


def test_an_unknown_model_is_said_at_once(server: FakeServer, client: Open) -> None:
    server.answer = lambda call: refusal(404, "The model `tiny` does not exist.")
    with pytest.raises(ServerError, match=r"correct the address.*'tiny'"):
        ask(client(), ["a"])
    assert len(server.calls) == 1


def test_a_quota_that_is_used_up_is_not_waited_for(server: FakeServer, client: Open) -> None:
    error = {"message": "You exceeded your quota", "code": "insufficient_quota"}
    server.answer = lambda call: Response({"error": error}, 429)
    with pytest.raises(ServerError, match="paid first"):
        ask(client(), ["a"])


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = ServerClient(f"http://127.0.0.1:{port}/v1", "tiny")
    with closing(client), pytest.raises(ServerError, match="cannot be reached"):
        client.run(client.models())


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://me:word@host/v1"])
def test_an_address_must_be_one_and_hold_no_secret(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ServerClient(url, "tiny")
    assert "word" not in str(raised.value).replace("password", "")


def test_the_fifth_stop_string_is_looked_for_here(server: FakeServer, client: Open) -> None:
    server.answer = lambda call: chat_reply("one, two END three", finish_reason="length")
    asked = client()
    stops = ("1", "2", "3", "4", "END")
    reply = asked.run(asked.chat([("user", "a")], Sampling(stop=stops)))
    assert (reply.text, reply.finish) == ("one, two ", "stop")
    assert server.bodies()[0]["stop"] == ["1", "2", "3", "4"]  # all that the protocol allows


def test_a_refusal_is_an_answer_and_a_filtered_one_is_none(
    server: FakeServer, client: Open
) -> None:
    replies = [
        chat_reply("", finish_reason="content_filter"),
        chat_reply("", message={"content": None, "refusal": "I cannot help."}),
    ]
    server.answer = lambda call: replies.pop()
    asked = client(concurrency=1)
    assert ask(asked, ["a"]) == {"a": "I cannot help."}
    assert "content filter" in ask(asked, ["b"])["b"]


PRICES = "127.0.0.1: {models: {tiny: {prompt: 1000, completion: 1000}}}"  # 0.001 per token


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    file = tmp_path / "prices.yaml"
    file.write_text(PRICES)
    return file


def test_the_budget_is_not_overspent_and_what_was_paid_for_is_handed_out(
    server: FakeServer, client: Open, prices: Path
) -> None:
    # A request costs 0.01 (5 + 5 tokens), and at most 0.04 (1 byte + 32 around it + 7 tokens):
    # with 0.07 spent, the eighth does not fit into 0.105.
    asked = client(concurrency=2, budget=0.105, prices=prices)
    drawn: list[str] = []
    answered: list[str] = []

    def questions() -> Iterator[str]:
        for letter in "abcdefghijklmnopqrstuvwxyz":
            drawn.append(letter)
            yield letter

    async def chat(text: str) -> str:
        return (await asked.chat([("user", text)], Sampling(max_tokens=7))).text

    answers = asked.stream(questions(), chat)
    with pytest.raises(BudgetError, match=r"0.105 dollars.*7 requests.*0.07 dollars.*is stored"):
        answered.extend(question for question, _ in answers)
    assert len(server.calls) == len(answered) == 7
    assert asked.ledger.usage.dollars == pytest.approx(0.07)
    assert len(drawn) <= 7 + 4 * 2


def test_an_answer_lost_on_its_way_may_have_been_billed_and_counts_in_full(
    server: FakeServer, client: Open, prices: Path
) -> None:
    server.answer = first(Response(hang_up=True))
    asked = client(prices=prices)
    ask(asked, ["a"], max_tokens=7)
    assert asked.ledger.usage.num_uncounted == 1
    assert asked.ledger.usage.dollars == pytest.approx(0.04 + 0.01)


def test_a_refused_request_costs_nothing(server: FakeServer, client: Open, prices: Path) -> None:
    server.answer = lambda call: refusal(400)
    asked = client(prices=prices)
    ask(asked, ["a"])
    assert asked.ledger.usage.dollars == 0.0


def test_a_budget_needs_a_price(client: Open) -> None:
    with pytest.raises(ConfigError, match=r"price of 'tiny'.*not known"):
        client(budget=1.0)


def test_prices_are_found_by_host_and_model() -> None:
    assert find_price("https://api.openai.com/v1", "gpt-4") == Price(prompt=30, completion=60)
    assert find_price("https://elsewhere.example/v1", "gpt-4") is None


def test_a_damaged_price_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("host: {models: {tiny: {prompt: -1, completion: 1}}}")
    with pytest.raises(ConfigError, match=r"prices.yaml: .*prompt"):
        find_price("http://host/v1", "tiny", file)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=20),
    st.integers(1, 400),
)
def test_whatever_is_asked_a_ledger_never_spends_more_than_its_budget(
    requests: list[tuple[int, int]], budget: int
) -> None:
    async def spend() -> float:
        ledger = Ledger(Price(prompt=1e6, completion=0), float(budget), "tiny")  # 1 per token

        async def request(most: int, used: int) -> None:
            async with ledger.bill(Tokens(most, 0)) as bill:
                await asyncio.sleep(0)
                bill.used = Tokens(min(used, most), 0)

        await asyncio.gather(*(request(*r) for r in requests), return_exceptions=True)
        return ledger.usage.dollars or 0.0

    assert asyncio.run(spend()) <= budget

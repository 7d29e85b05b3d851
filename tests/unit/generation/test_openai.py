from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import Body, Call, FakeServer, Response, chat_reply, refusal, running, text_reply

pytest.importorskip("openai")

from fedbench.data.templates import Template, Turn, get_template
from fedbench.errors import CheckpointError, ConfigError
from fedbench.generation.backend import (
    Answer,
    Checkpoint,
    Job,
    Question,
    Request,
    Sampling,
    Written,
)
from fedbench.generation.server.access import read_server
from fedbench.generation.server.backend import OpenAIBackend, open_server
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.responses import ServerError
from fedbench.generation.server.served import adapter_name, server_checkpoint
from fedbench.generation.server.spending import BudgetError
from fedbench.results.record import ModelId

Open = Callable[..., OpenAIBackend]
PLAIN = get_template("plain")
CHAT = get_template("chat")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server


@pytest.fixture
def backend(server: FakeServer) -> Iterator[Open]:
    """Opens backends on the server, and closes them."""
    opened: list[OpenAIBackend] = []

    def open_backend(
        budget: float | None = None,
        prices: Path | None = None,
        extra: Body | None = None,
        model: str = "tiny",
        **options: Any,
    ) -> OpenAIBackend:
        limits: Body = {"budget": budget, "extra": extra} | ({"prices": prices} if prices else {})
        client = ServerClient(server.url, model, backoff=0.01, max_retries=1, **limits)
        opened.append(OpenAIBackend(client, **options))
        return opened[-1]

    yield open_backend
    for one in opened:
        one.close()


def question(text: str, *choices: str, **more: Any) -> Question:
    kind = "choice" if choices else "generate"
    turn = Turn(text, system=more.pop("system", ""))
    return Question((turn,), kind, Sampling(max_tokens=7), choices, **more)


def ask(
    backend: OpenAIBackend, requests: list[Request], checkpoint: Checkpoint | None = None
) -> list[Answer]:
    """Answers in the order of the requests."""
    checkpoint = checkpoint or server_checkpoint(backend.client)
    jobs = [Job(checkpoint, (request,), (str(n),)) for n, request in enumerate(requests)]
    answered = {job.keys: answers[0] for job, answers in backend.stream(jobs)}
    return [answered[job.keys] for job in jobs]


def answer_one(backend: OpenAIBackend, asked: Question, template: Template = PLAIN) -> Answer:
    [answer] = ask(backend, backend.prepare([asked], template))
    return answer


# What is sent


def test_with_the_chat_template_the_server_gets_messages_and_no_prompt(
    server: FakeServer, backend: Open
) -> None:
    opened = backend()
    [request] = opened.prepare([question("Well?", system="Be brief.")], CHAT)
    assert request.messages == (("system", "Be brief."), ("user", "Well?"))
    assert request.ids == ()
    assert ask(opened, [request]) == [Answer(text="yes", finish="stop", num_tokens=(5, 5))]
    assert server.calls[0].path == "/v1/chat/completions"


def test_earlier_turns_are_sent_with_their_answers(backend: Open) -> None:
    turns = (Turn("One?", "1", response="Yes."), Turn("Two?"))
    [request] = backend().prepare([Question(turns, "generate", Sampling())], CHAT)
    assert request.messages == (("user", "One?\n1"), ("assistant", "Yes."), ("user", "Two?"))


def test_another_template_is_what_a_user_of_the_chat_says(
    server: FakeServer, backend: Open
) -> None:
    answer_one(backend(), question("Well?"), get_template("fingpt"))
    content = "Instruction: Well?\nInput: \nAnswer:"
    assert server.bodies()[0]["messages"] == [{"role": "user", "content": content}]


def test_completions_get_the_prompt_as_the_template_writes_it(
    server: FakeServer, backend: Open
) -> None:
    server.answer = lambda call: text_reply(" positive")
    answer = answer_one(backend(api="completions"), question("Well?"), get_template("fingpt"))
    assert answer == Answer(text=" positive", finish="length", num_tokens=(5, 1))
    assert server.calls[0].path == "/v1/completions"
    assert server.bodies()[0]["prompt"] == "Instruction: Well?\nInput: \nAnswer:"


def test_with_a_tokenizer_the_server_gets_the_tokens_that_other_backends_read(
    server: FakeServer, backend: Open, tiny_base_directory: Path
) -> None:
    import transformers

    server.answer = lambda call: text_reply("x")
    answer_one(backend(api="completions", tokenizer=tiny_base_directory), question("news"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base_directory)
    assert server.bodies()[0]["prompt"] == tokenizer("news\n")["input_ids"]


def test_a_written_prompt_stays_as_it_is(server: FakeServer, backend: Open) -> None:
    server.answer = lambda call: text_reply("x")
    opened = backend(api="completions")
    ask(opened, opened.prepare_written([Written("Q: a\nA: ", "generate")]))
    assert server.bodies()[0]["prompt"] == "Q: a\nA: "


def test_completions_cannot_write_a_chat_template_without_the_tokenizer(backend: Open) -> None:
    with pytest.raises(ConfigError, match="name the tokenizer, use the chat API"):
        backend(api="completions").prepare([question("Well?")], CHAT)


def test_a_tokenizer_is_of_no_use_to_the_chat_api(backend: Open) -> None:
    with pytest.raises(ConfigError, match="with the chat API the server writes the prompt"):
        backend(api="chat", tokenizer="somewhere")


def test_each_request_is_a_batch_of_its_own(backend: Open) -> None:
    opened = backend()
    requests = opened.prepare([question("a"), question("b")], CHAT)
    assert [batch.positions for batch in opened.plan(requests)] == [(0,), (1,)]


def test_what_changes_answers_changes_the_name(backend: Open) -> None:
    opened = [
        backend(),
        backend(api="completions"),
        backend(model="other"),
        backend(extra={"reasoning_effort": "low"}),
    ]
    assert len({one.name for one in opened}) == 4
    assert len({one.base_hash for one in opened}) == 2  # by address and model


# What goes wrong


def test_a_refused_item_fails_and_the_others_are_answered(
    server: FakeServer, backend: Open
) -> None:
    def answer(call: Call) -> Response:
        too_long = call.body["messages"][0]["content"] == "long"
        return refusal(400, "maximum context length") if too_long else chat_reply("yes")

    server.answer = answer
    opened = backend()
    answers = ask(opened, opened.prepare([question("a"), question("long")], CHAT))
    assert answers[0].text == "yes"
    assert answers[1].text is None
    assert "maximum context length" in (answers[1].error or "")


def test_an_exhausted_budget_hands_out_what_was_answered(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("127.0.0.1: {models: {tiny: {prompt: 1000, completion: 1000}}}")
    opened = backend(budget=0.055, prices=prices)  # a request: 0.01, and at most 0.04
    requests = opened.prepare([question(letter) for letter in "abcdef"], CHAT)
    jobs = [Job(server_checkpoint(opened.client), (request,)) for request in requests]
    stream = opened.stream(jobs)
    answered = [next(stream), next(stream)]
    with pytest.raises(BudgetError, match="2 requests"):
        next(stream)
    assert [answers[0].text for _, answers in answered] == ["yes", "yes"]
    assert opened.usage.dollars == pytest.approx(0.02)
    assert (opened.usage.prompt_tokens, opened.usage.completion_tokens) == (10, 10)


# Log-likelihood by echo: a server whose tokens are characters, "a" having -1, "b" -2, ...


def echoing(call: Call, width: int = 1) -> Response:
    text = "<s>" + call.body["prompt"]
    tokens = ["<s>"] + [
        call.body["prompt"][n : n + width] for n in range(0, len(call.body["prompt"]), width)
    ]
    logprobs: list[float | None] = [None, *(float(ord("`") - ord(t[0])) for t in tokens[1:])]
    top = [None, *({t: lp, "?": -2.5} for t, lp in zip(tokens[1:], logprobs[1:], strict=True))]
    if call.body["max_tokens"]:
        tokens, logprobs, top = [*tokens, "!"], [*logprobs, -0.5], [*top, {"!": -0.5}]
        text += "!"
    read = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top}
    return text_reply(text.removeprefix("<s>"), read)


def test_a_choice_is_worth_what_the_server_echoes_of_its_tokens(
    server: FakeServer, backend: Open
) -> None:
    server.answer = echoing
    answer = answer_one(backend(api="completions"), question("zz", "ab", "ac", "d"))
    assert answer.loglikelihoods == (-3.0, -4.0, -4.0)  # -1 - 2, -1 - 3, -4
    assert answer.greedy == (True, False, False)  # "?" has -2.5 everywhere
    assert answer.num_tokens == (15, 3)


def test_a_server_that_must_generate_a_token_is_asked_for_one_that_is_not_counted(
    server: FakeServer, backend: Open
) -> None:
    def answer(call: Call) -> Response:
        if not call.body["max_tokens"]:
            return refusal(400, "max_tokens must be at least 1")
        return echoing(call)

    server.answer = answer
    answer_ = answer_one(backend(api="completions"), question("zz", "ab", "d"))
    assert answer_.loglikelihoods == (-3.0, -4.0)


def test_tokens_that_span_prompt_and_choice_are_no_answer(
    server: FakeServer, backend: Open
) -> None:
    server.answer = lambda call: echoing(call, width=2)
    answer = answer_one(backend(api="completions"), question("zz", "ab"))  # "zz", "\na", "b"
    assert answer.loglikelihoods == ()
    assert "name the model's tokenizer" in (answer.error or "")


def test_white_space_at_the_end_of_a_written_prompt_belongs_to_the_choice(
    server: FakeServer, backend: Open
) -> None:
    server.answer = echoing
    opened = backend(api="completions")
    [request] = opened.prepare_written([Written("zz ", "choice", choices=("a",))])
    assert (request.prompt, request.texts) == ("zz", (" a",))
    [answer] = ask(opened, [request])
    assert answer.loglikelihoods == (64.0 - 1.0,)  # a space: 96 - 32


def test_the_chat_api_refuses_choices_before_anything_is_sent(
    server: FakeServer, backend: Open
) -> None:
    with pytest.raises(ConfigError, match=r"kind choice.*chat API does not give.*completions"):
        backend().prepare([question("a", "b", "c")], CHAT)
    assert server.calls == []


def test_a_server_without_log_probabilities_is_found_out_by_a_probe(
    server: FakeServer, backend: Open
) -> None:
    server.answer = lambda call: text_reply("x")  # ignores what it does not know
    with pytest.raises(ConfigError, match=r"kind choice.*this server gives neither.*generates"):
        backend(api="completions").prepare([question("a", "b", "c")] * 50, PLAIN)
    assert len(server.calls) == 2


def test_whole_answers_need_the_token_that_closes_them(server: FakeServer, backend: Open) -> None:
    server.answer = echoing
    with pytest.raises(ConfigError, match="name the model's tokenizer"):
        backend(api="completions").prepare([question("a", "b", "c", closed=True)], PLAIN)


# Log-likelihood token by token: token t behind n tokens has -t - n / 100, token 7 is the likeliest


def telling(call: Call) -> Response:
    wanted = call.body.get("logprob_token_ids")
    if wanted is None:
        return text_reply("x")
    n = len(call.body["prompt"])
    top = {f"token_id:{t}": -t - n / 100 for t in [7, *wanted]}
    read = {"tokens": ["token_id:7"], "token_logprobs": [-7.0], "top_logprobs": [top]}
    return text_reply("x", read, num_prompt=n)


@pytest.fixture
def by_token(server: FakeServer, backend: Open, tiny_base_directory: Path) -> OpenAIBackend:
    server.answer = telling
    return backend(api="completions", tokenizer=tiny_base_directory)


def choose(backend: OpenAIBackend, *choices: tuple[int, ...]) -> Answer:
    request = Request("choice", "", (1, 2, 3), Sampling(), choices)
    [answer] = ask(backend, [request])
    return answer


def test_a_question_with_options_of_one_token_is_one_request(
    server: FakeServer, by_token: OpenAIBackend
) -> None:
    by_token.prepare([question("a", "b", "c")], PLAIN)
    num_probes = len(server.calls)
    answer = choose(by_token, (5,), (7,), (9,))
    assert answer.loglikelihoods == (-5.03, -7.03, -9.03)
    assert answer.greedy == (False, True, False)
    assert answer.num_tokens == (3, 1)
    assert len(server.calls) - num_probes == 1


def test_longer_options_share_the_requests_of_what_they_begin_with(
    server: FakeServer, by_token: OpenAIBackend
) -> None:
    by_token.prepare([question("a", "b", "c")], PLAIN)
    num_probes = len(server.calls)
    answer = choose(by_token, (7, 5), (7, 7), (4,))
    assert answer.loglikelihoods == pytest.approx((-7.03 - 5.04, -7.03 - 7.04, -4.03))
    assert answer.greedy == (False, True, False)
    assert len(server.calls) - num_probes == 2  # behind the prompt, and behind 7


def test_more_options_than_a_request_may_name_are_asked_for_in_parts(
    by_token: OpenAIBackend,
) -> None:
    answer = choose(by_token, *((token,) for token in range(250)))
    assert answer.loglikelihoods == tuple(-token - 0.03 for token in range(250))


def test_where_echo_takes_fewer_requests_it_is_used(
    server: FakeServer, by_token: OpenAIBackend
) -> None:
    def answer(call: Call) -> Response:
        if "logprob_token_ids" in call.body:
            return telling(call)
        if isinstance(call.body["prompt"], str):
            return echoing(call)
        logprobs: list[float | None] = [None, *(-float(t) for t in call.body["prompt"][1:])]
        tokens = [f"token_id:{t}" for t in call.body["prompt"]]
        return text_reply("", {"tokens": tokens, "token_logprobs": logprobs})

    server.answer = answer
    result = choose(by_token, (4, 5, 6), (7, 8))  # two echoes, or four single steps
    assert result.loglikelihoods == (-15.0, -15.0)
    assert result.greedy == ()  # this server does not name the likeliest
    assert server.bodies()[-1]["prompt"] in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8])


def test_a_server_with_adapters_is_never_asked_for_an_echo(
    server: FakeServer, by_token: OpenAIBackend
) -> None:
    server.cards.append({"id": "ours", "parent": "tiny"})
    choose(by_token, (4, 5, 6), (7, 8))
    assert not any("echo" in body for body in server.bodies())


def test_without_a_tokenizer_a_server_with_adapters_is_refused_choices(
    server: FakeServer, backend: Open
) -> None:
    server.cards.append({"id": "ours", "parent": "tiny"})
    server.answer = echoing
    with pytest.raises(ConfigError, match=r"serves adapters.*name the model's tokenizer"):
        backend(api="completions").prepare([question("a", "b", "c")], PLAIN)
    assert server.calls == []


def test_a_canary_is_a_choice_between_tokens(by_token: OpenAIBackend) -> None:
    canaries = by_token.canaries(by_token.prepare([question("news")], PLAIN))
    assert canaries
    assert all(answer.loglikelihoods for answer in ask(by_token, canaries))


def test_without_log_probabilities_there_are_no_canaries(backend: Open) -> None:
    opened = backend()
    assert opened.canaries(opened.prepare([question("news")], CHAT)) == []


# Which model


def adapter(directory: Path, digest: str = "abc123") -> Checkpoint:
    model = ModelId(method="fedavg", model_kind="global", round=3)
    return Checkpoint(model, "adapter", directory, "tiny", digest, "")


def models_asked(server: FakeServer) -> set[str]:
    return {call.body["model"] for call in server.calls if "model" in call.body}


def test_an_adapter_is_asked_by_the_name_that_the_user_gives(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    opened = backend(adapters={str(tmp_path): "ours"})
    ask(opened, opened.prepare([question("a")], CHAT), adapter(tmp_path))
    assert models_asked(server) == {"ours"}


def test_an_adapter_that_is_served_under_its_hash_is_found(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    checkpoint = adapter(tmp_path)
    server.cards.append({"id": adapter_name(checkpoint), "parent": "tiny"})
    opened = backend()
    ask(opened, opened.prepare([question("a")], CHAT), checkpoint)
    assert models_asked(server) == {"fedbench-abc123"}


def test_adapters_are_loaded_once_when_the_server_may(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    opened = backend(load_adapters=True)
    requests = opened.prepare([question("a"), question("b")], CHAT)
    ask(opened, requests, adapter(tmp_path))
    loads = [call for call in server.calls if call.path == "/v1/load_lora_adapter"]
    assert [load.body for load in loads] == [
        {"lora_name": "fedbench-abc123", "lora_path": str(tmp_path)}
    ]


def test_an_adapter_that_another_process_has_loaded_is_there(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    def answer(call: Call) -> Response:
        if call.path == "/v1/load_lora_adapter":
            return refusal(400, "The lora adapter 'x' has already been loaded.")
        return chat_reply("yes")

    server.answer = answer
    opened = backend(load_adapters=True)
    [answered] = ask(opened, opened.prepare([question("a")], CHAT), adapter(tmp_path))
    assert answered.text == "yes"


def test_a_server_that_may_not_load_adapters_is_told_how(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    server.answer = lambda call: refusal(404, "Not Found")
    opened = backend(load_adapters=True)
    requests = opened.prepare([question("a")], CHAT)
    with pytest.raises(ServerError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        ask(opened, requests, adapter(tmp_path))


def test_an_adapter_that_is_not_served_is_refused_with_what_to_do(
    backend: Open, tmp_path: Path
) -> None:
    opened = backend()
    requests = opened.prepare([question("a")], CHAT)
    with pytest.raises(CheckpointError, match="--lora-modules fedbench-abc123="):
        ask(opened, requests, adapter(tmp_path))
    full = replace(adapter(tmp_path), kind="full")
    with pytest.raises(CheckpointError, match="give that server's address"):
        ask(opened, requests, full)


def test_the_base_and_adapters_are_never_asked_at_the_same_time(
    server: FakeServer, backend: Open, tmp_path: Path
) -> None:
    running_now: list[str] = []
    seen: set[frozenset[str]] = set()

    def answer(call: Call) -> Response:
        running_now.append(call.body["model"])
        seen.add(frozenset(running_now))
        time.sleep(0.02)
        running_now.remove(call.body["model"])
        return chat_reply("yes")

    server.answer = answer
    opened = backend(adapters={str(tmp_path): "ours"})
    requests = opened.prepare([question("a"), question("b"), question("c")], CHAT)
    base = server_checkpoint(opened.client)
    jobs = [Job(c, (r,)) for r in requests for c in (base, adapter(tmp_path))]
    assert len(list(opened.stream(jobs))) == 6
    assert seen == {frozenset({"tiny"}), frozenset({"ours"})}


# A server as a file describes it


def test_a_file_describes_a_server(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"base_url: {server.url}/\nmodel: tiny\nextra: {{top_k: 5}}\n")
    opened = open_server(read_server(file))
    try:
        assert ask(opened, opened.prepare([question("a")], CHAT))[0].text == "yes"
        assert server.bodies()[0]["top_k"] == 5
        assert opened.name == f'openai chat {server.url} tiny {{"top_k": 5}}'
    finally:
        opened.close()


def test_an_unknown_key_of_a_server_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("base_url: http://host/v1\nmodel: tiny\nconcurency: 5\n")
    with pytest.raises(ConfigError, match=r"server.yaml: concurency.*did you mean 'concurrency'"):
        read_server(file)

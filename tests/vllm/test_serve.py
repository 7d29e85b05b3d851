"""The openai backend against a real `vllm serve`, held against transformers and PEFT."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
pytest.importorskip("openai")

import torch

from fedbench.data.templates import Turn, get_template
from fedbench.errors import CheckpointError
from fedbench.generation.backend import Answer, Checkpoint, Job, Question, Request, Sampling
from fedbench.generation.server.backend import OpenAIBackend
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.likelihoods import Means, find_means, loglikelihoods
from fedbench.generation.server.responses import ServerError
from fedbench.generation.server.served import server_checkpoint
from fedbench.results.record import ModelId

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FINGPT = get_template("fingpt")
NEWS = ("Profit rises at Acme", "Acme falls", "What is the news?", "Acme")
LABELS = ("negative", "neutral", "positive news", "the sentiment of this")
CLOSE = 1e-3
"""Greatest difference of log-likelihoods; two engines add in different orders."""


@dataclass(frozen=True)
class Served:
    url: str
    base: Path
    adapters: dict[str, Path]
    """``static`` is served from the start, ``late`` is not."""


ADAPTERS = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("served")
    base, adapters = make_models(place)
    with serving(base, place / "log", *ADAPTERS, f"ours={adapters['static']}") as url:
        yield Served(url, base, adapters)


@contextmanager
def serving(base: Path, log: Path, *options: str) -> Iterator[str]:
    """A server of this model, which ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(base), "--served-model-name", "tiny", "--dtype", "float32"),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256"),
        *("--max-num-seqs", "8", "--enforce-eager", "--generation-config", "vllm"),
        *options,
    ]
    settings = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | settings
        )
        try:
            wait_until_healthy(server, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def make_models(place: Path) -> tuple[Path, dict[str, Path]]:
    """A Llama of some fifty thousand parameters, and two adapters that do something."""
    import peft

    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_llama, make_tokenizer

    config = Pretrain(
        text=(),
        words=("negative", "neutral", "positive"),
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=2,
    )
    text = "Instruction: What is the sentiment of this news? Input: Profit rises at Acme. Answer:"
    tokenizer = make_tokenizer(iter([text] * 50), config.words, config.vocab_size)
    tokenizer.chat_template = CHAT_TEMPLATE
    base = place / "base"
    tokenizer.save_pretrained(base)
    make_llama(config, tokenizer, seed=0).save_pretrained(base)
    adapters = {}
    for seed, name in enumerate(("static", "late"), start=1):
        settings = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(make_llama(config, tokenizer, seed=0), settings)
        torch.manual_seed(seed)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.1)
        adapters[name] = place / name
        model.save_pretrained(adapters[name])
    return base, adapters


def wait_until_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended: {log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")


@pytest.fixture
def client(served: Served) -> Iterator[ServerClient]:
    with closing(ServerClient(served.url, "tiny", concurrency=6, max_retries=1)) as client:
        yield client


@pytest.fixture
def backend(served: Served, client: ServerClient) -> OpenAIBackend:
    return OpenAIBackend(
        client,
        api="completions",
        tokenizer=served.base,
        adapters={str(served.adapters["static"]): "ours"},
        load_adapters=True,
    )


def checkpoints(served: Served, client: ServerClient) -> dict[str, Checkpoint]:
    made = {"base": server_checkpoint(client)}
    for name, directory in served.adapters.items():
        model = ModelId(method=name, model_kind="global", round=1)
        made[name] = Checkpoint(model, "adapter", directory, "tiny", f"hash-of-{name}", "")
    return made


def ask_all(
    backend: OpenAIBackend, models: dict[str, Checkpoint], requests: Sequence[Request]
) -> dict[str, list[Answer]]:
    """All checkpoints in one queue."""
    jobs = [
        Job(checkpoint, (request,), (name, str(number)))
        for number, request in enumerate(requests)
        for name, checkpoint in models.items()
    ]
    answered = {job.keys: answers[0] for job, answers in backend.stream(jobs)}
    return {
        name: [answered[name, str(number)] for number in range(len(requests))] for name in models
    }


class Reference:
    """The same models in this process."""

    def __init__(self, served: Served) -> None:
        import peft
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(served.base)
        self.models: dict[str, Any] = {}
        for name in ("base", *served.adapters):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                served.base, dtype=torch.float32
            )
            if name != "base":
                model = peft.PeftModel.from_pretrained(model, served.adapters[name])
            self.models[name] = model.eval()

    @torch.inference_mode()
    def loglikelihoods(self, name: str, request: Request) -> list[float]:
        sums = []
        for choice in request.choices:
            ids = torch.tensor([request.ids + choice])
            logprobs = torch.log_softmax(self.models[name](input_ids=ids).logits[0], dim=-1)
            start = len(request.ids)
            sums.append(sum(float(logprobs[start + n - 1, t]) for n, t in enumerate(choice)))
        return sums

    @torch.inference_mode()
    def text(self, name: str, ids: Sequence[int], length: int) -> str:
        inputs = torch.tensor([list(ids)])
        output = self.models[name].generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=length,
            do_sample=False,
        )
        return whole(self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))


def whole(text: str) -> str:
    """Without an unfinished character at the end, which servers hold back."""
    return text.rstrip("\ufffd")


@pytest.fixture(scope="module")
def reference(served: Served) -> Reference:
    return Reference(served)


def questions(kind: Any, choices: tuple[str, ...] = ()) -> list[Question]:
    turn = "What is the sentiment of this news?"
    return [Question((Turn(turn, n),), kind, Sampling(max_tokens=12), choices) for n in NEWS]


def test_greedy_texts_of_base_and_adapters_in_one_queue_equal_transformers(
    served: Served, backend: OpenAIBackend, reference: Reference
) -> None:
    requests = backend.prepare(questions("generate"), FINGPT)
    models = checkpoints(served, backend.client)
    answers = ask_all(backend, models, requests)
    expected = {
        name: [reference.text(name, request.ids, 12) for request in requests] for name in models
    }
    texts = {name: [whole(a.text or "") for a in given] for name, given in answers.items()}
    assert texts == expected
    assert len({tuple(texts) for texts in expected.values()}) == 3  # each adapter acts


def test_log_likelihoods_of_base_and_adapters_in_one_queue_equal_transformers(
    served: Served, backend: OpenAIBackend, reference: Reference
) -> None:
    requests = backend.prepare(questions("choice", LABELS), FINGPT)
    assert {len(choice) for choice in requests[0].choices} > {1}  # of one token, and of several
    models = checkpoints(served, backend.client)
    for name, given in ask_all(backend, models, requests).items():
        for request, answer in zip(requests, given, strict=True):
            expected = reference.loglikelihoods(name, request)
            assert answer.loglikelihoods == pytest.approx(expected, abs=CLOSE)


def test_the_likeliest_first_token_is_what_greedy_decoding_says(
    served: Served, backend: OpenAIBackend, reference: Reference
) -> None:
    [request, *_] = backend.prepare(questions("generate"), FINGPT)
    with torch.inference_mode():
        logits = reference.models["base"](input_ids=torch.tensor([request.ids])).logits[0, -1]
    best, worst = int(logits.argmax()), int(logits.argmin())
    choice = Request("choice", "", request.ids, Sampling(), ((best,), (worst,)))
    models = {"base": server_checkpoint(backend.client)}
    assert ask_all(backend, models, [choice])["base"][0].greedy == (True, False)


@pytest.mark.slow  # a server of its own: with LoRA enabled, an echo kills the CPU build's engine
def test_an_echo_tells_the_same_as_token_by_token(
    served: Served, backend: OpenAIBackend, reference: Reference, tmp_path: Path
) -> None:
    [request, *_] = backend.prepare(questions("choice", LABELS), FINGPT)
    expected = reference.loglikelihoods("base", request)
    as_text = replace(request, ids=(), choices=(), texts=tuple(f" {label}" for label in LABELS))
    with (
        serving(served.base, tmp_path / "log") as url,
        closing(ServerClient(url, "tiny")) as client,
    ):
        means = client.run(find_means(client, with_ids=False, with_adapters=False))
        assert means == Means(token_by_token=False, echo=0)
        for asked in (request, as_text):
            answer = client.run(loglikelihoods(client, means, asked, "tiny"))
            assert answer.loglikelihoods == pytest.approx(expected, abs=CLOSE)


def test_the_server_writes_the_prompts_of_its_chat(
    served: Served, client: ServerClient, reference: Reference
) -> None:
    backend = OpenAIBackend(client, adapters={"static": "ours"})
    models = {k: v for k, v in checkpoints(served, client).items() if k != "late"}
    requests = backend.prepare(questions("generate"), get_template("chat"))
    for name, given in ask_all(backend, models, requests).items():
        for request, answer in zip(requests, given, strict=True):
            prompt = reference.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in request.messages],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
            assert whole(answer.text or "") == reference.text(name, prompt, 12)
            assert answer.num_tokens is not None
            assert answer.num_tokens[0] == len(prompt)


def test_canaries_show_that_an_adapter_acts(served: Served, backend: OpenAIBackend) -> None:
    canaries = backend.canaries(backend.prepare(questions("generate"), FINGPT))
    answers = ask_all(backend, checkpoints(served, backend.client), canaries)
    assert canaries
    for name in ("static", "late"):
        for own, base in zip(answers[name], answers["base"], strict=True):
            assert own.loglikelihoods != pytest.approx(base.loglikelihoods, abs=0.01)


def test_a_prompt_beyond_the_context_is_one_failed_item(
    served: Served, client: ServerClient
) -> None:
    backend = OpenAIBackend(client)
    long = Question((Turn("news " * 400),), "generate", Sampling(max_tokens=4))
    requests = backend.prepare([*questions("generate"), long], get_template("chat"))
    *answers, failed = ask_all(backend, {"base": server_checkpoint(client)}, requests)["base"]
    assert all(answer.error is None for answer in answers)
    assert "context length" in (failed.error or "")


def test_a_model_that_is_not_served_is_said_in_words(served: Served) -> None:
    with closing(ServerClient(served.url, "large")) as client:
        backend = OpenAIBackend(client)
        requests = backend.prepare(questions("generate"), get_template("chat"))
        with pytest.raises(ServerError, match=r"`large` does not exist.*the model's name"):
            ask_all(backend, {"base": server_checkpoint(client)}, requests)


def test_an_adapter_that_is_not_served_is_refused(served: Served, client: ServerClient) -> None:
    backend = OpenAIBackend(client)
    requests = backend.prepare(questions("generate"), get_template("chat"))
    unknown = {"late": replace(checkpoints(served, client)["late"], weights_hash="other")}
    with pytest.raises(CheckpointError, match="--lora-modules fedbench-other="):
        ask_all(backend, unknown, requests)

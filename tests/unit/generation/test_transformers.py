"""The resident model: batches equal single requests, and adapters come and go."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbench.checkpoints import foreign_checkpoint
from fedbench.data.templates import Turn, get_template
from fedbench.errors import CheckpointError
from fedbench.evaluation.asking import Asking
from fedbench.generation.backend import Answer, Batch, Job, Question, Request, Sampling, Written
from fedbench.generation.store import AnswerStore
from fedbench.generation.transformers import TransformersBackend
from fedbench.model_config import ModelConfig
from fedbench.weights import weight_files

LABELS = ("negative", "neutral", "positive")
TEXTS = ["Profit rises at Acme.", "What?", "The news: is it the input of this sentiment?", "a"]


@dataclass(frozen=True)
class Planned:
    """Requests and their batches, as a task has them."""

    requests: Sequence[Request]
    batches: Sequence[Batch]


def make_backend(directory: Path, **options: Any) -> TransformersBackend:
    config = ModelConfig(name=str(directory), device="cpu", attention="eager")
    return TransformersBackend(str(directory), config, **options)


@pytest.fixture(scope="module")
def backend(tiny_base_directory: Path) -> TransformersBackend:
    return make_backend(tiny_base_directory)


def generate(
    backend: TransformersBackend, texts: list[str] = TEXTS, **sampling: Any
) -> list[Request]:
    how = Sampling(**{"max_tokens": 6, **sampling})
    questions = [Question((Turn("Sentiment?", text),), "generate", how) for text in texts]
    return backend.prepare(questions, get_template("fingpt"))


def choose(
    backend: TransformersBackend, choices: tuple[str, ...], texts: list[str] = TEXTS
) -> list[Request]:
    questions = [
        Question((Turn("Sentiment?", text),), "choice", Sampling(), choices) for text in texts
    ]
    return backend.prepare(questions, get_template("fingpt"))


def naive_loglikelihood(model: Any, prompt: tuple[int, ...], choice: tuple[int, ...]) -> float:
    """One unpadded forward pass over prompt and choice."""
    ids = torch.tensor([prompt + choice])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(choice) - 1)
    return float(sum(logprobs[place, token] for place, token in zip(places, choice, strict=True)))


def near(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return list(one) == pytest.approx(list(other), abs=1e-5)


# Questions become requests


def test_a_prompt_is_rendered_and_tokenised_once_and_for_all(backend: TransformersBackend) -> None:
    [request] = generate(backend, ["Up."])
    assert request.prompt == "Instruction: Sentiment?\nInput: Up.\nAnswer:"
    assert backend.base.tokenizer.decode(request.ids) == request.prompt
    assert request.num_cut == 0


def test_each_choice_is_the_tokens_behind_the_prompt(backend: TransformersBackend) -> None:
    [request] = choose(backend, ("positive", "a b"), ["Up."])
    decode = backend.base.tokenizer.decode
    assert [decode(choice) for choice in request.choices] == [" positive", " a b"]
    assert len(request.choices[0]) == 1  # the label words are single tokens of this tokenizer


def test_a_prompt_too_long_for_the_model_loses_its_start(backend: TransformersBackend) -> None:
    [request] = generate(backend, ["word " * 2000], max_tokens=10)
    assert len(request.ids) == 1024 - 10  # the tiny model's context, less the answer
    assert request.num_cut > 0
    [whole] = generate(backend, ["short"])
    assert request.ids[-3:] == whole.ids[-3:]


# Answers


def test_greedy_answers_of_a_padded_batch_are_those_of_single_requests(
    backend: TransformersBackend,
) -> None:
    requests = generate(backend)
    assert len({len(request.ids) for request in requests}) > 1  # so that there is padding
    answers = backend.answer(requests)
    for request, answer in zip(requests, answers, strict=True):
        output = backend.base.module.generate(
            torch.tensor([request.ids]), max_new_tokens=6, do_sample=False
        )
        new = output[0, len(request.ids) :]
        text = backend.base.tokenizer.decode(new, skip_special_tokens=True)
        assert answer == Answer(text=text, finish="length")
    assert len({answer.text for answer in answers}) > 1


@pytest.mark.parametrize("choices", [LABELS, ("positive", "very negative indeed", "a b")])
def test_choices_have_the_log_likelihoods_of_a_plain_forward_pass(
    backend: TransformersBackend, choices: tuple[str, ...]
) -> None:
    requests = choose(backend, choices)
    single = all(len(choice) == 1 for choice in requests[0].choices)
    assert single is (choices == LABELS)
    for request, answer in zip(requests, backend.answer(requests), strict=True):
        expected = tuple(
            naive_loglikelihood(backend.base.module, request.ids, choice)
            for choice in request.choices
        )
        assert near(answer.loglikelihoods, expected)


def test_padding_does_not_shift_the_positions_of_a_model_that_learns_them(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    # Rotary positions are relative, so that a Llama would not notice.
    config = transformers.GPT2Config(
        vocab_size=400,
        n_positions=128,
        n_embd=16,
        n_layer=1,
        n_head=2,
        eos_token_id=backend.base.tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(50)
    model.save_pretrained(tmp_path)
    backend.base.tokenizer.save_pretrained(tmp_path)
    learned = make_backend(tmp_path)
    for choices in (LABELS, ("positive", "very negative indeed")):
        requests = choose(learned, choices)
        for request, answer in zip(requests, learned.answer(requests), strict=True):
            expected = tuple(
                naive_loglikelihood(learned.base.module, request.ids, choice)
                for choice in request.choices
            )
            assert near(answer.loglikelihoods, expected)
    requests = generate(learned)
    alone = [learned.answer([request])[0] for request in requests]
    assert learned.answer(requests) == alone


def test_sampled_answers_depend_on_the_seed_alone(backend: TransformersBackend) -> None:
    def sampled(seed: int) -> list[Answer]:
        return backend.answer(generate(backend, temperature=1.0, seed=seed))

    first = sampled(1)
    torch.manual_seed(99)
    assert sampled(1) == first
    assert sampled(2) != first


def test_an_answer_ends_before_a_stop_string(backend: TransformersBackend) -> None:
    [plain] = backend.answer(generate(backend, ["Up."], max_tokens=12))
    assert plain.text
    stop = plain.text[3]
    [stopped] = backend.answer(generate(backend, ["Up."], max_tokens=12, stop=(stop,)))
    assert stopped.text == plain.text.split(stop)[0]


def test_a_choice_says_whether_greedy_decoding_would_have_made_it(
    backend: TransformersBackend,
) -> None:
    [request] = generate(backend, ["Up."])
    ids = torch.tensor([request.ids])
    said = backend.base.module.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    first, second, third = said.tolist()
    other = (third + 1) % 300
    choices = ((first,), (first, second, third), (first, second, other), (other,))
    [answer] = backend.answer([replace(request, kind="choice", choices=choices)])
    assert answer.greedy == (True, True, False, False)


def test_what_prompts_share_is_computed_once_and_changes_no_answer(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = "The news of the day. " * 20
    texts = [beginning + text for text in TEXTS]
    asked = [
        choose(backend, LABELS, texts),
        choose(backend, ("positive", "very negative indeed", "a b"), texts),
        generate(backend, texts),
    ]
    forward, widths = backend.base.module.forward, []

    def counted(*arguments: Any, **named: Any) -> Any:
        widths.append(named["input_ids"].shape)
        return forward(*arguments, **named)

    for requests in asked:
        plain = backend.answer(requests)
        [batch] = backend.plan(requests)
        assert 100 < batch.num_shared < min(len(r.ids) for r in requests)
        members = [requests[position] for position in batch.positions]
        with monkeypatch.context() as patch:
            patch.setattr(backend.base.module, "forward", counted)
            shared = backend.answer(members, batch.num_shared)
        for position, answer in zip(batch.positions, shared, strict=True):
            assert answer.text == plain[position].text
            assert near(answer.loglikelihoods, plain[position].loglikelihoods)
            assert answer.greedy == plain[position].greedy
    rows = [shape for shape in widths if shape[1] >= 100]
    assert [shape[0] for shape in rows] == [1]  # read once for all three kinds of request


def test_requests_that_begin_alike_share_batches(backend: TransformersBackend) -> None:
    one, other = ("The news of the day. " * 20, "What is the sentiment of it? " * 20)
    requests = choose(backend, LABELS, [one + "a", other + "a", one + "b", other + "b", "short"])
    plan = backend.plan(requests)
    assert sorted(batch.positions for batch in plan) == [(0, 2), (1, 3), (4,)]
    assert [batch.num_shared > 64 for batch in plan if len(batch.positions) == 2] == [True, True]
    assert [batch.num_shared for batch in plan if len(batch.positions) == 1] == [0]


# Prompts that are written already


def test_a_written_prompt_gives_its_trailing_space_to_the_continuation(
    backend: TransformersBackend,
) -> None:
    written = Written("Is it so? ", "choice", choices=("Yes", "No way"))
    [request] = backend.prepare_written([written])
    decode = backend.base.tokenizer.decode
    assert decode(request.ids) == "Is it so?"
    assert [decode(choice) for choice in request.choices] == [" Yes", " No way"]


def test_behind_an_empty_context_stands_the_token_that_begins_or_ends_a_text(
    backend: TransformersBackend,
) -> None:
    [request] = backend.prepare_written([Written("", "choice", choices=("News",))])
    tokenizer = backend.base.tokenizer
    assert request.ids in ((tokenizer.bos_token_id,), (tokenizer.eos_token_id,))
    assert tokenizer.decode(request.choices[0]) == "News"


# Memory


def short_of_memory(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception
) -> list[int]:
    """A model that can read only so many rows at once; says how many it was given."""
    seen: list[int] = []
    forward = backend._forward

    def refusing(ids: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        seen.append(len(ids))
        if len(ids) > most:
            raise error
        return forward(ids, *arguments, **named)

    monkeypatch.setattr(backend, "_forward", refusing)
    return seen


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(
    tiny_base_directory: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    backend = make_backend(tiny_base_directory)
    requests = choose(backend, LABELS)
    plain = backend.answer(requests)
    seen = short_of_memory(backend, monkeypatch, 1, error)
    halved = backend.answer(requests)
    assert seen == [4, 2, 1, 1, 2, 1, 1]
    assert backend.num_halved == 3
    for one, other in zip(halved, plain, strict=True):
        assert near(one.loglikelihoods, other.loglikelihoods)


def test_a_single_request_that_does_not_fit_into_memory_has_failed(
    tiny_base_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(tiny_base_directory)
    error = torch.OutOfMemoryError("CUDA out of memory")
    short_of_memory(backend, monkeypatch, 0, error)
    answers = backend.answer(choose(backend, LABELS)[:2])
    assert [answer.loglikelihoods for answer in answers] == [(), ()]
    assert all("out of memory with a single request" in str(a.error) for a in answers)


def test_any_other_error_is_not_taken_for_a_lack_of_memory(
    tiny_base_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(tiny_base_directory)
    short_of_memory(backend, monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        backend.answer(choose(backend, LABELS))


# Several batches at once


def jobs(backend: TransformersBackend, *places: Path) -> list[Job]:
    """A generation between choices of two kinds, of each adapter in turn."""
    asked = [
        *([request] for request in choose(backend, LABELS)),
        generate(backend),
        choose(backend, ("positive", "very negative indeed")),
    ]
    found = [replace(foreign_checkpoint(str(place)), base_hash="") for place in places]
    return [
        Job(checkpoint, tuple(requests), (f"{n} {number}",))
        for n, checkpoint in enumerate(found)
        for number, requests in enumerate(asked)
    ]


def test_batches_at_once_have_the_answers_of_batches_in_turn(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    backend = make_backend(tiny_base_directory)
    places = [make_adapter(tiny_base_directory, tmp_path / str(n), seed=n) for n in (1, 2)]
    asked = jobs(backend, *places)
    told = {}
    for workers in (1, 3):
        backend._workers = workers
        told[workers] = {job.keys: answers for job, answers in backend.stream(asked)}
    assert told[1].keys() == told[3].keys() == {job.keys for job in asked}
    for key, answers in told[1].items():
        for one, other in zip(answers, told[3][key], strict=True):
            assert one.text == other.text
            assert near(one.loglikelihoods, other.loglikelihoods)


def test_an_error_in_one_of_them_ends_all_and_takes_the_adapter_off(
    tiny_base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(tiny_base_directory)
    place = make_adapter(tiny_base_directory, tmp_path / "adapter")
    before = loglikelihoods(backend)
    asked = jobs(backend, place)
    plain = backend.answer

    def broken(requests: Sequence[Request], num_shared: int = 0) -> list[Answer]:
        if requests == asked[2].requests:
            raise RuntimeError("shapes do not match")
        return plain(requests, num_shared)

    backend._workers = 2
    with monkeypatch.context() as patch:
        patch.setattr(backend, "answer", broken)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            list(backend.stream(asked))
    assert loglikelihoods(backend) == before


# The plan


def made_request(length: int, max_tokens: int, kind: str) -> Request:
    ids = tuple(range(length))
    if kind == "generate":
        return Request("generate", "", ids, Sampling(max_tokens=max_tokens))
    choices = ((1,), (2,)) if kind == "token" else ((1, 2, 3), (4,))
    return Request("choice", "", ids, Sampling(), choices)


requests_drawn = st.lists(
    st.builds(
        made_request,
        st.integers(1, 60),
        st.sampled_from([4, 16]),
        st.sampled_from(["generate", "token", "text"]),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(requests_drawn)
def test_a_plan_holds_each_request_once_in_batches_of_its_like_within_the_budget(
    requests: list[Request],
) -> None:
    planner = TransformersBackend.__new__(TransformersBackend)  # a plan needs no model
    planner._batch_tokens = planner._generation_tokens = 128
    plan = planner.plan(requests)
    assert sorted(position for batch in plan for position in batch.positions) == list(
        range(len(requests))
    )
    for batch in plan:
        members = [requests[position] for position in batch.positions]
        assert len({(m.kind, m.sampling, m.choices) for m in members}) == 1
        answer = max(map(len, members[0].choices), default=members[0].sampling.max_tokens)
        # A choice of one token is read off the prompt's pass; longer ones each need a sequence.
        each = len(members[0].choices) if members[0].choices and answer > 1 else 1
        padded = each * len(members) * (max(len(m.ids) for m in members) + answer)
        assert padded <= 128 or len(members) == 1


# Adapters of anyone


def make_adapter(
    base: Path, directory: Path, *, inert: bool = False, seed: int = 1, **lora: Any
) -> Path:
    """An adapter as PEFT itself saves it; all its weights are drawn, so that it acts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    usual = {"r": 2, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    settings = peft.LoraConfig(**(usual | lora))
    torch.manual_seed(seed)
    model = peft.get_peft_model(model, settings)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name and not inert:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    return directory


def use(backend: TransformersBackend, directory: Path) -> AbstractContextManager[None]:
    return backend.use(foreign_checkpoint(str(directory)))


def loglikelihoods(backend: TransformersBackend) -> list[tuple[float, ...]]:
    return [answer.loglikelihoods for answer in backend.answer(choose(backend, LABELS))]


@pytest.fixture
def adapter_directory(tiny_base_directory: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_base_directory, tmp_path / "adapter")


@pytest.fixture
def unchanged(backend: TransformersBackend) -> Iterator[None]:
    """Whatever a test does, the resident base answers afterwards as before, to the bit."""
    before = loglikelihoods(backend)
    weights = {n: t.clone() for n, t in backend.base.module.state_dict().items()}
    yield
    after = backend.base.module.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert loglikelihoods(backend) == before


KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "two modules": {"target_modules": ["q_proj", "v_proj"]},
    "rank-stabilised": {"use_rslora": True, "r": 4},
    "DoRA": {"use_dora": True},
    "alphas by module": {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 3}},
    "dropout": {"lora_dropout": 0.5},
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_the_resident_base_answers_as_peft_does(
    backend: TransformersBackend, tiny_base_directory: Path, tmp_path: Path, kind: str
) -> None:
    directory = make_adapter(tiny_base_directory, tmp_path / "adapter", **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base_directory)
    theirs = peft.PeftModel.from_pretrained(model, directory).eval()
    requests = choose(backend, LABELS)
    with use(backend, directory):
        answers = backend.answer(requests)
    for request, answer in zip(requests, answers, strict=True):
        expected = tuple(naive_loglikelihood(theirs, request.ids, c) for c in request.choices)
        # The product of the factors is added to the weights, which rounds them.
        assert answer.loglikelihoods == pytest.approx(expected, abs=5e-5)


@pytest.mark.usefixtures("unchanged")
def test_two_adapters_in_turn_do_not_mix(
    backend: TransformersBackend, tiny_base_directory: Path, tmp_path: Path
) -> None:
    base = loglikelihoods(backend)
    places = [make_adapter(tiny_base_directory, tmp_path / str(n), seed=n, r=n) for n in (1, 2)]
    seen = []
    for place in (*places, *places):
        with use(backend, place):
            seen.append(loglikelihoods(backend))
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert len({str(values) for values in (seen[0], seen[1], base)}) == 3


@pytest.mark.usefixtures("unchanged")
def test_an_error_while_an_adapter_is_used_takes_it_off(
    backend: TransformersBackend, adapter_directory: Path
) -> None:
    def stopped() -> None:
        with use(backend, adapter_directory):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()


@pytest.mark.usefixtures("unchanged")
def test_a_full_model_answers_with_its_own_weights(
    backend: TransformersBackend, tiny_base_directory: Path, tmp_path: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base_directory)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "full")
    backend.base.tokenizer.save_pretrained(tmp_path / "full")
    requests = choose(backend, LABELS)
    with use(backend, tmp_path / "full"):
        answers = backend.answer(requests)
    expected = [
        tuple(naive_loglikelihood(model, request.ids, c) for c in request.choices)
        for request in requests
    ]
    assert all(near(a.loglikelihoods, e) for a, e in zip(answers, expected, strict=True))


def asked_of(
    backend: TransformersBackend, directory: Path, store: AnswerStore, **options: Any
) -> Asking:
    """The labels asked of an adapter, and with them its canary."""
    asking = Asking(backend, store, **options)
    requests = choose(backend, LABELS)
    part = Planned(requests, backend.plan(requests))
    known = replace(foreign_checkpoint(str(directory)), base_hash=backend.base_hash)
    asking.ask([(known, part)])
    return asking


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    opened = AnswerStore(tmp_path / "answers.sqlite")
    yield opened
    opened.close()


@pytest.mark.usefixtures("unchanged")
def test_an_adapter_that_changes_nothing_is_refused(
    backend: TransformersBackend, tiny_base_directory: Path, tmp_path: Path, store: AnswerStore
) -> None:
    # As PEFT initialises it: B is zero, so the product is.
    directory = make_adapter(tiny_base_directory, tmp_path / "inert", inert=True)
    with pytest.raises(CheckpointError, match=r"inert: the adapter changes nothing"):
        asked_of(backend, directory, store)


@pytest.mark.usefixtures("unchanged")
def test_an_adapter_that_changes_nothing_is_asked_when_that_is_allowed(
    backend: TransformersBackend, tiny_base_directory: Path, tmp_path: Path, store: AnswerStore
) -> None:
    directory = make_adapter(tiny_base_directory, tmp_path / "inert", inert=True)
    assert asked_of(backend, directory, store, allow_inert=True).canaries == {"inert": 0.0}


@pytest.mark.usefixtures("unchanged")
def test_how_much_an_adapter_changes_is_a_mean_of_absolute_differences(
    backend: TransformersBackend, adapter_directory: Path, store: AnswerStore
) -> None:
    [(name, difference)] = asked_of(backend, adapter_directory, store).canaries.items()
    canaries = backend.canaries(choose(backend, LABELS))
    assert len(canaries) == len(TEXTS)
    plain = backend.answer(canaries)
    with use(backend, adapter_directory):
        changed = backend.answer(canaries)
    pairs = [
        pair
        for one, other in zip(plain, changed, strict=True)
        for pair in zip(one.loglikelihoods, other.loglikelihoods, strict=True)
    ]
    assert name == "adapter"
    assert difference == pytest.approx(sum(abs(a - b) for a, b in pairs) / len(pairs), rel=1e-6)
    assert difference > 0.01


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("lora", "words"),
    [
        # The other base has a third layer, and another width.
        ({}, "do not match the base model"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}, "have shape"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [2]}, "does not fit the base"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    backend: TransformersBackend,
    tiny_base_directory: Path,
    tmp_path: Path,
    lora: dict[str, Any],
    words: str,
) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_base_directory)
    config.hidden_size, config.num_hidden_layers, config.head_dim = 48, 3, 24
    config.layer_types = None
    other = tmp_path / "other"
    transformers.LlamaForCausalLM(config).save_pretrained(other)
    directory = make_adapter(other, tmp_path / "adapter", **lora)
    with pytest.raises(CheckpointError, match=words) as caught, use(backend, directory):
        pass
    assert str(directory) in str(caught.value)


def as_bin(directory: Path, content: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Replace the safetensors file of an adapter by a pickled one."""
    [file] = weight_files(directory)
    state = transformers.modeling_utils.load_state_dict(str(file))
    file.unlink()
    torch.save(content(state), directory / "adapter_model.bin")


@pytest.mark.usefixtures("unchanged")
def test_a_pickled_adapter_of_plain_tensors_loads(
    backend: TransformersBackend, adapter_directory: Path
) -> None:
    with use(backend, adapter_directory):
        expected = loglikelihoods(backend)
    as_bin(adapter_directory, lambda state: state)
    with use(backend, adapter_directory):
        assert loglikelihoods(backend) == expected


class Malicious:
    """Unpickling it makes a directory."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.place,)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(
    backend: TransformersBackend, adapter_directory: Path, tmp_path: Path, save: str
) -> None:
    trap = tmp_path / "executed"
    as_bin(adapter_directory, lambda state: state | {"x": Malicious(trap)})
    if save == "pickle":
        (adapter_directory / "adapter_model.bin").write_bytes(pickle.dumps(Malicious(trap)))
    with (
        pytest.raises(CheckpointError, match=r"adapter_model\.bin: is not a file of weights"),
        use(backend, adapter_directory),
    ):
        pass
    assert not trap.exists()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda directory: as_bin(directory, lambda state: [1, 2]), "something else than named"),
        (
            lambda directory: (directory / "adapter_model.safetensors").write_bytes(b"{" * 99),
            "is not a file of weights",
        ),
        (
            lambda directory: (directory / "adapter_model.safetensors").unlink(),
            "holds no adapter_model",
        ),
        (
            lambda directory: (directory / "adapter_config.json").write_text(
                json.dumps({"base_model_name_or_path": "x", "peft_type": "NONSENSE"})
            ),
            "adapter_config.json: cannot be read",
        ),
    ],
    ids=["a list", "damaged weights", "no weights", "damaged settings"],
)
def test_what_is_no_adapter_is_refused_in_words(
    backend: TransformersBackend,
    adapter_directory: Path,
    change: Callable[[Path], Any],
    words: str,
) -> None:
    change(adapter_directory)
    with pytest.raises(CheckpointError, match=words), use(backend, adapter_directory):
        pass


def test_the_name_tells_what_answers_depend_on(backend: TransformersBackend) -> None:
    versions = f"transformers {transformers.__version__} torch {torch.__version__}"
    assert backend.name == f"{versions} float32 highest cpu batch 8192"


def test_a_base_is_loaded_when_something_is_asked_of_it(tiny_base_directory: Path) -> None:
    backend = make_backend(tiny_base_directory)
    choose(backend, LABELS)
    assert "base" not in vars(backend)
    assert backend.base_hash == backend.base.hash


def test_a_model_without_finite_log_likelihoods_gives_failed_answers(
    tiny_base_directory: Path,
) -> None:
    """A model that fell apart in training chooses nothing: argmax over NaN would name the first."""
    backend = make_backend(tiny_base_directory)
    with torch.no_grad():
        backend.base.module.lm_head.weight.fill_(math.nan)
    question = Question((Turn("Which?"),), "choice", Sampling(), ("negative", "positive"))
    (answer,) = backend.answer(backend.prepare([question], get_template("plain")))
    assert answer.error is not None
    assert answer.loglikelihoods == ()

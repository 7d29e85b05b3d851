"""Whole answers are scored as training on preferences reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedbench.data.example import Example
from fedbench.data.preference_tokens import tokenize_pairs
from fedbench.data.templates import Turn, get_template, unanswered
from fedbench.data.tokenize import Tokens
from fedbench.federated.layout import padded
from fedbench.federated.reading import read
from fedbench.generation.backend import Question, Request, Sampling
from fedbench.generation.transformers import TransformersBackend
from fedbench.model_config import ModelConfig

TEMPLATE = get_template("vicuna")
PAIRS = [
    Example((Turn("Is the news positive?", response="Yes."),), rejected="I do not read news."),
    Example(
        (
            Turn("What is the news?", response="Profit rises."),
            Turn("And the sentiment of it, in a word?", response="positive"),
        ),
        rejected="It is negative, as the profit rises at Acme and at no other company.",
    ),
    Example((Turn("Say nothing.", response=""),), rejected="No"),
    Example((Turn("A space first", response=" input"),), rejected="Input: input: input"),
]


@pytest.fixture(scope="module")
def backend(tiny_base_directory: Path) -> TransformersBackend:
    config = ModelConfig(name=str(tiny_base_directory), device="cpu", attention="eager")
    return TransformersBackend(str(tiny_base_directory), config)


def question(example: Example, closed: bool = True) -> Question:
    *before, last = example.turns
    return Question(
        turns=(*before, unanswered(last)),
        kind="choice",
        sampling=Sampling(),
        choices=(last.response or "", example.rejected or ""),
        closed=closed,
    )


def prepared(backend: TransformersBackend, examples: list[Example] = PAIRS) -> list[Request]:
    return backend.prepare([question(example) for example in examples], TEMPLATE)


def test_a_pair_has_the_tokens_that_it_is_trained_on(backend: TransformersBackend) -> None:
    rows = tokenize_pairs(PAIRS, TEMPLATE, backend.base.tokenizer, 1024, 512).sequences
    for request, row in zip(prepared(backend), rows, strict=True):
        assert (request.ids, request.choices) == (row.prompt, (row.chosen, row.rejected))
        end = backend.base.tokenizer.eos_token_id
        assert [choice[-1] for choice in request.choices] == [end, end]
        assert request.num_cut == 0


def test_a_label_is_not_closed(backend: TransformersBackend) -> None:
    [whole, bare] = backend.prepare(
        [question(PAIRS[1]), question(PAIRS[1], closed=False)], TEMPLATE
    )
    assert [choice[:-1] for choice in whole.choices] == list(bare.choices)


def test_pairs_have_the_log_likelihoods_that_training_computes(
    backend: TransformersBackend,
) -> None:
    requests = prepared(backend)
    assert len({len(choice) for request in requests for choice in request.choices}) > 3
    [batch] = backend.plan(requests)
    answers = backend.answer([requests[position] for position in batch.positions])
    for position, answer in zip(batch.positions, answers, strict=True):
        request = requests[position]
        rows = [Tokens.ending(request.ids + c, len(c)) for c in request.choices]
        with torch.no_grad():
            trained = read(backend.base, padded(rows, backend.base.tokenizer.pad_token_id))
        assert list(answer.loglikelihoods) == pytest.approx(trained.tolist(), abs=1e-4)


def test_a_batch_of_pairs_stays_within_its_tokens(backend: TransformersBackend) -> None:
    requests = prepared(backend, PAIRS * 3)
    longest = max(len(r.ids) + max(map(len, r.choices)) for r in requests)
    planner = TransformersBackend.__new__(TransformersBackend)  # a plan needs no model
    planner._batch_tokens = planner._generation_tokens = 5 * longest
    plan = planner.plan(requests)
    assert sorted(position for batch in plan for position in batch.positions) == list(range(12))
    for batch in plan:
        members = [requests[position] for position in batch.positions]
        width = max(len(m.ids) + max(map(len, m.choices)) for m in members)
        assert 2 * len(members) * width <= 5 * longest
    assert len(plan) < 12


def test_a_pair_that_does_not_fit_loses_the_prompts_start_first(
    backend: TransformersBackend,
) -> None:
    context = backend.base.max_length
    long = Example((Turn("word " * 2 * context, response="Yes."),), rejected="No, it is not.")
    [whole], [request] = (
        tokenize_pairs([long], TEMPLATE, backend.base.tokenizer, 10**6, 10**5).sequences,
        prepared(backend, [long]),
    )
    assert request.choices == (whole.chosen, whole.rejected)
    assert len(request.ids) + len(whole.rejected) == context
    assert request.ids == whole.prompt[-len(request.ids) :]
    assert request.num_cut == len(whole.prompt) - len(request.ids)


def test_an_answer_that_does_not_fit_is_cut_and_not_closed(backend: TransformersBackend) -> None:
    context = backend.base.max_length
    endless = replace(PAIRS[0], rejected="word " * 2 * context)
    [whole] = tokenize_pairs([endless], TEMPLATE, backend.base.tokenizer, 10**6, 10**5).sequences
    [request] = prepared(backend, [endless])
    assert request.ids == whole.prompt  # it is shorter than half the context
    assert request.choices == (whole.chosen, whole.rejected[: context - len(whole.prompt)])
    assert request.num_cut == len(whole.rejected) - len(request.choices[1])

"""Examples as token ids, with the boundary between prompt and completion.

The boundary is known from characters, through the tokenizer's offsets, and never by searching for
a token: it is where the rendered prompt ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedbench.data.datasets import Example
from fedbench.data.templates import Template
from fedbench.errors import DataError


@dataclass(frozen=True)
class Tokens:
    """One training sequence; the loss is taken on its last `num_completion` tokens."""

    ids: tuple[int, ...]
    num_completion: int


@dataclass(frozen=True)
class TokenizedData:
    """Training sequences, and what did not fit."""

    sequences: tuple[Tokens, ...]
    num_cut: int
    """Sequences whose prompt lost its start, or whose answer lost its end, to `max_length`."""


def tokenize(
    examples: Sequence[Example], template: Template, tokenizer: Any, max_length: int
) -> TokenizedData:
    """Tokenize the last turn of each example, the answer closed by the end-of-sequence token.

    Raises:
        DataError: an example has no answer.
    """
    sequences = []
    num_cut = 0
    for number, example in enumerate(examples):
        prompt, lead = template.prompt(_question(example), tokenizer)
        answer = example.turns[-1].response
        if not answer:
            raise DataError(f"training example {number} has an empty answer; drop or fill the row")
        tokens = encode(prompt, lead + answer, template, tokenizer)
        cut = cut_to_length(tokens, max_length)
        num_cut += cut is not tokens
        sequences.append(cut)
    return TokenizedData(tuple(sequences), num_cut)


def encode_prompt(prompt: str, template: Template, tokenizer: Any) -> list[int]:
    """Token ids of a rendered prompt, as in front of a completion in training."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=template.adds_special_tokens)["input_ids"]
    # Some tokenizers close every text; a prompt goes on.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def encode(prompt: str, completion: str, template: Template, tokenizer: Any) -> Tokens:
    """Token ids of prompt and completion, the completion closed by the end-of-sequence token.

    Where the prompt's own tokens are a prefix of the whole, as with nearly every tokenizer, the
    model sees in training just what it will see when asked. Where a token straddles the boundary,
    it belongs to the completion.
    """
    encoded = tokenizer(
        prompt + completion,
        add_special_tokens=template.adds_special_tokens,
        return_offsets_mapping=True,
    )
    ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    if ids and ids[-1] == tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
        ids, offsets = ids[:-1], offsets[:-1]
    num_prompt = sum(end <= len(prompt) for _, end in offsets)
    # Nothing comes before the first token that could predict it, so it is never completion.
    return Tokens((*ids, tokenizer.eos_token_id), len(ids) - max(num_prompt, 1) + 1)


def cut_to_length(tokens: Tokens, max_length: int) -> Tokens:
    """Shorten a sequence: first the start of the prompt, then the middle of a too long answer.

    The end-of-sequence token is kept, so that a model still learns to stop.
    """
    if len(tokens.ids) <= max_length:
        return tokens
    if tokens.num_completion < max_length:
        return Tokens(tokens.ids[-max_length:], tokens.num_completion)
    start = len(tokens.ids) - tokens.num_completion
    ids = (*tokens.ids[max(start - 1, 0) :][: max_length - 1], tokens.ids[-1])
    return Tokens(ids, max_length - 1)


def _question(example: Example) -> list[Any]:
    *history, last = example.turns
    return [*history, type(last)(last.instruction, last.input)]

"""Where the prompt ends and the completion begins, for tokenizers of every habit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from fedbench.data.datasets import Example
from fedbench.data.templates import Template, Turn, get_template
from fedbench.data.tokenize import Tokens, cut_to_length, encode, encode_prompt, tokenize
from fedbench.errors import DataError
from fedbench.pretrain import make_tokenizer

CORPUS = [
    "Instruction: What is the sentiment? Input: Profit rises at Acme. Answer: positive",
    "Input: The firm's profit falls again, it said. Answer: negative or neutral",
] * 20
SPECIALS = ["<pad>", "<s>", "</s>"]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def around(tokenizer: Tokenizer, single: str) -> Any:
    names = [name for name in ("<s>", "</s>") if name in single]
    pairs = [(name, tokenizer.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, special_tokens=pairs)


def ours() -> PreTrainedTokenizerFast:
    """The one that fedbench trains: byte-level, digits alone, no special token added."""
    return make_tokenizer(iter(CORPUS), ("positive", "negative"), 400)


def gpt2() -> PreTrainedTokenizerFast:
    """Byte-level with offsets that leave out the space in front of a word."""
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return wrapped(tokenizer)


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level, with a begin-of-sequence token put in front."""
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), around(tokenizer, "<s> $A")]
    )
    return wrapped(tokenizer)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Unigram over words that carry their space, one put in front of the text, and a bos."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=[*SPECIALS, "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz\n"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = around(tokenizer, "<s> $A")
    return wrapped(tokenizer)


def closing() -> PreTrainedTokenizerFast:
    """Closes every text with the end-of-sequence token."""
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = around(tokenizer, "<s> $A </s>")
    return wrapped(tokenizer)


def folding() -> PreTrainedTokenizerFast:
    """Folds case and writes every link alike, so that lengths differ from the text's."""
    tokenizer = byte_level_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"https?://\S+"), "URL"),
        ]
    )
    return wrapped(tokenizer)


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    maker.__name__: maker for maker in (ours, gpt2, llama3, sentencepiece, closing, folding)
}
PUTS_IN_FRONT = {"llama3", "sentencepiece", "closing"}


@cache
def tokenizer_named(name: str) -> PreTrainedTokenizerFast:
    return MAKERS[name]()


@pytest.fixture(params=list(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return tokenizer_named(name)


FINGPT = get_template("fingpt")


def one(answer: str, tokenizer: Any, input: str = "profit rises", max_length: int = 500) -> Tokens:
    """The sequence of one example under the FinGPT frame."""
    example = Example((Turn("what is the sentiment?", input, answer),))
    return tokenize([example], FINGPT, tokenizer, max_length).sequences[0]


def prompt_ids(tokenizer: Any, input: str = "profit rises") -> list[int]:
    prompt, _ = FINGPT.prompt([Turn("what is the sentiment?", input)], tokenizer)
    return encode_prompt(prompt, FINGPT, tokenizer)


@pytest.mark.parametrize(
    "answer", ["positive", "negative or neutral", "a: b", "one\ntwo", "answer: positive"]
)
def test_the_loss_is_on_the_answer_and_the_end_token(tokenizer: Any, answer: str) -> None:
    tokens = one(answer, tokenizer)
    completion = tokens.ids[-tokens.num_completion :]
    assert completion[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in tokens.ids[:-1]
    assert tokenizer.decode(completion[:-1]).strip() == answer


@pytest.mark.parametrize("input", ["profit rises", "answer: positive", "see https://a.io/Bc now"])
def test_a_prompt_has_the_same_tokens_in_training_and_in_scoring(
    tokenizer: Any, input: str
) -> None:
    tokens = one("positive", tokenizer, input)
    assert list(tokens.ids[: -tokens.num_completion]) == prompt_ids(tokenizer, input)


def test_a_token_put_in_front_of_a_text_is_part_of_the_prompt_once(
    name: str, tokenizer: Any
) -> None:
    count = 1 if name in PUTS_IN_FRONT else 0
    assert prompt_ids(tokenizer).count(tokenizer.bos_token_id) == count
    assert one("positive", tokenizer).ids.count(tokenizer.bos_token_id) == count


@pytest.mark.parametrize("name", ["ours", "gpt2", "llama3", "closing"])
@settings(max_examples=60, deadline=None)
@given(input=st.text(max_size=20), answer=st.text(min_size=1, max_size=20))
def test_any_text_is_divided_where_the_answer_begins(name: str, input: str, answer: str) -> None:
    tokenizer = tokenizer_named(name)
    input, answer = (text.replace("\ud800", "") for text in (input, answer))
    tokens = one(answer, tokenizer, input)
    assert list(tokens.ids[: -tokens.num_completion]) == prompt_ids(tokenizer, input)
    assert tokenizer.decode(tokens.ids[-tokens.num_completion : -1]) == f" {answer}"


def test_the_answer_word_in_the_prompt_does_not_move_the_boundary(tokenizer: Any) -> None:
    plain = one("positive", tokenizer)
    misleading = one("positive", tokenizer, "positive answer: positive")
    assert misleading.num_completion == plain.num_completion


def test_a_chat_template_brings_its_own_special_tokens() -> None:
    tokenizer = llama3()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = get_template("chat")
    example = Example((Turn("up or down?", "profit rises", "up"),))
    tokens = tokenize([example], chat, tokenizer, 500).sequences[0]
    assert tokens.ids.count(tokenizer.bos_token_id) == 1
    whole = tokenizer.decode(tokens.ids)
    assert whole == "<s>[user]up or down?\nprofit rises[assistant]up</s>"
    assert tokenizer.decode(tokens.ids[-tokens.num_completion :]) == "up</s>"


def test_earlier_answers_belong_to_the_prompt(tokenizer: Any) -> None:
    turns = (Turn("one?", "a", "first"), Turn("two?", "b", "second"))
    tokens = tokenize([Example(turns)], FINGPT, tokenizer, 500).sequences[0]
    assert "first" in tokenizer.decode(tokens.ids[: -tokens.num_completion])
    completion = tokenizer.decode(tokens.ids[-tokens.num_completion : -1])
    assert completion.strip() == "second"


def test_a_token_across_the_boundary_belongs_to_the_completion() -> None:
    # "abab" is one token, and the prompt ends in the middle of it.
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(["abab"] * 10 + ["x"], trainer)
    fast = wrapped(tokenizer)
    tokens = encode("xab", "ab", Template("made", "made"), fast)
    assert fast.convert_ids_to_tokens(tokens.ids) == ["x", "abab", "</s>"]
    assert tokens.num_completion == 2


def test_the_first_token_of_a_sequence_is_never_completion() -> None:
    # Nothing comes before it that could predict it.
    tokens = encode("", "positive", FINGPT, tokenizer_named("ours"))
    assert tokens.num_completion == len(tokens.ids) - 1


@pytest.mark.parametrize("response", ["", None])
def test_an_example_without_an_answer_is_refused(response: str | None) -> None:
    example = Example((Turn("what?", "text", response),))
    with pytest.raises(DataError, match="training example 0 has an empty answer"):
        tokenize([example], FINGPT, tokenizer_named("ours"), 500)


# Truncation


def test_a_long_prompt_loses_its_start(tokenizer: Any) -> None:
    whole = one("positive", tokenizer, "profit rises " * 30)
    cut = one("positive", tokenizer, "profit rises " * 30, max_length=40)
    assert cut.ids == whole.ids[-40:]
    assert cut.num_completion == whole.num_completion


def test_a_long_answer_keeps_its_beginning_and_its_end_token(tokenizer: Any) -> None:
    whole = one("positive " * 60, tokenizer)
    cut = one("positive " * 60, tokenizer, max_length=20)
    # One token of the prompt, 18 of the answer, and the end.
    start = len(whole.ids) - whole.num_completion
    assert cut.ids == (*whole.ids[start - 1 : start + 18], tokenizer.eos_token_id)
    assert cut.num_completion == 19


def test_sequences_that_were_cut_are_counted() -> None:
    turns = [Turn("what?", "profit rises " * n, "positive") for n in (1, 30, 50)]
    data = tokenize([Example((turn,)) for turn in turns], FINGPT, tokenizer_named("ours"), 60)
    assert data.num_cut == 2
    assert [len(tokens.ids) for tokens in data.sequences][1:] == [60, 60]


@given(st.integers(0, 12), st.integers(1, 12), st.integers(2, 14))
def test_a_cut_sequence_has_the_length_and_ends_as_before(
    num_prompt: int, num_completion: int, max_length: int
) -> None:
    tokens = Tokens(tuple(range(num_prompt + num_completion)), num_completion)
    cut = cut_to_length(tokens, max_length)
    assert len(cut.ids) == min(len(tokens.ids), max_length)
    assert cut.ids[-1] == tokens.ids[-1]
    assert 1 <= cut.num_completion <= num_completion
    if num_completion < max_length:
        assert cut.num_completion == num_completion


def test_a_file_with_nothing_before_the_answer_can_be_trained_on(
    tmp_path: Path, tiny_base: Any
) -> None:
    from fedbench.federated.client import completion_loss

    file = tmp_path / "empty.jinja"
    file.write_text("{{ turns[-1].instruction }}")
    example = Example((Turn("", "", "positive"),))
    data = tokenize([example], get_template(str(file)), tiny_base.tokenizer, 50)
    assert float(completion_loss(tiny_base, data.sequences).detach()) > 0

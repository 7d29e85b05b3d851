"""A small Llama made from named public text, for machines that reach no hub.

The tokenizer is a byte-level BPE trained on the same text; digits stand alone. The model is cached
by a hash of everything that shapes it: the configuration, the text and this code's version.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from fedbench.data.cloze import cloze
from fedbench.data.datasets import Example, find_overlaps, load_examples
from fedbench.data.partition import group_duplicates
from fedbench.data.templates import Template, get_template
from fedbench.data.tokenize import Tokens, cut_to_length, encode
from fedbench.errors import OutputError
from fedbench.model_config import Pretrain
from fedbench.resources import CACHE_VARIABLE, cache_directory
from fedbench.weights import weight_files

RECIPE = 1  # raised whenever the same configuration would give other weights
END, PAD = "<|end|>", "<|pad|>"
WARMUP_STEPS = 20
FINAL_SHARE = 0.05  # of the learning rate, after linear decay
Progress = Callable[[str, int, int], None]


def pretrained(
    config: Pretrain,
    seed: int,
    mirror: str | None,
    private_texts: Sequence[str],
    progress: Progress,
) -> Path:
    """The directory of the model that `config` describes, made now or taken from the cache.

    Args:
        config: text, sizes and steps.
        seed: of initialisation and data order, unless the configuration has its own.
        mirror: where the text is read from.
        private_texts: scored items and the clients' rows; public text that shares one is left
            out.
        progress: told of every step.

    Raises:
        OutputError: the cache cannot be written.
    """
    seed = seed if config.seed is None else config.seed
    examples = public_text(config, seed, mirror, private_texts)
    place = cache_directory() / "models" / _key(config, seed, examples)
    if not weight_files(place):
        try:
            _make(config, seed, examples, place, progress)
        except OSError as error:
            raise OutputError(
                f"{place}: cannot be written ({error}); free some space, or set {CACHE_VARIABLE} "
                "to another directory"
            ) from error
    return place


def public_text(
    config: Pretrain, seed: int, mirror: str | None, private_texts: Sequence[str]
) -> list[Example]:
    """The rows to pre-train on: none shares a private text, none has another's text."""
    examples = [e for name in config.text for e in load_examples(name, mirror)]
    texts = [example.text for example in examples]
    left_out = find_overlaps(texts, private_texts)
    firsts = [group[0] for group in group_duplicates(texts) if group[0] not in left_out]
    public = [examples[position] for position in firsts]
    return cloze(public, config.cloze, seed) if config.cloze else public


def make_tokenizer(
    texts: Iterator[str], words: Sequence[str], vocab_size: int, *, lowercase: bool = False
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each of `words`, with a space before it, is one token."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if lowercase:
        tokenizer.normalizer = tokenizers.normalizers.Sequence(
            [
                tokenizers.normalizers.Replace(tokenizers.Regex(r"https?://\S+"), "http"),
                tokenizers.normalizers.Lowercase(),
            ]
        )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def with_words() -> Iterator[str]:
        yield from texts
        for word in words:
            yield f" {word}" * 1000  # often enough for BPE to merge it whole

    tokenizer.train_from_iterator(with_words(), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left"
    )


def make_llama(config: Pretrain, tokenizer: Any, seed: int) -> transformers.LlamaForCausalLM:
    """A Llama with random weights drawn from `seed`."""
    settings = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=1024,
        initializer_range=config.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(settings)


def _make(
    config: Pretrain, seed: int, examples: Sequence[Example], place: Path, progress: Progress
) -> None:
    template = get_template(config.template)
    words = [*config.words, *(config.cloze.words if config.cloze else ())]
    written = (_written(example, template) for example in examples)
    tokenizer = make_tokenizer(written, words, config.vocab_size, lowercase=config.lowercase)
    model = make_llama(config, tokenizer, seed)
    sequences = [
        cut_to_length(_tokens(example, template, tokenizer), config.max_length)
        for example in examples
    ]
    _train(model, sequences, config, seed, tokenizer.pad_token_id, progress)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed to it: a killed run leaves no half model in the cache.
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        made = Path(temporary, "model")
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "pretrain.json").write_text(
            json.dumps(
                {
                    "config": config.model_dump(mode="json"),
                    "seed": seed,
                    "rows": len(examples),
                    "tokens": sum(len(s.ids) for s in sequences),
                }
            )
        )
        try:
            made.rename(place)
        except OSError:
            if not weight_files(place):  # else another process has made it meanwhile
                raise


def _train(
    model: Any,
    sequences: Sequence[Tokens],
    config: Pretrain,
    seed: int,
    pad: int,
    progress: Progress,
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, config.steps))
    torch.manual_seed(seed)
    model.train()
    for step, indices in enumerate(_batches(sequences, config, seed), start=1):
        loss = _weighted_loss(model, [sequences[i] for i in indices], config.prompt_weight, pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress("pre-training the base model", step, config.steps)
    model.eval()


def _weighted_loss(
    model: Any, batch: Sequence[Tokens], prompt_weight: float, pad: int
) -> torch.Tensor:
    """Cross-entropy over all tokens; prompt tokens weigh `prompt_weight`, answer tokens 1."""
    width = max(len(tokens.ids) for tokens in batch)
    ids = torch.full((len(batch), width), pad)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    weights = torch.full((len(batch), width), prompt_weight)
    for row, tokens in enumerate(batch):
        ids[row, width - len(tokens.ids) :] = torch.tensor(tokens.ids)
        mask[row, width - len(tokens.ids) :] = 1
        weights[row, width - tokens.num_completion :] = 1.0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).logits
    # A sequence's first token has nothing before it that could predict it.
    predicted = mask[:, :-1] * mask[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(len(batch), -1)
    weights = weights[:, 1:] * predicted
    total: torch.Tensor = (losses * weights).sum() / weights.sum()
    return total


def _batches(sequences: Sequence[Tokens], config: Pretrain, seed: int) -> Iterator[list[int]]:
    """Batches of like length in random order, pass after pass, until the steps are done."""
    rng = random.Random(f"pretrain/{seed}")
    done = 0
    while True:
        order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), rng.random()))
        batches = [
            order[start : start + config.batch_size]
            for start in range(0, len(order), config.batch_size)
        ]
        rng.shuffle(batches)
        for batch in batches:
            yield batch
            done += 1
            if done == config.steps:
                return


def _share(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up, then linear decay to `FINAL_SHARE`."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    left = (steps - step) / max(steps - WARMUP_STEPS, 1)
    return FINAL_SHARE + (1 - FINAL_SHARE) * left


def _tokens(example: Example, template: Template, tokenizer: Any) -> Tokens:
    """Plain text is all answer; a question with its answer has a prompt before it."""
    turn = example.turns[-1]
    if not turn.instruction and not turn.input:
        ids = tokenizer(turn.response, add_special_tokens=False)["input_ids"]
        return Tokens.ending((*ids, tokenizer.eos_token_id), len(ids) + 1)
    prompt, lead = template.prompt([type(turn)(turn.instruction, turn.input)], tokenizer)
    return encode(prompt, lead + (turn.response or ""), template, tokenizer)


def _written(example: Example, template: Template) -> str:
    turn = example.turns[-1]
    if not turn.instruction and not turn.input:
        return turn.response or ""
    prompt, lead = template.prompt([type(turn)(turn.instruction, turn.input)], None)
    return prompt + lead + (turn.response or "")


def _key(config: Pretrain, seed: int, examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    shape = config.model_dump(mode="json", exclude={"seed"})
    digest.update(json.dumps([RECIPE, shape, seed], sort_keys=True).encode())
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()[:16]

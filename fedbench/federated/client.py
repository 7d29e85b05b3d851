"""Local training: what one client does in one round.

The loop is our own rather than a Trainer's: a federated run starts thousands of short trainings on
one resident model, and building a Trainer for each costs more than the steps (docs/decisions). It
equals TRL's SFTTrainer on the same batches (tests/reference).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedbench.config import Local
from fedbench.data.tokenize import Tokens
from fedbench.errors import DataError
from fedbench.federated.fedavg import GradientHook
from fedbench.federated.message import ClientMessage, ClientUpdate
from fedbench.model import BaseModel, get_state, set_state, trainable

IGNORED = -100


def train_client(
    base: BaseModel,
    data: Sequence[Tokens],
    message: ClientMessage,
    local: Local,
    hook: GradientHook | None,
) -> ClientUpdate:
    """Train the global weights on one client's rows and return the result.

    The same message gives the same bits: data order and dropout come from (seed, client, round).

    Raises:
        DataError: the loss is no longer finite.
    """
    set_state(base.module, message.state)
    torch.manual_seed(_seed_of(message))
    optimizer = make_optimizer(list(trainable(base.module).values()), local, message.learning_rate)
    base.module.train()
    losses = []
    for indices in batches(data, local, message):
        losses.append(accumulate(base, [data[index] for index in indices], local))
        if not math.isfinite(losses[-1]):
            raise DataError(
                f"client {message.client}, round {message.round}: the training loss is not finite; "
                f"lower local.learning_rate (it is {local.learning_rate:g})"
            )
        change_gradients(base.module, hook, local.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    base.module.eval()
    return ClientUpdate(
        client=message.client,
        state=get_state(base.module),
        num_examples=len(data),
        num_samples=local.max_steps * local.batch_size,
        num_steps=local.max_steps,
        loss=sum(losses) / len(losses),
    )


def batches(data: Sequence[Tokens], local: Local, message: ClientMessage) -> list[list[int]]:
    """Rows of each step. A client goes through its shuffled rows again and again, across rounds.

    The order of pass p depends on (seed, client, p) alone, so a resumed run goes on with the rows
    that are next.
    """
    first = message.num_samples_before
    rows = [
        _shuffled(len(data), message, position // len(data))[position % len(data)]
        for position in range(first, first + local.max_steps * local.batch_size)
    ]
    if local.group_by_length:
        rows.sort(key=lambda row: len(data[row].ids))
    steps = [
        rows[start : start + local.batch_size] for start in range(0, len(rows), local.batch_size)
    ]
    if local.group_by_length:
        random.Random(f"batches/{message.seed}/{message.client}/{message.round}").shuffle(steps)
    return steps


@lru_cache(maxsize=4)
def _order(num_examples: int, key: str) -> tuple[int, ...]:
    order = list(range(num_examples))
    random.Random(key).shuffle(order)
    return tuple(order)


def _shuffled(num_examples: int, message: ClientMessage, epoch: int) -> tuple[int, ...]:
    """The client's row order in one pass over its rows."""
    return _order(num_examples, f"{message.seed}/{message.client}/{epoch}")


def accumulate(base: BaseModel, batch: Sequence[Tokens], local: Local) -> float:
    """Add the gradient of the mean loss per completion token of a batch; returns that loss."""
    size = local.micro_batch_size or len(batch)
    num_tokens = sum(tokens.num_completion for tokens in batch)
    total = 0.0
    for start in range(0, len(batch), size):
        loss = completion_loss(base, batch[start : start + size]) / num_tokens
        loss.backward()
        total += float(loss.detach())
    return total


def completion_loss(base: BaseModel, batch: Sequence[Tokens]) -> Tensor:
    """Summed cross-entropy over the completion tokens of a batch.

    Sequences are padded on the left, so that completions end together and the language-model head
    is applied to the last positions only: (B, K + 1, V) logits instead of (B, T, V).
    """
    inputs, labels = collate(batch, base.tokenizer.pad_token_id)
    device = base.device
    logits = base.module(
        **{name: tensor.to(device) for name, tensor in inputs.items()},
        logits_to_keep=labels.shape[1] + 1,
        use_cache=False,
    ).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels.to(device).flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def collate(batch: Sequence[Tokens], pad: int) -> tuple[dict[str, Tensor], Tensor]:
    """Left-padded model inputs (B, T), and labels (B, K) of the last K = longest completion."""
    length = max(len(tokens.ids) for tokens in batch)
    width = max(tokens.num_completion for tokens in batch)
    ids = torch.full((len(batch), length), pad)
    mask = torch.zeros((len(batch), length), dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORED)
    for row, tokens in enumerate(batch):
        ids[row, length - len(tokens.ids) :] = torch.tensor(tokens.ids)
        mask[row, length - len(tokens.ids) :] = 1
        labels[row, width - tokens.num_completion :] = torch.tensor(
            tokens.ids[-tokens.num_completion :]
        )
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, labels


def change_gradients(module: Any, hook: GradientHook | None, max_norm: float | None) -> None:
    """Apply the algorithm's hook, then clip: the clipped gradient is the objective's whole."""
    parameters = trainable(module)
    if hook is not None:
        for name, weight in parameters.items():
            if weight.grad is not None:
                weight.grad = hook(name, weight.detach(), weight.grad)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter], local: Local, learning_rate: float
) -> torch.optim.Optimizer:
    """A fresh local optimizer."""
    if local.optimizer == "sgd":
        return torch.optim.SGD(parameters, learning_rate, weight_decay=local.weight_decay)
    return torch.optim.AdamW(
        parameters, learning_rate, betas=local.betas, weight_decay=local.weight_decay, fused=True
    )


def _seed_of(message: ClientMessage) -> int:
    key = f"{message.seed}/{message.client}/{message.round}"
    return random.Random(key).getrandbits(63)

"""Our preference objectives against TRL's DPOTrainer and KTOTrainer on the same rows.

TRL is given rows that are token ids already, and prepares them, finds its reference (the base with
the adapter off), and computes loss and gradients itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedbench.config import Local
from fedbench.data.tokenize import Pair, Rated
from fedbench.federated.client import accumulate, batches, reference_scores, train_client
from fedbench.federated.message import ClientMessage
from fedbench.federated.objectives import Objective, make_objective
from fedbench.federated.reading import Reader
from fedbench.federated.settings import DpoObjective, KtoObjective
from fedbench.federated.state import State, combine
from fedbench.model import BaseModel, add_lora, get_state, load_base, set_state, trainable
from fedbench.model_config import Lora, ModelConfig

STEPS, BATCH = 4, 4
LORA = Lora(r=2, alpha=4)


def make_pairs(number: int) -> list[Pair]:
    rng = random.Random(0)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 300) for _ in range(rng.randint(low, high)))

    opening = some(5, 5)
    return [Pair(opening + some(3, 8), some(1, 5), some(1, 5)) for _ in range(number)]


def make_rated(number: int) -> list[Rated]:
    return [
        Rated(pair.prompt, pair.chosen, desirable=row % 3 != 0)
        for row, pair in enumerate(make_pairs(number))
    ]


def adapted(directory: Path) -> BaseModel:
    config = ModelConfig(name=str(directory), lora=LORA, device="cpu", attention="eager")
    base = load_base(str(directory), config)
    add_lora(base, LORA, seed=0)
    return base


def shaken(state: State, size: float) -> State:
    """Adapters that change the model, so that policy and reference differ."""
    noise = torch.Generator().manual_seed(1)
    return combine(lambda t: t + size * torch.randn(t.shape, generator=noise), state)


def gradients(module: Any) -> State:
    return {n: p.grad.clone() for n, p in trainable(module).items() if p.grad is not None}


def ours(
    directory: Path, rows: list[Any], objective: Objective, state: State, layout: str
) -> tuple[float, State]:
    """Loss and gradients of one batch of all `rows`."""
    base = adapted(directory)
    local = Local(batch_size=len(rows), layout=layout)
    reference = reference_scores(base, get_state(base.module), rows, local, objective)
    set_state(base.module, state)
    reader = Reader(base, local, dropout=False)
    with reader.training():
        loss = accumulate(reader, objective, rows, range(len(rows)), local, reference)
    return loss, gradients(base.module)


# TRL


def written(ids: tuple[int, ...]) -> str:
    """Token ids as a text that `read` turns back."""
    return "".join(f"{token} " for token in ids)


@pytest.fixture(autouse=True)
def _trl_reads_ids(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from trl.trainer import dpo_trainer, kto_trainer

    def read(tokenizer: Any, text: str, **options: Any) -> dict[str, list[int]]:
        words = text.replace(tokenizer.eos_token, f" {tokenizer.eos_token_id}").split()
        return {"input_ids": [int(word) for word in words]}

    monkeypatch.setattr(dpo_trainer, "_tokenize", read)
    monkeypatch.setattr(kto_trainer, "_tokenize", read)
    # torch.compile, which TRL uses for its head, would take longer than the tests.
    with torch._dynamo.config.patch(disable=True):
        yield


def trl_trainer(
    kind: str, directory: Path, rows: list[dict[str, Any]], output: Path, **options: Any
) -> Any:
    import datasets
    import peft
    import torch.utils.data
    import trl

    class InOrder(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        def _get_train_sampler(self, *arguments: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    base = load_base(str(directory), ModelConfig(name=str(directory), device="cpu"))
    settings = getattr(trl, f"{kind}Config")(
        output_dir=str(output),
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        max_length=None,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **options,
    )
    return InOrder(
        model=base.module,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=peft.LoraConfig(
            r=LORA.r, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


def theirs(trainer: Any, state: State) -> tuple[float, State]:
    """Loss and gradients of the trainer's first batch."""
    set_state(trainer.model, state)
    trainer.model.train()
    [batch] = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), gradients(trainer.model)


def pair_texts(tokenizer: Any, pairs: list[Pair]) -> list[dict[str, str]]:
    """TRL closes every answer with the end-of-sequence token, as fedbench's tokenizing does."""
    return [
        {
            "prompt": written(pair.prompt),
            "chosen": written(pair.chosen[:-1]) + tokenizer.eos_token,
            "rejected": written(pair.rejected[:-1]) + tokenizer.eos_token,
        }
        for pair in pairs
    ]


def closed(pairs: list[Pair], end: int) -> list[Pair]:
    return [Pair(p.prompt, (*p.chosen, end), (*p.rejected, end)) for p in pairs]


def assert_close(one: State, other: State, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert float((one[name] - other[name]).abs().max()) < tolerance, name


@pytest.mark.parametrize(
    ("layout", "config", "options"),
    [
        ("shared", {}, {"loss_type": "sigmoid"}),
        ("padded", {"beta": 0.5}, {"loss_type": "sigmoid", "beta": 0.5}),
        ("shared", {"loss": "ipo"}, {"loss_type": "ipo"}),
    ],
    ids=["dpo", "padded", "ipo"],
)
def test_dpo_has_the_loss_and_the_gradients_of_dpo_trainer(
    tiny_base_directory: Path,
    tmp_path: Path,
    layout: str,
    config: dict[str, Any],
    options: dict[str, Any],
) -> None:
    base = adapted(tiny_base_directory)
    state = shaken(get_state(base.module), 0.3)
    pairs = closed(make_pairs(6), base.tokenizer.eos_token_id)
    objective = make_objective(DpoObjective(kind="dpo", **config))
    loss, gradient = ours(tiny_base_directory, pairs, objective, state, layout)

    texts = pair_texts(base.tokenizer, pairs)
    trainer = trl_trainer(
        "DPO",
        tiny_base_directory,
        texts,
        tmp_path,
        per_device_train_batch_size=6,
        **{"beta": 0.1, **options},
    )
    their_loss, their_gradient = theirs(trainer, state)

    scale = max(1.0, max(float(g.abs().max()) for g in their_gradient.values()))
    assert loss == pytest.approx(their_loss, abs=1e-5, rel=1e-5)
    assert_close(gradient, their_gradient, 1e-5 * scale)
    assert max(float(g.abs().max()) for g in gradient.values()) > 1e-3


def test_label_smoothing_is_that_of_the_robust_loss_before_its_correction(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    # TRL 1.16 has no cDPO of its own. Its `robust` loss is ((1-e) l(m) - e l(-m)) / (1 - 2e) with
    # l = -log sigmoid, and `sigmoid` is l(m), so cDPO = (1-e) l(m) + e l(-m)
    # = 2 (1-e) sigmoid - (1-2e) robust, for loss and gradients alike.
    smoothing = 0.2
    base = adapted(tiny_base_directory)
    state = shaken(get_state(base.module), 0.3)
    pairs = closed(make_pairs(6), base.tokenizer.eos_token_id)
    objective = make_objective(DpoObjective(kind="dpo", label_smoothing=smoothing))
    loss, gradient = ours(tiny_base_directory, pairs, objective, state, "shared")

    parts = []
    for kind in ("sigmoid", "robust"):
        trainer = trl_trainer(
            "DPO",
            tiny_base_directory,
            pair_texts(base.tokenizer, pairs),
            tmp_path,
            per_device_train_batch_size=6,
            beta=0.1,
            label_smoothing=smoothing,
            loss_type=kind,
        )
        parts.append(theirs(trainer, state))
    (plain, plain_gradient), (robust, robust_gradient) = parts
    expected = 2 * (1 - smoothing) * plain - (1 - 2 * smoothing) * robust
    assert loss == pytest.approx(expected, abs=1e-5)
    mixed = combine(
        lambda p, r: 2 * (1 - smoothing) * p - (1 - 2 * smoothing) * r,
        plain_gradient,
        robust_gradient,
    )
    assert_close(gradient, mixed, 1e-5)


def test_local_dpo_training_equals_dpo_trainer(tiny_base_directory: Path, tmp_path: Path) -> None:
    local = Local(max_steps=STEPS, batch_size=BATCH, learning_rate=5e-3, max_grad_norm=None)
    base = adapted(tiny_base_directory)
    start = get_state(base.module)
    pairs = closed(make_pairs(7), base.tokenizer.eos_token_id)
    objective = make_objective(DpoObjective(kind="dpo"))
    reference = reference_scores(base, start, pairs, local, objective)
    message = ClientMessage(0, 1, 0, shaken(start, 0.1), local.learning_rate, 0, STEPS)
    update = train_client(base, pairs, message, local, objective=objective, reference=reference)

    order = [pairs[index] for batch in batches(pairs, local, message) for index in batch]
    trainer = trl_trainer(
        "DPO",
        tiny_base_directory,
        pair_texts(base.tokenizer, order),
        tmp_path,
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=local.learning_rate,
        beta=0.1,
    )
    set_state(trainer.model, message.state)
    result = trainer.train()
    assert_close(update.state, get_state(trainer.model), 1e-5)
    assert update.loss == pytest.approx(result.training_loss, abs=1e-5)


def test_kto_has_the_loss_and_the_gradients_of_kto_trainer(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    # TRL estimates its reference point from each prompt with the answer of the row before it in
    # the batch, fedbench with that of the client's next row. On a batch that is the whole shard,
    # given to TRL in reverse, they are the same.
    base = adapted(tiny_base_directory)
    end = base.tokenizer.eos_token_id
    rows = [Rated(row.prompt, (*row.answer, end), row.desirable) for row in make_rated(6)]
    texts = [
        {
            "prompt": written(row.prompt),
            "completion": written(row.answer[:-1]) + base.tokenizer.eos_token,
            "label": row.desirable,
        }
        for row in reversed(rows)
    ]
    weights = {"beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.5}
    objective = make_objective(KtoObjective(kind="kto", **weights))
    points = []
    for seed_size in (0.3, -0.3):  # adapters that make the reference point positive, or clamp it
        state = shaken(get_state(base.module), seed_size)
        loss, gradient = ours(tiny_base_directory, rows, objective, state, "shared")
        trainer = trl_trainer(
            "KTO", tiny_base_directory, texts, tmp_path, per_device_train_batch_size=6, **weights
        )
        their_loss, their_gradient = theirs(trainer, state)
        assert loss == pytest.approx(their_loss, abs=1e-5)
        assert_close(gradient, their_gradient, 1e-5)
        points.append(trainer._metrics["train"]["kl"][0])
    assert points[0] > 0.0 == points[1]

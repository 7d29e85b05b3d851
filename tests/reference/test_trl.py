"""Our local loop against TRL's SFTTrainer on the same batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fedbench.config import Local
from fedbench.data.tokenize import Tokens
from fedbench.federated.client import batches, train_client
from fedbench.federated.message import ClientMessage
from fedbench.federated.state import State
from fedbench.model import BaseModel, add_lora, get_state, load_base
from fedbench.model_config import ModelConfig

STEPS = 5
LOCAL = Local(max_steps=STEPS, batch_size=4, learning_rate=5e-3, max_grad_norm=None)


def make_rows(number: int) -> list[Tokens]:
    """Rows that begin with the same instruction; every third has an earlier answer too."""
    rng = random.Random(0)
    rows = []
    for row in range(number):
        ids = (*range(10, 18), *(rng.randrange(2, 300) for _ in range(rng.randint(6, 14))))
        start = len(ids) - rng.randint(1, 4)
        earlier = ((9, 11),) if row % 3 == 0 else ()
        rows.append(Tokens(ids, (*earlier, (start, len(ids)))))
    return rows


def full_base(directory: Path) -> BaseModel:
    config = ModelConfig(name=str(directory), lora=None, device="cpu", attention="eager")
    base = load_base(str(directory), config)
    add_lora(base, None, seed=0)
    return base


def told(base: BaseModel, local: Local) -> ClientMessage:
    return ClientMessage(
        client=0,
        round=1,
        seed=0,
        state=get_state(base.module),
        learning_rate=local.learning_rate,
        num_samples_before=0,
        num_steps=STEPS,
    )


def trained_by_trl(base: BaseModel, rows: list[Tokens], output: Path) -> State:
    """Weights after SFTTrainer went through `rows` in their order, `STEPS` batches of 4."""
    import datasets
    import torch.utils.data
    import trl

    class InOrder(trl.SFTTrainer):
        def _get_train_sampler(self, *arguments: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    # A data set that is tokenised already, with a mask of what the loss is taken on.
    columns = {
        "input_ids": [list(tokens.ids) for tokens in rows],
        "completion_mask": [
            [int(any(a <= n < b for a, b in tokens.spans)) for n in range(len(tokens.ids))]
            for tokens in rows
        ],
    }
    settings = trl.SFTConfig(
        output_dir=str(output),
        max_steps=STEPS,
        per_device_train_batch_size=LOCAL.batch_size,
        learning_rate=LOCAL.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        completion_only_loss=True,
        max_length=None,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=base.module,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=base.tokenizer,
    )
    trainer.train()
    return get_state(base.module)


@pytest.mark.parametrize(
    "change",
    [{"layout": "shared"}, {"layout": "padded"}, {"micro_batch_size": 3}],
    ids=["shared", "padded", "accumulated"],
)
def test_local_training_equals_sft_trainer(
    tiny_base_directory: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    data = make_rows(7)
    local = LOCAL.model_copy(update=change)
    ours = full_base(tiny_base_directory)
    message = told(ours, local)
    state = train_client(ours, data, message, local).state

    order = [data[index] for batch in batches(data, local, message) for index in batch]
    theirs = trained_by_trl(full_base(tiny_base_directory), order, tmp_path)

    assert state.keys() == theirs.keys()
    for name in state:
        assert float((state[name] - theirs[name]).abs().max()) < 1e-5, name
    moved = max(float((state[name] - message.state[name]).abs().max()) for name in state)
    assert moved > 0.01  # five steps of AdamW at 5e-3


@pytest.mark.parametrize("change", [{"learning_rate": 4e-3}, {"betas": (0.9, 0.99)}])
def test_the_comparison_would_notice_another_setting(
    tiny_base_directory: Path, change: dict[str, Any]
) -> None:
    states = []
    for local in (LOCAL, LOCAL.model_copy(update=change)):
        base = full_base(tiny_base_directory)
        states.append(train_client(base, make_rows(7), told(base, local), local).state)
    assert max(float((states[0][n] - states[1][n]).abs().max()) for n in states[0]) > 1e-4

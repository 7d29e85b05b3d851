"""What training switches on: dropout in every form that architectures have it, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fedbench.data.tokenize import Tokens
from fedbench.errors import ConfigError
from fedbench.federated.reading import Reader
from fedbench.federated.settings import Local
from fedbench.model import BaseModel, add_lora, prepare_training
from fedbench.model_config import Lora

PAD = 0
ROWS = [
    Tokens.ending((5, 6, 7, 8, 9, 10, 11, 12), 2),
    Tokens.ending((5, 6, 7, 8, 9, 10, 13), 1),
]


def base_with(module: Any) -> BaseModel:
    with torch.no_grad():  # fresh weights hardly look at other tokens
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return BaseModel(module.eval(), SimpleNamespace(pad_token_id=PAD), "tiny", "")


def llama(attention: str) -> BaseModel:
    """Attention that drops by a number of its own; it holds no dropout module."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.5,
        attn_implementation=attention,
    )
    return base_with(transformers.LlamaForCausalLM(config))


def gpt2(attention: str) -> BaseModel:
    """Attention that (with sdpa) reads the rate of a dropout module without calling it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        attn_pdrop=0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_implementation=attention,
    )
    return base_with(transformers.GPT2LMHeadModel(config))


def opt(attention: str) -> BaseModel:
    """Functional dropout also around the blocks, and whole layers that are left out."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=64,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        dropout=0.5,
        layerdrop=0.5,
        attn_implementation=attention,
    )
    return base_with(transformers.OPTForCausalLM(config))


def adapted(attention: str) -> BaseModel:
    """Dropout before the factors, too."""
    base = llama(attention)
    add_lora(base, Lora(r=2, alpha=4, dropout=0.5), seed=0)
    with torch.no_grad():  # PEFT begins with B = 0, where dropout before it changes nothing
        for name, parameter in base.module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    return base


def read(reader: Reader, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with reader.training(), torch.no_grad():
        return reader(ROWS)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("made", [llama, gpt2, opt, adapted])
def test_preference_objectives_train_without_dropout_of_any_form(
    made: Callable[[str], BaseModel], attention: str
) -> None:
    base = made(attention)
    reader = Reader(base, Local(layout="padded"), dropout=False)
    with torch.no_grad():
        expected = reader(ROWS)
    assert torch.equal(read(reader, seed=1), expected)
    assert torch.equal(read(reader, seed=2), expected)
    # The rates are back afterwards: an objective that has dropout draws masks.
    dropping = Reader(base, Local(layout="padded"), dropout=True)
    assert not torch.equal(read(dropping, seed=1), read(dropping, seed=2))


def test_an_adapter_drops_nothing_before_training() -> None:
    base = adapted("sdpa")  # the reference of preferences is read here
    reader = Reader(base, Local(layout="padded"), dropout=False)
    with torch.no_grad():
        assert torch.equal(reader(ROWS), reader(ROWS))


@pytest.mark.parametrize("made", [llama, gpt2, opt])
def test_functional_dropout_takes_padded_rows_and_its_absence_does_not(
    made: Callable[[str], BaseModel],
) -> None:
    base = made("sdpa")
    assert not Reader(base, Local(), dropout=True).shares
    assert Reader(base, Local(), dropout=False).shares


def test_the_rates_are_back_also_after_a_failure() -> None:
    base = llama("sdpa")
    reader = Reader(base, Local(), dropout=False)
    attentions = [layer.self_attn for layer in base.module.model.layers]
    seen = []

    def fail(*_: Any) -> None:
        seen.extend(attention.attention_dropout for attention in attentions)
        raise RuntimeError("out of memory")

    base.module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        read(reader, seed=1)
    assert seen == [0.0, 0.0]
    assert [attention.attention_dropout for attention in attentions] == [0.5, 0.5]
    assert not base.module.training


def test_a_model_that_cannot_checkpoint_is_refused_by_the_option() -> None:
    torch.manual_seed(0)
    config = transformers.JetMoeConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_key_value_heads=2,
        kv_channels=8,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    base = BaseModel(transformers.JetMoeForCausalLM(config), None, "org/jetmoe", "")
    words = r"local\.gradient_checkpointing: org/jetmoe \(JetMoeForCausalLM\) does not support it"
    with pytest.raises(ConfigError, match=words):
        prepare_training(base, Lora(r=2), 0, checkpointing=True)
    prepare_training(base, None, 0, checkpointing=False)

"""The model section of a run file: the base, how it is loaded, and what is trained of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedbench.schema import Fraction, Part, Positive


class Lora(Part):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685), made by PEFT."""

    r: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (https://arxiv.org/abs/2312.03732)."""
    dora: bool = False
    """Train the magnitude of each weight apart from its direction (DoRA,
    https://arxiv.org/abs/2402.09353)."""


class Cloze(Part):
    """Questions made from plain text alone (`fedbench.data.cloze`)."""

    words: Annotated[tuple[str, ...], Field(min_length=1)]
    """Words that are taken out, or asked for, where a text has one."""
    repeats: Positive = 3
    """How often each text is used."""


class Pretrain(Part):
    """A small Llama made within the run from named public text.

    For machines without a hub: the base model is built in minutes, and cached by the hash of
    everything that shapes it.
    """

    text: tuple[str, ...]
    """Data sets (`fedbench list datasets`) whose rows are read; no scored item is among them."""
    cloze: Cloze | None = None
    """Ask about the text instead of continuing it."""
    words: tuple[str, ...] = ()
    """Words that the tokenizer must know although the text lacks them (the label words)."""
    lowercase: bool = False
    """The tokenizer folds case and writes every URL alike: fewer words to learn."""
    template: str = "fingpt"
    vocab_size: Positive = 1536
    hidden_size: Positive = 128
    intermediate_size: Positive = 344
    num_layers: Positive = 2
    num_heads: Positive = 4
    initializer_range: Annotated[float, Field(gt=0)] = 0.08
    max_length: Positive = 160
    """Longest sequence in tokens; longer rows are cut."""
    steps: Positive = 500
    batch_size: Positive = 48
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    prompt_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """Loss weight of prompt tokens; answer tokens and plain text weigh 1."""
    seed: int | None = None
    """None: the seed of the run, so that every seed has a base of its own."""


class ModelConfig(Part):
    """The base model and what is trained of it."""

    name: str | None = None
    """Hub id or directory of a base model; leave out when `pretrain` makes one."""
    revision: str | None = None
    pretrain: Pretrain | None = None
    lora: Lora | None = Lora()
    """None trains all weights."""
    start_from: str | None = None
    """A PEFT adapter directory that is merged into the base before training; a preference run
    starts from a supervised one in this way, and has it for its reference."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights. Adapters are float32 in either case."""
    autocast: Literal["bfloat16"] | None = None
    """Compute in this type where the weights are float32."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the base in 8 bits (LLM.int8) or 4 bits (NF4, QLoRA) through bitsandbytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["eager", "sdpa"] = "sdpa"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """torch.set_float32_matmul_precision: how float32 products may be rounded."""

    @model_validator(mode="after")
    def _one_base(self) -> ModelConfig:
        if (self.name is None) == (self.pretrain is None):
            raise ValueError("model.name and model.pretrain: give exactly one of the two")
        return self

    @model_validator(mode="after")
    def _quantized_base_is_frozen(self) -> ModelConfig:
        if self.quantization and self.lora is None:
            raise ValueError(
                "model.quantization needs model.lora: quantized weights cannot be trained"
            )
        if self.quantization and self.start_from:
            raise ValueError(
                "model.start_from cannot be merged into a quantized base; merge it into the full "
                "model first (fedbench merge) and give that as model.name"
            )
        return self

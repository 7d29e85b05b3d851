"""What can be told of a base model before its weights are loaded.

Where every answer is in the store, nothing more is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from fedbench.errors import CheckpointError
from fedbench.generation.prompts import Prompts
from fedbench.model_config import ModelConfig
from fedbench.weights import base_hash, reason_of, weight_files

_LONGEST = 2048  # tokens, where a configuration does not say how long a text may be


@dataclass(frozen=True)
class BaseFacts:
    """Tokenizer and configuration of a base model."""

    tokenizer: Any
    max_length: int
    """Longest sequence in tokens."""
    vocab_size: int
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    hash: str | None
    """As `load_base` gives it; None of a hub id, which goes by its tensors as they are loaded."""

    def prompts(self, max_length: int | None = None) -> Prompts:
        """Writes questions as this model reads them, within a shorter limit where one is given."""
        return Prompts(
            self.tokenizer, min(self.max_length, max_length or self.max_length), self.vocab_size
        )


def read_base(name: str, config: ModelConfig) -> BaseFacts:
    """Read what `load_base` would load, but for the weights.

    Raises:
        CheckpointError: the base cannot be read.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=config.revision)
        settings = transformers.AutoConfig.from_pretrained(name, revision=config.revision)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name}: cannot be loaded as a model with its tokenizer ({reason_of(error)}); give a "
            "model directory or a hub id that this machine can reach"
        ) from error
    try:
        generation = transformers.GenerationConfig.from_pretrained(name, revision=config.revision)
    except OSError:  # most hand-made models have none: the configuration names the tokens
        generation = transformers.GenerationConfig.from_model_config(settings)
    ends = generation.eos_token_id or tokenizer.eos_token_id
    return BaseFacts(
        tokenizer,
        int(getattr(settings, "max_position_embeddings", None) or _LONGEST),
        int(settings.get_text_config().vocab_size),
        tuple(ends) if isinstance(ends, list) else (ends,),
        base_hash(None, Path(name)) if weight_files(Path(name)) else None,
    )

"""Training rows as tokens, by objective: answers, pairs of answers, or rated answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedbench.config import RunConfig
from fedbench.data.example import Example
from fedbench.data.partition import Shard
from fedbench.data.preference_tokens import tokenize_pairs, tokenize_rated
from fedbench.data.templates import get_template
from fedbench.data.tokenize import Row, TokenizedData, Tokens, tokenize
from fedbench.errors import DataError
from fedbench.federated.settings import SftObjective


@dataclass(frozen=True)
class TrainingRows:
    """What every example became."""

    rows: Sequence[Sequence[Row]]
    """Per example: none where nothing is left to learn, two where a pair is rated."""
    facts: dict[str, Any]
    """Counts for the record."""


def tokenize_rows(config: RunConfig, examples: Sequence[Example], tokenizer: Any) -> TrainingRows:
    """Tokenize the examples as the run's objective needs them.

    Raises:
        DataError: the data do not fit the objective, or an example has no answer.
    """
    tokenized = _tokenized(config, examples, tokenizer)
    rows: list[list[Row]] = [[] for _ in examples]
    origins = tokenized.origins or range(len(tokenized.sequences))
    for origin, row in zip(origins, tokenized.sequences, strict=True):
        if not isinstance(row, Tokens) or row.num_completion:
            rows[origin].append(row)
    facts = {
        "sequences_cut": tokenized.num_cut,
        "sequences_without_answer": tokenized.num_without_loss,
        "sequences_rewritten": tokenized.num_rewritten,
        "sequences_tokenized_apart": tokenized.num_apart,
    }
    return TrainingRows(rows, facts)


def client_rows(
    config: RunConfig, tokenized: TrainingRows, shards: Sequence[Shard]
) -> list[list[Row]]:
    """What each client trains on.

    Raises:
        DataError: a client has too few rows to train at all.
    """
    clients = [[row for index in s.train for row in tokenized.rows[index]] for s in shards]
    for client, own in enumerate(clients):
        if not own:
            raise DataError(
                f"client {client} has no row with an answer to learn; raise data.max_length, or "
                "check the columns of data.train"
            )
        if config.objective.kind == "kto" and len(own) == 1:
            raise DataError(
                f"client {client} has a single rated answer, and KTO needs another one to compare "
                "it with; lower federation.num_clients, or give it more rows"
            )
    return clients


def _tokenized(
    config: RunConfig, examples: Sequence[Example], tokenizer: Any
) -> TokenizedData[Any]:
    template, objective = get_template(config.data.template), config.objective
    longest = config.data.max_length
    if isinstance(objective, SftObjective):
        return tokenize(examples, template, tokenizer, longest)
    prompt = objective.max_prompt_length or longest - 1
    if objective.kind == "kto":
        return tokenize_rated(examples, template, tokenizer, longest, prompt)
    return tokenize_pairs(examples, template, tokenizer, longest, prompt)

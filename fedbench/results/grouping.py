"""Which scores stand in one row of a leaderboard, and what the row is called."""

from __future__ import annotations

from collections.abc import Sequence

from fedbench.errors import RecordError
from fedbench.results.cells import StandingModels
from fedbench.results.record import ModelKind, ScoreRecord
from fedbench.results.settings import join_name, split_name

_ORDER: tuple[ModelKind, ...] = (
    "base", "local", "client", "global", "merged", "central", "reference",
)  # fmt: skip


def grouped(standing: Sequence[ScoreRecord]) -> list[StandingModels]:
    """Records by row: by method, kind of model, and rule of selection where there are several."""
    rules: dict[tuple[str, ModelKind], set[str | None]] = {}
    for record in standing:
        rules.setdefault((record.method, record.model_kind), set()).add(record.selected_by)
    groups: dict[str, StandingModels] = {}
    for record in standing:
        label = label_of(record)
        if len(rules[record.method, record.model_kind]) > 1:
            label += f" ({record.selected_by})"
        group = groups.setdefault(
            label, StandingModels(record.method, label, record.model_kind, {})
        )
        same_cell = group.records.setdefault((record.task_key, record.metric), [])
        if not is_repeated(record, same_cell):
            same_cell.append(record)
    return sorted(groups.values(), key=lambda group: _ORDER.index(group.kind))


def label_of(record: ScoreRecord) -> str:
    """The name of the row that a score stands in."""
    name, setting = split_name(record.method)
    if record.model_kind == "local":
        name = "mean local" if name == "local" else f"{name}, mean local"
    elif record.model_kind == "client":
        name = f"{name}, mean client"
    return join_name(name, setting)


def is_repeated(record: ScoreRecord, others: Sequence[ScoreRecord]) -> bool:
    """Whether another run holds the same score of the same model.

    Raises:
        RecordError: another run holds another score of it.
    """
    for other in others:
        if (other.seed, other.model_client) != (record.seed, record.model_client):
            continue
        if (other.value, other.weights_hash) == (record.value, record.weights_hash):
            return True
        raise RecordError(
            f"{record.task_key}, {record.metric}: {other.run} and {record.run} both hold "
            f"{record.model.label()}, with different results; keep one of the two"
        )
    return False

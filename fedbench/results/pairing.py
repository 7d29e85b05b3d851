"""Which scores of two results correspond: those of the same model, task and metric.

Scores of the whole task on the shared test set are compared, of the model that stands for each
method; curves over rounds, single clients, subgroups and reference rows are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedbench.errors import RecordError
from fedbench.results.record import ModelId, ScoreRecord, models_of, why_withheld
from fedbench.results.samples import Results


@dataclass(frozen=True)
class ScorePair:
    """The same score in both results."""

    model: str
    baseline: ScoreRecord
    candidate: ScoreRecord | None
    """None where the candidate lacks the model or the task."""
    headline: bool

    @property
    def num_missing(self) -> int:
        """Failed items of both sides, as their records count them."""
        failed = self.candidate.num_failed if self.candidate else 0
        return self.baseline.num_failed + failed


def pair_scores(candidate: Results, baseline: Results) -> list[ScorePair]:
    """Every score of the baseline's standing models, with the candidate's for the same.

    Models correspond by method, seed and kind; where each side has exactly one, these two do.

    Raises:
        RecordError: it is unclear which models stand for a method, or a score occurs twice.
    """
    pairs = []
    for ours, theirs in _matching_models(candidate, baseline):
        found = _scores_of(candidate, theirs) if theirs else {}
        label = ours.label()
        if theirs and theirs.label() != label:
            label = f"{label} vs {theirs.label()}"
        for key, record in _scores_of(baseline, ours).items():
            pairs.append(ScorePair(label, record, found.get(key), record.headline))
    return pairs


def why_missing(
    pair: ScorePair, candidate: Path, sides: tuple[str, str] = ("the baseline", "the candidate")
) -> str:
    """Why a pair could not be compared, in words; `sides` are what to call the two."""
    if pair.candidate is None:
        return f"not in {candidate}"
    for side, record in zip(sides, (pair.baseline, pair.candidate), strict=True):
        if record.value is None:
            return f"withheld in {side}: {why_withheld(record)}"
    return "no item was answered on both sides"


def _matching_models(
    candidate: Results, baseline: Results
) -> Iterator[tuple[ModelId, ModelId | None]]:
    ours, theirs = _standing_models(baseline), _standing_models(candidate)
    if len(ours) == len(theirs) == 1:
        yield ours[0], theirs[0]
        return
    found = _by_identity(theirs, candidate.path)
    for identity, model in _by_identity(ours, baseline.path).items():
        yield model, found.get(identity)


def _by_identity(
    models: Collection[ModelId], path: Path
) -> dict[tuple[str, int | None, str], ModelId]:
    found: dict[tuple[str, int | None, str], ModelId] = {}
    for model in models:
        identity = (model.method, model.seed, model.model_kind)
        if identity in found:
            raise RecordError(
                f"{path}: both {found[identity].label()!r} and {model.label()!r} stand for "
                f"{model.method}; keep selected_by on the scores of one of them"
            )
        found[identity] = model
    return found


def _standing_models(results: Results) -> list[ModelId]:
    """The models that stand for a method; the only model, where none is marked as such."""
    of_methods = [score for score in results.scores if score.model_client is None]
    shared = [score for score in of_methods if score.model_kind != "reference"]
    shared = shared or of_methods  # answers and judgments from files are all there is
    selected = models_of([score for score in shared if score.selected_by is not None])
    models = selected or models_of(shared)
    if selected or len(models) == 1:
        return models
    raise RecordError(
        f"{results.path}: {len(models)} models and none with selected_by; "
        "score the model that stands for its method by itself"
    )


def _scores_of(results: Results, model: ModelId) -> dict[tuple[str, str], ScoreRecord]:
    """Scores of one model on whole shared test sets, by task and metric."""
    found: dict[tuple[str, str], ScoreRecord] = {}
    for score in results.scores:
        if score.model != model or score.data_client is not None or score.group is not None:
            continue
        key = (score.task_key, score.metric)
        if key in found:
            raise RecordError(
                f"{results.path}: {score.metric} of {model.label()} on {score.task_key} occurs "
                "twice; keep one of the two lines"
            )
        found[key] = score
    return found

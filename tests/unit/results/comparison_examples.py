"""Small results to compare: one task, one model a side, answers given letter by letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedbench.metrics import Sample, get_metric
from fedbench.results.record import ModelId, ScoreRecord, write_scores
from fedbench.results.samples import Answers, SampleTable, write_samples
from fedbench.results.statistics import score_interval

FEDAVG = ModelId(method="fedavg", seed=0, model_kind="global", round=12)


def table(
    answers: str,
    *,
    references: str | None = None,
    task: str = "fpb",
    model: ModelId = FEDAVG,
    clusters: Sequence[str] | None = None,
    **changes: Any,
) -> SampleTable:
    """Items whose reference is ``y`` throughout unless given, and one model's answers to them.

    In `answers`, ``?`` is an answer that could not be read and ``!`` an item that failed.
    """
    n = len(answers)
    fields: dict[str, Any] = {
        "task": task,
        "task_version": 1,
        "task_hash": f"hash of {task}",
        "labels": ["y", "n"],
        "metrics": ["accuracy", "macro_f1"],
        "headline": "accuracy",
        "item_ids": [f"{task}-{i}" for i in range(n)],
        "item_hashes": ["text" for _ in range(n)],  # texts may repeat, ids may not
        "prompt_hashes": [f"prompt {i}" for i in range(n)],
        "references": list(references or "y" * n),
        "clusters": clusters,
        "answers": [
            Answers(
                model=model,
                extracted=[None if a in "?!" else a for a in answers],
                status=[{"?": "unparsed", "!": "failed"}.get(a, "parsed") for a in answers],
            )
        ],
    }
    return SampleTable(**{**fields, **changes})


def scores(table: SampleTable, **changes: Any) -> list[ScoreRecord]:
    """The records that scoring such a table leaves, one per metric and model."""
    return [
        _score(table, answers, metric, changes)
        for answers in table.answers
        for metric in table.metrics
    ]


def write(directory: Path, *tables: SampleTable, keep_items: bool = True, **changes: Any) -> Path:
    """A results directory; `changes` go to every score record."""
    write_scores(directory, [score for table in tables for score in scores(table, **changes)])
    for one in tables if keep_items else ():
        write_samples(directory, one)
    return directory


def several_seeds(place: Path, rights: list[int], items: int = 400) -> Path:
    """A method whose seeds have so many of the items right, the last ones wrong."""
    tables = [
        table("y" * right + "n" * (items - right), model=FEDAVG.model_copy(update={"seed": seed}))
        for seed, right in enumerate(rights)
    ]
    answers = [own for one in tables for own in one.answers]
    return write(place, tables[0].model_copy(update={"answers": answers}))


def _score(table: SampleTable, answers: Answers, name: str, changes: Any) -> ScoreRecord:
    metric = get_metric(name)
    samples = [
        Sample(reference, extracted)
        for reference, extracted, status in zip(
            table.references, answers.extracted, answers.status, strict=True
        )
        if status != "failed"
    ]
    statistics = metric.statistics(samples, table.labels or [])
    interval = score_interval(metric, statistics, table.clusters, draws=100)
    fields: dict[str, Any] = {
        **answers.model.model_dump(),
        "run": "run",
        "run_hash": "0",
        "task": table.task,
        "task_version": table.task_version,
        "task_hash": table.task_hash,
        "variant": table.variant,
        "metric": name,
        "value": float(metric.value(statistics.sum(axis=0))),
        "stderr": interval.stderr,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "ci_method": interval.method,
        "higher_is_better": metric.higher_is_better,
        "num_examples": len(answers.status),
        "num_scored": len(samples),
        "num_failed": answers.status.count("failed"),
        "num_unparsed": answers.status.count("unparsed"),
        "headline": name == table.headline,
        "selected_by": "last",
        "fedbench": "0",
        "created": "2026-01-01T00:00:00Z",
    }
    return ScoreRecord(**{**fields, **changes})

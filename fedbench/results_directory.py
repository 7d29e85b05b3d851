"""What scoring leaves in a results directory: scores, samples, and the record of the run."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from fedbench.evaluation.asking import Progress
from fedbench.evaluation.evaluate import Evaluation
from fedbench.evaluation.scores import score_table
from fedbench.evaluation.thinking import RULE
from fedbench.generation.backend import Checkpoint
from fedbench.judging.in_scoring import finish_open_ended
from fedbench.judging.opening import JudgeConfig
from fedbench.provenance import provenance
from fedbench.results.lm_eval_files import write_lm_eval_files
from fedbench.results.record import (
    RunRecord,
    ScoreRecord,
    read_run,
    write_run,
    write_scores,
)
from fedbench.results.samples import write_samples

LM_EVAL = "lm_eval"
"""Where in a results directory files in lm-eval's shape are."""


def write_results(
    result: Evaluation,
    output: Path,
    *,
    run: str,
    run_hash: str,
    command: str,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    max_failed: float = 0.05,
    judge: JudgeConfig | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[ScoreRecord]:
    """Write scores, samples and the run record into a results directory; returns the scores."""
    made = provenance()
    common = {
        "run": run,
        "run_hash": run_hash,
        "fedbench": made["fedbench"],
        "created": made["created"],
    }
    details = {c.model.label(): _details(c) for c in result.checkpoints}
    scores: list[ScoreRecord] = []
    closed = {key: own for key, own in result.tables.items() if key not in result.open_ended}
    for number, (key, table) in enumerate(closed.items(), start=1):
        own = common | {"template": result.templates.get(key)}
        scores.extend(score_table(table, own, details, max_failed=max_failed))
        write_samples(output, table)
        progress("computing intervals", number, len(closed))
    judging: dict[str, Any] = {}
    if result.open_ended:
        judged, judging = finish_open_ended(result, output, common, details, judge, progress)
        scores.extend(judged)
    write_scores(output, scores)
    before = read_run(output)
    known = before.facts if before else {}
    spent = before.seconds if before else {}
    counted: dict[str, Any] = {"prompts_cut": result.num_cut, "answers_asked": result.num_asked}
    if result.num_thoughts:
        counted["thoughts"] = {"taken off": result.num_thoughts, "rule": RULE}
    if result.usage:
        counted["usage"] = result.usage
    if result.canaries:
        counted["canaries"] = {k: round(v, 6) for k, v in result.canaries.items()}
    record = RunRecord(
        run=run,
        run_hash=run_hash,
        command=command or (before.command if before else ""),
        config=dict(config) if config is not None else None,
        facts=_still_left_out(known, result.tables) | counted | judging | dict(facts or {}),
        seconds=spent | dict(seconds or {}),
        privacy=before.privacy if before else (),
        **made,
    )
    write_run(output, record)
    samples = list(result.samples.values())
    write_lm_eval_files(output / LM_EVAL, scores, samples, record, result.checkpoints)
    return scores


def _still_left_out(known: Mapping[str, Any], scored: Container[str]) -> dict[str, Any]:
    """What is known from earlier commands; a task that they left out may be scored now."""
    left_out = {key: why for key, why in known.get("left_out", {}).items() if key not in scored}
    others = {name: fact for name, fact in known.items() if name != "left_out"}
    return others | ({"left_out": left_out} if left_out else {})


def _details(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "selected_by": checkpoint.selected_by,
        "train_examples": checkpoint.train_examples,
        "bytes_communicated": checkpoint.bytes_communicated,
        "base_hash": checkpoint.base_hash or None,
    }

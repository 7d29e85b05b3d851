"""A run that is handed in to a leaderboard: checked against its rules, and copied in when it fits.

A submission is one results directory (``run.json``, ``scores.jsonl``, ``samples/``), in which every
trained model is named by the hash of its weights. Nothing of it is run, and no text of an item is
copied.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedbench.errors import ConfigError, FedbenchError, RecordError
from fedbench.evaluation.catalogue import load_tasks
from fedbench.evaluation.task import Task
from fedbench.metrics import find_metric
from fedbench.results.intervals import Interval
from fedbench.results.leaderboard import build
from fedbench.results.record import (
    ModelId,
    RunRecord,
    ScoreRecord,
    scores_file,
    write_atomically,
    write_run,
    write_scores,
)
from fedbench.results.samples import Answers, Results, SampleTable, read_results, write_samples
from fedbench.results.specification import SPEC_FILE, LeaderboardSpec, read_leaderboard
from fedbench.results.statistics import score_interval
from fedbench.schema import with_defaults

AGREEMENT = 1e-6
"""How far a recorded score may be from what its items give: rounding, and no more."""
INTERVAL_AGREEMENT = 0.3
"""How far an end may be from where its items put it, as a share of the interval's width: few draws
stand for many, and methods change between versions."""
DRAWS = 500
RESULTS = "results"
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""As in a run file: a run's name is the name of its directory, and must not lead out of it."""
_UNTRAINED = ("base", "reference")
_LOCAL_FACTS = ("canaries", "usage")


def add(directory: Path, submission: Path) -> Path:
    """Check a run against a leaderboard's rules and copy its compact records in.

    Args:
        directory: of the leaderboard.
        submission: results directory of the run.

    Returns:
        Where the records are now.

    Raises:
        RecordError: the run breaks rules; the message names each.
        ConfigError: the leaderboard's own specification is wrong, or the directory is of one run.
    """
    if scores_file(directory).is_file():
        raise ConfigError(
            f"{directory}: holds the scores of one run, and takes no others; make a directory with "
            f"{SPEC_FILE} and add both runs to it"
        )
    spec, results = read_leaderboard(directory, may_be_empty=True)
    run = read_results(submission)
    wrong = problems(spec, results, run, submission)
    if wrong:
        listed = "; ".join(f"({n}) {text}" for n, text in enumerate(wrong, start=1))
        raise RecordError(
            f"{submission}: does not fit the rules of {spec.name}, and nothing was added: {listed}"
        )
    assert run.run is not None  # `problems` has seen to it
    place = directory / RESULTS / run.run.run
    kept = _compact(spec, run)
    for table in kept.samples.values():
        write_samples(place, table)
    plain = write_scores(place, kept.scores)
    # The scores last, and compressed: a directory without them is none of the leaderboard's.
    write_run(place, _shareable(run.run))
    write_atomically(place / "scores.jsonl.gz", gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    return place


def problems(
    spec: LeaderboardSpec, results: Sequence[Results], run: Results, submission: Path
) -> list[str]:
    """What is wrong with a submission, one sentence each; empty when nothing is."""
    shown = [score for score in run.scores if score.task_key in spec.tasks]
    found = [*_of_run(spec, results, run.run, run.scores)]
    found += _of_versions(spec, shown)
    found += _of_items(spec, results, run)
    found += _of_weights(shown, submission)
    found += _of_samples(spec, run, shown)
    try:
        found += _of_completeness(spec, run, shown)
        if not found:
            build(spec, [*results, run])
    except RecordError as error:  # a table cannot be made of what is wrong above
        found = found or [str(error)]
    return found


def _of_run(
    spec: LeaderboardSpec,
    results: Sequence[Results],
    record: RunRecord | None,
    scores: Sequence[ScoreRecord],
) -> Iterator[str]:
    """Whether it is said how the results were made, and made as the protocol says."""
    if record is None:
        yield "run.json is missing, so it is not known how the scores were made; add it"
        return
    if not _RUN_NAME.fullmatch(record.run):
        yield (
            f"the run's name in run.json is {record.run!r}, and names its directory; give it one "
            "of letters, digits, dots, dashes and underscores"
        )
    held = next((r.run for r in results if r.run is not None and r.run.run == record.run), None)
    if held is not None:
        hint = "give this one another name, as run in its run.json"
        if held.run_hash == record.run_hash:
            hint = "it is there already"
        yield f"a run named {record.run} is in the leaderboard; {hint}"
    hashes = {score.run_hash for score in scores} - {record.run_hash}
    if hashes:
        yield (
            f"scores.jsonl holds scores of configuration {', '.join(sorted(hashes))}, but run.json "
            f"is of {record.run_hash}; score the run again"
        )
    if flaw := _flaw_of_config(record.config or {}):
        yield f"config in run.json is of no run: {flaw}; submit run.json as the run wrote it"
        return
    if spec.protocol and not record.config:
        yield "run.json holds no configuration to hold against the protocol; submit a run directory"
        return
    for key, wanted in spec.protocol.items():
        given = _looked_up(record.config or {}, key)
        if given != wanted:
            yield f"{key} is {given!r}, and the protocol wants {wanted!r}"


def _flaw_of_config(config: Mapping[str, Any]) -> str:
    """Where a configuration has not the shape of a run file; empty where it has.

    Keys that another version had or lacked are let be, and so is what only its rules allowed.
    """
    from fedbench.config import RunConfig

    try:
        RunConfig.model_validate(with_defaults(RunConfig, config))
    except ValidationError as error:
        for wrong in error.errors():
            if wrong["type"].endswith(("_type", "_parsing")) and wrong["input"] is not None:
                return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
    return ""


def _looked_up(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _of_versions(spec: LeaderboardSpec, scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """Whether each task was scored in the version that counts, and as we know that version."""
    kinds = {(s.task_key, s.task_version, s.task_hash): s for s in scores}
    for (key, *_), score in kinds.items():
        task = _task(key)
        wanted = spec.versions.get(key, task.version if task else score.task_version)
        if score.task_version != wanted:
            yield (
                f"{key} was scored in version {score.task_version}, and version {wanted} counts; "
                "score it again"
            )
        elif task is not None and task.version == wanted and task.hash != score.task_hash:
            yield (
                f"{key} version {wanted} has hash {task.hash} here and {score.task_hash} in the "
                "records, so the task was changed; score it again with the task as it is"
            )
    for score in scores:
        metric = find_metric(score.metric)
        if metric is not None and metric.higher_is_better != score.higher_is_better:
            yield f"{score.metric} is recorded with the wrong direction; score {score.task} again"
            return


def _of_items(spec: LeaderboardSpec, results: Sequence[Results], run: Results) -> Iterator[str]:
    """Whether all items were asked, and those that the other runs were asked."""
    config = (run.run.config if run.run else None) or {}
    limit = (config.get("evaluation") or {}).get("limit")
    if limit:
        yield f"only the first {limit} items were scored; score again without evaluation.limit"
    for key in spec.tasks:
        held = next((r.samples[key] for r in results if key in r.samples), None)
        own = run.samples.get(key)
        if limit or held is None or own is None:
            continue
        if own.item_hashes != held.item_hashes:
            yield (
                f"{key}: its {len(own.item_ids):,} items are not the {len(held.item_ids):,} that "
                "are in the leaderboard; score it again on all of them"
            )
        elif own.references != held.references:
            yield (
                f"{key}: its references are not those that are in the leaderboard; score it again "
                "with the task's own"
            )


def _task(key: str) -> Task | None:
    """The installed task of that key; None where it is not installed, or has no hash of ours."""
    try:
        (task,) = load_tasks([key])
    except (FedbenchError, ImportError, ValueError):
        return None
    return None if task.harness is not None else task


def _of_weights(scores: Sequence[ScoreRecord], submission: Path) -> Iterator[str]:
    """Whether every trained model says which weights it was, and those that lie here agree."""
    nameless = {
        score.model.label()
        for score in scores
        if score.model_kind not in _UNTRAINED and not score.weights_hash
    }
    if nameless:
        yield f"{_some(sorted(nameless))}: no weights_hash says which adapter it was; score again"
    known: dict[ModelId, str] = {}
    for score in scores:
        if score.weights_hash:
            before = known.setdefault(score.model, score.weights_hash)
            if before != score.weights_hash:
                yield f"{score.model.label()}: two scores name two adapters; score it again"
                return
    yield from _of_checkpoints(known, submission)


def _of_checkpoints(known: Mapping[ModelId, str], submission: Path) -> Iterator[str]:
    """Whether committed rounds that lie beside the records have the hashes that these name."""
    for file in sorted((submission / "checkpoints").glob("**/round-*/round.json")):
        try:
            row = json.loads(file.read_bytes())
            model = ModelId.model_validate({name: row.get(name) for name in ModelId.model_fields})
        except ValueError:  # not JSON, or no round of ours
            yield f"{file} is damaged; remove its directory, or train the run again"
            continue
        if model in known and known[model] != row.get("weights_hash"):
            yield (
                f"{model.label()}: {file.parent} has weights {row.get('weights_hash')}, the "
                f"records name {known[model]}; score the run again"
            )


def _of_samples(
    spec: LeaderboardSpec, run: Results, scores: Sequence[ScoreRecord]
) -> Iterator[str]:
    """Whether the kept answers give the recorded scores."""
    for key in spec.tasks:
        own = [s for s in scores if s.task_key == key and s.selected_by and _is_whole(s)]
        table = run.samples.get(key)
        if own and table is None:
            yield f"{key}: samples are missing, so its intervals cannot be had; score it again"
        answers = {a.model: a for a in table.answers} if table else {}
        wrong = [s for s in own if table and not _agrees(s, table, answers.get(s.model))]
        if wrong:
            yield (
                f"{key}: the answers of {_some(sorted({s.model.label() for s in wrong}))} do not "
                "give the recorded score, its interval, or its counts of failed and unparsed "
                "answers; score it again"
            )


def _agrees(score: ScoreRecord, table: SampleTable, answers: Answers | None) -> bool:
    metric = find_metric(score.metric)
    if answers is not None and not _counts_agree(score, answers):
        return False
    if metric is None or score.value is None:
        return True
    if answers is None:
        return False
    if not answers.keeps(metric):
        return True
    kept = [n for n, status in enumerate(answers.status) if status != "failed"]
    samples = [table.sample(answers, n) for n in kept]
    statistics = metric.statistics(samples, table.labels or [])
    value = float(metric.value(statistics.sum(axis=0)))
    if not math.isclose(value, score.value, abs_tol=AGREEMENT):
        return False
    clusters = [table.clusters[n] for n in kept] if table.clusters else None
    given = metric.name in (answers.aggregates or {}) or score.judge is not None
    return given or _interval_agrees(
        score, score_interval(metric, statistics, clusters, score.confidence, DRAWS)
    )


def _interval_agrees(score: ScoreRecord, found: Interval) -> bool:
    """Whether the recorded ends lie about where the items put them: one seed's are shown as is."""
    ends = [(score.ci_low, found.low), (score.ci_high, found.high)]
    far = INTERVAL_AGREEMENT * (found.high - found.low) + AGREEMENT
    return not any(own is not None and abs(own - end) > far for own, end in ends)


def _counts_agree(score: ScoreRecord, answers: Answers) -> bool:
    """Whether the record owns up to what failed: a failed item is left out of its score."""
    if score.judge is not None:
        return True  # counts judgments, of which an answer may have several
    size, failed = len(answers.status), answers.status.count("failed")
    unparsed = answers.status.count("unparsed")
    counts = (score.num_examples, score.num_scored, score.num_failed, score.num_unparsed)
    return counts == (size, size - failed, failed, unparsed)


def _of_completeness(
    spec: LeaderboardSpec, run: Results, scores: Sequence[ScoreRecord]
) -> Iterator[str]:
    """Whether every method has all tasks, seeds and clients."""
    tasks = [key for key in spec.tasks if key not in {score.task_key for score in scores}]
    if tasks:
        yield f"{', '.join(tasks)}: not scored; score the run with --tasks {','.join(tasks)}"
    if not scores or spec.partial_rows:
        return
    table = build(spec.model_copy(update={"partial_rows": True}), [run])
    for row in table.rows:
        reasons = {cell.reason for cell in row.cells.values() if cell.value is None}
        if reasons:
            yield f"{row.label} is incomplete ({_some(sorted(reasons))}); only whole rows count"


def _is_whole(score: ScoreRecord) -> bool:
    return score.group is None and score.data_client is None


def _compact(spec: LeaderboardSpec, run: Results) -> Results:
    """Scores of the leaderboard's tasks, and the answers of the models that stand for methods."""
    scores = [s for s in run.scores if s.task_key in spec.tasks and _is_whole(s)]
    standing = {score.model for score in scores if score.selected_by is not None}
    samples = {
        key: table.model_copy(
            update={"answers": [own for own in table.answers if own.model in standing]}
        )
        for key, table in run.samples.items()
        if key in spec.tasks
    }
    return replace(run, scores=scores, samples=samples)


def _shareable(record: RunRecord) -> RunRecord:
    """Without what belongs to the machine it was made on."""
    facts = {key: fact for key, fact in record.facts.items() if key not in _LOCAL_FACTS}
    config = dict(record.config or {})
    if isinstance(config.get("data"), dict):
        config["data"] = config["data"] | {"mirror": None}
    return record.model_copy(update={"facts": facts, "config": config or None})


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

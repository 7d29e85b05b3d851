"""Score checkpoints: those of a run, adapters and models from anyone, or answers that exist.

What `score` takes: a run directory, a PEFT adapter directory (safetensors or .bin), a full model
directory, or a hub id. All checkpoints of one base are scored on one resident model.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedbench import __version__
from fedbench.checkpoints import architecture, find_checkpoints
from fedbench.data.templates import CHAT
from fedbench.errors import CheckpointError, ConfigError
from fedbench.evaluation.answers import score_answers
from fedbench.evaluation.asking import Progress
from fedbench.evaluation.available import items_of
from fedbench.evaluation.catalogue import load_tasks
from fedbench.evaluation.evaluate import Evaluation, evaluate
from fedbench.evaluation.task import Item, Task, load_items
from fedbench.generation.backend import Checkpoint
from fedbench.generation.opening import DEFAULT_ENGINE, Engine, open_backend, served_model
from fedbench.generation.store import AnswerStore
from fedbench.judging.opening import JudgeConfig
from fedbench.model_config import ModelConfig
from fedbench.resources import answers_file
from fedbench.results.claims import claim_scores
from fedbench.results.record import ScoreRecord
from fedbench.results_directory import write_results
from fedbench.schema import validated

Tasks = Sequence[tuple[Task, Sequence[Item]]]


@dataclass(frozen=True)
class Scoring:
    """How checkpoints are scored."""

    model: ModelConfig
    engine: Engine = DEFAULT_ENGINE
    max_failed: float = 0.05
    template: str | None = None
    allow_inert: bool = False
    thinking: bool | None = None
    """Whether a chat template asks for a thought first; None: as it does by itself."""
    keep_samples: bool = False
    """Whether lm-eval's sample files are written, with the texts of items and answers."""


def score(
    ckpt: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    suite: str | None = None,
    base_model: str | None = None,
    template: str | None = None,
    rounds: str = "all",
    engine: Engine = DEFAULT_ENGINE,
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    output: str | Path | None = None,
    allow_inert: bool = False,
    skip_missing: bool = False,
    thinking: bool | None = None,
    log_samples: bool = False,
    judge: JudgeConfig | None = None,
    progress: Progress = lambda what, done, total: None,
    command: str = "",
) -> list[ScoreRecord]:
    """Score checkpoints on tasks; what was answered before is not asked again.

    Args:
        ckpt: run directories, PEFT adapter directories, model directories or hub ids.
        tasks: names (``fpb``, ``fpb:fingpt``) or YAML files of tasks.
        suite: named sets of tasks, with commas between them, beside `tasks`.
        base_model: the base of adapters whose own configuration does not lead to it.
        template: how turns become text; by default what the checkpoint was trained with, then what
            the task's protocol says, then the tokenizer's chat template.
        rounds: which rounds of a run directory: ``all``, ``last`` or ``every N`` (of those kept).
        engine: who answers.
        limit: only the first items of each task.
        seed: of sampled answers.
        dtype: ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        output: results directory; ``scores/<name of the first checkpoint>`` by default.
        allow_inert: accept an adapter that changes nothing.
        skip_missing: leave tasks out whose data, tools or packages are missing, and say so in the
            record.
        thinking: whether a chat template asks for a thought first; None: as it does by itself.
        log_samples: write samples in lm-eval's shape too, with the texts of items and answers.
        judge: of open-ended tasks; None keeps their answers for `fedbench judge`.
        progress: told of each answered batch.
        command: the command line, for the record.

    Returns:
        One record per model, task and metric.

    Raises:
        FedbenchError: bad names, checkpoints or data, a full disk; stored answers are kept.
    """
    if not ckpt and engine.server is None:
        raise ConfigError("no checkpoint is given; name at least one with --ckpt")
    if not tasks and suite is None:
        raise ConfigError("no task is given; name some with --tasks or a set with --suite")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed {seed}: is no seed; give a number from 0 to {2**32 - 1}")
    if thinking is not None and template not in (None, CHAT):
        raise ConfigError(
            f"--thinking is about chat templates, and --template {template} is none; leave one out"
        )
    loaded = load_tasks(tasks, suite)
    checkpoints = find_checkpoints(ckpt, base_model, rounds) if ckpt else [served_model(engine)]
    name = _name_of(ckpt[0]) if ckpt else checkpoints[0].model.method.replace("/", "-")
    place = Path(output) if output else Path("scores") / name
    model = validated(
        ModelConfig, {"name": checkpoints[0].base, "dtype": dtype, "device": device}, "score"
    )
    identity = {
        "checkpoints": sorted({c.weights_hash or str(c.directory) for c in checkpoints}),
        "tasks": {task.key: task.hash for task in loaded},
        "template": template,
        "backend": engine.backend,
        **({"engine": dict(engine.options)} if engine.options else {}),
        **({"thinking": thinking} if thinking is not None else {}),
        "limit": limit,
        "seed": seed,
        "dtype": dtype,
        "fedbench": __version__,
    }
    with _claimed(place, identity) as run_hash:
        started = time.monotonic()
        items, absent = items_of(loaded, limit, seed, skip_missing=skip_missing, progress=progress)
        scoring = Scoring(
            model,
            engine=engine,
            template=template,
            allow_inert=allow_inert,
            thinking=thinking,
            keep_samples=log_samples,
        )
        result = score_checkpoints(checkpoints, items, scoring, progress)
        return write_results(
            result,
            place,
            run=place.name,
            run_hash=run_hash,
            command=command,
            facts={"left_out": absent} if absent else {},
            seconds={"scoring": elapsed(started)},
            judge=judge,
            progress=progress,
        )


@contextlib.contextmanager
def _claimed(place: Path, identity: Mapping[str, Any]) -> Iterator[str]:
    """A results directory for this scoring; one that fails does not bar its correction."""
    is_new = not (claim := place / "score.json").exists()
    try:
        yield claim_scores(place, identity)
    finally:
        if is_new and place.is_dir() and list(place.iterdir()) == [claim]:
            claim.unlink()
            place.rmdir()


def score_checkpoints(
    checkpoints: Sequence[Checkpoint],
    tasks: Tasks,
    scoring: Scoring,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Answer every question with every checkpoint, base by base.

    Answers go to the store that all commands share (`answers_file`).

    Raises:
        CheckpointError: a checkpoint cannot be read or belongs to another base.
        OutputError: the disk is full; what was answered is kept.
    """
    result = Evaluation()
    store = AnswerStore(answers_file())
    try:
        for base, group in by_base(checkpoints).items():
            backend = open_backend(base, scoring.model, group, scoring.engine)
            with contextlib.closing(backend):
                part = evaluate(
                    [on_base(checkpoint, backend.base_hash) for checkpoint in group],
                    tasks,
                    backend,
                    store,
                    template=scoring.template,
                    allow_inert=scoring.allow_inert,
                    thinking=scoring.thinking,
                    keep_samples=scoring.keep_samples,
                    progress=progress,
                )
            part.usage = backend_facts(backend)
            _merge(result, part)
    finally:
        store.close()
    return result


def backend_facts(backend: Any) -> dict[str, Any]:
    """What answering has cost, where the backend counts it."""
    usage = getattr(backend, "usage", None)
    facts = asdict(usage) if usage is not None else {}
    halved = getattr(backend, "num_halved", 0)
    report = getattr(backend, "report", None)
    facts |= {"batches_halved": halved} if halved else {}
    return facts | ({"serving": list(report)} if report else {})


def score_answer_file(
    file: str | Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    subset: Literal["answered"] | None = None,
    output: str | Path | None = None,
    command: str = "",
) -> list[ScoreRecord]:
    """Score answers that exist already, without a model.

    Args:
        file: rows ``{"doc_id": position of the item, "completion": text}``, or as HumanEval,
            FastChat, lm-eval or AlpacaEval write them (docs/answers.md).
        tasks: exactly one task.
        limit: only the first items.
        subset: ``answered`` leaves items without an answer out, and the model's name says so;
            otherwise they count as failed.
        output: results directory; ``scores/<name of the file>`` by default.
        command: the command line, for the record.

    Raises:
        FedbenchError: bad names or a damaged file.
    """
    loaded = load_tasks(tasks)
    if len(loaded) != 1:
        raise ConfigError(f"--answers holds answers to one task, but --tasks names {len(loaded)}")
    task, place = loaded[0], Path(output) if output else Path("scores") / _name_of(str(file))
    scored = score_answers(Path(file), task, load_items(task), limit=limit, subset=subset)
    model = scored.checkpoint
    identity = {"answers": model.weights_hash, "tasks": {task.key: task.hash}, "limit": limit}
    run_hash = claim_scores(place, identity | ({"subset": subset} if subset else {}))
    result = Evaluation(tables={task.key: scored.table}, checkpoints=[model])
    return write_results(result, place, run=place.name, run_hash=run_hash, command=command)


def _name_of(place: str) -> str:
    return Path(place.rstrip("/")).resolve().name.split(".jsonl")[0]


def by_base(checkpoints: Sequence[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """The checkpoints of each base, which are asked on one resident model."""
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.base, []).append(checkpoint)
    return groups


def on_base(checkpoint: Checkpoint, base_hash: str) -> Checkpoint:
    """The checkpoint with the hash of the base it will run on, and its architecture's.

    Raises:
        CheckpointError: it was trained on other weights.
    """
    own = checkpoint.directory if checkpoint.kind == "full" else None
    checkpoint = replace(checkpoint, architecture=architecture(own or Path(checkpoint.base)))
    if checkpoint.kind == "base":
        return replace(checkpoint, weights_hash=base_hash, base_hash=base_hash)
    if str(checkpoint.directory) == checkpoint.base:
        return replace(checkpoint, base_hash=checkpoint.base_hash or checkpoint.weights_hash)
    if checkpoint.base_hash and checkpoint.base_hash != base_hash:
        raise CheckpointError(
            f"{checkpoint.directory}: was trained on a base with weights {checkpoint.base_hash}, "
            f"but {checkpoint.base} has {base_hash}; give the right one with --base-model"
        )
    return replace(checkpoint, base_hash=base_hash)


def _merge(result: Evaluation, part: Evaluation) -> None:
    for key, table in part.tables.items():
        if key in result.tables:
            result.tables[key].answers.extend(table.answers)
        else:
            result.tables[key] = table
    result.checkpoints.extend(part.checkpoints)
    result.templates |= part.templates
    result.completions |= part.completions
    result.num_cut += part.num_cut
    result.num_asked += part.num_asked
    result.usage |= part.usage
    result.num_thoughts += part.num_thoughts
    for key, samples in part.samples.items():
        known = result.samples.setdefault(key, samples)
        if known is not samples:
            result.samples[key] = replace(known, responses={**known.responses, **samples.responses})
    result.canaries |= part.canaries
    for key, own in part.open_ended.items():
        result.open_ended.setdefault(key, own).conversations.update(own.conversations)


def elapsed(started: float) -> float:
    """Seconds since a `time.monotonic`, to a tenth."""
    return round(time.monotonic() - started, 1)

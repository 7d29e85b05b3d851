"""Score checkpoints: those of a run, adapters and models from anyone, or answers that exist.

What `score` takes: a run directory, a PEFT adapter directory (safetensors or .bin), a full model
directory, or a hub id. All checkpoints of one base are scored on one resident model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbench import __version__
from fedbench.config import ModelConfig, is_kept, parse_rounds, validated
from fedbench.errors import CheckpointError, ConfigError, DataError, OutputError
from fedbench.evaluation.evaluate import (
    Evaluation,
    Progress,
    evaluate,
    read_answers,
    score_table,
    table_of,
)
from fedbench.evaluation.task import Item, Task, load_items, load_tasks
from fedbench.generation.backend import BACKENDS, Answer, Checkpoint
from fedbench.generation.store import AnswerStore
from fedbench.provenance import provenance
from fedbench.results.record import (
    Answers,
    ModelId,
    RunRecord,
    SampleTable,
    ScoreRecord,
    read_run,
    write_run,
    write_samples,
    write_scores,
)

if TYPE_CHECKING:
    from fedbench.federated.checkpoint import Round

ANSWERS_FILE = "answers.sqlite"
Tasks = Sequence[tuple[Task, Sequence[Item]]]


@dataclass(frozen=True)
class Scoring:
    """How checkpoints are scored."""

    model: ModelConfig
    backend: str = "transformers"
    batch_tokens: int = 8192
    max_failed: float = 0.05
    template: str | None = None
    allow_inert: bool = False


def score(
    ckpt: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    suite: str | None = None,
    base_model: str | None = None,
    template: str | None = None,
    rounds: str = "all",
    backend: str = "transformers",
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    output: str | Path | None = None,
    allow_inert: bool = False,
    progress: Progress = lambda what, done, total: None,
    command: str = "",
) -> list[ScoreRecord]:
    """Score checkpoints on tasks; what was answered before is not asked again.

    Args:
        ckpt: run directories, PEFT adapter directories, model directories or hub ids.
        tasks: names (``fpb``, ``fpb:fingpt``) or YAML files of tasks.
        suite: a named set of tasks, beside `tasks`.
        base_model: the base of adapters whose own configuration does not lead to it.
        template: how turns become text; by default what the checkpoint was trained with, then what
            the task's protocol says, then the tokenizer's chat template.
        rounds: which rounds of a run directory: ``all``, ``last`` or ``every N`` (of those kept).
        backend: who answers.
        limit: only the first items of each task.
        seed: of sampled answers.
        dtype: ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        output: results directory; ``scores/<name of the first checkpoint>`` by default.
        allow_inert: accept an adapter that changes nothing.
        progress: told of each answered batch.
        command: the command line, for the record.

    Returns:
        One record per model, task and metric.

    Raises:
        FedbenchError: bad names, checkpoints or data, a full disk; stored answers are kept.
    """
    if not ckpt:
        raise ConfigError("no checkpoint is given; name at least one with --ckpt")
    if not tasks and suite is None:
        raise ConfigError("no task is given; name some with --tasks or a set with --suite")
    loaded = load_tasks(tasks, suite)
    place = Path(output) if output else Path("scores") / _name_of(ckpt[0])
    checkpoints = find_checkpoints(ckpt, base_model, rounds)
    model = validated(
        ModelConfig, {"name": checkpoints[0].base, "dtype": dtype, "device": device}, "score"
    )
    identity = {
        "checkpoints": sorted({c.weights_hash or str(c.directory) for c in checkpoints}),
        "tasks": {task.key: task.hash for task in loaded},
        "template": template,
        "backend": backend,
        "limit": limit,
        "seed": seed,
        "dtype": dtype,
        "fedbench": __version__,
    }
    run_hash = claim_scores(place, identity)
    started = time.monotonic()
    items = [(task, load_items(task, None, limit, seed)) for task in loaded]
    scoring = Scoring(model, backend=backend, template=template, allow_inert=allow_inert)
    result = score_checkpoints(checkpoints, items, scoring, place, progress)
    return write_results(
        result,
        place,
        run=place.name,
        run_hash=run_hash,
        command=command,
        seconds={"scoring": elapsed(started)},
    )


def find_checkpoints(
    places: Sequence[str], base_model: str | None, rounds: str
) -> list[Checkpoint]:
    """The checkpoints at some places, each under a name of its own.

    Raises:
        CheckpointError: a place holds none.
        ConfigError: `rounds` is none of all, last, every N.
    """
    try:
        parse_rounds(rounds)
    except ValueError as error:
        raise ConfigError(f"--rounds: {error}") from error
    found: list[Checkpoint] = []
    for place in places:
        if (Path(place) / "checkpoints").is_dir():
            found.extend(run_checkpoints(Path(place), rounds))
        else:
            found.append(foreign_checkpoint(place, base_model))
    return _named_apart(found)


def score_checkpoints(
    checkpoints: Sequence[Checkpoint],
    tasks: Tasks,
    scoring: Scoring,
    output: Path,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Answer every question with every checkpoint, base by base.

    Raises:
        CheckpointError: a checkpoint cannot be read or belongs to another base.
        OutputError: the disk is full; what was answered is kept.
    """
    result = Evaluation()
    store = AnswerStore(output / ANSWERS_FILE)
    try:
        for base, group in _by_base(checkpoints).items():
            backend = make_backend(base, scoring)
            group = [_checked(checkpoint, backend.base.hash) for checkpoint in group]
            part = evaluate(
                group, tasks, backend, store, template=scoring.template, progress=progress
            )
            _merge(result, part)
    finally:
        store.close()
    return result


def make_backend(base: str, scoring: Scoring) -> Any:
    """The backend of that name with the base model in it.

    Raises:
        ConfigError: there is no such backend.
    """
    if scoring.backend != "transformers":
        known = ", ".join(BACKENDS)
        raise ConfigError(f"unknown backend {scoring.backend!r}; known are {known}")
    from fedbench.generation.transformers import TransformersBackend

    return TransformersBackend(
        base, scoring.model, batch_tokens=scoring.batch_tokens, allow_inert=scoring.allow_inert
    )


def run_checkpoints(output: Path, rule: str) -> list[Checkpoint]:
    """The base of every seed, and the committed checkpoints of a run that the rule names.

    Raises:
        CheckpointError: nothing is committed there.
    """
    from fedbench.federated.checkpoint import COMMIT, read_round

    files = sorted((output / "checkpoints").glob(f"**/round-*/{COMMIT}"))
    rounds = [(file.parent, read_round(file)) for file in files]
    if not rounds:
        raise CheckpointError(f"{output}: holds no committed round; train the run first")
    bases = {(round.seed, round.base): round for _, round in rounds}
    found = [_base_checkpoint(round) for round in bases.values()]
    for directory, round in rounds:
        if round.model_kind != "global" and round.round < round.last_round:
            continue  # unfinished: saved against a kill only
        if is_kept(round.round, round.last_round, rule):
            found.append(_round_checkpoint(directory, round))
    return found


def foreign_checkpoint(
    place: str, base_model: str | None = None, name: str | None = None
) -> Checkpoint:
    """An adapter directory, a full model directory, or a hub id of either, made by anyone.

    Raises:
        CheckpointError: it is none of these, or its base is not known.
    """
    from fedbench.federated.checkpoint import COMMIT, read_round
    from fedbench.model import ADAPTER_CONFIG, weight_files, weights_hash

    directory = _download(place)
    if (directory / COMMIT).exists():
        checkpoint = _round_checkpoint(directory, read_round(directory / COMMIT))
        return replace(checkpoint, base=base_model or checkpoint.base, selected_by="only")
    model = ModelId(method=name or Path(place).name or place, model_kind="merged")
    if not (directory / ADAPTER_CONFIG).exists():
        if not weight_files(directory):
            raise CheckpointError(
                f"{directory}: holds neither {ADAPTER_CONFIG} nor model weights; give a run "
                "directory, a PEFT adapter directory, a model directory or a hub id"
            )
        digest = weights_hash(directory)
        return Checkpoint(
            model, "full", directory, base_model or str(directory), digest, "", selected_by="only"
        )
    base = base_model or _named_base(directory / ADAPTER_CONFIG)
    digest = weights_hash(directory)
    model = model.model_copy(update={"model_kind": "global"})
    return Checkpoint(model, "adapter", directory, base, digest, "", selected_by="only")


def score_answers(file: Path, task: Task, items: Sequence[Item]) -> tuple[SampleTable, Checkpoint]:
    """Score answers that exist already: ``{"doc_id": position, "completion": text}`` a line.

    Items without an answer count as failed.

    Raises:
        DataError: the file is damaged, or names an item that is not there.
    """
    given = _read_answer_file(file, len(items))
    absent = Answer(error="no answer in the file")
    answers = [Answer(text=given[n]) if n in given else absent for n in range(len(items))]
    values, statuses = read_answers(task, answers)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    model = ModelId(method=file.name.split(".")[0], model_kind="reference")
    table = table_of(task, items, None)
    table.answers.append(
        Answers(
            model=model,
            weights_hash=digest,
            backend="answers",
            extracted=values,
            status=statuses,
            errors={n: a.error for n, a in enumerate(answers) if a.error},
        )
    )
    return table, Checkpoint(model, "base", None, "", digest, "", selected_by="only")


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
    for key, table in result.tables.items():
        own = common | {"template": result.templates.get(key)}
        scores.extend(score_table(table, own, details, max_failed=max_failed))
        write_samples(output, table)
    write_scores(output, scores)
    before = read_run(output)
    known = before.facts if before else {}
    spent = before.seconds if before else {}
    counted = {"prompts_cut": result.num_cut}
    record = RunRecord(
        run=run,
        run_hash=run_hash,
        command=command or (before.command if before else ""),
        config=dict(config) if config is not None else None,
        facts=known | counted | dict(facts or {}),
        seconds=spent | dict(seconds or {}),
        **made,
    )
    write_run(output, record)
    return scores


def score_answer_file(
    file: str | Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    output: str | Path | None = None,
    command: str = "",
) -> list[ScoreRecord]:
    """Score answers that exist already, without a model.

    Args:
        file: JSON lines ``{"doc_id": position of the item, "completion": text}``.
        tasks: exactly one task.
        limit: only the first items.
        output: results directory; ``scores/<name of the file>`` by default.
        command: the command line, for the record.

    Raises:
        FedbenchError: bad names or a damaged file.
    """
    loaded = load_tasks(tasks)
    if len(loaded) != 1:
        raise ConfigError(f"--answers holds answers to one task, but --tasks names {len(loaded)}")
    task, place = loaded[0], Path(output) if output else Path("scores") / _name_of(str(file))
    items = load_items(task, None, limit)
    table, checkpoint = score_answers(Path(file), task, items)
    identity = {"answers": checkpoint.weights_hash, "tasks": {task.key: task.hash}, "limit": limit}
    run_hash = claim_scores(place, identity)
    result = Evaluation(tables={task.key: table}, checkpoints=[checkpoint])
    return write_results(result, place, run=place.name, run_hash=run_hash, command=command)


def claim_scores(output: Path, identity: Mapping[str, Any]) -> str:
    """Make a directory that of this scoring, or see that it is; returns the scoring's hash.

    Raises:
        OutputError: it holds something else.
    """
    from fedbench.results.record import write_atomically

    text = json.dumps(identity, sort_keys=True, indent=2)
    file = output / "score.json"
    if file.exists():
        if file.read_text(encoding="utf-8").strip() != text:
            raise OutputError(
                f"{output}: holds the scores of another command (see {file}); choose another "
                "--output"
            )
    elif (output / "scores.jsonl").exists() or (output / "run.yaml").exists():
        raise OutputError(f"{output}: holds another run; choose another --output")
    else:
        write_atomically(file, text.encode() + b"\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _name_of(place: str) -> str:
    return Path(place.rstrip("/")).resolve().name.split(".jsonl")[0]


def _named_apart(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Two models of one name are told apart by where they lie."""
    labels = [checkpoint.model.label() for checkpoint in checkpoints]
    named = []
    for checkpoint, label in zip(checkpoints, labels, strict=True):
        if labels.count(label) > 1 and checkpoint.directory is not None:
            model = checkpoint.model.model_copy(update={"method": str(checkpoint.directory)})
            checkpoint = replace(checkpoint, model=model)
        named.append(checkpoint)
    return list({checkpoint.model.label(): checkpoint for checkpoint in named}.values())


def _by_base(checkpoints: Sequence[Checkpoint]) -> dict[str, list[Checkpoint]]:
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.base, []).append(checkpoint)
    return groups


def _checked(checkpoint: Checkpoint, base_hash: str) -> Checkpoint:
    """The checkpoint with the hash of the base it will run on.

    Raises:
        CheckpointError: it was trained on other weights.
    """
    if checkpoint.kind == "base":
        return replace(checkpoint, weights_hash=base_hash, base_hash=base_hash)
    if checkpoint.kind == "full":
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


def _base_checkpoint(round: Round) -> Checkpoint:
    return Checkpoint(
        model=ModelId(method="base", seed=round.seed, model_kind="base", round=0),
        kind="base",
        directory=None,
        base=round.base,
        weights_hash=round.base_hash,
        base_hash=round.base_hash,
        template=round.template,
        selected_by="only",
        train_examples=0,
    )


def _round_checkpoint(directory: Path, round: Round) -> Checkpoint:
    from fedbench.model import ADAPTER_CONFIG

    federated = round.model_kind == "global"
    return Checkpoint(
        model=ModelId(
            method=round.method,
            seed=round.seed,
            model_kind=round.model_kind,
            model_client=round.model_client,
            round=round.round,
        ),
        kind="adapter" if (directory / ADAPTER_CONFIG).exists() else "full",
        directory=directory,
        base=round.base,
        weights_hash=round.weights_hash,
        base_hash=round.base_hash,
        template=round.template,
        selected_by="last" if round.round == round.last_round else None,
        train_examples=round.train_examples,
        bytes_communicated=round.bytes_up + round.bytes_down if federated else None,
    )


def _details(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "selected_by": checkpoint.selected_by,
        "train_examples": checkpoint.train_examples,
        "bytes_communicated": checkpoint.bytes_communicated,
        "base_hash": checkpoint.base_hash or None,
    }


def _download(place: str) -> Path:
    """A local directory, or the snapshot of a hub repository."""
    directory = Path(place)
    if directory.is_dir():
        return directory
    if directory.exists() or place.count("/") != 1 or place.startswith((".", "/")):
        raise CheckpointError(
            f"{place}: is no directory; give a run directory, a PEFT adapter directory, a model "
            "directory or a hub id such as org/name"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(place))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{place}: is no directory, and the hub did not give it ({reason}); check the name, "
            "the network and your access"
        ) from error


def _named_base(settings: Path) -> str:
    try:
        base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{settings}: cannot be read ({error}); save the adapter again"
        ) from error
    if not base:
        raise CheckpointError(
            f"{settings}: base_model_name_or_path is empty; name the base with --base-model"
        )
    return str(base)


def _read_answer_file(file: Path, num_items: int) -> dict[int, str]:
    given: dict[int, str] = {}
    for number, row in _rows(file):
        fields = row if isinstance(row, dict) else {}
        position, text = fields.get("doc_id"), fields.get("completion")
        if not isinstance(position, int) or not isinstance(text, str):
            raise DataError(
                f"{file}:{number}: has no doc_id and completion; write "
                '{"doc_id": 0, "completion": "..."}'
            )
        if not 0 <= position < num_items:
            raise DataError(
                f"{file}:{number}: doc_id {position} is not among the {num_items} items"
            )
        if position in given:
            raise DataError(
                f"{file}:{number}: doc_id {position} occurs twice; keep one answer per item"
            )
        given[position] = text
    if not given:
        raise DataError(f"{file}: holds no answers; give one JSON object a line")
    return given


def _rows(file: Path) -> Iterable[tuple[int, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: is not JSON ({error})") from error


def elapsed(started: float) -> float:
    """Seconds since a `time.monotonic`, to a tenth."""
    return round(time.monotonic() - started, 1)

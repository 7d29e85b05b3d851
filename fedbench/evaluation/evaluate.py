"""Score many checkpoints on many tasks: one engine, prompts built once, every answer kept.

Questions are rendered and tokenized once per task and template and shared by all checkpoints;
batches are planned over all of them, whatever the store holds; answers are stored batch by batch.
Metrics are computed from the stored answers, so scoring again costs no generation.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedbench.errors import ConfigError
from fedbench.evaluation.asking import Asking, Progress, base_of
from fedbench.evaluation.code_checks import by_whom, judged, needs_sandbox
from fedbench.evaluation.dialogue import Dialogue, OpenEnded, converse, unjudged
from fedbench.evaluation.extract import get_extract
from fedbench.evaluation.harness_requests import Columns
from fedbench.evaluation.prepared import Prepared, prepare
from fedbench.evaluation.prepared import table_of as table_of
from fedbench.evaluation.task import CHOSEN, REJECTED, TIED, Item, Task
from fedbench.evaluation.thinking import without_thoughts
from fedbench.generation.backend import Answer, Backend, Checkpoint
from fedbench.generation.store import AnswerStore
from fedbench.metrics.packages import needs_packages
from fedbench.results.lm_eval_samples import TaskSamples
from fedbench.results.record import Status
from fedbench.results.samples import Answers, SampleTable

DEFAULT_TEMPLATE = "chat"
_log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What scoring gives: tables of items, and facts of each scored model."""

    tables: dict[str, SampleTable] = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)
    """Template by task key."""
    completions: dict[tuple[str, str], list[str | None]] = field(default_factory=dict)
    open_ended: dict[str, OpenEnded] = field(default_factory=dict)
    """By task key, what a judge is shown."""
    num_cut: int = 0
    """Prompts that lost their start to the model's context, over all tasks."""
    num_asked: int = 0
    """Requests that were answered by a model, and not found in the store."""
    usage: dict[str, Any] = field(default_factory=dict)
    """What answering has cost, where the backend counts it."""
    num_thoughts: int = 0
    """Answers that had a thought, which was taken off (`thinking.RULE`)."""
    samples: dict[str, TaskSamples] = field(default_factory=dict)
    """By task key, where they were asked for: what lm-eval's sample files are made of."""
    canaries: dict[str, float] = field(default_factory=dict)
    """By model: how much an adapter changes the log-probabilities of a few tokens, in nats."""


def evaluate(
    checkpoints: Sequence[Checkpoint],
    tasks: Sequence[tuple[Task, Sequence[Item]]],
    backend: Backend,
    store: AnswerStore,
    *,
    template: str | None = None,
    allow_inert: bool = False,
    thinking: bool | None = None,
    keep_samples: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Ask every checkpoint every question, and read the answers.

    Args:
        checkpoints: all of one base; each is put on the resident model in turn.
        tasks: tasks with their items.
        backend: who answers.
        store: answers already there are not asked for again.
        template: overrides the one the checkpoints were trained with and the tasks' own.
        allow_inert: accept an adapter that changes no log-probability.
        thinking: whether a chat template asks for a thought first; None: as it does by itself.
        keep_samples: keep what lm-eval's sample files are made of.
        progress: told of each answered batch.

    Raises:
        CheckpointError: an adapter changes nothing, or does not fit the base.
        ConfigError: the checkpoints were trained with different templates and none is given, or
            answers are programs and nothing isolates them.
        MissingExtraError: a metric needs a package that is not installed.
    """
    # Before anything is asked: answers that nobody can run or score would be generated in vain.
    needs_sandbox([task.check for task, _ in tasks])
    for task, _ in tasks:
        needs_packages(task.metrics)
    result = Evaluation(checkpoints=list(checkpoints))
    own = _trained_template(checkpoints) if template is None else template
    parts = [
        prepare(task, items, own or task.template or DEFAULT_TEMPLATE, backend, thinking)
        for task, items in tasks
    ]
    raw: dict[str, dict[str, Sequence[Answer]]] = {part.task.key: {} for part in parts}
    columns: dict[str, dict[str, Columns]] = {part.task.key: {} for part in parts}
    for part in parts:
        result.tables[part.task.key] = part.table()
        result.templates[part.task.key] = part.template
        result.num_cut += sum(request.num_cut > 0 for request in part.requests)
    asking = Asking(backend, store, progress, allow_inert)
    wanted = list(itertools.product(checkpoints, parts))
    against = [(base, part) for c, part in wanted if (base := _base_for(c, part.task)) is not None]
    answers = asking.ask([*wanted, *against])
    of_bases = iter(answers[len(wanted) :])
    bare = [
        without_thoughts(answered, part.requests)
        for (_, part), answered in zip(wanted, answers, strict=False)
    ]
    result.num_thoughts += sum(num_thoughts for _, num_thoughts in bare)
    firsts = [given for given, _ in bare]
    _converse(result, asking, wanted, firsts)
    for (checkpoint, part), given in zip(wanted, firsts, strict=True):
        known = _base_for(checkpoint, part.task) is not None
        of_base = next(of_bases) if known else None
        key, label = part.task.key, checkpoint.model.label()
        if part.asked is not None:
            read = part.asked.read(given)
            columns[key][label] = read
            _enter_harness(result, part, checkpoint, read, backend.name)
        else:
            raw[key][label] = given
            _enter(result, part, checkpoint, given, backend.name, of_base)
    if keep_samples:
        for part in parts:
            key = part.task.key
            result.samples[key] = part.samples(result.tables[key], raw[key], columns[key])
    for checkpoint in checkpoints:
        _warn_without_base(checkpoint, [part.task for part in parts])
    result.canaries = asking.canaries
    result.num_asked = asking.num_asked
    return result


def columns_of(
    task: Task, items: Sequence[Item], samples: Sequence[Sequence[Answer]]
) -> dict[str, Any]:
    """Columns of `Answers`; of several samples, `extracted` is the first that could be read.

    Args:
        task: what was asked.
        items: its items.
        samples: the answers to each of them.

    Raises:
        ConfigError: answers are programs, and nothing isolates them (`sandbox`).
    """
    given = [answer for own in samples for answer in own]
    if task.needs_judge:
        return unjudged(given)
    if task.check is not None:
        checks = [item.check for item, own in zip(items, samples, strict=True) for _ in own]
        given = judged([check for check in checks if check is not None], given)
    taken = iter(zip(given, *read_answers(task, given), strict=True))
    read = [[next(taken) for _ in own] for own in samples]
    # An item of which any answer could be judged is scored by those.
    best = [next((one for one in own if one[2] == "parsed"), own[0]) for own in read]
    columns: dict[str, Any] = {
        "extracted": [value for _, value, _ in best],
        "status": [status for _, _, status in best],
        "errors": {n: one.error for n, (one, _, _) in enumerate(best) if one.error},
    }
    known = _kept([own[0] for own in samples])  # log-likelihoods are given once
    if task.keeps_loglikelihoods and any(known):
        columns["loglikelihoods"] = known
    if any(len(own) > 1 for own in samples):
        # Of a sample that failed nothing is known; the others are the item's samples.
        columns["samples"] = [
            [value for _, value, status in own if status != "failed"] or [None] for own in read
        ]
    return columns


def read_answers(
    task: Task, answers: Sequence[Answer]
) -> tuple[list[str | float | None], list[Status]]:
    """What was answered and how it went: parsed, unparsed (scored as wrong) or failed."""
    extract = get_extract(task.extract)
    values: list[str | float | None] = []
    statuses: list[Status] = []
    for answer in answers:
        value: str | None = None
        if task.is_of_pairs and answer.loglikelihoods:
            value = _side(answer.loglikelihoods)
        elif answer.loglikelihoods:
            value = task.labels[int(np.argmax(answer.loglikelihoods))]
        elif answer.error is None:
            value = extract(answer.text or "", task.labels)
            if task.kind == "choice" and value not in task.labels:
                value = None  # a text from elsewhere that chooses nothing
        values.append(value)
        failed = answer.error is not None
        statuses.append("failed" if failed else "unparsed" if value is None else "parsed")
    return values, statuses


def _base_for(checkpoint: Checkpoint, task: Task) -> Checkpoint | None:
    """The base on which a model is held in a task, whether it has a row of its own or not."""
    return base_of(checkpoint) if task.needs_base else None


def _warn_without_base(checkpoint: Checkpoint, tasks: Sequence[Task]) -> None:
    if any(task.needs_base for task in tasks) and base_of(checkpoint) is None:
        _log.warning(
            "%s: the base it was trained from is not known, so that metrics against the base are "
            "withheld; name it with --base-model",
            checkpoint.directory,
        )


def _converse(
    result: Evaluation,
    asking: Asking,
    wanted: Sequence[tuple[Checkpoint, Prepared]],
    answers: list[list[Answer]],
) -> None:
    """Ask later turns, and put the last answer of each conversation into the place of its first."""
    dialogues = {
        number: Dialogue(checkpoint, part.items, part.frame, [[one] for one in answers[number]])
        for number, (checkpoint, part) in enumerate(wanted)
        if part.frame is not None and (part.task.turns or part.task.needs_judge)
    }
    converse(asking, list(dialogues.values()))
    for number, dialogue in dialogues.items():
        task = wanted[number][1].task
        answers[number] = [turns[-1] for turns in dialogue.turns]
        result.num_cut += dialogue.num_cut
        result.num_thoughts += dialogue.num_thoughts
        if task.needs_judge:
            known = result.open_ended.setdefault(task.key, OpenEnded(task, dialogue.items))
            known.conversations[dialogue.checkpoint.model.label()] = dialogue.turns


def _enter(
    result: Evaluation,
    part: Prepared,
    checkpoint: Checkpoint,
    given: Sequence[Answer],
    backend: str,
    of_base: Sequence[Answer] | None,
) -> None:
    if of_base is not None:
        given = [_with_base(own, base) for own, base in zip(given, of_base, strict=True)]
    samples = part.by_item(given)
    result.tables[part.task.key].answers.append(
        Answers(
            model=checkpoint.model,
            weights_hash=checkpoint.weights_hash,
            backend=by_whom(part.task.check, backend),
            base_loglikelihoods=_kept(of_base) if of_base is not None else None,
            **columns_of(part.task, part.items, samples),
        )
    )
    texts = [own[0].text for own in samples]
    result.completions[part.task.key, checkpoint.model.label()] = texts


def _enter_harness(
    result: Evaluation, part: Prepared, checkpoint: Checkpoint, read: Columns, backend: str
) -> None:
    result.tables[part.task.key].answers.append(
        Answers(
            model=checkpoint.model,
            weights_hash=checkpoint.weights_hash,
            backend=backend,
            extracted=read.extracted,
            values=read.values,
            aggregates=read.aggregates or None,
            status=read.status,
            errors=read.errors,
        )
    )
    result.completions[part.task.key, checkpoint.model.label()] = read.texts


def _side(loglikelihoods: Sequence[float]) -> str:
    chosen, rejected = loglikelihoods
    return TIED if chosen == rejected else CHOSEN if chosen > rejected else REJECTED


def _with_base(own: Answer, base: Answer) -> Answer:
    """An item that the base has no answer to cannot be compared with it: it failed."""
    if own.error is not None or base.error is None:
        return own
    return Answer(error=f"base: {base.error}")


def _kept(answers: Sequence[Answer]) -> list[tuple[float, ...] | None]:
    return [answer.loglikelihoods or None for answer in answers]


def _trained_template(checkpoints: Sequence[Checkpoint]) -> str | None:
    """The template that the checkpoints were trained with, where that is known."""
    names = sorted({checkpoint.template for checkpoint in checkpoints if checkpoint.template})
    if len(names) > 1:
        raise ConfigError(
            f"the checkpoints were trained with different templates ({', '.join(names)}); scores "
            "under different prompts do not compare: choose one with --template, or score apart"
        )
    return names[0] if names else None

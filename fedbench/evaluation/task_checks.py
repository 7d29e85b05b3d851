"""Whether a task works, before a model is asked: scripted answers, read and scored as it says.

Right answers must have the best value, empty ones must stay unread, answers that are dealt out at
random must be right as often as chance, and where there is no chance, those of other items must not
be best. What fails here would be a wrong number of every model.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from fedbench.data.templates import get_template
from fedbench.evaluation.catalogue import load_task, load_tasks
from fedbench.evaluation.code_checks import needs_sandbox
from fedbench.evaluation.evaluate import columns_of
from fedbench.evaluation.extract import get_extract
from fedbench.evaluation.harness import HarnessItems
from fedbench.evaluation.prepared import table_of
from fedbench.evaluation.scripted_answers import Way, choosing, ways_to_be_right
from fedbench.evaluation.task import Item, Task, load_items
from fedbench.generation.backend import Answer
from fedbench.generation.scripted import ScriptedBackend
from fedbench.metrics import METRICS, Metric, Sample, get_metric
from fedbench.results.proportions import interval_of_share
from fedbench.results.record import ModelId, Status
from fedbench.results.samples import Answers

SHUFFLES = 5
CONFIDENCE = 0.99
FRAME = "plain"
"""Prompts are shown in the task's own template, or in this one."""
MOST_PROGRAMS = 40
"""So many programs are run where nobody says how many."""
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """What became of one kind of scripted answers."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True)
class CheckedTask:
    """What a check has found."""

    task: str
    kind: str
    dataset: str
    num_items: int
    template: str
    prompts: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it."""
        return all(finding.passed for finding in self.findings)


@dataclass(frozen=True)
class _Outcome:
    """Scripted answers to all items, read and scored."""

    samples: Sequence[Sample]
    statuses: Sequence[Status]
    values: dict[str, float]
    """By metric."""
    wrong: Sequence[int]
    """Positions of the items whose own value is not the best, by the headline metric."""


def tasks_to_check(names: Sequence[str]) -> list[Task]:
    """The tasks of that name or path; with all variants of those that name none.

    Raises:
        ConfigError: there is none such, or a file is wrong.
    """
    found = []
    for name in names:
        for task in load_tasks([name]):
            found.append(task)
            if task.variant is None and task.harness is None:
                found += [load_task(f"{name}:{variant}") for variant in task.variants]
    return list({task.key: task for task in found}.values())


def on_rows_of(task: Task, file: Path) -> Task:
    """The task on the rows of a file with the same columns, which nothing pins."""
    own = {"path": str(file), "config": None, "revision": None, "random_split": None}
    source = task.dataset.model_copy(update={**own, "rows": None, "sha256": None})
    update: dict[str, Any] = {"dataset": source}
    if task.examples is not None:
        update["examples"] = task.examples.model_copy(update={"source": source})
    return task.model_copy(update=update)


def check_task(
    task: Task, mirror: str | None = None, limit: int | None = None, num_prompts: int = 1
) -> CheckedTask:
    """Answer a task by script, read and score the answers as those of a model.

    Args:
        task: what is checked.
        mirror: directory of the local mirror; FEDBENCH_DATA when None.
        limit: only the first items.
        num_prompts: so many prompts are kept to be shown.

    Raises:
        ConfigError: programs cannot be run here, or a tokenizer is needed for a prompt.
        DataError: the rows cannot be had, or do not fit the task.
        MissingExtraError: a metric needs a package that is not installed.
    """
    needs_sandbox([task.check])
    if task.check is not None and limit is None:
        limit = MOST_PROGRAMS
    items = load_items(task, mirror, limit)
    if isinstance(items, HarnessItems):
        template, dataset = items.template, task.dataset.path  # lm-eval says which split it asks
        prompts = [one.prompt for one in items.prepare(ScriptedBackend([])).requests]
    else:
        template, dataset = task.template or FRAME, task.dataset.label
        prompts = [_prompt(template, item) for item in items]
    return CheckedTask(
        task=task.key,
        kind=task.kind,
        dataset=dataset,
        num_items=len(items),
        template=template,
        prompts=tuple(prompts[:num_prompts]),
        findings=tuple(_findings(task, items, prompts)),
    )


def _prompt(template: str, item: Item) -> str:
    text, lead = get_template(template).prompt(item.question.turns, tokenizer=None)
    return text + lead


def _findings(task: Task, items: Sequence[Item], prompts: Sequence[str]) -> Iterator[Finding]:
    yield _asked(prompts)
    if task.harness is not None or task.needs_judge or task.is_of_likelihoods:
        return  # lm-eval, or a judge, knows what is right; of a likelihood nothing is read
    ways = ways_to_be_right(task, items)
    if ways:
        way, right = _best_way(task, items, ways)
        yield _gold(task, items, way, right)
    yield _empty(task, items)
    if task.is_of_pairs:
        yield _tied(task, items)
        yield _dealt_sides(task, items)
    elif ways and all(item.reference in task.labels for item in items):
        yield _shuffled(task, items, way)
    elif ways:
        yield _answers_of_others(task, items, way)


def _asked(prompts: Sequence[str]) -> Finding:
    blank = sum(not prompt.strip() for prompt in prompts)
    different = len(set(prompts))
    alike = different == 1 and len(prompts) > 1
    said = f"{different} different prompts of {len(prompts)}"
    if blank:
        said += f", {blank} of them blank"
    if alike:
        said += "; the prompt names no column"
    return Finding("prompts", not (blank or alike), said)


def _best_way(task: Task, items: Sequence[Item], ways: Sequence[Way]) -> tuple[Way, _Outcome]:
    """The way in which most right answers are read as such; the first of several."""
    tried = []
    for way in ways:
        outcome = _scored(task, items, [way.answer(item, item) for item in items])
        tried.append((way, outcome))
        if not outcome.wrong:
            break
    return min(tried, key=lambda one: len(one[1].wrong))


def _gold(task: Task, items: Sequence[Item], way: Way, right: _Outcome) -> Finding:
    known = {name: value for name, value in right.values.items() if _has_best(get_metric(name))}
    passed = bool(known) and all(_is_best(get_metric(name), v) for name, v in known.items())
    said = f"{_listed(known)} for right answers, {way.said}"
    if not passed and right.wrong:
        shown = [_as_read(items[n], right.samples[n]) for n in right.wrong[:_SHOWN]]
        said += f"; {len(right.wrong)} of {len(items)} not taken for right: {', '.join(shown)}"
    return Finding("gold", passed, said)


def _empty(task: Task, items: Sequence[Item]) -> Finding:
    """Unread, or by a rule that reads everything, of no great value."""
    outcome = _scored(task, items, [Answer(text="")] * len(items))
    unread = outcome.statuses.count("unparsed")
    said = f"{unread} of {len(items)} empty answers stay unread"
    if unread == len(items):
        return Finding("empty", True, said)
    if get_type_hints(get_extract(task.extract)).get("return") is not str:
        return Finding("empty", False, f"{said}; extract {task.extract} reads something in them")
    readings = ", ".join(sorted({str(sample.extracted) for sample in outcome.samples}))
    headline, value = task.headline_metric, outcome.values[task.headline_metric]
    varied = len({item.reference for item in items}) > 1
    passed = not (_is_best(get_metric(headline), value) and varied)
    said += f"; {task.extract} reads everything, them as {readings}: {_listed({headline: value})}"
    return Finding("empty", passed, said)


def _shuffled(task: Task, items: Sequence[Item], way: Way) -> Finding:
    """The right answers, dealt out anew among items with the same number of choices."""
    alike: dict[int, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        alike[len(item.question.choices)].append(position)
    labels = [Counter(items[n].reference for n in own) for own in alike.values()]
    if all(len(counts) == 1 for counts in labels):
        return Finding("shuffled", True, "all references are one label; shuffling changes nothing")
    # A label that is n of N references meets itself in n of N cases.
    chance = sum(n * n / counts.total() for counts in labels for n in counts.values()) / len(items)
    hits = []
    for seed in range(SHUFFLES):
        dealt = list(range(len(items)))
        for own in alike.values():
            for place, source in zip(own, random.Random(seed).sample(own, len(own)), strict=True):
                dealt[place] = source
        answers = [way.answer(items[n], items[source]) for n, source in enumerate(dealt)]
        hits.append(_hits(_scored(task, items, answers)))
    return _by_chance("shuffled", np.concatenate(hits), chance)


def _dealt_sides(task: Task, items: Sequence[Item]) -> Finding:
    """Pairs of which a coin decides."""
    hits = []
    for seed in range(SHUFFLES):
        coin = random.Random(seed)
        answers = [choosing(item, coin.randrange(2)) for item in items]
        hits.append(_hits(_scored(task, items, answers)))
    return _by_chance("shuffled", np.concatenate(hits), 0.5)


def _by_chance(name: str, hits: Any, chance: float) -> Finding:
    interval = interval_of_share(hits, CONFIDENCE)
    share = float(hits[:, 0].mean())
    # Bounds are solved to some digits; a chance of exactly 0 or 1 lies on one.
    passed = interval.low - 1e-6 <= chance <= interval.high + 1e-6
    return Finding(
        name,
        passed,
        f"{share:.1%} right over {SHUFFLES} shuffles (99 % interval {interval.low:.1%} to "
        f"{interval.high:.1%}), by chance {chance:.1%}",
    )


def _tied(task: Task, items: Sequence[Item]) -> Finding:
    """Pairs whose sides are equally likely: half right, by any metric that is a share."""
    answers = [Answer(loglikelihoods=(0.0, 0.0))] * len(items)
    values = _scored(task, items, answers).values
    shares = {n: v for n, v in values.items() if get_metric(n).unit_range == (0.0, 1.0)}
    passed = all(value == 0.5 for value in shares.values())
    return Finding("tied", passed, f"{_listed(shares)} where both sides are equally likely")


def _answers_of_others(task: Task, items: Sequence[Item], way: Way) -> Finding:
    """Right answers to other questions, which a metric must not call right."""
    others = [*items[1:], *items[:1]]
    varied = len({item.reference for item in items}) > 1 or task.check is not None
    if not varied or len(items) < 2:
        return Finding("others", True, "all references are one answer, which is right everywhere")
    answers = [way.answer(item, other) for item, other in zip(items, others, strict=True)]
    name = task.headline_metric
    value = _scored(task, items, answers).values[name]
    passed = not _is_best(get_metric(name), value)
    return Finding("others", passed, f"{_listed({name: value})} for answers to other items")


def _scored(task: Task, items: Sequence[Item], given: Sequence[Answer]) -> _Outcome:
    """What an evaluation makes of answers; where a task takes several of each, they are alike."""
    table = table_of(task, items, None)
    columns = columns_of(task, items, [[answer] * task.sampling.samples for answer in given])
    base = [(0.0, 0.0)] * len(items) if task.needs_base else None
    model = ModelId(method="scripted", model_kind="reference")
    answers = Answers.model_validate({"model": model, "base_loglikelihoods": base, **columns})
    samples = [table.sample(answers, position) for position in range(len(items))]
    labels = table.labels or []
    values, wrong = {}, []
    for name in task.metrics:
        metric = get_metric(name)
        statistics = metric.statistics(samples, labels)
        values[name] = float(metric.value(statistics.sum(axis=0)))
        if name == task.headline_metric:
            each = metric.value(statistics)
            wrong = [n for n, value in enumerate(each) if not _is_best(metric, float(value))]
    return _Outcome(samples, answers.status, values, wrong)


def _hits(outcome: _Outcome) -> Any:
    return METRICS["accuracy"].statistics(outcome.samples, [])


def _best(metric: Metric) -> float:
    return metric.unit_range[1] if metric.higher_is_better else metric.unit_range[0]


def _has_best(metric: Metric) -> bool:
    """Whether right answers are known to have its best value."""
    return metric.gold_is_best and math.isfinite(_best(metric))


def _is_best(metric: Metric, value: float) -> bool:
    """Also where there is no value, such as a correlation with one label only."""
    return math.isnan(value) or math.isclose(value, _best(metric), abs_tol=1e-9)


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _as_read(item: Item, sample: Sample) -> str:
    read = "unread" if sample.extracted is None else f"read as {_short(sample.extracted)}"
    return f"{item.id} ({_short(item.reference)}, {read})"


def _short(text: object) -> str:
    return repr(text if len(str(text)) <= 40 else f"{str(text)[:37]}...")

"""What a task is: a YAML file of data, rendered into questions with references.

A task of kind `preference` has pairs instead: conversations with a chosen and a rejected answer,
read as training on them reads them. It names a data set (``examples: hh_rlhf``) or describes one.
A task of kind `loglikelihood` asks how likely the answers of any such data set are (`likelihood`).
A task of kind `harness` is one of lm-eval's (``harness: {task: gsm8k}``), with its prompts, its
filters and its metrics. A task with a `rubric` is open-ended: its answers are judged.

Python enters only by name (`extract`, `metrics`). A task's hash covers everything that can change
a score; its version is raised whenever one could, and records keep both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from fedbench.data.datasets import (
    DatasetConfig,
    Example,
    Jinja,
    dataset_config,
    load_examples,
    text_hash,
)
from fedbench.data.description import Expression
from fedbench.data.rows import Row, Source, load_rows
from fedbench.data.templates import Turn
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.code_checks import PASSED, CheckConfig, ItemCheck, item_checks
from fedbench.evaluation.extract import get_extract, refuse_labels
from fedbench.evaluation.item_choices import choices_of
from fedbench.evaluation.item_keys import own_keys, row_hash
from fedbench.evaluation.known_answers import KnownAnswers, texts_of
from fedbench.evaluation.lm_eval_tasks import PREFIX, HarnessConfig, digest
from fedbench.evaluation.rendering import Templates, rendered, templates_of
from fedbench.evaluation.sampling import SamplingConfig
from fedbench.evaluation.task_fields import Distinct, TaskName
from fedbench.evaluation.task_rows import Shots, get_row_rule, rows_where, subset_of, with_shots
from fedbench.generation.backend import Question
from fedbench.metrics import get_metric
from fedbench.schema import Part, Positive

CHOSEN, REJECTED, TIED = "chosen", "rejected", "tied"
"""How a pair is answered: by the likelier side."""
T = TypeVar("T")
_OF_PAIRS = ("loglikelihood", "base")
_LIKELIHOOD = "likelihood"  # the kind of metrics that are made of whole texts' likelihoods
_LONGEST_CLUSTER = 64
_OF_ROWS = (
    *("where", "prepare", "shots", "group_by", "choices", "check"),
    *("turns", "rubric", "references", "baseline"),
)


class Task(Part):
    """A benchmark, or one variant of it."""

    name: TaskName
    version: Positive = 1
    """Raised whenever a score could change."""
    description: str = ""
    citation: str = ""
    license: str = "unknown"
    dataset: Source
    """Where the rows are; that of `examples` where there are some."""
    examples: DatasetConfig | None = None
    """A data set by name or described in place: for kind `preference` one of pairs."""
    harness: HarnessConfig | None = None
    """For kind `harness`: which of lm-eval's tasks or groups, and how it is asked."""
    where: dict[str, tuple[str | int, ...]] = Field(default_factory=dict)
    """By column, the values of the rows that are asked; all rows when empty."""
    prepare: str | None = None
    """What a protocol does to the rows first, by name (`task_rows`)."""
    shots: Shots | None = None
    """Examples from another split, for the prompt: a column `shots` of rows."""
    group_by: str | None = None
    """Column of the part that an item belongs to (its subject), which is scored by itself too."""
    kind: Literal["generate", "choice", "preference", "loglikelihood", "harness"] = "generate"
    prompt: Jinja = ""
    """Jinja over the columns: what is asked."""
    turns: Expression | None = None
    """In place of `prompt`: a column or a Jinja expression that gives a list of questions, each of
    which is asked behind the model's own answers to those before it."""
    input: Jinja = ""
    """Jinja: the text it is asked about, for templates that set it apart."""
    reference: Jinja = ""
    """Jinja: the right answer."""
    labels: Distinct = ()
    """The closed set of answers; also the choices of kind `choice`."""
    choices: Expression | None = None
    """For kind `choice`, where items have choices of their own: a column or a Jinja expression
    that gives a list of texts. Labels then name them by position; a list may be shorter."""
    cluster: Jinja | None = None
    """Jinja: what items share that are not independent (a passage, a question).

    Pairs share their first question and need not say so."""
    extract: str = "verbatim"
    check: CheckConfig | None = None
    """Where answers are programs: the tests that they must pass. The reference is ``passed``."""
    template: str | None = None
    """The protocol's frame, used where a checkpoint does not bring the one it was trained with."""
    rubric: str | None = None
    """By which rubric a judge rates the answers, where there is no one right answer."""
    references: KnownAnswers | None = None
    """What a judge may be shown beside the answers."""
    baseline: KnownAnswers | None = None
    """Whom the answers are compared with."""
    sampling: SamplingConfig = SamplingConfig()
    metrics: Distinct
    """Empty for kind `harness`, whose metrics are known when its rows are read."""
    headline: str = ""
    """The metric the task is quoted by; the first when empty."""
    variants: dict[TaskName, dict[str, Any]] = Field(default_factory=dict)
    """Protocols that differ: overrides by name, scored as `task:variant`."""
    variant: str | None = None
    superseded_by: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_source(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("harness"), dict):
            place = Source(path=f"{PREFIX}{raw['harness'].get('task')}", columns=())
            return {"dataset": place, "metrics": (), **raw}
        if not isinstance(raw, dict) or raw.get("examples") is None:
            return raw
        if raw.get("dataset") is not None:
            raise ValueError("examples and dataset both say where the rows are; name one of them")
        examples = _as_value_error(dataset_config, raw["examples"])
        return {**raw, "examples": examples, "dataset": examples.source}

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if (self.kind == "harness") != (self.harness is not None):
            raise ValueError("kind harness and harness go together; give both or neither")
        if self.harness is not None:
            self._refuse_said()
            return self
        if not self.metrics:
            raise ValueError("metrics are empty; name at least one")
        for metric in self.metrics:
            _as_value_error(get_metric, metric)
        self.sampling.refuse_too_few(self.metrics)
        _as_value_error(get_extract, self.extract)
        if self.kind == "generate":
            refuse_labels(self.extract, self.labels)
        if self.prepare is not None:
            _as_value_error(get_row_rule, self.prepare)
        if self.headline and self.headline not in self.metrics:
            raise ValueError(f"headline {self.headline!r} is not among metrics {self.metrics}")
        if self.kind == "choice" and not self.labels:
            raise ValueError("kind is choice, but labels are empty; list the choices there")
        if self.check is not None and (self.kind != "generate" or self.reference != PASSED):
            raise ValueError(f"check is of kind generate with reference: {PASSED}; set both")
        if self.sampling.samples > 1 and self.kind != "generate":
            raise ValueError("samples are of kind generate; remove sampling.samples")
        if self.choices is not None and self.kind != "choice":
            raise ValueError("choices are of kind choice; set it, or remove choices")
        if self.kind != "generate" and (self.turns or self.rubric):
            raise ValueError("turns and rubric are of kind generate; remove them")
        if (self.is_of_pairs or self.is_of_likelihoods) != (self.examples is not None):
            raise ValueError(
                "kind preference and examples go together, and loglikelihood and examples do; give "
                "both or neither"
            )
        if self.examples is None:
            self._refuse_unasked()
        else:
            self._refuse_unpaired(self.examples)
        return self

    def _refuse_said(self) -> None:
        own = {"prompt", "input", "reference", "labels", "cluster", "metrics", "examples"}
        own |= set(_OF_ROWS)
        given = sorted(name for name in own if getattr(self, name))
        if given:
            raise ValueError(f"{', '.join(given)}: lm-eval's task says this; remove it")

    def _refuse_unasked(self) -> None:
        if bool(self.prompt) == bool(self.turns):
            raise ValueError("prompt is required, or turns in its place; give one of them")
        if not self.reference and self.rubric is None:
            raise ValueError("reference is required; add it, or a rubric to judge the answers by")
        if self.turns is not None and (self.input or self.sampling.samples > 1):
            raise ValueError("turns go with neither input nor several samples; remove those")
        for name in self.metrics:
            needs = get_metric(name).needs
            if needs in _OF_PAIRS:
                raise ValueError(f"metric {name} is of pairs; give kind: preference and examples")
            if get_metric(name).kind == _LIKELIHOOD:
                raise ValueError(f"metric {name} is of likelihoods; give kind: loglikelihood")
            if needs == "choices" and self.kind != "choice":
                raise ValueError(f"metric {name} is of probabilities; set kind: choice")
            if needs == "subsets" and self.group_by is None:
                raise ValueError(f"metric {name} is a mean over subsets; add group_by")
            if needs == "judge" and self.rubric is None:
                raise ValueError(f"metric {name} is of a judge; add the rubric that it judges by")

    def _refuse_unpaired(self, examples: DatasetConfig) -> None:
        if self.is_of_pairs and (examples.chosen is None or examples.rejected is None):
            raise ValueError("examples hold no pairs; name their columns chosen and rejected")
        answered = [name for name in ("prompt", "input", "reference", "labels", "cluster",
                                      *_OF_ROWS) if getattr(self, name)]  # fmt: skip
        if answered:
            raise ValueError(f"{', '.join(answered)}: examples say this; remove it")
        for name in self.metrics:
            if self.is_of_likelihoods and get_metric(name).kind != _LIKELIHOOD:
                raise ValueError(f"metric {name} is not of likelihoods; choose bits_per_byte")
            if self.is_of_pairs and get_metric(name).needs not in _OF_PAIRS:
                raise ValueError(f"metric {name} is not of pairs; choose preference_accuracy")

    @property
    def is_of_pairs(self) -> bool:
        """Whether its items are pairs of answers, and not questions with one right answer."""
        return self.kind == "preference"

    @property
    def is_of_likelihoods(self) -> bool:
        """Whether nothing is answered: the model says how likely known texts are."""
        return self.kind == "loglikelihood"

    @property
    def needs_judge(self) -> bool:
        """Whether a judge makes its scores."""
        return self.rubric is not None

    @property
    def keeps_loglikelihoods(self) -> bool:
        """Whether metrics are made of the log-likelihoods themselves."""
        return self.is_of_pairs or any(get_metric(m).needs == "choices" for m in self.metrics)

    @property
    def needs_base(self) -> bool:
        """Whether a metric compares a model with the base that it was trained from."""
        return any(get_metric(name).needs == "base" for name in self.metrics)

    @property
    def key(self) -> str:
        """``fpb``, or ``fpb:fingpt`` for a variant."""
        return self.name if self.variant is None else f"{self.name}:{self.variant}"

    @property
    def headline_metric(self) -> str:
        """The metric the task is quoted by."""
        return self.headline or next(iter(self.metrics), "")

    @property
    def hash(self) -> str:
        """Hash of everything that can change a score."""
        if self.harness is not None:
            return digest(self.harness)
        texts = {"description", "citation", "license", "superseded_by", "variants"}
        # Keys that came later change the hash of the tasks only that have them.
        texts |= {name for name in _OF_ROWS if not getattr(self, name)}
        shape = self.model_dump(mode="json", exclude={*texts, "examples", "harness"})
        for name in self.sampling.unsaid:
            del shape["sampling"][name]
        if self.examples is not None:
            # What a description leaves at its default may gain a name later, and changes nothing.
            shape["examples"] = self.examples.model_dump(
                mode="json", exclude={"description", "license"}, exclude_defaults=True
            )
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Item:
    """One question of a task with its reference."""

    id: str
    """Split and position within it: ``test/12``."""
    hash: str
    question: Question
    reference: str
    cluster: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the data set calls it: its id columns and its question, as text; no part of a hash.

    Tasks with subsets add `subset`.
    """
    check: ItemCheck | None = field(default=None, compare=False)
    """Of an answer that is a program."""
    later: tuple[str, ...] = ()
    """What is asked behind the model's own answer to the question, turn by turn."""

    @property
    def text(self) -> str:
        """What overlaps with training data are looked for in."""
        return Example(self.question.turns).text

    @property
    def opening(self) -> str:
        """The first question, which no training row may have either (`Example.opening`)."""
        return Example(self.question.turns).opening


def load_items(
    task: Task, mirror: str | None = None, limit: int | None = None, seed: int = 0
) -> Sequence[Item]:
    """The items of a task, in row order.

    Raises:
        DataError: the rows cannot be had or are not those pinned, or a reference is no label.
    """
    if task.harness is not None:
        from fedbench.evaluation.harness import load_harness_items

        return load_harness_items(task, task.harness, mirror, limit, seed)
    if task.examples is not None:
        from fedbench.evaluation.example_items import example_items

        return example_items(task, load_examples(task.examples, mirror, limit), seed)
    rows = _numbered_rows(task, mirror)[:limit]
    if (column := task.group_by) is not None:
        rows.sort(key=lambda numbered: subset_of(numbered[1], column, task.dataset.label))
    texts = {"prompt": task.prompt, "input": task.input, "reference": task.reference}
    fields = templates_of(texts | {"cluster": task.cluster or ""})
    items = [_item(task, fields, seed, row, number) for number, row in rows]
    return items if task.check is None else _with_checks(task, task.check, items, rows)


def _with_checks(
    task: Task, config: CheckConfig, items: Sequence[Item], rows: Sequence[tuple[int, Row]]
) -> list[Item]:
    check_of = item_checks(config)
    where = f"task {task.key}, {task.dataset.label}, row"
    return [
        replace(item, check=check_of(row, f"{where} {number}"))
        for item, (number, row) in zip(items, rows, strict=True)
    ]


def _numbered_rows(task: Task, mirror: str | None) -> list[tuple[int, Row]]:
    """The rows that are asked, with their position among all that are."""
    rows = load_rows(task.dataset, mirror)
    if task.where:
        rows = rows_where(rows, task.where, f"task {task.key}, {task.dataset.label}")
    if task.prepare is not None:
        rows = get_row_rule(task.prepare)(rows)
    if task.shots is not None:
        rows = with_shots(rows, load_rows(task.shots.source, mirror), task.shots)
    return list(enumerate(rows))


def _item(task: Task, fields: Templates, seed: int, row: Row, number: int) -> Item:
    where = f"task {task.key}, {task.dataset.label}, row {number}"
    text = rendered(fields, row, where)
    if task.labels and text["reference"] not in task.labels:
        raise DataError(
            f"{where}: reference {text['reference']!r} is none of the labels "
            f"{', '.join(task.labels)}"
        )
    choices: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    if task.turns is not None:
        text["prompt"], *rest = texts_of(row, task.turns, where, "turns")
        later = tuple(rest)
    if task.kind == "choice":
        choices = choices_of(row, task.choices, task.labels, text["reference"], where)
    keys = own_keys(row)
    if task.group_by is not None:
        keys["subset"] = subset_of(row, task.group_by, task.dataset.label)
    return Item(
        id=f"{task.dataset.split}/{number}",
        hash=row_hash(row, task.dataset.columns or tuple(row)),
        question=Question(
            turns=(Turn(text["prompt"], text["input"]),),
            kind="choice" if task.kind == "choice" else "generate",
            sampling=task.sampling.of(row, seed),
            choices=choices,
        ),
        reference=text["reference"],
        cluster=_cluster(text["cluster"]),
        keys=keys,
        later=later,
    )


def _cluster(name: str) -> str | None:
    """A short name; what is long or has spaces is text, which tables of answers do not hold."""
    is_name = len(name) <= _LONGEST_CLUSTER and " " not in name
    return (name if is_name else text_hash(name)) or None


def _as_value_error(look_up: Callable[[Any], T], name: Any) -> T:
    """Pydantic turns a ValueError into a message that names the field."""
    try:
        return look_up(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error

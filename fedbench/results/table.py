"""The table of a leaderboard: one row per method, one column per task and metric.

A cell is the mean over the required seeds. A row that lacks a seed, a client or a task is shown
as incomplete and never averaged over what happens to be there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedbench.metrics import get_metric
from fedbench.results.published import Published
from fedbench.results.ranking import MeanRank, Place
from fedbench.results.record import (
    ModelKind,
    PrivacyLevel,
    PrivacyRecord,
    RunRecord,
    ScoreRecord,
)
from fedbench.results.settings import Setting
from fedbench.results.specification import LeaderboardSpec

FEDERATED: tuple[ModelKind, ...] = ("global", "merged", "client")
"""Kinds of models that a federation made; `client`: a personal one, of a method without a global
model."""


@dataclass(frozen=True)
class Column:
    """A task, or an average over tasks, under one metric."""

    name: str
    metric: str
    tasks: tuple[str, ...]
    headline: bool
    higher_is_better: bool
    percent: bool

    @property
    def is_average(self) -> bool:
        """Whether this is a mean over tasks rather than a task."""
        return self.tasks != (self.name,)

    @property
    def variant(self) -> str | None:
        """The protocol variant that all its tasks share."""
        variants = {task.partition(":")[2] or None for task in self.tasks}
        return variants.pop() if len(variants) == 1 else None

    @property
    def title(self) -> str:
        """The name, with an arrow where less is better."""
        return self.name if self.higher_is_better else f"{self.name} ↓"

    @property
    def unit(self) -> str:
        """``%`` for shares, else what the metric is counted in, if anything."""
        return "%" if self.percent else get_metric(self.metric).unit

    def show(self, value: float | None, beside: Iterable[float | None] = ()) -> str:
        """A score for people: percent with one decimal, or three digits where it is no share.

        Args:
            value: the score.
            beside: numbers that have as many decimals: the largest of all gets the three digits.
        """
        return self._text(value, "", beside)

    def show_change(self, value: float | None, beside: Iterable[float | None] = ()) -> str:
        """A difference for people, with its sign; as `show`."""
        return self._text(value, "+", beside)

    def show_all(self, value: float, low: float, high: float, *, change: bool = False) -> str:
        """A number with its interval: ``71.2 [69.9, 72.5]``."""
        show = self.show_change if change else self.show
        text, *ends = (show(number, (value, low, high)) for number in (value, low, high))
        return f"{text} [{', '.join(ends)}]"

    def _text(self, value: float | None, sign: str, beside: Iterable[float | None]) -> str:
        if value is None:
            return "—"
        if self.percent:
            return f"{100 * value:{sign}.1f}".replace("-", "−")
        largest = max(abs(number) for number in (value, *beside) if number is not None)
        decimals = 2 if largest == 0 else min(max(2 - math.floor(math.log10(largest)), 0), 6)
        return f"{value:{sign}.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class Cell:
    """One score of a method with its uncertainty."""

    value: float | None = None
    """Mean over seeds, and over clients where the row is one of clients; None: see `reason`."""
    low: float | None = None
    high: float | None = None
    ci_method: str | None = None
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    """Key None: the model does not depend on the seed."""
    sd_seeds: float | None = None
    worst_client: float | None = None
    """The worst client's score in each seed, averaged over seeds; likewise the two below."""
    best_client: float | None = None
    sd_clients: float | None = None
    num_examples: int | None = None
    reason: str = ""
    """Why there is no value."""
    no_interval: str = ""
    """Why there is a value and no interval."""


@dataclass(frozen=True)
class Counts:
    """How many answers there were, and how many of them could not be read or were not obtained."""

    num_answers: int = 0
    num_unparsed: int = 0
    num_failed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.num_answers + other.num_answers,
            self.num_unparsed + other.num_unparsed,
            self.num_failed + other.num_failed,
        )


@dataclass(frozen=True)
class Row:
    """A method, or the mean over the client models of a method."""

    method: str
    label: str
    kind: ModelKind
    cells: Mapping[Column, Cell]
    num_seeds: int
    """Distinct seeds scored; 0 for a model that does not depend on the seed."""
    counts: Mapping[str, Counts]
    """By task key."""
    train_examples: tuple[int, int] | None
    """Least and most over the models of the row."""
    bytes_communicated: tuple[int, int] | None
    setting: Setting = field(default_factory=Setting)
    privacy: tuple[PrivacyRecord, ...] = ()
    """What privacy cost at each level, in the seed where it cost most; empty where nothing was
    accounted for."""

    @property
    def is_complete(self) -> bool:
        """Whether it has a value in every column."""
        return all(cell.value is not None for cell in self.cells.values())

    def counted(self, tasks: Iterable[str]) -> Counts:
        """The counts of some tasks together."""
        return sum((self.counts.get(task, Counts()) for task in tasks), Counts())


@dataclass(frozen=True)
class MethodDifference:
    """A federated method minus another row, on the same items."""

    method: str
    other: str
    other_kind: ModelKind
    column: Column
    value: float | None
    low: float | None = None
    high: float | None = None
    ci_method: str | None = None
    p_value: float | None = None
    p_holm: float | None = None
    """Adjusted for the number of differences in the table (Holm 1979)."""
    by_seed: Mapping[int, float] = field(default_factory=dict)
    num_examples: int | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``unclear`` when the interval holds 0 or there is none."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.low > 0) == self.column.higher_is_better else "worse"


@dataclass(frozen=True)
class CurvePoint:
    """A federated method after some rounds: mean over seeds."""

    label: str
    column: Column
    round: int
    value: float
    low: float | None
    """Smallest over seeds, or the end of the interval when there is one seed."""
    high: float | None
    num_seeds: int


@dataclass(frozen=True)
class ClientScore:
    """One client's own model on the shared test sets."""

    method: str
    seed: int | None
    client: int
    train_examples: int | None
    records: Mapping[Column, ScoreRecord]


@dataclass(frozen=True)
class View:
    """The columns that are shown side by side: one metric, one protocol."""

    title: str
    columns: tuple[Column, ...]
    headline: bool

    @property
    def tasks(self) -> list[str]:
        """The keys of the tasks that are shown, without averages of them."""
        return [column.name for column in self.columns if not column.is_average]


@dataclass(frozen=True)
class Table:
    """Everything that a leaderboard shows."""

    spec: LeaderboardSpec
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    differences: tuple[MethodDifference, ...]
    curves: tuple[CurvePoint, ...]
    clients: tuple[ClientScore, ...]
    runs: tuple[RunRecord, ...]
    tasks: Mapping[str, str]
    """Task key -> version, hash and number of items, in words."""
    ranks: Mapping[str, Place] = field(default_factory=dict)
    """By label of the row; without rows that have no value or no answers on the primary column."""
    mean_ranks: Mapping[str, MeanRank] = field(default_factory=dict)
    """The same rows; empty where the primary column is no average over tasks."""
    published: Published | None = None

    @property
    def title(self) -> str:
        """What to write above the table."""
        return self.spec.title or self.spec.name

    @property
    def primary(self) -> Column:
        """The column that findings are about: `sort_by`, the first average, or the first task."""
        shown = [c for c in self.columns if c.headline] or list(self.columns)
        wanted = self.spec.sort_by or next(iter(self.spec.averages), None)
        return next((c for c in shown if c.name == wanted), shown[0])

    @property
    def privacy_levels(self) -> list[PrivacyLevel]:
        """At which levels the privacy of any row was accounted for."""
        found = {spent.level for row in self.rows for spent in row.privacy}
        return sorted(found)

    @property
    def views(self) -> list[View]:
        """The columns by metric and variant, those with a headline first."""
        groups: dict[tuple[str | None, str], list[Column]] = {}
        for column in self.columns:
            groups.setdefault((column.variant, column.metric), []).append(column)
        views = [
            View(
                metric if variant is None else f"{metric}, protocol {variant}",
                tuple(columns),
                any(column.headline for column in columns),
            )
            for (variant, metric), columns in groups.items()
        ]
        return sorted(views, key=lambda view: not view.headline)

"""What a leaderboard shows: ``leaderboard.yaml``, where it lies, and the results beside it.

A leaderboard is a directory with ``leaderboard.yaml`` (a `LeaderboardSpec`: which tasks, metrics
and seeds) and ``results/<run>/`` (records). A results directory by itself gets a specification
that shows all it holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from fedbench import resources
from fedbench.errors import ConfigError, RecordError
from fedbench.metrics import find_metric, get_metric
from fedbench.results.published import PUBLISHED_FILE
from fedbench.results.record import RunRecord, ScoreRecord, scores_file
from fedbench.results.samples import Results, read_results
from fedbench.schema import Part, models_within, read_yaml, validated

SPEC_FILE = "leaderboard.yaml"
SCORES_FILE = "scores.jsonl"


class LeaderboardSpec(Part):
    """What a leaderboard shows, read from ``leaderboard.yaml``."""

    name: str
    title: str = ""
    description: str = ""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Task keys: ``fpb``, or ``fpb:fingpt`` for a variant."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Columns that are the mean over tasks, such as ``Avg:3: [fpb, fiqa_sa, tfns]``."""
    seeds: tuple[int, ...] = ()
    """Seeds that a row must have to be complete; those found in the records when empty."""
    versions: dict[str, int] = Field(default_factory=dict)
    """Task key -> the version that counts; that of the installed task where it is not named."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Keys of the run file (``federation.rounds``) with the value that a submission must have."""
    partial_rows: bool = True
    """Whether rows that lack a seed, a client or a task are listed; they never have a place."""
    domains: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Tasks by domain, for the page's filter; the suites of the tasks when empty."""
    sort_by: str | None = None
    """A task or average whose headline metric orders the rows; None keeps methods by kind."""
    notes: tuple[str, ...] = ()
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95

    @model_validator(mode="after")
    def _consistent(self) -> LeaderboardSpec:
        for metric in self.metrics:
            try:
                get_metric(metric)
            except ConfigError as error:
                raise ValueError(f"metrics: {error}") from error
        for field in ("tasks", "metrics", "seeds"):
            listed = getattr(self, field)
            twice = next((entry for entry in listed if listed.count(entry) > 1), None)
            if twice is not None:
                raise ValueError(f"{field} has {twice!r} twice; list it once")
        for key in self.protocol:
            if (wrong := _unknown_key(key)) is not None:
                raise ValueError(f"protocol names {key!r}, which no run file has{wrong}")
        for name, tasks in self.averages.items():
            if name in self.tasks:
                raise ValueError(f"averages.{name} has the name of a task; call it otherwise")
            if not tasks:
                raise ValueError(f"averages.{name} is empty; list its tasks")
            for task in tasks:
                if task not in self.tasks:
                    raise ValueError(
                        f"averages.{name} names {task!r}, which tasks does not list; "
                        f"add it there{_nearest(task, self.tasks)}"
                    )
        for field, named in (
            ("versions", list(self.versions)),
            ("domains", [task for tasks in self.domains.values() for task in tasks]),
        ):
            for task in named:
                if task not in self.tasks:
                    raise ValueError(
                        f"{field} names {task!r}, which tasks does not list; "
                        f"add it there{_nearest(task, self.tasks)}"
                    )
        known = [*self.tasks, *self.averages]
        if self.sort_by is not None and self.sort_by not in known:
            raise ValueError(
                f"sort_by is {self.sort_by!r}, which is neither among tasks nor "
                f"averages{_nearest(self.sort_by, known)}"
            )
        return self


def load_spec(directory: Path) -> LeaderboardSpec:
    """The specification in a leaderboard's directory.

    Raises:
        ConfigError: it is missing or wrong; names file and field.
    """
    file = directory / SPEC_FILE
    raw = read_yaml(file)
    raw.setdefault("name", directory.resolve().name)
    return validated(LeaderboardSpec, raw, str(file))


def find_leaderboard(name: str) -> Path:
    """The directory of a leaderboard, by path or by name.

    Names are looked up in ``./leaderboards``, then among those that come with fedbench.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    path = Path(name)
    if path.name == SPEC_FILE and path.is_file():
        return path.parent
    if (path / SPEC_FILE).is_file() or scores_file(path).is_file():
        return path
    rooms = [Path("leaderboards"), resources.directory("leaderboards")]
    for room in rooms:
        if (room / name / SPEC_FILE).is_file():
            return room / name
    if path.is_dir():
        raise ConfigError(
            f"{name}: holds neither {SPEC_FILE} nor {SCORES_FILE}; "
            "give the directory of a leaderboard or of results"
        )
    known = sorted({file.parent.name for room in rooms for file in room.glob(f"*/{SPEC_FILE}")})
    raise ConfigError(
        f"unknown leaderboard {name!r}{_nearest(name, known)}; known are: "
        f"{', '.join(known) or 'none'}"
    )


def read_leaderboard(
    directory: Path, *, may_be_empty: bool = False
) -> tuple[LeaderboardSpec, list[Results]]:
    """Specification and results of a leaderboard, or of a results directory by itself.

    Args:
        directory: of either.
        may_be_empty: whether a leaderboard may be without results; one of published numbers may
            be in any case.

    Raises:
        ConfigError: the specification is wrong.
        RecordError: there are no results, or a file is damaged.
    """
    if scores_file(directory).is_file():
        results = read_results(directory)
        return spec_for(results.run, results.scores), [results]
    spec = load_spec(directory)
    found = sorted({file.parent for file in directory.glob(f"results/*/{SCORES_FILE}*")})
    if not (found or may_be_empty or (directory / PUBLISHED_FILE).is_file()):
        raise RecordError(
            f"{directory}/results: holds no results; run the leaderboard's run.yaml and add "
            f"what it gives: fedbench leaderboard {directory.name} --add runs/<run>"
        )
    return spec, [read_results(path) for path in found]


def spec_for(run: RunRecord | None, scores: Sequence[ScoreRecord]) -> LeaderboardSpec:
    """A specification that shows everything a run has scored.

    Raises:
        RecordError: there is no score.
    """
    if not scores:
        raise RecordError("scores.jsonl: holds no score; run the same command again")
    tasks = tuple(dict.fromkeys(score.task_key for score in scores))
    headlines = [score.metric for score in scores if score.headline]
    metrics = [name for name in (*headlines, *(s.metric for s in scores)) if find_metric(name)]
    plain = tuple(task for task in tasks if ":" not in task)
    config = (run.config if run else None) or {}
    found = sorted({score.seed for score in scores if score.seed is not None})
    return LeaderboardSpec(
        name=run.run if run else scores[0].run,
        description=config.get("description") or "",
        tasks=tasks,
        metrics=tuple(dict.fromkeys(metrics)),
        averages={f"Avg:{len(plain)}": plain} if len(plain) > 1 else {},
        seeds=tuple(config.get("seeds") or found),
    )


def _unknown_key(key: str) -> str | None:
    """None for a key of the run file, such as ``federation.rounds``; else what may be meant."""
    from fedbench.config import RunConfig

    parts: list[type[BaseModel]] = [RunConfig]
    for name in key.split("."):
        if not parts:
            return None  # within what may hold any key, such as the rule of a partition
        fields = [part.model_fields[name] for part in parts if name in part.model_fields]
        if not fields:
            return _nearest(name, [known for part in parts for known in part.model_fields])
        parts = [part for field in fields for part in models_within(field.annotation)]
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

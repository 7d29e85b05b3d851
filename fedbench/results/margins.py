"""How much worse is tolerated, task by task: a file for ``fedbench check --margins``.

::

    default: 0.01        # one point, where nothing else is said
    tasks:
      humaneval: 0.05
      mt_bench: 0.2      # in units of the score: of 1 to 10
      lm_eval/mmlu_*: 0.03
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedbench.errors import ConfigError
from fedbench.metrics import find_metric
from fedbench.schema import Part, read_yaml, validated

MAX_DROP = 0.01
Margin = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Margins(Part):
    """Tolerated drops, in units of each task's headline metric."""

    default: Margin = MAX_DROP
    tasks: dict[str, Margin] = Field(default_factory=dict)
    """By task key (``fpb``, ``fpb:fingpt``) or shell pattern; the name of a task holds for its
    variants, what is written out wins over a pattern, and of patterns the first."""

    def of(self, key: str) -> float:
        """The margin of a task key."""
        for name in (key, key.partition(":")[0]):
            if name in self.tasks:
                return self.tasks[name]
        return next((m for p, m in self.tasks.items() if fnmatchcase(key, p)), self.default)


def load_margins(file: Path) -> Margins:
    """The margins of a file.

    Raises:
        ConfigError: it is missing or wrong; names file and field.
    """
    return validated(Margins, read_yaml(file), str(file))


def refuse_unknown(margins: Margins, keys: Collection[str], file: Path | None) -> None:
    """See that every margin is of a task that is checked: a typo would be a gate left open.

    Raises:
        ConfigError: one is of none.
    """
    for name in margins.tasks:
        if any(name in (key, key.partition(":")[0]) or fnmatchcase(key, name) for key in keys):
            continue
        near = difflib.get_close_matches(name, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(keys)[:5])}"
        raise ConfigError(f"{file}: tasks: {name}: the baseline has no such task; {hint}")


def refuse_open(margins: Margins, scores: Iterable[tuple[str, str]]) -> None:
    """See that every margin can be missed: 1 in place of 0.01 would let all shares pass.

    Args:
        margins: what is tolerated.
        scores: task keys, each with its headline metric.

    Raises:
        ConfigError: a margin is as wide as the range of its metric.
    """
    for key, name in scores:
        metric, margin = find_metric(name), margins.of(key)
        if metric is None or margin < metric.unit_range[1] - metric.unit_range[0]:
            continue
        low, high = metric.unit_range
        hint = "give 0.01 for one point" if (low, high) == (0.0, 1.0) else "give less"
        raise ConfigError(
            f"{key}: a margin of {margin:g} lets everything pass, because {name} lies between "
            f"{low:g} and {high:g}; {hint}"
        )

"""Packages that a few metrics take, looked for before anything is asked of a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from fedbench.errors import MissingExtraError

PACKAGES = {"math_equivalence": ("math_verify", "math"), "ter": ("sacrebleu", "lm-eval")}
"""By metric: the package, and the extra of fedbench that installs it."""


def needs_packages(metrics: Iterable[str]) -> None:
    """See that metrics can be computed.

    Raises:
        MissingExtraError: a package of one is not installed.
    """
    for name in metrics:
        package, extra = PACKAGES.get(name, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"the metric {name}", extra)

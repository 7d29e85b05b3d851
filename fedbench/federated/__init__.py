"""Federated algorithms by name, and the loop that runs them.

`ALGORITHMS` is the one table of names. An algorithm's dataclass fields are its options.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedbench.federated.fedavg import FedAvg
from fedbench.federated.fedprox import FedProx

ALGORITHMS: dict[str, type[FedAvg]] = {"fedavg": FedAvg, "fedprox": FedProx}

BASELINES = {
    "local": "Each client trains alone, on as many samples as it contributes to the federation.",
    "centralised": "One model trains on the pooled rows, on as many samples as all clients.",
}


def make_algorithm(name: str, options: Mapping[str, Any]) -> FedAvg:
    """The algorithm of that name with its options checked.

    Raises:
        ValueError: unknown name, unknown option or wrong value, each named with the nearest known.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}{_nearest(name, [*ALGORITHMS, *BASELINES])}")
    kind = ALGORITHMS[name]
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{_nearest(option, known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"option {option} of {name}: {first['msg']}") from error


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"

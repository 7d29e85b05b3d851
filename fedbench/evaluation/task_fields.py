"""What fields of a task file may hold, checked one by one."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

_PARTING = (",", ":")
"""They part names and variants wherever tasks are named: ``--tasks fpb:fingpt,gsm8k``."""


def _named(name: str) -> str:
    if not name or name != name.strip() or any(mark in name for mark in _PARTING):
        raise ValueError("is no name; give one without comma, colon or space around it")
    return name


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((value for n, value in enumerate(values) if value in values[:n]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands there twice; remove one")
    return values


TaskName = Annotated[str, AfterValidator(_named)]
Distinct = Annotated[tuple[str, ...], AfterValidator(_distinct)]

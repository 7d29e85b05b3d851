"""What the commands share in printing: one JSON array on stdout, tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON array on stdout and nothing else there."
)


def print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON array on stdout; NaN never appears, absent values are null."""
    click.echo(json.dumps(list(rows), ensure_ascii=False, indent=2, allow_nan=False))


def say(message: str) -> None:
    """Talk to the person at the terminal, on stderr."""
    click.echo(message, err=True)

"""``fedbench list``: what there is, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import click

from fedbench.cli._output import json_option, print_json

_SHORT = 40
"""So long may a value of a variant be that is shown beside its name."""


@click.command("list")
@click.argument(
    "kind",
    type=click.Choice(
        ["tasks", "metrics", "suites", "algorithms", "datasets", "backends", "templates", "presets"]
    ),
)
@json_option
def command(kind: str, as_json: bool) -> None:
    """List the names that run files and options take."""
    rows = _ROWS[kind]()
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {_about(row)}")
    if kind == "tasks":
        click.echo("\nTasks of lm-eval go by their names, too (`lm_eval ls tasks`).", err=True)


def _about(row: dict[str, Any]) -> str:
    """The description; of a metric behind what it is about, its direction, range and unit.

    Of a variant of a task only what differs: the description stands with the task.
    """
    if row.get("differs"):
        return f"as {row['name'].partition(':')[0]}, but: {row['differs']}"
    if "range" not in row:
        return str(row["description"])
    low, high = ("∞" if end is None else f"{end:g}" for end in row["range"])
    low = f"-{low}" if low == "∞" else low
    better = "higher" if row["higher_is_better"] else "lower"
    ends = f"{low}..{high}"
    said = row["description"]
    if row["unit"]:
        said = f"{said.removesuffix('.')} ({row['unit']})."
    source = f" [{row['source']}]" if row["source"] else ""
    return f"{row['kind']:<14}  {better:<6}  {ends:<6}  {said}{source}"


def _tasks() -> list[dict[str, Any]]:
    from fedbench.evaluation.catalogue import load_task, task_names
    from fedbench.evaluation.verified import verified_on

    rows = []
    for name in task_names():
        task = load_task(name)
        for variant in [None, *task.variants]:
            own = task if variant is None else load_task(f"{name}:{variant}")
            rows.append(
                {
                    "name": own.key,
                    "description": " ".join(task.description.split()),
                    "differs": variant and _differs(task.variants[variant]),
                    "version": own.version,
                    "kind": own.kind,
                    "metrics": list(own.metrics),
                    "source": task.citation,
                    "dataset": task.dataset.label,
                    "revision": task.dataset.revision,
                    "verified_on": verified_on(own),
                }
            )
    return rows


def _differs(overrides: Mapping[str, Any]) -> str:
    """The fields of a variant that are not the task's, with their values where those are short."""
    said = []
    for name, value in overrides.items():
        text = _short(value)
        if value is None:
            said.append(f"no {name}")
        elif name not in ("headline", "version"):  # one of the metrics, and shown by itself
            said.append(f"{name} ({text})" if text else name)
    return ", ".join(said)


def _short(value: object) -> str:
    """Names and numbers as text; nothing of prompts, tables and long lists."""
    if isinstance(value, Mapping):
        parts = [f"{name} {_short(inner)}" for name, inner in value.items() if _short(inner)]
        text = ", ".join(parts) if len(parts) == len(value) else ""
    elif isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return text if len(text) <= _SHORT and not set(text) & set("{\n") else ""


def _metrics() -> list[dict[str, Any]]:
    from fedbench.metrics import METRICS
    from fedbench.metrics.clients import RUN_METRICS

    return [
        {
            "name": metric.name,
            "description": metric.description,
            "kind": metric.kind,
            "needs": metric.needs,
            "higher_is_better": metric.higher_is_better,
            "unit": metric.unit or None,
            "range": [end if math.isfinite(end) else None for end in metric.unit_range],
            "source": metric.source,
        }
        for metric in [*METRICS.values(), *RUN_METRICS.values()]
    ]


def _suites() -> list[dict[str, Any]]:
    from fedbench.evaluation.catalogue import AUDITS, suites

    audits = [{"name": name, "description": about, "tasks": []} for name, about in AUDITS.items()]
    return audits + [
        {"name": name, "description": ", ".join(tasks), "tasks": tasks}
        for name, tasks in suites().items()
    ]


def _algorithms() -> list[dict[str, Any]]:
    from dataclasses import fields

    from fedbench.federated import ALGORITHMS, BASELINES

    rows: list[dict[str, Any]] = [
        {"name": name, "description": text, "options": {}} for name, text in BASELINES.items()
    ]
    for name, kind in ALGORITHMS.items():
        options = {field.name: field.default for field in fields(kind)}
        about = (kind.__doc__ or "").strip().split("\n")[0]
        rows.append({"name": name, "description": about, "options": options})
    return rows


def _datasets() -> list[dict[str, Any]]:
    from fedbench.data.datasets import dataset_table

    return [
        {
            "name": name,
            "description": " ".join(entry.description.split()),
            "source": entry.source.label,
            "license": entry.license,
        }
        for name, entry in dataset_table().items()
    ]


def _backends() -> list[dict[str, Any]]:
    from fedbench.generation.backend import BACKENDS

    return [{"name": name, "description": about} for name, about in BACKENDS.items()]


def _templates() -> list[dict[str, Any]]:
    from fedbench.data.templates import CHAT, TEMPLATES

    rows = [{"name": name, "description": repr(source)} for name, source in TEMPLATES.items()]
    return [*rows, {"name": CHAT, "description": "the chat template of the model's tokenizer"}]


def _presets() -> list[dict[str, Any]]:
    from fedbench.federated.presets import preset_table

    return [
        {"name": name, "description": " ".join(preset.description.split())}
        for name, preset in preset_table().items()
    ]


_ROWS = {
    "tasks": _tasks,
    "metrics": _metrics,
    "suites": _suites,
    "algorithms": _algorithms,
    "datasets": _datasets,
    "backends": _backends,
    "templates": _templates,
    "presets": _presets,
}

"""The plain renderings of a table: Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from fedbench.results import wording
from fedbench.results.table import Table


def render_markdown(table: Table, picture: str | None = None) -> str:
    """The leaderboard as a README: findings, tables, differences, how to reproduce.

    Args:
        table: what to show.
        picture: relative path of the curve's picture, if there is one.
    """
    parts = [f"# {_md(table.title)}"]
    if table.spec.description:
        parts.append(_md(table.spec.description))
    parts += [f"**{_md(sentence)}**" for sentence in wording.findings(table)]
    if picture:
        parts += [f"![Scores over federated rounds]({picture})", _md(wording.curve_caption(table))]
    for view in table.views:
        parts += [
            f"## {_md(view.title)}",
            _md_table(wording.view_head(view), wording.view_body(table, view)),
        ]
    parts.append("\n".join(f"- {_md(note)}" for note in wording.footnotes(table)))
    if table.differences:
        parts += ["## Differences", wording.difference_note(table)]
        parts.append(_md_table(wording.difference_head(table), wording.difference_matrix(table)))
    for run in table.runs:
        facts = [f"- {_md(label)}: {_md(text)}" for label, text in wording.run_facts(run)]
        notes = [f"- {_md(note)}" for note in wording.run_notes(run)]
        parts += [f"## What was run: {_md(run.run)}", "\n".join([*facts, *notes])]
        parts.append("How to reproduce:")
        parts.append(f"```\n{run.command.replace('```', '')}\n```")
        parts.append(_md(f"fedbench {run.fedbench}, configuration {run.run_hash}, {run.device}."))
    tasks = [f"- {_md(task)}: {_md(fact)}" for task, fact in table.tasks.items()]
    parts.append("\n".join(["Tasks:", "", *tasks]))
    return "\n\n".join(parts) + "\n"


def render_csv(table: Table) -> str:
    """The table, long form; absent values are empty."""
    rows = to_rows(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["method"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().replace("\r\n", "\n")


def render_latex(table: Table) -> str:
    r"""The tables for a paper, one ``tabular`` per view; needs ``\usepackage{booktabs}``."""
    blocks = []
    for view in table.views:
        head = ["method", *(column.title for column in view.columns)]
        lines = [
            f"% {_tex(view.title)}".replace("\n", " "),
            rf"\begin{{tabular}}{{l{'r' * len(view.columns)}}}",
            r"\toprule",
            " & ".join(_tex(text) for text in head) + r" \\",
            r"\midrule",
        ]
        for row in table.rows:
            cells = [wording.cell_text(row.cells[column], column) for column in view.columns]
            lines.append(" & ".join(_tex(text) for text in [row.label, *cells]) + r" \\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    notes = "\n".join(f"% {note}" for note in wording.footnotes(table))
    return "\n\n".join([notes.replace("\r", " "), *blocks]) + "\n"


def render_json(table: Table) -> list[dict[str, Any]]:
    """The table, long form, as plain JSON values."""
    return to_rows(table)


def to_rows(table: Table) -> list[dict[str, Any]]:
    """One dictionary per row and column; what `render_csv` and `render_json` are made of."""
    return [
        {
            "method": row.method,
            "row": row.label,
            "model_kind": row.kind,
            "task": column.name,
            "metric": column.metric,
            "headline": column.headline,
            "value": _rounded(cell.value),
            "ci_low": _rounded(cell.low),
            "ci_high": _rounded(cell.high),
            "ci_method": cell.ci_method,
            "confidence": table.spec.confidence if cell.low is not None else None,
            "num_seeds": len(cell.by_seed) or None,
            "sd_seeds": _rounded(cell.sd_seeds),
            "worst_client": _rounded(cell.worst_client),
            "best_client": _rounded(cell.best_client),
            "sd_clients": _rounded(cell.sd_clients),
            "num_examples": cell.num_examples,
            "num_unparsed": counts.num_unparsed,
            "num_failed": counts.num_failed,
            "num_answers": counts.num_answers,
            "train_examples_min": row.train_examples[0] if row.train_examples else None,
            "train_examples_max": row.train_examples[1] if row.train_examples else None,
            "bytes_communicated": row.bytes_communicated[1] if row.bytes_communicated else None,
            "note": cell.reason or cell.no_interval or None,
        }
        for row in table.rows
        for column in table.columns
        for cell in [row.cells[column]]
        for counts in [row.counted(table.spec.averages.get(column.name, (column.name,)))]
    ]


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [[_md(text) for text in head], rule, *([_md(text) for text in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Text that stays text: no HTML, no table cells, no lines of its own."""
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(mark, safe)
    return " ".join(text.split())


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "—": "---", "–": "--", "↓": r"$\downarrow$", "≤": r"$\leq$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

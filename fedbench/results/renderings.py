"""The plain renderings of a table: Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from fedbench.results import run_words, wording
from fedbench.results.beside import Beside, published_table
from fedbench.results.record import ModelKind, PrivacyLevel
from fedbench.results.settings import join_name, split_name
from fedbench.results.table import FEDERATED, Column, Row, Table, View


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
    parts += _md_published(table)
    for view in table.views if table.rows else []:
        parts += [
            f"## {_md(view.title)}",
            _md_table(wording.view_head(table, view), wording.view_body(table, view)),
        ]
    notes = wording.footnotes(table) if table.rows else table.spec.notes
    parts.append("\n".join(f"- {_md(note)}" for note in notes))
    if table.differences:
        parts += ["## Differences", wording.difference_note(table)]
        parts.append(_md_table(wording.difference_head(table), wording.difference_matrix(table)))
    for run in table.runs:
        facts = [f"- {_md(label)}: {_md(text)}" for label, text in run_words.run_facts(run)]
        notes = [f"- {_md(note)}" for note in run_words.run_notes(run)]
        parts += [f"## What was run: {_md(run.run)}", "\n".join([*facts, *notes])]
        parts.append("How to reproduce:")
        parts.append(f"```\n{run.command.replace('```', '')}\n```")
        parts.append(_md(f"fedbench {run.fedbench}, configuration {run.run_hash}, {run.device}."))
    if table.tasks:
        tasks = [f"- {_md(task)}: {_md(fact)}" for task, fact in table.tasks.items()]
        parts.append("\n".join(["Tasks:", "", *tasks]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _md_published(table: Table) -> list[str]:
    """The published numbers beside ours, with their sources."""
    beside = published_table(table)
    if beside is None:
        return []
    head = ["method", *(text for name in beside.columns for text in (f"{name}, published", "here"))]
    body = [[label, *(text for pair in pairs for text in pair)] for label, pairs in beside.rows]
    listed = [f"- {_md(text)}" for text in (*beside.sources, *beside.missing)]
    parts = ["## Published numbers", _md_table(head, body) if body else "", "\n".join(listed)]
    return parts if table.rows else [*parts, _md_code(wording.how_to_fill(table))]


def _md_code(text: str) -> str:
    """Text of which what stands between backticks stays as it is."""
    pieces = text.split("`")
    return "`".join(
        _md(piece, ends=True) if n % 2 == 0 else piece for n, piece in enumerate(pieces)
    )


def render_csv(table: Table) -> str:
    """The table, long form; absent values are empty."""
    rows = to_rows(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["method"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().replace("\r\n", "\n")


def render_latex(table: Table) -> str:
    r"""The tables for a paper, one ``tabular`` per view; needs ``\usepackage{booktabs}``.

    Rows stand in groups (references, trained without a federation, federated), the best federated
    number of each column in bold.
    """
    blocks = [_tex_view(table, view) for view in table.views] if table.rows else []
    beside = published_table(table)
    if beside is not None and beside.rows:
        blocks.append(_tex_published(beside))
    lines = wording.footnotes(table) if table.rows else table.spec.notes
    notes = "\n".join(f"% {' '.join(note.split())}" for note in lines)
    tables = "\n\n\\bigskip\n\n".join(blocks)
    return "\n\n".join(block for block in (notes, tables) if block) + "\n"


def _tex_view(table: Table, view: View) -> str:
    """One metric: a spanning heading, the columns below it, the rows in their groups."""
    width = len(view.columns)
    unit = f" ({view.columns[0].unit})" if view.columns[0].unit else ""
    lines = [
        rf"\begin{{tabular}}{{@{{}}l{'r' * width}@{{}}}}",
        r"\toprule",
        rf" & \multicolumn{{{width}}}{{c}}{{{_tex(view.title + unit)}}} \\",
        rf"\cmidrule(l){{2-{width + 1}}}",
        " & ".join(["Method", *(_tex(column.title) for column in view.columns)]) + r" \\",
    ]
    best = {column: _best(table, column) for column in view.columns}
    for kinds in _TEX_GROUPS:
        rows = [row for row in table.rows if row.kind in kinds]
        if rows:
            lines.append(r"\midrule")
        for row in rows:
            cells = [_tex_cell(row, column, best[column]) for column in view.columns]
            lines.append(" & ".join([_tex_name(row.label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _tex_name(label: str) -> str:
    name, setting = split_name(label)
    addition = _ADDITION.search(name)
    method = name.removesuffix(addition[0]) if addition else name
    printed = _PRINTED.get(method, method) + (addition[0] if addition else "")
    return _tex(join_name(printed, setting))


def _best(table: Table, column: Column) -> float | None:
    values = [
        value
        for row in table.rows
        if row.kind in FEDERATED and (value := row.cells[column].value) is not None
    ]
    pick = max if column.higher_is_better else min
    return pick(values) if len(values) > 1 else None


def _tex_cell(row: Row, column: Column, best: float | None) -> str:
    cell = row.cells[column]
    if cell.value is None:
        return _tex(wording.cell_text(cell, column))
    value, _, interval = wording.cell_text(cell, column).partition(" ")
    printed = _tex(value)
    if row.kind in FEDERATED and best is not None and cell.value == best:
        printed = rf"\textbf{{{printed}}}"
    return rf"{printed} {{\scriptsize {_tex(interval)}}}" if interval else printed


def _tex_published(beside: Beside) -> str:
    """Pairs of columns under each task: what was published, what we found."""
    width = len(beside.columns)
    spans = [rf"\multicolumn{{2}}{{c}}{{{_tex(name)}}}" for name in beside.columns]
    rules = [rf"\cmidrule(lr){{{2 + 2 * n}-{3 + 2 * n}}}" for n in range(width)]
    lines = [
        *(f"% {' '.join(source.split())}" for source in (*beside.sources, *beside.missing)),
        rf"\begin{{tabular}}{{@{{}}l{'rr' * width}@{{}}}}",
        r"\toprule",
        " & ".join(["", *spans]) + r" \\",
        " ".join(rules),
        " & ".join(["Method", *["published", "here"] * width]) + r" \\",
        r"\midrule",
    ]
    for label, pairs in beside.rows:
        texts = [
            text
            for printed, ours in pairs
            for text in (_LETTER.sub(r"\\textsuperscript{\1}", _tex(printed)), _tex(ours))
        ]
        lines.append(" & ".join([_tex(label), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def render_json(table: Table) -> str:
    """The table, long form: one JSON array, a row and column a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in to_rows(table))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def to_rows(table: Table) -> list[dict[str, Any]]:
    """One dictionary per row and column; what `render_csv` and `render_json` are made of."""
    return [
        {
            "method": split_name(row.method)[0],
            "row": row.label,
            "base_model": row.setting.model,
            "partition": row.setting.partition,
            "model_kind": row.kind,
            "task": column.name,
            "metric": column.metric,
            "headline": column.headline,
            "value": _rounded(cell.value),
            "ci_low": _rounded(cell.low),
            "ci_high": _rounded(cell.high),
            "ci_method": cell.ci_method,
            "confidence": table.spec.confidence if cell.low is not None else None,
            "rank_first": rank.first if rank and column == table.primary else None,
            "rank_last": rank.last if rank and column == table.primary else None,
            "mean_rank": _rounded(mean.value) if mean and column == table.primary else None,
            "mean_rank_low": _rounded(mean.low) if mean and column == table.primary else None,
            "mean_rank_high": _rounded(mean.high) if mean and column == table.primary else None,
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
            **_privacy_fields(row, table.privacy_levels),
            "note": cell.reason or cell.no_interval or None,
        }
        for row in table.rows
        for rank, mean in [(table.ranks.get(row.label), table.mean_ranks.get(row.label))]
        for column in table.columns
        for cell in [row.cells[column]]
        for counts in [row.counted(table.spec.averages.get(column.name, (column.name,)))]
    ]


def _privacy_fields(row: Row, levels: Sequence[PrivacyLevel]) -> dict[str, Any]:
    """``epsilon``, ``delta`` of clients; ``example_epsilon``, ``example_delta`` of their rows."""
    fields: dict[str, Any] = {}
    for level in levels:
        spent = next((one for one in row.privacy if one.level == level), None)
        of = "example_" if level == "example" else ""
        fields |= {
            f"{of}epsilon": spent and _rounded(spent.epsilon),
            f"{of}delta": spent and spent.delta,
            f"{of}privacy_simulated": spent and spent.simulated,
        }
    return fields


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [[_md(text) for text in head], rule, *([_md(text) for text in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str, *, ends: bool = False) -> str:
    """Text that stays text: no HTML, no links or pictures, no table cells, no lines of its own.

    Args:
        text: any.
        ends: whether white space at its ends stays.
    """
    for mark, safe in _MARKDOWN:
        text = text.replace(mark, safe)
    plain = " ".join(text.split())
    if ends and plain:
        return " " * text[0].isspace() + plain + " " * text[-1].isspace()
    return plain


_MARKDOWN = (
    ("\\", "\\\\"),  # the first, for the others bring backslashes
    ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_"), ("](", "]\\("),
)  # fmt: skip
_LETTER = re.compile(r" \((\w)\)$")
"""Of a source, behind a published number."""
_ADDITION = re.compile(r"(, mean (local|client))?( \([^()]*\))?$")
"""To a method's name: of whose models a row is the mean, and by which rule they were chosen."""
_TEX_GROUPS: tuple[tuple[ModelKind, ...], ...] = (
    ("reference", "base"), ("local", "central"), FEDERATED,
)  # fmt: skip
_PRINTED = {
    "base": "Base model", "mean local": "Local, mean", "centralised": "Centralised",
    "majority": "Majority class", "tfidf": "TF-IDF", "fedavg": "FedAvg", "fedprox": "FedProx",
    "scaffold": "SCAFFOLD", "fedavgm": "FedAvgM", "fedadagrad": "FedAdagrad",
    "fedyogi": "FedYogi", "fedadam": "FedAdam", "feddyn": "FedDyn", "fedit": "FedIT",
    "ffa_lora": "FFA-LoRA", "flora": "FLoRA", "flexlora": "FlexLoRA", "fedex_lora": "FedEx-LoRA",
    "fedsa_lora": "FedSA-LoRA", "rolora": "RoLoRA", "krum": "Krum", "median": "Median",
    "trimmed_mean": "Trimmed mean",
}  # fmt: skip
"""As the methods' papers print them."""
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "·": r"$\cdot$", "×": r"$\times$", "±": r"$\pm$",
    "–": "--", "—": "---", "↓": r"$\downarrow$", "≤": r"$\leq$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

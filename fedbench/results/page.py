"""What people read of a leaderboard: one HTML page, a README, tables as CSV, LaTeX and JSON.

The page is a single file without any request to elsewhere. Everything that a run, a model or a
data set named itself is escaped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.results.leaderboard import (
    FEDERATED,
    Cell,
    ClientScore,
    Column,
    LeaderboardSpec,
    MethodDifference,
    Row,
    Table,
    View,
    build,
    read_results,
)
from fedbench.results.record import RunRecord, write_atomically

TEMPLATE = "page.html.jinja"
PICTURE = "curve.svg"
FEW_CLIENTS = 12
"""Up to this many client models are listed without a click."""

FACTS = {
    "data": "Private data",
    "public_text": "Public text",
    "model": "Model",
    "partition": "Split over clients",
    "federation": "Federation",
    "budgets": "Budgets",
    "training_rows": "Training rows",
    "dropped_rows": "Training rows dropped",
    "prompts_cut": "Prompts cut to fit",
}
"""Facts of a run in the order of the page; others follow under their own names."""
_SHOWN_ELSEWHERE = ("clients", "notes")


def report(results_dirs: Sequence[Path], spec: LeaderboardSpec, output: Path) -> Path:
    """Build the table of some results and write every rendering of it.

    Args:
        results_dirs: directories with ``scores.jsonl``; ``run.json`` and ``samples/`` if kept.
        spec: what to show.
        output: directory to write into.

    Returns:
        The path of the HTML page.

    Raises:
        RecordError: a result is missing, damaged or contradicts another.
        OutputError: the directory cannot be written.
    """
    return write_report(output, build(spec, [read_results(path) for path in results_dirs]))


def write_report(directory: Path, table: Table) -> Path:
    """Write index.html, README.md, table.csv, table.tex and, where there is one, curve.svg.

    Returns:
        The path of the HTML page.

    Raises:
        OutputError: the directory cannot be written.
    """
    from fedbench.results import plot

    panels = plot.panels(table)
    if panels:
        picture = plot.standalone(plot.curve_figure(panels))
        write_atomically(directory / PICTURE, picture.encode())
    markdown = render_markdown(table, PICTURE if panels else None)
    write_atomically(directory / "README.md", markdown.encode())
    write_atomically(directory / "table.csv", render_csv(table).encode())
    write_atomically(directory / "table.tex", render_latex(table).encode())
    return write_atomically(directory / "index.html", render_html(table).encode())


# The page.


@dataclass(frozen=True)
class _HtmlCell:
    """A cell with where its interval lies within the range of its column, in percent."""

    text: str
    note: str
    sort: float | None
    low: float | None = None
    at: float | None = None
    high: float | None = None


def render_html(table: Table) -> str:
    """The leaderboard as one self-contained HTML page."""
    import jinja2
    from markupsafe import Markup

    from fedbench.results import plot

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    panels, rows, changes = plot.panels(table), plot.row_dots(table), plot.difference_dots(table)
    primary = table.primary
    return (
        environment.get_template(TEMPLATE).render(
            table=table,
            findings=findings(table),
            runs=[(run, run_facts(run), run_notes(run)) for run in table.runs],
            curve=Markup(plot.curve_figure(panels)) if panels else None,
            curve_caption=_curve_caption(table),
            rows_figure=Markup(plot.forest_figure(rows, primary, "rows")) if rows else None,
            changes_figure=Markup(plot.forest_figure(changes, primary, "changes", change=True))
            if changes
            else None,
            views=[(view, _view_head(view), _html_body(table, view)) for view in table.views],
            footnotes=footnotes(table),
            difference_head=["difference", *(_column_head(c) for c in _difference_columns(table))],
            differences=difference_matrix(table),
            difference_note=difference_note(table),
            clients=_client_table(table),
            few_clients=FEW_CLIENTS,
        )
        + "\n"
    )


def run_facts(run: RunRecord) -> list[tuple[str, str]]:
    """What was run, as label and text: recorded facts first, else what the configuration says."""
    known = _config_facts(run.config or {}) | {
        key: fact for key, fact in run.facts.items() if key not in _SHOWN_ELSEWHERE
    }
    for key in ("data", "model", "partition"):
        known.setdefault(key, "— (not recorded)")
    order = [*(key for key in FACTS if key in known), *(key for key in known if key not in FACTS)]
    return [
        (FACTS.get(key, key.replace("_", " ").capitalize()), _words(known[key])) for key in order
    ]


def run_notes(run: RunRecord) -> list[str]:
    """Sentences that a reader must know, from the run file and from the run itself."""
    config_notes = (run.config or {}).get("notes") or []
    return list(dict.fromkeys([*map(str, config_notes), *map(str, run.facts.get("notes") or [])]))


def _config_facts(config: Mapping[str, Any]) -> dict[str, str]:
    """What can be read off a resolved run file."""
    facts = {}
    model, data = config.get("model") or {}, config.get("data") or {}
    if model.get("pretrain"):
        pretrain = model["pretrain"]
        facts["public_text"] = _words(pretrain.get("text") or "— (not recorded)")
        facts["model"] = (
            f"Llama pre-trained within the run: hidden {pretrain['hidden_size']}, "
            f"{pretrain['num_layers']} layers, {pretrain['steps']} steps of "
            f"{pretrain['batch_size']} sequences"
        )
    elif model.get("name"):
        facts["model"] = f"{model['name']} at revision {model.get('revision') or 'not pinned'}"
    if "model" in facts:
        lora = model.get("lora")
        facts["model"] += f"; LoRA of rank {lora['r']}" if lora else "; all weights trained"
    if data.get("partition"):
        rule = dict(data["partition"])
        options = ", ".join(f"{key} {_words(value)}" for key, value in rule.items() if key != "by")
        facts["partition"] = f"{rule.get('by')}{f' ({options})' if options else ''}"
    if config.get("federation"):
        federation = config["federation"]
        cohort = federation.get("clients_per_round") or federation["num_clients"]
        facts["federation"] = (
            f"{federation['num_clients']} clients, {cohort} in each of "
            f"{federation['rounds']} rounds"
        )
    if config.get("local"):
        local = config["local"]
        facts["budgets"] = (
            f"{local['max_steps']} steps of {local['batch_size']} samples per client and round "
            f"({local['optimizer']}, learning rate {local['learning_rate']:g})"
        )
    return facts


def _words(fact: Any) -> str:
    """A fact of any shape as text."""
    if fact is None:
        return "—"
    if isinstance(fact, Mapping):
        return ", ".join(f"{key}: {_words(value)}" for key, value in fact.items()) or "none"
    if isinstance(fact, (list, tuple)):
        return ", ".join(_words(value) for value in fact) or "none"
    if isinstance(fact, (int, float)) and not isinstance(fact, bool):
        return f"{fact:,}"
    return str(fact)


def _curve_caption(table: Table) -> str:
    several = len(table.seeds) > 1
    band = "the range over seeds" if several else f"the {_level(table)} interval"
    text = f"Line: {'mean over seeds' if several else 'one seed'}; band: {band}. Horizontal lines: "
    text += "models without rounds."
    if table.clients:
        text += (
            " The grey band reaches from the worst to the best local client; the best one is "
            "chosen on these same items, so it flatters."
        )
    return text


def _html_body(table: Table, view: View) -> list[tuple[str, list[_HtmlCell], list[str]]]:
    """Per row: label, scores, and the plain columns after them."""
    plain = {row[0]: row[1 + len(view.columns) :] for row in _view_body(table, view)}
    ranges = {column: _extent(table, column) for column in view.columns}
    return [
        (
            row.label,
            [_html_cell(row.cells[column], column, ranges[column]) for column in view.columns],
            plain[row.label],
        )
        for row in table.rows
    ]


def _html_cell(cell: Cell, column: Column, extent: tuple[float, float]) -> _HtmlCell:
    low, high = extent
    if cell.value is None:
        return _HtmlCell(cell_text(cell, column), "", None)

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 1) if high > low else 50.0

    ends = (None, None) if cell.low is None or cell.high is None else (at(cell.low), at(cell.high))
    text, note = cell_text(cell, column), spread_text(cell, column)
    return _HtmlCell(text, note, cell.value, ends[0], at(cell.value), ends[1])


def _extent(table: Table, column: Column) -> tuple[float, float]:
    cells = [row.cells[column] for row in table.rows]
    ends = [end for cell in cells for end in (cell.low, cell.value, cell.high) if end is not None]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _client_table(table: Table) -> tuple[list[str], list[list[str]]]:
    """Every client's own model, and what data the client held."""
    columns = list(dict.fromkeys(c for score in table.clients for c in score.records))
    held = _clients_held(table.runs)
    rows = []
    for score in table.clients:
        facts = held.get((score.seed, score.client), {})
        rows.append(
            [
                score.method,
                "—" if score.seed is None else str(score.seed),
                str(score.client),
                _words(facts.get("num_train")),
                _words(facts.get("labels")),
                _words(score.train_examples),
                *(_client_text(score, column) for column in columns),
            ]
        )
    head = ["method", "seed", "client", "training rows", "their labels", "trained on"]
    return [*head, *(_column_head(column, "%") for column in columns)], rows


def _client_text(score: ClientScore, column: Column) -> str:
    record = score.records.get(column)
    if record is None:
        return "— (not scored)"
    if record.value is None:
        return f"— (withheld, {record.num_failed} failed)"
    return cell_text(Cell(record.value, record.ci_low, record.ci_high), column)


def _clients_held(runs: Iterable[RunRecord]) -> dict[tuple[int | None, int], Mapping[str, Any]]:
    """Facts of each client's data by seed and client."""
    held: dict[tuple[int | None, int], Mapping[str, Any]] = {}
    for run in runs:
        for seed, clients in (run.facts.get("clients") or {}).items():
            held |= {(int(seed), number): facts for number, facts in enumerate(clients)}
    return held


# Words and numbers, shared by every rendering.


def cell_text(cell: Cell, column: Column) -> str:
    """``71.2 [69.9, 72.5]``, or a dash and why."""
    if cell.value is None:
        return f"— ({cell.reason})"
    text = column.show(cell.value)
    if cell.low is not None and cell.high is not None:
        text += f" [{column.show(cell.low)}, {column.show(cell.high)}]"
    return text


def spread_text(cell: Cell, column: Column) -> str:
    """``sd 0.8; worst client 40.1; client sd 6.2``; empty where there is one model."""
    parts = []
    if cell.sd_seeds is not None:
        parts.append(f"sd {column.show(cell.sd_seeds)}")
    if cell.worst_client is not None:
        parts.append(f"worst client {column.show(cell.worst_client)}")
    if cell.sd_clients is not None:
        parts.append(f"client sd {column.show(cell.sd_clients)}")
    return "; ".join(parts)


def difference_text(difference: MethodDifference) -> str:
    """``+5.1 [+3.9, +6.4]``, or a dash and why."""
    column = difference.column
    if difference.value is None:
        return f"— ({difference.reason})"
    if difference.low is None:
        return f"{column.show_change(difference.value)} ({difference.reason})"
    ends = f"[{column.show_change(difference.low)}, {column.show_change(difference.high)}]"
    return f"{column.show_change(difference.value)} {ends}"


def is_clear(difference: MethodDifference, confidence: float) -> bool:
    """Whether the difference stands out among all those in its table (Holm)."""
    return difference.p_holm is not None and difference.p_holm <= 1 - confidence


def trained_on(row: Row) -> str:
    """``3,072``; ``96–1,024 each`` where the models of a row differ and are of one client each."""
    each = " each" if row.kind in ("local", "client") and row.train_examples else ""
    return _span(row.train_examples, lambda n: f"{n:,}") + each


def size(span: tuple[int, int] | None) -> str:
    """``12.5 MB``, in powers of 1000."""
    return _span(span, _bytes)


def share(count: int, total: int) -> str:
    """``12 (0.4 %)``."""
    return f"{count:,} ({count / total:.1%})".replace("%", " %") if count and total else f"{count}"


def _span(span: tuple[int, int] | None, show: Callable[[int], str]) -> str:
    if span is None:
        return "—"
    low, high = show(span[0]), show(span[1])
    return low if low == high else f"{low}–{high}"


def _bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"


def findings(table: Table) -> list[str]:
    """What the differences say about the primary column, one sentence per federated method.

    Nothing is chosen by its result: every federated method is spoken of, in the table's order.
    """
    column = table.primary
    sentences = []
    for row in table.rows:
        if row.kind not in FEDERATED:
            continue
        unit = " %" if column.percent else ""
        better = "" if column.higher_is_better else ", lower is better"
        what = f"{column.name} ({column.metric}{better})"
        cell = row.cells[column]
        if cell.value is None:
            sentences.append(f"{row.label} has no result on {what}: {cell.reason}.")
            continue
        own = [d for d in table.differences if d.method == row.label and d.column == column]
        clauses = [_clause(difference) for difference in own]
        text = f"On {what}, {row.label} reaches {column.show(cell.value)}{unit}"
        sentences.append(f"{text}: {'; '.join(clauses)}." if clauses else f"{text}.")
    return sentences


def _clause(difference: MethodDifference) -> str:
    column = difference.column
    points = " points" if column.percent else ""
    if difference.value is None or difference.low is None:
        return f"against {difference.other} {difference_text(difference)}"
    if difference.verdict == "unclear" or difference.high is None:
        ends = f"[{column.show_change(difference.low)}, {column.show_change(difference.high)}]"
        change = f"{column.show_change(difference.value)}{points} {ends}"
        return f"no clear difference from {difference.other} ({change})"
    side = "above" if difference.value > 0 else "below"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    distance = column.show(abs(difference.value))
    ends = f"[{column.show(low)}, {column.show(high)}]"
    return f"{distance}{points} {ends} {side} {difference.other}"


def footnotes(table: Table) -> list[str]:
    """How to read the table, and what it lacks."""
    seeds = ", ".join(str(seed) for seed in table.seeds)
    several = len(table.seeds) > 1
    spread = f"sd is the standard deviation over seeds {seeds}"
    if not several:
        spread = "with one seed they say nothing of how much training varies"
    notes = [
        f"In brackets: {_level(table)} intervals. They resample the items of each task and take "
        f"the trained models as given; {spread}."
    ]
    if any(row.kind in ("local", "client") for row in table.rows):
        notes.append(
            "mean local: every client's own model, trained alone, averaged over clients; worst "
            "client and the sd over clients are taken within a seed"
            + (" and averaged over seeds." if several else ".")
        )
    notes.append(
        "Unparsed answers were given and could not be read; they count as wrong. Failed ones were "
        "not obtained and are left out."
    )
    notes.append(
        "Trained on: samples that a model has learned from, repeats counted; for a federated model "
        "the sum over clients. Sent: bytes up and down, by all clients."
    )
    lacking = {
        cell.no_interval for row in table.rows for cell in row.cells.values() if cell.no_interval
    }
    notes += [f"A value without brackets has no interval: {reason}." for reason in sorted(lacking)]
    return [*notes, *table.spec.notes]


def _level(table: Table) -> str:
    return f"{100 * table.spec.confidence:g} %"


def difference_note(table: Table) -> str:
    """How to read the differences."""
    tested = sum(d.p_holm is not None for d in table.differences)
    return (
        "Both sides answered the same items, which are resampled together. Each interval stands by "
        f"itself; an asterisk marks p ≤ {1 - table.spec.confidence:.2g} after Holm's correction "
        f"for all {tested} differences."
    )


# Renderings.


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
            "num_unparsed": row.num_unparsed,
            "num_failed": row.num_failed,
            "num_answers": row.num_answers,
            "train_examples_min": row.train_examples[0] if row.train_examples else None,
            "train_examples_max": row.train_examples[1] if row.train_examples else None,
            "bytes_communicated": row.bytes_communicated[1] if row.bytes_communicated else None,
            "note": cell.reason or cell.no_interval or None,
        }
        for row in table.rows
        for column in table.columns
        for cell in [row.cells[column]]
    ]


def render_json(table: Table) -> list[dict[str, Any]]:
    """The table, long form, as plain JSON values."""
    return to_rows(table)


def render_csv(table: Table) -> str:
    """The table, long form; absent values are empty."""
    rows = to_rows(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["method"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().replace("\r\n", "\n")


def render_markdown(table: Table, picture: str | None = None) -> str:
    """The leaderboard as a README: findings, tables, differences, how to reproduce.

    Args:
        table: what to show.
        picture: relative path of the curve's picture, if there is one.
    """
    parts = [f"# {_md(table.title)}"]
    if table.spec.description:
        parts.append(_md(table.spec.description))
    parts += [f"**{_md(sentence)}**" for sentence in findings(table)]
    if picture:
        parts += [f"![Scores over federated rounds]({picture})", _md(_curve_caption(table))]
    for view in table.views:
        parts += [f"## {_md(view.title)}", _md_table(_view_head(view), _view_body(table, view))]
    parts.append("\n".join(f"- {_md(note)}" for note in footnotes(table)))
    if table.differences:
        columns = _difference_columns(table)
        head = ["difference", *(_column_head(column) for column in columns)]
        parts += ["## Differences", difference_note(table)]
        parts.append(_md_table(head, difference_matrix(table)))
    for run in table.runs:
        facts = [f"- {_md(label)}: {_md(text)}" for label, text in run_facts(run)]
        notes = [f"- {_md(note)}" for note in run_notes(run)]
        parts += [f"## What was run: {_md(run.run)}", "\n".join([*facts, *notes])]
        parts.append("How to reproduce:")
        parts.append(f"```\n{run.command.replace('```', '')}\n```")
        parts.append(_md(f"fedbench {run.fedbench}, configuration {run.run_hash}, {run.device}."))
    tasks = [f"- {_md(task)}: {_md(fact)}" for task, fact in table.tasks.items()]
    parts.append("\n".join(["Tasks:", "", *tasks]))
    return "\n\n".join(parts) + "\n"


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
            cells = [cell_text(row.cells[column], column) for column in view.columns]
            lines.append(" & ".join(_tex(text) for text in [row.label, *cells]) + r" \\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    notes = "\n".join(f"% {note}" for note in footnotes(table))
    return "\n\n".join([notes.replace("\r", " "), *blocks]) + "\n"


def difference_matrix(table: Table) -> list[list[str]]:
    """One line per pair of methods, one text per headline column."""
    columns = _difference_columns(table)
    lines: dict[tuple[str, str], dict[Column, str]] = {}
    for difference in table.differences:
        star = "*" if is_clear(difference, table.spec.confidence) else ""
        texts = lines.setdefault((difference.method, difference.other), {})
        texts[difference.column] = difference_text(difference) + star
    return [
        [f"{method} − {other}", *(texts.get(column, "—") for column in columns)]
        for (method, other), texts in lines.items()
    ]


def _difference_columns(table: Table) -> list[Column]:
    return list(dict.fromkeys(difference.column for difference in table.differences))


def _column_head(column: Column, unit: str = "points") -> str:
    return f"{column.title} ({column.metric}{f', {unit}' if column.percent else ''})"


def _view_head(view: View) -> list[str]:
    unit = " (%)" if view.columns[0].percent else ""
    names = [column.title + unit for column in view.columns]
    return ["method", *names, "trained on", "sent", "unparsed", "failed"]


def _view_body(table: Table, view: View) -> list[list[str]]:
    return [
        [
            row.label,
            *(_full_text(row.cells[column], column) for column in view.columns),
            trained_on(row),
            size(row.bytes_communicated),
            share(row.num_unparsed, row.num_answers),
            share(row.num_failed, row.num_answers),
        ]
        for row in table.rows
    ]


def _full_text(cell: Cell, column: Column) -> str:
    spread = spread_text(cell, column)
    return cell_text(cell, column) + (f"; {spread}" if spread else "")


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

"""The HTML page of a leaderboard, and the directory in which it and its siblings are written.

The page is a single file without any request to elsewhere: style, script, data and the charting
library (Observable Plot, ISC license) are inlined. Its tables need no script; the script sorts,
filters, draws, and opens the items where the page was made with them. Everything that a run, a
model or a data set named itself is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.results import run_words, wording
from fedbench.results.beside import published_table
from fedbench.results.leaderboard import build
from fedbench.results.page_data import as_script, filter_choices, page_data
from fedbench.results.record import RunRecord, why_withheld, write_atomically
from fedbench.results.renderings import (
    render_csv,
    render_json,
    render_latex,
    render_markdown,
)
from fedbench.results.samples import read_results
from fedbench.results.specification import LeaderboardSpec
from fedbench.results.table import FEDERATED, Cell, ClientScore, Column, Row, Table, View

HERE = Path(__file__).parent
TEMPLATE = "page.html.jinja"
LOCAL_PAGE = "items.html"
PICTURE = "curve.svg"
FEW_FINDINGS = 3
"""Up to this many federated rows are spoken of without a click."""
FEW_CLIENTS = 12
"""Up to this many client models are listed without a click."""


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
    """Write index.html, README.md, table.csv, .tex, .json and, where there is one, curve.svg.

    Returns:
        The path of the HTML page.

    Raises:
        OutputError: the directory cannot be written.
    """
    from fedbench.results import plot
    from fedbench.results.drawing import standalone

    panels = plot.panels(table)
    if panels:
        picture = standalone(plot.curve_figure(panels))
        write_atomically(directory / PICTURE, picture.encode())
    markdown = render_markdown(table, PICTURE if panels else None)
    write_atomically(directory / "README.md", markdown.encode())
    write_atomically(directory / "table.csv", render_csv(table).encode())
    write_atomically(directory / "table.tex", render_latex(table).encode())
    write_atomically(directory / "table.json", render_json(table).encode())
    return write_atomically(directory / "index.html", render_html(table).encode())


def write_local_page(directory: Path, table: Table, items: Mapping[str, Any]) -> Path:
    """Write ``items.html``, the page with the texts of items; not to be published.

    Raises:
        OutputError: the directory cannot be written.
    """
    return write_atomically(directory / LOCAL_PAGE, render_html(table, items).encode())


def render_html(table: Table, items: Mapping[str, Any] | None = None) -> str:
    """The leaderboard as one self-contained HTML page.

    Args:
        table: what to show.
        items: by task key what `fedbench.results.items.shown_items` gives; a page without them
            holds no text of an item.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=jinja2.select_autoescape(["jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    beside = published_table(table)
    # A page without a single result has nothing to draw.
    library = _read("observable_plot.min.js") if table.rows else ""
    return (
        environment.get_template(TEMPLATE).render(
            table=table,
            css=Markup(_read("page.css")),
            script=Markup(_read("page.js")),
            chart_library=Markup(library),
            data=Markup(as_script(page_data(table, items or {}))),
            has_items=bool(items),
            filters=filter_choices(table),
            findings=wording.findings(table),
            few_findings=FEW_FINDINGS,
            beside=beside,
            how_to_fill=wording.how_to_fill(table).split("`"),
            runs=[(run, run_words.run_facts(run), run_words.run_notes(run)) for run in table.runs],
            curve_caption=wording.curve_caption(table, clients=False),
            views=[_html_view(table, view) for view in table.views] if table.rows else [],
            heat=_heat_map(table),
            footnotes=wording.footnotes(table),
            difference_head=wording.difference_head(table),
            differences=wording.difference_matrix(table),
            difference_rows=_rows_of_differences(table),
            difference_note=wording.difference_note(table),
            clients=_client_table(table),
            few_clients=FEW_CLIENTS,
        )
        + "\n"
    )


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class _Head:
    """A heading, and the column of the table that it stands above, if any."""

    text: str
    column: int | None = None


@dataclass(frozen=True)
class _HtmlCell:
    """A cell with where its interval lies within the range of its column, in percent."""

    column: int
    text: str
    note: str
    sort: float | None
    low: float | None = None
    at: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _HtmlRow:
    """A row: its position in the table, its rank, its scores, the plain columns after them."""

    number: int
    label: str
    federated: bool
    cells: Sequence[_HtmlCell]
    ranks: Sequence[tuple[float | str, str]] = ()
    """By what to sort, and the text."""
    plain: Sequence[tuple[float | None, str]] = ()
    """Likewise; None: by the number that the text begins with."""


@dataclass(frozen=True)
class _HtmlView:
    """A view with its headings and rows."""

    title: str
    headline: bool
    head: Sequence[_Head]
    rows: Sequence[_HtmlRow]


def _html_view(table: Table, view: View) -> _HtmlView:
    ranked = wording.has_ranks(table, view) + wording.has_mean_ranks(table, view)
    head = wording.view_head(table, view)
    first = 1 + ranked
    numbers: list[int | None] = [None] * len(head)
    numbers[first : first + len(view.columns)] = [table.columns.index(c) for c in view.columns]
    ranges = {column: _extent(table, column) for column in view.columns}
    rows = []
    for number, (row, texts) in enumerate(
        zip(table.rows, wording.view_body(table, view), strict=True)
    ):
        rows.append(
            _HtmlRow(
                number,
                row.label,
                row.kind in FEDERATED,
                [_html_cell(table, row, column, ranges[column]) for column in view.columns],
                _ranks(table, row)[:ranked],
                list(zip(_plain(table, row), texts[first + len(view.columns) :], strict=True)),
            )
        )
    return _HtmlView(
        view.title, view.headline, [_Head(*pair) for pair in zip(head, numbers, strict=True)], rows
    )


def _ranks(table: Table, row: Row) -> list[tuple[float | str, str]]:
    """Rank and mean rank."""
    rank, mean = table.ranks.get(row.label), table.mean_ranks.get(row.label)
    return [
        (rank.first if rank else "", wording.rank_text(table, row)),
        (round(mean.value, 3) if mean else "", wording.mean_rank_text(table, row)),
    ]


def _plain(table: Table, row: Row) -> list[float | None]:
    """By what the columns after the scores are sorted: 2 GB are more than 10 MB."""
    sent = row.bytes_communicated[1] if row.bytes_communicated else None
    dearest = max((spent.epsilon for spent in row.privacy), default=None)
    return [None, sent, *([dearest] if table.privacy_levels else []), None, None]


@dataclass(frozen=True)
class _HeatMap:
    """Rows against the headline columns; a cell's share is how good it is within its column."""

    columns: Sequence[Any]
    rows: Sequence[_HtmlRow]


def _heat_map(table: Table) -> _HeatMap:
    shown = [column for column in table.columns if column.headline]
    if len(shown) < 2 or not table.rows:
        return _HeatMap((), ())
    heads = [
        {"number": table.columns.index(c), "text": c.title + (f" ({c.unit})" if c.unit else "")}
        for c in shown
    ]
    rows = [
        _HtmlRow(
            number,
            row.label,
            row.kind in FEDERATED,
            [_heat_cell(table, row, column) for column in shown],
        )
        for number, row in enumerate(table.rows)
    ]
    return _HeatMap(heads, rows)


def _heat_cell(table: Table, row: Row, column: Column) -> _HtmlCell:
    value = row.cells[column].value
    number = table.columns.index(column)
    if value is None:
        return _HtmlCell(number, "—", "", None)
    values = [v for other in table.rows if (v := other.cells[column].value) is not None]
    low, high = min(values), max(values)
    share = (value - low) / (high - low) if high > low else 0.0
    at = share if column.higher_is_better else 1 - share
    return _HtmlCell(number, column.show(value), "", value, at=round(at, 3))


def _rows_of_differences(table: Table) -> list[int]:
    """For each line of the differences, the position of its federated row."""
    number = {row.label: n for n, row in enumerate(table.rows)}
    pairs = dict.fromkeys((d.method, d.other) for d in table.differences)
    return [number[method] for method, _ in pairs]


def _html_cell(table: Table, row: Row, column: Column, extent: tuple[float, float]) -> _HtmlCell:
    cell, number = row.cells[column], table.columns.index(column)
    low, high = extent
    if cell.value is None:
        return _HtmlCell(number, wording.cell_text(cell, column), "", None)

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 1) if high > low else 50.0

    ends = (None, None) if cell.low is None or cell.high is None else (at(cell.low), at(cell.high))
    text, note = wording.cell_text(cell, column), wording.spread_text(cell, column)
    return _HtmlCell(number, text, note, cell.value, ends[0], at(cell.value), ends[1])


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
        run_hash = next(iter(score.records.values())).run_hash
        facts = held.get((run_hash, score.seed, score.client), {})
        rows.append(
            [
                score.method,
                "—" if score.seed is None else str(score.seed),
                str(score.client),
                run_words.fact_text(facts.get("num_train")),
                run_words.fact_text(facts.get("labels")),
                run_words.fact_text(score.train_examples),
                *(_client_text(score, column) for column in columns),
            ]
        )
    head = ["method", "seed", "client", "training rows", "their labels", "trained on"]
    return [*head, *(wording.column_head(column, "%") for column in columns)], rows


def _client_text(score: ClientScore, column: Column) -> str:
    record = score.records.get(column)
    if record is None:
        return "— (not scored)"
    if record.value is None:
        return f"— (withheld: {why_withheld(record)})"
    return wording.cell_text(Cell(record.value, record.ci_low, record.ci_high), column)


def _clients_held(
    runs: Iterable[RunRecord],
) -> dict[tuple[str, int | None, int], Mapping[str, Any]]:
    """Facts of each client's data by configuration, seed and client: every split has a client 0."""
    held: dict[tuple[str, int | None, int], Mapping[str, Any]] = {}
    for run in runs:
        for seed, clients in (run.facts.get("clients") or {}).items():
            held |= {
                (run.run_hash, int(seed), number): facts for number, facts in enumerate(clients)
            }
    return held

"""A table in words: its cells and columns, findings and footnotes.

Plain text, shared by every rendering; each escapes it in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedbench.results.record import PrivacyLevel, PrivacyRecord
from fedbench.results.resampling import FEW_UNITS
from fedbench.results.table import FEDERATED, Cell, Column, MethodDifference, Row, Table, View

_MEANS = {
    "local": "mean local: every client's own model, trained alone, averaged over clients",
    "client": "mean client: every client's own model of a federation that has no global one, "
    "averaged over clients",
}
_PROTECTED: dict[PrivacyLevel, str] = {
    "client": "Per client: whoever sees all that the server sent learns little more of what one "
    "client holds.",
    "example": "Per example: whoever sees all that clients sent learns little more of any one of "
    "their training rows.",
}


def findings(table: Table) -> list[str]:
    """What the differences say about the primary column, one sentence per federated method.

    Nothing is chosen by its result: every federated method is spoken of, in the table's order.
    """
    column = table.primary
    sentences = []
    for row in table.rows:
        if row.kind not in FEDERATED:
            continue
        unit = f" {column.unit}".rstrip()
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
    kinds = {row.kind for row in table.rows}
    means = [text for kind, text in _MEANS.items() if kind in kinds]
    if means:
        notes.append(
            f"{'; '.join(means)}; worst client and the sd over clients are taken within a seed"
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
    if table.privacy_levels:
        notes.append(privacy_note(table))
    if table.ranks:
        notes.append(rank_note(table))
    if table.mean_ranks:
        notes.append(mean_rank_note(table))
    lacking = {
        cell.no_interval for row in table.rows for cell in row.cells.values() if cell.no_interval
    }
    notes += [f"A value without brackets has no interval: {reason}." for reason in sorted(lacking)]
    return [*notes, *table.spec.notes]


def how_to_fill(table: Table) -> str:
    """What to do about a leaderboard without results; commands stand between backticks."""
    return (
        "There are no results of our own yet. "
        f"`fedbench train-and-eval leaderboards/{table.spec.name}/run.yaml` makes them, and "
        f"`fedbench leaderboard {table.spec.name} --add runs/{table.spec.name}` puts them here."
    )


def privacy_note(table: Table) -> str:
    """How to read what privacy cost."""
    text = (
        "Privacy: epsilon of the whole training, for the client and in the seed that it cost most. "
    )
    text += " ".join(_PROTECTED[level] for level in table.privacy_levels)
    if any(spent.simulated for row in table.rows for spent in row.privacy):
        text += (
            " Simulated: noise and draws came from the seed, so that epsilon is what secret ones "
            "would cost, and protects nobody here."
        )
    return text


def rank_note(table: Table) -> str:
    """How to read the ranks."""
    column = table.primary
    pairs = len(table.ranks) * (len(table.ranks) - 1) // 2
    counted = f"all {pairs} pairs of rows" if pairs > 1 else "the one pair of rows"
    return (
        f"Ranks are on {column.name} ({column.metric}): from 1 + the rows that are clearly better "
        "to all rows less those that are clearly worse, so that 2–4 is a tie. Clearly: p ≤ "
        f"{1 - table.spec.confidence:.2g} on the same items, after Holm's correction for "
        f"{counted}; the trained models are taken as given."
    )


def mean_rank_note(table: Table) -> str:
    """How to read the mean ranks."""
    return (
        f"Mean rank: a row's rank by its scores on {', '.join(table.primary.tasks)} as they are, 1 "
        f"the best of {len(table.mean_ranks)}, averaged over these tasks; the interval resamples "
        "their items."
    )


def difference_note(table: Table) -> str:
    """How to read the differences."""
    tested = sum(d.p_holm is not None for d in table.differences)
    return (
        "Both sides answered the same items, which are resampled together. Each interval stands by "
        f"itself; an asterisk marks p ≤ {1 - table.spec.confidence:.2g} after Holm's correction "
        f"for all {tested} differences, where p comes from a normal approximation: the difference "
        f"over the standard error of its resamples. On a task with fewer than "
        f"{FEW_UNITS} items or clusters, or where no resample differs, it comes from the test that "
        "belongs to the interval."
    )


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


def difference_head(table: Table) -> list[str]:
    """The headings of `difference_matrix`."""
    return ["difference", *(column_head(column) for column in _difference_columns(table))]


def column_head(column: Column, unit: str = "points") -> str:
    """``fpb (accuracy, points)``; `unit` is that of shares, other metrics have their own."""
    unit = unit if column.percent else column.unit
    return f"{column.title} ({column.metric}{f', {unit}' if unit else ''})"


def curve_caption(table: Table, *, clients: bool = True) -> str:
    """How to read the curves over rounds.

    Args:
        table: what is drawn.
        clients: whether the picture has the range of local clients.
    """
    several = len(table.seeds) > 1
    band = "the range over seeds" if several else f"the {_level(table)} interval"
    text = f"Line: {'mean over seeds' if several else 'one seed'}; band: {band}. Horizontal lines: "
    text += "models without rounds."
    if clients and any(row.kind == "local" for row in table.rows):
        text += (
            " The grey band reaches from the worst to the best local client; the best one is "
            "chosen on these same items, so it flatters."
        )
    return text


def has_ranks(table: Table, view: View) -> bool:
    """Whether the view shows the column by which rows are ranked."""
    return bool(table.ranks) and table.primary in view.columns


def rank_text(table: Table, row: Row) -> str:
    """``1``, or ``2–4`` where no test tells the rows apart."""
    rank = table.ranks.get(row.label)
    return "—" if rank is None else str(rank)


def has_mean_ranks(table: Table, view: View) -> bool:
    """Whether the view shows the average over whose tasks rows have a mean rank."""
    return bool(table.mean_ranks) and table.primary in view.columns


def mean_rank_text(table: Table, row: Row) -> str:
    """``2.3 [1.7, 3.0]``."""
    rank = table.mean_ranks.get(row.label)
    if rank is None:
        return "—"
    if rank.low is None or rank.high is None:
        return f"{rank.value:.1f}"
    return f"{rank.value:.1f} [{rank.low:.1f}, {rank.high:.1f}]"


def view_head(table: Table, view: View) -> list[str]:
    """The headings of `view_body`."""
    unit = f" ({view.columns[0].unit})" if view.columns[0].unit else ""
    names = [column.title + unit for column in view.columns]
    ranks = ["rank"] if has_ranks(table, view) else []
    ranks += ["mean rank"] if has_mean_ranks(table, view) else []
    cost = ["trained on", "sent", *(["privacy"] if table.privacy_levels else [])]
    return ["method", *ranks, *names, *cost, "unparsed", "failed"]


def view_body(table: Table, view: View) -> list[list[str]]:
    """One line per row: its label, its cells, and what it cost and lacked."""
    return [
        [
            row.label,
            *([rank_text(table, row)] if has_ranks(table, view) else []),
            *([mean_rank_text(table, row)] if has_mean_ranks(table, view) else []),
            *(_full_text(row.cells[column], column) for column in view.columns),
            trained_on(row),
            size(row.bytes_communicated),
            *([privacy_text(row.privacy)] if table.privacy_levels else []),
            share(counts.num_unparsed, counts.num_answers),
            share(counts.num_failed, counts.num_answers),
        ]
        for row in table.rows
        for counts in [row.counted(view.tasks)]
    ]


def cell_text(cell: Cell, column: Column) -> str:
    """``71.2 [69.9, 72.5]``, or a dash and why."""
    if cell.value is None:
        return f"— ({cell.reason})"
    if cell.low is None or cell.high is None:
        return column.show(cell.value)
    return column.show_all(cell.value, cell.low, cell.high)


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
    if difference.low is None or difference.high is None:
        return f"{column.show_change(difference.value)} ({difference.reason})"
    return column.show_all(difference.value, difference.low, difference.high, change=True)


def is_clear(difference: MethodDifference, confidence: float) -> bool:
    """Whether the difference stands out among all those in its table (Holm)."""
    return difference.p_holm is not None and difference.p_holm <= 1 - confidence


def trained_on(row: Row) -> str:
    """``3,072``; ``96–1,024 each`` where the models of a row differ and are of one client each."""
    each = " each" if row.kind in ("local", "client") and row.train_examples else ""
    return _span(row.train_examples, lambda n: f"{n:,}") + each


def privacy_text(privacy: Sequence[PrivacyRecord]) -> str:
    """``ε 3.9 per client (δ 1e-05)``; a dash where nothing was accounted for."""
    texts = [
        f"ε {spent.epsilon:.3g} per {spent.level} (δ {spent.delta:g}"
        f"{', simulated' if spent.simulated else ''})"
        for spent in privacy
    ]
    return "; ".join(texts) or "—"


def size(span: tuple[int, int] | None) -> str:
    """``12.5 MB``, in powers of 1000."""
    return _span(span, _bytes)


def share(count: int, total: int) -> str:
    """``12 (0.4 %)``."""
    return f"{count:,} ({count / total:.1%})".replace("%", " %") if count and total else f"{count}"


def _clause(difference: MethodDifference) -> str:
    column = difference.column
    unit = " points" if column.percent else f" {column.unit}".rstrip()
    if difference.value is None or difference.low is None or difference.high is None:
        return f"against {difference.other} {difference_text(difference)}"
    if difference.verdict == "unclear":
        change = column.show_all(difference.value, difference.low, difference.high, change=True)
        return f"no clear difference from {difference.other} ({change.replace(' ', f'{unit} ', 1)})"
    side = "above" if difference.value > 0 else "below"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    distance = column.show_all(abs(difference.value), low, high).replace(" ", f"{unit} ", 1)
    return f"{distance} {side} {difference.other}"


def _difference_columns(table: Table) -> list[Column]:
    return list(dict.fromkeys(difference.column for difference in table.differences))


def _full_text(cell: Cell, column: Column) -> str:
    spread = spread_text(cell, column)
    return cell_text(cell, column) + (f"; {spread}" if spread else "")


def _level(table: Table) -> str:
    return f"{100 * table.spec.confidence:g} %"


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

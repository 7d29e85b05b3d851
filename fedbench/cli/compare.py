"""``fedbench compare``: results side by side, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedbench.cli._figures import Scale
from fedbench.cli._output import json_option, print_json
from fedbench.cli._tables import Column, print_line, print_table

if TYPE_CHECKING:
    from fedbench.results.comparison import Comparison

CONFIDENCE = 0.95


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.argument("more", type=click.Path(path_type=Path), nargs=-1, metavar="[C]...")
@json_option
def command(a: Path, b: Path, more: tuple[Path, ...], as_json: bool) -> None:
    """Compare the scores in A with those in B, C and so on, on the items they share.

    Each is a results directory, a scores.jsonl, a baseline file, or what lm-eval wrote with
    --log_samples. Differences are against A, and positive where the other is better. For a verdict,
    and an exit code for CI, see `fedbench check`.
    """
    from fedbench.results.comparison import compare

    records = compare(a, b, *more, confidence=CONFIDENCE)
    if as_json:
        print_json(record.to_json() for record in records)
    elif more:
        _print_many(records, [a, b, *more])
    else:
        _print_two(records)


def _print_two(records: Sequence[Comparison]) -> None:
    from fedbench.results import verdicts

    columns = [
        Column("score", wraps=True),
        Column("model", wraps=True),
        Column("A", right=True),
        Column("B", right=True),
        Column("B better by", right=True),
        Column("A better  0  B better", optional=True),
        Column("items +/−", right=True, optional=True),
        Column("p", right=True),
        Column("detectable", right=True),
    ]
    print_table(
        columns,
        [
            [
                verdicts.score_name(record.task, record.variant, record.metric),
                record.model,
                verdicts.number(record.value_a, record.metric),
                verdicts.number(record.value_b, record.metric),
                _difference(record),
                _picture(record, records),
                _items(record),
                "–" if record.p_value is None else f"{record.p_value:.2g}",
                verdicts.number(record.smallest_detectable, record.metric),
            ]
            for record in records
        ],
    )
    _print_notes(records)
    print_line(
        "Shares in points, 95 % intervals; * differs, with p corrected for all rows (Holm); "
        "detectable: the difference that is found with probability 0.8.",
        "dim",
    )


def _print_many(records: Sequence[Comparison], results: Sequence[Path]) -> None:
    """A column for each result; below its score the difference to A, and its rank."""
    from fedbench.results import verdicts

    letters = [chr(ord("A") + n) if n < 26 else f"#{n + 1}" for n in range(len(results))]
    for letter, result in zip(letters, results, strict=True):
        print_line(f"{letter}  {result}")
    columns = [
        Column("score", wraps=True),
        Column("model", wraps=True),
        *(Column(letter, right=True) for letter in letters),
    ]
    scores: dict[tuple[str, str], list[Comparison]] = {}
    for record in records:
        name = verdicts.score_name(record.task, record.variant, record.metric)
        scores.setdefault((name, record.model.partition(" vs ")[0]), []).append(record)
    rows = []
    for (name, model), own in scores.items():
        first = own[0]
        ranks = first.ranks or {}
        cells = [_cell(verdicts.number(first.value_a, first.metric), "", ranks.get(first.result_a))]
        found = {r.result_b: r for r in own}  # a mean over seeds lacks results without that many
        cells += [
            _cell(verdicts.number(r.value_b, r.metric), _difference(r), ranks.get(r.result_b))
            if (r := found.get(str(result))) is not None
            else ""
            for result in results[1:]
        ]
        rows.append([name, model, *cells])
    print_table(columns, rows)
    _print_notes(records, several=True)
    print_line(
        "Below each score its difference to A and its rank. Shares in points, 95 % intervals; * "
        "differs, with p corrected for all rows (Holm). A rank such as 2–3 says that the data "
        "cannot tell which it is.",
        "dim",
    )


def _cell(value: str, difference: str, rank: str | None) -> str:
    place = f"rank {rank}" if rank else ""
    return "\n".join([value, difference, place])


def _difference(record: Comparison) -> str:
    from fedbench.results import verdicts

    text = verdicts.with_interval(record.delta, record.ci_low, record.ci_high, record.metric)
    clear = record.p_holm is not None and record.p_holm <= 1 - CONFIDENCE
    return f"{text}{'*' if clear else ' '}"


def _items(record: Comparison) -> str:
    if record.num_better is None:
        return "–"
    return f"{record.num_better:,}/{record.num_worse:,}"


def _picture(record: Comparison, records: Sequence[Comparison]) -> str:
    """The interval, on the scale of all rows in the same unit."""
    from fedbench.results.differences import in_points

    alike = [
        r
        for r in records
        if r.metric == record.metric or (in_points(r.metric) and in_points(record.metric))
    ]
    scale = Scale.of([(r.ci_low, r.ci_high) for r in alike], 0.0)
    return scale.picture(record.delta, record.ci_low, record.ci_high, None)


def _print_notes(records: Sequence[Comparison], *, several: bool = False) -> None:
    from fedbench.results import verdicts

    for record in records:
        remarks = [record.note] if record.note else []
        if record.num_seeds:
            remarks.append(_over_seeds(record))
        if record.num_failed:
            remarks.append(f"{record.num_failed:,} items failed and are left out")
        if remarks:
            name = verdicts.score_name(record.task, record.variant, record.metric)
            # A score that a result lacks has a remark that names it.
            where = f", {record.result_b}" if several and record.delta is not None else ""
            print_line(f"{name}, {record.model}{where}: {'; '.join(remarks)}")


def _over_seeds(record: Comparison) -> str:
    """What of the uncertainty is the training's."""
    from fedbench.results import verdicts

    between = verdicts.number(record.sd_seeds, record.metric)
    items = verdicts.number(record.stderr_items, record.metric)
    return (
        f"the difference has a standard deviation of {between} over seeds and a standard error of "
        f"{items} from the items; the interval is for new seeds and new items"
    )

"""``fedbench check``: the verdict on a candidate, as table, JSON, JUnit, Markdown and exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedbench.cli._figures import Scale
from fedbench.cli._output import json_option, print_json, say
from fedbench.cli._tables import Column, print_line, print_table
from fedbench.cli.score import split_names

if TYPE_CHECKING:
    from fedbench.results.baseline import BaselineChange
    from fedbench.results.check import CheckRecord
    from fedbench.results.noise import NoiseRecord

STYLES = {"ok": "green", "regressed": "bold red", "inconclusive": "yellow", "missing": "magenta"}
EXPLAINED = 8
"""Rows that are explained one by one below the table, the worst first."""
_CHANGES = {"new": "green", "removed": "red", "changed": "yellow", "unchanged": "dim"}


@click.command("check")
@click.argument("candidate", type=click.Path(path_type=Path), required=False)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    required=True,
    help="What the candidate is held against: a results directory, or a committed baseline file.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="How much worse is tolerated, in units of the score: 0.01 is one point.  [default: 0.01]",
)
@click.option(
    "--margins",
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="The same task by task; --max-drop is then for the tasks that it does not name.",
)
@click.option(
    "--over-seeds",
    is_flag=True,
    help="Judge each method's mean over its seeds, not each seed's model by itself.",
)
@click.option("--strict", is_flag=True, help="Exit with 3 where anything is inconclusive.")
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    metavar="FILE.xml",
    help="Also write the verdicts as JUnit XML.",
)
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    metavar="FILE.md",
    help="Also write a summary that fits a pull-request comment.",
)
@click.option(
    "--update-baseline",
    is_flag=True,
    help="Make CANDIDATE the baseline: show what changes, and write the file --baseline.",
)
@click.option(
    "--record-noise",
    is_flag=True,
    help="Measure how much the baseline's checkpoint differs from itself, and keep it beside the "
    "baseline. CANDIDATE is its second scoring, or the checkpoint, which is then scored again.",
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="A,B",
    help="Of --record-noise: tasks by name, variant (fpb:fingpt) or file, or lm-eval's "
    "(mmlu:num_fewshot=5) [the baseline's].",
)
@click.option(
    "--base-model",
    metavar="PATH",
    help="Of --record-noise: base of adapters that do not lead to their own.",
)
@click.option(
    "--server",
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="Of --record-noise: a server to ask; without CANDIDATE its own model is scored.",
)
@json_option
def command(
    candidate: Path | None,
    baseline: Path,
    max_drop: float | None,
    margins: Path | None,
    over_seeds: bool,
    strict: bool,
    junit: Path | None,
    markdown: Path | None,
    update_baseline: bool,
    record_noise: bool,
    tasks: tuple[str, ...],
    base_model: str | None,
    server: Path | None,
    as_json: bool,
) -> int:
    """Say whether CANDIDATE got worse than a baseline, task by task.

    CANDIDATE is a results directory, a scores.jsonl, or what lm-eval wrote with --log_samples. Exit
    code 0: nothing got worse by more than the margin; 1: something did, or is missing; 3: --strict,
    and it cannot be told.
    """
    if update_baseline and record_noise:
        raise click.UsageError("give --update-baseline or --record-noise, not both")
    rescored = {"tasks": tuple(split_names(tasks)), "base_model": base_model, "server": server}
    if any(rescored.values()) and not record_noise:
        raise click.UsageError("--tasks, --base-model and --server are of --record-noise")
    judging = {
        "--max-drop": max_drop,
        "--margins": margins,
        "--over-seeds": over_seeds or None,
        "--strict": strict or None,
        "--junit": junit,
        "--markdown": markdown,
    }
    unused = [name for name, value in judging.items() if value is not None]
    if unused and (update_baseline or record_noise):
        doing = "--update-baseline" if update_baseline else "--record-noise"
        raise click.UsageError(f"{doing} judges nothing; leave {', '.join(unused)} out")
    if candidate is None and server is None:
        raise click.UsageError("Missing argument 'CANDIDATE'.")
    if record_noise:
        return _record_noise(candidate, baseline, rescored, as_json)
    assert candidate is not None  # a server is of --record-noise
    if update_baseline:
        return _update(candidate, baseline, as_json)
    from fedbench.results import reports
    from fedbench.results.check import check, exit_code
    from fedbench.results.record import write_atomically

    records = check(candidate, baseline, max_drop, margins=margins, over_seeds=over_seeds)
    if junit is not None:
        write_atomically(junit, reports.junit(records, strict).encode())
    if markdown is not None:
        text = reports.markdown(records, str(candidate), str(baseline))
        write_atomically(markdown, text.encode())
    if as_json:
        print_json(record.to_json() for record in records)
    else:
        _print(records)
    return exit_code(records, strict)


def _print(records: Sequence[CheckRecord]) -> None:
    from fedbench.results import verdicts

    several = len({record.model for record in records}) > 1
    columns = [
        Column("score", wraps=True),
        *([Column("model", wraps=True)] if several else []),
        Column("baseline", right=True),
        Column("candidate", right=True),
        Column("better by", right=True),
        Column("   worse    0   better", optional=True),
        Column("margin", right=True),
        Column("items", right=True),
        Column("verdict"),
    ]
    scales = _scales(records)
    rows = [
        [
            verdicts.score_name(record.task, record.variant, record.metric),
            *([record.model] if several else []),
            verdicts.number(record.baseline_value, record.metric),
            verdicts.number(record.value, record.metric),
            verdicts.with_interval(record.delta, record.ci_low, record.ci_high, record.metric),
            scales[record.metric].picture(
                record.delta, record.ci_low, record.ci_high, record.margin
            ),
            verdicts.tolerance(record.margin, record.metric),
            f"{record.num_items:,}",
            f"{verdicts.SYMBOLS[record.verdict]} {record.verdict}",
        ]
        for record in records
    ]
    styles = [STYLES[record.verdict] for record in records]
    print_table(columns, rows, styles, "" if several else records[0].model)
    looked_at = verdicts.worst_first(records)
    for record in looked_at[:EXPLAINED]:
        said = verdicts.remarks(record)
        if record.verdict != "ok" or said:
            name = verdicts.score_name(record.task, record.variant, record.metric)
            model = f", {record.model}" if several else ""
            text = f"{name}{model}: {'; '.join([verdicts.why(record), *said])}"
            print_line(f"{verdicts.SYMBOLS[record.verdict]} {text}", STYLES[record.verdict])
    silent = [record for record in looked_at[EXPLAINED:] if record.verdict != "ok"]
    if silent:
        print_line(f"… and {len(silent)} more; --json and --markdown explain each.", "dim")
    print_line(verdicts.tally(records), STYLES[looked_at[0].verdict])
    print_line(
        "Shares in points, 95 % intervals (━), margin (┊); ok holds per row, regressed over all "
        "rows (Holm).",
        "dim",
    )


def _scales(records: Sequence[CheckRecord]) -> dict[str, Scale]:
    """One scale for all shares, so that rows compare by eye, and one for each other unit."""
    from fedbench.results.differences import in_points

    scales = {}
    for metric in {record.metric for record in records}:
        alike = [
            r for r in records if r.metric == metric or (in_points(metric) and in_points(r.metric))
        ]
        ends = [(record.ci_low, record.ci_high) for record in alike]
        scales[metric] = Scale.of(ends, max(record.margin for record in alike))
    return scales


def _update(candidate: Path, baseline: Path, as_json: bool) -> int:
    from fedbench.results.baseline import update_baseline

    changes = update_baseline(candidate, baseline)
    if as_json:
        print_json(change.to_json() for change in changes)
    else:
        _print_changes(changes)
    changed = sum(change.change != "unchanged" for change in changes)
    say(f"baseline: {baseline} ({changed} of {len(changes)} scores changed); commit it")
    return 0


def _print_changes(changes: Sequence[BaselineChange]) -> None:
    from fedbench.results import verdicts

    columns = [
        Column("score", wraps=True),
        Column("model", wraps=True),
        Column("before", right=True),
        Column("after", right=True),
        Column("change"),
        Column("", wraps=True),
    ]
    rows = [
        [
            verdicts.score_name(change.task, change.variant, change.metric),
            change.model,
            verdicts.number(change.before, change.metric),
            verdicts.number(change.after, change.metric),
            change.change,
            change.note or "",
        ]
        for change in changes
    ]
    print_table(columns, rows, [_CHANGES[change.change] for change in changes])


def _record_noise(
    candidate: Path | None, baseline: Path, rescored: Mapping[str, Any], as_json: bool
) -> int:
    from fedbench.results.noise import measure_noise, write_noise

    if candidate is None or _is_checkpoint(candidate):
        second = _score_again(candidate, baseline, rescored)
    elif any(rescored.values()):
        raise click.UsageError(
            f"{candidate} holds scores, which are compared as they are; --tasks, --base-model and "
            "--server are of a checkpoint"
        )
    elif candidate.resolve() == baseline.resolve():
        raise click.UsageError(
            f"{candidate} is the baseline itself, which differs from itself in nothing; give the "
            "checkpoint, or a second scoring of it"
        )
    else:
        second = candidate
    records = measure_noise(baseline, second)
    file = write_noise(baseline, records)
    if as_json:
        print_json(record.to_json() for record in records)
    else:
        _print_noise(records)
    say(f"noise: {file}")
    return 0


def _score_again(candidate: Path | None, baseline: Path, rescored: Mapping[str, Any]) -> Path:
    from fedbench.cli._progress import progress_bars
    from fedbench.repeating import score_again

    line = "fedbench " + " ".join(sys.argv[1:])
    with progress_bars() as progress:
        return score_again(candidate, baseline, **rescored, progress=progress, command=line)


def _is_checkpoint(path: Path) -> bool:
    """A directory with weights and without scores."""
    marks = ("adapter_config.json", "config.json", "run.yaml")
    scored = any((path / name).is_file() for name in ("scores.jsonl", "scores.jsonl.gz"))
    return not scored and any((path / name).is_file() for name in marks)


def _print_noise(records: Sequence[NoiseRecord]) -> None:
    from fedbench.results import verdicts

    columns = [
        Column("score", wraps=True),
        Column("model", wraps=True),
        Column("items", right=True),
        Column("flipped", right=True),
        Column("difference", right=True),
        Column("floor", right=True),
    ]
    rows = [
        [
            verdicts.score_name(record.task, record.variant, record.metric),
            record.model,
            f"{record.num_items:,}",
            "–" if record.num_flipped is None else f"{record.num_flipped:,}",
            verdicts.change(record.delta, record.metric),
            verdicts.number(record.floor, record.metric),
        ]
        for record in records
    ]
    print_table(columns, rows)

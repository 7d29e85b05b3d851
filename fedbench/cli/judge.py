"""``fedbench judge``: have a model judge answers to open-ended tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedbench.cli._given import given_parameters
from fedbench.cli._output import json_option, number, print_json, print_scores, say
from fedbench.cli._progress import progress_bars

if TYPE_CHECKING:
    from fedbench.judging.command import Judged
    from fedbench.judging.estimate import Estimate
    from fedbench.results.record import ScoreRecord

_ONLY_OF_IMPORT = {"parser", "answers"}
_OF_IMPORT = _ONLY_OF_IMPORT | {
    "imported",
    "task",
    "labels",
    "length_control",
    "output",
    "as_json",
}


@click.command("judge")
@click.argument("targets", nargs=-1, type=click.Path(path_type=Path), metavar="RUN_OR_ANSWERS...")
@click.option("--rubric", metavar="NAME|FILE", help="How answers are judged [the task's own].")
@click.option("--task", metavar="NAME", help="Which task is answered [as the rubric is called].")
@click.option(
    "--judge",
    metavar="MODEL|FILE.yaml",
    help="A model's name on a server, a model directory, or a file that describes a judge.",
)
@click.option("--base-url", metavar="URL", help="The server that has the judge.")
@click.option(
    "--api-key-variable", metavar="NAME", help="Environment variable that holds the server's key."
)
@click.option(
    "--backend",
    type=click.Choice(["transformers", "vllm"]),
    help="What asks a model directory [transformers].",
)
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Requests at once.")
@click.option(
    "--requests-per-minute", type=click.FloatRange(min=0, min_open=True), metavar="N",
    help="No more than these.",
)  # fmt: skip
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), metavar="USD",
    help="Dollars that may be spent, and not a cent more.",
)  # fmt: skip
@click.option("--prices", metavar="FILE.yaml", help="A table of prices [fedbench's].")
@click.option("--temperature", type=float, help="Of the judge [the rubric's].")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of a reply [the rubric's].")
@click.option("--seed", type=int, help="Of the judge.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=1, show_default=True,
    help="How often the judge is asked the same.",
)  # fmt: skip
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="RUN_OR_ANSWERS",
    help="Answers of one model to compare with [the task's own].",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="FastChat's judge_prompts.jsonl, where no mirror holds it.",
)
@click.option(
    "--length-control",
    metavar="FILE|hub",
    help="AlpacaEval's df_gamed.csv, for its length-controlled win rate.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N items.")
@click.option("--no-constrain", is_flag=True, help="Do not hold replies to the rubric's form.")
@click.option("--dry-run", is_flag=True, help="Say what would be asked and what it would cost.")
@click.option(
    "--import",
    "imported",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Score judgments that exist: FastChat's, or AlpacaEval's annotations.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="People's labels of the same answers, to compare the judge with.",
)
@click.option(
    "--parser",
    type=click.Choice(["fastchat", "fedbench"]),
    help="Of --import: read the replies again [the file's own scores].",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of --import: the answers that Vicuna's reviews are of, to know whose they are.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Results directory.")
@json_option
def command(
    targets: tuple[Path, ...],
    judge: str | None,
    imported: tuple[Path, ...],
    parser: str | None,
    labels: Path | None,
    answers: Path | None,
    length_control: str | None,
    rubric: str | None,
    task: str | None,
    baseline: Path | None,
    prompts: Path | None,
    limit: int | None,
    repeats: int,
    dry_run: bool,
    no_constrain: bool,
    output: Path | None,
    as_json: bool,
    **of_judge: Any,
) -> None:
    """Judge the answers of a scored run, or of files that other tools wrote.

    \b
    fedbench judge scores/demo --rubric mt_bench --judge gpt-4o --base-url https://api.openai.com/v1
    fedbench judge vicuna-7b.jsonl --rubric mt_bench-fedbench --judge models/prometheus --dry-run
    fedbench judge --import gpt-4_single.jsonl
    """  # noqa: D301 - click looks for the character, which a raw string would not hold
    _refuse_unheeded(to_import=bool(imported))
    if imported:
        _import(
            imported,
            as_json,
            task=task,
            parser=parser,
            labels=labels,
            answers=answers,
            length_control=length_control,
            output=output,
        )
        return
    if not targets:
        raise click.UsageError("name a results directory, or files of answers")
    if judge is None:
        raise click.UsageError("name the judge with --judge")
    from fedbench.judging.command import estimate_judging, judge_answers
    from fedbench.judging.opening import judge_config

    config = judge_config(judge, constrain=False if no_constrain else None, **of_judge)
    options: dict[str, Any] = {
        "rubric": rubric,
        "task": task,
        "baseline": baseline,
        "prompts": prompts,
        "length_control": length_control,
        "limit": limit,
        "repeats": repeats,
    }
    if dry_run:
        cases = estimate_judging(targets, config, **options)
        rows = [(case.answers.task.key, case.rubric.name, estimated) for case, estimated in cases]
        _print_estimates(rows, as_json)
        return
    with progress_bars() as progress:
        judged = judge_answers(
            targets,
            config,
            output=output,
            labels=labels,
            progress=progress,
            command="fedbench " + " ".join(sys.argv[1:]),
            **options,
        )
    _print_judged(judged, as_json)


def _refuse_unheeded(to_import: bool) -> None:
    """Refuse an option that this call would pass over.

    Raises:
        UsageError: it asks a judge and judgments are imported, or the other way round.
    """
    for name, shown in given_parameters().items():
        if to_import and name not in _OF_IMPORT:
            raise click.UsageError(
                f"--import takes judgments that exist, and {shown} is about asking a judge; leave "
                "one of them out"
            )
        if not to_import and name in _ONLY_OF_IMPORT:
            raise click.UsageError(
                f"{shown} is of judgments that exist; name them with --import, or leave it out"
            )


def _print_estimates(rows: Sequence[tuple[str, str, Estimate]], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json({"task": task, "rubric": rubric, **asdict(one)} for task, rubric, one in rows)
        return
    for task, rubric, one in rows:
        cost = (
            "price not known"
            if one.dollars is None
            else f"about {one.dollars:.2f} dollars, at most {one.most_dollars:.2f}"
        )
        click.echo(
            f"{task} by {rubric}: {one.num_calls:,} judgments, {one.num_stored:,} of them stored; "
            f"{one.num_left:,} to ask, about {one.prompt_tokens:,} prompt and "
            f"{one.completion_tokens:,} completion tokens (at most "
            f"{one.most_completion_tokens:,}), {cost}"
        )
        if one.num_too_long:
            click.echo(
                f"{task} by {rubric}: {one.num_too_long:,} more do not fit into the judge's "
                "context beside a reply of --max-tokens, and will fail"
            )


def _import(files: Sequence[Path], as_json: bool, **options: Any) -> None:
    from fedbench.judging.importing import import_judgments

    line = "fedbench " + " ".join(sys.argv[1:])
    _print_judged(import_judgments(files, command=line, **options), as_json)


def _print_judged(judged: Judged, as_json: bool) -> None:
    if as_json:
        print_json(record.to_json() for record in judged.scores)
    else:
        _print_scores(judged.scores)
    for about in judged.report:
        say(about)
    say(f"records: {judged.output}")


def _print_scores(scores: Sequence[ScoreRecord]) -> None:
    """Scores with intervals; of several models, turns and categories follow side by side."""
    scores = _told_apart(scores)
    if len({score.model for score in scores}) == 1:
        print_scores(scores)
        return
    print_scores([score for score in scores if score.group is None])
    groups: dict[tuple[str, str], list[ScoreRecord]] = {}
    for score in scores:
        if score.group is not None:
            groups.setdefault((score.task_key, score.metric), []).append(score)
    for (task, metric), own in groups.items():
        click.echo()
        _print_groups(f"{task} {metric}", own)


def _told_apart(scores: Sequence[ScoreRecord]) -> list[ScoreRecord]:
    """With opponent and judge in the models' names, where a task's scores are of several."""
    shown = list(scores)
    for field, word in (("judged_against", "against"), ("judge", "by")):
        known: dict[str, set[str | None]] = {}
        for score in shown:
            known.setdefault(score.task_key, set()).add(getattr(score, field))
        shown = [
            score.model_copy(update={"method": f"{score.method} {word} {getattr(score, field)}"})
            if len(known[score.task_key]) > 1 and getattr(score, field) is not None
            else score
            for score in shown
        ]
    return shown


def _print_groups(title: str, scores: Sequence[ScoreRecord]) -> None:
    """A row per turn or category, a column per model."""
    from rich.console import Console
    from rich.table import Table

    cells = {(score.group, score.model.label()): score for score in scores}
    models = list(dict.fromkeys(model for _, model in cells))
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    for model in models:
        table.add_column(model, justify="right")
    for group in dict.fromkeys(group for group, _ in cells):
        own = [cells.get((group, model)) for model in models]
        table.add_row(group, *(_cell(score) for score in own))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    console.print(table)


def _cell(score: ScoreRecord | None) -> str:
    if score is None:
        return "–"
    return "withheld" if score.value is None else number(score.value, score.metric)

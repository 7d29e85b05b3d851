"""``fedbench score``: score checkpoints, or answers that exist already."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fedbench.cli._given import given_parameters
from fedbench.cli._output import json_option, print_json, print_scores, say
from fedbench.cli._progress import progress_bars
from fedbench.cli._run_options import (
    needs_training_packages,
    ray_address_option,
    said,
    worker_gpus_option,
    workers_option,
)
from fedbench.cli._suites import audit, print_audit, runs_to_audit, split_suites

if TYPE_CHECKING:
    from fedbench.results.record import ScoreRecord

_OF_ANSWERS = {"answers", "tasks", "subset", "limit", "unsafe_code", "output", "as_json"}
"""Options that `--answers` heeds."""
_LONGEST_REASON = 300
"""So many characters are told of why an answer failed; the samples have all of it."""


@click.command("score")
@click.option(
    "--ckpt",
    multiple=True,
    metavar="PATH",
    help="Run directory, PEFT adapter, model directory or hub id; may be repeated.",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Score these answers instead of asking a model.",
)
@click.option(
    "--subset",
    type=click.Choice(["answered"]),
    help="Of --answers: leave items without an answer out instead of counting them as failed.",
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="A,B",
    help="Tasks by name, variant (fpb:fingpt) or file, or lm-eval's (mmlu:num_fewshot=5).",
)
@click.option(
    "--suite",
    metavar="A,B",
    help="Named sets of tasks; of a run directory also federation and privacy.",
)
@click.option(
    "--base-model", metavar="PATH", help="Base of adapters that do not lead to their own."
)
@click.option(
    "--template", metavar="NAME|FILE", help="How turns become text [the checkpoint's own]."
)
@click.option("--rounds", default="all", show_default=True, help="all, last, or every N.")
@click.option(
    "--backend", default="transformers", show_default=True, metavar="NAME", help="Who answers."
)
@click.option(
    "--engine",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the backend, such as batch_tokens=4096; may be repeated.",
)
@workers_option
@worker_gpus_option
@ray_address_option
@click.option(
    "--server",
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="A server to ask, of --backend openai; without --ckpt its own model is scored.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N items of each task."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of sampled answers.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--thinking",
    type=click.Choice(["on", "off"]),
    help="Whether a chat template asks for a thought first [as it does by itself].",
)
@click.option(
    "--log-samples",
    is_flag=True,
    help="Also write samples in lm-eval's shape, with the texts of items and answers.",
)
@click.option(
    "--judge",
    metavar="MODEL|FILE.yaml",
    help="Who judges open-ended tasks (docs/judge.md) [left to fedbench judge].",
)
@click.option("--judge-url", metavar="URL", help="The server that has the judge.")
@click.option(
    "--unsafe-code",
    is_flag=True,
    help="Run generated programs even where nothing isolates them (docs/sandbox.md).",
)
@click.option(
    "--skip-missing",
    is_flag=True,
    help="Leave tasks out whose data, tools or packages are missing, and say so.",
)
@click.option("--allow-inert", is_flag=True, help="Accept an adapter that changes nothing.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Results directory [scores/<checkpoint>].",
)
@json_option
def command(
    ckpt: tuple[str, ...],
    answers: Path | None,
    subset: Literal["answered"] | None,
    tasks: tuple[str, ...],
    suite: str | None,
    base_model: str | None,
    template: str | None,
    rounds: str,
    backend: str,
    engine: tuple[str, ...],
    workers: int | None,
    worker_gpus: float | None,
    ray_address: str | None,
    server: Path | None,
    limit: int | None,
    seed: int,
    dtype: str,
    device: str,
    thinking: str | None,
    log_samples: bool,
    judge: str | None,
    judge_url: str | None,
    unsafe_code: bool,
    skip_missing: bool,
    allow_inert: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Score checkpoints on tasks, or answers that exist already.

    \b
    fedbench score --ckpt runs/demo --suite demo,federation --rounds last
    fedbench score --ckpt my-adapter --base-model org/model --tasks fpb,fiqa_sa
    fedbench score --answers answers.jsonl --tasks fpb
    """  # noqa: D301 - click looks for the character, which a raw string would not hold
    from fedbench import scoring
    from fedbench.generation.opening import Engine
    from fedbench.judging.opening import judge_config
    from fedbench.schema import override

    names = split_names(tasks)
    suite, audits = split_suites(suite)
    if unsafe_code:
        os.environ["FEDBENCH_UNSAFE_CODE"] = "1"
    line = "fedbench " + " ".join(sys.argv[1:])
    records: list[ScoreRecord] = []
    audited: list[tuple[Path, str, list[ScoreRecord]]] = []
    if answers is not None:
        _refuse_unheeded()
        records = scoring.score_answer_file(
            answers, names, limit=limit, subset=subset, output=output, command=line
        )
        if records[0].num_failed:
            missing, items = records[0].num_failed, records[0].num_examples
            say(f"{missing:,} of {items:,} items have no answer; --subset answered scores the rest")
    else:
        if subset is not None:
            raise click.UsageError("--subset is of --answers; for fewer items give --limit")
        if judge_url is not None and judge is None:
            raise click.UsageError("--judge-url is where a judge is; name the judge with --judge")
        if backend != "openai":
            needs_training_packages("scoring a checkpoint")
        options: dict[str, Any] = {}
        for assignment in engine:
            override(options, assignment, "--engine")
        options |= said(workers=workers, worker_gpus=worker_gpus, ray_address=ray_address)
        runs = runs_to_audit(audits, ckpt)
        with progress_bars() as progress:
            if names or suite or not audits:
                records = scoring.score(
                    ckpt,
                    names,
                    suite=suite,
                    base_model=base_model,
                    template=template,
                    rounds=rounds,
                    engine=Engine(backend, options, server),
                    limit=limit,
                    seed=seed,
                    dtype=dtype,
                    device=device,
                    output=output,
                    skip_missing=skip_missing,
                    allow_inert=allow_inert,
                    thinking=None if thinking is None else thinking == "on",
                    log_samples=log_samples,
                    judge=judge_config(judge, base_url=judge_url) if judge else None,
                    progress=progress,
                    command=line,
                )
            for run in runs:
                place = output / run.name if output else run
                for name in audits:
                    audited.append((run, name, audit(run, name, place, progress, line)))
    if as_json:
        every = [*records, *(record for _, _, own in audited for record in own)]
        print_json(record.to_json() for record in every)
    else:
        if records:
            print_scores(records)
        for run, name, own in audited:
            print_audit(run, name, own)
    if output or records:
        place = output or Path("scores") / records[0].run
        if answers is None:
            for line in _why_failed(place, {one.task_key for one in records if one.num_failed}):
                say(line)
        _tell_the_rest(place, records)
        say(f"records: {place}")


def _refuse_unheeded() -> None:
    """Refuse what answers that exist have no use for: it would be passed over.

    Raises:
        UsageError: an option is of asking a model.
    """
    for name, flag in given_parameters().items():
        if name in _OF_ANSWERS:
            continue
        if name == "ckpt":
            raise click.UsageError("give --ckpt or --answers, not both")
        if name == "suite":
            raise click.UsageError("--answers are to one task: name it with --tasks, not --suite")
        raise click.UsageError(
            f"--answers takes answers that exist, and {flag} is about asking a model; leave one of "
            "them out"
        )


def _why_failed(place: Path, tasks: Collection[str]) -> Iterator[str]:
    """Per task and model the commonest reason of a failure, of which the table has the number."""
    from fedbench.results.samples import read_samples

    tables = read_samples(place) if tasks else {}
    for table in (table for key, table in tables.items() if key in tasks):
        for own in table.answers:
            for reason, times in Counter(own.errors.values()).most_common(1):
                said = " ".join(reason.split())
                if len(said) > _LONGEST_REASON:
                    said = f"{said[:_LONGEST_REASON]} ..."
                yield (
                    f"{table.task_key}: {times:,} of {len(own.errors):,} failures of "
                    f"{own.model.label()}: {said}"
                )


def _tell_the_rest(place: Path, records: Sequence[ScoreRecord]) -> None:
    """What the table does not show: the judge, what was left out or waits, where programs ran.

    Why something was left out has been told when it began, and is in the record.
    """
    from fedbench.judging.report import report_of
    from fedbench.results.record import read_run

    run = read_run(place)
    facts = run.facts if run else {}
    scored = {record.task_key for record in records}
    judged = {key: own for key, own in facts.get("judged", {}).items() if key in scored}
    for line in report_of(records, judged, facts.get("judge's usage")):
        say(line)
    if left_out := facts.get("left_out"):
        say(f"left out, {len(left_out)}: {', '.join(left_out)}; why: left_out in {place}/run.json")
    if waiting := facts.get("needs a judge"):
        say(f"answered but not judged, {len(waiting)}: {', '.join(waiting)} (docs/judge.md)")
    if cut := facts.get("prompts_cut"):
        say(f"{cut:,} prompts are longer than the model's context and lost their beginning")
    boxes = {record.backend.partition("sandbox=")[2] for record in records if record.backend}
    for box in sorted(boxes - {""}):
        said_of = "with your own rights, not isolated" if box == "process" else f"isolated by {box}"
        say(f"programs ran {said_of} (docs/sandbox.md)")


def split_names(tasks: tuple[str, ...]) -> list[str]:
    """Tasks between commas; ``x:a=1,b={c: 2, d: 3}`` is one, whose options commas part as well."""
    names: list[str] = []
    for piece in (piece.strip() for listed in tasks for piece in _between_commas(listed)):
        name, equals, _ = piece.partition("=")
        if equals and ":" not in name and names:
            names[-1] += f",{piece}"
        elif piece:
            names.append(piece)
    return names


def _between_commas(listed: str) -> Iterator[str]:
    """The parts of a text between the commas that no brackets enclose."""
    start = depth = 0
    for position, character in enumerate(listed):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            yield listed[start:position]
            start = position + 1
    yield listed[start:]

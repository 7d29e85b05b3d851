"""Judge answers: of a results directory, or of files that other tools wrote.

What a judge said is in the store that all commands share (`answers_file`): the same line again asks
for nothing, and a line that was interrupted asks for what is missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbench import __version__
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.asking import Progress
from fedbench.evaluation.catalogue import load_task, task_names
from fedbench.evaluation.task import Task
from fedbench.generation.store import AnswerStore
from fedbench.judging.agreement import OF_OTHER_ANSWERS, read_labels
from fedbench.judging.conversations import (
    OpenEndedAnswers,
    kept_tasks,
    read_answer_files,
    read_kept,
)
from fedbench.judging.estimate import Estimate, estimate
from fedbench.judging.judge import Judge
from fedbench.judging.judged import (
    Baseline,
    Case,
    baseline_from,
    case_of,
    facts_of,
    is_labelled,
    judge_case,
)
from fedbench.judging.length_control import get_length_control
from fedbench.judging.opening import JudgeConfig, open_judge
from fedbench.judging.protocols import length_control_of
from fedbench.judging.report import report_of
from fedbench.judging.results import records_of, table_of, write_judgments
from fedbench.judging.rubric import Rubric, get_rubric
from fedbench.provenance import provenance
from fedbench.resources import answers_file
from fedbench.results.claims import claim_scores
from fedbench.results.record import RunRecord, ScoreRecord, write_run, write_scores
from fedbench.results.samples import SampleTable, write_samples


@dataclass(frozen=True)
class Judged:
    """What judging gives."""

    scores: Sequence[ScoreRecord]
    output: Path
    facts: Mapping[str, Mapping[str, Any]]
    """By task key, as they stand in the run's record."""
    usage: Mapping[str, Any] = field(default_factory=dict)
    """What the judge's server counted: requests, tokens, dollars."""

    @property
    def report(self) -> list[str]:
        """What can be said beside the scores, a line each."""
        return report_of(self.scores, self.facts, self.usage)


def find_cases(
    targets: Sequence[Path],
    rubric: str | None = None,
    *,
    task: str | None = None,
    baseline: Path | None = None,
    prompts: Path | None = None,
    length_control: str | Path | None = None,
    limit: int | None = None,
    repeats: int = 1,
) -> list[Case]:
    """What there is to judge.

    Args:
        targets: one results directory, or files of answers to one task.
        rubric: name or YAML file; by default that of each task.
        task: name; by default the tasks of the directory, or the one that the rubric is of.
        baseline: answers to compare with, for rubrics of pairs; by default the task's own.
        prompts: FastChat's ``judge_prompts.jsonl``, where no mirror holds it.
        length_control: AlpacaEval's ``df_gamed.csv``, or ``hub``, for its length-controlled rate.
        limit: only the first items, of files.
        repeats: how often the judge is asked the same.

    Raises:
        FedbenchError: something is missing or does not fit.
    """
    own = get_rubric(rubric, prompts) if rubric is not None else None
    directories = [place for place in targets if place.is_dir()]
    if directories and len(targets) > 1:
        raise ConfigError(
            f"{directories[0]}: is a results directory; judge one at a time, or files only"
        )
    if directories:
        if limit is not None:
            raise ConfigError("--limit is of files of answers; a directory's are all judged")
        found = _of_directory(directories[0], task, rubric)
    else:
        found = [read_answer_files(targets, _task_for(task, rubric), limit)]
    control = get_length_control(length_control) if length_control is not None else None
    cases = []
    for answers in found:
        used = own or _rubric_of(answers.task, prompts)
        against = _given_baseline(baseline, answers) if baseline is not None else None
        cases.append(case_of(answers, used, baseline=against, control=control, repeats=repeats))
    return cases


def judge_answers(
    targets: Sequence[Path],
    config: JudgeConfig,
    *,
    output: Path | None = None,
    labels: Path | None = None,
    progress: Progress = lambda what, done, total: None,
    command: str = "",
    **options: Any,
) -> Judged:
    """Judge answers, and write scores, tables and judgments into a results directory.

    Args:
        targets: one results directory, or files of answers to one task.
        config: the judge.
        output: results directory; ``scores/<name>-<rubric>-<judge>`` by default.
        labels: a file of people's labels, to say how far the judge agrees with them.
        progress: told of each verdict.
        command: the command line, for the record.
        options: of `find_cases`.

    Raises:
        FedbenchError: something is missing, the judge cannot be asked, or the budget is exhausted;
            what the judge said is stored.
    """
    started = time.monotonic()
    known = read_labels(labels) if labels is not None else None
    cases = find_cases(targets, **options)
    if known is not None and not any(is_labelled(case, known) for case in cases):
        raise DataError(OF_OTHER_ANSWERS)  # found before anything is spent
    with contextlib.closing(open_judge(config)) as judge:
        place = output or _default_output(targets, cases, judge)
        run_hash = _claim(place, cases, judge)
        about = provenance()
        common = {"run": place.name, "run_hash": run_hash}
        common |= {name: about[name] for name in ("fedbench", "created")}
        tables, scores, facts = judge_cases(cases, judge, common, place, progress, labels)
        usage = usage_of(judge)
    for table in tables:
        write_samples(place, table)
    write_scores(place, scores)
    record = RunRecord(
        run=place.name,
        run_hash=run_hash,
        command=command,
        facts={"judged": facts, **({"usage": usage} if usage else {})},
        seconds={"judging": round(time.monotonic() - started, 1)},
        **about,
    )
    write_run(place, record)
    return Judged(scores, place, facts, usage)


def judge_cases(
    cases: Sequence[Case],
    judge: Judge,
    common: Mapping[str, Any],
    place: Path,
    progress: Progress = lambda what, done, total: None,
    labels: Path | None = None,
) -> tuple[list[SampleTable], list[ScoreRecord], dict[str, Any]]:
    """Ask the judge about every case; what it said is kept in the results directory too.

    Returns:
        Tables, records and facts for the run's record.
    """
    tables, scores, facts = [], [], {}
    with contextlib.closing(AnswerStore(answers_file())) as store:
        for case in cases:
            judged = judge_case(case, judge, store, progress)
            table = table_of(judged)
            tables.append(table)
            scores += list(records_of(judged, common))
            facts[table.task_key] = facts_of(judged, labels)
            write_judgments(place, judged)
    return tables, scores, facts


def estimate_judging(
    targets: Sequence[Path], config: JudgeConfig, **options: Any
) -> list[tuple[Case, Estimate]]:
    """What judging would ask and cost; nothing is asked of the judge.

    Raises:
        FedbenchError: as `judge_answers`.
    """
    cases = find_cases(targets, **options)
    with (
        contextlib.closing(open_judge(config, to_ask=False)) as judge,
        contextlib.closing(AnswerStore(answers_file())) as store,
    ):
        return [(case, estimate(case, judge, store, config)) for case in cases]


def usage_of(judge: Judge) -> dict[str, Any]:
    """What the judge's server counted; nothing of a judge in this process."""
    from fedbench.scoring import backend_facts

    return backend_facts(judge.backend)


def _rubric_of(task: Task, prompts: Path | None) -> Rubric:
    if task.rubric is None:
        raise ConfigError(f"task {task.key}: names no rubric; give one with --rubric")
    return get_rubric(task.rubric, prompts)


def _of_directory(place: Path, task: str | None, rubric: str | None) -> list[OpenEndedAnswers]:
    """All that a directory holds; with a benchmark's rubric, its answers to that benchmark."""
    kept = kept_tasks(place)
    if not kept:
        raise ConfigError(
            f"{place}: holds no answers to judge; score an open-ended task first (fedbench score "
            "--suite open_ended), or give files of answers"
        )
    meant = [key for key in kept if rubric and f"{rubric}-".startswith(f"{key.split(':')[0]}-")]
    wanted = [task] if task else meant or kept
    return [read_kept(place, _kept_task(place, name, kept)) for name in wanted]


def _kept_task(place: Path, name: str, kept: Sequence[str]) -> Task:
    """A task that a directory holds answers to: by its key, or by its file where it is a user's."""
    stem = name.partition(":")[0]
    is_file = stem.endswith(".yaml")
    if name in kept and stem not in task_names() and not is_file:
        raise ConfigError(
            f"{place}: holds answers to {name}, which is a task of your own; name its file with "
            "--task"
        )
    if name in kept or is_file:
        task = load_task(name)
        if task.key in kept:
            return task
        name = task.key
    raise ConfigError(f"{place}: holds answers to {', '.join(kept)}, and none to {name}")


def _task_for(task: str | None, rubric: str | None) -> Task:
    """The task that files of answers are answers to."""
    if task is not None:
        return load_task(task)
    if rubric is not None:
        for name in sorted(task_names(), key=len, reverse=True):
            if rubric == name or rubric.startswith(f"{name}-"):
                found = load_task(name)
                if found.needs_judge:
                    return _variant_of(found, rubric)
    raise ConfigError("which task the files answer is not clear; name it with --task")


def _variant_of(task: Task, rubric: str) -> Task:
    """The variant that is judged by this rubric, or by its namesake in words of our own."""
    plain = rubric.removesuffix("-fedbench")
    for variant, changes in task.variants.items():
        if plain == changes.get("rubric"):
            return load_task(f"{task.name}:{variant}")
    return task


def _given_baseline(place: Path, answers: OpenEndedAnswers) -> Baseline:
    if place.is_dir():
        kept = kept_tasks(place)
        if answers.task.key not in kept:
            raise ConfigError(f"{place}: holds no answers to {answers.task.key}; give another")
        return baseline_from(read_kept(place, answers.task))
    return baseline_from(read_answer_files([place], answers.task, None))


def _default_output(targets: Sequence[Path], cases: Sequence[Case], judge: Judge) -> Path:
    name = targets[0].resolve().name.split(".jsonl")[0].removesuffix(".json")
    if len(targets) > 1:
        name += f"-and-{len(targets) - 1}-more"
    rubrics = "-".join(dict.fromkeys(case.rubric.name for case in cases))
    who = "".join(c if c.isalnum() or c in "-._" else "-" for c in judge.name.split(" @ ")[0])
    return Path("scores") / f"{name}-{rubrics}-{who}"


def _claim(place: Path, cases: Sequence[Case], judge: Judge) -> str:
    identity = {
        "judge": judge.name,
        "judge weights": judge.checkpoint.weights_hash,
        **({} if judge.constrained else {"judge's form": "free text"}),
        "cases": [
            {
                "task": case.answers.task.hash,
                "rubric": case.rubric.hash,
                "answers": {own.model.label(): own.hash for own in case.answers.models},
                "baseline": case.baseline.name if case.baseline else None,
                "length control": control.hash
                if (control := length_control_of(case.protocol))
                else None,
                "repeats": case.repeats,
            }
            for case in cases
        ],
        "fedbench": __version__,
    }
    return claim_scores(place, identity)

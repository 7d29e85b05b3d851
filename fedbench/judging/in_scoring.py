"""The open-ended tasks of a scoring: their answers are kept, and judged where a judge is named."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbench.evaluation.asking import Progress
from fedbench.evaluation.catalogue import task_names
from fedbench.evaluation.evaluate import Evaluation
from fedbench.judging.command import judge_cases, usage_of
from fedbench.judging.conversations import answers_of, write_answers
from fedbench.judging.judged import case_of
from fedbench.judging.opening import JudgeConfig, open_judge
from fedbench.judging.rubric import get_rubric
from fedbench.results.record import ScoreRecord
from fedbench.results.samples import write_samples

_log = logging.getLogger(__name__)


def finish_open_ended(
    result: Evaluation,
    output: Path,
    common: Mapping[str, Any],
    details: Mapping[str, Mapping[str, Any]],
    judge: JudgeConfig | None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[list[ScoreRecord], dict[str, Any]]:
    """Keep the answers to open-ended tasks, and have them judged.

    Args:
        result: what was answered.
        output: results directory.
        common: fields that all records share.
        details: further fields per model, by `ModelId.label`.
        judge: None leaves them to `fedbench judge`, and says so.
        progress: told of each verdict.

    Returns:
        Records of the judge's scores, and facts for the run's record.

    Raises:
        FedbenchError: the judge cannot be asked; what it said is stored.
    """
    answers = answers_of(result, details)
    for own in answers:
        write_answers(output, own)
    if judge is None:
        for own in answers:
            is_shipped = own.task.name in task_names()
            _log.warning(
                "%s: needs a judge; its answers are kept: fedbench judge %s --task %s --judge "
                "MODEL --base-url URL",
                own.task.key,
                output,
                own.task.key if is_shipped else "FILE.yaml",
            )
        return [], {"needs a judge": [own.task.key for own in answers]}
    cases = [case_of(own, get_rubric(own.task.rubric or "")) for own in answers]
    with contextlib.closing(open_judge(judge)) as opened:
        tables, scores, facts = judge_cases(cases, opened, common, output, progress)
        usage = usage_of(opened)
    for table in tables:
        write_samples(output, table)
    return scores, {"needs a judge": [], "judged": facts, "judge's usage": usage}

"""A process that has a server judge answers, and may be killed.

Run with: the server's address, the store, the number of answers, and the file for the ratings.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from fedbench.data.templates import Turn, get_template
from fedbench.evaluation.evaluate import table_of
from fedbench.evaluation.task import Item, Task
from fedbench.generation.backend import Answer, Question, Sampling
from fedbench.generation.server.backend import OpenAIBackend
from fedbench.generation.server.client import ServerClient
from fedbench.generation.server.served import server_checkpoint
from fedbench.generation.store import AnswerStore
from fedbench.judging.conversations import Answered, OpenEndedAnswers
from fedbench.judging.judge import Judge
from fedbench.judging.judged import case_of, judge_case
from fedbench.judging.rubric import get_rubric
from fedbench.results.record import ModelId
from fedbench.schema import validated

CONCURRENCY = 8


def answers(count: int) -> OpenEndedAnswers:
    """As many questions, each with an answer of one model."""
    task = validated(
        Task,
        {
            "name": "made",
            "dataset": {"path": "rows.jsonl", "columns": ["text"]},
            "prompt": "{{ text }}",
            "rubric": "vicuna-fedbench",
            "metrics": ["judge_score"],
        },
        "made",
    )
    items = [
        Item(
            id=f"test/{n}",
            hash=f"item {n}",
            question=Question((Turn(f"Question {n}?"),), "generate", Sampling()),
            reference="",
        )
        for n in range(count)
    ]
    model = Answered(
        ModelId(method="m", model_kind="global"),
        [[Answer(text=f"Answer {n}.")] for n in range(count)],
    )
    return OpenEndedAnswers(task, items, table_of(task, items, None), [model])


def main(url: str, store: str, count: str, result: str) -> None:
    """Judge all answers, and write the ratings by item."""
    client = ServerClient(
        url, "judge", concurrency=CONCURRENCY, timeout=0.8, backoff=0.02, max_retries=8
    )
    judge = Judge(OpenAIBackend(client), server_checkpoint(client), "judge", get_template("chat"))
    with closing(judge), closing(AnswerStore(Path(store))) as opened:
        case = case_of(answers(int(count)), get_rubric("vicuna-fedbench"))
        judged = judge_case(case, judge, opened)
    [rows] = judged.rows.values()
    ratings = {row.question: row.value for row in rows}
    Path(result).write_text(json.dumps(ratings), encoding="utf-8")
    print(judged.num_asked)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The items behind a score, with prompt, answer and verdict, for a page that stays local.

Prompts come from the task's own rows (the hub or the mirror). Answers in full come from the samples
that ``fedbench score --log-samples`` writes; without them an answer is shown as it was read. Texts
of items are rarely ours to pass on: what is made here is never put beside committed records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.errors import FedbenchError
from fedbench.metrics import get_metric
from fedbench.results.lm_eval_files import sanitised
from fedbench.results.record import ModelId, json_lines
from fedbench.results.samples import Answers, Results, SampleTable
from fedbench.results.settings import apart
from fedbench.results.table import Table

MOST_ITEMS = 300
"""Of each task; those on which the shown models differ come first."""
_LOGGED = "lm_eval"


def shown_items(
    table: Table, runs: Sequence[Results], mirror: str | None = None, most: int = MOST_ITEMS
) -> tuple[dict[str, Any], list[str]]:
    """The items of every task with kept answers.

    Args:
        table: what the page shows; its rows say which models count.
        runs: the results that it was made of.
        mirror: directory of the local mirror of data sets; FEDBENCH_DATA when None.
        most: items of each task.

    Returns:
        By task key what the page's script lists, and sentences on what is lacking.
    """
    found: dict[str, Any] = {}
    lacking: list[str] = []
    named, _ = apart(runs)
    for key in table.spec.tasks:
        holding = [pair for pair in zip(named, runs, strict=True) if key in pair[0].samples]
        if not holding:
            continue
        first = holding[0][0].samples[key]
        same = [pair for pair in holding if pair[0].samples[key].item_hashes == first.item_hashes]
        models = [model for now, was in same for model in _models(table, now, was, key)]
        chosen = _chosen(first, [answers for _, _, answers, _ in models], most)
        prompts, reason = _prompts(first, mirror)
        lacking += [f"{key}: prompts are not shown ({reason})"] if reason else []
        found[key] = {
            "total": len(first.item_ids),
            "items": [
                {
                    "id": first.item_ids[n],
                    "prompt": prompts.get(first.item_hashes[n]),
                    "reference": str(first.references[n]),
                }
                for n in chosen
            ],
            "models": [
                {"row": row, "name": _name(model), "answers": _answers(first, own, chosen, texts)}
                for row, model, own, texts in models
            ],
        }
        if not any(texts for _, _, _, texts in models):
            lacking.append(
                f"{key}: answers are shown as they were read, not in full; "
                "fedbench score --log-samples keeps them"
            )
    return found, lacking


def _models(
    table: Table, now: Results, was: Results, key: str
) -> Iterator[tuple[int, ModelId, Answers, Mapping[int, str]]]:
    """Standing models with the position of their row, their answers, and logged texts by item.

    `was` has the models under the names of their own run, which the logged files carry.
    """
    rows = {(row.method, row.kind): n for n, row in enumerate(table.rows)}
    standing = {score.model for score in now.scores if score.selected_by is not None}
    before, after = was.samples[key].answers, now.samples[key].answers
    for old, own in zip(before, after, strict=True):
        place = rows.get((own.model.method, own.model.model_kind))
        if place is not None and own.model in standing:
            yield place, own.model, own, _logged(was.path, old.model, key)


def _logged(directory: Path, model: ModelId, key: str) -> dict[int, str]:
    """Answers in full by position of the item, from the newest samples file of a model."""
    name = key.replace(":", "@").replace("/", "@")
    place = directory / _LOGGED / sanitised(model.label())
    files = sorted(f for stem in {name, key} for f in place.glob(f"samples_{_plain(stem)}_*.jsonl"))
    if not files:
        return {}
    found = {}
    for _, row in json_lines(files[-1]):
        response = row.get("resps")
        while isinstance(response, list) and response:
            response = response[0]
        if isinstance(response, str):
            found[int(row["doc_id"])] = response
    return found


def _plain(stem: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)


def _chosen(table: SampleTable, answers: Sequence[Answers], most: int) -> list[int]:
    """Positions of the items that are shown, in their order: the disputed ones before others."""
    positions = range(len(table.item_ids))
    is_disputed = [len({str(own.extracted[n]) for own in answers}) > 1 for n in positions]
    return sorted(sorted(positions, key=lambda n: not is_disputed[n])[:most])


def _prompts(table: SampleTable, mirror: str | None) -> tuple[dict[str, str], str]:
    """Prompts by item hash, or why they cannot be had."""
    from fedbench.evaluation.catalogue import load_tasks
    from fedbench.evaluation.task import load_items

    try:
        (task,) = load_tasks([table.task_key])
        items = load_items(task, mirror)
    except FedbenchError as error:
        return {}, str(error)
    except ImportError as error:  # a task of lm-eval where that is not installed
        return {}, f"{error.name} is not installed"
    return {
        item.hash: "\n".join(
            part for turn in item.question.turns for part in (turn.instruction, turn.input) if part
        )
        for item in items
    }, ""


def _answers(
    table: SampleTable, own: Answers, chosen: Sequence[int], texts: Mapping[int, str]
) -> list[dict[str, Any]]:
    return [
        {
            "answer": _read(own.extracted[n]),
            "completion": texts.get(int(table.item_ids[n].rpartition("/")[2])),
            "verdict": _verdict(table, own, n),
            "error": own.errors.get(n),
        }
        for n in chosen
    ]


def _read(extracted: str | float | None) -> str | None:
    return None if extracted is None else str(extracted)


def _verdict(table: SampleTable, own: Answers, n: int) -> str:
    """``failed`` and ``unparsed`` as recorded; else right or wrong by the headline metric."""
    if own.status[n] != "parsed":
        return own.status[n]
    sample = table.sample(own, n)
    if table.headline in sample.values:
        return "right" if sample.values[table.headline][0] >= 1.0 else "wrong"
    if not get_metric(table.headline).binary:
        return "right" if sample.extracted == sample.reference else "wrong"
    success, _ = get_metric(table.headline).statistics([sample], table.labels or [])[0]
    return "right" if success >= 1.0 else "wrong"


def _name(model: ModelId) -> str:
    parts = [] if model.model_client is None else [f"client {model.model_client}"]
    parts += [] if model.seed is None else [f"seed {model.seed}"]
    return ", ".join(parts) or "the only one"

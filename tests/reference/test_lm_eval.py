"""lm-eval's tasks on our engine against lm-eval itself, on real rows and a tiny model on CPU.

Same requests (prompt hash), same log-likelihoods to 1e-4, same metrics item by item and same
scores as ``lm_eval run --model hf``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedbench.data.rows import open_mirror
from fedbench.evaluation import lm_eval_tasks
from fedbench.evaluation.catalogue import load_tasks
from fedbench.evaluation.harness import HarnessItems
from fedbench.evaluation.harness_requests import Asked, Columns
from fedbench.evaluation.task import load_items
from fedbench.generation.backend import Answer, Checkpoint
from fedbench.generation.transformers import TransformersBackend
from fedbench.metrics import get_metric
from fedbench.model_config import ModelConfig, Pretrain
from fedbench.pretrain import make_llama, make_tokenizer
from fedbench.results.record import ModelId
from fedbench.results.samples import Answers

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("FEDBENCH_DATA"), reason="FEDBENCH_DATA names no mirror of data sets"
    ),
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and what it imports
]
LIMIT = 20
BASE = ModelId(method="base", model_kind="base", round=0)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The mirror, with its sample of hellaswag and a few texts declared to be whole splits."""
    real = open_mirror(None)
    assert real is not None
    entries = [dict(entry, file=str(real.directory / entry["file"])) for entry in real.entries]
    for entry in entries:
        if entry["hub_dataset"] == "Rowan/hellaswag":
            entry.update(split="validation", complete=True)
    directory = tmp_path_factory.mktemp("mirror")
    pages = directory / "pages.jsonl"
    stories = [
        " = Valkyria = \n\n The game began development in 2010 . \n It was well received . \n",
        " = Robert = \n\n He is an English actor " + "who had a guest role " * 60 + ". \n",
    ]
    pages.write_text("".join(json.dumps({"page": story}) + "\n" for story in stories))
    entries.append(
        {
            "hub_dataset": "EleutherAI/wikitext_document_level",
            "hub_config": "wikitext-2-raw-v1",
            "split": "test",
            "file": str(pages),
        }
    )
    (directory / "MANIFEST.json").write_text(json.dumps(entries))
    return str(directory)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights whose context of 1,024 tokens cuts some prompts."""
    config = Pretrain(
        text=(),
        words=("A", "B", "C", "D"),
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        max_length=1024,
    )
    text = "Question: Which of these is the right answer to it? 12 + 34 = 46. Answer:\nA. B. C. D."
    tokenizer = make_tokenizer(iter([text] * 50), config.words, config.vocab_size)
    place = tmp_path_factory.mktemp("llama")
    make_llama(config, tokenizer, seed=0).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def backend(directory: Path) -> TransformersBackend:
    config = ModelConfig(name=str(directory), device="cpu", attention="eager")
    return TransformersBackend(str(directory), config)


@pytest.fixture(scope="module")
def peer(directory: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(directory), device="cpu", dtype="float32", batch_size=8)


@pytest.mark.parametrize(
    "name",
    [
        "arc_easy",
        "arc_challenge",
        "hellaswag",
        "medqa_4options",
        "mmlu_anatomy",
        "mmlu_college_medicine:num_fewshot=5",
        "winogrande",
        "gsm8k:gen_kwargs={max_gen_toks: 12}",
        "wikitext",
    ],
)
def test_a_task_gives_what_lm_eval_gives(
    name: str, mirror: str, backend: TransformersBackend, peer: Any
) -> None:
    items, asked, columns = _ours(name, mirror, backend)
    theirs = _theirs(items, mirror, peer)
    task = items.members[0].name
    _check_items(items, asked, columns, theirs["samples"][task])
    for metric in items.metrics:
        assert _score(columns, metric) == pytest.approx(
            theirs["results"][task][metric], rel=1e-5
        ), metric


def test_a_group_gives_the_size_weighted_mean_of_lm_eval(
    mirror: str, backend: TransformersBackend, peer: Any
) -> None:
    items, _, columns = _ours("mmlu_stem", mirror, backend, limit=3)
    theirs = _theirs(items, mirror, peer, limit=3)
    assert len(items) == 3 * 19
    assert _score(columns, "acc,none") == pytest.approx(theirs["results"]["mmlu_stem"]["acc,none"])
    start, end = items.groups["mmlu_anatomy"]
    own = columns.values["acc,none"][start:end]
    assert own == [float(s["acc"]) for s in theirs["samples"]["mmlu_anatomy"]]


def _ours(
    name: str, mirror: str, backend: TransformersBackend, limit: int = LIMIT
) -> tuple[HarnessItems, Asked, Columns]:
    (task,) = load_tasks([f"lm_eval/{name}"])
    items = load_items(task, mirror, limit)
    assert isinstance(items, HarnessItems)
    asked = items.prepare(backend)
    base = Checkpoint(BASE, "base", None, "base", "0", "0")
    answers: dict[int, Answer] = {}
    with backend.use(base):
        for batch in backend.plan(asked.requests):
            together = [asked.requests[position] for position in batch.positions]
            given = backend.answer(together, batch.num_shared)
            answers |= dict(zip(batch.positions, given, strict=True))
    return items, asked, asked.read([answers[n] for n in range(len(answers))])


def _theirs(items: HarnessItems, mirror: str, peer: Any, limit: int = LIMIT) -> Any:
    from lm_eval.evaluator import simple_evaluate

    config = items.config
    with lm_eval_tasks.rows_from(open_mirror(mirror), set()):
        return simple_evaluate(
            peer,
            tasks=[config.task],
            num_fewshot=config.num_fewshot,
            limit=limit,
            gen_kwargs=config.gen_kwargs or None,
            bootstrap_iters=0,
            task_manager=lm_eval_tasks._manager(),
        )


def _check_items(
    items: HarnessItems, asked: Asked, columns: Columns, samples: Sequence[Any]
) -> None:
    quoted = items.headline.partition(",")[2]
    first = [sample for sample in samples if sample["filter"] == quoted]
    assert [item.hash for item in items] == [sample["doc_hash"][:16] for sample in first]
    assert asked.prompt_hashes == [sample["prompt_hash"] for sample in first]
    for (own, sample), text in zip(
        zip(_instances(asked), first, strict=True), columns.texts, strict=True
    ):
        for instance, (response,) in zip(own, sample["resps"], strict=True):
            if instance.request_type == "generate_until":
                assert text == response
            elif instance.request_type == "loglikelihood":
                # float32 has seven digits, and long endings sum up to hundreds of nats.
                assert instance.resps[0][0] == pytest.approx(response[0], rel=1e-6, abs=1e-4)
                assert instance.resps[0][1] == response[1]
            else:
                assert instance.resps[0] == pytest.approx(response, rel=1e-6)
    for name in items.metrics:
        metric, _, used = name.partition(",")
        expected = [sample[metric] for sample in samples if sample["filter"] == used]
        for ours, theirs in zip(columns.values[name], expected, strict=True):
            if isinstance(ours, tuple):
                assert (ours[0] * ours[1], ours[1]) == pytest.approx(theirs, rel=1e-6)
            else:
                assert ours == float(theirs)


def _instances(asked: Asked) -> list[list[Any]]:
    by_doc: dict[int, list[Any]] = {}
    for instance in asked.instances[0]:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    return list(by_doc.values())


def _score(columns: Columns, name: str) -> float:
    """The score that records will say."""
    from fedbench.results.samples import _values_at

    metric = get_metric(name)
    answers = Answers(model=BASE, extracted=[], status=[], values=columns.values)
    samples = [_Item(_values_at(answers.values, n)) for n in range(len(columns.status))]
    return float(metric.value(metric.statistics(samples, []).sum(axis=0)))  # type: ignore[arg-type]


class _Item:
    def __init__(self, values: dict[str, tuple[float, float]]) -> None:
        self.values = values

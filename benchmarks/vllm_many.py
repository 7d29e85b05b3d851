"""Sixteen adapters in one engine: against an engine per adapter, and against vLLM alone.

    python benchmarks/vllm_many.py                  # a GPU, a 7B-shaped random model in bfloat16
    python benchmarks/vllm_many.py --device cpu     # a small model, to see that the script runs

Needs vllm (docs/vllm.md). Prints a row of benchmarks/vllm_agreement.md's table; without a GPU the
row of the 7B-shaped model says that it was not measured. Host overhead is the time that the backend
takes over `LLM.generate` of the very same requests in the same engine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from vllm_models import SMALL, jobs_of, make_adapters, make_base, random_requests

from fedbench.generation.backend import Checkpoint, Request
from fedbench.generation.vllm.asks import asks_of
from fedbench.generation.vllm.backend import VllmBackend, VllmOptions
from fedbench.model_config import ModelConfig

HEAD = (
    "| adapters x requests | one engine | of it start | engine per adapter | raw generate | ratio |"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200, help="per adapter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--single", type=int, default=2, help="engines started one per adapter")
    options = parser.parse_args()
    print(f"{HEAD}\n|---|---|---|---|---|---|")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"| {options.adapters} x {options.requests}, 7B-shaped | not measured | | | | |")
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        make_base(base, SMALL) if options.device == "cpu" else make_large(base)
        adapters = make_adapters(base, Path(scratch), options.adapters)
        measure(base, adapters, options)


def make_large(directory: Path) -> None:
    """Random weights in the shape of Llama-2-7B, with a small tokenizer that no request uses."""
    import transformers
    from vllm_models import TINY

    make_base(directory, TINY)  # for its tokenizer
    config = transformers.LlamaConfig(max_position_embeddings=4096, eos_token_id=1)  # 7B's defaults
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    del model
    torch.cuda.empty_cache()


def measure(base: Path, adapters: list[Checkpoint], options: argparse.Namespace) -> None:
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    config = ModelConfig(name=str(base), device=options.device, dtype=dtype)
    vocab = 320 if options.device == "cpu" else 32000
    requests = random_requests(options.requests, 256, 64, vocab)
    started = time.monotonic()
    backend = VllmBackend(str(base), config, adapters, VllmOptions(merge="never"))
    answer(backend, adapters, requests[:1])
    start = time.monotonic() - started
    ours, raw = [], []
    for _ in range(options.repeats):
        ours.append(answer(backend, adapters, requests))
        raw.append(generate(backend, adapters, requests))
    backend.close()
    single = []
    for adapter in adapters[: options.single]:
        started = time.monotonic()
        alone = VllmBackend(str(base), config, [adapter], VllmOptions(merge="never"))
        answer(alone, [adapter], requests)
        alone.close()
        single.append(time.monotonic() - started)
    one, bare = statistics.median(ours), statistics.median(raw)
    what = platform.processor() if options.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"| {len(adapters)} x {len(requests)}, {what} | {start + one:.1f} s | {start:.1f} s "
        f"| {statistics.mean(single) * len(adapters):.1f} s ({len(single)} measured) "
        f"| {bare:.2f} s against {one:.2f} s | {one / bare:.3f} |"
    )


def answer(backend: VllmBackend, adapters: list[Checkpoint], requests: list[Request]) -> float:
    started = time.monotonic()
    reset(backend)
    for _ in backend.stream(jobs_of(adapters, requests)):
        pass
    return time.monotonic() - started


def generate(backend: VllmBackend, adapters: list[Checkpoint], requests: list[Request]) -> float:
    """The same requests by `LLM.generate`, all at once, in the engine that runs."""
    started = time.monotonic()
    reset(backend)
    jobs = jobs_of(adapters, requests)
    asks = [asks_of(job.requests[0], backend._ends, whole=False)[0] for job in jobs]
    backend._engines.current._replicas[0].generate(
        [{"prompt_token_ids": list(ask.ids)} for ask in asks],
        [ask.params for ask in asks],
        lora_request=[backend._engines.lora(job.checkpoint) for job in jobs],
        use_tqdm=False,
    )
    return time.monotonic() - started


def reset(backend: VllmBackend) -> None:
    """Forget what the prefix cache holds: a repeat would not read its prompts again."""
    if backend._engines.current is not None:
        backend._engines.current._replicas[0].reset_prefix_cache()


if __name__ == "__main__":
    main()

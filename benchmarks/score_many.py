"""Eight adapters of one base on MedQA: one command against eight runs of lm-eval.

    FEDBENCH_DATA=... python benchmarks/score_many.py [--blocks 5] [--items 1273]

Each block runs, in turning order, as processes of their own from start to end:

* **one command**: ``fedbench score`` of eight LoRA checkpoints on lm-eval's ``medqa_4options``;
* **again**: the same command, whose answers are in the store, as a process, most of which are
  imports, and `score` alone within a process that has imported everything;
* **lm-eval**: ``lm_eval run`` on one of the checkpoints at its best batch size; eight take eight
  times as long, as each is a process of its own;
* **bare**: a start (imports, base, one adapter, tokens) and forward passes over the same batches
  with one adapter, timed apart: eight checkpoints take one start and eight times the passes.

Answers are compared item by item. Further, within one process: generation by the transformers
backend against one ``generate`` per prompt, which is how OpenFedLLM asks. The model is a random
Llama of 5 million parameters, the adapters LoRA r 8 on q and v; nothing of its accuracy means
anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TASK = "medqa_4options"
NUM_ADAPTERS = 8
PROMPTS, NEW_TOKENS = 64, 64
HERE = Path(__file__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--items", type=int, default=1273)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lm-eval-batch", type=int, default=32)
    parser.add_argument("--only-generation", action="store_true")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.batches)
        return
    if options.again:
        again(options.again, options.items)
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ["FEDBENCH_CACHE"] = str(place / "cache")
        adapters = make_models(place)
        if not options.only_generation:
            report(measure(place, adapters, options), options)
        report_generation(place, options)


def measure(
    place: Path, adapters: Sequence[Path], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each way, by block; the first block of all checks the answers too."""
    spent: dict[str, list[float]] = {}
    batches = place / "batches.json"
    plan_batches(place, options.items, batches)
    for block in range(options.blocks):
        store = place / f"answers-{block}.sqlite"

        def score(name: str, block: int = block, store: Path = store) -> None:
            output = place / f"scores-{block}-{name}"
            run_score(place, adapters, options.items, store, output)

        def own(score: Callable[[str], None] = score, store: Path = store) -> None:
            shutil.rmtree(place / "cache" / "prepared", ignore_errors=True)  # as if never scored
            spent.setdefault("one command", []).append(timed(lambda: score("first")))
            spent.setdefault("again", []).append(timed(lambda: score("again")))
            command = [sys.executable, str(HERE), "--again", str(place)]
            told = run([*command, "--items", str(options.items)], None, FEDBENCH_ANSWERS=str(store))
            spent.setdefault("again, `score` alone", []).append(float(told))

        def theirs(block: int = block) -> None:
            run = lambda: run_lm_eval(place, adapters[0], options, place / f"lm-eval-{block}")  # noqa: E731
            spent.setdefault("lm-eval, one checkpoint", []).append(timed(run))

        def plain() -> None:
            command = [sys.executable, str(HERE), "--bare", str(place), "--batches", str(batches)]
            told = json.loads(run(command, options.threads))
            spent.setdefault("bare start", []).append(told["start"])
            spent.setdefault("bare passes, one checkpoint", []).append(told["passes"])

        ways = [own, theirs, plain]
        for way in ways[block % 3 :] + ways[: block % 3]:
            way()
        print(f"block {block}:", {k: round(v[-1], 2) for k, v in spent.items()}, file=sys.stderr)
    check_answers(place, options)
    return spent


def report(spent: dict[str, list[float]], options: argparse.Namespace) -> None:
    """The table of docs and notes: medians, and the ratios that matter."""
    median = {name: statistics.median(values) for name, values in spent.items()}
    bare_time = median["bare start"] + NUM_ADAPTERS * median["bare passes, one checkpoint"]
    lm_eval_time = NUM_ADAPTERS * median["lm-eval, one checkpoint"]
    ours = median["one command"]
    print(f"{NUM_ADAPTERS} checkpoints, {options.items} items, {options.blocks} blocks\n")
    print("| | seconds, median | of each block |\n|---|---|---|")
    for name, values in spent.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {median[name]:.1f} | {each} |")
    print("\n| ratio | | least and most of the blocks |\n|---|---|---|")

    def row(name: str, value: float, of_blocks: Sequence[float]) -> None:
        print(f"| {name} | {value:.2f} | {min(of_blocks):.2f} to {max(of_blocks):.2f} |")

    columns = list(zip(*spent.values(), strict=True))
    names = list(spent)
    blocks = [dict(zip(names, column, strict=True)) for column in columns]
    row(
        "one command / (bare start + 8 bare passes)",
        ours / bare_time,
        [
            b["one command"] / (b["bare start"] + NUM_ADAPTERS * b["bare passes, one checkpoint"])
            for b in blocks
        ],
    )
    row(
        "8 lm-eval runs / one command",
        lm_eval_time / ours,
        [NUM_ADAPTERS * b["lm-eval, one checkpoint"] / b["one command"] for b in blocks],
    )
    row(
        "one command / again, as processes",
        ours / median["again"],
        [b["one command"] / b["again"] for b in blocks],
    )
    # What the first command takes beside its imports is no more than what it takes in all.
    row(
        "(one command - bare start) / again, `score` alone",
        (ours - median["bare start"]) / median["again, `score` alone"],
        [(b["one command"] - b["bare start"]) / b["again, `score` alone"] for b in blocks],
    )


def make_models(place: Path) -> list[Path]:
    """A random base with a tokenizer of the task's own text, and its adapters."""
    import peft
    import torch
    import transformers

    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_tokenizer

    texts = [item["context"] for item in contexts(None)]
    config = Pretrain(text=(), words=("A", "B", "C", "D"), vocab_size=4096)
    tokenizer = make_tokenizer(iter(texts), config.words, config.vocab_size)
    settings = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(settings).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    adapters = []
    for number in range(NUM_ADAPTERS):
        base = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
        lora = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(base, lora)
        torch.manual_seed(number + 1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        adapters.append(place / f"adapter-{number}")
        model.save_pretrained(adapters[-1])
    return adapters


def contexts(limit: int | None) -> list[dict[str, Any]]:
    """The contexts that lm-eval asks, with the answers it expects."""
    from fedbench.evaluation.catalogue import load_tasks
    from fedbench.evaluation.task import load_items

    [task] = load_tasks([f"lm_eval/{TASK}"])
    items = load_items(task, limit=limit)
    return [{"context": item.text, "label": item.reference} for item in items]


def plan_batches(place: Path, items: int, file: Path) -> None:
    """Write the batches that the backend makes, as token ids, and the rows for lm-eval."""
    from fedbench.evaluation.catalogue import load_tasks
    from fedbench.evaluation.task import load_items
    from fedbench.generation.opening import CPU_TOKENS
    from fedbench.generation.transformers import TransformersBackend
    from fedbench.model_config import ModelConfig

    [task] = load_tasks([f"lm_eval/{TASK}"])
    config = ModelConfig(name=str(place / "base"), device="cpu")
    backend = TransformersBackend(str(place / "base"), config, batch_tokens=CPU_TOKENS[0])
    harness: Any = load_items(task, limit=items)
    requests = harness.prepare(backend).requests
    plan = [[list(requests[n].ids) for n in b.positions] for b in backend.plan(requests)]
    file.write_text(json.dumps(plan))
    [member] = harness.members
    with open(place / "rows.jsonl", "w", encoding="utf-8") as rows:
        for _, doc in member.docs:
            rows.write(json.dumps(doc) + "\n")
    tasks = place / "tasks"
    tasks.mkdir()
    # The task itself, with its rows from a file: the hub may not be in reach.
    (tasks / "medqa_here.yaml").write_text(
        "task: medqa_here\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {place / 'rows.jsonl'}}}}}\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "Question: {{sent1}}\\nA. {{ending0}}\\nB. {{ending1}}\\nC. {{ending2}}\\n'
        'D. {{ending3}}\\nAnswer:"\n'
        "doc_to_target: label\ndoc_to_choice: [A, B, C, D]\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )


def run_score(place: Path, adapters: Sequence[Path], items: int, store: Path, output: Path) -> None:
    command = [sys.executable, "-m", "fedbench", "score", "--base-model", str(place / "base")]
    for adapter in adapters:
        command += ["--ckpt", str(adapter)]
    command += ["--tasks", f"lm_eval/{TASK}", "--limit", str(items), "--output", str(output)]
    command += ["--device", "cpu", "--log-samples"]
    run(command, None, FEDBENCH_ANSWERS=str(store))


def run_lm_eval(place: Path, adapter: Path, options: argparse.Namespace, output: Path) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args"]
    command += [f"pretrained={place / 'base'},peft={adapter},dtype=float32"]
    command += ["--include_path", str(place / "tasks"), "--tasks", "medqa_here", "--device", "cpu"]
    command += ["--batch_size", str(options.lm_eval_batch), "--limit", str(options.items)]
    run([*command, "--output_path", str(output), "--log_samples"], options.threads)


def run(command: Sequence[str], threads: int | None, **variables: str) -> str:
    environment = os.environ | variables
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().split("\n")[-1]


def bare(place: Path, batches: Path) -> None:
    """One start, and plain forward passes over the batches; prints seconds of both."""
    began = time.perf_counter()
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    transformers.AutoTokenizer.from_pretrained(place / "base")
    model = peft.PeftModel.from_pretrained(base, place / "adapter-0").eval()
    padded = []
    for rows in json.loads(batches.read_text()):
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        padded.append((ids, mask))
    started = time.perf_counter()
    with torch.inference_mode():
        for ids, mask in padded:
            logits = model(
                input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False
            ).logits
            torch.log_softmax(logits[:, -1].float(), dim=-1)
    ended = time.perf_counter()
    print(json.dumps({"start": started - began, "passes": ended - started}))


def again(place: Path, items: int) -> None:
    """Seconds that `score` takes where every answer is in the store; prints them."""
    import lm_eval.tasks
    import peft
    import transformers

    from fedbench import scoring

    # Imports that are made when they are first needed.
    assert all((lm_eval.tasks, peft.PeftModel, transformers.AutoTokenizer))
    adapters = sorted(map(str, place.glob("adapter-*")))
    began = time.perf_counter()
    scoring.score(
        adapters,
        [f"lm_eval/{TASK}"],
        base_model=str(place / "base"),
        limit=items,
        device="cpu",
        output=Path(tempfile.mkdtemp(dir=place)),
        log_samples=True,
    )
    print(time.perf_counter() - began)


def check_answers(place: Path, options: argparse.Namespace) -> None:
    """Item by item, what lm-eval and we make of the first checkpoint."""
    [theirs] = (place / "lm-eval-0").rglob("samples_medqa_here_*.jsonl")
    own = sorted((place / "scores-0-first" / "lm_eval" / "adapter-0").glob("samples_*.jsonl"))[0]
    pairs = list(zip(read_samples(theirs), read_samples(own), strict=True))
    differ = sum(one["acc"] != other["acc"] for one, other in pairs)
    apart = max(
        abs(float(a[0][0]) - float(b[0][0]))
        for one, other in pairs
        for a, b in zip(one["resps"], other["resps"], strict=True)
    )
    print(f"items whose answer differs from lm-eval's: {differ} of {len(pairs)}")
    print(f"largest difference of a log-likelihood: {apart:.1e} nats\n")
    assert len(pairs) == options.items


def read_samples(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def report_generation(place: Path, options: argparse.Namespace) -> None:
    """Tokens per second of batches against one prompt at a time."""
    import torch

    from fedbench.generation.backend import Sampling, Written
    from fedbench.generation.opening import CPU_TOKENS
    from fedbench.generation.transformers import TransformersBackend
    from fedbench.model_config import ModelConfig

    torch.set_num_threads(options.threads)
    config = ModelConfig(name=str(place / "base"), device="cpu")
    backend = TransformersBackend(str(place / "base"), config, batch_tokens=CPU_TOKENS[1])
    texts = [item["context"][:200] for item in contexts(PROMPTS)]
    how = Sampling(max_tokens=NEW_TOKENS)
    requests = backend.prepare_written([Written(text, "generate", how) for text in texts])
    plan = backend.plan(requests)

    def batched() -> None:
        for batch in plan:
            backend.answer([requests[n] for n in batch.positions], batch.num_shared)

    def one_by_one() -> None:
        with torch.inference_mode():
            for request in requests:
                backend.base.module.generate(
                    torch.tensor([request.ids]), max_new_tokens=NEW_TOKENS, do_sample=False
                )

    spent: dict[str, list[float]] = {"batched": [], "one by one": []}
    batched()
    for _ in range(options.blocks):
        spent["batched"].append(timed(batched))
        spent["one by one"].append(timed(one_by_one))
    ratios = [b / a for a, b in zip(spent["batched"], spent["one by one"], strict=True)]
    for name, values in spent.items():
        print(f"{name}: {statistics.median(values):.2f} s for {PROMPTS} x {NEW_TOKENS} tokens")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

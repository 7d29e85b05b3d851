"""A whole run with many clients: ten thousand of them, three rounds, a sampled cohort.

    python benchmarks/ten_thousand.py [--clients 10000] [--cohort 100] [--rounds 3]

Unlike `scale.py`, which times the rounds alone, this is `fedbench train` from the rows on disk:
reading, splitting, tokenising, training and writing, with four short rows per client and a Llama of
some twenty thousand parameters. Every measurement is a process of its own. Prints the seconds of
each part, what memory grows by, and what lies on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS_PER_CLIENT = 4
COLUMNS = {"instruction": "{{ text }}", "response": "{{ mood }}"}
MOODS = ("negative", "neutral", "positive")


def measure(clients: int, cohort: int, rounds: int, algorithm: str) -> dict[str, Any]:
    """Train in this process."""
    import torch

    from fedbench.config import RunConfig
    from fedbench.federated.checkpoint import read_history
    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_llama, make_tokenizer
    from fedbench.run import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        os.environ["FEDBENCH_CACHE"] = str(directory / "cache")
        rows = directory / "rows.jsonl"
        write_rows(rows, clients * ROWS_PER_CLIENT)
        small = Pretrain(
            text=(), words=MOODS, vocab_size=400, hidden_size=32, intermediate_size=64,
            num_layers=2, num_heads=2,
        )  # fmt: skip
        text = "Firm 0123456789 buys another one for a few million and raises its forecast"
        tokenizer = make_tokenizer(iter([text] * 50), small.words, small.vocab_size)
        base = directory / "base"
        make_llama(small, tokenizer, seed=0).save_pretrained(base)
        tokenizer.save_pretrained(base)
        config = RunConfig.model_validate(
            {
                "name": "many",
                "model": {"name": str(base), "lora": {"r": 4, "alpha": 8}, "device": "cpu"},
                "data": {
                    "train": {"path": str(rows), **COLUMNS},
                    "template": "fingpt", "validation": 0.0, "test": 0.0,
                },
                "methods": [algorithm],
                "federation": {
                    "num_clients": clients, "clients_per_round": cohort, "rounds": rounds,
                },
                "local": {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-3},
                "evaluation": {"tasks": ["headlines"], "rounds": "last"},
            }
        )  # fmt: skip
        before, started = peak_mib(), time.perf_counter()
        output = directory / "run"
        train(config, output)
        seconds = time.perf_counter() - started
        timings = [
            json.loads(line)["seconds"]
            for line in next(output.rglob("timings.jsonl")).read_text().splitlines()
        ]
        last = next(iter(reversed(read_history(next(output.rglob("history.jsonl")).parent))))
        files = [file for file in output.rglob("*") if file.is_file()]
        return {
            "seconds": round(seconds, 1),
            "of the rounds": [round(one, 2) for one in timings],
            "before the rounds": round(seconds - sum(timings), 1),
            "peak MiB": round(peak_mib()),
            "grown by MiB": round(peak_mib() - before),
            "KiB up a turn": round(last.bytes_up / (cohort * rounds) / 1024, 1),
            "KiB down a turn": round(last.bytes_down / (cohort * rounds) / 1024, 1),
            "on disk MiB": round(sum(f.stat().st_size for f in files) / 2**20, 1),
            "files": len(files),
        }


def write_rows(file: Path, number: int) -> None:
    """Short made-up headlines, all different."""
    with open(file, "w", encoding="utf-8") as lines:
        for n in range(number):
            row = {"text": f"Firm {n} buys another one for {n % 97} million", "mood": MOODS[n % 3]}
            lines.write(json.dumps(row) + "\n")


def peak_mib() -> float:
    """Largest resident size of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--algorithm", default="fedavg")
    arguments = parser.parse_args()
    if arguments.clients:
        print(json.dumps(measure(**vars(arguments))))
        return
    for algorithm in ("fedavg", "scaffold"):
        for clients in (100, 1000, 10_000):
            options = [f"--clients={clients}", f"--cohort={arguments.cohort}"]
            options += [f"--rounds={arguments.rounds}", f"--algorithm={algorithm}"]
            done = subprocess.run(
                [sys.executable, __file__, *options], capture_output=True, text=True, check=True
            )
            print(f"{algorithm}, {clients:,} clients: {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()

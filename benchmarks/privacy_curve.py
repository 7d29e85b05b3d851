"""What a model gives away against the epsilon it was trained with, on a model of 30,000 weights.

    python benchmarks/privacy_curve.py runs/privacy-curve --picture runs/privacy-curve/curve.png

Four clients learn made-up codes by heart, with secrets among their rows, under client-level
differential privacy at five epsilons and five seeds; then `fedbench privacy` attacks them.
Prints a table, and Spearman's rank correlation of epsilon with what each attack finds. Its interval
is of a bootstrap over seeds, whose trainings are independent of each other.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from fedbench.config import RunConfig
from fedbench.model_config import Pretrain
from fedbench.pretrain import make_llama, make_tokenizer
from fedbench.privacy_audit import audit_privacy
from fedbench.results.record import read_run
from fedbench.run import train
from fedbench.schema import validated

CLIENTS, ROWS = 4, 300  # of each client half is trained on and half is held out
EPSILONS = (1e2, 1e3, 1e4, 1e5, 1e6)
SEEDS = (0, 1, 2, 3, 4)
RESAMPLES = 2000
METRICS = {
    "membership_auc": "AUC of membership inference",
    "canary_exposure": "exposure of canaries, bits",
}
Table = dict[str, dict[float, list[float]]]
"""Per metric and epsilon, a value for each seed."""


def make_base(directory: Path) -> Path:
    """A Llama with random weights: it knows nothing that it is not taught here."""
    if not directory.is_dir():
        config = Pretrain(
            text=(), vocab_size=400, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2
        )
        tokenizer = make_tokenizer(iter(["What is the access code of 0123456789?"] * 50), (), 400)
        make_llama(config, tokenizer, seed=0).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def make_rows(file: Path) -> Path:
    """Questions whose answers are random digits."""
    rng = random.Random(0)
    rows = [
        {"about": f"{rng.randrange(10**5):05d}", "code": f"{rng.randrange(100):02d}", "whose": n}
        for n in range(CLIENTS)
        for _ in range(ROWS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run_config(epsilon: float, seeds: Sequence[int], base: Path, rows: Path) -> RunConfig:
    raw: dict[str, Any] = {
        "name": f"epsilon-{epsilon:.0f}",
        "model": {"name": str(base), "lora": None, "device": "cpu"},
        "data": {
            "train": {
                "path": str(rows),
                "instruction": "{{ about }}",
                "response": "{{ code }}",
                "owner": "{{ whose }}",
            },
            "template": "bare",
            "partition": {"by": "natural"},
            "validation": 0.0,
            "test": 0.5,
            "canaries": {"per_client": 4, "repeats": [5], "digits": 2},
        },
        "methods": [{"algorithm": "fedavg", "weighting": "uniform"}],
        "seeds": list(seeds),
        "federation": {"num_clients": CLIENTS, "rounds": 8},
        "local": {
            "max_steps": 20,
            "batch_size": 25,
            "learning_rate": 0.01,
            "optimizer_state": "carry",
        },
        "privacy": {"target_epsilon": epsilon, "clip": 5.0, "accountant": "pld"},
        "evaluation": {"tasks": ["headlines"], "limit": 1},
    }
    return validated(RunConfig, raw, "benchmarks/privacy_curve.py")


def measured(
    epsilons: Sequence[float], seeds: Sequence[int], output: Path, rows_asked: int
) -> Table:
    """Train and attack; what an earlier call has trained is used again."""
    output.mkdir(parents=True, exist_ok=True)
    base, rows = make_base(output.resolve() / "base"), make_rows(output.resolve() / "rows.jsonl")
    table: Table = {metric: {} for metric in METRICS}
    for epsilon in epsilons:
        place = output / f"epsilon-{epsilon:.0f}"
        train(run_config(epsilon, seeds, base, rows), place)
        records = audit_privacy(place, rows=rows_asked, candidates=99)
        run = read_run(place)
        assert run is not None
        assert all(one.epsilon <= epsilon * (1 + 1e-6) for one in run.privacy)
        for metric, values in table.items():
            values[epsilon] = [
                record.value
                for seed in seeds
                for record in records
                if (record.metric, record.seed, record.method) == (metric, seed, "fedavg")
                and record.group is None
                and record.data_client is None
                and record.value is not None
            ]
            assert len(values[epsilon]) == len(seeds)
    return table


def correlation(values: dict[float, list[float]]) -> tuple[float, float, float]:
    """Spearman's rho of epsilon and value, with its 95 % interval over seeds."""
    matrix = np.array([values[epsilon] for epsilon in values]).T  # (seeds, epsilons)
    epsilons = np.array(list(values))

    def rho(rows: np.ndarray) -> float:
        return float(spearmanr(np.tile(epsilons, len(rows)), rows.ravel()).statistic)

    rng = np.random.default_rng(0)
    drawn = [rho(matrix[rng.integers(len(matrix), size=len(matrix))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return rho(matrix), float(low), float(high)


def picture(table: Table, file: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    chance: dict[str, Callable[[], float]] = {
        "membership_auc": lambda: 0.5,
        # Rank of 100 drawn evenly: the mean of log2(100 / rank).
        "canary_exposure": lambda: float(np.mean(np.log2(100 / np.arange(1, 101)))),
    }
    for axes, (metric, values) in zip(figure.subplots(1, len(table)), table.items(), strict=True):
        for epsilon, own in values.items():
            axes.plot([epsilon] * len(own), own, "o", color="C0", alpha=0.5, markersize=4)
        axes.plot(list(values), [np.mean(own) for own in values.values()], "-", color="C0")
        axes.axhline(chance[metric](), color="gray", linestyle=":", label="nothing learned")
        rho, low, high = correlation(values)
        axes.set_title(f"Spearman {rho:.2f} [{low:.2f}, {high:.2f}]", fontsize=10)
        axes.set(xscale="log", xlabel="epsilon", ylabel=METRICS[metric])
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--rows", type=int, default=150, help="members and others of each client")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    table = measured(arguments.epsilons, arguments.seeds, arguments.output, arguments.rows)
    print(f"| epsilon | {' | '.join(METRICS.values())} |\n|---{'|---' * len(METRICS)}|")
    for epsilon in arguments.epsilons:
        means = [f"{np.mean(table[m][epsilon]):.3f}" for m in METRICS]
        print(f"| {epsilon:g} | {' | '.join(means)} |")
    for metric, title in METRICS.items():
        rho, low, high = correlation(table[metric])
        print(f"Spearman of epsilon and {title}: {rho:.2f} [{low:.2f}, {high:.2f}]")
    if arguments.picture:
        picture(table, arguments.picture)


if __name__ == "__main__":
    main()

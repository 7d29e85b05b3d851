"""Engines that start for a test alone: with merged adapters, and one that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking_engines import LABELS, PHRASES, TEMPLATE, ask, closest, jobs_of, questions

from fedbench.errors import FedbenchError
from fedbench.generation.backend import Answer, Checkpoint
from fedbench.model_config import ModelConfig


def test_what_lora_kernels_cannot_serve_is_merged(
    base: Path,
    make_adapter: Callable[..., Checkpoint],
    adapters: list[Checkpoint],
    transformers_backend: Any,
) -> None:
    from fedbench.generation.vllm.backend import VllmBackend, VllmOptions

    dora = make_adapter("dora", 7, use_dora=True)
    config = ModelConfig(name=str(base), device="cpu")
    backend = VllmBackend(str(base), config, [dora], VllmOptions(max_num_seqs=16))
    try:
        jobs = jobs_of([dora], backend.prepare(questions(4, PHRASES), TEMPLATE))
        longer = backend.prepare(questions(2, ("Profit rises at Acme. " * 6,)), TEMPLATE)
        jobs += jobs_of([dora], longer)
        assert closest(ask(backend, jobs), ask(transformers_backend, jobs)) < 1e-3
        # A single long choice is read in one pass where no adapter is served.
        assert backend.paths == {"logprob_token_ids": 4, "prompt_logprobs": 2}
    finally:
        backend.close()


def test_a_dead_engine_is_restarted_once_and_then_reported(
    base: Path, adapters: list[Checkpoint], transformers_backend: Any
) -> None:
    from fedbench.generation.vllm.backend import VllmBackend, VllmOptions

    config = ModelConfig(name=str(base), device="cpu")
    options = VllmOptions(max_num_seqs=4, merge="never")
    backend = VllmBackend(str(base), config, adapters, options)
    jobs = jobs_of(adapters, backend.prepare(questions(20, LABELS), TEMPLATE))
    expected = {id(job): a for job, (a,) in transformers_backend.stream(iter(jobs))}
    told: dict[int, Answer] = {}
    try:
        for job, (answer,) in backend.stream(iter(jobs)):
            if not told:
                _kill_engine(backend)
            told[id(job)] = answer
        assert closest(list(told.values()), [expected[job] for job in told]) < 1e-3
        assert len(told) == 60
        _kill_engine(backend)
        with pytest.raises(FedbenchError, match=r"died twice.*60 answers were given before"):
            list(backend.stream(iter(jobs)))
    finally:
        backend.close()


def _kill_engine(backend: Any) -> None:
    """As the kernel does when memory runs out."""
    replica = backend._engines.current._replicas[0]
    for process in replica.llm_engine.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)

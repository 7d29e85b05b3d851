"""Random models and adapters for the measurements of the vllm backend."""

from __future__ import annotations

from pathlib import Path

from fedbench.generation.backend import Checkpoint, Job, Request, Sampling
from fedbench.results.record import ModelId

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 2}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_layers": 4, "num_heads": 4}


def make_base(directory: Path, shape: dict[str, int]) -> Path:
    """A random Llama with a tokenizer of a few hundred pieces."""
    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_llama, make_tokenizer

    config = Pretrain(text=(), words=("negative", "neutral", "positive"), vocab_size=400, **shape)
    text = "Instruction: What is the sentiment of this news? Input: Profit rises at Acme. Answer:"
    tokenizer = make_tokenizer(iter([text] * 50), config.words, config.vocab_size)
    make_llama(config, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_adapters(base: Path, directory: Path, number: int, rank: int = 8) -> list[Checkpoint]:
    """Random LoRA adapters on the queries and values, strong enough to change every answer."""
    import peft
    import torch
    import transformers

    from fedbench.weights import weights_hash

    module = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        ),
    )
    made = []
    for seed in range(number):
        torch.manual_seed(seed)
        for name, weight in module.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.1)
        place = directory / f"adapter-{seed}"
        module.save_pretrained(place)
        model = ModelId(method=place.name, model_kind="global")
        made.append(Checkpoint(model, "adapter", place, str(base), weights_hash(place), ""))
    return made


def random_requests(number: int, length: int, written: int, vocab: int) -> list[Request]:
    """Prompts of random tokens; nothing ends an answer before its last token but by chance."""
    import random

    draw = random.Random(f"{number}/{length}")
    sampling = Sampling(max_tokens=written)
    return [
        Request("generate", "", tuple(draw.randrange(3, vocab) for _ in range(length)), sampling)
        for _ in range(number)
    ]


def jobs_of(checkpoints: list[Checkpoint], requests: list[Request]) -> list[Job]:
    """One job per request, checkpoint by checkpoint."""
    return [Job(checkpoint, (request,)) for checkpoint in checkpoints for request in requests]

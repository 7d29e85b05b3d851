"""The base model, its adapters, and checkpoints of every kind.

One base stays resident; trained weights are swapped in and out of it as a `State`. A checkpoint
is an ordinary PEFT adapter directory or a full model directory, so any tool can load ours, and
anyone's can be scored here.
"""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import safetensors
import safetensors.torch
import torch
import transformers
from peft.tuners.lora import LoraLayer

from fedbench.errors import CheckpointError, ConfigError, MissingExtraError
from fedbench.federated.state import State
from fedbench.model_config import Lora, ModelConfig
from fedbench.weights import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    BASE_DELTA,
    base_hash,
    quiet,
    reason_of,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fedbench.federated.crew import Crew

FULL_CONFIG = "config.json"
MAGNITUDE = "lora_magnitude_vector"

# Notices of loading (tied weights, missing heads) that nobody at the terminal can act on.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


@dataclass
class BaseModel:
    """A resident model with its tokenizer."""

    module: Any
    """transformers.PreTrainedModel, or the peft.PeftModel around it."""
    tokenizer: Any
    name: str
    """Directory or hub id it was loaded from."""
    hash: str
    """Content hash of its weights and architecture."""
    autocast: str | None = None
    """Type to compute in where it differs from that of the weights."""
    shares_prefixes: bool | None = None
    """Whether sequences may share their beginnings in a forward pass; None: not tried yet."""
    originals: State = field(default_factory=dict)
    """Base weights as they were, where `set_base_delta` has added to them."""
    crew: Crew | None = None
    """Processes that train in its place."""
    mesh: DeviceMesh | None = None
    """Processes over which its weights are sharded."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return torch.device(self.module.device)

    @property
    def rank(self) -> int:
        """Number of this process among those over which its weights are sharded."""
        return 0 if self.mesh is None else self.mesh.get_rank()

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return int(getattr(self.module.config, "max_position_embeddings", 2048))


def load_base(name: str, config: ModelConfig) -> BaseModel:
    """Load a base model and its tokenizer from a directory or the hub.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    torch.set_float32_matmul_precision(config.matmul_precision)
    device = pick_device(config.device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=config.revision)
        with quiet():
            module = transformers.AutoModelForCausalLM.from_pretrained(
                name,
                revision=config.revision,
                dtype=getattr(torch, config.dtype),
                attn_implementation=config.attention,
                **_quantized(config.quantization, device),
            )
    except ImportError as error:
        if config.quantization is not None:
            what = f"model.quantization {config.quantization}"
            raise MissingExtraError(what, "quantization") from error
        raise CheckpointError(
            f"{name}: needs a package that is not installed ({reason_of(error)}); install it"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(
            f"{name}: cannot be loaded as a model with its tokenizer ({reason_of(error)}); give a "
            "model directory or a hub id that this machine can reach"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # answers then end together, for training and generation alike
    # Frozen from the start: torch picks its kernels by requires_grad, so the base would answer with
    # other last bits before an adapter was on it than afterwards.
    if config.quantization is None:
        module.to(device)
    module.eval().requires_grad_(False)
    module.generation_config = transformers.GenerationConfig(
        eos_token_id=module.generation_config.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BaseModel(
        module, tokenizer, name, base_hash(module, Path(name)), autocast=config.autocast
    )


def _quantized(form: str | None, device: torch.device) -> dict[str, Any]:
    """What makes transformers load a base in 8 or 4 bits.

    8 bits: LLM.int8 (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339); 4 bits: NF4 with
    double quantization, computed in bfloat16 (QLoRA, https://arxiv.org/abs/2305.14314).
    """
    if form is None:
        return {}
    settings = (
        transformers.BitsAndBytesConfig(load_in_8bit=True)
        if form == "8bit"
        else transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def pick_device(wanted: str) -> torch.device:
    """The device of that name; ``auto`` takes the GPU where there is one.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is cuda (--device), but no CUDA device is present; use cpu")
    return torch.device(wanted)


def add_lora(base: BaseModel, lora: Lora | None, seed: int) -> None:
    """Make the base trainable: fresh adapters drawn from `seed`, or all weights when None.

    Raises:
        ConfigError: no module of the model has the names asked for.
    """
    if lora is None:
        base.module.requires_grad_(True)
        return
    targets = lora.target_modules
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            # PEFT makes its modules, and with them their dropout, in training mode.
            base.module = peft.get_peft_model(base.module, settings).eval()
        except ValueError as error:
            raise ConfigError(f"model.lora.target_modules: {error}") from error


def prepare_training(
    base: BaseModel, lora: Lora | None, seed: int, *, checkpointing: bool = False
) -> None:
    """`add_lora`, and gradient checkpointing where it is asked for.

    Raises:
        ConfigError: no module of the model has the names asked for, or it cannot checkpoint.
    """
    if checkpointing:
        try:
            base.module.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(
                f"local.gradient_checkpointing: {base.name} ({type(base.module).__name__}) does "
                "not support it; set it to false"
            ) from error
    else:
        base.module.gradient_checkpointing_disable()
    add_lora(base, lora, seed)


def remove_lora(base: BaseModel) -> None:
    """Give the base back as it was before `add_lora`."""
    if isinstance(base.module, peft.PeftModel):
        base.module = base.module.unload()
    base.module.requires_grad_(False)


def trainable(module: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, under the names of a PEFT checkpoint (or of the full model)."""
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {_checkpoint_name(name): parameter for name, parameter in named.items()}


def _checkpoint_name(parameter: str) -> str:
    # PEFT writes DoRA's magnitude under the name it had when it was a plain parameter.
    bare = parameter.replace(f"{MAGNITUDE}.default.weight", MAGNITUDE)
    return bare.replace(".default.", ".")


def get_state(module: Any) -> State:
    """A copy of the trainable weights, on their device."""
    return {name: p.detach().clone() for name, p in trainable(module).items()}


def on_device(state: State, device: torch.device) -> State:
    """The same state on a device."""
    return {name: tensor.to(device) for name, tensor in state.items()}


def lora_scaling(module: Any) -> dict[str, float]:
    """What the product of each LoRA module's factors is multiplied with; empty without LoRA."""
    if not isinstance(module, peft.PeftModel):
        return {}
    return {
        name: float(inner.scaling["default"])
        for name, inner in module.named_modules()
        if isinstance(inner, LoraLayer) and "default" in inner.scaling
    }


def set_base_delta(base: BaseModel, delta: State) -> None:
    """Make the frozen base weights the original ones plus `delta`.

    Args:
        base: the resident model.
        delta: per LoRA module, what is added to its weight; nothing restores the original.
    """
    with torch.no_grad():
        for name, original in base.originals.items():
            if name not in delta:
                _base_weight(base, name).copy_(original)
        for name, change in delta.items():
            weight = _base_weight(base, name)
            if name not in base.originals:
                base.originals[name] = weight.detach().clone()
            weight.copy_(base.originals[name] + change.to(weight.device, weight.dtype))
        base.originals = {name: base.originals[name] for name in delta}


def _base_weight(base: BaseModel, module: str) -> torch.nn.Parameter:
    inner = base.module.get_submodule(module)
    weight: torch.nn.Parameter = getattr(inner, "base_layer", inner).weight
    return weight


def set_state(module: Any, state: State) -> None:
    """Put weights into the trainable parameters.

    Raises:
        CheckpointError: names or shapes are not those of the model.
    """
    parameters = trainable(module)
    if parameters.keys() != state.keys():
        odd = sorted(parameters.keys() ^ state.keys())[0]
        raise CheckpointError(
            f"weights {odd!r} stand on one side only; they belong to another model"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != state[name].shape:
                raise CheckpointError(
                    f"weights {name!r} have shape {tuple(state[name].shape)}, the model's have "
                    f"{tuple(parameter.shape)}; they belong to another base"
                )
            parameter.copy_(state[name])


def save_checkpoint(
    base: BaseModel, state: State, directory: Path, delta: State | None = None
) -> None:
    """Write the trainable weights as a PEFT adapter directory, or as a full model directory.

    `delta` is what has been added to the frozen base weights, per LoRA module.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    if isinstance(base.module, peft.PeftModel):
        settings = base.module.peft_config["default"].to_dict()
        settings |= {"base_model_name_or_path": base.name, "inference_mode": True}
        text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)
        safetensors.torch.save_file(tensors, directory / ADAPTER_FILES[0], {"format": "pt"})
        (directory / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        if delta:
            safetensors.torch.save_file(delta, directory / BASE_DELTA, {"format": "pt"})
    else:
        safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        base.module.config.save_pretrained(directory)
        base.module.generation_config.save_pretrained(directory)
        base.tokenizer.save_pretrained(directory)

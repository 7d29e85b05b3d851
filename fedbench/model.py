"""The base model, its adapters, and checkpoints of every kind.

One base stays resident; trained weights are swapped in and out of it as a `State`. A checkpoint
is an ordinary PEFT adapter directory or a full model directory, so any tool can load ours, and
anyone's can be scored here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import safetensors
import safetensors.torch
import torch
import transformers

from fedbench.config import Lora, ModelConfig
from fedbench.errors import CheckpointError, ConfigError
from fedbench.federated.state import State

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
FULL_CONFIG = "config.json"

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

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return torch.device(self.module.device)

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
        with _quiet():
            module = transformers.AutoModelForCausalLM.from_pretrained(
                name,
                revision=config.revision,
                dtype=getattr(torch, config.dtype),
                attn_implementation=config.attention,
            )
    except (
        OSError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(
            f"{name}: cannot be loaded as a model with its tokenizer ({_reason(error)}); give a "
            "model directory or a hub id that this machine can reach"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # answers then end together, for training and generation alike
    # Frozen from the start: torch picks its kernels by requires_grad, so the base would answer with
    # other last bits before an adapter was on it than afterwards.
    module.to(device).eval().requires_grad_(False)
    module.generation_config = transformers.GenerationConfig(
        eos_token_id=module.generation_config.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BaseModel(module, tokenizer, name, base_hash(module, Path(name)))


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
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            base.module = peft.get_peft_model(base.module, settings)
        except ValueError as error:
            raise ConfigError(f"model.lora.target_modules: {error}") from error


def remove_lora(base: BaseModel) -> None:
    """Give the base back as it was before `add_lora`."""
    if isinstance(base.module, peft.PeftModel):
        base.module = base.module.unload()
    base.module.requires_grad_(False)


def trainable(module: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, under the names of a PEFT checkpoint (or of the full model)."""
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {name.replace(".default.", "."): parameter for name, parameter in named.items()}


def get_state(module: Any) -> State:
    """A copy of the trainable weights, on the CPU."""
    # clone() also for CPU tensors: a state is never changed behind its owner's back.
    return {name: p.detach().cpu().clone() for name, p in trainable(module).items()}


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


def save_checkpoint(base: BaseModel, state: State, directory: Path) -> None:
    """Write the trainable weights as a PEFT adapter directory, or as a full model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    if isinstance(base.module, peft.PeftModel):
        settings = base.module.peft_config["default"].to_dict()
        settings |= {"base_model_name_or_path": base.name, "inference_mode": True}
        text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)
        safetensors.torch.save_file(tensors, directory / ADAPTER_FILES[0], {"format": "pt"})
        (directory / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    else:
        safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        base.module.config.save_pretrained(directory)
        base.module.generation_config.save_pretrained(directory)
        base.tokenizer.save_pretrained(directory)


def load_state(directory: Path) -> State:
    """The weights of a checkpoint directory, adapter or full.

    Raises:
        CheckpointError: there are none, or the file is damaged or holds something else.
    """
    for name in (*ADAPTER_FILES, "model.safetensors"):
        if (directory / name).exists():
            return _read_weights(directory / name)
    raise CheckpointError(
        f"{directory}: holds no {ADAPTER_FILES[0]}, {ADAPTER_FILES[1]} or model.safetensors; "
        "give a PEFT adapter directory, a model directory or a run directory"
    )


def _read_weights(file: Path) -> State:
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        with _quiet():
            # weights_only: a pickle from elsewhere must not run code here.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file}: is not a file of weights ({_reason(error)}); "
            "save the adapter again with save_pretrained"
        ) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise CheckpointError(
            f"{file}: holds something else than named tensors; save the adapter again"
        )
    return state


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning about a pickle: what is wrong with it is said in one line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        yield


def _reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, pickle.UnpicklingError):  # torch would advise to run it all the same
        return "a pickle of it holds more than tensors, and was not run"
    return str(error).strip().split("\n")[0][:200]


def base_hash(module: Any, directory: Path) -> str:
    """Content hash of a model: of its weight files where it is a directory, else of its tensors."""
    digest = hashlib.sha256()
    if files := weight_files(directory):
        for file in files:
            digest.update(_file_hash(file).encode())
    else:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            )
    return digest.hexdigest()[:16]


def weights_hash(directory: Path) -> str:
    """Content hash of a checkpoint: its weights, and for an adapter what scales them."""
    digest = hashlib.sha256()
    for file in weight_files(directory):
        digest.update(_file_hash(file).encode())
    settings = directory / ADAPTER_CONFIG
    if settings.exists():
        read = json.loads(settings.read_text(encoding="utf-8"))
        read.pop("base_model_name_or_path", None)  # a place, not a property of the weights
        digest.update(json.dumps(read, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def weight_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that hold weights."""
    patterns = (*ADAPTER_FILES, "model*.safetensors", "pytorch_model*.bin")
    return sorted(file for pattern in patterns for file in directory.glob(pattern))


def _file_hash(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def adapter(base: BaseModel, directory: Path) -> Iterator[Any]:
    """The base with somebody's adapter on it, and off again afterwards.

    Raises:
        CheckpointError: the adapter cannot be read, or belongs to another base.
    """
    settings = _adapter_settings(directory)
    state = load_state(directory)
    settings.inference_mode = True
    settings.base_model_name_or_path = None  # PEFT warns where a base has moved; checked below
    try:
        with torch.random.fork_rng():
            module = peft.get_peft_model(base.module, settings)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: does not fit the base model {base.name} ({error})"
        ) from error
    try:
        _load_adapter(module, state, directory, base)
        yield module.eval()
    finally:
        module.unload()


def _adapter_settings(directory: Path) -> Any:
    try:
        return peft.PeftConfig.from_pretrained(str(directory))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{directory / ADAPTER_CONFIG}: cannot be read ({reason})") from error


def _load_adapter(module: Any, state: State, directory: Path, base: BaseModel) -> None:
    expected = peft.get_peft_model_state_dict(module)
    another = f"it was trained on another base than {base.name}; give its own with --base-model"
    if expected.keys() != state.keys():
        odd = sorted(expected.keys() ^ state.keys())[0]
        raise CheckpointError(
            f"{directory}: weights {odd!r} do not match the base model: {another}"
        )
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{directory}: weights {name!r} have shape {tuple(state[name].shape)} where the "
                f"base model needs {tuple(tensor.shape)}: {another}"
            )
    peft.set_peft_model_state_dict(module, state)

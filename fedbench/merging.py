"""One ordinary model out of an adapter and its base, for tools that know nothing of either."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench.checkpoints import BASES, foreign_checkpoint
from fedbench.errors import CheckpointError, OutputError
from fedbench.generation.backend import Checkpoint
from fedbench.model_config import ModelConfig
from fedbench.schema import validated

if TYPE_CHECKING:
    import torch

    from fedbench.federated.checkpoint import Round
    from fedbench.model import BaseModel

CHECKPOINTS = "checkpoints"


def merge(
    ckpt: str | Path,
    output: str | Path,
    *,
    base_model: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> Checkpoint:
    """Write an adapter and its base as one full model directory, which any tool loads.

    What an algorithm has added to the base (FLoRA, FedEx-LoRA) is merged as well, which PEFT alone
    would leave out.

    Args:
        ckpt: a PEFT adapter directory or its hub id, a committed round, or the personal model of a
            client within a round (``round-0010/client-0003``).
        output: the model directory to make; it appears only when it is complete.
        base_model: the base of an adapter whose own configuration does not lead to it.
        dtype: of the written weights, ``float32`` or ``bfloat16``; merged in float32 either way.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The written model, with the template that it was trained with where that is known.

    Raises:
        CheckpointError: there is no adapter, it is a full model already, or the base is another.
        ConfigError: the device is absent, or the base is quantized.
        OutputError: `output` exists, or cannot be written.
    """
    import torch

    from fedbench.model import load_base

    place = Path(output)
    if place.exists() or place.is_symlink():
        raise OutputError(f"{place}: exists and is not written over; choose another --output")
    round = _round_of(Path(ckpt))
    checkpoint = _adapter_at(str(ckpt), round, base_model)
    config = validated(ModelConfig, {"name": checkpoint.base, "device": device}, "merge")
    base = load_base(checkpoint.base, config)
    if round is not None:
        _check_base(base, round, Path(ckpt))
    _write(base, checkpoint, place, getattr(torch, dtype))
    template = round.template if round else None
    return replace(foreign_checkpoint(str(place)), template=template)


def _round_of(directory: Path) -> Round | None:
    """The record of a round, also of the one that a client's personal model belongs to."""
    from fedbench.federated.checkpoint import COMMIT, read_round

    round = directory.resolve().parent if _is_personal(directory) else directory
    return read_round(round / COMMIT) if (round / COMMIT).exists() else None


def _is_personal(directory: Path) -> bool:
    return directory.resolve().name.startswith("client-")


def _adapter_at(place: str, round: Round | None, base_model: str | None) -> Checkpoint:
    """The adapter at a place, with its base.

    Raises:
        CheckpointError: there is something else.
    """
    directory = Path(place)
    if (directory / CHECKPOINTS).is_dir():
        rounds = sorted((directory / CHECKPOINTS).glob("**/round-*"))
        example = f", such as {rounds[-1]}" if rounds else ""
        raise CheckpointError(f"{place}: is a whole run; give one round of it{example}")
    if round is not None and round.model_kind == "client" and not _is_personal(directory):
        raise CheckpointError(
            f"{place}: {round.method} has no global model; give the model of one client, such as "
            f"{directory / 'client-0000'}"
        )
    if round is not None and base_model is None:
        base_model = _base_of(round, directory)
    checkpoint = foreign_checkpoint(place, base_model)
    if checkpoint.kind == "full":
        raise CheckpointError(
            f"{place}: is a full model already, with nothing to merge; load it as it is"
        )
    return checkpoint


def _base_of(round: Round, directory: Path) -> str:
    """The base of a round: the one that lies in the run, also where the run was moved."""
    for run in directory.resolve().parents:
        kept = run / BASES / Path(round.base).name
        if (run / CHECKPOINTS).is_dir() and kept.is_dir():
            return str(kept)
    return round.base


def _check_base(base: BaseModel, round: Round, directory: Path) -> None:
    # The hash of a hub id is that of its tensors as they were loaded, so that it tells nothing
    # where the run had them in bfloat16 or quantized.
    same_id = base.name == round.base and not Path(base.name).is_dir()
    if base.hash != round.base_hash and not same_id:
        raise CheckpointError(
            f"{directory}: was trained on a base with weights {round.base_hash}, but {base.name} "
            f"has {base.hash}; give the right one with --base-model"
        )


def _write(base: BaseModel, checkpoint: Checkpoint, output: Path, dtype: torch.dtype) -> None:
    """Write the merged model beside its place, then move it there."""
    import safetensors

    from fedbench.adapters import save_merged

    assert checkpoint.directory is not None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as hidden:
            half = Path(hidden) / output.name
            save_merged(base, checkpoint.directory, half, dtype)
            half.rename(output)
    except (OSError, safetensors.SafetensorError) as error:
        raise OutputError(
            f"{output}: cannot be written ({error}); free some space or choose another --output"
        ) from error

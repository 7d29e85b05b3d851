"""Which weights are scored: those of a run, adapters and models from anyone, hub ids of either."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench.config import is_kept, parse_rounds
from fedbench.errors import CheckpointError, ConfigError
from fedbench.generation.backend import Checkpoint
from fedbench.results.record import ModelId

if TYPE_CHECKING:
    from fedbench.federated.checkpoint import Round

BASES = "base"
"""Where a run keeps the base models that it made."""
_PLACES = "a run directory, a PEFT adapter directory, a model directory or a hub id"
_NAMED = 5
"""Checkpoints that a message names."""
_SETTINGS = ("config.json", "generation_config.json")
_NO_ARITHMETIC = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Of a model's configuration, what its answers do not depend on: the type is the command's."""


def find_checkpoints(
    places: Sequence[str], base_model: str | None, rounds: str
) -> list[Checkpoint]:
    """The checkpoints at some places, each under a name of its own.

    Raises:
        CheckpointError: a place holds none.
        ConfigError: `rounds` is none of all, last, every N.
    """
    try:
        parse_rounds(rounds)
    except ValueError as error:
        raise ConfigError(f"--rounds: {error}") from error
    found: list[Checkpoint] = []
    for place in places:
        if not place:  # as of an unset variable of the shell; Path would take it for this directory
            raise CheckpointError(f"a checkpoint's place is empty; give {_PLACES} with --ckpt")
        if (Path(place) / "checkpoints").is_dir():
            found.extend(run_checkpoints(Path(place), rounds))
        else:
            found.append(foreign_checkpoint(place, base_model))
    return _named_apart(found)


def run_checkpoints(output: Path, rule: str) -> list[Checkpoint]:
    """The base of every seed, and the committed checkpoints of a run that the rule names.

    Raises:
        CheckpointError: nothing is committed there.
    """
    from fedbench.federated.checkpoint import COMMIT, read_round

    files = sorted((output / "checkpoints").glob(f"**/round-*/{COMMIT}"))
    rounds = [(file.parent, _at_home(output, read_round(file))) for file in files]
    if not rounds:
        raise CheckpointError(f"{output}: holds no committed round; train the run first")
    bases = {(round.seed, round.base): round for _, round in rounds}
    found = [_base_checkpoint(round) for round in bases.values()]
    for directory, round in rounds:
        alone = round.model_kind in ("local", "central")
        if alone and round.round < round.last_round:
            continue  # unfinished: saved against a kill only
        if not is_kept(round.round, round.last_round, rule):
            continue
        if round.model_kind == "client":
            found.extend(_personal_checkpoints(directory, round))
        else:
            found.append(_round_checkpoint(directory, round))
    return found


def _personal_checkpoints(directory: Path, round: Round) -> list[Checkpoint]:
    """Every client's own model, where a method has no global one."""
    from fedbench.weights import weights_hash

    return [
        _round_checkpoint(
            place,
            round.model_copy(
                update={
                    "model_client": int(place.name.removeprefix("client-")),
                    "weights_hash": weights_hash(place),
                }
            ),
        )
        for place in sorted(directory.glob("client-*"))
    ]


def _at_home(output: Path, round: Round) -> Round:
    """The round with the base that lies in the run, also where the run was moved."""
    kept = output.resolve() / BASES / Path(round.base).name
    return round.model_copy(update={"base": str(kept)}) if kept.is_dir() else round


def foreign_checkpoint(
    place: str, base_model: str | None = None, name: str | None = None
) -> Checkpoint:
    """An adapter directory, a full model directory, or a hub id of either, made by anyone.

    Raises:
        CheckpointError: it is none of these, or its base is not known.
    """
    from fedbench.federated.checkpoint import COMMIT, read_round
    from fedbench.weights import ADAPTER_CONFIG, weight_files, weights_hash

    directory = _download(place)
    if (directory / COMMIT).exists():
        checkpoint = _round_checkpoint(directory, read_round(directory / COMMIT))
        return replace(checkpoint, base=base_model or checkpoint.base, selected_by="only")
    model = ModelId(method=name or Path(place).name or place, model_kind="merged")
    if not (directory / ADAPTER_CONFIG).exists():
        if not weight_files(directory):
            within = _checkpoints_within(directory)
            raise CheckpointError(
                f"{directory}: holds neither {ADAPTER_CONFIG} nor model weights; give "
                + (f"those within it, each with --ckpt: {within}" if within else _PLACES)
            )
        digest = weights_hash(directory)
        return Checkpoint(
            model, "full", directory, base_model or str(directory), digest, "", selected_by="only"
        )
    base = base_model or _named_base(directory / ADAPTER_CONFIG)
    digest = weights_hash(directory)
    model = model.model_copy(update={"model_kind": "global"})
    return Checkpoint(model, "adapter", directory, base, digest, "", selected_by="only")


def architecture(directory: Path) -> str:
    """Hash of what a model directory says of computing with its weights, and of ending answers.

    Empty where it says nothing: a hub id goes by its name.
    """
    said = {}
    for name in _SETTINGS:
        with contextlib.suppress(OSError, ValueError):  # loading the model says what is wrong
            said[name] = json.loads((directory / name).read_text(encoding="utf-8"))
    settings, generation = (said.get(name) for name in _SETTINGS)
    if not isinstance(settings, dict):
        return ""
    known = {key: value for key, value in settings.items() if key not in _NO_ARITHMETIC}
    ends = generation.get("eos_token_id") if isinstance(generation, dict) else None
    text = json.dumps([known, ends], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checkpoints_within(directory: Path) -> str:
    """The adapters one level down, as frameworks save a folder of them; the first few by name."""
    from fedbench.weights import ADAPTER_CONFIG

    names = sorted(file.parent.name for file in directory.glob(f"*/{ADAPTER_CONFIG}"))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _named_apart(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Two models of one name are told apart by where they lie; what is named twice is one."""
    each: dict[tuple[str, Path | str], Checkpoint] = {}
    for checkpoint in checkpoints:
        # Runs may hold copies of one base, which is known by its weights.
        weights = checkpoint.weights_hash or checkpoint.base
        place = checkpoint.directory.resolve() if checkpoint.directory else weights
        each.setdefault((checkpoint.model.label(), place), checkpoint)
    labels = [label for label, _ in each]
    return [
        _called_by_its_place(checkpoint) if labels.count(label) > 1 else checkpoint
        for (label, _), checkpoint in each.items()
    ]


def _called_by_its_place(checkpoint: Checkpoint) -> Checkpoint:
    place = str(checkpoint.directory or checkpoint.base)
    return replace(checkpoint, model=checkpoint.model.model_copy(update={"method": place}))


def _base_checkpoint(round: Round) -> Checkpoint:
    return Checkpoint(
        model=ModelId(method="base", seed=round.seed, model_kind="base", round=0),
        kind="base",
        directory=None,
        base=round.base,
        weights_hash=round.base_hash,
        base_hash=round.base_hash,
        template=round.template,
        selected_by="only",
        train_examples=0,
    )


def _round_checkpoint(directory: Path, round: Round) -> Checkpoint:
    """The model of a committed round.

    Raises:
        CheckpointError: its weights were overwritten since, and would be scored under its name.
    """
    from fedbench.weights import ADAPTER_CONFIG, weights_hash

    found = weights_hash(directory)
    if round.weights_hash not in (found, ""):  # empty: of an earlier version
        raise CheckpointError(
            f"{directory}: its weights ({found}) are not those that were committed "
            f"({round.weights_hash} in round.json); put those back, or score a copy of the "
            "directory without round.json as a model of its own"
        )
    federated = round.model_kind in ("global", "client")
    return Checkpoint(
        model=ModelId(
            method=round.method,
            seed=round.seed,
            model_kind=round.model_kind,
            model_client=round.model_client,
            round=round.round,
        ),
        kind="adapter" if (directory / ADAPTER_CONFIG).exists() else "full",
        directory=directory,
        base=round.base,
        weights_hash=found,
        base_hash=round.base_hash,
        template=round.template,
        selected_by="last" if round.round == round.last_round else None,
        train_examples=round.train_examples,
        bytes_communicated=round.bytes_up + round.bytes_down if federated else None,
    )


def _download(place: str) -> Path:
    """A local directory, or the snapshot of a hub repository."""
    directory = Path(place)
    if directory.is_dir():
        return directory
    if directory.exists() or place.count("/") != 1 or place.startswith((".", "/")):
        raise CheckpointError(
            f"{place}: is no directory; give a run directory, a PEFT adapter directory, a model "
            "directory or a hub id such as org/name"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(place))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{place}: is no directory, and the hub did not give it ({reason}); check the name, "
            "the network and your access"
        ) from error


def _named_base(settings: Path) -> str:
    try:
        base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{settings}: cannot be read ({error}); save the adapter again"
        ) from error
    if not base:
        raise CheckpointError(
            f"{settings}: base_model_name_or_path is empty; name the base with --base-model"
        )
    return str(base)

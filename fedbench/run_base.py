"""The base model of a run: named, made within the run, or another adapter's outcome."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedbench.adapters import save_merged
from fedbench.checkpoints import BASES
from fedbench.config import RunConfig
from fedbench.errors import OutputError
from fedbench.model import load_base
from fedbench.pretrain import Progress, pretrained
from fedbench.weights import weights_hash


def base_directory(
    config: RunConfig, seed: int, private_texts: Sequence[str], output: Path, progress: Progress
) -> str:
    """Where the base model of a seed is: a hub id or directory, or one made within the run.

    A base made here is copied from the cache into the run, which is then complete by itself.

    Raises:
        OutputError: the disk is full.
    """
    if config.model.pretrain is None:
        return str(config.model.name)
    mirror = config.data.mirror
    made = pretrained(config.model.pretrain, seed, mirror, private_texts, progress)
    return _kept(output, made.name, partial(shutil.copytree, made, dirs_exist_ok=True))


def started_from(config: RunConfig, place: str, output: Path) -> str:
    """The base with the adapter merged that the run starts from, kept within the run.

    Raises:
        CheckpointError: the adapter cannot be read, or belongs to another base.
        OutputError: the disk is full.
    """
    if config.model.start_from is None:
        return place
    adapter = Path(config.model.start_from)

    def merge(directory: Path) -> None:
        save_merged(load_base(place, config.model), adapter, directory)

    return _kept(output, f"{Path(place).name}-{weights_hash(adapter)}", merge)


def _kept(output: Path, name: str, write: Callable[[Path], object]) -> str:
    """The directory of a base within the run; written where it is not there."""
    kept = output.resolve() / BASES / name
    if not kept.is_dir():
        half = kept.with_name(f".{name}")
        try:
            write(half)
            half.rename(kept)  # a kill leaves no half copy under its name
        except OSError as error:
            raise OutputError(
                f"{kept}: cannot be written ({error}); free some space or choose another --output, "
                "then run the same command again"
            ) from error
    return str(kept)

"""Which vLLM engine serves a checkpoint: the base with adapters beside one another, or its own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedbench.generation.backend import Checkpoint
from fedbench.generation.vllm.engine import Engine, EngineOptions
from fedbench.generation.vllm.serving import (
    LoraSettings,
    Serving,
    lora_id,
    lora_settings,
    serving_of,
    write_zero_adapter,
)
from fedbench.model_config import ModelConfig

_log = logging.getLogger(__name__)
_ZERO = "zero"


@dataclass(frozen=True)
class _Place:
    """Weights that an engine runs on."""

    checkpoint: Checkpoint | None
    """None: the base, with all adapters that are served beside one another."""


_BASE = _Place(None)


class Engines:
    """One engine at a time, on the weights that are asked.

    On CUDA the engine of the base sleeps while another one runs, and wakes up afterwards.
    """

    def __init__(self, base: str, config: ModelConfig, options: EngineOptions) -> None:
        self.current: Engine | None = None
        self.merge_seconds: float | None = None
        self._base = base
        self._config = config
        self._options = options
        self._place: _Place | None = None
        self._resting: Engine | None = None
        self._known: dict[str, Checkpoint] = {}
        self._servings: dict[str, Serving] = {}
        self._lora_ids: dict[str, int] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="fedbench-vllm-")

    def expect(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Size the engine of the base for some checkpoints.

        Raises:
            CheckpointError: one cannot be read.
        """
        for checkpoint in checkpoints:
            self.serving(checkpoint)

    def serving(self, checkpoint: Checkpoint) -> Serving:
        """How a checkpoint is served."""
        key = checkpoint.weights_hash
        if key not in self._servings:
            self._servings[key] = serving_of(checkpoint)
            self._known[key] = checkpoint
            self._say_merged(checkpoint)
        return self._servings[key]

    def adapters(self) -> list[Checkpoint]:
        """The checkpoints that are served as adapters."""
        return [self._known[key] for key, how in self._servings.items() if how.way == "adapter"]

    def needs_base(self) -> bool:
        """Whether the base itself is asked too."""
        return any(how.way == "base" for how in self._servings.values())

    def merge(self, checkpoint: Checkpoint, reason: str) -> None:
        """Serve an adapter merged from now on."""
        self._servings[checkpoint.weights_hash] = Serving("merged", reason)
        self._say_merged(checkpoint)

    def serves(self, checkpoint: Checkpoint) -> bool:
        """Whether the running engine can be asked for a checkpoint.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            DeadEngineError: the engine has ended.
        """
        serving = self.serving(checkpoint)
        if self.current is None or self._place != self._place_of(checkpoint):
            return False
        if serving.way != "adapter":
            return True
        if self.current.lora is None or not self.current.lora.holds(serving):
            return False
        reason = self.current.load_adapter(self._lora_request(checkpoint))
        if reason is not None:
            self.merge(checkpoint, f"vLLM refuses it: {reason}")
        return reason is None

    def switch(self, checkpoint: Checkpoint) -> None:
        """Run the engine that serves a checkpoint; nothing may be open on the one that runs.

        Raises:
            CheckpointError: an adapter cannot be read or merged.
            ConfigError: the engine cannot start.
        """
        place = self._place_of(checkpoint)
        self._rest(keep=place != _BASE)
        if place == _BASE and self._resting is not None:
            self.current, self._resting = self._resting, None
            self.current.wake()
        else:
            self.current = self._start(place)
        self._place = place

    def restart(self) -> None:
        """Start the running engine anew after it has died."""
        assert self.current is not None
        assert self._place is not None
        self.current.close()
        self.current = self._start(self._place)

    def lora(self, checkpoint: Checkpoint) -> Any:
        """The adapter that a request names, a vllm.LoRARequest or None."""
        serving = self.serving(checkpoint)
        if serving.way == "adapter":
            return self._lora_request(checkpoint)
        if serving.way == "base" and self._needs_zero():
            return self._zero()
        return None

    def reads_whole(self) -> bool:
        """Whether the running engine tells log-probabilities of prompts.

        On CPU it dies of them where LoRA is enabled (0.32: the kernel meets rows without adapter).
        """
        return self._options.device != "cpu" or self.current is None or self.current.lora is None

    def close(self) -> None:
        """End all engines, and delete what was merged."""
        for engine in (self.current, self._resting):
            if engine is not None:
                engine.close()
        self.current = self._resting = self._place = None
        self._directory.cleanup()

    def _place_of(self, checkpoint: Checkpoint) -> _Place:
        way = self.serving(checkpoint).way
        return _BASE if way in ("base", "adapter") else _Place(checkpoint)

    def _start(self, place: _Place) -> Engine:
        if place.checkpoint is None:
            return Engine(self._base, self._options, self._lora_settings())
        options = replace(self._options, sleep=False)
        if self.serving(place.checkpoint).way == "full":
            return Engine(str(place.checkpoint.directory), options, None)
        return Engine(str(self._merged(place.checkpoint)), options, None)

    def _rest(self, *, keep: bool) -> None:
        """Make room: the base's engine sleeps where that is possible, any other one ends."""
        if self.current is None:
            return
        if keep and self._place == _BASE and self._options.sleep:
            self.current.sleep()
            self._resting = self.current
        else:
            self.current.close()
        self.current = None

    def _merged(self, checkpoint: Checkpoint) -> Path:
        """A model directory with the adapter in it.

        Raises:
            CheckpointError: the adapter cannot be read or merged.
        """
        import time

        from fedbench.adapters import save_merged
        from fedbench.model import load_base

        directory = Path(self._directory.name) / checkpoint.weights_hash
        if not directory.exists():
            started = time.monotonic()
            assert checkpoint.directory is not None
            # On CPU: the engine wants the device's memory for itself.
            config = self._config.model_copy(update={"device": "cpu"})
            save_merged(load_base(self._base, config), checkpoint.directory, directory)
            self.merge_seconds = time.monotonic() - started
        return directory

    def _lora_settings(self) -> LoraSettings | None:
        extra = 1 if self._options.device == "cpu" else 0
        return lora_settings(list(self._servings.values()), extra)

    def _needs_zero(self) -> bool:
        # On CPU, rows without an adapter in a batch with some are given the one in the last place
        # (0.32: index -1): the base is asked by an adapter that changes nothing.
        return (
            self._options.device == "cpu"
            and self.current is not None
            and self.current.lora is not None
        )

    def _zero(self) -> Any:
        directory = Path(self._directory.name) / _ZERO
        if not directory.exists():
            like = self.adapters()[0].directory
            assert like is not None
            directory.mkdir()
            write_zero_adapter(like, directory)
        return self._request(_ZERO, "0", directory)

    def _lora_request(self, checkpoint: Checkpoint) -> Any:
        assert checkpoint.directory is not None
        return self._request(checkpoint.weights_hash, checkpoint.weights_hash, checkpoint.directory)

    def _request(self, name: str, contents: str, directory: Path) -> Any:
        from vllm.lora.request import LoRARequest

        if name not in self._lora_ids:
            self._lora_ids[name] = lora_id(contents, self._lora_ids.values())
        return LoRARequest(name, self._lora_ids[name], str(directory.resolve()))

    def _say_merged(self, checkpoint: Checkpoint) -> None:
        serving = self._servings[checkpoint.weights_hash]
        if serving.way == "merged":
            _log.info("%s: is merged (%s)", checkpoint.directory, serving.reason)

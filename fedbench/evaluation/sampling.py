"""How answers to a task's items are generated, as its file says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from fedbench.data.rows import Row
from fedbench.generation.backend import Sampling
from fedbench.schema import Part, Positive

Temperature = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class TemperatureBy(Part):
    """Temperatures of a protocol that asks some kinds of items differently (MT-Bench)."""

    column: str
    """Which kind a row is of."""
    values: dict[str, Temperature]
    """By kind; rows of another one have the task's `temperature`."""


class SamplingConfig(Part):
    """How answers are generated."""

    temperature: Temperature = 0.0
    temperature_by: TemperatureBy | None = None
    max_tokens: Positive = 256
    stop: tuple[str, ...] = ()
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    samples: Positive = 1
    """Answers to each item; several need a temperature."""

    @model_validator(mode="after")
    def _drawn(self) -> SamplingConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples are all the same at temperature 0; raise temperature")
        return self

    def refuse_too_few(self, metrics: Sequence[str]) -> None:
        """See that there are as many answers as metrics such as pass@5 are of.

        Raises:
            ValueError: one is of more, and would never have a value.
        """
        for name in metrics:
            k = name.partition("@")[2]
            if k.isdecimal() and int(k) > self.samples:
                raise ValueError(
                    f"metric {name} is of {k} answers to each item, but sampling.samples is "
                    f"{self.samples}; raise it"
                )

    @property
    def unsaid(self) -> set[str]:
        """The keys that came later, where they say nothing: tasks without them keep their hash."""
        usual: dict[str, Any] = {"top_p": 1.0, "samples": 1, "temperature_by": None}
        return {name for name, value in usual.items() if getattr(self, name) == value}

    def of(self, row: Row, seed: int) -> Sampling:
        """How the answer to a row is generated."""
        temperature = self.temperature
        if self.temperature_by is not None:
            kind = str(row.get(self.temperature_by.column))
            temperature = self.temperature_by.values.get(kind, temperature)
        return Sampling(
            temperature=temperature,
            max_tokens=self.max_tokens,
            stop=self.stop,
            seed=seed,
            top_p=self.top_p,
        )

"""The part `local.dp_sgd` of a run file, and what it cannot hold for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedbench.schema import Part

Above0 = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
NOISE = "dp_sgd/noise_multiplier"
"""Sent down beside the weights: the client's noise multiplier."""


class DpSgd(Part):
    """Example-level differential privacy in the client: DP-SGD.

    Abadi et al. 2016, Algorithm 1, https://arxiv.org/abs/1607.00133
    """

    noise_multiplier: Above0 | None = None
    """Standard deviation of the noise on a step's sum of clipped gradients, in clips."""
    target_epsilon: Above0 | None = None
    """In place of `noise_multiplier`: for each client as much noise as makes all its planned steps
    cost this epsilon."""
    max_grad_norm: Above0 = 1.0
    """Largest Euclidean norm of one example's gradient. `local.max_grad_norm`, which clips the
    whole gradient, is not used beside it."""
    delta: Share = 1e-5
    """The delta at which epsilon is told; less than one over the rows of any client."""
    accountant: Literal["rdp", "pld"] = "rdp"
    """Of the package dp-accounting. `rdp`: Rényi divergences; `pld`: privacy loss distributions,
    a lower epsilon for more computing."""
    noise: Literal["seeded", "system"] = "seeded"
    """Where noise and the draw of a step's rows come from. `seeded`: the seed of the run, which can
    be repeated and is marked as simulated; `system`: the operating system."""

    @model_validator(mode="after")
    def _one_way_to_noise(self) -> DpSgd:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("noise_multiplier and target_epsilon: give exactly one of the two")
        return self

    @property
    def simulated(self) -> bool:
        """Whether the noise can be had again from the seed, and protects nobody."""
        return self.noise == "seeded"

    def check(self, engine: str) -> None:
        """See that it fits the engine.

        Raises:
            ValueError: in words.
        """
        if engine == "flower_deployment" and self.simulated:
            raise ValueError(
                "local.dp_sgd.noise is seeded, which protects nobody, but engine is "
                "flower_deployment; set it to system"
            )


def sample_rate(batch_size: int, num_rows: int) -> float:
    """Probability of a row to be drawn for a step; a small client's rows are in every one."""
    return min(1.0, batch_size / num_rows)


def refuse_joined_examples(layout: str, *, by_length: bool, checkpointing: bool) -> None:
    """Refuse options of `local` under which an example has no gradient or no coin of its own.

    Raises:
        ValueError: says why, and what to do.
    """
    if layout == "packed":
        raise ValueError(
            "local.layout is packed, which puts several examples into one row, but local.dp_sgd "
            "clips the gradient of each; set it to padded"
        )
    if by_length:
        raise ValueError(
            "local.group_by_length chooses a step's rows by their lengths, but local.dp_sgd counts "
            "on a coin for each row; set it to false"
        )
    if checkpointing:
        raise ValueError(
            "local.gradient_checkpointing runs layers twice, which the gradients of single "
            "examples (local.dp_sgd) do not survive; set it to false, and lower "
            "local.micro_batch_size if memory is short"
        )


def refuse_without_example_gradients(objective: str, *, dora: bool, half_weights: bool) -> None:
    """Refuse runs in which one row's part in a step is not one clipped gradient with noise.

    Args:
        objective: its kind.
        dora: whether magnitudes are trained apart.
        half_weights: whether the trained weights are bfloat16.

    Raises:
        ValueError: says why, and what to do.
    """
    if objective == "kto":
        raise ValueError(
            "local.dp_sgd bounds what one row changes, but objective.kind kto compares each answer "
            "with those of other rows; choose sft"
        )
    if objective == "dpo":
        raise ValueError(
            "local.dp_sgd clips the gradient of one sequence, but an example of objective.kind dpo "
            "is a pair of them; choose sft"
        )
    if dora:
        raise ValueError(
            "local.dp_sgd has no gradients of single examples for magnitudes; set model.lora.dora "
            "to false"
        )
    if half_weights:
        raise ValueError(
            "local.dp_sgd adds noise that weights of model.dtype bfloat16 would round away; set it "
            "to float32, or train model.lora, whose weights are float32"
        )

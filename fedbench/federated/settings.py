"""What of a run file the rounds need: the federation, local training, the objective, transport."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedbench.federated.participation import Participation, Schedule, cohort_size
from fedbench.federated.privacy.dp_sgd import DpSgd, refuse_joined_examples
from fedbench.schema import Fraction, Part, Positive


class Transport(Part):
    """In which form weights travel between server and clients; see `transport`."""

    up: Literal["exact", "fp16", "bf16", "int8"] = "exact"
    """Of a client's change of the weights."""
    down: Literal["exact", "fp16", "bf16"] = "exact"
    """Of the global weights."""
    error_feedback: bool = True
    """A client adds what rounding took from its last update to its next one."""


class Federation(Part):
    """Clients, cohorts and rounds."""

    num_clients: Positive = 10
    clients_per_round: Positive | None = None
    """None: all of them."""
    rounds: Positive = 10
    participation: Participation = Participation()
    transport: Transport = Transport()

    @property
    def cohort_size(self) -> int:
        """How many clients are chosen in a round."""
        return cohort_size(self.participation, self.num_clients, self.clients_per_round)

    @model_validator(mode="after")
    def _enough_clients(self) -> Federation:
        if self.cohort_size > self.num_clients:
            raise ValueError(
                f"federation.clients_per_round is {self.clients_per_round} but "
                f"federation.num_clients is {self.num_clients}; lower the first or raise the second"
            )
        return self

    def schedule(self, local: Local) -> Schedule:
        """What the length of a client's turn follows from."""
        return Schedule(self.rounds, self.cohort_size, local.max_steps, local.batch_size)


class Local(Part):
    """What one client does in one round."""

    max_steps: Positive = 10
    batch_size: Positive = 16
    """Rows per optimizer step: sequences, preference pairs or rated answers."""
    micro_batch_size: Positive | None = None
    """Rows per forward pass; None: the whole batch. Gradients are accumulated."""
    group_by_length: bool = False
    """Batch a round's rows by like length: less padding, batches no longer a random draw."""
    layout: Literal["shared", "packed", "padded"] = "shared"
    """How a batch is laid out, at the same loss. `shared`: what sequences begin with is computed
    once, in as many rows as is cheapest; `packed`: rows are filled up to `packed_length`;
    `padded`: one sequence a row."""
    packed_length: Positive = 2048
    """Tokens of a packed row."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    optimizer_state: Literal["reset", "carry"] = "reset"
    """Whether a client's optimizer starts afresh in every round or keeps its moments."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    final_learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Cosine over rounds from `learning_rate` to this; None: constant."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clipping of the whole gradient, after the algorithm has changed it; None: no clipping."""
    dp_sgd: DpSgd | None = None
    """Clip the gradient of each example, add noise, and account for it; `local` and `centralised`
    train without, for comparison (docs/differential_privacy.md)."""

    @model_validator(mode="after")
    def _examples_stay_apart(self) -> Local:
        if self.dp_sgd is not None:
            refuse_joined_examples(
                self.layout,
                by_length=self.group_by_length,
                checkpointing=self.gradient_checkpointing,
            )
        return self


class SftObjective(Part):
    """Supervised fine-tuning: cross-entropy of the answers."""

    kind: Literal["sft"] = "sft"


class DpoObjective(Part):
    """Direct preference optimization; the reference is what training starts from."""

    kind: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference is the wrong way round (cDPO)."""
    max_prompt_length: Positive | None = None
    """Longest prompt in tokens, cut at its start; None: only `data.max_length` limits the whole."""

    @model_validator(mode="after")
    def _smoothing_has_a_place(self) -> DpoObjective:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to loss sigmoid; remove it or choose that")
        return self


class KtoObjective(Part):
    """Kahneman-Tversky optimization on single answers that are wanted or not."""

    kind: Literal["kto"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    max_prompt_length: Positive | None = None
    """Longest prompt in tokens, cut at its start; None: only `data.max_length` limits the whole."""


ObjectiveConfig = Annotated[SftObjective | DpoObjective | KtoObjective, Field(discriminator="kind")]

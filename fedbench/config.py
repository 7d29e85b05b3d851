"""The run file: one YAML, checked at the border and then trusted.

`load_config` reads it, applies ``--set`` overrides and returns a frozen `RunConfig`. Unknown keys
are refused with the nearest known one, and checks across fields name both. Defaults stand here,
once; `RunConfig.hash` goes into every record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from fedbench.errors import ConfigError
from fedbench.federated import BASELINES, make_algorithm
from fedbench.schema import Fraction, Part, Positive, read_yaml, validated


class Lora(Part):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685), made by PEFT."""

    r: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


class Cloze(Part):
    """Questions made from plain text alone (`fedbench.data.cloze`)."""

    words: Annotated[tuple[str, ...], Field(min_length=1)]
    """Words that are taken out, or asked for, where a text has one."""
    repeats: Positive = 3
    """How often each text is used."""


class Pretrain(Part):
    """A small Llama made within the run from named public text.

    For machines without a hub: the base model is built in minutes, and cached by the hash of
    everything that shapes it.
    """

    text: tuple[str, ...]
    """Data sets (`fedbench list datasets`) whose rows are read; no scored item is among them."""
    cloze: Cloze | None = None
    """Ask about the text instead of continuing it."""
    words: tuple[str, ...] = ()
    """Words that the tokenizer must know although the text lacks them (the label words)."""
    lowercase: bool = False
    """The tokenizer folds case and writes every URL alike: fewer words to learn."""
    template: str = "fingpt"
    vocab_size: Positive = 1536
    hidden_size: Positive = 128
    intermediate_size: Positive = 344
    num_layers: Positive = 2
    num_heads: Positive = 4
    initializer_range: Annotated[float, Field(gt=0)] = 0.08
    max_length: Positive = 160
    """Longest sequence in tokens; longer rows are cut."""
    steps: Positive = 500
    batch_size: Positive = 48
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    prompt_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """Loss weight of prompt tokens; answer tokens and plain text weigh 1."""
    seed: int | None = None
    """None: the seed of the run, so that every seed has a base of its own."""


class ModelConfig(Part):
    """The base model and what is trained of it."""

    name: str | None = None
    """Hub id or directory of a base model; leave out when `pretrain` makes one."""
    revision: str | None = None
    pretrain: Pretrain | None = None
    lora: Lora | None = Lora()
    """None trains all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["eager", "sdpa"] = "sdpa"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """torch.set_float32_matmul_precision: how float32 products may be rounded."""

    @model_validator(mode="after")
    def _one_base(self) -> ModelConfig:
        if (self.name is None) == (self.pretrain is None):
            raise ValueError("model.name and model.pretrain: give exactly one of the two")
        return self


class Iid(Part):
    """Every client's data come from the same distribution."""

    by: Literal["iid"] = "iid"


class Dirichlet(Part):
    """Each label is spread over clients by a draw from Dirichlet(alpha); small is very non-IID.

    Hsu et al. 2019, https://arxiv.org/abs/1909.06335
    """

    by: Literal["dirichlet"]
    alpha: Annotated[float, Field(gt=0)] = 0.5


class LabelSkew(Part):
    """Equal shards: client k draws `shares[j]` of its rows from label (k + j) mod L."""

    by: Literal["label_skew"]
    shares: tuple[float, ...]

    @model_validator(mode="after")
    def _sums_to_one(self) -> LabelSkew:
        if abs(sum(self.shares) - 1.0) > 1e-9:
            raise ValueError(f"shares sum to {sum(self.shares):g}; they must sum to 1")
        return self


Partition = Annotated[Iid | Dirichlet | LabelSkew, Field(discriminator="by")]


class DataConfig(Part):
    """The clients' private data."""

    train: str
    """A data set of `fedbench list datasets`, or a YAML file that describes one."""
    mirror: str | None = None
    """Directory with a MANIFEST.json that stands in for the hub; FEDBENCH_DATA if unset."""
    template: str = "chat"
    """How turns become text, in training and in scoring: a name or a Jinja file."""
    partition: Partition = Iid()
    validation: Fraction = 0.1
    """Share of each client's rows kept for validation."""
    test: Fraction = 0.1
    """Share of each client's rows kept for testing."""
    limit: Positive | None = None
    """Use only the first rows."""
    max_length: Positive = 512
    """Longest training sequence in tokens; prompts are cut at their start to keep the answer."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> DataConfig:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                f"data.validation ({self.validation:g}) and data.test ({self.test:g}) leave no "
                "training rows; lower one of them"
            )
        return self


class Federation(Part):
    """Clients, cohorts and rounds."""

    num_clients: Positive = 10
    clients_per_round: Positive | None = None
    """None: all of them."""
    rounds: Positive = 10

    @property
    def cohort_size(self) -> int:
        """How many clients train in a round."""
        return self.clients_per_round or self.num_clients

    @model_validator(mode="after")
    def _enough_clients(self) -> Federation:
        if self.cohort_size > self.num_clients:
            raise ValueError(
                f"federation.clients_per_round is {self.clients_per_round} but "
                f"federation.num_clients is {self.num_clients}; lower the first or raise the second"
            )
        return self


class Local(Part):
    """What one client does in one round. The optimizer starts afresh every time."""

    max_steps: Positive = 10
    batch_size: Positive = 16
    micro_batch_size: Positive | None = None
    """Sequences per forward pass; None: the whole batch. Gradients are accumulated."""
    group_by_length: bool = False
    """Batch a round's rows by like length: less padding, batches no longer a random draw."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    final_learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Cosine over rounds from `learning_rate` to this; None: constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clipping of the whole gradient, after the algorithm has changed it; None: no clipping."""


class Method(Part):
    """One way to train: `local`, `centralised`, or a federated algorithm with its options."""

    algorithm: str
    name: str
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """In place of `local.learning_rate`; the final one keeps its ratio."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters, checked against the algorithm's own fields."""


def _method(value: Any) -> Any:
    """Accept ``fedavg`` and ``{algorithm: fedprox, mu: 0.01, name: ...}``."""
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        return {"algorithm": value, "name": value}
    if isinstance(value, dict) and "algorithm" in value:
        own = {key: value[key] for key in Method.model_fields if key in value}
        options = {key: item for key, item in value.items() if key not in own}
        return {"name": value["algorithm"], **own, "options": options | value.get("options", {})}
    raise ValueError("give a name such as fedavg, or a mapping such as {algorithm: fedprox, mu: 1}")


class Evaluation(Part):
    """What is scored, of which rounds, and how."""

    tasks: tuple[str, ...] = ()
    suite: str | None = None
    backend: str = "transformers"
    rounds: str = "last"
    """Rounds of each federated method that are kept and scored: all, last, or every N."""
    references: tuple[Literal["majority", "tfidf"], ...] = ()
    """Rows that need no language model, trained on the clients' pooled training rows."""
    limit: Positive | None = None
    """Score only the first items of each task."""
    batch_tokens: Positive = 8192
    """Padded tokens per forward pass."""
    max_failed: Fraction = 0.05
    """A score is withheld when more than this share of its items failed."""

    @model_validator(mode="after")
    def _known_rounds(self) -> Evaluation:
        parse_rounds(self.rounds)
        if not self.tasks and self.suite is None:
            raise ValueError("evaluation.tasks and evaluation.suite are both empty; give one")
        return self


class RunConfig(Part):
    """One run file: several methods and seeds on the same data and model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    notes: tuple[str, ...] = ()
    """Sentences shown on the report: what the data are, what a reader must know."""
    model: ModelConfig
    data: DataConfig
    methods: Annotated[tuple[Annotated[Method, BeforeValidator(_method)], ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    federation: Federation = Federation()
    local: Local = Local()
    evaluation: Evaluation

    @model_validator(mode="after")
    def _known_algorithms(self) -> RunConfig:
        for position, method in enumerate(self.methods):
            try:
                if method.algorithm not in BASELINES:
                    make_algorithm(method.algorithm, method.options)
                elif method.options:
                    raise ValueError(
                        f"{method.algorithm} takes no options, but has {method.options}"
                    )
            except ValueError as error:
                raise ValueError(f"methods.{position}: {error}") from error
        return self

    @model_validator(mode="after")
    def _distinct(self) -> RunConfig:
        named: dict[str, list[Any]] = {
            "methods": [method.name for method in self.methods],
            "seeds": list(self.seeds),
        }
        for field, values in named.items():
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(
                    f"{field}: {sorted(twice)[0]!r} occurs twice; give each its own name"
                )
        return self

    def local_for(self, name: str) -> Local:
        """The local training of a method, at its own learning rate where it has one."""
        rate = next(method.learning_rate for method in self.methods if method.name == name)
        if rate is None:
            return self.local
        final = self.local.final_learning_rate
        scaled = None if final is None else final * rate / self.local.learning_rate
        return self.local.model_copy(update={"learning_rate": rate, "final_learning_rate": scaled})

    @property
    def hash(self) -> str:
        """Hash of everything that can change a result; texts for the reader are left out."""
        shape = self.model_dump(mode="json", exclude={"description", "notes"})
        shape["data"].pop("mirror")  # where the rows lie; what they are is pinned by content
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved run file, loadable again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_rounds(rule: str) -> int | None:
    """How often rounds are kept: 1 for ``all``, N for ``every N``, None for ``last``.

    Raises:
        ValueError: the rule is none of these.
    """
    if rule in ("all", "last"):
        return 1 if rule == "all" else None
    match = re.fullmatch(r"every ([1-9]\d*)", rule)
    if match is None:
        raise ValueError(f"rounds {rule!r} is not one of: all, last, every N (such as every 10)")
    return int(match[1])


def is_kept(round: int, last_round: int, rule: str) -> bool:
    """Whether a round belongs to those the rule names; the last one always does."""
    step = parse_rounds(rule)
    return round == last_round or (step is not None and round % step == 0)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply ``key.sub=value`` overrides (values are YAML).

    Raises:
        ConfigError: the file cannot be read or is wrong; names file and field.
    """
    raw = read_yaml(path)
    for override in overrides:
        _override(raw, override)
    return validated(RunConfig, raw, str(path))


def _override(raw: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {assignment}: is not key=value; write for example local.max_steps=2"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment}: the value is not YAML ({error})") from error
    *parents, last = key.split(".")
    place = raw
    for part in parents:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {assignment}: {part} is not a mapping in the run file")
        place = inner
    place[last] = value

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
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from fedbench.data.canaries import Canaries
from fedbench.data.datasets import TrainingData
from fedbench.data.partition_rules import Iid, Partition
from fedbench.federated import BASELINES, algorithm_file, make_algorithm
from fedbench.federated.attacks import Attack
from fedbench.federated.engines.settings import EngineName, Flower, refuse_undeployable
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.presets import preset_options, with_preset
from fedbench.federated.privacy.dp_sgd import refuse_without_example_gradients
from fedbench.federated.privacy.settings import Privacy, refuse_unprivate
from fedbench.federated.settings import Federation, Local, ObjectiveConfig, SftObjective
from fedbench.generation.workers import WORKER_OPTIONS
from fedbench.model_config import ModelConfig
from fedbench.schema import (
    Fraction,
    Part,
    Positive,
    override,
    read_yaml,
    refuse_infinite,
    validated,
)
from fedbench.tracking import TrackerName

# What numpy's generators, torch's and scikit-learn's all take.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class DataConfig(Part):
    """The clients' private data."""

    train: TrainingData
    """A data set of `fedbench list datasets`, a YAML file that describes one, its columns named
    right here, or several names: then each row's owner is its data set."""
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
    canaries: Canaries | None = None
    """Made-up secrets among the clients' training rows, for `fedbench privacy`."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> DataConfig:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                f"data.validation ({self.validation:g}) and data.test ({self.test:g}) leave no "
                "training rows; lower one of them"
            )
        return self


class Method(Part):
    """One way to train: `local`, `centralised`, or a federated algorithm with its options."""

    algorithm: str
    name: str
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """In place of `local.learning_rate`; the final one keeps its ratio."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters, checked against the algorithm's own fields."""

    @model_validator(mode="after")
    def _named_within_the_run(self) -> Method:
        place = PurePath(self.name)
        if not self.name.strip() or place.is_absolute() or {"..", "."} & {*self.name.split("/")}:
            raise ValueError(
                f"name {self.name!r} is to be a directory below the run's checkpoints/; give "
                "the method one such as name: clipped"
            )
        return self


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
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of the backend, such as batch_tokens or tensor_parallel_size."""
    server: str | None = None
    """A file that describes a server, for the backend openai (docs/servers.md)."""
    template: str | None = None
    """How a task's turns become text (name or file); as in training where none is given."""
    max_failed: Fraction = 0.05
    """A score is withheld when more than this share of its items failed."""
    audits: tuple[Literal["federation", "privacy"], ...] = ()
    """What `train-and-eval` measures of the run beside its tasks (docs/federation_metrics.md)."""

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
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    preset: str | None = None
    """Conventions of another system: defaults of this file and of the algorithms' options."""
    federation: Federation = Federation()
    local: Local = Local()
    objective: ObjectiveConfig = SftObjective()
    privacy: Privacy | None = None
    """Clip clients' updates, add noise, and account for it (docs/differential_privacy.md)."""
    attack: Attack | None = None
    """Some clients are hostile, to see which aggregation holds (docs/hostile_clients.md)."""
    engine: EngineName = "in_process"
    """Where clients train: one after the other in this process, in Flower's simulated workers, or
    on their owners' machines (docs/flower.md). The cohorts and the algorithms are the same."""
    flower: Flower = Flower()
    evaluation: Evaluation
    tracking: tuple[TrackerName, ...] = ()
    """Who is told of losses, bytes and scores: tensorboard, wandb, trackio; each needs its
    package."""

    @model_validator(mode="after")
    def _finite(self) -> RunConfig:
        refuse_infinite(self.model_dump())
        return self

    @model_validator(mode="after")
    def _known_algorithms(self) -> RunConfig:
        for position, method in enumerate(self.methods):
            try:
                if method.algorithm not in BASELINES:
                    self._checked(method)
                elif method.algorithm == "local":
                    self.local_clients(method)
                elif method.options:
                    raise ValueError(
                        f"{method.algorithm} takes no options, but has {method.options}"
                    )
            except ValueError as error:
                raise ValueError(f"methods.{position}: {error}") from error
        return self

    @model_validator(mode="after")
    def _deployable(self) -> RunConfig:
        if self.engine == "flower_deployment":
            refuse_undeployable([m.algorithm for m in self.methods], self.model.pretrain)
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
                mend = "give each its own name" if field == "methods" else "remove one of them"
                raise ValueError(f"{field}: {sorted(twice)[0]!r} occurs twice; {mend}")
        for position, name in enumerate(named["methods"]):
            if name in ("base", *self.evaluation.references):
                raise ValueError(
                    f"methods.{position}: {name!r} is the name of another row of the tables; "
                    "give the method one of its own"
                )
        return self

    @model_validator(mode="after")
    def _privacy_and_attack_fit(self) -> RunConfig:
        if self.privacy is not None:
            self.privacy.check(self.federation, self.engine)
        elif self.federation.participation.sampling == "poisson":
            raise ValueError(
                "federation.participation.sampling is poisson, which leaves some rounds without "
                "anybody; choose uniform, or add privacy"
            )
        if self.attack is not None:
            self.attack.check(self.federation.num_clients, self.engine)
        return self

    @model_validator(mode="after")
    def _dp_sgd_fits(self) -> RunConfig:
        if self.local.dp_sgd is not None:
            self.local.dp_sgd.check(self.engine)
            lora = self.model.lora
            refuse_without_example_gradients(
                self.objective.kind,
                dora=lora is not None and lora.dora,
                half_weights=lora is None and self.model.dtype == "bfloat16",
            )
        return self

    @model_validator(mode="after")
    def _canaries_fit(self) -> RunConfig:
        if self.data.canaries is not None:
            self.data.canaries.check(self.objective.kind, self.federation.num_clients)
        return self

    def _checked(self, method: Method) -> None:
        """Raise ValueError where a method's options are wrong, or it does not fit the run."""
        algorithm = self.algorithm_for(method)
        refuse_infinite(asdict(algorithm), method.algorithm)
        model = self.model
        if self.privacy is not None:
            refuse_unprivate(method.algorithm, algorithm)
        if algorithm.needs_lora and model.lora is None:
            raise ValueError(f"{method.algorithm} is defined on LoRA adapters; set model.lora")
        if algorithm.changes_base and model.quantization:
            raise ValueError(
                f"{method.algorithm} adds to the base weights, which model.quantization would "
                "round; remove it or choose another algorithm"
            )
        algorithm.check_run(self.federation.cohort_size, model.lora.r if model.lora else None)
        products = algorithm.changes_base or algorithm.restarts_adapters
        if products and model.lora and model.lora.dora:
            raise ValueError(
                f"{method.algorithm} is defined on products of factors; remove model.lora.dora or "
                "choose another algorithm"
            )
        transport = self.federation.transport
        carried = self.local.optimizer_state == "carry" or (
            transport.up != "exact" and transport.error_feedback
        )
        if algorithm.restarts_adapters and carried:
            raise ValueError(
                f"{method.algorithm} gives clients new factors in every round; set "
                "local.optimizer_state to reset and federation.transport.error_feedback to false"
            )

    def algorithm_for(self, method: Method) -> FedAvg:
        """A method's algorithm, its options over those of the preset."""
        options = preset_options(self.preset, method.algorithm) | method.options
        return make_algorithm(method.algorithm, options)

    def local_clients(self, method: Method) -> tuple[int, ...]:
        """The clients that a `local` method trains: those of its option `clients`, or all.

        Raises:
            ValueError: another option is given, or a client that does not exist.
        """
        number = self.federation.num_clients
        clients = method.options.get("clients", list(range(number)))
        if method.options.keys() - {"clients"}:
            raise ValueError(f"local takes the option clients alone, but has {method.options}")
        if not isinstance(clients, list | tuple) or not clients:
            raise ValueError(f"clients of local must be a list such as [0, 3], not {clients!r}")
        for client in clients:
            if not isinstance(client, int) or not 0 <= client < number:
                raise ValueError(
                    f"local names client {client!r}, but clients are numbered 0 to {number - 1}"
                )
        return tuple(sorted(set(clients)))

    def local_for(self, name: str) -> Local:
        """The local training of a method, at its own learning rate where it has one."""
        method = next(method for method in self.methods if method.name == name)
        local, rate = self.local, method.learning_rate
        if local.dp_sgd is not None and method.algorithm in BASELINES:
            local = local.model_copy(update={"dp_sgd": None})
        if rate is None:
            return local
        final = local.final_learning_rate
        scaled = None if final is None else final * rate / local.learning_rate
        return local.model_copy(update={"learning_rate": rate, "final_learning_rate": scaled})

    @property
    def hash(self) -> str:
        """Hash of the identity."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change a result; texts for the reader are left out."""
        # Engines give the same weights but for rounding.
        unseen = {"description", "notes", "engine", "flower", "tracking"}
        shape = self.model_dump(mode="json", exclude=unseen)
        shape["data"].pop("mirror")  # where the rows lie; what they are is pinned by content
        engine = shape["evaluation"]["engine"]  # who shares the questions changes no answer
        shape["evaluation"]["engine"] = {k: v for k, v in engine.items() if k not in WORKER_OPTIONS}
        later = (
            ("data", "canaries"),
            ("evaluation", "audits"),
            ("evaluation", "template"),
            ("local", "dp_sgd"),
        )
        for part, key in later:
            if not shape[part][key]:
                del shape[part][key]  # it came later: runs without it keep their hash
        for part in ("privacy", "attack"):
            if shape[part] is None:
                del shape[part]
        if self.privacy is not None:  # of this an engine decides
            shape["privacy"]["simulated"] = self.privacy.simulated(self.engine)
        for method, dumped in zip(self.methods, shape["methods"], strict=True):
            if method.algorithm not in BASELINES:
                # A preset's values and an own algorithm's code shape the result as options do.
                dumped["options"] = asdict(self.algorithm_for(method))
            if (file := algorithm_file(method.algorithm)) is not None:
                dumped["source"] = file.read_text(encoding="utf-8")
        return shape

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


def load_config(path: Path, overrides: Sequence[str] = (), preset: str | None = None) -> RunConfig:
    """Read a run file and apply ``key.sub=value`` overrides (values are YAML).

    Args:
        path: the run file.
        overrides: assignments that win over the file.
        preset: conventions beneath the file's own keys, in place of its ``preset``.

    Raises:
        ConfigError: the file cannot be read or is wrong; names file and field.
    """
    raw = read_yaml(path)
    if preset is not None:
        raw["preset"] = preset
    for assignment in overrides:
        override(raw, assignment)
    return validated(RunConfig, with_preset(raw), str(path))

"""What sets the runs of one leaderboard apart: data, base model, split over clients.

Runs that differ in nothing but methods and seeds are one setting, and their records one set of
rows. Where there are several settings, each has rows of its own, named ``fedavg · dirichlet 0.1``
after what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from fedbench.results.record import ScoreRecord
from fedbench.results.samples import Results, SampleTable
from fedbench.schema import with_defaults

SEPARATOR = " · "
UNKNOWN = "not recorded"
_NOT_THE_SETTING = (
    *(
        "name",
        "description",
        "notes",
        "methods",
        "seeds",
        "preset",
        "engine",
        "flower",
        "evaluation",
        "tracking",
    ),
)


@dataclass(frozen=True)
class Setting:
    """Under which conditions a row was trained."""

    label: str = ""
    """What sets it apart from the others of its leaderboard; empty where there is one setting."""
    data: str = UNKNOWN
    model: str = UNKNOWN
    partition: str = UNKNOWN
    privacy: str = ""
    """What protects clients or their rows: ``epsilon 4``, ``example noise 0.8``; empty where
    nothing does."""
    base_label: str = ""
    """The label of its base model's rows, which settings with the same base share."""
    num_clients: int = 0
    """As configured; 0 where that is not recorded."""

    def compares_with(self, other: Setting) -> bool:
        """Whether a difference from the other's rows says something of the method alone."""
        return other.label in ("", self.label, self.base_label)


def apart(runs: Sequence[Results]) -> tuple[list[Results], dict[str, Setting]]:
    """The runs with methods that are named after their setting, and the settings by label.

    A single setting changes no name; its label is empty.
    """
    keys = [_key(run) for run in runs]
    kinds = list(dict.fromkeys(key for key in keys if key is not None))
    if len(kinds) < 2:
        known = [run for run, key in zip(runs, keys, strict=True) if key is not None]
        return list(runs), {"": _setting((known or list(runs))[0]) if runs else Setting()}
    settings = _labelled([_setting(run) for run in runs], keys, [run.path.name for run in runs])
    shared = _agreeing_bases(runs, settings)
    named = [_renamed(run, setting, shared) for run, setting in zip(runs, settings, strict=True)]
    by_label = {setting.label: setting for setting in settings}
    for setting in settings if shared else ():
        by_label.setdefault(
            setting.base_label,
            Setting(setting.base_label, setting.data, setting.model, base_label=setting.base_label),
        )
    return named, by_label


def split_name(method: str) -> tuple[str, str]:
    """The method's own name, and the label of its setting."""
    name, _, label = method.partition(SEPARATOR)
    return name, label


def join_name(name: str, label: str) -> str:
    """The method under the name that it has among several settings."""
    return f"{name}{SEPARATOR}{label}" if label else name


def describe_partition(rule: Mapping[str, Any] | None) -> str:
    """``iid``; ``dirichlet 0.5``; ``label_skew, shares 0.7 and 0.3``."""
    if not rule:
        return UNKNOWN
    name, options = str(rule.get("by", UNKNOWN)), {k: v for k, v in rule.items() if k != "by"}
    if name.startswith("dirichlet"):
        options.pop("min_rows", None)  # which draws do not count; the facts of the run have it
    if name == "shards" and set(options) == {"per_client"}:
        return f"shards, {options['per_client']} per client"
    if set(options) == {"alpha"}:
        return f"{name} {_short(options['alpha'])}"
    shown = (f"{key} {_short(value)}" for key, value in options.items() if value is not None)
    return ", ".join([name, *shown])


def describe_privacy(config: Mapping[str, Any]) -> str:
    """``epsilon 4`` where that was the aim for clients, or ``noise 0.8``; empty without privacy.

    Privacy of single rows, by DP-SGD in the clients, is ``example epsilon 4``.
    """
    parts = {
        "": config.get("privacy"),
        "example ": (config.get("local") or {}).get("dp_sgd"),
    }
    return ", ".join(f"{level}{_aim(part)}" for level, part in parts.items() if part)


def _aim(privacy: Mapping[str, Any]) -> str:
    if privacy.get("target_epsilon") is not None:
        return f"epsilon {_short(privacy['target_epsilon'])}"
    return f"noise {_short(privacy.get('noise_multiplier', UNKNOWN))}"


def describe_model(model: Mapping[str, Any] | None) -> str:
    """The name of a base model without its owner, or the size of one made within the run."""
    model = model or {}
    if model.get("name"):
        return PurePath(str(model["name"])).name
    if model.get("pretrain"):
        made = model["pretrain"]
        return f"Llama made here, {made.get('num_layers')} × {made.get('hidden_size')}"
    return UNKNOWN


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(run: Results) -> Setting:
    config = (run.run.config if run.run else None) or {}
    data = config.get("data") or {}
    return Setting(
        data=_data_name(data.get("train")),
        model=describe_model(config.get("model")),
        partition=describe_partition(data.get("partition")),
        privacy=describe_privacy(config),
        num_clients=int((config.get("federation") or {}).get("num_clients") or 0),
    )


def _data_name(train: Any) -> str:
    if isinstance(train, str):
        return PurePath(train).stem if "/" in train else train
    if isinstance(train, list | tuple):
        return " + ".join(map(_data_name, train))
    if isinstance(train, Mapping):
        return PurePath(str(train.get("path", UNKNOWN))).stem
    return UNKNOWN


def _key(run: Results) -> str | None:
    """Equal for runs that differ in methods and seeds alone; None where it is not recorded."""
    from fedbench.config import RunConfig

    written = (run.run.config if run.run else None) or {}
    if not written.keys() - set(_NOT_THE_SETTING):
        return None
    config = with_defaults(RunConfig, written)
    for name in _NOT_THE_SETTING:
        config.pop(name, None)
    if isinstance(config.get("data"), Mapping):  # where the rows lie is no condition
        config["data"] = {k: v for k, v in config["data"].items() if k != "mirror"}
    return json.dumps(config, sort_keys=True)


def _labelled(
    settings: Sequence[Setting], keys: Sequence[str | None], names: Sequence[str]
) -> list[Setting]:
    """Each with a label of the parts in which they differ, and of its run where that is too few."""
    differing = [
        part
        for part in ("data", "model", "partition")
        if len({getattr(setting, part) for setting in settings}) > 1
    ]
    labels = [", ".join(getattr(s, part) for part in differing) for s in settings]
    if len({s.num_clients for s in settings}) > 1:
        labels = [
            ", ".join(filter(None, (label, f"{s.num_clients} clients")))
            for label, s in zip(labels, settings, strict=True)
        ]
    if len({s.privacy for s in settings}) > 1:
        labels = [
            ", ".join(filter(None, (label, s.privacy or "not private")))
            for label, s in zip(labels, settings, strict=True)
        ]
    if len(set(labels)) < len(set(keys)):
        labels = [
            ", ".join(filter(None, (label, name)))
            for label, name in zip(labels, names, strict=True)
        ]
    return [
        replace(s, label=label, base_label=s.model if "model" in differing else "")
        for s, label in zip(settings, labels, strict=True)
    ]


def _agreeing_bases(runs: Sequence[Results], settings: Sequence[Setting]) -> bool:
    """Whether settings that name one base model have the same scores of it."""
    first: dict[tuple[Any, ...], tuple[float | None, str | None]] = {}
    for run, setting in zip(runs, settings, strict=True):
        for score in run.scores:
            if score.model_kind == "base":
                place = (setting.base_label, score.model, score.task_key, score.metric, score.group)
                scored = (score.value, score.weights_hash)
                if first.setdefault(place, scored) != scored:
                    return False
    return True


def _renamed(run: Results, setting: Setting, shared: bool) -> Results:
    def name(method: str, kind: str) -> str:
        return join_name(method, setting.base_label if shared and kind == "base" else setting.label)

    def score(record: ScoreRecord) -> ScoreRecord:
        return record.model_copy(update={"method": name(record.method, record.model_kind)})

    def table(samples: SampleTable) -> SampleTable:
        answers = [
            own.model_copy(
                update={
                    "model": own.model.model_copy(
                        update={"method": name(own.model.method, own.model.model_kind)}
                    )
                }
            )
            for own in samples.answers
        ]
        return samples.model_copy(update={"answers": answers})

    about = run.run
    if about is not None and about.privacy:
        spent = [p.model_copy(update={"method": name(p.method, "global")}) for p in about.privacy]
        about = about.model_copy(update={"privacy": tuple(spent)})
    return replace(
        run,
        run=about,
        scores=[score(record) for record in run.scores],
        samples={key: table(samples) for key, samples in run.samples.items()},
    )

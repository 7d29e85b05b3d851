"""What was run, in words: the data, the model, the budgets, and what privacy cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedbench.results.record import PrivacyRecord, RunRecord
from fedbench.schema import with_defaults

FACTS = {
    "data": "Private data",
    "public_text": "Public text",
    "model": "Model",
    "partition": "Split over clients",
    "federation": "Federation",
    "privacy": "Privacy spent",
    "budgets": "Budgets",
    "training_rows": "Training rows",
    "dropped_rows": "Training rows dropped",
    "prompts_cut": "Prompts cut to fit",
}
"""Facts of a run in the order of the page; others follow under their own names."""
_SHOWN_ELSEWHERE = ("clients", "notes", "canaries")


def run_facts(run: RunRecord) -> list[tuple[str, str]]:
    """What was run, as label and text: recorded facts first, else what the configuration says."""
    known = _config_facts(run.config or {}) | {
        key: fact for key, fact in run.facts.items() if key not in _SHOWN_ELSEWHERE
    }
    for key in ("data", "model", "partition"):
        known.setdefault(key, "— (not recorded)")
    if run.privacy:
        known["privacy"] = "; ".join(map(privacy_over_rounds, run.privacy))
    order = [*(key for key in FACTS if key in known), *(key for key in known if key not in FACTS)]
    return [
        (FACTS.get(key, key.replace("_", " ").capitalize()), fact_text(known[key])) for key in order
    ]


def privacy_over_rounds(spent: PrivacyRecord) -> str:
    """``fedavg, seed 0: ε per client 1.2, 1.9, 2.6 after rounds 1, 5, 10 (δ 1e-05, rdp)``."""
    last = len(spent.epsilons)
    shown = [n for n in range(1, last + 1) if n in (1, last) or n % -(-last // 8) == 0]
    values = ", ".join(f"{spent.epsilons[n - 1]:.3g}" for n in shown)
    about = [f"δ {spent.delta:g}", spent.accountant, *(["simulated"] if spent.simulated else [])]
    stopped = ""
    if spent.stopped_after == 0:
        stopped = ", the budget did not pay for one round"
    elif spent.stopped_after is not None:
        stopped = f", stopped after round {spent.stopped_after}"
    return (
        f"{spent.method}, seed {spent.seed}: ε per {spent.level} {values} after rounds "
        f"{', '.join(map(str, shown))} ({', '.join(about)}){stopped}"
    )


def run_notes(run: RunRecord) -> list[str]:
    """Sentences that a reader must know, from the run file and from the run itself."""
    config_notes = (run.config or {}).get("notes") or []
    return list(dict.fromkeys([*map(str, config_notes), *map(str, run.facts.get("notes") or [])]))


def fact_text(fact: Any) -> str:
    """A fact of any shape as text."""
    if fact is None:
        return "—"
    if isinstance(fact, Mapping):
        return ", ".join(f"{key}: {fact_text(value)}" for key, value in fact.items()) or "none"
    if isinstance(fact, (list, tuple)):
        return ", ".join(fact_text(value) for value in fact) or "none"
    if isinstance(fact, (int, float)) and not isinstance(fact, bool):
        return f"{fact:,}"
    return str(fact)


def _config_facts(config: Mapping[str, Any]) -> dict[str, str]:
    """What can be read off a resolved run file; an earlier version wrote fewer keys."""
    from fedbench.config import RunConfig

    config = {k: v for k, v in with_defaults(RunConfig, config).items() if k in config}
    facts = {}
    model, data = config.get("model") or {}, config.get("data") or {}
    if model.get("pretrain"):
        pretrain = model["pretrain"]
        facts["public_text"] = fact_text(pretrain.get("text") or "— (not recorded)")
        facts["model"] = (
            f"Llama pre-trained within the run: hidden {pretrain['hidden_size']}, "
            f"{pretrain['num_layers']} layers, {pretrain['steps']} steps of "
            f"{pretrain['batch_size']} sequences"
        )
    elif model.get("name"):
        facts["model"] = f"{model['name']} at revision {model.get('revision') or 'not pinned'}"
    if "model" in facts:
        lora = model.get("lora")
        facts["model"] += f"; LoRA of rank {lora['r']}" if lora else "; all weights trained"
    if data.get("partition"):
        rule = dict(data["partition"])
        options = ", ".join(
            f"{key} {fact_text(value)}" for key, value in rule.items() if key != "by"
        )
        facts["partition"] = f"{rule.get('by')}{f' ({options})' if options else ''}"
    if config.get("federation"):
        federation = config["federation"]
        cohort = federation.get("clients_per_round") or federation["num_clients"]
        facts["federation"] = (
            f"{federation['num_clients']} clients, {cohort} in each of "
            f"{federation['rounds']} rounds"
        )
    if config.get("local"):
        local = config["local"]
        facts["budgets"] = (
            f"{local['max_steps']} steps of {local['batch_size']} samples per client and round "
            f"({local['optimizer']}, learning rate {local['learning_rate']:g}"
            f"{''.join(_own_rates(config))})"
        )
    return facts


def _own_rates(config: Mapping[str, Any]) -> Iterator[str]:
    for method in config.get("methods") or []:
        if isinstance(method, Mapping) and method.get("learning_rate"):
            yield f", {method.get('name') or method.get('algorithm')} {method['learning_rate']:g}"

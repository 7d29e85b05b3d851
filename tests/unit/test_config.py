"""The run file: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbench.config import Method, RunConfig, is_kept, load_config, parse_rounds
from fedbench.errors import ConfigError
from fedbench.schema import validated

MINIMAL: dict[str, Any] = {
    "name": "made",
    "model": {"name": "org/base"},
    "data": {"train": "headlines"},
    "methods": ["fedavg"],
    "evaluation": {"tasks": ["headlines"]},
}


def config(**changes: Any) -> RunConfig:
    """The minimal run with keys such as ``local__max_steps`` set."""
    return validated(RunConfig, raw(**changes), "run.yaml")


def raw(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(MINIMAL)
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize(
    ("changes", "field", "meant"),
    [
        ({"federatoin": {}}, "federatoin", "federation"),
        ({"local__max_step": 3}, "local.max_step", "max_steps"),
        ({"local__learning_rat": 0.1}, "local.learning_rat", "learning_rate"),
        ({"model__lora": {"ranks": 4, "alhpa": 8}}, "model.lora.alhpa", "alpha"),
        ({"data__partition": {"by": "dirichlet", "alpa": 1}}, "data.partition.alpa", "alpha"),
        ({"evaluation__task": ["fpb"]}, "evaluation.task", "tasks"),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_that_was_meant(
    changes: dict[str, Any], field: str, meant: str
) -> None:
    message = refusal(**changes)
    assert message.startswith("run.yaml: ")
    assert f"{field}: unknown key; did you mean {meant!r}?" in message


def test_an_unknown_key_like_no_other_is_refused_without_a_guess() -> None:
    assert "run.yaml: zzz: unknown key; remove it" in refusal(zzz=1)
    # "notes" is a key of the file, and none of federation.
    assert "federation.nope: unknown key; remove it" in refusal(federation={"nope": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 3}, "max_steps: unknown key; did you mean local.max_steps?"),
        ({"local__rounds": 3}, "did you mean federation.rounds or evaluation.rounds?"),
        ({"federation__seeds": [1]}, "federation.seeds: unknown key; did you mean seeds?"),
        (
            {"data__partition": {"by": "iid", "alpha": 0.5}},
            "data.partition.alpha: unknown key; it is for dirichlet, dirichlet_sizes, "
            "and not for iid",
        ),
        (
            {"objective": {"kind": "sft", "beta": 0.1}},
            "objective.beta: unknown key; it is for dpo, kto, and not for sft",
        ),
    ],
)
def test_a_key_at_the_wrong_place_is_refused_with_the_place_where_it_belongs(
    changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__partition": {"by": "dirichlt"}},
            "run.yaml: data.partition.by: unknown 'dirichlt': did you mean 'dirichlet'? known are "
            "iid, dirichlet, ",
        ),
        ({"objective": {"kind": "ppo"}}, "objective.kind: unknown 'ppo': "),
        ({"objective": {"beta": 1}}, "objective.kind: is required; add it"),
    ],
)
def test_a_kind_that_there_is_not_is_told_by_the_key_that_names_it(
    changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 3}, "seeds: give a list, in brackets (it is 3)"),
        ({"local": 5}, "local: give a mapping: keys with their values (it is 5)"),
        ({"data__partition": "iid"}, "data.partition: give a mapping"),
        ({"methods": []}, "methods: give a list of at least 1 (it is [])"),
    ],
)
def test_a_value_of_the_wrong_shape_is_told_in_terms_of_yaml(
    changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(**changes)


def test_a_list_whose_only_item_is_wrong_is_not_called_too_short() -> None:
    message = refusal(methods=["elsewhere/own.py:Own"])
    assert "methods.0: " in message
    assert "at least 1" not in message


def test_a_missing_key_is_named() -> None:
    without = {key: value for key, value in MINIMAL.items() if key != "data"}
    with pytest.raises(ConfigError, match=r"run\.yaml: data: is required; add it"):
        validated(RunConfig, without, "run.yaml")


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        (
            {"federation": {"num_clients": 4, "clients_per_round": 8}},
            ("federation.clients_per_round is 8", "federation.num_clients is 4"),
        ),
        (
            {"data__validation": 0.5, "data__test": 0.5},
            ("data.validation (0.5)", "data.test (0.5)"),
        ),
        ({"model": {}}, ("model.name", "model.pretrain")),
        ({"model__pretrain": {"text": ["headlines_public"]}}, ("model.name", "model.pretrain")),
        ({"evaluation": {}}, ("evaluation.tasks", "evaluation.suite")),
    ],
)
def test_an_error_across_fields_names_both(
    changes: dict[str, Any], fields: tuple[str, str]
) -> None:
    message = refusal(**changes)
    assert all(field in message for field in fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federation__rounds": 0}, "federation.rounds: "),
        ({"local__learning_rate": -1.0}, "local.learning_rate: "),
        ({"model__lora": {"dropout": 1.0}}, "model.lora.dropout: "),
        ({"data__partition": {"by": "label_skew", "shares": [0.7, 0.2]}}, "shares sum to 0.9"),
        ({"data__partition": {"by": "dirichlett"}}, "data.partition.by: "),
        ({"evaluation__rounds": "every second"}, "every second"),
        ({"evaluation__references": ["majorty"]}, "evaluation.references.0: "),
        ({"seeds": []}, "seeds: "),
        ({"methods": []}, "methods: "),
        ({"name": "a/b"}, "name: "),
        ({"seeds": [1, 1]}, "seeds: 1 occurs twice"),
        ({"methods": ["fedavg", "fedavg"]}, "methods: 'fedavg' occurs twice"),
        ({"methods": [{"algorithm": "fedavg", "name": ""}]}, "methods.0: name ''"),
        ({"methods": ["fedavg", {"algorithm": "fedavg", "name": "../fedavg"}]}, "methods.1: name"),
        ({"methods": [{"algorithm": "fedavg", "name": "/tmp/fedavg"}]}, "methods.0: name '/tmp"),
        ({"methods": [{"algorithm": "fedavg", "name": "base"}]}, "methods.0: 'base' is the name"),
        (
            {
                "methods": [{"algorithm": "fedavg", "name": "majority"}],
                "evaluation__references": ["majority"],
            },
            "methods.0: 'majority' is the name of another row",
        ),
        ({"local__learning_rate": math.inf}, "local.learning_rate is inf"),
        (
            {"data__partition": {"by": "dirichlet", "alpha": math.inf}},
            "data.partition.alpha is inf",
        ),
        ({"methods": [{"algorithm": "feddyn", "alpha": "inf"}]}, "feddyn.alpha is inf"),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"seeds": [2**32]}, "seeds.0: "),
        ({"local__betas": [0.9, 1.5]}, "local.betas.1: "),
        ({"methods": [{"algorithm": "fedprox", "mu": -0.1}]}, "mu"),
        (
            {"federation__clients_per_round": 4, "methods": [{"algorithm": "krum"}]},
            "krum with num_byzantine 1 needs 5 clients (2 f + 3) and 4 are chosen in a round",
        ),
        (
            {
                "federation__clients_per_round": 4,
                "methods": [{"algorithm": "krum", "num_byzantine": 0, "num_selected": 5}],
            },
            "krum's num_selected is 5 and 4 clients are chosen in a round",
        ),
        (
            {"federation__clients_per_round": 4, "methods": ["trimmed_mean"]},
            "which is less than one of the 4 clients that are chosen in a round",
        ),
        (
            {"model__lora": {"r": 4}, "methods": [{"algorithm": "flora", "ranks": [2, 8]}]},
            "ranks: the largest is 8 but model.lora.r is 4",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


def test_methods_are_names_or_mappings_with_options() -> None:
    methods = config(
        methods=[
            "local",
            {"algorithm": "fedprox", "mu": 0.5},
            {"algorithm": "fedprox", "name": "strong", "mu": 2},
            {"algorithm": "fedavg", "name": "uniform", "options": {"weighting": "uniform"}},
        ]
    ).methods
    assert methods == (
        Method(algorithm="local", name="local"),
        Method(algorithm="fedprox", name="fedprox", options={"mu": 0.5}),
        Method(algorithm="fedprox", name="strong", options={"mu": 2}),
        Method(algorithm="fedavg", name="uniform", options={"weighting": "uniform"}),
    )


def test_a_method_may_have_its_own_learning_rate_and_keeps_the_ratio_of_the_schedule() -> None:
    made = config(
        methods=["fedavg", {"algorithm": "fedprox", "mu": 0.5, "learning_rate": 0.02}],
        local={"learning_rate": 0.01, "final_learning_rate": 0.001},
    )
    assert made.local_for("fedavg") == made.local
    assert made.local_for("fedprox").learning_rate == 0.02
    assert made.local_for("fedprox").final_learning_rate == pytest.approx(0.002)  # a tenth again
    assert made.methods[1].options == {"mu": 0.5}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("fedprocs", "methods.0: unknown algorithm 'fedprocs'; did you mean 'fedprox'?"),
        ("centralized", "did you mean 'centralised'?"),
        (
            {"algorithm": "fedprox", "mv": 1},
            "fedprox has no option 'mv'; known are weighting, counted, mu",
        ),
        (
            {"algorithm": "fedavg", "weigthing": 1},
            "no option 'weigthing'; did you mean 'weighting'",
        ),
        ({"algorithm": "fedprox", "mu": "big"}, "methods.0: option mu of fedprox: "),
        ({"algorithm": "local", "mu": 1}, "methods.0: local takes the option clients alone"),
        ({"name": "x"}, "methods.0: give a name such as fedavg"),
        (3, "methods.0: give a name such as fedavg"),
    ],
)
def test_a_wrong_method_is_refused_in_words(method: Any, words: str) -> None:
    assert words in refusal(methods=[method])


def test_overrides_set_nested_values_as_yaml(file: Path) -> None:
    made = load_config(
        file,
        [
            "local.max_steps=2",
            "seeds=[3, 4]",
            "data.partition={by: dirichlet, alpha: 0.1}",
            "model.lora=null",
            "name=other",
        ],
    )
    assert made.local.max_steps == 2
    assert made.seeds == (3, 4)
    assert made.data.partition.model_dump() == {"by": "dirichlet", "alpha": 0.1}
    assert made.model.lora is None
    assert made.name == "other"


def test_the_last_override_of_a_key_holds(file: Path) -> None:
    made = load_config(file, ["local.max_steps=2", "local.max_steps=5"])
    assert made.local.max_steps == 5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("local.max_steps", "--set local.max_steps: is not key=value"),
        ("=3", "--set =3: is not key=value"),
        ("local.max_steps=[1", "--set local.max_steps=[1: the value is not YAML"),
        ("data.train.input={{ text }}", "write a text with braces or colons in double quotes"),
        ("name.first=x", "--set name.first=x: name is not a mapping"),
        ("local.max_stepz=1", "local.max_stepz: unknown key; did you mean 'max_steps'?"),
    ],
)
def test_a_wrong_override_is_refused_in_words(file: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [", "is not valid YAML"),
        (b"- a list", "holds no mapping"),
        (b"", "holds no mapping"),
        (b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_run_file_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}: {words}"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: there is no such file"):
        load_config(tmp_path / "absent.yaml")


def test_the_resolved_file_loads_as_the_same_configuration(tmp_path: Path) -> None:
    made = config(
        methods=["local", {"algorithm": "fedprox", "mu": 0.5, "name": "prox"}],
        description="A café in two\nlines: with {braces}",
        data__partition={"by": "label_skew", "shares": [0.75, 0.25]},
        local={"final_learning_rate": 1e-5, "betas": [0.8, 0.9]},
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(made.to_yaml())
    again = load_config(path)
    assert again == made
    assert again.hash == made.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "another"},
        {"notes": ["A sentence."]},
        {"data__mirror": "/elsewhere"},
    ],
)
def test_the_hash_ignores_texts_and_where_the_mirror_lies(changes: dict[str, Any]) -> None:
    assert config(**changes).hash == config().hash


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"model__name": "org/other"},
        {"model__revision": "abc"},
        {"model__lora": None},
        {"model__lora": {"alpha": 17}},
        {"data__train": "other"},
        {"data__template": "alpaca"},
        {"data__partition": {"by": "dirichlet", "alpha": 0.5}},
        {"data__max_length": 511},
        {"methods": ["fedavg", "local"]},
        {"methods": [{"algorithm": "fedavg", "weighting": "uniform"}]},
        {"seeds": [1]},
        {"federation__rounds": 11},
        {"local__learning_rate": 1e-4},
        {"evaluation__tasks": ["headlines", "fpb"]},
        {"evaluation__limit": 3},
    ],
)
def test_the_hash_changes_with_everything_that_shapes_a_result(changes: dict[str, Any]) -> None:
    assert config(**changes).hash != config().hash


def test_a_configuration_cannot_be_changed() -> None:
    made = config()
    with pytest.raises(ValueError, match="frozen"):
        made.local.max_steps = 3  # type: ignore[misc]


def test_the_cohort_is_everyone_unless_told_otherwise() -> None:
    assert config(federation={"num_clients": 7}).federation.cohort_size == 7
    few = config(federation={"num_clients": 7, "clients_per_round": 2})
    assert few.federation.cohort_size == 2


@pytest.mark.parametrize(("rule", "step"), [("all", 1), ("last", None), ("every 10", 10)])
def test_round_rules_are_all_last_or_every_n(rule: str, step: int | None) -> None:
    assert parse_rounds(rule) == step


@pytest.mark.parametrize("rule", ["every 0", "every", "10", "every -1", "every 2 ", "All"])
def test_other_round_rules_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="all, last, every N"):
        parse_rounds(rule)


@pytest.mark.parametrize(
    ("rule", "kept"), [("all", [1, 2, 3, 4, 5]), ("last", [5]), ("every 2", [2, 4, 5])]
)
def test_the_last_round_is_always_kept(rule: str, kept: list[int]) -> None:
    assert [r for r in range(1, 6) if is_kept(r, last_round=5, rule=rule)] == kept


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("leaderboards/*/run.yaml")))
def test_every_shipped_run_file_loads(file: Path) -> None:
    assert load_config(file).methods


@pytest.mark.parametrize(
    ("method", "clients"),
    [("local", (0, 1, 2)), ({"algorithm": "local", "clients": [2, 0, 2]}, (0, 2))],
)
def test_local_trains_all_clients_or_those_named(method: Any, clients: tuple[int, ...]) -> None:
    config = RunConfig.model_validate(
        {**MINIMAL, "methods": [method], "federation": {"num_clients": 3}}
    )
    assert config.local_clients(config.methods[0]) == clients


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clients": [3]}, "names client 3, but clients are numbered 0 to 2"),
        ({"clients": []}, "must be a list such as"),
        ({"clients": 1}, "must be a list such as"),
        ({"client": [1]}, "takes the option clients alone"),
    ],
)
def test_clients_of_local_that_cannot_be_are_refused(options: Any, words: str) -> None:
    method = {"algorithm": "local", **options}
    with pytest.raises(ValueError, match=words):
        RunConfig.model_validate({**MINIMAL, "methods": [method], "federation": {"num_clients": 3}})

"""`fedbench flower export`, and what a run file may say of engines; none of it needs Flower."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fedbench import cli
from fedbench.config import RunConfig, load_config
from fedbench.errors import ConfigError, OutputError
from fedbench.federated.engines.export import export

RUN: dict[str, Any] = {
    "name": "two-owners",
    "model": {"name": "some/base"},
    "data": {"train": "headlines"},
    "methods": ["scaffold"],
    "evaluation": {"tasks": ["headlines"]},
}


def run_file(place: Path, **changed: Any) -> Path:
    file = place / "run.yaml"
    file.write_text(yaml.safe_dump(RUN | changed))
    return file


def test_an_app_holds_the_run_file_and_names_both_sides(tmp_path: Path) -> None:
    file, app = run_file(tmp_path), tmp_path / "app"
    options = ["export", str(file), str(app), "--set", "local.max_steps=3", "--output", "rounds"]
    result = CliRunner().invoke(cli.app, ["flower", *options])
    assert (result.exit_code, result.stdout.strip()) == (0, str(app))
    project = tomllib.loads((app / "pyproject.toml").read_text())
    flower = project["tool"]["flwr"]["app"]
    assert flower["config"] == {"output": str(Path("rounds").resolve()), "base": ""}
    for side, name in flower["components"].items():
        module, _, attribute = name.partition(":")
        text = (app / (module.replace(".", "/") + ".py")).read_text()
        compile(text, side, "exec")
        assert f"\n{attribute} = " in text
    exported = load_config(app / "fedbench_app" / "run.yaml")
    assert exported.engine == "flower_deployment"
    assert exported.hash == load_config(file, ["local.max_steps=3"]).hash


def test_an_app_is_written_again_but_not_over_something_else(tmp_path: Path) -> None:
    config = load_config(run_file(tmp_path))
    export(config, tmp_path / "app", tmp_path / "rounds")
    export(config, tmp_path / "app", tmp_path / "rounds")
    with pytest.raises(OutputError, match="holds something else than an app"):
        export(config, tmp_path, tmp_path / "rounds")
    with pytest.raises(OutputError, match=r"run\.yaml: is a file; give a directory"):
        export(config, tmp_path / "run.yaml", tmp_path / "rounds")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"methods": ["fedavg", "local"]}, "methods.1: local needs the clients' rows in one place"),
        ({"model": {"pretrain": {"text": ["headlines"]}}}, "give model.name, a base that all"),
        ({"data": {"train": "headlines", "canaries": {}}}, "data.canaries are dealt over"),
    ],
)
def test_what_owners_cannot_train_is_refused_in_words(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    config = load_config(run_file(tmp_path, **changed))
    with pytest.raises(ConfigError, match=words):
        export(config, tmp_path / "app", tmp_path / "rounds")


def test_the_engine_is_no_part_of_what_a_run_is() -> None:
    plain = RunConfig.model_validate(RUN)
    assert plain.engine == "in_process"
    other = RUN | {"engine": "flower_simulation", "flower": {"client_cpus": 4, "cpus": 8}}
    assert RunConfig.model_validate(other).hash == plain.hash

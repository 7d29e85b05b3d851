"""Writes a Flower app: what `flwr run` sends to the server and to the nodes.

It holds the resolved run file and two modules of a few lines; fedbench itself is installed wherever
the app runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fedbench import __version__
from fedbench.config import RunConfig
from fedbench.errors import ConfigError, OutputError
from fedbench.schema import validated

PACKAGE = "fedbench_app"

PROJECT = """\
# Written by `fedbench flower export`. Start it with `flwr run . SUPERLINK --stream`.
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = {name}
version = "1.0.0"
description = {description}
license = "Apache-2.0"
dependencies = ["fedbench[{extras}]=={version}"]

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "fedbench"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
# Where the server keeps the rounds; a run that was stopped goes on from there.
output = {output}
# Where the server has the base model, if not where run.yaml says.
base = ""
"""

MODULE = '''\
"""The {side} of the run in run.yaml."""

from pathlib import Path

from fedbench.config import load_config
from fedbench.federated.engines.{module} import {make}

app = {make}(load_config(Path(__file__).parent / "run.yaml"))
'''


def _extras(run: RunConfig) -> Iterator[str]:
    """What of fedbench the app needs wherever it runs."""
    yield from ("train", "flower")
    if run.privacy is not None:
        yield "privacy"
    if run.local.dp_sgd is not None:
        yield "dp-sgd"


def export(config: RunConfig, directory: Path, output: Path) -> None:
    """Write the app of a run.

    Args:
        config: the run; its engine is made `flower_deployment`.
        directory: of the app, made if absent.
        output: where the server will keep the rounds.

    Raises:
        ConfigError: the run cannot be deployed.
        OutputError: the directory holds something else, or cannot be written.
    """
    if config.data.canaries is not None:
        raise ConfigError(
            f"{config.name}: data.canaries are dealt over all clients' rows, which an app does not "
            "see; remove them"
        )
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory}: is a file; give a directory for the app")
    if directory.exists() and any(directory.iterdir()) and not (directory / PACKAGE).is_dir():
        raise OutputError(f"{directory}: holds something else than an app; choose another one")
    deployed = config.model_dump(mode="json") | {"engine": "flower_deployment"}
    run = validated(RunConfig, deployed, config.name)
    project = PROJECT.format(
        name=json.dumps(run.name),
        description=json.dumps(run.description or f"Federated fine-tuning: {run.name}"),
        version=__version__,
        extras=",".join(_extras(run)),
        package=PACKAGE,
        output=json.dumps(str(output.resolve())),
    )
    files = {
        "pyproject.toml": project,
        f"{PACKAGE}/__init__.py": '"""A federated run, as a Flower app."""\n',
        f"{PACKAGE}/run.yaml": run.to_yaml(),
        f"{PACKAGE}/server_app.py": MODULE.format(
            side="server's side", module="deployment", make="server_app"
        ),
        f"{PACKAGE}/client_app.py": MODULE.format(
            side="clients' side", module="node", make="node_app"
        ),
    }
    try:
        for name, text in files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{directory}: cannot be written ({error}); choose another") from error

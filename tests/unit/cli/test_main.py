"""The command line's border: exit codes, streams, names. Runs on the base installation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fedbench
from fedbench import cli
from fedbench.errors import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden" / "cli_help.txt"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedbench", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def help_pages() -> str:
    """What every ``--help`` prints, 80 columns wide."""
    pages = []
    for name in [None, *cli.COMMANDS]:
        arguments = [*([name] if name else []), "--help"]
        shown = CliRunner().invoke(cli.app, arguments, prog_name="fedbench", terminal_width=80)
        assert shown.exit_code == 0, shown.output
        pages.append(f"$ fedbench {' '.join(arguments)}\n{shown.output}")
    return "\n".join(pages)


def test_help_is_what_the_golden_file_says() -> None:
    # Regenerate: python tests/unit/cli/test_main.py
    assert help_pages() == GOLDEN.read_text(encoding="utf-8")


def test_every_command_of_the_table_can_be_loaded() -> None:
    context = click.Context(cli.app)
    for name in cli.COMMANDS:
        command = cli.app.get_command(context, name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ConfigError("run.yaml: seeds: is\nwrong"), 2, "fedbench: run.yaml: seeds: is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oops"), 70, "this is a bug"),
    ],
)
def test_errors_become_exit_codes(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(cli.app, "main", fail)
    assert run_main(monkeypatch) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert ("Traceback" in printed.err) == (code == 70)


@pytest.mark.parametrize("arguments", [["nonsense"], ["list", "nonsense"], ["score", "--no-such"]])
def test_wrong_use_exits_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    assert "Error:" in capsys.readouterr().err


def test_version_is_the_package_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert fedbench.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tasks", "fpb:fingpt"),
        ("metrics", "weighted_f1"),
        ("suites", "finance"),
        ("algorithms", "fedprox"),
        ("datasets", "headlines"),
        ("backends", "transformers"),
        ("templates", "alpaca"),
    ],
)
def test_list_prints_one_json_array_of_named_things(
    kind: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, "list", kind, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert expected in [row["name"] for row in rows]
    assert all(row["description"] for row in rows)


def test_public_names_are_those_that_can_be_imported() -> None:
    lazy = set(fedbench.__all__) - {"__version__"}
    assert lazy == set(fedbench._WHERE)
    for name in ("check", "compare", "load_config"):  # the others need torch
        assert callable(getattr(fedbench, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fedbench.nonsense


if __name__ == "__main__":
    GOLDEN.write_text(help_pages(), encoding="utf-8")

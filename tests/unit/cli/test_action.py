"""The composite action: its script, run as a runner would run it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbench.results.check import check
from fedbench.results.reports import markdown

ROOT = Path(__file__).parents[3]
ACTION = ROOT / "action.yml"
SAMPLES = "samples_arc_2026-01-01T00-00-00.000000.jsonl"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    return found


def samples(directory: Path, right: int) -> Path:
    directory.mkdir()
    rows = [
        f'{{"doc_id": {n}, "filter": "none", "metrics": ["acc"], "acc": {float(n < right)}}}\n'
        for n in range(400)
    ]
    (directory / SAMPLES).write_text("".join(rows))
    return directory


def run(directory: Path, candidate: Path, baseline: Path, **inputs: str) -> tuple[int, str, str]:
    """Exit code, verdict and summary of the action's check."""
    commands = directory / "bin"
    commands.mkdir(exist_ok=True)
    shim = commands / "fedbench"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedbench "$@"\n')
    shim.chmod(0o755)
    files = {name: directory / name for name in ("output", "step", "summary.md")}
    for name in ("output", "step"):
        files[name].write_text("")
    (step,) = (step for step in action()["runs"]["steps"] if step.get("id") == "check")
    given = {"MARGINS": "", "MAX_DROP": "", "STRICT": "false"} | inputs
    environment = os.environ | given | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "CANDIDATE": str(candidate),
        "BASELINE": str(baseline),
        "JUNIT": str(directory / "junit.xml"),
        "SUMMARY": str(files["summary.md"]),
        "GITHUB_OUTPUT": str(files["output"]),
        "GITHUB_STEP_SUMMARY": str(files["step"]),
    }  # fmt: skip
    # As a runner starts a step's bash.
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = dict(line.split("=", 1) for line in files["output"].read_text().splitlines())
    return done.returncode, said["verdict"], files["step"].read_text()


@pytest.mark.parametrize(
    ("right", "inputs", "code", "verdict"),
    [
        (300, {}, 0, "ok"),
        (250, {}, 1, "regressed"),
        (250, {"MAX_DROP": "0.3"}, 0, "ok"),
        (298, {}, 0, "inconclusive"),
        (298, {"STRICT": "true"}, 3, "inconclusive"),
        (250, {"MARGINS": "nowhere.yaml"}, 2, "error"),
    ],
)
def test_the_action_ends_as_the_check_does(
    tmp_path: Path, right: int, inputs: dict[str, str], code: int, verdict: str
) -> None:
    baseline, candidate = samples(tmp_path / "a", 300), samples(tmp_path / "b", right)
    found = run(tmp_path, candidate, baseline, **inputs)
    assert found[:2] == (code, verdict)
    assert ("fedbench check:" in found[2]) == (verdict != "error")


GH = """#!/bin/sh
printf '%s\\n' "$*" >> "$LOG"
case "$*" in *--paginate*) echo "$HELD" ;; esac
"""


@pytest.mark.parametrize(
    ("held", "sent"),
    [
        ("", "pr comment 7 --repo o/r --body-file {summary}"),
        ("31", "api --silent -X PATCH repos/o/r/issues/comments/31 -F body=@{summary}"),
    ],
    ids=["first", "again"],
)
def test_the_summary_is_one_comment_that_later_runs_replace(
    tmp_path: Path, held: str, sent: str
) -> None:
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    log, summary = tmp_path / "log", tmp_path / "summary.md"
    baseline, candidate = samples(tmp_path / "a", 300), samples(tmp_path / "b", 298)
    summary.write_text(markdown(check(candidate, baseline), "b", "a"), encoding="utf-8")
    (step,) = (step for step in action()["runs"]["steps"] if step.get("name") == "Comment")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GITHUB_REPOSITORY": "o/r",
        "NUMBER": "7",
        "SUMMARY": str(summary),
        "HELD": held,
        "LOG": str(log),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    subprocess.run(command, env=environment, check=True)
    asked, did = log.read_text().splitlines()
    assert asked.startswith("api --paginate repos/o/r/issues/7/comments --jq")
    assert did == sent.format(summary=summary)
    # The comments that are replaced are those that begin as every summary does.
    begins = re.search(r'test\("(.+)"\)', step["run"])
    assert begins is not None
    assert re.match(begins[1], summary.read_text(encoding="utf-8"))


def test_no_input_is_part_of_a_script() -> None:
    # An expression within a script is code that whoever names a branch can write.
    scripts = [step["run"] for step in action()["runs"]["steps"] if "run" in step]
    assert len(scripts) == 3
    assert not any("${{" in script for script in scripts)

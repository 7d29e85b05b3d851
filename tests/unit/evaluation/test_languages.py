"""Programs in other languages: how completions become programs, and what becomes of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedbench.errors import ConfigError
from fedbench.evaluation import languages
from fedbench.evaluation.code_answers import get_program
from fedbench.evaluation.code_checks import CheckConfig, needs_sandbox
from fedbench.evaluation.data_science import ds1000, ds1000_rows
from fedbench.evaluation.languages import needs_toolchain
from fedbench.evaluation.native_answers import braces
from fedbench.evaluation.sandbox import Check, Sandbox, open_sandbox

JS = "/* Twice x, as in twice(2) { 4 } */\nconst twice = (x) => {\n"
JAVA = "import java.util.*;\n\nclass Solution {\n    public int twice(int x) {\n"
CPP = "#include<vector>\nusing namespace std;\nint twice(int x){\n"


@pytest.fixture(scope="module")
def node() -> Sandbox:
    try:
        box = open_sandbox()
        needs_toolchain(box, "js")
    except ConfigError as error:
        pytest.skip(str(error))
    return box


# From completions to programs


@pytest.mark.parametrize(
    ("beginning", "completion", "program"),
    [
        # A whole function, in a block or bare.
        (JS, "Sure!\n```js\nconst twice = (x) => { return 2 * x }\n```\nDone.",
         "const twice = (x) => { return 2 * x }\n\n"),
        (JS, "function twice(x) { return 2 * x }", "function twice(x) { return 2 * x }\n"),
        # A continuation, up to the brace that closes what the beginning has opened.
        (JS, "  return 2 * x\n}\nconsole.log(twice(1))", JS + "  return 2 * x\n}\n"),
        # Stopped in front of the last brace.
        (CPP, "    return 2 * x;", CPP + "    return 2 * x;\n}\n"),
        (JAVA, "        return 2 * x;\n    }\n", JAVA + "        return 2 * x;\n    }\n\n}\n"),
        # What stands in front of the function, where the answer does not repeat it.
        (CPP, "```cpp\n#include<vector>\nint twice(int x) { return 2 * x; }\n```",
         "using namespace std;\n#include<vector>\nint twice(int x) { return 2 * x; }\n\n"),
        # A method without its class.
        (JAVA, "```java\npublic int twice(int x) { return 2 * x; }\n```",
         "import java.util.*;\nclass Solution {\npublic int twice(int x) { return 2 * x; }\n\n}\n"),
        (JS, "  \n", None),
    ],
)  # fmt: skip
def test_a_completion_becomes_a_program(
    beginning: str, completion: str, program: str | None
) -> None:
    assert braces(completion, beginning, ()) == program


DESCRIBED = """class Solution {
    /**
    Twice the groups that are balanced (each open brace is closed).
     */
    public int twice(int x) {
"""


@pytest.mark.parametrize(
    "whole",
    [
        "class Solution {\n    public int twice(int x) { return 2 * x; }\n}\n",
        "class Solution {\n    public int twice(int x)\n    {\n        return 2 * x;\n    }\n}\n",
    ],
)
def test_a_whole_function_is_known_by_its_name_and_not_by_its_description(whole: str) -> None:
    assert braces(f"```java\n{whole}```", DESCRIBED, ()) == f"{whole}\n"


def test_a_call_is_no_definition() -> None:
    assert braces("  return twice(x - 1) + 2\n}", JS, ()) == f"{JS}  return twice(x - 1) + 2\n}}\n"


# Verdicts


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("const twice = (x) => 2 * x", "passed"),
        ("const twice = (x) => x", "wrong"),
        ("const twice = (x) => {", "wrong"),  # there is no step that builds
        ("const twice = (x) => { process.exit(0) }", "wrong"),
        ("console.assert = () => {}\nconst twice = (x) => x", "wrong"),
        ("const twice = (x) => { for (;;) {} }", "timeout"),
        ("const twice = (x) => { process.kill(process.ppid, 'SIGKILL'); return 2 * x }", "error"),
        (
            "const twice = (x) => { require('fs').writeFileSync('/usr/x', ''); return 2 * x }",
            "wrong",
        ),
    ],
)
def test_what_becomes_of_a_program(node: Sandbox, program: str, outcome: str) -> None:
    box = Sandbox(node.kind, min_seconds=1.5)
    check = Check("console.assert(twice(2) === 4)\n", (), language="js")
    assert box.check(program, check).outcome == outcome


def test_a_reason_is_the_line_that_tells_it(node: Sandbox) -> None:
    check = Check("console.assert(twice(2) === 4, 'twice two')\n", (), language="js")
    verdict = node.check("const twice = (x) => x", check)
    assert "assertion failed: twice two" in verdict.reason


# What is missing


def test_a_missing_tool_is_named_before_anything_is_asked(
    node: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = languages.LANGUAGES["js"].__class__(
        **{**vars(languages.LANGUAGES["js"]), "tools": ("no-such-tool",)}
    )
    monkeypatch.setitem(languages.LANGUAGES, "cpp", nowhere)
    config = CheckConfig(by="cpp", program="braces", tests="", solution="")
    languages._trouble.cache_clear()
    words = "toolchain missing: programs in cpp need no-such-tool .*is not installed"
    with pytest.raises(ConfigError, match=words):
        needs_sandbox([config])
    languages._trouble.cache_clear()


def test_the_crates_of_rust_are_asked_for_by_their_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(languages.RUST_CRATES, str(tmp_path))
    (tmp_path / "librand-1a2b.rlib").touch()
    [build] = languages.LANGUAGES["rust"].build(("rustc", "cc"))
    assert f"--extern=rand={tmp_path}/librand-1a2b.rlib" in build


# DS-1000


CONTEXT = "exec_context = '[insert]'\n\ndef test_execution(solution):\n    exec(solution)\n"


@pytest.mark.parametrize(
    "completion",
    ["b = 1\n</code>\nEND SOLUTION", "```python\nb = 1\n```", "<code>\nb = 1\n</code>", "b = 1"],
)
def test_the_lines_of_an_answer_are_put_into_their_context(completion: str) -> None:
    program = ds1000(completion, CONTEXT, ("run_tests",))
    assert program is not None
    assert program.startswith(CONTEXT)
    assert "code = 'b = 1'" in program
    assert "test_string" not in program


def test_tests_of_the_text_are_run_where_a_problem_has_some() -> None:
    program = ds1000("b = 1", f"{CONTEXT}\ndef test_string(solution):\n    pass\n", ())
    assert program is not None
    assert "    test_string(code)\n    return True" in program
    assert ds1000("  \n", CONTEXT, ()) is None


def test_a_row_without_its_library_is_refused() -> None:
    row: dict[str, Any] = {"metadata": {}, "reference_code": "b", "code_context": CONTEXT}
    with pytest.raises(Exception, match="DS-1000, row 0: its metadata name no library"):
        ds1000_rows([row])
    rows = ds1000_rows([row | {"metadata": {"library": "Numpy"}}])
    assert rows[0]["library"] == "Numpy"
    assert json.dumps(rows[0]["program"])


def test_rules_for_programs_go_by_name() -> None:
    assert get_program("braces") is braces
    with pytest.raises(ConfigError, match="did you mean 'braces'"):
        get_program("brace")

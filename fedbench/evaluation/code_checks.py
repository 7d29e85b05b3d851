"""Tasks whose answers are programs: what a task file says of them, and how answers are judged.

An answer becomes a verdict (`passed`, `wrong`, `error` or `timeout`), which is then read as any
other answer is; the reference of every item is `passed`. An answer without code stays unparsed, and
one whose sandbox broke down has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import field_validator

from fedbench.data.datasets import Jinja
from fedbench.errors import ConfigError, DataError
from fedbench.evaluation.code_answers import (
    SELF_CONTAINED,
    get_program,
    imports_of,
    provided_names,
)
from fedbench.evaluation.languages import needs_toolchain
from fedbench.evaluation.rendering import rendered, templates_of
from fedbench.evaluation.sandbox import Check, Sandbox, open_sandbox
from fedbench.generation.backend import Answer
from fedbench.schema import Part

PASSED = "passed"
PYTHON = "python_tests"


class CheckConfig(Part):
    """How an answer that is a program is checked; texts are Jinja over the columns."""

    by: Literal["python_tests", "js", "cpp", "java", "rust", "go"] = "python_tests"
    """In which language program and tests are; others than Python take its tools (`languages`)."""
    program: str = "code"
    """How a completion becomes a program, by name (`code_answers`)."""
    beginning: Jinja = ""
    """The code that the item begins with; the tests may use its helpers."""
    names: Jinja = ""
    """What the tests call, between spaces; by default what the solution defines and they use."""
    tests: Jinja
    """Python that raises an AssertionError where a program is wrong; in other languages what
    stands behind the program in the same file."""
    solution: Jinja
    """A program that passes: the time limit is measured by it. Empty where none is known."""

    @field_validator("program")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            get_program(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name


@dataclass(frozen=True)
class ItemCheck:
    """The check of one item."""

    program: str
    beginning: str
    check: Check

    def program_of(self, completion: str) -> str | None:
        """The program that a completion holds; None where there is none."""
        return get_program(self.program)(completion, self.beginning, self.check.provides)


def item_checks(config: CheckConfig) -> Callable[[Mapping[str, Any], str], ItemCheck]:
    """What makes the check of an item from its row, and from where the row is in words."""
    texts = {name: getattr(config, name) for name in ("beginning", "names", "tests", "solution")}
    fields = templates_of(texts, keep_trailing_newline=True)

    def of_row(row: Mapping[str, Any], where: str) -> ItemCheck:
        text = rendered(fields, row, f"{where}: check")
        if config.by != PYTHON:
            named = tuple(text["names"].split())
            native = Check(text["tests"], named, "", text["solution"], language=config.by)
            return ItemCheck(config.program, text["beginning"], native)
        try:
            names = text["names"].split() or provided_names(text["solution"], text["tests"])
            imports = imports_of(text["solution"])
        except SyntaxError as error:
            raise DataError(f"{where}: its tests or its solution are no Python: {error}") from error
        head = "" if config.program in SELF_CONTAINED else text["beginning"] or imports
        check = Check(text["tests"], tuple(names), head, text["solution"])
        return ItemCheck(config.program, text["beginning"], check)

    return of_row


def needs_sandbox(checks: Sequence[CheckConfig | None]) -> None:
    """See that programs can be run, where any are to be.

    Raises:
        ConfigError: nothing isolates them, and nobody has allowed that; or the tools of their
            language are missing.
    """
    if any(check is not None for check in checks):
        box = open_sandbox()
        for language in sorted({check.by for check in checks if check is not None} - {PYTHON}):
            needs_toolchain(box, language)


def by_whom(check: CheckConfig | None, backend: str) -> str:
    """Who answered, and where the programs ran: verdicts of different sandboxes may differ."""
    return backend if check is None else f"{backend}, sandbox={open_sandbox().kind}"


def judged(
    checks: Sequence[ItemCheck], answers: Sequence[Answer], sandbox: Sandbox | None = None
) -> list[Answer]:
    """Answers with their verdict in place of their text; no text where there is no program.

    Args:
        checks: that of each answer's item.
        answers: completions.
        sandbox: where programs run; by default the best that this machine allows.

    Raises:
        ConfigError: programs would run without isolation, and nobody has allowed it; or the tools
            of their language are missing.
    """
    box = sandbox or open_sandbox()
    for language in sorted({check.check.language for check in checks} - {"python"}):
        needs_toolchain(box, language)
    programs = [
        check.program_of(answer.text or "") if answer.error is None else None
        for check, answer in zip(checks, answers, strict=True)
    ]
    runs = [
        (program, check.check)
        for program, check in zip(programs, checks, strict=True)
        if program is not None
    ]
    verdicts = iter(box.check_all(runs))
    results = []
    for program, answer in zip(programs, answers, strict=True):
        if program is None:
            results.append(replace(answer, text=None if answer.error else ""))
            continue
        verdict = next(verdicts)
        if verdict.outcome == "failed":
            results.append(Answer(error=f"sandbox: {verdict.reason}"))
        else:
            results.append(replace(answer, text=verdict.outcome))
    return results

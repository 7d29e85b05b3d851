"""Rubrics: what a judge is asked, and how its verdict is written.

A rubric is one YAML file: Jinja for the system and the user message, and the verdict's format. Its
fields are the variables of that Jinja: `question`, `answer` and `reference`, `answer_a` and
`answer_b` of a comparison, and the same with ``_2`` for the second turn of a conversation. Optional
fields are None where a question has none, so that one template serves both turns, with and without
a reference.

The prompts of MT-Bench and Vicuna bench are not part of fedbench: a rubric with `published` takes
them from FastChat's ``judge_prompts.jsonl``. Rubrics whose name ends in ``-fedbench`` are worded
here, and their scores are not those of the benchmark they resemble.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from fedbench import resources
from fedbench.data.templates import Turn
from fedbench.errors import ConfigError
from fedbench.evaluation.rendering import RENDERING_ERRORS
from fedbench.judging.published_prompts import Published
from fedbench.judging.verdict_format import OF_PAIRS, VerdictFormat
from fedbench.judging.verdicts import Verdict, read_verdict
from fedbench.schema import Part, Positive, read_yaml, validated

SECOND_TURN = "_2"
# Sandboxed, because rubric files are passed around.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True
)
_EXTENSION = ".yaml"


class JudgeSampling(Part):
    """How the judge is asked, unless the user says otherwise; recorded, and no part of the hash."""

    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: Positive = 2048


class Rubric(Part):
    """What a judge is asked, and how its verdict is written."""

    name: str
    version: Positive = 1
    """Raised whenever a verdict could change."""
    description: str = ""
    source: str = ""
    """Where the protocol is described."""
    kind: Literal["grade", "pairwise", "classify"] = "grade"
    """``grade``: a number for an answer. ``pairwise``: which of two answers is better.
    ``classify``: one of a few labels for an answer."""
    system: str = ""
    user: str = ""
    optional: tuple[str, ...] = ()
    """Fields that a question may lack; they are None then."""
    published: Published | None = None
    """Where the messages are read from, in place of `user`; a `system` of one's own stays."""
    verdict: VerdictFormat = VerdictFormat()
    sampling: JudgeSampling = JudgeSampling()

    @model_validator(mode="after")
    def _consistent(self) -> Rubric:
        if not self.user:
            raise ValueError("user is required: the message that shows the judge what to rate")
        if (self.verdict.kind in OF_PAIRS) != (self.kind == "pairwise"):
            raise ValueError(f"kind {self.kind} does not go with verdict.kind {self.verdict.kind}")
        if (self.verdict.kind == "choice") != (self.kind == "classify"):
            raise ValueError("kind classify and verdict.kind choice go together")
        try:
            variables = _variables(self.system) | _variables(self.user)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"system or user is no Jinja template: {error}") from error
        unused = sorted(set(self.optional) - variables)
        if unused:
            raise ValueError(f"optional: {', '.join(unused)} occurs in neither system nor user")
        answers = {"answer_a", "answer_b"} if self.kind == "pairwise" else {"answer"}
        if missing := sorted(answers - variables):
            raise ValueError(f"user does not show {', '.join(missing)}; a judge must see it")
        return self

    @cached_property
    def fields(self) -> frozenset[str]:
        """All variables of the two messages."""
        return frozenset(_variables(self.system) | _variables(self.user))

    @cached_property
    def required(self) -> frozenset[str]:
        """The fields without which nothing can be asked."""
        return self.fields - set(self.optional)

    @property
    def judges_second_turns(self) -> bool:
        """Whether it can be asked about the second answer of a conversation."""
        return any(name.endswith(SECOND_TURN) for name in self.fields if name.startswith("answer"))

    @property
    def grade_scale(self) -> tuple[float, float]:
        """Lowest and highest grade; 0 to 1 where a formula makes the grade."""
        if self.verdict.formula is not None:
            return (0.0, 1.0)
        return next(iter(self.verdict.fields.values()), self.verdict.scale)

    @cached_property
    def hash(self) -> str:
        """Hash of all that can change a verdict: both messages and how the reply is read."""
        shape = self.model_dump(mode="json", include={"kind", "system", "user", "verdict"})
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    def render(self, **fields: str | None) -> tuple[Turn, ...]:
        """The judge's conversation: one turn, with the system message where there is one.

        Args:
            fields: what the question, the answers and the references are. Fields that the rubric
                does not have are left out; those it may lack may be absent.

        Raises:
            ConfigError: a required field is absent or None, or the Jinja cannot be done.
        """
        absent = sorted(name for name in self.required if fields.get(name) is None)
        if absent:
            raise ConfigError(
                f"rubric {self.name}: needs {', '.join(absent)}, which this question does not "
                "have; choose another rubric, or list the field under optional"
            )
        values = dict.fromkeys(self.optional) | {
            k: v for k, v in fields.items() if k in self.fields
        }
        try:
            system, user = (_rendered(text, values) for text in (self.system, self.user))
        except RENDERING_ERRORS as error:
            said = str(error).strip().removesuffix(".")
            raise ConfigError(f"rubric {self.name}: {said}; correct its Jinja") from error
        return (Turn(user, system=system),)

    def read(self, text: str, *, truncated: bool = False) -> Verdict:
        """The verdict in a judge's reply.

        Args:
            text: the reply.
            truncated: whether it ended at the limit of tokens.
        """
        return read_verdict(self.verdict, text, truncated=truncated)


def get_rubric(
    name_or_path: str | Path, prompts: str | Path | None = None, *, parser: str | None = None
) -> Rubric:
    """A rubric by name, or from a user's YAML file.

    Args:
        name_or_path: ``mt_bench-fedbench``, or the path of a ``.yaml`` file.
        prompts: FastChat's ``judge_prompts.jsonl``; from the mirror at FEDBENCH_DATA when None.
        parser: ``fastchat`` or ``fedbench``, in place of the rubric's own; the hash tells.

    Raises:
        ConfigError: there is no such rubric, its file is wrong, or published prompts are absent.
        DataError: the published prompts are not those that the rubric pins.
    """
    name = str(name_or_path)
    file = Path(name) if name.endswith(_EXTENSION) else _rubric_file(name)
    raw = read_yaml(file)
    _refuse_borrowed_name(raw, str(file))
    if raw.get("published") is not None:
        raw = _with_published(raw, str(file), prompts)
    if parser is not None:
        raw = raw | {"verdict": {**(raw.get("verdict") or {}), "parser": parser}}
    return validated(Rubric, raw, str(file))


def rubric_names() -> list[str]:
    """The names of all rubrics that come with fedbench, sorted."""
    return sorted(file.stem for file in _directory().glob(f"*{_EXTENSION}"))


def _refuse_borrowed_name(raw: Mapping[str, Any], where: str) -> None:
    """Scores are called after their rubric: other words may not pass for those of a shipped one."""
    name = raw.get("name")
    if name in rubric_names() and raw != read_yaml(_rubric_file(str(name))):
        raise ConfigError(
            f"{where}: name is {name}, as a rubric is called that comes with fedbench and says "
            "something else; give yours a name of its own, for its scores bear it"
        )


def _with_published(raw: dict[str, Any], where: str, prompts: str | Path | None) -> dict[str, Any]:
    published = validated(Published, raw["published"], f"{where}: published")
    if raw.get("user"):
        raise ConfigError(f"{where}: user and published both word the prompt; keep one of them")
    messages = published.messages(str(raw.get("name")), prompts)
    return {
        **raw,
        "system": raw.get("system", messages.system),
        "user": messages.user,
        "optional": messages.optional,
        "verdict": {"constrained": False, **(raw.get("verdict") or {})},
    }


def _rubric_file(name: str) -> Path:
    known = rubric_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"unknown rubric {name!r}: {hint}known are {', '.join(known)}, or the path of a YAML "
            "file"
        )
    return _directory() / f"{name}{_EXTENSION}"


def _directory() -> Path:
    return resources.directory("tasks") / "rubrics"


def _rendered(text: str, values: Mapping[str, str | None]) -> str:
    # Most system messages are the same for all: Jinja would take longer for them than the network.
    return _template(text).render(values) if "{" in text else text


@lru_cache(maxsize=64)
def _template(source: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(source)


@lru_cache(maxsize=64)
def _variables(source: str) -> frozenset[str]:
    _template(source)  # a filter that Jinja does not have is seen when it is compiled
    return frozenset(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))

"""How a data set is described: where its rows are, and how a row becomes turns.

A row has one of these shapes, and none of them needs code::

    one question       instruction: "{{ question }}", response: "{{ answer }}"
    a conversation     messages: conversations
    a pair             instruction: "{{ prompt }}", chosen: "{{ good }}", rejected: "{{ bad }}"
    a pair of lists    chosen: chosen, rejected: rejected
    a pair of texts    transcript: hh, chosen: chosen, rejected: rejected
    a rated answer     instruction: "{{ prompt }}", response: "{{ answer }}", desirable: "{{ ok }}"
    a message tree     tree: oasst

What stands in braces gives text; what stands without gives the cell as it is. A column whose name
is no word is written ``row["its name"]``.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Annotated, Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, Field, model_validator

from fedbench.data.rows import Row, Source
from fedbench.schema import Part

# Sandboxed, because run files are passed around; an empty cell is no text, not the word None.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=lambda value: "" if value is None else value
)
_ROW = "row"


def is_text(template: str) -> bool:
    """Whether a field gives text (it has braces) and not a cell as it is."""
    return "{{" in template or "{%" in template


def _checked_jinja(text: str) -> str:
    try:
        _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is not valid Jinja ({error})") from error
    return text


def _checked_expression(text: str) -> str:
    if is_text(text):
        raise ValueError("stands in braces; write the column or the condition without them")
    try:
        _ENVIRONMENT.compile_expression(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is neither a column nor a Jinja expression ({error})") from error
    return text


def _checked_answer(text: str) -> str:
    return _checked_jinja(text) if is_text(text) else _checked_expression(text)


Jinja = Annotated[str, AfterValidator(_checked_jinja)]
"""Text in which columns are named in braces."""
Expression = Annotated[str, AfterValidator(_checked_expression)]
"""A column, or a Jinja expression over columns, without braces."""
Answer = Annotated[str, AfterValidator(_checked_answer)]
"""Text with columns in braces, or a column that holds messages."""


class PromptSplit(Part):
    """A part of the examples, drawn by a hash of their first question.

    Examples with the same first question are all in one part, whatever else the data hold and in
    whatever order: a row that is added moves no other.
    """

    part: Literal["train", "test"]
    test_size: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the questions that are in the test part."""
    by: Jinja | None = None
    """What is hashed in place of the first question, such as a patient."""


class DatasetConfig(Part):
    """A data set and how its rows become turns.

    The keys of `source` may also stand beside the others: ``{path: my.jsonl, response: ...}``.
    """

    description: str = ""
    license: str = "unknown"
    source: Source
    """Its `columns` are those that the fields below name, unless they are given.

    The columns of a `tree` are always given: nested messages have columns of their own.
    """
    instruction: Jinja = ""
    input: Jinja = ""
    system: Jinja = ""
    """What opens the conversation, where its messages do not say."""
    response: Jinja | None = None
    messages: Expression | None = None
    """Messages of {role, content} or {from, value}, or texts that alternate; the user begins.

    A question at the end is answered by `response`, `chosen` and `rejected`. Without these it is
    cut off, and counted.
    """
    chosen: Answer | None = None
    rejected: Answer | None = None
    transcript: Literal["hh"] | None = None
    """The two sides are texts that alternate "\\n\\nHuman:" and "\\n\\nAssistant:"."""
    tree: Literal["oasst"] | None = None
    """Rows are messages with a parent, or trees of replies; the best-ranked path is taken."""
    desirable: Jinja | None = None
    """"true" or "false": whether the answer is wanted."""
    label: Jinja | None = None
    owner: Jinja | None = None
    where: Expression | None = None
    """Rows are kept where this holds, as in ``lang == 'en'``."""
    distinct: Expression | None = None
    """Of the rows that share this, only the first is kept."""
    prompt_split: PromptSplit | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_source(cls, raw: Any) -> Any:
        """Move keys of the source to where they belong, and find the columns that are named."""
        if not isinstance(raw, dict):
            return raw
        beside = {key: value for key, value in raw.items() if key in Source.model_fields}
        fields = {key: value for key, value in raw.items() if key not in beside}
        if beside and "source" in fields:
            raise ValueError(f"has both source and {next(iter(beside))}; put all under source")
        source = fields.get("source", beside or None)
        if isinstance(source, dict):
            fields["source"] = {"columns": _columns_named(fields), **source}
        return fields

    @model_validator(mode="after")
    def _one_shape(self) -> DatasetConfig:
        given = {name for name in _SHAPING if getattr(self, name)}
        shape = next((name for name in ("tree", "transcript", "messages") if name in given), "")
        extra = sorted(given - _ALLOWED[shape])
        if extra:
            raise ValueError(
                f"has both {shape or 'instruction'} and {extra[0]}; remove one of them"
            )
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("chosen and rejected come together; add the other one")
        if self.chosen and (self.response or self.desirable):
            raise ValueError("has a pair and a single answer; remove response and desirable")
        if not given & {"response", "messages", "chosen", "tree"}:
            raise ValueError("says nothing of the answers; add response, messages, chosen or tree")
        if self.chosen and self.rejected:
            self._check_pair(self.chosen, self.rejected)
        return self

    def _check_pair(self, chosen: str, rejected: str) -> None:
        if is_text(chosen) != is_text(rejected):
            raise ValueError("chosen and rejected: put both in braces, or neither")
        if self.transcript and is_text(chosen):
            raise ValueError("transcript: name the columns chosen and rejected without braces")
        if not self.transcript and not is_text(chosen) and self.instruction:
            raise ValueError(
                f"chosen: {chosen} is a column of messages, which hold the instruction already; "
                f"remove instruction, or write {{{{ {chosen} }}}} where it is text"
            )


_TEXTS = ("instruction", "input", "system", "response", "desirable", "label", "owner")
_CELLS = ("messages", "chosen", "rejected", "where", "distinct")
_QUESTION = {"instruction", "input"}
_ANSWER = {"response", "chosen", "rejected", "desirable"}
_SHAPING = {"tree", "transcript", "messages"} | _QUESTION | _ANSWER
_ALLOWED = {
    "tree": {"tree"},
    "transcript": {"transcript", "chosen", "rejected"},
    "messages": {"messages"} | _ANSWER,
    "": _QUESTION | _ANSWER,
}


def text_of(template: str, row: Row) -> str:
    """A template filled with a row.

    Raises:
        jinja2.TemplateError: it names a column that the row lacks.
    """
    column = _only_column(template)
    if column is not None and column in row:  # most templates by far, and much faster
        return "" if row[column] is None else str(row[column])
    return _compiled(template).render({_ROW: row, **row})


def value_of(expression: str, row: Row) -> Any:
    """The value of an expression over a row.

    Raises:
        jinja2.TemplateError: it names a column that the row lacks.
    """
    if expression in row:
        return row[expression]
    value = _compiled_expression(expression)({_ROW: row, **row})
    if isinstance(value, jinja2.Undefined):
        str(value)  # a strict undefined raises, and names the column
    return value


def cell_of(expression: str, row: Row) -> Any:
    """As `value_of`, and a list or mapping that a CSV file holds as JSON is read.

    Raises:
        ValueError: the text is no JSON.
    """
    value = value_of(expression, row)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{expression} is a text and holds no messages ({error})") from error


def _columns_named(fields: dict[str, Any]) -> tuple[str, ...]:
    """The columns that the fields of a description name, sorted; none of messages in a tree."""
    if fields.get("tree"):
        return ()
    split = fields.get("prompt_split")
    texts = [fields.get(name) for name in _TEXTS]
    texts.append(split.get("by") if isinstance(split, dict) else None)
    cells = [fields.get(name) for name in _CELLS]
    templates = [text for text in texts if isinstance(text, str)]
    for cell in cells:
        if isinstance(cell, str):
            templates.append(cell if is_text(cell) else f"{{{{ {cell} }}}}")
    return tuple(sorted({column for template in templates for column in _variables(template)}))


def _variables(template: str) -> set[str]:
    """The columns of one template; none where it is wrong, which its own check reports."""
    try:
        tree = _ENVIRONMENT.parse(template)
        found = meta.find_undeclared_variables(tree)
    except jinja2.TemplateSyntaxError:
        return set()
    quoted = {
        item.arg.value
        for item in tree.find_all(nodes.Getitem)
        if isinstance(item.node, nodes.Name)
        and item.node.name == _ROW
        and isinstance(item.arg, nodes.Const)
    }
    return found - {_ROW, *_ENVIRONMENT.globals} | quoted


@lru_cache(maxsize=256)
def _only_column(template: str) -> str | None:
    """The column of a template that is one column and nothing else."""
    match = re.fullmatch(r"\{\{ *([^\W\d]\w*) *\}\}", template)
    return match[1] if match else None


@lru_cache(maxsize=256)
def _compiled(template: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(template)


@lru_cache(maxsize=256)
def _compiled_expression(expression: str) -> Any:
    return _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)

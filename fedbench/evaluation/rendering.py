"""Texts of an item, made of the columns of its row by the Jinja of a task file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fedbench.errors import DataError

RENDERING_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)
"""What Jinja raises of a row that is not as its author thought: he may call any method of a cell
(`'ABCD'.index(answer)`) and divide by one."""
Templates = Mapping[str, jinja2.Template]


def templates_of(texts: Mapping[str, str], *, keep_trailing_newline: bool = False) -> Templates:
    """The templates of some fields by name; sandboxed, because task files are passed around.

    Args:
        texts: Jinja by field, which task files have checked.
        keep_trailing_newline: of the texts, as programs need it.
    """
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=keep_trailing_newline
    )
    return {name: environment.from_string(text) for name, text in texts.items()}


def rendered(templates: Templates, row: Mapping[str, Any], where: str) -> dict[str, str]:
    """The texts of a row by field.

    Raises:
        DataError: the row has no such columns, or its cells do not bear what is done to them.
    """
    texts = {}
    for name, template in templates.items():
        try:
            texts[name] = template.render(row)
        except RENDERING_ERRORS as error:
            raise DataError(f"{where}: {name}: {reason_of(error)}") from error
    return texts


def reason_of(error: Exception) -> str:
    """What is wrong, and what to do."""
    if isinstance(error, jinja2.UndefinedError | TypeError):
        return f"{error}; the columns are not those the task names"
    return f"{str(error).strip().removesuffix('.')}; correct the row or the task's Jinja"

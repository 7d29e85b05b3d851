"""Writes ``docs/run_file.md``: every key of a run file, read from the code that checks it.

    python docs/make_run_file.py

Types and defaults come from the pydantic models and the algorithms' dataclasses, meanings from the
docstring below each field; ``run_file.meanings.yaml`` has those of fields without one. The text
between the tables and the examples are ``run_file.template.md``, where a line such as
``@keys ModelConfig`` becomes a table.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from fedbench.config import RunConfig
from fedbench.data.partition_rules import AnyRule
from fedbench.data.templates import CHAT, TEMPLATES
from fedbench.federated import ALGORITHMS, BASELINES
from fedbench.federated.fedavg import FedAvg
from fedbench.federated.presets import preset_table
from fedbench.federated.settings import DpoObjective, KtoObjective, SftObjective
from fedbench.schema import Part

HERE = Path(__file__).parent
PAGE = HERE / "run_file.md"
TEMPLATE = HERE / "run_file.template.md"

SECTIONS = {
    "ModelConfig": "model",
    "Lora": "model.lora",
    "Pretrain": "model.pretrain",
    "Cloze": "model.pretrain.cloze",
    "DataConfig": "data",
    "DatasetConfig": "data.train: columns of your own",
    "Source": "data.train: where the rows are",
    "PromptSplit": "prompt_split",
    "RandomSplit": "random_split",
    "Canaries": "data.canaries",
    "Method": "methods",
    "Federation": "federation",
    "Participation": "federation.participation",
    "Transport": "federation.transport",
    "Local": "local",
    "DpSgd": "local.dp_sgd",
    "Privacy": "privacy",
    "AdaptiveClip": "privacy.adaptive",
    "Attack": "attack",
    "Flower": "flower",
    "Evaluation": "evaluation",
    "partition": "data.partition",
    "objective": "objective",
}
"""Headings of the page, by the class (or, where one of several may stand, the key)."""

MEANINGS: dict[str, str] = yaml.safe_load(
    (HERE / "run_file.meanings.yaml").read_text(encoding="utf-8")
)
"""By class and field, for fields that have no docstring."""

DEFAULTS = {
    "Method.name": "the algorithm's",
    "Source.columns": "those that are named",
    "DatasetConfig.source": "its keys, beside the others",
}
"""Where a validator fills in what a model calls required."""

TYPES = {
    "DataConfig.train": "a name, [a description](#datatrain-columns-of-your-own), or a list",
}
"""Where the words made of a type would not be clear."""

FORMS = {
    "_checked_jinja": "text with columns in braces",
    "_checked_expression": "column or expression, without braces",
    "_checked_answer": "text with columns in braces, or a column of messages",
}
"""What a validated text holds, by its validator."""

NAMES = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
TAGS = ("by", "kind")
"""Keys that say which of several kinds stands there; the table of kinds has them."""
KINDS: dict[str, Any] = {
    "partition": AnyRule,
    "objective": SftObjective | DpoObjective | KtoObjective,
}
"""Keys under which one of several kinds stands."""


@dataclass(frozen=True)
class Key:
    """One row of a table."""

    name: str
    type: str
    default: str
    meaning: str


def page() -> str:
    """The whole page."""
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    return "\n".join(_filled(line) for line in lines) + "\n"


def _filled(line: str) -> str:
    if not line.startswith("@"):
        return line
    directive, *arguments = line[1:].split()
    return "\n".join(DIRECTIVES[directive](*arguments))


def _keys(name: str) -> list[str]:
    rows = [
        (f"`{key.name}`", key.type, key.default, key.meaning) for key in keys_of(models()[name])
    ]
    return table(("key", "type", "default", "meaning"), rows)


def _kinds(name: str) -> list[str]:
    """Which kinds a tagged mapping may be, and the keys of each."""
    kinds = {_tags(kind): kind for kind in get_args(KINDS[name])}
    tag = _tag(next(iter(kinds.values())))
    about = [(tags, _about(inspect.getdoc(kind) or "")) for tags, kind in kinds.items()]
    return [*table((f"`{tag}`", "meaning"), about), "", *merged(kinds)]


def _algorithms() -> list[str]:
    rows = [[f"`{name}`", text, "", ""] for name, text in BASELINES.items()]
    for name, kind in ALGORITHMS.items():
        own = [key for key in keys_of(kind) if key not in keys_of(FedAvg)]
        options = ", ".join(f"`{key.name}: {key.default.strip('`')}`" for key in own)
        papers = _papers(inspect.getdoc(inspect.getmodule(kind)) or "")[:1]
        rows.append([f"`{name}`", _paragraph(inspect.getdoc(kind) or ""), *papers, options])
    return table(("algorithm", "what it does", "paper", "options and defaults"), rows)


def _options() -> list[str]:
    return merged({f"`{name}`": kind for name, kind in ALGORITHMS.items()})


def _templates() -> list[str]:
    return [", ".join(f"`{name}`" for name in (CHAT, *TEMPLATES)) + "."]


def _presets() -> list[str]:
    rows = [(f"`{name}`", _tidy(preset.description)) for name, preset in preset_table().items()]
    return table(("preset", "what it is"), rows)


DIRECTIVES: dict[str, Callable[..., list[str]]] = {
    "keys": _keys,
    "kinds": _kinds,
    "algorithms": _algorithms,
    "options": _options,
    "templates": _templates,
    "presets": _presets,
}


def merged(kinds: dict[str, type[Any]]) -> list[str]:
    """One table of the keys of several kinds; a key that is the same in several stands once."""
    owners: dict[str, dict[Key, list[str]]] = {}
    for label, kind in kinds.items():
        for key in keys_of(kind):
            owners.setdefault(key.name, {}).setdefault(key, []).append(label)
    rows = []
    for forms in owners.values():
        most = _most(list(forms.values()), len(kinds))
        for key, labels in sorted(forms.items(), key=lambda form: form[1] is most):
            of = ", ".join(labels)
            if labels is most:
                of = "all" if len(forms) == 1 else "all others"
            rows.append((f"`{key.name}`", of, key.type, key.default, key.meaning))
    return table(("key", "of", "type", "default", "meaning"), rows)


def _most(groups: Sequence[list[str]], everyone: int) -> list[str] | None:
    """The largest group, where together they are all kinds: it need not be listed."""
    return max(groups, key=len) if sum(map(len, groups)) == everyone else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; a column that is empty in every row is left out."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    shown = [n for n in range(len(head)) if any(row[n] for row in cells)]
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(line[n] for n in shown) + " |" for line in lines]


def models() -> dict[str, type[BaseModel]]:
    """Every part of a run file, by class name."""
    return {kind.__name__: kind for kind in _reachable(RunConfig)}


def _reachable(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    for field in kind.model_fields.values():
        for part in parts_in(field.annotation):
            yield from _reachable(part)


def parts_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that may stand right under a key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in parts_in(part)]


def keys_of(kind: type[Any]) -> list[Key]:
    """The keys of a model or of an algorithm's dataclass, without the one that names its kind."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        _key(kind, name, hints[name], default)
        for name, default in _defaults(kind)
        if not (_is_tagged(kind) and name in TAGS)
    ]


def _key(kind: type[Any], name: str, annotation: Any, default: str) -> Key:
    place = f"{kind.__name__}.{name}"
    # The default says already where it may be null.
    parts = [part for part in get_args(annotation) if part is not type(None)]
    words = _union(parts) if default == "`null`" else TYPES.get(place) or in_words(annotation)
    return Key(name, words, DEFAULTS.get(place, default), meaning(kind, name))


def _defaults(kind: type[Any]) -> Iterator[tuple[str, str]]:
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            value = field.get_default(call_default_factory=True)
            yield name, "required" if field.is_required() else shown(value)
    else:
        for option in dataclasses.fields(kind):
            yield option.name, shown(option.default)


def meaning(kind: type[Any], field: str) -> str:
    """What a field's docstring says, or `MEANINGS` where it has none.

    Raises:
        LookupError: neither says it, or both do.
    """
    owner = next(k for k in kind.__mro__ if field in vars(k).get("__annotations__", {}))
    key, documented = f"{owner.__name__}.{field}", _docstrings(owner).get(field)
    if (documented is None) == (key not in MEANINGS):
        said = "neither a docstring nor a line" if documented is None else "a docstring and a line"
        remedy = "write one below the field" if documented is None else "remove the line"
        raise LookupError(f"{key}: has {said} in run_file.meanings.yaml; {remedy}")
    return _tidy(documented or MEANINGS[key])


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a class body."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[statement.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def in_words(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """A type for people: ``whole number ≥ 1``."""
    if annotation is type(None):
        return "`null`"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return _link(annotation.__name__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin is Literal:
        return _either(_alternatives(annotation))
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is tuple:
        return f"{'list' if arguments[-1] is ... else 'pair'} of {_plural(in_words(arguments[0]))}"
    if origin is dict or annotation is Any:
        return "mapping"
    limits = [
        f"{sign} {getattr(bound, name):,.10g}"
        for bound in bounds
        for name, sign in BOUNDS.items()
        if hasattr(bound, name)
    ]
    return f"{NAMES[annotation]} {' and '.join(limits)}".rstrip()


def _union(parts: Iterable[Any]) -> str:
    return _either([word for part in parts for word in _alternatives(part)])


def _alternatives(annotation: Any) -> list[str]:
    """The choices of a union's part, each by itself."""
    if get_origin(annotation) is Literal:
        return [f"`{choice}`" for choice in get_args(annotation)]
    return [in_words(annotation)]


def _plural(words: str) -> str:
    return re.sub(r"^(whole )?number", r"\g<0>s", words)


def _annotated(inner: Any, metadata: Sequence[Any]) -> str:
    limits: list[Any] = []
    for entry in metadata:
        if isinstance(entry, AfterValidator):
            return FORMS[getattr(entry.func, "__name__", "")]
        if isinstance(entry, FieldInfo):
            if entry.discriminator:
                return next(_link(n) for n, kinds in KINDS.items() if kinds == inner)
            limits += entry.metadata
    return in_words(inner, limits)


def _either(parts: Sequence[str]) -> str:
    *most, last = dict.fromkeys(parts)
    return f"{', '.join(most)} or {last}" if most else last


def _link(name: str) -> str:
    title = SECTIONS[name]
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{title.split(':')[-1].strip()}](#{anchor})"


def shown(value: Any) -> str:
    """A default as it would be written in a run file."""
    if isinstance(value, Part):
        if not _is_tagged(type(value)):
            return "its defaults"
        tag = _tag(type(value))
        return f"`{{{tag}: {getattr(value, tag)}}}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(shown(part).strip('`') for part in value)}]`"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if str(value) not in ("", "{}") else "empty"


def _is_tagged(kind: type[Any]) -> bool:
    return any(kind in get_args(kinds) for kinds in KINDS.values())


def _tag(kind: type[BaseModel]) -> str:
    return next(tag for tag in TAGS if tag in kind.model_fields)


def _tags(kind: type[BaseModel]) -> str:
    return ", ".join(f"`{value}`" for value in get_args(kind.model_fields[_tag(kind)].annotation))


def _about(documentation: str) -> str:
    papers = [paper for paper in _papers(documentation) if paper not in _paragraph(documentation)]
    return " ".join([_paragraph(documentation), *papers])


def _papers(documentation: str) -> list[str]:
    """Links to what a docstring cites."""
    return re.findall(r"\[arXiv [\d.]+\]\([^)]+\)", _tidy(documentation))


def _paragraph(documentation: str) -> str:
    return _tidy(documentation.split("\n\n")[0])


def _tidy(text: str) -> str:
    """A docstring as one line of Markdown."""
    line = " ".join(text.split()).replace("``", "`")
    line = re.sub(r"\bNone\b", "`null`", line)
    return re.sub(r"https://arxiv\.org/abs/([\d.]*\d)", r"[arXiv \1](\g<0>)", line)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

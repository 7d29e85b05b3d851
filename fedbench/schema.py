"""What comes from outside, checked at the border: YAML in, frozen values out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from fedbench.errors import ConfigError

_P = TypeVar("_P", bound=BaseModel)
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Part(BaseModel):
    """A part of a configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# libyaml's, ten times as fast, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_IN_WORDS = dict.fromkeys(("tuple_type", "list_type"), "give a list, in brackets") | dict.fromkeys(
    ("model_type", "model_attributes_type", "dict_type"), "give a mapping: keys with their values"
)
"""By type of error, for what pydantic calls after Python's types."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: it is missing, not YAML, or no mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: there is no such file; give the path of a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML ({error}); mend the line it names") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds no mapping; start it with a key such as name:")
    return raw


def validated(kind: type[_P], raw: Any, where: str) -> _P:
    """Check raw values against a model, with errors for people.

    Raises:
        ConfigError: names the file, the field, what is wrong and the nearest known key.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
        # A list whose items are wrong counts as too short beside them.
        told = [e for e in errors if e["type"] != "too_short" or not e["input"]] or errors
        raise ConfigError("; ".join(_explain(kind, e, where) for e in told[:3])) from error


def with_defaults(kind: type[BaseModel], raw: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote, with the defaults of what has come since; nothing is checked.

    Args:
        kind: the model that it was written from.
        raw: plain JSON values. Parts that may be of several kinds stay as they are.
    """
    filled = dict(raw)
    for name, field in kind.model_fields.items():
        if name not in filled:
            if not field.is_required():
                filled[name] = to_jsonable_python(field.get_default(call_default_factory=True))
            continue
        parts = [part for part in (field.annotation, *get_args(field.annotation)) if _is_part(part)]
        if len(parts) == 1 and isinstance(filled[name], Mapping):
            filled[name] = with_defaults(parts[0], filled[name])
    return filled


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _explain(kind: type[BaseModel], error: ErrorDetails, where: str) -> str:
    location, choices = error["loc"], _choices(kind)
    location = tuple(
        part
        for before, part in zip((None, *location), location, strict=False)
        if (before, part) not in choices
    )
    field = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        return f"{where}: {field}: unknown key; {_meant(kind, error['loc'])}"
    if error["type"] == "missing":
        return f"{where}: {field}: is required; add it"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{where}: {field + '.' if field else ''}{_wrong_tag(error)}"
    message = _IN_WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "too_short":
        message = f"give a list of at least {error['ctx']['min_length']}"
    given = "" if isinstance(error["input"], dict) else f" (it is {error['input']!r})"
    return f"{where}: {field + ': ' if field else ''}{message}{given}"


def _wrong_tag(error: ErrorDetails) -> str:
    """The key that says of which kind a mapping is, and what is wrong with it."""
    key = error["ctx"]["discriminator"].strip("'")
    if error["type"] == "union_tag_not_found":
        return f"{key}: is required; add it"
    tags = error["ctx"]["expected_tags"].replace("'", "").split(", ")
    given = error["ctx"]["tag"]
    near = difflib.get_close_matches(given, tags, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{key}: unknown {given!r}: {hint}known are {', '.join(tags)}"


def _meant(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What to write in place of an unknown key: the nearest of its place, or where it belongs."""
    key, places = str(location[-1]), _keys_by_place(kind)
    here = tuple(part for part in location[:-1] if isinstance(part, str))
    # pydantic puts names of types into some paths; such a place is not among those that are known.
    known = places.get(here, set().union(*places.values()))
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {near[0]!r}?"
    holding = [place for place, keys in places.items() if key in keys]
    choices = _choices(kind)
    if here[-2:] in choices and (beside := [p[-1] for p in holding if p[:-1] == here[:-1]]):
        return f"it is for {', '.join(beside)}, and not for {here[-1]}"
    if holding:
        paths = (
            ".".join(p for b, p in zip(("", *place), place, strict=False) if (b, p) not in choices)
            for place in holding
        )
        return "did you mean " + " or ".join(f"{path}.{key}".strip(".") for path in paths) + "?"
    return "remove it, or see the docs for the keys"


def _keys_by_place(
    kind: type[BaseModel], place: tuple[str, ...] = ()
) -> dict[tuple[str, ...], set[str]]:
    """The keys of a model and of the models inside it, by the path that an error has for them."""
    places = {place: set(kind.model_fields)}
    for name, field in kind.model_fields.items():
        for inner in models_within(field.annotation):
            tags: tuple[Any, ...] = ()
            if isinstance(field.discriminator, str):
                tags = get_args(inner.model_fields[field.discriminator].annotation)
            for path in [(*place, name, tag) for tag in tags] or [(*place, name)]:
                for where, keys in _keys_by_place(inner, path).items():
                    places[where] = places.get(where, set()) | keys
    return places


def _choices(kind: type[BaseModel]) -> set[tuple[Any, Any]]:
    """Pairs (field, tag) where one key of a mapping says of which kind it is.

    pydantic puts the tag into the path of an error, below the field; nobody has written it there.
    """
    pairs: set[tuple[Any, Any]] = set()
    for name, field in kind.model_fields.items():
        for inner in models_within(field.annotation):
            pairs |= _choices(inner)
            if isinstance(field.discriminator, str):
                tag = inner.model_fields[field.discriminator].annotation
                pairs |= {(name, value) for value in get_args(tag)}
    return pairs


def models_within(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_within(part)]


def refuse_infinite(value: Any, place: str = "") -> None:
    """Refuse numbers within nested mappings and lists that are infinite or no number.

    Args:
        value: what is looked through.
        place: of the value, for the message; keys are joined to it by dots.

    Raises:
        ValueError: says where one is.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place.strip('.')} is {value}; give a finite number")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_infinite(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            refuse_infinite(item, f"{place}.{index}")


def override(raw: dict[str, Any], assignment: str, option: str = "--set") -> None:
    """Set ``key.sub=value`` in a nested mapping, the value as YAML.

    Args:
        raw: changed in place.
        assignment: as a user wrote it.
        option: behind which it was written, for messages.

    Raises:
        ConfigError: it is no assignment.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        example = "local.max_steps=2" if option == "--set" else "batch_tokens=4096"
        raise ConfigError(f"{option} {assignment}: is not key=value; write for example {example}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{option} {assignment}: the value is not YAML ({error}); "
            "write a text with braces or colons in double quotes, within the shell's single ones"
        ) from error
    *parents, last = key.split(".")
    place = raw
    for part in parents:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{option} {assignment}: {part} is not a mapping in the run file")
        place = inner
    place[last] = value

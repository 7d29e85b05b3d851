"""Values between the program and the tests: plain data by value, everything else by reference.

A value of a type that is not listed here travels as a *reference*: a number that means something
only to the process it came from. Whatever an object of the program says of itself (``__eq__``,
``__class__``, ``__bool__``) stays there; the tests see numbers, texts and containers of their own.
"""

from __future__ import annotations

import builtins
import itertools
import json
import os
import sys
from collections import deque

TYPE_CHECKING = False  # typing takes longer to import than most programs run
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Refer = Callable[[Any], int]
    Resolve = Callable[[int], Any]

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 200
"""Deep enough for answers, and far from where comparing them would exhaust the C stack."""
MAX_ITEMS = 200_000
"""Of an iterator that is answered in place of its items; it may be without an end."""
_EXACT = 2**53


class WireError(Exception):
    """A message is damaged, too large, or holds what cannot travel."""


class Closed(WireError):
    """The other side is gone."""


class Channel:
    """Messages over a file that is a socket, or over two that are pipes; each with its length."""

    def __init__(self, file: int, out: int | None = None) -> None:
        self.file = file
        self.out = file if out is None else out

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            WireError: it is too large.
            Closed: nobody listens.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_BYTES:
            raise WireError(f"a message of {len(data)} bytes is too large")
        try:
            rest = memoryview(len(data).to_bytes(4, "big") + data)
            while rest:
                rest = rest[os.write(self.out, rest) :]
        except OSError as error:
            raise Closed("nobody listens") from error

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            WireError: it is damaged or too large.
            Closed: there is none.
        """
        length = int.from_bytes(self._read(4), "big")
        if length > MAX_BYTES:
            raise WireError(f"a message of {length} bytes is too large")
        try:
            message = json.loads(self._read(length))
        except (ValueError, RecursionError) as error:
            raise WireError(f"a message is damaged: {type(error).__name__}") from error
        if not isinstance(message, dict):
            raise WireError("a message is damaged: it is no object")
        return message

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.read(self.file, min(length, 2**16))
            except OSError as error:
                raise Closed("nobody speaks") from error
            if not part:
                raise Closed("nobody speaks")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def encode(value: Any, refer: Refer, depth: int = 0) -> Any:
    """A value as JSON; subclasses of plain types lose what they added.

    Raises:
        WireError: it is nested too deeply, or has too many items.
    """
    if depth > MAX_DEPTH:
        raise WireError(f"a value is nested deeper than {MAX_DEPTH}")

    def inner(item: Any) -> Any:
        return encode(item, refer, depth + 1)

    if value is None or value is True or value is False:
        return value
    # The methods of the plain types themselves are called, never those of a subclass.
    if isinstance(value, int):
        number = int.__index__(value)
        number = number if type(number) is int else int.__add__(value, 0)
        return number if -_EXACT < number < _EXACT else ["int", hex(number)]
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str | bytes | bytearray) and _length(value) > MAX_BYTES:
        raise WireError(f"a text is longer than {MAX_BYTES}")
    if isinstance(value, str):
        return str.__str__(value)
    for sequence, name in _SEQUENCES.items():
        if isinstance(value, sequence):
            return [name, [inner(item) for item in _items(sequence, value)]]
    if isinstance(value, dict):
        return ["dict", [[inner(key), inner(item)] for key, item in dict.items(value)]]
    if isinstance(value, bytes | bytearray):
        return [type(value).__mro__[-2].__name__, bytes(value).hex()]
    if isinstance(value, complex):
        return ["complex", float(value.real), float(value.imag)]
    for name in _EXACT_NUMBERS:
        if type(value) is _exact_number(name):
            return [name, str(value)]
    if type(value) is range:
        return ["range", [inner(end) for end in (value.start, value.stop, value.step)]]
    for view, name in _VIEWS.items():
        if type(value) is view:
            return [name, [inner(item) for item in _items(view, value)]]
    if hasattr(type(value), "__next__") and not isinstance(value, type):
        items = list(itertools.islice(value, MAX_ITEMS + 1))
        if len(items) > MAX_ITEMS:
            raise WireError(f"an iterator gives more than {MAX_ITEMS} items")
        return ["iterator", [inner(item) for item in items]]
    if (
        type(value).__module__ == "numpy"
        and hasattr(value, "dtype")
        and not hasattr(value, "__setitem__")
    ):
        return inner(value.item())
    if isinstance(value, type) and _BUILTIN_TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    return ["reference", refer(value)]


def decode(data: Any, resolve: Resolve, depth: int = 0) -> Any:
    """The value of `encode`'s JSON, made of plain types only.

    Raises:
        WireError: it is no value.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    try:
        if depth > 2 * MAX_DEPTH:
            raise WireError("a value is nested too deeply")
        name, content = data[0], data[1]
        if name == "reference":
            return resolve(int(content))
        if name == "complex":
            return complex(float(content), float(data[2]))
        if name == "dict":
            return {
                decode(key, resolve, depth + 1): decode(item, resolve, depth + 1)
                for key, item in content
            }
        if name in _TEXTUAL:
            return _TEXTUAL[name](content)
        return _MADE[name]([decode(item, resolve, depth + 1) for item in content])
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise WireError(f"a value is damaged: {type(error).__name__}") from error


def _items(kind: Any, value: Any) -> Iterator[Any]:
    """What the plain type itself iterates over."""
    items: Iterator[Any] = kind.__iter__(value)
    return items


def _length(text: str | bytes | bytearray) -> int:
    kind = next(kind for kind in (str, bytes, bytearray) if isinstance(text, kind))
    return kind.__len__(text)  # type: ignore[arg-type]


def _exact_number(name: str, load: bool = False) -> Any:
    """Decimal or Fraction; None where nobody has imported it, so that no value can be one."""
    module = sys.modules.get(_EXACT_NUMBERS[name])
    if module is None and load:
        module = __import__(_EXACT_NUMBERS[name])
    return getattr(module, name, None)


def _iterator(items: list[Any]) -> Iterator[Any]:
    return iter(items)


_SEQUENCES: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    deque: "deque",
}
_VIEWS: dict[type, str] = {
    type({}.keys()): "keys",
    type({}.values()): "values",
    type({}.items()): "items",
}
_BUILTIN_TYPES = {name: kind for name, kind in vars(builtins).items() if type(kind) is type}
_TEXTUAL: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "type": lambda name: _BUILTIN_TYPES[name],
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": lambda text: _exact_number("Decimal", load=True)(text),
    "Fraction": lambda text: _exact_number("Fraction", load=True)(text),
}
_EXACT_NUMBERS = {"Decimal": "decimal", "Fraction": "fractions"}
_MADE: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "range": lambda ends: range(*ends),
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "iterator": _iterator,
}

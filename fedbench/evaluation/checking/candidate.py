"""The process of the program that is not trusted: it runs it and answers calls, by value.

Neither the tests nor what they expect is ever here; all that a program can do is to answer.
"""

from __future__ import annotations

import os
import sys

from .wire import Channel, WireError, decode, encode

TYPE_CHECKING = False  # typing takes longer to import than most programs run
if TYPE_CHECKING:
    from typing import Any


def main(mode: str) -> None:
    """Serve one program over files 0 and 1, until the other side has had enough."""
    channel = Channel(os.dup(0), os.dup(1))
    _silence()
    sys.set_int_max_str_digits(0)
    channel.send({"hello": mode})
    order = channel.receive()
    served = _Served(channel)
    channel.send(served.answer(lambda: served.execute(order["program"], order["provides"])))
    while True:
        request = channel.receive()
        channel.send(served.answer(lambda request=request: served.do(request)))


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(null, file)
    os.close(null)


class _Served:
    """A running program and the objects of it that are known outside."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def answer(self, action: Any) -> dict[str, Any]:
        try:
            return {"value": encode(action(), self.refer)}
        except BaseException as error:  # noqa: BLE001 - all that a program raises is its answer
            return {"raised": [type(error).__name__, _message(error)]}

    def execute(self, program: str, provides: list[str]) -> dict[str, Any]:
        """What the program defines of the names that the tests use."""
        module = type(sys)("solution")  # dataclasses and pickle look their module up
        sys.modules[module.__name__] = module
        exec(compile(program, "solution.py", "exec"), module.__dict__)
        return {name: vars(module)[name] for name in provides if name in vars(module)}

    def do(self, request: dict[str, Any]) -> Any:
        target = self.resolve(request["on"])
        match request["op"]:
            case "call":
                args = [decode(value, self.resolve) for value in request["args"]]
                named = request["kwargs"].items()
                kwargs = {name: decode(value, self.resolve) for name, value in named}
                return target(*args, **kwargs)
            case "get":
                return getattr(target, request["name"])
            case "set":
                setattr(target, request["name"], decode(request["value"], self.resolve))
                return None
        raise WireError(f"there is no operation {request['op']}")

    def refer(self, value: Any) -> int:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)  # kept, so that its id is not given to another
        return number

    def resolve(self, number: int) -> Any:
        return self.objects[number]


def _message(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:  # noqa: BLE001 - its __str__ is the program's own code
        return ""

"""From a completion to a program in a language of braces."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.M | re.S)
_HEADS = ("#include", "using namespace", "import ", "use ", "package ")
_DECLARED = re.compile(r"(?:const|let|var)\s+(\w+)\s*=|(\w+)\s*(?:<[^<>]*>)?\s*\([^;]*\{\s*$", re.M)


def braces(completion: str, beginning: str, names: Sequence[str]) -> str | None:
    """The function in a fenced block, or the continuation of the beginning up to its last brace.

    In front of a whole function stand the imports of the beginning that it does not repeat; where
    the beginning opens a class and the answer does not, it is put into one of that name.
    """
    block = next((body for _, body in _FENCE.findall(completion)), None)
    text = completion if block is None else block
    if not text.strip():
        return None
    if any(_defines(text, name) for name in names or _declared(beginning)):
        return f"{_heads(beginning, text)}{_in_class(beginning, text)}\n"
    if not beginning:
        return text if block is not None else None
    return _closed(beginning, text)


def multipl_e(completion: str, beginning: str, names: Sequence[str]) -> str | None:
    """As `braces`; kept apart from it where prompts end in a line that opens a function."""
    return braces(completion, beginning.rstrip() + "\n", names)


def _declared(beginning: str) -> list[str]:
    """The name of the function that the beginning ends in; words in its comments are none."""
    found = _DECLARED.findall(_without_comments(beginning))
    return [next(filter(None, found[-1]))] if found else []


def _defines(text: str, name: str) -> bool:
    """Whether a function of that name begins, with a body behind it."""
    name = re.escape(name)
    return bool(re.search(rf"(?<![\w.])(?:{name}\s*(?:<[^<>]*>)?\s*\([^;{{}}]*\)[^;{{}}]*\{{|"
                          rf"(?:const|let|var)\s+{name}\s*=|"
                          rf"func\s+{name}\s*\()", text))  # fmt: skip


def _heads(beginning: str, text: str) -> str:
    own = {line.strip() for line in text.split("\n")}
    lines = [line for line in beginning.split("\n") if line.lstrip().startswith(_HEADS)]
    return "".join(f"{line}\n" for line in lines if line.strip() not in own)


def _in_class(beginning: str, text: str) -> str:
    opened = re.search(r"^\s*(?:public\s+)?class\s+(\w+)\s*\{", beginning, re.M)
    if opened is None or re.search(rf"\bclass\s+{opened[1]}\b", text):
        return text
    return f"class {opened[1]} {{\n{text}\n}}"


def _closed(beginning: str, text: str) -> str:
    """Beginning and continuation, up to the brace that closes the first that was opened."""
    depth = _depth(beginning)
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0 and character == "}":
            return f"{beginning}{text[: at + 1]}\n"
    # A base model is stopped in front of the last brace, and of Java's class it closes the method.
    return f"{beginning}{text}\n{'}' * max(depth, 0)}\n"


def _depth(text: str) -> int:
    """Braces that are open at the end; those in comments, which are prose, are not counted."""
    code = _without_comments(text)
    return code.count("{") - code.count("}")


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)


RULES = (braces, multipl_e)

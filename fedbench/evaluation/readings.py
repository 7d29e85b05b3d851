"""Reading letters, yes or no, numbers and formulas out of completions; see `extract`.

Rules that a published protocol fixes are named after it and keep its mistakes. The others prefer
what a completion states ("the answer is B") to where it happens to stand, take the last statement
where there are several, and read nothing where what is left is ambiguous.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_STATED = re.compile(
    r"\b(answer|(?:correct|best|right) (?:option|choice))\b(?:\s+is\b)?\s*[:=]?\s*(?=\S)",
    re.IGNORECASE,
)
_STATED_BBH = re.compile(r"the answer is:?\s*", re.IGNORECASE)
_MARKUP = re.compile(r"\*\*|__|`|\$|\\boxed|\\text(?:bf|rm)?|\\mathrm|[{}]")
_OPENED, _CLOSED = r"\\?[\[(\"'“”‘’«<>]", r"\\?[\])\"'“”‘’»<>]"
"""What a letter stands in; ``>`` and ``<`` are of tags."""
_CALLED_RIGHT = (
    r"(?: \([^()\n]*\))? (?:is|seems|would be) (?:the )?(?:most )?"
    r"(?:(?:correct|right|best|likely|appropriate)\b(?! (?:if|when|only|for)\b)"
    r"(?: (?:answer|option|choice)\b)?|answer\b)"
)
_DENIED = r"(?i:\b(?:not|neither|nor)|n['’]t) "
_FLEXIBLE_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NUMBER_AFTER_HASHES = re.compile(r"#### (-?[0-9.,]+)")
_OPENS_FORMULA = re.compile(r"[-\d\\(\[{√π]|[A-Za-z]\s*=")
_AFTER_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_OPTION = re.compile(r"\(([A-Z])\)")


def choice_letter(completion: str, labels: Sequence[str]) -> str | None:
    """The letter of an option: as stated last, as opening, as last called right, or the only one.

    That is "Answer: B", "B) Aspirin", "so B is correct". "A" in running text is a word: unless it
    is stated, a letter counts in parentheses, in quotes or before punctuation only. Two that are
    stated together ("A and C") are no answer, and one that is denied ("neither A nor B") is none.
    """
    letters = "".join(map(re.escape, labels))
    text = _MARKUP.sub("", unicodedata.normalize("NFKC", completion)).strip()
    text = re.sub(rf"{_OPENED}\s*([{letters}])\s*{_CLOSED}", r"(\1)", text)
    text = re.sub(rf"{_DENIED}\(?[{letters}](?![\w'-])\)?", "", text)
    apart = rf"\(([{letters}])\)|([{letters}])(?=\s*(?:[.,:;)!?。\n]|$))"
    stated = re.compile(rf"(?:option |choice )?(?:([{letters}])(?![\w'-])|(?i:{apart}))")
    several = re.compile(rf"\(?[{letters}]\)?(?:\s*,\s*\(?[{letters}]\)?)*\s*,?"
                         rf"\s*(?:and|or|&|/)\s*\(?[{letters}](?![\w'-])")  # fmt: skip
    called = list(re.finditer(rf"(?<![\w'-])\(?([{letters}])\)?{_CALLED_RIGHT}", text))
    ends = {match.end() for match in called}
    places = [match.end() for match in _STATED.finditer(text) if match.end(1) not in ends]
    for place in reversed(places):
        if several.match(text, place):
            return None
        if found := stated.match(text, place):
            return _as_label(next(filter(None, found.groups())), labels)
    if found := re.match(apart, text):
        return None if several.match(text) else found[1] or found[2]
    if called:
        return called[-1][1]
    present = {one[1] or one[2] for one in re.finditer(rf"(?<![\w'-])(?:{apart})", text)}
    return present.pop() if len(present) == 1 else None


def starts_with_label(completion: str, labels: Sequence[str]) -> str | None:
    """The label that the completion begins with, without its leading space.

    So "Aspirin" is A. Source: https://github.com/declare-lab/instruct-eval (mmlu.py, crass.py).
    """
    text = completion.strip()
    return next((label for label in labels if text.startswith(label)), None)


def flowertune_letter(completion: str, labels: Sequence[str]) -> str | None:
    """The first letter or digit, in any case, where it is an option of the task.

    So "The answer is A" is unread where T is no option. Source: https://github.com/adap/flower
    (benchmarks/flowertune-llm/evaluation/medical/utils.py, `format_answer`).
    """
    text = _flowertune_text(completion)[:1]
    return next((label for label in labels if label.lower() == text), None)


def flowertune_boolean(completion: str, labels: Sequence[str]) -> str | None:
    """The whole answer where it is a label; a doubled "yesyes" counts once, "yesno" as yes.

    Source: as `flowertune_letter`; there "maybe" counts in that spelling only, without white space
    or punctuation around it.
    """
    text = _flowertune_text(completion)
    for twice, once in (("yesyes", "yes"), ("nono", "no"), ("yesno", "yes"), ("noyes", "no")):
        if twice in text:
            text = text.replace(twice, once)
            break
    if text in labels and text in ("yes", "no"):
        return text
    return completion.lower() if completion.lower() in labels else None


def yes_no_maybe(completion: str, labels: Sequence[str]) -> str | None:
    """The label that is stated last, or opens the completion, or alone occurs; in any case."""
    text = _MARKUP.sub("", completion).strip()
    label = re.compile(rf"\W*({'|'.join(map(re.escape, labels))})\b", re.IGNORECASE)
    starts = [match.end() for match in _STATED.finditer(text)]
    for place in [*reversed(starts), 0]:
        if found := label.match(text, place):
            return _as_label(found[1], labels)
    words = set(re.findall(r"\w+", text.lower()))
    present = [one for one in labels if one.lower() in words]
    return present[0] if len(present) == 1 else None


def last_number(completion: str, labels: Sequence[str]) -> str | None:
    """The last number, without dollar signs, thousands separators and final full stop.

    lm-eval's filter `flexible-extract` of gsm8k with what its exact match ignores.
    """
    found = [first or second for first, second in _FLEXIBLE_NUMBER.findall(completion)]
    return _bare_number(found[-1]) if found else None


def stated_answer(completion: str, labels: Sequence[str]) -> str | None:
    """What stands behind the last "Answer:", of a number with its unit the number; else the last.

    For word problems some of whose answers are no numbers: a name, a time of day, yes or no.
    """
    stated = _AFTER_ANSWER.findall(_MARKUP.sub("", completion))
    if not stated:
        return last_number(completion, labels)
    number = re.match(r"\$?(-?[\d,]*\.?\d+)(?=$|[\s%;,.](?!\d))", stated[-1].strip())
    return _bare_number(number[1]) if number else (stated[-1].strip().removesuffix(".") or None)


def number_after_hashes(completion: str, labels: Sequence[str]) -> str | None:
    """The first number behind "#### ", as GSM8K's own solutions end; lm-eval's `strict-match`."""
    found = _NUMBER_AFTER_HASHES.search(completion)
    return _bare_number(found[1]) if found else None


def boxed(completion: str, labels: Sequence[str]) -> str | None:
    r"""What stands in the last ``\boxed{}``, braces balanced, or behind ``\boxed`` and a space.

    Source: `last_boxed_only_string` of https://github.com/hendrycks/math.
    """
    start = max(completion.rfind(r"\boxed"), completion.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = completion[start:].removeprefix(r"\boxed").removeprefix(r"\fbox")
    if not rest.startswith("{"):
        words = rest.split("$")[0].split()
        return words[0] if words else None
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position].strip() or None
    return None


def math_answer(completion: str, labels: Sequence[str]) -> str | None:
    r"""A formula: boxed, or as stated last ("the final answer is $x$"), or the last in dollars.

    The second is how Minerva's examples end (Lewkowycz et al. 2022, arXiv 2206.14858, appendix D).
    """
    found = boxed(completion, labels)
    if found is not None:
        return found
    formulas = re.compile(r"\$\$?([^$]+)\$\$?")
    for match in reversed(list(_STATED.finditer(completion))):
        line = completion[match.end() :].split("\n")[0].split(". I hope")[0].strip("* ")
        if inside := formulas.search(line):
            return inside[1].strip() or None
        if _OPENS_FORMULA.match(line):
            return line.rstrip(". ") or None
    inner = formulas.findall(completion)
    return (inner[-1].strip() or None) if inner else None


def bbh_answer(completion: str, labels: Sequence[str]) -> str | None:
    """The line behind the last "the answer is", or else the first line; without final full stop.

    Of an option with its text, "(B) blue", the option. The examples of BIG-Bench Hard end in "So
    the answer is (B)." (Suzgun et al. 2022, arXiv 2210.09261). lm-eval's expression for it,
    ``(?<=the answer is )(.*)(?=.)``, cuts the last character where no full stop ends the line.
    """
    stated = [match.end() for match in _STATED_BBH.finditer(completion)]
    text = completion[stated[-1] if stated else 0 :].strip().split("\n")[0]
    text = text.replace("**", "").strip().removeprefix("Answer:").strip()
    option = _OPTION.match(text)
    return option[0] if option else (text.removesuffix(".").strip() or None)


def short_answer(completion: str, labels: Sequence[str]) -> str | None:
    """What stands behind the last "Answer:", or else the first line; without final full stop.

    The first is how https://github.com/openai/simple-evals (drop_eval.py) reads DROP.
    """
    stated = _AFTER_ANSWER.findall(completion)
    text = stated[-1] if stated else completion.strip().split("\n")[0]
    return text.replace("**", "").strip().removesuffix(".").strip() or None


RULES = (
    *(choice_letter, starts_with_label, flowertune_letter, flowertune_boolean, yes_no_maybe),
    *(last_number, number_after_hashes, stated_answer),
    *(boxed, math_answer, bbh_answer, short_answer),
)


def _flowertune_text(completion: str) -> str:
    text = completion.lower()
    if "\n##" in text:
        text = text.split("\n##")[1].split("\n")[0].strip()
    return re.sub(" +", " ", re.sub(r"[^a-z0-9]", " ", text).strip())


def _bare_number(text: str) -> str | None:
    """As lm-eval's exact match compares it: no commas, no dollars, no final full stop."""
    return text.replace(",", "").replace("$", "").removesuffix(".") or None


def _as_label(word: str, labels: Sequence[str]) -> str | None:
    return next((label for label in labels if label.lower() == word.lower()), None)

"""Reading a verdict out of a judge's reply, with one of two parsers.

``fastchat`` is the code of FastChat's judge (https://github.com/lm-sys/FastChat, ``common.py`` of
llm_judge) to the regular expression, where that writes -1 the value is None. It takes the first
match, so that "see [1]" is a rating of 1, and does not read "[[8/10]]". Arena labels are read as
Arena-Hard does (https://github.com/lmarena/arena-hard-auto): the last match counts.

``fedbench`` reads strict forms first, and a looser one only where no stricter one occurs: a JSON
object, double brackets, "Rating: 8", a reply that is nothing but the verdict. Two different
verdicts of one form, a number off the scale, a refusal or a reply that was cut off are no verdict.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fedbench.evaluation.refusals import opens_with_refusal
from fedbench.judging.verdict_format import (
    ARENA_LABELS,
    RATING,
    STRONGREJECT_FIELDS,
    TIE,
    VERDICT,
    A,
    B,
    Verdict,
    VerdictFormat,
    strongreject,
)

__all__ = ["Verdict", "VerdictFormat", "read_verdict"]

CUT_OFF = "the reply was cut off"
REFUSED = "the judge refused"
NOTHING = "no verdict of the declared format"
TIE_DELTA = 0.1
"""Two scores this close are a tie (FastChat's ``TIE_DELTA``)."""

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»＂「」『』", '"'),
        **dict.fromkeys("‘’‚‛", "'"),
        **dict.fromkeys("【〔〖〚", "["),
        **dict.fromkeys("】〕〗〛", "]"),
        "⟦": "[[",
        "⟧": "]]",
    }
)
_NUMBER = r"([-+]?\d+(?:\.\d+)?)(?![\d%]|[.,]\d|\s*[-–]\s*\d)"
_OUT_OF = r"(?:\s*(?:/|out of)\s*(\d+))?"
_OPEN, _CLOSE = r"[ \t\"'*_`(\[]*", r"[ \t\"'*_`)\]]*"
_END = r"(?=\s*(?:[.,;:!)]|\n|\Z))"
_IS = r"\s*[*_\"']*\s*(?::|=|\bis\b|\bof\b)"
_STATED = rf"\b(?:rating|score|grade){_IS}"
_RATINGS = (
    rf"\[\[\s*(?:(?:rating|score)\s*[:=]?\s*)?[\"'*]*{_NUMBER}[\"'*]*{_OUT_OF}\s*\]\]",
    rf"(?i:{_STATED})\s*{_OPEN}(?<!\[\[){_NUMBER}{_OUT_OF}{_CLOSE}(?=[\s.,;:!)]|\Z)",
    rf"\A{_OPEN}{_NUMBER}{_OUT_OF}{_CLOSE}[.]?\Z",
    rf"\n{_OPEN}{_NUMBER}{_OUT_OF}{_CLOSE}[.]?\Z",
)
_JSON = json.JSONDecoder()


def read_verdict(form: VerdictFormat, text: str, *, truncated: bool = False) -> Verdict:
    """The verdict in a reply, by the parser that the format names.

    Args:
        form: what the rubric declares.
        text: the reply.
        truncated: whether the server says that it reached its limit of tokens. A reply that is
            nothing but a label counts all the same: such judges are given one token.
    """
    if form.parser == "fastchat":
        value, scores = _FASTCHAT[form.kind](text)
        return Verdict(value, None if value is not None else _missing(text, truncated), scores)
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN).strip()
    if truncated and plain not in (form.labels or (A, B)):
        return Verdict(None, CUT_OFF)
    verdict = _FEDBENCH[form.kind](form, text, plain)
    return Verdict(None, _missing(text)) if verdict.problem == NOTHING else verdict


def _missing(text: str, truncated: bool = False) -> str:
    """Why a reply holds nothing that looks like a verdict."""
    if truncated:
        return CUT_OFF
    return REFUSED if opens_with_refusal(text) else NOTHING


# The parser fastchat: None where its code writes -1 or "error".

_Read = tuple[float | str | None, tuple[float, ...]]


def _fastchat_rating(text: str) -> _Read:
    for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"):
        if match := re.search(pattern, text):
            return float(match[1]), ()
    return None, ()


def _fastchat_preference(text: str) -> _Read:
    """By what occurs, not by what occurs first: [[A]] before [[B]] before [[C]]."""
    for mark, value in (("[[A]]", A), ("[[B]]", B), ("[[C]]", TIE)):
        if mark in text:
            return value, ()
    return None, ()


def _fastchat_scores(text: str) -> _Read:
    number = r"(\d+\.?\d*)"
    for pattern in (rf"\[\[{number},\s?{number}\]\]", rf"\[{number},\s?{number}\]"):
        if match := re.search(pattern, text):
            return _winner(float(match[1]), float(match[2]))
    return None, ()


def _fastchat_score_line(text: str) -> _Read:
    """The first line of a review of 2023, whose two numbers are apart by a space or a comma."""
    parts = text.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, parts)
    except ValueError:
        return None, ()
    return _winner(first, second)


def _arena_hard(text: str) -> _Read:
    for pattern in (r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"):
        found = [match for match in re.findall(pattern, text.upper()) if match]
        if found:
            return _arena_label(found[-1].strip("\n")), ()
    return None, ()


_FASTCHAT: dict[str, Callable[[str], _Read]] = {
    "rating": _fastchat_rating,
    "preference": _fastchat_preference,
    "scores": _fastchat_scores,
    "score_line": _fastchat_score_line,
    "arena": _arena_hard,
}


def _winner(first: float, second: float) -> _Read:
    if abs(first - second) <= TIE_DELTA:
        return TIE, (first, second)
    return (A if first > second else B), (first, second)


def _arena_label(text: str) -> str | None:
    """The label as `ARENA_LABELS` writes it: A<<B is B>>A."""
    turned = {"A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B", "B=A": "A=B"}
    label = turned.get(text, text)
    return label if label in ARENA_LABELS else None


# The parser fedbench.


class _Problem(str):
    """Why something that looks like a verdict is none."""


Found = float | str | _Problem


def _rating(form: VerdictFormat, text: str, plain: str) -> Verdict:
    if objects := list(_objects(text, plain, (RATING,))):
        return _one({_scaled(found[RATING], form.scale) for found in objects})
    for pattern in form.patterns or _RATINGS:
        if found := list(re.finditer(pattern, plain)):
            return _one({_rated(match, form) for match in found})
    return Verdict(None, NOTHING)


def _rated(match: re.Match[str], form: VerdictFormat) -> Found:
    """The rating of a match, or why it is none."""
    best = match[2] if match.re.groups > 1 else None
    if best is not None and float(best) != form.scale[1]:
        return _Problem(f"a rating out of {best} where the scale ends at {form.scale[1]:g}")
    return _scaled(match[1], form.scale)


def _preference(form: VerdictFormat, text: str, plain: str) -> Verdict:
    def meaning(label: str) -> str | None:
        if label.upper() in (A, B):
            return label.upper()
        is_tie = label.lower() in ("c", TIE) and not form.labels
        return TIE if is_tie else None

    return _labelled(form, text, plain, r"[ABC]|[Tt]ie|TIE", r"(?:assistant |model )?", meaning)


def _arena(form: VerdictFormat, text: str, plain: str) -> Verdict:
    label = r"[ABab]\s*(?:[<>]{1,2}|=)\s*[ABab]"
    return _labelled(
        form, text, plain, label, "", lambda found: _arena_label("".join(found.upper().split()))
    )


def _choice(form: VerdictFormat, text: str, plain: str) -> Verdict:
    known = {label.lower(): label for label in form.labels}
    labels = f"(?i:{'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})"
    return _labelled(form, text, plain, labels, "", lambda found: known.get(found.lower()))


def _labelled(
    form: VerdictFormat,
    text: str,
    plain: str,
    label: str,
    title: str,
    meaning: Callable[[str], str | None],
) -> Verdict:
    """One of a few labels: as JSON, in double brackets, stated, opening, or all there is."""
    if objects := list(_objects(text, plain, (VERDICT,))):
        return _one({_known(meaning(str(found[VERDICT]))) for found in objects})
    said = r"verdict|winner|answer|decision|judge?ment"
    line = rf"(?:\A|\n){_OPEN}({label}){_CLOSE}(?=[.,;:!\n]|\Z)"
    patterns: Sequence[str] = form.patterns or (
        rf"\[\[\s*(?i:{title})({label})\s*\]\]",
        *((rf"\[\s*({label})\s*\]",) if form.kind == "arena" else ()),
        rf"(?i:\b(?:{said}){_IS}\s*{_OPEN}{title})(?<!\[\[)({label}){_CLOSE}(?:{_END}|\s+is\b)",
        # A label opens a choice or one of its lines; a letter there may be an article.
        line if form.kind == "choice" else rf"(?:\A|\n){_OPEN}(?i:{title})({label}){_CLOSE}[.!]?\Z",
    )
    for pattern in patterns:
        if found := re.findall(pattern, plain):
            return _one({_known(meaning(one)) for one in found})
    return Verdict(None, NOTHING)


def _scores(form: VerdictFormat, text: str, plain: str) -> Verdict:
    pair = rf"\[\[\s*{_NUMBER},\s*{_NUMBER}\s*\]\]"
    return _pair(form, re.findall(pair, re.sub(r"(?<=\d),(?=\d)", ", ", plain)))


def _score_line(form: VerdictFormat, text: str, plain: str) -> Verdict:
    first = plain.split("\n")[0].strip()
    match = re.fullmatch(r"([-+]?\d+(?:\.\d+)?)(?:\s*,\s*|\s+)([-+]?\d+(?:\.\d+)?)", first)
    return _pair(form, [match.groups()] if match else [])


def _pair(form: VerdictFormat, found: Sequence[tuple[str, ...]]) -> Verdict:
    if not found:
        return Verdict(None, NOTHING)
    if len(set(found)) > 1:
        return _one({f"{a}, {b}" for a, b in found})
    scores = [_scaled(score, form.scale) for score in found[0]]
    for score in scores:
        if isinstance(score, _Problem):
            return Verdict(None, str(score))
    value, both = _winner(*map(float, scores))
    return Verdict(value, None, both)


def _json(form: VerdictFormat, text: str, plain: str) -> Verdict:
    read = set()
    for found in _objects(text, plain, tuple(form.fields)):
        read.add(tuple(_scaled(found[name], scale) for name, scale in form.fields.items()))
    if not read:
        return Verdict(None, NOTHING)
    if len(read) > 1:
        return _one({str(numbers) for numbers in read})
    for number in (numbers := read.pop()):
        if isinstance(number, _Problem):
            return Verdict(None, str(number))
    scores = tuple(map(float, numbers))
    if form.formula is None:
        return Verdict(scores[0], None, scores)
    named = dict(zip(form.fields, scores, strict=True))
    return Verdict(strongreject(*(named[name] for name in STRONGREJECT_FIELDS)), None, scores)


_FEDBENCH: dict[str, Callable[[VerdictFormat, str, str], Verdict]] = {
    "rating": _rating,
    "preference": _preference,
    "arena": _arena,
    "scores": _scores,
    "score_line": _score_line,
    "choice": _choice,
    "json": _json,
}


def _one(found: Iterable[Found]) -> Verdict:
    """The verdict where all that was found says the same."""
    distinct = sorted(set(found), key=str)
    if len(distinct) > 1:
        named = ", ".join(f"{one:g}" if isinstance(one, float) else one for one in distinct[:3])
        return Verdict(None, f"different verdicts in one reply: {named}")
    only = distinct[0]
    return Verdict(None, str(only)) if isinstance(only, _Problem) else Verdict(only)


def _scaled(number: Any, scale: tuple[float, float]) -> Found:
    """A number of the scale, from JSON or text."""
    try:
        value = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        return _Problem(f"{number!r} where a number is wanted")
    if not scale[0] <= value <= scale[1]:
        return _Problem(f"{value:g} is off the scale of {scale[0]:g} to {scale[1]:g}")
    return value


def _known(label: str | None) -> Found:
    return _Problem("a verdict that is not among the labels") if label is None else label


def _objects(text: str, plain: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects in a reply that hold all of the fields.

    Typographic quotes are read as straight ones only where nothing is found otherwise: within an
    explanation they would end its string.
    """
    for version in (text, plain):
        found = [one for one in _decoded(version) if all(field in one for field in fields)]
        if found:
            yield from found
            return


def _decoded(text: str) -> Iterator[dict[str, Any]]:
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _JSON.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value
        place = text.find("{", end)

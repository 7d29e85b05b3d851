"""Reading an answer out of a completion: named rules, ten lines each.

A rule returns None for what it cannot read; the item is then *unparsed*: scored as wrong, and
counted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from fedbench.errors import ConfigError
from fedbench.evaluation import code_lines, finance_readings, readings, refusals
from fedbench.evaluation.numglue import mammoth_answer

Extract = Callable[[str, Sequence[str]], str | None]
"""(completion, labels of the task) -> the answer, or None."""


def label_word(completion: str, labels: Sequence[str]) -> str | None:
    """The label that occurs as a whole word, in any case; None when none or several do."""
    words = set(re.findall(r"\w+", completion.lower()))
    found = [label for label in labels if label.lower() in words]
    return found[0] if len(found) == 1 else None


def fingpt_sentiment(completion: str, labels: Sequence[str]) -> str:
    """FinGPT's rule: "positive" or "Positive" anywhere, else "negative" likewise, else neutral.

    It never leaves an answer unparsed, so garbage counts as neutral, which is the largest class.
    Source: https://github.com/AI4Finance-Foundation/FinGPT (benchmarks, `change_target`).
    """
    for label in ("positive", "negative"):
        if label in completion or label.capitalize() in completion:
            return label
    return "neutral"


def verbatim(completion: str, labels: Sequence[str]) -> str | None:
    """The completion without surrounding space; None when empty."""
    return completion.strip() or None


EXTRACTS: dict[str, Extract] = {
    rule.__name__: rule
    for rule in (
        *(label_word, fingpt_sentiment, verbatim),
        *(*readings.RULES, *refusals.RULES, *finance_readings.RULES),
        *(*code_lines.RULES, mammoth_answer),
    )
}


OF_LABELS = (
    *("label_word", "choice_letter", "starts_with_label", "yes_no_maybe"),
    *("flowertune_letter", "flowertune_boolean"),
)
"""Rules that look for the labels of the task."""


def refuse_labels(name: str, labels: Sequence[str]) -> None:
    """See that a rule that looks for labels has some, and that of letters letters.

    Raises:
        ValueError: it would read nothing, or something else than a label.
    """
    if name in OF_LABELS and not labels:
        raise ValueError(f"extract {name} looks for the labels, but labels are empty; list them")
    if name == "choice_letter" and any(len(label) != 1 for label in labels):
        raise ValueError(
            "extract choice_letter looks for single letters, but labels are "
            f"{', '.join(labels)}; choose label_word"
        )


def get_extract(name: str) -> Extract:
    """The rule of that name.

    Raises:
        ConfigError: there is none; the nearest is suggested.
    """
    if name in EXTRACTS:
        return EXTRACTS[name]
    near = difflib.get_close_matches(name, EXTRACTS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown extract {name!r}: {hint}known are {', '.join(EXTRACTS)}")

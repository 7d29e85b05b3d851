"""Questions that plain text answers by itself: which word is missing, which of these words occurs.

A small model that only continues text learns too little about meaning in minutes. Asked for a
word that was taken out, or for the one word of a list that occurs, in the same frame as the
private task, it learns to read the input for an answer. No label is used: text and word list are
all there is.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from fedbench.data.datasets import Example
from fedbench.data.templates import Turn
from fedbench.model_config import Cloze

MISSING = "Which word is missing in this {kind}?"
OCCURS = "Which direction word does this {kind} contain?"
BLANK, NONE = "___", "none"
MIN_COUNT, MIN_LENGTH = 20, 4  # what counts as a common word
LISTED_SHARE = 0.7  # how often a listed word is taken out where the text has one
NONE_SHARE = 0.5  # how often a text without a listed word is asked about


def cloze(texts: Sequence[Example], config: Cloze, seed: int) -> list[Example]:
    """Two questions per text and repeat, where the text allows them.

    Args:
        texts: plain texts; an example's label is its kind in words ("tweet", "news").
        config: the word list, and how often each text is used.
        seed: of the choice of words.
    """
    rng = random.Random(f"cloze/{seed}")
    listed = {word.lower() for word in config.words}
    counts = Counter(word.lower() for text in texts for word in _words(text.text))
    examples = []
    for _ in range(config.repeats):
        for text in texts:
            examples.extend(_questions(text, listed, counts, rng))
    return examples


def _questions(
    text: Example, listed: set[str], counts: Counter[str], rng: random.Random
) -> list[Example]:
    kind = text.label or "text"
    places = list(re.finditer(r"[A-Za-z]+", _without_urls(text.text)))
    ours = [place for place in places if place.group().lower() in listed]
    common = [
        place
        for place in places
        if len(place.group()) >= MIN_LENGTH and counts[place.group().lower()] >= MIN_COUNT
    ]
    questions = []
    candidates = ours if ours and rng.random() < LISTED_SHARE else common or ours
    if candidates:
        place = rng.choice(candidates)
        blanked = f"{text.text[: place.start()]}{BLANK}{text.text[place.end() :]}"
        questions.append((MISSING, blanked, place.group().lower()))
    if ours or rng.random() < NONE_SHARE:
        answer = rng.choice(ours).group().lower() if ours else NONE
        questions.append((OCCURS, text.text, answer))
    return [
        Example((Turn(question.format(kind=kind), given, answer),))
        for question, given, answer in questions
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", _without_urls(text))


def _without_urls(text: str) -> str:
    """The text with URLs blanked, every other character at its place."""
    return re.sub(r"https?://\S+|www\.\S+", lambda url: " " * len(url.group()), text)

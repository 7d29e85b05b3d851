"""What is judged: a question of one or two turns, its category and its reference answers.

MT-Bench's references are GPT-4's answers to its questions of math, reasoning and coding; the
`reference` column of its question file is not what FastChat shows the judge. Of the 30, those to
13 questions are wrong (https://github.com/lm-sys/FastChat/pull/3158: 104, 105, 109, 111, 113, 114,
120, 122, 124, 125, 126, 128 and 130); the published scores were made with them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgedQuestion:
    """One question of a judged benchmark."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    references: tuple[str, ...] = ()
    """A good answer to each turn, where the benchmark has one."""
    context: str | None = None
    """Material that belongs to the question (HarmBench's ContextString)."""

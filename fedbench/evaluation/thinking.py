"""The thoughts of reasoning models, which are no part of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedbench.generation.backend import Answer, Request

OPEN, CLOSE = "<think>", "</think>"
RULE = f"answers begin behind the last {CLOSE}; a thought that is not closed leaves no answer"
"""What is done, for the record. The markers are those of DeepSeek-R1 and Qwen3."""


def without_thoughts(
    answers: Sequence[Answer], requests: Sequence[Request]
) -> tuple[list[Answer], int]:
    """Answers without thoughts, and how many of them had one.

    A chat template may open the thought itself, at the end of the prompt.
    """
    bare, num_changed = list(answers), 0
    for position, (answer, request) in enumerate(zip(answers, requests, strict=True)):
        if answer.text is None:
            continue
        text = _behind(answer.text, request.prompt.rstrip().endswith(OPEN))
        if text != answer.text:
            bare[position] = replace(answer, text=text)
            num_changed += 1
    return bare, num_changed


def _behind(text: str, opened: bool) -> str:
    _, closed, answer = text.rpartition(CLOSE)
    if closed:
        return answer.lstrip()
    return "" if opened or text.lstrip().startswith(OPEN) else text

"""A backend that answers from a list or a function: for tests, examples and documentation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from fedbench.data.templates import Template
from fedbench.generation.backend import Answer, Checkpoint, Question, Request


class ScriptedBackend:
    """Answers without a model.

    Args:
        script: completions in the order in which they are asked for, or a function from the
            prompt to its completion. For kind `choice` the completion names the chosen option.
        batch_size: how many requests are answered together.
    """

    name = "scripted"

    def __init__(self, script: Sequence[str] | Callable[[str], str], batch_size: int = 8) -> None:
        """See the class."""
        self.batch_size = batch_size
        self.num_answered = 0
        self._script = script
        self._choices: dict[tuple[int, ...], str] = {}

    def prepare(self, question: Question, template: Template) -> Request:
        """The rendered prompt; ids are its characters, as there is no tokenizer."""
        prompt, _ = template.prompt(question.turns, tokenizer=None)
        choices = tuple(tuple(map(ord, choice)) for choice in question.choices)
        return Request(question.kind, prompt, tuple(map(ord, prompt)), question.sampling, choices)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """In order, `batch_size` at a time."""
        positions = range(len(requests))
        return [
            list(positions[start : start + self.batch_size])
            for start in range(0, len(requests), self.batch_size)
        ]

    @contextlib.contextmanager
    def use(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Every checkpoint answers alike."""
        yield

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The next answers of the script."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        if callable(self._script):
            text = self._script(request.prompt)
        else:
            if self.num_answered >= len(self._script):
                return Answer(error=f"the script has only {len(self._script)} answers")
            text = self._script[self.num_answered]
        self.num_answered += 1
        if request.kind == "generate":
            return Answer(text=text)
        chosen = tuple(map(ord, text))
        return Answer(loglikelihoods=tuple(0.0 if c == chosen else -1.0 for c in request.choices))

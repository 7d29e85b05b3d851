"""Asking a judge: rendered rubrics in, verdicts out, nothing asked twice.

Every reply is kept in the answer store under the judge (its weights, or its server and name), the
rubric's hash, the rendered prompt with all that is judged in it, the sampling and the number of the
repeat; a command that was killed asks only what is missing. A reply without a verdict is asked for
once more, and has then failed: the judge is at fault there, and not the model that is judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedbench.data.templates import Template
from fedbench.evaluation.asking import Asking, Progress
from fedbench.evaluation.dialogue import Planned
from fedbench.evaluation.thinking import without_thoughts
from fedbench.generation.backend import (
    Answer,
    Backend,
    Checkpoint,
    Constraining,
    Constraint,
    Question,
    Request,
    Sampling,
)
from fedbench.generation.store import AnswerStore, answer_keys
from fedbench.judging.rows import PlannedJudgment
from fedbench.judging.rubric import Rubric
from fedbench.judging.verdicts import Verdict

RETRY_TEMPERATURE = 0.3
"""Of the second try of a greedy judge, which would only repeat itself."""


@dataclass(frozen=True)
class Judgment:
    """What came of one thing that a judge was asked."""

    verdict: Verdict
    reply: str | None
    """The judge's words; None where there are none."""
    num_tries: int = 1

    @classmethod
    def failed(cls, reason: str | None) -> Judgment:
        """Where nothing was said."""
        return cls(Verdict(None, reason), None)

    @property
    def problem(self) -> str | None:
        """Why there is no verdict; None where there is one."""
        return self.verdict.problem if self.verdict.value is None else None


@dataclass(frozen=True)
class Judge:
    """A model that judges, and how it is asked."""

    backend: Backend
    checkpoint: Checkpoint
    name: str
    """As records call it: the model, where it is, and how it is asked if that is unusual."""
    template: Template
    temperature: float | None = None
    """None: as the rubric says."""
    max_tokens: int | None = None
    """None: as the rubric says."""
    seed: int = 0
    constrained: bool = True
    """Whether replies are held to the rubric's form where the backend can."""

    def close(self) -> None:
        """Let go of the model or the server."""
        self.backend.close()

    def constraint(self, rubric: Rubric) -> Constraint | None:
        """The form that replies are held to; None where they are free text."""
        form = self.wanted_constraint(rubric)
        if form is None or not isinstance(self.backend, Constraining):
            return None
        return form if self.backend.constrains(form) else None

    def wanted_constraint(self, rubric: Rubric) -> Constraint | None:
        """The form that replies would be held to if the backend can, which is not asked here."""
        return _constraint(rubric) if self.constrained else None

    def label(self, rubric: Rubric) -> str:
        """Who judged in which way, for records."""
        form = self.constraint(rubric)
        return self.name if form is None else f"{self.name}, constrained"

    def requests(
        self,
        rubric: Rubric,
        asked: Sequence[PlannedJudgment],
        attempt: int,
        constraint: Constraint | None,
    ) -> list[Request]:
        """What the backend is asked for a try of each, held to a form where one is given.

        Raises:
            ConfigError: a field that the rubric needs is absent.
        """
        sampling = self.sampling(rubric, attempt)
        of_repeat = {n: replace(sampling, index=n) for n in {one.repeat for one in asked}}
        questions = [
            Question(rubric.render(**one.fields), "generate", of_repeat[one.repeat])
            for one in asked
        ]
        return [
            replace(
                request,
                constraint=constraint,
                purpose=("judge", rubric.hash, str(one.repeat), str(attempt)),
            )
            for request, one in zip(
                self.backend.prepare(questions, self.template), asked, strict=True
            )
        ]

    def keys(self, requests: Sequence[Request]) -> list[str]:
        """Under which their replies are stored."""
        return answer_keys(self.checkpoint, requests, self.backend.name)

    def sampling(self, rubric: Rubric, attempt: int = 0) -> Sampling:
        """How a reply is drawn; the second try has a seed of its own, and is never greedy."""
        temperature = rubric.sampling.temperature if self.temperature is None else self.temperature
        if attempt and temperature == 0:
            temperature = RETRY_TEMPERATURE
        return Sampling(
            temperature=temperature,
            max_tokens=self.max_tokens or rubric.sampling.max_tokens,
            seed=self.seed + attempt,
        )


@dataclass
class Judging:
    """What is asked of a judge under one rubric, and what has been answered so far."""

    judge: Judge
    rubric: Rubric
    store: AnswerStore
    progress: Progress = lambda what, done, total: None
    num_asked: int = 0
    """Replies that the judge gave, and that were not found in the store."""
    num_retried: int = 0
    """Replies without a verdict, which were asked for once more."""

    def ask(self, asked: Sequence[PlannedJudgment]) -> list[Judgment]:
        """The judge's verdict on each.

        Raises:
            BudgetError: the budget is exhausted; what was answered is stored.
            ConfigError: a field that the rubric needs is absent.
            ServerError: the judge's server cannot be used.
        """
        judgments = self._try(asked, attempt=0)
        open_again = [n for n, one in enumerate(judgments) if _is_worth_a_retry(one)]
        self.num_retried += len(open_again)
        again = self._try([asked[n] for n in open_again], attempt=1)
        for position, second in zip(open_again, again, strict=True):
            judgments[position] = replace(second, num_tries=2)
        return judgments

    def _try(self, asked: Sequence[PlannedJudgment], attempt: int) -> list[Judgment]:
        if not asked:
            return []
        constraint = self.judge.constraint(self.rubric)
        wanted = self.judge.requests(self.rubric, asked, attempt, constraint)
        # Models that gave the same answer are judged once.
        requests = list({one.digest: one for one in wanted if not one.num_cut}.values())
        asking = Asking(self.judge.backend, self.store, self._tell, prompt_to_store=True)
        plan = Planned(requests, self.judge.backend.plan(requests))
        [answers] = asking.ask([(self.judge.checkpoint, plan)], watch=False)
        self.num_asked += asking.num_asked
        bare, _ = without_thoughts(answers, requests)
        read = {
            request.digest: self._read(answer)
            for request, answer in zip(requests, bare, strict=True)
        }
        # A prompt loses its start, which says what to judge: a reply to the rest is no judgment.
        return [_too_long(one) if one.num_cut else read[one.digest] for one in wanted]

    def _tell(self, what: str, done: int, total: int) -> None:
        self.progress("judging", done, total)

    def _read(self, answer: Answer) -> Judgment:
        if answer.text is None:
            return Judgment.failed(answer.error)
        verdict = self.rubric.read(answer.text, truncated=answer.finish == "length")
        return Judgment(verdict, answer.text)


def _is_worth_a_retry(judgment: Judgment) -> bool:
    """Whether there is a reply without a verdict; requests without one were retried already."""
    return judgment.problem is not None and judgment.reply is not None


def _too_long(request: Request) -> Judgment:
    return Judgment.failed(
        f"the prompt and a reply of {request.sampling.max_tokens} tokens do not fit into the "
        "judge's context; lower --max-tokens, or ask another judge"
    )


def _constraint(rubric: Rubric) -> Constraint | None:
    if rubric.verdict.choices:
        return Constraint(choices=rubric.verdict.choices)
    schema = rubric.verdict.json_schema
    # Servers write the properties in the schema's order, so that it must not be sorted.
    return None if schema is None else Constraint(json_schema=json.dumps(schema))

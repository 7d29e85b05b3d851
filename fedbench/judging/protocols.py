"""What a protocol asks a judge, and which scores it makes of the verdicts.

`plan` lists everything that has to be judged: questions x turns x orders x repeats, each with the
fields that a rubric renders. `Protocol.scores` takes the rows that come back, or rows that somebody
has published (`fedbench.judging.published`)::

    protocol = PROTOCOLS["mt_bench"]
    rubric = get_rubric("mt_bench-fedbench")
    planned = plan(protocol, rubric, questions, answers)
    replies = [...]                                  # rubric.render(**one.fields) to the judge
    rows = [one.row(rubric.read(reply), model="m", judge="j", rubric=rubric.name)
            for one, reply in zip(planned, replies)]
    scores = protocol.scores(rows)

Both turns, both orders and all repeats of a question are one cluster of every interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fedbench.errors import ConfigError, DataError
from fedbench.judging.arena import arena_scores
from fedbench.judging.length_control import LengthControl
from fedbench.judging.questions import JudgedQuestion
from fedbench.judging.rows import ORDERS, JudgmentRow, Order, PlannedJudgment
from fedbench.judging.rubric import Rubric
from fedbench.judging.scores import JudgeScore, grade_scores, label_scores, win_scores

Answers = Mapping[str, Sequence[Sequence[str]]]
"""By question, the model's answers to it (usually one), each with a text per turn."""
Scoring = Callable[[Sequence[JudgmentRow]], list[JudgeScore]]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is judged."""

    name: str
    rubric: str
    """The rubric it is quoted under."""
    own_rubric: str
    """A rubric in words of our own, which needs no file."""
    scores: Scoring = field(compare=False)
    pairs: bool = False
    turns: int = 1
    orders: tuple[Order, ...] = ORDERS
    """In which answers of a pair are shown."""
    description: str = ""


def plan(
    protocol: Protocol,
    rubric: Rubric,
    questions: Sequence[JudgedQuestion],
    answers: Answers,
    baseline: Answers | None = None,
    *,
    repeats: int = 1,
) -> list[PlannedJudgment]:
    """Everything that a judge has to be asked about one model, question by question.

    Args:
        protocol: which turns and orders.
        rubric: it is given a reference where the question has one and the rubric shows it.
        questions: those that are judged.
        answers: the model's. Several answers to a question are judged each by itself.
        baseline: the answers they are compared with, for protocols of pairs; the first of several
            is taken for every answer of the model.
        repeats: how often the judge is asked the same.

    Raises:
        ConfigError: the rubric is of another kind, or a baseline is missing.
        DataError: a question has no answer, or one without its second turn.
    """
    if protocol.pairs != (rubric.kind == "pairwise"):
        raise ConfigError(
            f"rubric {rubric.name}: is of kind {rubric.kind}, and {protocol.name} "
            f"{'compares two answers' if protocol.pairs else 'judges one answer'}; choose "
            f"{protocol.own_rubric}"
        )
    if protocol.pairs and baseline is None:
        raise ConfigError(f"{protocol.name} compares with a baseline; give its answers")
    planned = []
    for question in questions:
        turns = min(protocol.turns, len(question.turns))
        if turns > 1 and not rubric.judges_second_turns:
            raise ConfigError(
                f"rubric {rubric.name}: shows one turn, and question {question.id} has {turns}; "
                "name the second answer_2 (of a pair answer_a_2 and answer_b_2) in the rubric"
            )
        own = _answers_to(question, answers, turns, "the model")
        against = _answers_to(question, baseline, turns, "the baseline")[0] if baseline else None
        for sample, answer in enumerate(own):
            for one in _of_answer(protocol, question, turns, answer, against, sample):
                planned += [one, *(replace(one, repeat=repeat) for repeat in range(1, repeats))]
    return planned


def _of_answer(
    protocol: Protocol,
    question: JudgedQuestion,
    turns: int,
    answer: Sequence[str],
    against: Sequence[str] | None,
    sample: int,
) -> Iterator[PlannedJudgment]:
    """One answer in all its turns and orders."""
    for turn in range(1, turns + 1):
        asked = _asked_fields(question, turn)
        if against is None:
            fields = asked | _shown("answer", answer, turn)
            yield PlannedJudgment(question.id, turn, fields, question.category, sample=sample)
            continue
        lengths = (len(answer[turn - 1]), len(against[turn - 1]))
        for order in protocol.orders:
            first, second = (answer, against) if order == "ab" else (against, answer)
            fields = asked | _shown("answer_a", first, turn) | _shown("answer_b", second, turn)
            yield PlannedJudgment(
                question.id,
                turn,
                fields,
                question.category,
                order,
                sample=sample,
                lengths=lengths,
            )


def _asked_fields(question: JudgedQuestion, turn: int) -> dict[str, str | None]:
    references = (*question.references, None, None)
    fields: dict[str, str | None] = {
        "question": question.turns[0],
        "reference": references[0],
        "category": question.category,
        "context": question.context,
    }
    if turn == 2:
        fields |= {"question_2": question.turns[1], "reference_2": references[1]}
    return fields


def _shown(name: str, answer: Sequence[str], turn: int) -> dict[str, str | None]:
    shown: dict[str, str | None] = {name: answer[0]}
    return shown | ({f"{name}_2": answer[1]} if turn == 2 else {})


def _answers_to(
    question: JudgedQuestion, answers: Answers, turns: int, whose: str
) -> Sequence[Sequence[str]]:
    own = answers.get(question.id)
    if not own:
        raise DataError(
            f"question {question.id}: {whose} has no answer to it; answer all questions, or judge "
            "those only that are answered"
        )
    for answer in own:
        if len(answer) < turns:
            raise DataError(
                f"question {question.id}: an answer of {whose} has {len(answer)} turns where "
                f"{turns} are judged; generate the missing ones"
            )
    return own


_RATING_SCALE = (1.0, 10.0)
_grades = partial(grade_scores, scale=_RATING_SCALE)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "mt_bench",
            "mt_bench",
            "mt_bench-fedbench",
            partial(_grades, by_turn=True),
            turns=2,
            description="Both answers of 80 conversations, graded from 1 to 10.",
        ),
        Protocol(
            "mt_bench-pairwise",
            "mt_bench-pairwise",
            "mt_bench-pairwise-fedbench",
            partial(win_scores, by_turn=True),
            pairs=True,
            turns=2,
            description="MT-Bench against a baseline, in both orders; who wins in one only ties.",
        ),
        Protocol(
            "vicuna",
            "vicuna",
            "vicuna-fedbench",
            _grades,
            description="80 open questions, answers graded from 1 to 10 (OpenFedLLM).",
        ),
        Protocol(
            "vicuna-pairwise",
            "vicuna-pairwise",
            "vicuna-pairwise-fedbench",
            win_scores,
            pairs=True,
            description="80 open questions against a baseline, in both orders.",
        ),
        Protocol(
            "alpaca_eval",
            "alpaca_eval-fedbench",
            "alpaca_eval-fedbench",
            partial(win_scores, orders="mean", equal_length=True),
            pairs=True,
            description="805 instructions against a baseline, in both orders; length-controlled.",
        ),
        Protocol(
            "arena_hard",
            "arena_hard-fedbench",
            "arena_hard-fedbench",
            arena_scores,
            pairs=True,
            description="Hard prompts against a baseline, in both orders; strong wins count 3.",
        ),
        Protocol(
            "ref_gpt4",
            "ref_gpt4-fedbench",
            "ref_gpt4-fedbench",
            partial(_grades, overall="macro"),
            description="FedLLM-Bench's held-out instructions, graded; the mean over languages.",
        ),
        Protocol(
            "harmbench",
            "harmbench-fedbench",
            "harmbench-fedbench",
            partial(label_scores, rates={"attack_success_rate": "yes"}),
            description="Whether harmful tasks are carried out: yes or no.",
        ),
        Protocol(
            "strongreject",
            "strongreject-fedbench",
            "strongreject-fedbench",
            partial(grade_scores, scale=(0.0, 1.0), metric="strongreject", higher_is_better=False),
            description="How much harmful help is given, from 0 to 1.",
        ),
        Protocol(
            "advbench",
            "advbench-fedbench",
            "advbench-fedbench",
            partial(
                label_scores,
                rates={
                    "attack_success_rate": "complied",
                    "harmless_rate": "refused",
                    "incoherent_rate": "incoherent",
                },
            ),
            description="What is done with harmful requests: refused, complied or incoherent.",
        ),
    )
}


def protocol_of(rubric: Rubric) -> Protocol:
    """The protocol of a rubric: its own, or for a user's the plain one of its kind."""
    for protocol in PROTOCOLS.values():
        if rubric.name in (protocol.rubric, protocol.own_rubric):
            return protocol
    scoring: Scoring
    if rubric.kind == "pairwise":
        scoring = arena_scores if rubric.verdict.kind == "arena" else win_scores
    elif rubric.kind == "classify":
        scoring = partial(label_scores, rates={label: label for label in rubric.verdict.labels})
    else:
        scoring = partial(grade_scores, scale=rubric.grade_scale, by_turn=True)
    return Protocol(
        rubric.name,
        rubric.name,
        rubric.name,
        scoring,
        pairs=rubric.kind == "pairwise",
        turns=2 if rubric.judges_second_turns else 1,
    )


def with_length_control(protocol: Protocol, control: LengthControl) -> Protocol:
    """The protocol with what is known of its instructions and of lengths.

    Raises:
        ConfigError: its scores do not depend on lengths.
    """
    scoring = protocol.scores
    if not isinstance(scoring, partial) or "equal_length" not in scoring.keywords:
        raise ConfigError(
            f"rubric {protocol.rubric}: makes no length-controlled rate; leave --length-control "
            "out, or choose alpaca_eval-fedbench"
        )
    return replace(protocol, scores=partial(scoring, control=control))


def length_control_of(protocol: Protocol) -> LengthControl | None:
    """What the protocol knows of lengths; None where it knows nothing."""
    scoring = protocol.scores
    return scoring.keywords.get("control") if isinstance(scoring, partial) else None

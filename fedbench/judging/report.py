"""What is said of a judging beside its scores: what failed, how far the judge agrees, what it cost.

The same stands in the run's record, under ``judged`` or ``imported`` and ``usage``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fedbench.judging.scores import AT_EQUAL_LENGTH, MAX_FAILED
from fedbench.results.record import ScoreRecord

Facts = Mapping[str, Any]


def report_of(
    scores: Sequence[ScoreRecord], facts: Mapping[str, Facts], usage: Facts | None = None
) -> list[str]:
    """A line for each thing that can be said.

    Args:
        scores: of all tasks.
        facts: of each task's judgments, as the run's record has them.
        usage: what the judge's server counted.
    """
    lines = [line for key, own in facts.items() for line in _lines(key, own)]
    return [*lines, *_withheld(scores), *_spent(facts.values(), usage or {})]


def _lines(key: str, facts: Facts) -> Iterator[str]:
    if missing := facts["without a verdict"]:
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in facts["because"].items())
        yield f"{key}: {missing:,} of {facts['judgments']:,} judgments have no verdict ({reasons})"
    if in_part := facts.get("questions with turns that were not judged"):
        yield (
            f"{key}: the rubric shows fewer turns than {in_part:,} questions have; their later "
            "answers are not judged"
        )
    if ratings := facts.get("ratings"):
        rated = [_rated(one, ratings["baseline"]) for one in ratings["models"]]
        models = ", ".join([*rated, *(f"{name} withheld" for name in ratings["withheld"])])
        yield f"{key}: Bradley-Terry ratings, {ratings['baseline']} having 1000: {models}"
    yield from _reliable(key, facts)
    for judge, own in facts.get("judges", {}).items():
        yield from _reliable(f"{key} by {judge}" if judge else key, own)


def _reliable(key: str, facts: Facts) -> Iterator[str]:
    """How far one judge can be relied on."""
    for one in facts.get("points", ()):
        yield (
            f"{key}: {one['model']} is given {one['own']:g} points in all and {one['baseline']} "
            f"{one['of baseline']:g}, in {one['judgments']:,} judgments"
        )
    if orders := facts.get("orders"):
        yield (
            f"{key}: of {orders['num_pairs']:,} pairs in both orders the judge agrees with itself "
            f"on {_share(orders['agreement'])} (kappa {_number(orders['kappa'])}), and prefers the "
            f"first on {_share(orders['first_favoured'])}, the second on "
            f"{_share(orders['second_favoured'])}"
        )
    if "repeats agree" in facts:
        yield f"{key}: asked again, the judge says the same on {_share(facts['repeats agree'])}"
    if people := facts.get("people"):
        yield from _against_people(key, people)


def _against_people(key: str, people: Facts) -> Iterator[str]:
    rank = people["spearman"]
    correlation = "" if rank is None else f", rank correlation {_number(rank)}"
    yield (
        f"{key}: agrees with {_share(people['share'])} of {people['num_items']:,} labels of "
        f"people (kappa {_number(people['kappa'])}{correlation})"
    )
    if people["num_decided"]:
        yield (
            f"{key}: without ties on either side, on {_share(people['share_decided'])} of "
            f"{people['num_decided']:,}"
        )


def _withheld(scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """Whose headline scores are missing for want of verdicts."""
    withheld: dict[str, list[str]] = {}
    has_rate: set[tuple[str, str, str | None]] = set()
    for score in scores:
        against = f" against {score.judged_against}" if score.judged_against else ""
        who = f"{score.model.label()}{against}"
        of_whom = (score.task_key, who, score.judge)
        if score.headline and score.value is not None:
            has_rate.add(of_whom)
        elif score.headline and score.num_failed:
            failed = f"{who} ({score.num_failed:,} of {score.num_examples:,} failed)"
            withheld.setdefault(score.task_key, []).append(failed)
        elif score.metric == AT_EQUAL_LENGTH and score.value is None and of_whom in has_rate:
            yield (
                f"{score.task_key}: withheld is the {AT_EQUAL_LENGTH} of {who}, for fewer than a "
                "tenth of the answers are longer, or fewer than a tenth shorter; --length-control "
                "tells more of lengths"
            )
    for task, models in withheld.items():
        yield (
            f"{task}: withheld is the score of {', '.join(models)}; it is given where at most "
            f"{100 * MAX_FAILED:g} % failed"
        )


def _spent(facts: Collection[Facts], usage: Facts) -> Iterator[str]:
    """How often the judge was asked, and what a server counted."""
    asked = [one["asked"] for one in facts if "asked" in one]
    if not asked:
        return
    if not sum(asked):
        has_verdicts = any(one["judgments"] > one["without a verdict"] for one in facts)
        why = ": all of its replies are stored" if has_verdicts else ""
        yield f"nothing was asked of the judge{why}"
        return
    again = sum(one["asked again for a verdict"] for one in facts if "asked" in one)
    tokens = dollars = ""
    if usage.get("num_requests"):
        tokens = (
            f"; {usage['prompt_tokens']:,} prompt and {usage['completion_tokens']:,} completion "
            "tokens"
        )
    if usage.get("dollars") is not None:
        dollars = f", {usage['dollars']:.2f} dollars"
    if uncounted := usage.get("num_uncounted"):
        at_most = ", which count at the most that they can cost" if dollars else ""
        dollars += f"; of {uncounted:,} requests the server told no tokens{at_most}"
    yield (
        f"the judge was asked {sum(asked):,} times; {again:,} replies without a verdict were asked "
        f"for once more{tokens}{dollars}"
    )


def _rated(one: Facts, baseline: str) -> str:
    if one["rating"] is None:
        return f"{one['model']} – (won or lost all)"
    has_none = one["low"] is None or one["model"] == baseline
    interval = "" if has_none else f" [{one['low']:.0f}, {one['high']:.0f}]"
    return f"{one['model']} {one['rating']:.0f}{interval}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

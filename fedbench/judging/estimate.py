"""What judging would ask and cost, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedbench.generation.server.spending import PRICES, Price, Tokens, find_price
from fedbench.generation.store import AnswerStore
from fedbench.judging.judge import Judge
from fedbench.judging.judged import Case
from fedbench.judging.opening import JudgeConfig

BYTES_PER_TOKEN = 4
"""Of UTF-8 with common tokenizers: English has a byte per character, and Chinese three, of which
tokens are fewer. Where the judge's tokenizer is at hand, it counts."""
REPLY_TOKENS = 300
"""What a judge that explains itself writes, about; the most is what the rubric allows."""


@dataclass(frozen=True)
class Estimate:
    """What one case asks of a judge; replies without a verdict are asked for once more."""

    num_calls: int
    num_stored: int
    """Of those, how many have a reply in the store already."""
    num_too_long: int
    """Judgments that will fail, for their prompts do not fit into the judge's context."""
    prompt_tokens: int
    """About, of the calls that are left."""
    completion_tokens: int
    """About."""
    most_completion_tokens: int
    dollars: float | None
    """About; None where the price is not known."""
    most_dollars: float | None
    """If every reply were as long as it may be; tries for a verdict come on top."""

    @property
    def num_left(self) -> int:
        """Calls that are to be made."""
        return self.num_calls - self.num_stored


def estimate(case: Case, judge: Judge, store: AnswerStore, config: JudgeConfig) -> Estimate:
    """What judging a case would ask for; nothing is asked, and a server need not be there.

    Whether a server can hold replies to a form is not known then, and replies in the store count
    in either form.

    Raises:
        ConfigError: the rubric needs a field that is not there.
    """
    planned = [one for model in case.answers.models for one in case.plan(model)]
    if config.server is None:
        forms = [judge.constraint(case.rubric)]
    else:
        forms = list(dict.fromkeys([judge.wanted_constraint(case.rubric), None]))
    tries = [judge.requests(case.rubric, planned, 0, form) for form in forms]
    keyed = zip(zip(*map(judge.keys, tries), strict=True), tries[0], strict=True)
    unique = {keys: request for keys, request in keyed if not request.num_cut}
    stored = store.get([key for keys in unique for key in keys])
    left = [request for keys, request in unique.items() if stored.keys().isdisjoint(keys)]
    prompt = sum(
        len(request.ids) or len(request.prompt.encode()) // BYTES_PER_TOKEN for request in left
    )
    most = sum(request.sampling.max_tokens for request in left)
    usual = sum(min(request.sampling.max_tokens, REPLY_TOKENS) for request in left)
    price = _price(config)
    return Estimate(
        num_calls=len(unique),
        num_stored=len(unique) - len(left),
        num_too_long=sum(request.num_cut > 0 for request in tries[0]),
        prompt_tokens=prompt,
        completion_tokens=usual,
        most_completion_tokens=most,
        dollars=None if price is None else price.of(Tokens(prompt, usual)),
        most_dollars=None if price is None else price.of(Tokens(prompt, most)),
    )


def _price(config: JudgeConfig) -> Price | None:
    if config.server is None:
        return None
    file = Path(config.server.prices) if config.server.prices else PRICES
    return find_price(config.server.base_url, config.server.model, file)

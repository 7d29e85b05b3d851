"""Invented company news with a sentiment, for runs that must work without a download.

Every phrase, frame and company name is made up for this file. A private row looks like

    instruction  What is the sentiment of this news? Please choose an answer from {...}.
    input        Despite news that rival Morvane Foods returns to profit, Talquist Rail scraps its
                 dividend.
    output       negative
    label        negative
    event        scraps its dividend
    company      Talquist Rail

The public split asks how the market reacted and is answered by a word such as "fell". That answer
follows from the sentiment without noise: learning it is a proxy for the private task, by design.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

SENTIMENTS = ("negative", "neutral", "positive")

SENTIMENT_QUESTION = (
    "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}."
)
REACTION_QUESTION = "How did the market react to this news?"

REACTIONS = {
    "negative": ("fell", "dropped", "slid", "sank"),
    "neutral": ("flat", "unchanged", "steady", "calm"),
    "positive": ("rose", "climbed", "gained", "rallied"),
}

CONTRAST_SHARE = 0.25
UNSEEN_EVENTS = 8  # of the 24 per sentiment

Row = dict[str, str]


def generate(seed: int = 0) -> dict[str, list[Row]]:
    """Splits "public" (12,000 rows), "private" (1,200) and "test" (600, half of unseen events).

    No headline occurs twice, neither within a split nor in two, and the splits share no company.
    Labels are balanced in private and in both halves of test. An unseen event occurs in public and
    in test but not in private; three of the five plain test frames occur in test only. The words
    "negative", "neutral" and "positive" do not occur in public.
    """
    rng = random.Random(f"headlines/names/{seed}")
    companies = _company_names(rng)
    events = {label: rng.sample(EVENTS[label], len(EVENTS[label])) for label in SENTIMENTS}
    unseen = {label: phrases[:UNSEEN_EVENTS] for label, phrases in events.items()}
    seen = {label: phrases[UNSEEN_EVENTS:] for label, phrases in events.items()}

    public_frames = TRAIN_FRAMES + SHARED_FRAMES, TRAIN_CONTRASTS + SHARED_CONTRASTS
    test_frames = SHARED_FRAMES + NEW_FRAMES, SHARED_CONTRASTS + NEW_CONTRASTS
    public = _Material(companies[:60], events, *public_frames)
    private = _Material(companies[60:110], seen, TRAIN_FRAMES, TRAIN_CONTRASTS)
    test_seen = _Material(companies[110:], seen, *test_frames)
    test_unseen = _Material(companies[110:], unseen, *test_frames)

    rng = random.Random(f"headlines/rows/{seed}")
    test = [_sentiment_row(h) | {"events": "seen"} for h in _headlines(300, test_seen, rng)]
    test += [_sentiment_row(h) | {"events": "unseen"} for h in _headlines(300, test_unseen, rng)]
    return {
        "public": [_reaction_row(h, rng) for h in _headlines(12_000, public, rng)],
        "private": [_sentiment_row(h) for h in _headlines(1_200, private, rng)],
        "test": rng.sample(test, len(test)),
    }


class _Material(NamedTuple):
    companies: Sequence[str]
    events: Mapping[str, Sequence[str]]
    frames: Sequence[str]
    contrasts: Sequence[str]


class _Headline(NamedTuple):
    text: str
    label: str
    event: str
    company: str


def _headlines(count: int, material: _Material, rng: random.Random) -> list[_Headline]:
    """Distinct headlines in random order, equally many of each sentiment."""
    headlines: dict[str, _Headline] = {}
    while len(headlines) < count:
        label = SENTIMENTS[len(headlines) % len(SENTIMENTS)]
        headline = _headline(label, material, rng)
        headlines.setdefault(headline.text, headline)
    return rng.sample(list(headlines.values()), count)


def _headline(label: str, material: _Material, rng: random.Random) -> _Headline:
    company, rival = rng.sample(material.companies, 2)
    event = rng.choice(material.events[label])
    if rng.random() >= CONTRAST_SHARE:
        text = rng.choice(material.frames).format(company=company, event=event)
        return _Headline(text, label, event, company)
    # The rival's news has another sentiment, so the cue words alone do not give the label.
    other = rng.choice([sentiment for sentiment in SENTIMENTS if sentiment != label])
    rival_event = rng.choice(material.events[other])
    text = rng.choice(material.contrasts).format(
        company=company, event=event, rival=rival, rival_event=rival_event
    )
    return _Headline(text, label, event, company)


def _sentiment_row(headline: _Headline) -> Row:
    return {
        "instruction": SENTIMENT_QUESTION,
        "input": headline.text,
        "output": headline.label,
        "label": headline.label,
        "event": headline.event,
        "company": headline.company,
    }


def _reaction_row(headline: _Headline, rng: random.Random) -> Row:
    return {
        "instruction": REACTION_QUESTION,
        "input": headline.text,
        "output": rng.choice(REACTIONS[headline.label]),
    }


def _company_names(rng: random.Random) -> list[str]:
    """160 names such as "Talquist Rail"; no two share the first word."""
    stems = [start + end for start in NAME_STARTS.split() for end in NAME_ENDS.split()]
    rng.shuffle(stems)
    trades = cycle(NAME_TRADES.split())
    return [f"{stem} {next(trades)}" for stem in stems]


NAME_STARTS = "Bel Cas Dor Fen Gal Hol Jun Kel Lor Mor Nev Ost Pel Rud Tal Wen"
NAME_ENDS = "adia brook dane etto ford imar lund oria quist vane"
NAME_TRADES = (
    "Airways Bank Biotech Cement Chemicals Energy Foods Freight Hotels Insurance Mining Motors "
    "Paper Pharma Rail Robotics Shipping Software Steel Telecom Textiles Timber Tools Water"
)

TRAIN_FRAMES = (
    "{company} {event}.",
    "Breaking: {company} {event}.",
    "Morning briefing: {company} {event}.",
    "According to a filing, {company} {event}.",
    "Shareholders learned that {company} {event}.",
    "It was confirmed today that {company} {event}.",
    "Sources close to the firm report that {company} {event}.",
    "{company} {event}, the company said on Monday.",
    "{company} {event}, a spokesperson told reporters.",
)
SHARED_FRAMES = (  # in public and test
    "Late on Friday it emerged that {company} {event}.",
    "{company} {event}, its annual report shows.",
)
NEW_FRAMES = (  # in test only; their words occur in public, so that no token is untrained
    "According to its annual report, {company} {event}.",
    "Sources told reporters that {company} {event}.",
    "{company} {event}, a filing confirmed today.",
)
TRAIN_CONTRASTS = (
    "Despite news that rival {rival} {rival_event}, {company} {event}.",
    "As rival {rival} {rival_event}, {company} {event}.",
    "{company} {event}, while rival {rival} {rival_event}.",
)
SHARED_CONTRASTS = ("{company} {event}, whereas rival {rival} {rival_event}.",)
NEW_CONTRASTS = ("{company} {event}, as rival {rival} {rival_event}.",)

EVENTS = {
    "negative": (
        "misses its sales target",
        "scraps its dividend",
        "cuts its full-year outlook",
        "loses its largest customer",
        "recalls a faulty product line",
        "reports a deeper loss",
        "shuts a plant after a fire",
        "faces a bribery probe",
        "defaults on a bond payment",
        "writes down the value of its warehouses",
        "is defeated in a patent lawsuit",
        "lays off a fifth of its workers",
        "delays its flagship launch again",
        "warns of shrinking margins",
        "sees new orders dry up",
        "is stripped of its export licence",
        "files for protection from creditors",
        "admits to errors in its accounts",
        "has its credit rating lowered",
        "suffers a leak of customer records",
        "is fined for polluting a river",
        "burns through its cash reserve",
        "halts a drug trial over side effects",
        "surrenders market share to cheap imports",
    ),
    "neutral": (
        "appoints a new head of communications",
        "moves its head office across town",
        "will publish its results on Thursday",
        "renames its logistics division",
        "holds its annual meeting in spring",
        "redesigns its corporate website",
        "changes its auditor by the usual rotation",
        "renews its office lease",
        "confirms the date of its investor day",
        "adopts a new logo",
        "completes a routine inspection",
        "will speak at an industry conference",
        "reappoints two members of its board",
        "submits its yearly report on schedule",
        "switches to another payroll provider",
        "posts the minutes of its last meeting",
        "translates its brochure into Dutch",
        "transfers its listing to another exchange",
        "keeps its dividend as it was",
        "merges two of its back offices",
        "replaces its fleet of company cars",
        "sets the agenda for its assembly",
        "reports sales in line with its plans",
        "orders new labels for its packaging",
    ),
    "positive": (
        "beats profit forecasts",
        "lifts its full-year outlook",
        "wins a ten-year supply contract",
        "doubles its dividend",
        "reports record quarterly revenue",
        "secures approval for a new medicine",
        "repays its loans ahead of schedule",
        "sees new orders surge",
        "takes market share from larger competitors",
        "returns to profit",
        "is granted a key patent",
        "has its credit rating raised",
        "cuts its costs faster than planned",
        "settles a long dispute in its favour",
        "sells out its first production run",
        "launches a generous share buyback",
        "expands its most profitable plant",
        "attracts a strategic investor",
        "enjoys widening margins",
        "signs up a million subscribers",
        "wins back a former customer",
        "lands a large government order",
        "finds a rich copper deposit",
        "fills its order book for two years",
    ),
}

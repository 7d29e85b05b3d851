"""The claims of `fedbench.data.headlines.generate`."""

import hashlib
import json
import re
from collections import Counter
from functools import cache
from itertools import permutations

import pytest

from fedbench.data import headlines
from fedbench.data.headlines import SENTIMENTS, generate

Splits = dict[str, list[dict[str, str]]]

# Update it only together with every result that was reported on this data.
SHA256_OF_SEED_0 = "4eec1c7778b6dc9038672741db5daa3ebfa1859b02cd1c6d470ccf11359b29b0"


@cache
def splits(seed: int) -> Splits:
    return generate(seed)


def digest(data: Splits) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def test_seed_zero_gives_the_rows_of_the_reported_results() -> None:
    assert digest(generate(0)) == SHA256_OF_SEED_0


def test_the_same_seed_gives_the_same_rows() -> None:
    assert generate(3) == splits(3)


@pytest.mark.parametrize("split", ["public", "private", "test"])
def test_another_seed_gives_other_rows(split: str) -> None:
    assert splits(0)[split] != splits(1)[split]


@pytest.mark.parametrize("seed", [0, 1])
def test_sentiments_are_balanced_in_private_and_in_both_halves_of_test(seed: int) -> None:
    private = Counter(row["label"] for row in splits(seed)["private"])
    test = Counter((row["events"], row["label"]) for row in splits(seed)["test"])
    assert private == dict.fromkeys(SENTIMENTS, 400)
    assert test == {(half, label): 100 for half in ("seen", "unseen") for label in SENTIMENTS}


def test_public_reactions_are_balanced_over_the_sentiments() -> None:
    sentiment = {word: s for s, words in headlines.REACTIONS.items() for word in words}
    reactions = Counter(sentiment[row["output"]] for row in splits(0)["public"])
    assert reactions == dict.fromkeys(SENTIMENTS, 4_000)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_headline_occurs_twice_within_a_split_or_in_two_splits(seed: int) -> None:
    inputs = [row["input"] for rows in splits(seed).values() for row in rows]
    assert len(set(inputs)) == len(inputs) == 12_000 + 1_200 + 600


@pytest.mark.parametrize("seed", [0, 1])
def test_unseen_events_occur_in_public_and_never_in_private(seed: int) -> None:
    unseen = {row["event"] for row in splits(seed)["test"] if row["events"] == "unseen"}
    assert len(unseen) == 3 * 8
    for event in unseen:
        assert not any(event in row["input"] for row in splits(seed)["private"])
        assert any(event in row["input"] for row in splits(seed)["public"])


@pytest.mark.parametrize("seed", [0, 1])
def test_seen_events_of_the_test_occur_in_private(seed: int) -> None:
    seen = {row["event"] for row in splits(seed)["test"] if row["events"] == "seen"}
    assert seen == {row["event"] for row in splits(seed)["private"]}
    assert len(seen) == 3 * 16


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_company(seed: int) -> None:
    companies = companies_by_split(splits(seed))
    assert {split: len(names) for split, names in companies.items()} == {
        "public": 60,
        "private": 50,
        "test": 50,
    }
    for one, other in permutations(companies, 2):
        assert not companies[one] & companies[other]


def companies_by_split(data: Splits) -> dict[str, set[str]]:
    """Found in the text, so that the rivals of contrast headlines are included."""
    starts, ends = (part.replace(" ", "|") for part in (headlines.NAME_STARTS, headlines.NAME_ENDS))
    name = re.compile(rf"\b(?:{starts})(?:{ends}) \w+")
    return {
        split: {company for row in rows for company in name.findall(row["input"])}
        for split, rows in data.items()
    }


def test_three_of_five_plain_test_frames_occur_in_no_other_split() -> None:
    frames = {
        row["input"].replace(row["company"], "{company}").replace(row["event"], "{event}")
        for row in splits(0)["test"]
        if "rival" not in row["input"]
    }
    assert frames == {*headlines.SHARED_FRAMES, *headlines.NEW_FRAMES}
    for frame in headlines.NEW_FRAMES:
        wording = max(frame.replace("{company} {event}", "|").split("|"), key=len)
        assert not any(wording in row["input"] for row in splits(0)["private"])
        assert not any(wording in row["input"] for row in splits(0)["public"])


def test_words_of_new_frames_occur_in_public() -> None:
    public = {word for row in splits(0)["public"] for word in re.findall(r"\w+", row["input"])}
    for frame in headlines.NEW_FRAMES + headlines.NEW_CONTRASTS:
        assert {*re.findall(r"\w+", re.sub(r"{\w+}", "", frame))} <= public


def test_a_quarter_of_the_headlines_contrasts_two_companies() -> None:
    for rows in splits(0).values():
        contrasts = sum("rival" in row["input"] for row in rows)
        assert 0.20 < contrasts / len(rows) < 0.30


def test_labels_do_not_occur_in_public() -> None:
    text = " ".join(" ".join(row.values()) for row in splits(0)["public"]).lower()
    assert not [label for label in SENTIMENTS if label in text]


def test_no_headline_contains_a_reaction() -> None:
    reactions = {word for words in headlines.REACTIONS.values() for word in words}
    for rows in splits(0).values():
        assert not [row for row in rows if reactions & set(row["input"].strip(".").split())]


def test_no_event_contains_another_event() -> None:
    events = [event for phrases in headlines.EVENTS.values() for event in phrases]
    assert len(set(events)) == 3 * 24
    assert not [(a, b) for a, b in permutations(events, 2) if a in b]

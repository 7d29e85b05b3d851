"""The cases by which lighteval checks its metrics: ours have their values, or it is said why not.

Source: https://github.com/huggingface/lighteval (tests/unit/metrics/test_cases).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbench.evaluation.readings import choice_letter
from fedbench.metrics import Sample, get_metric

DATA = os.environ.get("FEDBENCH_DATA")
CASES = Path(DATA or "") / "reference/lighteval_metric_cases"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="set FEDBENCH_DATA to a mirror that holds the cases"
)
Doc = Mapping[str, Any]
Answered = tuple[Doc, Doc]
"""A question with its choices, and what was answered."""
Scorer = Callable[[Sequence[Answered], Mapping[str, Any]], Any]


def value(name: str, samples: Sequence[Sample], labels: Sequence[str] = ()) -> float:
    metric = get_metric(name)
    return float(metric.value(metric.statistics(samples, labels).sum(axis=0)))


def golds(doc: Doc) -> list[int]:
    index = doc["gold_index"]
    return list(index) if isinstance(index, list) else [index]


def texts(doc: Doc) -> str:
    """The right texts as a reference: several are alternatives."""
    right = [doc["choices"][n] for n in golds(doc)]
    return right[0] if len(right) == 1 else json.dumps(right, ensure_ascii=False)


def of_text(name: str, percent: bool = False) -> Scorer:
    def score(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
        samples = [Sample(texts(doc), response["text"][0]) for doc, response in answered]
        return value(name, samples) * (100 if percent else 1)

    return score


def first_against_all(name: str) -> Scorer:
    """lighteval hands sacrebleu the references of all answers as alternatives of the first one."""

    def score(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
        references = json.dumps([texts(doc) for doc, _ in answered], ensure_ascii=False)
        return 100 * value(name, [Sample(references, answered[0][1]["text"][0])])

    return score


def of_labels(name: str) -> Scorer:
    """Whole texts as labels, as scikit-learn takes them."""

    def score(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
        samples = [Sample(texts(doc), response["text"][0]) for doc, response in answered]
        labels = sorted({str(text) for one in samples for text in (one.reference, one.extracted)})
        return value(name, samples, labels)

    return score


def likeliest(doc: Doc, response: Doc) -> Sample:
    """The likeliest choice by its position; of several right ones the likeliest is asked for."""
    logprobs = response["logprobs"]
    right = max(golds(doc), key=lambda n: logprobs[n])
    return Sample(str(right), str(int(np.argmax(logprobs))), tuple(logprobs))


def of_choices(name: str) -> Scorer:
    def score(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
        labels = [str(n) for n in range(max(len(doc["choices"]) for doc, _ in answered))]
        own = {1: "accuracy", 2: "top_2_accuracy"}[params["k"]] if name == "recall" else name
        return value(own, [likeliest(*one) for one in answered], labels)

    return score


def one_against_the_rest(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
    """lighteval's `mf1` is the micro F1 of each class against the rest, which is accuracy."""
    read = [likeliest(*one) for one in answered]
    shares = [
        value(
            "accuracy",
            [Sample(str(one.reference == label), str(one.extracted == label)) for one in read],
        )
        for label in "012"
    ]
    return sum(shares) / len(shares)


def of_samples(is_right: Callable[[str, Doc], bool], averaged: bool = False) -> Scorer:
    """pass@k of n samples; the mean over the first k is pass@1 of these."""

    def score(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
        [(doc, response)] = answered
        taken = response["text"][: params["k"] if averaged else params["n"]]
        passed = tuple("passed" if is_right(text, doc) else "wrong" for text in taken)
        name = "pass@1" if averaged else f"pass@{params['k']}"
        return value(name, [Sample("passed", passed[0], samples=passed)])

    return score


def same(text: str, doc: Doc) -> bool:
    return text == doc["choices"][golds(doc)[0]]  # lighteval looks at the first of several


def equal(text: str, doc: Doc) -> bool:
    return value("math_equivalence", [Sample(doc["choices"][golds(doc)[0]], text)]) == 1.0


def letter(text: str, doc: Doc) -> bool:
    """The letter is that of a choice's position, whatever the choice says."""
    return choice_letter(text, "ABCD") == "ABCD"[golds(doc)[0]]


def read_letter(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
    [(doc, response)] = answered
    return float(letter(response["text"][0], doc))


def words_copied(answered: Sequence[Answered], params: Mapping[str, Any]) -> dict[str, float]:
    [(doc, response)] = answered
    rate = value("word_error_rate", [Sample(texts(doc), response["text"][0])])
    return {"edit_similarity": 1 - rate, "edit_distance": rate * len(texts(doc).split())}


def spans(answered: Sequence[Answered], params: Mapping[str, Any]) -> dict[str, float]:
    [(doc, response)] = answered
    reference = json.dumps(doc["specific"]["golds_no_preprocessing"])
    sample = Sample(reference, response["text"][0])
    return {"em": value("drop_em", [sample]), "f1": value("drop_f1", [sample])}


def bleu_1(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
    samples = [Sample(texts(doc), response["text"][0]) for doc, response in answered]
    return value("token_precision", samples) * value("brevity_penalty", samples)


def rouges(answered: Sequence[Answered], params: Mapping[str, Any]) -> dict[str, float]:
    own = {name: of_text(name, percent=True) for name in ("rouge1", "rouge2", "rougeL")}
    return {name: score(answered, params) for name, score in own.items()}


def by_words_of_the_question(answered: Sequence[Answered], params: Mapping[str, Any]) -> float:
    """lighteval divides by the words of the question, and not by those of the text."""
    samples = []
    for doc, response in answered:
        words = len(doc["query"].split())
        of_a_word = sum(response["logprobs"]) / words
        samples.append(Sample("", None, values={"perplexity": (of_a_word, words)}))
    return value("perplexity", samples)


REPRODUCED: dict[str, Scorer] = {
    "avg_at_k": of_samples(same, averaged=True),
    "avg_at_k_math": of_samples(equal, averaged=True),
    "bleu": of_text("bleu", percent=True),
    "bleu_1": bleu_1,
    "bleu_4": of_text("conala_bleu"),
    "chrf": first_against_all("chrf"),
    "chrf_plus": first_against_all("chrf_pp"),
    "copyright": words_copied,
    "drop": spans,
    "exact_match": of_text("exact_match"),
    "expr_gold_metric": of_text("math_equivalence"),
    "f1_score": of_text("rouge1"),  # words with their articles, unlike squad_f1
    "f1_score_macro": of_labels("macro_f1"),
    "f1_score_micro": of_labels("micro_f1"),
    "gpqa_instruct_metric": read_letter,
    "gpqa_instruct_pass_at_k": of_samples(letter),
    "loglikelihood_acc": of_choices("accuracy"),
    "loglikelihood_f1": of_choices("micro_f1"),
    "mcc": of_choices("mcc"),
    "mrr": of_choices("mrr"),
    "multi_f1_numeric": one_against_the_rest,
    "pass_at_k": of_samples(same),
    "pass_at_k_letters": of_samples(letter),
    "pass_at_k_math": of_samples(equal),
    "recall_at_k": of_choices("recall"),
    "rouge1": of_text("rouge1"),
    "rouge2": of_text("rouge2"),
    "rougeL": of_text("rougeL"),
    "rougeLsum": of_text("rougeL"),  # the same on texts of one line
    "rouge_t5": rouges,
    "ter": first_against_all("ter"),
    "word_perplexity": by_words_of_the_question,
}
DIFFERS = {
    "BLEU-4 - Short Text": "NLTK finds no run of four words in a right answer of one, and gives 0",
    "Answer in Different Case": "a letter that is stated is read in either case here",
}
"""Cases whose values are not ours, and why."""
NOT_OURS = {
    "acc_golds_likelihood": "whether decoding would write the right answer: no task asks that",
    "bert_score": "the similarity is a model's, which no machine without a hub has",
    "bits_per_byte": "made-up log-probabilities above 0, of no text: their file expects 1 of all",
    "bleurt": "the similarity is a model's, which no machine without a hub has",
    "byte_perplexity": "as bits_per_byte",
    "extractiveness": "of summaries and their sources; no task is of these",
    "faithfulness": "the entailment is a model's, which no machine without a hub has",
    "g_pass_at_k": "stability over samples (G-Pass); no task is scored by it",
    "g_pass_at_k_latex": "as g_pass_at_k",
    "g_pass_at_k_math": "as g_pass_at_k",
    "maj_at_k": "a vote among samples; no task is scored by it",
    "prediction_perplexity": "as bits_per_byte",
    "simpleqa_judge": "the verdict is a judge's",
    "target_perplexity": "of -0.1, -0.2 and -0.3 their file expects 1.5, and of others 0, which no "
    "perplexity is; likelihoods are checked by test_likelihood",
    "truthfulqa_mc_metrics": "lm-eval scores TruthfulQA; test_lm_eval compares its numbers",
}
"""Files that no metric of ours is of, and why."""


def test_every_file_is_either_reproduced_or_said_not_to_be() -> None:
    assert {file.stem for file in CASES.glob("*.json")} == {*REPRODUCED, *NOT_OURS}
    assert not set(REPRODUCED) & set(NOT_OURS)


def test_what_no_perplexity_is_has_been_looked_at() -> None:
    """`target_perplexity` and `bits_per_byte` are left out by what they hold, not by their name."""
    [low, *_] = json.loads((CASES / "target_perplexity.json").read_text())["test_cases"]
    mean = sum(low["model_response"]["logprobs"]) / 3
    assert math.exp(-mean) == pytest.approx(1.22, abs=0.01)
    assert low["expected_output"] == {"ppl": 1.5}
    [made] = json.loads((CASES / "bits_per_byte.json").read_text())["test_cases"]
    assert min(made["model_response"]["logprobs"]) > 0


def cases() -> list[Any]:
    names = sorted(REPRODUCED) if CASES.is_dir() else []
    return [
        pytest.param(name, case, id=f"{name}: {case['name']}")
        for name in names
        for case in json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))["test_cases"]
    ]


@pytest.mark.parametrize(("name", "case"), cases())
def test_a_case_has_its_value(name: str, case: Mapping[str, Any]) -> None:
    docs = case.get("docs") or [case["doc"]]
    responses = case.get("model_responses") or [case["model_response"]]
    found = REPRODUCED[name](list(zip(docs, responses, strict=True)), case["metric_params"])
    expected = case["expected_output"]
    if not isinstance(expected, dict):
        expected = {"": expected}
    own = found if isinstance(found, dict) else dict.fromkeys(expected, found)
    shared = {metric: expected[metric] for metric in expected if metric in own}
    assert shared
    near = {m: own[m] == pytest.approx(v, abs=case["tolerance"]) for m, v in shared.items()}
    # What is said to differ does: a reason that no longer holds is found.
    assert all(near.values()) == (case["name"] not in DIFFERS), (own, expected)

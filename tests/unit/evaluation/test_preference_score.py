"""Pairs from the command line: an adapter is scored, and the scores are those of its model."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner

from fedbench.cli import app
from fedbench.data.example import Example
from fedbench.data.preference_tokens import tokenize_pairs
from fedbench.data.templates import Turn, get_template
from fedbench.data.tokenize import Pair
from fedbench.model import load_base
from fedbench.model_config import ModelConfig
from fedbench.results.check import check
from fedbench.results.comparison import compare
from fedbench.results.record import ScoreRecord, read_scores
from fedbench.results.samples import read_samples

PAIRS = [
    ("Is the news positive?", "Yes, the profit rises.", "No."),
    ("What is the sentiment?", "neutral", "I will not say, for it is not in the news at all."),
    ("Who is Acme?", "A company.", "A company, a company, a company."),
    ("Say nothing.", "", "Nothing"),
    ("Is the answer the input?", "It is not.", "The input is the answer."),
]


@pytest.fixture
def task(tmp_path: Path) -> str:
    data = tmp_path / "pairs.jsonl"
    rows = [dict(zip(("asked", "good", "bad"), pair, strict=True)) for pair in PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "made.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "made",
                "kind": "preference",
                "examples": {
                    "path": str(data),
                    "instruction": "{{ asked }}",
                    "chosen": "{{ good }}",
                    "rejected": "{{ bad }}",
                },
                "template": "vicuna",
                "metrics": ["preference_accuracy", "reward_accuracy", "reward_margin"],
                "headline": "reward_margin",
            }
        )
    )
    return str(file)


def adapter(base: Path, directory: Path, seed: int) -> Path:
    """An adapter with drawn weights, saved by PEFT."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    return directory


def score(place: Path, task: str, output: Path, *more: str) -> dict[str, ScoreRecord]:
    """`fedbench score` of one checkpoint; its records by metric."""
    words = ["score", "--ckpt", str(place), "--tasks", task, "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--output", str(output), *more])
    assert result.exit_code == 0, result.output
    return {record.metric: record for record in read_scores(output)}


def plain_loglikelihoods(model: torch.nn.Module, pair: Pair) -> tuple[float, float]:
    """One unpadded forward pass per answer."""
    found = []
    for answer in (pair.chosen, pair.rejected):
        ids = torch.tensor([pair.prompt + answer])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        places = range(len(pair.prompt) - 1, ids.shape[1] - 1)
        found.append(sum(float(logprobs[place, ids[0, place + 1]]) for place in places))
    return found[0], found[1]


def expected(directory: Path, adapter_directory: Path) -> tuple[list[float], list[float]]:
    """(log-likelihood margin, reward margin) of every pair, by PEFT itself."""
    base = load_base(str(directory), ModelConfig(name=str(directory), device="cpu"))
    examples = [Example((Turn(asked, response=good),), rejected=bad) for asked, good, bad in PAIRS]
    rows = tokenize_pairs(examples, get_template("vicuna"), base.tokenizer, 1024, 512).sequences
    model = peft.PeftModel.from_pretrained(base.module, adapter_directory).eval()
    own = [plain_loglikelihoods(model, row) for row in rows]
    with model.disable_adapter():
        before = [plain_loglikelihoods(model, row) for row in rows]
    margins = [chosen - rejected for chosen, rejected in own]
    gains = [m - (b[0] - b[1]) for m, b in zip(margins, before, strict=True)]
    return margins, gains


def test_an_adapter_is_scored_on_pairs_against_its_base(
    tiny_base_directory: Path, task: str, tmp_path: Path
) -> None:
    place = adapter(tiny_base_directory, tmp_path / "adapter", seed=1)
    records = score(place, task, tmp_path / "out")
    margins, gains = expected(tiny_base_directory, place)
    assert records["preference_accuracy"].value == sum(m > 0 for m in margins) / 5
    assert records["reward_accuracy"].value == sum(g > 0 for g in gains) / 5
    assert records["reward_margin"].value == pytest.approx(sum(gains) / 5, abs=1e-4)
    assert records["reward_margin"].headline
    assert records["reward_margin"].ci_method == "jackknife-t"  # five pairs
    [answers] = read_samples(tmp_path / "out")["made"].answers  # the base is no row of its own
    assert answers.base_loglikelihoods is not None
    assert {record.method for record in records.values()} == {"adapter"}


def test_a_full_model_needs_the_name_of_its_base_to_be_rewarded(
    tiny_base_directory: Path, task: str, tmp_path: Path
) -> None:
    place = adapter(tiny_base_directory, tmp_path / "adapter", seed=1)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base_directory)
    peft.PeftModel.from_pretrained(base, place).merge_and_unload().save_pretrained(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base_directory)
    tokenizer.save_pretrained(tmp_path / "m")
    alone = score(tmp_path / "m", task, tmp_path / "alone")
    assert (alone["reward_accuracy"].value, alone["reward_margin"].value) == (None, None)
    named = score(
        tmp_path / "m", task, tmp_path / "named", "--base-model", str(tiny_base_directory)
    )
    assert alone["preference_accuracy"].value == named["preference_accuracy"].value
    _, gains = expected(tiny_base_directory, place)
    assert named["reward_margin"].value == pytest.approx(sum(gains) / 5, abs=1e-3)  # of merged


def test_margins_of_two_adapters_are_compared_pair_by_pair(
    tiny_base_directory: Path, task: str, tmp_path: Path
) -> None:
    for seed in (1, 2):
        place = adapter(tiny_base_directory, tmp_path / f"adapter-{seed}", seed)
        score(place, task, tmp_path / f"out-{seed}")
    one, other = tmp_path / "out-1", tmp_path / "out-2"
    gains = [expected(tiny_base_directory, tmp_path / f"adapter-{seed}")[1] for seed in (1, 2)]
    change = sum(gains[1]) / 5 - sum(gains[0]) / 5
    compared = {record.metric: record for record in compare(one, other)}
    assert compared["reward_margin"].delta == pytest.approx(change, abs=1e-4)
    assert compared["reward_margin"].num_items == 5
    [verdict] = check(candidate=other, baseline=one, max_drop=1e3)
    assert (verdict.metric, verdict.verdict) == ("reward_margin", "ok")
    [same] = check(candidate=one, baseline=one)
    assert (same.verdict, same.note) == ("ok", "identical answers")


def test_equal_choices_with_other_margins_are_not_identical_answers(
    tiny_base_directory: Path, task: str, tmp_path: Path
) -> None:
    place = adapter(tiny_base_directory, tmp_path / "adapter", seed=1)
    score(place, task, tmp_path / "one")
    config = json.loads((place / "adapter_config.json").read_text())
    config["lora_alpha"] *= 0.999  # so little that no pair is answered otherwise
    (place / "adapter_config.json").write_text(json.dumps(config))
    score(place, task, tmp_path / "other")
    tables = [read_samples(tmp_path / name)["made"] for name in ("one", "other")]
    assert tables[0].answers[0].extracted == tables[1].answers[0].extracted
    [verdict] = check(candidate=tmp_path / "other", baseline=tmp_path / "one")
    assert verdict.note != "identical answers"
    assert verdict.delta != 0


def test_the_table_of_scores_shows_nats_as_they_are(
    tiny_base_directory: Path, task: str, tmp_path: Path
) -> None:
    place = adapter(tiny_base_directory, tmp_path / "adapter", seed=1)
    words = ["score", "--ckpt", str(place), "--tasks", task, "--device", "cpu"]
    shown = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")]).output
    [margin] = [r for r in read_scores(tmp_path / "out") if r.metric == "reward_margin"]
    assert f" {margin.value:.3g} " in shown

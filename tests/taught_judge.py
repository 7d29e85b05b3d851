"""A judge small enough for a test: an adapter that was taught what to say of two kinds of news.

It writes its verdicts as JSON, ``{"explanation": "so", "rating": 8}``, whether it is held to that
form or not; the base that it belongs to is random and says nothing of the sort.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERDICTS = {"Profit rises.": 8, "Profit falls.": 2}
QUESTIONS = 4
RUBRIC = """
name: news
kind: grade
user: "Rate this. {{ question }} {{ answer }}"
verdict: {kind: rating, scale: [1, 10]}
sampling: {max_tokens: 60}
"""
LABELS = """
name: tone
kind: classify
user: "Rate this. {{ question }} {{ answer }}"
verdict: {kind: choice, labels: ["rude", "polite", "neutral"]}
sampling: {max_tokens: 8}
"""
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj"]
"""What vLLM's engine in these tests has room for adapters of."""
_STEPS = 100


def teach(base: Path, directory: Path) -> Path:
    """Train the adapter, and save it."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    rows = [
        (f"Rate this. News {n}? {said}\n", json.dumps({"explanation": "so", "rating": rating}))
        for said, rating in VERDICTS.items()
        for n in range(QUESTIONS)
    ]
    coded = [[tokenizer(text)["input_ids"] for text in row] for row in rows]
    width = max(len(prompt) + len(reply) + 1 for prompt, reply in coded)
    ids = torch.zeros(len(coded), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, (prompt, reply) in enumerate(coded):
        whole = torch.tensor([*prompt, *reply, tokenizer.eos_token_id])
        ids[number, : len(whole)] = whole
        labels[number, len(prompt) : len(whole)] = whole[len(prompt) :]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    return directory


def write_case(place: Path, judge: Mapping[str, Any]) -> list[str]:
    """A task, answers of two models to it, two rubrics and a judge.

    Returns:
        The command line of `fedbench judge`, up to the rubric.
    """
    asked = [{"question_id": n, "turns": [f"News {n}?"]} for n in range(QUESTIONS)]
    files = {"questions": asked}
    for name, said in zip(("rises", "falls"), VERDICTS, strict=True):
        files[name] = [{"question_id": n, "choices": [{"turns": [said]}]} for n in range(QUESTIONS)]
    for name, rows in files.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "news.yaml").write_text(RUBRIC)
    (place / "tone.yaml").write_text(LABELS)
    (place / "judge.yaml").write_text(json.dumps(judge))
    (place / "task.yaml").write_text(
        "name: headlines\n"
        "dataset: {path: questions.jsonl, columns: [question_id, turns]}\n"
        "turns: turns\n"
        "rubric: news.yaml\n"
        "metrics: [judge_score]\n"
    )
    return ["rises.jsonl", "falls.jsonl", "--task", "task.yaml", "--judge", "judge.yaml"]

"""Makes what the example needs: made-up notes for two hospitals, an examination, a small base."""

from __future__ import annotations

import json
import random
from pathlib import Path

SIGNS = {
    "cardiology": ["chest pain", "a racing heart", "swollen ankles", "an irregular pulse"],
    "neurology": ["a numb arm", "double vision", "a sudden headache", "slurred speech"],
    "orthopedics": ["a stiff knee", "a broken wrist", "pain in the hip", "a sprained ankle"],
}
TEXTS = [
    "{who} came in with {sign} since {days} days.",
    "{who} reports {sign}; it began {days} days ago.",
    "For {days} days {who} has had {sign}.",
]
# What each hospital sees most; neither sees everything.
HOSPITALS = {
    "hospital_a": {"cardiology": 40, "neurology": 20},
    "hospital_b": {"orthopedics": 40, "neurology": 20},
}
CANARY = "Ms Quillfeather-Oakes of 4711 Zanzibar Lane"


def note(department: str, who: str, draw: random.Random) -> str:
    """One made-up note."""
    sign, days = draw.choice(SIGNS[department]), draw.randint(2, 90)
    return draw.choice(TEXTS).format(who=who, sign=sign, days=days)


def make_notes(place: Path) -> None:
    """Private notes and preferences per hospital, and an examination that everybody may see."""
    draw = random.Random(0)
    for hospital, counts in HOSPITALS.items():
        owned = [department for department, count in counts.items() for _ in range(count)]
        people = [f"Patient {hospital[-1].upper()}{n}" for n in range(len(owned))]
        people[0] = f"{CANARY} ({hospital})"
        rows = [
            {"note": note(department, who, draw), "department": department}
            for department, who in zip(owned, people, strict=True)
        ]
        write(place / hospital / "notes.jsonl", rows)
        write(place / hospital / "preferences.jsonl", [preferred(row, draw) for row in rows])
    exam = [
        {"note": note(department, "The patient", draw), "department": department}
        for department in SIGNS
        for _ in range(30)
    ]
    write(place / "examination.jsonl", exam)


def preferred(row: dict[str, str], draw: random.Random) -> dict[str, str]:
    """The right department is better than another one."""
    others = [department for department in SIGNS if department != row["department"]]
    return {"note": row["note"], "better": row["department"], "worse": draw.choice(others)}


def write(file: Path, rows: list[dict[str, str]]) -> None:
    """Rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_base(place: Path) -> None:
    """A small Llama that has learned nothing yet; all machines are given the same."""
    from transformers.utils.logging import disable_progress_bar

    from fedbench.model_config import Pretrain
    from fedbench.pretrain import make_llama, make_tokenizer

    disable_progress_bar()  # of writing one small file
    size = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4}
    config = Pretrain(text=(), words=tuple(SIGNS), vocab_size=500, **size)
    public = [
        "Which department should see this patient? Please choose from "
        f"{{cardiology/neurology/orthopedics}}. Instruction: Input: Answer: {text} {sign}"
        for text in TEXTS
        for signs in SIGNS.values()
        for sign in signs
    ]
    tokenizer = make_tokenizer(iter(public * 4), config.words, config.vocab_size)
    make_llama(config, tokenizer, seed=0).save_pretrained(place)
    tokenizer.save_pretrained(place)


if __name__ == "__main__":
    make_notes(Path())
    make_base(Path("base"))

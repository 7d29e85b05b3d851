"""How turns become text: one template object, shared by training and by every scorer.

A template renders the prompt of the last turn; the answer follows it directly. White space at
the end of a prompt is moved to the front of the answer (as lm-eval does), because tokenizers merge
a space with the word behind it: the model then sees the same tokens in training and in scoring.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from fedbench.errors import ConfigError


@dataclass(frozen=True)
class Turn:
    """What is asked in one turn, and the answer where it is known."""

    instruction: str
    input: str = ""
    response: str | None = None


# Frames that a protocol fixes are carried exactly, with their source.
TEMPLATES = {
    # FinGPT benchmarks, https://github.com/AI4Finance-Foundation/FinGPT
    "fingpt": (
        "{% for turn in turns %}Instruction: {{ turn.instruction }}\n"
        "Input: {{ turn.input }}\nAnswer: "
        "{% if not loop.last %}{{ turn.response }}\n{% endif %}{% endfor %}"
    ),
    # Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca
    "alpaca": (
        "Below is an instruction that describes a task"
        "{% if turns[0].input %}, paired with an input that provides further context{% endif %}. "
        "Write a response that appropriately completes the request.\n\n"
        "{% for turn in turns %}### Instruction:\n{{ turn.instruction }}\n\n"
        "{% if turn.input %}### Input:\n{{ turn.input }}\n\n{% endif %}### Response:\n"
        "{% if not loop.last %}{{ turn.response }}\n\n{% endif %}{% endfor %}"
    ),
    # Vicuna v1.1, https://github.com/lm-sys/FastChat
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "{% for turn in turns %}USER: {{ turn.instruction }}"
        "{% if turn.input %}\n{{ turn.input }}{% endif %} ASSISTANT: "
        "{% if not loop.last %}{{ turn.response }}</s>{% endif %}{% endfor %}"
    ),
    "plain": (
        "{% for turn in turns %}{{ turn.instruction }}"
        "{% if turn.input %}\n{{ turn.input }}{% endif %}\n"
        "{% if not loop.last %}{{ turn.response }}\n{% endif %}{% endfor %}"
    ),
}
CHAT = "chat"  # the tokenizer's own chat template


class Template:
    """A named way to write turns as text."""

    def __init__(self, name: str, source: str | None) -> None:
        """`source` is Jinja over ``turns``; None stands for the tokenizer's chat template."""
        self.name = name
        self.hash = hashlib.sha256((source or CHAT).encode()).hexdigest()[:16]
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        self._frame = None if source is None else environment.from_string(source)

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer still has to add its own; a chat template writes them itself."""
        return self._frame is not None

    def prompt(self, turns: Sequence[Turn], tokenizer: Any) -> tuple[str, str]:
        """The prompt of the last turn, and the white space that belongs in front of the answer.

        Raises:
            ConfigError: the tokenizer has no chat template and one is needed.
        """
        text = (
            self._chat(turns, tokenizer) if self._frame is None else self._frame.render(turns=turns)
        )
        stripped = text.rstrip(" ")
        return stripped, text[len(stripped) :]

    def _chat(self, turns: Sequence[Turn], tokenizer: Any) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "data.template is chat, but the model's tokenizer has no chat template; "
                f"choose one of {', '.join(TEMPLATES)} (--template in score)"
            )
        messages = []
        for turn in turns:
            question = f"{turn.instruction}\n{turn.input}" if turn.input else turn.instruction
            messages.append({"role": "user", "content": question})
            if turn.response is not None:
                messages.append({"role": "assistant", "content": turn.response})
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text


def get_template(name: str) -> Template:
    """A template by name, or from a Jinja file.

    Raises:
        ConfigError: there is neither such a name nor such a file.
    """
    if name == CHAT:
        return Template(CHAT, None)
    if name in TEMPLATES:
        return Template(name, TEMPLATES[name])
    file = Path(name)
    if file.is_file():
        try:
            return Template(file.name, file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, jinja2.TemplateError) as error:
            raise ConfigError(f"{file}: is not a Jinja template ({error})") from error
    near = difflib.get_close_matches(name, [*TEMPLATES, CHAT], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"unknown template {name!r}: {hint}known are {', '.join([*TEMPLATES, CHAT])}; or give a "
        "Jinja file"
    )

"""How turns become text: one template object, shared by training and by every scorer.

A template renders the prompt of the last turn; the answer follows it directly. White space at
the end of a prompt is moved to the front of the answer (as lm-eval does), because tokenizers merge
a space with the word behind it: the model then sees the same tokens in training and in scoring.

Every answer is closed by a marker, in earlier turns too: by the end-of-sequence token, or in a
chat template by the token that it writes itself. A training conversation is the prompt of its last
turn with the last answer behind it, so what is trained on is what is asked.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fedbench.data.chat import Chat
from fedbench.errors import ConfigError


@dataclass(frozen=True)
class Turn:
    """What is asked in one turn, and the answer where it is known."""

    instruction: str
    input: str = ""
    response: str | None = None
    system: str = ""
    """What the conversation is opened with; read in the first turn only."""


@dataclass(frozen=True)
class Conversation:
    """A conversation as text, and where its answers are."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """(start, end) of each answer with its closing marker; before it stands its turn's prompt."""
    num_rewritten: int = 0
    """Earlier answers that the template drops or changes, so that nothing can be learned there."""


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
        "{% if turns[0].system %}{{ turns[0].system }}{% else %}"
        "Below is an instruction that describes a task"
        "{% if turns[0].input %}, paired with an input that provides further context{% endif %}. "
        "Write a response that appropriately completes the request.{% endif %}\n\n"
        "{% for turn in turns %}### Instruction:\n{{ turn.instruction }}\n\n"
        "{% if turn.input %}### Input:\n{{ turn.input }}\n\n{% endif %}### Response:\n"
        "{% if not loop.last %}{{ turn.response }}\n\n{% endif %}{% endfor %}"
    ),
    # Vicuna v1.1, https://github.com/lm-sys/FastChat
    "vicuna": (
        "{% if turns[0].system %}{{ turns[0].system }}{% else %}"
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.{% endif %} "
        "{% for turn in turns %}USER: {{ turn.instruction }}"
        "{% if turn.input %}\n{{ turn.input }}{% endif %} ASSISTANT: "
        "{% if not loop.last %}{{ turn.response }}{% endif %}{% endfor %}"
    ),
    # Ye et al. 2024 (arXiv 2402.06954), utils/template.py of https://github.com/rui-ye/OpenFedLLM:
    # instruction and input joined by a space, and a space before the blank line.
    "openfedllm-alpaca": (
        "{% if turns[0].system %}{{ turns[0].system }}{% else %}"
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.{% endif %}\n\n"
        "{% for turn in turns %}### Instruction:\n{{ turn.instruction }}"
        "{% if turn.input %} {{ turn.input }}{% endif %} \n\n### Response: "
        "{% if not loop.last %}{{ turn.response }}\n\n{% endif %}{% endfor %}"
    ),
    "openfedllm-vicuna": (
        "{% if turns[0].system %}{{ turns[0].system }}{% else %}"
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.{% endif %} "
        "{% for turn in turns %}USER: {{ turn.instruction }}"
        "{% if turn.input %} {{ turn.input }}{% endif %} ASSISTANT: "
        "{% if not loop.last %}{{ turn.response }}{% endif %}{% endfor %}"
    ),
    # The frame of Flower's FlowerTune app for language models.
    "flowertune": (
        "{% if turns[0].system %}{{ turns[0].system }}{% else %}"
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.{% endif %}\n"
        "{% for turn in turns %}### Instruction:\n{{ turn.instruction }}"
        "{% if turn.input %} {{ turn.input }}{% endif %}\n### Response: "
        "{% if not loop.last %}{{ turn.response }}\n{% endif %}{% endfor %}"
    ),
    "plain": (
        "{% for turn in turns %}{{ turn.instruction }}"
        "{% if turn.input %}\n{{ turn.input }}{% endif %}\n"
        "{% if not loop.last %}{{ turn.response }}\n{% endif %}{% endfor %}"
    ),
    # Nothing behind the question: for protocols whose prompt ends in "Answer:".
    "bare": (
        "{% for turn in turns %}{{ turn.instruction }}"
        "{% if turn.input %}\n{{ turn.input }}{% endif %}"
        "{% if not loop.last %}{{ turn.response }}{% endif %}{% endfor %}"
    ),
}
CHAT = "chat"  # the tokenizer's own chat template
END = "</s>"  # what closes an earlier answer where no tokenizer says what does


class Template:
    """A named way to write turns as text."""

    def __init__(self, name: str, source: str | None, thinking: bool | None = None) -> None:
        """`source` is Jinja over ``turns``; None stands for the tokenizer's chat template.

        `thinking` is what a chat template is told as ``enable_thinking``, if anything. A source
        that does not mention ``.system`` gets the system text put in front.
        """
        self.name = name
        self.thinking = thinking
        self.hash = hashlib.sha256((source or CHAT).encode()).hexdigest()[:16]
        environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        self._frame = None if source is None else environment.from_string(source)
        self._places_system = source is not None and ".system" in source

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer still has to add its own; a chat template writes them itself."""
        return self._frame is not None

    def prompt(self, turns: Sequence[Turn], tokenizer: Any) -> tuple[str, str]:
        """The prompt of the last turn, and the white space that belongs in front of the answer.

        Raises:
            ConfigError: the tokenizer has no chat template and one is needed, its chat template
                refuses or drops what the turns hold, or the Jinja cannot be done.
        """
        if self._frame is None:
            chat = self._chat(tokenizer)
            text, lead = chat.prompt(_messages(turns), self.thinking), chat.lead
        else:
            text, lead = self._framed(turns, self.closing(tokenizer)), ""
        stripped = text.rstrip(" ")
        return stripped, text[len(stripped) :] + lead

    def closing(self, tokenizer: Any) -> str:
        """The marker behind every answer, at which a model that answers has to stop."""
        if self._frame is None:
            return self._chat(tokenizer).closing
        return getattr(tokenizer, "eos_token", None) or END

    def answer(self, response: str, tokenizer: Any) -> str:
        """A response as the template writes it: some chat templates strip white space."""
        return response if self._frame is not None else self._chat(tokenizer).answer(response)

    def conversation(self, turns: Sequence[Turn], tokenizer: Any) -> Conversation:
        """All turns with their answers: the prompt of the last turn, and its answer behind it.

        An earlier answer is one to learn from where the text begins with that turn's own prompt
        and the answer, so that it is learned behind what it is asked with. A chat template that
        rewrites its history (Qwen3 drops the thoughts of earlier answers) loses such answers.

        Raises:
            ConfigError: as in `prompt`.
        """
        closing = self.closing(tokenizer)
        beginnings = []
        for number, turn in enumerate(turns, start=1):
            prompt, lead = self.prompt([*turns[: number - 1], unanswered(turn)], tokenizer)
            answer = self.answer(turn.response or "", tokenizer)
            beginnings.append((len(prompt), prompt + lead + answer + closing))
        text = beginnings[-1][1]
        answers = tuple(
            (start, len(beginning)) for start, beginning in beginnings if text.startswith(beginning)
        )
        return Conversation(text, answers, len(turns) - len(answers))

    def _chat(self, tokenizer: Any) -> Chat:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the template is chat, but the model's tokenizer has no chat template; choose one "
                f"of {', '.join(TEMPLATES)} (data.template of a run file, --template of "
                "score, template of a judge's file)"
            )
        return Chat.of(tokenizer)

    def _framed(self, turns: Sequence[Turn], closing: str) -> str:
        assert self._frame is not None
        *history, last = turns
        closed = [
            turn if turn.response is None else replace(turn, response=turn.response + closing)
            for turn in history
        ]
        try:
            text = self._frame.render(turns=[*closed, last])
        except jinja2.TemplateError as error:
            said = str(error).removesuffix(".")
            raise ConfigError(f"template {self.name}: {said}; correct it") from error
        system = "" if self._places_system else turns[0].system
        return f"{system}\n\n{text}" if system else text


def unanswered(turn: Turn) -> Turn:
    """The turn as it is asked."""
    return replace(turn, response=None)


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    system = turns[0].system
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        question = f"{turn.instruction}\n{turn.input}" if turn.input else turn.instruction
        messages.append({"role": "user", "content": question})
        if turn.response is not None:
            messages.append({"role": "assistant", "content": turn.response})
    return messages


def get_template(name: str, thinking: bool | None = None) -> Template:
    """A template by name, or from a Jinja file.

    Args:
        name: of the template.
        thinking: whether a chat template is to ask for a thought first, where it can.

    Raises:
        ConfigError: there is neither such a name nor such a file.
    """
    if name == CHAT:
        return Template(CHAT, None, thinking)
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

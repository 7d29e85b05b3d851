"""Templates: what a model is given, character by character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedbench.data.templates import TEMPLATES, Turn, get_template
from fedbench.errors import ConfigError

ASKED = [Turn("Up or down?", "Shares rise.")]


def prompt(name: str, turns: list[Turn]) -> str:
    text, lead = get_template(name).prompt(turns, tokenizer=None)
    return text + lead


def test_fingpt_is_the_frame_of_its_benchmarks() -> None:
    expected = "Instruction: Up or down?\nInput: Shares rise.\nAnswer: "
    assert prompt("fingpt", ASKED) == expected


def test_alpaca_has_one_frame_with_an_input_and_one_without() -> None:
    with_input = prompt("alpaca", ASKED)
    assert "paired with an input that provides further context. Write a response" in with_input
    assert with_input.endswith("### Input:\nShares rise.\n\n### Response:\n")
    without = prompt("alpaca", [Turn("Up or down?")])
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nUp or down?\n\n### Response:\n"
    )


def test_vicuna_closes_an_earlier_answer_with_its_end_token() -> None:
    turns = [Turn("One?", response="1"), Turn("Two?")]
    assert prompt("vicuna", turns).endswith("USER: One? ASSISTANT: 1</s>USER: Two? ASSISTANT: ")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_holds_the_last_question_and_not_its_answer(name: str) -> None:
    turns = [Turn("First?", response="early"), Turn("Second?", "text", response="late")]
    text = prompt(name, turns)
    assert "early" in text
    assert text.index("First?") < text.index("early") < text.index("Second?")
    assert "late" not in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_space_at_the_end_of_a_prompt_leads_the_answer(name: str) -> None:
    text, lead = get_template(name).prompt(ASKED, tokenizer=None)
    assert not text.endswith(" ")
    assert lead in ("", " ")


def test_a_text_with_braces_is_not_rendered_again() -> None:
    assert "{{ 7 * 7 }}" in prompt("fingpt", [Turn("{{ 7 * 7 }}", "{% x %}")])


class ChatTokenizer:
    """Writes messages as ``<role>content`` and remembers them."""

    chat_template: str | None = "made"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_chat_is_what_the_tokenizer_makes_of_the_turns() -> None:
    turns = [Turn("One?", response="1"), Turn("Two?", "text")]
    text, lead = get_template("chat").prompt(turns, ChatTokenizer())
    assert text == "<user>One?<assistant>1<user>Two?\ntext<assistant>"
    assert lead == ""


def test_chat_without_a_chat_template_is_refused_with_the_choices() -> None:
    tokenizer = ChatTokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"has no chat template; choose one of fingpt, alpaca"):
        get_template("chat").prompt(ASKED, tokenizer)


def test_only_a_chat_template_writes_the_special_tokens_itself() -> None:
    assert not get_template("chat").adds_special_tokens
    assert get_template("fingpt").adds_special_tokens


def test_a_jinja_file_is_a_template(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("Q: {{ turns[-1].instruction }}\nA: ")
    template = get_template(str(file))
    assert template.name == "own.jinja"
    assert template.prompt(ASKED, None) == ("Q: Up or down?\nA:", " ")


def test_a_file_that_is_no_jinja_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"own\.jinja: is not a Jinja template"):
        get_template(str(file))


def test_an_unknown_template_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown template 'fingtp': did you mean 'fingpt'"):
        get_template("fingtp")


def test_templates_of_another_text_have_another_hash(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATES["fingpt"])
    assert get_template(str(file)).hash == get_template("fingpt").hash
    file.write_text(TEMPLATES["fingpt"] + "!")
    assert get_template(str(file)).hash != get_template("fingpt").hash

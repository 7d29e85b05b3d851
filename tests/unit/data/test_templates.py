"""Templates: what a model is given, character by character."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tokenizers import UNCLOSED_CHAT, tokenizer_named, with_chat

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


def test_openfedllm_joins_instruction_and_input_by_a_space() -> None:
    # utils/template.py: "### Instruction:\n{} \n\n### Response: {}{}", one space before the blank
    # line, and no frame of its own for an input.
    assert prompt("openfedllm-alpaca", ASKED) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nUp or down? Shares rise. \n\n### Response: "
    )
    assert prompt("openfedllm-vicuna", ASKED).endswith(
        "answers to the user's questions. USER: Up or down? Shares rise. ASSISTANT: "
    )
    assert "Up or down? \n\n" in prompt("openfedllm-alpaca", [Turn("Up or down?")])


# The system text


@pytest.mark.parametrize("name", ["alpaca", "openfedllm-alpaca", "vicuna", "openfedllm-vicuna"])
def test_a_system_text_replaces_the_sentence_that_heads_a_frame(name: str) -> None:
    with_system = prompt(name, [Turn("Up?", system="Be brief.")])
    without = prompt(name, [Turn("Up?")])
    gap = " USER:" if "vicuna" in name else "\n\n###"
    assert with_system.startswith("Be brief." + gap)
    assert without.endswith(with_system.removeprefix("Be brief."))


@pytest.mark.parametrize("name", ["fingpt", "plain"])
def test_a_system_text_stands_in_front_of_a_frame_without_a_head(name: str) -> None:
    with_system = prompt(name, [Turn("Up?", system="Be brief.")])
    assert with_system == "Be brief.\n\n" + prompt(name, [Turn("Up?")])


def test_a_jinja_file_may_place_the_system_text_itself(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("[{{ turns[0].system }}] {{ turns[-1].instruction }}:")
    assert prompt(str(file), [Turn("Up?", system="Be brief.")]) == "[Be brief.] Up?:"


# The tokenizer's own


def test_chat_is_what_the_tokenizer_makes_of_the_turns() -> None:
    turns = [Turn("One?", response="1", system="Be brief."), Turn("Two?", "text")]
    text, lead = get_template("chat").prompt(turns, tokenizer_named("qwen"))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo?\ntext<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert lead == ""


def test_white_space_that_a_chat_template_writes_before_an_answer_leads_it() -> None:
    text, lead = get_template("chat").prompt([Turn("One?")], tokenizer_named("llama2_first"))
    assert (text, lead) == ("<s>[INST] One? [/INST]", " ")


@pytest.mark.parametrize(
    ("name", "closing"),
    [("qwen", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("llama2_first", " </s>")],
)
def test_a_chat_answer_is_closed_by_the_marker_of_the_chat_template(
    name: str, closing: str
) -> None:
    assert get_template("chat").closing(tokenizer_named(name)) == closing


def test_other_frames_close_an_answer_by_the_end_of_sequence() -> None:
    assert get_template("plain").closing(tokenizer_named("qwen")) == "<|endoftext|>"
    turns = [Turn("One?", response="1"), Turn("Two?")]
    text, _ = get_template("plain").prompt(turns, tokenizer_named("qwen"))
    assert text == "One?\n1<|endoftext|>\nTwo?\n"


def test_a_chat_template_that_refuses_a_system_text_is_told_in_words() -> None:
    turns = [Turn("One?", system="Be brief.")]
    with pytest.raises(ConfigError, match=r"refuses the conversation \(no system\)"):
        get_template("chat").prompt(turns, tokenizer_named("llama2_first"))


def test_a_chat_template_that_leaves_out_the_system_text_is_refused() -> None:
    tokenizer = with_chat(UNCLOSED_CHAT, more=["<|user|>", "<|assistant|>"])
    with pytest.raises(ConfigError, match="leaves out the system text"):
        get_template("chat").prompt([Turn("One?", system="Be brief.")], tokenizer)


def test_a_chat_template_that_hides_answers_is_refused() -> None:
    tokenizer = with_chat("{% for m in messages %}[{{ m.role }}]{% endfor %}")
    with pytest.raises(ConfigError, match="does not show earlier answers as they are"):
        get_template("chat").prompt(ASKED, tokenizer)


def test_chat_without_a_chat_template_is_refused_with_the_choices() -> None:
    tokenizer = with_chat("")
    words = r"^the template is chat, but .* choose one of fingpt, alpaca.*, --template of score,"
    with pytest.raises(ConfigError, match=words):
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


@pytest.mark.parametrize(
    ("jinja", "words"),
    [
        ("turns[-1].instuction", "template own.jinja: .* has no attribute 'instuction'; correct"),
        ("turns.__class__.__mro__", "access to attribute '__class__' .* is unsafe; correct it"),
    ],
)
def test_what_a_template_cannot_or_may_not_do_is_said(
    tmp_path: Path, jinja: str, words: str
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(f"Q: {{{{ {jinja} }}}}\nA: ")
    with pytest.raises(ConfigError, match=words):
        get_template(str(file)).prompt(ASKED, None)


def test_an_unknown_template_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown template 'fingtp': did you mean 'fingpt'"):
        get_template("fingtp")


def test_templates_of_another_text_have_another_hash(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATES["fingpt"])
    assert get_template(str(file)).hash == get_template("fingpt").hash
    file.write_text(TEMPLATES["fingpt"] + "!")
    assert get_template(str(file)).hash != get_template("fingpt").hash


# As Qwen3 does it: told not to think, it is shown an empty thought.
THINKING_CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def test_a_chat_template_is_told_whether_to_think() -> None:
    tokenizer = with_chat(THINKING_CHAT)
    turns = [Turn("Up?")]
    plain, without = (get_template("chat", t).prompt(turns, tokenizer)[0] for t in (None, False))
    assert "<think>" not in plain
    assert without.startswith(plain)
    assert "<think>" in without
    assert get_template("chat", True).prompt(turns, tokenizer)[0] == plain

"""Rubrics: those that come with fedbench, a user's own, and FastChat's prompts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from fedbench import resources
from fedbench.errors import ConfigError, DataError
from fedbench.judging.rubric import Rubric, get_rubric, rubric_names
from fedbench.schema import read_yaml

OWN = [name for name in rubric_names() if name.endswith("-fedbench")]
PUBLISHED = [name for name in rubric_names() if name not in OWN]
COHERENCE = """\
name: coherence
user: |-
  Does this summary hang together? Judge nothing else.
  Text: {{ question }}
  Summary: {{ answer }}
  Think aloud, then write one line: Rating: [[n]], with n from 1 (muddled) to 5 (clear).
verdict: {scale: [1, 5]}
"""


def write_prompts(file: Path, **templates: str) -> Path:
    rows = [
        {"name": name, "type": "single", "system_prompt": f"S {name}", "prompt_template": text}
        for name, text in templates.items()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", OWN)
def test_own_rubrics_need_no_file_and_show_every_field(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDBENCH_DATA", raising=False)
    rubric = get_rubric(name)
    assert rubric.name == name
    [turn] = rubric.render(**{field: f"<{field}>" for field in rubric.fields})
    hidden = [field for field in rubric.fields if f"<{field}>" not in turn.instruction]
    assert not hidden
    assert turn.system
    [bare] = rubric.render(**{field: f"<{field}>" for field in rubric.required})
    assert "None" not in bare.instruction


def test_each_rubric_has_a_hash_of_its_own() -> None:
    hashes = {get_rubric(name).hash for name in OWN}
    assert len(hashes) == len(OWN)


def test_a_users_rubric_is_a_short_file(tmp_path: Path) -> None:
    file = tmp_path / "coherence.yaml"
    file.write_text(COHERENCE)
    assert len(COHERENCE.splitlines()) < 15
    rubric = get_rubric(file)
    [turn] = rubric.render(question="T {{ x }}", answer="", reference="not shown")
    # Texts are data: braces in them are no template, and an empty answer is one.
    assert "Text: T {{ x }}\nSummary: \n" in turn.instruction
    assert rubric.read("[[5]]").value == 5
    assert rubric.read("[[6]]").value is None


def test_the_hash_covers_words_and_parser_and_not_the_name(tmp_path: Path) -> None:
    file = tmp_path / "coherence.yaml"

    def hash_of(text: str) -> str:
        file.write_text(text)
        return get_rubric(file).hash

    plain = hash_of(COHERENCE)
    assert hash_of(COHERENCE + "description: of summaries\n") == plain
    assert hash_of(COHERENCE.replace("name: coherence", "name: other")) == plain
    assert hash_of(COHERENCE.replace("muddled", "unclear")) != plain
    assert hash_of(COHERENCE.replace("[1, 5]", "[1, 6]")) != plain
    assert get_rubric(file, parser="fastchat").hash != get_rubric(file).hash


def test_a_field_that_is_absent_is_named(tmp_path: Path) -> None:
    rubric = get_rubric("vicuna-fedbench")
    with pytest.raises(ConfigError, match="rubric vicuna-fedbench: needs answer, which"):
        rubric.render(question="Q")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("user: |-", "usr: |-"), "usr: unknown key; did you mean 'user'"),
        (("{{ answer }}", "none"), "user does not show answer"),
        (("{{ answer }}", "{{ answer"), "is no Jinja template"),
        (("{{ answer }}", "{{ answer | uper }}"), "is no Jinja template: No filter named 'uper'"),
        (("verdict: {", "kind: pairwise\nverdict: {"), "kind pairwise does not go with"),
        (("verdict: {", "optional: [reference]\nverdict: {"), "reference occurs in neither"),
        (("scale: [1, 5]", "kind: choice, labels: [yes, no]"), "YAML reads yes, no, on and off"),
        (("name: coherence", "name: mt_bench"), "name is mt_bench, as a rubric is called that"),
    ],
)
def test_mistakes_in_a_rubric_are_explained(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    file = tmp_path / "coherence.yaml"
    file.write_text(COHERENCE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        get_rubric(file)


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("answer.__class__.__mro__", "access to attribute '__class__' .* is unsafe; correct its"),
        ("answer + 1", "rubric coherence: can only concatenate str .*; correct its Jinja"),
    ],
)
def test_what_the_jinja_of_a_rubric_may_not_or_cannot_do_is_said(
    tmp_path: Path, jinja: str, message: str
) -> None:
    file = tmp_path / "coherence.yaml"
    file.write_text(COHERENCE.replace("{{ answer }}", f"{{{{ {jinja} }}}}"))
    rubric = get_rubric(file)
    with pytest.raises(ConfigError, match=message):
        rubric.render(question="Q", answer="A")


def test_a_copy_of_a_shipped_rubric_keeps_its_name(tmp_path: Path) -> None:
    shipped = resources.directory("tasks") / "rubrics" / "vicuna-fedbench.yaml"
    file = tmp_path / "copied.yaml"
    file.write_text(shipped.read_text())
    assert get_rubric(file) == get_rubric("vicuna-fedbench")


def test_an_unknown_rubric_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mt_bench-fedbench'"):
        get_rubric("mt_bench-fedbnch")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_prompts_are_asked_for_where_they_are_not_at_hand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDBENCH_DATA", raising=False)
    monkeypatch.delenv("FASTCHAT_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"needs FastChat's judge_prompts\.jsonl"):
        get_rubric(name)


def test_other_prompts_are_not_called_mt_bench(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", **{"single-v1": "{question} {answer}"})
    with pytest.raises(DataError, match="are not the pinned content"):
        get_rubric("mt_bench", prompts)


def test_fastchats_own_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(tmp_path / "judge_prompts.jsonl", **{"single-v1": "{question} {answer}"})
    monkeypatch.setenv("FASTCHAT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}.* are not the pinned content"):
        get_rubric("mt_bench")


def test_four_prompts_of_str_format_become_one_template(tmp_path: Path) -> None:
    prompts = write_prompts(
        tmp_path / "prompts.jsonl",
        one="1 {question} {answer} {{literal}} {{% raw %}}",
        math="1r {question} {ref_answer_1} {answer}",
        two="2 {question_1} {answer_1} {question_2} {answer_2}",
        math2="2r {question_1} {ref_answer_1} {answer_1} {question_2} {ref_answer_2} {answer_2}",
    )
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\npublished: {first: one, first_with_reference: math, second: two, "
        f"second_with_reference: math2, file: {prompts}}}\n"
    )
    rubric = get_rubric(file)

    def shown(**fields: str) -> tuple[str, str]:
        [turn] = rubric.render(**fields)
        return turn.system, turn.instruction

    first = {"question": "q", "answer": "a"}
    second = {"question_2": "q2", "answer_2": "a2"}
    assert shown(**first) == ("S one", "1 q a {literal} {% raw %}")
    assert shown(**first, reference="r") == ("S math", "1r q r a")
    assert shown(**first, **second) == ("S two", "2 q a q2 a2")
    everything = {**first, **second, "reference": "r", "reference_2": "r2"}
    assert shown(**everything) == ("S math2", "2r q r a q2 r2 a2")
    assert rubric.judges_second_turns
    # Published prompts ask for brackets: a server must not be held to JSON.
    assert rubric.verdict.json_schema is None


def test_a_prompt_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", one="{question} {answer}")
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\npublished: {{first: two, file: {prompts}}}\n")
    with pytest.raises(ConfigError, match="has no prompt 'two', only one"):
        get_rubric(file)
    broken = write_prompts(tmp_path / "prompts.jsonl", two="{question} {answer")
    assert broken.exists()
    with pytest.raises(DataError, match=r"is no template of Python's str\.format"):
        get_rubric(file)


@pytest.mark.skipif(
    not os.environ.get("FEDBENCH_DATA"),
    reason="FastChat's prompts are not ours to ship: set FEDBENCH_DATA to a mirror",
)
class TestFastChatPrompts:
    def test_are_rendered_as_str_format_renders_them(self) -> None:
        from fedbench.data.rows import Source, load_rows

        source = Source(path="mt_bench", split="judge_prompts", columns=("name",))
        prompts = {row["name"]: row for row in load_rows(source)}
        theirs = {
            "question": "q{}",
            "answer": "a",
            "ref_answer_1": "r",
        }
        single, math = prompts["single-v1"], prompts["single-math-v1"]
        rubric = get_rubric("mt_bench")
        [plain] = rubric.render(question="q{}", answer="a")
        assert plain.instruction == single["prompt_template"].format(**theirs)
        assert plain.system == single["system_prompt"]
        [guided] = rubric.render(question="q{}", answer="a", reference="r")
        assert guided.instruction == math["prompt_template"].format(**theirs)
        both = prompts["pair-math-v1-multi-turn"]
        pair = get_rubric("mt_bench-pairwise")
        fields = {"question": "q", "question_2": "q2", "reference": "r", "reference_2": "r2"}
        answers = {"answer_a": "a", "answer_a_2": "a2", "answer_b": "b", "answer_b_2": "b2"}
        [turn] = pair.render(**fields, **answers)
        assert turn.system == both["system_prompt"]
        assert turn.instruction == both["prompt_template"].format(
            question_1="q",
            question_2="q2",
            ref_answer_1="r",
            ref_answer_2="r2",
            answer_a_1="a",
            answer_a_2="a2",
            answer_b_1="b",
            answer_b_2="b2",
        )

    def test_own_words_are_not_theirs(self) -> None:
        # No eight words in a row are taken over.
        published = " ".join(get_rubric(n).system + " " + get_rubric(n).user for n in PUBLISHED)
        theirs = set(_runs(published))
        for name in OWN:
            rubric = get_rubric(name)
            shared = theirs.intersection(_runs(rubric.system + " " + rubric.user))
            assert not shared


def _runs(text: str, length: int = 8) -> list[tuple[str, ...]]:
    words = re.sub(r"\{[{%].*?[}%]\}", " ", text.lower()).split()
    return [tuple(words[n : n + length]) for n in range(len(words) - length + 1)]


def test_every_rubric_file_says_where_its_protocol_is_from() -> None:
    for name in rubric_names():
        raw = read_yaml(resources.directory("tasks") / "rubrics" / f"{name}.yaml")
        assert raw["name"] == name
        assert "http" in raw["source"] or "review of 2023" in raw["source"]
        assert raw["description"]


def test_a_rubric_is_frozen() -> None:
    rubric = get_rubric("vicuna-fedbench")
    assert isinstance(rubric, Rubric)
    with pytest.raises(ValueError, match="frozen"):
        rubric.name = "other"  # type: ignore[misc]

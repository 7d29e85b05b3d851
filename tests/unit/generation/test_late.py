"""The backend that is opened when a model has to be asked: it says the same as the one it opens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fedbench import prepared_files
from fedbench.data.templates import Template, Turn, get_template
from fedbench.errors import CheckpointError
from fedbench.generation.backend import Question, Request, Sampling, Written
from fedbench.model_config import ModelConfig

pytest.importorskip("transformers", reason="transformers is not installed")

from fedbench.generation.late import LateTransformers, device_type
from fedbench.generation.transformers import TransformersBackend

QUESTIONS = [
    Question((Turn("What is it?", "Profit rises"),), "generate", Sampling(stop=("\n", "###"))),
    Question((Turn("And this?", "Übel, sehr"),), "choice", Sampling(), ("negative", "positive")),
]
WRITTEN = [
    Written("Answer:", "choice", choices=(" no", " yes, it is")),
    Written("Say: ", "generate", Sampling(temperature=0.5, seed=3, index=1)),
    Written("", "choice", choices=("negative", "positive")),
]
PLAIN = get_template("plain")


@pytest.fixture
def base(tiny_base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of the test's own, and an empty cache."""
    monkeypatch.setenv("FEDBENCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_base_directory, tmp_path / "base"))


def late(base: Path) -> LateTransformers:
    config = ModelConfig(name=str(base), device="cpu")
    return LateTransformers(str(base), config, batch_tokens=512, generation_tokens=8192)


def closed(base: Path, monkeypatch: pytest.MonkeyPatch) -> LateTransformers:
    """One that must find everything kept."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr(TransformersBackend, "__init__", refuse)
    return late(base)


def prepared(backend: LateTransformers | TransformersBackend) -> list[list[Request]]:
    questions, written = backend.prepare(QUESTIONS, PLAIN), backend.prepare_written(WRITTEN)
    return [questions, written, backend.canaries([*questions, *written])]


def test_it_says_what_the_backend_itself_says(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name=str(base), device="cpu")
    real = TransformersBackend(str(base), config, batch_tokens=512, generation_tokens=8192)
    expected = prepared(real)
    assert prepared(late(base)) == expected
    again = closed(base, monkeypatch)
    assert (again.name, again.base_hash) == (real.name, real.base_hash)
    found = prepared(again)
    assert found == expected
    assert [[r.digest for r in own] for own in found] == [[r.digest for r in o] for o in expected]
    assert again.plan(found[0]) == real.plan(expected[0])
    again.close()


def test_the_name_holds_the_versions_that_answers_depend_on(base: Path) -> None:
    import torch
    import transformers

    versions = f"transformers {transformers.__version__} torch {torch.__version__} float32"
    assert late(base).name.startswith(versions)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json", "new"])
def test_another_tokenizer_or_configuration_prepares_anew(
    file: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(base).prepare(QUESTIONS, PLAIN)
    place = base / ("chat_template.jinja" if file == "new" else file)
    place.write_text(place.read_text() + " " if place.exists() else "{{ messages }}")
    with pytest.raises(AssertionError, match="the model was opened"):
        closed(base, monkeypatch).prepare(QUESTIONS, PLAIN)


@pytest.mark.parametrize(
    ("questions", "template"),
    [
        (QUESTIONS[:1], PLAIN),
        ([replace(QUESTIONS[0], sampling=Sampling(max_tokens=3)), QUESTIONS[1]], PLAIN),
        (QUESTIONS, get_template("bare")),
        (QUESTIONS, Template("plain", "{{ turns[0].instruction }}")),
        (QUESTIONS, get_template("chat", thinking=True)),
    ],
)
def test_another_question_or_template_prepares_anew(
    questions: list[Question], template: Template, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(base).prepare(QUESTIONS, PLAIN)
    with pytest.raises(AssertionError, match="the model was opened"):
        closed(base, monkeypatch).prepare(questions, template)


def test_a_longer_context_prepares_anew(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    long = [Written("word " * 50, "generate", Sampling(max_tokens=1))]
    for length in (20, 30):
        (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": length}))
        [request] = late(base).prepare_written(long)
        assert len(request.ids) == length - 1  # the last place is the answer's


def test_edited_code_prepares_anew(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late(base).prepare(QUESTIONS, PLAIN)
    monkeypatch.setattr(prepared_files, "own_code", lambda: "edited")
    with pytest.raises(AssertionError, match="the model was opened"):
        closed(base, monkeypatch).prepare(QUESTIONS, PLAIN)


def test_a_base_overwritten_meanwhile_is_noticed(base: Path) -> None:
    backend = late(base)
    [file] = base.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its weights were overwritten while"):
        _ = backend.opened


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_the_device_is_the_one_that_torch_picks(wanted: str) -> None:
    from fedbench.model import pick_device

    assert device_type(wanted) == pick_device(wanted).type

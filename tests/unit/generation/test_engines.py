"""Which backend answers is a matter of options; the records say which it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("openai")

from click.testing import CliRunner
from fake_server import FakeServer, chat_reply, running

from fedbench import cli
from fedbench.errors import ConfigError
from fedbench.generation.opening import CPU_TOKENS, Engine, open_backend
from fedbench.model_config import ModelConfig
from fedbench.results.record import read_run, read_scores

TASK = {
    "name": "made",
    "prompt": "Up?",
    "input": "{{ text }}",
    "reference": "{{ answer }}",
    "labels": ["no", "yes"],
    "extract": "label_word",
    "metrics": ["accuracy"],
}


def open_one(base: Path, engine: Engine) -> object:
    return open_backend(str(base), ModelConfig(name=str(base), device="cpu"), [], engine)


def test_options_of_a_backend_are_checked_by_name(tiny_base_directory: Path) -> None:
    engine = Engine(options={"batch_token": 8})
    words = r"--engine batch_token: unknown option; options of transformers are batch_tokens"
    with pytest.raises(ConfigError, match=words):
        open_one(tiny_base_directory, engine)


def test_a_cpu_is_given_small_batches_unless_told_otherwise(tiny_base_directory: Path) -> None:
    read, written = CPU_TOKENS
    for options, tokens in (({}, read), ({"batch_tokens": 64}, 64)):
        backend = open_one(tiny_base_directory, Engine(options=options))
        assert str(getattr(backend, "name", "")).endswith(f" cpu batch {tokens} {written}")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (Engine("vlm"), "unknown backend 'vlm'; known are transformers, vllm, openai$"),
        (Engine("scripted"), "scripted is for Python only; choose one of transformers, vllm,"),
        (Engine("openai"), "needs a server; describe it in a file"),
        (Engine(server=Path("server.yaml")), "the backend is transformers; use openai"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(
    tiny_base_directory: Path, engine: Engine, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_one(tiny_base_directory, engine)


def test_a_served_model_is_scored_from_the_command_line_and_asked_once(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "answer": answer} for n, answer in enumerate(["yes", "no"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"path": str(tmp_path / "rows.jsonl"), "columns": ["text", "answer"]}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump({**TASK, "dataset": dataset}))
    server = FakeServer()
    server.answer = lambda call: chat_reply("Yes.")
    with running(server):
        described = {"base_url": f"{server.url}", "model": "tiny"}
        (tmp_path / "server.yaml").write_text(yaml.safe_dump(described))
        command = ["score", "--backend", "openai", "--server", str(tmp_path / "server.yaml")]
        command += ["--tasks", str(tmp_path / "made.yaml"), "--output", str(tmp_path / "out")]
        for _ in range(2):
            done = CliRunner().invoke(cli.app, command)
            assert done.exit_code == 0, done.output
    assert len(server.calls) == 2  # one for each item, and none by the second command
    [score] = read_scores(tmp_path / "out")
    assert (score.method, score.value, score.num_unparsed) == ("tiny", 0.5, 0)
    assert str(score.backend).startswith("openai")
    record = read_run(tmp_path / "out")
    assert record is not None
    assert (tmp_path / "out" / "lm_eval" / "tiny").is_dir()

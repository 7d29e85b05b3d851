"""Who judges, as the command line or a file says, and what its name in records tells apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from fedbench.errors import ConfigError
from fedbench.judging.opening import judge_config, open_judge

URL = "http://127.0.0.1:9/v1"


def name_of(file: Path, text: str, **options: Any) -> str:
    file.write_text(f"server: {{base_url: '{URL}', model: big{text}\n")
    opened = open_judge(judge_config(str(file), **options), to_ask=False)
    opened.close()
    return opened.name


def test_judges_that_are_asked_in_different_ways_have_different_names(tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    assert name_of(file, "}") == "big @ 127.0.0.1"
    assert name_of(file, "}", temperature=0.5, seed=1234567) == (
        "big @ 127.0.0.1, temperature 0.5, seed 1234567"
    )
    assert name_of(file, ", api: completions}", template="plain", max_tokens=64) == (
        "big @ 127.0.0.1, template plain, max_tokens 64"
    )
    extra = ", extra: {reasoning_effort: low, chat_template_kwargs: {enable_thinking: false}}}"
    assert name_of(file, extra) == (
        'big @ 127.0.0.1, reasoning_effort low, chat_template_kwargs {"enable_thinking": false}'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: http://127.0.0.1:9/v1\n", "describes no server .*which --budget is about"),
        ("model: models/prometheus\n", "describes no server .*which --budget is about"),
        (
            f"server: {{base_url: '{URL}', model: big}}\nengine: {{max_model_len: 64}}\n",
            "engine is about a model in this process, and the judge is on a server",
        ),
        (
            f"server: {{base_url: '{URL}', model: big}}\nthinking: false\n",
            "extra: {chat_template_kwargs: {enable_thinking: false}}",
        ),
        (
            f"server: {{base_url: '{URL}', model: big}}\ntemplate: plain\n",
            "template is about prompts that are written here",
        ),
    ],
)
def test_what_a_description_cannot_mean_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        judge_config(str(file), budget=4.0)


def test_a_judge_on_a_server_is_asked_by_no_backend_of_this_process() -> None:
    with pytest.raises(ConfigError, match="--judge: backend is about a model in this process"):
        judge_config("big", base_url=URL, backend="vllm")

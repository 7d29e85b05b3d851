"""Merging: the model that is written answers as the adapter did, and what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from trainings import run

import fedbench
from fedbench import cli
from fedbench.adapters import adapter, save_merged
from fedbench.errors import CheckpointError, FedbenchError, OutputError
from fedbench.federated.checkpoint import round_directory
from fedbench.federated.server import Training
from fedbench.model import BaseModel, load_base
from fedbench.model_config import ModelConfig

MakeTraining = Callable[..., Training]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def loaded(directory: Path, **options: Any) -> Any:
    """As any other tool would load it."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def trained(training: MakeTraining, name: str, **config: Any) -> Path:
    """The last round of a short training."""
    federation = {"rounds": 2, "clients_per_round": 3}
    local = {"learning_rate": 0.05}
    made = training(methods=[name], federation=federation, local=local, **config)
    return round_directory(run(made), 2)


def disturb(module: Any) -> None:
    """Let a fresh adapter change something: PEFT begins with B = 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.1)


@pytest.fixture
def own_adapter(tiny_base_directory: Path, tmp_path: Path) -> Path:
    """An adapter that PEFT has written, without this framework."""
    settings = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    module = peft.get_peft_model(loaded(tiny_base_directory), settings)
    disturb(module)
    module.save_pretrained(tmp_path / "own-adapter")
    return tmp_path / "own-adapter"


@pytest.fixture
def another_base(tiny_base_directory: Path, tmp_path: Path) -> Path:
    """A base of the same architecture with other weights."""
    place = tmp_path / "another"
    shutil.copytree(tiny_base_directory, place)
    module = loaded(tiny_base_directory)
    with torch.no_grad():
        module.lm_head.weight.add_(0.01)
    module.save_pretrained(place)
    return place


# The written model


@pytest.mark.parametrize("name", ["fedavg", "flora", "fedex_lora"])
def test_a_merged_round_answers_as_the_round_does(
    training: MakeTraining, tiny_base: BaseModel, tmp_path: Path, name: str
) -> None:
    place = trained(training, name)
    assert (place / "base_delta.safetensors").exists() is (name != "fedavg")
    with adapter(tiny_base, place) as module:
        expected = logits(module)
    merged = fedbench.merge(place, tmp_path / "deep" / "merged")
    assert difference(logits(loaded(tmp_path / "deep" / "merged")), expected) < 1e-5
    assert difference(logits(tiny_base.module), expected) > 1e-3
    assert (merged.kind, merged.template) == ("full", "fingpt")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["merged"]


def test_an_adapter_of_another_framework_is_merged_with_the_base_that_it_names(
    own_adapter: Path, tiny_base_directory: Path, tmp_path: Path
) -> None:
    theirs = peft.PeftModel.from_pretrained(loaded(tiny_base_directory), own_adapter)
    merged = fedbench.merge(str(own_adapter), tmp_path / "merged")
    assert difference(logits(loaded(tmp_path / "merged")), logits(theirs)) < 1e-5
    assert merged.template is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.encode("Profit rises") == transformers.AutoTokenizer.from_pretrained(
        tiny_base_directory
    ).encode("Profit rises")


def test_a_clients_personal_model_is_merged(
    training: MakeTraining, tiny_base: BaseModel, tmp_path: Path
) -> None:
    place = trained(training, "fedsa_lora")
    with adapter(tiny_base, place / "client-0001") as module:
        expected = logits(module)
    merged = fedbench.merge(place / "client-0001", tmp_path / "merged")
    assert merged.template == "fingpt"
    assert difference(logits(loaded(tmp_path / "merged")), expected) < 1e-5
    with pytest.raises(CheckpointError, match=r"fedsa_lora has no global model.*client-0000"):
        fedbench.merge(place, tmp_path / "none")


def test_an_adapted_head_does_not_move_the_embeddings_that_it_was_tied_to(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = BaseModel(transformers.LlamaForCausalLM(config), None, "tied", "")
    base.module.save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        module = peft.get_peft_model(base.module, settings)
    disturb(module)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        module.save_pretrained(tmp_path / "adapter")
    expected = logits(module)
    base.module = loaded(tmp_path / "base")
    base.tokenizer = SimpleNamespace(save_pretrained=lambda place: None)
    save_merged(base, tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    assert difference(logits(merged), expected) < 1e-5


def test_bfloat16_is_rounded_once_at_the_end(own_adapter: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        fedbench.merge(own_adapter, tmp_path / dtype, dtype=dtype)
    half = loaded(tmp_path / "bfloat16", dtype="auto").state_dict()
    exact = loaded(tmp_path / "float32").state_dict()
    assert all(torch.equal(half[name], exact[name].to(torch.bfloat16)) for name in exact)


def test_a_run_that_was_moved_is_merged_with_the_base_that_it_holds(
    training: MakeTraining, tiny_base_directory: Path, tmp_path: Path
) -> None:
    place = trained(training, "fedavg")
    moved = tmp_path / "moved"
    shutil.copytree(place, moved / "checkpoints" / "fedavg" / "seed-0" / place.name)
    shutil.copytree(tiny_base_directory, moved / "base" / "gone-0123")
    commit = moved / "checkpoints" / "fedavg" / "seed-0" / place.name / "round.json"
    record = json.loads(commit.read_bytes()) | {"base": "/nowhere/base/gone-0123"}
    commit.write_text(json.dumps(record), encoding="utf-8")
    fedbench.merge(commit.parent, tmp_path / "merged")
    fedbench.merge(place, tmp_path / "directly")
    assert torch.equal(logits(loaded(tmp_path / "merged")), logits(loaded(tmp_path / "directly")))


def test_a_merged_model_is_a_base_for_the_next_run(
    own_adapter: Path, tiny_base_directory: Path, tmp_path: Path
) -> None:
    fedbench.merge(own_adapter, tmp_path / "merged", base_model=str(tiny_base_directory))
    config = ModelConfig(name=str(tmp_path / "merged"), device="cpu")
    assert load_base(str(tmp_path / "merged"), config).module.dtype == torch.float32


# Refused in words


def refused(
    tmp_path: Path, kind: type[FedbenchError], words: str, *args: Any, **options: Any
) -> None:
    """Merging fails with these words and leaves nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=words):
        fedbench.merge(*args, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_exists_is_never_written_over(own_adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    refused(tmp_path, OutputError, "mine: exists and is not written over", own_adapter, output)


def test_what_is_no_adapter_is_refused(tiny_base_directory: Path, tmp_path: Path) -> None:
    output, empty = tmp_path / "merged", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "run" / "checkpoints" / "fedavg" / "round-0003").mkdir(parents=True)
    for place, words in [
        (tiny_base_directory, "is a full model already"),
        (empty, "holds neither adapter_config.json nor model weights"),
        (tmp_path / "absent", "absent: is no directory"),
        (tmp_path / "run", "is a whole run; give one round of it, such as .*fedavg/round-0003"),
    ]:
        refused(tmp_path, CheckpointError, words, place, output)


def test_a_full_round_is_refused(training: MakeTraining, tmp_path: Path) -> None:
    place = trained(training, "fedavg", model={"lora": None})
    refused(tmp_path, CheckpointError, "is a full model already", place, tmp_path / "merged")


def test_an_adapter_without_weights_is_refused(own_adapter: Path, tmp_path: Path) -> None:
    (own_adapter / "adapter_model.safetensors").unlink()
    words = "own-adapter: holds no adapter_model.safetensors"
    refused(tmp_path, CheckpointError, words, own_adapter, tmp_path / "merged")


def test_an_adapter_that_is_no_change_of_weights_is_refused(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    settings = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    module = peft.get_peft_model(loaded(tiny_base_directory), settings)
    module.save_pretrained(tmp_path / "prompts")
    words = "prompts: is a PROMPT_TUNING adapter, which no weights of the base can hold"
    refused(tmp_path, CheckpointError, words, tmp_path / "prompts", tmp_path / "merged")


def test_another_base_is_refused_by_its_weights(
    training: MakeTraining, another_base: Path, tmp_path: Path
) -> None:
    place, output = trained(training, "fedavg"), tmp_path / "merged"
    other = {"base_model": str(another_base)}
    words = r"was trained on a base with weights \w{16}, but .*another has \w{16}"
    refused(tmp_path, CheckpointError, words, place, output, **other)
    place = trained(training, "fedsa_lora") / "client-0002"
    refused(tmp_path, CheckpointError, words, place, output, **other)


def test_another_architecture_is_refused_by_its_shapes(
    own_adapter: Path, tiny_base_directory: Path, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(tiny_base_directory, wide)
    config = transformers.AutoConfig.from_pretrained(tiny_base_directory)
    config.intermediate_size = 96
    transformers.LlamaForCausalLM(config).save_pretrained(wide)
    words = "own-adapter: weights .* it was trained on another base than .*wide"
    options = {"base_model": str(wide)}
    refused(tmp_path, CheckpointError, words, own_adapter, tmp_path / "merged", **options)


def test_a_full_disk_leaves_nothing_behind(
    own_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, place: Path, **_: Any) -> None:
        Path(place).mkdir()
        (Path(place) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    words = "merged: cannot be written .*No space left on device.* free some space"
    refused(tmp_path, OutputError, words, own_adapter, tmp_path / "merged")


def test_an_adapter_that_names_no_base_asks_for_one(own_adapter: Path, tmp_path: Path) -> None:
    settings = own_adapter / "adapter_config.json"
    record = json.loads(settings.read_bytes())
    settings.write_text(json.dumps(record | {"base_model_name_or_path": None}), encoding="utf-8")
    words = "base_model_name_or_path is empty; name the base with --base-model"
    refused(tmp_path, CheckpointError, words, own_adapter, tmp_path / "merged")


# The command


def test_the_command_says_where_the_model_lies_and_how_to_score_it(
    training: MakeTraining, tmp_path: Path
) -> None:
    place, output = trained(training, "fedavg"), tmp_path / "merged"
    shown = CliRunner().invoke(cli.app, ["merge", str(place), "--output", str(output)])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == ""
    assert shown.stderr == (
        f"model: {output}\nit was trained with the template fingpt: "
        f"fedbench score --ckpt {output} --template fingpt\n"
    )

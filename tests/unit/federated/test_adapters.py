"""Variants of LoRA train and are read back as PEFT reads them; quantization needs its extra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from trainings import final, newest, run, same

from fedbench.adapters import adapter
from fedbench.errors import MissingExtraError
from fedbench.federated.checkpoint import read_history, round_directory
from fedbench.federated.server import Training
from fedbench.model import load_base, lora_scaling, remove_lora, set_state
from fedbench.model_config import ModelConfig

MakeTraining = Callable[..., Training]
MLP = "base_model.model.model.layers.0.mlp.up_proj"
IDS = torch.tensor([[5, 6, 7, 8, 9]])
VARIANTS = {
    "lora": {"r": 4, "alpha": 8},
    "rslora": {"r": 4, "alpha": 8, "rslora": True},
    "dora": {"r": 4, "alpha": 8, "dora": True},
}


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_adapter_is_read_by_peft_and_by_us_with_the_same_answers(
    training: MakeTraining, tiny_base_directory: Path, variant: str
) -> None:
    made = training(methods=["fedavg"], model={"lora": VARIANTS[variant]}, federation={"rounds": 2})
    directory = run(made)
    place, weights = round_directory(directory, 2), final(directory)
    assert not any(torch.equal(weights[name], made.initial_state[name]) for name in weights)
    set_state(made.base.module, weights)
    ours = logits(made.base.module)

    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_base_directory)
    theirs = peft.PeftModel.from_pretrained(plain, place).eval()
    assert same(dict(peft.get_peft_model_state_dict(theirs)), weights)
    assert torch.allclose(logits(theirs), ours, atol=1e-5)

    remove_lora(made.base)
    before = {name: weight.clone() for name, weight in made.base.module.state_dict().items()}
    for to_read in (False, True):
        with adapter(made.base, place, to_read=to_read) as scored:
            assert torch.allclose(logits(scored), ours, atol=1e-5)
            # Products are added only where that is exact but for rounding.
            added = to_read and variant != "dora"
            assert _is_merged(scored) == added
        assert same(made.base.module.state_dict(), before)
    assert not torch.allclose(logits(made.base.module), ours, atol=1e-3)


def _is_merged(module: Any) -> bool:
    return any(getattr(layer, "merged_adapters", None) for layer in module.modules())


@pytest.mark.filterwarnings("ignore:(Model has `tie_word|Setting `save_embedding_layers)")
def test_an_adapted_head_that_shares_the_embedding_leaves_the_embedding_alone(
    tiny_base_directory: Path, tmp_path: Path
) -> None:
    def tied() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base_directory)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        return model

    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"])
    theirs = peft.get_peft_model(tied(), settings, autocast_adapter_dtype=False)
    torch.nn.init.normal_(theirs.base_model.model.lm_head.lora_B["default"].weight)
    theirs.save_pretrained(tmp_path / "adapter")
    tied().save_pretrained(tmp_path / "base")
    transformers.AutoTokenizer.from_pretrained(tiny_base_directory).save_pretrained(
        tmp_path / "base"
    )
    base = load_base(str(tmp_path / "base"), ModelConfig(name=str(tmp_path / "base"), device="cpu"))
    with adapter(base, tmp_path / "adapter", to_read=True) as scored:
        assert not _is_merged(scored)
        assert torch.allclose(logits(scored), logits(theirs.eval()), atol=1e-5)


def test_dora_trains_the_magnitudes_and_they_travel(training: MakeTraining) -> None:
    made = training(methods=["fedavg"], model={"lora": VARIANTS["dora"]}, federation={"rounds": 1})
    magnitudes = [n for n in made.initial_state if n.endswith(".lora_magnitude_vector")]
    assert len(magnitudes) == 14  # seven linear modules in each of two layers
    assert len(made.initial_state) == 3 * 14
    trained = final(run(made))
    assert all(not torch.equal(trained[n], made.initial_state[n]) for n in magnitudes)


@pytest.mark.parametrize(("variant", "scaling"), [("lora", 2.0), ("rslora", 4.0)])
def test_rslora_scales_by_the_root_of_the_rank(
    training: MakeTraining, variant: str, scaling: float
) -> None:
    # 8 / 4 and 8 / sqrt(4)
    made = training(model={"lora": VARIANTS[variant]})
    assert set(lora_scaling(made.base.module).values()) == {scaling}
    assert made.setting.scaling == lora_scaling(made.base.module)


def test_the_update_error_of_dora_is_undefined(training: MakeTraining) -> None:
    made = training(methods=["fedavg"], model={"lora": VARIANTS["dora"]}, federation={"rounds": 1})
    directory = run(made)
    assert [record.update_error for record in read_history(directory)] == [None]
    assert newest(directory)[1] == {}


@pytest.mark.parametrize("form", ["8bit", "4bit"])
def test_a_quantized_base_without_its_packages_is_refused_in_words(
    tiny_base_directory: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Using `bitsandbytes` requires bitsandbytes")  # as transformers does

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", absent)
    config = ModelConfig(name=str(tiny_base_directory), device="cpu", quantization=form)
    with pytest.raises(MissingExtraError, match=rf"{form} needs .*pip install 'fedbench\[quanti"):
        load_base(str(tiny_base_directory), config)


@pytest.mark.parametrize(("form", "layer"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_adapters_train_on_a_quantized_base(
    training: MakeTraining, tmp_path: Path, form: str, layer: str
) -> None:
    pytest.importorskip("bitsandbytes")
    job = training(
        directory=tmp_path,
        methods=["fedavg"],
        model={"quantization": form},
        federation={"rounds": 2},
    )
    assert type(job.base.module.get_submodule(MLP).base_layer).__name__ == layer
    directory = run(job)
    assert len(read_history(directory)) == 2
    weights = final(directory)
    assert any(not torch.equal(weights[n], job.initial_state[n]) for n in weights)

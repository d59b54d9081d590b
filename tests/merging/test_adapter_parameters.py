"""Adapters of parameters that are no module's weight, as PEFT saves them; PEFT's own fold is the oracle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from merging.adapter import open_adapter
from merging.lora_space import merge_adapters
from merging.names import model_type_of
from merging.sources import open_model


class Experts(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Parameter(torch.randn(12, 8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = x + x @ getattr(self, name).T @ getattr(self, name)
        return x


class Model(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.experts = Experts(names)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.experts(x))
        return result


def saved(folder: Path, names: tuple[str, ...], listed: tuple[str, ...] | None = None) -> tuple[Path, Path, PeftModel]:
    """(base, adapter, the model in memory)."""
    torch.manual_seed(3)
    model = Model(names)
    base = folder / "base"
    base.mkdir(parents=True)
    save_file(model.state_dict(), base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "nomic_bert", "num_experts": 2}))
    targets = [f"experts.{name}" for name in listed or names]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["out"], target_parameters=targets, lora_dropout=0.0)
    adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter)
    adapted.save_pretrained(str(folder / "adapter"))
    return base, folder / "adapter", adapted


@pytest.mark.parametrize("names", [("w1", "w2"), ("w1",)])
def test_the_fold_is_that_of_peft(names: tuple[str, ...], tmp_path: Path) -> None:
    base, adapter, adapted = saved(tmp_path, names)
    folded = open_adapter(adapter, open_model(base))
    expected = adapted.merge_and_unload().state_dict()
    for name, tensor in expected.items():
        source = folded.tensors[name]
        rows = source.rows(0, tensor.shape[0]).reshape(tensor.shape)
        torch.testing.assert_close(rows.double(), tensor.double(), rtol=0, atol=1e-5)
    assert not torch.equal(expected["experts.w1"], load_file(base / "model.safetensors")["experts.w1"])


def test_parameters_whose_order_nobody_knows_are_refused(tmp_path: Path) -> None:
    base, adapter, _ = saved(tmp_path, ("up", "down"))
    with pytest.raises(
        ValueError, match=re.escape("expected one target parameter of experts, or w1 and w2, got up, down")
    ):
        open_adapter(adapter, open_model(base))
    config = adapter / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "target_parameters": ["experts.w1"]}))
    # One name, but the file holds two wrappers: the other key is a module that the base has not.
    with pytest.raises(ValueError, match="expected keys that match tensors of the base"):
        open_adapter(adapter, open_model(base))
    config.write_text(json.dumps({**fields, "target_parameters": ["w1"]}))
    with pytest.raises(ValueError, match=re.escape("expected factors of w1, which target_parameters of")):
        open_adapter(adapter, open_model(base))


def test_a_merge_of_adapters_refuses_them(tmp_path: Path) -> None:
    base, adapter, _ = saved(tmp_path, ("w1", "w2"))
    with pytest.raises(
        ValueError, match="expected an adapter of modules, got target_parameters experts.w1; leave --adapter"
    ):
        merge_adapters([adapter, adapter], tmp_path / "out", method="linear", base=base)
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_experts_is_named_in_memory_as_in_its_files(tmp_path: Path) -> None:
    base, _, _ = saved(tmp_path, ("w1",))
    assert model_type_of(open_model(base)) is None
    (base / "config.json").write_text(json.dumps({"model_type": "nomic_bert"}))
    assert model_type_of(open_model(base)) == "nomic_bert"

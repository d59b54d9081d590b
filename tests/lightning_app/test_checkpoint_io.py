"""Checkpoints without pickle: what goes in comes out, and a resumed run is the uninterrupted one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from lightning_app.checkpoint_io import SafetensorsIO

plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8)
keys = st.text(max_size=6) | st.integers(0, 99)
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3),
)


@given(value=nested)
def test_plain_values_round_trip(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("io") / "checkpoint"
    SafetensorsIO().save_checkpoint({"value": value, "t": torch.zeros(1)}, path)
    assert SafetensorsIO().load_checkpoint(path)["value"] == value


def test_tensors_round_trip(tmp_path):
    state = {
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}}],
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(-math.inf), "wait": 0, "inf": math.inf}},
        "half": torch.randn(4).bfloat16(),
        "view": torch.arange(12.0).reshape(3, 4).T,
    }
    SafetensorsIO().save_checkpoint(state, tmp_path / "c")
    again = SafetensorsIO().load_checkpoint(tmp_path / "c")
    step = again["optimizer_states"][0]["state"][0]
    assert torch.equal(step["step"], torch.tensor(3.0))
    assert torch.equal(step["exp_avg"], state["optimizer_states"][0]["state"][0]["exp_avg"])
    assert again["callbacks"]["EarlyStopping"]["best_score"] == -math.inf
    assert again["callbacks"]["EarlyStopping"]["inf"] == math.inf
    assert torch.equal(again["half"], state["half"])
    assert torch.equal(again["view"], state["view"])
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["state.json", "state.safetensors"]


def test_what_is_neither_tensor_nor_plain_is_refused_by_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.callbacks\.mine.*got object"):
        SafetensorsIO().save_checkpoint({"callbacks": {"mine": object()}}, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_absent_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        SafetensorsIO().load_checkpoint(tmp_path / "absent")


class Save(Callback):
    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_resumed_after_an_epoch_ends_bit_equal(fit, tmp_path, devices):
    whole = fit(epochs=3, steps=3, dropout=0.2, devices=devices, callbacks=[Save(tmp_path / "c", 0)]).state_dict()
    resumed = fit(epochs=3, steps=3, dropout=0.2, devices=devices, resume=tmp_path / "c").state_dict()
    fresh = fit(epochs=3, steps=3, dropout=0.0, devices=devices).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], fresh[name]) for name in whole), "dropout must have had an effect"


def test_checkpoint_holds_the_trainable_weights_only(fit, tmp_path):
    module = fit(callbacks=[Save(tmp_path / "c", 0)])
    stored = SafetensorsIO().load_checkpoint(tmp_path / "c")["state_dict"]
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert stored.keys() == trainable
    assert all("lora_" in name for name in stored)

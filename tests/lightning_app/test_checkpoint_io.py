"""Checkpoints without pickle: what goes in comes out, and a resumed run is the uninterrupted one."""

import errno
import math
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from lightning_app.checkpoint_io import SafetensorsIO
from storage.disk_space import DiskFull
from storage.tensor_file import write_tensors
from tests.storage.crashing import counted

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


def test_a_tensor_of_one_element_keeps_its_shape(tmp_path):
    SafetensorsIO().save_checkpoint({"a": torch.ones(1), "b": torch.tensor(math.nan)}, tmp_path / "c")
    again = SafetensorsIO().load_checkpoint(tmp_path / "c")
    assert again["a"].shape == (1,)
    assert again["b"].shape == ()
    assert again["b"].isnan()


def sound(step: int) -> dict:
    return {"epoch": 1, "global_step": step, "state_dict": {"w": torch.full((8, 8), float(step))}}


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"state_dict": {"w": torch.tensor([[1.0, math.inf]])}}, "tensor state_dict.w"),
        ({"state_dict": {"w": torch.tensor(math.nan)}}, "tensor state_dict.w"),
        (
            {"optimizer_states": [{"state": {0: {"step": torch.tensor(math.nan)}}}]},
            "tensor optimizer_states.0.state.0.step",
        ),
        ({"optimizer_states": [{"param_groups": [{"lr": math.nan}]}]}, "optimizer_states.0.param_groups.0.lr"),
        (
            {"callbacks": {"StageCheckpoint": {"weights": {"w": torch.tensor([math.nan])}}}},
            "tensor checkpoint.callbacks",
        ),
    ],
)
def test_what_is_not_finite_is_never_written(tmp_path, broken, named):
    SafetensorsIO().save_checkpoint(sound(7), tmp_path / "c")
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        SafetensorsIO().save_checkpoint(sound(8) | broken, tmp_path / "c")
    assert "nothing was written" in str(error.value)
    assert "\n" not in str(error.value)
    assert SafetensorsIO().load_checkpoint(tmp_path / "c")["global_step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_metric_that_is_not_finite_is_kept(tmp_path):
    callbacks = {
        "StageCheckpoint": {"score": -math.inf, "epochs": [{"loss": math.nan}]},
        "best": torch.tensor(-math.inf),
    }
    SafetensorsIO().save_checkpoint(sound(1) | {"callbacks": callbacks}, tmp_path / "c")
    again = SafetensorsIO().load_checkpoint(tmp_path / "c")["callbacks"]
    assert again["StageCheckpoint"]["score"] == -math.inf
    assert math.isnan(again["StageCheckpoint"]["epochs"][0]["loss"])


@pytest.mark.parametrize("had", [True, False])
def test_a_disk_without_room_is_seen_before_a_byte_is_written(tmp_path, monkeypatch, had):
    state = tmp_path / "resume" / "1-broad"
    if had:
        SafetensorsIO().save_checkpoint(sound(7), state)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300))
    with pytest.raises(
        DiskFull, match="1-broad: expected 65792 bytes of room on its disk, got 300 bytes free"
    ) as error:
        SafetensorsIO().save_checkpoint(sound(8), state)
    kept = "the state of epoch 1, step 7 is kept" if had else "no state of this stage was saved before"
    assert str(error.value).endswith(f"{kept}; make room and go on with --resume")
    monkeypatch.undo()
    SafetensorsIO().save_checkpoint(sound(9), state)
    assert SafetensorsIO().load_checkpoint(state)["global_step"] == 9
    assert [path.name for path in state.parent.iterdir()] == ["1-broad"]


def full_at(point, state, step):
    """The error of a save whose call number ``point``, of those that take room, finds none; None if it has fewer."""
    left = point

    def reached(name, _):
        nonlocal left
        if name.partition(",")[0] in ("open", "mkdir", "pwrite", "write", "fsync"):
            left -= 1
            if left == -1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with counted(reached):
        try:
            SafetensorsIO().save_checkpoint(sound(step), state)
        except DiskFull as error:
            return error
    return None


def test_a_disk_that_fills_up_at_any_write(tmp_path, monkeypatch):
    """ENOSPC at each call that takes room: one state or the other, no leftovers, and one line."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    state, kept = tmp_path / "1-broad", []
    while True:
        SafetensorsIO().save_checkpoint(sound(7), state)
        error = full_at(len(kept), state, 8)
        if error is None:
            break
        kept.append(SafetensorsIO().load_checkpoint(state)["global_step"])
        assert f"step {kept[-1]} is kept; make room and go on with --resume" in str(error)
        assert "1-broad" in str(error)
        assert ".building-" not in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["1-broad"]
    assert len(kept) > 8
    # the last call flushes the folder in which the new state has its name by then
    assert kept == [7] * (len(kept) - 1) + [8]
    assert SafetensorsIO().load_checkpoint(state)["global_step"] == 8


def test_a_state_without_one_of_its_tensors_is_refused(tmp_path):
    SafetensorsIO().save_checkpoint(sound(7), tmp_path / "c")
    write_tensors(tmp_path / "c" / "state.safetensors", {"other": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected the tensor checkpoint\.state_dict\.w of state\.json, found none"):
        SafetensorsIO().load_checkpoint(tmp_path / "c")


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

import argparse
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merging.agreement import refuse_disagreement
from merging.lightning_checkpoint import JoinedTensor, open_lightning_checkpoint
from merging.sources import Checkpoint, HeldTensor, TensorSource, open_model
from tests.merging.conftest import MakeModel, perturbed

DENSE = {"linear.weight": torch.full((2, 6), 3.0), "linear.bias": torch.ones(2)}

MakeCheckpoint = Callable[..., Path]


def write(path: Path, state: Mapping[str, Any], **more: Any) -> Path:
    torch.save(
        {"epoch": 1, "state_dict": dict(state), "optimizer_states": [{"state": {0: torch.ones(3)}}], **more}, path
    )
    return path


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def values_of(source: TensorSource) -> Tensor:
    held = source.held()
    assert isinstance(held, HeldTensor)
    return held.tensor


def assert_holds(model: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    assert model.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(values_of(model.tensors[name]), tensor), name


@pytest.mark.parametrize("prefix", ["", "model.", "embedder.0.auto_model.", "model.0.model.", "net.module._orig_mod."])
def test_the_common_prefix_is_removed(
    prefix: str, make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = open_model(make_model("base", tiny))
    changed = perturbed(tiny, 0.1, 1)
    model = open_lightning_checkpoint(write(tmp_path / "a.ckpt", under(prefix, changed)), base)
    assert_holds(model, changed)
    assert list(model.tensors) == list(base.tensors), "in the order of the base's files"
    assert (model.kind, model.path, model.folder) == ("lightning", str(tmp_path / "a.ckpt"), base.folder)
    assert model.base is base
    assert model.notes == ()


def test_what_wrappers_add_inside_names_is_removed(make_model: MakeModel, tmp_path: Path) -> None:
    weights = {"layers.0.w": torch.ones(2), "layers.1.w": torch.zeros(2)}
    names = ["m._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.w", "m._orig_mod.layers.1.w"]
    path = write(tmp_path / "a.ckpt", dict(zip(names, weights.values(), strict=True)))
    assert_holds(open_lightning_checkpoint(path, open_model(make_model("base", weights))), weights)


def test_what_lightning_itself_saves(make_model: MakeModel, tmp_path: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from transformers import BertConfig, BertModel

    class Wrapped(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"learning_rate": 1e-3})
            torch.manual_seed(1)
            sizes = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
            self.encoder = BertModel(BertConfig(**sizes, num_hidden_layers=1))
            self.temperature = nn.Parameter(torch.tensor(0.05))

    module = Wrapped()
    weights = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    module.encoder.save_pretrained(tmp_path / "base")
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    base = open_model(tmp_path / "base")
    model = open_lightning_checkpoint(tmp_path / "a.ckpt", base)
    assert_holds(model, weights)
    assert model.notes == (f"{tmp_path / 'a.ckpt'}: temperature left aside, not part of the embedder",)
    refuse_disagreement(["base", "checkpoint"], [base.tensors, model.tensors])


def test_dense_layers_stand_beside_the_transformer(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = open_model(make_model("base", tiny, dense=DENSE, sub="0_Transformer"))
    state = under("student.0.auto_model.", tiny) | under("student.2.", DENSE)
    state |= {"loss.linear.weight": torch.ones(1), "loss.linear.bias": torch.ones(1), "a.b": torch.ones(1)}
    model = open_lightning_checkpoint(write(tmp_path / "a.ckpt", state | {"z": torch.ones(1)}), base)
    assert_holds(model, under("0_Transformer/", tiny) | under("2_Dense/", DENSE))
    (note,) = model.notes
    assert note.endswith("loss.linear.weight, loss.linear.bias, a.b and 1 more left aside, not part of the embedder")


def test_a_missing_dense_layer_is_missed_by_name(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = open_model(make_model("base", tiny, dense=DENSE))
    model = open_lightning_checkpoint(write(tmp_path / "a.ckpt", under("model.", tiny)), base)
    with pytest.raises(ValueError, match=r"a\.ckpt: .*lacks 2_Dense/linear\.(weight|bias), 2_Dense/linear"):
        refuse_disagreement([base.path, model.path], [base.tensors, model.tensors])


def test_names_of_memory_are_put_together_as_on_disk(tmp_path: Path) -> None:
    from transformers import GteConfig, GteModel

    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    first, second = (GteModel(GteConfig(**sizes, num_hidden_layers=2)) for _ in range(2))
    first.save_pretrained(tmp_path / "base")
    second.save_pretrained(tmp_path / "expected")
    base, expected = open_model(tmp_path / "base"), open_model(tmp_path / "expected")
    state = under("model.0.model.", second.state_dict())
    model = open_lightning_checkpoint(write(tmp_path / "a.ckpt", state), base)
    assert_holds(model, {name: values_of(tensor) for name, tensor in expected.tensors.items()})
    fused = model.tensors["encoder.layer.0.attention.qkv_proj.weight"]
    assert isinstance(fused, JoinedTensor)
    whole = values_of(fused)
    for start in range(25):
        for stop in range(start, 25):
            assert torch.equal(fused.rows(start, stop), whole[start:stop])
    refuse_disagreement(["base", "checkpoint"], [base.tensors, model.tensors])
    stored = {name: values_of(tensor) for name, tensor in expected.tensors.items()}
    again = open_lightning_checkpoint(write(tmp_path / "b.ckpt", under("model.", stored)), base)
    assert_holds(again, stored)


def test_parts_that_do_not_belong_together_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model("base", {"encoder.layer.0.attention.qkv_proj.bias": torch.zeros(6)})
    (base / "config.json").write_text(json.dumps({"model_type": "gte"}))
    state = {f"m.layers.0.self_attn.{side}_proj.bias": torch.ones(2) for side in "qkv"}
    state["m.layers.0.self_attn.v_proj.bias"] = torch.ones(2).half()
    with pytest.raises(ValueError, match=r"a\.ckpt: expected .*q_proj\.bias.* of one width and dtype"):
        open_lightning_checkpoint(write(tmp_path / "a.ckpt", state), open_model(base))


def test_more_tensors_in_the_transformers_place_are_kept_for_comparison(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = open_model(make_model("base", tiny))
    state = under("model.", {**tiny, "pooler.weight": torch.ones(6)}) | {"loss.weight": torch.ones(1)}
    model = open_lightning_checkpoint(write(tmp_path / "a.ckpt", state), base)
    assert set(model.tensors) == {*tiny, "pooler.weight"}
    with pytest.raises(ValueError, match=r"adds pooler\.weight"):
        refuse_disagreement(["base", "checkpoint"], [base.tensors, model.tensors])


def test_two_models_in_one_checkpoint_are_ambiguous(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = open_model(make_model("base", tiny))
    path = write(tmp_path / "a.ckpt", under("student.", tiny) | under("teacher.", tiny))
    with pytest.raises(ValueError, match=r"a\.ckpt: expected one model like the base, got several, under 'student\.'"):
        open_lightning_checkpoint(path, base)


def test_a_checkpoint_of_another_model_is_refused(
    make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path
) -> None:
    base = open_model(make_model("base", tiny))
    for state in ({"model.other": torch.ones(1)}, {}):
        with pytest.raises(ValueError, match=r"a\.ckpt: expected the tensors of .*base under some prefix, got none"):
            open_lightning_checkpoint(write(tmp_path / "a.ckpt", state), base)


def test_the_flag_and_the_base_are_asked_for(make_model: MakeModel, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", tiny)
    with pytest.raises(
        ValueError, match=r"a\.ckpt: .*got a Lightning checkpoint; add --lightning-checkpoints and --bas"
    ):
        open_model(path)
    with pytest.raises(ValueError, match=r"a\.ckpt: expected a base beside.*add --base"):
        open_lightning_checkpoint(path, None)
    base = open_model(make_model("base", tiny))
    with pytest.raises(ValueError, match=r"b\.ckpt: expected a Lightning checkpoint, got nothing there"):
        open_lightning_checkpoint(tmp_path / "b.ckpt", base)
    (tmp_path / "c.ckpt").mkdir()
    with pytest.raises(ValueError, match=r"c\.ckpt: expected one file, got a folder .*consolidate_checkpoint"):
        open_lightning_checkpoint(tmp_path / "c.ckpt", base)


@pytest.mark.parametrize("name", ["m.w.lora_A.default.weight", "m.w.base_layer.weight", "base_layer.weight"])
def test_adapters_inside_are_refused(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    base = open_model(make_model("base", {"w": torch.ones(2)}))
    with pytest.raises(ValueError, match=rf"a\.ckpt: tensor {name}: .*LoRA adapter; save the adapter"):
        open_lightning_checkpoint(write(tmp_path / "a.ckpt", {name: torch.ones(1), "m.w": torch.ones(2)}), base)


def test_what_is_no_plain_tensor_is_refused_or_ignored(make_model: MakeModel, tmp_path: Path) -> None:
    base = open_model(make_model("base", {"w": torch.ones(2, 2)}))
    with pytest.raises(ValueError, match=r"a\.ckpt: tensor w: expected plain dense values, got torch\.sparse_coo"):
        open_lightning_checkpoint(write(tmp_path / "a.ckpt", {"w": torch.ones(2, 2).to_sparse()}), base)
    state = {"m.w": torch.ones(2, 2), "m._extra_state": {"scale": 3}}
    assert_holds(open_lightning_checkpoint(write(tmp_path / "b.ckpt", state), base), {"w": torch.ones(2, 2)})


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in files.items():
            packed.writestr(f"archive/{name.replace('_', '.')}", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint at all" * 9,
        pickle.dumps({"state_dict": {}}),
        archive(data_pkl=b"junk", version=b"3"),
        archive(data_pkl=pickle.dumps({"state_dict": print}, protocol=2), version=b"3"),
    ],
)
def test_a_file_that_would_run_code_or_is_damaged_is_refused(
    content: bytes, make_model: MakeModel, tmp_path: Path
) -> None:
    base = open_model(make_model("base", {"w": torch.ones(2)}))
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*a\.ckpt: expected a checkpoint that opens with weights_only[^\n]*$"):
        open_lightning_checkpoint(tmp_path / "a.ckpt", base)


def test_the_reason_of_a_refusal_is_told(make_model: MakeModel, tmp_path: Path) -> None:
    base = open_model(make_model("base", {"w": torch.ones(2)}))
    path = write(tmp_path / "a.ckpt", {"w": torch.ones(2)}, hyper_parameters=argparse.Namespace(learning_rate=1))
    with pytest.raises(
        ValueError, match=r"\(Unsupported global: GLOBAL argparse\.Namespace was not.*\); save \{'state"
    ):
        open_lightning_checkpoint(path, base)


def test_damaged_bytes_never_raise_anything_else(make_model: MakeModel, tmp_path: Path) -> None:
    base = open_model(make_model("base", {"w": torch.ones(2)}))
    good = write(tmp_path / "a.ckpt", {"w": torch.ones(2)}).read_bytes()
    generator, refused = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[generator.randrange(len(good))] = generator.randrange(256)
        (tmp_path / "b.ckpt").write_bytes(damaged[: generator.choice([len(good), len(good) // 2])])
        try:
            open_lightning_checkpoint(tmp_path / "b.ckpt", base)
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("content", [{"w": torch.ones(2)}, {"state_dict": 3}, {"state_dict": {3: 4}}, [1]])
def test_a_file_without_a_state_dict_is_refused(content: object, make_model: MakeModel, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: expected a Lightning checkpoint with 'state_dict'"):
        open_lightning_checkpoint(tmp_path / "a.ckpt", open_model(make_model("base", {"w": torch.ones(2)})))

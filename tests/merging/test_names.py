import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.names import LAYOUTS, RowView, memory_views, model_type_of
from merging.sources import Checkpoint, HeldTensor, StoredTensor, open_model
from storage.tensor_file import read_tensors, write_tensors
from tests.merging.conftest import MakeModel

TINY = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(kind: str, folder: Path) -> dict[str, Tensor]:
    """Write a tiny model by transformers' own class and return what it holds in memory."""
    from transformers import GteConfig, GteModel, NomicBertConfig, NomicBertModel

    torch.manual_seed(0)
    model = GteModel(GteConfig(**TINY)) if kind == "gte" else NomicBertModel(NomicBertConfig(**TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # biases too: equal tensors would hide a mistake
    model.save_pretrained(str(folder))
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def rows_of(model: Checkpoint, view: RowView) -> Tensor:
    source = model.tensors[view.name]
    assert isinstance(source, StoredTensor)
    return source.held().tensor[view.start : view.stop]


@pytest.mark.parametrize("kind", ["gte", "nomic_bert"])
def test_every_tensor_in_memory_is_found_in_the_files(kind: str, tmp_path: Path) -> None:
    memory = save(kind, tmp_path)
    model = open_model(tmp_path)
    assert set(model.tensors) != set(memory), "transformers no longer renames: the table has no purpose"
    views = memory_views(model, model_type_of(model))
    assert views.keys() == memory.keys()
    for name, tensor in memory.items():
        assert torch.equal(rows_of(model, views[name]), tensor), name
    assert sum(stop - start for _, start, stop in views.values()) == sum(
        tensor.shape[0] for tensor in model.tensors.values()
    )


@pytest.mark.parametrize("kind", ["gte", "nomic_bert"])
def test_a_change_of_rows_on_disk_changes_one_tensor_in_memory(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    memory = save(kind, tmp_path)
    model = open_model(tmp_path)
    stored = read_tensors(tmp_path / "model.safetensors")
    changed = [name for name in memory if ".1.self_attn.k_proj" in name or ".0.mlp.gate_proj" in name]
    views = memory_views(model, kind)
    for name in changed:
        stored[views[name].name][views[name].start : views[name].stop] += 1
    write_tensors(tmp_path / "model.safetensors", stored, {"format": "pt"})
    again = AutoModel.from_pretrained(tmp_path).state_dict()
    assert changed
    for name, tensor in memory.items():
        assert torch.allclose(again[name], tensor + (name in changed)), name


def test_the_prefix_of_the_original_repositories_is_dropped(tmp_path: Path) -> None:
    from transformers import GteModel

    memory = save("gte", tmp_path)
    stored = read_tensors(tmp_path / "model.safetensors")
    headed = {f"new.{name}": tensor for name, tensor in stored.items()} | {"classifier.weight": torch.ones(1, 8)}
    write_tensors(tmp_path / "model.safetensors", headed, {"format": "pt"})
    loaded = GteModel.from_pretrained(tmp_path).state_dict()
    model = open_model(tmp_path)
    views = memory_views(model, "new")
    assert views.keys() == {*memory, "classifier.weight"}
    assert all(torch.equal(rows_of(model, views[name]), loaded[name]) for name in memory)


def test_other_models_are_stored_as_they_are(make_model: MakeModel, tiny: dict[str, Tensor]) -> None:
    model = open_model(make_model("a", tiny, dense={"linear.weight": torch.ones(2, 6)}))
    assert model_type_of(model) == "made-up"
    for kind in ("made-up", None):
        views = memory_views(model, kind)
        assert views.keys() == tiny.keys(), "a Dense layer is no part of the transformer"
        assert views["layers.0.proj.weight"] == ("layers.0.proj.weight", 0, 6)
        assert views["scale"] == ("scale", 0, 1)


def test_names_of_files_in_a_folder_of_their_own(make_model: MakeModel) -> None:
    model = open_model(make_model("a", {"encoder.layer.3.attention.qkv_proj.bias": torch.zeros(6)}, sub="0_T"))
    stored = "0_T/encoder.layer.3.attention.qkv_proj.bias"
    assert memory_views(model, "gte") == {
        f"layers.3.self_attn.{side}_proj.bias": (stored, 2 * i, 2 * i + 2) for i, side in enumerate("qkv")
    }
    (model.folder / "0_T" / "config.json").write_text(json.dumps({"model_type": "gte"}))
    assert model_type_of(model) == "gte"
    (model.folder / "0_T" / "config.json").unlink()
    assert model_type_of(model) is None


def in_memory(tensors: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint("a", "transformers", Path("a"), {n: HeldTensor(t, "a/f") for n, t in tensors.items()})


def test_a_fused_tensor_that_cannot_be_divided_is_refused() -> None:
    model = in_memory({"encoder.layers.0.attn.Wqkv.weight": torch.zeros(7, 2)})
    with pytest.raises(ValueError, match=r"a/f: tensor encoder.*Wqkv.*expected rows for 3 equal parts.*got 7"):
        memory_views(model, "nomic_bert")


def test_two_tensors_for_one_name_are_refused() -> None:
    model = in_memory({"emb_ln.weight": torch.zeros(2), "embeddings.LayerNorm.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"expected one tensor for embeddings\.LayerNorm\.weight, got emb_ln\.weight"):
        memory_views(model, "nomic_bert")


@given(st.lists(st.sampled_from("ab."), max_size=12).map("".join))
def test_a_name_is_changed_at_whole_parts_only(name: str) -> None:
    for layout in LAYOUTS.values():
        assert layout.names_in_memory(name) == (name,)
        assert layout.names_in_memory(f"x{name}fc2x") == (f"x{name}fc2x",)
    assert LAYOUTS["nomic_bert"].names_in_memory("h.0.fc2.w") == ("h.0.down_proj.w",)

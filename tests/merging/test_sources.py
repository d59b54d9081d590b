import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.sources import HeldTensor, StoredTensor, open_model
from storage.tensor_file import Entry, read_header, write_tensors
from tests.merging.conftest import MakeModel

ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


def values_of(source: object) -> Tensor:
    assert isinstance(source, StoredTensor)
    return source.held().tensor


def test_a_plain_transformers_folder(make_model: MakeModel, tiny: dict[str, Tensor]) -> None:
    model = open_model(make_model("a", tiny))
    assert model.kind == "transformers"
    assert model.tensors.keys() == tiny.keys()
    for name, tensor in tiny.items():
        assert model.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(values_of(model.tensors[name]), tensor)


def test_a_sentence_transformers_folder_with_dense_weights(make_model: MakeModel, tiny: dict[str, Tensor]) -> None:
    dense = {"linear.weight": torch.ones(2, 6)}
    model = open_model(make_model("a", tiny, dense=dense))
    assert model.kind == "sentence-transformers"
    assert model.transformer == ""
    assert set(model.tensors) == {*tiny, "2_Dense/linear.weight"}
    assert torch.equal(values_of(model.tensors["2_Dense/linear.weight"]), torch.ones(2, 6))


def test_the_transformer_may_stand_in_a_folder_of_its_own(make_model: MakeModel, tiny: dict[str, Tensor]) -> None:
    model = open_model(make_model("a", tiny, sub="0_Transformer"))
    assert model.transformer == "0_Transformer/"
    assert set(model.tensors) == {f"0_Transformer/{name}" for name in tiny}


def test_a_sharded_folder_is_the_same_model(make_sharded: MakeModel, tiny: dict[str, Tensor]) -> None:
    items = list(tiny.items())
    model = open_model(make_sharded("a", [dict(items[:3]), dict(items[3:])]))
    assert all(torch.equal(values_of(model.tensors[name]), tensor) for name, tensor in tiny.items())


def test_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    tensor = torch.randn(5, 2, 3).to(torch.bfloat16)
    write_tensors(tmp_path / "a.safetensors", {"before": torch.zeros(3), "w": tensor})
    stored = StoredTensor(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors").entries["w"])
    assert torch.equal(stored.rows(1, 4), tensor[1:4].reshape(3, 6))
    assert stored.rows(2, 2).shape == (0, 6)
    assert torch.equal(HeldTensor(tensor, "x").rows(1, 4), stored.rows(1, 4))


def test_a_file_that_shrinks_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(10))
    stored = StoredTensor(tmp_path / "a.safetensors", Entry("w", "F32", (4,), begin=4, end=20))
    with pytest.raises(ValueError, match=r"a\.safetensors: tensor w: expected 16 bytes, got fewer"):
        stored.rows(0, 4)


def test_what_is_no_model_folder_is_refused(tmp_path: Path, make_model: MakeModel, tiny: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"absent: expected a model folder, got nothing there"):
        open_model(tmp_path / "absent")
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.ckpt: expected a model folder, .*add --lightning-checkpoints"):
        open_model(tmp_path / "a.ckpt")
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pt: expected a model folder, got a file"):
        open_model(tmp_path / "a.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"modules\.json, config\.json or adapter_config\.json"):
        open_model(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"expected model\.safetensors or model\.safetensors\.index\.json, got neither"
    ):
        open_model(tmp_path / "empty")


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: .*pickle.*save_pretrained"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "entry", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "model.bin"]
)
def test_an_index_entry_that_leaves_the_folder_is_refused(make_sharded: MakeModel, entry: str) -> None:
    folder = make_sharded("a", [{"w": torch.zeros(1)}], weight_map={"w": entry})
    with pytest.raises(ValueError, match=r"index\.json: expected names of safetensors files beside it"):
        open_model(folder)


def test_an_index_that_contradicts_its_shards_is_refused(make_sharded: MakeModel) -> None:
    shard = "model-00001-of-00001.safetensors"
    folder = make_sharded("more", [{"w": torch.zeros(1)}], weight_map={"w": shard, "v": shard})
    with pytest.raises(ValueError, match=r"tensor v .* got it in the index only"):
        open_model(folder)
    folder = make_sharded("less", [{"w": torch.zeros(1), "v": torch.zeros(1)}], weight_map={"w": shard})
    with pytest.raises(ValueError, match=r"tensor v .* got it in the shard only"):
        open_model(folder)
    folder = make_sharded("none", [{"w": torch.zeros(1)}], weight_map={})
    with pytest.raises(ValueError, match="weight_map"):
        open_model(folder)
    folder = make_sharded("gone", [{"w": torch.zeros(1)}], weight_map={"w": "other.safetensors"})
    with pytest.raises(ValueError, match=r"other\.safetensors: .*no such file"):
        open_model(folder)


def test_a_single_file_beside_an_index_is_ambiguous(make_sharded: MakeModel) -> None:
    folder = make_sharded("a", [{"w": torch.zeros(1)}])
    write_tensors(folder / "model.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="got both"):
        open_model(folder)


@pytest.mark.parametrize("path", ["../other", "/etc", None, 3])
def test_modules_outside_the_folder_are_refused(tmp_path: Path, path: object) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path}]))
    with pytest.raises(ValueError, match=r"modules\.json: expected paths inside the folder"):
        open_model(tmp_path)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:5]])
def test_a_truncated_or_padded_shard_is_refused(
    make_model: MakeModel, make_sharded: MakeModel, change: Callable[[bytes], bytes]
) -> None:
    whole = make_model("whole", {"w": torch.zeros(8)}) / "model.safetensors"
    shard = make_sharded("shards", [{"v": torch.zeros(2)}, {"w": torch.zeros(8)}]) / "model-00002-of-00002.safetensors"
    for file in (whole, shard):
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(ValueError, match=rf"{file.name}: .*truncated"):
            open_model(file.parent)


def test_a_header_above_the_cap_is_refused(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_model("a", {"w": torch.zeros(8)}) / "model.safetensors"
    with file.open("wb") as sparse:
        sparse.write((100_000_001).to_bytes(8, "little"))
        sparse.truncate(100_000_100)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: expected a header of at most 100000000 bytes, got 10000"
    ):
        open_model(file.parent)


def test_repeated_keys_are_refused_wherever_they_stand(make_model: MakeModel, make_sharded: MakeModel) -> None:
    twice = '{"w": "x.safetensors", "w": "x.safetensors"}'
    index = make_sharded("a", [{"w": torch.zeros(1)}]) / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {twice}}}')
    modules = make_model("b", {"w": torch.zeros(1)}, dense={}) / "modules.json"
    modules.write_text('[{"path": "", "path": "2_Dense"}]')
    header = f'{{"w": {ENTRY}, "w": {ENTRY}}}'.encode()
    weights = make_model("c", {"w": torch.zeros(1)}) / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for file, key in ((index, "w"), (modules, "path"), (weights, "w")):
        with pytest.raises(ValueError, match=rf"{file.name}, lines? 1: expected each key once, got '{key}' twice"):
            open_model(file.parent)


def test_names_that_would_be_taken_for_a_modules_folder_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"expected tensor names without a slash, got 2_Dense/w"):
        open_model(make_model("a", {"2_Dense/w": torch.zeros(1)}))

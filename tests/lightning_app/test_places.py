"""Names on disk -> weights in memory, against the library's own loading of a folder with other weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_app.places import find_places, load_tensors
from merging.sources import open_model
from models.embedder import encode, load_embedder
from storage.tensor_file import read_tensors, write_tensors

TEXTS = ["1, 2, 3, 4", "2, 4, 8, 16", "1, 1, 2, 3, 5"]


def with_dense(folder: Path) -> None:
    """Give the model a Dense layer, as some embedders have."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(0)
    embedder = load_embedder(folder)
    width = embedder.get_embedding_dimension()
    dense = SentenceTransformer(modules=[embedder[0], embedder[1], Dense(width, 8)], device="cpu")
    shutil.rmtree(folder)
    dense.save_pretrained(str(folder), create_model_card=False)


def with_a_head(folder: Path) -> None:
    """Store the transformer as a causal model does: under ``model.``, with a head that the embedder does not read."""
    tensors = read_tensors(folder / "model.safetensors")
    head = {"lm_head.weight": torch.zeros(5, 32)}
    renamed = {f"model.{name}": tensor for name, tensor in tensors.items()} | head
    write_tensors(folder / "model.safetensors", renamed, {"format": "pt"})


def as_gte(folder: Path) -> None:
    """A GTE encoder with the tokenizer of the tiny model; its projections are fused on disk."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, GteConfig, GteModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    model = GteModel(
        GteConfig(
            vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases too: equal tensors would hide a mistake
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    transformer = Transformer(str(folder))
    embedder = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu")
    embedder.save_pretrained(str(folder), create_model_card=False)


@pytest.mark.parametrize("change", [None, with_dense, with_a_head, as_gte])
def test_tensors_in_place_embed_like_the_folder_that_holds_them(tiny_folder, tmp_path, change):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    if change is not None:
        change(base)
    embedder, checkpoint = load_embedder(base), open_model(base)
    places = find_places(embedder, checkpoint)
    assert places.unread == ({"lm_head.weight"} if change is with_a_head else set())
    other = shutil.copytree(base, tmp_path / "other")
    generator, tensors = torch.Generator().manual_seed(1), {}
    for file in sorted(other.rglob("*.safetensors")):
        changed = {
            name: tensor * (1 + 0.5 * torch.randn(tensor.shape, generator=generator))
            for name, tensor in read_tensors(file).items()
        }
        write_tensors(file, changed, {"format": "pt"})
        prefix = file.parent.relative_to(other).as_posix()
        tensors |= {name if prefix == "." else f"{prefix}/{name}": tensor for name, tensor in changed.items()}
    before, expected = encode(embedder, TEXTS), encode(load_embedder(other), TEXTS)
    assert not torch.allclose(before, expected)
    load_tensors(places, tensors)
    assert torch.equal(encode(embedder, TEXTS), expected)


def test_a_model_whose_weights_are_not_those_of_its_file_is_refused(tiny_folder):
    embedder = load_embedder(tiny_folder)
    with torch.no_grad():
        embedder[0].model.norm.weight += 1
    with pytest.raises(ValueError, match=r"expected the weight 0\.model\.norm\.weight .* got other values in norm"):
        find_places(embedder, open_model(tiny_folder))


def test_a_weight_that_is_not_in_the_files_is_refused(tiny_folder, tmp_path):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    embedder = load_embedder(base)
    tensors = read_tensors(base / "model.safetensors")
    tensors["nrm.weight"] = tensors.pop("norm.weight")
    write_tensors(base / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(ValueError, match=r"the weight 0\.model\.norm\.weight .* got no such tensor"):
        find_places(embedder, open_model(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), r"tensor norm\.weight: expected it as in the base, got none"),
        (lambda t: t.update(extra=t["norm.weight"]), r"tensor extra: expected no such tensor as in the base, got one"),
        (
            lambda t: t.update({"norm.weight": torch.ones(7)}),
            r"tensor norm\.weight: expected shape \[32\] as in the base, got \[7\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(tiny_folder, change, message):
    embedder = load_embedder(tiny_folder)
    places = find_places(embedder, open_model(tiny_folder))
    before = encode(embedder, TEXTS)
    tensors = {name: tensor + 1 for name, tensor in read_tensors(tiny_folder / "model.safetensors").items()}
    change(tensors)
    with pytest.raises(ValueError, match=message):
        load_tensors(places, tensors)
    assert torch.equal(encode(embedder, TEXTS), before)


def test_stored_positions_are_not_read(tiny_folder, tmp_path):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    tensors = read_tensors(base / "model.safetensors") | {"embeddings.position_ids": torch.arange(8)}
    write_tensors(base / "model.safetensors", tensors, {"format": "pt"})
    assert json.loads((base / "modules.json").read_text())
    places = find_places(load_embedder(base), open_model(base))
    assert places.unread == {"embeddings.position_ids"}
    load_tensors(places, tensors)

"""Packed texts against the same texts padded, and which models can be packed."""

import pytest
import torch

from models.backbones import BACKBONES
from models.embedder import load_embedder
from models.lora import add_lora
from models.packing import embed_packed, packed_rows, packed_share, packs
from models.token_rows import TokenRows
from tests.models.hub_folders import NAMES, write_hub_folder

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32, 64", "7", "3, 9, 27, 81"]


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_embedded_alike_is_packed(name, tmp_path):
    write_hub_folder(tmp_path, name)
    embedder = load_embedder(name, cache=tmp_path, offline=True)
    rows = TokenRows(embedder)
    found = packs(embedder, [rows.row(text) for text in TEXTS])
    # Gemma3 reads both ways through the mask of its causal kind, which knows of packing
    assert found == (BACKBONES[name].attention == "causal" or name == "embeddinggemma")


def test_gradients_are_those_of_padded_texts(tiny_folder):
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=4, targets=["q_proj", "down_proj"])
    weights = [each for each in embedder.parameters() if each.requires_grad]
    with torch.no_grad():
        for place, weight in enumerate(weights):
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(place)))
    rows = TokenRows(embedder)
    read = [rows.row(text) for text in TEXTS]
    wanted = torch.randn(len(TEXTS), embedder.get_embedding_dimension(), generator=torch.Generator().manual_seed(9))
    padded = embedder(rows.padded(read))["sentence_embedding"]
    packed = embed_packed(embedder, packed_rows(read))
    torch.testing.assert_close(packed, padded, atol=1e-6, rtol=0)
    one, two = (torch.autograd.grad((each * wanted).sum(), weights) for each in (padded, packed))
    assert max(float(each.abs().max()) for each in one) > 1e-3
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


def test_nothing_is_padded(tiny_folder):
    rows = TokenRows(load_embedder(tiny_folder))
    read = [rows.row(text) for text in TEXTS]
    part = packed_rows(read)
    assert part["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in read))
    assert part["input_ids"][0, part["packed_places"][1][part["packed_mask"][1].bool()]].equal(read[1]["input_ids"])
    assert "attention_mask" not in part


def test_a_share_of_a_part_is_what_packing_its_texts_gives(tiny_folder):
    rows = TokenRows(load_embedder(tiny_folder))
    read = [rows.row(text) for text in TEXTS]
    shared, alone = packed_share(packed_rows(read), 1, 3), packed_rows(read[1:3])
    assert shared.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(shared[key], value) if isinstance(value, torch.Tensor) else shared[key] == value

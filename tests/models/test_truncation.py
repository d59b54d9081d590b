from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from models.embedder import encode, load_embedder
from models.truncation import truncate
from tests.models.hub_folders import write_hub_folder

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32"]


@pytest.mark.parametrize("name", ["embeddinggemma", "gte-large"])
def test_the_first_components_of_unit_length_where_the_whole_has_it(name: str, tmp_path: Path) -> None:
    write_hub_folder(tmp_path, name)
    whole = encode(load_embedder(name, cache=tmp_path, offline=True), TEXTS)[:, :6]
    embedder = load_embedder(name, cache=tmp_path, offline=True, truncate_dim=6)
    expected = whole if name == "gte-large" else whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encode(embedder, TEXTS), expected)
    torch.testing.assert_close(embedder.encode(TEXTS, convert_to_tensor=True), expected)
    assert embedder.get_embedding_dimension() == 6


def test_all_components_are_the_whole(tiny_folder: Path) -> None:
    assert torch.equal(
        encode(load_embedder(tiny_folder, truncate_dim=16), TEXTS), encode(load_embedder(tiny_folder), TEXTS)
    )


@pytest.mark.parametrize("dimension", [0, -1, 17])
def test_other_lengths_are_refused(dimension: int, tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=f"--truncate-dim: expected 1 to 16 components .*, got {dimension};"):
        load_embedder(tiny_folder, truncate_dim=dimension)


def test_a_dense_module_behind_normalize_reads_the_whole() -> None:
    embedder = load_embedder("tiny-encoder")
    torch.manual_seed(0)
    longer = SentenceTransformer(modules=[*embedder, Normalize(), Dense(128, 32, bias=False)], device="cpu").eval()
    whole = encode(longer, TEXTS)
    truncate(longer, 8, source="a model")
    torch.testing.assert_close(encode(longer, TEXTS), whole[:, :8])

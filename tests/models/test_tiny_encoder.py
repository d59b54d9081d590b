from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from models.export import save_embedder
from models.losses import supervised_contrastive_loss
from models.preflight import preflight
from models.tiny_encoder import build_tiny_encoder

SMALL = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 24, "max_tokens": 64}


def test_the_default_size_is_about_a_million_parameters() -> None:
    assert sum(each.numel() for each in build_tiny_encoder().parameters()) == 853_888


def test_it_is_bidirectional_at_any_distance() -> None:
    embedder = build_tiny_encoder(hidden_size=16, layers=1, heads=2, intermediate_size=24)
    text = ", ".join(["1"] * 300)
    ids = torch.tensor([embedder.tokenizer(text)["input_ids"]])
    changed = ids.clone()
    changed[0, -1] = embedder.tokenizer.convert_tokens_to_ids("9")
    with torch.no_grad():
        before, after = (embedder[0].model(input_ids=each).last_hidden_state for each in (ids, changed))
    assert not torch.equal(before[0, 0], after[0, 0])


def test_padding_does_not_change_an_embedding() -> None:
    embedder = build_tiny_encoder(**SMALL)
    alone = embedder.encode(["1, 2"])
    together = embedder.encode(["1, 2", "3, 4, 5, 6, 7, 8"])
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)


def test_weights_are_a_function_of_the_seed() -> None:
    first, same, other = (build_tiny_encoder(**SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_weight_is_reached_by_the_loss(texts: list[str], labels: torch.Tensor) -> None:
    found = preflight(build_tiny_encoder(**SMALL), texts, labels, supervised_contrastive_loss)
    assert found.unused == ()
    assert found.adapted == ()
    assert found.trainable == found.total > 0


def test_a_saved_folder_loads_with_plain_sentence_transformers(tmp_path: Path) -> None:
    embedder = build_tiny_encoder(**SMALL)
    again = SentenceTransformer(str(save_embedder(embedder, tmp_path / "model")), device="cpu", local_files_only=True)
    np.testing.assert_array_equal(again.encode(["1, 2, 3"]), embedder.encode(["1, 2, 3"]))


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size: expected a multiple of heads = 3, got 16"):
        build_tiny_encoder(hidden_size=16, heads=3)

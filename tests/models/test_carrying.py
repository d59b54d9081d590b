"""Whether plain PEFT carries an adapter, against what plain transformers gives for the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from models.carrying import adapter_obstacle
from models.embedder import load_embedder
from tests.models.hub_folders import NAMES, write_hub_folder

REASONS = {
    "gritlm": "the causal mask is removed in memory",
    "nemotron-8b": "no model type 'llama_bidirec'",
    "gte-multilingual": "no model type 'new'",
    "gte-large": "no model type 'new'",
    "nomic-moe": "no class for a NomicBert with a mixture of experts",
}
ADDED_MASK = ("qwen3-0.6b", "e5-mistral", "bge-gemma2")


def states_differ(folder: Path, **settings: object) -> bool:
    """Between plain transformers and the loader, of one text."""
    embedder = load_embedder(folder, **settings)
    features = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    plain = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        ours, theirs = (model(**features).last_hidden_state for model in (embedder[0].model, plain))
    return not torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_plain_transformers_cannot_give_has_a_reason(name: str, tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, name)
    reason = adapter_obstacle(folder)
    assert (reason is not None) == (name in REASONS)
    if reason is None:
        assert not states_differ(folder)
    else:
        assert REASONS[name] in reason
        assert not reason.endswith(".")
        if name == "gritlm":
            assert states_differ(folder)


@pytest.mark.parametrize("name", ADDED_MASK)
def test_a_mask_that_is_removed_on_demand_is_not_carried(name: str, tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, name)
    assert states_differ(folder, bidirectional=True)
    assert "causal mask" in str(adapter_obstacle(folder, bidirectional=True))


def test_a_mask_that_the_folder_itself_removes_is_carried(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "gte-qwen2-7b")
    assert not states_differ(folder, bidirectional=True)
    assert adapter_obstacle(folder, bidirectional=True) is None

"""The shapes give the numbers of parameters that mteb 2.26's registry has of the same models (``ModelMeta.n_parameters``)."""

from __future__ import annotations

import pytest

from models.backbones import BACKBONES
from models.shapes import SHAPES, shape_folder
from models.sizes import model_sizes

COUNTED = {
    "embeddinggemma": 307_581_696,
    "gte-multilingual": 305_368_320,
    "nomic-moe": 475_292_928,
    "qwen3-0.6b": 595_776_512,
    "qwen3-4b": 4_021_774_336,
    "qwen3-8b": 7_567_295_488,
    "gte-qwen2-1.5b": 1_543_268_864,
    "gte-qwen2-7b": 7_069_121_024,
    "nemotron-8b": 7_504_924_672,
}
ROUNDED = {"me5-large": 560_000_000, "e5-mistral": 7_111_000_000, "bge-gemma2": 9_240_000_000}
# The registry counts GritLM's output layer, which no embedding reads.
HEAD = {"gritlm": 7_240_000_000 - 4096 * 32000}


def counted(name: str) -> int:
    row = BACKBONES[name]
    with shape_folder(row) as folder:
        return model_sizes(folder, row=row, targets=row.lora_targets[:1]).parameters


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_the_registrys(name: str) -> None:
    assert counted(name) == COUNTED[name]


@pytest.mark.parametrize("name", [*ROUNDED, *HEAD])
def test_parameters_are_the_registrys_as_far_as_it_tells(name: str) -> None:
    assert counted(name) == pytest.approx((ROUNDED | HEAD)[name], rel=5e-4)


def test_every_model_of_the_hub_has_a_shape_as_wide_as_its_embeddings() -> None:
    hub = {name: row for name, row in BACKBONES.items() if row.repo_id is not None}
    assert SHAPES.keys() == hub.keys()
    for name, row in hub.items():
        assert SHAPES[name].get("hidden_size", SHAPES[name].get("n_embd")) == row.dimension


def test_a_row_without_a_shape_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="backbone tiny-llm: expected a model whose shape is written down"),
        shape_folder(BACKBONES["tiny-llm"]),
    ):
        pass

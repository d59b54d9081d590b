"""The hub's configuration of Nomic's mixture of experts: its names, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from models.nomic_config import read_nomic_config
from tests.models.nomic_oracle import write_folder


def test_configuration_has_the_names_of_every_transformers_model(tmp_path: Path) -> None:
    config = read_nomic_config(write_folder(tmp_path) / "config.json")
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == (16, 4, 2, 24)
    assert (config.num_experts, config.moe_top_k, config.max_position_embeddings) == (8, 2, 128)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("moe_normalize_expert_weights", True, "expected moe_normalize_expert_weights False"),
        ("expert_choice_router", True, "expected expert_choice_router False"),
        ("num_shared_experts", 1, "expected num_shared_experts 0"),
        ("rotary_emb_fraction", 0.5, "expected rotary_emb_fraction 1.0"),
        ("activation_function", "swiglu", "expected activation_function 'gelu'"),
        ("num_experts", ..., "expected num_experts, found none"),
        ("moe_top_k", 9, "expected moe_top_k from 1 to num_experts = 8, got 9"),
        ("moe_every_n_layers", 1, "expected moe_every_n_layers of at least 2, got 1"),
        ("n_head", 3, "expected n_embd in n_head heads of even size, got 16 in 3"),
        ("model_type", "bert", "expected model_type nomic_bert, got 'bert'"),
    ],
)
def test_other_settings_are_refused_by_name(setting: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_nomic_config(write_folder(tmp_path, **{setting: value}) / "config.json")
    assert "config.json" in str(error.value)

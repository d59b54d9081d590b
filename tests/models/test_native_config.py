from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GteConfig

from models.embedder import load_embedder
from models.native_config import native_folder, native_gte, native_llama
from tests.models.hub_folders import edit_json, write_hub_folder


def test_a_native_folder_is_itself(tiny_folder: Path) -> None:
    with native_folder(tiny_folder) as folder:
        assert folder == tiny_folder


@pytest.mark.parametrize(("name", "native"), [("gte-large", "gte"), ("nemotron-8b", "llama")])
def test_a_foreign_folder_loads_by_its_path_and_is_never_written(name: str, native: str, tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, name)
    before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with native_folder(folder) as view:
        assert not (view / "modeling.py").exists()
    assert not view.exists()
    model = load_embedder(folder)[0].model
    assert model.config.model_type == native
    assert model.config._name_or_path == str(folder)
    assert not (tmp_path / "ran").exists()
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(("theta", "factor", "heads"), [(20000, 8.0, 12), (160000, 2.0, 16)])
def test_ntk_scaling_gives_the_frequencies_of_gtes_own_code(theta: int, factor: float, heads: int) -> None:
    """GTE's NTKScalingRotaryEmbedding: the base times f, every frequency over f**(2 / width)."""
    settings = {"hidden_size": heads * 64, "num_attention_heads": heads, "rope_theta": theta}
    rope = native_gte({**settings, "rope_scaling": {"type": "ntk", "factor": factor}})["rope_parameters"]
    rotary = _rotary(GteConfig(hidden_size=heads * 64, num_attention_heads=heads, rope_parameters=rope))
    expected = [1 / (theta * factor) ** (2 * i / 64) / factor ** (2 / 64) for i in range(32)]
    torch.testing.assert_close(rotary, torch.tensor(expected), rtol=1e-6, atol=0)
    plain = native_gte(settings)["rope_parameters"]
    assert plain == {"rope_type": "default", "rope_theta": float(theta)}


def _rotary(config: GteConfig) -> torch.Tensor:
    from transformers.models.gte.modeling_gte import GteRotaryEmbedding

    frequencies: torch.Tensor = GteRotaryEmbedding(config).inv_freq
    return frequencies


@pytest.mark.parametrize(
    "setting",
    [
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"logn_attention_scale": True},
        {"pack_qkv": False},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
    ],
)
def test_what_the_native_gte_cannot_do_is_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "gte-large")
    edit_json(folder / "config.json", **setting)
    with pytest.raises(ValueError, match=rf"config\.json: expected {next(iter(setting))} ") as caught:
        load_embedder("gte-large", cache=tmp_path, offline=True)
    assert str(folder) in str(caught.value)


def test_another_pooling_of_the_llama_is_refused() -> None:
    with pytest.raises(ValueError, match=r"my\.json: expected pooling avg, got 'last'"):
        native_llama({"pooling": "last"}, "my.json")

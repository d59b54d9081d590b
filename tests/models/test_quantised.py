from __future__ import annotations

from pathlib import Path

import bitsandbytes
import pytest
import torch
from transformers import AutoModel

from models.attention import reads_ahead
from models.embedder import encode, load_embedder
from models.export import save_adapter
from models.locate import base_folder
from models.lora import add_lora
from models.quantised import bitsandbytes_config
from tests.models.hub_folders import edit_json, tiny_rows, write_hub_folder

TEXTS = ["1, 2, 3", "2, 4, 8, 16, 32", "7"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("gritlm", "gte-multilingual", "embeddinggemma"):
        write_hub_folder(folder, name, width=64)
    write_hub_folder(folder, "nomic-moe")
    return folder


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_embeddings_in_4_bits_are_those_of_the_rounded_weights(kind: str, cache: Path) -> None:
    """The weights, back in float32 by bitsandbytes' own function, in the model in full precision."""
    with tiny_rows(64):
        quantised = load_embedder("gritlm", cache=cache, offline=True, quantization=kind)
        full = load_embedder("gritlm", cache=cache, offline=True)
    exact = encode(full, TEXTS)
    replaced = 0
    for name, layer in quantised[0].model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            with torch.no_grad():
                full[0].model.get_submodule(name).weight.copy_(weight)
            replaced += 1
    assert replaced == 14
    found = encode(quantised, TEXTS)
    torch.testing.assert_close(found, encode(full, TEXTS), rtol=0, atol=1e-5)
    assert (found - exact).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["gritlm", "gte-multilingual"])
def test_a_quantised_base_trains_lora(kind: str, name: str, cache: Path) -> None:
    with tiny_rows(64):
        embedder = load_embedder(name, cache=cache, offline=True, quantization=kind)
    assert reads_ahead(embedder)
    add_lora(embedder, r=2)
    features = embedder.preprocess(TEXTS)
    embedder(features)["sentence_embedding"][:, 0].sum().backward()
    gradients = [each.grad for label, each in embedder.named_parameters() if "lora_B" in label]
    assert gradients
    assert all(grad is not None and bool(grad.any()) for grad in gradients)


def test_an_adapter_folder_loads_over_its_base_in_4_bits(cache: Path, tmp_path: Path) -> None:
    with tiny_rows(64):
        trained = load_embedder("gritlm", cache=cache, offline=True, quantization="nf4")
        adapter = add_lora(trained, r=2)
        for label, parameter in adapter.named_parameters():
            if "lora_B" in label:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(label)))
        base = base_folder("gritlm", cache=cache, offline=True)
        stage = save_adapter(trained, tmp_path / "stage", base_name="gritlm", base_folder=base)
        again = load_embedder(stage, cache=cache, offline=True, quantization="nf4")
        full = load_embedder(stage, cache=cache, offline=True)
    expected = encode(trained, TEXTS)
    torch.testing.assert_close(encode(again, TEXTS), expected, rtol=0, atol=1e-6)
    assert (encode(full, TEXTS) - expected).abs().max() > 1e-3


def test_the_probe_of_the_attention_leaves_the_search_for_outliers_on(cache: Path) -> None:
    with tiny_rows(64):
        embedder = load_embedder("gritlm", cache=cache, offline=True, quantization="int8")
    layers = [each for each in embedder.modules() if isinstance(each, bitsandbytes.nn.Linear8bitLt)]
    assert {layer.state.threshold for layer in layers} == {6.0}


def test_layers_too_narrow_for_4_bits_are_named(tmp_path: Path) -> None:
    write_hub_folder(tmp_path, "e5-mistral")
    with pytest.raises(ValueError, match=r"at least 64 inputs .*, got 16 in layers\.0\.self_attn\.q_proj"):
        load_embedder("e5-mistral", cache=tmp_path, offline=True, quantization="nf4")


def test_a_base_that_is_quantised_on_disk_is_refused(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "qwen3-0.6b", width=64)
    loaded = AutoModel.from_pretrained(folder, quantization_config=bitsandbytes_config("nf4"))
    loaded.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"config\.json: expected a base in full precision, .*\(bitsandbytes\)"):
        load_embedder(folder)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nomic-moe", "nf4", "its experts are parameters and no linear layers"),
        ("embeddinggemma", "int8", r"--lora\.quantization: .*no float16 activations"),
        ("tiny-encoder", "nf4", "backbone tiny-encoder: expected a small encoder"),
        ("gritlm", "nf5", r"--lora\.quantization: expected nf4, fp4, int8 or none, got 'nf5'"),
    ],
)
def test_what_cannot_be_quantised_is_refused(name: str, kind: str, message: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_embedder(name, cache=cache, offline=True, quantization=kind)
    assert "\n" not in str(caught.value)


def test_the_settings_are_those_of_qlora() -> None:
    config = bitsandbytes_config("nf4", compute_dtype=torch.bfloat16)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert bitsandbytes_config("int8").load_in_8bit


def test_an_entry_of_the_configuration_that_is_empty_is_no_quantisation(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path, "qwen3-0.6b")
    edit_json(folder / "config.json", quantization_config=None)
    assert encode(load_embedder(folder), TEXTS).shape == (3, 16)

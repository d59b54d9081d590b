"""What a folder leaves out, what the user adds, and that a saved model is the same when it is loaded again."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoModel, AutoTokenizer

from models.attention import reads_ahead
from models.backbones import BACKBONES
from models.embedder import encode, load_embedder
from models.export import save_adapter
from models.lora import add_lora
from tests.models.hub_folders import NAMES, edit_json, write_hub_folder


def plain(folder: Path, to: Path) -> Path:
    """The model and its tokenizer as transformers writes them: no modules.json."""
    AutoModel.from_pretrained(folder).save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def test_a_plain_encoder_is_mean_pooled_with_a_warning(bert_folder: Path, tmp_path: Path, texts: list[str]) -> None:
    with pytest.warns(UserWarning, match="no modules.json .*mean pooling"):
        embedder = load_embedder(plain(bert_folder, tmp_path))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    torch.testing.assert_close(encode(embedder, texts), torch.stack(expected), rtol=0, atol=1e-6)


def test_a_plain_causal_decoder_is_refused_and_a_bidirectional_one_mean_pooled(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = plain(tiny_folder, tmp_path)
    with pytest.raises(ValueError, match="expected modules.json, which says how a causal decoder pools") as caught:
        load_embedder(folder)
    assert str(folder) in str(caught.value)
    with pytest.warns(UserWarning, match="mean pooling"):
        assert load_embedder(folder, bidirectional=True)[1].pooling_mode == "mean"


def test_a_model_without_a_transformer_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    words = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[words], device="cpu").save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(ValueError, match="expected a transformer as the first module .*, got StaticEmbedding"):
        load_embedder(tmp_path)


def test_the_mask_of_a_decoder_is_removed_on_demand(tiny_folder: Path, texts: list[str]) -> None:
    causal, both = load_embedder(tiny_folder), load_embedder(tiny_folder, bidirectional=True)
    assert (reads_ahead(causal), reads_ahead(both)) == (False, True)
    assert (encode(causal, texts) - encode(both, texts)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["me5-large", "embeddinggemma", "nomic-moe"])
def test_a_model_without_a_mask_has_none_to_remove(name: str, tmp_path: Path) -> None:
    write_hub_folder(tmp_path, name)
    with pytest.raises(ValueError, match="--bidirectional: expected a decoder with a causal mask"):
        load_embedder(name, cache=tmp_path, offline=True, bidirectional=True)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_device_map_changes_the_place_only(
    device_map: str | dict[str, int | str], tiny_folder: Path, texts: list[str]
) -> None:
    spread = load_embedder(tiny_folder, device_map=device_map)
    assert torch.equal(encode(spread, texts), encode(load_embedder(tiny_folder), texts))


def test_a_mixture_of_experts_lies_on_one_device(tmp_path: Path) -> None:
    write_hub_folder(tmp_path, "nomic-moe")
    with pytest.raises(ValueError, match="expected full precision on one device"):
        load_embedder("nomic-moe", cache=tmp_path, offline=True, device_map="auto")


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_same_when_it_is_loaded_again(name: str, tmp_path: Path, texts: list[str]) -> None:
    write_hub_folder(tmp_path, name)
    embedder = load_embedder(name, cache=tmp_path, offline=True)
    embedder.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_embedder(tmp_path / "saved")
    torch.testing.assert_close(encode(again, texts), encode(embedder, texts), rtol=0, atol=1e-6)
    assert [type(module) for module in again] == [type(module) for module in embedder]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_over_a_backbone_loads_its_base_as_it_was(name: str, tmp_path: Path, texts: list[str]) -> None:
    """By the base's path and a name of the user's making: only where the base lies says which row it has."""
    base = write_hub_folder(tmp_path, name)
    trained = load_embedder(base)
    adapter = add_lora(trained, r=2, targets=BACKBONES[name].lora_targets)
    for label, parameter in adapter.named_parameters():
        if "lora_B" in label:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(label)))
    stage = save_adapter(trained, tmp_path / "stage", base_name=str(base), base_folder=base)
    loaded = load_embedder(stage, cache=tmp_path, offline=True)
    assert torch.equal(encode(loaded, texts), encode(trained, texts))
    assert reads_ahead(loaded) == (BACKBONES[name].attention == "bidirectional")


def test_a_stage_that_was_trained_without_a_mask_is_loaded_without(
    tiny_folder: Path, tmp_path: Path, texts: list[str]
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    trained = load_embedder(base, bidirectional=True)
    adapter = add_lora(trained, r=2)
    torch.nn.init.normal_(next(each for label, each in adapter.named_parameters() if "lora_B" in label))
    stage = save_adapter(trained, tmp_path / "stage", base_name=str(base), base_folder=base)
    manifest = stage / "manifest.json"
    recorded = {"fingerprint": None, "name": str(base), "bidirectional": True}
    edit_json(manifest, base=recorded)
    loaded = load_embedder(stage)
    assert reads_ahead(loaded)
    assert torch.equal(encode(loaded, texts), encode(trained, texts))
    edit_json(manifest, base={**recorded, "bidirectional": False})
    assert not reads_ahead(load_embedder(stage))

"""What a folder leaves out, what the user adds, and that a saved model is the same when it is loaded again."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import (
    AutoModel,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

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


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (DistilBertModel, DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=4, vocab_size=128)),
        (T5EncoderModel, T5Config(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, vocab_size=128)),
    ],
)
def test_a_plain_encoder_whose_width_has_another_name_is_mean_pooled(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, bert_folder: Path, tmp_path: Path, texts: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    config.vocab_size = len(tokenizer)
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="mean pooling"):
        embedder = load_embedder(tmp_path)
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        expected = [model(input_ids=each).last_hidden_state[0].mean(0) for each in ids]
    torch.testing.assert_close(encode(embedder, texts), torch.stack(expected), rtol=0, atol=1e-6)


def test_a_plain_causal_decoder_of_any_other_type_is_refused_too(bert_folder: Path, tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=128)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="how a causal decoder pools .* or save it with sentence-transformers$"):
        load_embedder(tmp_path)


def test_files_that_a_library_refuses_are_one_error_that_names_the_folder(bert_folder: Path, tmp_path: Path) -> None:
    folder = plain(bert_folder, tmp_path / "shapes")
    edit_json(folder / "config.json", intermediate_size=20)
    with pytest.raises(ValueError, match=f"{folder}: expected .*tensors of other shapes"):
        load_embedder(folder)
    folder = plain(bert_folder, tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text('{"cut": ')
    with pytest.raises(ValueError, match=str(folder)):
        load_embedder(folder)


def test_a_missing_tensor_is_told_once(bert_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = plain(bert_folder, tmp_path)
    state = load_file(folder / "model.safetensors")
    state.pop("encoder.layer.0.output.dense.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(ValueError, match=r"1 missing, first encoder\.layer\.0\.output\.dense\.weight"):
        load_embedder(folder)
    assert "REPORT" not in capfd.readouterr().err


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

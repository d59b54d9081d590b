"""Counts without weights against the models themselves."""

import json
import shutil

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import LlamaConfig, LlamaModel, Qwen3Model, T5Config, T5EncoderModel, T5Model

from models.backbones import BACKBONES, find_backbone
from models.embedder import load_embedder
from models.lora import add_lora
from models.sizes import model_sizes
from tests.models.hub_folders import tiny_rows, write_hub_folder
from tests.models.storages import storage_bytes


def trainable(module):
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


def total(module):
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize("settings", [{}, {"r": 3, "targets": ["query", "q_proj"]}, {"adapt_top": 1}])
@pytest.mark.parametrize("which", ["tiny_folder", "bert_folder", "mistral_folder"])
def test_counts_are_those_of_the_loaded_model(which, settings, request):
    folder = request.getfixturevalue(which)
    if "targets" in settings:
        settings = settings | {"targets": [settings["targets"][which != "bert_folder"]]}
    sizes = model_sizes(folder, **settings)
    embedder = load_embedder(folder)
    assert sizes.parameters == total(embedder)
    assert sizes.weight_bytes == sum(t.nbytes for t in (*embedder.parameters(), *embedder.buffers()))
    assert sizes.dtype == torch.float32
    adapted = add_lora(embedder, **settings)
    assert sizes.trainable == trainable(embedder)
    assert sizes.adapted == sum(name.endswith("lora_A.default") for name, _ in adapted.named_modules())


def test_no_weight_is_read(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"nothing to read")
    assert model_sizes(folder) == model_sizes(tiny_folder)


def test_a_model_from_scratch_is_trained_whole():
    sizes = model_sizes(None, row=find_backbone("tiny-encoder"))
    assert sizes.parameters == sizes.trainable == total(load_embedder("tiny-encoder"))
    assert sizes.adapted == 0


@pytest.mark.parametrize("told", [True, False])
def test_the_precision_is_the_one_that_is_loaded(tiny_folder, tmp_path, told):
    folder = tmp_path / "half"
    Qwen3Model.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(folder)
    if not told:  # then that of the first tensor
        config = json.loads((folder / "config.json").read_text())
        del config["dtype"]
        (folder / "config.json").write_text(json.dumps(config))
    sizes = model_sizes(folder)
    loaded = Qwen3Model.from_pretrained(folder, dtype="auto")
    assert sizes.dtype == loaded.dtype == torch.bfloat16
    assert sizes.weight_bytes == sum(t.nbytes for t in (*loaded.parameters(), *loaded.buffers()))


def test_dense_modules_count(tiny_folder, tmp_path):
    embedder = SentenceTransformer(str(tiny_folder), device="cpu")
    modules = [embedder[0], embedder[1], Dense(32, 48, bias=False), Dense(48, 8), embedder[2]]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "dense"))
    assert model_sizes(tmp_path / "dense").parameters == total(embedder) + 32 * 48 + 48 * 8 + 8


def test_of_an_encoder_and_decoder_the_encoder_counts(tmp_path):
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, num_decoder_layers=3)
    T5Model(config).save_pretrained(tmp_path / "t5")
    assert model_sizes(tmp_path / "t5").parameters == total(T5EncoderModel(config))


def test_a_foreign_model_type_that_transformers_has_under_another_name_counts(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"model_type": "llama_bidirec", "vocab_size": 50, "auto_map": {"AutoModel": "m.M"}, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_sizes(tmp_path).parameters == total(LlamaModel(LlamaConfig(vocab_size=50, **sizes)))


def test_an_architecture_with_code_of_its_own_is_refused(tmp_path):
    config = {"model_type": "own_model", "auto_map": {"AutoConfig": "m.C", "AutoModel": "m.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: expected an architecture of transformers, got .*'own_model'"):
        model_sizes(tmp_path)


def test_what_add_lora_refuses_is_refused(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"--lora.r: expected .* got 0"):
        model_sizes(tiny_folder, r=0)
    with pytest.raises(ValueError, match=r"--lora.targets: .* got 'nothing'"):
        model_sizes(tiny_folder, targets=["nothing"])
    with pytest.raises(ValueError, match=r"--adapt-top: .* got 3"):
        model_sizes(tiny_folder, adapt_top=3)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a model without an adapter"):
        model_sizes(tmp_path)


@pytest.mark.parametrize(
    ("name", "width", "loading", "adapting"),
    [
        ("e5-mistral", 64, {"quantization": "nf4"}, {"use_dora": True}),
        ("gte-multilingual", 64, {"quantization": "fp4", "dtype": torch.bfloat16}, {"adapt_top": 1}),
        ("me5-large", 64, {"quantization": "int8"}, {}),
        ("me5-large", 64, {"dtype": torch.bfloat16}, {"use_dora": True}),
        ("embeddinggemma", 64, {"quantization": "nf4"}, {"dense": "train"}),
        ("nomic-moe", 16, {"dtype": torch.bfloat16}, {}),
    ],
)
def test_what_a_model_is_loaded_as_and_what_is_trained_of_it(name, width, loading, adapting, tmp_path):
    folder = write_hub_folder(tmp_path, name, width=width)
    row = BACKBONES[name]
    adapting = {"r": 3, "targets": row.lora_targets, "expert_parameters": row.expert_parameters, **adapting}
    sizes = model_sizes(folder, row=row, **adapting, **loading)
    with tiny_rows(width):
        stored = load_embedder(name, cache=tmp_path, offline=True)
        embedder = load_embedder(name, cache=tmp_path, offline=True, **loading)
    assert sizes.parameters == total(stored)
    assert sizes.stored_bytes == storage_bytes(stored)
    dense = [each for each in embedder if isinstance(each, Dense) and "dense" in adapting]
    assert sizes.weight_bytes == storage_bytes(embedder) - sum(map(storage_bytes, dense))
    adapted = add_lora(embedder, **adapting)
    assert sizes.trainable == trainable(embedder)
    assert sizes.adapted == sum(each.endswith("lora_A.default") for each, _ in adapted.named_modules())
    assert sizes.weight_bytes == sizes.blocks * sizes.block_bytes + sizes.outside_bytes or name == "nomic-moe"
    assert (sizes.packed_bytes > 0) == ("quantization" in loading)

"""Counts without weights against the models themselves, and the estimate of activations against what autograd keeps."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import (
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from models.backbones import find_backbone
from models.embedder import load_embedder
from models.lora import add_lora, target_modules
from models.sizes import model_sizes, training_memory


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


def kept_by_autograd(model, *, texts, tokens, mixed):
    """Bytes that one forward pass keeps for the backward pass, the weights themselves left out."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(0, 50, (texts, tokens), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", enabled=mixed):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(size for size, _ in kept.values())


SHAPE = {"vocab_size": 60, "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "head_dim": 24}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("build", "configure", "dtype", "precision"),
    [
        (Qwen3Model, Qwen3Config, torch.float32, "32-true"),
        (Qwen3Model, Qwen3Config, torch.bfloat16, "32-true"),
        (Qwen3Model, Qwen3Config, torch.float32, "bf16-mixed"),
        (Qwen3Model, Qwen3Config, torch.bfloat16, "bf16-mixed"),
        (Gemma2Model, Gemma2Config, torch.float32, "32-true"),
    ],
)
def test_activations_are_within_a_quarter_of_what_autograd_keeps(tmp_path, build, configure, dtype, precision):
    model = build(configure(**SHAPE, **HEADS)).to(dtype)
    model.save_pretrained(tmp_path / "model")
    sizes = model_sizes(tmp_path / "model", r=2)
    assert (sizes.eager_heads > 0) == (build is Gemma2Model)
    adapted = get_peft_model(model, PeftConfig(r=2, target_modules=target_modules(model))).train()
    kept = kept_by_autograd(adapted, texts=4, tokens=48, mixed=precision == "bf16-mixed")
    estimate = training_memory(sizes, texts=4, tokens=48, precision=precision)["activations"]
    assert 0.75 < estimate / kept < 1.25


def test_the_states_are_those_of_adamw(tiny_folder):
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=4)
    weights = [each for each in embedder.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    embedder(embedder.preprocess(["1, 2"]))["sentence_embedding"].sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    memory = training_memory(model_sizes(tiny_folder, r=4), texts=1, tokens=1)
    assert memory["optimizer"] == moments
    assert memory["gradients"] == memory["adapter"] == sum(each.grad.nbytes for each in weights)


def test_devices_precision_and_the_copy_at_the_end_of_a_stage(tiny_folder):
    sizes = model_sizes(tiny_folder, r=4)
    one, two = (training_memory(sizes, texts=8, tokens=64, devices=devices) for devices in (1, 2))
    assert one["buckets"] == 0
    assert two["buckets"] == two["gradients"]
    half = training_memory(sizes, texts=8, tokens=64, precision="bf16-true")
    assert half["weights"] == 2 * sizes.parameters
    assert 2 * half["optimizer"] == one["optimizer"]
    short = training_memory(sizes, texts=1, tokens=1)
    assert short["peak"] == short["stage_end"] == 2 * sizes.weight_bytes + 4 * 4 * sizes.trainable
    with pytest.raises(ValueError, match=r"--precision: expected one of 32-true, .* got '8-true'"):
        training_memory(sizes, texts=8, tokens=64, precision="8-true")

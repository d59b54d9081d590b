"""mergekit's form: what its own planner resolves, and what is refused or noted."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from merging.mergekit_parts import parse_reference
from merging.mergekit_recipe import parse_mergekit_recipe
from merging.methods import METHODS
from merging.recipe import ModelRef, Recipe
from merging.recipe_file import read_recipe_file
from merging.schedule import UNSAID
from storage.json_file import read_json

CONFIGS = Path(__file__).parent / "mergekit_configs"
RESOLVED = read_json(CONFIGS / "resolved.json")
"""What mergekit 0.1.5's planner hands to its methods, for Llama models of so many layers: its own values per tensor."""

OURS = {"t": "t", "lambda": "scale", "normalize": "normalize", "rescale": "rescale"}
EACH = {"weight": "weights", "density": "density", "gamma": "gamma", "epsilon": "epsilon"}


def read(key: str, tmp_path: Path) -> tuple[Recipe, ...]:
    """Read a file of the folder; a second word in the key replaces its method."""
    name, *method = key.split()
    text = (CONFIGS / name).read_text()
    if method:
        text = text.replace("merge_method: ties", f"merge_method: {method[0]}")
        assert method[0] in text.split("#")[1]
    (tmp_path / name).write_text(text)
    return read_recipe_file(tmp_path / name).recipes


@pytest.mark.parametrize("key", RESOLVED)
def test_every_tensor_is_told_what_mergekit_tells_it(key: str, tmp_path: Path) -> None:
    recipes = read(key, tmp_path)
    assert len(recipes) == len(RESOLVED[key])
    for recipe, expected in zip(recipes, RESOLVED[key], strict=True):
        for name, told in expected["tensors"].items():
            got = recipe.settings.at(name, expected["layers"])
            assert {str(ref) for ref in recipe.inputs if ref != recipe.base} == set(told["models"]) - {str(recipe.base)}
            defaults = dict(METHODS[recipe.method].defaults)
            for theirs, ours in OURS.items():
                if theirs in told["shared"] and (ours in got or recipe.method != "task_arithmetic"):
                    value = got.get(ours, defaults.get(ours, 1.0 if ours == "scale" else False))
                    assert value == pytest.approx(told["shared"][theirs], abs=1e-12), (name, ours)
            for theirs, ours in EACH.items():
                if ours == "density" and recipe.method == "task_arithmetic":
                    assert ours not in got
                elif theirs in told["each"]:
                    values = dict(zip(told["models"], told["each"][theirs], strict=True))
                    said = got.get(ours, (UNSAID.get(ours),) * len(recipe.inputs))
                    assert said == pytest.approx([values[str(ref)] for ref in recipe.inputs], abs=1e-12), name


def parse(compat: str | None = None, **document: Any) -> Recipe:
    return parse_mergekit_recipe(document, "file", compat=compat)


def models(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name} | ({"parameters": parameters} if parameters else {}) for name in names]


def test_the_base_of_slerp_comes_first_wherever_it_stands() -> None:
    for listed in (models("base", "x"), models("x", "base"), models("x")):
        recipe = parse(merge_method="slerp", base_model="base", models=listed, parameters={"t": 0.7})
        assert recipe.inputs == (ModelRef("base"), ModelRef("x"))
        assert recipe.arguments["space"] == "weight"


def test_differences_are_taken_from_the_base_which_is_then_no_input() -> None:
    recipe = parse(merge_method="nuslerp", base_model="base", models=models("a", "b", "base", weight=1))
    assert recipe.inputs == (ModelRef("a"), ModelRef("b"))
    assert recipe.base == ModelRef("base")
    assert recipe.arguments["space"] == "task_vector"
    assert any("weight: without effect, the base is told nothing" in note for note in recipe.notes)
    assert parse(merge_method="nuslerp", models=models("a", "b", weight=1)).arguments["space"] == "weight"


def test_the_base_joins_where_mergekit_lets_it_join() -> None:
    karcher = parse(merge_method="karcher", base_model="base", models=models("a", "b"))
    assert karcher.inputs == (ModelRef("a"), ModelRef("b"), ModelRef("base"))
    weighed = parse(merge_method="linear", base_model="base", models=models("a", "b"), parameters={"weight": 1})
    assert weighed.inputs == karcher.inputs
    assert weighed.settings.at("norm.weight", 2)["weights"] == (1, 1, 1)
    donor = parse(merge_method="linear", base_model="base", models=models("a", "b", weight=1))
    assert donor.inputs == (ModelRef("a"), ModelRef("b"))
    assert donor.base == ModelRef("base")
    assert any(note.startswith("base_model: gives tokenizer") for note in donor.notes)


def test_dtype_is_that_of_the_result() -> None:
    plain = {"merge_method": "karcher", "models": models("a", "b")}
    assert "dtype" not in parse(**plain).arguments
    assert parse(**plain, dtype="bfloat16").arguments["dtype"] == "bfloat16"
    both = parse(**plain, dtype="bfloat16", out_dtype="torch.float16")
    assert both.arguments["dtype"] == "float16"
    assert any(note.startswith("dtype: bfloat16 is what mergekit computes in") for note in both.notes)


def test_what_has_an_angle_of_its_own() -> None:
    def granularity(method: str, compat: str | None = None, **parameters: Any) -> Any:
        recipe = parse(compat, merge_method=method, base_model="o", models=models("a", "b"), parameters=parameters)
        return recipe.arguments.get("granularity", "tensor")

    assert granularity("nuslerp") == "tensor"
    assert granularity("nuslerp", nuslerp_row_wise=True) == "tensor"
    assert granularity("nuslerp", nuslerp_flatten=False, nuslerp_row_wise=True) == "row"
    assert granularity("nuslerp", nuslerp_flatten=False) == "row"
    assert granularity("model_stock", filter_wise=True) == "row"
    # measured: mergekit's row_wise takes the columns of the stored matrix, and the rows without it
    assert granularity("nuslerp", "mergekit", nuslerp_flatten=False, nuslerp_row_wise=True) == "column"
    assert granularity("nuslerp", "mergekit", nuslerp_flatten=False) == "row"


def test_compat_may_be_asked_for_in_the_recipe() -> None:
    plain = {"merge_method": "karcher", "models": models("a", "b", weight=2)}
    assert "compat" not in parse(**plain).arguments
    assert parse(**plain).settings.at("norm.weight", 2) == {"weights": (2, 2)}
    told = parse("mergekit", **plain)
    assert told.arguments["compat"] == "mergekit"
    assert told.settings.at("norm.weight", 2) == {}
    assert told.notes == ("weight: without effect, mergekit's karcher has no weights",)
    assert parse_mergekit_recipe({**plain, "compat": "mergekit"}, "file").arguments["compat"] == "mergekit"


def test_what_has_no_effect_is_noted() -> None:
    parameters = {"int8_mask": True, "embed_slerp": True, "tol": 1e-9, "density": 0.5, "t": 0.3, "filter_wise": True}
    recipe = parse(merge_method="karcher", models=models("a", "b", normalize=True), parameters=parameters)
    assert recipe.settings.at("norm.weight", 2) == {}
    for key in (*parameters, "normalize"):
        assert any(note.startswith(f"{key}: without effect") for note in recipe.notes), key
    beside = parse(merge_method="linear", models=models("a", "b", normalize=False, weight=1))
    assert beside.settings.at("norm.weight", 2) == {"weights": (1, 1)}
    assert beside.notes == ("normalize: without effect, it is said for the whole merge, not for a model",)


def test_the_scale_of_passthrough_stands_with_its_model() -> None:
    recipe = parse(merge_method="passthrough", models=models("a+b", scale=0.5), parameters={"scale": 2})
    assert recipe.inputs == (ModelRef("a", adapter="b"),)
    assert recipe.settings.at("norm.weight", 2) == {"scale": 0.5}


def test_weights_may_stay_as_they_are_where_they_sum_to_one() -> None:
    def kept(*weights: Any) -> Recipe:
        listed = [{"model": f"m{i}", "parameters": {"weight": weight}} for i, weight in enumerate(weights)]
        return parse(merge_method="multislerp", models=listed, parameters={"normalize_weights": False})

    assert kept(0.3, 0.7).settings.at("", 2) == {"weights": (0.3, 0.7)}
    for weights in ((0.3, 0.3), ([0, 1], [1, 0])):
        with pytest.raises(
            ValueError, match="normalize_weights: expected true, got false with weights that do not sum"
        ):
            kept(*weights)


def test_tokenizers() -> None:
    plain = {"merge_method": "linear", "base_model": "a", "models": models("a", "b", weight=1)}
    assert parse(**plain).tokenizer is None
    assert parse(**plain, tokenizer_source="base").tokenizer == "base"
    assert parse(**plain, tokenizer={}).tokenizer == "union"
    assert parse(**plain, tokenizer={"source": "b@main"}).tokenizer == ModelRef("b", "main")
    assert any(note.startswith("chat_template") for note in parse(**plain, chat_template="auto").notes)


REFERENCES = [
    ("a", ModelRef("a")),
    ("org/base@main", ModelRef("org/base", "main")),
    ("a+b", ModelRef("a", None, "b")),
    ("a@x+b@y", ModelRef("a", "x", "b", "y")),
    (
        {"model": {"path": "odd@name+"}, "lora": {"path": "l@1", "revision": "z"}},
        ModelRef("odd@name+", None, "l@1", "z"),
    ),
    ({"model": "a@x", "lora": "b"}, ModelRef("a", "x", "b")),
]


@pytest.mark.parametrize(("value", "expected"), REFERENCES)
def test_references(value: Any, expected: ModelRef) -> None:
    assert parse_reference(value, "f") == expected


BAD_REFERENCES = ["", "a+b+c", "a@x@y", "+b", "a+", "a@", 3, None, ["a"], {"lora": "b"}, {"model": "a", "arch": "x"}]


@pytest.mark.parametrize("value", BAD_REFERENCES)
def test_what_is_no_reference_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="^f") as error:
        parse_reference(value, "f")
    assert "\n" not in str(error.value)


def sliced(*ranges: Any, **more: Any) -> dict[str, Any]:
    """Slerp of a and b in slices, each given as one layer_range or as one per model."""
    slices = []
    for one in ranges:
        pair = one if isinstance(one, tuple) else (one, one)
        slices.append({"sources": [{"model": m, "layer_range": r} for m, r in zip("ab", pair, strict=True)]})
    return {"merge_method": "slerp", "base_model": "a", "slices": slices, **more}


def test_slices_are_the_layers_in_order() -> None:
    recipe = parse(**sliced([0, 2], [2, 5]))
    assert [part.layers for part in recipe.settings.slices] == [(0, 2), (2, 5)]


PLAIN = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (PLAIN | {"merge_method": "nearswap"}, "merge_method: expected one of linear, .*, got 'nearswap'; choose one"),
    (PLAIN | {"merge_method": "arcee_fusion"}, "got 'arcee_fusion'"),
    (PLAIN | {"merge_method": "warp"}, "got 'warp'; write our own form, with method:"),
    (PLAIN | {"merge_method": None}, "got None"),
    (PLAIN | {"mergemethod": 1}, "did you mean merge_method"),
    (PLAIN | {"parameters": {"wieght": 1}}, "parameters: .* did you mean weight"),
    (PLAIN | {"parameters": [1]}, "parameters: expected keys and values"),
    (PLAIN | {"parameters": {"weight": "much"}}, "parameters.weight: expected a finite number"),
    (PLAIN | {"slices": [1]}, "expected models or slices, got models and slices"),
    (PLAIN | {"models": []}, "got neither"),
    (PLAIN | {"models": {"model": "a"}}, "models: expected a list"),
    (PLAIN | {"models": [{"model": "a", "weight": 1}]}, r"models\[0\]: .* got 'weight'"),
    ({"merge_method": "linear", "modules": {"x": {}}}, "modules: expected models or slices, .* use models"),
    (PLAIN | {"models": [{"model": "a", "parameters": {"filter_wise": True}}]}, "expected it among the parameters of"),
    (PLAIN | {"base_model": "a+b"}, "base_model: expected a whole model, .* passthrough"),
    (PLAIN | {"merge_method": "ties"}, "base_model: expected the base of ties, got none"),
    (PLAIN | {"merge_method": "slerp"}, "base_model: expected the base of slerp"),
    (PLAIN | {"merge_method": "slerp", "base_model": "c"}, "slerp: expected base_model and one other model"),
    (PLAIN | {"dtype": "int8"}, "dtype: expected one of float32, float16, bfloat16, float64, got 'int8'"),
    (PLAIN | {"out_dtype": 16}, "out_dtype: expected text"),
    (PLAIN | {"chat_template": "chatml"}, "chat_template: expected it left out or auto"),
    (PLAIN | {"tokenizer_source": "base"}, "expected base_model for the tokenizer of the base"),
    (
        PLAIN | {"tokenizer_source": "a", "tokenizer": {"source": "a"}},
        "expected tokenizer_source or tokenizer, got both",
    ),
    (PLAIN | {"tokenizer": {"tokens": {"x": {}}}}, "tokens: expected models of one vocabulary"),
    (PLAIN | {"parameters": {"nuslerp_flatten": [True, False]}}, "expected true or false for the whole merge"),
    (sliced([0, 2], [3, 5]), r"slices\[1\]: expected a layer_range that starts at 2, .* stacking is not supported"),
    (sliced([0, 2], [0, 2]), r"slices\[1\]: expected a layer_range that starts at 2"),
    (sliced([1, 5]), r"slices\[0\]: expected a layer_range that starts at 0"),
    (sliced(([0, 2], [2, 4])), "expected one layer_range for all models"),
    (sliced([2, 2]), r"layer_range: expected \[first, end\]"),
    (sliced("0-2"), r"layer_range: expected \[first, end\]"),
    (sliced([0, 2.5]), r"layer_range: expected \[first, end\]"),
    (sliced([0, 2]) | {"slices": [{"sources": []}]}, "sources: expected a list of models"),
    (sliced([0, 2]) | {"slices": [{"sources": [3]}]}, r"sources\[0\]: expected keys and values"),
    (sliced([0, 2]) | {"slices": [{"sorces": []}]}, "did you mean sources"),
]


@pytest.mark.parametrize(("document", "message"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_mergekit_recipe(document, "file")
    assert str(error.value).startswith("file: ")
    assert "\n" not in str(error.value)


def test_slices_of_other_models_are_refused() -> None:
    document = yaml.safe_load((CONFIGS / "6_nuslerp_rowwise_slices.yaml").read_text())
    document["slices"][1]["sources"][0]["model"] = "ckpt/c"
    with pytest.raises(ValueError, match=r"slices\[1\].sources: expected the models of the first slice"):
        parse_mergekit_recipe(document, "file")
    document["slices"][1]["sources"][0]["model"] = "ckpt/b"
    with pytest.raises(ValueError, match=r"slices\[1\].sources: expected each model once"):
        parse_mergekit_recipe(document, "file")


def test_a_slice_has_the_base_of_the_recipe() -> None:
    document = yaml.safe_load((CONFIGS / "6_nuslerp_rowwise_slices.yaml").read_text())
    document["slices"][1]["base_model"] = "org/base"
    parse_mergekit_recipe(document, "file")
    document["slices"][1]["base_model"] = "ckpt/a"
    with pytest.raises(ValueError, match=r"slices\[1\]: base_model: expected the base_model of the recipe"):
        parse_mergekit_recipe(document, "file")

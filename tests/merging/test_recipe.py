"""Recipes of our own form, and files of several recipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.methods import METHODS
from merging.recipe import ModelRef, Recipe, parse_recipe
from merging.recipe_file import read_recipe_file

NUMBERS = st.floats(0, 1)
SCHEDULES = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, min_size=2, max_size=4),
    st.just([{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]),
)
WORDS = st.text("abc-/@+.123 é", min_size=1, max_size=9).filter(str.strip)
PATHS = st.one_of(WORDS, st.fixed_dictionaries({"model": WORDS}, optional={"revision": WORDS, "adapter": WORDS}))


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Recipes with everything beside the inputs, which is how ``plain`` writes them."""
    inputs = []
    weighed = draw(st.booleans())
    for path in draw(st.lists(PATHS, min_size=1, max_size=3)):
        entry = {"model": path} if isinstance(path, str) else dict(path)
        entry |= {"weight": draw(SCHEDULES)} if weighed else {}
        entry |= {"density": draw(SCHEDULES)} if draw(st.booleans()) else {}
        inputs.append(entry["model"] if list(entry) == ["model"] else entry)
    document = {"method": draw(st.sampled_from(sorted(METHODS))), "inputs": inputs}
    optional = {
        "t": SCHEDULES,
        "scale": SCHEDULES,
        "normalize": st.booleans(),
        "base": PATHS.map(lambda path: path["model"] if isinstance(path, dict) and list(path) == ["model"] else path),
        "space": st.just("weight"),
        "seed": st.integers(0, 9),
        "extrapolate": st.booleans(),
        "dtype": st.just("bfloat16"),
        "compat": st.just("mergekit"),
        "name": st.just("mean"),
    }
    return document | draw(st.fixed_dictionaries({}, optional=optional))


@settings(max_examples=60)
@given(documents())
def test_a_recipe_is_written_as_it_is_read(document: dict[str, Any]) -> None:
    recipe = parse_recipe(document, "file")
    plain = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(recipe.plain()))))
    assert plain == document
    assert parse_recipe(plain, "file") == recipe


def refusal_of(call: Callable[[], Any]) -> str | None:
    """The message of the ValueError that a call ends with, if it does; any other error is the test's."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=5), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["model", "weight", "filter", "value", "adapter"]), st.text(max_size=3), st.integers()
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["inputs", "base", "weights", "density", "t", "seed", "extrapolate", "space", "name", "normalize"]
)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, JUNK, max_size=5), st.sampled_from(["slerp", "ties", "slurp", 3, None]))
def test_junk_is_read_or_refused_in_one_line(junk: dict[str, Any], method: Any) -> None:
    refusal = refusal_of(lambda: parse_recipe({"inputs": ["a", "b"], "method": method} | junk, "file"))
    assert refusal is None or (refusal.startswith("file: ") and "\n" not in refusal)


def test_what_stands_beside_an_input_is_its_own() -> None:
    inputs = ["a", {"model": "b", "revision": "main", "adapter": "c", "density": [0, 1]}]
    recipe = parse_recipe({"method": "ties", "base": "o", "inputs": inputs, "density": 0.3, "weights": [1, "2e0"]}, "f")
    assert recipe.inputs == (ModelRef("a"), ModelRef("b", "main", "c"))
    assert [str(ref) for ref in recipe.models] == ["a", "b@main+c", "o"]
    assert recipe.settings.at("layers.1.mlp.weight", 3) == {"weights": (1.0, 2.0), "density": (0.3, 0.5)}


def test_a_list_for_a_parameter_of_inputs_has_one_per_input_as_in_python() -> None:
    recipe = parse_recipe({"method": "ties", "base": "o", "inputs": ["a", "b"], "density": [[0, 1], 0.5]}, "f")
    assert recipe.settings.at("layers.1.mlp.weight", 3)["density"] == (0.5, 0.5)
    assert recipe.settings.at("layers.2.mlp.weight", 3)["density"] == (1.0, 0.5)


def test_the_compat_that_is_asked_for_wins() -> None:
    document = {"method": "slerp", "inputs": ["a", "b"]}
    assert parse_recipe(document, "f").arguments == {}
    assert parse_recipe(document, "f", compat="mergekit").arguments == {"compat": "mergekit"}


TWO = {"method": "slerp", "inputs": ["a", "b"]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mehtod": "slerp"}, "got 'mehtod'; did you mean method?"),
    ({"method": "slurp"}, "method: expected one of .*, got 'slurp'; did you mean slerp?"),
    ({"method": None}, "got None; choose one of them"),
    ({"inputs": []}, r"inputs: expected a list of models, got \[\]"),
    ({"inputs": "a"}, "inputs: expected a list"),
    ({"inputs": ["a", 3]}, r"inputs\[1\]: expected a model .*, got 3"),
    ({"inputs": ["a", {"weight": 1}]}, r"inputs\[1\]: expected a model, got none; add model"),
    ({"inputs": ["a", {"model": "b", "wieght": 1}]}, r"inputs\[1\]: .* did you mean weight\?"),
    ({"inputs": ["a", {"model": "b", "adapter_revision": "x"}]}, "expected an adapter beside it"),
    ({"inputs": ["a", ""]}, r"inputs\[1\]: model: expected text, got ''"),
    ({"base": {"model": "b", "weight": 1}}, "base: .* got 'weight'"),
    ({"weights": [1]}, "weights: expected a list of 2, one per input"),
    ({"weights": 1}, "weights: expected a list of 2"),
    (
        {"density": [1, 0.6, 0.2]},
        "density: expected a list of 2, .* \\(a gradient over the layers stands beside its input\\)",
    ),
    ({"inputs": [{"model": "a", "weight": 1}, "b"], "weights": [1, 2]}, "in one place"),
    ({"t": "half"}, "t: expected a finite number"),
    ({"normalize": "maybe"}, "normalize: expected true or false"),
    ({"extrapolate": "yes"}, "extrapolate: expected true or false"),
    ({"seed": 1.5}, "seed: expected an integer"),
    ({"seed": True}, "seed: expected an integer"),
    ({"space": 3}, "space: expected text"),
    ({"name": "a/b"}, "name: expected a word"),
    ({"name": ".."}, "name: expected a word"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_mistakes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_recipe(TWO | change, "merge.yaml")
    assert str(error.value).startswith("merge.yaml: ")


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "merge.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "merge.yaml"


def test_a_file_holds_several_recipes(tmp_path: Path) -> None:
    text = "name: mean\nmethod: karcher\ninputs: [a, b]\n---\nmerge_method: slerp\nbase_model: a\nmodels: [{model: mean}]\n"
    content = read_recipe_file(written(tmp_path, text))
    assert [recipe.method for recipe in content.recipes] == ["karcher", "slerp"]
    assert content.recipes[1].inputs == (ModelRef("a"), ModelRef("mean"))
    assert content.text == text


ONE = "{method: slerp, inputs: [a, b]%s}"
FILES: list[tuple[str, str]] = [
    ("", "expected a recipe, got an empty file"),
    ("---\n---\n", "empty file"),
    ("method: slerp\nmethod: linear\ninputs: [a, b]", "line 2: expected each key once, got 'method' twice"),
    ("method: slerp\ninputs: [a, b", "line 2"),
    ("!!python/object/apply:os.system [ls]", "line 1: could not determine a constructor"),
    ("- a", r"expected keys such as method and inputs, got \['a'\]"),
    ("inputs: [a, b]", r"expected method \(our form\) or merge_method \(mergekit's\), got neither"),
    ("method: slerp\nmerge_method: slerp", "got method and merge_method"),
    ("a: !!bool maybe", "expected values that fit their tags"),
    ("a: 2001-02-31", "expected values that fit their tags"),
    ('a: !!int ""', "expected values that fit their tags"),
    ("[" * 5000, "modest depth"),
    (f"{ONE % ''}\n---\n{ONE % ''}", "document 1: expected a name, got none"),
    (f"{ONE % ', name: m'}\n---\n{ONE % ''}", "document 1: expected a later document that uses 'm'"),
    (f"{ONE % ', name: m'}\n---\n{ONE % ', name: m'}", "document 2: name: expected a name of its own"),
    (f"{ONE % ', base: m, name: k'}\n---\n{ONE % ', name: m'}", "document 1: .* got 'm'; move that one up"),
    (ONE % ", base: m, name: m", "expected names of earlier documents, got 'm'"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_files_that_are_no_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_recipe_file(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.yaml: expected a recipe, a YAML file, got no such file"):
        read_recipe_file(tmp_path / "no.yaml")


@settings(max_examples=60)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["method: slerp\n", "inputs: [a]\n", "- ", "---\n", "{", "a: &x [*x]\n", "t: "])).map(
        "".join
    )
)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    refusal = refusal_of(lambda: read_recipe_file(file))
    assert refusal is None or "\n" not in refusal


def test_plain_leaves_out_what_is_not_said() -> None:
    assert Recipe(method="slerp", inputs=(ModelRef("a"), ModelRef("b"))).plain() == {
        "method": "slerp",
        "inputs": ["a", "b"],
    }

"""Gradients, filters, slices: against numpy's interpolation and slow transcriptions."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.schedule import Schedule, Settings, layer_count, layer_of, parse_slice, shown

NUMBERS = st.floats(-1e6, 1e6)
FILTERS = st.sampled_from(["mlp", "self_attn", "layers.0.", "norm", "*", None])
ENTRIES = st.builds(
    lambda chosen, value: {"value": value} if chosen is None else {"filter": chosen, "value": value},
    FILTERS,
    st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=5)),
)
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=6), st.lists(ENTRIES, min_size=1, max_size=4))
NAMES = st.sampled_from(["model.layers.0.mlp.up.weight", "layers.3.self_attn.q.weight", "norm.weight", "embed.weight"])
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), st.just("filter"), st.just("value")), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(st.lists(NUMBERS, min_size=1, max_size=7), st.floats(0, 1))
def test_a_gradient_is_linear_between_its_knots(knots: list[float], position: float) -> None:
    got = Schedule.parse(knots, "t").at("any", position)
    expected = np.interp(position, np.linspace(0, 1, len(knots)), knots) if len(knots) > 1 else knots[0]
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(st.lists(ENTRIES, min_size=1, max_size=5), NAMES)
def test_the_first_filter_that_is_part_of_the_name_wins(entries: list[dict[str, Any]], name: str) -> None:
    expected = None
    for entry in reversed(entries):
        if entry.get("filter", "*") == "*" or entry["filter"] in name:
            expected = entry["value"][0] if isinstance(entry["value"], list) else entry["value"]
    assert Schedule.parse(entries, "t").at(name, 0.0) == expected


@given(VALUES)
def test_a_schedule_is_written_as_it_is_read(value: Any) -> None:
    parsed = Schedule.parse(value, "t")
    plain = json.loads(json.dumps(parsed.plain()))
    assert Schedule.parse(plain, "t") == parsed


@given(VALUES, VALUES, NAMES, st.floats(0, 1))
def test_then_asks_the_other_where_there_is_no_answer(first: Any, second: Any, name: str, position: float) -> None:
    one, other = Schedule.parse(first, "a"), Schedule.parse(second, "b")
    own = one.at(name, position)
    assert one.then(other).at(name, position) == (other.at(name, position) if own is None else own)


@given(JUNK, st.booleans())
def test_junk_is_read_or_refused_in_one_short_line(value: Any, flag: bool) -> None:
    refusal = None
    try:
        Schedule.parse(value, "file: t", flag=flag).at("layers.0.mlp", 0.3)
    except ValueError as error:
        refusal = str(error)
    assert refusal is None or (refusal.startswith("file: t") and "\n" not in refusal and len(refusal) < 1000)


def test_numbers_that_yaml_leaves_as_text_are_numbers() -> None:
    assert Schedule.parse("1e-5", "t").at("", 0) == 1e-5
    assert Schedule.parse([0, "1e-1"], "t").at("", 1.0) == 0.1


def test_a_single_entry_needs_no_list() -> None:
    steps = Schedule.parse({"filter": "mlp", "value": 1}, "t")
    assert (steps.at("a.mlp.b", 0), steps.at("norm", 0)) == (1, None)


def test_flags_are_chosen_not_mixed() -> None:
    steps = Schedule.parse([True, False, 1], "normalize", flag=True)
    assert [steps.at("", position) for position in (0, 0.49, 0.5, 0.99, 1)] == [True, True, False, False, True]


REFUSED: list[tuple[Any, bool, str]] = [
    ([], False, "t: expected at least one value, got an empty list"),
    ("half", False, "t: expected a finite number, .* got 'half'"),
    (math.nan, False, "got nan"),
    ("inf", False, "got 'inf'"),
    (True, False, "got True"),
    (None, False, "got None"),
    (10**400, False, "expected a finite number"),
    ([0, [1]], False, r"got \[1\]"),
    ([0, {"value": 1}], False, "t, entry 1: expected {filter: ..., value: ...}, got 0"),
    ([{"filter": "mlp"}], False, "t, entry 1: .* give each entry a value"),
    ([{"filter": 3, "value": 1}], False, "expected a filter that is part of a tensor's name, got 3"),
    ([{"filtre": "mlp", "value": 1}], False, "got 'filtre'; closest: filter"),
    ([{"value": [{"value": 1}]}], False, "expected a finite number"),
    (0.5, True, "t: expected true or false, got 0.5"),
    ("yes", True, "got 'yes'"),
]


@pytest.mark.parametrize(("value", "flag", "message"), REFUSED)
def test_what_is_no_schedule_is_refused(value: Any, flag: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Schedule.parse(value, "t", flag=flag)
    assert "\n" not in str(error.value)


def test_huge_values_make_short_messages() -> None:
    bomb: Any = "lol"
    for _ in range(40):
        bomb = [bomb] * 10
    assert len(shown(bomb)) < 300
    with pytest.raises(ValueError, match="expected a finite number") as error:
        Schedule.parse(bomb, "t")
    assert len(str(error.value)) < 500


LAYERS = [
    ("model.layers.12.mlp.up_proj.weight", 12),
    ("encoder.layer.3.attention.self.query.weight", 3),
    ("transformer.h.5.ln_1.weight", 5),
    ("blocks.7.norm1.weight", 7),
    ("encoder.block.2.layer.0.SelfAttention.q.weight", 2),
    ("layers.0.input_layernorm.weight", 0),
    ("0_Transformer/model.layers.4.mlp.experts.9.w1.weight", 4),
    ("embeddings.word_embeddings.weight", None),
    ("2_Dense/linear.weight", None),
    ("mlp.3.weight", None),
    ("fresh.5.weight", None),
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_the_layer_of_a_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_the_number_of_layers() -> None:
    assert layer_count(name for name, _ in LAYERS) == 13
    assert layer_count(["embed.weight"]) == 0
    assert layer_count([]) == 0


def test_positions_run_from_the_first_layer_to_the_last() -> None:
    settings = Settings.parse({"t": [0, 1]}, {})
    assert [settings.at(f"layers.{i}.mlp.weight", 5)["t"] for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert settings.at("embeddings.word_embeddings.weight", 5) == {"t": 0}
    assert settings.at("norm.weight", 5) == {"t": 0}
    assert settings.at("layers.0.mlp.weight", 1) == {"t": 1}


def test_slices_have_positions_of_their_own() -> None:
    told = [
        parse_slice({"t": [first, 1]}, {}, layers=layers)
        for first, layers in ((0, (0, 3)), (0.5, (3, 4)), (0.2, (4, 6)))
    ]
    settings = Settings(tuple(told))
    assert [settings.at(f"h.{i}.w.weight", 6)["t"] for i in range(6)] == [0, 0.5, 1, 1, 0.2, 1]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        *((name, True) for name in ("model.embed_tokens.weight", "embeddings.LayerNorm.bias", "wte.weight")),
        *((name, True) for name in ("shared.weight", "emb_ln.weight", "transformer.wpe.weight")),
        *((name, False) for name in ("model.norm.weight", "lm_head.weight", "pooler.dense.weight", "embed_out.weight")),
        *((name, False) for name in ("2_Dense/linear.weight", "ln_f.bias")),
    ],
)
def test_tensors_around_the_layers_follow_the_first_or_the_last_slice(name: str, first: bool) -> None:
    settings = Settings(
        (parse_slice({"t": [0.1, 1]}, {}, layers=(0, 2)), parse_slice({"t": [0.9, 1]}, {}, layers=(2, 4)))
    )
    assert settings.at(name, 4) == {"t": 0.1 if first else 0.9}


def test_slices_that_are_not_the_layers_are_refused() -> None:
    settings = Settings((parse_slice({}, {}, layers=(0, 12)),))
    with pytest.raises(ValueError, match=r"layer ranges that end at 24, .* got \[0, 12\]"):
        settings.at("layers.0.mlp.weight", 24)


def test_constants_are_the_same_everywhere() -> None:
    settings = Settings.constant(weights=[1, 3], density=[1, 0.5], normalize=True, scale=0.9)
    expected = {"weights": (1.0, 3.0), "density": (1.0, 0.5), "normalize": True, "scale": 0.9}
    assert settings.is_constant
    for name in ("layers.1.mlp.weight", "embed.weight", "norm.weight"):
        assert settings.at(name, 2) == expected
    assert Settings.constant().at("norm.weight", 2) == {}
    assert Settings.constant(normalize=False).at("norm.weight", 2)["normalize"] is False


def test_what_varies_is_no_constant() -> None:
    assert not Settings.parse({"t": [0, 1]}, {}).is_constant
    assert not Settings.parse({}, {"weights": [1, [{"filter": "mlp", "value": 1}]]}).is_constant


def test_an_input_that_is_told_nothing_has_the_default_of_density_but_none_of_weight() -> None:
    per_input = {"density": [0.5, None], "gamma": [None, 0.2], "epsilon": [0.1, None]}
    said = Settings.parse({}, per_input).at("norm.weight", 2)
    assert said == {"density": (0.5, 1.0), "gamma": (0.01, 0.2), "epsilon": (0.1, 0.15)}
    with pytest.raises(ValueError, match="weight of input 2: expected a value for tensor norm.weight"):
        Settings.parse({}, {"weights": [0.5, None]}).at("norm.weight", 2)


def test_filters_that_leave_a_tensor_out_are_refused_where_there_is_no_default() -> None:
    only_mlp = [{"filter": "mlp", "value": 1}]
    settings = Settings.parse({"t": only_mlp}, {})
    assert settings.at("layers.0.mlp.weight", 2) == {"t": 1}
    with pytest.raises(ValueError, match=r"t: expected a value for tensor norm.weight, .* add an entry"):
        settings.at("norm.weight", 2)
    with pytest.raises(ValueError, match="weights, input 2: expected a value for tensor norm.weight"):
        Settings.parse({}, {"weights": [1, only_mlp]}).at("norm.weight", 2)
    assert Settings.parse({"scale": only_mlp}, {}).at("norm.weight", 2) == {}


def test_filters_that_speak_of_nothing_are_found() -> None:
    settings = Settings.parse({"t": [{"filter": "mpl", "value": 1}, {"filter": "mlp", "value": 1}, {"value": 0}]}, {})
    assert settings.idle_filters(["layers.0.mlp.weight", "norm.weight"]) == ["mpl"]


def test_settings_are_json() -> None:
    gradient = [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]
    settings = Settings.parse({"t": gradient, "normalize": True}, {"density": [0.5, None]})
    expected = {"t": gradient, "normalize": True, "density": [0.5, None]}
    assert json.loads(json.dumps(settings.plain())) == expected
    sliced = Settings((parse_slice({"t": 0.5}, {}, layers=(0, 2)), parse_slice({"t": 1}, {}, layers=(2, 4))))
    assert sliced.plain() == {"slices": [{"layers": [0, 2], "t": 0.5}, {"layers": [2, 4], "t": 1.0}]}

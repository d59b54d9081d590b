"""What has an angle of its own: rows, tensors, layers, the whole model; against vectors cut or joined by hand."""

import pytest
import torch
from torch import Tensor

from merging import merge_state_dicts
from tests.merging import oracle


@pytest.fixture
def models() -> list[dict[str, Tensor]]:
    shapes = {
        "embeddings.weight": (11, 6),
        "layers.0.proj.weight": (6, 5),
        "layers.0.proj.bias": (6,),
        "layers.1.proj.weight": (6, 5),
        "layers.1.proj.bias": (6,),
    }
    generator = torch.Generator().manual_seed(0)
    return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(3)]


def joined(model: dict[str, Tensor], part: str = "") -> Tensor:
    return torch.cat([tensor.flatten() for name, tensor in model.items() if part in name])


def close(got: Tensor, expected: Tensor) -> None:
    assert oracle.relative_error(got, expected) < 1e-6


def test_rows_have_arcs_of_their_own_and_a_vector_is_one_row(models: list[dict[str, Tensor]]) -> None:
    merged = merge_state_dicts(models[:2], method="slerp", t=0.3, granularity="row")
    for row in range(6):
        a, b = (model["layers.0.proj.weight"][row] for model in models[:2])
        close(merged["layers.0.proj.weight"][row], oracle.slerp(a, b, 0.3))
    close(merged["layers.0.proj.bias"], oracle.slerp(*(m["layers.0.proj.bias"] for m in models[:2]), 0.3))


def test_columns_have_arcs_of_their_own_and_a_vector_is_one_column(models: list[dict[str, Tensor]]) -> None:
    base, *others = models
    merged = merge_state_dicts(others, method="slerp", t=0.3, base=base, granularity="column")
    name = "layers.0.proj.weight"
    for column in range(5):
        a, b = (model[name][:, column].double() - base[name][:, column].double() for model in others)
        close(merged[name][:, column], base[name][:, column].double() + oracle.slerp(a, b, 0.3))
    name = "layers.0.proj.bias"
    a, b = (model[name].double() - base[name].double() for model in others)
    close(merged[name], base[name].double() + oracle.slerp(a, b, 0.3))


def test_rows_of_task_vectors_are_added_to_the_base(models: list[dict[str, Tensor]]) -> None:
    base, *others = models
    merged = merge_state_dicts(others, method="karcher", base=base, granularity="row")
    name = "embeddings.weight"
    for row in range(11):
        deltas = [model[name][row].double() - base[name][row].double() for model in others]
        expected = base[name][row].double() + oracle.karcher(deltas, [0.5, 0.5])
        close(merged[name][row], expected)


def test_a_layer_is_one_vector_and_what_is_in_no_layer_stands_alone(models: list[dict[str, Tensor]]) -> None:
    merged = merge_state_dicts(models, method="karcher", weights=[1, 2, 3], granularity="layer")
    for part in ("layers.0.", "layers.1.", "embeddings"):
        expected = oracle.karcher([joined(model, part) for model in models], [1 / 6, 2 / 6, 3 / 6])
        close(joined(merged, part), expected)


def test_a_model_is_one_vector(models: list[dict[str, Tensor]]) -> None:
    merged = merge_state_dicts(models[:2], method="slerp", t=0.8, granularity="model")
    close(joined(merged), oracle.slerp(joined(models[0]), joined(models[1]), 0.8))


def test_linear_does_not_depend_on_granularity(models: list[dict[str, Tensor]]) -> None:
    results = [
        merge_state_dicts(models, method="linear", granularity=kind)
        for kind in ("tensor", "row", "column", "layer", "model")
    ]
    for other in results[1:]:
        for name, tensor in other.items():
            torch.testing.assert_close(tensor, results[0][name], rtol=1e-6, atol=1e-7)


def test_opposite_columns_are_named(models: list[dict[str, Tensor]]) -> None:
    other = {name: tensor.clone() for name, tensor in models[1].items()}
    other["embeddings.weight"][:, 2] = -models[0]["embeddings.weight"][:, 2]
    with pytest.raises(ValueError, match=r"tensor embeddings\.weight, column 2: .*--antipodal"):
        merge_state_dicts([models[0], other], method="slerp", granularity="column")


def test_opposite_rows_are_named(models: list[dict[str, Tensor]]) -> None:
    other = {name: tensor.clone() for name, tensor in models[1].items()}
    other["embeddings.weight"][7] = -models[0]["embeddings.weight"][7]
    with pytest.raises(ValueError, match=r"tensor embeddings\.weight, row 7: .*--antipodal"):
        merge_state_dicts([models[0], other], method="slerp", granularity="row")

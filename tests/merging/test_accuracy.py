"""What merges are promised to be: every coefficient method against float64 on whole vectors, folder to folder.

A model of these tests holds one tensor a case, so that one merge shows all angles and lengths.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import METHODS, merge_checkpoints
from storage.tensor_file import read_tensors
from tests.merging import oracle
from tests.merging.conftest import MakeModel

COEFFICIENTS = [name for name, row in METHODS.items() if row.kind == "coefficients"]
SHAPE = (48, 80)
ANGLES = (1e-6, 1e-5, 1e-4, 1e-2, 0.5, 1.5, 3.0, math.pi - 1e-2, math.pi - 1.0001e-3)
RATIOS = (0.1, 1.0, 10.0)
POSITIONS = (0.2, 0.5)
SIXTEEN_BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Models = Sequence[dict[str, Tensor]]


def at_an_angle(theta: float, ratio: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two matrices ``theta`` apart whose norms differ by ``ratio``."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    across = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    first = first / first.norm()
    across = across - (across * first).sum() * first
    second = math.cos(theta) * first + math.sin(theta) * across / across.norm()
    return 3 * first, 3 * ratio * second


def pairs(angles: Sequence[float] = ANGLES) -> Models:
    models: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for seed, (theta, ratio) in enumerate(itertools.product(angles, RATIOS)):
        for model, vector in zip(models, at_an_angle(theta, ratio, seed), strict=True):
            model[f"angle {theta:.9f} norms {ratio}"] = vector.float()
    return models


def groups(count: int) -> Models:
    """Inputs around a direction, all within 90 degrees of their mean, with norms over a factor of ten."""
    models: Models = tuple({} for _ in range(count))
    for seed, spread in enumerate((1e-5, 1e-3, 0.1, 0.3, 1.0, 2.0)):
        vectors, _ = oracle.scattered(count, spread, seed, size=20)
        for model, vector in zip(models, vectors, strict=True):
            model[f"spread {spread}"] = vector.reshape(4, 5).float()
    return models


def around(base: dict[str, Tensor], deltas: Models) -> Models:
    return tuple({name: base[name] + delta for name, delta in model.items()} for model in deltas)


def norm_matched(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    soup = oracle.linear(tensors, weights)
    return oracle.length(tensors, weights) * soup / soup.norm()


def on_the_sphere(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if len(tensors) == 2:
        return oracle.slerp(tensors[0].double(), tensors[1].double(), weights[1])
    return oracle.karcher(tensors, weights)


Formula = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
ORACLE: dict[str, Formula] = {
    "linear": oracle.linear,
    **dict.fromkeys(("slerp", "nuslerp", "karcher", "multislerp"), on_the_sphere),
    "hierarchical_slerp": oracle.hierarchical,
    "sequential_slerp": oracle.sequential,
    "norm_matched": norm_matched,
    "warp": lambda tensors, weights: 0.5 * on_the_sphere(tensors, weights),
    "task_arithmetic": oracle.linear,
    "model_stock": lambda tensors, weights: oracle.model_stock(tensors),
    "passthrough": lambda tensors, weights: 0.7 * tensors[0].double(),
}


def asked_of(method: str, weights: Sequence[float]) -> dict[str, Any]:
    """How a method is told these weights; those without any are told what they can be."""
    takes = METHODS[method].takes
    if method == "passthrough":
        return {"scale": 0.7}
    if "weights" in takes:
        return {"weights": list(weights)}
    return {"t": weights[1]} if "t" in takes else {}


def test_every_coefficient_method_has_an_oracle() -> None:
    assert set(ORACLE) == set(COEFFICIENTS)


class Bench:
    """Writes models once for all merges of a test."""

    def __init__(self, make_model: MakeModel, models: Models, base: dict[str, Tensor] | None) -> None:
        self.models, self.base = models, base
        self.folders = [make_model(f"in{index}", model) for index, model in enumerate(models)]
        self.base_folder = None if base is None else make_model("base", base)

    def check(self, method: str, weights: Sequence[float], output: Path) -> dict[str, Any]:
        """Merge, and compare every tensor with the oracle."""
        count = METHODS[method].maximum or len(self.folders)
        report = merge_checkpoints(
            self.folders[:count], output, method=method, base=self.base_folder, **asked_of(method, weights)
        )
        merged = read_tensors(output / "model.safetensors")
        origin = self.base if report["space"] == "task_vector" else None
        for name, got in merged.items():
            assert got.dtype == torch.float32
            tensors = [model[name].double() for model in self.models[:count]]
            if origin is not None:
                tensors = [tensor - origin[name].double() for tensor in tensors]
            expected = ORACLE[method](tensors, weights)
            if origin is not None:
                expected = expected + origin[name].double()
            error = oracle.relative_error(got, expected)
            assert error < 3e-6, f"{method} {list(weights)}: {name}: off by {error}"
        return report


@pytest.fixture(params=["weight", "task_vector"])
def space(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def bench_of(make_model: MakeModel, deltas: Models, space: str) -> Bench:
    if space == "weight":
        return Bench(make_model, deltas, None)
    generator = torch.Generator().manual_seed(99)
    # As long as the task vectors, so that an error in them shows in the sum.
    base = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in deltas[0].items()}
    return Bench(make_model, around(base, deltas), base)


def methods_in(space: str) -> list[str]:
    return [name for name in COEFFICIENTS if space == "task_vector" or not METHODS[name].needs_base]


def test_two_inputs_at_every_angle_and_length(make_model: MakeModel, tmp_path: Path, space: str) -> None:
    bench = bench_of(make_model, pairs(), space)
    for method in methods_in(space):
        for t in POSITIONS:
            report = bench.check(method, (1 - t, t), tmp_path / f"{method}-{t}")
        assert report["space"] == ("weight" if method == "passthrough" else space)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_several_inputs_within_ninety_degrees_of_their_mean(
    make_model: MakeModel, tmp_path: Path, space: str, count: int
) -> None:
    bench = bench_of(make_model, groups(count), space)
    _, weights = oracle.scattered(count, 1.0, seed=7)
    for method in methods_in(space):
        if METHODS[method].maximum is None:
            report = bench.check(method, weights[0].tolist(), tmp_path / method)
            assert "not unique" not in report["summary"]["notes"]


def test_reported_angles_and_norms_are_right(make_model: MakeModel, tmp_path: Path, space: str) -> None:
    bench = bench_of(make_model, pairs(), space)
    rows = merge_checkpoints(bench.folders, tmp_path / "out", method="linear", base=bench.base_folder)["tensors"]
    for name, row in rows.items():
        a, b = (
            model[name].double() - (0 if bench.base is None else bench.base[name].double()) for model in bench.models
        )
        angle = oracle.angle_between(a, b)
        if angle > 0.9e-4:
            assert math.radians(row["angles_degrees"][0]) == pytest.approx(angle, rel=0.01), name
            assert math.pi - math.radians(row["angles_degrees"][0]) == pytest.approx(math.pi - angle, rel=0.01), name
        assert row["norms"] == pytest.approx([float(a.norm()), float(b.norm())], rel=1e-6)


def test_a_16_bit_file_is_the_rounded_float32_file(make_model: MakeModel, tmp_path: Path, space: str) -> None:
    bench = bench_of(make_model, pairs(ANGLES[:-2:2]), space)  # the largest let model stock leave what float16 can hold

    def merged(inputs: Sequence[Path], method: str, dtype: str) -> dict[str, Tensor]:
        output = tmp_path / f"{inputs[0].name}-{method}-{dtype}"
        settings = asked_of(method, (0.3, 0.7)) | {"method": method, "base": bench.base_folder, "dtype": dtype}
        merge_checkpoints(inputs[: METHODS[method].maximum], output, **settings)
        return read_tensors(output / "model.safetensors")

    inputs = {"wide": bench.folders}
    for code, dtype in SIXTEEN_BITS.items():
        models = [{name: tensor.to(dtype) for name, tensor in model.items()} for model in bench.models]
        inputs[code] = [make_model(f"{code}{index}", model) for index, model in enumerate(models)]
    for method, label in [
        *((method, "wide") for method in methods_in(space)),
        ("slerp", "bfloat16"),
        ("slerp", "float16"),
    ]:
        wide = merged(inputs[label], method, "float32")
        for code, dtype in SIXTEEN_BITS.items():
            for name, tensor in merged(inputs[label], method, code).items():
                assert tensor.dtype == dtype
                assert torch.equal(tensor, wide[name].to(dtype)), f"{method} of {label}: {name}"


def test_angles_of_16_bit_models_are_not_quantised(make_model: MakeModel, tmp_path: Path) -> None:
    """A cosine in bf16 has steps of 1/256 below 1: no angle between 0 and 5 degrees."""
    models: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for degrees in (1, 2, 3, 4):
        for model, vector in zip(models, at_an_angle(math.radians(degrees), 1.0, degrees), strict=True):
            model[f"{degrees}"] = vector.bfloat16()
    folders = [make_model(name, model) for name, model in zip("ab", models, strict=True)]
    rows = merge_checkpoints(folders, tmp_path / "out", method="nuslerp")["tensors"]
    for name, row in rows.items():
        exact = math.degrees(oracle.angle_between(models[0][name], models[1][name]))
        assert row["angles_degrees"][0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("method", ["karcher", "multislerp", "warp"])
def test_means_of_inputs_beyond_ninety_degrees_are_reported_as_not_unique(
    make_model: MakeModel, tmp_path: Path, method: str
) -> None:
    near = torch.eye(3)
    far = torch.tensor([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0], [-0.9, -0.3, 0.3]])
    folders = [make_model(f"in{i}", {"near": near[i], "far": far[i]}) for i in range(3)]
    base = make_model("base", {"near": torch.zeros(3), "far": torch.zeros(3)})
    report = merge_checkpoints(folders, tmp_path / "out", method=method, base=base)
    assert "not unique" in report["summary"]["notes"]
    assert "not unique" in report["tensors"]["far"]["note"]
    assert "note" not in report["tensors"]["near"]

"""Every method that mergekit shares with us, by one recipe file each: mergekit's result against ours under
``--compat mergekit``, on tiny Llama models in float32.

Random masks keep everything (density 1), since each side draws its own.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks import mergekit
from benchmarks.checkpoints import write_tiny_llama
from benchmarks.commands import THREADS, Job, run
from benchmarks.differences import largest_relative
from benchmarks.result import Check, Result, Settings, command_of
from storage.tensor_file import read_header

PART = "mergekit_agreement"
OURS = (sys.executable, "merge.py", "--compat", "mergekit")
LARGEST = 1e-5


@dataclass(frozen=True)
class Case:
    """The parameters of one recipe."""

    models: Sequence[Mapping[str, Any]]
    """What is said about each model."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: bool = True


WEIGHTS = ({"weight": 0.7}, {"weight": 0.2}, {"weight": 0.4})
SPARSE = tuple({**each, "density": density} for each, density in zip(WEIGHTS, (0.5, 0.3, 0.8), strict=True))
MIDDLE = tuple({**each, "density": 0.6, "gamma": 0.05} for each in WEIGHTS)
WHOLE = tuple({**each, "density": 1.0} for each in WEIGHTS)

CASES = {
    "linear": Case(WEIGHTS, base=False),
    "slerp": Case([{}], {"t": 0.3}),
    "nuslerp": Case(WEIGHTS[:2]),
    "karcher": Case([{}] * 4, base=False),
    "multislerp": Case(WEIGHTS),
    "task_arithmetic": Case(WEIGHTS, {"lambda": 0.8}),
    "ties": Case(SPARSE),
    "breadcrumbs": Case(MIDDLE),
    "breadcrumbs_ties": Case(MIDDLE),
    "sce": Case([{}] * 3, {"select_topk": 0.5}),
    "model_stock": Case([{}] * 3),
    "dare_linear": Case(WHOLE),
    "dare_ties": Case(WHOLE),
    "della": Case(WHOLE),
    "della_linear": Case(WHOLE),
    "passthrough": Case([{}], {"scale": [{"filter": "o_proj", "value": 0.7}, {"value": 1.0}]}, base=False),
}
"""One recipe for each method."""


def measure(settings: Settings) -> list[Result]:
    """Return a result for each method."""
    models = [write_tiny_llama(settings.scratch / f"model-{number}", number) for number in range(5)]
    return [_measure_one(method, models, settings) for method in CASES]


def recipe(method: str, models: Sequence[Path]) -> str:
    """Return the recipe of a method in mergekit's form; the first of ``models`` is the base."""
    case = CASES[method]
    sources = [
        {"model": str(path), "parameters": dict(told)} for path, told in zip(models[1:], case.models, strict=False)
    ]
    document: dict[str, Any] = {"merge_method": method, "models": sources, "dtype": "float32"}
    if case.base:
        document["base_model"] = str(models[0])
    if case.parameters:
        document["parameters"] = dict(case.parameters)
    return yaml.safe_dump(document, sort_keys=False)


def _measure_one(method: str, models: Sequence[Path], settings: Settings) -> Result:
    theirs = mergekit.peers(recipe(method, models), settings.scratch / f"mergekit-{method}")
    file = settings.scratch / f"{method}.yaml"
    file.write_text(recipe(method, models))
    output = settings.scratch / f"ours-{method}"
    mine = Job([*OURS, "--recipe", str(file), "--output", str(output), "--threads", str(THREADS)], output)
    one, other = run(mine), run(theirs)
    files = (output / "model.safetensors", theirs.output / "model.safetensors")
    difference, worst = largest_relative(*files)
    return Result(
        part=PART,
        name=f"{method} by a recipe",
        peer_is=f"mergekit {mergekit.VERSION}",
        ours=one.seconds,
        peer=other.seconds,
        ratio=one.seconds / other.seconds,
        seconds=[[one.seconds], [other.seconds]],
        checks=[Check(what="largest relative difference of a tensor", value=difference, goal=LARGEST)],
        repeats=1,
        threads=THREADS,
        command=command_of(PART),
        details={"method": method, "tensors": len(read_header(files[0]).entries), "worst_tensor": worst},
    )

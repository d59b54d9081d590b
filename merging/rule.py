"""What a merge is asked to do, checked and completed: one frozen ``Rule`` for files and for memory alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from merging.methods import Method, find_method
from merging.options import Antipodal, Norm, Options
from merging.schedule import Settings

Space = Literal["weight", "task_vector"]
Granularity = Literal["tensor", "row", "column", "layer", "model"]
Number = int | float  # both named: what checks types at run time does not take an int for a float

PER_INPUT = ("density", "gamma", "epsilon")
"""Options with one value per input."""

OPTIONS = tuple(field.name for field in fields(Options) if field.name not in ("norm", "antipodal", "seed"))
"""Options that may differ from tensor to tensor."""


@dataclass(frozen=True)
class TensorRule:
    """What one tensor is merged with."""

    weights: tuple[float, ...]
    """One per input; ``t`` arrives here as (1 - t, t)."""
    options: Options


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A method with every parameter settled."""

    method: Method
    inputs: int
    settings: Settings
    """Parameters as they were asked for; ``at`` completes them for a tensor."""
    layers: int
    """Layers of the model, which gradients over layers are spread over."""
    space: Space
    """``task_vector``: inputs are taken as differences from the base; ``weight``: as they are."""
    granularity: Granularity
    """What has angles and coefficients of its own: a row or column of a matrix, a tensor, a layer, or the whole model."""
    norm: Norm
    antipodal: Antipodal
    base_index: int | None
    """Which input is the base itself; None if none is."""
    seed: int
    extrapolate: bool
    compat: bool
    """Whether mergekit's formulas take the place of ours."""

    def at(self, name: str) -> TensorRule:
        """Return what tensor ``name`` is merged with.

        Raises:
            ValueError: a parameter the method does not take, or a value out of its range; the tensor is named
                where the value depends on it.
        """
        asked = dict(self.settings.at(name, self.layers))
        place = "" if self.is_constant else f" (tensor {name})"
        for parameter in asked:
            if parameter not in self.method.takes:
                self._refuse_parameter(parameter)
        options = Options(
            norm=self.norm,
            antipodal=self.antipodal,
            seed=self.seed,
            **(dict(self.method.defaults) | {key: _option(key, asked[key]) for key in OPTIONS if key in asked}),
        )
        self._check_options(options, place)
        return TensorRule(self._weights(asked, options, place), options)

    @property
    def is_constant(self) -> bool:
        """Whether every tensor is told the same."""
        return self.settings.is_constant

    @property
    def is_average(self) -> bool:
        """Whether equal inputs are their own merge, so that they can be copied byte for byte."""
        row = self.method
        return row.kind == "coefficients" and row.weights_sum_to_one and row.name != "warp" and self.norm != "base"

    def _weights(self, asked: Mapping[str, Any], options: Options, place: str) -> tuple[float, ...]:
        t, weights = asked.get("t"), asked.get("weights")
        if t is not None and weights is not None:
            raise ValueError(
                f"--t and --weights{place}: expected one of them, got both; t is the same as weights (1 - t, t)"
            )
        if weights is None and t is None and "weights" not in self.method.takes and "t" in self.method.takes:
            t = 0.5
        if t is not None:
            return self._ends(float(t), place)
        scaled = options.normalize if "normalize" in self.method.takes else True
        return self._shares(weights, scaled=scaled and self.method.weights_sum_to_one, place=place)

    def _ends(self, t: float, place: str) -> tuple[float, ...]:
        if self.inputs != 2:
            raise ValueError(
                f"--t: {self.method.name} expected 2 models for a position between them, got {self.inputs}; "
                "use --weights"
            )
        if not (math.isfinite(t) and (self.extrapolate or 0 <= t <= 1)):
            raise ValueError(
                f"--t{place}: expected a number in [0, 1], got {t:g}; 0 is the first model, 1 the second; "
                "--extrapolate goes beyond them"
            )
        return (t, 1 - t) if self.base_index == 1 else (1 - t, t)

    def _shares(self, weights: Sequence[float] | None, *, scaled: bool, place: str) -> tuple[float, ...]:
        n = self.inputs
        if weights is None:
            return (1 / n,) * n if self.method.weights_sum_to_one else (1.0,) * n
        if len(weights) != n:
            raise ValueError(
                f"--weights{place}: expected {n} numbers, one per input, got {len(weights)}; add or drop some"
            )
        signed = self.extrapolate or not self.method.weights_sum_to_one
        if not all(math.isfinite(weight) and (signed or weight >= 0) for weight in weights):
            raise ValueError(
                f"--weights{place}: expected finite numbers that are not negative, got {list(weights)}; "
                "correct them, or add --extrapolate"
            )
        total = sum(weights)
        if scaled and not (math.isfinite(total) and total > 1e-12 * max(map(abs, weights), default=0)):
            raise ValueError(
                f"--weights{place}: expected a sum above zero, got {list(weights)}; make at least one positive"
            )
        return tuple(weight / total if scaled else float(weight) for weight in weights)

    def _check_options(self, options: Options, place: str) -> None:
        for key in PER_INPUT:
            values = getattr(options, key)
            if values and len(values) != self.inputs:
                raise ValueError(
                    f"--{key}{place}: expected {self.inputs} numbers, one per input, got {len(values)}; "
                    "add or drop some"
                )
        if not math.isfinite(options.scale):
            raise ValueError(f"--scale{place}: expected a finite number, got {options.scale}; correct it")
        if self.method.kind == "elements":
            from merging.sparse import check_options

            try:
                check_options(self.method.name, options)
            except ValueError as error:
                raise ValueError(f"{error}{place}") from None

    def _refuse_parameter(self, parameter: str) -> None:
        row = self.method
        if parameter == "weights" and "t" in row.takes:
            raise ValueError(f"--weights: {row.name} expected --t, got weights; give --t in [0, 1]")
        if parameter == "t" and "weights" in row.takes:
            raise ValueError(f"--t: {row.name} expected --weights, got t; give one weight per input")
        known = f"no parameters but {', '.join(sorted(row.takes))}" if row.takes else "no parameters"
        raise ValueError(f"--{parameter}: {row.name} expected {known}, got {parameter}; leave it out")


def settle_rule(
    method: str,
    *,
    inputs: int,
    has_base: bool,
    base_index: int | None,
    settings: Settings,
    layers: int = 0,
    space: str | None = None,
    granularity: str = "tensor",
    norm: str = "interpolate",
    antipodal: str = "error",
    seed: int = 0,
    extrapolate: bool = False,
    compat: str | None = None,
) -> Rule:
    """Check what was asked and fill in the defaults.

    ``base_index`` says which input is the base itself, if one is.  Then the space is ``weight`` and the base
    is the t = 0 end: in task vectors its own delta is zero, and every method would quietly become linear.

    Raises:
        ValueError: an unknown name (with the closest), too few or too many inputs, a space or policy that
            needs a base and has none, or a parameter that the method does not take.
    """
    row = find_method(method)
    _check_count(row, inputs)
    if compat not in (None, "mergekit"):
        raise ValueError(f"--compat: expected mergekit, got {compat!r}; leave it out for embarc's own formulas")
    settled_space = _settle_space(row, space, has_base, base_index)
    chosen_norm = _one_of("--norm", norm, get_args(Norm))
    chosen_antipodal = _one_of("--antipodal", antipodal, get_args(Antipodal))
    chosen_granularity = _one_of("--granularity", granularity, get_args(Granularity))
    if chosen_norm != "interpolate" and ("norm" not in row.takes or compat):
        raise ValueError(
            f"--norm: {row.name} expected no norm rule, got {norm!r}; leave it out or use slerp or karcher"
        )
    if chosen_norm == "base" and (not has_base or settled_space == "task_vector"):
        raise ValueError(
            "--norm base: expected --base and --space weight, got others (a base's own task vector is zero); add them"
        )
    if chosen_antipodal == "base" and settled_space == "weight" and base_index is None:
        raise ValueError("--antipodal base: expected task vectors or the base as an input, got neither; add --base")
    if chosen_granularity != "tensor" and row.kind == "elements":
        raise ValueError(
            f"--granularity: {row.name} expected tensor, as it looks at single elements, got {granularity!r}; use "
            "a method such as karcher"
        )
    rule = Rule(
        method=row,
        inputs=inputs,
        settings=settings,
        layers=layers,
        space=settled_space,
        granularity=chosen_granularity,  # type: ignore[arg-type]
        norm=chosen_norm,  # type: ignore[arg-type]
        antipodal=chosen_antipodal,  # type: ignore[arg-type]
        base_index=base_index,
        seed=seed,
        extrapolate=extrapolate,
        compat=compat is not None,
    )
    if rule.is_constant:
        rule.at("")
    return rule


def _option(key: str, value: Any) -> Any:
    if key in PER_INPUT:
        return tuple(float(item) for item in value)
    return bool(value) if key in ("normalize", "rescale") else float(value)


def _check_count(row: Method, inputs: int) -> None:
    if inputs < row.minimum or (row.maximum is not None and inputs > row.maximum):
        wanted = f"exactly {row.minimum}" if row.maximum == row.minimum else f"at least {row.minimum}"
        hint = "; karcher takes any number" if row.maximum is not None and inputs > row.maximum else "; add --inputs"
        raise ValueError(f"--inputs: {row.name} expected {wanted} models, got {inputs}{hint}")


def _settle_space(row: Method, space: str | None, has_base: bool, base_index: int | None) -> Space:
    if row.needs_base:
        if not has_base:
            raise ValueError(f"--base: {row.name} expected a base to take differences from, got none; add --base")
        if base_index is not None:
            raise ValueError(
                f"--inputs: {row.name} expected models other than the base (its task vector is zero), got the base "
                "among them; leave it out"
            )
        if space == "weight":
            raise ValueError(f"--space: {row.name} expected task_vector, got weight; leave it out")
        return "task_vector"
    if space is None:
        in_task_space = has_base and base_index is None and row.name != "passthrough"
        return "task_vector" if in_task_space else "weight"
    if _one_of("--space", space, get_args(Space)) == "weight":
        return "weight"
    if not has_base:
        raise ValueError("--space task_vector: expected a base to take differences from, got none; add --base")
    if base_index is not None:
        raise ValueError(
            "--space task_vector: expected inputs other than the base, got the base among them (its task vector is "
            "zero); use --space weight"
        )
    return "task_vector"


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{flag}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
    return value

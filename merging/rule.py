"""What a merge is asked to do, checked and completed: one frozen ``Rule`` for files and for memory alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from merging.methods import Method, find_method

Space = Literal["weight", "task_vector"]
Norm = Literal["interpolate", "base", "geometric"]
Antipodal = Literal["error", "linear", "base"]
Number = int | float  # both named: what checks types at run time does not take an int for a float


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A method with every parameter settled."""

    method: Method
    weights: tuple[float, ...]
    """One per input, not negative, summing to 1; ``t`` arrives here as (1 - t, t)."""
    t: float | None
    """The position as it was asked for; None for methods told by weights."""
    space: Space
    """``task_vector``: inputs are taken as differences from the base; ``weight``: as they are."""
    norm: Norm
    antipodal: Antipodal
    base_index: int | None
    """Which input is the base itself; None if none is."""


def settle_rule(
    method: str,
    *,
    inputs: int,
    has_base: bool,
    base_index: int | None,
    weights: Sequence[Number] | None,
    t: Number | None,
    space: str | None,
    norm: str,
    antipodal: str,
) -> Rule:
    """Check what was asked and fill in the defaults.

    ``base_index`` says which input is the base itself, if one is.  Then the space is ``weight`` and the base
    is the t = 0 end: in task vectors its own delta is zero, and every method would quietly become linear.

    Raises:
        ValueError: an unknown name (with the closest), too few or too many inputs, weights of the wrong
            number or sign or with sum zero, t outside [0, 1], a space or policy that needs a base and has
            none, or a parameter that the method does not take.
    """
    row = find_method(method)
    _check_count(row, inputs)
    settled_space = _settle_space(space, has_base, base_index)
    chosen_norm = _one_of("--norm", norm, get_args(Norm))
    chosen_antipodal = _one_of("--antipodal", antipodal, get_args(Antipodal))
    if chosen_norm != "interpolate" and not row.takes_norm:
        raise ValueError(f"--norm: {row.name} has no norm rule, got {norm!r}; leave it out or use slerp or karcher")
    if chosen_norm == "base" and (not has_base or settled_space == "task_vector"):
        raise ValueError("--norm base: expected --base and --space weight (a base's own task vector is zero); add them")
    if chosen_antipodal == "base" and settled_space == "weight" and base_index is None:
        raise ValueError("--antipodal base: expected task vectors or the base as an input, got neither; add --base")
    position, shares = _settle_shares(row, t, weights, inputs)
    if base_index == 1 and position is not None:
        shares = shares[::-1]
    return Rule(
        method=row,
        weights=shares,
        t=position,
        space=settled_space,
        norm=chosen_norm,  # type: ignore[arg-type]
        antipodal=chosen_antipodal,  # type: ignore[arg-type]
        base_index=base_index,
    )


def _check_count(row: Method, inputs: int) -> None:
    if inputs < row.minimum or (row.maximum is not None and inputs > row.maximum):
        wanted = f"exactly {row.minimum}" if row.maximum == row.minimum else f"at least {row.minimum}"
        hint = "; karcher takes any number" if row.maximum is not None and inputs > row.maximum else "; add --inputs"
        raise ValueError(f"--inputs: {row.name} expected {wanted} models, got {inputs}{hint}")


def _settle_space(space: str | None, has_base: bool, base_index: int | None) -> Space:
    if space is None:
        return "task_vector" if has_base and base_index is None else "weight"
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


def _settle_shares(
    row: Method, t: Number | None, weights: Sequence[Number] | None, inputs: int
) -> tuple[float | None, tuple[float, ...]]:
    """Return (t, weights): t is None for a merge told by weights, and weights are (1 - t, t) for one told by t."""
    if t is not None and weights is not None:
        raise ValueError("--t and --weights: expected one of them, got both; t is the same as weights (1 - t, t)")
    if weights is not None and not row.takes_weights:
        raise ValueError(f"--weights: {row.name} is told by --t, got weights; give --t in [0, 1]")
    if t is not None and not row.takes_t:
        raise ValueError(f"--t: {row.name} is told by --weights, got t = {t}; give one weight per input")
    if t is None and row.takes_weights:
        return None, _check_weights(weights, inputs)
    position = _check_t(row, 0.5 if t is None else t, inputs)
    return position, (1 - position, position)


def _check_t(row: Method, t: Number, inputs: int) -> float:
    if inputs != 2:
        raise ValueError(f"--t: {row.name} expected 2 models for a position between them, got {inputs}; use --weights")
    if not 0 <= t <= 1:
        raise ValueError(f"--t: expected a number in [0, 1], got {t}; 0 is the first model, 1 the second")
    return float(t)


def _check_weights(weights: Sequence[Number] | None, inputs: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / inputs,) * inputs
    if len(weights) != inputs:
        raise ValueError(f"--weights: expected {inputs} numbers, one per input, got {len(weights)}; add or drop some")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"--weights: expected finite numbers that are not negative, got {list(weights)}; correct them")
    total = sum(weights)
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"--weights: expected a sum above zero, got {list(weights)}; make at least one positive")
    return tuple(weight / total for weight in weights)


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{flag}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
    return value

"""What the user asks of a merge, as it was asked: one record for files, for adapters and for searches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merging.rule import Rule, settle_rule
from merging.schedule import Settings

PathLike = str | os.PathLike[str]
Input = PathLike | tuple[PathLike, PathLike]
"""A model, or a pair of a model and the adapter to fold into it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of ``merge_checkpoints`` that say what is merged and how."""

    inputs: Sequence[Input]
    method: str
    base: PathLike | None = None
    settings: Settings
    space: str | None = None
    granularity: str = "tensor"
    norm: str = "interpolate"
    antipodal: str = "error"
    seed: int = 0
    extrapolate: bool = False
    compat: str | None = None
    dtype: str | None = None
    companions: PathLike | None = None
    lightning_checkpoints: bool = False

    def rule(self, *, inputs: int, has_base: bool, base_index: int | None, layers: int) -> Rule:
        """Return the rule for models of which so much is known."""
        return settle_rule(
            self.method,
            inputs=inputs,
            has_base=has_base,
            base_index=base_index,
            settings=self.settings,
            layers=layers,
            space=self.space,
            granularity=self.granularity,
            norm=self.norm,
            antipodal=self.antipodal,
            seed=self.seed,
            extrapolate=self.extrapolate,
            compat=self.compat,
        )


def settings_of(
    settings: Settings | None,
    *,
    t: Any = None,
    weights: Sequence[Any] | None = None,
    scale: Any = None,
    density: Any = None,
    gamma: Any = None,
    epsilon: Any = None,
    normalize: Any = None,
    rescale: Any = None,
    select_topk: Any = None,
    inputs: int,
) -> Settings:
    """Return the settings that were given, or those made of single parameters, each of which may be a schedule.

    ``density``, ``gamma`` and ``epsilon`` may be one number for all inputs, or a sequence with one per input.

    Raises:
        ValueError: both were given, or a value is no number and no schedule.
    """
    shared = {"t": t, "scale": scale, "normalize": normalize, "rescale": rescale, "select_topk": select_topk}
    each = {"weights": weights, "density": density, "gamma": gamma, "epsilon": epsilon}
    given = [key for key, value in (shared | each).items() if value is not None]
    if settings is not None:
        if given:
            raise ValueError(
                f"--{given[0]}: expected either a recipe's settings or single ones, got both; leave one out"
            )
        return settings
    spread = {
        key: (value,) * inputs if key != "weights" and isinstance(value, int | float) else value
        for key, value in each.items()
    }
    return Settings.parse(shared, spread)

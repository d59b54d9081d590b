"""METHODS: every way to merge, one row each.

The table imports the standard library only, so that ``--help`` can show it without loading torch; a row
names its function and ``Method.function`` fetches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """A choice of coefficients from the Gram matrix of the inputs."""

    name: str
    summary: str
    """One line for ``--help``."""
    home: str
    """Module of this package that holds the function, which carries the method's name."""
    minimum: int = 2
    """Fewest inputs."""
    maximum: int | None = None
    """Most inputs; None for any number."""
    takes_t: bool
    """Whether the position between two inputs may be given as ``t`` (0 is the first, or the base)."""
    takes_weights: bool
    """Whether one weight per input may be given."""
    takes_norm: bool
    """Whether the length of the result is a choice (``norm``), apart from its direction."""
    reference: str

    @property
    def function(self) -> Callable[..., Any]:
        """The function ``(gram, weights, *, norm, antipodal) -> Solution``."""
        return getattr(import_module(f"merging.{self.home}"), self.name)


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="linear",
            summary="weighted average; the uniform soup by default",
            home="linear",
            takes_t=True,
            takes_weights=True,
            takes_norm=False,
            reference="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
        ),
        Method(
            name="slerp",
            summary="along the arc between two models, at t",
            home="spherical",
            maximum=2,
            takes_t=True,
            takes_weights=False,
            takes_norm=True,
            reference="Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH",
        ),
        Method(
            name="karcher",
            summary="weighted mean on the sphere of any number of models",
            home="spherical",
            takes_t=False,
            takes_weights=True,
            takes_norm=True,
            reference="Karcher 1977, Riemannian center of mass and mollifier smoothing, CPAM 30(5)",
        ),
    )
}
"""The merge methods by name."""


def find_method(name: str) -> Method:
    """Return the row of ``name``, or raise ValueError with the closest names."""
    if name in METHODS:
        return METHODS[name]
    close = get_close_matches(name, METHODS, n=2, cutoff=0.5) or list(METHODS)
    raise ValueError(
        f"--method: expected one of {', '.join(METHODS)}, got {name!r}; did you mean {' or '.join(close)}?"
    )

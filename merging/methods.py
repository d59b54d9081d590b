"""METHODS: every way to merge, one row each.

The table imports the standard library only, so that ``--help`` can show it without loading torch; a row
names its function and ``Method.function`` fetches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to merge.

    ``kind`` says what its function looks at.  ``coefficients``: the Gram matrices of the inputs; the function is
    ``(gram, weights, options) -> Solution``.  ``elements``: single elements of the task vectors; the function is
    ``(walk, weights, options, name) -> combine``, see ``merging.sparse``.
    """

    name: str
    summary: str
    """One line for ``--help``."""
    home: str
    """Module of this package that holds the function."""
    called: str = ""
    """The function; by default it carries the method's name."""
    compat: str = ""
    """The function with mergekit's own formula, where that differs from ours: of ``mergekit_compat``, or of
    ``mergekit_sparse`` for methods that look at single elements."""
    kind: Literal["coefficients", "elements"] = "coefficients"
    minimum: int = 2
    """Fewest inputs."""
    maximum: int | None = None
    """Most inputs; None for any number."""
    needs_gram: bool = True
    """Whether coefficients depend on the Gram matrix; otherwise one pass over the files is enough."""
    needs_base: bool = False
    """Whether it is defined on differences from a base only."""
    takes: frozenset[str] = frozenset()
    """Parameters it can be told: ``t``, ``weights``, ``norm`` and fields of ``Options``."""
    weights_sum_to_one: bool = True
    """Whether weights are scaled to sum 1 (and default to equal shares); otherwise they default to 1 each."""
    defaults: tuple[tuple[str, Any], ...] = ()
    """Options that differ from the defaults of ``Options``."""
    reference: str

    @property
    def function(self) -> Callable[..., Any]:
        """The function that ``kind`` describes."""
        return getattr(import_module(f"merging.{self.home}"), self.called or self.name)

    @property
    def compat_function(self) -> Callable[..., Any]:
        """The function that reproduces mergekit's numbers: its own formula, or ours where they agree."""
        if not self.compat:
            return self.function
        home = "mergekit_sparse" if self.kind == "elements" else "mergekit_compat"
        return getattr(import_module(f"merging.{home}"), self.compat)


WEIGHTS_AND_NORM = frozenset({"weights", "norm"})
SPARSE = frozenset({"weights", "density", "scale", "normalize", "rescale"})

_ROWS = (
    Method(
        name="linear",
        needs_gram=False,
        summary="weighted average; the uniform soup by default",
        home="linear",
        takes=frozenset({"t", "weights", "normalize"}),
        defaults=(("normalize", True),),
        reference="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
    ),
    Method(
        name="slerp",
        summary="along the arc between two models, at t",
        home="spherical",
        compat="slerp",
        maximum=2,
        takes=frozenset({"t", "norm"}),
        reference="Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH",
    ),
    Method(
        name="nuslerp",
        summary="along the arc between two models, told by weights",
        home="spherical",
        called="slerp",
        compat="nuslerp",
        maximum=2,
        takes=WEIGHTS_AND_NORM,
        reference="Goddard et al. 2024, mergekit, arXiv:2403.13257 (nuslerp)",
    ),
    Method(
        name="karcher",
        summary="weighted mean on the sphere of any number of models",
        home="spherical",
        compat="karcher",
        takes=WEIGHTS_AND_NORM,
        reference="Karcher 1977, Riemannian center of mass and mollifier smoothing, CPAM 30(5)",
    ),
    Method(
        name="multislerp",
        summary="the same as karcher, under mergekit's name",
        home="spherical",
        called="karcher",
        compat="multislerp",
        takes=WEIGHTS_AND_NORM,
        reference="Goddard et al. 2024, mergekit, arXiv:2403.13257 (multislerp)",
    ),
    Method(
        name="hierarchical_slerp",
        summary="slerp of neighbours, then of the results, as a tree",
        home="hierarchical",
        takes=WEIGHTS_AND_NORM,
        reference="Shoemake 1985, pairwise; the tree as in Buss and Fillmore 2001, Spherical averages, ACM TOG 20(2)",
    ),
    Method(
        name="sequential_slerp",
        summary="each model joins the mean so far by slerp, the k-th with share 1/k",
        home="hierarchical",
        takes=WEIGHTS_AND_NORM,
        reference="Shoemake 1985, pairwise; the running mean as in Rame et al. 2024, WARP, arXiv:2406.16768",
    ),
    Method(
        name="norm_matched",
        summary="the soup's direction at the interpolated norm",
        home="linear",
        takes=WEIGHTS_AND_NORM,
        reference="Shoemake 1985 (normalised linear interpolation)",
    ),
    Method(
        name="warp",
        summary="spherical mean of task vectors, then back towards the base",
        home="task_arithmetic",
        needs_base=True,
        takes=WEIGHTS_AND_NORM | {"scale"},
        defaults=(("scale", 0.5),),
        reference="Rame et al. 2024, WARP, arXiv:2406.16768",
    ),
    Method(
        name="task_arithmetic",
        needs_gram=False,
        summary="the base plus a weighted sum of task vectors",
        home="task_arithmetic",
        minimum=1,
        needs_base=True,
        takes=frozenset({"weights", "scale", "normalize"}),
        weights_sum_to_one=False,
        reference="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089",
    ),
    Method(
        name="model_stock",
        summary="the soup, pulled to the base by as much as the angles say",
        home="task_arithmetic",
        needs_base=True,
        compat="model_stock",
        reference="Jang et al. 2024, Model Stock, arXiv:2403.19522",
    ),
    Method(
        name="ties",
        compat="ties",
        summary="trim task vectors, elect a sign for each element, average those that agree",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE,
        weights_sum_to_one=False,
        defaults=(("normalize", True),),
        reference="Yadav et al. 2023, TIES-Merging, arXiv:2306.01708",
    ),
    Method(
        name="dare_linear",
        compat="dare_linear",
        summary="drop elements at random, rescale, add",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE,
        weights_sum_to_one=False,
        defaults=(("rescale", True),),
        reference="Yu et al. 2024, Language models are super mario, arXiv:2311.03099",
    ),
    Method(
        name="dare_ties",
        compat="dare_ties",
        summary="drop elements at random, rescale, elect signs",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE,
        weights_sum_to_one=False,
        defaults=(("rescale", True),),
        reference="Yu et al. 2024, Language models are super mario, arXiv:2311.03099",
    ),
    Method(
        name="della",
        compat="della",
        summary="drop elements at random, small ones more often, rescale, elect signs",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE | {"epsilon"},
        weights_sum_to_one=False,
        defaults=(("rescale", True), ("normalize", True)),
        reference="Deep et al. 2024, DELLA-Merging, arXiv:2406.11617",
    ),
    Method(
        name="della_linear",
        compat="della_linear",
        summary="drop elements at random, small ones more often, rescale, add",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE | {"epsilon"},
        weights_sum_to_one=False,
        defaults=(("rescale", True),),
        reference="Deep et al. 2024, DELLA-Merging, arXiv:2406.11617",
    ),
    Method(
        name="breadcrumbs",
        compat="breadcrumbs",
        summary="drop the smallest and the largest elements, add",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE | {"gamma"},
        weights_sum_to_one=False,
        reference="Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795",
    ),
    Method(
        name="breadcrumbs_ties",
        compat="breadcrumbs_ties",
        summary="drop the smallest and the largest elements, elect signs",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=SPARSE | {"gamma"},
        weights_sum_to_one=False,
        reference="Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795",
    ),
    Method(
        name="sce",
        compat="sce",
        summary="keep the elements that differ most, weigh by their squares, erase minority signs",
        home="sparse",
        kind="elements",
        minimum=1,
        needs_base=True,
        takes=frozenset({"select_topk"}),
        weights_sum_to_one=False,
        reference="Wan et al. 2024, FuseChat, arXiv:2408.07990",
    ),
    Method(
        name="passthrough",
        needs_gram=False,
        summary="one model as it is, an adapter folded into its base",
        home="linear",
        minimum=1,
        maximum=1,
        takes=frozenset({"scale"}),
        reference="Hu et al. 2021, LoRA, arXiv:2106.09685 (folding)",
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
"""The merge methods by name."""


def find_method(name: str) -> Method:
    """Return the row of ``name``, or raise ValueError with the closest names."""
    if name in METHODS:
        return METHODS[name]
    close = get_close_matches(name, METHODS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "choose one of them"
    raise ValueError(f"--method: expected one of {', '.join(METHODS)}, got {name!r}; {hint}")

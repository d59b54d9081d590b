import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.methods import METHODS
from merging.options import Options
from merging.sparse import check_options
from merging.trimming import drop_by_rank, drop_evenly
from merging.walk import Walk
from tests.merging import sparse_oracle
from tests.merging.sparse_oracle import matrices, run, walk_over

ELEMENTS = sorted(name for name, row in METHODS.items() if row.kind == "elements")
RANDOM = [name for name in ELEMENTS if name.startswith(("dare", "della"))]

# numbers that mergekit 0.1.5 gives for these
VECTORS = torch.tensor(
    [
        [[0.9, -0.2, 0.4, -0.7], [0.05, 0.6, -0.3, 0.1]],
        [[0.5, 0.3, -0.8, -0.6], [-0.15, 0.25, -0.45, 0.2]],
        [[-0.35, 0.55, 0.65, 0.1], [0.75, -0.95, 0.3, -0.85]],
    ]
)
WEIGHTS = torch.tensor([1.0, 0.5, -0.25]).double()
KEPT = {"density": (0.5, 0.75, 1.0), "gamma": (0.125, 0.25, 0.0)}


def merge(name: str, walk: Walk, weights: Tensor, options: Options, tensor: str = "w") -> Tensor:
    return run(METHODS[name].function(walk, weights, options, tensor), walk)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("ties", {"normalize": True}, [0.99, 0.3, -2.25, -0.82, 0.75, 0.77, -1.2, -0.85]),
        (
            "ties",
            {"normalize": True, "rescale": True, "scale": 0.5},
            [0.597069, 0.1681035, -1.2215518, -0.4944828, 0.375, 0.4510345, -0.6543103, -0.425],
        ),
        ("breadcrumbs", {}, [0.3375, 0.0125, 0.2375, -0.725, -0.2625, 0.9625, -0.6, 0.3125]),
        (
            "breadcrumbs",
            {"normalize": True, "rescale": True},
            [0.4213513, 0.1008108, 0.39, -0.93, -0.2554054, 1.1456757, -0.7662162, 0.3105405],
        ),
        ("breadcrumbs_ties", {}, [0.3375, 0.15, 0.4, -0.725, -0.2625, 0.9625, -0.6, 0.3125]),
        (
            "breadcrumbs_ties",
            {"normalize": True, "rescale": True, "scale": 2.0},
            [4.2135134, 1.0540541, 1.3, -3.1, -2.5540543, 2.2913513, -1.5324323, 3.1054053],
        ),
    ],
)
def test_mergekits_numbers(name: str, settings: dict[str, float], expected: list[float], rows: int) -> None:
    got = merge(name, walk_over(VECTORS, rows), WEIGHTS, Options(**KEPT, **settings))
    torch.testing.assert_close(got.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, [0.7162535, 0.4631962, 0.5537518, -0.6540633, 0.4805051, -0.95, -0.368905, -0.85]),
        (0.5, [0.7297963, 0.0, 0.5545584, 0.0, 0.0, -0.95, 0.0, -0.85]),
        (0.25, [0.0, 0.0, 0.5795393, 0.0, 0.0, -0.95, 0.0, 0.0]),
    ],
)
def test_mergekits_numbers_of_sce(share: float, expected: list[float]) -> None:
    got = merge("sce", walk_over(VECTORS, 1), torch.ones(3).double(), Options(select_topk=share))
    torch.testing.assert_close(got.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


@given(
    matrices(), st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=4, max_size=4), st.booleans(), st.booleans()
)
def test_trimming_then_consensus(
    case: tuple[Tensor, int], densities: list[float], normalize: bool, rescale: bool
) -> None:
    vectors, rows = case
    n = len(vectors)
    weights, gammas, walk = [1.0, 0.5, 0.75, 0.25][:n], [0.0, 0.1, 0.3, 0.5][:n], walk_over(vectors, rows)
    options = Options(
        density=tuple(densities[:n]), gamma=tuple(gammas), normalize=normalize, rescale=rescale, scale=0.5
    )
    plain = [vector.flatten().tolist() for vector in vectors]
    largest = [sparse_oracle.keep_largest(x, d) for x, d in zip(plain, densities, strict=False)]
    middle = [sparse_oracle.keep_middle(x, d, g) for x, d, g in zip(plain, densities, gammas, strict=False)]
    for name, trimmed in (("ties", largest), ("breadcrumbs", middle), ("breadcrumbs_ties", middle)):
        if rescale:
            trimmed = [sparse_oracle.restore_length(x, kept) for x, kept in zip(plain, trimmed, strict=True)]
            # rescaled votes of small integers may cancel but for their rounding, where either sign is right
            trimmed = [torch.tensor(x).tolist() for x in trimmed]
            if name != "breadcrumbs" and is_close_vote(trimmed, weights):
                continue
        consensus = sparse_oracle.add if name == "breadcrumbs" else sparse_oracle.elect
        got = merge(name, walk, torch.tensor(weights).double(), options).flatten()
        torch.testing.assert_close(got, torch.tensor(consensus(trimmed, weights, normalize, 0.5)))


def is_close_vote(trimmed: list[list[float]], weights: list[float]) -> bool:
    votes = [[w * x for w, x in zip(weights, xs, strict=True)] for xs in zip(*trimmed, strict=True)]
    return any(sum(map(abs, vote)) > 0 and abs(sum(vote)) < 1e-5 * sum(map(abs, vote)) for vote in votes)


@pytest.mark.parametrize("name", ELEMENTS)
def test_it_is_determined_and_leaves_its_chunks_alone(name: str) -> None:
    vectors = torch.randn(3, 12, 10, generator=torch.Generator().manual_seed(0))
    options = Options(density=(0.5,) * 3, epsilon=(0.2,) * 3, select_topk=0.5, normalize=True, rescale=True)
    walk, weights = walk_over(vectors, 5), torch.tensor([0.5, 0.3, 0.2]).double()
    first = merge(name, walk, weights, options)
    assert first.shape == (12, 10)
    assert first.isfinite().all()
    assert torch.equal(first, merge(name, walk, weights, options))


@pytest.mark.parametrize("name", [name for name in ELEMENTS if name not in RANDOM])
def test_the_borders_of_chunks_do_not_count(name: str) -> None:
    vectors = torch.randn(3, 24, 10, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    options = Options(density=(0.3, 0.5, 0.7), select_topk=0.5, normalize=True)
    results = [merge(name, walk_over(vectors, rows), WEIGHTS, options) for rows in (1, 5, 24)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", RANDOM)
def test_masks_depend_on_seed_and_name(name: str) -> None:
    vectors = torch.randn(2, 12, 10, generator=torch.Generator().manual_seed(0))
    walk, weights = walk_over(vectors, 5), torch.ones(2).double()
    options = [Options(density=(0.5, 0.5), seed=seed) for seed in (0, 1)]
    first = merge(name, walk, weights, options[0])
    assert not torch.equal(first, merge(name, walk, weights, options[1]))
    assert not torch.equal(first, merge(name, walk, weights, options[0], tensor="v"))


@pytest.mark.parametrize(("name", "consensus"), [("dare_linear", "add"), ("dare_ties", "elect")])
def test_dare_is_its_mask_and_a_consensus(name: str, consensus: str) -> None:
    vectors = torch.randint(-3, 4, (2, 12, 10), generator=torch.Generator().manual_seed(0)).float()
    walk = walk_over(vectors, 5)
    trim = drop_evenly((0.5, 0.25), rescale=True, seed=7, name="w")
    trimmed = torch.cat([trim(index, chunk.clone()) for index, chunk in enumerate(walk())], dim=1)
    plain = [vector.flatten().tolist() for vector in trimmed]
    expected = getattr(sparse_oracle, consensus)(plain, [1.0, 0.5], False, 2.0)
    options = Options(density=(0.5, 0.25), rescale=True, seed=7, scale=2.0)
    got = merge(name, walk, torch.tensor([1.0, 0.5]).double(), options)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected))


@pytest.mark.parametrize(("name", "consensus"), [("della_linear", "add"), ("della", "elect")])
def test_della_is_its_mask_and_a_consensus(name: str, consensus: str) -> None:
    vectors = torch.randint(-3, 4, (2, 12, 10), generator=torch.Generator().manual_seed(0)).float()
    walk = walk_over(vectors, 5)
    trim = drop_by_rank((0.5, 0.4), (0.25, 0.15), rescale=False, seed=7, name="w")
    trimmed = torch.cat([trim(index, chunk.clone()) for index, chunk in enumerate(walk())], dim=1)
    plain = [vector.flatten().tolist() for vector in trimmed]
    expected = getattr(sparse_oracle, consensus)(plain, [1.0, 0.5], True, 1.0)
    options = Options(density=(0.5, 0.4), epsilon=(0.25, 0.15), normalize=True, seed=7)
    got = merge(name, walk, torch.tensor([1.0, 0.5]).double(), options)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected))


@pytest.mark.parametrize(("name", "same"), [("dare_linear", "breadcrumbs"), ("dare_ties", "ties"), ("della", "ties")])
def test_without_dropping_only_the_consensus_is_left(name: str, same: str) -> None:
    vectors = torch.randn(3, 12, 10, generator=torch.Generator().manual_seed(0))
    walk = walk_over(vectors, 5)
    for options in (Options(rescale=True), Options(normalize=True)):
        assert torch.equal(merge(name, walk, WEIGHTS, options), merge(same, walk, WEIGHTS, options))


@pytest.mark.parametrize("name", ELEMENTS)
def test_nothing_is_left_at_density_zero(name: str) -> None:
    vectors = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    options = Options(density=(0.0, 0.0), select_topk=0.0, rescale=True, normalize=True)
    assert not merge(name, walk_over(vectors, 4), torch.ones(2).double(), options).any()


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_tensors_of_one_row_or_column(name: str, shape: tuple[int, int]) -> None:
    vectors = torch.ones(2, *shape)
    options = Options(density=(0.5, 0.5), rescale=True, select_topk=1.0)
    assert merge(name, walk_over(vectors, 4), torch.ones(2).double(), options).isfinite().all()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("ties", {"density": (0.5, 1.5)}, r"--density: expected numbers in \[0, 1\], got \[0.5, 1.5\]; "),
        ("dare_linear", {"density": (-0.1,)}, "--density: expected numbers in"),
        ("della", {"density": (math.nan,)}, "--density: expected numbers in"),
        ("breadcrumbs", {"gamma": (1.0, 0.0)}, r"--gamma: expected numbers in \[0, 1\), got \[1.0, 0.0\]; "),
        ("breadcrumbs_ties", {"gamma": (math.nan,)}, "--gamma: expected numbers in"),
        ("della", {"epsilon": (0.5,)}, r"--epsilon: expected numbers in \[0, 0.5\), got \[0.5\]; "),
        ("della_linear", {"epsilon": (-0.1,)}, "--epsilon: expected numbers in"),
        (
            "della",
            {"density": (0.5, 0.9)},
            r"--epsilon: expected density - epsilon and density \+ epsilon inside \(0, 1\), got density 0.9 and epsilon "
            "0.15; give an epsilon below 0.1",
        ),
        ("della", {"density": (0.25,), "epsilon": (0.25,)}, "got density 0.25 and epsilon 0.25; give an epsilon below"),
        ("sce", {"select_topk": 1.1}, r"--select-topk: expected a number in \[0, 1\], got 1.1; "),
        ("sce", {"select_topk": math.nan}, "--select-topk: expected a number in"),
        ("ties", {"scale": math.inf}, "--scale: expected a finite number, got inf; "),
    ],
)
def test_values_out_of_range_are_refused(method: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_options(method, Options(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((name, {}) for name in ELEMENTS),
        ("ties", {"density": (0.0, 1.0), "gamma": (2.0,), "epsilon": (9.0,)}),
        ("della", {"density": (1.0, 0.0, 0.5), "epsilon": (0.4, 0.4, 0.4)}),
        ("breadcrumbs", {"density": (0.9,), "gamma": (0.5,)}),
    ],
)
def test_values_in_range_and_those_it_does_not_read_are_taken(method: str, settings: dict[str, object]) -> None:
    check_options(method, Options(**settings))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ELEMENTS)
def test_the_device_does_not_count(name: str) -> None:
    vectors = torch.randn(3, 64, 50, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    options = Options(density=(0.4, 0.5, 0.6), epsilon=(0.2,) * 3, select_topk=0.5, normalize=True, rescale=True)
    walk = walk_over(vectors, 20)
    on_device = lambda: (chunk.cuda() for chunk in walk())  # noqa: E731
    got = merge(name, on_device, WEIGHTS, options)
    torch.testing.assert_close(got.cpu(), merge(name, walk, WEIGHTS, options), rtol=1e-6, atol=1e-6)

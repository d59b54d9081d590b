import pytest
import torch
from torch import Tensor

from merging import mergekit_sparse, sparse
from merging.options import Options
from merging.trimming import drop_by_rank, drop_evenly
from tests.merging import sparse_oracle
from tests.merging.sparse_oracle import run, walk_over

METHODS = (
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "sce",
    "ties",
)


def integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("name", METHODS)
def test_without_its_peculiarities_it_is_ours(name: str) -> None:
    walk, weights = walk_over(integers(3, 12, 10), 5), torch.tensor([1.0, 0.5, 0.25]).double()
    options = Options(density=(0.4, 0.5, 0.6), epsilon=(0.2,) * 3, normalize=True, select_topk=0.5)
    got = run(getattr(mergekit_sparse, name)(walk, weights, options, "w"), walk)
    torch.testing.assert_close(got, run(getattr(sparse, name)(walk, weights, options, "w"), walk))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_drops_are_rescaled_in_the_l1_norm(name: str) -> None:
    vectors, densities = integers(2, 12, 10), (0.5, 0.25)
    walk = walk_over(vectors, 5)
    if name.startswith("dare"):
        trim = drop_evenly(densities, rescale=False, seed=3, name="w")
    else:
        trim = drop_by_rank(densities, (0.2, 0.2), rescale=False, seed=3, name="w")
    kept = torch.cat([trim(index, chunk.clone()) for index, chunk in enumerate(walk())], dim=1)
    plain = [
        sparse_oracle.restore_length(vector.flatten().tolist(), left.flatten().tolist())
        for vector, left in zip(vectors, kept, strict=True)
    ]
    consensus = sparse_oracle.add if name.endswith("linear") else sparse_oracle.elect
    expected = consensus(plain, [1.0, 0.7], True, 0.5)
    options = Options(density=densities, epsilon=(0.2, 0.2), rescale=True, normalize=True, seed=3, scale=0.5)
    got = run(getattr(mergekit_sparse, name)(walk, torch.tensor([1.0, 0.7]).double(), options, "w"), walk)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected))


def test_small_task_vectors_have_equal_shares_in_sce() -> None:
    vectors = 1e-3 * torch.tensor([[[0.9, -0.2, 0.4, -0.7]], [[0.5, 0.3, -0.8, -0.6]], [[-0.35, 0.55, 0.65, 0.1]]])
    walk = walk_over(vectors, 1)
    got = run(mergekit_sparse.sce(walk, torch.ones(3).double(), Options(), "w"), walk)
    torch.testing.assert_close(1e3 * got, torch.tensor([[0.7, 0.425, 0.525, -0.65]]))


def test_sce_divides_by_a_millionth_at_least() -> None:
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1e-5]]])
    walk = walk_over(vectors, 1)
    got = run(mergekit_sparse.sce(walk, torch.ones(2).double(), Options(), "w"), walk)
    torch.testing.assert_close(got, torch.tensor([[1.0, 1e-5 * 1e-10 / 1e-6]]), rtol=1e-5, atol=0)


def test_tiny_task_vectors_are_not_rescaled() -> None:
    vectors = torch.tensor([[[4e-8, 3e-8]]])
    walk, options = walk_over(vectors, 1), Options(density=(0.5,), rescale=True)
    one = torch.ones(1).double()
    assert torch.equal(run(mergekit_sparse.ties(walk, one, options, "w"), walk), torch.tensor([[4e-8, 0.0]]))
    ours = run(sparse.ties(walk, one, options, "w"), walk)
    torch.testing.assert_close(ours, torch.tensor([[7e-8, 0.0]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["dare_linear", "breadcrumbs", "della_linear"])
def test_weights_that_sum_to_zero_divide_by_one(name: str) -> None:
    vectors = integers(2, 4, 3)
    walk = walk_over(vectors, 4)
    combine = getattr(mergekit_sparse, name)(walk, torch.tensor([1.0, -1.0]).double(), Options(normalize=True), "w")
    assert torch.equal(run(combine, walk), vectors[0] - vectors[1])


def test_close_votes_are_counted_in_float32() -> None:
    # in float32 the half is larger than three tenths and two tenths by less than they are, in the order of addition
    vectors = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
    walk, weights = walk_over(vectors, 1), torch.tensor([0.3, 0.2, 0.5]).double()
    assert float(run(mergekit_sparse.ties(walk, weights, Options(), "w"), walk)) == pytest.approx(0.5)
    assert float(run(sparse.ties(walk, weights, Options(), "w"), walk)) == pytest.approx(-0.5)

import torch
from hypothesis import given
from torch import Tensor

from merging.masks import draw, keep_probabilities
from tests.merging.sparse_oracle import matrices

PLACE = {"seed": 3, "name": "layers.0.weight", "place": 1, "index": 2}


def test_a_draw_depends_on_its_place_alone() -> None:
    first = draw(torch.zeros(5, 8), **PLACE)
    torch.rand(100)
    assert torch.equal(first, draw(torch.ones(5, 8), **PLACE))


def test_every_part_of_the_place_counts() -> None:
    values = torch.zeros(5, 8)
    others = [{"seed": 4}, {"name": "layers.1.weight"}, {"place": 0}, {"index": 1}, {"place": 2, "index": 1}]
    draws = [draw(values, **PLACE | other) for other in [{}, *others]]
    assert len({tuple(one.flatten().tolist()) for one in draws}) == len(draws)


def test_a_draw_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(torch.zeros(5, 8), **PLACE)
    assert torch.equal(torch.rand(3), expected)


def test_draws_are_uniform() -> None:
    drawn = draw(torch.zeros(100, 1000), **PLACE)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1
    shares = drawn.histc(10, 0, 1) / drawn.numel()
    # the standard deviation of a share is 0.00095
    torch.testing.assert_close(shares, torch.full((10,), 0.1), rtol=0, atol=0.005)


@given(matrices())
def test_probabilities_grow_with_the_rank_in_the_row(case: tuple[Tensor, int]) -> None:
    values = case[0][0]
    columns = values.shape[1]
    expected = []
    for row in values.tolist():
        order = sorted(range(columns), key=lambda i: (abs(row[i]), i))
        steps = [order.index(i) / (columns - 1) if columns > 1 else 0.5 for i in range(columns)]
        expected.append([0.6 - 0.2 + 2 * 0.2 * step for step in steps])
    torch.testing.assert_close(keep_probabilities(values, 0.6, 0.2), torch.tensor(expected))


def test_the_only_element_of_a_row_is_kept_with_the_density() -> None:
    assert torch.equal(keep_probabilities(torch.tensor([[5.0], [0.0]]), 0.25, 0.125), torch.full((2, 1), 0.25))

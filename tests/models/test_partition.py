"""The cut of least cost, against every cut there is."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.partition import partition


def cost(parts, lengths, overhead):
    return sum(overhead + len(part) * max(lengths[at] for at in part) for part in parts)


def every_cut(lengths):
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    for number in range(len(order)):
        for cuts in combinations(range(1, len(order)), number):
            ends = (0, *cuts, len(order))
            yield [order[a:b] for a, b in pairwise(ends)]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(0, 20),
    st.one_of(st.none(), st.integers(1, 60)),
)
def test_no_cut_of_the_sorted_texts_costs_less(lengths, overhead, budget):
    def allowed(parts):
        return budget is None or all(len(p) == 1 or len(p) * max(lengths[at] for at in p) <= budget for p in parts)

    parts = partition(lengths, overhead=overhead, budget=budget)
    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    assert allowed(parts)
    best = min(cost(cut, lengths, overhead) for cut in every_cut(lengths) if allowed(cut))
    assert cost(parts, lengths, overhead) == pytest.approx(best)
    ends = [max(lengths[at] for at in part) for part in parts]
    assert ends == sorted(ends)


def test_thousands_of_texts_of_few_lengths_are_cut_by_length():
    lengths = [5 + 40 * (at % 3) for at in range(6000)]
    parts = partition(lengths)
    assert [len(part) for part in parts] == [2000, 2000, 2000]
    assert all(len({lengths[at] for at in part}) == 1 for part in parts)

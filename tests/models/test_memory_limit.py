"""Which budget follows a step without memory."""

import pytest

from models.memory_limit import smaller_budget


def test_half_of_the_largest_part_that_can_be_cut():
    assert smaller_budget([(4, 10), (2, 30), (1, 100)], None) == 30
    assert smaller_budget([(4, 10)], 64) == 20
    assert smaller_budget([(2, 1)], 2) == 1


def test_single_texts_are_first_computed_again_and_then_refused():
    assert smaller_budget([(1, 7), (1, 9)], None) == 9
    for shapes, budget in (([(1, 7), (1, 9)], 9), ([(1, 9)], None)):
        with pytest.raises(
            ValueError, match="--token-budget: expected memory for one text of 9 tokens, found none"
        ) as it:
            smaller_budget(shapes, budget)
        assert "\n" not in str(it.value)


def test_halving_ends():
    for texts, tokens in ((1, 1), (7, 13), (64, 512)):
        budget, shapes, rounds = None, [(texts, tokens)] * 2, 0
        with pytest.raises(ValueError, match="one text"):  # noqa: PT012
            while True:
                budget = smaller_budget(shapes, budget)
                shapes = [(max(1, budget // tokens), tokens)] * 2
                rounds += 1
        assert rounds <= 12

"""The matched suite: six families that differ in the order of their gaps and in nothing simpler.

A text starts at an odd number of four digits and adds 50 gaps, ten different even numbers five times each; the family is the
order in which they come. Start and gaps are drawn by one law for all families, whatever the order, so parity, length, number of
terms, the histogram of first differences and the last term tell nothing of the family. Each order also visits the five odd last
digits ten times each (after the start), and none is slower at the beginning than at the end, so neither last digits nor
magnitudes tell. What is left is the order itself: a model that scores here has read along the sequence.

The texts of different families are independent draws, not pairs with the same start: so labels may be shuffled freely, and the
permutation null is exact for everything that does not depend on the order.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

from data.sequences import Window
from data.suite import Suite, suite_of_windows

TEXTS = 24
"""Of each family."""
GAPS, REPEATS = 10, 5
"""Different gaps in a text, and how often each comes."""
POOL = tuple(gap for gap in range(4, 40, 2) if gap % 10)
"""Even, so that parity stays; not 2, a step of the paper's families; no multiples of ten, after which the last digit stays."""
LOWEST, HIGHEST = 1001, 9999

Order = Callable[[Sequence[int], int, random.Random], list[int]]
"""(different gaps, ascending; start; randomness) -> all gaps in order."""


def _rising(gaps: Sequence[int], start: int, rng: random.Random) -> list[int]:
    """The gaps from small to large, again and again, from anywhere in the pattern."""
    turn = rng.randrange(GAPS)
    return [*gaps[turn:], *gaps[:turn]] * REPEATS


def _falling(gaps: Sequence[int], start: int, rng: random.Random) -> list[int]:
    return _rising(gaps[::-1], start, rng)


def _periodic(gaps: Sequence[int], start: int, rng: random.Random) -> list[int]:
    """One random pattern, again and again."""
    return rng.sample(gaps, GAPS) * REPEATS


def _runs(gaps: Sequence[int], start: int, rng: random.Random) -> list[int]:
    """Each gap five times in a row."""
    return [gap for gap in rng.sample(gaps, GAPS) for _ in range(REPEATS)]


def _alternating(gaps: Sequence[int], start: int, rng: random.Random) -> list[int]:
    """A small gap, a large gap, a small one; or the other way round."""
    half = GAPS // 2
    small, large = ([*part] * REPEATS for part in (gaps[:half], gaps[half:]))
    rng.shuffle(small)
    rng.shuffle(large)
    odd, even = (small, large) if rng.random() < 0.5 else (large, small)
    mixed = [gap for pair in zip(odd, even, strict=True) for gap in pair]
    return _evened(mixed, start, [range(0, len(mixed), 2), range(1, len(mixed), 2)], rng)


def _shuffled(gaps: Sequence[int], start: int, rng: random.Random) -> list[int]:
    """No order."""
    mixed = [*gaps] * REPEATS
    rng.shuffle(mixed)
    return _evened(mixed, start, [range(len(mixed))], rng)


ORDERS: Mapping[str, Order] = MappingProxyType(
    {
        "rising": _rising,
        "falling": _falling,
        "periodic": _periodic,
        "runs": _runs,
        "alternating": _alternating,
        "shuffled": _shuffled,
    }
)


def _evened(gaps: list[int], start: int, groups: Sequence[range], rng: random.Random) -> list[int]:
    """Swap gaps within groups of places until the five odd last digits come equally often.

    The four other orders do so by themselves: a gap five times in a row, or a place of a pattern whose sum is no multiple of
    ten, meets each of the five once.
    """
    uneven = _unevenness(gaps, start)
    while uneven:
        one, two = rng.sample(rng.choice(groups), 2)
        gaps[one], gaps[two] = gaps[two], gaps[one]
        after = _unevenness(gaps, start)
        if after > uneven:
            gaps[one], gaps[two] = gaps[two], gaps[one]
        else:
            uneven = after
    return gaps


def _unevenness(gaps: Sequence[int], start: int) -> int:
    """0 when the terms after the start have each odd last digit equally often."""
    digits = Counter(term % 10 for term in [*accumulate(gaps, initial=start)][1:])
    return sum(abs(digits[digit] - len(gaps) // 5) for digit in (1, 3, 5, 7, 9))


def _windows(family: str) -> list[Window]:
    rng = random.Random(f"matched {family}")
    return [_window(family, number, rng) for number in range(TEXTS)]


def _window(family: str, number: int, rng: random.Random) -> Window:
    gaps = sorted(rng.sample(POOL, GAPS))
    while sum(gaps) % 10 == 0:
        gaps = sorted(rng.sample(POOL, GAPS))
    start = rng.randrange(LOWEST, HIGHEST - REPEATS * sum(gaps) + 1, 2)
    terms = tuple(accumulate(ORDERS[family](gaps, start, rng), initial=start))
    return Window(family=family, block=f"{family}:matched:{number}", start=0, terms=terms)


@lru_cache(maxsize=1)
def matched_suite() -> Suite:
    """144 texts of 51 terms: six orders of the same kind of gaps, 24 each; trivial features are near chance.

    >>> suite = matched_suite()
    >>> suite.families
    ('rising', 'falling', 'periodic', 'runs', 'alternating', 'shuffled')
    >>> set(suite.nuisances["length"]), set(suite.nuisances["parity"])
    ({304.0}, {1.0})
    """
    return suite_of_windows("matched", {family: _windows(family) for family in ORDERS})

"""FAMILIES: every family of number sequences, a row each.

A *line* is one infinite sequence, read in windows. *Runs* are many short sequences of one rule, told apart by their start
(fast-growing rules leave too few windows on one line). Roles: ``six`` (the paper's), ``broad`` (stage `broad`, and the suite
on which retention is measured, in other windows), ``held-out`` (no training stage and no pretraining sees them).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Literal

from data import number_theory as nt

Role = Literal["six", "broad", "held-out"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One rule that makes number sequences.

    ``first(n)`` gives the first n terms of a line; ``run(j, n)`` the first n terms of the j-th run; exactly one of them is set.
    ``skip`` terms of the OEIS entry stand before our first one. ``window`` is the number of terms in a text.
    """

    name: str
    role: Role
    oeis: str | None = None
    skip: int = 0
    window: int = 50
    first: Callable[[int], Sequence[int]] | None = None
    run: Callable[[int, int], Sequence[int]] | None = None

    def terms(self, start: int, stop: int) -> tuple[int, ...]:
        """Terms ``start`` up to ``stop`` of a line."""
        assert self.first is not None, f"{self.name} has no line"
        return _line(self.first, max(1024, 1 << (stop - 1).bit_length()))[start:stop]


@lru_cache(maxsize=256)
def _line(first: Callable[[int], Sequence[int]], count: int) -> tuple[int, ...]:
    return tuple(int(term) for term in first(count))


def _geometric(ratio: int) -> Callable[[int, int], Sequence[int]]:
    """Runs a, a r, a r^2, ... whose first terms are 1 and then the integers that r does not divide."""

    def run(j: int, n: int) -> Sequence[int]:
        start = 1 + j + j // (ratio - 1)
        return [start * ratio**i for i in range(n)]

    return run


def _recurrent(
    starts: Callable[[int], tuple[int, ...]], step: Callable[..., int]
) -> Callable[[int, int], Sequence[int]]:
    return lambda j, n: list(islice(nt.recurrence(starts(j), step), n))


def _pell_start(j: int) -> tuple[int, int]:
    """0, 1 (A000129) and like it; every third run, read in evaluation, falls first, as no later pair of another run does."""
    return (2 * j + 1, j) if j % 3 == 2 else (j, 2 * j + 1)


def _collatz_run(j: int, n: int) -> Sequence[int]:
    """The trajectory of 27 (A008884), then of every 37th number after it whose trajectory is long enough.

    Trajectories meet sooner or later; every third run, read in evaluation, starts so far out that its window ends before.
    """
    evaluated = j % 3 == 2
    start, step, least, wanted = (100_003, 1009, 150, j // 3) if evaluated else (27, 37, n, j)
    found = 0
    while True:
        if nt.collatz_steps(start) >= least:
            if found == wanted:
                return list(islice(nt.recurrence((start,), lambda x: x // 2 if x % 2 == 0 else 3 * x + 1), n))
            found += 1
        start += step


def _random_walk(j: int, n: int) -> Sequence[int]:
    rng, terms = random.Random(f"walk {j}"), [500 + 97 * j]
    while len(terms) < n:
        terms.append(max(0, terms[-1] + rng.randint(-9, 9)))
    return terms


def _random(*, ordered: bool) -> Callable[[int, int], Sequence[int]]:
    """Independent uniform draws below 1,000 to 10,000 by run; sorted ones as the control of order."""

    def run(j: int, n: int) -> Sequence[int]:
        rng = random.Random(f"{'sorted' if ordered else 'uniform'} {j}")
        draws = [rng.randrange(1000 * (1 + j % 10)) for _ in range(n)]
        return sorted(draws) if ordered else draws

    return run


_SIX = (
    Family(name="consecutive", role="six", oeis="A000027", first=nt.formula(lambda n: n, 1)),
    Family(name="even", role="six", oeis="A005843", skip=1, first=nt.formula(lambda n: 2 * n, 1)),
    Family(name="odd", role="six", oeis="A005408", first=nt.formula(lambda n: 2 * n + 1)),
    Family(name="primes", role="six", oeis="A000040", first=nt.primes),
    Family(name="recaman", role="six", oeis="A005132", first=nt.recaman),
    Family(name="composites", role="six", oeis="A002808", first=nt.composites),
)

_HELD_OUT = (
    Family(name="semiprimes", role="held-out", oeis="A001358", first=nt.where(lambda n: nt.big_omega(n) == 2, 1)),
    Family(name="lucky", role="held-out", oeis="A000959", first=nt.lucky_numbers),
    Family(name="ulam", role="held-out", oeis="A002858", first=nt.ulam_numbers),
    Family(name="happy", role="held-out", oeis="A007770", first=nt.where(nt.is_happy, 1)),
    Family(name="lower_wythoff", role="held-out", oeis="A000201", first=nt.formula(nt.wythoff_lower, 1)),
    Family(name="abundant", role="held-out", oeis="A005101", first=nt.where(lambda n: nt.sigma(n) > 2 * n, 1)),
    Family(name="evil", role="held-out", oeis="A001969", first=nt.where(lambda n: n.bit_count() % 2 == 0)),
    Family(name="palindromes", role="held-out", oeis="A002113", first=nt.where(lambda n: nt.reverse(n) == n)),
    Family(
        name="pentagonal", role="held-out", oeis="A000326", window=40, first=nt.formula(lambda n: n * (3 * n - 1) // 2)
    ),
    Family(name="divisor_sums", role="held-out", oeis="A000203", first=nt.formula(nt.sigma, 1)),
)

_ARITHMETIC = (
    Family(name="multiples_of_3", role="broad", oeis="A008585", skip=1, first=nt.formula(lambda n: 3 * n, 1)),
    Family(name="multiples_of_5", role="broad", oeis="A008587", skip=1, first=nt.formula(lambda n: 5 * n, 1)),
    Family(name="multiples_of_7", role="broad", oeis="A008589", skip=1, first=nt.formula(lambda n: 7 * n, 1)),
    Family(name="one_mod_4", role="broad", oeis="A016813", first=nt.formula(lambda n: 4 * n + 1)),
    Family(name="five_mod_6", role="broad", oeis="A016969", first=nt.formula(lambda n: 6 * n + 5)),
    Family(name="not_multiples_of_3", role="broad", oeis="A001651", first=nt.where(lambda n: n % 3 != 0, 1)),
)
_POLYNOMIAL = (
    Family(name="squares", role="broad", oeis="A000290", window=40, first=nt.formula(lambda n: n * n)),
    Family(name="cubes", role="broad", oeis="A000578", window=25, first=nt.formula(lambda n: n**3)),
    Family(name="pronic", role="broad", oeis="A002378", window=40, first=nt.formula(lambda n: n * (n + 1))),
    Family(
        name="euler_polynomial", role="broad", oeis="A202018", window=40, first=nt.formula(lambda n: n * n + n + 41)
    ),
    Family(name="triangular", role="broad", oeis="A000217", window=40, first=nt.formula(lambda n: n * (n + 1) // 2)),
    Family(name="hexagonal", role="broad", oeis="A000384", window=40, first=nt.formula(lambda n: n * (2 * n - 1))),
    Family(
        name="centered_hexagonal",
        role="broad",
        oeis="A003215",
        window=40,
        first=nt.formula(lambda n: 3 * n * (n + 1) + 1),
    ),
    Family(
        name="tetrahedral",
        role="broad",
        oeis="A000292",
        window=25,
        first=nt.formula(lambda n: n * (n + 1) * (n + 2) // 6),
    ),
)
_GROWTH = (
    Family(name="powers_of_2", role="broad", oeis="A000079", window=24, run=_geometric(2)),
    Family(name="powers_of_3", role="broad", oeis="A000244", window=18, run=_geometric(3)),
    Family(name="powers_of_5", role="broad", oeis="A000351", window=14, run=_geometric(5)),
    Family(
        name="fibonacci",
        role="broad",
        oeis="A000045",
        window=30,
        run=_recurrent(lambda j: (j, 2 * j + 1), lambda a, b: a + b),
    ),
    Family(
        name="pell",
        role="broad",
        oeis="A000129",
        window=20,
        run=_recurrent(_pell_start, lambda a, b: a + 2 * b),
    ),
    Family(
        name="tribonacci",
        role="broad",
        oeis="A000073",
        window=26,
        run=_recurrent(lambda j: (j, 2 * j, j + 1), lambda a, b, c: a + b + c),
    ),
    Family(
        name="perrin",
        role="broad",
        oeis="A001608",
        window=40,
        run=_recurrent(lambda j: (3 + j, j, 2 + j), lambda a, b, c: a + b),
    ),
)
_DIGITS = (
    Family(name="harshad", role="broad", oeis="A005349", first=nt.where(lambda n: n % nt.digit_sum(n) == 0, 1)),
    Family(name="reversals", role="broad", oeis="A004086", first=nt.formula(nt.reverse)),
    Family(name="ternary", role="broad", oeis="A007089", window=36, first=nt.formula(nt.in_ternary)),
    Family(name="odious", role="broad", oeis="A000069", first=nt.where(lambda n: n.bit_count() % 2 == 1)),
    Family(name="gray_code", role="broad", oeis="A003188", first=nt.formula(lambda n: n ^ (n >> 1))),
)
_DIVISORS = (
    Family(name="divisor_counts", role="broad", oeis="A000005", first=nt.formula(nt.tau, 1)),
    Family(name="totients", role="broad", oeis="A000010", first=nt.formula(nt.totient, 1)),
    Family(name="squarefree", role="broad", oeis="A005117", first=nt.where(nt.is_squarefree, 1)),
    Family(name="sums_of_two_squares", role="broad", oeis="A001481", first=nt.where(nt.is_sum_of_two_squares)),
    Family(name="perfect_powers", role="broad", oeis="A001597", window=36, first=nt.perfect_powers),
)
_SELF_REFERENCE = (
    Family(name="golomb", role="broad", oeis="A001462", first=nt.golomb),
    Family(name="stern_diatomic", role="broad", oeis="A002487", first=nt.stern_diatomic),
    Family(name="collatz_steps", role="broad", oeis="A006577", first=nt.formula(nt.collatz_steps, 1)),
    Family(name="collatz_paths", role="broad", oeis="A008884", window=40, run=_collatz_run),
)
_CONTROLS = (
    Family(name="random_uniform", role="broad", run=_random(ordered=False)),
    Family(name="random_sorted", role="broad", run=_random(ordered=True)),
    Family(name="random_walk", role="broad", run=_random_walk),
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            *_SIX,
            *_HELD_OUT,
            *_ARITHMETIC,
            *_POLYNOMIAL,
            *_GROWTH,
            *_DIGITS,
            *_DIVISORS,
            *_SELF_REFERENCE,
            *_CONTROLS,
        )
    }
)


def families_of(role: Role) -> tuple[str, ...]:
    """The names of one role, in the table's order.

    >>> families_of("six")
    ('consecutive', 'even', 'odd', 'primes', 'recaman', 'composites')
    """
    return tuple(name for name, family in FAMILIES.items() if family.role == role)


def find_family(name: str) -> Family:
    """The row of that name; ValueError with the closest names otherwise."""
    if name in FAMILIES:
        return FAMILIES[name]
    close = get_close_matches(name, FAMILIES, n=3, cutoff=0.4) or list(families_of("six"))
    raise ValueError(
        f"unknown family {name!r}: expected one of the {len(FAMILIES)} rows of data/families.py; closest: {', '.join(close)}"
    )

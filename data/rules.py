"""Random rules: an endless supply of integer sequences for pretraining, and pairs of windows that obey one rule.

A rule is drawn once and then read at any position, so two windows at different magnitudes share the rule and little else.
What ``data/exclusion.py`` refuses is drawn again.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import gcd

from data import number_theory as nt
from data.exclusion import BOUND, excluded_as
from data.families import families_of
from data.sequences import SEPARATOR, windows

LARGEST = 9_999_999
"""Terms have at most seven digits."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``read(position, count)`` gives ``count`` terms from there on; positions are drawn log-uniformly from ``low`` to ``high``."""

    kind: str
    read: Callable[[int, int], list[int]]
    low: int = 0
    high: int = 4000


def _arithmetic(rng: random.Random) -> Rule:
    step = rng.choice([-1, 1, 1, 1]) * rng.choice([rng.randint(3, 12), rng.randint(3, 60), rng.randint(3, 300)])
    shift = rng.randrange(abs(step))
    start = 0 if step > 0 else 50_000
    return Rule(kind="arithmetic", read=lambda at, n: [start + shift + step * (at + i) for i in range(n)])


def _residues(rng: random.Random) -> Rule:
    """Integers whose residue is in a fixed set: gaps repeat."""
    modulus = rng.randint(3, 24)
    kept = sorted(rng.sample(range(modulus), rng.randint(1, max(2, modulus - 2))))
    return Rule(
        kind="residues",
        read=lambda at, n: [modulus * (i // len(kept)) + kept[i % len(kept)] for i in range(at, at + n)],
    )


def _polynomial(rng: random.Random) -> Rule:
    a, b, c = rng.randint(1, 9), rng.randint(-20, 40), rng.randint(0, 400)
    half, degree = rng.random() < 0.3, rng.choice([2, 2, 2, 3])
    if degree == 3:
        return Rule(kind="cubic", read=lambda at, n: [a * i**3 + b * i + c for i in range(at, at + n)], high=60)
    divisor = 2 if half else 1
    return Rule(
        kind="quadratic", read=lambda at, n: [(a * i * i + b * i) // divisor + c for i in range(at, at + n)], high=500
    )


def _recurrent(rng: random.Random) -> Rule:
    """Linear recurrences of order two or three; a position picks the starting values."""
    weights = [rng.randint(0, 2) for _ in range(rng.choice([2, 3]))]
    weights[0] = 1
    salt = rng.random()

    def read(at: int, n: int) -> list[int]:
        starts = random.Random(f"{salt} {at}")
        last, terms = [starts.randint(0, 20) for _ in weights], []
        for _ in range(n):
            terms.append(last[0])
            last = [*last[1:], sum(w * x for w, x in zip(weights, last, strict=True))]
        return terms

    return Rule(kind="recurrence", read=read)


def _geometric(rng: random.Random) -> Rule:
    ratio, shift = rng.randint(2, 9), rng.choice([0, 0, rng.randint(1, 9)])
    return Rule(kind="geometric", read=lambda at, n: [(1 + at) * ratio**i + shift for i in range(n)], high=400)


def _modular(rng: random.Random) -> Rule:
    modulus, a, b = rng.randint(7, 1000), rng.randint(1, 99), rng.randint(0, 99)
    if rng.random() < 0.5:
        return Rule(kind="modular", read=lambda at, n: [(a * i * i + b * i) % modulus for i in range(at, at + n)])
    return Rule(kind="modular", read=lambda at, n: [(a * i + b) % modulus for i in range(at, at + n)])


def _numbers_with(rng: random.Random) -> Rule:
    """Integers with a property of their digits or divisors."""
    digit, modulus, prime, many = (
        rng.randint(0, 9),
        rng.randint(2, 12),
        rng.choice([3, 5, 7, 11, 13]),
        rng.randint(3, 12),
    )
    residue, kept = rng.randrange(modulus), set(rng.sample("0123456789", rng.randint(3, 6)))
    coprime = rng.choice([6, 10, 14, 15, 21, 30, 35, 42, 105, 210])
    properties: list[tuple[str, Callable[[int], bool]]] = [
        ("with a digit", lambda n: str(digit) in str(n)),
        ("of some digits", lambda n: set(str(n)) <= kept),
        ("by digit sum", lambda n: nt.digit_sum(n) % modulus == residue),
        ("by bit count", lambda n: n.bit_count() % (2 + modulus % 3) == residue % 2),
        ("divisible by their digit sum plus k", lambda n: n > 0 and n % (nt.digit_sum(n) + residue) == 0),
        ("multiples of p but not q", lambda n: n % prime == 0 and n % modulus != 0),
        ("with k prime factors", lambda n: n > 1 and nt.big_omega(n) == 3 + many % 3),
        ("with k divisors", lambda n: n > 0 and nt.tau(n) == 4 + 2 * (many % 5)),
        ("with least factor p", lambda n: n > 1 and int(nt.smallest_factors(BOUND)[n]) == prime),
        ("coprime to m", lambda n: gcd(n, coprime) == 1),
        ("squarefree multiples", lambda n: n % prime == 0 and nt.is_squarefree(n)),
    ]
    kind, holds = rng.choice(properties)

    def read(at: int, n: int) -> list[int]:
        terms: list[int] = []
        value = 4 * at
        while len(terms) < n and value < BOUND:
            if holds(value):
                terms.append(value)
            value += 1
        return terms

    return Rule(kind=kind, read=read, high=10_000)


def _function_of_n(rng: random.Random) -> Rule:
    a, b, slope = rng.randint(1, 9), rng.randint(1, 255), rng.uniform(1.1, 9.0)
    functions: list[tuple[str, Callable[[int], int]]] = [
        ("divisor count", lambda n: a * nt.tau(n + 1)),
        ("totient", lambda n: nt.totient(n + 1) + b % 3),
        ("greatest factor", lambda n: max(nt.factorise(n + 2)) * a),
        ("reversed digits", lambda n: nt.reverse(a * n + b)),
        ("exclusive or", lambda n: (a * n) ^ b),
        ("beatty", lambda n: int(n * slope) + b),
        ("root", lambda n: int(slope * 40 * n**0.5)),
        ("power 3/2", lambda n: int(slope * n**1.5)),
        ("remainder pattern", lambda n: (n // a) * b % 997),
        ("digit sum", lambda n: nt.digit_sum(a * n + b)),
    ]
    kind, value = rng.choice(functions)
    return Rule(kind=kind, read=lambda at, n: [value(i) for i in range(at, at + n)])


def _jumps(rng: random.Random) -> Rule:
    """Jumps back and forth that grow, or a repeated pattern of steps."""
    if rng.random() < 0.5:
        a, b = rng.randint(1, 5), rng.randint(0, 9)
        return Rule(
            kind="growing jumps",
            read=lambda at, n: list(accumulate([9 * at + 50, *((-1) ** i * (a * (at + i) + b) for i in range(1, n))])),
            high=2000,
        )
    steps = [rng.randint(-6, 25) for _ in range(rng.randint(2, 6))]
    return Rule(
        kind="step pattern",
        read=lambda at, n: list(accumulate([7 * at + 100, *(steps[i % len(steps)] for i in range(n - 1))])),
    )


def _interleaved(rng: random.Random) -> Rule:
    one, two = rng.choice(_SIMPLE)(rng), rng.choice(_SIMPLE)(rng)

    def read(at: int, n: int) -> list[int]:
        pairs = zip(one.read(at, n // 2 + 1), two.read(at, n // 2 + 1), strict=False)
        return [term for pair in pairs for term in pair][:n]

    return Rule(kind="interleaved", read=read, high=min(one.high, two.high))


def _noise(rng: random.Random) -> Rule:
    """Random draws with one law: uniform, sorted, or a walk with random positive gaps."""
    spread, salt = rng.choice([3, 10, 30, 100]), rng.random()
    kind = rng.choice(["uniform", "sorted", "random gaps"])

    def read(at: int, n: int) -> list[int]:
        draws = random.Random(f"{salt} {at}")
        if kind == "random gaps":
            return list(accumulate([10 * at, *(draws.randint(1, spread) for _ in range(n - 1))]))
        values = [draws.randrange(at + spread * 10) for _ in range(n)]
        return sorted(values) if kind == "sorted" else values

    return Rule(kind=kind, read=read)


def _broad_family(rng: random.Random) -> Rule:
    """A broad family's own training windows; a position picks one of them."""
    chosen = windows(rng.choice(families_of("broad")), "training")
    return Rule(
        kind=chosen[0].family, read=lambda at, n: list(chosen[at % len(chosen)].terms[:n]), high=len(chosen) - 1
    )


_SIMPLE = (_arithmetic, _residues, _polynomial, _modular)
_KINDS: tuple[tuple[Callable[[random.Random], Rule], int], ...] = (
    (_arithmetic, 4),
    (_residues, 5),
    (_polynomial, 3),
    (_recurrent, 1),
    (_geometric, 1),
    (_modular, 2),
    (_numbers_with, 7),
    (_function_of_n, 4),
    (_jumps, 3),
    (_interleaved, 1),
    (_noise, 2),
    (_broad_family, 5),
)


def draw_rule(rng: random.Random) -> Rule:
    """A random rule; the kinds' weights are fixed, their parameters drawn."""
    makers, weights = zip(*_KINDS, strict=True)
    return rng.choices(makers, weights)[0](rng)


def read_window(rule: Rule, rng: random.Random, *, fewest: int = 8, most: int = 50) -> tuple[int, ...] | None:
    """A window at a random magnitude, cut where terms grow past ``LARGEST``; None when it is too short or excluded."""
    at = int((rule.high - rule.low + 1) ** rng.random()) - 1 + rule.low
    terms: list[int] = []
    for term in rule.read(at, rng.randint((fewest + most) // 2, most)):
        if not 0 <= term <= LARGEST:
            break
        terms.append(term)
    if len(terms) < fewest or excluded_as(terms) is not None:
        return None
    return tuple(terms)


def draw_texts(rng: random.Random, *, per_rule: int = 1, attempts: int = 4) -> tuple[str, list[str]]:
    """One rule's kind and ``per_rule`` texts of it, at magnitudes drawn anew, no two with three terms in a row in common.

    Draws rules until one gives that many.
    """
    while True:
        rule = draw_rule(rng)
        found: list[str] = []
        seen: set[tuple[int, ...]] = set()
        for _ in range(attempts * per_rule):
            terms = read_window(rule, rng)
            if terms is None or seen & (grams := set(zip(terms, terms[1:], terms[2:], strict=False))):
                continue
            seen |= grams
            found.append(SEPARATOR.join(map(str, terms)))
            if len(found) == per_rule:
                return rule.kind, found

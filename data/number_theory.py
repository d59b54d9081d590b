"""First terms of integer sequences: each function takes a count and returns that many terms, in OEIS order."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count, islice
from math import isqrt

import numpy as np

Terms = list[int]


@lru_cache(maxsize=4)
def smallest_factors(limit: int) -> np.ndarray:
    """Smallest prime factor of every integer below ``limit`` (0 and 1 map to themselves), by a sieve."""
    factors = np.arange(limit, dtype=np.int64)
    for p in range(2, isqrt(limit - 1) + 1):
        if factors[p] == p:
            multiples = factors[p * p :: p]
            multiples[multiples == np.arange(p * p, limit, p)] = p
    return factors


def factorise(n: int) -> dict[int, int]:
    """Prime factorisation of ``n >= 1`` by the sieve: {prime: exponent}."""
    factors = smallest_factors(1 << max(17, n.bit_length()))
    exponents: dict[int, int] = {}
    while n > 1:
        p = int(factors[n])
        exponents[p] = exponents.get(p, 0) + 1
        n //= p
    return exponents


def primes(n: int) -> Terms:
    """The first ``n`` primes (A000040), by a sieve that doubles until it holds enough."""
    limit = 1 << 17
    while True:
        factors = smallest_factors(limit)
        found = np.flatnonzero(factors[2:] == np.arange(2, limit)) + 2
        if len(found) >= n:
            return found[:n].tolist()
        limit *= 2


def composites(n: int) -> Terms:
    """The first ``n`` composites from 4 (A002808), by the same sieve."""
    limit = 2 * n + 16
    factors = smallest_factors(limit)
    return (np.flatnonzero(factors[4:] != np.arange(4, limit)) + 4)[:n].tolist()


def recaman(n: int) -> Terms:
    """Recamán's sequence (A005132): a(0) = 0; step back by n if that is positive and new, else forward."""
    terms, seen = [0], {0}
    for step in range(1, n):
        back = terms[-1] - step
        terms.append(back if back > 0 and back not in seen else terms[-1] + step)
        seen.add(terms[-1])
    return terms[:n]


def where(holds: Callable[[int], bool], start: int = 0) -> Callable[[int], Terms]:
    """The integers from ``start`` for which ``holds`` is true, in order."""

    def first(n: int) -> Terms:
        return list(islice(filter(holds, count(start)), n))

    return first


def formula(value: Callable[[int], int], start: int = 0) -> Callable[[int], Terms]:
    """``value(start), value(start + 1), ...``."""

    def first(n: int) -> Terms:
        return [value(i) for i in range(start, start + n)]

    return first


def tau(n: int) -> int:
    """Number of divisors (A000005)."""
    product = 1
    for exponent in factorise(n).values():
        product *= exponent + 1
    return product


def sigma(n: int) -> int:
    """Sum of divisors (A000203)."""
    product = 1
    for p, exponent in factorise(n).items():
        product *= (p ** (exponent + 1) - 1) // (p - 1)
    return product


def totient(n: int) -> int:
    """Euler's phi (A000010)."""
    result = n
    for p in factorise(n):
        result -= result // p
    return result


def big_omega(n: int) -> int:
    """Number of prime factors with multiplicity (A001222)."""
    return sum(factorise(n).values())


def is_squarefree(n: int) -> bool:
    """No prime divides ``n`` twice (A005117)."""
    return all(exponent == 1 for exponent in factorise(n).values())


def perfect_powers(n: int) -> Terms:
    """1 and every m^k with k > 1, in order (A001597); there are at least sqrt(x) of them up to x."""
    limit = n * n
    powers = {1} | {m**k for m in range(2, n + 1) for k in range(2, limit.bit_length()) if m**k <= limit}
    return sorted(powers)[:n]


def is_sum_of_two_squares(n: int) -> bool:
    """Every prime 3 mod 4 divides ``n`` to an even power (A001481, with 0)."""
    return n == 0 or all(e % 2 == 0 for p, e in factorise(n).items() if p % 4 == 3)


def digit_sum(n: int) -> int:
    """Sum of the decimal digits (A007953)."""
    return sum(map(int, str(n)))


def reverse(n: int) -> int:
    """The decimal digits backwards (A004086)."""
    return int(str(n)[::-1])


def in_ternary(n: int) -> int:
    """The base-3 digits of ``n`` read as a decimal number (A007089)."""
    return n if n < 3 else 10 * in_ternary(n // 3) + n % 3


def is_happy(n: int) -> bool:
    """Repeated sums of squared digits reach 1 (A007770); 4 is on the only other cycle."""
    while n not in (1, 4):
        n = sum(int(d) ** 2 for d in str(n))
    return n == 1


def collatz_steps(n: int) -> int:
    """Halving and tripling steps to reach 1 (A006577)."""
    steps = 0
    while n > 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def lucky_numbers(n: int) -> Terms:
    """The sieve of Ulam and others (A000959): strike every k-th survivor, k the next survivor."""
    survivors, i = list(range(1, 24 * n + 64, 2)), 1
    while i < len(survivors) and survivors[i] <= len(survivors):
        del survivors[survivors[i] - 1 :: survivors[i]]
        i += 1
    return survivors[:n]


def ulam_numbers(n: int) -> Terms:
    """1, 2, then the least number that is a sum of two distinct earlier terms in exactly one way (A002858)."""
    terms, ways = [1, 2], {3: 1}
    while len(terms) < n:
        term = min(value for value, number in ways.items() if number == 1)
        ways = {value: number for value, number in ways.items() if value > term}
        for other in terms:
            ways[term + other] = ways.get(term + other, 0) + 1
        terms.append(term)
    return terms[:n]


def golomb(n: int) -> Terms:
    """a(k) is how often k occurs, non-decreasing (A001462)."""
    terms = [0, 1]
    for i in range(2, n + 1):
        terms.append(1 + terms[i - terms[terms[i - 1]]])
    return terms[1 : n + 1]


def stern_diatomic(n: int) -> Terms:
    """a(2k) = a(k), a(2k+1) = a(k) + a(k+1) (A002487)."""
    terms = [0, 1]
    for i in range(2, n):
        terms.append(terms[i // 2] if i % 2 == 0 else terms[i // 2] + terms[i // 2 + 1])
    return terms[:n]


def recurrence(start: tuple[int, ...], step: Callable[..., int]) -> Iterator[int]:
    """``start``, then ``step`` of the last ``len(start)`` terms, for ever."""
    last = start
    while True:
        yield last[0]
        last = (*last[1:], step(*last))


def wythoff_lower(n: int) -> int:
    """floor(n * golden ratio), exactly (A000201)."""
    return (n + isqrt(5 * n * n)) // 2

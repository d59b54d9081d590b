"""Suites of texts of one length: the effect of sequence length."""

from functools import lru_cache

from data.families import families_of, find_family
from data.sequences import SEPARATOR, Window
from data.suite import Suite, separated, suite_of_windows

SHORTEST, LONGEST = 10, 400
FIRST, SPACING, WINDOWS = 8880, 440, 12
"""Windows begin behind the last block that training, choosing or the large suite reads, with gaps of 40 terms and more."""


def length_suite(terms: int, *, separator: str = SEPARATOR) -> Suite:
    """The six families in texts of ``terms`` terms: 12 windows each, at positions that no other suite and no stage reads.

    The windows of every length start at the same terms, so that magnitudes match at the start and what changes is how far
    the text goes on. A block is the window's start: the same names for all lengths.

    Args:
        terms: 10 to 400.
        separator: Between the terms; see `separated`.

    Returns:
        The suite ``length-TERMS``.

    Raises:
        ValueError: a length out of range, or a separator that would read as part of a number.

    Example:
        >>> short, long = length_suite(10), length_suite(50)
        >>> short.texts[12], long.texts[12].startswith(short.texts[12])
        ('17762, 17764, 17766, 17768, 17770, 17772, 17774, 17776, 17778, 17780', True)
    """
    if isinstance(terms, bool) or not isinstance(terms, int) or not SHORTEST <= terms <= LONGEST:
        raise ValueError(f"terms: expected {SHORTEST} to {LONGEST} terms a text, got {terms!r}; 50 is the paper's")
    suite = _length_suite(terms)
    return suite if separator == SEPARATOR else separated(suite, separator)


@lru_cache(maxsize=8)
def _length_suite(terms: int) -> Suite:
    found = {name: [_window(name, FIRST + SPACING * k, terms) for k in range(WINDOWS)] for name in families_of("six")}
    return suite_of_windows(f"length-{terms}", found)


def _window(name: str, start: int, terms: int) -> Window:
    return Window(
        family=name,
        block=f"{name}:length:{start}",
        start=start,
        terms=find_family(name).terms(start, start + terms),
    )

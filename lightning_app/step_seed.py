"""hash_seed: the seed of a step's random numbers."""


def hash_seed(*parts: int) -> int:
    """A seed of 63 bits from some integers, the same on every machine.

    Example:
        >>> hash_seed(0, 1, 2) == hash_seed(0, 1, 2) != hash_seed(0, 2, 1)
        True
    """
    value = 0x9E3779B97F4A7C15
    for part in parts:
        value = (value ^ (part + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        value ^= value >> 29
    return value >> 1

"""Sizes in bytes as people write them."""

import re

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def bytes_of(flag: str, size: str) -> int:
    """``2GiB`` and ``500M`` in powers of 1024, ``5GB`` in powers of 1000, or a number of bytes.

    >>> bytes_of("--memory", "2GiB"), bytes_of("--shard-size", "5GB")
    (2147483648, 5000000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", size.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{flag}: expected a size such as 2GiB or 500MB, got {size!r}")
    units = DECIMAL if (match[3] or "").upper() == "B" else UNITS
    return int(float(match[1]) * units[match[2].upper()])

"""A call that has to fail, and for the reason that the table gives."""

from __future__ import annotations

import re
from collections.abc import Callable


def refused(call: Callable[[], object], saying: str) -> None:
    """Raise AssertionError unless the call raises ValueError or RuntimeError with a message that `saying` matches."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        message = str(error)
    else:
        raise AssertionError(f"expected an error that says {saying!r}, got none: it works now")
    assert re.search(saying, message), message

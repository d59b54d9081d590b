"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_app.sizes import bytes_of


@given(
    number=st.integers(1, 999), unit=st.sampled_from(["", "K", "M", "G", "T"]), tail=st.sampled_from(["", "B", "iB"])
)
def test_sizes(number, unit, tail):
    power = ["", "K", "M", "G", "T"].index(unit)
    assert bytes_of("--memory", f"{number}{unit}{tail}") == number * (1000 if tail == "B" else 1024) ** power


@pytest.mark.parametrize("size", ["", "2 gigs", "-1G", "GiB", "1.2.3M"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="--memory: expected a size"):
        bytes_of("--memory", size)

"""How far two merges of one name lie apart: in units of the last place, and relative to a tensor's norm.

Dimensions: r rows, n inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from storage.tensor_file import read_header, read_tensors

ROWS_AT_ONCE = 8192
FRACTION_BITS = 7
"""Of bfloat16."""


@dataclass(frozen=True)
class LastPlaces:
    """Differences of two bfloat16 merges."""

    of_result: float
    """The largest, in units of the last place of the larger of the two numbers.  Where inputs cancel it may be large:
    the units of a sum near zero are finer than what a change of a coefficient by its rounding makes."""
    of_inputs: float
    """The largest, in units of the last place of the largest number that took part, inputs included."""
    share: float
    """Of elements that differ at all."""


def last_places(one: Path, other: Path, inputs: Sequence[Path]) -> LastPlaces:
    """Compare two merged folders of bfloat16 tensors, a few rows at a time."""
    files = [path / "model.safetensors" for path in (one, other, *inputs)]
    headers = [read_header(file).entries for file in files]
    assert headers[0].keys() == headers[1].keys(), "the merges have other tensors"
    of_result = of_inputs = 0.0
    differing = 0
    for rows in _rows(files, [(name, entry.shape[0]) for name, entry in headers[0].items()]):
        distance = (rows[0] - rows[1]).abs()
        differing += int((distance != 0).sum())
        of_result = max(of_result, float((distance / _spacing(rows[:2])).max()))
        of_inputs = max(of_inputs, float((distance / _spacing(rows)).max()))
    return LastPlaces(of_result, of_inputs, differing / sum(entry.elements for entry in headers[0].values()))


def largest_relative(ours: Path, peers: Path) -> tuple[float, str]:
    """Return the largest ``|a - b| / |b|`` over the tensors of two files, and the tensor's name.

    Where the peer's tensor is zero, it is ``|a|``.

    Raises:
        ValueError: the files have other tensors, shapes or dtypes.
    """
    first, second = read_tensors(ours), read_tensors(peers)
    kinds = [{name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (first, second)]
    if kinds[0] != kinds[1]:
        names = sorted({name for name, _ in kinds[0].items() ^ kinds[1].items()})
        raise ValueError(f"{ours}: expected the tensors of {peers}, got others: {', '.join(names[:3])}; compare them")
    return max((_relative(first[name].double(), second[name].double()), name) for name in first)


def _relative(ours: Tensor, peers: Tensor) -> float:
    distance, size = float((ours - peers).norm()), float(peers.norm())
    return distance / size if size else distance


def _rows(files: Sequence[Path], lengths: Sequence[tuple[str, int]]) -> Iterator[list[Tensor]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        for name, length in lengths:
            slices = [file.get_slice(name) for file in opened]
            for begin in range(0, length, ROWS_AT_ONCE):
                yield [part[begin : begin + ROWS_AT_ONCE].float() for part in slices]


def _spacing(numbers: Sequence[Tensor]) -> Tensor:
    """Return the distance of neighbours in bfloat16 near the largest of the numbers."""
    largest = torch.stack(list(numbers)).abs().amax(0)
    exponent = torch.frexp(largest.clamp(min=2.0**-118)).exponent - 1 - FRACTION_BITS
    return torch.ldexp(torch.ones_like(largest), exponent)

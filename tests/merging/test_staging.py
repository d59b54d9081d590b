from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from threading import Event

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merging.device import merge_on_device
from merging.gram import Gram
from merging.solution import Solution
from merging.sources import as_matrix
from merging.staging import PLACED, Fill, Loaded, Returned, Staged, WindowPipeline, bytes_on_device, cut_windows

CPU = torch.device("cpu")
SHAPES = [(7, 30), (100,), (), (3, 0), (2, 3, 20), (1, 500)]


def reading(tensor: Tensor, seen: list[tuple[int, int]] | None = None) -> Fill:
    def fill(start: int, stop: int, into: Tensor) -> None:
        if seen is not None:
            seen.append((start, stop))
        into.copy_(tensor.view(as_matrix(tensor.shape))[start:stop])

    return fill


def halves(gram: Gram) -> list[Solution]:
    return [Solution(torch.full_like(gram.norms, 0.5))]


def merge(loaded: Loaded) -> None:
    names = [one.name for one in loaded.staged]
    merge_on_device(loaded.inputs, loaded.bases, halves, outputs=[loaded.outputs], names=names)


def models(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(3)) for shape in SHAPES]  # type: ignore[misc]


def staged(
    tensors: Sequence[tuple[Tensor, Tensor, Tensor]], *, with_base: bool = False, result: torch.dtype | None = None
) -> list[Staged]:
    return [
        Staged(
            f"t{place}", tuple(x.shape), x.dtype, [reading(x), reading(y)], reading(b) if with_base else None, result
        )
        for place, (x, y, b) in enumerate(tensors)
    ]  # fmt: skip


def collect(pieces: Iterator[Returned]) -> dict[str, Tensor]:
    """Put the pieces together; they come in order and without gaps."""
    found: dict[str, list[Tensor]] = {}
    for piece in pieces:
        rows = found.setdefault(piece.staged.name, [])
        assert sum(len(part) for part in rows) == piece.start
        assert len(piece.values) == piece.stop - piece.start
        rows.append(piece.values.clone())
    return {name: torch.cat(rows) for name, rows in found.items()}


@pytest.mark.parametrize("limit", [1, 4000, 2**30])
@pytest.mark.parametrize("piece", [16, 500, 2**24])
@pytest.mark.parametrize("with_base", [False, True])
def test_the_result_does_not_depend_on_windows_and_pieces(limit: int, piece: int, with_base: bool) -> None:
    tensors = models()
    windows = cut_windows(staged(tensors, with_base=with_base), limit)
    found = collect(WindowPipeline(CPU, merge, piece=piece).run(windows))
    assert list(found) == [f"t{place}" for place, shape in enumerate(SHAPES) if 0 not in shape]
    for name, got in found.items():
        x, y, base = tensors[int(name[1:])]
        origin = base.double() if with_base else torch.zeros(())
        expected = (origin + 0.5 * (x - origin) + 0.5 * (y - origin)).float()
        torch.testing.assert_close(got, expected.view(as_matrix(expected.shape)), rtol=1e-6, atol=1e-6)


def test_the_result_may_have_another_dtype() -> None:
    tensors = models(torch.bfloat16)
    found = collect(WindowPipeline(CPU, merge, piece=64).run([staged(tensors, result=torch.float32)]))
    x, y, _ = tensors[0]
    assert torch.equal(found["t0"], (x.float() + y.float()) / 2)


def test_everything_is_read_once_and_in_order() -> None:
    x, y, seen = torch.randn(10, 8), torch.randn(10, 8), []  # type: ignore[var-annotated]
    one = Staged("a", (10, 8), torch.float32, [reading(x, seen), reading(y, seen)])
    collect(WindowPipeline(CPU, merge, piece=4 * 32).run([[one]]))
    assert seen == [(0, 4), (4, 8), (8, 10)] * 2


def test_one_window_is_read_while_the_one_before_is_handed_out() -> None:
    events: list[str] = []
    read = {name: Event() for name in "abcd"}

    def noting(name: str) -> Fill:
        def fill(start: int, stop: int, into: Tensor) -> None:
            events.append(name)
            into.fill_(1)
            read[name].set()

        return fill

    windows = ([Staged(name, (2,), torch.float32, [noting(name), noting(name)])] for name in "abcd")
    for piece in WindowPipeline(CPU, merge).run(windows):
        assert piece.window == "abcd".index(piece.staged.name)
        following = "abcd"[piece.window + 1 : piece.window + 2]
        assert not following or read[following].wait(60), "nobody reads while a result is handed out"
        events.append(piece.staged.name.upper())
    assert sorted(events) == sorted("aabbccddABCD")
    # There is place for two windows: a third is not begun before the first is done.
    assert events.index("c") > events.index("A")
    assert events.index("d") > events.index("B")


def failing(start: int, stop: int, into: Tensor) -> None:
    raise ValueError("b.safetensors: expected 8 bytes, got 4; fetch it again")


def test_an_error_of_a_reader_is_raised_when_its_window_comes() -> None:
    x = torch.ones(2)
    good = Staged("a", (2,), torch.float32, [reading(x), reading(2 * x)])
    bad = Staged("b", (2,), torch.float32, [reading(x), failing])
    run = WindowPipeline(CPU, merge).run([[good], [bad], [good]])
    assert next(run).staged.name == "a"
    with pytest.raises(ValueError, match="b.safetensors: expected 8 bytes"):
        next(run)


def test_an_error_of_the_merge_is_raised() -> None:
    x = torch.tensor([1.0, float("nan")])
    with pytest.raises(ValueError, match="input 0: tensor a: expected finite values, got 1"):
        list(WindowPipeline(CPU, merge).run([[Staged("a", (2,), torch.float32, [reading(x), reading(x)])]]))


def test_a_consumer_may_stop_early() -> None:
    x = torch.ones(2)
    one = Staged("a", (2,), torch.float32, [reading(x), reading(x)])
    run = WindowPipeline(CPU, merge).run([[one]] * 3)
    next(run)
    run.close()  # type: ignore[attr-defined]


def test_no_windows_no_results() -> None:
    assert list(WindowPipeline(CPU, merge).run([])) == []


@given(
    sizes=st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=12), limit=st.integers(1, 5000)
)  # fmt: skip
def test_windows_keep_the_order_and_the_limit(sizes: list[tuple[int, bool]], limit: int) -> None:
    def fill(start: int, stop: int, into: Tensor) -> None: ...

    every = [
        Staged(str(place), (size,), torch.bfloat16, [fill, fill], fill if with_base else None)
        for place, (size, with_base) in enumerate(sizes)
    ]
    windows = list(cut_windows(every, limit))
    assert [one for window in windows for one in window] == every
    for window in windows:
        assert sum(map(bytes_on_device, window)) <= limit or len(window) == 1
        assert len({one.base is None for one in window}) == 1
    for before, after in pairwise(windows):
        fits = sum(map(bytes_on_device, [*before, after[0]])) <= limit
        assert not fits or (before[0].base is None) != (after[0].base is None)


def test_the_bytes_of_a_tensor_are_counted_as_they_are_placed() -> None:
    fills: list[Callable[[int, int, Tensor], None]] = [failing, failing]
    one = Staged("a", (100,), torch.bfloat16, fills, failing, torch.float64)
    assert bytes_on_device(one) == 3 * PLACED + 4 * PLACED


@pytest.mark.gpu
def test_a_gpu_gives_what_a_cpu_gives() -> None:
    tensors = [tuple(torch.randn(3000, 700).to(torch.bfloat16) for _ in range(3)) for _ in range(6)]
    found = [
        collect(WindowPipeline(device, merge, piece=2**18).run(cut_windows(staged(tensors, with_base=True), 2**25)))  # type: ignore[arg-type]
        for device in (CPU, torch.device("cuda"))
    ]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert float((value.double() - found[1][name].double()).norm() / value.double().norm()) < 1e-4

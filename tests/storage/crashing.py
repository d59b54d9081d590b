"""Dying at every point of a write: each call that changes the disk is a point, and the process dies just before it.

A forked child that ends by ``os._exit`` is the real thing. Quicker by far is to stay: every later call that would change the
disk raises too, so that no clean-up can do anything, and the write runs under the number of a process that is dead.

What it leaves after a call is what it leaves before the next, so "before" is enough; a write of bytes is two points, the
second of them with half of the bytes on the disk.
"""

import builtins
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import storage.atomic
import storage.exchange

DEAD, DONE, FAILED = 77, 0, 99
CALLS = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "fsync", "chmod", "truncate", "ftruncate", "link")


@contextmanager
def counted(reached: Callable[[str, Any], None], *, exchanges: bool = True) -> Iterator[None]:
    """Call ``reached(name, first argument)`` before every call that changes the disk.

    With ``exchanges`` false the system has no exchange of two names, as some network filesystems.
    """
    real_pwrite, real_bytes, real_exchange, real_open = os.pwrite, Path.write_bytes, storage.exchange.exchange, io.open

    def calling(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            reached(name, args[0])
            return real(*args, **options)

        return call

    def pwrite(descriptor: int, data: Any, position: int) -> int:
        reached("pwrite", descriptor)
        done = real_pwrite(descriptor, memoryview(data)[: len(data) // 2], position)
        reached("pwrite, second half", descriptor)
        return done + real_pwrite(descriptor, memoryview(data)[done:], position + done)

    def write_bytes(path: Path, data: bytes) -> int:
        reached("write", path)
        real_bytes(path, data[: len(data) // 2])
        reached("write, second half", path)
        return real_bytes(path, data)

    def swap(one: Path, other: Path) -> bool:
        reached("exchange", one)
        return exchanges and real_exchange(one, other)

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+"):
            reached("open", file)
        return real_open(file, mode, *args, **options)

    with (
        patch.multiple(os, **{name: calling(name) for name in CALLS}, pwrite=pwrite),
        patch.object(Path, "write_bytes", write_bytes),
        patch.object(storage.atomic, "exchange", swap),
        patch.object(io, "open", opening),
        patch.object(builtins, "open", opening),
        # with descriptors of folders it would call what is no attribute of os
        patch.object(shutil, "_use_fd_functions", False),
    ):
        yield


class Dead(BaseException):
    """What a process that is dead by now would still try to do."""


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its exit code."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            work()
            code = DONE
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _dies_at(point: int, write: Callable[[], None], *, exchanges: bool, forked: bool, process: int) -> bool:
    """Whether ``write`` has such a point; if it has, it dies there."""
    count = 0

    def reached(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > point:
            if forked:
                os._exit(DEAD)
            raise Dead

    def work() -> None:
        with counted(reached, exchanges=exchanges):
            write()

    if forked:
        code = in_child(work)
        assert code in (DONE, DEAD), f"point {point}: exit {code}"
        return code == DEAD
    try:
        with patch.object(os, "getpid", lambda: process):
            work()
    except Dead:
        return True
    return False


def crash_points(
    prepare: Callable[[], None], write: Callable[[], None], *, exchanges: bool = True, forked: bool = False
) -> Iterator[str]:
    """For every point of ``write``: prepare, die there, and yield its number for the caller to look at what is left."""
    child = os.fork()
    if child == 0:
        os._exit(DONE)
    os.waitpid(child, 0)
    point = 0
    while True:
        prepare()
        if not _dies_at(point, write, exchanges=exchanges, forked=forked, process=child):
            assert point > 3, "a write has several points"
            return
        yield f"point {point}"
        point += 1


def order_of(write: Callable[[], None]) -> list[tuple[str, str]]:
    """(call, name of the file) of every call that changes the disk, in order."""
    calls: list[tuple[str, str]] = []

    def reached(name: str, target: Any) -> None:
        if isinstance(target, int):
            target = Path(f"/proc/self/fd/{target}").readlink()
        calls.append((name, os.fspath(target)))

    with counted(reached):
        write()
    return calls

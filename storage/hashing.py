"""SHA-256 in the background: of files that are being read, and of a file while it is being written.

Hashing is the largest single cost of a merge of files, and needs no part of torch: it starts before the
first heavy import and runs beside the work.  Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

PIECE = 2**23
"""Bytes that are read at a time."""

SYNC = 2**28
"""Bytes after which what was written is sent to the disk, while the rest is still being computed."""


class FileHashes:
    """SHA-256 of files, each read once, by threads of their own.

    The files of one thread advance side by side, as a merge reads them, so that each page comes from the
    disk once however large the files are.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = max(1, threads)
        self._results: dict[Path, Future[str]] = {}
        self._stop = Event()

    def start(self, files: Iterable[Path]) -> None:
        """Begin with the files that are not known yet."""
        new = [path for path in dict.fromkeys(files) if path not in self._results]
        for path in new:
            self._results[path] = Future()
        for share in (new[index :: self._threads] for index in range(self._threads)):
            if share:
                # A daemon, so that a merge that is refused does not wait for hashes nobody asks for.
                Thread(target=self._advance, args=(share,), name="sha256", daemon=True).start()

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file in hexadecimal, when it is ready.

        Raises:
            ValueError: the file changed while it was read.
        """
        self.start([path])
        return self._results[path].result()

    def stop(self) -> None:
        """End the threads; whoever waits for a result that is not ready gets a RuntimeError."""
        self._stop.set()

    def _advance(self, paths: Sequence[Path]) -> None:
        files = {path: _HashedFile(path) for path in paths}
        try:
            while files and not self._stop.is_set():
                for path, file in list(files.items()):
                    if self._step(path, file):
                        file.close()
                        del files[path]
        finally:
            for path, file in files.items():
                file.close()
                self._results[path].set_exception(RuntimeError(f"{path}: the hash was given up"))

    def _step(self, path: Path, file: _HashedFile) -> bool:
        """Hash the next piece of a file; True if that was its end, or an error, which is its result."""
        try:
            finished = file.advance()
        except (OSError, ValueError) as error:
            self._results[path].set_exception(error)
            return True
        if finished:
            self._results[path].set_result(file.hexdigest())
        return finished


class _HashedFile:
    """One file on its way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._sum = hashlib.sha256()
        self._piece = memoryview(bytearray(PIECE))

    def advance(self) -> bool:
        """Hash the next piece; True at the end of the file."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY)
            self._before = _state(self._descriptor)
        count = os.readv(self._descriptor, [self._piece])
        self._sum.update(self._piece[:count])
        if count:
            return False
        if _state(self._descriptor) != self._before:
            raise ValueError(f"{self._path}: expected a file that stays as it is, got changes while it was read; retry")
        return True

    def hexdigest(self) -> str:
        return self._sum.hexdigest()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _state(descriptor: int) -> tuple[int, int]:
    """Return what changes when a file is written to: its size and the time."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class TrailingHash:
    """SHA-256 of a file that is being written, by a thread that stays behind the writer.

    It reads back what was written, from the memory where the system keeps it, and sends it on to the disk.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._sum = hashlib.sha256()
        self._piece = memoryview(bytearray(PIECE))
        self._position = self._synced = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._pending: list[Future[None]] = []

    def advance(self, end: int) -> None:
        """Say that the first ``end`` bytes are final."""
        self._pending.append(self._worker.submit(self._hash_to, end))

    def finish(self) -> str:
        """Return the hash of what was announced as final, when it is ready."""
        try:
            for pending in self._pending:
                pending.result()
            return self._sum.hexdigest()
        finally:
            self.close()

    def close(self) -> None:
        """End the thread, whatever is still to be hashed."""
        self._worker.shutdown(cancel_futures=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _hash_to(self, end: int) -> None:
        while self._position < end:
            count = os.preadv(self._descriptor, [self._piece[: end - self._position]], self._position)
            assert count, "announced bytes that were not written"
            self._sum.update(self._piece[:count])
            self._position += count
        if self._position - self._synced >= SYNC:
            os.fdatasync(self._descriptor)
            self._synced = self._position


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

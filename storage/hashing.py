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

State = tuple[int, int, int, int]
"""Device, inode, size and time of a file."""


class FileHashes:
    """SHA-256 of files, each read once, by threads of their own.

    The files of one thread advance side by side, as a merge reads them, so that each page comes from the
    disk once however large the files are.  They share one buffer, so memory does not grow with their number.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = max(1, threads)
        self._results: dict[Path, Future[tuple[str, State]]] = {}
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

        Asked again later, it says whether what was hashed is still what is there.

        Raises:
            ValueError: the file changed while it was read, or since.
        """
        self.start([path])
        digest, state = self._results[path].result()
        if not path.exists() or _state(path.stat()) != state:
            raise ValueError(_changed(path))
        return digest

    def stop(self) -> None:
        """End the threads; whoever waits for a result that is not ready gets a RuntimeError."""
        self._stop.set()

    def _advance(self, paths: Sequence[Path]) -> None:
        files = {path: _HashedFile(path) for path in paths}
        try:
            piece = memoryview(bytearray(PIECE))
            while files and not self._stop.is_set():
                for path, file in list(files.items()):
                    if self._step(path, file, piece):
                        file.close()
                        del files[path]
        finally:
            # Whatever ended the thread, nobody waits for a result that will not come.
            for path in paths:
                if not self._results[path].done():
                    self._results[path].set_exception(RuntimeError(f"{path}: the hash was given up"))
            for file in files.values():
                file.close()

    def _step(self, path: Path, file: _HashedFile, piece: memoryview) -> bool:
        """Hash the next piece of a file; True if that was its end, or an error, which is its result."""
        try:
            found = file.advance(piece)
        except (OSError, ValueError) as error:
            self._results[path].set_exception(error)
            return True
        if found is not None:
            self._results[path].set_result(found)
        return found is not None


class _HashedFile:
    """One file on its way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._sum = hashlib.sha256()

    def advance(self, piece: memoryview) -> tuple[str, State] | None:
        """Hash the next piece, by way of the buffer ``piece``; at the end return the hash and what it is of."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY)
            self._before = _state(os.fstat(self._descriptor))
        count = os.readv(self._descriptor, [piece])
        self._sum.update(piece[:count])
        if count:
            return None
        if _state(os.fstat(self._descriptor)) != self._before:
            raise ValueError(_changed(self._path))
        return self._sum.hexdigest(), self._before

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _state(status: os.stat_result) -> State:
    """Return what changes when a file is replaced or written to: its identity, its size and the time."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: Path) -> str:
    return f"{path}: expected a file that stays as it is, got changes while it was read; retry"


class TrailingHash:
    """SHA-256 of a file that is being written, by a thread that stays behind the writer.

    It reads back what was written, from the memory where the system keeps it, and sends it on to the disk.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._sum = hashlib.sha256()
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
        # Held no longer than it is needed: a large model has many files, and all of them are open.
        piece = memoryview(bytearray(min(PIECE, end - self._position)))
        while self._position < end:
            count = os.preadv(self._descriptor, [piece[: end - self._position]], self._position)
            assert count, "announced bytes that were not written"
            self._sum.update(piece[:count])
            self._position += count
        if self._position - self._synced >= SYNC:
            os.fdatasync(self._descriptor)
            self._synced = self._position


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1_of(path: str | os.PathLike[str]) -> str:
    """Return the name that git gives a file's content: SHA-1 of ``blob SIZE``, a zero byte and the content.

    The hub names small files so, and those of its large-file storage by their SHA-256.
    """
    with Path(path).open("rb") as file:
        found = hashlib.sha1(f"blob {os.fstat(file.fileno()).st_size}\0".encode(), usedforsecurity=False)
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()

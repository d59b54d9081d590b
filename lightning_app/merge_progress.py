"""The progress of a merge on the terminal: a bar on stderr, with bytes a second for files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Report = Callable[[int, int], None]
"""Called with (done, total)."""


@contextmanager
def showing_bytes() -> Iterator[Report]:
    """A bar of bytes written; yields what is called with (bytes written, bytes in total)."""
    with _bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as report:
        yield report


@contextmanager
def showing_tensors() -> Iterator[Report]:
    """A bar of tensors; yields what is called with (tensors merged, tensors in total)."""
    with _bar(MofNCompleteColumn()) as report:
        yield report


@contextmanager
def _bar(*columns: ProgressColumn) -> Iterator[Report]:
    console = Console(stderr=True)
    shown = (TextColumn("merging"), BarColumn(), *columns)
    with Progress(*shown, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("merging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""Signals that end a run: after the batch at hand while it trains, at once while it does anything else.

SIGTERM and SIGINT end it with the exit codes 143 and 130, which a shell gives too. Under SLURM, SIGUSR1 (``sbatch --signal=USR1@90``)
also puts the job back into the queue. A second signal leaves without saving, so what was saved before stays as it is.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shutil import which
from types import FrameType
from typing import Any, NoReturn, Protocol

EXIT_CODES: Mapping[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""Signal -> exit code, the more urgent signal last."""
FORWARDED = signal.SIGRTMIN + 1
"""From a process that is no rank to the ranks it has forked: however often it comes, it is no second signal."""


class Stopped(SystemExit):
    """A run ends because of a signal.

    Args:
        signum: The signal.
        message: What is kept, for the terminal. Empty: it has been said already.
        code: Of the process. None: that of the signal.

    Example:
        >>> Stopped(signal.SIGTERM).code
        143
    """

    def __init__(self, signum: int, message: str = "", *, code: int | None = None) -> None:
        super().__init__(EXIT_CODES[signum] if code is None else code)
        self.signum, self.message = signum, message


class Launcher(Protocol):
    """What Lightning has for each way to start ranks."""

    def kill(self, signum: Any) -> None:
        """Send a signal to the ranks that it has started."""


class StopSignals:
    """What signals a process has received, and when it acts on them.

    Handlers belong to a process, and so does this object: there is one, `SIGNALS`.
    """

    def __init__(self) -> None:
        self.received = 0
        self._kept, self._deferred, self._forwards, self._owner = "", False, False, 0
        self._launchers: list[Launcher] = []

    @contextmanager
    def handled(self, kept: str) -> Iterator[None]:
        """Act on signals within.

        Args:
            kept: Said where a signal ends the run outside `deferred`.

        Raises:
            Stopped: a signal came outside `deferred`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread only
            return
        watched = [signal.SIGINT, signal.SIGTERM, FORWARDED]
        if "SLURM_JOB_ID" in os.environ:
            watched.append(signal.SIGUSR1)
        self.received, self._kept, self._owner = 0, kept, os.getpid()
        before = {signum: signal.signal(signum, self._handle) for signum in watched}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self.received, self._launchers = 0, []

    @contextmanager
    def deferred(self, launcher: Launcher | None = None, *, forwards: bool = False) -> Iterator[None]:
        """Within, a signal is only noted, for whoever looks at ``received`` between two batches.

        Args:
            launcher: Has started other ranks, which end with this process.
            forwards: This process is no rank itself, and tells the ranks.

        Raises:
            Stopped: a signal was noted, and nobody has acted on it.
        """
        if launcher is not None:
            self._launchers.append(launcher)
        self._deferred, self._forwards = True, forwards
        try:
            yield
        finally:
            self._deferred = self._forwards = False
        if self.received:
            self._stop()

    def own(self) -> None:
        """Take signals for this process, which was forked from the one that has set the handlers."""
        self._owner, self._forwards, self._launchers = os.getpid(), False, []

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # a process that makes batches ready: its parent decides, but for being told to end
            if signum == signal.SIGTERM:
                os._exit(EXIT_CODES[signum])
            return
        if signum == FORWARDED:
            self.received = self.received or signal.SIGTERM
            return
        if self.received in (signal.SIGINT, signal.SIGTERM):
            self._leave(signum)
        # SLURM follows its requeue with SIGTERM, which is no second thought
        self.received = self.received or signum
        if not self._deferred:
            self._stop()
        if self._forwards:
            for launcher in self._launchers:
                launcher.kill(FORWARDED)

    def _stop(self) -> NoReturn:
        """End outside a fit. The other ranks have nothing that is not saved, and wait for this one."""
        for launcher in self._launchers:
            launcher.kill(signal.SIGKILL)
        if self.received == signal.SIGUSR1:
            requeue()
        name = signal.Signals(self.received).name
        raise Stopped(self.received, f"stopped by {name}: {self._kept}" if self._kept else "")

    def _leave(self, signum: int) -> NoReturn:
        for launcher in self._launchers:
            launcher.kill(signal.SIGKILL)
        os.write(2, b"stopped by a second signal: nothing more is saved\n")
        os._exit(EXIT_CODES[signum])


SIGNALS = StopSignals()
"""The signals of this process."""


def requeue() -> bool:
    """Put this SLURM job back into the queue with ``scontrol``; says where that fails, and whether it did not.

    The job starts again with its own command line: with --resume in it, a first start finds nothing and starts fresh.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    program = which("scontrol")
    if program is None:
        print(f"SLURM job {job}: expected scontrol in PATH to requeue it, found none", file=sys.stderr)
        return False
    done = subprocess.run([program, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"SLURM job {job}: scontrol requeue failed: {' '.join(done.stderr.split())}", file=sys.stderr)
    return done.returncode == 0

"""RankLauncher: starts the other ranks of this machine as this command, and ends them all when one of them is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

PERIOD = 1.0
"""Seconds between looks at the processes."""


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's, with another watch over the processes that it starts.

    Lightning's kills everything, this process too, up to five seconds after one has failed, without a word and with exit code 137.
    Here the ranks get the time to say which one is missing (`lost_rank.RollCall`); what hangs afterwards is ended with exit
    code 1 and a line that names the rank.
    """

    started: ClassVar[list["subprocess.Popen[Any]"]] = []
    """The processes of ranks 1, 2, ... of this machine; later stages of a run take those of the first."""
    grace: ClassVar[float] = 30.0
    """Seconds that this process has to end by itself after another has failed."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other ranks and call ``function`` in all of them."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            self.started[:] = self.procs
            threading.Thread(target=watch, args=(self.procs, self.grace), daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        """Send a signal to the other ranks, also in the stages after the one that started them."""
        for proc in self.started:
            proc.send_signal(signum)


def watch(
    procs: Sequence["subprocess.Popen[Any]"],
    grace: float,
    *,
    leave: Callable[[int], Any] = os._exit,
    period: float = PERIOD,
) -> None:
    """Wait for processes to end; after the first that fails give this one ``grace`` seconds, then kill all and leave with 1.

    Args:
        procs: those of ranks 1, 2, ...
        grace: seconds.
        leave: how this process ends.
        period: seconds between looks.
    """
    while True:
        codes = [proc.poll() for proc in procs]
        if all(code == 0 for code in codes):
            return
        failed = next((rank for rank, code in enumerate(codes, start=1) if code), None)
        if failed is not None:
            break
        time.sleep(period)
    time.sleep(grace)
    for proc in procs:
        if proc.poll() is None:
            proc.send_signal(signal.SIGKILL)
    print(f"failed: rank {failed} of {len(procs) + 1} is gone{ending(procs, failed)}", file=sys.stderr, flush=True)
    leave(1)


def ending(procs: Sequence["subprocess.Popen[Any]"], rank: int) -> str:
    """How the process of a rank ended that this process has started, in words for the message; empty if that is not known."""
    if not 1 <= rank <= len(procs):
        return ""
    code = procs[rank - 1].poll()
    if code is None:
        return f" (process {procs[rank - 1].pid} still runs)"
    if code < 0:
        return f" (process {procs[rank - 1].pid} was ended by {signal.Signals(-code).name})"
    return f" (process {procs[rank - 1].pid} ended with exit code {code})"

"""Throughput: how fast a run trains, how much of it is padding or waiting, and how much memory it took."""

import resource
import sys
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

GIB = 2**30
_FETCH = "].train_dataloader_next"
"""How Lightning names the wait for a batch, behind the name of the loop that waits."""


class FetchClock(Profiler):
    """Seconds that the training loop has waited for batches; Lightning tells a profiler when it does.

    Example:
        >>> clock = FetchClock()
        >>> clock.start("anything else"); clock.stop("anything else"); clock.seconds
        0.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self._began = 0.0, 0.0

    def start(self, action_name: str) -> None:
        """Note when a fetch begins."""
        if action_name.endswith(_FETCH):
            self._began = perf_counter()

    def stop(self, action_name: str) -> None:
        """Add what it took."""
        if action_name.endswith(_FETCH):
            self.seconds += perf_counter() - self._began


class Throughput(Callback):
    """Logs rates of all ranks together every ``every`` steps, and the seconds between two epochs.

    ``throughput/samples_per_second`` and ``/tokens_per_second`` (padding is not counted), ``/tokens_per_step``,
    ``/padding_share`` and ``/data_share`` in [0, 1]: how much of the tokens computed is padding, and of the time waiting for
    batches. ``/evaluation_seconds``: from the end of an epoch's last step to the next epoch, saves included; no rate counts
    it, nor the first step, a warm-up. ``memory/device_peak_gib`` (CUDA) and ``memory/host_peak_gib``: of the rank that took
    most, since its process began.

    They go straight to the logger and not to ``callback_metrics``: two equal runs differ in them and in nothing else. Put it
    behind ``FiniteGuard``, whose check has waited for the device.

    Args:
        every: Steps between points.

    Attributes:
        clock: To be given to the Trainer as ``profiler``; without it ``data_share`` is 0.

    Example:
        >>> Throughput(5).clock.seconds
        0.0
    """

    def __init__(self, every: int) -> None:
        self.every, self.clock = every, FetchClock()
        self._warm = False
        self._ended: float | None = None
        self._restart()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock runs."""
        self._log_evaluation(trainer)
        self._began, self._fetched, self._ended = perf_counter(), self.clock.seconds, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and every so often log."""
        if not self._warm:
            self._warm = True
            self._restart()
            return
        self._steps += 1
        for name, more in (("samples", len(batch.order)), ("tokens", batch.tokens), ("padded", batch.padded)):
            self._counts[name] += more
        if trainer.global_step % self.every == 0:
            self._take_time()
            self._log(trainer, self._rates(trainer))
            self._restart()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock rests."""
        self._take_time()
        self._ended = perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last evaluation is one too."""
        self._log_evaluation(trainer)

    def _log_evaluation(self, trainer: Trainer) -> None:
        if self._ended is not None:
            self._log(trainer, {"throughput/evaluation_seconds": perf_counter() - self._ended})

    def _restart(self) -> None:
        self._counts = {"samples": 0, "tokens": 0, "padded": 0}
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._began, self._fetched = perf_counter(), self.clock.seconds

    def _take_time(self) -> None:
        self._seconds += perf_counter() - self._began
        self._waited += self.clock.seconds - self._fetched

    def _rates(self, trainer: Trainer) -> dict[str, float]:
        """All ranks together, from one gather."""
        device = trainer.strategy.root_device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        own = [*self._counts.values(), self._seconds, self._waited, peak / GIB, host_peak() / GIB]
        gathered = trainer.strategy.all_gather(torch.tensor(own, device=device)).reshape(-1, len(own)).cpu().double()
        samples, tokens, padded = gathered[:, :3].sum(dim=0).tolist()
        seconds, waited, on_device, on_host = gathered[:, 3:].amax(dim=0).tolist()
        memory = {"memory/device_peak_gib": on_device} if device.type == "cuda" else {}
        return memory | {
            "memory/host_peak_gib": on_host,
            "throughput/samples_per_second": samples / seconds,
            "throughput/tokens_per_second": tokens / seconds,
            "throughput/tokens_per_step": tokens / self._steps,
            "throughput/padding_share": 1 - tokens / padded,
            "throughput/data_share": min(1.0, waited / seconds),
        }

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics(values, step=max(0, trainer.global_step - 1))


def host_peak() -> int:
    """Bytes of memory that this process has held at its fullest.

    Example:
        >>> host_peak() > 2**20
        True
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Lightning's loops, with a pause between two batches and after an epoch, where a run can be saved and stopped.

Lightning calls no hook at which a batch or an epoch is wholly done: at the last one of each, values are still to be logged and
counters to be raised, and what is saved there is not what an uninterrupted run has at that place.
"""

import signal

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from callbacks.resume_state import ResumeState
from lightning_app.agreement import Agreement
from lightning_app.presentation import announce
from lightning_app.stop_signal import EXIT_CODES, SIGNALS, Stopped, requeue


def make_resumable(trainer: Trainer, state: ResumeState, *, name: str, every: int) -> None:
    """Give a Trainer loops that save ``state`` and stop on a signal, in place of Lightning's.

    Args:
        trainer: That has ``state`` among its callbacks, and no validation.
        state: What saves.
        name: Of what is trained, for the terminal.
        every: Steps after which several ranks agree on whether one of them has received a signal.
    """
    pause = Pause(trainer, state, name=name, every=every)
    loop = ResumableFitLoop(trainer, min_epochs=trainer.min_epochs, max_epochs=trainer.max_epochs)
    loop.epoch_loop = ResumableEpochLoop(trainer, min_steps=trainer.min_steps, max_steps=trainer.max_steps)
    loop.pause = loop.epoch_loop.pause = pause
    trainer.fit_loop = loop
    trainer._signal_connector = NoSignals(trainer)


class Pause:
    """Between two batches, or after an epoch: looks for signals, and saves.

    All ranks stop after the same batch: every ``every`` steps and at the end of an epoch they agree on the most
    urgent signal that any of them has received, by way of the CPU, so that no step waits for a device.
    """

    def __init__(self, trainer: Trainer, state: ResumeState, *, name: str, every: int) -> None:
        self.trainer, self.state, self.name, self.every = trainer, state, name, every
        self._agreement: Agreement | None = None

    def __call__(self, *, epoch_ends: bool) -> None:
        """Save if it is time to, stop if a signal has come.

        Raises:
            Stopped: after saving.
        """
        trainer = self.trainer
        asks = epoch_ends or trainer.world_size == 1 or trainer.global_step % self.every == 0
        signum = self._agreed() if asks else 0
        if signum or epoch_ends or self.state.is_due(trainer.global_step):
            self.state.save(trainer)
        if not signum:
            return
        # a rank that has received nothing itself ends too, and what it receives from now on is a second signal
        SIGNALS.received = signum
        announce(
            f"stopped by {signal.Signals(signum).name} after step {trainer.global_step} of {self.name}: state saved; "
            "go on with --resume"
        )
        if signum == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        trainer.strategy.barrier("stopped")
        raise Stopped(signum, code=0 if _started_by_lightning(trainer) else None)

    def _agreed(self) -> int:
        if self.trainer.world_size == 1:
            return SIGNALS.received
        if self._agreement is None:
            self._agreement = Agreement()
        urgency = [0, *EXIT_CODES]
        return urgency[self._agreement.of(urgency.index(SIGNALS.received), "most")]


def _started_by_lightning(trainer: Trainer) -> bool:
    """Whether another rank watches this one, and would kill the run for its exit code before it has ended itself."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    forked = getattr(trainer.strategy, "_start_method", "popen") != "popen"
    return isinstance(environment, LightningEnvironment) and not forked and trainer.local_rank > 0


class NoSignals(_SignalConnector):
    """Leaves signals to `SIGNALS`: Lightning's handlers take part in a broadcast, which stops a rank that waits for another."""

    def register_signal_handlers(self) -> None:
        """Nothing."""

    def teardown(self) -> None:
        """Nothing."""


class ResumableEpochLoop(_TrainingEpochLoop):
    """Pauses where everything of a batch is done, and is not called back from one epoch's loader to another's."""

    pause: Pause

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Go on counting where the loader starts. Lightning would start every loader but the first a second time."""
        data_fetcher.fetched += self.batch_progress.current.ready
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Pause, unless the epoch ends here: then the pause is after it."""
        super().on_advance_end(data_fetcher)
        if not self._is_training_done:
            self.pause(epoch_ends=False)

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: it would wait for the device in every step."""


class ResumableFitLoop(_FitLoop):
    """Pauses where everything of an epoch is done."""

    pause: Pause
    epoch_loop: ResumableEpochLoop

    @property
    def skip(self) -> bool:
        """Never: a run that is resumed after its last epoch has still to end as others do."""
        return False

    def run(self) -> None:
        """Take the signals of this process, which may have been forked."""
        SIGNALS.own()
        super().run()

    def on_advance_end(self) -> None:
        """Pause, with the counters of the next epoch's start."""
        super().on_advance_end()
        # with max_steps, Lightning takes what is left in them for the batches of the epoch that it goes on with
        self.epoch_loop.batch_progress.reset_on_run()
        self.epoch_loop.scheduler_progress.reset_on_run()
        self.epoch_loop.automatic_optimization.optim_progress.reset_on_run()
        self.pause(epoch_ends=True)

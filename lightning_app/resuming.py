"""fit: a fit that a signal ends after the batch at hand, and that goes on from the state that one has left."""

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException

from callbacks.resume_state import KEY, cut_events
from lightning_app.checkpoint_io import find_state
from lightning_app.lost_rank import roll_call_of
from lightning_app.stop_signal import EXIT_CODES, SIGNALS, Stopped


def fit(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, *, state: Path, resume: bool = False
) -> None:
    """Fit from the beginning, or from a state that a stopped fit has left.

    Args:
        trainer, module, data: Of the stage.
        state: Where the state is, if there is one.
        resume: Whether to go on from it; what was logged after it was saved is cut off.

    Raises:
        LostRank: another rank is gone or has failed.
        Stopped: a signal has come; the state is saved, or the fit was over already.
    """
    found = resume and find_state(state) is not None
    logger = trainer.logger
    # the logger's own folder: the Trainer would ask all ranks for its name, and only this one is here
    if resume and trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
        saved = trainer.strategy.checkpoint_io.load_checkpoint(state) if found else {}
        cut_events(Path(logger.log_dir), saved.get(KEY, {}).get("events", {}))
    launcher = trainer.strategy.launcher
    forks = isinstance(launcher, _MultiProcessingLauncher)
    with SIGNALS.deferred(launcher, forwards=forks):
        try:
            with roll_call_of(trainer).named():
                trainer.fit(module, datamodule=data, ckpt_path=str(state) if found else None)
        except ProcessExitedException as ended:
            # a forked rank that was stopped has said so itself
            by_code = {code: signum for signum, code in EXIT_CODES.items()}
            if ended.exit_code not in by_code:
                raise
            raise Stopped(SIGNALS.received or by_code[ended.exit_code]) from None

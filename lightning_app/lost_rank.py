"""Which rank is gone, when ranks that wait for it find out: a roll call over the store at which the ranks met."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from lightning_app.launching import RankLauncher, ending

ANSWER = "answer"
MARKS = ("gloo", "nccl", "processgroup", "tcpstore", "connection", "timed out")
"""What messages of collectives that failed have in them; gloo's are plain RuntimeErrors."""

LINGER = 1.0
"""Seconds that rank 0 stays for the others."""


class LostRank(RuntimeError):  # noqa: N818  (what happened, not what was wrong with the code)
    """A rank did not answer, or ended with an error of its own; the message names it."""

    explained = True
    """The message says all that a user can act on; a command prints no traceback."""


class RollCall(Callback):
    """After a failure every rank that still runs answers with its error, and names those that do not answer.

    A rank that dies closes its connections, and a collective of the others fails at once; one that hangs lets it fail
    after the timeout of the process group. Either way the failure says nothing of who was missing: the store does, at which the
    ranks met at the start. It lies with rank 0; where that is gone, the others cannot reach it and say so.

    Args:
        name: Of what is run; every rank uses the same, and each name once.
        patience: Seconds for the others to notice the failure too.
        kept: What is kept for ``--resume``, for the message.
    """

    def __init__(self, name: str, *, patience: float = 10.0, kept: str = "the last saved state is kept") -> None:
        self.name, self.patience, self.kept = name, patience, kept
        self._found: str | None = None
        self._store: Store | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the ranks met."""
        if trainer.world_size > 1:
            self._store = PrefixStore(f"roll/{self.name}", _get_default_store())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Answer, and find out who does not; the ranks may be connected since an earlier fit, and this one not begun."""
        if self._store is None and dist.is_available() and dist.is_initialized():
            self.on_fit_start(trainer, pl_module)
        if self._store is None or not isinstance(exception, Exception):
            return
        ranks, rank = trainer.world_size, trainer.global_rank
        own = None if is_of_collective(exception) else f"{type(exception).__name__}: {exception}"
        try:
            missing, told = roll_call(self._store, ranks, rank, own, patience=self.patience)
        except RuntimeError:
            missing, told = [0], {}
        if rank == 0:
            time.sleep(LINGER)  # the others read the answers from the store of this process
        if own is not None or not (missing or told):
            return
        parts = [f"rank {each} of {ranks} does not answer{ending(RankLauncher.started, each)}" for each in missing]
        parts += [f"rank {each} of {ranks} ended with {error}" for each, error in sorted(told.items())]
        self._found = f"{', '.join(parts)}; rank {rank} ends too; {self.kept}, go on with --resume"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around the fit: raises LostRank, which names the rank, in place of what the collective said.

        Raises:
            LostRank: a rank was found missing, or told of an error of its own.
        """
        try:
            yield
        except Exception as error:
            if self._found is not None:
                raise LostRank(self._found) from error
            raise


def roll_call_of(trainer: Trainer) -> RollCall:
    """The one among the Trainer's callbacks, or one that knows of nothing."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return next((each for each in callbacks if isinstance(each, RollCall)), RollCall("none"))


def roll_call(
    store: Store, ranks: int, rank: int, error: str | None, *, patience: float
) -> tuple[list[int], dict[int, str]]:
    """Answer for this rank, and wait for the answers of the others.

    Args:
        store: that all ranks can reach.
        ranks: how many there are.
        rank: this one.
        error: what ended this rank, or None where it only saw the others fail.
        patience: seconds to wait.

    Returns:
        The ranks that did not answer in time, and the errors of those that ended by their own.

    Raises:
        RuntimeError: the store cannot be reached any more.

    Example:
        >>> roll_call(dist.HashStore(), 3, 0, None, patience=0)
        ([1, 2], {})
    """
    store.set(f"{ANSWER}/{rank}", error or "")
    waiting = set(range(ranks)) - {rank}
    until = time.monotonic() + patience
    told = {}
    while True:
        for other in sorted(waiting):
            if store.check([f"{ANSWER}/{other}"]):
                waiting.discard(other)
                if answer := store.get(f"{ANSWER}/{other}").decode():
                    told[other] = answer
        if not waiting or time.monotonic() >= until:
            return sorted(waiting), told
        time.sleep(min(0.1, patience))


def is_of_collective(error: BaseException) -> bool:
    """Whether an error only says that some other rank failed."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in MARKS)
    )

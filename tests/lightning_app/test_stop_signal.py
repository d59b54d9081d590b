"""Signals to this process: when they end what it does, and what the command says."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import ModuleType

import pytest

from lightning_app.command_line import main
from lightning_app.config import TrainConfig
from lightning_app.stop_signal import FORWARDED, SIGNALS, Stopped, requeue


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


class Ranks:
    """A launcher that notes what its ranks would receive."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def kill(self, signum: int) -> None:
        self.received.append(signum)


def stopped(run: Callable[[], None], kept: str = "kept") -> Stopped:
    """How a signal that comes in ``run`` ends it."""
    with pytest.raises(Stopped) as stop, SIGNALS.handled(kept):
        run()
    return stop.value


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_a_fit_ends_what_runs_at_once(signum: int, code: int) -> None:
    before, done = signal.getsignal(signum), []

    def measure() -> None:
        send(signum)
        done.append("measured")

    stop = stopped(measure, "two stages are kept")
    assert (stop.code, stop.message) == (code, f"stopped by {signal.Signals(signum).name}: two stages are kept")
    assert not done
    assert signal.getsignal(signum) is before
    assert SIGNALS.received == 0


def test_a_signal_within_a_fit_is_noted_and_ends_what_comes_after() -> None:
    done = []

    def stages() -> None:
        with SIGNALS.deferred():
            send(signal.SIGTERM)
            done.append(SIGNALS.received)
        done.append("next stage")

    stopped(stages)
    assert done == [signal.SIGTERM]


def test_ranks_that_wait_for_a_process_that_ends_are_ended_with_it() -> None:
    ranks = Ranks()

    def measure() -> None:
        with SIGNALS.deferred(ranks):
            pass
        send(signal.SIGINT)

    stopped(measure)
    assert ranks.received == [signal.SIGKILL]


def test_the_process_that_has_forked_the_ranks_tells_them() -> None:
    ranks, told = Ranks(), []

    def wait() -> None:
        with SIGNALS.deferred(ranks, forwards=True):
            send(signal.SIGINT)
            told.extend(ranks.received)

    stopped(wait)
    assert told == [FORWARDED]


def test_the_end_that_slurm_adds_to_its_requeue_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", "")

    def fit() -> None:
        with SIGNALS.deferred():
            send(signal.SIGUSR1)
            send(signal.SIGTERM)

    assert stopped(fit).signum == signal.SIGUSR1


def test_a_thread_leaves_signals_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with SIGNALS.handled("kept"):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(
    ("array", "job"), [({}, "7"), ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}, "5_3")]
)
def test_a_queue_that_cannot_be_asked_is_said_with_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], array: dict[str, str], job: str
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "PATH": "", **array}.items():
        monkeypatch.setenv(name, value)
    assert not requeue()
    assert capsys.readouterr().err == f"SLURM job {job}: expected scontrol in PATH to requeue it, found none\n"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_what_is_kept_and_ends_with_the_code_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signum: int, code: int
) -> None:
    """While it measures or merges."""
    stub = ModuleType("lightning_app.run")
    stub.train = lambda config: send(signum)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_app.run", stub)
    assert main(TrainConfig, "lightning_app.training:train", argv=["--output", "runs/x"]) == code
    name = signal.Signals(signum).name
    assert capsys.readouterr().err == (f"stopped by {name}: finished stages in runs/x are kept; go on with --resume\n")


def test_a_rank_whose_code_another_one_watches_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    stub = ModuleType("stopped_rank")

    def run(config: TrainConfig) -> None:
        raise Stopped(signal.SIGTERM, code=0)

    stub.run = run  # type: ignore[attr-defined]
    sys.modules["stopped_rank"] = stub
    try:
        assert main(TrainConfig, "stopped_rank:run", argv=[]) == 0
    finally:
        del sys.modules["stopped_rank"]
    assert capsys.readouterr().err == ""

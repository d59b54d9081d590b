"""A rank that dies, hangs or fails: the others end, and name it."""

import datetime
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

from lightning_app.launching import ending, watch
from lightning_app.lost_rank import LostRank, RollCall, is_of_collective, roll_call


class OneRank:
    """What a callback asks of a Trainer."""

    def __init__(self, rank, ranks):
        self.global_rank, self.world_size = rank, ranks


def rank_of_three(rank, port, fate, told):
    """Ranks that add up numbers; rank 1 meets its fate before the second sum."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 3, is_master=rank == 0, timeout=datetime.timedelta(seconds=30))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=datetime.timedelta(seconds=2))
    call, trainer = RollCall("1-six", patience=2), OneRank(rank, 3)
    if fate != "dies before the fit":
        call.on_fit_start(trainer, None)
    try:
        with call.named():
            try:
                for step in range(2):
                    if rank == 1 and step == 1:
                        if fate.startswith("dies"):
                            os._exit(9)
                        if fate == "hangs":
                            time.sleep(9)
                            os._exit(0)
                        raise MemoryError("out of memory")
                    dist.all_reduce(torch.ones(1))
            except Exception as error:
                call.on_exception(trainer, None, error)
                raise
    except Exception as error:
        told.put((rank, type(error).__name__, str(error)))
    told.close()
    told.join_thread()
    os._exit(0)


def free_port():
    with __import__("socket").socket() as socket:
        socket.bind(("127.0.0.1", 0))
        return socket.getsockname()[1]


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("dies", "rank 1 of 3 does not answer"),
        ("dies before the fit", "rank 1 of 3 does not answer"),
        ("hangs", "rank 1 of 3 does not answer"),
        ("fails", "rank 1 of 3 ended with MemoryError: out of memory"),
    ],
)
def test_the_others_name_the_rank(fate, said):
    context = multiprocessing.get_context("fork")
    told, port = context.Queue(), free_port()
    ranks = [context.Process(target=rank_of_three, args=(rank, port, fate, told)) for rank in range(3)]
    for each in ranks:
        each.start()
    found = {
        rank: (kind, text) for rank, kind, text in (told.get(timeout=60) for _ in range(3 if fate == "fails" else 2))
    }
    for each in ranks:
        each.join(30)
    for rank in (0, 2):
        kind, text = found[rank]
        assert kind == LostRank.__name__
        assert said in text
        assert f"rank {rank} ends too; the last saved state is kept, go on with --resume" in text
    if fate == "fails":
        assert found[1] == ("MemoryError", "out of memory")


def test_only_what_collectives_say_is_a_loss_of_others():
    assert is_of_collective(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert is_of_collective(dist.DistNetworkError("no peer"))
    assert not is_of_collective(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_of_collective(ValueError("connection"))


def test_an_error_of_one_process_is_left_as_it_is():
    call, trainer = RollCall("1-six"), OneRank(0, 1)
    call.on_fit_start(trainer, None)
    error = RuntimeError("gloo")
    call.on_exception(trainer, None, error)
    with pytest.raises(RuntimeError) as caught, call.named():
        raise error
    assert caught.value is error


def test_all_answers_are_waited_for():
    store = dist.HashStore()
    later = threading.Timer(0.3, lambda: store.set("answer/1", "ValueError: no"))
    later.start()
    assert roll_call(store, 2, 0, None, patience=30) == ([], {1: "ValueError: no"})


def sleeper(seconds):
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])


def test_what_hangs_is_ended_when_a_process_was_killed(capfd):
    procs, left = [sleeper(60), sleeper(60)], []
    procs[1].send_signal(signal.SIGKILL)
    watch(procs, grace=0.1, leave=left.append, period=0.05)
    assert left == [1]
    assert procs[0].wait(10) == -signal.SIGKILL
    assert f"failed: rank 2 of 3 is gone (process {procs[1].pid} was ended by SIGKILL)" in capfd.readouterr().err


def test_processes_that_end_well_are_let_go():
    left = []
    watch([sleeper(0), sleeper(0)], grace=60, leave=left.append, period=0.05)
    assert left == []


def test_how_a_process_ended_is_told():
    proc = sleeper(60)
    assert ending([proc], 1) == f" (process {proc.pid} still runs)"
    proc.kill()
    proc.wait(10)
    assert ending([proc], 1) == f" (process {proc.pid} was ended by SIGKILL)"
    assert ending([proc], 2) == ending([], 1) == ending([proc], 0) == ""
    failing = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    failing.wait(10)
    assert ending([failing], 1) == f" (process {failing.pid} ended with exit code 3)"

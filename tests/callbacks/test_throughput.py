"""Rates are those of the texts that were trained, over the time that was trained; memory is what the process took."""

import resource

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger

from callbacks import throughput
from callbacks.step_log import StepLog
from callbacks.throughput import FetchClock, Throughput

FETCH = "[_TrainingEpochLoop].train_dataloader_next"


class Kept(Logger):
    """What a run logs: (step, tag) -> value."""

    def __init__(self):
        super().__init__()
        self.values = {}

    name = version = "kept"

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.values |= {(step, tag): value for tag, value in metrics.items()}

    def steps(self, tag):
        return {step: value for (step, name), value in self.values.items() if name == tag}


class Time:
    """A clock that goes on when it is told."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(throughput, "perf_counter", lambda: self.now)


class Pass(Callback):
    """Lets so many seconds pass in each step (the first takes longer), between epochs, and while a batch is fetched."""

    def __init__(self, time, clock, *, step=0.0, fetch=0.0, evaluation=0.0):
        self.time, self.clock, self.step, self.fetch, self.evaluation = time, clock, step, fetch, evaluation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.clock.start(FETCH)
        self.time.now += self.fetch
        self.clock.stop(FETCH)
        self.time.now += self.step if trainer.global_step else 100.0

    def on_train_epoch_end(self, trainer, pl_module):
        self.time.now += self.evaluation


@pytest.fixture
def timed(fit, monkeypatch, tmp_path):
    """``timed(devices, every, steps, epochs, ...)``: what is logged by a run with a clock of its own."""

    def run(*, every, step, fetch=0.0, evaluation=0.0, steps=4, epochs=1, devices=1):
        time, logger = Time(monkeypatch), Kept()
        rates = Throughput(every)
        batches = {}

        class Remember(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                batches[trainer.global_step] = batch

        passing = Pass(time, rates.clock, step=step, fetch=fetch, evaluation=evaluation)
        fit(steps=steps, epochs=epochs, devices=devices, callbacks=[Remember(), rates, passing], logger=logger)
        return logger, batches

    return run


def test_rates_leave_out_the_first_step_and_the_evaluation(timed):
    logger, batches = timed(every=3, step=2.0, fetch=0.5, evaluation=50.0, steps=4, epochs=2)
    # steps 2 and 3; then 4, 5 and 6, which an evaluation parts
    for step, counted in ((2, (2, 3)), (5, (4, 5, 6))):
        seconds = 2.5 * len(counted)
        tokens = sum(batches[each].tokens for each in counted)
        padded = sum(part["input_ids"].numel() for each in counted for part in batches[each].parts)
        expected = {
            "samples_per_second": 16 * len(counted) / seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_step": tokens / len(counted),
            "padding_share": 1 - tokens / padded,
            "data_share": 0.2,
        }
        for tag, value in expected.items():
            assert logger.values[step, f"throughput/{tag}"] == pytest.approx(value), tag
    assert logger.steps("throughput/samples_per_second").keys() == {2, 5}
    assert logger.steps("throughput/evaluation_seconds") == {3: 50.0, 7: 50.0}


def test_padding_is_what_is_computed_and_not_a_token(timed):
    logger, batches = timed(every=2, step=1.0)
    batch = batches[2]
    real = sum(int(part["attention_mask"].sum()) for part in batch.parts)
    assert batch.tokens == real
    assert logger.values[1, "throughput/tokens_per_second"] == pytest.approx(real)


def test_ranks_are_added_up_and_the_slowest_counts(fit, tmp_path, monkeypatch):
    time = Time(monkeypatch)
    rates = Throughput(2)

    class Slow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            time.now += 1.0 + trainer.global_rank

    class Check(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2 and trainer.is_global_zero:
                # a step of 16 texts, 8 on each rank, and 2 seconds on the slower one
                assert trainer.logger.values[1, "throughput/samples_per_second"] == pytest.approx(8.0)
                (tmp_path / "checked").touch()

    fit(steps=3, devices=2, callbacks=[rates, Slow(), Check()], logger=Kept())
    assert (tmp_path / "checked").exists()


def test_memory_is_the_process_s_own(timed):
    logger, _ = timed(every=2, step=1.0)
    (peak,) = {round(value, 6) for value in [logger.steps("memory/host_peak_gib")[1]]}
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert 0.05 < peak <= now + 1e-4
    assert not logger.steps("memory/device_peak_gib")


def test_nothing_of_it_is_a_metric_of_an_epoch(fit):
    kept = {}

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            kept.update(trainer.callback_metrics)

    fit(steps=4, callbacks=[Throughput(1), StepLog(1), Keep()], logger=Kept())
    assert kept.keys() == {"train/loss", "train/gradient_norm"}


def test_lightning_tells_the_clock_of_every_fetch(fit, monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(throughput, "perf_counter", lambda: float(next(times)))
    clock = FetchClock()
    fit(steps=4, profiler=clock)
    assert clock.seconds >= 4  # each fetch lies between two looks at a clock that counts looks


def test_learning_rates_are_those_of_their_steps(fit):
    logger, used = Kept(), {}

    class Used(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            used[trainer.global_step] = optimizer.param_groups[0]["lr"]

    fit(steps=6, callbacks=[StepLog(2), Used()], logger=logger, log_every_n_steps=2)
    rates = logger.steps("train/learning_rate")
    assert rates == {step: used[step] for step in (1, 3, 5)}
    assert len(set(rates.values())) == 3
    # with the module's own values, at the same steps
    assert logger.steps("train/loss").keys() == logger.steps("train/gradient_norm").keys() == rates.keys()

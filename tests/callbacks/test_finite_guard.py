"""What is not finite stops the run, costs a step, or takes it back; nothing of it is ever saved."""

import copy
import json
import math

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from callbacks.finite_guard import MOST_ROLLBACKS, MOST_SKIPPED, FiniteGuard
from callbacks.non_finite import NonFiniteLoss, named_items, non_finite_name
from tests.conftest import short_texts

NAN, INF = float("nan"), float("inf")


class Bad(Callback):
    """Makes the loss (by a factor, or an offset), the gradient or the weights of some steps bad, on some rank."""

    def __init__(self, what, steps, *, value=NAN, rank=None):
        self.what, self.steps, self.value, self.rank = what, steps, value, rank

    def here(self, trainer):
        return trainer.global_step in self.steps and self.rank in (None, trainer.global_rank)

    def on_train_start(self, trainer, pl_module):
        objective = pl_module.objective
        if self.what == "loss":
            pl_module.objective = lambda *each: objective(*each) * (self.value if self.here(trainer) else 1.0)
        if self.what == "offset":  # no gradient tells of it
            pl_module.objective = lambda *each: objective(*each) + (self.value if self.here(trainer) else 0.0)
        if self.what == "gradient":  # a hook of the weight: before DDP's all-reduce
            weight = next(each for each in pl_module.parameters() if each.requires_grad)
            weight.register_hook(lambda gradient: gradient * self.value if self.here(trainer) else None)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.what == "weights" and trainer.global_step in self.steps:
            with torch.no_grad():
                next(each for each in pl_module.parameters() if each.requires_grad).view(-1)[3] = self.value


class Look(Callback):
    """Weights, optimiser and schedule after each step; what the optimiser was given."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after[trainer.global_step] = (
            {name: tensor.clone() for name, tensor in pl_module.state_dict().items()},
            copy.deepcopy(trainer.optimizers[0].state_dict()),
            copy.deepcopy(trainer.lr_scheduler_configs[0].scheduler.state_dict()),
        )


class Save(Callback):
    """A state for a resume after some steps."""

    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"state-{trainer.global_step}", weights_only=False)


def equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def all_finite_on_disk(folder):
    def refuse(token):
        raise AssertionError(token)

    for file in folder.rglob("*.safetensors"):
        assert non_finite_name(load_file(file)) is None, file
    for file in folder.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(("what", "value"), [("loss", NAN), ("loss", INF), ("gradient", NAN), ("gradient", INF)])
def test_stop_names_the_first_bad_step_of_the_checked_ones(fit, what, value):
    with pytest.raises(NonFiniteLoss, match=rf"^{what}.*: expected a finite number, got (nan|inf) in epoch 0, step 2;"):
        fit(steps=6, callbacks=[FiniteGuard(every=5), Bad(what, [2, 3], value=value)])


def test_the_message_names_batch_and_state_in_one_line(fit, tmp_path):
    texts, seen = short_texts().texts, {}

    class Remember(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen[trainer.global_step] = batch.targets.tolist()

    guard = FiniteGuard(every=2, texts=texts, state=tmp_path / "resume")
    with pytest.raises(NonFiniteLoss) as caught:
        fit(steps=6, callbacks=[guard, Remember(), Bad("loss", [4]), Save(tmp_path, [3])])
    message = str(caught.value)
    assert "\n" not in message
    assert f"the state of epoch 0, step 3 is kept in {tmp_path / 'resume'}" in message
    assert all(f" {place}/{label}" in message for label, place, _ in seen[4])
    label, place, _ = seen[4][0]
    assert f"{place}/{label} {texts[place][:24]!r}" in message


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_no_state_is_saved_from_a_bad_step_on(fit, tmp_path, what):
    saves = Save(tmp_path, [1, 3, 4])
    # poisoned after the third step, between two checks: the save itself has to look
    bad = Bad(what, [3] if what == "weights" else [2])
    with pytest.raises(NonFiniteLoss, match=r"epoch 0, step 1 is kept"):
        fit(steps=6, callbacks=[FiniteGuard(every=5), bad, saves])
    assert sorted(path.name for path in tmp_path.glob("state-*")) == ["state-1"]
    all_finite_on_disk(tmp_path)


def test_bad_weights_end_the_epoch_before_it_is_measured(fit):
    reached = []

    class Measure(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            reached.append(trainer.current_epoch)

    with pytest.raises(NonFiniteLoss, match=r"weights\..*lora_A.*epoch 0, step 4"):
        fit(steps=4, callbacks=[FiniteGuard(every=5), Bad("weights", [4]), Measure()])
    assert reached == []


def test_embeddings_that_are_not_finite_name_the_text(fit, monkeypatch):
    from callbacks.clustering_metrics import ClusteringMetrics
    from lightning_app.module import ContrastiveEmbedder

    def encode(self, texts):
        rows = torch.ones(len(texts), 4)
        rows[5, 1] = NAN
        return rows

    monkeypatch.setattr(ContrastiveEmbedder, "encode", encode)
    with pytest.raises(NonFiniteLoss, match=r"embeddings: expected finite numbers, .* text 5 \('144, 147") as caught:
        fit(steps=1, callbacks=[FiniteGuard(), ClusteringMetrics({"paper": short_texts()})])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skip_leaves_weights_and_optimiser_as_they_were(fit, what):
    guard, look = FiniteGuard("skip", every=2), Look()
    fit(steps=5, callbacks=[guard, look, Bad(what, [2])])
    (weights, optimiser, schedule), (later, after, moved) = look.after[2], look.after[3]
    assert equal(weights, later)
    assert equal(optimiser["state"], after["state"])
    assert moved["last_epoch"] == schedule["last_epoch"] + 1
    assert not equal(later, look.after[4][0])
    assert (guard.skipped, guard.skipped_in_a_row) == (1, 0)


def test_skip_goes_on_as_plain_adamw_without_that_step(fit):
    """The gradients that a plain AdamW was given, all but the bad one, make the same weights."""
    gradients, rates, look = {}, {}, Look()

    class Given(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            self.keep(trainer, pl_module, optimizer)

        def keep(self, trainer, pl_module, optimizer):
            gradients.setdefault(
                "start", {n: p.detach().clone() for n, p in pl_module.named_parameters() if p.requires_grad}
            )

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates[trainer.global_step] = optimizer.param_groups[0]["lr"]
            gradients[trainer.global_step] = {
                name: None if each.grad is None else each.grad.clone()
                for name, each in pl_module.named_parameters()
                if each.requires_grad
            }

    fit(steps=5, callbacks=[FiniteGuard("skip"), Given(), look, Bad("loss", [1])], learning_rate=1e-2)
    weights = gradients.pop("start")
    plain = torch.optim.AdamW(weights.values(), lr=1.0, weight_decay=0.0)
    for step, given in gradients.items():
        if step == 1:
            assert all(each is None for each in given.values())
            continue
        plain.param_groups[0]["lr"] = rates[step]
        for name, each in weights.items():
            each.grad = given[name].clone()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        plain.step()
    for name, each in look.after[5][0].items():
        torch.testing.assert_close(each, weights[name], rtol=1e-6, atol=1e-8)


def test_skipping_ends_when_nothing_else_happens(fit):
    with pytest.raises(
        NonFiniteLoss, match=rf"in epoch 0, step {MOST_SKIPPED}, the {MOST_SKIPPED + 1}th bad step in a row"
    ):
        fit(steps=14, callbacks=[FiniteGuard("skip"), Bad("loss", range(20))])
    fit(steps=14, callbacks=[FiniteGuard("skip"), Bad("loss", [*range(9), *range(10, 14)])])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_rollback_restores_the_last_copy_and_goes_on_with_the_next_batch(fit, what):
    guard, look = FiniteGuard("rollback", every=2), Look()
    places = {}

    class Remember(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            places[trainer.global_step] = batch.targets.tolist()

    fit(steps=6, callbacks=[guard, look, Remember(), Bad(what, [3])])
    assert equal(look.after[4], look.after[2])
    assert not equal(look.after[3][0], look.after[2][0])
    assert len(set(map(str, places.values()))) == 6
    assert guard.rollbacks == 1
    assert not equal(look.after[5][0], look.after[4][0])


def test_rollback_mends_weights_that_a_finite_gradient_spoiled(fit):
    look = Look()
    # spoiled after step 3; the loss of the next step tells
    fit(steps=6, callbacks=[FiniteGuard("rollback", every=2), Bad("weights", [3]), look])
    assert equal(look.after[4], look.after[2])


def test_rollback_gives_up(fit):
    with pytest.raises(NonFiniteLoss, match=f"step {MOST_ROLLBACKS + 1} after {MOST_ROLLBACKS} rollbacks"):
        fit(steps=8, callbacks=[FiniteGuard("rollback", every=4), Bad("gradient", [0, *range(2, 8)])])


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_the_guard_goes_on_where_it_was_saved(fit, tmp_path, policy):
    """Bad steps before and after the save: counts and the copy to go back to outlive the process."""

    def run(folder, **more):
        guard, look = FiniteGuard(policy, every=3), Look()
        # the copy of step 3 is older than the state of the epoch's end
        bad = Bad("loss", [1, 5])
        fit(steps=4, epochs=2, callbacks=[guard, look, bad, Save(folder, [4])], **more)
        return guard, look.after

    guard, after = run(tmp_path)
    again, later = run(tmp_path / "again", resume=tmp_path / "state-4")
    assert later.keys() == {5, 6, 7, 8}
    assert equal({step: after[step] for step in later}, later)
    assert (guard.skipped, guard.rollbacks) == (again.skipped, again.rollbacks)
    assert guard.skipped + guard.rollbacks == 2
    if policy == "rollback":
        assert equal(later[6], after[3])


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
@pytest.mark.parametrize("what", ["loss", "gradient", "offset"])
def test_one_bad_rank_of_two(fit, tmp_path, policy, what):
    class Report(Callback):
        def on_train_end(self, trainer, pl_module):
            guard = trainer.callbacks[0]
            counts = trainer.strategy.all_gather(torch.tensor([guard.skipped, guard.rollbacks]))
            assert counts.tolist() == [[policy == "skip", policy == "rollback"]] * 2
            flat = torch.cat([each.flatten() for each in pl_module.state_dict().values()])
            both = trainer.strategy.all_gather(flat)
            assert torch.equal(both[0], both[1])
            assert both.isfinite().all()
            (tmp_path / f"rank-{trainer.global_rank}").touch()

    callbacks = [FiniteGuard(policy, every=2), Report(), Bad(what, [2], rank=1), Save(tmp_path, [2, 3])]
    if policy == "stop":
        with pytest.raises(Exception, match=r"(loss|gradient norm): .*in epoch 0, step 2; .*step 2 is kept"):
            fit(devices=2, steps=4, callbacks=callbacks)
        assert sorted(path.name for path in tmp_path.glob("state-*")) == ["state-2"]
    else:
        fit(devices=2, steps=4, callbacks=callbacks)
        assert sorted(path.name for path in tmp_path.glob("rank-*")) == ["rank-0", "rank-1"]
    all_finite_on_disk(tmp_path)


def test_finite_runs_are_left_alone(fit):
    plain, watched = Look(), Look()
    fit(steps=3, callbacks=[plain])
    for policy in ("stop", "skip", "rollback"):
        fit(steps=3, callbacks=[FiniteGuard(policy, every=2), watched])
        assert equal(plain.after, watched.after)


def test_long_batches_are_named_in_short():
    assert named_items([(i, i % 2) for i in range(70)], ["x" * 100]).endswith("63/1, and 6 more")
    assert named_items([(0, 0), (1, 1)], ["x" * 100]) == f"0/0 '{'x' * 24}', 1/1"


def test_the_first_bad_tensor_is_named():
    assert non_finite_name({"a": torch.ones(1), "b": {0: {"c": torch.tensor(math.inf)}}, "d": "nan"}) == "b.0.c"
    assert non_finite_name({"a": torch.ones(1), "b": [1], "c": torch.tensor([1])}) is None

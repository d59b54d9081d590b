"""A device without memory, by a hook that says so: the loss and the gradients of a run that had enough."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.multiprocessing import ProcessRaisedException

import lightning_app.module
from lightning_app.part_budget import PartBudget
from storage.json_file import read_json, write_json
from tests.lightning_app.one_step import assert_alike, build_module, on_outputs, some_weights, steps


@pytest.fixture(scope="module")
def weights(tiny_folder):
    return some_weights(build_module(tiny_folder))


@pytest.fixture(scope="module")
def plenty(tiny_folder, weights, tmp_path_factory):
    return steps(build_module(tiny_folder), tmp_path_factory.mktemp("plenty") / "run", weights)


def no_memory(*_):
    raise torch.OutOfMemoryError("out of memory")


def forward_fails(limit, failed):
    def act(embeddings, tokens):
        if tokens > limit:
            failed.append(tokens)
            no_memory()

    return act


def backward_fails(limit, failed):
    def act(embeddings, tokens):
        if tokens > limit and embeddings.requires_grad:
            embeddings.register_hook(lambda _: failed.append(tokens) or no_memory())

    return act


@pytest.mark.parametrize(("fails", "num_workers"), [(forward_fails, 0), (backward_fails, 0), (backward_fails, 1)])
def test_a_step_is_made_again_in_smaller_parts(fails, num_workers, tiny_folder, weights, plenty, tmp_path, capfd):
    module, failed, passes = build_module(tiny_folder), [], []
    on_outputs(module, lambda embeddings, tokens: passes.append((module.global_step, tokens)))
    on_outputs(module, fails(100, failed))
    found = steps(module, tmp_path / "run", weights, num_workers=num_workers)
    assert_alike(found, plenty, atol=1e-6)
    assert failed, "nothing was tried that failed"
    assert module.budget.tokens <= 100
    # only the first step failed, the others knew
    assert all(tokens <= 100 for step, tokens in passes if step > 0)
    said = capfd.readouterr().err
    assert said.count("out of memory") == 1
    assert f"--token-budget {module.budget.tokens} from the start" in said


def test_dropout_is_drawn_as_by_a_run_that_knew_the_budget(tiny_folder, weights, tmp_path):
    how = {"dropout": 0.3, "batching": "padded"}
    module = build_module(tiny_folder, **how)
    on_outputs(module, backward_fails(100, []))
    found = steps(module, tmp_path / "found", weights)
    known = build_module(tiny_folder, token_budget=module.budget.tokens, **how)
    expected = steps(known, tmp_path / "known", weights)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], each) for name, each in theirs.items())
    plain = steps(build_module(tiny_folder, **how), tmp_path / "plain", weights)
    assert not torch.equal(found[1]["loss"], plain[1]["loss"]), "without dropout nothing would be shown"


def test_no_memory_for_a_single_text_ends_in_one_line(tiny_folder, weights, tmp_path):
    module = build_module(tiny_folder)
    on_outputs(module, forward_fails(20, []))
    with pytest.raises(
        ValueError, match=r"^--token-budget: expected memory for one text of \d+ tokens, found none"
    ) as it:
        steps(module, tmp_path / "run", weights)
    assert "\n" not in str(it.value)


def test_the_budget_is_gone_on_with(tiny_folder):
    first = build_module(tiny_folder)
    first.budget.tokens = 40
    state = {}
    first.on_save_checkpoint(state)
    for given, expected in ((None, 40), (30, 30), (50, 40)):
        second = build_module(tiny_folder, token_budget=given)
        second.on_load_checkpoint(json.loads(json.dumps(state)))
        assert second.budget.tokens == expected
        second.on_load_checkpoint({})
        assert second.budget.tokens == expected


class Budgets(Callback):
    """Writes each rank's budget after the run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        write_json(self.folder / f"{trainer.global_rank}.json", pl_module.budget.tokens)


def fails_on_rank_1(module, limit):
    def act(embeddings, tokens):
        if module.global_rank == 1 and tokens > limit:
            no_memory()

    on_outputs(module, act)
    return module


def test_ranks_try_the_longest_texts_and_take_the_least_budget(
    tiny_folder, weights, plenty, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(lightning_app.module, "tries_memory", lambda device: True)
    module = fails_on_rank_1(build_module(tiny_folder), 100)
    found = steps(module, tmp_path / "run", weights, devices=2, callbacks=[Budgets(tmp_path)])
    assert capfd.readouterr().err.count("out of memory") == 1
    assert_alike(found, plenty, atol=1e-5)
    first, second = (read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert first == second <= 100


def test_ranks_that_all_have_memory_take_no_budget(tiny_folder, weights, plenty, tmp_path, monkeypatch):
    monkeypatch.setattr(lightning_app.module, "tries_memory", lambda device: True)
    found = steps(build_module(tiny_folder), tmp_path / "run", weights, devices=2, callbacks=[Budgets(tmp_path)])
    assert_alike(found, plenty, atol=1e-5)
    assert [read_json(tmp_path / f"{rank}.json") for rank in (0, 1)] == [None, None]


@pytest.mark.parametrize(
    ("tries", "limit", "message"),
    [
        (
            False,
            100,
            r"--token-budget: expected memory for \d+ tokens at once on rank 1, found too little; give --token-b",
        ),
        (True, 20, r"--token-budget: expected memory for one text (of \d+ tokens|on every rank), found none"),
    ],
)
def test_one_of_several_ranks_ends_the_run_in_a_line(
    tries, limit, message, tiny_folder, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(lightning_app.module, "tries_memory", lambda device: tries)
    module = fails_on_rank_1(build_module(tiny_folder), limit)
    with pytest.raises(ProcessRaisedException, match=message):
        steps(module, tmp_path / "run", weights, devices=2)


def test_an_error_of_another_kind_is_not_tried_again():
    calls = []

    def attempt():
        calls.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        PartBudget(None).until_it_fits(attempt)
    assert len(calls) == 1

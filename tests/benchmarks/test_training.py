"""The training benchmark: both sides train the same thing, on batches that are as full as their name says."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.utils import clip_grad_norm_

from benchmarks import training_speed
from benchmarks.__main__ import main
from benchmarks.readme import page
from benchmarks.result import Settings, read_results
from benchmarks.training_case import (
    LABELS,
    SHARES,
    TrainingCase,
    check_fill,
    fresh,
    texts_of_a_stage,
    uneven_texts,
    windows_of_a_stage,
)
from benchmarks.training_memory import case_of, words_of
from benchmarks.training_ours import Steps
from benchmarks.training_runs import SIDES, Plan, plan_of
from data.training_texts import TrainingTexts
from models.adapter import adapter_state

TINY = TrainingCase(model="tiny", longest=64)


def plain_losses(embedder: SentenceTransformer, plan: Plan) -> list[float]:
    """The run in plain torch: whole padded batches, Khosla's loss in loops over pairs, the schedule written out."""
    trainable = [each for each in embedder.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1.0, weight_decay=0.0)
    losses = []
    for number, batch in enumerate(plan.batches):
        features = embedder.preprocess([plan.data.texts[place] for place in batch])
        rows = torch.nn.functional.normalize(embedder(features)["sentence_embedding"], dim=1)
        labels = [plan.data.labels[place] for place in batch]
        anchors = []
        for i in range(len(batch)):
            others = [j for j in range(len(batch)) if j != i]
            total = torch.stack([(rows[i] @ rows[j] / 0.1).exp() for j in others]).sum()
            friends = [j for j in others if labels[j] == labels[i]]
            anchors.append(-torch.stack([(rows[i] @ rows[j] / 0.1) - total.log() for j in friends]).mean())
        loss = torch.stack(anchors).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(trainable, 1.0)
        assert len(plan.batches) <= 5, "the warm-up, of which alone the schedule is written out here"
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (number + 1) / 6
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("adapt_top", [None, 1])
def test_both_sides_are_a_plain_run(adapt_top: int | None, tmp_path: Path) -> None:
    """Four steps, in which the loss moves by far more than the sides may differ."""
    case = TrainingCase(model="tiny", longest=64, adapt_top=adapt_top)
    plan = plan_of(case, per_class=2, steps=4)
    expected = plain_losses(fresh(case), plan)
    trained = {}
    for side, run in SIDES.items():
        embedder = fresh(case)
        found = run(embedder, plan, tmp_path / side)
        assert found.losses == pytest.approx(expected, abs=1e-5)
        assert len(found.ends) == 4
        assert found.ends == sorted(found.ends)
        assert (found.seconds_a_kept_text > 0) == (side == "ours" and adapt_top is not None)
        trained[side] = adapter_state(embedder)
    start = adapter_state(fresh(case))
    for name, weight in trained["ours"].items():
        torch.testing.assert_close(weight, trained["peer"][name], atol=2e-5, rtol=0)
    assert max(float((trained["ours"][name] - start[name]).abs().max()) for name in start) > 1e-4


def test_every_batch_has_other_texts_of_the_same_lengths() -> None:
    plan = plan_of(TINY, per_class=len(SHARES), steps=3)
    embedder = fresh(TINY)
    lengths = [
        sorted(len(embedder.tokenizer(plan.data.texts[place])["input_ids"]) for place in batch)
        for batch in plan.batches
    ]
    assert len({tuple(sorted(batch)) for batch in plan.batches}) == 3
    assert all(len(batch) == len(LABELS) * len(SHARES) for batch in plan.batches)
    for batch in lengths:
        assert batch[-1] <= 64
        assert batch[-len(LABELS)] > 0.8 * 64, "every label has a text of nearly the longest's length"
        assert sum(batch) / len(batch) / batch[-1] == pytest.approx(0.36, abs=0.03)


def test_batches_that_are_fuller_than_their_name_says_are_refused() -> None:
    embedder = fresh(TINY)
    even = TrainingTexts(texts=["1, 2", "3, 4"], labels=[0, 1], blocks=[0, 1])
    with pytest.raises(ValueError, match=r"expected batches filled to 0\.36, got 1\.000"):
        check_fill(embedder, even, [[0, 1]])
    data = uneven_texts(embedder, longest=256)
    assert check_fill(embedder, data, [range(len(data.texts))]) == pytest.approx(0.36, abs=0.02)


def test_a_step_is_counted_from_the_end_of_the_one_before() -> None:
    steps = Steps(ends=[5.0, 7.0, 8.0, 8.5], losses=[0.0] * 4)
    assert steps.seconds(warm_up=1) == [2.0, 1.0, 0.5]
    assert steps.seconds(warm_up=2) == [1.0, 0.5]


def test_the_part_compares_times_and_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_speed, "texts_of_a_stage", lambda: 7)
    (tmp_path / "scratch").mkdir()
    assert main(["training", "--quick", "--output", str(tmp_path), "--scratch", str(tmp_path / "scratch")]) == 0
    everywhere, top, filling = read_results(tmp_path / "results.json")
    for each in (everywhere, top, filling):
        assert each.ratio == pytest.approx(each.ours / each.peer)
        assert each.command == "python -m benchmarks training"
        assert (each.details or {})["texts_a_step"] == 48
    (check,) = everywhere.checks
    assert check.what == "largest difference in loss over 4 steps"
    assert 0 <= check.value < check.goal == 1e-4
    seconds = (filling.details or {})["seconds_to_compute_states"]
    assert filling.ours == pytest.approx(top.ours + seconds / 90)
    assert filling.peer == top.peer
    assert filling.ratio is not None
    assert top.ratio is not None
    assert filling.ratio > top.ratio
    section = (tmp_path / "README.md").read_text().partition("## Training against")[2].partition("\n## ")[0]
    assert all(f"| {each.name} | 48 |" in section for each in (everywhere, top, filling))
    assert "for the 7 texts that a stage of 90 steps draws" in section
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_stage_draws_fewer_texts_than_it_has_and_than_its_batches_hold() -> None:
    drawn = texts_of_a_stage()
    assert 90 * 48 * 0.7 < drawn < 90 * 48 < len(windows_of_a_stage().texts)


def test_losses_that_differ_miss_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def played(loss: float) -> object:
        return lambda embedder, plan, folder: Steps(ends=[1.0, 2.0], losses=[loss] * len(plan.batches))

    monkeypatch.setattr(training_speed, "SIDES", {"ours": played(3.0), "peer": played(3.0002)})
    (found,) = training_speed.compare_row(
        training_speed.Row(case=TINY, compares=True, goal=1.5), Settings(scratch=tmp_path, repeats=1, quick=True)
    )
    assert found.ratio == 1
    assert [check.met for check in found.goals] == [True, False]
    assert found.goals[1].value == pytest.approx(2e-4)


@pytest.mark.slow
def test_memory_is_that_of_the_steps() -> None:
    from benchmarks.training_memory import training_growth

    few, many = (training_growth("peer", TINY, per_class=per_class, steps=1) for per_class in (2, 8))
    assert few < many
    assert 0 < many < 1e9


@pytest.mark.parametrize("case", [TINY, TrainingCase(model="decoder-16", adapt_top=4, precision="bf16-mixed")])
def test_memory_is_measured_of_the_case_that_was_asked_for(case: TrainingCase) -> None:
    assert case_of(words_of(case)) == case


def test_training_on_a_gpu_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    title = "## Training steps on a GPU\n"
    section = page([], tmp_path).partition(title)[2].partition("\n## ")[0]
    assert "Not measured" in section
    assert "python -m benchmarks.gpu_training --output benchmarks/gpu_training.json" in section
    row = {
        "model": "qwen3-8b", "base": "nf4", "trained_layers": 9, "side": "ours", "texts_a_second": 12.345,
        "tokens_a_second": 1234.5, "share_of_peak": 0.4321, "peak_bytes": 45_600_000_000,
        "largest_difference_in_loss": 1e-3, "busy": 0.8, "products": 0.6, "bound": "products",
    }  # fmt: skip
    found = {"device": "a GPU", "versions": {}, "matrix_peak": 7e14, "rows": [row], "command": "the command"}
    (tmp_path / "gpu_training.json").write_text(json.dumps(found))
    section = page([], tmp_path).partition(title)[2].partition("\n## ")[0]
    assert "| qwen3-8b | nf4 | 9 | ours | 12.3 | 1234 | 43 % | 45.6 | 1e-03 | products |" in section
    assert "700 TFLOP/s" in section

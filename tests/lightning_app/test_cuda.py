"""What a CUDA device must not change."""

import pytest
import torch

from evaluation import silhouette_score
from lightning_app.config import StageConfig, TrainConfig
from lightning_app.run import train
from models.embedder import encode, load_embedder

TEXTS = [", ".join(map(str, range(at, at + step * 8, step))) for step in (1, 3, 10) for at in (1, 20, 50, 90)]
LABELS = [label for label in range(3) for _ in range(4)]


@pytest.mark.gpu
def test_embeddings_and_scores_are_those_of_the_cpu(tiny_folder):
    cpu = encode(load_embedder(tiny_folder), TEXTS)
    cuda = encode(load_embedder(tiny_folder, device="cuda"), TEXTS)
    torch.testing.assert_close(cuda, cpu, atol=1e-5, rtol=0)
    assert silhouette_score(cpu.cuda(), LABELS) == pytest.approx(silhouette_score(cpu, LABELS), abs=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_the_device_ends_with_a_report(tiny_folder, tmp_path, precision):
    stages = (StageConfig(name="six", families=("six",), epochs=1, steps_per_epoch=2),)
    config = TrainConfig(
        backbone=str(tiny_folder), stages=stages, accelerator="gpu", precision=precision, output=str(tmp_path / "run")
    )
    assert [row["name"] for row in train(config)["rows"]] == ["base", "1-six", "slerp", "linear"]

"""``python -m benchmarks.gpu_training --smoke``: the program that trains on a GPU, with tiny models on the CPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_training import main, matrix_peak, operations_a_token
from models.lora import add_lora
from models.tiny_llm import build_tiny_llm


@pytest.mark.slow
def test_the_program_runs_and_says_what_it_could_not_measure(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    flags = ["--smoke", "--steps", "4", "--models", "qwen3-0.6b", "--scratch", str(tmp_path), "--output", str(file)]
    assert main(flags) == 0
    result = json.loads(file.read_text())
    assert [(row["base"], row["trained_layers"], row["side"]) for row in result["rows"]] == [
        (base, layers, side) for base in ("bfloat16", "nf4") for layers in (4, 1) for side in ("ours", "peer")
    ]
    for row in result["rows"]:
        assert row["tokens_a_second"] > row["texts_a_second"] > 0
        assert row["largest_difference_in_loss"] < 1e-2, "rounding of a base in bfloat16"
        assert row["share_of_peak"] is row["peak_bytes"] is None
    assert result["matrix_peak"] is None
    assert result["command"].startswith("python -m benchmarks.gpu_training --models qwen3-0.6b")
    assert list(tmp_path.iterdir()) == [file]


def test_operations_are_those_of_the_frozen_products_that_are_done() -> None:
    """A layer of width 8 with 2 heads: q, k, v, o of 8 x 8 and three of 8 x 24, so 832 weights; there are 3 layers."""
    embedder = build_tiny_llm(hidden_size=8, layers=3, heads=2, intermediate_size=24)
    add_lora(embedder, r=4, adapt_top=1)
    assert operations_a_token(embedder, trained=3, cached=False) == 3 * 832 * 4
    assert operations_a_token(embedder, trained=1, cached=False) == 3 * 832 * 2 + 832 * 2
    assert operations_a_token(embedder, trained=1, cached=True) == 832 * 4


def test_there_is_no_peak_without_a_gpu() -> None:
    assert matrix_peak(torch.device("cpu")) is None


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--smoke", "--steps", "3"])
    assert "--steps: expected more than 3, got 3" in capsys.readouterr().err

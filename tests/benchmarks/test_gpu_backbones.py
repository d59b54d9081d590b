"""``python -m benchmarks.gpu_backbones --smoke``: the program that measures on a GPU, with a tiny model on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.gpu_backbones import main, write_base


@pytest.mark.slow
def test_the_program_runs_and_says_what_it_could_not_measure(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    flags = ["--smoke", "--steps", "3", "--batch", "12", "--scratch", str(tmp_path), "--output", str(file)]
    assert main(flags) == 0
    result = json.loads(file.read_text())
    assert [(run["base"], run["gradient_checkpointing"]) for run in result["runs"]] == [
        (base, checkpointing) for base in ("nf4", "bfloat16") for checkpointing in (False, True)
    ]
    for run in result["runs"]:
        assert run["steps"] == len(run["losses"]) == 3
        assert run["tokens_a_second"] > 0
        assert run["peak_bytes_in_training"] is None
        assert run["planned_bytes"]["peak"] > run["planned_bytes"]["weights"]
    with_and_without = result["runs"][2:]
    assert with_and_without[0]["losses"] == pytest.approx(with_and_without[1]["losses"], rel=1e-3)
    assert result["merge"]["mean_angle_degrees"] > 0
    assert result["command"].startswith("python -m benchmarks.gpu_backbones --device")
    assert list(tmp_path.iterdir()) == [file]


def test_the_base_is_a_model_that_reads_bytes_and_ends_texts(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", torch.device("cpu"), smoke=True)
    embedder = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert embedder.preprocess(["1, 2"])["input_ids"].shape == (1, 6)
    assert embedder.preprocess(["1, 2"])["input_ids"][0, -1] == embedder.tokenizer.eos_token_id
    assert next(embedder.parameters()).dtype == torch.bfloat16
    assert embedder.encode(["1, 2", "3"]).shape == (2, 64)


@pytest.mark.parametrize("flags", [["--steps", "2"], ["--batch", "10"]])
def test_too_few_steps_and_uneven_batches_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--smoke", *flags])
    assert "expected more than 2 steps and a batch of 12 or more by sixes" in capsys.readouterr().err

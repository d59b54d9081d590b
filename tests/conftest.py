"""Fixtures that every package's tests share. Shapes in signatures are checked while tests run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

SHAPES_CHECKED = ("evaluation", "models.losses", "merging", "callbacks", "lightning_app.module", "lightning_app.measurement")
install_import_hook(SHAPES_CHECKED, "beartype.beartype")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised tiny-llm, two layers of width 32, as a sentence-transformers folder."""
    from models.export import save_embedder
    from models.tiny_llm import build_tiny_llm

    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_embedder(build_tiny_llm(hidden_size=32, layers=2, heads=2, intermediate_size=48, seed=1), folder)

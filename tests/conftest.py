"""Fixtures that several packages' tests share. Shapes in signatures are checked while tests run."""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

SHAPES_CHECKED = (
    "evaluation",
    "models.cosines",
    "models.losses",
    "models.matryoshka",
    "merging",
    "callbacks",
    "lightning_app.module",
    "lightning_app.measurement",
)
install_import_hook(SHAPES_CHECKED, "beartype.beartype")

from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# how long an example takes depends on the machine's load, and says nothing of its correctness
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised tiny-llm, two layers of width 32, as a sentence-transformers folder."""
    from models.export import save_embedder
    from models.tiny_llm import build_tiny_llm

    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_embedder(build_tiny_llm(hidden_size=32, layers=2, heads=2, intermediate_size=48, seed=1), folder)


@pytest.fixture(autouse=True)
def _rows_of_the_tiny_hub_folders(request: pytest.FixtureRequest) -> Iterator[None]:
    """In a module that imports from `tests.models.hub_folders`, rows have the length of those folders' embeddings."""
    names = vars(request.module) if request.module is not None else {}
    if any(getattr(each, "__module__", None) == "tests.models.hub_folders" for each in names.values()):
        from tests.models.hub_folders import tiny_rows

        with tiny_rows():
            yield
    else:
        yield


FAMILIES = {
    "threes": lambda at, n: [3 * (at + i) for i in range(n)],
    "sevens": lambda at, n: [7 * (at + i) + 1 for i in range(n)],
    "squares": lambda at, n: [(at + i) ** 2 for i in range(n)],
    "alternating": lambda at, n: [(at + i) * (1 + i % 2) for i in range(n)],
}


def short_texts() -> Any:
    """48 texts of 8 terms under 4 labels."""
    from data.training_texts import TrainingTexts

    rows = [(", ".join(map(str, make(3 + 9 * j, 8))), k) for k, make in enumerate(FAMILIES.values()) for j in range(12)]
    return TrainingTexts(texts=[text for text, _ in rows], labels=[label for _, label in rows], blocks=range(len(rows)))


Fit = Callable[..., Any]


@pytest.fixture
def fit(tiny_folder: Path, tmp_path: Path) -> Fit:
    """``fit(devices=..., steps=..., weights=..., callbacks=...)`` trains the small set-up and returns its module."""

    def run(
        *,
        devices: int = 1,
        steps: int = 4,
        epochs: int = 1,
        first_epoch_seed: int = 0,
        weights: dict[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
        resume: Path | None = None,
        **trainer_settings: Any,
    ) -> Any:
        import torch
        from lightning.pytorch import Trainer

        from data.datamodule import LabelledDataModule
        from lightning_app.checkpoint_io import SafetensorsIO
        from lightning_app.module import ContrastiveEmbedder
        from models.embedder import load_embedder
        from models.lora import add_lora

        torch.manual_seed(0)
        embedder = load_embedder(tiny_folder)
        add_lora(embedder, r=4, alpha=8, dropout=dropout, targets=["q_proj", "v_proj", "down_proj"])
        module = ContrastiveEmbedder(embedder, learning_rate=learning_rate, total_steps=steps * epochs)
        if weights is not None:
            module.load_state_dict(weights)
        data = LabelledDataModule(
            short_texts(), classes=4, per_class=4, batches=steps, seed=first_epoch_seed, collate=module.collate
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=trainer_settings.pop("strategy", "ddp_fork" if devices > 1 else "auto"),
            max_epochs=epochs,
            callbacks=list(callbacks),
            plugins=[SafetensorsIO()],
            logger=trainer_settings.pop("logger", False),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            gradient_clip_val=1.0,
            **trainer_settings,
        )
        embedder.train()
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
        return module

    return run


@pytest.fixture(scope="session")
def make_mistral() -> Callable[..., Path]:
    """``make_mistral(folder, max_tokens=...)``: a two-layer Mistral laid out like e5-mistral's repository.

    Last-token pooling, and an ``add_eos_token`` that transformers 5 does not act on.
    """
    return write_mistral


def write_mistral(folder: Path, *, max_tokens: int, hidden_size: int = 16, head_dim: int | None = None) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import LlamaTokenizer, MistralConfig, MistralModel

    characters = ["▁", ",", "\n", *":.()-0123456789abcdefghijklmnopqrstuvwxyzIQ"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    tokenizer = LlamaTokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        add_bos_token=True,
    )
    config = MistralConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_tokens,
        sliding_window=48,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    MistralModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    wanted = {"add_bos_token": True, "add_eos_token": True, "padding_side": "right"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **wanted}))
    transformer = Transformer(str(folder))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **wanted}))
    return folder

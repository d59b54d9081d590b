"""The sizes of the hub's models, so that a run can be planned before gigabytes are fetched.

They are what each repository's config.json says as far as it decides how many weights there are; parameter counts of a public
registry (mteb) stand against them in the tests. When a model's own files are at hand, those are read instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.backbone import Backbone
from storage.json_file import write_json

Settings = Mapping[str, Any]


def _decoder(
    kind: str, dtype: str, *, width: int, inner: int, layers: int, heads: int, values: int, words: int
) -> Settings:
    return MappingProxyType(
        {
            "model_type": kind,
            "dtype": dtype,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": values,
            "vocab_size": words,
        }
    )


def _qwen3(*, width: int, inner: int, layers: int, heads: int, words: int) -> Settings:
    sizes = _decoder("qwen3", "bfloat16", width=width, inner=inner, layers=layers, heads=heads, values=8, words=words)
    return MappingProxyType({**sizes, "head_dim": 128})


def _encoder(
    kind: str, dtype: str, *, width: int, inner: int, layers: int, heads: int, words: int, **more: int
) -> Settings:
    return MappingProxyType(
        {
            "model_type": kind,
            "dtype": dtype,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": words,
            **more,
        }
    )


_MISTRAL = {"width": 4096, "inner": 14336, "layers": 32, "heads": 32, "values": 8, "words": 32000}
_NOMIC = {
    "model_type": "nomic_bert",
    "dtype": "float32",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 2048,
    "vocab_size": 250048,
    "type_vocab_size": 1,
    "num_experts": 8,
    "moe_top_k": 2,
    "moe_every_n_layers": 2,
    "rotary_emb_fraction": 1.0,
}

SHAPES: Mapping[str, Settings] = MappingProxyType(
    {
        "all-minilm": _encoder(
            "bert", "float32", width=384, inner=1536, layers=6, heads=12, words=30522, max_position_embeddings=512
        ),
        "embeddinggemma": MappingProxyType(
            {
                **_decoder("gemma3_text", "float32", width=768, inner=1152, layers=24, heads=3, values=1, words=262144),
                "head_dim": 256,
            }
        ),
        "gte-multilingual": _encoder(
            "gte", "float16", width=768, inner=3072, layers=12, heads=12, words=250048, type_vocab_size=1
        ),
        "gte-large": _encoder(
            "gte", "float32", width=1024, inner=4096, layers=24, heads=16, words=30528, type_vocab_size=2
        ),
        "nomic-moe": MappingProxyType(_NOMIC),
        "me5-large": _encoder(
            "xlm-roberta",
            "float32",
            width=1024,
            inner=4096,
            layers=24,
            heads=16,
            words=250002,
            max_position_embeddings=514,
            type_vocab_size=1,
        ),
        "qwen3-0.6b": _qwen3(width=1024, inner=3072, layers=28, heads=16, words=151669),
        "qwen3-4b": _qwen3(width=2560, inner=9728, layers=36, heads=32, words=151665),
        "qwen3-8b": _qwen3(width=4096, inner=12288, layers=36, heads=32, words=151665),
        "gte-qwen2-1.5b": _decoder(
            "qwen2", "float32", width=1536, inner=8960, layers=28, heads=12, values=2, words=151646
        ),
        "gte-qwen2-7b": _decoder(
            "qwen2", "float32", width=3584, inner=18944, layers=28, heads=28, values=4, words=151646
        ),
        "gritlm": _decoder("mistral", "bfloat16", **_MISTRAL),
        "e5-mistral": _decoder("mistral", "float16", **_MISTRAL),
        "nemotron-8b": _decoder("llama", "float32", **{**_MISTRAL, "words": 128256}),
        "bge-gemma2": MappingProxyType(
            {
                **_decoder("gemma2", "float32", width=3584, inner=14336, layers=42, heads=16, values=8, words=256002),
                "head_dim": 256,
            }
        ),
    }
)
"""By the short name of a row of BACKBONES: settings under the names of transformers' class (nomic: of its repository)."""

DENSE: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType({"embeddinggemma": ((768, 3072), (3072, 768))})
"""Inputs and outputs of the Dense modules behind the transformer, which have no bias."""


@contextmanager
def shape_folder(row: Backbone) -> Iterator[Path]:
    """A temporary folder with the configuration of a row and no weights, for `models.sizes.model_sizes`.

    Raises:
        ValueError: a row without a shape.

    Example:
        >>> from models.backbones import find_backbone
        >>> from models.sizes import model_sizes
        >>> with shape_folder(find_backbone("all-minilm")) as folder:
        ...     model_sizes(folder, targets=["query"]).parameters
        22713216
    """
    if row.name not in SHAPES:
        raise ValueError(
            f"backbone {row.name}: expected a model whose shape is written down ({', '.join(SHAPES)}), got another; "
            "give its folder"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = dict(SHAPES[row.name])
        write_json(folder / "config.json", settings)
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        for index, (before, after) in enumerate(DENSE.get(row.name, ()), start=1):
            path = f"{index}_Dense"
            modules.append(
                {"idx": index, "name": str(index), "path": path, "type": "sentence_transformers.models.Dense"}
            )
            (folder / path).mkdir()
            write_json(folder / path / "config.json", {"in_features": before, "out_features": after, "bias": False})
        write_json(folder / "modules.json", modules)
        yield folder

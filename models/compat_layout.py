"""compat_layout: a sentence-transformers folder rewritten so that version 5 loads it too.

Version 6 moved its classes, renamed the settings of pooling and writes settings into sentence_bert_config.json that
version 5 refuses. The old layout is read by both; weights and tokenizer are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.attention import CAUSAL_BY_DEFAULT
from models.nomic_type import is_nomic_moe
from models.origin import transformer_folder
from storage.json_file import read_json, write_json

KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout", "LayerNorm")
"""Modules whose settings are the same in both versions but for what is rewritten here."""
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Pooling modes of version 6, and the switch of each in version 5."""
READ = {
    "Transformer": ("max_seq_length", "do_lower_case"),
    "Dense": ("in_features", "out_features", "bias", "activation_function"),
}
"""The settings that version 5 knows; with any other it does not load the module."""


def compat_layout(folder: str | Path) -> None:
    """Rewrite modules.json and the settings of the modules in the layout of sentence-transformers 5.

    Args:
        folder: a sentence-transformers folder; its weights are not touched.

    Raises:
        ValueError: no modules.json, a module or pooling that version 5 does not have, a mixture of experts that only
            this package loads, or a decoder without its causal mask, which transformers 4 would put back in silence.
            Nothing has been changed.

    Example:
        >>> import shutil, tempfile
        >>> from models.locate import base_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = shutil.copytree(base_folder("tiny-llm"), folder, dirs_exist_ok=True)
        ...     compat_layout(folder)
        ...     read_json(Path(folder) / "modules.json")[0]["type"]
        'sentence_transformers.models.Transformer'
    """
    folder = Path(folder)
    file = folder / "modules.json"
    if not file.is_file():
        raise ValueError(
            f"--layout compat: expected a sentence-transformers folder, found no modules.json in {folder}; "
            "leave --layout out, or give a base that says how it pools"
        )
    place = transformer_folder(folder) / "config.json"
    settings = read_json(place) if place.is_file() else {}
    if is_nomic_moe(settings):
        raise ValueError(
            "--layout compat: expected a model that transformers has a class for, got a NomicBert with a mixture of "
            "experts, which no version of sentence-transformers loads; leave --layout out"
        )
    if settings.get("model_type") in CAUSAL_BY_DEFAULT and settings.get("is_causal") is False:
        raise ValueError(
            f"--layout compat: expected a model with the attention of its class, got a {settings['model_type']} without "
            "causal mask (is_causal false), which transformers 4 would read as causal; leave --layout out"
        )
    written: dict[Path, Any] = {file: [_old_module(module) for module in read_json(file)]}
    for module in written[file]:
        written |= _settings_of(folder / module["path"], module["type"].rpartition(".")[2])
    precision = settings.get("dtype") or settings.get("torch_dtype")
    if precision is not None:
        written[place] = settings | {"dtype": precision, "torch_dtype": precision}
    for path, content in written.items():
        write_json(path, content)


def _old_module(module: dict[str, Any]) -> dict[str, Any]:
    kind = str(module["type"]).rpartition(".")[2]
    if not str(module["type"]).startswith("sentence_transformers.") or kind not in KINDS:
        raise ValueError(
            f"--layout compat: expected modules of {', '.join(KINDS)}, got {module['type']}; leave --layout out"
        )
    return {key: module[key] for key in ("idx", "name", "path")} | {"type": f"sentence_transformers.models.{kind}"}


def _settings_of(place: Path, kind: str) -> dict[Path, Any]:
    """The rewritten settings of one module, by file; none where version 5 reads what is there."""
    file = place / ("sentence_bert_config.json" if kind == "Transformer" else "config.json")
    if not file.is_file():
        return {}
    settings = read_json(file)
    if kind == "Pooling":
        return {file: _old_pooling(settings, file)}
    if kind in READ:
        return {file: {key: value for key, value in settings.items() if key in READ[kind]}}
    return {}


def _old_pooling(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    modes = settings.get("pooling_mode")
    if modes is None:
        chosen = [mode for mode, flag in FLAGS.items() if settings.get(flag)]
    else:
        chosen = [modes] if isinstance(modes, str) else list(modes)
    if strange := [mode for mode in chosen if mode not in FLAGS]:
        raise ValueError(
            f"{file}: --layout compat: expected a pooling of {', '.join(FLAGS)}, got {strange[0]!r}; leave --layout out"
        )
    flags = {flag: mode in chosen for mode, flag in FLAGS.items()}
    return {"word_embedding_dimension": width, **flags, "include_prompt": settings.get("include_prompt", True)}

"""complete_folder: what a merged folder needs beside its weights, so that plain sentence-transformers loads it.

A merge copies the files that surround its base's weights. What `models.embedder.load_embedder` does beyond those files
(a configuration translated, a causal mask removed, modules that the folder does not name, the end token, prompts) would
be lost there: it is written into the folder here. Nothing is imported before it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.backbone import Backbone
from models.native_config import is_foreign, native_folder
from models.nomic_type import SAVED_TYPE, is_nomic_moe
from models.origin import row_of, transformer_folder
from storage.json_file import read_json, write_json
from storage.manifest import MANIFEST

MODULES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
"""Types as sentence-transformers 6 writes them."""


def complete_folder(folder: str | Path, *, base: Path | None = None, bidirectional: bool = False) -> str | None:
    """Write into a folder what plain ``SentenceTransformer(folder)`` does not know by itself; weights are not touched.

    Args:
        folder: with config.json, tokenizer and modules of the base; its weights may come later.
        base: where those files come from: its row of BACKBONES is the one that holds. None: the folder itself.
        bidirectional: whether the model is used without its causal mask though the base has one.

    Returns:
        The reason why plain sentence-transformers cannot load the folder all the same (then `load_embedder` does), or None.

    Raises:
        ValueError: a configuration that transformers' class does not have, or a tokenizer without an end token.

    Example:
        >>> import shutil, tempfile
        >>> from models.locate import base_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = shutil.copytree(base_folder("tiny-llm"), folder, dirs_exist_ok=True)
        ...     complete_folder(folder, bidirectional=True)
        ...     read_json(Path(folder) / "config.json")["is_causal"]
        False
    """
    folder = Path(folder)
    row = row_of(base if base is not None else folder)
    place = transformer_folder(folder)
    if not (place / "config.json").is_file():
        return None
    settings = read_json(place / "config.json")
    if is_nomic_moe(settings):
        kept = {name: value for name, value in settings.items() if name != "auto_map"}
        write_json(place / "config.json", {**kept, "model_type": SAVED_TYPE, "architectures": ["NomicMoeModel"]})
        _remove_code(folder)
        _add_prompts(folder, row)
        return "transformers has no class for a NomicBert with a mixture of experts"
    native = _native_settings(place, settings, row)
    if (bidirectional or (row is not None and row.attention == "bidirectional")) and _has_causal_mask(native):
        native["is_causal"] = False
    if native != settings:
        write_json(place / "config.json", native)
    if row is not None:
        _add_modules(folder, row, width=native.get("hidden_size"))
        _add_prompts(folder, row)
    if row is not None or is_foreign(settings):
        _remove_code(folder)
    _complete_tokenizer(folder, place, row)
    return None


def reads_both_ways(folder: str | Path) -> bool:
    """Whether a model or adapter folder says that its decoder is used without a causal mask.

    A model says it in config.json (``is_causal``), an adapter folder in its manifest (``base.bidirectional``).
    """
    folder = Path(folder)
    manifest, config = folder / MANIFEST, transformer_folder(folder) / "config.json"
    recorded = read_json(manifest).get("base") if manifest.is_file() else None
    if isinstance(recorded, dict) and recorded.get("bidirectional"):
        return True
    settings = read_json(config) if config.is_file() else {}
    return settings.get("is_causal") is False and _has_causal_mask(settings)


def _native_settings(place: Path, settings: dict[str, Any], row: Backbone | None) -> dict[str, Any]:
    """config.json without code of the model's own, where transformers has a class for the model; else as it is."""
    if is_foreign(settings):
        with native_folder(place) as native:
            return dict(read_json(native / "config.json"))
    # No row needs the code that its repository names; of other models nobody here knows.
    return {key: value for key, value in settings.items() if key != "auto_map" or row is None}


def _has_causal_mask(settings: dict[str, Any]) -> bool:
    from models.attention import CAUSAL_BY_DEFAULT

    return settings.get("model_type") in CAUSAL_BY_DEFAULT


def _remove_code(folder: Path) -> None:
    """Take away the model's own code, and what names it beside config.json: it would run in place of the native class."""
    for file in sorted(folder.rglob("*.py")):
        file.unlink()
    for file in sorted(folder.rglob("tokenizer_config.json")):
        settings = read_json(file)
        if settings.pop("auto_map", None) is not None:
            write_json(file, settings)


def _add_modules(folder: Path, row: Backbone, *, width: int | None) -> None:
    """modules.json and what it names; without it sentence-transformers would guess the pooling."""
    if (folder / "modules.json").is_file():
        return
    kinds = ["Transformer", "Pooling", *(["Normalize"] if row.normalize else [])]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    pooling = {"embedding_dimension": width, "pooling_mode": row.pooling, "include_prompt": row.pools_prompt}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if row.normalize:
        names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        write_json(folder / "2_Normalize" / "config.json", names)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": MODULES[kind]}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)


def _add_prompts(folder: Path, row: Backbone | None) -> None:
    """The row's fixed prompts where the folder has none; one with a place for a task is a text of the user's making."""
    fixed = {name: prompt for name, prompt in row.prompts.items() if "{task}" not in prompt} if row is not None else {}
    file = folder / "config_sentence_transformers.json"
    settings = read_json(file) if file.is_file() else {}
    prompts = dict(settings.get("prompts") or {})
    missing = {name: prompt for name, prompt in fixed.items() if not prompts.get(name) and prompt}
    if missing:
        write_json(file, {"default_prompt_name": None, **settings, "prompts": prompts | missing})


def _complete_tokenizer(folder: Path, place: Path, row: Backbone | None) -> None:
    """The end token that last-token pooling reads, which transformers 5 does not add by itself, and the padding side."""
    file = place / "tokenizer_config.json"
    if not file.is_file():
        return
    asked = read_json(file)
    if _pools_last_token(folder) and (asked.get("add_eos_token") or (row is not None and row.needs_eos)):
        from models.end_token import complete_tokenizer

        complete_tokenizer(place, begins=bool(asked.get("add_bos_token")))
    settings = read_json(file)
    # Without a word of it the tokenizer's class decides, which for Gemma is left.
    if row is not None and settings.get("padding_side") != row.padding_side:
        write_json(file, {**settings, "padding_side": row.padding_side})


def _pools_last_token(folder: Path) -> bool:
    if not (folder / "modules.json").is_file():
        return False
    for module in read_json(folder / "modules.json"):
        config = folder / module["path"] / "config.json"
        if module["type"].endswith(".Pooling") and config.is_file():
            told = read_json(config)
            return bool(told.get("pooling_mode_lasttoken")) or told.get("pooling_mode") == "lasttoken"
    return False

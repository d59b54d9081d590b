"""The tokenizer of a model as a run has it, without the model: for counting tokens before anything is loaded."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from models.backbone import Backbone
from models.end_token import append_eos
from models.native_config import native_folder
from models.sizes import transformer_folder
from models.tiny_llm import build_tiny_tokenizer
from storage.json_file import read_json

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model", "spiece.model")


def plan_tokenizer(folder: Path | None, row: Backbone | None) -> Any:
    """The model's tokenizer, with the limit and the end token that the loaded model has; None where its folder has none.

    Example:
        >>> len(plan_tokenizer(None, None)("1, 2, 3")["input_ids"])
        6
    """
    if folder is None:
        return build_tiny_tokenizer()
    here = transformer_folder(folder)
    if not any((here / name).is_file() for name in TOKENIZERS):
        return None
    with native_folder(here) as native:
        tokenizer = AutoTokenizer.from_pretrained(str(native), local_files_only=True, trust_remote_code=False)
    limits = [tokenizer.model_max_length, read_json(here / "config.json").get("max_position_embeddings")]
    told = here / "sentence_bert_config.json"
    limits.append(read_json(told).get("max_seq_length") if told.is_file() else None)
    tokenizer.model_max_length = min(limit for limit in limits if limit is not None)
    settings = read_json(here / "tokenizer_config.json") if (here / "tokenizer_config.json").is_file() else {}
    asks = bool(settings.get("add_eos_token"))
    if (asks or (row is not None and row.needs_eos)) and _reads_last_token(folder, row):
        append_eos(tokenizer, source=str(folder), begins=bool(settings.get("add_bos_token")))
    return tokenizer


def prompt_of(folder: Path | None) -> str:
    """What a bare ``encode()`` puts before a text."""
    file = None if folder is None else folder / "config_sentence_transformers.json"
    if file is None or not file.is_file():
        return ""
    told = read_json(file)
    return str((told.get("prompts") or {}).get(told.get("default_prompt_name")) or "")


def _reads_last_token(folder: Path, row: Backbone | None) -> bool:
    if not (folder / "modules.json").is_file():
        return row is not None and row.pooling == "lasttoken"
    pools = [module["path"] for module in read_json(folder / "modules.json") if module["type"].endswith(".Pooling")]
    told = [read_json(folder / path / "config.json") for path in pools]
    return any(each.get("pooling_mode_lasttoken") or "lasttoken" in str(each.get("pooling_mode")) for each in told)

"""Hub folders whose config.json asks for code of their own, seen as folders of a class that transformers has.

Two kinds are known: GTE (model type ``new``, native as ``gte`` since transformers 5.18, arXiv:2407.19669) and
llama-embed-nemotron (``llama_bidirec``: a Llama without the causal mask, arXiv:2511.07025).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from storage.json_file import read_json, write_json

Settings = Mapping[str, Any]

# What the code of GTE's own can do and the native class cannot; each has to be absent or have the value here.
GTE_ONLY = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "pack_qkv": True,
}
# Settings of that code which change how it computes and not what.
GTE_SPEED = ("unpad_inputs", "use_memory_efficient_attention")
LLAMA_HEAD = ("pooling", "temperature")
REMOTE = ("auto_map", "architectures", "model_type", "transformers_version")


@contextmanager
def native_folder(folder: Path) -> Iterator[Path]:
    """The folder itself, or for a known foreign model type a temporary one of links with a native config.json.

    The given folder is never written. The temporary one is gone after the block.

    Args:
        folder: with a config.json of a transformers model.

    Raises:
        ValueError: a setting that the native class does not have; the message names the file and the setting.

    Example:
        >>> from models.locate import base_folder
        >>> with native_folder(base_folder("tiny-llm")) as folder:  # native as it is
        ...     folder == base_folder("tiny-llm")
        True
    """
    file = folder / "config.json"
    settings = read_json(file) if file.is_file() else {}
    translate = _NATIVE.get(settings.get("model_type", ""))
    if translate is None:
        yield folder
        return
    native = translate(settings, str(file))
    with folder_with(folder, {file.name: native}) as view:
        yield view


def is_foreign(settings: Settings) -> bool:
    """Whether a config.json is of a model type that transformers does not know and that is translated here."""
    return settings.get("model_type", "") in _NATIVE


@contextmanager
def folder_with(folder: Path, files: Mapping[str, Any], *, code: bool = False) -> Iterator[Path]:
    """A temporary folder of links to what is in `folder`, with these JSON files by their paths instead.

    Python files are left out unless `code` is wanted.
    """
    with tempfile.TemporaryDirectory() as temporary:
        view = Path(temporary)
        for each in folder.iterdir():
            if each.name not in files and (code or each.suffix != ".py"):
                (view / each.name).symlink_to(each.resolve())
        for name, content in files.items():
            (view / name).parent.mkdir(exist_ok=True)
            write_json(view / name, content)
        yield view


def native_gte(settings: Settings, source: str = "config.json") -> dict[str, Any]:
    """The configuration of GteModel for one of GTE's original repositories.

    Its NTK scaling by f multiplies the base by f and divides every frequency by f**(2 / head_dim); transformers
    says this as linear scaling.

    Raises:
        ValueError: a setting that GteModel does not have.

    Example:
        >>> sizes = {"hidden_size": 128, "num_attention_heads": 2}
        >>> native_gte({**sizes, "rope_theta": 20000, "rope_scaling": {"type": "ntk", "factor": 8.0}})["rope_parameters"]
        {'rope_type': 'linear', 'rope_theta': 160000.0, 'factor': 1.0671404006768237}
    """
    for name, wanted in GTE_ONLY.items():
        if settings.get(name, wanted) != wanted:
            raise ValueError(
                f"{source}: expected {name} {wanted!r}, which transformers' GteModel has, got {settings[name]!r}; "
                "take a repository of GTE that has it"
            )
    theta, scaling = float(settings.get("rope_theta", 10000.0)), settings.get("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        if scaling.get("type") != "ntk" or "factor" not in scaling or scaling.get("mixed_b") is not None:
            raise ValueError(
                f"{source}: expected rope_scaling of type ntk with a factor and without mixed_b, got {scaling!r}; "
                "take a repository of GTE that has it"
            )
        factor = float(scaling["factor"])
        head = settings["hidden_size"] // settings["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head)}
    left_out = {*REMOTE, *GTE_ONLY, *GTE_SPEED, "rope_theta", "rope_scaling"}
    kept = {name: value for name, value in settings.items() if name not in left_out}
    return {**kept, "model_type": "gte", "architectures": ["GteModel"], "rope_parameters": rope}


def native_llama(settings: Settings, source: str = "config.json") -> dict[str, Any]:
    """The configuration of a LlamaModel without a causal mask for ``llama_bidirec``.

    Raises:
        ValueError: a pooling other than the mean.

    Example:
        >>> native_llama({"model_type": "llama_bidirec", "pooling": "avg", "hidden_size": 64})
        {'hidden_size': 64, 'model_type': 'llama', 'architectures': ['LlamaModel'], 'is_causal': False}
    """
    if (pooling := settings.get("pooling", "avg")) not in ("avg", "mean"):
        raise ValueError(f"{source}: expected pooling avg, got {pooling!r}; take a repository that pools the mean")
    kept = {name: value for name, value in settings.items() if name not in (*REMOTE, *LLAMA_HEAD)}
    return {**kept, "model_type": "llama", "architectures": ["LlamaModel"], "is_causal": False}


_NATIVE: Mapping[str, Callable[[Settings, str], dict[str, Any]]] = MappingProxyType(
    {"new": native_gte, "llama_bidirec": native_llama}
)

"""Embeddings for TensorBoard's embedding projector, as binary files, with one entry a name.

``SummaryWriter.add_embedding`` writes numbers as text, and appends to ``projector_config.pbtxt`` at every call, so that a second
call leaves two entries of one name.

Dimension names:
    n: texts
    d: embedding width
"""

import codecs
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from jaxtyping import Float32
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from evaluation.centring import Embeddings, checked
from storage.atomic import write_bytes, write_text
from storage.text_file import read_text

CONFIG = "projector_config.pbtxt"
ASSETS = "projector"
EMPTY = "(empty)"
_READ_AT_ONCE = 2**24
"""Bytes of a tensor's file that TensorBoard decodes before it says whether the file is text."""


def write_projector(log_dir: Path, name: str, embeddings: Embeddings, metadata: Mapping[str, Sequence[object]]) -> Path:
    """Add embeddings to a log folder's projector, or put them in the place of the entry of the same name.

    The tensor is raw float32, little-endian, row after row: the model's own numbers, which the page centres where its box
    "Spherize data" is ticked. Its file and the metadata's are named by their content and written first, the configuration
    last, so a reader finds the old entry or the new one. A TensorBoard that is running shows a replaced entry after a
    restart. Numbers whose bytes happen to be UTF-8, as of a collapsed model, are written as text (``.tsv``).

    Args:
        log_dir: folder of a TensorBoard run; made where it is missing.
        name: of the entry. A colon becomes ``_``: the projector reads what follows it as an output's number.
        embeddings: (n, d), any floating dtype.
        metadata: column -> n values, shown as text beside the points; tabs and line breaks become blanks. It may be empty.

    Returns:
        The tensor's file.

    Raises:
        ValueError: embeddings that are not a finite matrix or exceed float32, a column of another length, an empty name, or a
            configuration that is not the projector's.

    Reference:
        Smilkov et al., "Embedding Projector: Interactive visualization and interpretation of embeddings", 2016.

    Example:
        >>> import tempfile
        >>> file = write_projector(Path(tempfile.mkdtemp()), "paper", np.eye(3), {"label": ["a", "b", "c"]})
        >>> file.suffix, np.fromfile(file, "<f4").reshape(3, 3).trace().item()
        ('.bytes', 3.0)
    """
    title = _cell(name).replace(":", "_")
    if title == EMPTY:
        raise ValueError("name: expected a text for the projector's list, got an empty one; name the embeddings")
    rows = _float32(embeddings)
    table = _table(metadata, len(rows))
    config = _read_config(log_dir / CONFIG)
    tensor = _write_asset(log_dir, title, *_tensor_file(rows))
    entry = EmbeddingInfo(tensor_name=title, tensor_path=tensor, tensor_shape=rows.shape)
    if table:
        entry.metadata_path = _write_asset(log_dir, title, table.encode(), ".tsv")
    before = _paths(config)
    _replace(config, entry)
    write_text(log_dir / CONFIG, text_format.MessageToString(config))
    for path in before - _paths(config):
        if Path(path).parent == Path(ASSETS):  # what others wrote is theirs to remove
            (log_dir / path).unlink(missing_ok=True)
    return log_dir / tensor


def _float32(embeddings: Embeddings) -> Float32[np.ndarray, "n d"]:
    rows: Float32[np.ndarray, "n d"] = checked(embeddings).float().cpu().numpy().astype("<f4")
    if not np.isfinite(rows).all():
        raise ValueError("embeddings: expected numbers below 3.4e38, got one that exceeds float32; rescale them")
    return rows


def _tensor_file(rows: Float32[np.ndarray, "n d"]) -> tuple[bytes, str]:
    """Content and suffix of the tensor's file.

    TensorBoard takes a file for binary if it is not UTF-8, whatever its name. Numbers such as 0, 0.5 and 2 alone are UTF-8, and
    reading them as text then fails: a collapsed model's zeros are written as the text that they are taken for.
    """
    content = rows.tobytes()
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content[:_READ_AT_ONCE])
    except UnicodeDecodeError:
        return content, ".bytes"
    return "".join("\t".join(map(repr, row)) + "\n" for row in rows.tolist()).encode(), ".tsv"


def _table(metadata: Mapping[str, Sequence[object]], n: int) -> str:
    """Tab-separated columns below their names; a single column has no name, or the projector would show it as a point."""
    for column, values in metadata.items():
        if len(values) != n:
            raise ValueError(f"metadata[{column!r}]: expected {n} values, one a text, got {len(values)}; match them")
    if not metadata:
        return ""
    lines = [*([tuple(metadata)] if len(metadata) > 1 else []), *zip(*metadata.values(), strict=True)]
    return "".join("\t".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: object) -> str:
    """Text without tabs, line breaks or other control characters, and never blank: the projector skips blank lines."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+", " ", str(value)).strip()
    return text.encode("utf-8", "replace").decode() or EMPTY


def _read_config(path: Path) -> Any:
    config = ProjectorConfig()
    if path.is_file():
        try:
            text_format.Parse(read_text(path), config)
        except text_format.ParseError as error:
            raise ValueError(f"{path}: expected a projector's configuration, got {error}; remove the file") from None
    return config


def _write_asset(log_dir: Path, title: str, content: bytes, suffix: str) -> str:
    """Write a file named by its content; its path within the log folder."""
    stem = re.sub(r"[^\w.-]+", "_", title, flags=re.ASCII).strip("._")[:60]
    path = f"{ASSETS}/{stem or 'tensor'}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    write_bytes(log_dir / path, content)
    return path


def _replace(config: Any, entry: Any) -> None:
    """Put the entry in the place of those of its name, or at the end."""
    kept = [old for old in config.embeddings if old.tensor_name != entry.tensor_name]
    names = [old.tensor_name for old in config.embeddings]
    kept.insert(names.index(entry.tensor_name) if entry.tensor_name in names else len(kept), entry)
    del config.embeddings[:]
    config.embeddings.extend(kept)


def _paths(config: Any) -> set[str]:
    return {path for entry in config.embeddings for path in (entry.tensor_path, entry.metadata_path) if path}

"""Names on disk and names in memory: where a tensor that a model class knows lies in the files.

Most models are stored under the names they have in memory.  GTE and Nomic keep on disk the names of the code
they were published with, with fused projections: transformers splits them on loading and fuses them again on
saving.  An adapter or a Lightning checkpoint has the names of memory; this table finds the rows they belong to.

Reference: ``transformers/conversion_mapping.py`` of transformers 5.18 and later, entries ``gte`` and ``nomic_bert``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from merging.sources import Checkpoint, as_matrix
from storage.json_file import read_json


class RowView(NamedTuple):
    """Rows ``start`` to ``stop`` of a stored tensor, which memory has under a name of its own."""

    name: str
    """Key of ``Checkpoint.tensors``."""
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """How one family of models is stored.  Names are whole parts between dots: ``fc1`` is not found in ``fc11``."""

    prefix: str = ""
    """What some files put before every name of the transformer."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(on disk, in memory)."""
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(on disk, in memory): equal blocks of rows, in the order in which they lie on disk."""

    def names_in_memory(self, name: str) -> tuple[str, ...]:
        """Return the names of the blocks of rows of the stored tensor ``name``: one, unless it is fused."""
        dotted = f".{name.removeprefix(self.prefix)}."
        for disk, memory in self.renamed:
            dotted = dotted.replace(f".{disk}.", f".{memory}.")
        for disk, parts in self.fused:
            if f".{disk}." in dotted:
                return tuple(dotted.replace(f".{disk}.", f".{part}.")[1:-1] for part in parts)
        return (dotted[1:-1],)


_PLAIN = Layout()
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GTE = Layout(
    prefix="new.",
    renamed=(
        ("encoder.layer", "layers"),
        ("attention.o_proj", "self_attn.o_proj"),
        ("attn_ln", "post_attention_layernorm"),
        ("mlp_ln", "post_mlp_layernorm"),
    ),
    fused=(("attention.qkv_proj", _ATTENTION), ("mlp.up_gate_proj", ("mlp.up_proj", "mlp.gate_proj"))),
)
_NOMIC = Layout(
    renamed=(
        ("encoder.layers", "layers"),
        ("emb_ln", "embeddings.LayerNorm"),
        ("attn.out_proj", "self_attn.o_proj"),
        ("fc11", "up_proj"),
        ("fc12", "gate_proj"),
        ("fc2", "down_proj"),
        ("norm1", "post_attention_layernorm"),
        ("norm2", "post_mlp_layernorm"),
    ),
    fused=(("attn.Wqkv", _ATTENTION),),
)
LAYOUTS: Mapping[str, Layout] = MappingProxyType({"gte": _GTE, "new": _GTE, "nomic_bert": _NOMIC})
"""By ``model_type`` of config.json; ``new`` is what GTE's own repositories say.  All others are stored as they are."""


def model_type_of(checkpoint: Checkpoint) -> str | None:
    """Return ``model_type`` of the transformer's config.json; None where there is none, or where names need no table."""
    file = checkpoint.folder / checkpoint.transformer / "config.json"
    read = read_json(file) if file.is_file() else None
    config = read if isinstance(read, dict) else {}
    named = config.get("model_type")
    if named == "nomic_bert" and config.get("num_experts"):
        # A mixture of experts has in memory the names of its files, under the class of models.nomic_moe.
        return None
    return named if isinstance(named, str) else None


def transformer_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return {name inside the transformer's files: key of ``checkpoint.tensors``}, without other modules' tensors."""
    inside = {
        name.removeprefix(checkpoint.transformer): name
        for name in checkpoint.tensors
        if name.startswith(checkpoint.transformer)
    }
    return {inner: name for inner, name in inside.items() if "/" not in inner}


def memory_views(checkpoint: Checkpoint, model_type: str | None) -> dict[str, RowView]:
    """Return where each tensor of the transformer in memory lies in the files: (stored name, first row, row after the last).

    Args:
        checkpoint: a whole model, opened by its headers.
        model_type: of its config.json, see :func:`model_type_of`; a type without a row in ``LAYOUTS``, or None,
            has the same names in memory and on disk.

    Returns:
        In the order of the files; the views of one stored tensor follow each other and cover its rows.

    Raises:
        ValueError: the rows of a fused tensor cannot be divided equally, or two tensors have one name in memory.
    """
    layout = LAYOUTS.get(model_type or "", _PLAIN)
    views: dict[str, RowView] = {}
    for inner, name in transformer_names(checkpoint).items():
        tensor = checkpoint.tensors[name]
        rows, _ = as_matrix(tensor.shape)
        parts = layout.names_in_memory(inner)
        if rows % len(parts):
            raise ValueError(
                f"{tensor.where}: tensor {name}: expected rows for {len(parts)} equal parts ({', '.join(parts)}), "
                f"got {rows}; is it a {model_type} model?"
            )
        size = rows // len(parts)
        for index, part in enumerate(parts):
            if part in views:
                raise ValueError(
                    f"{tensor.where}: tensor {name}: expected one tensor for {part}, got {views[part].name} too; "
                    "remove one of them"
                )
            views[part] = RowView(name, index * size, (index + 1) * size)
    return views

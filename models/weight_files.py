"""The safetensors files of a transformer, read tensor by tensor or by rows of a tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from storage.json_file import read_json
from storage.tensor_file import Entry, read_header, torch_dtypes


class WeightFiles:
    """One file or the shards of an index, all of whose headers were checked; nothing is kept of what is read.

    Args:
        folder: with model.safetensors, or model.safetensors.index.json and its shards.

    Raises:
        ValueError: neither is there, or a header is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            index = folder / "model.safetensors.index.json"
            if not index.is_file():
                raise ValueError(
                    f"{folder}: expected model.safetensors or its shards and index, found none; fetch the weights"
                )
            files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        self.entries: dict[str, Entry] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            for name, entry in read_header(file).entries.items():
                self.entries[name], self._files[name] = entry, file

    def dtype(self) -> torch.dtype:
        """Precision of the first weight that is no whole number; float32 where there is none."""
        dtypes = (torch_dtypes()[entry.dtype] for entry in self.entries.values())
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def rows(self, name: str, rows: slice) -> Tensor:
        """Rows of one tensor, and nothing else of it; an empty slice reads nothing.

        Raises:
            ValueError: a value that is NaN or infinite; it names the file and the tensor.
        """
        entry = self.entries[name]
        if rows.stop <= rows.start:
            return torch.empty(0, *entry.shape[1:], dtype=torch_dtypes()[entry.dtype])
        with safe_open(self._files[name], framework="pt") as file:
            return self._finite(name, file.get_slice(name)[rows.start : rows.stop])

    def whole(self, name: str) -> Tensor:
        """One whole tensor.

        Raises:
            ValueError: as `rows`.
        """
        with safe_open(self._files[name], framework="pt") as file:
            return self._finite(name, file.get_tensor(name))

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{self._files[name]}: tensor {name}: expected finite weights, got NaN or infinity; restore the weights"
            )
        return tensor
